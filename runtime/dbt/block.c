/* The store of translated blocks: lookup by content's place (RAM offset, rip, mode), lists by page, links
 * between them. */
#define _GNU_SOURCE
#include "base/light.h"
#include "dbt/asm.h"
#include "dbt/percpu.h"
#include "dbt/private.h"
#include "dbt/rewrite.h"
#include "mem/guest_mem.h"

#include <sys/mman.h>

static uint32_t hash_of(uint64_t ram_offset, uint64_t rip, uint32_t mode) {
    uint64_t mixed =
        (ram_offset * 0x9e3779b97f4a7c15ull) ^ (rip * 0xc2b2ae3d27d4eb4full) ^ (mode * 0x165667b19e3779f9ull);
    return (uint32_t)(mixed >> 32) & ((1u << HASH_BITS) - 1);
}

static uint32_t *page_list(struct dbt_vcpu *dbt, uint64_t ram_page) {
    return &dbt->page_hash[(ram_page >> PAGE_SHIFT) & ((1u << PAGE_HASH_BITS) - 1)];
}

uint32_t block_find(struct dbt_vcpu *dbt, uint64_t ram_offset, uint64_t rip, uint32_t mode) {
    for (uint32_t i = dbt->hash[hash_of(ram_offset, rip, mode)]; i != NO_INDEX; i = dbt->block[i].hash_next) {
        const struct block *block = &dbt->block[i];
        if (block->rip == rip && block->ram_offset == ram_offset && block->mode == mode)
            return i;
    }
    return NO_INDEX;
}

static uint32_t holder_bit(const struct vcpu *vcpu) {
    return 1u << vcpu->index % 32;
}

void block_hold_page(struct vcpu *vcpu, uint64_t ram_page) {
    uint32_t *holders = &vcpu->mem->code_holders[ram_page >> PAGE_SHIFT];
    /* While it waits for others this vCPU serves their requests, and one of them may let the page go again.
     */
    while (!(__atomic_load_n(holders, __ATOMIC_RELAXED) & holder_bit(vcpu))) {
        __atomic_fetch_or(holders, holder_bit(vcpu), __ATOMIC_SEQ_CST);
        __atomic_fetch_or(&vcpu->mem->state[ram_page >> PAGE_SHIFT], PAGE_HOLDS_CODE, __ATOMIC_SEQ_CST);
        vtlb_write_protect(vcpu, ram_page);
        vtlb_forget_write_hint(vcpu, ram_page);
        if (vcpu->env->hold_code)
            vcpu->env->hold_code(vcpu->env->context, vcpu, ram_page);
    }
}

void block_publish(struct vcpu *vcpu, uint32_t index) {
    struct dbt_vcpu *dbt = vcpu->dbt;
    struct block *block = &dbt->block[index];
    if (!block->cache) { /* cached_find() knows those */
        uint32_t *bucket = &dbt->hash[hash_of(block->ram_offset, block->rip, block->mode)];
        block->hash_next = *bucket;
        *bucket = index;
    }
    uint64_t page[2] = {block->ram_offset & PAGE_MASK, block->ram_page2};
    for (unsigned i = 0; i < 2 && page[i] != GUEST_NO_RAM; i++) {
        uint32_t *list = page_list(dbt, page[i]);
        block->page_next[i] = *list;
        *list = index << 1 | i;
        block_hold_page(vcpu, page[i]);
    }
}

/* Make a patchable jump of a site's block lead to a place. */
static void patch_jump(struct dbt_vcpu *dbt, const struct site *site, uint32_t jump, uint32_t to) {
    const struct block *block = &dbt->block[site->block];
    if (block->cache)
        *cached_slot(dbt, block, jump) = (uint64_t)dbt->rx + to;
    else
        asm_patch_rel32(dbt->rw + jump, dbt->rw + to);
}

void block_unlink(struct dbt_vcpu *dbt, uint32_t index) {
    struct site *site = &dbt->site[index];
    patch_jump(dbt, site, site->host, site->cold);
    site->linked_to = NO_INDEX;
}

void block_link(struct dbt_vcpu *dbt, uint32_t index, uint32_t target, uint64_t rip) {
    struct site *site = block_site(dbt, index);
    struct block *block = &dbt->block[target];
    uint32_t entry = block_entry(dbt, block, rip, site->flags_saved);
    if (entry == NO_INDEX)
        return;
    site->linked_to = target;
    site->next_incoming = block->incoming;
    block->incoming = index;
    patch_jump(dbt, site, site->host, entry);
    dbt->stats.links++;
}

void block_skip_group(struct dbt_vcpu *dbt, uint32_t index) {
    const struct site *site = block_site(dbt, index);
    const struct block *block = &dbt->block[site->block];
    if (block->cache)
        cached_skip_group(dbt, block, site);
    else
        patch_jump(dbt, site, site->cold, (uint32_t)site->target);
}

static void remove_from_hash(struct dbt_vcpu *dbt, uint32_t index) {
    struct block *block = &dbt->block[index];
    uint32_t *slot = &dbt->hash[hash_of(block->ram_offset, block->rip, block->mode)];
    while (*slot != index)
        slot = &dbt->block[*slot].hash_next;
    *slot = block->hash_next;
}

static void remove_from_page(struct dbt_vcpu *dbt, uint32_t index, unsigned which, uint64_t ram_page) {
    uint32_t wanted = index << 1 | which;
    uint32_t *slot = page_list(dbt, ram_page);
    while (*slot != wanted)
        slot = &dbt->block[*slot >> 1].page_next[*slot & 1];
    *slot = dbt->block[index].page_next[which];
}

/* unlink: the block's own jumps lead to C again, too. */
static void remove_outgoing(struct dbt_vcpu *dbt, struct block *block, bool unlink) {
    for (uint32_t i = block->first_site; i < block->first_site + block->sites; i++) {
        struct site *site = &dbt->site[i];
        if (!site->ready || site->linked_to == NO_INDEX)
            continue;
        uint32_t *slot = &dbt->block[site->linked_to].incoming;
        while (*slot != i)
            slot = &dbt->site[*slot].next_incoming;
        *slot = site->next_incoming;
        site->linked_to = NO_INDEX;
        if (unlink)
            block_unlink(dbt, i);
    }
}

/* Take a block out of use: nothing finds it, nothing jumps into it but stale jump-cache entries, which meet a
 * SITE_DEAD at its entry. Cached code cannot be written: its jump-cache entries are dropped at once. */
void block_kill(struct dbt_vcpu *dbt, uint32_t index) {
    struct block *block = &dbt->block[index];
    if (!block->cache)
        remove_from_hash(dbt, index);
    remove_from_page(dbt, index, 0, block->ram_offset & PAGE_MASK);
    if (block->ram_page2 != GUEST_NO_RAM)
        remove_from_page(dbt, index, 1, block->ram_page2);
    struct rewrite *rewrite = rewrite_hit(dbt, index);
    remove_outgoing(dbt, block, rewrite != NULL);
    if (rewrite) /* without a jump that was linked, should one stand there */
        rewrite_keep_entry(dbt, block, rewrite);
    for (uint32_t i = block->incoming; i != NO_INDEX; i = dbt->site[i].next_incoming)
        block_unlink(dbt, i);
    block->incoming = NO_INDEX;
    block->dead = true;
    dbt->stats.invalidations++;
    dbt->host_writes++;
    if (block->cache) {
        cached_forget_jumps(dbt, block);
        return;
    }
    jump_forget_landing(dbt, block);
    dbt->site[block->first_site].kind = SITE_DEAD; /* nothing goes on in the block, so none is left by */
    struct code_buffer code = {.at = dbt->rw + block->entry[true],
                               .end = dbt->rw + block->host + block->host_size};
    asm_store32_imm_gs(&code, AREA_HOT(site), block->first_site);
    asm_jmp_to(&code, dbt->rw + (dbt->stub_exit - dbt->rx));
}

static void unlink_cross_page(struct dbt_vcpu *dbt, uint32_t from_block, uint32_t end) {
    for (uint32_t i = from_block; i < end; i++) {
        struct block *block = &dbt->block[i];
        uint32_t *slot = &block->incoming;
        while (*slot != NO_INDEX) {
            struct site *site = &dbt->site[*slot];
            const struct block *from = &dbt->block[site->block];
            if ((from->rip ^ block->rip) & PAGE_MASK || from->ram_page2 != GUEST_NO_RAM ||
                block->ram_page2 != GUEST_NO_RAM) {
                uint32_t index = *slot;
                *slot = site->next_incoming;
                block_unlink(dbt, index);
            } else {
                slot = &site->next_incoming;
            }
        }
    }
}

void block_unlink_cross_page(struct dbt_vcpu *dbt) {
    for (const struct code_part *part = dbt->part; part < dbt->part + dbt->parts; part++)
        unlink_cross_page(dbt, part->block, code_blocks_end(dbt, part));
}

void block_flush_all(struct vcpu *vcpu) {
    struct dbt_vcpu *dbt = vcpu->dbt;
    if (dbt->cached) /* no site is ready by accident */
        (void)madvise(dbt->site, dbt->max_sites * sizeof *dbt->site, MADV_DONTNEED);
    code_empty(dbt);
    light_fill(dbt->hash, 0xff, sizeof dbt->hash);
    light_fill(dbt->page_hash, 0xff, sizeof dbt->page_hash);
    jump_clear(dbt);
    percpu_reset(dbt);
    dbt->host_writes++;
    dbt->stats.flushes++;
}

static uint32_t own_block_at(const struct dbt_vcpu *dbt, uint64_t offset) {
    const struct code_part *part = code_part_at(dbt, offset);
    if (!part)
        return NO_INDEX;
    uint32_t end = code_blocks_end(dbt, part), low = part->block, high = end;
    while (low < high) {
        uint32_t middle = low + (high - low) / 2;
        if (dbt->block[middle].host + dbt->block[middle].host_size <= offset)
            low = middle + 1;
        else
            high = middle;
    }
    return low == end || offset < dbt->block[low].host ? NO_INDEX : low;
}

static const struct pc_entry *pc_at(const struct dbt_vcpu *dbt, const struct block *block, uint64_t offset) {
    const struct pc_entry *entry = &dbt->pc[block->first_pc];
    unsigned i = 0;
    while (i + 1 < block->pcs && entry[i + 1].host <= offset - block->host)
        i++;
    return &entry[i];
}

uint64_t block_remake(struct dbt_vcpu *dbt, uint64_t host_pc) {
    uint64_t offset = host_pc - (uint64_t)dbt->rx;
    if (cached_holds(dbt, host_pc))
        return cached_remake(dbt, host_pc);
    uint32_t index = own_block_at(dbt, offset);
    if (index == NO_INDEX)
        return 0;
    const struct block *block = &dbt->block[index];
    const struct pc_entry *entry = pc_at(dbt, block, offset);
    return entry->remake ? (uint64_t)dbt->rx + block->host + entry->remake : 0;
}

struct block *block_at(struct dbt_vcpu *dbt, uint64_t host_pc, struct guest_place *place) {
    uint64_t offset = host_pc - (uint64_t)dbt->rx;
    if (cached_holds(dbt, host_pc)) {
        uint32_t cached = cached_block_at(dbt, host_pc, place);
        return cached == NO_INDEX ? NULL : &dbt->block[cached];
    }
    uint32_t index = own_block_at(dbt, offset);
    if (index == NO_INDEX)
        return NULL;
    struct block *block = &dbt->block[index];
    const struct pc_entry *entry = pc_at(dbt, block, offset);
    *place = (struct guest_place){
        .guest = entry->guest, .flags_saved = entry->flags_saved, .rsp_lag = entry->rsp_lag};
    return block;
}

static bool holds_code(struct dbt_vcpu *dbt, uint64_t page) {
    for (uint32_t at = *page_list(dbt, page); at != NO_INDEX; at = dbt->block[at >> 1].page_next[at & 1])
        if ((at & 1 ? dbt->block[at >> 1].ram_page2 : dbt->block[at >> 1].ram_offset & PAGE_MASK) == page)
            return true;
    return false;
}

void dbt_code_written(struct vcpu *vcpu, uint64_t ram_offset, uint64_t length) {
    struct dbt_vcpu *dbt = vcpu->dbt;
    uint64_t page = ram_offset & PAGE_MASK, end = ram_offset + length;
    uint32_t next;
    for (uint32_t at = *page_list(dbt, page); at != NO_INDEX; at = next) {
        struct block *block = &dbt->block[at >> 1];
        unsigned which = at & 1;
        next = block->page_next[which];
        if ((which ? block->ram_page2 : block->ram_offset & PAGE_MASK) != page)
            continue;
        uint64_t first = block->ram_offset, last = first + block->guest_length;
        if (block->ram_page2 != GUEST_NO_RAM) {
            /* Two pages: the part on this one. */
            uint64_t head = PAGE_SIZE - (block->ram_offset & (PAGE_SIZE - 1));
            if (which) {
                first = page;
                last = page + block->guest_length - head;
            } else {
                last = first + head;
            }
        }
        if (first < end && ram_offset < last) {
            /* Killing may take the block's other list entry, too: start over to stay safe. */
            bool two = block->ram_page2 != GUEST_NO_RAM;
            block_kill(dbt, at >> 1);
            if (two)
                next = *page_list(dbt, page);
        }
    }
    if (!holds_code(dbt, page))
        __atomic_fetch_and(&vcpu->mem->code_holders[page >> PAGE_SHIFT], ~holder_bit(vcpu), __ATOMIC_SEQ_CST);
}

void dbt_drop_all(struct vcpu *vcpu) {
    block_flush_all(vcpu);
}
