/* The ways into the kernel, from 64- and from 32-bit code, and what the processor tells ring 3 by the way. */
#define _GNU_SOURCE
#include "ring3.h"

#include <asm/ldt.h>
#include <cpuid.h>
#include <errno.h>
#include <sched.h>
#include <signal.h>
#include <string.h>
#include <sys/auxv.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#ifndef AT_SYSINFO
#define AT_SYSINFO 32
#endif
enum { NR32_GETPID = 20, ROUNDS = 2000 };

#ifdef __x86_64__
/* SYSCALL changes RAX, RCX (the next RIP) and R11 (RFLAGS), nothing else. */
static void entry_syscall(void) {
    const pid_t self = getpid();
    for (int i = 0; i < ROUNDS; i++) {
        uint64_t ax = SYS_getpid, cx = 1, di = 3, si = 4, dx = 5, bx = 6;
        register uint64_t r8 __asm__("r8") = 8;
        register uint64_t r9 __asm__("r9") = 9;
        register uint64_t r10 __asm__("r10") = 10;
        register uint64_t r11 __asm__("r11") = 11;
        register uint64_t r12 __asm__("r12") = 12;
        register uint64_t r15 __asm__("r15") = 15;
        uint64_t next;
        __asm__ volatile("leaq 1f(%%rip), %[next]\n\tstd\n\tstc\n\tsyscall\n1:\n\tcld"
                         : "+a"(ax), "+c"(cx), "+D"(di), "+S"(si), "+d"(dx), "+b"(bx), "+r"(r8), "+r"(r9),
                           "+r"(r10), "+r"(r11), "+r"(r12), "+r"(r15), [next] "=&r"(next)
                         :
                         : "memory", "cc");
        CHECK((pid_t)ax == self && cx == next && (r11 & 0x601) == 0x601);
        CHECK(di == 3 && si == 4 && dx == 5 && bx == 6 && r8 == 8 && r9 == 9 && r10 == 10 && r12 == 12 &&
              r15 == 15);
    }
    CHECK(syscall(0x40000000 | SYS_getpid) == -1 && errno == ENOSYS);
    CHECK(syscall(-1) == -1 && errno == ENOSYS);
}

/* INT 0x80 from 64-bit code: the 32-bit table, all registers but RAX kept whole. */
static void entry_interrupt(void) {
    const pid_t self = getpid();
    for (int i = 0; i < ROUNDS; i++) {
        uint64_t ax = NR32_GETPID, cx = 0x1122334455667788, bx = cx + 1;
        register uint64_t r8 __asm__("r8") = cx + 2;
        register uint64_t r11 __asm__("r11") = cx + 3;
        __asm__ volatile("int $0x80" : "+a"(ax), "+c"(cx), "+b"(bx), "+r"(r8), "+r"(r11)::"memory");
        CHECK((pid_t)ax == self && cx == 0x1122334455667788 && bx == cx + 1 && r11 == cx + 3);
        CHECK(r8 == cx + 2);
    }
}

/*
 * A 64-bit program in 32-bit code: a far call into a page below 4 GiB, with INT 0x80 and what the 32-bit vDSO
 * would use left to the 32-bit build of this file; then back by a far return.
 */
static void compatibility_code(void) {
    /* mov $20, %eax; int $0x80; mov %eax, %ebx; dec %eax (0x48: a REX prefix in 64-bit code); lret */
    static const uint8_t bytes[] = {0xb8, NR32_GETPID, 0, 0, 0, 0xcd, 0x80, 0x89, 0xc3, 0x48, 0xcb};
    uint8_t *low = mmap(NULL, 2 * PAGE, PROT_READ | PROT_WRITE | PROT_EXEC,
                        MAP_PRIVATE | MAP_ANONYMOUS | MAP_32BIT, -1, 0);
    CHECK(low != MAP_FAILED);
    memcpy(low, bytes, sizeof bytes);
    /* Static, because the stack is another one at the call. */
    static struct {
        uint32_t offset;
        uint16_t selector;
    } __attribute__((packed)) target;
    target.offset = (uint32_t)(uintptr_t)low;
    target.selector = 0x23;
    for (int i = 0; i < ROUNDS; i++) {
        uint64_t ax, bx;
        __asm__ volatile("movq %%rsp, %%r12\n\tmovq %[stack], %%rsp\n\tlcall *%[target]\n\tmovq %%r12, %%rsp"
                         : "=a"(ax), "=b"(bx)
                         : [target] "m"(target), [stack] "r"((uintptr_t)low + 2 * PAGE)
                         : "memory", "cc", "r8", "r9", "r10", "r11", "r12", "rcx", "rdx");
        CHECK((pid_t)bx == getpid() && (uint32_t)ax == (uint32_t)bx - 1);
    }
}
#else
static void entry_interrupt(void) {
    for (int i = 0; i < ROUNDS; i++) {
        uint32_t ax = NR32_GETPID, cx = 2, dx = 3, si = 4, di = 5;
        __asm__ volatile("std\n\tint $0x80\n\tcld"
                         : "+a"(ax), "+c"(cx), "+d"(dx), "+S"(si), "+D"(di)::"memory", "cc");
        CHECK((pid_t)ax == getpid() && cx == 2 && dx == 3 && si == 4 && di == 5);
    }
}

/* What the vDSO chose: SYSENTER on Intel's processors, SYSCALL on AMD's. Six arguments, the sixth in EBP. */
static void entry_fast(void) {
    uintptr_t entry = (uintptr_t)getauxval(AT_SYSINFO);
    if (!entry)
        ring3_skip("no vDSO");
    for (int i = 0; i < ROUNDS; i++) {
        uint32_t ax = NR32_GETPID, cx = 2, dx = 3, si = 4, di = 5;
        __asm__ volatile("call *%[entry]"
                         : "+a"(ax), "+c"(cx), "+d"(dx), "+S"(si), "+D"(di)
                         : [entry] "m"(entry)
                         : "memory", "cc");
        CHECK((pid_t)ax == getpid() && cx == 2 && dx == 3 && si == 4 && di == 5);
    }
    /* mmap2 takes six. */
    for (int i = 0; i < 100; i++) {
        void *memory = mmap(NULL, PAGE, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        CHECK(memory != MAP_FAILED && !munmap(memory, PAGE));
    }
}
#endif

#ifdef __x86_64__
#define OWN_SEGMENT "gs"
#else
#define OWN_SEGMENT "fs" /* the C library's threads use GS */
#endif

/* A load behind the segment's limit; 64-bit code has no limits, so there a selector that is not there stands
 * for it. */
static void past_the_limit(uintptr_t unused) {
    uint32_t value;
    (void)unused;
#ifdef __x86_64__
    __asm__ volatile("movl %1, %%gs" : "=r"(value) : "r"(5 << 3 | 7));
#else
    __asm__ volatile("movl %%fs:13, %0" : "=r"(value));
#endif
}

/* A segment of one's own by modify_ldt(). */
static void own_segments(void) {
    struct ring3_fault f;
    static uint32_t data[4] = {1, 2, 3, 4};
    uint32_t *low = data;
#ifdef __x86_64__
    low = mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_32BIT, -1, 0);
    CHECK(low != MAP_FAILED);
    memcpy(low, data, sizeof data);
#endif
    struct user_desc segment = {.entry_number = 2,
                                .base_addr = (unsigned)(uintptr_t)low,
                                .limit = sizeof data - 1,
                                .seg_32bit = 1,
                                .useable = 1};
    if (syscall(SYS_modify_ldt, 1, &segment, sizeof segment))
        ring3_skip("no modify_ldt()");
    for (int i = 0; i < 200; i++) {
        uint32_t value;
        /* The selector lives through switches to other processes. */
        __asm__ volatile("movl %0, %%" OWN_SEGMENT ::"r"(2 << 3 | 7));
        sched_yield();
        __asm__ volatile("movl %%" OWN_SEGMENT ":8, %0" : "=r"(value));
        CHECK(value == 3);
    }
    CHECK(!ring3_try(past_the_limit, 0, &f) && f.signo == SIGSEGV && f.trap == 13);
}

static void clocks(void) {
    struct timespec last, now, call;
    uint64_t tsc = __builtin_ia32_rdtsc();
    CHECK(!clock_gettime(CLOCK_MONOTONIC, &last));
    for (int i = 0; i < 20000; i++) {
        uint64_t next = __builtin_ia32_rdtsc();
        CHECK(next >= tsc);
        tsc = next;
        CHECK(!clock_gettime(CLOCK_MONOTONIC, &now));
        CHECK(now.tv_sec > last.tv_sec || (now.tv_sec == last.tv_sec && now.tv_nsec >= last.tv_nsec));
        if (i % 100 == 0) {
            CHECK(!syscall(SYS_clock_gettime, CLOCK_MONOTONIC, &call));
            CHECK(call.tv_sec > now.tv_sec || (call.tv_sec == now.tv_sec && call.tv_nsec >= now.tv_nsec));
        }
        last = now;
    }
}

/* CPUID says the same each time, on each CPU but for its own number, and the kernel's word agrees. */
static void identification(void) {
    unsigned a, b, c, d, first[4];
    CHECK(__get_cpuid(1, &first[0], &first[1], &first[2], &first[3]));
    for (int i = 0; i < 200; i++) {
        CHECK(__get_cpuid(1, &a, &b, &c, &d));
        CHECK(a == first[0] && (b & 0xffffff) == (first[1] & 0xffffff) && c == first[2] && d == first[3]);
        sched_yield();
    }
    CHECK(!(getauxval(AT_HWCAP) & ~(unsigned long)d));
}

/* RDTSCP's and getcpu()'s word on which CPU this is. */
static void which_cpu(void) {
    unsigned auxiliary, cpu, node;
    for (int number = 0; number < 2; number++) {
        cpu_set_t set;
        CPU_ZERO(&set);
        CPU_SET((size_t)number, &set);
        if (sched_setaffinity(0, sizeof set, &set))
            continue;
        for (int i = 0; i < 100; i++) {
            CHECK(!syscall(SYS_getcpu, &cpu, &node, NULL) && cpu == (unsigned)number);
            CHECK(sched_getcpu() == number);
            __builtin_ia32_rdtscp(&auxiliary);
            CHECK((auxiliary & 0xfff) == (unsigned)number);
        }
    }
}

const struct ring3_check ring3_entries[] = {
#ifdef __x86_64__
    {"entries-syscall", entry_syscall},
    {"entries-compatibility-code", compatibility_code},
#else
    {"entries-fast", entry_fast},
#endif
    {"entries-interrupt", entry_interrupt},
    {"entries-own-segments", own_segments},
    {"entries-clocks", clocks},
    {"entries-identification", identification},
    {"entries-which-cpu", which_cpu},
    {0},
};
