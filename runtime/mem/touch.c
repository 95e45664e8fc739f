/* Large pages for a memory file. A page fault can cost 40 us on a host that is a virtual machine itself, and
 * a walk past every cache costs twice as much in small pages: RAM that a vCPU or a loader is about to reach
 * comes 2 MiB at a time where the host can, else by GUEST_TOUCH_BYTES. Compiled without vector code: a TLB
 * fill comes here while the guest's extended state is live.
 */
#include "base/pages.h"
#include "mem/guest_mem.h"

#include <errno.h>

/* Hosts seldom give memory files large pages by themselves, but make one of pages that are there, if asked;
 * what is missing of it is filled in. */
static bool make_large(struct guest_mem *mem, uint64_t offset) {
    uint64_t from = offset & ~(LARGE_PAGE_SIZE - 1);
    if (!__atomic_load_n(&mem->makes_large, __ATOMIC_RELAXED) || mem->size - from < LARGE_PAGE_SIZE)
        return false;
    pages_populate(mem->base + (offset & PAGE_MASK), PAGE_SIZE);
    if (madvise(mem->base + from, LARGE_PAGE_SIZE, PAGES_COLLAPSE)) {
        if (errno == EINVAL)
            __atomic_store_n(&mem->makes_large, false, __ATOMIC_RELAXED);
        return false;
    }
    for (uint64_t at = from; at < from + LARGE_PAGE_SIZE; at += GUEST_TOUCH_BYTES)
        __atomic_store_n(&mem->touched[at / GUEST_TOUCH_BYTES], 1, __ATOMIC_RELAXED);
    return true;
}

void guest_mem_touch(struct guest_mem *mem, uint64_t offset, uint64_t length) {
    for (uint64_t at = offset & ~(GUEST_TOUCH_BYTES - 1); at < offset + length; at += GUEST_TOUCH_BYTES) {
        if (guest_mem_is_touched(mem, at))
            continue;
        __atomic_store_n(&mem->touched[at / GUEST_TOUCH_BYTES], 1, __ATOMIC_RELAXED);
        if (!make_large(mem, at))
            pages_populate(mem->base + at,
                           mem->size - at < GUEST_TOUCH_BYTES ? mem->size - at : GUEST_TOUCH_BYTES);
    }
}
