/* Gathering images and units. Everything is checked with the reader's own rules when it comes in and copied,
 * so that the layout works on what is known to be good.
 */
#include "cache-format/writer_private.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "cache-format/digest.h"
#include "cache-format/file_private.h"
#include "cache-format/map.h"

#define XXH_INLINE_ALL
#include <xxhash.h>

int ntc_writer_create(struct ntc_writer **writer, const struct ntc_writer_options *options) {
    struct ntc_writer *made = calloc(1, sizeof *made);
    if (!made)
        return -ENOMEM;
    made->options = *options;
    strncpy(made->producer, options->producer ? options->producer : "", sizeof made->producer - 1);
    made->options.producer = made->producer;
    *writer = made;
    return 0;
}

void ntc_writer_destroy(struct ntc_writer *writer) {
    if (!writer)
        return;
    for (uint32_t i = 0; i < writer->images; i++) {
        free(writer->image[i].name);
        free(writer->image[i].version);
    }
    for (uint32_t i = 0; i < writer->units; i++)
        free(writer->unit[i]);
    free(writer->image);
    free(writer->unit);
    free(writer);
}

/* -- Images -- */

static bool same_image(const struct kept_image *a, const struct kept_image *b) {
    return !memcmp(&a->record, &b->record, sizeof a->record) && !strcmp(a->name, b->name) &&
           !strcmp(a->version, b->version);
}

int ntc_writer_add_image(struct ntc_writer *writer, const struct ntc_image_input *input, uint32_t *number) {
    if ((input->link_base | input->link_length) % PAGE_SIZE || !input->link_length ||
        input->link_length > 1ull << 32 || input->link_base + input->link_length - 1 < input->link_base ||
        !input->slide_align || input->slide_align & (input->slide_align - 1) ||
        (unsigned)input->kind > NTC_IMAGE_MODULE)
        return -EINVAL;
    if (writer->images == NTC_IMAGES_MAX)
        return -E2BIG;
    struct kept_image image = {.record = {.link_base = input->link_base,
                                          .link_length = input->link_length,
                                          .slide_align = input->slide_align,
                                          .kind = input->kind,
                                          .page_count = (uint32_t)(input->link_length / PAGE_SIZE)}};
    if (input->digest)
        memcpy(image.record.digest, input->digest, sizeof image.record.digest);
    if (input->build_id)
        memcpy(image.record.build_id, input->build_id, sizeof image.record.build_id);
    image.name = strdup(input->name ? input->name : "");
    image.version = strdup(input->version ? input->version : "");
    struct kept_image *images = realloc(writer->image, (writer->images + 1) * sizeof *images);
    if (images)
        writer->image = images;
    int result = image.name && image.version && images ? 0 : -ENOMEM;
    for (uint32_t i = 0; i < writer->images && !result; i++) {
        if (same_image(&images[i], &image)) {
            *number = i;
            goto discard;
        }
    }
    if (!result) {
        *number = writer->images;
        images[writer->images++] = image;
        return 0;
    }
discard:
    free(image.name);
    free(image.version);
    return result;
}

/* -- Units -- */

static int check_unit(const struct ntc_writer *writer, const struct ntc_unit *unit) {
    if (unit->image >= writer->images || unit->generator >= NTC_GENERATORS)
        return -EINVAL;
    const struct ntc_image_record *image = &writer->image[unit->image].record;
    uint64_t offset = unit->link_address - image->link_base;
    if (offset >= image->link_length || unit->guest_length > image->link_length - offset)
        return -EINVAL;
    if (unit->guest_length > NTC_UNIT_GUEST_MAX || unit->code_length > NTC_UNIT_CODE_MAX ||
        unit->slot_count > NTC_UNIT_TABLE_MAX || unit->const_count > NTC_UNIT_TABLE_MAX ||
        unit->site_count > NTC_UNIT_TABLE_MAX || unit->reloc_count > NTC_UNIT_TABLE_MAX ||
        unit->field_count > NTC_UNIT_TABLE_MAX || unit->entry_count > NTC_UNIT_TABLE_MAX ||
        unit->map_length > NTC_UNIT_MAP_MAX || unit->link_count > NTC_UNIT_CODE_MAX)
        return -E2BIG;
    if (!unit->entry_count || ntc_unit_check(unit, writer->images))
        return -EINVAL;
    for (unsigned i = 0; i < unit->entry_count; i++)
        if (unit->entries[i].guest >= unit->guest_length || unit->entries[i].host >= unit->code_length)
            return -EINVAL;
    return 0;
}

static int compare_entries(const void *a, const void *b) {
    const struct ntc_unit_entry *one = a, *other = b;
    return (one->guest > other->guest) - (one->guest < other->guest);
}

/* Carve a copy out of the block at *at. */
static void *carve(uint8_t **at, const void *bytes, uint64_t length) {
    void *copy = *at;
    if (length)
        memcpy(copy, bytes, length);
    *at += align_up(length, 8);
    return copy;
}

static uint64_t block_size(const struct ntc_unit *u, uint64_t name, uint64_t ir) {
    const uint64_t parts[] = {u->guest_length,
                              u->code_length,
                              u->slot_count * sizeof *u->slots,
                              u->const_count * sizeof *u->consts,
                              u->site_count * sizeof *u->sites,
                              u->reloc_count * sizeof *u->relocs,
                              (u->link_count + (uint64_t)u->reloc_count) * sizeof *u->links,
                              u->field_count * sizeof *u->fields,
                              u->map_length,
                              u->entry_count * sizeof *u->entries,
                              name,
                              ir};
    uint64_t size = sizeof(struct kept_unit);
    for (unsigned i = 0; i < ARRAY_SIZE(parts); i++)
        size += align_up(parts[i], 8);
    return size;
}

/* The states that a map uses, in the order of first use, and the map in terms of them. */
static int copy_states(struct kept_unit *kept, const struct ntc_unit *unit, struct ntc_state **states) {
    struct ntc_map_reader reader;
    struct ntc_map_builder builder = {0};
    struct ntc_point point;
    struct ntc_state *list = NULL;
    uint32_t count = 0, *number = NULL, room = unit->state_count ? unit->state_count : 1;
    int more, result = -ENOMEM;
    ntc_map_read(&reader, unit);
    number = malloc(room * sizeof *number);
    list = malloc(room * sizeof *list);
    if (!number || !list)
        goto out;
    memset(number, 0xff, room * sizeof *number);
    number[0] = 0;
    list[count++] = ntc_state_plain();
    while ((more = ntc_map_next(&reader, &point)) > 0) {
        if (number[point.state] == UINT32_MAX) {
            number[point.state] = count;
            list[count++] = unit->states[point.state];
        }
        point.state = number[point.state];
        result = ntc_map_add(&builder, &point);
        if (result)
            goto out;
    }
    kept->unit.map = builder.bytes;
    kept->unit.map_length = builder.length;
    kept->unit.state_count = count;
    *states = list;
    free(number);
    return 0;
out:
    ntc_map_builder_destroy(&builder);
    free(number);
    free(list);
    return result;
}

/* Sort out relocations by who settles them; where the writer does, the copied code becomes zero. */
static void copy_relocs(struct ntc_unit *copy, const struct ntc_unit *unit, uint8_t *code,
                        struct ntc_reloc *relocs, struct ntc_link *links) {
    copy->relocs = relocs;
    copy->links = links;
    copy->reloc_count = 0;
    copy->link_count = unit->link_count;
    if (unit->link_count)
        memcpy(links, unit->links, unit->link_count * sizeof *links);
    for (unsigned i = 0; i < unit->reloc_count; i++) {
        const struct ntc_reloc *reloc = &unit->relocs[i];
        if (reloc->kind >= NTC_RELOC_RUNTIME_FIRST)
            relocs[copy->reloc_count++] = *reloc;
        else
            links[copy->link_count++] = (struct ntc_link){.place = reloc->place,
                                                          .index = reloc->index,
                                                          .kind = reloc->kind,
                                                          .addend = (uint8_t)reloc->addend};
    }
    for (uint32_t i = 0; i < copy->link_count; i++)
        memset(code + links[i].place, 0, sizeof(uint32_t));
}

static XXH128_hash_t hash_of(const struct ntc_unit *unit) {
    uint8_t bytes[NTC_UNIT_GUEST_MAX];
    memcpy(bytes, unit->bytes, unit->guest_length);
    for (unsigned i = 0; i < unit->field_count; i++)
        memset(bytes + unit->fields[i].offset, 0, unit->fields[i].size);
    return XXH3_128bits(bytes, unit->guest_length);
}

uint64_t ntc_unit_hash(const struct ntc_unit *unit) {
    uint64_t hash = hash_of(unit).low64;
    return hash ? hash : 1;
}

static void hash_bytes(struct kept_unit *kept) {
    XXH128_hash_t hash = hash_of(&kept->unit);
    kept->hash[0] = hash.low64;
    kept->hash[1] = hash.high64;
}

static struct kept_unit *copy_unit(const struct ntc_writer *writer, const struct ntc_unit *unit) {
    struct kept_unit compact = {.unit = *unit};
    struct ntc_state *states = NULL;
    if (copy_states(&compact, unit, &states))
        return NULL;
    uint64_t name = unit->name ? strlen(unit->name) + 1 : 1;
    uint64_t ir = writer->options.with_ir && unit->ir ? unit->ir_length : 0;
    uint64_t states_size = compact.unit.state_count * sizeof *states;
    struct kept_unit *kept = calloc(1, block_size(&compact.unit, name, ir) + states_size);
    if (kept) {
        uint8_t *at = (uint8_t *)(kept + 1);
        *kept = compact;
        struct ntc_unit *u = &kept->unit;
        u->bytes = carve(&at, unit->bytes, unit->guest_length);
        uint8_t *code = carve(&at, unit->code, unit->code_length);
        u->code = code;
        uint64_t *slots = carve(&at, unit->slots, unit->slot_count * sizeof *slots);
        for (unsigned i = 0; i < unit->slot_count; i++)
            slots[i] -= unit->code_offset;
        u->slots = slots;
        u->code_offset = 0;
        u->consts = carve(&at, unit->consts, unit->const_count * sizeof *unit->consts);
        u->sites = carve(&at, unit->sites, unit->site_count * sizeof *unit->sites);
        struct ntc_reloc *relocs = carve(&at, NULL, 0);
        at += unit->reloc_count * sizeof *relocs;
        struct ntc_link *links = carve(&at, NULL, 0);
        at += align_up((unit->link_count + (uint64_t)unit->reloc_count) * sizeof *links, 8);
        copy_relocs(u, unit, code, relocs, links);
        u->fields = carve(&at, unit->fields, unit->field_count * sizeof *unit->fields);
        u->map = carve(&at, compact.unit.map, compact.unit.map_length);
        u->states = carve(&at, states, states_size);
        struct ntc_unit_entry *entries = carve(&at, unit->entries, unit->entry_count * sizeof *entries);
        qsort(entries, unit->entry_count, sizeof *entries, compare_entries);
        u->entries = entries;
        u->name = carve(&at, unit->name ? unit->name : "", name);
        u->ir = carve(&at, unit->ir, ir);
        u->ir_length = (uint32_t)ir;
        hash_bytes(kept);
    }
    free(states);
    free((void *)(uintptr_t)compact.unit.map);
    return kept;
}

static bool entries_differ(const struct ntc_unit *unit) {
    for (unsigned i = 1; i < unit->entry_count; i++)
        if (unit->entries[i].guest == unit->entries[i - 1].guest)
            return false;
    return true;
}

int ntc_writer_add_unit(struct ntc_writer *writer, const struct ntc_unit *unit, uint32_t preference) {
    int result = check_unit(writer, unit);
    if (result)
        return result;
    if (writer->units == writer->room) {
        uint32_t room = writer->room ? writer->room * 2 : 1024;
        struct kept_unit **units = room > NTC_LOAD_MAX / sizeof(struct ntc_unit_record)
                                       ? NULL
                                       : realloc(writer->unit, room * sizeof(struct kept_unit *));
        if (!units)
            return -ENOMEM;
        writer->unit = units;
        writer->room = room;
    }
    struct kept_unit *kept = copy_unit(writer, unit);
    if (!kept)
        return -ENOMEM;
    if (!entries_differ(&kept->unit)) {
        free(kept);
        return -EINVAL;
    }
    kept->preference = preference;
    kept->rank = unit->heat;
    writer->unit[writer->units++] = kept;
    return 0;
}

/* -- Out -- */

int ntc_writer_write(struct ntc_writer *writer, const char *path, const struct ntc_secret_key *key,
                     struct ntc_writer_summary *summary, struct ntc_error *error) {
    struct layout layout = {0};
    if (sodium_init() < 0)
        return ntc_fail(error, NTC_FAULT_MEMORY, "libsodium cannot be used on this host");
    int result = layout_build(&layout, writer, error);
    if (!result) {
        if (key)
            ntc_sign_root((struct ntc_header *)(void *)layout.file, key);
        result = ntc_output_replace(path, layout.file, layout.file_size, error);
    }
    if (!result && summary)
        *summary = layout.summary;
    layout_destroy(&layout);
    return result;
}

int ntc_sign_file(const char *path, const char *output, const struct ntc_secret_key *key,
                  struct ntc_error *error) {
    struct ntc_file file;
    int result = ntc_file_read(&file, path, error);
    if (result)
        return result;
    uint8_t *bytes = malloc(file.size);
    if (bytes) {
        memcpy(bytes, file.base, file.size);
        ntc_sign_root((struct ntc_header *)(void *)bytes, key);
        result = ntc_output_replace(output, bytes, file.size, error);
    } else {
        result = ntc_fail(error, NTC_FAULT_MEMORY, "no memory for a copy of cache '%s'", path);
    }
    free(bytes);
    ntc_file_close(&file);
    return result;
}
