/* The clocks the tiers are judged by. Compiled without vector code: asked while the guest's extended state is
 * live. */
#define _GNU_SOURCE
#include "direct/clocks.h"

#include <sys/syscall.h>
#include <time.h>

/* The processor time of a process by its number, as the C library's clock_getcpuclockid() makes it. */
#define CLOCK_OF_PROCESS(pid) ((long)(~(unsigned)(pid) << 3 | 2))

static uint64_t cpu_ns(long clock) {
    struct timespec time = {0};
    long result;
    __asm__ volatile("syscall"
                     : "=a"(result)
                     : "0"(SYS_clock_gettime), "D"(clock), "S"(&time)
                     : "rcx", "r11", "memory");
    return result ? 0 : (uint64_t)time.tv_sec * 1000000000u + (uint64_t)time.tv_nsec;
}

uint64_t clocks_cycles(void) {
    return __builtin_ia32_rdtsc();
}

uint64_t clocks_thread_ns(void) {
    return cpu_ns(CLOCK_THREAD_CPUTIME_ID);
}

uint64_t clocks_process_ns(pid_t pid) {
    return cpu_ns(CLOCK_OF_PROCESS(pid));
}
