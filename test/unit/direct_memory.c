/* A memory file's RAM: asking the host for it ahead, in large pages or not, changes no byte of it, neither in
 * the vCPU's mapping nor in another; what was given back is asked for anew. */
#include "cpu_guest.h"

#include "base/pages.h"
#include "mem/guest_mem.h"

#include <string.h>
#include <sys/mman.h>

#define RAM_SIZE (9 * MIB) /* the last part is no whole large page */

int main(void) {
    struct guest_mem mem;
    CHECK_EQUAL(guest_mem_create(&mem, RAM_SIZE, GUEST_MEM_SHARED), 0);
    CHECK_EQUAL((uint64_t)mem.base & (LARGE_PAGE_SIZE - 1), 0);
    const uint8_t *other = mmap(NULL, RAM_SIZE, PROT_READ, MAP_SHARED, mem.fd, 0);
    CHECK(other != MAP_FAILED);
    for (uint64_t at = 5; at < RAM_SIZE; at += 3 * PAGE_SIZE)
        mem.base[at] = (uint8_t)(at >> PAGE_SHIFT);
    CHECK_EQUAL(other[5 + 3 * PAGE_SIZE], 3);
    CHECK(!guest_mem_is_touched(&mem, 0));
    guest_mem_touch(&mem, 3 * PAGE_SIZE, PAGE_SIZE);
    CHECK(guest_mem_is_touched(&mem, 3 * PAGE_SIZE));
    CHECK(!guest_mem_is_touched(&mem, 3 * LARGE_PAGE_SIZE));
    guest_mem_touch(&mem, RAM_SIZE - 1, 1);
    guest_mem_touch(&mem, LARGE_PAGE_SIZE - 1, LARGE_PAGE_SIZE);
    for (uint64_t at = 0; at < RAM_SIZE; at++) {
        uint8_t value = at % (3 * PAGE_SIZE) == 5 ? (uint8_t)(at >> PAGE_SHIFT) : 0;
        if (mem.base[at] != value || other[at] != value)
            CHECK_EQUAL(at, UINT64_MAX);
    }
    guest_mem_discard(&mem, LARGE_PAGE_SIZE, LARGE_PAGE_SIZE);
    CHECK(!guest_mem_is_touched(&mem, LARGE_PAGE_SIZE));
    CHECK(guest_mem_is_touched(&mem, 3 * PAGE_SIZE) && guest_mem_is_touched(&mem, RAM_SIZE - 1));
    guest_mem_touch(&mem, LARGE_PAGE_SIZE, PAGE_SIZE);
    for (uint64_t at = LARGE_PAGE_SIZE; at < 2 * LARGE_PAGE_SIZE; at++)
        if (mem.base[at] || other[at])
            CHECK_EQUAL(at, UINT64_MAX);
    CHECK_EQUAL(mem.base[5], 0);
    CHECK_EQUAL(mem.base[5 + 3 * PAGE_SIZE], 3);
    CHECK_EQUAL(munmap((void *)(uintptr_t)other, RAM_SIZE), 0);
    guest_mem_destroy(&mem);
    return check_result();
}
