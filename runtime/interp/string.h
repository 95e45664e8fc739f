/* What string instructions on memory and on ports have in common. */
#ifndef NESTOR_INTERP_STRING_H
#define NESTOR_INTERP_STRING_H

#include "interp/internal.h"

/* 0xf2, 0xf3, or 0 without a repeat prefix. */
unsigned string_repeat_prefix(const struct decoded *d);
unsigned string_source_segment(const struct decoded *d);
/* Move RSI or RDI by an element count in bytes, down when DF is set. */
void string_advance(struct vcpu *vcpu, const struct decoded *d, unsigned gpr, uint64_t bytes);

#endif
