/* An interrupt output pin of a device core: whoever wires the board says what it drives. */
#ifndef NESTOR_DEVICES_IRQ_LINE_H
#define NESTOR_DEVICES_IRQ_LINE_H

#include "base/types.h"

/* A wire with a level. The callback may be called with the device's own lock held and from any thread, so it
 * must not call back into the device. Lock order: device -> ioapic and pic -> lapic -> vCPU kick. */
struct irq_line {
    void (*set)(void *context, unsigned line, bool level);
    void *context;
    unsigned line;
};

/* Drive the wire; an unconnected one (set == NULL) is ignored. */
static inline void irq_line_set(const struct irq_line *irq, bool level) {
    if (irq->set)
        irq->set(irq->context, irq->line, level);
}

/* A rising and a falling edge: for sources whose output is a short pulse. */
static inline void irq_line_pulse(const struct irq_line *irq) {
    irq_line_set(irq, true);
    irq_line_set(irq, false);
}

#endif
