/* One event on its way through the IDT. Private to runtime/cpu. */
#ifndef NESTOR_CPU_EVENT_H
#define NESTOR_CPU_EVENT_H

#include "cpu/stack.h"

struct event {
    uint8_t vector;
    bool is_software; /* INT n, INT3, INTO: the gate's DPL is checked */
    bool is_int_n;    /* INT n: subject to IOPL and to redirection in vm86 mode */
    bool has_error;
    unsigned ext; /* the EXT bit of what goes wrong on the way */
    uint32_t error;
    uint64_t rip;   /* to push */
    uint64_t flags; /* to push */
};

/* Go through the IVT or the IDT. CPU_FAULT: vcpu->exception says why; registers are as before. */
MUST_CHECK int event_deliver(struct vcpu *vcpu, const struct event *event);
/* The same where EFER.LMA is set. */
MUST_CHECK int event_deliver_long(struct vcpu *vcpu, const struct event *event);

#endif
