/* Caching code by virtual address: the jump cache of indirect branches, and what cross-page links rely on.
 *
 * A jump-cache entry matches when key == rip ^ hot.jump_key and leads to the block's entry for saved flags.
 * Keys keep contexts apart: a context is (generation of the address space, mode); kernel code on pages
 * that are relied on has a generation of its own that outlives CR3 loads. A key's bits 48-62 number the
 * context and bit 63 is clear, so that two canonical addresses under two keys never collide; its low bits
 * spread the contexts over the table. Addresses that are not canonical could be made to collide with
 * anything, an empty entry's 0 included: whoever looks one up checks that first.
 *
 * Landings of returns (emit_return.c) were written by calls in the present context, and hold in that alone: a
 * table is emptied when its part of the code gets another key. For ring 3 that is all, since a flush of a
 * page from which ring 3 may have executed (user_bloom) renews the generation. For the kernel it is as long
 * as every page from which a call may have been executed since is relied on: such a page is entered by links
 * and jump-cache entries, which rely on it, or through C, which does it then. Where it cannot be relied on
 * (the table is full, or it is not global), kernel_local says so, and any flush and any other address space
 * empty the table, until C has seen again where the code stands.
 *
 * What is relied on is that every change to a page's mapping is told (code_flush). That holds for global
 * pages, and for all while CR4.PGE is clear, as it is for what unpacks a kernel: each load of CR3 is told
 * then.
 */
#include "base/light.h"
#include "cpu/paging.h"
#include "dbt/private.h"
#include "mem/guest_mem.h"

static void clear_returns(struct dbt_vcpu *dbt, bool user) {
    void *to = dbt->area->returns[user];
    uint64_t count = RETURN_SLOTS;
    __asm__ volatile("rep stosq" : "+D"(to), "+c"(count) : "a"(dbt->stub_return) : "memory");
    dbt->returns_key[user] = 0;
    dbt->area->hot.crossing.key[user] = 0;
}

/* 0 ^ key: context bits are never zero, so no canonical rip matches. */
static void clear_entries(struct dbt_vcpu *dbt) {
    clear_returns(dbt, false);
    clear_returns(dbt, true);
    light_fill(dbt->area->jump.key, 0, sizeof dbt->area->jump.key);
    light_fill(dbt->area->second.key, 0, sizeof dbt->area->second.key);
}

void jump_clear(struct dbt_vcpu *dbt) {
    clear_entries(dbt);
    light_fill(dbt->relied, 0, sizeof dbt->relied);
    dbt->relied_count = 0;
    light_fill(dbt->user_bloom, 0, sizeof dbt->user_bloom);
}

static void forget_hosts(uint64_t *key, const uint64_t *host, unsigned count, uint64_t from, uint64_t to) {
    for (unsigned i = 0; i < count; i++)
        if (host[i] - from < to - from)
            key[i] = 0;
}

void jump_forget_code(struct dbt_vcpu *dbt, uint64_t from, uint64_t to) {
    struct dbt_area *area = dbt->area;
    uint64_t rx = (uint64_t)dbt->rx;
    forget_hosts(area->jump.key, area->jump.host, JUMP_CACHE_SIZE, rx + from, rx + to);
    forget_hosts(area->second.key, area->second.host, JUMP_SECOND_SIZE, rx + from, rx + to);
    clear_returns(dbt, false);
    clear_returns(dbt, true);
}

static uint64_t fresh_key(struct dbt_vcpu *dbt) {
    if (++dbt->next_key == 1u << 15) {
        light_fill(dbt->context, 0, sizeof dbt->context);
        dbt->next_key = 1;
        clear_entries(dbt);
    }
    return dbt->next_key << 48 | ((dbt->next_key * 0x9e3779b1u) & (JUMP_CACHE_SIZE - 1));
}

static void use_key(struct dbt_vcpu *dbt, bool kernel, uint64_t key) {
    dbt->area->hot.jump_key = key;
    if (UNLIKELY(dbt->returns_key[!kernel] != key)) {
        clear_returns(dbt, !kernel);
        dbt->returns_key[!kernel] = key;
    }
}

/* Nothing tells any more where kernel pages were that are not relied on. */
static void forget_local(struct dbt_vcpu *dbt) {
    if (UNLIKELY(dbt->kernel_local))
        clear_returns(dbt, false);
    dbt->kernel_local = false;
}

void jump_enter_kernel(struct vcpu *vcpu, uint64_t linear, uint64_t ram_offset, bool told) {
    struct dbt_vcpu *dbt = vcpu->dbt;
    if (told && jump_rely(dbt, linear, ram_offset))
        return;
    dbt->kernel_local = true;
    dbt->local_generation = vcpu->space->generation;
}

void jump_forget_landing(struct dbt_vcpu *dbt, const struct block *block) {
    unsigned slot = (block->rip + block->guest_length) % RETURN_SLOTS;
    for (unsigned user = 0; user < ARRAY_SIZE(dbt->area->returns); user++) {
        uint64_t *landing = &dbt->area->returns[user][slot];
        if (*landing - (uint64_t)dbt->rx - block->host < block->host_size)
            *landing = (uint64_t)dbt->stub_return;
    }
}

void jump_refresh_key(struct vcpu *vcpu) {
    struct dbt_vcpu *dbt = vcpu->dbt;
    if (dbt->kernel_local && dbt->local_generation != vcpu->space->generation)
        forget_local(dbt);
    bool kernel = !(vcpu->mode & MODE_CPL3);
    uint64_t generation = kernel ? dbt->kernel_generation : vcpu->space->generation;
    const struct jump_context *recent = dbt->recent[kernel];
    if (LIKELY(recent && recent->mode == vcpu->mode && recent->generation == generation &&
               recent->kernel == kernel && recent->key)) {
        use_key(dbt, kernel, recent->key);
        return;
    }
    for (unsigned i = 0; i < JUMP_CONTEXTS; i++) {
        const struct jump_context *context = &dbt->context[i];
        if (context->mode == vcpu->mode && context->generation == generation && context->kernel == kernel &&
            context->key) {
            use_key(dbt, kernel, context->key);
            dbt->recent[kernel] = context;
            return;
        }
    }
    uint64_t key = fresh_key(dbt);
    struct jump_context *context = &dbt->context[dbt->next_context++ % JUMP_CONTEXTS];
    for (unsigned user = 0; user < 2; user++) /* nobody would find its entries to drop any more */
        if (dbt->area->hot.crossing.key[user] == context->key)
            dbt->area->hot.crossing.key[user] = 0;
    *context =
        (struct jump_context){.generation = generation, .key = key, .mode = vcpu->mode, .kernel = kernel};
    use_key(dbt, kernel, key);
    dbt->recent[kernel] = context;
}

/* A part of the table stays empty: that is what ends a search. */
#define RELIED_MAX ((1u << RELIED_BITS) * 3 / 4)

static struct relied_page *relied_slot(struct dbt_vcpu *dbt, uint64_t page) {
    unsigned at = (unsigned)((page >> PAGE_SHIFT) * 0x9e3779b97f4a7c15ull >> 40);
    for (;; at++) {
        struct relied_page *slot = &dbt->relied[at & ((1u << RELIED_BITS) - 1)];
        if (!slot->linear || slot->linear == page)
            return slot;
    }
}

bool jump_rely(struct dbt_vcpu *dbt, uint64_t linear, uint64_t ram_offset) {
    uint64_t page = linear & PAGE_MASK;
    struct relied_page *slot = relied_slot(dbt, page);
    if (!page) /* that is how an empty slot looks */
        return false;
    if (slot->linear)
        return true;
    if (dbt->relied_count >= RELIED_MAX)
        return false;
    *slot = (struct relied_page){.linear = page, .ram_page = ram_offset & PAGE_MASK};
    dbt->relied_count++;
    return true;
}

static void bloom_set(struct dbt_vcpu *dbt, uint64_t linear) {
    uint64_t bit = (linear >> PAGE_SHIFT) * 0x9e3779b97f4a7c15ull >> 54;
    dbt->user_bloom[bit / 64 % USER_BLOOM_WORDS] |= 1ull << bit % 64;
}

static bool bloom_test(const struct dbt_vcpu *dbt, uint64_t linear) {
    uint64_t bit = (linear >> PAGE_SHIFT) * 0x9e3779b97f4a7c15ull >> 54;
    return dbt->user_bloom[bit / 64 % USER_BLOOM_WORDS] >> bit % 64 & 1;
}

void jump_insert(struct vcpu *vcpu, uint64_t rip, uint32_t index, uint32_t host, bool told) {
    struct dbt_vcpu *dbt = vcpu->dbt;
    const struct block *block = &dbt->block[index];
    if (!(vcpu->mode & MODE_CPL3)) {
        if (!told || !jump_rely(dbt, block->rip, block->ram_offset))
            return;
    } else {
        bloom_set(dbt, rip);
    }
    uint64_t key = rip ^ dbt->area->hot.jump_key;
    unsigned slot = jump_cache_index(key), second = jump_second_index(key);
    dbt->area->jump.key[slot] = dbt->area->second.key[second] = key;
    dbt->area->jump.host[slot] = dbt->area->second.host[second] = (uint64_t)dbt->rx + host;
}

uint64_t jump_find(const struct vcpu *vcpu, uint64_t rip) {
    const struct dbt_area *area = vcpu->dbt->area;
    uint64_t key = rip ^ area->hot.jump_key;
    unsigned slot = jump_cache_index(key), second = jump_second_index(key);
    if (!cpu_is_canonical(rip))
        return 0;
    return area->jump.key[slot] == key       ? area->jump.host[slot]
           : area->second.key[second] == key ? area->second.host[second]
                                             : 0;
}

static void forget_key(struct dbt_area *area, uint64_t key) {
    unsigned slot = jump_cache_index(key), second = jump_second_index(key);
    if (area->jump.key[slot] == key)
        area->jump.key[slot] = 0;
    if (area->second.key[second] == key)
        area->second.key[second] = 0;
}

void jump_forget(struct vcpu *vcpu, uint64_t rip) {
    struct dbt_area *area = vcpu->dbt->area;
    forget_key(area, rip ^ area->hot.jump_key);
}

void jump_forget_everywhere(struct dbt_vcpu *dbt, uint64_t rip) {
    for (unsigned i = 0; i < JUMP_CONTEXTS; i++)
        if (dbt->context[i].key)
            forget_key(dbt->area, rip ^ dbt->context[i].key);
}

/* Does a relied-on kernel mapping still hold? Where A is clear, the next fetch must set it: behind a flush
 * the processor would. */
static bool still_holds(struct vcpu *vcpu, const struct relied_page *page) {
    struct translation translation;
    return paging_peek(vcpu, page->linear, &translation) && code_is_told(vcpu, translation.global) &&
           translation.executable && translation.accessed &&
           guest_mem_offset(vcpu->mem, translation.gpa) == page->ram_page;
}

static void kernel_changed(struct dbt_vcpu *dbt) {
    dbt->kernel_generation++;
    dbt->area->hot.crossing.key[0] = 0;
    block_unlink_cross_page(dbt);
    light_fill(dbt->relied, 0, sizeof dbt->relied);
    dbt->relied_count = 0;
}

void jump_serve_flush(struct vcpu *vcpu) {
    struct dbt_vcpu *dbt = vcpu->dbt;
    struct code_flush *flush = &vcpu->code_flush;
    bool changed = false;
    forget_local(dbt);
    if (flush->global) {
        for (unsigned i = 0; i < 1u << RELIED_BITS && !changed; i++)
            changed = dbt->relied[i].linear && !still_holds(vcpu, &dbt->relied[i]);
    }
    for (unsigned i = 0; i < flush->pages && !changed; i++) {
        const struct relied_page *slot = relied_slot(dbt, flush->page[i]);
        if (slot->linear)
            changed = !still_holds(vcpu, slot);
        if (bloom_test(dbt, flush->page[i]))
            vcpu->space->generation = ++vcpu->generation_counter;
    }
    if (flush->global) /* more pages than could be noted: the user half may have changed as well */
        vcpu->space->generation = ++vcpu->generation_counter;
    if (changed)
        kernel_changed(dbt);
    flush->pages = 0;
    flush->global = false;
}
