#include "cache_sample.h"

#include "cache-format/file.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static uint64_t mix(uint64_t *state) {
    uint64_t z = *state += 0x9e3779b97f4a7c15ull;
    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9ull;
    z = (z ^ z >> 27) * 0x94d049bb133111ebull;
    return z ^ z >> 31;
}

static void fill(uint8_t *bytes, size_t length, uint64_t *state) {
    for (size_t i = 0; i < length; i++)
        bytes[i] = (uint8_t)(mix(state) >> 32);
}

uint64_t sample_address(uint32_t number) {
    return (number & 1 ? SAMPLE_MODULE_BASE : SAMPLE_KERNEL_BASE) + number / 2 * 208ull;
}

static void make_tables(struct sample_unit *s, uint64_t *state) {
    struct ntc_unit *unit = &s->unit;
    unit->slot_count = (uint16_t)(mix(state) % 5);
    for (unsigned i = 0; i < unit->slot_count; i++)
        s->slots[i] = mix(state) % unit->code_length;
    unit->const_count = 2;
    s->consts[0] = unit->link_address + 64;
    s->consts[1] = SAMPLE_KERNEL_BASE + 4096;
    unit->site_count = 6;
    for (unsigned i = 0; i < unit->site_count; i++) {
        bool slot = i < unit->slot_count;
        s->sites[i] = (struct ntc_site){.host = (uint32_t)(mix(state) % unit->code_length),
                                        .guest = (uint16_t)(mix(state) % unit->guest_length),
                                        .length = 5,
                                        .kind = slot ? NTC_SITE_CALL : NTC_SITE_MEMORY,
                                        .reg = (uint8_t)i,
                                        .size = 8,
                                        .slot = slot ? (uint16_t)i : NTC_NO_SLOT,
                                        .target = slot ? -64 : 0};
    }
    unit->reloc_count = 0;
    for (unsigned i = 0; i < unit->slot_count; i++)
        s->relocs[unit->reloc_count++] =
            (struct ntc_reloc){.place = 16 * i + 2, .kind = NTC_RELOC_SLOT, .index = (uint16_t)i, .width = 4};
    s->relocs[unit->reloc_count++] =
        (struct ntc_reloc){.place = 98, .kind = NTC_RELOC_CONST, .index = 1, .width = 4};
    s->relocs[unit->reloc_count++] =
        (struct ntc_reloc){.place = 110, .kind = NTC_RELOC_SITE, .index = 5, .width = 4};
    s->relocs[unit->reloc_count++] =
        (struct ntc_reloc){.place = 120, .kind = NTC_RELOC_RUNTIME, .index = 3, .width = 4, .addend = 1};
    s->relocs[unit->reloc_count++] = (struct ntc_reloc){
        .place = 0, .where = NTC_PLACE_CONST, .kind = NTC_RELOC_ADDRESS, .width = 8, .addend = 64};
}

void sample_unit_make(struct sample_unit *s, uint32_t number) {
    uint64_t state = number * 1000003ull + 1;
    *s = (struct sample_unit){.unit = {.link_address = sample_address(number),
                                       .mode = SAMPLE_MODE,
                                       .image = number & 1,
                                       .heat = (uint32_t)(mix(&state) % 3 ? 0 : mix(&state) % 5000),
                                       .generator = number % 16 ? NTC_GENERATOR_TEMPLATE : NTC_GENERATOR_LLVM,
                                       .abi_data = number}};
    struct ntc_unit *unit = &s->unit;
    unit->guest_length = 40 + (uint32_t)(mix(&state) % 150);
    unit->code_length = 128 + (uint32_t)(mix(&state) % 384);
    fill(s->bytes, unit->guest_length, &state);
    fill(s->code, unit->code_length, &state);
    make_tables(s, &state);
    s->fields[0] = (struct ntc_field){.offset = 20, .size = 4, .kind = NTC_FIELD_SLIDE, .image = 0};
    s->fields[1] = (struct ntc_field){.offset = 30, .size = 4, .kind = NTC_FIELD_APART, .image = 0};
    unit->field_count = number % 3 == 2 ? 2 : 0;
    s->states[0] = ntc_state_plain();
    s->states[1] = ntc_state_plain();
    s->states[1].where[number % 16] = NTC_WHERE_VCPU;
    unit->state_count = 2;
    for (uint32_t i = 0; i < 8; i++) {
        const struct ntc_point point = {.host = i * unit->code_length / 8, .guest = i * 4, .state = i % 2};
        if (ntc_map_add(&s->map, &point))
            abort();
    }
    s->entries[0] = (struct ntc_unit_entry){.guest = 0, .host = 0};
    s->entries[1] = (struct ntc_unit_entry){.guest = 12, .host = 32};
    s->entries[2] = (struct ntc_unit_entry){.guest = (uint16_t)(unit->guest_length - 3), .host = 64};
    unit->entry_count = 3;
    snprintf(s->name, sizeof s->name, "function_%u", number);
    snprintf(s->ir, sizeof s->ir, "; function %u\nret void\n", number);
    unit->bytes = s->bytes;
    unit->code = s->code;
    unit->slots = s->slots;
    unit->consts = s->consts;
    unit->sites = s->sites;
    unit->relocs = s->relocs;
    unit->fields = s->fields;
    unit->states = s->states;
    unit->entries = s->entries;
    unit->map = s->map.bytes;
    unit->map_length = s->map.length;
    unit->name = s->name;
    unit->ir = s->ir;
    unit->ir_length = (uint32_t)strlen(s->ir);
}

void sample_unit_destroy(struct sample_unit *sample) {
    ntc_map_builder_destroy(&sample->map);
}

static int add_images(struct ntc_writer *writer, bool module_first, uint32_t number[2]) {
    const struct ntc_image_input image[2] = {{.link_base = SAMPLE_KERNEL_BASE,
                                              .link_length = SAMPLE_LENGTH,
                                              .slide_align = 2 * MIB,
                                              .kind = NTC_IMAGE_KERNEL,
                                              .name = "vmlinux",
                                              .version = "6.1.0"},
                                             {.link_base = SAMPLE_MODULE_BASE,
                                              .link_length = SAMPLE_LENGTH,
                                              .slide_align = PAGE_SIZE,
                                              .kind = NTC_IMAGE_MODULE,
                                              .name = "virtio_blk",
                                              .version = "6.1.0"}};
    int result = ntc_writer_add_image(writer, &image[module_first], &number[module_first]);
    return result ? result : ntc_writer_add_image(writer, &image[!module_first], &number[!module_first]);
}

struct ntc_writer *sample_writer(const struct sample_options *options) {
    const struct ntc_writer_options writer_options = {.translator_abi = SAMPLE_ABI,
                                                      .translator_layout = SAMPLE_LAYOUT,
                                                      .producer = "test 1",
                                                      .with_ir = options->with_ir};
    struct ntc_writer *writer;
    uint32_t image[2], step = options->step ? options->step : 1;
    if (ntc_writer_create(&writer, &writer_options))
        return NULL;
    int result = add_images(writer, options->module_first, image);
    for (uint32_t i = 0; i < options->units && !result; i++) {
        struct sample_unit sample;
        sample_unit_make(&sample, (uint32_t)((uint64_t)i * step % options->units));
        sample.unit.image = image[sample.unit.image];
        for (unsigned j = 0; j < sample.unit.field_count; j++)
            sample.fields[j].image = (uint16_t)image[sample.fields[j].image];
        result = ntc_writer_add_unit(writer, &sample.unit, 0);
        sample_unit_destroy(&sample);
    }
    if (!result)
        return writer;
    ntc_writer_destroy(writer);
    return NULL;
}

void sample_redigest(uint8_t *file, uint64_t size) {
    struct ntc_header *header = (struct ntc_header *)(void *)file;
    const struct ntc_section *leaves = NULL;
    uint64_t number = 0;
    for (uint32_t i = 0; i < NTC_SECTIONS_MAX; i++)
        if (header->section[i].kind == NTC_SECTION_LEAVES)
            leaves = &header->section[i];
    memset(file + NTC_HEADER_SIGNED + NTC_DIGEST_SIZE, 0,
           NTC_HEADER_SIZE - NTC_HEADER_SIGNED - NTC_DIGEST_SIZE);
    if (!leaves || leaves->offset > size || leaves->length > size - leaves->offset ||
        header->load_size > size || header->leaf_count != leaves->length / NTC_DIGEST_SIZE)
        return;
    const uint64_t part[2][2] = {{NTC_HEADER_SIZE, leaves->offset}, {header->load_size, size}};
    for (unsigned i = 0; i < 2; i++) {
        for (uint64_t at = part[i][0]; at < part[i][1] && number < header->leaf_count;
             at += NTC_CHUNK_SIZE, number++) {
            uint64_t rest = part[i][1] - at;
            ntc_leaf_digest(file + at, rest < NTC_CHUNK_SIZE ? rest : NTC_CHUNK_SIZE, number,
                            file + leaves->offset + number * NTC_DIGEST_SIZE);
        }
    }
    ntc_root_digest(header, file + leaves->offset, header->root);
}

static uint64_t walk_unit(const struct ntc_view *view, uint32_t number, const struct ntc_unit *unit) {
    uint64_t sum = 0, at = 0, slide[4] = {0};
    bool known[4] = {true, true, true, true};
    const struct ntc_slides slides = {slide, known, ARRAY_SIZE(slide)};
    struct ntc_unit_entry entry;
    struct ntc_point point;
    sum += ntc_unit_compare(unit, 0, &slides, unit->bytes, 0, unit->guest_length);
    for (uint32_t i = 0; i < unit->code_length; i++)
        sum += unit->code[i];
    for (unsigned i = 0; i < unit->field_count; i++)
        sum += (uint64_t)ntc_field_value(&unit->fields[i], unit->bytes);
    for (unsigned i = 0; i < unit->site_count; i++)
        sum += unit->sites[i].target +
               (unit->sites[i].slot != NTC_NO_SLOT ? unit->slots[unit->sites[i].slot] : 0);
    for (unsigned i = 0; i < unit->reloc_count; i++)
        if (unit->relocs[i].where == NTC_PLACE_CONST)
            sum += unit->consts[unit->relocs[i].place];
    while (ntc_unit_entry(view, number, unit, &at, &entry))
        sum += unit->bytes[entry.guest] + unit->code[entry.host];
    if (ntc_map_find(unit, unit->code_length, &point))
        sum += unit->states[point.state].where[0];
    sum += strlen(unit->name);
    for (uint32_t i = 0; unit->ir && i < unit->ir_length; i++)
        sum += (uint8_t)unit->ir[i];
    return sum;
}

uint32_t sample_walk(const struct ntc_view *view) {
    uint64_t sink = 0;
    uint32_t opened = 0;
    for (uint64_t i = 0; i < view->count[NTC_SECTION_UNITS]; i++) {
        struct ntc_unit unit;
        struct ntc_search search;
        struct ntc_hit hit;
        if (ntc_unit_open(view, (uint32_t)i, &unit))
            continue;
        opened++;
        sink += walk_unit(view, (uint32_t)i, &unit);
        ntc_search_content(&search, view, unit.bytes, unit.guest_length, unit.mode);
        while (ntc_search_next(&search, &hit))
            sink += view->units[hit.unit].link_address + hit.guest;
        ntc_search_address(&search, view, unit.image, unit.link_address, unit.mode);
        while (ntc_search_next(&search, &hit))
            sink += view->units[hit.unit].link_address + hit.guest;
    }
    for (uint64_t i = 0; i < view->count[NTC_SECTION_IMAGES]; i++) {
        const struct ntc_image_record *image = ntc_view_image(view, (uint32_t)i);
        if (image)
            sink +=
                strlen(ntc_view_string(view, image->name)) + strlen(ntc_view_string(view, image->version));
    }
    /* What was read must seem to matter. */
    __asm__ volatile("" : : "r"(sink));
    return opened;
}
