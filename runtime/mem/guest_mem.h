/* Guest RAM, mapped once, and the page-state table through which every writer goes. It is a memory file where
 * other processes map it, too (direct execution); else private memory, which may have large pages.
 *
 * Layout of the guest-physical space: RAM from 0 up to at most GUEST_LOW_RAM_END; the rest of it from 4 GiB
 * upward. Between the two lies the MMIO hole (PCI windows, ECAM, IOAPIC, HPET, LAPIC). A RAM *offset* counts
 * bytes of RAM: it is what blocks of translated code and page states are keyed by.
 *
 * Whoever stores into guest RAM other than through a vCPU's TLB (DMA, loaders) calls guest_mem_write(), or
 * guest_mem_ptr() and then guest_mem_written(): that is how stale translations and dirty logs learn of it.
 */
#ifndef NESTOR_MEM_GUEST_MEM_H
#define NESTOR_MEM_GUEST_MEM_H

#include "base/types.h"

/* Conventional memory ends at 639 KiB: the last KiB is where firmware keeps its extended data area. */
#define GUEST_LOW_END 0x9fc00u
#define GUEST_LOW_RAM_END 0xc0000000ull
#define GUEST_HIGH_RAM_START 0x100000000ull
#define GUEST_NO_RAM UINT64_MAX
/* What the host is asked for at a time where RAM has no large pages. */
#define GUEST_TOUCH_BYTES (64 * KIB)

/* Bits of a page's state; one byte per 4 KiB page of RAM. */
enum page_state {
    PAGE_HOLDS_CODE = 1 << 0,   /* some block was translated from it */
    PAGE_DIRTY_LOGGED = 1 << 1, /* a store must be recorded before it is let through */
    PAGE_READ_ONLY = 1 << 2,    /* stores are dropped (ROM) */
};

struct guest_mem {
    uint8_t *base;     /* host address of RAM offset 0 */
    uint64_t size;     /* bytes of RAM */
    uint64_t low_size; /* bytes of it below the hole */
    int fd;            /* the memory file; -1: private memory */
    uint8_t *state;    /* page states, size >> PAGE_SHIFT of them */
    /* Of a memory file (else NULL), one for each GUEST_TOUCH_BYTES: the host was asked for them. Atomic. */
    uint8_t *touched;
    bool makes_large; /* the host can make a large page of a memory file's pages. Atomic */
    /* Which vCPUs hold translations of a page: bit n for vCPU n (set and cleared by that vCPU alone,
     * atomically). A bit implies PAGE_HOLDS_CODE. */
    uint32_t *code_holders;
    /* Called after (a part of) a page in state PAGE_HOLDS_CODE was written by anyone but the engine itself.
     * May be NULL. Set once, before any vCPU or device runs. */
    void (*on_code_written)(void *context, uint64_t ram_offset, uint64_t length);
    void *on_code_written_context;
};

enum guest_mem_flags {
    GUEST_MEM_PREALLOC = 1 << 0, /* touch every page */
    GUEST_MEM_SHARED = 1 << 1,   /* a memory file */
};

/* Allocate size bytes (a multiple of 4 KiB) of RAM; flags: enum guest_mem_flags. 0 or -errno. */
MUST_CHECK int guest_mem_create(struct guest_mem *mem, uint64_t size, unsigned flags);
void guest_mem_destroy(struct guest_mem *mem);
/* Bytes of RAM that the host has given. */
uint64_t guest_mem_resident(const struct guest_mem *mem);
/* Make whole pages zero, giving them back to the host where it takes them. */
void guest_mem_discard(struct guest_mem *mem, uint64_t offset, uint64_t length);

/* Have the host give RAM that will be used, [offset, offset + length), in large pages or many at a time: for
 * who is about to reach a part of a memory file for the first time. Any thread. */
void guest_mem_touch(struct guest_mem *mem, uint64_t offset, uint64_t length);
static inline bool guest_mem_is_touched(const struct guest_mem *mem, uint64_t offset) {
    return !mem->touched || __atomic_load_n(&mem->touched[offset / GUEST_TOUCH_BYTES], __ATOMIC_RELAXED);
}

/* RAM offset of a guest-physical address, or GUEST_NO_RAM. */
static inline uint64_t guest_mem_offset(const struct guest_mem *mem, uint64_t gpa) {
    if (gpa < mem->low_size)
        return gpa;
    if (gpa >= GUEST_HIGH_RAM_START && gpa - GUEST_HIGH_RAM_START < mem->size - mem->low_size)
        return gpa - GUEST_HIGH_RAM_START + mem->low_size;
    return GUEST_NO_RAM;
}

/* Guest-physical address of a RAM offset. */
static inline uint64_t guest_mem_gpa(const struct guest_mem *mem, uint64_t offset) {
    return offset < mem->low_size ? offset : offset - mem->low_size + GUEST_HIGH_RAM_START;
}

/* Host pointer to [gpa, gpa + length), or NULL unless all of it is one contiguous piece of RAM. */
void *guest_mem_ptr(const struct guest_mem *mem, uint64_t gpa, uint64_t length);
/* Tell that [gpa, gpa + length) was just written through guest_mem_ptr(). */
void guest_mem_written(struct guest_mem *mem, uint64_t gpa, uint64_t length);
/* Copy out of or into RAM; -EFAULT, with nothing copied, unless the whole range is RAM. */
MUST_CHECK int guest_mem_read(const struct guest_mem *mem, uint64_t gpa, void *buffer, uint64_t length);
MUST_CHECK int guest_mem_write(struct guest_mem *mem, uint64_t gpa, const void *buffer, uint64_t length);

#endif
