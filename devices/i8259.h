/* The PC's pair of 8259A interrupt controllers with the edge/level registers (Intel 8259A data sheet; ELCR of
 * the 82378). Ports: master at offset 0 and 1 of its base (0x20), slave at 0xA0, ELCR at 0x4D0. Thread-safe.
 */
#ifndef NESTOR_DEVICES_I8259_H
#define NESTOR_DEVICES_I8259_H

#include "base/types.h"
#include "devices/irq_line.h"

struct i8259;

/* intr: the INTR output, called with the pair's lock held. */
MUST_CHECK struct i8259 *i8259_create(struct irq_line intr);
void i8259_destroy(struct i8259 *pic);
void i8259_reset(struct i8259 *pic);

/* Level of ISA interrupt 0 to 15 (2 is the cascade and ignored). */
void i8259_irq_set(struct i8259 *pic, unsigned irq, bool level);
/* INTA cycle: the vector; a spurious one (7 of the chip) if the request has gone. */
uint8_t i8259_acknowledge(struct i8259 *pic);

/* chip 0 is the master, 1 the slave; offset 0 or 1. */
uint8_t i8259_read(struct i8259 *pic, unsigned chip, unsigned offset);
void i8259_write(struct i8259 *pic, unsigned chip, unsigned offset, uint8_t value);
uint8_t i8259_elcr_read(struct i8259 *pic, unsigned chip);
void i8259_elcr_write(struct i8259 *pic, unsigned chip, uint8_t value);

#endif
