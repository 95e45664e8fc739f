/* Laying a file out: sort, drop duplicates, place code by heat, number everything, settle what depends on the
 * numbers, digest. Every step is a function of the set of units alone, so equal inputs give equal bytes.
 */
#include "cache-format/writer_private.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "cache-format/file.h"
#include "cache-format/leaves.h"
#include "cache-format/map.h"

#define INT3 0xcc
#define LIKELY_RANGES 64u /* those that have no room are loaded when they are needed */

/* -- Order -- */

static int order_of(uint64_t a, uint64_t b) {
    return (a > b) - (a < b);
}

static int compare_images(const void *a, const void *b) {
    const struct kept_image *one = *(struct kept_image *const *)a, *other = *(struct kept_image *const *)b;
    int order = order_of(one->record.kind != NTC_IMAGE_KERNEL, other->record.kind != NTC_IMAGE_KERNEL);
    if (!order)
        order = strcmp(one->name, other->name);
    if (!order)
        order = strcmp(one->version, other->version);
    return order ? order : memcmp(&one->record, &other->record, sizeof one->record);
}

/* Two runs of bytes: the shorter first, then by contents. */
static int compare_runs(const void *a, uint64_t a_length, const void *b, uint64_t b_length) {
    int order = order_of(a_length, b_length);
    return order || !a_length ? order : memcmp(a, b, a_length);
}

static int compare_places(const struct kept_unit *one, const struct kept_unit *other) {
    int order = order_of(one->image, other->image);
    if (!order)
        order = order_of(one->unit.link_address, other->unit.link_address);
    if (!order)
        order = order_of(one->unit.mode, other->unit.mode);
    if (!order)
        order = order_of(one->unit.guest_length, other->unit.guest_length);
    if (!order)
        order = order_of(one->hash[0], other->hash[0]);
    return order ? order : order_of(one->hash[1], other->hash[1]);
}

/* Of the same place and bytes, which one is to be kept comes first. */
static int compare_units(const void *a, const void *b) {
    const struct kept_unit *one = *(struct kept_unit *const *)a, *other = *(struct kept_unit *const *)b;
    const struct ntc_unit *u = &one->unit, *v = &other->unit;
    int order = compare_places(one, other);
    if (!order)
        order = order_of(other->preference, one->preference);
    if (!order)
        order = order_of(v->generator, u->generator);
    if (!order)
        order = order_of(v->heat, u->heat);
    if (!order)
        order = compare_runs(u->code, u->code_length, v->code, v->code_length);
    if (!order)
        order = compare_runs(u->bytes, u->guest_length, v->bytes, v->guest_length);
    if (!order)
        order = compare_runs(u->sites, u->site_count * sizeof *u->sites, v->sites,
                             v->site_count * sizeof *v->sites);
    if (!order)
        order = compare_runs(u->relocs, u->reloc_count * sizeof *u->relocs, v->relocs,
                             v->reloc_count * sizeof *v->relocs);
    if (!order)
        order = compare_runs(u->links, u->link_count * sizeof *u->links, v->links,
                             v->link_count * sizeof *v->links);
    if (!order)
        order = compare_runs(u->fields, u->field_count * sizeof *u->fields, v->fields,
                             v->field_count * sizeof *v->fields);
    if (!order)
        order = compare_runs(u->map, u->map_length, v->map, v->map_length);
    if (!order)
        order = compare_runs(u->states, u->state_count * sizeof *u->states, v->states,
                             v->state_count * sizeof *v->states);
    if (!order)
        order = compare_runs(u->slots, u->slot_count * sizeof *u->slots, v->slots,
                             v->slot_count * sizeof *v->slots);
    if (!order)
        order = compare_runs(u->consts, u->const_count * sizeof *u->consts, v->consts,
                             v->const_count * sizeof *v->consts);
    if (!order)
        order = order_of(u->abi_data, v->abi_data);
    if (!order)
        order = order_of(u->host_features, v->host_features);
    if (!order)
        order = order_of(u->name_offset, v->name_offset);
    if (!order)
        order = strcmp(u->name, v->name);
    return order ? order : compare_runs(u->ir, u->ir_length, v->ir, v->ir_length);
}

static unsigned heat_class(uint32_t heat) {
    return heat ? 32u - (unsigned)__builtin_clz(heat) : 0;
}

static int compare_code_order(const void *a, const void *b) {
    const struct kept_unit *one = *(struct kept_unit *const *)a, *other = *(struct kept_unit *const *)b;
    int order = order_of(heat_class(other->rank), heat_class(one->rank));
    return order ? order : order_of(one->number, other->number);
}

static int sort_images(struct layout *layout, const struct ntc_writer *writer) {
    layout->image = calloc(writer->images + 1ull, sizeof *layout->image);
    if (!layout->image)
        return -ENOMEM;
    for (uint32_t i = 0; i < writer->images; i++)
        layout->image[i] = &writer->image[i];
    qsort(layout->image, writer->images, sizeof *layout->image, compare_images);
    for (uint32_t i = 0; i < writer->images; i++) {
        layout->image[i]->number = i;
        layout->image[i]->laid = layout->image[i]->record;
    }
    return 0;
}

static int sort_units(struct layout *layout, const struct ntc_writer *writer) {
    layout->unit = calloc(writer->units + 1ull, sizeof *layout->unit);
    if (!layout->unit)
        return -ENOMEM;
    for (uint32_t i = 0; i < writer->units; i++) {
        struct kept_unit *kept = writer->unit[i];
        kept->image = writer->image[kept->unit.image].number;
        kept->unit.heat = kept->rank;
        layout->unit[i] = kept;
    }
    qsort(layout->unit, writer->units, sizeof *layout->unit, compare_units);
    for (uint32_t i = 0; i < writer->units; i++) {
        struct kept_unit *kept = layout->unit[i];
        if (layout->units && !compare_places(layout->unit[layout->units - 1], kept)) {
            struct kept_unit *before = layout->unit[layout->units - 1];
            if (kept->rank > before->rank)
                before->rank = before->unit.heat = kept->rank;
            layout->summary.duplicates++;
            continue;
        }
        kept->number = layout->units;
        layout->unit[layout->units++] = kept;
    }
    qsort(layout->unit, layout->units, sizeof *layout->unit, compare_code_order);
    uint64_t code = 0;
    for (uint32_t i = 0; i < layout->units; i++) {
        struct kept_unit *kept = layout->unit[i];
        kept->number = i;
        code += kept->unit.code_length;
        if (writer->options.likely_code && code > writer->options.likely_code)
            kept->unit.heat = 0;
        layout->image[kept->image]->laid.unit_count++;
        layout->likely_units += kept->unit.heat != 0;
    }
    return 0;
}

/* -- Sections -- */

static int intern32(struct pool *pool, const void *bytes, uint64_t length, uint32_t *offset) {
    uint64_t at;
    int result = pool_intern(pool, bytes, length, &at);
    if (!result && at + length > NTC_LOAD_MAX)
        result = -E2BIG;
    *offset = (uint32_t)at;
    return result;
}

static int add_bytes(struct pool *pool, const void *bytes, uint64_t length, uint64_t record,
                     uint32_t *first) {
    if (pool->length + length > NTC_LOAD_MAX)
        return -E2BIG;
    *first = (uint32_t)(pool->length / record);
    return pool_add(pool, bytes, length) ? 0 : -ENOMEM;
}

/* Sites, relocations and fields name images by the file's numbers. */
static int add_tables(struct layout *layout, const struct ntc_writer *writer, struct kept_unit *kept) {
    const struct ntc_unit *unit = &kept->unit;
    struct ntc_unit_record *record = &kept->record;
    int result = add_bytes(&layout->section[NTC_SECTION_SITES], unit->sites,
                           unit->site_count * sizeof *unit->sites, sizeof *unit->sites, &record->first_site);
    if (!result)
        result =
            add_bytes(&layout->section[NTC_SECTION_RELOCS], unit->relocs,
                      unit->reloc_count * sizeof *unit->relocs, sizeof *unit->relocs, &record->first_reloc);
    if (!result)
        result =
            add_bytes(&layout->section[NTC_SECTION_FIELDS], unit->fields,
                      unit->field_count * sizeof *unit->fields, sizeof *unit->fields, &record->first_field);
    if (result)
        return result;
    struct ntc_reloc *relocs = (struct ntc_reloc *)(void *)layout->section[NTC_SECTION_RELOCS].bytes;
    for (unsigned i = 0; i < unit->reloc_count; i++)
        if (unit->relocs[i].kind == NTC_RELOC_SLIDE)
            relocs[record->first_reloc + i].index = (uint16_t)writer->image[unit->relocs[i].index].number;
    struct ntc_field *fields = (struct ntc_field *)(void *)layout->section[NTC_SECTION_FIELDS].bytes;
    for (unsigned i = 0; i < unit->field_count; i++)
        fields[record->first_field + i].image =
            unit->fields[i].kind == NTC_FIELD_ANY ? 0 : (uint16_t)writer->image[unit->fields[i].image].number;
    return 0;
}

/* The map with the file's state numbers. */
static int add_map(struct layout *layout, struct kept_unit *kept, struct ntc_map_builder *builder) {
    const struct ntc_unit *unit = &kept->unit;
    struct ntc_map_reader reader;
    struct ntc_point point;
    uint32_t before = 0, number = 0;
    int more;
    ntc_map_builder_reset(builder);
    ntc_map_read(&reader, unit);
    while ((more = ntc_map_next(&reader, &point)) > 0) {
        if (point.state != before) {
            uint64_t at;
            if (pool_intern(&layout->section[NTC_SECTION_STATES], &unit->states[point.state],
                            sizeof(struct ntc_state), &at))
                return -ENOMEM;
            number = (uint32_t)(at / sizeof(struct ntc_state));
            before = point.state;
        }
        point.state = number;
        int result = ntc_map_add(builder, &point);
        if (result)
            return result;
    }
    if (builder->length > NTC_UNIT_MAP_MAX) /* the file's state numbers may be longer than the unit's were */
        return -E2BIG;
    kept->record.map_length = (uint16_t)builder->length;
    return add_bytes(&layout->section[NTC_SECTION_MAPS], builder->bytes, builder->length, 1,
                     &kept->record.map);
}

static int place_unit(struct layout *layout, const struct ntc_writer *writer, struct kept_unit *kept,
                      struct ntc_map_builder *builder) {
    const struct ntc_unit *unit = &kept->unit;
    struct ntc_unit_record *record = &kept->record;
    struct pool *code = &layout->section[NTC_SECTION_CODE], *slots = &layout->section[NTC_SECTION_SLOTS];
    *record = (struct ntc_unit_record){.link_address = unit->link_address,
                                       .guest_length = (uint16_t)unit->guest_length,
                                       .mode = unit->mode,
                                       .image = (uint16_t)kept->image,
                                       .code_length = unit->code_length,
                                       .slot_count = unit->slot_count,
                                       .const_count = unit->const_count,
                                       .site_count = unit->site_count,
                                       .reloc_count = unit->reloc_count,
                                       .field_count = unit->field_count,
                                       .entry_count = unit->entry_count,
                                       .host_features = unit->host_features,
                                       .generator = (uint8_t)unit->generator,
                                       .abi_data = unit->abi_data};
    int result = pool_align(code, NTC_CODE_ALIGN, INT3);
    if (!result)
        result = add_bytes(code, unit->code, unit->code_length, 1, &record->code);
    if (!result)
        result = add_bytes(slots, unit->slots, unit->slot_count * sizeof *unit->slots, sizeof *unit->slots,
                           &record->first_slot);
    if (!result)
        result =
            add_bytes(&layout->section[NTC_SECTION_CONSTS], unit->consts,
                      unit->const_count * sizeof *unit->consts, sizeof *unit->consts, &record->first_const);
    if (!result)
        result = add_tables(layout, writer, kept);
    if (!result)
        result = add_map(layout, kept, builder);
    if (!result)
        result =
            intern32(&layout->section[NTC_SECTION_BYTES], unit->bytes, unit->guest_length, &record->bytes);
    if (!result && !pool_add(&layout->section[NTC_SECTION_PLACES], &record->code, sizeof record->code))
        result = -ENOMEM;
    if (result)
        return result;
    uint64_t *slot = (uint64_t *)(void *)slots->bytes + record->first_slot;
    for (unsigned i = 0; i < unit->slot_count; i++)
        slot[i] += record->code;
    layout->summary.guest_bytes += unit->guest_length;
    layout->summary.code_bytes += unit->code_length;
    layout->summary.slots += unit->slot_count;
    layout->summary.consts += unit->const_count;
    return 0;
}

/* What only tools read of a unit. */
static int add_note(struct layout *layout, const struct kept_unit *kept) {
    const struct ntc_unit *unit = &kept->unit;
    struct pool *links = &layout->section[NTC_SECTION_LINKS], *ir = &layout->section[NTC_SECTION_IR];
    struct ntc_note_record note = {.name_offset = unit->name_offset,
                                   .ir_length = unit->ir_length,
                                   .ir = unit->ir_length ? ir->length : 0,
                                   .heat = unit->heat,
                                   .first_link = (uint32_t)(links->length / sizeof *unit->links),
                                   .link_count = unit->link_count};
    memcpy(note.bytes_hash, kept->hash, sizeof note.bytes_hash);
    int result =
        intern32(&layout->section[NTC_SECTION_STRINGS], unit->name, strlen(unit->name) + 1, &note.name);
    if (!result && (!pool_add(links, unit->links, unit->link_count * sizeof *unit->links) ||
                    (unit->ir_length && !pool_add(ir, unit->ir, unit->ir_length)) ||
                    !pool_add(&layout->section[NTC_SECTION_NOTES], &note, sizeof note)))
        result = -ENOMEM;
    return result;
}

/* CODE, SLOTS and CONSTS have their sizes: write the distances between them, and site numbers, into the code.
 */
static void settle(struct layout *layout) {
    uint8_t *code = layout->section[NTC_SECTION_CODE].bytes;
    uint64_t slots = layout->section[NTC_SECTION_CODE].length;
    uint64_t consts = slots + layout->section[NTC_SECTION_SLOTS].length;
    for (uint32_t i = 0; i < layout->units; i++) {
        const struct kept_unit *kept = layout->unit[i];
        for (uint32_t j = 0; j < kept->unit.link_count; j++) {
            const struct ntc_link *link = &kept->unit.links[j];
            uint64_t place = kept->record.code + (uint64_t)link->place;
            uint64_t from = place + sizeof(uint32_t) + link->addend, value;
            if (link->kind == NTC_RELOC_SLOT)
                value = slots + (kept->record.first_slot + (uint64_t)link->index) * sizeof(uint64_t) - from;
            else if (link->kind == NTC_RELOC_CONST)
                value = consts + (kept->record.first_const + (uint64_t)link->index) * sizeof(uint64_t) - from;
            else if (link->kind == NTC_RELOC_RUNTIME)
                value = slots + link->index * sizeof(uint64_t) - from;
            else if (link->kind == NTC_RELOC_SITE)
                value = kept->record.first_site + (uint64_t)link->index;
            else
                continue;
            uint32_t word = (uint32_t)value;
            memcpy(code + place, &word, sizeof word);
        }
    }
}

static int add_images(struct layout *layout, const struct ntc_writer *writer) {
    struct pool *strings = &layout->section[NTC_SECTION_STRINGS];
    for (uint32_t i = 0; i < writer->images; i++) {
        struct kept_image *image = layout->image[i];
        int result = intern32(strings, image->name, strlen(image->name) + 1, &image->laid.name);
        if (!result)
            result = intern32(strings, image->version, strlen(image->version) + 1, &image->laid.version);
        if (result)
            return result;
        if (!pool_add(&layout->section[NTC_SECTION_IMAGES], &image->laid, sizeof image->laid))
            return -ENOMEM;
    }
    return 0;
}

/* All likely units are placed: what there is of each section is theirs. */
static void note_likely(struct layout *layout) {
    static const enum ntc_section_kind by_unit[] = {NTC_SECTION_CODE,   NTC_SECTION_SLOTS, NTC_SECTION_CONSTS,
                                                    NTC_SECTION_BYTES,  NTC_SECTION_SITES, NTC_SECTION_RELOCS,
                                                    NTC_SECTION_FIELDS, NTC_SECTION_MAPS};
    if (!layout->likely_units)
        return;
    for (unsigned i = 0; i < ARRAY_SIZE(by_unit); i++)
        layout->likely[by_unit[i]] = layout->section[by_unit[i]].length;
    layout->likely[NTC_SECTION_UNITS] = layout->likely_units * sizeof(struct ntc_unit_record);
}

static int build_sections(struct layout *layout, const struct ntc_writer *writer) {
    static const uint64_t runtime_slots[NTC_RUNTIME_SLOTS];
    static const struct ntc_range no_ranges[LIKELY_RANGES];
    struct ntc_state plain = ntc_state_plain();
    struct ntc_map_builder builder = {0};
    uint64_t ignored;
    int result = sort_images(layout, writer);
    if (!result)
        result = sort_units(layout, writer);
    if (!result)
        result = pool_intern(&layout->section[NTC_SECTION_STATES], &plain, sizeof plain, &ignored);
    if (!result)
        result = pool_intern(&layout->section[NTC_SECTION_STRINGS], "", 1, &ignored);
    if (!result && !pool_add(&layout->section[NTC_SECTION_SLOTS], runtime_slots, sizeof runtime_slots))
        result = -ENOMEM;
    for (uint32_t i = 0; i < layout->units && !result; i++) {
        if (i == layout->likely_units)
            note_likely(layout);
        result = place_unit(layout, writer, layout->unit[i], &builder);
    }
    if (layout->likely_units == layout->units)
        note_likely(layout);
    ntc_map_builder_destroy(&builder);
    if (!result)
        result = pool_align(&layout->section[NTC_SECTION_CODE], PAGE_SIZE, INT3);
    if (!result)
        result = pool_align(&layout->section[NTC_SECTION_SLOTS], PAGE_SIZE, 0);
    if (!result)
        result = pool_align(&layout->section[NTC_SECTION_CONSTS], PAGE_SIZE, 0);
    if (result)
        return result;
    settle(layout);
    for (uint32_t i = 0; i < layout->units && !result; i++) {
        result = add_note(layout, layout->unit[i]);
        if (!result && !pool_add(&layout->section[NTC_SECTION_UNITS], &layout->unit[i]->record,
                                 sizeof layout->unit[i]->record))
            result = -ENOMEM;
    }
    if (!result)
        result = layout_entries(layout, writer);
    if (!result)
        result = add_images(layout, writer);
    /* The contents come when the sections have their places. */
    if (!result && !pool_add(&layout->section[NTC_SECTION_LIKELY], no_ranges,
                             layout->likely_units ? sizeof no_ranges : 0))
        result = -ENOMEM;
    return result;
}

/* -- The file -- */

static const uint32_t record_size[NTC_SECTION_KINDS] = {
    [NTC_SECTION_CODE] = 1,
    [NTC_SECTION_SLOTS] = sizeof(uint64_t),
    [NTC_SECTION_CONSTS] = sizeof(uint64_t),
    [NTC_SECTION_IMAGES] = sizeof(struct ntc_image_record),
    [NTC_SECTION_UNITS] = sizeof(struct ntc_unit_record),
    [NTC_SECTION_ENTRIES] = sizeof(struct ntc_entry_record),
    [NTC_SECTION_PAGES] = sizeof(uint32_t),
    [NTC_SECTION_INDEX] = sizeof(struct ntc_index_record),
    [NTC_SECTION_BYTES] = 1,
    [NTC_SECTION_SITES] = sizeof(struct ntc_site),
    [NTC_SECTION_RELOCS] = sizeof(struct ntc_reloc),
    [NTC_SECTION_FIELDS] = sizeof(struct ntc_field),
    [NTC_SECTION_MAPS] = 1,
    [NTC_SECTION_STATES] = sizeof(struct ntc_state),
    [NTC_SECTION_STRINGS] = 1,
    [NTC_SECTION_PLACES] = sizeof(uint32_t),
    [NTC_SECTION_LIKELY] = sizeof(struct ntc_range),
    [NTC_SECTION_LEAVES] = NTC_DIGEST_SIZE,
    [NTC_SECTION_IR] = 1,
    [NTC_SECTION_NOTES] = sizeof(struct ntc_note_record),
    [NTC_SECTION_LINKS] = sizeof(struct ntc_link),
};

static void add_section(struct ntc_header *header, uint32_t kind, uint64_t offset, uint64_t length) {
    header->section[header->section_count++] = (struct ntc_section){
        .kind = kind,
        .flags = kind == NTC_SECTION_IR ? 0 : NTC_SECTION_REQUIRED,
        .offset = offset,
        .length = length,
        .record_size = record_size[kind],
        .record_count = (uint32_t)(length / record_size[kind]),
    };
}

static uint64_t chunks_in(uint64_t bytes) {
    return (bytes + NTC_CHUNK_SIZE - 1) / NTC_CHUNK_SIZE;
}

/* Header and section table. Kinds are numbered in the order in which they stand. */
static int place_sections(struct layout *layout, struct ntc_header *header) {
    uint64_t at = NTC_HEADER_SIZE;
    for (uint32_t kind = NTC_SECTION_CODE; kind < NTC_SECTION_LEAVES; kind++) {
        at = align_up(at, 64);
        add_section(header, kind, at, layout->section[kind].length);
        at += layout->section[kind].length;
    }
    at = align_up(at, 64);
    uint64_t leaves_offset = at, tools = 0;
    for (uint32_t kind = NTC_SECTION_IR; kind < NTC_SECTION_KINDS; kind++)
        tools = align_up(tools, 64) + layout->section[kind].length;
    uint64_t leaves = chunks_in(leaves_offset - NTC_HEADER_SIZE) + chunks_in(tools);
    header->load_size = align_up(leaves_offset + leaves * NTC_DIGEST_SIZE, PAGE_SIZE);
    header->file_size = header->load_size + tools;
    if (header->load_size > NTC_LOAD_MAX || header->file_size > NTC_FILE_MAX ||
        layout->section[NTC_SECTION_IR].length > UINT32_MAX)
        return -E2BIG;
    header->leaf_count = (uint32_t)leaves;
    add_section(header, NTC_SECTION_LEAVES, leaves_offset, leaves * NTC_DIGEST_SIZE);
    at = header->load_size;
    for (uint32_t kind = NTC_SECTION_IR; kind < NTC_SECTION_KINDS; kind++) {
        at = align_up(at, 64);
        if (kind != NTC_SECTION_IR || layout->section[kind].length)
            add_section(header, kind, at, layout->section[kind].length);
        at += layout->section[kind].length;
    }
    return 0;
}

/* Of the sections that are in the order of the units what belongs to the likely ones; and of the entries
 * theirs. Where all are likely the index is one table, which comes as a whole. */
static void fill_likely(struct layout *layout, const struct ntc_header *header) {
    struct ntc_range *range = NULL, ranges[LIKELY_RANGES] = {{0, 0}};
    unsigned count = 0;
    for (uint32_t i = 0; i < header->section_count; i++) {
        const struct ntc_section *section = &header->section[i];
        uint64_t length = layout->likely[section->kind];
        if (section->kind == NTC_SECTION_INDEX && layout->likely_units == layout->units)
            length = section->length;
        if (length && section->kind < NTC_SECTION_LEAVES)
            ranges[count++] = (struct ntc_range){.offset = section->offset, .length = length};
        if (section->kind == NTC_SECTION_LIKELY)
            range = (struct ntc_range *)(void *)(layout->file + section->offset);
    }
    for (uint32_t i = 0; i < header->section_count; i++) {
        const struct ntc_section *section = &header->section[i];
        for (uint32_t k = 0;
             section->kind == NTC_SECTION_ENTRIES && k < layout->summary.images && count < LIKELY_RANGES;
             k++) {
            const struct ntc_image_record *image = &layout->image[k]->laid;
            if (image->likely_count)
                ranges[count++] = (struct ntc_range){
                    .offset = section->offset + image->first_entry * sizeof(struct ntc_entry_record),
                    .length = image->likely_count * sizeof(struct ntc_entry_record)};
        }
    }
    memcpy(range, ranges, sizeof ranges);
}

static void digest_file(struct layout *layout, uint64_t leaves_offset) {
    struct ntc_header *header = (struct ntc_header *)(void *)layout->file;
    uint8_t *leaf = layout->file + leaves_offset;
    const uint64_t part[2][2] = {{NTC_HEADER_SIZE, leaves_offset}, {header->load_size, header->file_size}};
    uint64_t number = 0;
    for (unsigned i = 0; i < 2; i++) {
        uint64_t at = part[i][0];
        for (; part[i][1] - at >= LEAVES_AT_ONCE * NTC_CHUNK_SIZE; number += LEAVES_AT_ONCE) {
            const uint8_t *bytes[LEAVES_AT_ONCE];
            uint64_t numbers[LEAVES_AT_ONCE];
            uint8_t *leaves[LEAVES_AT_ONCE];
            for (unsigned j = 0; j < LEAVES_AT_ONCE; j++, at += NTC_CHUNK_SIZE) {
                bytes[j] = layout->file + at;
                numbers[j] = number + j;
                leaves[j] = leaf + (number + j) * NTC_DIGEST_SIZE;
            }
            leaves_digest(bytes, NTC_CHUNK_SIZE, numbers, leaves);
        }
        for (; at < part[i][1]; at += NTC_CHUNK_SIZE, number++) {
            uint64_t rest = part[i][1] - at;
            ntc_leaf_digest(layout->file + at, rest < NTC_CHUNK_SIZE ? rest : NTC_CHUNK_SIZE, number,
                            leaf + number * NTC_DIGEST_SIZE);
        }
    }
    ntc_root_digest(header, leaf, header->root);
}

static int assemble(struct layout *layout, const struct ntc_writer *writer) {
    struct ntc_header header = {.version_major = NTC_VERSION_MAJOR,
                                .version_minor = NTC_VERSION_MINOR,
                                .header_size = NTC_HEADER_SIZE,
                                .chunk_size = NTC_CHUNK_SIZE,
                                .index_probes = layout->probes,
                                .index_likely = layout->index_likely,
                                .required_flags = layout->index_likely ? NTC_REQUIRE_INDEX_LIKELY : 0,
                                .translator_abi = writer->options.translator_abi,
                                .translator_layout = writer->options.translator_layout,
                                .host_features = writer->options.host_features};
    memcpy(header.magic, NTC_MAGIC, sizeof header.magic);
    memcpy(header.producer, writer->producer, sizeof header.producer);
    int result = place_sections(layout, &header);
    if (result)
        return result;
    layout->file_size = header.file_size;
    layout->file = calloc(1, header.file_size);
    if (!layout->file)
        return -ENOMEM;
    memcpy(layout->file, &header, sizeof header);
    uint64_t leaves_offset = 0;
    for (uint32_t i = 0; i < header.section_count; i++) {
        const struct ntc_section *section = &header.section[i];
        struct pool *pool = &layout->section[section->kind];
        if (section->kind == NTC_SECTION_LEAVES)
            leaves_offset = section->offset;
        else if (section->length)
            memcpy(layout->file + section->offset, pool->bytes, section->length);
        pool_destroy(pool);
    }
    layout->summary.images = writer->images;
    if (layout->likely_units)
        fill_likely(layout, &header);
    digest_file(layout, leaves_offset);
    layout->summary.units = layout->units;
    layout->summary.load_size = header.load_size;
    layout->summary.file_size = header.file_size;
    memcpy(layout->summary.root, ((struct ntc_header *)(void *)layout->file)->root, NTC_DIGEST_SIZE);
    return 0;
}

int layout_build(struct layout *layout, const struct ntc_writer *writer, struct ntc_error *error) {
    int result = build_sections(layout, writer);
    if (!result)
        result = assemble(layout, writer);
    if (result == -E2BIG)
        return ntc_fail(error, NTC_FAULT_LIMIT,
                        "the cache would be larger than the format allows (1 GiB of code "
                        "and tables, 4 GiB of IR); make several");
    if (result)
        return ntc_fail(error, NTC_FAULT_MEMORY, "no memory to lay the cache out");
    return 0;
}

void layout_destroy(struct layout *layout) {
    for (unsigned i = 0; i < NTC_SECTION_KINDS; i++)
        pool_destroy(&layout->section[i]);
    free(layout->image);
    free(layout->unit);
    free(layout->file);
}
