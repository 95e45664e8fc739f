/* The host's clocks, and how fast its TSC runs. */
#include "cpu/host_clock.h"

#include <cpuid.h>
#include <time.h>

#define NS_PER_SECOND 1000000000ull
#define CALIBRATION_NS 15000000ull
#define SAMPLES 16
#define LEAF_TSC 0x15u
#define LEAF_HYPERVISOR 0x40000000u
#define LEAF_HYPERVISOR_TSC 0x40000010u
#define ECX1_HYPERVISOR (1u << 31)

static uint64_t clock_ns(clockid_t clock) {
    struct timespec now;
    clock_gettime(clock, &now);
    return (uint64_t)now.tv_sec * NS_PER_SECOND + (uint64_t)now.tv_nsec;
}

uint64_t host_realtime_ns(void) {
    return clock_ns(CLOCK_REALTIME);
}

uint64_t host_thread_cpu_ns(void) {
    return clock_ns(CLOCK_THREAD_CPUTIME_ID);
}

/* A TSC value and a clock value of the same moment: the tightest of a few tries. */
static void sample(uint64_t *tsc, uint64_t *ns) {
    uint64_t best = UINT64_MAX;
    for (unsigned i = 0; i < SAMPLES; i++) {
        uint64_t before = host_tsc(), now = clock_ns(CLOCK_MONOTONIC_RAW), after = host_tsc();
        if (after - before < best) {
            best = after - before;
            *tsc = before + best / 2;
            *ns = now;
        }
    }
}

static uint64_t stated_hz(void) {
    uint32_t eax, ebx, ecx, edx;
    if (__get_cpuid(LEAF_TSC, &eax, &ebx, &ecx, &edx) && eax && ebx && ecx)
        return (uint64_t)ecx * ebx / eax;
    __cpuid(1, eax, ebx, ecx, edx);
    if (!(ecx & ECX1_HYPERVISOR))
        return 0;
    __cpuid(LEAF_HYPERVISOR, eax, ebx, ecx, edx);
    if (eax < LEAF_HYPERVISOR_TSC || eax > LEAF_HYPERVISOR + 0xffff)
        return 0;
    __cpuid(LEAF_HYPERVISOR_TSC, eax, ebx, ecx, edx);
    return (uint64_t)eax * 1000;
}

uint64_t host_tsc_hz(void) {
    uint64_t hz = stated_hz();
    if (hz)
        return hz;
    uint64_t tsc0 = 0, ns0 = 0, tsc1 = 0, ns1 = 0;
    sample(&tsc0, &ns0);
    while (clock_ns(CLOCK_MONOTONIC_RAW) < ns0 + CALIBRATION_NS)
        ;
    sample(&tsc1, &ns1);
    hz = (uint64_t)((unsigned __int128)(tsc1 - tsc0) * NS_PER_SECOND / (ns1 - ns0));
    return hz ? hz : NS_PER_SECOND;
}
