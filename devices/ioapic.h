/* The I/O APIC: 24 pins to interrupt messages (Intel 82093AA data sheet; the EOI register of version 0x20).
 *
 * A pin's level means "asserted": the polarity bit is kept for the guest but inverts nothing, since a board's
 * wires know how they are asserted. Thread-safe; messages are sent with the IOAPIC's lock held. */
#ifndef NESTOR_DEVICES_IOAPIC_H
#define NESTOR_DEVICES_IOAPIC_H

#include "base/types.h"

#define IOAPIC_PINS 24
#define IOAPIC_BASE 0xfec00000ull

struct ioapic;

/* One message: delivery_mode as in the redirection entry (SDM numbering). */
typedef void ioapic_deliver_fn(void *context, uint32_t destination, bool logical, unsigned delivery_mode,
                               uint8_t vector, bool level_triggered);

MUST_CHECK struct ioapic *ioapic_create(ioapic_deliver_fn *deliver, void *context);
void ioapic_destroy(struct ioapic *ioapic);
void ioapic_reset(struct ioapic *ioapic);

void ioapic_pin_set(struct ioapic *ioapic, unsigned pin, bool asserted);
/* A LAPIC's EOI of a level-triggered vector. */
void ioapic_eoi(struct ioapic *ioapic, uint8_t vector);

uint64_t ioapic_read(struct ioapic *ioapic, uint64_t offset, unsigned size);
void ioapic_write(struct ioapic *ioapic, uint64_t offset, unsigned size, uint64_t value);

#endif
