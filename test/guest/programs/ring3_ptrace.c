/* What a debugger does: steps, breakpoints in code, breakpoints and watchpoints in the processor, registers,
 * memory. */
#define _GNU_SOURCE
#include "ring3.h"

#include <errno.h>
#include <signal.h>
#include <stddef.h>
#include <string.h>
#include <sys/ptrace.h>
#include <sys/syscall.h>
#include <sys/user.h>
#include <sys/wait.h>
#include <unistd.h>

#ifdef __x86_64__
#define REG(registers, name) ((registers).r##name)
#else
#define REG(registers, name) ((registers).e##name)
#endif
#define DEBUG_REGISTER(n) offsetof(struct user, u_debugreg[n])
#define ENABLE_0 1ul
#define ON_WRITE (1ul << 16)
#define FOUR_BYTES (3ul << 18)

static volatile uint32_t watched, other;

__attribute__((noinline)) static uint32_t work(uint32_t n) {
    uint32_t sum = 0;
    for (uint32_t i = 0; i < n; i++) {
        __asm__ volatile("" : "+r"(sum));
        sum += i;
    }
    return sum;
}

/* A child that is stopped and traced, and runs body() when it goes on. */
static pid_t traced(void (*body)(void)) {
    int status;
    pid_t child = fork();
    CHECK(child >= 0);
    if (!child) {
        CHECK(!ptrace(PTRACE_TRACEME, 0, 0, 0));
        raise(SIGSTOP);
        body();
        _exit(7);
    }
    CHECK(waitpid(child, &status, 0) == child && WIFSTOPPED(status) && WSTOPSIG(status) == SIGSTOP);
    return child;
}

/* Go on; returns the signal that it stopped with, or minus the exit status. */
static int go(pid_t child, int request) {
    int status;
    CHECK(!ptrace(request, child, 0, 0));
    CHECK(waitpid(child, &status, 0) == child);
    if (WIFEXITED(status))
        return -WEXITSTATUS(status);
    CHECK(WIFSTOPPED(status));
    return WSTOPSIG(status);
}

static void short_body(void) {
    if (work(50) != 1225)
        _exit(9);
}

static void steps(void) {
    pid_t child = traced(short_body);
    struct user_regs_struct registers;
    unsigned inside = 0, all = 0;
    for (int stop; (stop = go(child, PTRACE_SINGLESTEP)) != -7; all++) {
        CHECK(stop == SIGTRAP && all < 20000);
        CHECK(!ptrace(PTRACE_GETREGS, child, 0, &registers));
        inside += (uintptr_t)REG(registers, ip) - (uintptr_t)work < 64;
    }
    /* Three instructions a turn at the least, ten at the most. */
    CHECK(inside > 150 && inside < 600);
}

static void call_body(void) {
    for (uint32_t i = 0; i < 20; i++) {
        if (work(i) != i * (i - 1) / 2 && i)
            _exit(9);
    }
}

/* INT3 over the first byte, taken out, stepped over and put back, as debuggers do. */
static void code_breakpoint(void) {
    pid_t child = traced(call_body);
    struct user_regs_struct registers;
    unsigned hits = 0;
    errno = 0;
    long original = ptrace(PTRACE_PEEKTEXT, child, (void *)(uintptr_t)work, 0);
    CHECK(!errno);
    for (;;) {
        CHECK(!ptrace(PTRACE_POKETEXT, child, (void *)(uintptr_t)work, (original & ~0xffl) | 0xcc));
        int stop = go(child, PTRACE_CONT);
        if (stop == -7)
            break;
        CHECK(stop == SIGTRAP && !ptrace(PTRACE_GETREGS, child, 0, &registers));
        CHECK((uintptr_t)REG(registers, ip) == (uintptr_t)work + 1);
        REG(registers, ip)--;
        CHECK(!ptrace(PTRACE_SETREGS, child, 0, &registers));
        CHECK(!ptrace(PTRACE_POKETEXT, child, (void *)(uintptr_t)work, original));
        CHECK(go(child, PTRACE_SINGLESTEP) == SIGTRAP);
        hits++;
    }
    CHECK(hits == 20);
    CHECK(work(3) == 3); /* the parent's copy has none */
}

static void hardware_breakpoint(void) {
    pid_t child = traced(call_body);
    unsigned hits = 0;
    CHECK(!ptrace(PTRACE_POKEUSER, child, DEBUG_REGISTER(0), (uintptr_t)work));
    CHECK(!ptrace(PTRACE_POKEUSER, child, DEBUG_REGISTER(7), ENABLE_0));
    for (int stop; (stop = go(child, PTRACE_CONT)) != -7; hits++) {
        struct user_regs_struct registers;
        CHECK(stop == SIGTRAP && !ptrace(PTRACE_GETREGS, child, 0, &registers));
        CHECK((uintptr_t)REG(registers, ip) == (uintptr_t)work);
        CHECK(ptrace(PTRACE_PEEKUSER, child, DEBUG_REGISTER(6), 0) & 1);
    }
    CHECK(hits == 20);
}

static void write_body(void) {
    for (uint32_t i = 1; i <= 50; i++) {
        other = i;
        if (i % 5 == 0)
            watched = i;
    }
}

static void watchpoint(void) {
    pid_t child = traced(write_body);
    uint32_t expected = 0;
    CHECK(!ptrace(PTRACE_POKEUSER, child, DEBUG_REGISTER(0), (uintptr_t)&watched));
    CHECK(!ptrace(PTRACE_POKEUSER, child, DEBUG_REGISTER(7), ENABLE_0 | ON_WRITE | FOUR_BYTES));
    for (int stop; (stop = go(child, PTRACE_CONT)) != -7;) {
        CHECK(stop == SIGTRAP);
        errno = 0;
        expected += 5;
        CHECK((uint32_t)ptrace(PTRACE_PEEKDATA, child, (void *)&watched, 0) == expected && !errno);
    }
    CHECK(expected == 50 && !watched);
}

static void call_kernel_body(void) {
    for (int i = 0; i < 10; i++) {
        if (syscall(SYS_getppid) != 4242)
            _exit(9);
    }
}

/* Each system call stops twice; what the tracer puts into the result is what the program gets. */
static void system_calls(void) {
    pid_t child = traced(call_kernel_body);
    struct user_regs_struct registers;
    unsigned entries = 0;
    for (;;) {
        int stop = go(child, PTRACE_SYSCALL);
        CHECK(stop == SIGTRAP && !ptrace(PTRACE_GETREGS, child, 0, &registers));
#ifdef __x86_64__
        long number = (long)registers.orig_rax;
#else
        long number = registers.orig_eax;
#endif
        if (number == SYS_exit_group || number == SYS_exit)
            break;
        CHECK(number == SYS_getppid && REG(registers, ax) == (__typeof__(REG(registers, ax)))-ENOSYS);
        CHECK(go(child, PTRACE_SYSCALL) == SIGTRAP && !ptrace(PTRACE_GETREGS, child, 0, &registers));
        CHECK((long)REG(registers, ax) == getpid());
        REG(registers, ax) = 4242;
        CHECK(!ptrace(PTRACE_SETREGS, child, 0, &registers));
        entries++;
    }
    CHECK(go(child, PTRACE_CONT) == -7 && entries == 10);
}

static void spin_body(void) {
    uint64_t seed = 1;
    while (!watched)
        ring3_random(&seed);
}

/* A program that computes is stopped where it is, changed, and goes on. */
static void interrupted(void) {
    int status;
    pid_t child = traced(spin_body);
    CHECK(!ptrace(PTRACE_CONT, child, 0, 0));
    for (int i = 0; i < 50; i++) {
        usleep(1000);
        CHECK(!kill(child, SIGSTOP));
        CHECK(waitpid(child, &status, 0) == child && WIFSTOPPED(status) && WSTOPSIG(status) == SIGSTOP);
        CHECK(!ptrace(PTRACE_CONT, child, 0, 0));
    }
    CHECK(!kill(child, SIGSTOP));
    CHECK(waitpid(child, &status, 0) == child && WIFSTOPPED(status));
    CHECK(!ptrace(PTRACE_POKEDATA, child, (void *)&watched, 1));
    CHECK(go(child, PTRACE_CONT) == -7);
}

const struct ring3_check ring3_ptrace[] = {
    {"ptrace-steps", steps},
    {"ptrace-code-breakpoint", code_breakpoint},
    {"ptrace-hardware-breakpoint", hardware_breakpoint},
    {"ptrace-watchpoint", watchpoint},
    {"ptrace-system-calls", system_calls},
    {"ptrace-interrupted", interrupted},
    {0},
};
