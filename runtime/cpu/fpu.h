/* Where the guest's x87/SSE/AVX state is: in the host's registers (vcpu->fpu_live) or in vcpu->xsave.
 *
 * The files of runtime/cpu and the DBT's helpers are compiled without vector code, so they run with the
 * guest's state live. Whatever may use vector registers (the C library, Zydis, devices) is reached only after
 * vcpu_fpu_park(); translated code is entered only after vcpu_fpu_unpark().
 */
#ifndef NESTOR_CPU_FPU_H
#define NESTOR_CPU_FPU_H

#include "cpu/vcpu.h"

/* Save the guest's state into vcpu->xsave and give the host its defaults (MXCSR, x87 control word). */
void vcpu_fpu_save(struct vcpu *vcpu);
/* Load the guest's state from vcpu->xsave into the host's registers. */
void vcpu_fpu_load(struct vcpu *vcpu);

static inline void vcpu_fpu_park(struct vcpu *vcpu) {
    if (vcpu->fpu_live)
        vcpu_fpu_save(vcpu);
}

static inline void vcpu_fpu_unpark(struct vcpu *vcpu) {
    if (!vcpu->fpu_live)
        vcpu_fpu_load(vcpu);
}

#endif
