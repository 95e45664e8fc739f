/* The guest's four-level page tables as ring 3 may use them, two MiB at a time. Reads only: A and D are set
 * by the accesses of the other tiers (cpu/paging.h). */
#ifndef NESTOR_DIRECT_TABLES_H
#define NESTOR_DIRECT_TABLES_H

#include "cpu/vcpu.h"

#define REGION_SHIFT 21
#define REGION_SIZE (1ull << REGION_SHIFT)
#define REGION_PAGES 512

/* What ring 3 may do with a page without the guest's tables changing: the page's RAM offset and these. */
#define MAP_READ 1ull
#define MAP_WRITE 2ull
#define MAP_EXECUTE 4ull

/* The way to the leaf entries of one region. */
struct tables_path {
    uint64_t entry[3];     /* as read: PML4E, PDPTE, PDE; 0 from where it ends */
    const uint64_t *table; /* the 512 leaf entries, or NULL: */
    uint64_t large;        /* guest-physical address of the region in a large page; its rights in MAP_* */
    uint64_t rights;       /* MAP_* that the upper entries leave; 0: nothing can be mapped */
};

/* Read the upper entries for the region around linear, under the current CR3. */
void tables_walk(const struct vcpu *vcpu, uint64_t linear, struct tables_path *path);
/* RAM offset and MAP_* of page `index` of the region when its leaf entry is `entry` (0 for a large page), or
 * 0. */
uint64_t tables_rights(const struct vcpu *vcpu, const struct tables_path *path, unsigned index,
                       uint64_t entry);

#endif
