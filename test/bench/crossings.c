/*
 * What ring 3 pays for each way out of it: processor cycles' time of one event, cause by cause, the least
 * mean of some batches. Static, for an initramfs or a host:
 *
 *     crossings       prints "CROSSING name ns" for each
 *
 * The measured code is on pages of its own, which hold nothing that direct execution keeps in the translator;
 * the two events that are kept there have theirs.
 */
#define _GNU_SOURCE
#include <signal.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <time.h>
#include <ucontext.h>
#include <unistd.h>

#define PAGE 4096ul
#define BATCHES 9
#define PAGES 512
#define ON_OWN_PAGE(name) __attribute__((noinline, section(name), aligned(PAGE)))

static volatile uint8_t *area;
static volatile bool refused; /* INT 0x80, by a kernel without 32-bit calls */

static uint64_t now_ns(void) {
    struct timespec now;
    syscall(SYS_clock_gettime, CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

ON_OWN_PAGE("crossing") static void do_nothing(unsigned count) {
    for (unsigned i = 0; i < count; i++)
        __asm__ volatile("pause");
}

__attribute__((noinline, section("crossing"))) static void do_syscall(unsigned count) {
    for (unsigned i = 0; i < count; i++) {
        long number = SYS_getppid;
        __asm__ volatile("syscall" : "+a"(number)::"rcx", "r11", "memory");
    }
}

__attribute__((noinline, section("crossing"))) static void do_interrupt_gate(unsigned count) {
    for (unsigned i = 0; i < count; i++) {
        long number = 64; /* getppid in the 32-bit table */
        __asm__ volatile("int $0x80" : "+a"(number)::"memory", "r8", "r9", "r10", "r11");
    }
}

__attribute__((noinline, section("crossing"))) static void do_first_write(unsigned count) {
    for (unsigned i = 0; i < count; i++)
        area[i * PAGE] = 1;
}

/* The handlers step over what trapped by themselves. */
__attribute__((noinline, section("crossing"))) static void do_breakpoint(unsigned count) {
    for (unsigned i = 0; i < count; i++)
        __asm__ volatile("int3" ::: "memory");
}

__attribute__((noinline, section("crossing"))) static void do_undefined(unsigned count) {
    for (unsigned i = 0; i < count; i++)
        __asm__ volatile("ud2" ::: "memory");
}

__attribute__((section("crossing"))) static void skip(int signo, siginfo_t *info, void *context) {
    (void)info;
    refused |= signo == SIGSEGV;
    if (signo != SIGTRAP)
        ((ucontext_t *)context)->uc_mcontext.gregs[REG_RIP] += 2;
}

ON_OWN_PAGE("crossing_cpuid") static void do_cpuid(unsigned count) {
    for (unsigned i = 0; i < count; i++) {
        uint32_t a = 1, b, c = 0, d;
        __asm__ volatile("cpuid" : "+a"(a), "=b"(b), "+c"(c), "=d"(d));
    }
}

ON_OWN_PAGE("crossing_rdtscp") static void do_rdtscp(unsigned count) {
    for (unsigned i = 0; i < count; i++) {
        uint32_t a, c, d;
        __asm__ volatile("rdtscp" : "=a"(a), "=c"(c), "=d"(d));
    }
}

ON_OWN_PAGE("crossing_end") static void renew(void) {
    madvise((void *)area, PAGES * PAGE, MADV_DONTNEED);
}

static const struct {
    const char *name;
    void (*run)(unsigned count);
    unsigned count;
} event[] = {
    {"pause", do_nothing, 10000},
    {"syscall", do_syscall, 1000},
    {"int-0x80", do_interrupt_gate, 1000},
    {"first-write", do_first_write, PAGES},
    {"breakpoint-signal", do_breakpoint, 300},
    {"undefined-signal", do_undefined, 300},
    {"cpuid", do_cpuid, 200},
    {"rdtscp", do_rdtscp, 1000},
};

int main(void) {
    struct sigaction action = {.sa_sigaction = skip, .sa_flags = SA_SIGINFO};
    sigaction(SIGTRAP, &action, NULL);
    sigaction(SIGILL, &action, NULL);
    sigaction(SIGSEGV, &action, NULL);
    area = mmap(NULL, PAGES * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (area == MAP_FAILED)
        return 1;
    madvise((void *)area, PAGES * PAGE, MADV_NOHUGEPAGE);
    for (size_t i = 0; i < sizeof event / sizeof *event; i++) {
        uint64_t least = UINT64_MAX;
        refused = false;
        for (int batch = 0; batch < BATCHES; batch++) {
            if (event[i].run == do_first_write)
                renew();
            uint64_t begin = now_ns();
            event[i].run(event[i].count);
            uint64_t took = now_ns() - begin;
            least = took < least ? took : least;
        }
        if (!refused)
            printf("CROSSING %-18s %10.1f ns\n", event[i].name, (double)least / event[i].count);
        fflush(stdout);
    }
    return 0;
}
