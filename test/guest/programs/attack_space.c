/* Attacks on the address space: find what the kernel did not put there, use it, take its place, use
 * everything up. */
#define _GNU_SOURCE
#include "attack.h"

#include <errno.h>
#include <sched.h>
#include <setjmp.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/rseq.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

enum { MAX_AREAS = 256, MAX_FOREIGN = 4096 };

struct area {
    uint64_t start, end;
};
static struct area own[MAX_AREAS];
static size_t own_count;
static sigjmp_buf back;
static uint64_t probes;

struct foreign {
    size_t count;
    uint64_t page[MAX_FOREIGN];
};
static struct foreign *foreign;

static void read_maps(void) {
    char line[256];
    FILE *file = fopen("/proc/self/maps", "r");
    CHECK(file);
    own_count = 0;
    while (own_count < MAX_AREAS && fgets(line, sizeof line, file)) {
        char *rest;
        own[own_count].start = strtoull(line, &rest, 16);
        own[own_count].end = strtoull(rest + 1, NULL, 16);
        own_count++;
    }
    fclose(file);
}

static bool is_own(uint64_t address) {
    for (size_t i = 0; i < own_count; i++) {
        if (address >= own[i].start && address < own[i].end)
            return true;
    }
    return false;
}

static void come_back(int signo) {
    siglongjmp(back, signo);
}

static void catch_all(void) {
    static char stack[65536];
    stack_t alternate = {.ss_sp = stack, .ss_size = sizeof stack};
    struct sigaction action = {.sa_handler = come_back, .sa_flags = SA_ONSTACK | SA_NODEFER};
    const int signals[] = {SIGSEGV, SIGBUS, SIGILL, SIGFPE, SIGTRAP, SIGSYS};
    CHECK(!sigaltstack(&alternate, NULL));
    for (size_t i = 0; i < sizeof signals / sizeof *signals; i++)
        CHECK(!sigaction(signals[i], &action, NULL));
}

static void probe(uint64_t address) {
    address &= ~(uint64_t)(PAGE - 1);
    if (is_own(address))
        return;
    probes++;
    if (sigsetjmp(back, 0))
        return;
    (void)*(const volatile char *)(uintptr_t)address;
    /* A stack grows by being touched, and the C library's heap as it likes. */
    read_maps();
    if (is_own(address))
        return;
    for (size_t i = 0; i < foreign->count; i++) {
        if (foreign->page[i] == address)
            return;
    }
    if (foreign->count < MAX_FOREIGN)
        foreign->page[foreign->count++] = address;
}

/* Enter a page at each byte; what happens there is its own affair, as long as it stays there. */
struct entry {
    uint64_t address;
    uint32_t first;
};

static void enter_from(void *argument) {
    struct entry *entry = argument;
    volatile uint32_t *next = &entry->first;
    catch_all();
    while (*next < PAGE) {
        uint64_t target = entry->address + *next;
        ++*next;
        if (!sigsetjmp(back, 0))
            ((void (*)(void))(uintptr_t)target)();
    }
}

static void overwrite(void *argument) {
    const struct entry *entry = argument;
    volatile uint64_t *words = (volatile uint64_t *)(uintptr_t)entry->address;
    for (size_t i = 0; i < PAGE / sizeof *words; i++)
        words[i] = 0x4141414141414141;
}

void attack_search(void) {
    uint64_t seed = 99;
    foreign = attack_shared(sizeof *foreign);
    catch_all();
    read_maps();
    /* Both ends page by page, every gigabyte, around what is known, and anywhere. */
    for (uint64_t i = 0; i < 4096; i++) {
        probe(i * PAGE);
        probe(USER_END + PAGE - i * PAGE);
    }
#ifdef __x86_64__
    for (uint64_t i = 0; i < 1ull << 17; i += 8)
        probe((i << 30) + (attack_random(&seed) & 0x3ffff000) * (i & 8));
    for (uint64_t bit = 12; bit < 47; bit++) {
        for (int64_t i = -4; i < 4; i++)
            probe((1ull << bit) + (uint64_t)(i * (int64_t)PAGE));
    }
#endif
    for (size_t i = 0; i < own_count; i++) {
        for (uint64_t page = 1; page < 32; page++) {
            probe(own[i].start - page * PAGE);
            probe(own[i].end + (page - 1) * PAGE);
        }
    }
    for (int i = 0; i < 20000; i++)
        probe(attack_random(&seed) % USER_END);
    printf(" %llu probes, %zu pages that are not ours", (unsigned long long)probes, foreign->count);
    struct entry *entry = attack_shared(sizeof *entry);
    unsigned deaths = 0, writable = 0;
    for (size_t i = 0; i < foreign->count && i < 64; i++) {
        entry->address = foreign->page[i];
        int status = attack_doomed(overwrite, entry, 500);
        writable += WIFEXITED(status) && !WEXITSTATUS(status);
        entry->first = 0;
        for (unsigned turns = 0; entry->first < PAGE && turns < PAGE; turns++)
            deaths += attack_doomed(enter_from, entry, 2000) != 0;
    }
    printf(", %u writable, %u deaths in them", writable, deaths);
    CHECK(!writable);
}

/* A page of code that unmaps everything else and ends with 42, without stack or data. */
static const uint8_t lonely_code[] = {
#ifdef __x86_64__
    /* rdi, rsi: the lower range; r12, r13: the upper; each munmap, then getpid, then exit_group(42) */
    0xb8, 11,   0,    0,    0, 0x0f, 0x05, /* mov $11, %eax; syscall */
    0x4c, 0x89, 0xe7,                      /* mov %r12, %rdi */
    0x4c, 0x89, 0xee,                      /* mov %r13, %rsi */
    0xb8, 11,   0,    0,    0, 0x0f, 0x05, /* mov $11, %eax; syscall */
    0xb9, 0,    0,    0x10, 0,             /* mov $0x100000, %ecx */
    0xff, 0xc9, 0x75, 0xfc,                /* 1: dec %ecx; jnz 1b */
    0xb8, 39,   0,    0,    0, 0x0f, 0x05, /* mov $39, %eax; syscall */
    0xbf, 42,   0,    0,    0,             /* mov $42, %edi */
    0xb8, 231,  0,    0,    0, 0x0f, 0x05, /* mov $231, %eax; syscall */
#else
    /* ebx, ecx: the lower range; esi, edi: the upper */
    0xb8, 91,   0,    0,    0, 0xcd, 0x80, /* mov $91, %eax; int $0x80 */
    0x89, 0xf3, 0x89, 0xf9,                /* mov %esi, %ebx; mov %edi, %ecx */
    0xb8, 91,   0,    0,    0, 0xcd, 0x80, /* mov $91, %eax; int $0x80 */
    0xb9, 0,    0,    0x10, 0,             /* mov $0x100000, %ecx */
    0xff, 0xc9, 0x75, 0xfc,                /* 1: dec %ecx; jnz 1b */
    0xb8, 20,   0,    0,    0, 0xcd, 0x80, /* mov $20, %eax; int $0x80 */
    0xbb, 42,   0,    0,    0,             /* mov $42, %ebx */
    0xb8, 252,  0,    0,    0, 0xcd, 0x80, /* mov $252, %eax; int $0x80 */
#endif
    0x0f, 0x0b,
};

static void alone(void *argument) {
    uintptr_t at = *(const uintptr_t *)argument;
    /* The kernel kills a process whose rseq area is gone. */
    syscall(SYS_rseq, (char *)__builtin_thread_pointer() + __rseq_offset, 32, RSEQ_FLAG_UNREGISTER, RSEQ_SIG);
    void *page = mmap((void *)at, PAGE, PROT_READ | PROT_WRITE,
                      MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE, -1, 0);
    if ((uintptr_t)page != at)
        _exit(43); /* not ours to have */
    memcpy(page, lonely_code, sizeof lonely_code);
    if (mprotect(page, PAGE, PROT_READ | PROT_EXEC))
        _exit(44);
#ifdef __x86_64__
    __asm__ volatile(
        "movq %0, %%r14\n\tmovq %1, %%rdi\n\tmovq %2, %%rsi\n\tmovq %3, %%r12\n\tmovq %4, %%r13\n\t"
        "xorl %%esp, %%esp\n\tjmp *%%r14" ::"r"(at),
        "r"(0ul), "r"(at), "r"(at + PAGE), "r"(USER_END - at - PAGE)
        : "rdi", "rsi", "r12", "r13", "r14", "memory");
#else
    static uintptr_t target;
    target = at;
    __asm__ volatile("xorl %%esp, %%esp\n\tjmp *%0" ::"a"(target), "b"(0), "c"(at), "S"(at + PAGE),
                     "D"(USER_END - 0x2000 - at - PAGE)
                     : "memory");
#endif
    __builtin_unreachable();
}

/* Alone in the address space, at each place where something else might want to be. */
void attack_remap(void) {
    static uintptr_t place;
    unsigned tried = 0, ran = 0;
    uint64_t seed = 4;
    for (unsigned i = 0; i < 160; i++) {
        if (i < 48)
            place = USER_END - (i + 1) * PAGE;
        else if (i < 80)
            place = 0x10000 + (i - 48) * PAGE;
        else
            place = (uintptr_t)((attack_random(&seed) >> (i % 16)) % (USER_END - 0x20000)) & ~(PAGE - 1);
        if (place < 0x10000)
            continue;
        int status = attack_doomed(alone, &place, 3000);
        if (!WIFEXITED(status))
            printf(" at %#llx status %#x", (unsigned long long)place, (unsigned)status);
        CHECK(WIFEXITED(status));
        CHECK(WEXITSTATUS(status) == 42 || WEXITSTATUS(status) == 43);
        tried++;
        ran += WEXITSTATUS(status) == 42;
    }
    /* The parent, too, has a map of its own, and takes every hole of it, without a byte behind. */
    printf(" %u places, %s of them ours", tried, ran > tried / 2 ? "most" : "few");
}

/* More processes and more address spaces than anybody keeps a helper for, all of them computing in turn. */
void attack_exhaust(void) {
    enum { PROCESSES = 250 };
    static pid_t children[PROCESSES];
    volatile uint32_t *turns = attack_shared(PROCESSES * sizeof *turns);
    unsigned started = 0;
    for (; started < PROCESSES; started++) {
        children[started] = fork();
        if (children[started] < 0)
            break;
        if (!children[started]) {
            volatile char *memory =
                mmap(NULL, 64 * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
            uint64_t seed = started + 1;
            for (;;) {
                for (int i = 0; i < 20000; i++)
                    memory[attack_random(&seed) % (64 * PAGE)] ^= 1;
                turns[started]++;
                if (turns[started] >= 3)
                    pause();
                sched_yield();
            }
        }
    }
    CHECK(started > 20);
    for (unsigned i = 0; i < started; i++) {
        while (turns[i] < 3)
            usleep(1000);
    }
    for (unsigned i = 0; i < started; i++) {
        int status;
        CHECK(!kill(children[i], SIGKILL) && waitpid(children[i], &status, 0) == children[i]);
    }
    printf(" %s processes at once", started == PROCESSES ? "all" : "some");
}
