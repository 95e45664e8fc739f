/* The code cache when it is full: parts, filled one after the other and then again from the first on.
 *
 * The code region behind the stubs is divided alike. In the tables of blocks, sites and host places a part
 * begins where the one before it ends, so that what is in use lies together, and each part's entries are in
 * the order in which they were made. Before a part is filled again, everything in it is taken out of use in a
 * few sweeps, instead of block by block: what it costs does not depend on how many links lead to one of its
 * blocks. So is the part behind the one being filled when that needs more of a table than the last time.
 *
 * What was evicted and is still wanted is translated again when it is next asked for; what runs meanwhile
 * keeps its translations and links. Nobody is inside translated code while this happens, and host_writes
 * tells whoever wants to resume a block or to link a site that either may be gone.
 *
 * Where it may, the cache grows: when too much of what was translated since the first part was begun had been
 * evicted shortly before, what runs does not fit, and instead of the first part again an empty one is filled.
 *
 * Units of a persistent cache that are in use have their blocks and sites in the parts, too, but no code
 * there.
 */
#define _GNU_SOURCE
#include "base/light.h"
#include "base/pages.h"
#include "cpu/mode.h"
#include "dbt/private.h"

#include <errno.h>
#include <stdlib.h>
#include <sys/mman.h>

/* More lose less at a time, but leave more unused: BLOCK_MAX_HOST at the end of each. */
#define CODE_PARTS 8u
#define CODE_PART_LEAST (128 * KIB)
#define POPULATE_BYTES (256 * KIB)
#define RELEASE_BYTES (2 * MIB)
#define RELEASE_KEPT_BYTES (MIB / 2)

int code_divide(struct dbt_vcpu *dbt, uint64_t size, unsigned parts) {
    if (!parts)
        parts = CODE_PARTS;
    while (parts > 1 && size / parts < CODE_PART_LEAST)
        parts--;
    uint64_t code = size / parts & PAGE_MASK, all = dbt->size / code;
    dbt->part_size = code;
    dbt->parts = parts;
    dbt->parts_max = all < CODE_PARTS_MAX ? (unsigned)all : CODE_PARTS_MAX;
    for (unsigned i = 0; i < dbt->parts_max; i++) {
        uint64_t begin = i ? i * code : dbt->stubs_end;
        dbt->part[i] = (struct code_part){.code = begin, .code_end = (i + 1) * code, .used = begin};
    }
    dbt->stats.code_limit = parts * code;
    if (dbt->parts == dbt->parts_max)
        return 0;
    dbt->evicted = calloc(1u << EVICTED_BITS, sizeof *dbt->evicted);
    return dbt->evicted ? 0 : -ENOMEM;
}

static bool is_empty(const struct code_part *part) {
    return part->blocks == part->block;
}

/* The first part behind the one being filled that anything is in; NULL: none. */
static struct code_part *following(struct dbt_vcpu *dbt) {
    for (struct code_part *part = dbt->filling + 1; part < dbt->part + dbt->parts; part++)
        if (!is_empty(part))
            return part;
    return NULL;
}

static void set_limits(struct dbt_vcpu *dbt) {
    const struct code_part *next = following(dbt);
    dbt->blocks_limit = next ? next->block : dbt->max_blocks;
    dbt->sites_limit = next ? next->site : dbt->max_sites;
    dbt->pcs_limit = next ? next->pc : dbt->max_pcs;
}

static void clear(struct code_part *part) {
    part->used = part->code;
    part->block = part->blocks = part->site = part->sites = part->pc = part->pcs = 0;
    part->made = part->again = part->again_user = 0;
}

/* Begin to fill a part that is empty, behind the one before it. */
static void begin(struct dbt_vcpu *dbt, struct code_part *part) {
    dbt->filling = part;
    dbt->used = dbt->populated = part->code;
    if (part == dbt->part)
        dbt->blocks = dbt->sites = dbt->pcs = 0;
    part->block = dbt->blocks;
    part->site = dbt->sites;
    part->pc = dbt->pcs;
    set_limits(dbt);
}

void code_empty(struct dbt_vcpu *dbt) {
    for (unsigned i = 0; i < dbt->parts; i++)
        clear(&dbt->part[i]);
    begin(dbt, dbt->part);
}

static bool holds_block(const struct code_part *part, uint32_t index) {
    return index - part->block < part->blocks - part->block;
}

static bool holds_site(const struct code_part *part, uint32_t index) {
    return index - part->site < part->sites - part->site;
}

static void sweep_tables(struct dbt_vcpu *dbt, const struct code_part *part) {
    for (unsigned i = 0; i < ARRAY_SIZE(dbt->hash); i++) {
        uint32_t *slot = &dbt->hash[i];
        while (*slot != NO_INDEX) {
            struct block *block = &dbt->block[*slot];
            if (holds_block(part, *slot))
                *slot = block->hash_next;
            else
                slot = &block->hash_next;
        }
    }
    for (unsigned i = 0; i < ARRAY_SIZE(dbt->page_hash); i++) {
        uint32_t *slot = &dbt->page_hash[i];
        while (*slot != NO_INDEX) {
            uint32_t *next = &dbt->block[*slot >> 1].page_next[*slot & 1];
            if (holds_block(part, *slot >> 1))
                *slot = *next;
            else
                slot = next;
        }
    }
}

/* Links into the part lead to C again. */
static void sweep_incoming(struct dbt_vcpu *dbt, const struct code_part *part) {
    for (uint32_t i = part->block; i < part->blocks; i++) {
        struct block *block = &dbt->block[i];
        for (uint32_t at = block->incoming; at != NO_INDEX; at = dbt->site[at].next_incoming)
            if (!holds_site(part, at))
                block_unlink(dbt, at);
        if (block->cache && !block->dead)
            cached_forget_jumps(dbt, block);
        block->incoming = NO_INDEX;
        block->dead = true;
    }
}

/* Links out of the part are in no list any more. */
static void sweep_outgoing(struct dbt_vcpu *dbt, const struct code_part *part,
                           const struct code_part *other) {
    for (uint32_t i = other->block; i < other->blocks; i++) {
        uint32_t *slot = &dbt->block[i].incoming;
        while (*slot != NO_INDEX) {
            struct site *site = &dbt->site[*slot];
            if (holds_site(part, *slot))
                *slot = site->next_incoming;
            else
                slot = &site->next_incoming;
        }
    }
}

/* A site of a cached unit that was not asked for yet is all zero. */
static void zero_sites(struct dbt_vcpu *dbt, const struct code_part *part) {
    uint64_t from = (uint64_t)&dbt->site[part->site], to = (uint64_t)&dbt->site[part->sites];
    uint64_t whole = align_up(from, PAGE_SIZE), end = to & PAGE_MASK;
    if (whole >= end) {
        light_fill((void *)from, 0, to - from);
        return;
    }
    light_fill((void *)from, 0, whole - from);
    (void)madvise((void *)whole, end - whole, MADV_DONTNEED);
    light_fill((void *)end, 0, to - end);
}

/* -- growing -- */

/* The place of a block's fingerprint, which is never 0. */
static uint8_t *fingerprint(struct dbt_vcpu *dbt, const struct block *block, uint8_t *value) {
    uint64_t mixed = (block->ram_offset ^ (uint64_t)block->mode << 48) * 0x9e3779b97f4a7c15ull ^
                     block->rip * 0xc2b2ae3d27d4eb4full;
    *value = (uint8_t)(mixed >> 56 | 1);
    return &dbt->evicted[mixed >> 32 & ((1u << EVICTED_BITS) - 1)];
}

static void note_evicted(struct dbt_vcpu *dbt, const struct code_part *part) {
    if (!dbt->evicted)
        return;
    for (uint32_t i = part->block; i < part->blocks; i++) {
        const struct block *block = &dbt->block[i];
        uint8_t value;
        if (!block->dead && !block->cache) {
            uint8_t *place = fingerprint(dbt, block, &value);
            *place = value;
        }
    }
}

void code_note_made(struct dbt_vcpu *dbt, const struct block *block) {
    uint8_t value, *place;
    if (!dbt->evicted)
        return;
    place = fingerprint(dbt, block, &value);
    dbt->filling->made++;
    if (*place != value)
        return;
    *place = 0;
    dbt->filling->again++;
    dbt->filling->again_user += (block->mode & MODE_CPL3) != 0;
}

/* The kernel's code is evicted and wanted again by whatever runs, and a guest that starts one program after
 * the other translates them for the first time: a booting Debian has a fifth of ring 3's code among all that
 * is translated, and half with the kernel's. Programs that do not fit begin at a third, and reach nine
 * tenths. */
static bool is_too_small(const struct dbt_vcpu *dbt) {
    uint64_t made = 0, again = 0, again_user = 0;
    for (unsigned i = 0; i < dbt->parts; i++) {
        made += dbt->part[i].made;
        again += dbt->part[i].again;
        again_user += dbt->part[i].again_user;
    }
    return again_user * 10 > made * 3 || again * 4 > made * 3;
}

static struct code_part *next_part(struct dbt_vcpu *dbt) {
    struct code_part *next = dbt->filling + 1;
    if (next < dbt->part + dbt->parts)
        return next;
    if (dbt->parts == dbt->parts_max || !is_too_small(dbt))
        return dbt->part;
    dbt->parts = dbt->parts * 2 < dbt->parts_max ? dbt->parts * 2 : dbt->parts_max;
    dbt->stats.code_limit = dbt->parts * dbt->part_size;
    return next;
}

/* -- filling -- */

static void evict(struct dbt_vcpu *dbt, struct code_part *part) {
    if (is_empty(part))
        return;
    note_evicted(dbt, part);
    sweep_tables(dbt, part);
    sweep_incoming(dbt, part);
    for (unsigned i = 0; i < dbt->parts; i++)
        if (&dbt->part[i] != part)
            sweep_outgoing(dbt, part, &dbt->part[i]);
    jump_forget_code(dbt, part->code, part->code_end);
    if (dbt->cached)
        zero_sites(dbt, part);
    clear(part);
    dbt->host_writes++;
    dbt->stats.evictions++;
}

static void save(struct dbt_vcpu *dbt) {
    dbt->filling->used = dbt->used;
    dbt->filling->blocks = dbt->blocks;
    dbt->filling->sites = dbt->sites;
    dbt->filling->pcs = dbt->pcs;
}

static void go_on_in(struct dbt_vcpu *dbt, struct code_part *part) {
    save(dbt);
    evict(dbt, part);
    begin(dbt, part);
}

bool code_make_room(struct dbt_vcpu *dbt, uint64_t code, uint32_t blocks, uint32_t sites, uint32_t pcs) {
    if (dbt->used + code > dbt->filling->code_end)
        go_on_in(dbt, next_part(dbt));
    while (dbt->blocks + blocks > dbt->blocks_limit || dbt->sites + sites > dbt->sites_limit ||
           dbt->pcs + pcs > dbt->pcs_limit) {
        struct code_part *next = following(dbt);
        if (next) {
            save(dbt);
            evict(dbt, next);
            set_limits(dbt);
        } else if (dbt->blocks) {
            go_on_in(dbt, dbt->part);
        } else {
            return false;
        }
    }
    return dbt->used + code <= dbt->filling->code_end;
}

/* Both mappings of the code region count as resident. From time to time the writing one is given back, but
 * for what was written last and what is populated for what comes next; a later patch faults its page in
 * again. */
void code_release_written(struct dbt_vcpu *dbt) {
    uint64_t from = dbt->used & PAGE_MASK, to = align_up(dbt->populated, PAGE_SIZE);
    if (dbt->stats.host_bytes - dbt->released < RELEASE_BYTES)
        return;
    dbt->released = dbt->stats.host_bytes;
    if (from > RELEASE_KEPT_BYTES)
        (void)madvise(dbt->rw, from - RELEASE_KEPT_BYTES, MADV_DONTNEED);
    if (to < dbt->size)
        (void)madvise(dbt->rw + to, dbt->size - to, MADV_DONTNEED);
}

/* Pages for what is written next, many at a time. */
void code_populate_ahead(struct dbt_vcpu *dbt) {
    if (dbt->used + BLOCK_MAX_HOST <= dbt->populated)
        return;
    uint64_t from = dbt->used & PAGE_MASK, end = align_up(dbt->used + POPULATE_BYTES, PAGE_SIZE);
    dbt->populated = end < dbt->filling->code_end ? end : dbt->filling->code_end;
    pages_populate(dbt->rw + from, dbt->populated - from);
}

const struct code_part *code_part_at(const struct dbt_vcpu *dbt, uint64_t offset) {
    uint64_t index = offset / dbt->part_size;
    if (index >= dbt->parts)
        return NULL;
    const struct code_part *part = &dbt->part[index];
    return offset >= part->code && offset < (part == dbt->filling ? dbt->used : part->used) ? part : NULL;
}

const struct code_part *code_part_of_block(const struct dbt_vcpu *dbt, uint32_t index) {
    for (const struct code_part *part = dbt->part; part < dbt->part + dbt->parts; part++)
        if (index >= part->block && index < code_blocks_end(dbt, part))
            return part;
    return NULL;
}

const struct code_part *code_part_of_site(const struct dbt_vcpu *dbt, uint32_t index) {
    for (const struct code_part *part = dbt->part; part < dbt->part + dbt->parts; part++)
        if (index >= part->site && index < (part == dbt->filling ? dbt->sites : part->sites))
            return part;
    return NULL;
}

uint64_t code_in_use(const struct dbt_vcpu *dbt) {
    uint64_t sum = dbt->stubs_end;
    for (const struct code_part *part = dbt->part; part < dbt->part + dbt->parts; part++)
        sum += (part == dbt->filling ? dbt->used : part->used) - part->code;
    return sum;
}
