/* Frames on guest stacks: pushed and popped whole, so that a fault in the middle changes nothing. Private to
 * runtime/cpu. */
#ifndef NESTOR_CPU_STACK_H
#define NESTOR_CPU_STACK_H

#include "cpu/descriptor.h"

/* A stack that is being pushed on or popped from. */
struct stack {
    struct segment ss;
    uint64_t sp;
    uint64_t mask; /* 0xffff, 0xffffffff or all ones */
    enum vmem_as as;
    uint32_t error; /* of the #SS when it does not fit */
    bool flat64;    /* 64-bit mode: no segment, canonical addresses */
};

/* The current stack. */
struct stack stack_current(const struct vcpu *vcpu);
static inline uint64_t stack_mask(const struct segment *ss) {
    return ss->attributes & SEG_DB ? 0xffffffffull : 0xffffull;
}
/* Store size bytes (at most 256) just below sp / read size bytes at sp + skip. sp itself is not changed. A
 * frame is pushed in words of the given size from the top down: that decides which of its faults is seen, and
 * what alignment is checked (#AC). */
MUST_CHECK int stack_store(struct vcpu *vcpu, const struct stack *stack, const void *buffer, unsigned size,
                           unsigned word);
MUST_CHECK int stack_fetch(struct vcpu *vcpu, const struct stack *stack, unsigned skip, void *buffer,
                           unsigned size, unsigned word);
/* RSP after sp moved to value, the bits outside the stack's width kept. */
static inline uint64_t stack_pointer(const struct stack *stack, uint64_t old_rsp, uint64_t value) {
    return stack->mask == 0xffff       ? (old_rsp & ~0xffffull) | (value & 0xffff)
           : stack->mask == 0xffffffff ? (uint32_t)value
                                       : value;
}

/* Store into [linear, +8) and so on without a fault in between: words of a frame, lowest first. A fault is
 * that of the highest word that cannot be stored. */
MUST_CHECK int frame_store(struct vcpu *vcpu, uint64_t linear, const uint64_t *words, unsigned count,
                           enum vmem_as as);
MUST_CHECK int frame_fetch(struct vcpu *vcpu, uint64_t linear, uint64_t *words, unsigned count,
                           enum vmem_as as);

#endif
