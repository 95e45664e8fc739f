/* The PC's 8254 interval timer and the port-0x61 latch in front of its third counter (Intel 8254 data sheet).
 * Counter 0's output is the irq_line, counter 2 is gated by and read back through port 0x61. Thread-safe. */
#ifndef NESTOR_DEVICES_I8254_H
#define NESTOR_DEVICES_I8254_H

#include "devices/irq_line.h"
#include "devices/timer.h"

#define PIT_HZ 1193182ull

struct i8254;

MUST_CHECK struct i8254 *i8254_create(struct timer_queue *timers, struct irq_line irq0);
void i8254_destroy(struct i8254 *pit);
void i8254_reset(struct i8254 *pit);

/* Offset 0 to 3 from port 0x40. */
uint8_t i8254_read(struct i8254 *pit, unsigned offset);
void i8254_write(struct i8254 *pit, unsigned offset, uint8_t value);
/* Port 0x61. */
uint8_t i8254_port61_read(struct i8254 *pit);
void i8254_port61_write(struct i8254 *pit, uint8_t value);

#endif
