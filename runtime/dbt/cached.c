/* Running code of the persistent caches (docs/cache-format.md, dbt/portable.h) where it lies.
 *
 * A unit of a cache is one block. When the translator is asked for code that it has not met, the caches are
 * searched by the bytes at that place; what is found is compared byte by byte with the guest's memory and
 * becomes a block like any other, but that its code is shared, read-only and in use in this vCPU at one place
 * at a time: links to other blocks are words of this vCPU's own mapping, and so are the constants that hold
 * guest addresses.
 *
 * Runs with the guest's vector state live.
 */
#include "base/light.h"
#include "cache-format/map.h"
#include "cache-format/mapping.h"
#include "cpu/mode.h"
#include "dbt/portable.h"
#include "dbt/portable_site.h"
#include "dbt/unit.h"
#include "mem/guest_mem.h"

#include <errno.h>
#include <stdlib.h>

struct cached {
    unsigned count;
    struct cached_file {
        struct ntc_mapping mapping;
        struct ntc_slides slides;
        uint64_t *slide;
        bool *known;
        uint32_t recent_image; /* that the last unit came from */
    } file[DBT_CACHES_MAX];
};

/* The code of a block is named by its distance from the vCPU's own code region. */
static uint64_t distance(const struct dbt_vcpu *dbt, const struct ntc_mapping *mapping) {
    return (uint64_t)mapping->code - (uint64_t)dbt->rx;
}

int dbt_cache_attach(struct vcpu *vcpu, const struct ntc_file *file, struct ntc_error *error) {
    struct dbt_vcpu *dbt = vcpu->dbt;
    if (!dbt->cached)
        dbt->cached = calloc(1, sizeof *dbt->cached);
    if (!dbt->cached)
        return ntc_fail(error, NTC_FAULT_MEMORY, "cache '%s': no memory", file->path);
    struct cached *cached = dbt->cached;
    if (cached->count == DBT_CACHES_MAX)
        return ntc_fail(error, NTC_FAULT_LIMIT, "cache '%s': a VM takes %u caches at most", file->path,
                        DBT_CACHES_MAX);
    struct cached_file *to = &cached->file[cached->count];
    uint64_t images = file->view.count[NTC_SECTION_IMAGES];
    *to = (struct cached_file){.slide = calloc(images + 1, sizeof *to->slide),
                               .known = calloc(images + 1, sizeof *to->known)};
    to->slides = (struct ntc_slides){.slide = to->slide, .known = to->known, .count = (uint32_t)images};
    int result = to->slide && to->known
                     ? ntc_mapping_create(&to->mapping, file, dbt->rx + dbt->size + GIB / 2, error)
                     : ntc_fail(error, NTC_FAULT_MEMORY, "cache '%s': no memory", file->path);
    /* Links from the vCPU's own code are rel32s. */
    if (!result && distance(dbt, &to->mapping) + to->mapping.size > INT32_MAX)
        result =
            ntc_fail(error, NTC_FAULT_MEMORY, "cache '%s': no address space near the code cache", file->path);
    if (result) {
        ntc_mapping_destroy(&to->mapping);
        free(to->slide);
        free(to->known);
        return result;
    }
    for (unsigned i = 0; i < RUNTIME_SLOTS_USED; i++)
        to->mapping.slots[i] = (uint64_t)dbt_stub(dbt, (enum runtime_slot)i);
    cached->count++;
    return 0;
}

void cached_destroy(struct dbt_vcpu *dbt) {
    if (!dbt->cached)
        return;
    for (unsigned i = 0; i < dbt->cached->count; i++) {
        ntc_mapping_destroy(&dbt->cached->file[i].mapping);
        free(dbt->cached->file[i].slide);
        free(dbt->cached->file[i].known);
    }
    free(dbt->cached);
    dbt->cached = NULL;
}

uint64_t *cached_slot(const struct dbt_vcpu *dbt, const struct block *block, uint32_t slot) {
    return &dbt->cached->file[block->cache - 1].mapping.slots[slot];
}

bool cached_holds(const struct dbt_vcpu *dbt, uint64_t host_pc) {
    for (unsigned i = 0; dbt->cached && i < dbt->cached->count; i++)
        if (ntc_mapping_holds(&dbt->cached->file[i].mapping, host_pc))
            return true;
    return false;
}

/* The block that a unit is in use as, or NO_INDEX. Its first constant is the number of the block's first
 * site, or what is left of an earlier use. */
static uint32_t block_of(const struct dbt_vcpu *dbt, unsigned cache, uint32_t number, uint32_t first_const) {
    uint64_t site = dbt->cached->file[cache].mapping.consts[first_const + PORTABLE_SITE_CONST];
    if (site >= dbt->sites)
        return NO_INDEX;
    uint32_t index = dbt->site[site].block;
    const struct block *block = &dbt->block[index];
    return index < dbt->blocks && block->first_site == site && block->cache == cache + 1 &&
                   block->cached_unit == number && !block->dead
               ? index
               : NO_INDEX;
}

uint32_t cached_block_at(const struct dbt_vcpu *dbt, uint64_t host_pc, struct pc_entry *pc) {
    for (unsigned i = 0; i < dbt->cached->count; i++) {
        const struct ntc_mapping *mapping = &dbt->cached->file[i].mapping;
        uint32_t number, offset;
        struct ntc_unit unit;
        struct ntc_point point;
        if (!ntc_mapping_find(mapping, host_pc, &number, &offset))
            continue;
        if (ntc_unit_open(mapping->view, number, &unit) || !ntc_map_find(&unit, offset, &point))
            return NO_INDEX;
        *pc = (struct pc_entry){.guest = (uint16_t)(point.guest & 0x7fff),
                                .flags_saved = !!(unit.states[point.state].flags & NTC_STATE_FLAGS_SAVED)};
        return block_of(dbt, i, number, unit.first_const);
    }
    return NO_INDEX;
}

/* Can the unit run at rip as its code stands? Constants may differ, code may not. */
static bool code_fits(const struct ntc_unit *unit, uint64_t slide) {
    if (!unit->const_count || !unit->entry_count)
        return false;
    for (unsigned i = 0; i < unit->reloc_count; i++) {
        const struct ntc_reloc *reloc = &unit->relocs[i];
        if (reloc->kind < NTC_RELOC_RUNTIME_FIRST)
            continue;
        if (reloc->where == NTC_PLACE_CODE ? slide != 0 : reloc->kind != NTC_RELOC_ADDRESS)
            return false;
    }
    return true;
}

static void set_words(struct ntc_mapping *mapping, const struct ntc_unit *unit, uint64_t rip,
                      uint32_t first_site) {
    uint64_t *constant = mapping->consts + unit->first_const;
    for (unsigned i = 0; i < unit->reloc_count; i++) {
        const struct ntc_reloc *reloc = &unit->relocs[i];
        if (reloc->where != NTC_PLACE_CONST)
            continue;
        uint64_t value = rip + (uint64_t)reloc->addend;
        if (constant[reloc->place] != value)
            constant[reloc->place] = value;
    }
    constant[PORTABLE_SITE_CONST] = first_site;
    ntc_mapping_prepare(mapping, unit->first_slot, unit->slot_count);
    for (unsigned i = 0; i < unit->slot_count; i++)
        mapping->slots[unit->first_slot + i] = (uint64_t)mapping->code + unit->slots[i];
}

static bool add_sites(struct dbt_vcpu *dbt, struct block *block, const struct ntc_unit *unit, uint32_t index,
                      uint32_t code) {
    for (unsigned i = 0; i < unit->site_count; i++) {
        struct site *site = &dbt->site[dbt->sites];
        if (!portable_site_read(site, &unit->sites[i], code, unit->first_slot, unit->slots,
                                unit->code_offset))
            return false;
        site->block = index;
        dbt->sites++;
        block->sites++;
    }
    return true;
}

static uint32_t put_to_use(struct vcpu *vcpu, unsigned cache, const struct ntc_hit *hit,
                           const struct ntc_unit *unit, uint64_t ram_offset, uint32_t mode) {
    struct dbt_vcpu *dbt = vcpu->dbt;
    struct ntc_mapping *mapping = &dbt->cached->file[cache].mapping;
    uint32_t index = dbt->blocks, code = (uint32_t)(distance(dbt, mapping) + unit->code_offset);
    struct block *block = &dbt->block[index];
    uint32_t live = unit->abi_data >> 16;
    if (unit->site_count > BLOCK_MAX_INSNS * 4 || live >= unit->code_length)
        return NO_INDEX;
    *block = (struct block){.rip = vcpu->rip,
                            .ram_offset = ram_offset,
                            .ram_page2 = GUEST_NO_RAM,
                            .mode = mode,
                            .host = (uint32_t)dbt->used,
                            .entry = {code + live, code + hit->host},
                            .incoming = NO_INDEX,
                            .first_site = dbt->sites,
                            .first_pc = dbt->pcs,
                            .guest_length = (uint16_t)unit->guest_length,
                            .spilled = (uint16_t)unit->abi_data,
                            .cache = (uint8_t)(cache + 1),
                            .cached_unit = hit->unit};
    if (!add_sites(dbt, block, unit, index, code)) {
        dbt->sites = block->first_site;
        return NO_INDEX;
    }
    set_words(mapping, unit, vcpu->rip, block->first_site);
    dbt->blocks++;
    dbt->stats.cached_blocks++;
    block_publish(vcpu, index);
    return index;
}

/* Is it worth opening the unit: are its bytes those at `bytes`, unless it has fields? Its records are not
 * checked yet. */
static bool may_match(const struct ntc_view *view, uint32_t number, const uint8_t *bytes, uint32_t room) {
    const struct ntc_unit_record *record = &view->units[number];
    if (record->guest_length > room || record->bytes > view->count[NTC_SECTION_BYTES] ||
        record->guest_length > view->count[NTC_SECTION_BYTES] - record->bytes)
        return false;
    return record->field_count || light_equal(view->bytes + record->bytes, bytes, record->guest_length);
}

static uint32_t try_hits(struct vcpu *vcpu, unsigned cache, struct ntc_search *search, uint64_t ram_offset,
                         uint32_t mode) {
    struct dbt_vcpu *dbt = vcpu->dbt;
    struct cached_file *file = &dbt->cached->file[cache];
    const struct ntc_view *view = file->mapping.view;
    const uint8_t *bytes = vcpu->mem->base + ram_offset;
    uint32_t room = (uint32_t)(PAGE_SIZE - (ram_offset & (PAGE_SIZE - 1)));
    struct ntc_hit hit;
    while (ntc_search_next(search, &hit)) {
        struct ntc_unit unit;
        uint64_t slide = vcpu->rip - hit.address;
        if (hit.guest || !may_match(view, hit.unit, bytes, room)) {
            dbt->stats.cache_differs++;
            continue;
        }
        if (ntc_unit_open(view, hit.unit, &unit) || !code_fits(&unit, slide) ||
            block_of(dbt, cache, hit.unit, unit.first_const) != NO_INDEX ||
            !ntc_unit_compare(&unit, slide, &file->slides, bytes, 0, unit.guest_length))
            continue;
        uint32_t index = put_to_use(vcpu, cache, &hit, &unit, ram_offset, mode);
        if (index != NO_INDEX) {
            file->recent_image = hit.image;
            file->slide[hit.image] = slide;
            file->known[hit.image] = true;
            return index;
        }
    }
    return NO_INDEX;
}

/* First where the image that code came from last has it, if that image stands as it did; then by content. */
static uint32_t install_from(struct vcpu *vcpu, unsigned cache, uint64_t ram_offset, uint32_t mode) {
    struct cached_file *file = &vcpu->dbt->cached->file[cache];
    const struct ntc_view *view = file->mapping.view;
    struct ntc_search search;
    if (file->known[file->recent_image]) {
        ntc_search_address(&search, view, file->recent_image, vcpu->rip - file->slide[file->recent_image],
                           mode);
        uint32_t index = try_hits(vcpu, cache, &search, ram_offset, mode);
        if (index != NO_INDEX)
            return index;
    }
    ntc_search_content(&search, view, vcpu->mem->base + ram_offset,
                       (uint32_t)(PAGE_SIZE - (ram_offset & (PAGE_SIZE - 1))), mode);
    return try_hits(vcpu, cache, &search, ram_offset, mode);
}

uint32_t cached_install(struct vcpu *vcpu, uint64_t ram_offset, uint32_t mode) {
    struct dbt_vcpu *dbt = vcpu->dbt;
    if (!dbt->cached || !dbt_portable_mode(mode))
        return NO_INDEX;
    uint64_t start = __builtin_ia32_rdtsc();
    dbt_make_room(vcpu);
    /* As in dbt_translate(): before its bytes are read. */
    block_hold_page(vcpu, ram_offset & PAGE_MASK);
    uint32_t index = NO_INDEX;
    for (unsigned i = 0; i < dbt->cached->count && index == NO_INDEX; i++)
        index = install_from(vcpu, i, ram_offset, mode);
    dbt->stats.cache_misses += index == NO_INDEX;
    dbt->stats.cache_tsc += __builtin_ia32_rdtsc() - start;
    return index;
}
