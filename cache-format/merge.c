/* Taking the units of a file over into a writer. */
#include "cache-format/writer.h"

#include <errno.h>
#include <stdlib.h>

static int add_images(struct ntc_writer *writer, const struct ntc_view *view, uint32_t *number) {
    for (uint64_t i = 0; i < view->count[NTC_SECTION_IMAGES]; i++) {
        const struct ntc_image_record *image = ntc_view_image(view, (uint32_t)i);
        if (!image)
            return -EBADMSG;
        const struct ntc_image_input input = {.link_base = image->link_base,
                                              .link_length = image->link_length,
                                              .slide_align = image->slide_align,
                                              .kind = (enum ntc_image_kind)image->kind,
                                              .name = ntc_view_string(view, image->name),
                                              .version = ntc_view_string(view, image->version),
                                              .digest = image->digest,
                                              .build_id = image->build_id};
        int result = ntc_writer_add_image(writer, &input, &number[i]);
        if (result)
            return result;
    }
    return 0;
}

/* Relocations and fields in terms of the writer's images. *memory is the caller's to free. */
static int renumber(struct ntc_unit *unit, const uint32_t *number, void **memory) {
    size_t relocs_size = unit->reloc_count * sizeof(struct ntc_reloc);
    struct ntc_reloc *relocs = malloc(relocs_size + unit->field_count * sizeof(struct ntc_field) + 1);
    *memory = relocs;
    if (!relocs)
        return -ENOMEM;
    struct ntc_field *fields = (struct ntc_field *)(void *)(relocs + unit->reloc_count);
    for (unsigned i = 0; i < unit->reloc_count; i++) {
        relocs[i] = unit->relocs[i];
        if (relocs[i].kind == NTC_RELOC_SLIDE)
            relocs[i].index = (uint16_t)number[relocs[i].index];
    }
    for (unsigned i = 0; i < unit->field_count; i++) {
        fields[i] = unit->fields[i];
        fields[i].image = (uint16_t)number[fields[i].image];
    }
    unit->relocs = relocs;
    unit->fields = fields;
    unit->image = number[unit->image];
    return 0;
}

static int add_unit(struct ntc_writer *writer, const struct ntc_view *view, uint32_t number,
                    struct ntc_unit *unit, const uint32_t *images, uint32_t preference) {
    struct ntc_unit_entry *entries = malloc((unit->entry_count + 1ull) * sizeof *entries);
    void *memory = NULL;
    uint64_t at = 0;
    uint32_t count = 0;
    int result = entries ? 0 : -ENOMEM;
    while (!result && count <= unit->entry_count && ntc_unit_entry(view, number, unit, &at, &entries[count]))
        count++;
    if (!result && count != unit->entry_count)
        result = -EBADMSG;
    unit->entries = entries;
    if (!result)
        result = renumber(unit, images, &memory);
    if (!result)
        result = ntc_writer_add_unit(writer, unit, preference);
    free(memory);
    free(entries);
    return result;
}

int ntc_writer_add_file(struct ntc_writer *writer, const struct ntc_view *view, uint32_t preference,
                        ntc_unit_filter *keep, void *context) {
    uint32_t *images = calloc(view->count[NTC_SECTION_IMAGES] + 1, sizeof *images);
    int result = images ? add_images(writer, view, images) : -ENOMEM;
    for (uint64_t i = 0; i < view->count[NTC_SECTION_UNITS] && !result; i++) {
        struct ntc_unit unit;
        result = ntc_unit_open(view, (uint32_t)i, &unit);
        if (!result && (!keep || keep(context, view, (uint32_t)i, &unit)))
            result = add_unit(writer, view, (uint32_t)i, &unit, images, preference);
    }
    free(images);
    return result;
}
