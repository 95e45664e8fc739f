#ifndef KERNELS_APIC_H
#define KERNELS_APIC_H
/*
 * The local APIC in either mode, the IOAPIC, the PICs and a delay. Source: Intel SDM volume 3, chapter 11;
 * 82093AA and 8259A data sheets.
 */
#include <stdbool.h>
#include <stdint.h>

#define APIC_ID 0x20
#define APIC_VERSION 0x30
#define APIC_TPR 0x80
#define APIC_PPR 0xa0
#define APIC_EOI 0xb0
#define APIC_LDR 0xd0
#define APIC_DFR 0xe0
#define APIC_SVR 0xf0
#define APIC_ISR 0x100
#define APIC_TMR 0x180
#define APIC_IRR 0x200
#define APIC_ESR 0x280
#define APIC_ICR 0x300
#define APIC_ICR_HIGH 0x310
#define APIC_LVT_TIMER 0x320
#define APIC_LVT_LINT0 0x350
#define APIC_LVT_LINT1 0x360
#define APIC_LVT_ERROR 0x370
#define APIC_TIMER_INITIAL 0x380
#define APIC_TIMER_CURRENT 0x390
#define APIC_TIMER_DIVIDE 0x3e0

#define ICR_FIXED 0x000
#define ICR_LOWEST 0x100
#define ICR_NMI 0x400
#define ICR_INIT 0x500
#define ICR_STARTUP 0x600
#define ICR_LOGICAL 0x800
#define ICR_BUSY 0x1000
#define ICR_ASSERT 0x4000
#define ICR_LEVEL 0x8000
#define ICR_SELF 0x40000
#define ICR_ALL 0x80000
#define ICR_OTHERS 0xc0000
#define LVT_MASKED 0x10000
#define LVT_PERIODIC 0x20000
#define LVT_DEADLINE 0x40000

#define SPURIOUS_VECTOR 0xff

#define APIC_BASE_ENABLE 0x800
#define APIC_BASE_X2 0x400

uint32_t apic_read(unsigned reg);
void apic_write(unsigned reg, uint32_t value);
bool apic_is_x2(void);
void apic_enable(void); /* by the spurious-vector register; LINT0 and LINT1 masked */
unsigned apic_id(void);
void apic_ipi(uint32_t destination, uint32_t low);
void apic_eoi(void);
/* One bit of the ISR, TMR or IRR. */
bool apic_bit(unsigned reg, unsigned vector);

uint32_t ioapic_read(unsigned index);
void ioapic_write(unsigned index, uint32_t value);
#define IOAPIC_MASKED 0x10000
#define IOAPIC_LEVEL 0x8000
#define IOAPIC_REMOTE_IRR 0x4000
#define IOAPIC_LOW 0x2000
void ioapic_route(unsigned pin, uint32_t low, unsigned apic);

/* ICW1..4 with the given vectors, everything masked. */
void pic_init(unsigned master_vector, unsigned slave_vector);
void pic_mask(uint16_t mask); /* bit n masks IRQ n */
void pic_eoi(unsigned irq);

/* Waits by PIT channel 2 (port 0x61). At most 50 ms. */
void delay_us(unsigned microseconds);
#define PIT_HZ 1193182u

#endif
