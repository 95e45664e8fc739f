/* Host memory in few page faults. A fault costs 0.5 us on bare metal, but up to 16 us in a cloud VM that has
 * no nested paging itself: large pages, or pages in batches, where the host has them. */
#ifndef NESTOR_BASE_PAGES_H
#define NESTOR_BASE_PAGES_H

#include "base/types.h"

#include <sys/mman.h>

#define LARGE_PAGE_SIZE (2 * MIB)
/* MADV_POPULATE_WRITE of Linux 5.14 and MADV_COLLAPSE of 6.1, which C libraries of that time lack. */
#define PAGES_POPULATE_WRITE 23
#define PAGES_COLLAPSE 25

/* size bytes of zeroes, private to the process, in large pages where the host gives them; nothing is touched.
 * NULL: no memory. To be given back by munmap(). */
void *pages_map_large(uint64_t size);
/* Touch [address, address + size), whole pages, for writing: contents stay. Where the host cannot do it at
 * once (before Linux 5.14) the pages come one by one later. */
static inline void pages_populate(void *address, uint64_t size) {
    (void)madvise(address, size, PAGES_POPULATE_WRITE);
}

#endif
