/* The host's GS base: WRGSBASE where the kernel lets user mode have it, arch_prctl otherwise. */
#ifndef NESTOR_DBT_HOST_GS_H
#define NESTOR_DBT_HOST_GS_H

#include "base/types.h"

#include <asm/prctl.h>
#include <sys/auxv.h>
#include <sys/syscall.h>

#define HWCAP2_FSGSBASE_BIT 2ul

/* May user mode execute WRGSBASE? Asked once per vCPU. */
static inline bool host_has_fsgsbase(void) {
    return getauxval(AT_HWCAP2) & HWCAP2_FSGSBASE_BIT;
}

static inline void host_gs_set(bool fsgsbase, const void *base) {
    if (fsgsbase) {
        __asm__ volatile("wrgsbase %0" ::"r"(base) : "memory");
        return;
    }
    long result;
    __asm__ volatile("syscall"
                     : "=a"(result)
                     : "0"(SYS_arch_prctl), "D"(ARCH_SET_GS), "S"(base)
                     : "rcx", "r11", "memory");
    (void)result;
}

#endif
