/*
 * Interrupt controllers by polling; see apic.h.
 */
#include "apic.h"

#include "runtime.h"

#define APIC_MMIO 0xfee00000ul
#define IOAPIC_MMIO 0xfec00000ul
#define X2APIC_MSR 0x800

bool apic_is_x2(void) {
    return read_msr(MSR_APIC_BASE) & APIC_BASE_X2;
}

uint32_t apic_read(unsigned reg) {
    if (apic_is_x2())
        return (uint32_t)read_msr(X2APIC_MSR + reg / 16);
    return *(volatile uint32_t *)(APIC_MMIO + reg);
}

void apic_write(unsigned reg, uint32_t value) {
    if (apic_is_x2())
        write_msr(X2APIC_MSR + reg / 16, value);
    else
        *(volatile uint32_t *)(APIC_MMIO + reg) = value;
}

void apic_enable(void) {
    apic_write(APIC_SVR, 0x100 | SPURIOUS_VECTOR);
    apic_write(APIC_LVT_LINT0, LVT_MASKED);
    apic_write(APIC_LVT_LINT1, LVT_MASKED);
    apic_write(APIC_TPR, 0);
}

unsigned apic_id(void) {
    uint32_t id = apic_read(APIC_ID);
    return apic_is_x2() ? id : id >> 24;
}

void apic_ipi(uint32_t destination, uint32_t low) {
    if (apic_is_x2()) {
        write_msr(X2APIC_MSR + APIC_ICR / 16, (uint64_t)destination << 32 | low);
        return;
    }
    apic_write(APIC_ICR_HIGH, destination << 24);
    apic_write(APIC_ICR, low);
    while (apic_read(APIC_ICR) & ICR_BUSY)
        cpu_pause();
}

void apic_eoi(void) {
    apic_write(APIC_EOI, 0);
}

bool apic_bit(unsigned reg, unsigned vector) {
    return apic_read(reg + vector / 32 * 16) >> vector % 32 & 1;
}

uint32_t ioapic_read(unsigned index) {
    *(volatile uint32_t *)IOAPIC_MMIO = index;
    return *(volatile uint32_t *)(IOAPIC_MMIO + 0x10);
}

void ioapic_write(unsigned index, uint32_t value) {
    *(volatile uint32_t *)IOAPIC_MMIO = index;
    *(volatile uint32_t *)(IOAPIC_MMIO + 0x10) = value;
}

void ioapic_route(unsigned pin, uint32_t low, unsigned apic) {
    ioapic_write(0x10 + 2 * pin, IOAPIC_MASKED);
    ioapic_write(0x11 + 2 * pin, apic << 24);
    ioapic_write(0x10 + 2 * pin, low);
}

void pic_init(unsigned master_vector, unsigned slave_vector) {
    out8(0x20, 0x11);
    out8(0xa0, 0x11);
    out8(0x21, (uint8_t)master_vector);
    out8(0xa1, (uint8_t)slave_vector);
    out8(0x21, 4);
    out8(0xa1, 2);
    out8(0x21, 1);
    out8(0xa1, 1);
    pic_mask(0xffff);
}

void pic_mask(uint16_t mask) {
    out8(0x21, (uint8_t)mask);
    out8(0xa1, (uint8_t)(mask >> 8));
}

void pic_eoi(unsigned irq) {
    if (irq >= 8)
        out8(0xa0, 0x20);
    out8(0x20, 0x20);
}

void delay_us(unsigned microseconds) {
    unsigned count = microseconds * 1193u / 1000u + 1;
    out8(0x61, (uint8_t)((in8(0x61) & ~2) | 1)); /* gate on, speaker off */
    out8(0x43, 0xb0);                            /* channel 2, both bytes, mode 0 */
    out8(0x42, (uint8_t)count);
    out8(0x42, (uint8_t)(count >> 8));
    while (!(in8(0x61) & 0x20))
        cpu_pause();
}
