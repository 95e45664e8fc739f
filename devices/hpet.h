/* High Precision Event Timers (IA-PC HPET specification 1.0a): one 64-bit counter of 100 MHz, three
 * comparators that can be one-shot or periodic, level or edge, and replace the PIT and RTC interrupts.
 * Thread-safe. */
#ifndef NESTOR_DEVICES_HPET_H
#define NESTOR_DEVICES_HPET_H

#include "base/types.h"
#include "devices/timer.h"

#define HPET_BASE 0xfed00000ull
#define HPET_SIZE 0x400
#define HPET_COMPARATORS 3
#define HPET_PERIOD_FS 10000000u /* 10 ns */
#define HPET_VENDOR 0x8086u

struct hpet;

struct hpet_ops {
    /* Level of an IOAPIC input. */
    void (*set_gsi)(void *context, unsigned gsi, bool level);
    /* In legacy replacement mode: level of the PC's timer (0) or clock (8) interrupt. */
    void (*set_legacy)(void *context, unsigned isa_irq, bool level);
    /* Legacy replacement is on: PIT and RTC are cut off from their interrupts. */
    void (*legacy_changed)(void *context, bool on);
};

MUST_CHECK struct hpet *hpet_create(struct timer_queue *timers, const struct hpet_ops *ops, void *context);
void hpet_destroy(struct hpet *hpet);
void hpet_reset(struct hpet *hpet);
/* Offset below HPET_SIZE; size 4 or 8 (others read 0). */
uint64_t hpet_read(struct hpet *hpet, uint64_t offset, unsigned size);
void hpet_write(struct hpet *hpet, uint64_t offset, unsigned size, uint64_t value);
/* The event timer block ID of the ACPI HPET table. */
uint32_t hpet_block_id(void);

#endif
