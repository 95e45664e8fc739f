/* What the kernel learns of and does to pages behind a program's back: accessed and dirty bits, userfaultfd,
 * swapping. */
#define _GNU_SOURCE
#include "ring3.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/userfaultfd.h>
#include <poll.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#define READ_WRITE (PROT_READ | PROT_WRITE)
enum { PAGES = 64 };

/* /proc/self/clear_refs clears A (1) and soft-dirty (4); both come back only for pages that are touched. */
static void clear_refs(char what) {
    int file = open("/proc/self/clear_refs", O_WRONLY);
    CHECK(file >= 0);
    CHECK(write(file, &what, 1) == 1);
    close(file);
}

/* The kilobytes that smaps says of the mapping at that address. */
static long smaps_field(const void *address, const char *field) {
    char line[512], start[40];
    bool inside = false;
    long kilobytes = -1;
    FILE *file = fopen("/proc/self/smaps", "r");
    CHECK(file);
    snprintf(start, sizeof start, "%08lx-", (unsigned long)address);
    while (fgets(line, sizeof line, file)) {
        if (strchr("0123456789abcdef", line[0]) && strchr(line, '-'))
            inside = !strncmp(line, start, strlen(start));
        else if (inside && !strncmp(line, field, strlen(field)))
            kilobytes = strtol(line + strlen(field), NULL, 10);
    }
    fclose(file);
    return kilobytes;
}

static void accessed(void) {
    /* Shared memory is a mapping of its own. */
    volatile char *memory = mmap(NULL, PAGES * PAGE, READ_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    CHECK(memory != MAP_FAILED);
    for (size_t i = 0; i < PAGES; i++)
        memory[i * PAGE] = 1;
    for (unsigned round = 0; round < 4; round++) {
        clear_refs('1');
        /* Clearing A alone leaves the TLB as it is: a change of rights flushes. */
        CHECK(!mprotect((void *)memory, PAGES * PAGE, PROT_NONE));
        CHECK(!mprotect((void *)memory, PAGES * PAGE, READ_WRITE));
        CHECK(!smaps_field((void *)memory, "Referenced:"));
        for (size_t i = 0; i < 10 + round; i++)
            (void)memory[i * PAGE + 5];
        CHECK(smaps_field((void *)memory, "Referenced:") == (long)(10 + round) * 4);
    }
}

static bool soft_dirty(int pagemap, const volatile char *page) {
    uint64_t entry;
    CHECK(pread(pagemap, &entry, sizeof entry, (off_t)((uintptr_t)page / PAGE * 8)) == sizeof entry);
    return entry >> 55 & 1;
}

static void dirtied(void) {
    int pagemap = open("/proc/self/pagemap", O_RDONLY);
    volatile char *memory = ring3_map(PAGES * PAGE, READ_WRITE);
    CHECK(pagemap >= 0);
    for (size_t i = 0; i < PAGES; i++)
        memory[i * PAGE] = 1;
    if (!soft_dirty(pagemap, memory))
        ring3_skip("the kernel tracks no soft-dirty bits");
    for (size_t round = 0; round < 8; round++) {
        clear_refs('4');
        for (size_t i = 0; i < PAGES; i++)
            CHECK(memory[i * PAGE] == (i % 8 < round ? (char)(i % 8 + 1) : 1));
        for (size_t i = round; i < PAGES; i += 8)
            memory[i * PAGE] = (char)(round + 1);
        for (size_t i = 0; i < PAGES; i++)
            CHECK(soft_dirty(pagemap, memory + i * PAGE) == (i % 8 == round));
    }
}

/* A file's pages that a mapping dirtied reach the file, whichever way it is read. */
static void file_dirtied(void) {
    char name[] = "/tmp/ring3.XXXXXX", byte;
    int file = mkstemp(name);
    CHECK(file >= 0 && !unlink(name) && !ftruncate(file, PAGES * PAGE));
    volatile char *memory = mmap(NULL, PAGES * PAGE, READ_WRITE, MAP_SHARED, file, 0);
    CHECK(memory != MAP_FAILED);
    for (char round = 1; round < 30; round++) {
        for (size_t i = 0; i < PAGES; i += (size_t)round)
            memory[i * PAGE + 77] = round;
        CHECK(!msync((void *)memory, PAGES * PAGE, MS_SYNC));
        CHECK(pread(file, &byte, 1, 77) == 1 && byte == round);
        byte = (char)(round + 50);
        CHECK(pwrite(file, &byte, 1, 78) == 1 && memory[78] == byte);
    }
}

struct missing_pages {
    int descriptor;
    char *memory;
    volatile unsigned served;
};

static void *serve(void *argument) {
    struct missing_pages *missing = argument;
    static char page[PAGE] __attribute__((aligned(4096)));
    struct uffd_msg message;
    while (read(missing->descriptor, &message, sizeof message) == sizeof message) {
        if (message.event != UFFD_EVENT_PAGEFAULT)
            break;
        missing->served++; /* before the other thread goes on */
        uint64_t address = message.arg.pagefault.address & ~(uint64_t)(PAGE - 1);
        if (message.arg.pagefault.flags & UFFD_PAGEFAULT_FLAG_WP) {
            struct uffdio_writeprotect open_again = {.range = {address, PAGE}};
            if (ioctl(missing->descriptor, UFFDIO_WRITEPROTECT, &open_again))
                break;
        } else {
            memset(page, (int)(address / PAGE), sizeof page);
            struct uffdio_copy copy = {.dst = address, .src = (uintptr_t)page, .len = PAGE};
            if (ioctl(missing->descriptor, UFFDIO_COPY, &copy))
                break;
        }
    }
    return NULL;
}

static void user_faults(void) {
    struct missing_pages missing = {.descriptor = (int)syscall(SYS_userfaultfd, O_CLOEXEC)};
    struct uffdio_api api = {.api = UFFD_API};
    pthread_t thread;
    if (missing.descriptor < 0)
        ring3_skip("no userfaultfd");
    CHECK(!ioctl(missing.descriptor, UFFDIO_API, &api));
    missing.memory = ring3_map(PAGES * PAGE, READ_WRITE);
    struct uffdio_register range = {.range = {(uintptr_t)missing.memory, PAGES * PAGE},
                                    .mode = UFFDIO_REGISTER_MODE_MISSING | UFFDIO_REGISTER_MODE_WP};
    bool can_protect = !ioctl(missing.descriptor, UFFDIO_REGISTER, &range);
    if (!can_protect) {
        range.mode = UFFDIO_REGISTER_MODE_MISSING;
        CHECK(!ioctl(missing.descriptor, UFFDIO_REGISTER, &range));
    }
    CHECK(!pthread_create(&thread, NULL, serve, &missing));
    for (int round = 0; round < 10; round++) {
        unsigned before = missing.served;
        for (size_t i = 0; i < PAGES; i++) {
            volatile char *page = missing.memory + i * PAGE;
            if (i % 2)
                page[8] = 1;
            CHECK(page[9] == (char)((uintptr_t)page / PAGE));
        }
        CHECK(missing.served == before + PAGES);
        if (can_protect) {
            struct uffdio_writeprotect shut = {.range = range.range, .mode = UFFDIO_WRITEPROTECT_MODE_WP};
            CHECK(!ioctl(missing.descriptor, UFFDIO_WRITEPROTECT, &shut));
            for (size_t i = 0; i < PAGES; i++) {
                volatile char *page = missing.memory + i * PAGE;
                CHECK(page[9] == (char)((uintptr_t)page / PAGE));
                page[8] = 2;
                page[8] = 3;
            }
            CHECK(missing.served == before + 2 * PAGES);
        }
        CHECK(!madvise(missing.memory, PAGES * PAGE, MADV_DONTNEED));
    }
}

/* Pages that the kernel takes away and brings back: MADV_PAGEOUT with a swap device, MADV_COLD without. */
static void paged_out(void) {
    enum { MANY = 2048 };
    uint32_t *memory = ring3_map(MANY * PAGE, READ_WRITE);
    for (uint32_t round = 0; round < 5; round++) {
        for (size_t i = 0; i < MANY; i++)
            memory[i * PAGE / 4 + round] = (uint32_t)i ^ round;
        if (madvise(memory, MANY * PAGE, 21 /* MADV_PAGEOUT */))
            ring3_skip("no MADV_PAGEOUT");
        for (size_t i = 0; i < MANY; i++)
            CHECK(memory[i * PAGE / 4 + round] == ((uint32_t)i ^ round));
    }
}

/* RING3_MEGABYTES in the environment, more than the guest has: every page is written, read and written again.
 */
static void swapped(void) {
    const char *megabytes = getenv("RING3_MEGABYTES");
    if (!megabytes)
        ring3_skip("RING3_MEGABYTES says how much");
    size_t pages = strtoul(megabytes, NULL, 10) * 256;
    uint64_t *memory = ring3_map(pages * PAGE, READ_WRITE), seed = 5;
    alarm(0);
    for (uint64_t round = 0; round < 2; round++) {
        for (size_t i = 0; i < pages; i++) {
            uint64_t *page = memory + i * PAGE / 8;
            CHECK(page[3] == (round ? i * 31 : 0));
            page[3] = i * 31;
            page[500] = page[3] + round;
        }
    }
    for (int i = 0; i < 3000; i++) {
        size_t at = ring3_random(&seed) % pages;
        CHECK(memory[at * PAGE / 8 + 500] == at * 31 + 1);
    }
}

const struct ring3_check ring3_paging[] = {
    {"paging-accessed", accessed},
    {"paging-dirtied", dirtied},
    {"paging-file-dirtied", file_dirtied},
    {"paging-user-faults", user_faults},
    {"paging-paged-out", paged_out},
    {"paging-swapped", swapped},
    {0},
};
