/* The host's clocks. These call the C library: only with the guest's extended state parked (fpu.h). */
#ifndef NESTOR_CPU_HOST_CLOCK_H
#define NESTOR_CPU_HOST_CLOCK_H

#include "base/types.h"

/* CLOCK_REALTIME in ns. */
uint64_t host_realtime_ns(void);
/* CLOCK_THREAD_CPUTIME_ID in ns. */
uint64_t host_thread_cpu_ns(void);
/* Frequency of the host's TSC: from CPUID where that states it (leaf 0x15, or 0x40000010 of a hypervisor),
 * else measured against CLOCK_MONOTONIC_RAW, which takes about 15 ms. Always positive. */
uint64_t host_tsc_hz(void);

static inline uint64_t host_tsc(void) {
    uint32_t low, high;
    __asm__ volatile("rdtsc" : "=a"(low), "=d"(high));
    return (uint64_t)high << 32 | low;
}

#endif
