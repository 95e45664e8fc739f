/* Opening a view: the header and the section table, each field of which is checked here once. What the
 * sections contain is checked when it is used (unit.c, search.c).
 */
#include "cache-format/view.h"

#include <inttypes.h>
#include <string.h>

#include "cache-format/header.h"

static const struct section_rule {
    const char *name;
    uint32_t record_size;
    bool loaded, optional;
} rules[NTC_SECTION_KINDS] = {
    [NTC_SECTION_CODE] = {"CODE", 1, true, false},
    [NTC_SECTION_SLOTS] = {"SLOTS", sizeof(uint64_t), true, false},
    [NTC_SECTION_CONSTS] = {"CONSTS", sizeof(uint64_t), true, false},
    [NTC_SECTION_IMAGES] = {"IMAGES", sizeof(struct ntc_image_record), true, false},
    [NTC_SECTION_UNITS] = {"UNITS", sizeof(struct ntc_unit_record), true, false},
    [NTC_SECTION_ENTRIES] = {"ENTRIES", sizeof(struct ntc_entry_record), true, false},
    [NTC_SECTION_PAGES] = {"PAGES", sizeof(uint32_t), true, false},
    [NTC_SECTION_INDEX] = {"INDEX", sizeof(struct ntc_index_record), true, false},
    [NTC_SECTION_BYTES] = {"BYTES", 1, true, false},
    [NTC_SECTION_SITES] = {"SITES", sizeof(struct ntc_site), true, false},
    [NTC_SECTION_RELOCS] = {"RELOCS", sizeof(struct ntc_reloc), true, false},
    [NTC_SECTION_FIELDS] = {"FIELDS", sizeof(struct ntc_field), true, false},
    [NTC_SECTION_MAPS] = {"MAPS", 1, true, false},
    [NTC_SECTION_STATES] = {"STATES", sizeof(struct ntc_state), true, false},
    [NTC_SECTION_STRINGS] = {"STRINGS", 1, true, false},
    [NTC_SECTION_PLACES] = {"PLACES", sizeof(uint32_t), true, false},
    [NTC_SECTION_LIKELY] = {"LIKELY", sizeof(struct ntc_range), true, false},
    [NTC_SECTION_LEAVES] = {"LEAVES", NTC_DIGEST_SIZE, true, false},
    [NTC_SECTION_IR] = {"IR", 1, false, true},
    [NTC_SECTION_NOTES] = {"NOTES", sizeof(struct ntc_note_record), false, false},
    [NTC_SECTION_LINKS] = {"LINKS", sizeof(struct ntc_link), false, false},
};

const char *ntc_section_name(uint32_t kind) {
    return kind && kind < NTC_SECTION_KINDS ? rules[kind].name : NULL;
}

bool ntc_is_zero(const void *bytes, size_t length) {
    const uint8_t *at = bytes;
    for (size_t i = 0; i < length; i++)
        if (at[i])
            return false;
    return true;
}

static uint64_t chunks_in(uint64_t bytes) {
    return (bytes + NTC_CHUNK_SIZE - 1) / NTC_CHUNK_SIZE;
}

const struct ntc_section *ntc_header_section(const struct ntc_header *header, uint32_t kind) {
    for (uint32_t i = 0; i < header->section_count; i++)
        if (header->section[i].kind == kind)
            return &header->section[i];
    return NULL;
}

static int malformed(const char *path, struct ntc_error *error, const char *what) {
    return ntc_fail(error, NTC_FAULT_MALFORMED, "cache '%s' is malformed: %s; make it again", path, what);
}

static int check_fixed(const struct ntc_header *h, const char *path, struct ntc_error *error) {
    if (memcmp(h->magic, NTC_MAGIC, sizeof h->magic))
        return ntc_fail(error, NTC_FAULT_MAGIC, "'%s' is not a cache file; precompile-cache makes them",
                        path);
    if (h->version_major != NTC_VERSION_MAJOR)
        return ntc_fail(error, NTC_FAULT_VERSION,
                        "cache '%s' has format version %u.%u, this program reads %u; make it again", path,
                        h->version_major, h->version_minor, NTC_VERSION_MAJOR);
    if (h->required_flags & ~NTC_REQUIRE_INDEX_LIKELY)
        return ntc_fail(error, NTC_FAULT_VERSION,
                        "cache '%s' requires a feature that is not known (flags %#x); make it again", path,
                        h->required_flags);
    if (h->header_size != NTC_HEADER_SIZE || h->chunk_size != NTC_CHUNK_SIZE)
        return malformed(path, error, "header or chunk size");
    if (h->reserved3 || !ntc_is_zero(h->reserved1, sizeof h->reserved1) ||
        !ntc_is_zero(h->reserved2, sizeof h->reserved2) || !ntc_is_zero(h->reserved4, sizeof h->reserved4))
        return malformed(path, error, "reserved bytes of the header are not zero");
    if (h->producer[sizeof h->producer - 1])
        return malformed(path, error, "the producer's name has no end");
    if (h->section_count > NTC_SECTIONS_MAX ||
        !ntc_is_zero(&h->section[h->section_count],
                     (NTC_SECTIONS_MAX - h->section_count) * sizeof h->section[0]))
        return malformed(path, error, "section table");
    if (h->file_size > NTC_FILE_MAX || h->load_size > NTC_LOAD_MAX || h->load_size > h->file_size ||
        h->load_size < 2 * PAGE_SIZE || h->load_size % PAGE_SIZE)
        return malformed(path, error, "sizes");
    if (h->index_probes > NTC_PROBES_MAX)
        return malformed(path, error, "index_probes");
    bool is_signed = h->signature_kind == NTC_ED25519;
    if ((!is_signed && h->signature_kind != NTC_UNSIGNED) ||
        (!is_signed &&
         (!ntc_is_zero(h->signature, sizeof h->signature) || !ntc_is_zero(h->key_id, sizeof h->key_id))))
        return malformed(path, error, "kind of signature");
    return 0;
}

static int check_section(const struct ntc_header *h, uint32_t number, const char *path,
                         struct ntc_error *error) {
    const struct ntc_section *s = &h->section[number];
    if (!s->kind || s->flags & ~NTC_SECTION_REQUIRED)
        return malformed(path, error, "kind or flags of a section");
    bool known = s->kind < NTC_SECTION_KINDS;
    if (!known && s->flags & NTC_SECTION_REQUIRED)
        return ntc_fail(error, NTC_FAULT_VERSION,
                        "cache '%s' requires section %u, which is not known; make it again", path, s->kind);
    if (s->offset < NTC_HEADER_SIZE || s->offset % 64 || s->offset > h->file_size ||
        s->length > h->file_size - s->offset)
        return malformed(path, error, "a section lies outside the file");
    if (!s->record_size || s->length % s->record_size || s->length / s->record_size != s->record_count ||
        (known && s->record_size != rules[s->kind].record_size))
        return malformed(path, error, "record size or count of a section");
    uint64_t end = s->offset + s->length;
    if (known && (rules[s->kind].loaded ? end > h->load_size : s->offset < h->load_size))
        return malformed(path, error, "a section lies on the wrong side of load_size");
    for (uint32_t i = 0; i < number; i++) {
        const struct ntc_section *other = &h->section[i];
        if (other->kind == s->kind)
            return malformed(path, error, "a section occurs twice");
        if (s->offset < other->offset + other->length && other->offset < end)
            return malformed(path, error, "sections overlap");
    }
    return 0;
}

int ntc_header_check(const struct ntc_header *h, const char *path, struct ntc_error *error) {
    int result = check_fixed(h, path, error);
    for (uint32_t i = 0; i < h->section_count && !result; i++)
        result = check_section(h, i, path, error);
    if (result)
        return result;
    const struct ntc_section *s[NTC_SECTION_KINDS];
    for (uint32_t kind = 1; kind < NTC_SECTION_KINDS; kind++) {
        s[kind] = ntc_header_section(h, kind);
        if (!s[kind] && !rules[kind].optional)
            return malformed(path, error, "a section is missing");
    }
    const struct ntc_section *code = s[NTC_SECTION_CODE], *slots = s[NTC_SECTION_SLOTS],
                             *consts = s[NTC_SECTION_CONSTS], *leaves = s[NTC_SECTION_LEAVES];
    if ((code->offset | code->length | slots->length | consts->length) % PAGE_SIZE ||
        slots->offset != code->offset + code->length || consts->offset != slots->offset + slots->length)
        return malformed(path, error, "CODE, SLOTS and CONSTS are not whole pages in a row");
    if (slots->record_count < NTC_RUNTIME_SLOTS)
        return malformed(path, error, "too few link slots");
    uint32_t likely = h->index_likely, others = s[NTC_SECTION_INDEX]->record_count - likely;
    if (!(h->required_flags & NTC_REQUIRE_INDEX_LIKELY) != !likely)
        return malformed(path, error, "index_likely");
    if (likely & (likely - 1) || !others || others & (others - 1) ||
        likely >= s[NTC_SECTION_INDEX]->record_count)
        return malformed(path, error, "the index is no power of two");
    if (!s[NTC_SECTION_STATES]->record_count || !s[NTC_SECTION_STRINGS]->record_count ||
        s[NTC_SECTION_IMAGES]->record_count > NTC_IMAGES_MAX ||
        s[NTC_SECTION_PLACES]->record_count != s[NTC_SECTION_UNITS]->record_count ||
        s[NTC_SECTION_NOTES]->record_count != s[NTC_SECTION_UNITS]->record_count)
        return malformed(path, error, "number of states, strings, images, places or notes");
    for (uint32_t i = 0; i < h->section_count; i++) {
        const struct ntc_section *other = &h->section[i];
        if (other->offset < h->load_size && other != leaves && other->offset + other->length > leaves->offset)
            return malformed(path, error, "LEAVES are not the last section that is loaded");
        if (other->offset < h->load_size && other->offset + other->length > h->load_size)
            return malformed(path, error, "a section lies across load_size");
    }
    if (align_up(leaves->offset + leaves->length, PAGE_SIZE) != h->load_size)
        return malformed(path, error, "load_size is not the end of LEAVES");
    if (leaves->record_count != h->leaf_count ||
        h->leaf_count != chunks_in(leaves->offset - NTC_HEADER_SIZE) + chunks_in(h->file_size - h->load_size))
        return malformed(path, error, "number of leaves");
    return 0;
}

int ntc_view_open(struct ntc_view *view, const void *base, uint64_t size, struct ntc_error *error) {
    const char *path = "(memory)";
    *view = (struct ntc_view){.base = base, .size = size, .header = base};
    if (size < NTC_HEADER_SIZE)
        return ntc_fail(error, NTC_FAULT_TRUNCATED, "cache '%s' is shorter than a header", path);
    int result = ntc_header_check(view->header, path, error);
    if (result)
        return result;
    if (size < view->header->load_size)
        return ntc_fail(error, NTC_FAULT_TRUNCATED, "cache '%s' is truncated", path);
    const void *at[NTC_SECTION_KINDS] = {NULL};
    for (uint32_t kind = 1; kind < NTC_SECTION_KINDS; kind++) {
        const struct ntc_section *section = ntc_header_section(view->header, kind);
        if (!section)
            continue;
        view->count[kind] = section->record_count;
        at[kind] = section->offset + section->length <= size ? view->base + section->offset : NULL;
    }
    view->code = at[NTC_SECTION_CODE];
    view->slots = at[NTC_SECTION_SLOTS];
    view->consts = at[NTC_SECTION_CONSTS];
    view->images = at[NTC_SECTION_IMAGES];
    view->units = at[NTC_SECTION_UNITS];
    view->entries = at[NTC_SECTION_ENTRIES];
    view->pages = at[NTC_SECTION_PAGES];
    view->index = at[NTC_SECTION_INDEX];
    view->bytes = at[NTC_SECTION_BYTES];
    view->sites = at[NTC_SECTION_SITES];
    view->relocs = at[NTC_SECTION_RELOCS];
    view->fields = at[NTC_SECTION_FIELDS];
    view->maps = at[NTC_SECTION_MAPS];
    view->states = at[NTC_SECTION_STATES];
    view->strings = at[NTC_SECTION_STRINGS];
    view->places = at[NTC_SECTION_PLACES];
    view->likely = at[NTC_SECTION_LIKELY];
    view->leaves = at[NTC_SECTION_LEAVES];
    view->ir = at[NTC_SECTION_IR];
    view->links = at[NTC_SECTION_LINKS];
    view->notes = view->links ? at[NTC_SECTION_NOTES] : NULL;
    if (view->strings[0] || view->strings[view->count[NTC_SECTION_STRINGS] - 1])
        return malformed(path, error, "STRINGS have no end");
    const struct ntc_state plain = ntc_state_plain();
    if (memcmp(view->states, &plain, sizeof plain))
        return malformed(path, error, "the first state");
    return 0;
}

struct ntc_state ntc_state_plain(void) {
    struct ntc_state state = {.flags = 0};
    for (unsigned i = 0; i < ARRAY_SIZE(state.where); i++)
        state.where[i] = (uint8_t)i;
    return state;
}

const char *ntc_view_string(const struct ntc_view *view, uint32_t offset) {
    return offset < view->count[NTC_SECTION_STRINGS] ? view->strings + offset : "";
}
