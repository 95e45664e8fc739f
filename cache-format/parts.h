/* Parts of a cache file that come when they are first needed.
 *
 * Of a large file the store's memory holds at first what every VM reads and what is likely to be used; the
 * rest are holes. A chunk is verified by its own leaf and copied in when a VM asks for it, after which the
 * store gives up its mapping of it: from then on nobody can change it. Until then it reads as zeroes. Which
 * chunks are there is told by bits that only the store can write, in pages behind the file's.
 *
 *   if (!ntc_parts_need(view, NTC_SECTION_ENTRIES, low, high - low))
 *       return; the records cannot be had
 *
 * Tools wait for what they ask for. A VM does not: to translate a block takes less time than to have a part
 * read and verified, so it goes on as if the part could not be had and finds it there the next time.
 *
 * All of this is (light): it runs while a guest's vector registers are live, and asks the store by bare
 * system calls that a confined VM may make. Any number of threads may ask at a time.
 */
#ifndef NESTOR_CACHE_PARTS_H
#define NESTOR_CACHE_PARTS_H

#include "cache-format/view.h"

/* Files that are no larger, or of which nothing is said to be likely, are there as a whole. */
#define NTC_PARTS_FROM (4 * MIB)

struct ntc_parts {
    const uint64_t *present; /* a bit for each chunk; the store sets them */
    uint64_t *asked;         /* a bit for each chunk that was asked for, or could not be had: not again */
    const uint8_t *base;     /* of the view */
    uint64_t *mapped;        /* a bit for each chunk of the view that was mapped as a whole */
    uint32_t chunks;
    int socket; /* to the store */
    bool waits; /* for what is asked for; else it is not there until it has come */
    bool lost;  /* the store does not answer any more */
    bool told;  /* what was refused first was told of */
    uint32_t lock;
    uint64_t heard_tsc; /* when it was last seen whether the store has something to tell */
    const char *path;
    uint8_t root[NTC_DIGEST_SIZE];
    uint64_t place[NTC_SECTION_KINDS]; /* of the sections in the file */
    uint32_t record[NTC_SECTION_KINDS];
    uint64_t requests, wait_tsc; /* time that requests took */
};

/* A page fault costs as much as mapping a hundred pages. Map a chunk that is there, whole pages of it, and
 * what is there around it, of which nothing was mapped so yet (`mapped` has a bit for each chunk); only what
 * lies in [from, to) of the file. at: where its byte 0 is mapped. */
void ntc_parts_map(const struct ntc_parts *parts, uint64_t *mapped, const uint8_t *at, uint32_t chunk,
                   uint64_t from, uint64_t to);

/* Chunks before LEAVES, and bytes of the pages that say which of them are there. */
static inline uint64_t ntc_parts_chunks(uint64_t leaves_offset) {
    return (leaves_offset - NTC_HEADER_SIZE + NTC_CHUNK_SIZE - 1) / NTC_CHUNK_SIZE;
}
static inline uint64_t ntc_parts_state_size(uint64_t chunks) {
    return align_up((chunks + 63) / 64 * sizeof(uint64_t), PAGE_SIZE);
}

MUST_CHECK bool ntc_parts_ask(const struct ntc_view *view, enum ntc_section_kind kind, uint64_t first,
                              uint64_t count);

/* Records [first, first + count), which are within the section: are they there, or can they be had? */
MUST_CHECK static inline bool ntc_parts_need(const struct ntc_view *view, enum ntc_section_kind kind,
                                             uint64_t first, uint64_t count) {
    return !view->parts || ntc_parts_ask(view, kind, first, count);
}
/* Is a record there? It is not asked for. */
bool ntc_parts_there(const struct ntc_view *view, enum ntc_section_kind kind, uint64_t record);
/* Is all of a range of the file there? */
bool ntc_parts_have(const struct ntc_view *view, uint64_t offset, uint64_t length);
/* As ntc_parts_need() for what a unit's guest bytes are compared by, and for all else that belongs to it. The
 * ranges in its record were checked. */
MUST_CHECK bool ntc_parts_of_guest(const struct ntc_view *view, uint32_t number);
MUST_CHECK bool ntc_parts_of_unit(const struct ntc_view *view, uint32_t number);

#endif
