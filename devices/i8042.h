/* The PC's 8042 keyboard controller with a keyboard that answers commands but has no keys pressed; no mouse.
 * Port 0x60 is offset 0, port 0x64 offset 1. Thread-safe. */
#ifndef NESTOR_DEVICES_I8042_H
#define NESTOR_DEVICES_I8042_H

#include "devices/irq_line.h"

struct i8042;

/* reset: the reset line was pulsed; called without the lock. */
MUST_CHECK struct i8042 *i8042_create(struct irq_line irq1, struct irq_line irq12,
                                      void (*reset)(void *context), void *context);
void i8042_destroy(struct i8042 *kbc);
void i8042_reset(struct i8042 *kbc);
uint8_t i8042_read(struct i8042 *kbc, unsigned offset);
void i8042_write(struct i8042 *kbc, unsigned offset, uint8_t value);

#endif
