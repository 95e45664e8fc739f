/* The part of vcpu->mode that changes when 64-bit code enters or leaves the kernel, apart from the rest: the
 * fast paths of SYSCALL, SYSRET, interrupts and IRET recompute only this. Private to runtime/cpu. */
#ifndef NESTOR_CPU_MODE_SWITCH_H
#define NESTOR_CPU_MODE_SWITCH_H

#include "cpu/mode.h"

#define MODE_OF_PRIVILEGE (MODE_CPL3 | MODE_CPL0 | MODE_AC | MODE_TSD | MODE_UMIP | MODE_IO_FREE | MODE_STEP)

/* Bits of CPL and the system flags. MODE_STEP stands here for TF alone. */
static inline uint32_t mode_of_privilege(const struct vcpu *vcpu) {
    uint64_t rflags = vcpu->rflags;
    unsigned cpl = vcpu->cpl;
    uint32_t mode = rflags & FLAG_TF ? MODE_STEP : 0;
    if (!(rflags & FLAG_VM) && cpl <= (rflags >> FLAG_IOPL_SHIFT & 3))
        mode |= MODE_IO_FREE;
    if (cpl == 0)
        return mode | MODE_CPL0;
    if (cpl == 3) {
        mode |= MODE_CPL3;
        if (rflags & FLAG_AC && vcpu->cr0 & CR0_AM)
            mode |= MODE_AC;
    }
    if (vcpu->cr4 & CR4_TSD)
        mode |= MODE_TSD;
    if (vcpu->cr4 & CR4_UMIP)
        mode |= MODE_UMIP;
    return mode;
}

/* As cpu_mode_changed(), where both the old and the new code are 64-bit and only CPL, CS, SS and flags moved.
 */
static inline void mode_changed_in_64(struct vcpu *vcpu) {
    uint32_t mode = (vcpu->mode & ~MODE_OF_PRIVILEGE) | mode_of_privilege(vcpu);
    if (UNLIKELY(vcpu->dr[7] & 0xff))
        mode |= MODE_STEP;
    vcpu->mode = mode;
    vtlb_select_view(vcpu);
}

#endif
