/* Mappings: what is mapped where, with which rights, is what code finds, at every address and at once. */
#define _GNU_SOURCE
#include "ring3.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#define READ_WRITE (PROT_READ | PROT_WRITE)

static bool place(uintptr_t address, uint32_t value) {
    uint32_t *memory =
        mmap((void *)address, PAGE, READ_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE, -1, 0);
    if (memory == MAP_FAILED)
        return false;
    CHECK((uintptr_t)memory == address);
    CHECK(!memory[0]);
    for (size_t i = 0; i < PAGE / sizeof *memory; i++)
        memory[i] = value + (uint32_t)i;
    return true;
}

static void verify_and_drop(uintptr_t address, uint32_t value) {
    const uint32_t *memory = (const uint32_t *)address;
    struct ring3_fault f;
    for (size_t i = 0; i < PAGE / sizeof *memory; i++)
        CHECK(memory[i] == value + i);
    CHECK(!munmap((void *)address, PAGE));
    CHECK(!ring3_reads((void *)(address + 1), &f) && f.signo == SIGSEGV && f.code == SEGV_MAPERR &&
          f.address == address + 1);
}

/* The lowest and the highest page that a program may have, and a few hundred anywhere. */
static void odd_addresses(void) {
    enum { PLACES = 300 };
    static uintptr_t placed[PLACES];
    uint64_t seed = 42;
    unsigned number = 0, tries = 0;
    unsigned long lowest = 65536;
    FILE *file = fopen("/proc/sys/vm/mmap_min_addr", "r");
    if (file) {
        CHECK(fscanf(file, "%lu", &lowest) == 1);
        fclose(file);
    }
    if (lowest < PAGE)
        lowest = PAGE;
#ifdef __x86_64__
    const uint64_t top = 0x7ffffffff000 - PAGE;
#else
    const uint64_t top = 0xffffd000;
#endif
    if (place(lowest, 0))
        placed[number++] = lowest;
    if (place((uintptr_t)top, number))
        placed[number++] = (uintptr_t)top;
    while (number < PLACES && tries++ < 20 * PLACES) {
        uint64_t address = (uint64_t)ring3_random(&seed) << 16 ^ ring3_random(&seed);
        /* As often low as high. */
        address = (address >> ring3_random(&seed) % 24) % top & ~(PAGE - 1);
        if (address >= lowest && place((uintptr_t)address, number * 5))
            placed[number++] = (uintptr_t)address;
    }
    CHECK(number == PLACES);
    for (unsigned i = 2; i < number; i++)
        verify_and_drop(placed[i], i * 5);
}

static void protections(void) {
    struct ring3_fault f;
    volatile char *memory = ring3_map(3 * PAGE, READ_WRITE);
    for (int round = 0; round < 300; round++) {
        volatile char *page = memory + round % 3 * PAGE;
        *page = (char)round;
        CHECK(!mprotect((void *)page, PAGE, PROT_READ));
        CHECK(*page == (char)round);
        CHECK(!ring3_writes(page, &f) && f.code == SEGV_ACCERR && f.address == (uintptr_t)page);
        CHECK(!mprotect((void *)page, PAGE, PROT_NONE));
        CHECK(!ring3_reads(page, &f) && f.code == SEGV_ACCERR);
        CHECK(!mprotect((void *)page, PAGE, READ_WRITE));
        CHECK(*page == (char)round);
        CHECK(ring3_writes(page, NULL) && *page == 1);
    }
}

static void store_4(uintptr_t address) {
    *(volatile uint32_t *)address = 0x22222222;
}

static void add_4(uintptr_t address) {
    __asm__ volatile("lock addl $0x22222222, (%0)" ::"r"(address) : "memory", "cc");
}

/* An access over a page's end faults before it has stored anything, whichever page is the missing one. */
static void page_ends(void) {
    struct ring3_fault f;
    for (size_t hole = 0; hole < 2; hole++) {
        char *memory = ring3_map(2 * PAGE, READ_WRITE);
        memset(memory, 0x11, 2 * PAGE);
        CHECK(!mprotect(memory + hole * PAGE, PAGE, PROT_NONE));
        for (size_t offset = PAGE - 3; offset < PAGE; offset++) {
            uintptr_t edge = (uintptr_t)memory + offset, missing = hole ? (uintptr_t)memory + PAGE : edge;
            CHECK(!ring3_try(store_4, edge, &f) && f.signo == SIGSEGV && f.address == missing);
            CHECK(!ring3_try(add_4, edge, &f) && f.signo == SIGSEGV && f.address == missing);
        }
        CHECK(!mprotect(memory, 2 * PAGE, READ_WRITE));
        for (size_t i = 0; i < 2 * PAGE; i++)
            CHECK(memory[i] == 0x11);
        CHECK(!munmap(memory, 2 * PAGE));
    }
}

static void shared_views(void) {
    int file = (int)syscall(SYS_memfd_create, "ring3", 0);
    CHECK(file >= 0 && !ftruncate(file, 16 * PAGE));
    volatile uint32_t *a = mmap(NULL, 16 * PAGE, READ_WRITE, MAP_SHARED, file, 0);
    volatile uint32_t *b = mmap(NULL, 16 * PAGE, READ_WRITE, MAP_SHARED, file, 0);
    volatile uint32_t *c = mmap(NULL, 16 * PAGE, READ_WRITE, MAP_PRIVATE, file, 0);
    CHECK(a != MAP_FAILED && b != MAP_FAILED && c != MAP_FAILED);
    for (uint32_t i = 0; i < 16 * PAGE / 4; i += 100) {
        a[i] = i;
        CHECK(b[i] == i && c[i] == i);
        b[i] = i + 1;
        CHECK(a[i] == i + 1);
    }
    /* A private copy is made at the first write and goes its own way from then on. */
    c[1] = 99;
    a[1] = 5;
    CHECK(c[1] == 99 && b[1] == 5);
    pid_t child = fork();
    if (!child) {
        a[2] = 1234;
        c[3] = 1;
        _exit(c[1] == 99 ? 7 : 9);
    }
    ring3_reap(child, 7);
    CHECK(b[2] == 1234 && !c[3]);
}

static void moved(void) {
    struct ring3_fault f;
    uint32_t *memory = ring3_map(8 * PAGE, READ_WRITE);
    for (int round = 0; round < 100; round++) {
        for (size_t i = 0; i < 8; i++)
            memory[i * PAGE / 4] = (uint32_t)(i * 1000 + (size_t)round);
        uint32_t *room = ring3_map(8 * PAGE, PROT_NONE);
        uint32_t *next = mremap(memory, 8 * PAGE, 8 * PAGE, MREMAP_MAYMOVE | MREMAP_FIXED, room);
        CHECK(next == room);
        for (size_t i = 0; i < 8; i++)
            CHECK(next[i * PAGE / 4] == i * 1000 + (size_t)round);
        CHECK(!ring3_reads(memory, &f) && f.code == SEGV_MAPERR);
        memory = next;
    }
    CHECK(!madvise(memory, 8 * PAGE, MADV_DONTNEED));
    for (size_t i = 0; i < 8; i++)
        CHECK(!memory[i * PAGE / 4]);
}

/* Children see the memory of the fork's moment, each writes its own; many generations, many at once. */
static void fork_storm(void) {
    enum { WORDS = 64 * PAGE / 4, CHILDREN = 120 };
    uint32_t *memory = ring3_map(WORDS * 4, READ_WRITE);
    for (uint32_t round = 0; round < CHILDREN; round++) {
        for (size_t i = 0; i < WORDS; i += 200)
            memory[i] = round ^ (uint32_t)i;
        pid_t child = fork();
        CHECK(child >= 0);
        if (!child) {
            for (size_t i = 0; i < WORDS; i += 200) {
                if (memory[i] != (round ^ (uint32_t)i))
                    _exit(9);
                memory[i] = ~memory[i];
            }
            pid_t grandchild = round % 4 ? 0 : fork();
            if (round % 4 == 0 && !grandchild)
                _exit(memory[400] == ~(round ^ 400) ? 0 : 9);
            int status = 0;
            if (grandchild > 0 && (waitpid(grandchild, &status, 0) != grandchild || status))
                _exit(9);
            _exit(0);
        }
    }
    for (int i = 0; i < CHILDREN; i++) {
        int status;
        CHECK(wait(&status) > 0 && !status);
    }
    for (size_t i = 0; i < WORDS; i += 200)
        CHECK(memory[i] == ((CHILDREN - 1) ^ (uint32_t)i));
}

/* More areas than a host has mappings for (vm.max_map_count is 65530 as shipped, and the guest's is the
 * same). */
static void many_areas(void) {
#ifdef __x86_64__
    enum { PAGES = 60000 };
#else
    enum { PAGES = 20000 };
#endif
    volatile uint32_t *memory = ring3_map(PAGES * PAGE, READ_WRITE);
    CHECK(!madvise((void *)memory, PAGES * PAGE, MADV_NOHUGEPAGE) || errno == EINVAL);
    for (size_t i = 0; i < PAGES; i++)
        memory[i * PAGE / 4] = (uint32_t)i * 3;
    for (size_t i = 0; i < PAGES; i += 2) {
        if (mprotect((char *)memory + i * PAGE, PAGE, PROT_READ)) {
            CHECK(errno == ENOMEM && i > 1000);
            break;
        }
    }
    for (size_t i = 0; i < PAGES; i++)
        CHECK(memory[i * PAGE / 4] == i * 3);
    CHECK(!ring3_writes(memory, NULL) && ring3_writes(memory + PAGE / 4, NULL));
}

static void huge_pages(void) {
    const size_t huge = 2ul << 20;
    char *memory = ring3_map(3 * huge, READ_WRITE);
    char *aligned = (char *)(((uintptr_t)memory + huge - 1) & ~(huge - 1));
    struct ring3_fault f;
    if (madvise(aligned, 2 * huge, MADV_HUGEPAGE))
        ring3_skip("the kernel has no transparent huge pages");
    for (size_t i = 0; i < 2 * huge; i += PAGE)
        *(size_t *)(aligned + i) = i;
    /* A hole in the middle splits it; so does a change of rights. */
    CHECK(!munmap(aligned + 77 * PAGE, PAGE));
    CHECK(!mprotect(aligned + 99 * PAGE, PAGE, PROT_READ));
    for (size_t i = 0; i < 2 * huge; i += PAGE) {
        if (i == 77 * PAGE)
            CHECK(!ring3_reads(aligned + i, &f) && f.code == SEGV_MAPERR);
        else
            CHECK(*(size_t *)(aligned + i) == i);
    }
    CHECK(!ring3_writes(aligned + 99 * PAGE, &f) && f.code == SEGV_ACCERR);
    pid_t child = fork();
    if (!child) {
        memset(aligned + huge, 1, huge);
        _exit(0);
    }
    ring3_reap(child, 0);
    CHECK(*(size_t *)(aligned + huge) == huge);
}

const struct ring3_check ring3_memory[] = {
    {"memory-odd-addresses", odd_addresses},
    {"memory-protections", protections},
    {"memory-page-ends", page_ends},
    {"memory-shared-views", shared_views},
    {"memory-moved", moved},
    {"memory-fork-storm", fork_storm},
    {"memory-many-areas", many_areas},
    {"memory-huge-pages", huge_pages},
    {0},
};
