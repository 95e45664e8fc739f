#define _GNU_SOURCE
#include "base/pages.h"

void *pages_map_large(uint64_t size) {
    /* Before Linux 6.7 the address is not aligned for large pages by itself. */
    uint64_t whole = align_up(size, PAGE_SIZE);
    uint64_t slack = whole < LARGE_PAGE_SIZE ? 0 : LARGE_PAGE_SIZE;
    uint8_t *mapped =
        mmap(NULL, whole + slack, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (mapped == MAP_FAILED)
        return NULL;
    if (!slack)
        return mapped;
    uint64_t head = -(uint64_t)mapped & (LARGE_PAGE_SIZE - 1);
    if (head)
        munmap(mapped, head);
    if (slack - head)
        munmap(mapped + head + whole, slack - head);
    (void)madvise(mapped + head, whole, MADV_HUGEPAGE);
    return mapped + head;
}
