/* Mapping guest pages into a stub.
 *
 * A page is mapped readable only when every entry on its way has A set, writable only when its leaf has D
 * set: so the processor could use the mapping without changing the guest's tables, and nobody has to notice
 * that it does. Setting A and D is left to an access by another tier. A page whose state is not 0
 * (guest_mem.h) is not writable: the order is the TLB's, first vcpu->direct_write, then the state (vmem.c),
 * and whoever makes a page hold code does the reverse and then counts a revocation (vtlb_write_protect()).
 *
 * A flush tears nothing down. Each region of 2 MiB remembers the entries that its mappings were made from;
 * before the stub runs after a flush, they are compared with the guest's tables, and what changed is undone.
 *
 * Orders are collected and carried out together, since a trip to the stub costs more than they do: only the
 * functions of the header end with apply().
 */
#define _GNU_SOURCE
#include "direct/mapping.h"
#include "cpu/mode.h"
#include "direct/private.h"
#include "direct/scan.h"
#include "mem/guest_mem.h"

#include <asm/prctl.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>

#define MAP_RIGHTS (MAP_READ | MAP_WRITE | MAP_EXECUTE)
#define WINDOW_PAGES 32  /* mapped around a page that is asked for */
#define REGIONS_MAX 8192 /* of all stubs of a vCPU: 70 MB */

struct region {
    uint64_t linear;
    struct region *next;
    struct tables_path path;
    unsigned pages;                /* mapped */
    uint64_t seen[REGION_PAGES];   /* leaf entries when last compared */
    uint64_t mapped[REGION_PAGES]; /* RAM offset and MAP_*, or 0 */
};

static unsigned bucket_of(uint64_t linear) {
    return (unsigned)((linear >> REGION_SHIFT) * 0x9e3779b97f4a7c15ull >> 55) % MAPPING_BUCKETS;
}

static struct region *find_region(struct mapping *mapping, uint64_t linear) {
    struct region *region = mapping->bucket[bucket_of(linear)];
    while (region && region->linear != (linear & ~(REGION_SIZE - 1)))
        region = region->next;
    return region;
}

static void snapshot(struct region *region) {
    if (region->path.table)
        memcpy(region->seen, region->path.table, sizeof region->seen);
    else
        memset(region->seen, 0, sizeof region->seen);
}

void mapping_clear(struct vcpu *vcpu, struct mapping *mapping) {
    vcpu->direct->regions -= mapping->regions;
    for (unsigned i = 0; i < MAPPING_BUCKETS; i++) {
        struct region *next;
        for (struct region *region = mapping->bucket[i]; region; region = next) {
            next = region->next;
            free(region);
        }
        mapping->bucket[i] = NULL;
    }
    mapping->regions = mapping->areas = 0;
}

/* -- orders -- */

/* Returns what the first order that failed returned. */
static int apply(struct vcpu *vcpu, struct direct_stub *stub) {
    unsigned done;
    return stub_apply(&vcpu->direct->family, stub->pid, &done);
}

/* Any of them may cut one of the host's mappings into three. */
static int order(struct vcpu *vcpu, struct direct_stub *stub, const struct stub_order *wanted) {
    struct stub_family *family = &vcpu->direct->family;
    family->orders[family->order_count++] = *wanted;
    stub->mapping.areas += 2;
    return family->order_count == STUB_ORDERS_MAX ? apply(vcpu, stub) : 0;
}

/* The last region of user mode ends behind what the host lets anybody unmap. */
static int order_unmap(struct vcpu *vcpu, struct direct_stub *stub, uint64_t linear, uint64_t length) {
    length = linear + length > STUB_USER_END ? STUB_USER_END - linear : length;
    vcpu->direct->stats.pages_unmapped += length / PAGE_SIZE;
    return order(vcpu, stub, &(struct stub_order){SYS_munmap, {linear, length}});
}

static uint64_t protection(uint64_t rights) {
    return (rights & MAP_READ ? PROT_READ : 0) | (rights & MAP_WRITE ? PROT_READ | PROT_WRITE : 0) |
           (rights & MAP_EXECUTE ? PROT_READ | PROT_EXEC : 0);
}

/* The mappings that the host's kernel holds, if it joins none that end at a region's end. */
static unsigned count_areas(const struct mapping *mapping) {
    unsigned areas = 0;
    for (unsigned i = 0; i < MAPPING_BUCKETS; i++)
        for (const struct region *region = mapping->bucket[i]; region; region = region->next)
            for (unsigned page = 0; region->pages && page < REGION_PAGES; page++)
                areas += region->mapped[page] &&
                         (!page || region->mapped[page] != region->mapped[page - 1] + PAGE_SIZE);
    return areas;
}

/* Take everything out of the stub. */
static int flush(struct vcpu *vcpu, struct direct_stub *stub) {
    struct mapping *mapping = &stub->mapping;
    int result = 0;
    vcpu->direct->stats.full_flushes++;
    for (unsigned i = 0; i < MAPPING_BUCKETS && !result; i++)
        for (struct region *region = mapping->bucket[i]; region && !result; region = region->next)
            if (region->pages)
                result = order_unmap(vcpu, stub, region->linear, REGION_SIZE);
    if (!result)
        result = apply(vcpu, stub);
    mapping_clear(vcpu, mapping);
    return result;
}

/* Stay below what the host's kernel allows. A count takes long, so at least half of that is free after it. */
static int bound_areas(struct vcpu *vcpu, struct direct_stub *stub) {
    struct mapping *mapping = &stub->mapping;
    if (LIKELY(mapping->areas <= vcpu->direct->max_areas))
        return 0;
    mapping->areas = count_areas(mapping);
    return mapping->areas > vcpu->direct->max_areas / 2 ? flush(vcpu, stub) : 0;
}

/* -- what may be mapped -- */

static const uint8_t *page_at(const struct vcpu *vcpu, uint64_t mapped) {
    return vcpu->mem->base + (mapped & PAGE_MASK);
}

/* Rights of a neighbour page, for the sake of its bytes. */
static uint64_t rights_at(const struct vcpu *vcpu, const struct region *region, int index) {
    if (index >= 0 && index < REGION_PAGES)
        return tables_rights(vcpu, &region->path, (unsigned)index,
                             region->path.table ? region->path.table[index] : 0);
    struct tables_path path;
    uint64_t linear = region->linear + (uint64_t)((int64_t)index * (int64_t)PAGE_SIZE);
    tables_walk(vcpu, linear, &path);
    unsigned at = linear >> PAGE_SHIFT & (REGION_PAGES - 1);
    return path.rights ? tables_rights(vcpu, &path, at, path.table ? path.table[at] : 0) : 0;
}

/* Does the page hold instructions that only the other tiers may execute, or parts of one? */
static bool is_forbidden(const struct vcpu *vcpu, const struct direct_stub *stub, const struct region *region,
                         unsigned index, uint64_t want) {
    uint8_t code[SCAN_BEFORE + PAGE_SIZE + SCAN_AFTER] = {0};
    unsigned what = stub->scan;
    bool code64 = cpu_is_code64(vcpu);
    if (!code64 && vcpu->direct->is_amd)
        what |= SCAN_COMPAT_CALL;
    if (code64 && !vcpu->direct->host_fsgsbase)
        what |= SCAN_BASES;
    if (!vcpu->direct->family.keeps_nt)
        what |= SCAN_POPF;
    uint64_t before = rights_at(vcpu, region, (int)index - 1),
             after = rights_at(vcpu, region, (int)index + 1);
    if (before & MAP_EXECUTE)
        memcpy(code, page_at(vcpu, before) + PAGE_SIZE - SCAN_BEFORE, SCAN_BEFORE);
    memcpy(code + SCAN_BEFORE, page_at(vcpu, want), PAGE_SIZE);
    if (after & MAP_EXECUTE)
        memcpy(code + SCAN_BEFORE + PAGE_SIZE, page_at(vcpu, after), SCAN_AFTER);
    return scan_finds(code, SCAN_BEFORE - 3, SCAN_BEFORE + PAGE_SIZE, sizeof code, code64 ? 64 : 32, what);
}

static uint64_t without_write(struct vcpu *vcpu, uint64_t want) {
    uint64_t page = want >> PAGE_SHIFT;
    if (!(want & MAP_WRITE))
        return want;
    __atomic_store_n(&vcpu->direct_write[page], 1, __ATOMIC_SEQ_CST);
    return __atomic_load_n(&vcpu->mem->state[page], __ATOMIC_SEQ_CST) ? want & ~MAP_WRITE : want;
}

/* Everything that the page may be mapped with now. */
static uint64_t wanted(struct vcpu *vcpu, const struct direct_stub *stub, const struct region *region,
                       unsigned index) {
    uint64_t want = without_write(vcpu, tables_rights(vcpu, &region->path, index, region->seen[index]));
    uint64_t had = region->mapped[index];
    if (want & MAP_EXECUTE && !(((want ^ had) & PAGE_MASK) == 0 && had & MAP_EXECUTE) &&
        is_forbidden(vcpu, stub, region, index, want))
        want &= ~MAP_EXECUTE;
    return want;
}

/* -- keeping up with the guest's tables -- */

/* What is left of a mapping. */
static uint64_t remains(struct vcpu *vcpu, const struct region *region, unsigned index) {
    uint64_t had = region->mapped[index];
    uint64_t want = tables_rights(vcpu, &region->path, index, region->seen[index]);
    if ((want ^ had) & PAGE_MASK)
        return 0;
    if (had & MAP_WRITE)
        want = without_write(vcpu, want);
    return (had & PAGE_MASK) | (had & want & MAP_RIGHTS);
}

/* Replace region->mapped by left[] from first to end: unmap or protect runs. */
static int restrict_to(struct vcpu *vcpu, struct direct_stub *stub, struct region *region,
                       const uint64_t left[REGION_PAGES]) {
    int result = 0;
    for (unsigned i = 0; i < REGION_PAGES && !result;) {
        uint64_t had = region->mapped[i], rights = left[i] & MAP_RIGHTS;
        if (left[i] == had) {
            i++;
            continue;
        }
        unsigned first = i, pages = 0;
        for (; i < REGION_PAGES && (left[i] & MAP_RIGHTS) == rights &&
               (left[i] != region->mapped[i] || (!rights && !left[i]));
             i++) {
            pages += region->mapped[i] && !left[i];
            region->mapped[i] = left[i];
        }
        region->pages -= pages;
        uint64_t linear = region->linear + first * PAGE_SIZE, length = (i - first) * PAGE_SIZE;
        if (!rights)
            result = order_unmap(vcpu, stub, linear, length);
        else
            result =
                order(vcpu, stub, &(struct stub_order){SYS_mprotect, {linear, length, protection(rights)}});
    }
    return result;
}

/* Is a page writable that must not be any more? */
static bool holds_revoked(const struct vcpu *vcpu, const struct region *region) {
    for (unsigned i = 0; i < REGION_PAGES; i++)
        if (region->mapped[i] & MAP_WRITE &&
            __atomic_load_n(&vcpu->mem->state[region->mapped[i] >> PAGE_SHIFT], __ATOMIC_SEQ_CST))
            return true;
    return false;
}

static int revalidate(struct vcpu *vcpu, struct direct_stub *stub, struct region *region, bool revoked) {
    struct tables_path path;
    tables_walk(vcpu, region->linear, &path);
    bool moved = memcmp(path.entry, region->path.entry, sizeof path.entry);
    bool changed = moved || (path.table && memcmp(region->seen, path.table, sizeof region->seen));
    if (!changed && !(revoked && holds_revoked(vcpu, region)))
        return 0;
    vcpu->direct->stats.revalidations++;
    region->path = path;
    snapshot(region);
    uint64_t left[REGION_PAGES];
    for (unsigned i = 0; i < REGION_PAGES; i++)
        left[i] = region->mapped[i] ? remains(vcpu, region, i) : 0;
    return restrict_to(vcpu, stub, region, left);
}

static void remove_empty(struct vcpu *vcpu, struct mapping *mapping, struct region **slot) {
    struct region *region = *slot;
    *slot = region->next;
    free(region);
    mapping->regions--;
    vcpu->direct->regions--;
}

static int revalidate_all(struct vcpu *vcpu, struct direct_stub *stub) {
    struct mapping *mapping = &stub->mapping;
    uint64_t revocations = __atomic_load_n(&vcpu->direct_revocations, __ATOMIC_SEQ_CST);
    bool revoked = mapping->revocations != revocations;
    if (LIKELY(!revoked && mapping->flushes == vcpu->flushes))
        return 0;
    mapping->revocations = revocations;
    mapping->flushes = vcpu->flushes;
    int result = 0;
    for (unsigned i = 0; i < MAPPING_BUCKETS; i++) {
        struct region **slot = &mapping->bucket[i];
        while (*slot && !result) {
            if ((*slot)->pages)
                result = revalidate(vcpu, stub, *slot, revoked);
            if (!(*slot)->pages)
                remove_empty(vcpu, mapping, slot);
            else
                slot = &(*slot)->next;
        }
    }
    return result;
}

/* -- adding -- */

static struct region *make_region(struct vcpu *vcpu, struct mapping *mapping, uint64_t linear) {
    struct region *region = calloc(1, sizeof *region);
    if (!region)
        return NULL;
    region->linear = linear & ~(REGION_SIZE - 1);
    region->next = mapping->bucket[bucket_of(linear)];
    mapping->bucket[bucket_of(linear)] = region;
    mapping->regions++;
    vcpu->direct->regions++;
    return region;
}

/* Map what may be mapped of [first, end), in as few calls as the guest's layout allows. */
static int map_range(struct vcpu *vcpu, struct direct_stub *stub, struct region *region, unsigned first,
                     unsigned end) {
    struct direct_stats *stats = &vcpu->direct->stats;
    int result = 0;
    for (unsigned i = first; i < end && !result;) {
        uint64_t want = wanted(vcpu, stub, region, i);
        if (!(want & MAP_RIGHTS) || want == region->mapped[i]) {
            i++;
            continue;
        }
        unsigned start = i;
        do {
            region->pages += !region->mapped[i];
            stats->pages_mapped += !region->mapped[i];
            region->mapped[i] = want + (i - start) * PAGE_SIZE;
            i++;
        } while (i < end && wanted(vcpu, stub, region, i) == want + (i - start) * PAGE_SIZE);
        stats->map_calls++;
        result = order(vcpu, stub,
                       &(struct stub_order){SYS_mmap,
                                            {region->linear + start * PAGE_SIZE, (i - start) * PAGE_SIZE,
                                             protection(want), MAP_SHARED | MAP_FIXED | MAP_POPULATE,
                                             STUB_RAM_FD, want & PAGE_MASK}});
    }
    return result;
}

/* A page that is readable already was asked for: ring 3 writes where code was translated from. It will do so
 * again: drop all of that code, so that the page can be writable. */
static void claim(struct vcpu *vcpu, const struct region *region, unsigned index) {
    struct guest_mem *mem = vcpu->mem;
    uint64_t want = tables_rights(vcpu, &region->path, index, region->seen[index]);
    if (want & MAP_WRITE && mem->on_code_written &&
        __atomic_load_n(&mem->state[want >> PAGE_SHIFT], __ATOMIC_SEQ_CST) == PAGE_HOLDS_CODE)
        mem->on_code_written(mem->on_code_written_context, want & PAGE_MASK, PAGE_SIZE);
}

/* Regions in which the stub has pages of its own are never touched. */
static bool is_occupied(const struct stub_family *family, uint64_t linear) {
    for (unsigned i = 0; i < family->occupied_count; i++)
        if (!((family->occupied[i] ^ linear) >> REGION_SHIFT))
            return true;
    return false;
}

bool mapping_collides(const struct vcpu *vcpu) {
    const struct stub_family *family = &vcpu->direct->family;
    for (unsigned i = 0; i < family->occupied_count; i++) {
        struct tables_path path;
        tables_walk(vcpu, family->occupied[i], &path);
        if (path.rights)
            return true;
    }
    return false;
}

static int add(struct vcpu *vcpu, struct direct_stub *stub, uint64_t linear) {
    struct direct_vcpu *direct = vcpu->direct;
    struct mapping *mapping = &stub->mapping;
    if (linear >= STUB_USER_END || linear < direct->low_end || is_occupied(&direct->family, linear))
        return 0;
    if (direct->regions > REGIONS_MAX)
        pool_drop_others(vcpu, stub);
    int result = direct->regions > REGIONS_MAX ? flush(vcpu, stub) : bound_areas(vcpu, stub);
    if (result)
        return result;
    struct region *region = find_region(mapping, linear);
    if (!region) {
        region = make_region(vcpu, mapping, linear);
        if (!region)
            return -ENOMEM;
        tables_walk(vcpu, linear, &region->path);
        snapshot(region);
    } else {
        result = revalidate(vcpu, stub, region, false);
        if (result)
            return result;
    }
    unsigned index = linear >> PAGE_SHIFT & (REGION_PAGES - 1);
    uint64_t had = region->mapped[index];
    if (!region->path.rights)
        return 0;
    if (had & MAP_READ && !(had & MAP_WRITE))
        claim(vcpu, region, index);
    uint64_t want = wanted(vcpu, stub, region, index);
    if (want == had || !(want & MAP_RIGHTS))
        return 0;
    /* A large page is one mapping; a region of which much was asked for is taken whole. */
    bool whole = !region->path.table || region->pages >= WINDOW_PAGES;
    unsigned first = whole ? 0 : index & ~(WINDOW_PAGES - 1u);
    unsigned end = whole ? REGION_PAGES : first + WINDOW_PAGES;
    if (region->linear + first * PAGE_SIZE < direct->low_end)
        first = (unsigned)((direct->low_end - region->linear) >> PAGE_SHIFT);
    if (region->linear + end * PAGE_SIZE > STUB_USER_END)
        end = (unsigned)((STUB_USER_END - region->linear) >> PAGE_SHIFT);
    result = map_range(vcpu, stub, region, first, end);
    return result ? result : 1;
}

/* Carry out what was ordered; after a failure nothing more for this stub. */
static int finish(struct vcpu *vcpu, struct direct_stub *stub, int result) {
    int applied = result < 0 ? 0 : apply(vcpu, stub);
    vcpu->direct->family.order_count = 0;
    return applied ? applied : result;
}

int mapping_add(struct vcpu *vcpu, struct direct_stub *stub, uint64_t linear) {
    return finish(vcpu, stub, add(vcpu, stub, linear));
}

int mapping_sync(struct vcpu *vcpu, struct direct_stub *stub, uint64_t linear) {
    int result = bound_areas(vcpu, stub);
    if (!result)
        result = revalidate_all(vcpu, stub);
    if (!result && linear != NO_ADDRESS)
        result = add(vcpu, stub, linear);
    result = finish(vcpu, stub, result);
    return result < 0 ? result : 0;
}

bool mapping_admit_cpuid(struct vcpu *vcpu, struct direct_stub *stub) {
    if (!(stub->scan & SCAN_CPUID) || !vcpu->direct->family.cpuid_can_fault)
        return false;
    stub->scan &= ~SCAN_CPUID;
    stub->cpuid_faults = true;
    return !order(vcpu, stub, &(struct stub_order){SYS_arch_prctl, {ARCH_SET_CPUID, 0}}) &&
           !apply(vcpu, stub);
}
