/* What far jumps, calls, returns, IRET and events share. Private to runtime/cpu. */
#ifndef NESTOR_CPU_TRANSFER_H
#define NESTOR_CPU_TRANSFER_H

#include "cpu/stack.h"

/* CS of real or vm86 mode. */
void transfer_load_real_cs(struct vcpu *vcpu, uint16_t selector);
/* The code segment that a return goes to: RPL >= CPL, type, DPL, presence; raw is its descriptor. */
MUST_CHECK int transfer_check_return(struct vcpu *vcpu, uint16_t selector, uint64_t *raw);
/* The stack segment of a return to 64-bit (is_code64) or other code at level cpl: a null one is allowed in
 * 64-bit code outside level 3. */
MUST_CHECK int transfer_check_return_stack(struct vcpu *vcpu, uint16_t selector, unsigned cpl, bool is_code64,
                                           struct segment *ss);
/* Is rip an address that code of this descriptor may run at? #GP(0). */
MUST_CHECK int transfer_check_target(struct vcpu *vcpu, uint64_t raw, uint64_t rip);
static inline bool transfer_is_code64(const struct vcpu *vcpu, uint64_t raw) {
    return vcpu->efer & EFER_LMA && raw >> 53 & 1;
}

#endif
