/* Every system call number by every entry, with random and hostile arguments. */
#define _GNU_SOURCE
#include "attack.h"

#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/auxv.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <sys/wait.h>
#include <unistd.h>

#ifndef AT_SYSINFO
#define AT_SYSINFO 32
#endif
#define NUMBERS 600
#define CALL_MILLISECONDS 40

struct entry {
    const char *name;
    void (*call)(uint64_t number, const uint64_t *arguments);
};

#ifdef __x86_64__
static void by_syscall(uint64_t number, const uint64_t *arguments) {
    register uint64_t r10 __asm__("r10") = arguments[3];
    register uint64_t r8 __asm__("r8") = arguments[4];
    register uint64_t r9 __asm__("r9") = arguments[5];
    __asm__ volatile("syscall"
                     : "+a"(number)
                     : "D"(arguments[0]), "S"(arguments[1]), "d"(arguments[2]), "r"(r10), "r"(r8), "r"(r9)
                     : "rcx", "r11", "memory");
}

/* In 64-bit code these two take the 32-bit table; SYSENTER comes back, if at all, in 32-bit code. */
#define BY_OLD_ENTRY(name, instruction)                                                                      \
    static void name(uint64_t number, const uint64_t *arguments) {                                           \
        register uint64_t sixth __asm__("r12") = arguments[5];                                               \
        __asm__ volatile("pushq %%rbp\n\tmovq %%r12, %%rbp\n\t" instruction "\n\tpopq %%rbp"                 \
                         : "+a"(number), "+r"(sixth)                                                         \
                         : "b"(arguments[0]), "c"(arguments[1]), "d"(arguments[2]), "S"(arguments[3]),       \
                           "D"(arguments[4])                                                                 \
                         : "r8", "r9", "r10", "r11", "memory");                                              \
    }
BY_OLD_ENTRY(by_interrupt, "int $0x80")
BY_OLD_ENTRY(by_sysenter, "sysenter")

/* 32-bit code of a 64-bit process: the entry's instruction and a far return, below 4 GiB. */
static uint8_t *low_page;

static void make_low_page(void) {
    static const uint8_t bytes[] = {0xcd, 0x80, 0xcb, 0x0f, 0x34, 0xcb, 0x0f, 0x05, 0xcb};
    low_page = mmap(NULL, 2 * PAGE, PROT_READ | PROT_WRITE | PROT_EXEC,
                    MAP_PRIVATE | MAP_ANONYMOUS | MAP_32BIT, -1, 0);
    CHECK(low_page != MAP_FAILED);
    memcpy(low_page, bytes, sizeof bytes);
}

static void far_call(unsigned offset, uint64_t number, const uint64_t *arguments) {
    static struct {
        uint32_t offset;
        uint16_t selector;
    } __attribute__((packed)) target;
    target.offset = (uint32_t)(uintptr_t)low_page + offset;
    target.selector = 0x23;
    __asm__ volatile(
        "pushq %%rbp\n\tmovq %%rsp, %%r15\n\tmovq %[stack], %%rsp\n\tlcall *%[target]\n\t"
        "movq %%r15, %%rsp\n\tpopq %%rbp"
        : "+a"(number)
        : "b"(arguments[0]), "c"(arguments[1]), "d"(arguments[2]), "S"(arguments[3]),
          "D"(arguments[4]), [target] "m"(target), [stack] "r"((uintptr_t)low_page + 2 * PAGE - 64)
        : "r8", "r9", "r10", "r11", "r15", "memory", "cc");
}

static void by_compat_interrupt(uint64_t number, const uint64_t *arguments) {
    far_call(0, number, arguments);
}

static void by_compat_sysenter(uint64_t number, const uint64_t *arguments) {
    far_call(3, number, arguments);
}

static void by_compat_syscall(uint64_t number, const uint64_t *arguments) {
    far_call(6, number, arguments);
}

static const struct entry entries[] = {
    {"syscall", by_syscall},
    {"int80", by_interrupt},
    {"sysenter", by_sysenter},
    {"compat-int80", by_compat_interrupt},
    {"compat-sysenter", by_compat_sysenter},
    {"compat-syscall", by_compat_syscall},
};
#else
#define BY_ENTRY(name, instruction)                                                                          \
    static void name(uint64_t number, const uint64_t *arguments) {                                           \
        uint32_t words[7] = {(uint32_t)number,       (uint32_t)arguments[0], (uint32_t)arguments[1],         \
                             (uint32_t)arguments[2], (uint32_t)arguments[3], (uint32_t)arguments[4],         \
                             (uint32_t)arguments[5]};                                                        \
        __asm__ volatile(                                                                                    \
            "pushal\n\tmovl 4(%%eax), %%ebx\n\tmovl 8(%%eax), %%ecx\n\tmovl 12(%%eax), %%edx\n\t"            \
            "movl 16(%%eax), %%esi\n\tmovl 20(%%eax), %%edi\n\tmovl 24(%%eax), %%ebp\n\t"                    \
            "movl (%%eax), %%eax\n\t" instruction "\n\tpopal" ::"a"(words)                                   \
            : "memory", "cc");                                                                               \
    }
/* What the vDSO pushes before SYSENTER, which comes back behind it and pops three. */
#define SYSENTER_FRAME                                                                                       \
    "pushl $1f\n\tpushl %%ecx\n\tpushl %%edx\n\tpushl %%ebp\n\tmovl %%esp, %%ebp\n\tsysenter\n\t1:"
BY_ENTRY(by_interrupt, "int $0x80")
BY_ENTRY(by_sysenter_raw, "movl %%esp, %%ebp\n\tsysenter")
BY_ENTRY(by_sysenter, SYSENTER_FRAME)
BY_ENTRY(by_syscall, "syscall")

static void make_low_page(void) {}

static const struct entry entries[] = {
    {"int80", by_interrupt},
    {"sysenter", by_sysenter},
    {"sysenter-raw", by_sysenter_raw},
    {"syscall", by_syscall},
};
#endif

static const uint64_t special_numbers[] = {
    0x40000000,
    0x40000001,
    0x40000200,
    0x4000020d,
    0x40000221,
    0x7fffffff,
    0x80000000,
    0xffffffff,
    0xfffffffffffffc00,
    UINT64_MAX,
    0x100000000ull | 39,
    0xffffffff00000027,
    0x8000000000000000,
    1000,
    4096,
    65536,
};
#define SPECIALS (sizeof special_numbers / sizeof *special_numbers)

struct run {
    const struct entry *entry;
    uint64_t seed;
    uint8_t *scratch;
    /* Indices, shared with the parent: the call that is next, where a child must stop. */
    volatile uint32_t next;
};

/* Pointers that are good, bad, the kernel's, the engine's if it is where a stack's end is, and small or huge
 * numbers. */
static uint64_t hostile(uint64_t *seed, uint8_t *scratch) {
    uint64_t random = attack_random(seed);
    switch (random >> 60) {
    case 0:
    case 1:
        return 0;
    case 2:
        return random & 7;
    case 3:
        return random & 0xfff;
    case 4:
        return UINT64_MAX - (random & 3);
    case 5:
    case 6:
        return (uintptr_t)scratch + (random & 0xff8);
    case 7:
        return (uintptr_t)scratch + 4 * PAGE - (random & 7);
    case 8:
        return USER_END - (random & 0x3fff);
    case 9:
        return 0xffffffff81000000 + (random & 0xfffff);
    case 10:
        return 0xffff888000000000 + (random & 0xfffffff);
    case 11:
        return 0x800000000000 + (random & 0xff);
    case 12:
        return random & 0x7ffffffff000;
    case 13:
        return PAGE << (random & 31);
    case 14:
        return (uint32_t)random;
    default:
        return random;
    }
}

static void child(void *argument) {
    struct run *run = argument;
    make_low_page();
    while (run->next < NUMBERS + SPECIALS) {
        uint32_t index = run->next++;
        uint64_t number = index < NUMBERS ? index : special_numbers[index - NUMBERS], arguments[6];
        uint64_t seed = run->seed + index * 7919 + 1;
        for (int i = 0; i < 6; i++)
            arguments[i] = hostile(&seed, run->scratch);
        run->entry->call(number, arguments);
    }
}

void attack_calls(void) {
    struct run *run = attack_shared(sizeof *run);
    run->scratch = attack_shared(4 * PAGE);
    for (size_t i = 0; i < sizeof entries / sizeof *entries; i++) {
        unsigned deaths = 0;
        run->entry = &entries[i];
        run->seed = i + 1;
        run->next = 0;
        while (run->next < NUMBERS + SPECIALS) {
            uint32_t before = run->next;
            deaths += attack_doomed(child, run, CALL_MILLISECONDS) != 0;
            /* A child that died before its first call would keep us here for ever. */
            if (run->next == before)
                run->next++;
        }
        printf(" %s %u numbers", entries[i].name, run->next);
        fflush(stdout);
        (void)deaths;
        CHECK((pid_t)syscall(SYS_getpid) == getpid());
    }
}
