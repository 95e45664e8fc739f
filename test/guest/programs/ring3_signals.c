/* Signals: every fault of ring 3 arrives with the right cause, on the right stack, and goes on where it
 * should. */
#define _GNU_SOURCE
#include "ring3.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

#define TRAP_DIVIDE 0
#define TRAP_UNDEFINED 6
#define TRAP_PROTECTION 13
#define TRAP_PAGE 14
#define TRAP_ALIGNMENT 17
#define TRAP_SIMD 19
#define ERROR_WRITE 2ul
#define ERROR_USER 4ul
#define ERROR_FETCH 16ul
#define STEPS 100
#define TRAPS 10000

/* Built without a red zone: inline assembly may push. */
#ifdef __x86_64__
#define SP "%%rsp"
#define PUSHF "pushfq"
#define POPF "popfq"
#else
#define SP "%%esp"
#define PUSHF "pushfl"
#define POPF "popfl"
#endif

static volatile int count;
static volatile uintptr_t seen_sp;

static void divide(uintptr_t divisor) {
    unsigned zero = (unsigned)divisor, quotient = 1, remainder = 0;
    __asm__ volatile("divl %2" : "+a"(quotient), "+d"(remainder) : "r"(zero));
}

static void undefined(uintptr_t unused) {
    (void)unused;
    __asm__ volatile("ud2");
}

static void privileged(uintptr_t unused) {
    (void)unused;
    __asm__ volatile("hlt");
}

static void breakpoint(uintptr_t unused) {
    (void)unused;
    __asm__ volatile("int3");
}

static void step_trap(uintptr_t unused) {
    (void)unused;
    __asm__ volatile("int $1"); /* a gate that ring 3 may not use */
}

static void jump(uintptr_t target) {
    ((void (*)(void))target)();
}

/* Reads under alignment checking; the flag is off again when nothing stops it. */
static void misaligned(uintptr_t address) {
    uint32_t value;
    __asm__ volatile(PUSHF "\n\torl $0x40000, (" SP ")\n\t" POPF "\n\tmovl (%1), %0\n\t" PUSHF
                           "\n\tandl $0xfffbffff, (" SP ")\n\t" POPF
                     : "=&r"(value)
                     : "r"(address)
                     : "memory", "cc");
}

__attribute__((target("sse2"))) static void simd_error(uintptr_t unused) {
    unsigned mxcsr = 0x1f80 & ~0x200u; /* divide-by-zero unmasked */
    float zero = 0, one = 1;
    (void)unused;
    __asm__ volatile("ldmxcsr %0\n\tmovss %1, %%xmm0\n\tdivss %2, %%xmm0" ::"m"(mxcsr), "m"(one), "m"(zero)
                     : "xmm0");
}

#ifdef __x86_64__
static void noncanonical(uintptr_t unused) {
    (void)unused;
    (void)*(volatile char *)0x8000000000000000ul;
}

static void noncanonical_stack(uintptr_t unused) {
    (void)unused;
    __asm__ volatile(
        "movq %%rsp, %%rbx\n\tmovq $1, %%rsp\n\trorq $1, %%rsp\n\tpushq $0\n\tmovq %%rbx, %%rsp" ::
            : "rbx", "memory");
}
#endif

static void faults(void) {
    struct ring3_fault f;
    static char stack[65536];
    stack_t alternate = {.ss_sp = stack, .ss_size = sizeof stack};
    CHECK(!sigaltstack(&alternate, NULL));
    char *memory = ring3_map(2 * PAGE, PROT_READ);
    CHECK(!ring3_try(divide, 0, &f) && f.signo == SIGFPE && f.code == FPE_INTDIV && f.trap == TRAP_DIVIDE &&
          f.address == f.ip);
    CHECK(ring3_try(divide, 3, &f));
    CHECK(!ring3_try(undefined, 0, &f) && f.signo == SIGILL && f.trap == TRAP_UNDEFINED);
    CHECK(!ring3_try(privileged, 0, &f) && f.signo == SIGSEGV && f.code == SI_KERNEL &&
          f.trap == TRAP_PROTECTION && !f.error);
    CHECK(!ring3_try(step_trap, 0, &f) && f.signo == SIGSEGV && f.error == (1 << 3 | 2));
    CHECK(!ring3_try(breakpoint, 0, &f) && f.signo == SIGTRAP && *(uint8_t *)(f.ip - 1) == 0xcc);
    CHECK(ring3_reads(memory, &f));
    CHECK(!ring3_writes(memory + 5, &f) && f.signo == SIGSEGV && f.code == SEGV_ACCERR &&
          f.trap == TRAP_PAGE);
    CHECK(f.address == (uintptr_t)memory + 5 && (f.error & 0x17) == (ERROR_USER | ERROR_WRITE | 1));
    CHECK(!munmap(memory + PAGE, PAGE));
    CHECK(!ring3_reads(memory + PAGE + 9, &f) && f.code == SEGV_MAPERR &&
          f.address == (uintptr_t)memory + PAGE + 9);
    CHECK((f.error & 0x17) == ERROR_USER);
    CHECK(!ring3_try(jump, (uintptr_t)memory, &f) && f.code == SEGV_ACCERR && f.ip == (uintptr_t)memory &&
          f.error & ERROR_FETCH);
    CHECK(!ring3_try(jump, (uintptr_t)memory + PAGE, &f) && f.code == SEGV_MAPERR &&
          f.ip == (uintptr_t)memory + PAGE);
    CHECK(!ring3_try(simd_error, 0, &f) && f.signo == SIGFPE && f.code == FPE_FLTDIV && f.trap == TRAP_SIMD);
#ifdef __x86_64__
    CHECK(!ring3_try(noncanonical, 0, &f) && f.signo == SIGSEGV && f.code == SI_KERNEL &&
          f.trap == TRAP_PROTECTION);
    CHECK(!ring3_try(noncanonical_stack, 0, &f) && f.signo == SIGBUS);
    /* The kernel's half: ring 3 is told that a page is there, whether it is or not. */
    CHECK(!ring3_reads((void *)0xffffffff81000000ul, &f) && f.signo == SIGSEGV && f.error & ERROR_USER);
    CHECK(f.address == 0xffffffff81000000ul);
#endif
}

static void alignment(void) {
    struct ring3_fault f;
    static char buffer[64] __attribute__((aligned(64)));
    CHECK(ring3_try(misaligned, (uintptr_t)buffer + 4, &f));
    /* The flag lives in the frame: a handler runs without it, the code that goes on has it again. */
    CHECK(!ring3_try(misaligned, (uintptr_t)buffer + 1, &f));
    CHECK(f.signo == SIGBUS && f.code == BUS_ADRALN && f.trap == TRAP_ALIGNMENT);
}

static void on_stack(int signo, siginfo_t *info, void *context) {
    (void)signo;
    (void)info;
    (void)context;
    seen_sp = (uintptr_t)__builtin_frame_address(0);
    count++;
    if (count == 1)
        raise(SIGUSR2); /* once more, on the same stack */
}

static void alternate_stack(void) {
    char *stack = ring3_map(65536, PROT_READ | PROT_WRITE);
    stack_t alternate = {.ss_sp = stack, .ss_size = 65536}, now;
    CHECK(!sigaltstack(&alternate, NULL));
    ring3_handle(SIGUSR1, on_stack, SA_ONSTACK);
    ring3_handle(SIGUSR2, on_stack, SA_ONSTACK);
    CHECK(!raise(SIGUSR1));
    CHECK(count == 2 && seen_sp > (uintptr_t)stack && seen_sp < (uintptr_t)stack + 65536);
    CHECK(!sigaltstack(NULL, &now) && !(now.ss_flags & SS_ONSTACK) && now.ss_sp == stack);
}

static void skip_fault(int signo, siginfo_t *info, void *context) {
    ucontext_t *frame = context;
    (void)signo;
    (void)info;
    FRAME_IP(frame) += 2; /* the length of UD2 */
    FRAME_AX(frame) = 0x5a5a;
    FRAME_FLAGS(frame) ^= 0x801; /* carry and overflow */
    count++;
}

/* What a handler writes into the frame is what goes on; what it leaves alone is as it was. */
static void edited_frame(void) {
    ring3_handle(SIGILL, skip_fault, 0);
    for (int i = 0; i < 1000; i++) {
        uintptr_t ax = 1, bx = 0x1234567, si = 77, flags;
        __asm__ volatile("xorl %%ecx, %%ecx\n\tud2\n\t" PUSHF "\n\tpop %3"
                         : "+a"(ax), "+b"(bx), "+S"(si), "=&c"(flags)::"memory", "cc");
        CHECK(ax == 0x5a5a && bx == 0x1234567 && si == 77);
        CHECK((flags & 0x801) == 0x801 && (flags & 0x44) == 0x44);
    }
    CHECK(count == 1000);
}

static void count_step(int signo, siginfo_t *info, void *context) {
    (void)signo;
    (void)info;
    (void)context;
    count++;
}

/* TF traps once after each instruction, REP iterations and system calls included, and not a time more. */
static void single_steps(void) {
    static char from[16], to[16];
    ring3_handle(SIGTRAP, count_step, 0);
    __asm__ volatile(PUSHF "\n\torl $0x100, (" SP ")\n\t" POPF "\n\t.rept 100\n\tnop\n\t.endr\n\t" PUSHF
                           "\n\tandl $0xfffffeff, (" SP ")\n\t" POPF ::
                               : "memory", "cc");
    /* Each NOP, the last PUSHF and the AND; the POPF that clears TF traps, too: TF was set when it began. */
    CHECK(count == STEPS + 3);
    count = 0;
    void *source = from, *target = to;
    uintptr_t number = sizeof from;
    __asm__ volatile(PUSHF "\n\torl $0x100, (" SP ")\n\t" POPF "\n\trep movsb\n\t" PUSHF
                           "\n\tandl $0xfffffeff, (" SP ")\n\t" POPF
                     : "+S"(source), "+D"(target), "+c"(number)::"memory", "cc");
    CHECK(count == sizeof from + 3);
}

static void count_timer(int signo, siginfo_t *info, void *context) {
    volatile char scribble[512];
    (void)signo;
    (void)info;
    (void)context;
    memset((void *)scribble, count, sizeof scribble);
    count++;
}

/* One tick each time: a timer with an interval leaves no time for anything where a signal costs as much. */
static void tick_in(unsigned microseconds) {
    struct itimerval once = {.it_value = {.tv_usec = microseconds}};
    CHECK(!setitimer(ITIMER_REAL, &once, NULL));
}

static void count_timer_again(int signo, siginfo_t *info, void *context) {
    count_timer(signo, info, context);
    tick_in(500);
}

/* Computation that a timer interrupts at every place comes out as it does without. */
static void timer_storm(void) {
    uint64_t expected = 0;
    ring3_handle(SIGALRM, count_timer_again, SA_RESTART);
    /* On a busy host the first ticks may come later than 40 rounds take. */
    for (int round = 0; round < 40 || (count <= 2 && round < 4000); round++) {
        uint64_t seed = 7, sum = 0;
        double total = 0;
        tick_in(round ? 500 : 0);
        for (int i = 0; i < 200000; i++) {
            sum = (sum << 7 | sum >> 57) ^ ring3_random(&seed);
            total += 1.0 / (double)(i + 1);
        }
        sum += (uint64_t)(total * 1e12);
        if (!round)
            expected = sum;
        CHECK(sum == expected);
    }
    ring3_handle(SIGALRM, count_timer, SA_RESTART);
    tick_in(0);
    CHECK(count > 2);
    alarm(60);
}

static void no_change(int signo, siginfo_t *info, void *context) {
    (void)signo;
    (void)info;
    (void)context;
}

static volatile uintptr_t trapped_at;

static void note_trap(int signo, siginfo_t *info, void *context) {
    (void)signo;
    (void)info;
    trapped_at = (uintptr_t)FRAME_IP((ucontext_t *)context);
    count++;
}

void ring3_behind_int3(void);

__attribute__((noinline)) static void trap_once(void) {
    __asm__ volatile("int3\n\t.globl ring3_behind_int3\nring3_behind_int3:" ::: "memory");
}

/* An interrupt of the processor at the moment of a trap leaves the trap where it belongs. */
static void interrupted_traps(void) {
    ring3_handle(SIGALRM, no_change, SA_RESTART);
    ring3_handle(SIGTRAP, note_trap, 0);
    for (int i = 1; i <= TRAPS; i++) {
        trapped_at = 0;
        tick_in(1 + (unsigned)i * 7 % 200);
        trap_once();
        CHECK(count == i && trapped_at == (uintptr_t)ring3_behind_int3);
    }
    tick_in(0);
    alarm(60);
}

static void interrupted_call(void) {
    int ends[2];
    char byte;
    struct itimerval soon = {.it_value = {.tv_usec = 20000}};
    CHECK(!pipe(ends));
    ring3_handle(SIGALRM, no_change, 0);
    CHECK(!setitimer(ITIMER_REAL, &soon, NULL));
    CHECK(read(ends[0], &byte, 1) == -1 && errno == EINTR);
    /* With SA_RESTART the call goes on by itself: a child ends it. */
    ring3_handle(SIGALRM, no_change, SA_RESTART);
    pid_t child = fork();
    if (!child) {
        usleep(100000);
        _exit(write(ends[1], "x", 1) == 1 ? 0 : 9);
    }
    CHECK(!setitimer(ITIMER_REAL, &soon, NULL));
    CHECK(read(ends[0], &byte, 1) == 1 && byte == 'x');
    ring3_reap(child, 0);
}

static void end_of_file(void) {
    struct ring3_fault f;
    char name[] = "/tmp/ring3.XXXXXX";
    int file = mkstemp(name);
    CHECK(file >= 0 && !unlink(name) && !ftruncate(file, 100));
    char *memory = mmap(NULL, 2 * PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
    CHECK(memory != MAP_FAILED && ring3_writes(memory + 50, NULL));
    CHECK(!ring3_reads(memory + PAGE, &f) && f.signo == SIGBUS && f.code == BUS_ADRERR);
    CHECK(!ftruncate(file, 2 * PAGE) && ring3_writes(memory + PAGE, NULL));
    CHECK(!ftruncate(file, 0) && !ring3_reads(memory, &f) && f.signo == SIGBUS);
}

const struct ring3_check ring3_signals[] = {
    {"signals-faults", faults},
    {"signals-alignment", alignment},
    {"signals-alternate-stack", alternate_stack},
    {"signals-edited-frame", edited_frame},
    {"signals-single-steps", single_steps},
    {"signals-timer-storm", timer_storm},
    {"signals-interrupted-traps", interrupted_traps},
    {"signals-interrupted-call", interrupted_call},
    {"signals-end-of-file", end_of_file},
    {0},
};
