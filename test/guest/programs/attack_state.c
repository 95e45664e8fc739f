/* Attacks by the state of the processor: stack pointers, segments, bases and flags that nobody expects,
 * signal frames that the kernel did not make, and bytes that are no program. */
#define _GNU_SOURCE
#include "attack.h"

#include <asm/prctl.h>
#include <errno.h>
#include <sched.h>
#include <setjmp.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/auxv.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <sys/wait.h>
#include <time.h>
#include <ucontext.h>
#include <unistd.h>

static volatile sig_atomic_t ticks;
static volatile uintptr_t seen_sp, seen_flags;

static void tick(int signo, siginfo_t *info, void *context) {
    const ucontext_t *frame = context;
    (void)signo;
    (void)info;
#ifdef __x86_64__
    seen_sp = (uintptr_t)frame->uc_mcontext.gregs[REG_RSP];
#else
    seen_sp = (uintptr_t)frame->uc_mcontext.gregs[REG_ESP];
#endif
    seen_flags = (uintptr_t)frame->uc_mcontext.gregs[REG_EFL];
    ticks++;
}

/* A spin may meet its tick before it has loaded what it spins with; so many times in a row it does not. */
#define SPINS 50

static void start_ticking(void) {
    static char stack[65536];
    stack_t alternate = {.ss_sp = stack, .ss_size = sizeof stack};
    struct sigaction action = {.sa_sigaction = tick, .sa_flags = SA_SIGINFO | SA_ONSTACK};
    struct itimerval often = {.it_interval = {.tv_usec = 1000}, .it_value = {.tv_usec = 1000}};
    CHECK(!sigaltstack(&alternate, NULL) && !sigaction(SIGALRM, &action, NULL));
    CHECK(!setitimer(ITIMER_REAL, &often, NULL));
}

/* Whoever writes to a terminal that is slow must not be interrupted: stdio drops what it could not write. */
static void stop_ticking(void) {
    CHECK(!setitimer(ITIMER_REAL, &(struct itimerval){0}, NULL));
}

/* Computes with that stack pointer until the timer came: whoever interrupts must not use it. */
static bool spun_on_stack(uintptr_t sp) {
    int before = ticks;
#ifdef __x86_64__
    __asm__ volatile(
        "movq %%rsp, %%r15\n\tmovq %[sp], %%rsp\n1:\n\tpause\n\tcmpl %k[before], %[ticks]\n\tje 1b\n\t"
        "movq %%r15, %%rsp" ::[sp] "r"(sp),
        [before] "r"(before), [ticks] "m"(ticks)
        : "r15", "memory", "cc");
#else
    static volatile uintptr_t kept;
    __asm__ volatile(
        "movl %%esp, %[kept]\n\tmovl %[sp], %%esp\n1:\n\tpause\n\tcmpl %[before], %[ticks]\n\tje 1b\n\t"
        "movl %[kept], %%esp" ::[sp] "r"(sp),
        [before] "r"(before), [ticks] "m"(ticks), [kept] "m"(kept)
        : "memory", "cc");
#endif
    return seen_sp == sp;
}

static void spin_on_stack(uintptr_t sp) {
    unsigned spins = 0;
    while (!spun_on_stack(sp))
        CHECK(++spins < SPINS);
}

#ifdef __x86_64__
#define SP "%%rsp"
#define PUSHF "pushfq\n\t"
#define POPF "popfq\n\t"
#else
#define SP "%%esp"
#define PUSHF "pushfl\n\t"
#define POPF "popfl\n\t"
#endif

/* Computes with those flags set until the timer came; nothing in between may touch memory askew. */
static bool spun_with_flags(uint32_t flags) {
    int before = ticks;
    __asm__ volatile(PUSHF "orl %[flags], (" SP ")\n\t" POPF
                           "1:\n\tpause\n\tcmpl %[before], %[ticks]\n\tje 1b\n\t" PUSHF
                           "andl %[not_flags], (" SP ")\n\t" POPF ::[flags] "r"(flags),
                     [not_flags] "r"(~flags), [before] "r"(before), [ticks] "m"(ticks)
                     : "memory", "cc");
    return (seen_flags & flags) == flags;
}

static void spin_with_flags(uint32_t flags) {
    unsigned spins = 0;
    while (!spun_with_flags(flags))
        CHECK(++spins < SPINS);
}

void attack_registers(void) {
    enum { DIRECTION = 0x400, NESTED = 0x4000, ALIGNMENT = 0x40000, IDENTIFICATION = 0x200000 };
    start_ticking();
    const uintptr_t stacks[] = {0,
                                1,
                                8,
                                PAGE,
                                USER_END,
                                USER_END - 8,
                                USER_END + PAGE,
                                USER_END - PAGE,
                                USER_END - 2 * PAGE,
                                ~(uintptr_t)0,
                                ~(uintptr_t)7,
                                (uintptr_t)1 << (sizeof(uintptr_t) * 8 - 1),
                                (uintptr_t)0xffffffff81000000,
                                (uintptr_t)0x7fffffffe800,
                                (uintptr_t)0x800000000000,
                                (uintptr_t)0xdeadbeefdeadbeef};
    for (size_t round = 0; round < 5; round++) {
        for (size_t i = 0; i < sizeof stacks / sizeof *stacks; i++)
            spin_on_stack(stacks[i]);
    }
    const uint32_t flags[] = {DIRECTION, NESTED, ALIGNMENT, IDENTIFICATION,
                              DIRECTION | NESTED | IDENTIFICATION};
    for (size_t round = 0; round < 20; round++) {
        for (size_t i = 0; i < sizeof flags / sizeof *flags; i++)
            spin_with_flags(flags[i]);
    }
#ifdef __x86_64__
    /* Bases in the kernel's half, which WRGSBASE may load, and data segments that are null. */
    const uintptr_t bases[] = {0xffff800000000000, 0xffffffff81000000, ~(uintptr_t)0, 0x7fffffffe000, 0};
    for (size_t i = 0; i < sizeof bases / sizeof *bases; i++) {
        int before = ticks;
        uintptr_t base;
        if (getauxval(AT_HWCAP2) & 2) {
            __asm__ volatile("wrgsbase %0" ::"r"(bases[i]));
            while (ticks < before + 3)
                __asm__ volatile("pause");
            __asm__ volatile("rdgsbase %0" : "=r"(base));
            CHECK(base == bases[i]);
            CHECK(syscall(SYS_getpid) == getpid());
        }
        __asm__ volatile("movl %0, %%ds\n\tmovl %0, %%es\n\tmovl %0, %%gs" ::"r"(0));
        CHECK(syscall(SYS_getppid) == getppid());
    }
#endif
    stop_ticking();
    printf(" %s ticks taken", ticks > 50 ? "many" : "few");
}

struct frame_attempt {
    volatile uint64_t seed, tries;
};

/* A frame of the kernel's own form with words replaced, then rt_sigreturn on it. */
static struct frame_attempt *frames;

static void forge(int signo, siginfo_t *info, void *context) {
    ucontext_t *frame = context;
    uint64_t seed = frames->seed;
    const uint64_t values[] = {0,
                               0x10,
                               0x18,
                               0x23,
                               0x2b,
                               0x33,
                               0x3b,
                               0x7b,
                               0x73,
                               0xffff,
                               1ull << 63,
                               0x3ffff,
                               0x24702,
                               0x20202,
                               0x3202,
                               0x10302,
                               (uint64_t)-1,
                               0xffffffff81000000,
                               0x800000000000,
                               USER_END - 16,
                               0x7fffffffe000};
    (void)signo;
    (void)info;
    for (unsigned i = 0, count = 1 + attack_random(&seed) % 3; i < count; i++) {
        uint64_t value = values[attack_random(&seed) % (sizeof values / sizeof *values)];
        frame->uc_mcontext.gregs[attack_random(&seed) % NGREG] = (greg_t)value;
    }
    if (attack_random(&seed) % 4 == 0 && frame->uc_mcontext.fpregs)
        memset((char *)frame->uc_mcontext.fpregs + attack_random(&seed) % 500, (int)seed, 12);
}

static void forged(void *unused) {
    struct sigaction action = {.sa_sigaction = forge, .sa_flags = SA_SIGINFO};
    struct itimerval soon = {.it_value = {.tv_usec = 20000}};
    (void)unused;
    sigaction(SIGUSR1, &action, NULL);
    setitimer(ITIMER_REAL, &soon, NULL);
    raise(SIGUSR1);
    for (;;)
        __asm__ volatile("pause");
}

void attack_frames(void) {
    frames = attack_shared(sizeof *frames);
    unsigned killed = 0;
    for (unsigned i = 0; i < 400; i++) {
        uint64_t seed = i * 2654435761u + 12345;
        attack_random(&seed);
        frames->seed = seed;
        int status = attack_doomed(forged, NULL, 100);
        killed += !status || WIFSIGNALED(status);
    }
    printf(" 400 forged, most %s", killed > 200 ? "killed" : "alive");
}

enum { SEQUENCES = 4000, SEQUENCE_BYTES = 64, SEQUENCES_SECONDS = 40 };
static uint8_t *random_code;
static sigjmp_buf out;

static void leave(int signo) {
    siglongjmp(out, signo);
}

/* next: the sequence that is next, all that is shared with the parent: the code may overwrite what it finds.
 */
static void run_random(void *argument) {
    volatile uint32_t *next = argument;
    static char stack[65536];
    stack_t alternate = {.ss_sp = stack, .ss_size = sizeof stack};
    struct sigaction action = {.sa_handler = leave, .sa_flags = SA_ONSTACK | SA_NODEFER};
    const int signals[] = {SIGSEGV, SIGBUS, SIGILL, SIGFPE, SIGTRAP, SIGSYS, SIGVTALRM};
    const struct itimerval soon = {.it_value = {.tv_usec = 4000}};
    sigaltstack(&alternate, NULL);
    for (size_t i = 0; i < sizeof signals / sizeof *signals; i++)
        sigaction(signals[i], &action, NULL);
    while (*next < SEQUENCES) {
        uint64_t seed = 0x9e3779b97f4a7c15 + (uint64_t)++ * next * 104729;
        for (size_t i = 0; i < SEQUENCE_BYTES; i++)
            random_code[i] = (uint8_t)attack_random(&seed);
        if (sigsetjmp(out, 0))
            continue;
        setitimer(ITIMER_VIRTUAL, &soon, NULL);
        ((void (*)(void))(uintptr_t)random_code)();
    }
}

/* Bytes that are no program, each run from a fresh page until it faults or the time is up; fewer of them
 * where the guest's processors are slow. */
void attack_random_code(void) {
    volatile uint32_t *next = attack_shared(sizeof *next);
    uint32_t done = 0;
    unsigned turns = 0;
    random_code = mmap(NULL, PAGE, PROT_READ | PROT_WRITE | PROT_EXEC, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    CHECK(random_code != MAP_FAILED);
    const time_t end = time(NULL) + SEQUENCES_SECONDS;
    for (; done < SEQUENCES && turns < SEQUENCES && time(NULL) < end; turns++) {
        attack_doomed(run_random, (void *)next, 150);
        /* It may have overwritten even that. */
        if (*next <= done || *next > SEQUENCES)
            *next = done + 1;
        done = *next;
    }
    printf(" %u sequences", done);
}
