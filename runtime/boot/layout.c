/* Placement in guest RAM. The number of ranges is small and fixed, so every search is a plain scan:
 * candidates for a free place are the edges of what is already there. */
#include "boot/layout.h"

#include <errno.h>

#include "base/diag.h"
#include "mem/guest_mem.h"

static bool overlaps(const struct boot_range *range, uint64_t base, uint64_t length) {
    return base < range->base + range->length && range->base < base + length;
}

int boot_layout_create(struct boot_layout *layout, struct guest_mem *mem, const struct boot_range *reserved,
                       size_t count) {
    *layout = (struct boot_layout){.mem = mem, .low_end = mem->low_size};
    if (count > BOOT_LAYOUT_RANGES - 1) {
        diag_error("the board reserves %zu ranges of memory, more than %d", count, BOOT_LAYOUT_RANGES - 1);
        return -EINVAL;
    }
    layout->reserved[layout->reserved_count++] =
        (struct boot_range){BOOT_LOW_END, BOOT_HOLE_END - BOOT_LOW_END, BOOT_RANGE_RESERVED};
    for (size_t i = 0; i < count; i++) {
        struct boot_range range = reserved[i];
        if (!range.length || range.base + range.length < range.base)
            continue;
        /* What lies in the hole below 1 MiB is reserved already. */
        if (range.base >= BOOT_LOW_END && range.base + range.length <= BOOT_HOLE_END)
            continue;
        size_t at = layout->reserved_count;
        for (; at && layout->reserved[at - 1].base > range.base; at--)
            layout->reserved[at] = layout->reserved[at - 1];
        layout->reserved[at] = range;
        layout->reserved_count++;
    }
    for (size_t i = 1; i < layout->reserved_count; i++) {
        const struct boot_range *before = &layout->reserved[i - 1];
        if (overlaps(before, layout->reserved[i].base, layout->reserved[i].length)) {
            diag_error("reserved memory at 0x%llx overlaps that at 0x%llx",
                       (unsigned long long)layout->reserved[i].base, (unsigned long long)before->base);
            return -EINVAL;
        }
    }
    return 0;
}

static const struct boot_range *find_overlap(const struct boot_range *ranges, size_t count, uint64_t base,
                                             uint64_t length) {
    for (size_t i = 0; i < count; i++)
        if (overlaps(&ranges[i], base, length))
            return &ranges[i];
    return NULL;
}

int boot_layout_claim(struct boot_layout *layout, uint64_t base, uint64_t length) {
    if (!length)
        return 0;
    if (base > layout->low_end || length > layout->low_end - base)
        return -EFAULT;
    if (find_overlap(layout->reserved, layout->reserved_count, base, length))
        return -EFAULT;
    if (find_overlap(layout->taken, layout->taken_count, base, length))
        return -EEXIST;
    if (layout->taken_count == BOOT_LAYOUT_RANGES)
        return -ENOSPC;
    layout->taken[layout->taken_count++] = (struct boot_range){base, length, BOOT_RANGE_RAM};
    return 0;
}

static const struct boot_range *find_obstacle(const struct boot_layout *layout, uint64_t base,
                                              uint64_t length) {
    const struct boot_range *range = find_overlap(layout->reserved, layout->reserved_count, base, length);
    return range ? range : find_overlap(layout->taken, layout->taken_count, base, length);
}

uint64_t boot_layout_place_low(struct boot_layout *layout, uint64_t length, uint64_t alignment, uint64_t low,
                               uint64_t high) {
    uint64_t base = align_up(low ? low : alignment, alignment);
    const struct boot_range *obstacle;
    if (high > layout->low_end)
        high = layout->low_end;
    while (base < high && length <= high - base) {
        obstacle = find_obstacle(layout, base, length);
        if (!obstacle)
            return boot_layout_claim(layout, base, length) ? 0 : base;
        base = align_up(obstacle->base + obstacle->length, alignment);
    }
    return 0;
}

uint64_t boot_layout_place_high(struct boot_layout *layout, uint64_t length, uint64_t alignment, uint64_t low,
                                uint64_t high) {
    if (high > layout->low_end)
        high = layout->low_end;
    while (high >= low && length <= high - low) {
        uint64_t base = (high - length) & ~(alignment - 1);
        if (base < low || !base)
            return 0;
        const struct boot_range *obstacle = find_obstacle(layout, base, length);
        if (!obstacle)
            return boot_layout_claim(layout, base, length) ? 0 : base;
        high = obstacle->base;
    }
    return 0;
}

size_t boot_layout_map(const struct boot_layout *layout, struct boot_range map[static BOOT_MAP_ENTRIES]) {
    const struct guest_mem *mem = layout->mem;
    const struct boot_range ram[] = {
        {0, mem->low_size, BOOT_RANGE_RAM},
        {GUEST_HIGH_RAM_START, mem->size - mem->low_size, BOOT_RANGE_RAM},
    };
    const struct boot_range *next = layout->reserved, *end = next + layout->reserved_count;
    size_t count = 0;
    for (size_t i = 0; i < ARRAY_SIZE(ram); i++) {
        uint64_t at = ram[i].base, ram_end = at + ram[i].length;
        for (; next < end && next->base < ram_end && count < BOOT_MAP_ENTRIES - 2; next++) {
            if (next->base > at)
                map[count++] = (struct boot_range){at, next->base - at, BOOT_RANGE_RAM};
            map[count++] = *next;
            if (next->base + next->length > at)
                at = next->base + next->length;
        }
        /* Reserved ranges in the hole between the two pieces of RAM come before the second piece. */
        if (at < ram_end && count < BOOT_MAP_ENTRIES)
            map[count++] = (struct boot_range){at, ram_end - at, BOOT_RANGE_RAM};
        uint64_t next_ram = i + 1 < ARRAY_SIZE(ram) ? ram[i + 1].base : UINT64_MAX;
        for (; next < end && next->base < next_ram && count < BOOT_MAP_ENTRIES - 2; next++)
            map[count++] = *next;
    }
    return count;
}
