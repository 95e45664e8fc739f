/* A sealed cache file mapped for execution: code shared and read-only, link slots and constants private and
 * writable, at the distance that the code's RIP-relative operands were made for. Code memory is never
 * writable here, through any mapping.
 *
 * A mapping belongs to one vCPU (slots lead into its own code cache); a file may be mapped any number of
 * times. No page of slots is touched before a unit that owns some is put to use: a slot on disk holds an
 * offset, and becomes an address when its page is prepared.
 */
#ifndef NESTOR_CACHE_MAPPING_H
#define NESTOR_CACHE_MAPPING_H

#include "cache-format/file.h"

struct ntc_mapping {
    const struct ntc_view *view;
    uint8_t *base;
    uint64_t size;
    const uint8_t *code;
    uint64_t code_size;
    uint64_t *slots; /* the first NTC_RUNTIME_SLOTS are the run time's to set, at any time */
    uint64_t slot_count;
    uint64_t *consts;
    uint64_t const_count;
    bool lent;         /* the address space is the caller's */
    uint8_t *prepared; /* a bit for each page of slots */
    uint64_t *reached; /* of a file that comes in parts: a bit for each chunk that was mapped as a whole */
    uint64_t private_pages; /* pages of slots that were prepared */
    uint64_t likely_consts; /* bytes that are written as a whole once one of them is; 0: no more */
};

/* Address space that the caller keeps for mappings, and unmaps after them. */
struct ntc_room {
    uint8_t *at; /* at a page's start */
    uint64_t size;
};

/* Map it at the start of the room (NTC_FAULT_MEMORY when that is too small); NULL: anywhere. */
MUST_CHECK int ntc_mapping_create(struct ntc_mapping *mapping, const struct ntc_file *file,
                                  const struct ntc_room *room, struct ntc_error *error);
void ntc_mapping_destroy(struct ntc_mapping *mapping);

/* (light) Make the slots [first, first + count) lead to their units' unlinked exits, unless that was done.
 * Call it before a unit's code is first reached and before its slots are written. */
void ntc_mapping_prepare(struct ntc_mapping *mapping, uint32_t first, uint32_t count);

/* (light) Was a slot's page prepared? Of a unit that was ever put to use all are. */
static inline bool ntc_mapping_is_prepared(const struct ntc_mapping *mapping, uint32_t slot) {
    uint64_t page = slot / (PAGE_SIZE / sizeof(uint64_t));
    return mapping->prepared[page / 8] >> page % 8 & 1;
}

/* (light) A unit is about to be used: map its code and constants and what is there around them. */
void ntc_mapping_reach(struct ntc_mapping *mapping, const struct ntc_unit *unit);

/* Prepare slots of the units that are likely to be used, the likeliest first, if they are there and up to
 * about as many as a boot uses: all at once they cost less than by a page fault each. */
void ntc_mapping_populate(struct ntc_mapping *mapping);

/* (light) The same for constants: a kernel moved, so that most are written. */
void ntc_mapping_write_consts(struct ntc_mapping *mapping);

/* Host address of a unit's code. */
static inline const uint8_t *ntc_mapping_code(const struct ntc_mapping *mapping,
                                              const struct ntc_unit *unit) {
    return mapping->code + unit->code_offset;
}
/* (light) Is host_pc in the mapped code? */
static inline bool ntc_mapping_holds(const struct ntc_mapping *mapping, uint64_t host_pc) {
    return host_pc - (uint64_t)(uintptr_t)mapping->code < mapping->code_size;
}
/* (light) The unit whose code host_pc lies in: its number and the offset in its code. False: none. */
MUST_CHECK bool ntc_mapping_find(const struct ntc_mapping *mapping, uint64_t host_pc, uint32_t *unit,
                                 uint32_t *offset);

#endif
