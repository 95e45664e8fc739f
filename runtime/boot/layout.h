/* Where things go in guest RAM at boot, and the memory map that the guest is told.
 *
 * A struct boot_layout knows the RAM, what the guest must not use (reserved) and what the loader put where
 * (taken). Every piece that a loader places is claimed here first, so no two pieces can overlap and nothing
 * leaves RAM, whatever addresses a kernel file asks for.
 */
#ifndef NESTOR_BOOT_LAYOUT_H
#define NESTOR_BOOT_LAYOUT_H

#include "boot/boot.h"

#define BOOT_LAYOUT_RANGES 64
#define BOOT_MAP_ENTRIES 64

#define BOOT_LOW_END ((uint64_t)GUEST_LOW_END)
#define BOOT_HOLE_END 0x100000ull

struct boot_layout {
    struct guest_mem *mem;
    uint64_t acpi_rsdp;                             /* as boot_source_load() was given it */
    uint64_t low_end;                               /* RAM below 4 GiB ends here */
    struct boot_range reserved[BOOT_LAYOUT_RANGES]; /* sorted, not overlapping */
    size_t reserved_count;
    struct boot_range taken[BOOT_LAYOUT_RANGES];
    size_t taken_count;
};

/* -EINVAL (with one line) when the reserved ranges overlap or there are too many. */
MUST_CHECK int boot_layout_create(struct boot_layout *layout, struct guest_mem *mem,
                                  const struct boot_range *reserved, size_t count);
/* Claim [base, base + length) below 4 GiB. -EFAULT: not all of it is usable RAM; -EEXIST: overlaps a piece
 * claimed before; -ENOSPC: too many pieces. */
MUST_CHECK int boot_layout_claim(struct boot_layout *layout, uint64_t base, uint64_t length);
/* Claim length bytes, at a multiple of alignment (a power of two), inside [low, high): the lowest place
 * that is free, or the highest. 0 when there is none (address 0 is never given out). */
uint64_t boot_layout_place_low(struct boot_layout *layout, uint64_t length, uint64_t alignment, uint64_t low,
                               uint64_t high);
uint64_t boot_layout_place_high(struct boot_layout *layout, uint64_t length, uint64_t alignment, uint64_t low,
                                uint64_t high);
/* The memory map, sorted by address: RAM less the reserved ranges, and those. Returns the entry count. */
size_t boot_layout_map(const struct boot_layout *layout, struct boot_range map[static BOOT_MAP_ENTRIES]);

#endif
