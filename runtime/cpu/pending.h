/* What interrupts a vCPU at an instruction boundary: shared by the run loop and the translator. */
#ifndef NESTOR_CPU_PENDING_H
#define NESTOR_CPU_PENDING_H

#include "cpu/vcpu.h"

/* Requests that only the run loop can serve. */
#define REQUESTS_OF_RUN_LOOP (REQUEST_STOP | REQUEST_QUIESCE | REQUEST_INIT | REQUEST_SIPI)

/* Deliver a pending NMI or interrupt if the vCPU takes one at this boundary (IF, interrupt shadow, NMI
 * blocking). Other requests stay pending. */
void vcpu_deliver_pending(struct vcpu *vcpu);

/* Is there a request that means more to this vCPU than to wait for IF or for IRET? */
static inline bool vcpu_must_serve(const struct vcpu *vcpu, uint32_t requests) {
    return requests & (REQUESTS_OF_RUN_LOOP | REQUEST_CODE) ||
           (requests & REQUEST_NMI && !vcpu->nmi_blocked) ||
           (requests & REQUEST_IRQ && vcpu->rflags & FLAG_IF);
}

#endif
