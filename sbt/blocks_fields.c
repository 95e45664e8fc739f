/* Which places of a unit follow a field of its guest bytes: found by changing the field and looking what
 * changes.
 *
 * The generator is asked again with the field's value raised by a number whose low byte is not zero. Whatever
 * then differs must have grown by just that number: 32 or 64 bits of code or a constant, the target of a
 * direct exit, or the addend of an address. Each becomes a relocation, or the exit's target becomes the
 * field. If anything else differs the unit keeps no fields and matches at its link address alone. So no
 * generator has to know of fields, and none can get them wrong unnoticed.
 */
#include "sbt/blocks_private.h"

#include <stdlib.h>
#include <string.h>

#define PROBE 0x01020304u

struct differ {
    struct blocks *blocks;
    struct ntc_unit *unit; /* the first translation, copied */
    const struct ntc_field *field;
    uint16_t number;      /* of the field */
    unsigned made_relocs; /* those that the generator made */
    int64_t value;        /* of the field */
};

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

static bool add_field(struct blocks *b, unsigned *count, const struct ntc_field *field) {
    unsigned at = 0;
    while (at < *count && b->field[at].offset + b->field[at].size <= field->offset)
        at++;
    if (at < *count && b->field[at].offset < field->offset + field->size)
        return b->field[at].offset == field->offset && b->field[at].size == field->size;
    if (*count == BLOCKS_FIELDS_MAX)
        return false;
    memmove(&b->field[at + 1], &b->field[at], (*count - at) * sizeof *b->field);
    b->field[at] = *field;
    ++*count;
    return true;
}

/* Fields of the unit's guest bytes: the image's, as far as the bytes are still the linked ones, and static
 * calls. */
static bool collect(struct blocks *b, const struct ntc_unit *unit, const uint8_t *bytes, unsigned *count) {
    const struct image *image = b->patched->image;
    uint64_t from = unit->link_address, to = from + unit->guest_length;
    *count = 0;
    for (size_t i = image_field_from(image, from - 7); i < image->fields && image->field[i].address < to;
         i++) {
        struct ntc_field field = {.image = (uint16_t)b->options->image};
        describe_field(&image->field[i], &field);
        uint64_t address = image->field[i].address;
        const uint8_t *linked = image_at(image, address, field.size);
        if (address + field.size <= from)
            continue;
        if (address < from || address + field.size > to)
            return false;
        field.offset = (uint16_t)(address - from);
        if (linked && !memcmp(linked, bytes + field.offset, field.size) && !add_field(b, count, &field))
            return false;
    }
    for (size_t i = patched_call_from(b->patched, from); i < b->patched->calls; i++) {
        uint64_t offset = b->patched->call[i] - from;
        if (b->patched->call[i] >= to || offset + 5 > unit->guest_length)
            break;
        struct ntc_field field = {.offset = (uint16_t)(offset + 1), .size = 4, .kind = NTC_FIELD_ANY};
        if ((bytes[offset] == 0xe8 || bytes[offset] == 0xe9) && !add_field(b, count, &field))
            return false;
    }
    return true;
}

static void *copy_into(void **room, const void *from, size_t size) {
    void *grown = realloc(*room, size ? size : 1);
    if (!grown)
        return NULL;
    *room = grown;
    if (size)
        memcpy(grown, from, size);
    return grown;
}

/* The generator's next call takes the unit's arrays away: copy them. */
static bool keep(struct blocks *b, struct ntc_unit *unit) {
    if (unit->site_count > BLOCKS_SITES_MAX || unit->entry_count > BLOCKS_SITES_MAX ||
        unit->reloc_count > BLOCKS_RELOCS_MAX || unit->state_count > ARRAY_SIZE(b->state))
        return false;
    if (!copy_into((void **)&b->code, unit->code, unit->code_length) ||
        !copy_into((void **)&b->map_bytes, unit->map, unit->map_length) ||
        !copy_into((void **)&b->consts, unit->consts, unit->const_count * sizeof *unit->consts) ||
        !copy_into((void **)&b->slots, unit->slots, unit->slot_count * sizeof *unit->slots))
        return false;
    memcpy(b->site, unit->sites, unit->site_count * sizeof *b->site);
    memcpy(b->first_site, unit->sites, unit->site_count * sizeof *b->site);
    memcpy(b->reloc, unit->relocs, unit->reloc_count * sizeof *b->reloc);
    memcpy(b->first_reloc, unit->relocs, unit->reloc_count * sizeof *b->reloc);
    memcpy(b->entry, unit->entries, unit->entry_count * sizeof *b->entry);
    if (unit->state_count)
        memcpy(b->state, unit->states, unit->state_count * sizeof *b->state);
    unit->code = b->code;
    unit->map = b->map_bytes;
    unit->consts = b->consts;
    unit->slots = b->slots;
    unit->sites = b->site;
    unit->relocs = b->reloc;
    unit->entries = b->entry;
    unit->states = unit->state_count ? b->state : NULL;
    return true;
}

static bool same_shape(const struct ntc_unit *a, unsigned relocs, const struct ntc_unit *b) {
    return a->guest_length == b->guest_length && a->code_length == b->code_length &&
           a->slot_count == b->slot_count && a->const_count == b->const_count &&
           a->site_count == b->site_count && relocs == b->reloc_count && a->entry_count == b->entry_count &&
           a->map_length == b->map_length && a->state_count == b->state_count && a->abi_data == b->abi_data &&
           !memcmp(a->slots, b->slots, a->slot_count * sizeof *a->slots) &&
           !memcmp(a->map, b->map, a->map_length) &&
           !memcmp(a->entries, b->entries, a->entry_count * sizeof *a->entries);
}

static bool add_reloc(struct differ *d, uint32_t place, enum ntc_reloc_place where, unsigned width,
                      int64_t now) {
    struct ntc_reloc reloc = {.place = place, .where = (uint8_t)where, .width = (uint8_t)width};
    if (d->unit->reloc_count == BLOCKS_RELOCS_MAX)
        return false;
    if (d->field->kind == NTC_FIELD_SLIDE) {
        reloc.kind = NTC_RELOC_SLIDE;
        reloc.index = d->field->image;
        reloc.addend = now;
    } else {
        reloc.kind = NTC_RELOC_FIELD;
        reloc.index = d->number;
        reloc.addend = now - d->value;
    }
    d->blocks->reloc[d->unit->reloc_count++] = reloc;
    return true;
}

static int64_t read_signed(const uint8_t *at, unsigned size) {
    uint64_t value = 0;
    memcpy(&value, at, size);
    return size == 4 ? (int32_t)value : (int64_t)value;
}

/* The low byte of whatever follows the field has changed, so a difference starts with the number's first
 * byte. */
static bool compare_code(struct differ *d, const struct ntc_unit *other) {
    const uint8_t *a = d->unit->code, *b = other->code;
    for (uint32_t at = 0; at < d->unit->code_length; at++) {
        if (a[at] == b[at])
            continue;
        unsigned width = 0;
        for (unsigned size = 4; size <= 8 && !width; size += 4)
            if (at + size <= d->unit->code_length &&
                read_signed(b + at, size) - read_signed(a + at, size) == PROBE)
                width = size;
        if (!width || !add_reloc(d, at, NTC_PLACE_CODE, width, read_signed(a + at, width)))
            return false;
        at += width - 1;
    }
    return true;
}

/* A constant that is an address has a relocation, whose addend must change as it does. */
static bool compare_consts(struct differ *d, const struct ntc_unit *other) {
    for (unsigned i = 0; i < d->unit->const_count; i++) {
        if (d->unit->consts[i] == other->consts[i])
            continue;
        bool address = false;
        for (unsigned k = 0; k < other->reloc_count; k++)
            address |= other->relocs[k].where == NTC_PLACE_CONST && other->relocs[k].place == i &&
                       other->relocs[k].addend - d->blocks->first_reloc[k].addend == PROBE;
        if (other->consts[i] - d->unit->consts[i] != PROBE ||
            (!address && !add_reloc(d, i, NTC_PLACE_CONST, 8, (int64_t)d->unit->consts[i])))
            return false;
    }
    return true;
}

static bool compare_relocs(struct differ *d, const struct ntc_unit *other) {
    int64_t field_end = d->field->offset + d->field->size;
    for (unsigned i = 0; i < other->reloc_count; i++) {
        const struct ntc_reloc *mine = &d->blocks->first_reloc[i], *theirs = &other->relocs[i];
        struct ntc_reloc *final = &d->blocks->reloc[i];
        int64_t change = theirs->addend - mine->addend;
        if (mine->place != theirs->place || mine->kind != theirs->kind || mine->where != theirs->where ||
            mine->index != theirs->index || mine->width != theirs->width)
            return false;
        if (!change)
            continue;
        if (change != PROBE || mine->kind != NTC_RELOC_ADDRESS || final->kind != NTC_RELOC_ADDRESS ||
            d->field->kind == NTC_FIELD_SLIDE)
            return false;
        /* address + addend == field + address of the field's end + what is left */
        final->kind = NTC_RELOC_FIELD_PC;
        final->index = d->number;
        final->addend = mine->addend - field_end - d->value;
    }
    return true;
}

static bool same_site(const struct ntc_site *a, const struct ntc_site *b) {
    return a->host == b->host && a->guest == b->guest && a->length == b->length && a->kind == b->kind &&
           a->reg == b->reg && a->access == b->access && a->size == b->size && a->flags == b->flags &&
           a->slot == b->slot;
}

static bool compare_sites(struct differ *d, const struct ntc_unit *other) {
    for (unsigned i = 0; i < other->site_count; i++) {
        const struct ntc_site *mine = &d->blocks->first_site[i], *theirs = &other->sites[i];
        struct ntc_site *final = &d->blocks->site[i];
        if (!same_site(mine, theirs))
            return false;
        if (theirs->target == mine->target)
            continue;
        /* The target is the field's end plus the field. */
        if (theirs->target - mine->target != PROBE || d->field->kind != NTC_FIELD_ANY ||
            mine->flags & NTC_SITE_TARGET_ABSOLUTE ||
            mine->target != d->field->offset + d->field->size + d->value)
            return false;
        final->flags |= NTC_SITE_TARGET_FIELD;
        final->target = d->number;
    }
    return true;
}

/* Translate with the field changed and explain every difference. */
static bool explain(struct differ *d, const struct codegen_request *request, uint8_t *bytes) {
    struct ntc_unit other = {0};
    struct codegen_request changed = *request;
    uint8_t *place = bytes + d->field->offset;
    uint64_t raised = (uint64_t)d->value + PROBE;
    changed.bytes = bytes;
    memcpy(place, &raised, d->field->size);
    int result = d->blocks->options->codegen->translate(d->blocks->generator, &changed, &other);
    memcpy(place, &d->value, d->field->size);
    if (result || !same_shape(d->unit, d->made_relocs, &other))
        return false;
    return compare_consts(d, &other) && compare_code(d, &other) && compare_relocs(d, &other) &&
           compare_sites(d, &other);
}

void blocks_find_fields(struct blocks *b, const struct codegen_request *request, struct ntc_unit *unit) {
    uint8_t bytes[PAGE_SIZE];
    unsigned count, relocs = unit->reloc_count;
    struct ntc_unit plain = *unit;
    if (!b->patched->image->fields && !b->patched->calls)
        return;
    bool known = collect(b, unit, request->bytes, &count);
    if (known && !count)
        return;
    memcpy(bytes, request->bytes, request->length);
    if (known)
        known = keep(b, unit);
    for (unsigned i = 0; i < count && known; i++) {
        struct differ d = {.blocks = b,
                           .unit = unit,
                           .field = &b->field[i],
                           .number = (uint16_t)i,
                           .made_relocs = relocs,
                           .value = read_signed(bytes + b->field[i].offset, b->field[i].size)};
        known = explain(&d, request, bytes);
    }
    if (known) {
        unit->fields = b->field;
        unit->field_count = (uint16_t)count;
        return;
    }
    /* As it was: the generator's arrays were overwritten, so ask it once more. */
    b->counts.fixed++;
    if (b->options->codegen->translate(b->generator, request, unit))
        *unit = plain;
    unit->image = plain.image;
    unit->name = plain.name;
    unit->name_offset = plain.name_offset;
}
