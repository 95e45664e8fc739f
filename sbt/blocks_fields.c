/* Which bytes of a piece depend on where images are loaded, or are patched again and again: the image's own
 * list, and static calls. What a generator can keep out of its code need not be compared.
 */
#include "sbt/blocks_private.h"

#include <string.h>

static void describe_field(const struct image_field *from, struct ntc_field *field) {
    field->size = from->kind == IMAGE_FIELD_ABS64 || from->kind == IMAGE_FIELD_FREE64 ? 8 : 4;
    switch (from->kind) {
    case IMAGE_FIELD_ABS32:
    case IMAGE_FIELD_ABS64:
        field->kind = NTC_FIELD_SLIDE;
        break;
    case IMAGE_FIELD_REL32_INVERSE:
        field->kind = NTC_FIELD_UNSLIDE;
        break;
    default:
        field->kind = NTC_FIELD_ANY;
        field->image = 0;
        break;
    }
}

static bool add_field(struct blocks *b, const struct ntc_field *field) {
    unsigned at = b->fields;
    while (at && b->field[at - 1].offset + b->field[at - 1].size > field->offset)
        at--;
    if (at < b->fields && b->field[at].offset < field->offset + field->size)
        return true; /* a hole that holds it, or one of the two lists has it already */
    if (b->fields == BLOCKS_FIELDS_MAX)
        return false;
    memmove(&b->field[at + 1], &b->field[at], (b->fields - at) * sizeof *b->field);
    b->field[at] = *field;
    b->fields++;
    return true;
}

bool blocks_add_hole(struct blocks *b, uint32_t offset, uint32_t size) {
    while (size) {
        uint32_t part = size >= 8 ? 8 : size >= 4 ? 4 : size >= 2 ? 2 : 1;
        struct ntc_field field = {.offset = (uint16_t)offset, .size = (uint8_t)part, .kind = NTC_FIELD_ANY};
        if (!add_field(b, &field))
            return false;
        offset += part;
        size -= part;
    }
    return true;
}

bool blocks_collect_fields(struct blocks *b, uint64_t address, const uint8_t *bytes, uint32_t length) {
    const struct image *image = b->patched->image;
    uint64_t to = address + length;
    for (size_t i = image_field_from(image, address); i < image->fields && image->field[i].address < to;
         i++) {
        struct ntc_field field = {.image = (uint16_t)b->options->image};
        describe_field(&image->field[i], &field);
        if (image->field[i].address + field.size > to)
            break;
        const uint8_t *linked = image_at(image, image->field[i].address, field.size);
        field.offset = (uint16_t)(image->field[i].address - address);
        if (linked && !memcmp(linked, bytes + field.offset, field.size) && !add_field(b, &field))
            return false;
    }
    for (size_t i = patched_call_from(b->patched, address); i < b->patched->calls; i++) {
        uint64_t offset = b->patched->call[i] - address;
        if (b->patched->call[i] >= to || offset + 5 > length)
            break;
        struct ntc_field field = {.offset = (uint16_t)(offset + 1), .size = 4, .kind = NTC_FIELD_ANY};
        if ((bytes[offset] == 0xe8 || bytes[offset] == 0xe9) && !add_field(b, &field))
            return false;
    }
    return true;
}
