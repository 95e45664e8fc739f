/* Running code of the persistent caches (docs/cache-format.md, dbt/portable.h) where it lies.
 *
 * When the translator is asked for code that it has not met, the caches are searched for an entry at that
 * place, by address or by the bytes there. The unit that it belongs to, on one page or two, is compared byte
 * by byte with the guest's memory and becomes a block, but that its code is shared, read-only and in use in
 * this vCPU at one place at a time: links to other blocks are words of this vCPU's own mapping, and so are
 * the constants that hold guest addresses.
 *
 * Such a block is not in the hash of blocks: its unit's entries stand in the file, in the order of their
 * addresses. It dies as a whole, when a byte of its range is written or one of its pages stands elsewhere.
 * Its sites have their numbers from the start and are filled in when one is first asked for.
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

#define FOUND_BITS 12
#define RECENT_IMAGES 4u
#define SURE 64u
#define AHEAD_MAX 512u
#define SURE_MAX 1024u

struct cached {
    unsigned count;
    /* Entries that were found lately, by address: most are asked for more than once. */
    struct found {
        uint64_t rip;
        uint32_t block, unit;
        uint32_t host; /* hit.host */
        uint16_t guest, abi_data;
        uint8_t cache; /* as block.cache; 0: none */
    } found[1u << FOUND_BITS];
    struct cached_file {
        struct ntc_mapping mapping;
        struct ntc_slides slides;
        uint64_t *slide;
        bool *known;
        uint16_t *sure;   /* hits of the image where it stands, less what it did not have there */
        uint8_t *entered; /* a bit for each entry that was once asked for */
        uint32_t recent[RECENT_IMAGES]; /* images that units came from, the latest first */
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
                               .known = calloc(images + 1, sizeof *to->known),
                               .sure = calloc(images + 1, sizeof *to->sure),
                               .entered = calloc(file->view.count[NTC_SECTION_ENTRIES] / 8 + 1, 1)};
    to->slides = (struct ntc_slides){.slide = to->slide, .known = to->known, .count = (uint32_t)images};
    const struct ntc_room room = {.at = dbt->rx + dbt->reached, .size = dbt->reach - dbt->reached};
    int result = to->slide && to->known && to->sure && to->entered
                     ? ntc_mapping_create(&to->mapping, file, &room, error)
                     : ntc_fail(error, NTC_FAULT_MEMORY, "cache '%s': no memory", file->path);
    if (result) {
        ntc_mapping_destroy(&to->mapping);
        free(to->slide);
        free(to->known);
        free(to->sure);
        free(to->entered);
        return result;
    }
    dbt->reached += align_up(to->mapping.size, PAGE_SIZE);
    for (unsigned i = 0; i < RUNTIME_SLOTS_USED; i++)
        to->mapping.slots[i] = (uint64_t)dbt_stub(dbt, (enum runtime_slot)i);
    ntc_mapping_populate(&to->mapping);
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
        free(dbt->cached->file[i].sure);
        free(dbt->cached->file[i].entered);
    }
    free(dbt->cached);
    dbt->cached = NULL;
}

uint64_t *cached_slot(const struct dbt_vcpu *dbt, const struct block *block, uint32_t slot) {
    return &dbt->cached->file[block->cache - 1].mapping.slots[slot];
}

void cached_skip_group(const struct dbt_vcpu *dbt, const struct block *block, const struct site *site) {
    dbt->cached->file[block->cache - 1].mapping.slots[site->cold] |= 1ull << site->target;
}

bool cached_holds(const struct dbt_vcpu *dbt, uint64_t host_pc) {
    for (unsigned i = 0; dbt->cached && i < dbt->cached->count; i++)
        if (ntc_mapping_holds(&dbt->cached->file[i].mapping, host_pc))
            return true;
    return false;
}

/* A unit's first slot: the number of its block's first site, which its code reads the low half of, and the
 * block's number and switches above it; or what is left of an earlier use, or of none. */
#define INDEX_BITS (PORTABLE_SITE_SWITCHES - 32)
static uint64_t use_word(uint32_t first_site, uint32_t index) {
    return (uint64_t)index << 32 | first_site;
}

/* The block that a unit is in use as, or NO_INDEX. */
static uint32_t block_of(const struct dbt_vcpu *dbt, unsigned cache, uint32_t number, uint32_t first_slot) {
    const struct ntc_mapping *mapping = &dbt->cached->file[cache].mapping;
    if (!ntc_mapping_is_prepared(mapping, first_slot)) /* so that its page is not even read */
        return NO_INDEX;
    uint64_t word = mapping->slots[first_slot + PORTABLE_SITE_SLOT];
    uint32_t index = (uint32_t)(word >> 32) & ((1u << INDEX_BITS) - 1);
    if (!code_part_of_block(dbt, index))
        return NO_INDEX;
    const struct block *block = &dbt->block[index];
    return block->first_site == (uint32_t)word && block->cache == cache + 1 && block->cached_unit == number &&
                   !block->dead
               ? index
               : NO_INDEX;
}

static const struct ntc_view *view_of(const struct dbt_vcpu *dbt, const struct block *block) {
    return dbt->cached->file[block->cache - 1].mapping.view;
}

uint32_t cached_block_at(const struct dbt_vcpu *dbt, uint64_t host_pc, struct guest_place *place) {
    for (unsigned i = 0; i < dbt->cached->count; i++) {
        const struct ntc_mapping *mapping = &dbt->cached->file[i].mapping;
        uint32_t number, offset;
        struct ntc_unit unit;
        struct ntc_point point;
        if (!ntc_mapping_find(mapping, host_pc, &number, &offset))
            continue;
        ntc_unit_again(mapping->view, number, &unit);
        if (!ntc_map_find(&unit, offset, &point)) /* what holds at the unit's start: of a signer's blunder */
            point = (struct ntc_point){0};
        const struct ntc_state *state = &unit.states[point.state];
        *place = (struct guest_place){
            .guest = point.guest, .flags_saved = state->flags & NTC_STATE_FLAGS_SAVED, .state = state};
        return block_of(dbt, i, number, unit.first_slot);
    }
    return NO_INDEX;
}

uint64_t cached_remake(const struct dbt_vcpu *dbt, uint64_t host_pc) {
    for (unsigned i = 0; i < dbt->cached->count; i++) {
        const struct ntc_mapping *mapping = &dbt->cached->file[i].mapping;
        uint32_t number, offset;
        struct ntc_unit unit;
        struct ntc_point point, maker;
        struct ntc_map_reader reader;
        if (!ntc_mapping_find(mapping, host_pc, &number, &offset))
            continue;
        ntc_unit_again(mapping->view, number, &unit);
        if (!ntc_map_find(&unit, offset, &point) || !(unit.states[point.state].flags & PORTABLE_STATE_REMADE))
            return 0;
        ntc_map_read(&reader, &unit);
        while (ntc_map_next(&reader, &maker) > 0)
            if (maker.guest == point.guest && maker.host < unit.code_length &&
                maker.state < unit.state_count && unit.states[maker.state].flags & PORTABLE_STATE_REMAKES)
                return (uint64_t)ntc_mapping_code(mapping, &unit) + maker.host;
        return 0;
    }
    return 0;
}

/* The block with the site: their numbers ascend together. */
static struct block *block_with_site(struct dbt_vcpu *dbt, uint32_t site) {
    const struct code_part *part = code_part_of_site(dbt, site);
    uint32_t low = part->block, high = code_blocks_end(dbt, part);
    while (low < high) { /* the last one whose first site is not behind it */
        uint32_t middle = low + (high - low) / 2;
        if (dbt->block[middle].first_site <= site)
            low = middle + 1;
        else
            high = middle;
    }
    return &dbt->block[low - 1];
}

/* A field's bytes as the guest has them; they may lie across a unit's pages. */
static int64_t field_value(const struct guest_mem *mem, const uint64_t ram[2], uint32_t head,
                           const struct ntc_field *field) {
    uint64_t value = 0;
    for (unsigned i = 0; i < field->size; i++) {
        uint32_t offset = field->offset + i;
        value |= (uint64_t)mem->base[offset < head ? ram[0] + offset : ram[1] + (offset - head)] << 8 * i;
    }
    unsigned unused = 64 - 8u * field->size;
    return (int64_t)(value << unused) >> unused;
}

/* Bytes on the block's first page. */
static uint32_t head_of(const struct block *block) {
    return block->ram_page2 == GUEST_NO_RAM ? block->guest_length
                                            : (uint32_t)(PAGE_SIZE - (block->rip & (PAGE_SIZE - 1)));
}

struct site *cached_site(struct dbt_vcpu *dbt, uint32_t index) {
    const struct block *block = block_with_site(dbt, index);
    struct site *site = &dbt->site[index];
    const struct ntc_view *view = view_of(dbt, block);
    struct ntc_unit unit;
    struct ntc_point point;
    ntc_unit_again(view, block->cached_unit, &unit);
    const struct ntc_site *from = &unit.sites[index - block->first_site];
    /* Only a writer that does not check what it signs can have made such a site: the unit is begun again. */
    if (!ntc_unit_site(&unit, index - block->first_site) ||
        !portable_site_read(site, from, block->entry[0], unit.first_slot, unit.slots, unit.code_offset))
        *site = (struct site){.kind = SITE_DEAD};
    site->block = (uint32_t)(block - dbt->block);
    if (site->kind == SITE_LINK &&
        from->flags & NTC_SITE_TARGET_FIELD) { /* as it was when the unit was compared: else it were dead */
        const struct ntc_field *field = &unit.fields[from->target];
        const uint64_t ram[2] = {block->ram_offset, block->ram_page2};
        site->target = (int32_t)(field->offset + field->size +
                                 field_value(dbt->area->vcpu.mem, ram, head_of(block), field));
    }
    if (site->kind == SITE_MEMORY && ntc_map_find(&unit, from->host, &point))
        site->state = (uint16_t)point.state;
    site->ready = true;
    return site;
}

const struct ntc_state *cached_state(const struct dbt_vcpu *dbt, const struct site *site) {
    return &view_of(dbt, &dbt->block[site->block])->states[site->state];
}

static struct found *found_at(const struct dbt_vcpu *dbt, uint64_t rip) {
    return &dbt->cached->found[rip * 0x9e3779b97f4a7c15ull >> (64 - FOUND_BITS)];
}

/* Was it this block's unit that was found there? Numbers of blocks are used again after a flush. */
static bool found_in(const struct found *found, const struct block *block, uint64_t rip) {
    return found->rip == rip && found->cache && found->cache == block->cache &&
           found->unit == block->cached_unit && found->guest == rip - block->rip;
}

static uint32_t entry_host(const struct ntc_view *view, const struct block *block, uint32_t host,
                           uint16_t abi_data, bool flags_saved) {
    uint32_t at = host + (flags_saved ? 0 : (uint32_t)(int32_t)(int16_t)abi_data);
    return block->entry[0] + (at < view->units[block->cached_unit].code_length ? at : host);
}

uint32_t cached_entry(const struct dbt_vcpu *dbt, const struct block *block, uint64_t rip, bool flags_saved) {
    struct ntc_hit hit;
    const struct ntc_view *view = view_of(dbt, block);
    const struct found *found = found_at(dbt, rip);
    if (found_in(found, block, rip))
        return entry_host(view, block, found->host, found->abi_data, flags_saved);
    if (!ntc_search_unit(view, block->cached_unit, rip - block->rip, &hit))
        return NO_INDEX;
    return entry_host(view, block, hit.host, hit.abi_data, flags_saved);
}

void cached_forget_jumps(struct dbt_vcpu *dbt, const struct block *block) {
    const struct ntc_view *view = view_of(dbt, block);
    struct ntc_unit unit;
    struct ntc_unit_entry entry;
    uint64_t at = 0;
    ntc_unit_again(view, block->cached_unit, &unit);
    while (ntc_unit_entry(view, block->cached_unit, &unit, &at, &entry))
        jump_forget_everywhere(dbt, block->rip + entry.guest);
}

/* -- Putting a unit to use -- */

/* A unit at the place where it is wanted. */
struct candidate {
    unsigned cache;
    uint32_t number; /* of the unit */
    uint64_t rip;    /* of its first byte */
    uint64_t slide;
    uint64_t ram[2]; /* of its first byte; of its second page, or GUEST_NO_RAM */
    uint32_t head;   /* bytes on its first page */
    bool told;       /* as far as pages other than the entry's go */
};

/* Can the unit run at a place with this slide as its code stands? Constants may differ, code may not. */
static bool code_fits(const struct ntc_unit *unit, uint64_t slide) {
    if (!unit->slot_count || !unit->entry_count)
        return false;
    for (unsigned i = 0; i < unit->reloc_count; i++) {
        const struct ntc_reloc *reloc = &unit->relocs[i];
        if (reloc->where == NTC_PLACE_CODE && slide)
            return false;
        if (reloc->where == NTC_PLACE_CONST && reloc->width != 8)
            return false;
    }
    return true;
}

static uint64_t reloc_value(const struct vcpu *vcpu, const struct candidate *at, const struct ntc_unit *unit,
                            const struct ntc_reloc *reloc) {
    uint64_t addend = (uint64_t)reloc->addend;
    const struct ntc_field *field;
    switch (reloc->kind) {
    case NTC_RELOC_ADDRESS:
        return at->rip + addend;
    case NTC_RELOC_SLIDE:
        return vcpu->dbt->cached->file[at->cache].slide[reloc->index] + addend;
    default:
        field = &unit->fields[reloc->index];
        return (uint64_t)field_value(vcpu->mem, at->ram, at->head, field) + addend +
               (reloc->kind == NTC_RELOC_FIELD_PC ? at->rip + field->offset + field->size : 0);
    }
}

/* Most code was found in this kernel where it stands now: it will not move any more. */
static bool is_sure_kernel(const struct cached_file *file, uint32_t image) {
    return file->mapping.view->images[image].kind == NTC_IMAGE_KERNEL && file->sure[image] >= SURE;
}

static void set_words(const struct vcpu *vcpu, const struct candidate *at, const struct ntc_unit *unit,
                      uint64_t use) {
    struct ntc_mapping *mapping = &vcpu->dbt->cached->file[at->cache].mapping;
    uint64_t *constant = mapping->consts + unit->first_const;
    if (UNLIKELY(at->slide && mapping->likely_consts &&
                 is_sure_kernel(&vcpu->dbt->cached->file[at->cache], unit->image)))
        ntc_mapping_write_consts(mapping);
    for (unsigned i = 0; i < unit->reloc_count; i++) {
        const struct ntc_reloc *reloc = &unit->relocs[i];
        if (reloc->where != NTC_PLACE_CONST)
            continue;
        uint64_t value = reloc_value(vcpu, at, unit, reloc);
        if (constant[reloc->place] != value)
            constant[reloc->place] = value;
    }
    ntc_mapping_prepare(mapping, unit->first_slot, unit->slot_count);
    mapping->slots[unit->first_slot + PORTABLE_SITE_SLOT] = use;
    for (unsigned i = PORTABLE_SITE_SLOT + 1; i < unit->slot_count; i++) {
        uint64_t value = (uint64_t)mapping->code + unit->slots[i];
        if (mapping->slots[unit->first_slot + i] != value)
            mapping->slots[unit->first_slot + i] = value;
    }
}

static uint32_t put_to_use(struct vcpu *vcpu, const struct candidate *at, const struct ntc_unit *unit,
                           uint32_t mode) {
    struct dbt_vcpu *dbt = vcpu->dbt;
    struct ntc_mapping *mapping = &dbt->cached->file[at->cache].mapping;
    if (!code_make_room(dbt, 0, 1, unit->site_count, 0))
        return NO_INDEX;
    uint32_t index = dbt->blocks, code = (uint32_t)(distance(dbt, mapping) + unit->code_offset);
    struct block *block = &dbt->block[index];
    *block = (struct block){.rip = at->rip,
                            .ram_offset = at->ram[0],
                            .ram_page2 = at->ram[1],
                            .mode = mode,
                            .host = (uint32_t)dbt->used,
                            .entry = {code, code},
                            .incoming = NO_INDEX,
                            .first_site = dbt->sites,
                            .first_pc = dbt->pcs,
                            .sites = unit->site_count,
                            .guest_length = (uint16_t)unit->guest_length,
                            .cache = (uint8_t)(at->cache + 1),
                            .cached_unit = at->number};
    ntc_mapping_reach(mapping, unit);
    set_words(vcpu, at, unit, use_word(block->first_site, index));
    /* The sites are filled in when they are asked for; what is there is all zero. */
    dbt->sites += unit->site_count;
    dbt->blocks++;
    dbt->stats.cached_units++;
    block_publish(vcpu, index);
    return index;
}

/* Where the unit that a hit is an entry of would lie, if it is entered at vcpu->rip. False: it cannot. The
 * entry's page holds code already. */
static bool place_unit(struct vcpu *vcpu, const struct ntc_hit *hit, const struct ntc_unit_record *record,
                       uint64_t ram_offset, struct candidate *at) {
    at->number = hit->unit;
    at->rip = vcpu->rip - hit->guest;
    at->slide = vcpu->rip - hit->address;
    at->ram[0] = ram_offset - hit->guest;
    at->ram[1] = GUEST_NO_RAM;
    at->head = record->guest_length;
    at->told = true;
    uint64_t first = at->rip & PAGE_MASK, last = (at->rip + record->guest_length - 1) & PAGE_MASK, other;
    if (first == last)
        return true;
    if (last != first + PAGE_SIZE)
        return false;
    at->head = (uint32_t)(last - at->rip);
    bool in_first = (vcpu->rip & PAGE_MASK) == first;
    if (code_page(vcpu, in_first ? last : first, &other, &at->told) || other == GUEST_NO_RAM)
        return false;
    at->ram[0] = in_first ? ram_offset - hit->guest : other + (at->rip - first);
    at->ram[1] = in_first ? other : ram_offset & PAGE_MASK;
    return true;
}

static bool bytes_match(const struct vcpu *vcpu, const struct candidate *at, const struct ntc_unit *unit) {
    const struct ntc_slides *slides = &vcpu->dbt->cached->file[at->cache].slides;
    const uint8_t *base = vcpu->mem->base;
    return ntc_unit_compare(unit, at->slide, slides, base + at->ram[0], 0, at->head) &&
           (at->head == unit->guest_length || ntc_unit_compare(unit, at->slide, slides, base + at->ram[1],
                                                               at->head, unit->guest_length - at->head));
}

/* A unit that is in use: here, elsewhere, or no longer as the guest's tables or its mode have it. */
static bool in_use_here(struct vcpu *vcpu, uint32_t index, const struct candidate *at, uint32_t mode) {
    const struct block *block = &vcpu->dbt->block[index];
    if (block->rip != at->rip)
        return false;
    if (block->mode == mode && block->ram_offset == at->ram[0] && block->ram_page2 == at->ram[1])
        return true;
    block_kill(vcpu->dbt, index);
    return false;
}

/* What is looked at next of a unit that is to be put to use lies in half a dozen places, none of them in the
 * host's caches: ask for all of them at once. */
static void ask_ahead(const void *from, uint64_t length) {
    const uint8_t *at = from;
    for (uint64_t i = 0; i < length && i < AHEAD_MAX; i += 64)
        __builtin_prefetch(at + i);
}

static void ask_unit_ahead(const struct vcpu *vcpu, const struct candidate *at,
                           const struct ntc_unit_record *record) {
    const struct ntc_mapping *mapping = &vcpu->dbt->cached->file[at->cache].mapping;
    const struct ntc_view *view = mapping->view;
    ask_ahead(view->bytes + record->bytes, record->guest_length);
    ask_ahead(vcpu->mem->base + at->ram[0], at->head);
    if (at->ram[1] != GUEST_NO_RAM)
        ask_ahead(vcpu->mem->base + at->ram[1], record->guest_length - at->head);
    ask_ahead(view->fields + record->first_field, record->field_count * sizeof *view->fields);
    ask_ahead(view->relocs + record->first_reloc, record->reloc_count * sizeof *view->relocs);
    ask_ahead(mapping->slots + record->first_slot, record->slot_count * sizeof *mapping->slots);
    ask_ahead(view->slots + record->first_slot, record->slot_count * sizeof *view->slots);
    ask_ahead(mapping->consts + record->first_const, record->const_count * sizeof *mapping->consts);
}

static uint32_t try_hit(struct vcpu *vcpu, struct candidate *at, const struct ntc_hit *hit,
                        uint64_t ram_offset, uint32_t mode, bool only_used) {
    struct dbt_vcpu *dbt = vcpu->dbt;
    const struct ntc_view *view = dbt->cached->file[at->cache].mapping.view;
    const struct ntc_unit_record *record = &view->units[hit->unit];
    struct ntc_unit unit;
    if (!place_unit(vcpu, hit, record, ram_offset, at) ||
        record->first_slot >= dbt->cached->file[at->cache].mapping.slot_count)
        return NO_INDEX;
    uint32_t used = block_of(dbt, at->cache, hit->unit, record->first_slot);
    if (used != NO_INDEX && in_use_here(vcpu, used, at, mode))
        return used;
    if (only_used && used == NO_INDEX)
        ask_unit_ahead(vcpu, at, record);
    if (only_used || (used != NO_INDEX && !dbt->block[used].dead))
        return NO_INDEX;
    if (at->ram[1] != GUEST_NO_RAM) {
        block_hold_page(vcpu, at->ram[0] & PAGE_MASK);
        block_hold_page(vcpu, at->ram[1]);
    }
    if (ntc_unit_sketch(view, hit->unit, &unit))
        return NO_INDEX;
    if (!bytes_match(vcpu, at, &unit)) {
        dbt->stats.cache_differs++;
        return NO_INDEX;
    }
    if (ntc_unit_use(view, hit->unit, &unit) || !code_fits(&unit, at->slide))
        return NO_INDEX;
    return put_to_use(vcpu, at, &unit, mode);
}

static void note_image(struct cached_file *file, uint32_t image, uint64_t slide) {
    if (file->slide[image] != slide || !file->known[image])
        file->sure[image] = 0;
    file->sure[image] += file->sure[image] < SURE_MAX;
    file->slide[image] = slide;
    file->known[image] = true;
    unsigned at = 0;
    while (at < RECENT_IMAGES - 1 && file->recent[at] != image)
        at++;
    for (; at; at--)
        file->recent[at] = file->recent[at - 1];
    file->recent[0] = image;
}

/* Count each entry once. */
static void count_entry(struct dbt_vcpu *dbt, struct cached_file *file, uint32_t entry) {
    uint8_t bit = (uint8_t)(1u << entry % 8);
    dbt->stats.cached_blocks += !(file->entered[entry / 8] & bit);
    file->entered[entry / 8] |= bit;
}

static uint32_t try_hits(struct vcpu *vcpu, unsigned cache, struct ntc_search *search, uint64_t ram_offset,
                         uint32_t mode, bool only_used, bool *told) {
    struct cached_file *file = &vcpu->dbt->cached->file[cache];
    struct ntc_hit hit;
    while (ntc_search_next(search, &hit)) {
        struct candidate at = {.cache = cache};
        struct ntc_hit again;
        /* What cached_entry() would not find again is not entered. */
        if (!search->by_address && !ntc_search_unit(search->view, hit.unit, hit.guest, &again))
            continue;
        uint32_t index = try_hit(vcpu, &at, &hit, ram_offset, mode, only_used);
        if (index == NO_INDEX)
            continue;
        note_image(file, hit.image, at.slide);
        *told &= at.told;
        count_entry(vcpu->dbt, file, hit.entry);
        *found_at(vcpu->dbt, vcpu->rip) = (struct found){.rip = vcpu->rip,
                                                         .block = index,
                                                         .unit = hit.unit,
                                                         .host = hit.host,
                                                         .guest = (uint16_t)hit.guest,
                                                         .abi_data = hit.abi_data,
                                                         .cache = (uint8_t)(cache + 1)};
        return index;
    }
    return NO_INDEX;
}

static void set_modes(struct ntc_search *search, uint32_t mode) {
    search->also[0] = dbt_portable_key(mode, PORTABLE_SCALAR);
    search->also[1] = dbt_portable_key(mode, PORTABLE_VECTOR);
}

static bool lies_in(const struct cached_file *file, uint32_t image, uint64_t rip) {
    const struct ntc_image_record *record = ntc_view_image(file->mapping.view, image);
    return file->known[image] && record && rip - file->slide[image] - record->link_base < record->link_length;
}

/* Where an image has it that stands as it did. What is likely to be used is all looked at before anything
 * else: the rest may have to be loaded for being looked at. */
static uint32_t find_by_address(struct vcpu *vcpu, unsigned cache, uint32_t image, uint64_t ram_offset,
                                uint32_t mode, bool *told) {
    struct cached_file *file = &vcpu->dbt->cached->file[cache];
    struct ntc_search search;
    uint32_t index = NO_INDEX;
    for (unsigned unlikely = 0; unlikely < 2 && index == NO_INDEX; unlikely++) {
        ntc_search_bytes_at(&search, file->mapping.view, image, vcpu->rip - file->slide[image], unlikely,
                            vcpu->mem->base + ram_offset,
                            (uint32_t)(PAGE_SIZE - (ram_offset & (PAGE_SIZE - 1))),
                            dbt_portable_key(mode, PORTABLE_ANYWHERE));
        set_modes(&search, mode);
        /* Two of three entries are another one of a unit that is in use: that is seen without comparing. */
        struct ntc_search again = search;
        index = try_hits(vcpu, cache, &again, ram_offset, mode, true, told);
        if (index == NO_INDEX)
            index = try_hits(vcpu, cache, &search, ram_offset, mode, false, told);
    }
    return index;
}

/* First where the images that code came from lately have it; then by content, unless it lies in a kernel that
 * most code was found in where it stands: no part of it moves by itself. */
static uint32_t find_in(struct vcpu *vcpu, unsigned cache, uint64_t ram_offset, uint32_t mode, bool *told) {
    struct cached_file *file = &vcpu->dbt->cached->file[cache];
    const struct ntc_view *view = file->mapping.view;
    struct ntc_search search;
    for (unsigned i = 0; i < RECENT_IMAGES; i++) {
        uint32_t image = file->recent[i];
        if ((i && image == file->recent[0]) || !lies_in(file, image, vcpu->rip))
            continue;
        uint32_t index = find_by_address(vcpu, cache, image, ram_offset, mode, told);
        if (index != NO_INDEX)
            return index;
        bool sure = is_sure_kernel(file, image);
        file->sure[image] -= file->sure[image] != 0;
        if (sure)
            return NO_INDEX;
    }
    ntc_search_content(&search, view, vcpu->mem->base + ram_offset,
                       (uint32_t)(PAGE_SIZE - (ram_offset & (PAGE_SIZE - 1))),
                       dbt_portable_key(mode, PORTABLE_ANYWHERE));
    set_modes(&search, mode);
    return try_hits(vcpu, cache, &search, ram_offset, mode, false, told);
}

/* The block in use that was found here before, if it and its pages stand as they did. */
static uint32_t find_again(struct vcpu *vcpu, uint64_t ram_offset, uint32_t mode, bool *told) {
    const struct dbt_vcpu *dbt = vcpu->dbt;
    const struct found *found = found_at(dbt, vcpu->rip);
    if (!code_part_of_block(dbt, found->block))
        return NO_INDEX;
    const struct block *block = &dbt->block[found->block];
    if (block->dead || block->mode != mode || !found_in(found, block, vcpu->rip))
        return NO_INDEX;
    uint64_t from = vcpu->rip - block->rip, head = head_of(block), other;
    if (from >= block->guest_length ||
        ram_offset != (from < head ? block->ram_offset + from : block->ram_page2 + (from - head)))
        return NO_INDEX;
    if (block->ram_page2 == GUEST_NO_RAM)
        return found->block;
    bool other_told = true;
    if (code_page(vcpu, from < head ? block->rip + head : block->rip & PAGE_MASK, &other, &other_told) ||
        other != (from < head ? block->ram_page2 : block->ram_offset & PAGE_MASK))
        return NO_INDEX;
    *told &= other_told;
    return found->block;
}

uint32_t cached_find(struct vcpu *vcpu, uint64_t ram_offset, uint32_t mode, bool *told) {
    struct dbt_vcpu *dbt = vcpu->dbt;
    if (!dbt_portable_mode(mode | (dbt->cached_any_ring ? MODE_CPL0 : 0)))
        return NO_INDEX;
    uint64_t start = __builtin_ia32_rdtsc();
    uint32_t index = find_again(vcpu, ram_offset, mode, told);
    if (index == NO_INDEX) /* as in dbt_translate(): before its bytes are read */
        block_hold_page(vcpu, ram_offset & PAGE_MASK);
    for (unsigned i = 0; i < dbt->cached->count && index == NO_INDEX; i++)
        index = find_in(vcpu, i, ram_offset, mode, told);
    dbt->stats.cache_misses += index == NO_INDEX;
    dbt->stats.cache_tsc += __builtin_ia32_rdtsc() - start;
    return index;
}

/* -- Profiles -- */

void cached_profile(const struct dbt_vcpu *dbt, void (*add)(void *context, const struct portable_seen *seen),
                    void *context) {
    for (unsigned i = 0; dbt->cached && i < dbt->cached->count; i++) {
        const struct cached_file *file = &dbt->cached->file[i];
        const struct ntc_view *view = file->mapping.view;
        for (uint64_t k = 0; k < view->count[NTC_SECTION_ENTRIES]; k++) {
            struct ntc_unit unit;
            if (!(file->entered[k / 8] >> k % 8 & 1))
                continue;
            ntc_unit_again(view, view->entries[k].unit, &unit);
            add(context, &(struct portable_seen){
                             .image = ntc_view_string(view, view->images[unit.image].name),
                             .address = view->images[unit.image].link_base + view->entries[k].address,
                             .count = 1,
                             .hash = ntc_unit_hash(&unit),
                             .mode = unit.mode});
        }
    }
}

const char *cached_image(const struct dbt_vcpu *dbt, uint64_t *address) {
    for (unsigned i = 0; dbt->cached && i < dbt->cached->count; i++) {
        const struct cached_file *file = &dbt->cached->file[i];
        const struct ntc_view *view = file->mapping.view;
        for (uint32_t k = 0; k < view->count[NTC_SECTION_IMAGES]; k++) {
            uint64_t linked = *address - file->slide[k];
            if (!file->known[k] || linked - view->images[k].link_base >= view->images[k].link_length)
                continue;
            *address = linked;
            return ntc_view_string(view, view->images[k].name);
        }
    }
    return NULL;
}
