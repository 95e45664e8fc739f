/* Reading a cache file that lies in memory. Nothing is parsed when a view is opened but the header; every
 * offset, length and number is checked before it is used, so a file whose digests are right and whose
 * contents are nonsense is refused piece by piece and never followed out of its bounds.
 *
 *   struct ntc_search search;
 *   struct ntc_hit hit;
 *   ntc_search_content(&search, view, bytes, available, mode);
 *   while (ntc_search_next(&search, &hit)) {
 *       struct ntc_unit unit;
 *       if (ntc_unit_open(view, hit.unit, &unit))
 *           continue;
 *       slide = rip - hit.address;
 *       ... compare the unit's bytes with ntc_unit_compare(), then use it
 *   }
 *
 * The memory must be stable: sealed, or private to this process (file.h). A view may be used by any number of
 * threads at a time.
 *
 * Of a large file not all is there from the start (parts.h). Searches and the functions that open units see
 * to it that what they read is there, and after ntc_unit_use() all that belongs to the unit is; a part that
 * cannot be had ends a search and refuses a unit.
 *
 * Functions marked (light) touch no vector registers, so that they can run while a guest's
 * are live; they take no locks, allocate nothing and print nothing.
 */
#ifndef NESTOR_CACHE_VIEW_H
#define NESTOR_CACHE_VIEW_H

#include "cache-format/error.h"
#include "cache-format/format.h"

struct ntc_parts;

struct ntc_view {
    const uint8_t *base;
    uint64_t size; /* load_size, or all of the file */
    const struct ntc_header *header;
    /* Inside base; counts are of records, or of bytes where there are none. */
    const uint8_t *code;
    const uint64_t *slots;
    const uint64_t *consts;
    const struct ntc_image_record *images;
    const struct ntc_unit_record *units;
    const struct ntc_entry_record *entries;
    const uint32_t *pages;
    const struct ntc_index_record *index;
    const uint8_t *bytes;
    const struct ntc_site *sites;
    const struct ntc_reloc *relocs;
    const struct ntc_field *fields;
    const uint8_t *maps;
    const struct ntc_state *states;
    const char *strings;
    const uint32_t *places;
    const struct ntc_range *likely;
    const uint8_t *leaves;
    /* NULL when not loaded. */
    const char *ir;
    const struct ntc_note_record *notes;
    const struct ntc_link *links;
    uint64_t count[NTC_SECTION_KINDS];
    struct ntc_parts *parts; /* parts.h; NULL: all of it is there */
};

/* Check header and section table. size: load_size at least. 0 or -errno with *error set. */
MUST_CHECK int ntc_view_open(struct ntc_view *view, const void *base, uint64_t size, struct ntc_error *error);

/* A string; "" for an offset that is none. */
const char *ntc_view_string(const struct ntc_view *view, uint32_t offset);

/* (light) An image whose record has been checked; NULL for none or a malformed one. */
const struct ntc_image_record *ntc_view_image(const struct ntc_view *view, uint32_t number);
/* The name of a section ("CODE"), or NULL. */
const char *ntc_section_name(uint32_t kind);

/* A unit whose every record has been checked. The writer takes the same structure. Pointers go into the view.
 */
struct ntc_unit {
    uint64_t link_address;
    uint32_t guest_length;
    uint32_t mode;
    uint32_t image;
    uint32_t heat;
    uint16_t generator; /* enum ntc_generator */
    uint32_t abi_data;
    uint64_t host_features;
    const uint8_t *bytes;
    const uint8_t *code;
    uint32_t code_length;
    uint32_t code_offset; /* in CODE; 0 in what a writer is given first */
    /* Where each link slot leads while it is not linked: offset in the unit's code + code_offset. */
    const uint64_t *slots;
    const uint64_t *consts; /* their values without a slide */
    const struct ntc_site *sites;
    /* A reader gives those that are settled when the unit is put to use; to a writer any. */
    const struct ntc_reloc *relocs;
    /* Those that the writer settles, as a reader gives them; none in what a VM loaded. */
    const struct ntc_link *links;
    uint32_t link_count;
    const struct ntc_field *fields; /* ascending, not overlapping */
    const uint8_t *map;             /* map.h */
    uint32_t map_length;
    /* What the map's state numbers mean. The first is ntc_state_plain(); a map that uses no other needs none.
     */
    const struct ntc_state *states;
    uint32_t state_count;
    /* Number of the first one in the file: code and relocations count from here. */
    uint32_t first_slot, first_const, first_site;
    uint16_t slot_count, const_count, site_count, reloc_count, field_count, entry_count;
    /* Only what a writer is given; a reader walks them with ntc_unit_entry(). */
    const struct ntc_unit_entry *entries;
    /* Name, heat and IR are not in what a VM loaded. */
    const char *name; /* never NULL from a reader; NULL for a writer: none */
    uint32_t name_offset;
    const char *ir; /* NULL: none, or not loaded */
    uint32_t ir_length;
};

/* A place where a unit may be entered. */
struct ntc_unit_entry {
    uint16_t guest;    /* offset from the unit's first byte */
    uint32_t host;     /* offset in its code */
    uint16_t abi_data; /* the translator's own */
};

/* (light) Check unit number `number` completely and describe it. 0, or -EBADMSG. */
MUST_CHECK int ntc_unit_open(const struct ntc_view *view, uint32_t number, struct ntc_unit *unit);
/* (light) The same a step at a time, for whoever is to touch no more memory than he needs. After a sketch the
 * guest bytes may be compared; after ntc_unit_use() slots and constants be set; sites are checked one by one,
 * and ntc_map_find() checks what it finds. 0, or -EBADMSG. */
MUST_CHECK int ntc_unit_sketch(const struct ntc_view *view, uint32_t number, struct ntc_unit *unit);
MUST_CHECK int ntc_unit_use(const struct ntc_view *view, uint32_t number, const struct ntc_unit *unit);
MUST_CHECK bool ntc_unit_site(const struct ntc_unit *unit, unsigned number);
MUST_CHECK bool ntc_state_check(const struct ntc_state *state);
/* (light) Describe a unit that was put to use or opened before: sealed memory does not change. */
void ntc_unit_again(const struct ntc_view *view, uint32_t number, struct ntc_unit *unit);
/* What ntc_unit_open() has against a unit, for people; NULL: nothing. */
const char *ntc_unit_complaint(const struct ntc_view *view, uint32_t number);

/* State 0 of every file: each register in its own, the flags live. */
struct ntc_state ntc_state_plain(void);

/* (light) What is wrong with a unit by itself, in a file with so many images; NULL: nothing. */
const char *ntc_unit_check(const struct ntc_unit *unit, uint64_t images);

/* (light) Walk the entries of an open unit: *at starts as 0. False behind the last. */
bool ntc_unit_entry(const struct ntc_view *view, uint32_t number, const struct ntc_unit *unit, uint64_t *at,
                    struct ntc_unit_entry *entry);

/* A hash of the unit's guest bytes with every field zero: the low half of its note's. Never 0. */
uint64_t ntc_unit_hash(const struct ntc_unit *unit);

/* How far each image of a file has moved; known[i] false: not found yet. */
struct ntc_slides {
    const uint64_t *slide;
    const bool *known;
    uint32_t count; /* images */
};

/* (light) Are guest bytes [from, from + length) of the unit as recorded, when it stands at its link address
 * + slide? bytes points at the first of them. Fields that lie across either end are compared as far as they
 * lie inside, so that a unit may be compared page by page. A field that depends on an image whose slide is
 * not known does not match. */
bool ntc_unit_compare(const struct ntc_unit *unit, uint64_t slide, const struct ntc_slides *slides,
                      const uint8_t *bytes, uint32_t from, uint32_t length);

/* (light) A link as the relocation that it is. */
static inline struct ntc_reloc ntc_link_reloc(const struct ntc_link *link) {
    return (struct ntc_reloc){.place = link->place,
                              .kind = link->kind,
                              .where = NTC_PLACE_CODE,
                              .width = 4,
                              .index = link->index,
                              .addend = link->addend};
}

/* (light) The value of field number `number`, sign-extended, from the whole unit's guest bytes. */
int64_t ntc_field_value(const struct ntc_field *field, const uint8_t *unit_bytes);

/* -- Search -- */

#define NTC_DIGEST_MAX 64u
/* Bytes under an entry's digest: the longest of these that fits into the unit's rest before its next field.
 */
#define NTC_DIGEST_CLASSES 5u
static const uint8_t ntc_digest_lengths[NTC_DIGEST_CLASSES] = {64, 32, 16, 8, 4};

/* What a search yields: bounds are checked, the unit is not yet. */
struct ntc_hit {
    uint32_t unit, entry;
    uint64_t address; /* link address of the entry */
    uint32_t image;
    uint32_t guest; /* offset in the unit */
    uint32_t host;  /* offset in the unit's code */
    uint16_t abi_data;
};

struct ntc_search {
    const struct ntc_view *view;
    const uint8_t *bytes;
    uint32_t available;
    uint32_t mode, also[2]; /* made for one of them; `also` may be set once the search is begun */
    /* by content: which of the tables, [first, first + mask] of the index; which digest length, where in its
     * run */
    uint32_t first, mask;
    uint32_t length_class, at, probes, tag;
    bool started;
    /* by address: entries [at, end), first of the likely ones; with `bytes`, of those that begin with them */
    bool by_address, unbounded, unlikely;
    uint8_t checks[NTC_DIGEST_CLASSES], checked; /* `checked`: a bit for each check that is worked out */
    uint32_t image, offset, end;
};

/* (light) Entries whose first bytes are those at `bytes` (NTC_DIGEST_MAX are enough; at a page's end give
 * what there is), made for mode. */
void ntc_search_content(struct ntc_search *search, const struct ntc_view *view, const uint8_t *bytes,
                        uint32_t available, uint32_t mode);
/* (light) Entries at a link address of an image, made for mode, the hottest first: of the units that are
 * likely to be used, or of the others. Those that the guest's bytes at that place rule out at a glance are
 * left out. */
void ntc_search_bytes_at(struct ntc_search *search, const struct ntc_view *view, uint32_t image,
                         uint64_t link_address, bool unlikely, const uint8_t *bytes, uint32_t available,
                         uint32_t mode);
/* (light) Both, whatever the bytes. */
void ntc_search_address(struct ntc_search *search, const struct ntc_view *view, uint32_t image,
                        uint64_t link_address, uint32_t mode);
/* (light) The entry of unit number `number`, whose records are good, at an offset from its first guest byte.
 * False: it has none there. */
bool ntc_search_unit(const struct ntc_view *view, uint32_t number, uint64_t guest, struct ntc_hit *hit);
/* (light) The next one; false: no more. Looks at a bounded number of records. */
bool ntc_search_next(struct ntc_search *search, struct ntc_hit *hit);

/* (light) The digest of the index: XXH3-64 with the seed length << 32. */
uint64_t ntc_entry_digest(const uint8_t *bytes, uint32_t length);

#endif
