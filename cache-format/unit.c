/* Units: every record that belongs to one is checked when it is opened, so that whoever uses an open unit
 * needs no checks of his own. Runs with a guest's vector registers live.
 */
#include "cache-format/map.h"

#include "cache-format/light_memory.h"
#include "cache-format/parts.h"

#include <errno.h>

/* Is [first, first + count) within a section's records? */
static bool within(const struct ntc_view *view, enum ntc_section_kind kind, uint64_t first, uint64_t count) {
    return first <= view->count[kind] && count <= view->count[kind] - first;
}

/* NULL, or what is wrong. */
static const char *check_image(const struct ntc_view *view, uint32_t number) {
    if (number >= view->count[NTC_SECTION_IMAGES])
        return "no such image";
    const struct ntc_image_record *image = &view->images[number];
    if ((image->link_base | image->link_length) % PAGE_SIZE || !image->link_length ||
        image->link_length > 1ull << 32 || image->link_base + image->link_length - 1 < image->link_base)
        return "link addresses of its image";
    if (!image->slide_align || image->slide_align & (image->slide_align - 1) || image->flags ||
        image->reserved || image->kind > NTC_IMAGE_MODULE)
        return "kind, flags or slide of its image";
    if (image->page_count != image->link_length / PAGE_SIZE ||
        !within(view, NTC_SECTION_PAGES, image->first_page, 2 * ((uint64_t)image->page_count + 1)) ||
        !within(view, NTC_SECTION_ENTRIES, image->first_entry, image->entry_count) ||
        image->likely_count > image->entry_count || image->unit_count > view->count[NTC_SECTION_UNITS])
        return "tables of its image";
    return NULL;
}

const struct ntc_image_record *ntc_view_image(const struct ntc_view *view, uint32_t number) {
    return check_image(view, number) ? NULL : &view->images[number];
}

static const char *check_ranges(const struct ntc_view *view, const struct ntc_unit_record *r) {
    const char *why = check_image(view, r->image);
    if (why)
        return why;
    const struct ntc_image_record *image = &view->images[r->image];
    if (!within(view, NTC_SECTION_BYTES, r->bytes, r->guest_length))
        return "guest bytes";
    if (r->link_address < image->link_base || r->link_address - image->link_base >= image->link_length ||
        r->guest_length > image->link_length - (r->link_address - image->link_base))
        return "link address";
    if (r->code % NTC_CODE_ALIGN || !r->code_length || r->code_length > NTC_UNIT_CODE_MAX ||
        !within(view, NTC_SECTION_CODE, r->code, r->code_length))
        return "host code";
    if ((r->slot_count && r->first_slot < NTC_RUNTIME_SLOTS) ||
        !within(view, NTC_SECTION_SLOTS, r->first_slot, r->slot_count))
        return "link slots";
    if (!within(view, NTC_SECTION_CONSTS, r->first_const, r->const_count))
        return "constants";
    if (!within(view, NTC_SECTION_SITES, r->first_site, r->site_count))
        return "sites";
    if (!within(view, NTC_SECTION_RELOCS, r->first_reloc, r->reloc_count))
        return "relocations";
    if (!within(view, NTC_SECTION_FIELDS, r->first_field, r->field_count))
        return "fields";
    if (!within(view, NTC_SECTION_MAPS, r->map, r->map_length))
        return "map";
    if (r->generator >= NTC_GENERATORS || r->flags)
        return "generator or flags";
    return NULL;
}

/* NULL, or what is wrong with what only tools see. */
static const char *check_note(const struct ntc_view *view, const struct ntc_note_record *note) {
    if (note->name >= view->count[NTC_SECTION_STRINGS])
        return "name";
    if (note->ir_length && (!view->ir || !within(view, NTC_SECTION_IR, note->ir, note->ir_length)))
        return "IR";
    if (!within(view, NTC_SECTION_LINKS, note->first_link, note->link_count))
        return "links";
    return NULL;
}

static void describe_note(const struct ntc_view *view, const struct ntc_note_record *note,
                          struct ntc_unit *unit) {
    unit->heat = note->heat;
    unit->name = view->strings + note->name;
    unit->name_offset = note->name_offset;
    unit->ir = note->ir_length ? view->ir + note->ir : NULL;
    unit->ir_length = note->ir_length;
    unit->links = view->links + note->first_link;
    unit->link_count = note->link_count;
}

static void describe(const struct ntc_view *view, const struct ntc_unit_record *r, struct ntc_unit *unit) {
    unit->link_address = r->link_address;
    unit->guest_length = r->guest_length;
    unit->mode = r->mode;
    unit->image = r->image;
    unit->heat = 0;
    unit->generator = r->generator;
    unit->abi_data = r->abi_data;
    unit->host_features = r->host_features;
    unit->bytes = view->bytes + r->bytes;
    unit->code = view->code + r->code;
    unit->code_length = r->code_length;
    unit->code_offset = r->code;
    unit->slots = view->slots + r->first_slot;
    unit->consts = view->consts + r->first_const;
    unit->sites = view->sites + r->first_site;
    unit->relocs = view->relocs + r->first_reloc;
    unit->fields = view->fields + r->first_field;
    unit->map = view->maps + r->map;
    unit->map_length = r->map_length;
    unit->states = view->states;
    unit->state_count = (uint32_t)view->count[NTC_SECTION_STATES];
    unit->first_slot = r->first_slot;
    unit->first_const = r->first_const;
    unit->first_site = r->first_site;
    unit->slot_count = r->slot_count;
    unit->const_count = r->const_count;
    unit->site_count = r->site_count;
    unit->reloc_count = r->reloc_count;
    unit->field_count = r->field_count;
    unit->entry_count = r->entry_count;
    unit->entries = NULL;
    unit->links = NULL;
    unit->link_count = 0;
    unit->name = view->strings; /* the empty one */
    unit->name_offset = 0;
    unit->ir = NULL;
    unit->ir_length = 0;
}

bool ntc_unit_site(const struct ntc_unit *unit, unsigned number) {
    const struct ntc_site *site = &unit->sites[number];
    if (site->host > unit->code_length || site->guest > unit->guest_length || site->length > 15)
        return false;
    if ((site->kind > NTC_SITE_INTERPRET && site->kind < NTC_SITE_PRIVATE) ||
        site->flags & (uint16_t)~NTC_SITE_FLAGS_KNOWN)
        return false;
    if (site->slot != NTC_NO_SLOT && site->slot >= unit->slot_count)
        return false;
    bool field = site->flags & NTC_SITE_TARGET_FIELD;
    return !field || (!(site->flags & NTC_SITE_TARGET_ABSOLUTE) && site->target >= 0 &&
                      site->target < unit->field_count);
}

static bool good_reloc(const struct ntc_unit *unit, const struct ntc_reloc *reloc, uint64_t images) {
    if (reloc->width != 4 && reloc->width != 8)
        return false;
    if (reloc->where == NTC_PLACE_CODE) {
        if (reloc->place > unit->code_length || reloc->width > unit->code_length - reloc->place)
            return false;
    } else if (reloc->where != NTC_PLACE_CONST || reloc->place >= unit->const_count) {
        return false;
    }
    if (reloc->kind < NTC_RELOC_RUNTIME_FIRST &&
        (reloc->where != NTC_PLACE_CODE || reloc->width != 4 || reloc->addend < 0 || reloc->addend > 16))
        return false;
    switch (reloc->kind) {
    case NTC_RELOC_SLOT:
        return reloc->index < unit->slot_count;
    case NTC_RELOC_CONST:
        return reloc->index < unit->const_count;
    case NTC_RELOC_RUNTIME:
        return reloc->index < NTC_RUNTIME_SLOTS;
    case NTC_RELOC_SITE:
        return reloc->index < unit->site_count && !reloc->addend;
    case NTC_RELOC_ADDRESS:
        return !reloc->index;
    case NTC_RELOC_SLIDE:
        return reloc->index < images;
    case NTC_RELOC_FIELD:
    case NTC_RELOC_FIELD_PC:
        return reloc->index < unit->field_count;
    default:
        return false;
    }
}

static bool good_link(const struct ntc_unit *unit, const struct ntc_link *link) {
    const struct ntc_reloc reloc = ntc_link_reloc(link);
    return link->kind < NTC_RELOC_RUNTIME_FIRST && good_reloc(unit, &reloc, 0);
}

static bool good_fields(const struct ntc_unit *unit, uint64_t images) {
    uint32_t end = 0;
    for (unsigned i = 0; i < unit->field_count; i++) {
        const struct ntc_field *field = &unit->fields[i];
        if (field->size != 1 && field->size != 2 && field->size != 4 && field->size != 8)
            return false;
        if (field->offset < end || field->offset + (uint32_t)field->size > unit->guest_length ||
            field->kind > NTC_FIELD_APART || field->image >= images || field->reserved)
            return false;
        end = field->offset + (uint32_t)field->size;
    }
    return true;
}

bool ntc_state_check(const struct ntc_state *state) {
    if (state->reserved || state->flags & (uint16_t)~NTC_STATE_FLAGS_KNOWN)
        return false;
    for (unsigned i = 0; i < 16; i++)
        if (state->where[i] > 15 && state->where[i] != NTC_WHERE_VCPU && state->where[i] >> 6 != 1)
            return false;
    return true;
}

static bool good_map(const struct ntc_unit *unit) {
    struct ntc_map_reader reader;
    struct ntc_point point;
    uint32_t state = UINT32_MAX;
    int more;
    ntc_map_read(&reader, unit);
    while ((more = ntc_map_next(&reader, &point)) > 0) {
        if (point.host > unit->code_length || point.guest > unit->guest_length ||
            (point.state && point.state >= unit->state_count))
            return false;
        if (point.state && point.state != state && !ntc_state_check(&unit->states[point.state]))
            return false;
        state = point.state;
    }
    return !more;
}

/* What a mapping and its constants are made of. */
static const char *check_words(const struct ntc_unit *unit, uint64_t images) {
    for (unsigned i = 0; i < unit->slot_count; i++)
        if (unit->slots[i] - unit->code_offset >= unit->code_length)
            return "where a link slot leads";
    for (unsigned i = 0; i < unit->reloc_count; i++)
        if (!good_reloc(unit, &unit->relocs[i], images))
            return "a relocation";
    return NULL;
}

const char *ntc_unit_check(const struct ntc_unit *unit, uint64_t images) {
    if (!unit->guest_length || unit->guest_length > NTC_UNIT_GUEST_MAX)
        return "guest length";
    if (!unit->code_length || unit->code_length > NTC_UNIT_CODE_MAX)
        return "code length";
    if (!good_fields(unit, images))
        return "a field";
    const char *why = check_words(unit, images);
    if (why)
        return why;
    for (unsigned i = 0; i < unit->site_count; i++)
        if (!ntc_unit_site(unit, i))
            return "a site";
    for (uint32_t i = 0; i < unit->link_count; i++)
        if (!good_link(unit, &unit->links[i]))
            return "a link";
    if (!good_map(unit))
        return "map from host to guest addresses";
    return NULL;
}

static const char *check_reloc_kinds(const struct ntc_unit *unit) {
    for (unsigned i = 0; i < unit->reloc_count; i++)
        if (unit->relocs[i].kind < NTC_RELOC_RUNTIME_FIRST)
            return "a relocation";
    return NULL;
}

static const char *open_ranges(const struct ntc_view *view, uint32_t number, struct ntc_unit *unit) {
    if (number >= view->count[NTC_SECTION_UNITS])
        return "no such unit";
    if (!ntc_parts_need(view, NTC_SECTION_UNITS, number, 1))
        return "its record cannot be had";
    const struct ntc_unit_record *record = &view->units[number];
    const char *why = check_ranges(view, record);
    if (!why)
        describe(view, record, unit);
    return why;
}

int ntc_unit_sketch(const struct ntc_view *view, uint32_t number, struct ntc_unit *unit) {
    if (open_ranges(view, number, unit) || !unit->guest_length || !ntc_parts_of_guest(view, number) ||
        !good_fields(unit, view->count[NTC_SECTION_IMAGES]))
        return -EBADMSG;
    return 0;
}

int ntc_unit_use(const struct ntc_view *view, uint32_t number, const struct ntc_unit *unit) {
    if (!ntc_parts_of_unit(view, number) || check_reloc_kinds(unit) ||
        check_words(unit, view->count[NTC_SECTION_IMAGES]))
        return -EBADMSG;
    return 0;
}

static const char *open_unit(const struct ntc_view *view, uint32_t number, struct ntc_unit *unit) {
    const char *why = open_ranges(view, number, unit);
    if (why)
        return why;
    if (!ntc_parts_of_guest(view, number) || !ntc_parts_of_unit(view, number))
        return "a part of it cannot be had";
    if (view->notes) {
        why = check_note(view, &view->notes[number]);
        if (why)
            return why;
        describe_note(view, &view->notes[number], unit);
    }
    why = check_reloc_kinds(unit);
    if (why)
        return why;
    return ntc_unit_check(unit, view->count[NTC_SECTION_IMAGES]);
}

void ntc_unit_again(const struct ntc_view *view, uint32_t number, struct ntc_unit *unit) {
    describe(view, &view->units[number], unit);
}

int ntc_unit_open(const struct ntc_view *view, uint32_t number, struct ntc_unit *unit) {
    return open_unit(view, number, unit) ? -EBADMSG : 0;
}

const char *ntc_unit_complaint(const struct ntc_view *view, uint32_t number) {
    struct ntc_unit unit;
    return open_unit(view, number, &unit);
}

/* -- Comparing -- */

static bool same_bytes(const uint8_t *a, const uint8_t *b, uint32_t length) {
    uint32_t i = 0;
    for (; i + 8 <= length; i += 8)
        if (light_load(a + i, 8) != light_load(b + i, 8))
            return false;
    return light_load(a + i, length - i) == light_load(b + i, length - i);
}

/* What a field holds when its images stand at their slides. False: any value does, or none can be known. */
static bool expected_value(const struct ntc_field *field, uint64_t slide, const struct ntc_slides *slides,
                           uint64_t recorded, uint64_t *value) {
    if (field->image >= slides->count || !slides->known[field->image])
        return false;
    uint64_t other = slides->slide[field->image];
    switch (field->kind) {
    case NTC_FIELD_SLIDE:
        *value = recorded + other;
        return true;
    case NTC_FIELD_UNSLIDE:
        *value = recorded - other;
        return true;
    default:
        *value = recorded + other - slide;
        return true;
    }
}

/* The part of a field that lies in [from, from + length). */
static bool same_field(const struct ntc_unit *unit, const struct ntc_field *field, uint64_t slide,
                       const struct ntc_slides *slides, const uint8_t *bytes, uint32_t from,
                       uint32_t length) {
    uint64_t value;
    if (field->kind == NTC_FIELD_ANY)
        return true;
    if (!expected_value(field, slide, slides, light_load(unit->bytes + field->offset, field->size), &value))
        return false;
    for (uint32_t i = 0; i < field->size; i++) {
        uint32_t at = field->offset + i;
        if (at >= from && at < from + length && bytes[at - from] != (uint8_t)(value >> 8 * i))
            return false;
    }
    return true;
}

bool ntc_unit_compare(const struct ntc_unit *unit, uint64_t slide, const struct ntc_slides *slides,
                      const uint8_t *bytes, uint32_t from, uint32_t length) {
    if (from > unit->guest_length || length > unit->guest_length - from)
        return false;
    uint32_t at = from, end = from + length;
    for (unsigned i = 0; i < unit->field_count && at < end; i++) {
        const struct ntc_field *field = &unit->fields[i];
        uint32_t field_end = field->offset + (uint32_t)field->size;
        if (field_end <= at)
            continue;
        if (field->offset >= end)
            break;
        if (field->offset > at && !same_bytes(unit->bytes + at, bytes + (at - from), field->offset - at))
            return false;
        if (!same_field(unit, field, slide, slides, bytes, from, length))
            return false;
        at = field_end;
    }
    return at >= end || same_bytes(unit->bytes + at, bytes + (at - from), end - at);
}

int64_t ntc_field_value(const struct ntc_field *field, const uint8_t *unit_bytes) {
    unsigned unused = 64 - 8u * field->size;
    return (int64_t)(light_load(unit_bytes + field->offset, field->size) << unused) >> unused;
}

/* The next entry of one of the image's two tables, from the page that the unit begins on. *at: where to go
 * on, or 0. */
static bool next_entry(const struct ntc_view *view, uint32_t number, const struct ntc_unit *unit,
                       bool unlikely, uint64_t *at, struct ntc_unit_entry *entry) {
    const struct ntc_image_record *image = &view->images[unit->image];
    uint64_t first = unit->link_address - image->link_base;
    uint64_t from = image->first_entry + (unlikely ? (uint64_t)image->likely_count : 0);
    uint64_t end = image->first_entry + (uint64_t)(unlikely ? image->entry_count : image->likely_count);
    const uint32_t *word = &view->pages[image->first_page + (unlikely ? image->page_count + 1 : 0)];
    uint64_t behind = word[(first + unit->guest_length - 1) / PAGE_SIZE + 1];
    if (!*at)
        *at = word[first / PAGE_SIZE];
    if (*at < from)
        return false;
    for (; *at < end && *at < behind; ++*at) {
        if (!ntc_parts_there(view, NTC_SECTION_ENTRIES, *at))
            continue; /* so nobody has used it */
        const struct ntc_entry_record *record = &view->entries[*at];
        if (record->address >= first + unit->guest_length)
            return false;
        if (record->unit != number || record->address < first || record->host >= unit->code_length)
            continue;
        *entry = (struct ntc_unit_entry){
            .guest = (uint16_t)(record->address - first), .host = record->host, .abi_data = record->abi_data};
        ++*at;
        return true;
    }
    return false;
}

#define IN_UNLIKELY (1ull << 63) /* of *at */

bool ntc_unit_entry(const struct ntc_view *view, uint32_t number, const struct ntc_unit *unit, uint64_t *at,
                    struct ntc_unit_entry *entry) {
    if (!ntc_view_image(view, unit->image))
        return false;
    if (!(*at & IN_UNLIKELY)) {
        if (next_entry(view, number, unit, false, at, entry))
            return true;
        *at = IN_UNLIKELY;
    }
    uint64_t place = *at & ~IN_UNLIKELY;
    bool found = next_entry(view, number, unit, true, &place, entry);
    *at = place | IN_UNLIKELY;
    return found;
}
