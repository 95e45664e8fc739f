/* Private to cache-format: a large file in memory, of which parts are filled in one after the other (parts.h
 * has the other side). */
#ifndef NESTOR_CACHE_SPARSE_H
#define NESTOR_CACHE_SPARSE_H

#include "cache-format/error.h"
#include "cache-format/format.h"

struct ntc_sparse {
    int memfd;
    uint64_t size;          /* of the memory file: the file's load_size and the state behind it */
    uint8_t *map;           /* all of it, writable; a chunk's pages leave this mapping once they are filled */
    uint64_t *present;      /* behind load_size */
    uint8_t *leaves;        /* verified */
    struct ntc_header head; /* verified */
    uint64_t filled;        /* bytes */
    uint64_t *wished;       /* a bit for each chunk that is to be loaded when there is time */
    uint64_t wishes;        /* bits that are set, at most */
    bool sealed;
    unsigned table;       /* whose turn it is to be loaded while nobody asks */
    uint64_t table_chunk; /* of it */
};

/* Is the file worth it? One of which nothing is known to be likely would be asked for all over. */
bool ntc_sparse_fits(const struct ntc_header *header);
/* Verify header and leaves of an open file, and load what every VM reads and what LIKELY names. */
MUST_CHECK int ntc_sparse_create(struct ntc_sparse *sparse, int from, const char *path,
                                 const struct ntc_header *header, struct ntc_error *error);
/* Load chunks, in any order; those that are there already, and numbers that are none, are passed over.
 * Nothing is announced unless all of them are right. */
MUST_CHECK int ntc_sparse_load(struct ntc_sparse *sparse, int from, const char *path, const uint32_t *chunk,
                               uint32_t count, struct ntc_error *error);
/* The same of up to STORE_CHUNKS_MAX for a VM, with neighbours that it is likely to ask for next. */
MUST_CHECK int ntc_sparse_ask(struct ntc_sparse *sparse, int from, const char *path, const uint32_t *chunk,
                              uint32_t count, struct ntc_error *error);
/* Note that a VM would like to have chunks, and load a few of those; *failed: one of them could not be had
 * from the file, which does not hold up the others. False: none is wished for any more. */
void ntc_sparse_wish(struct ntc_sparse *sparse, const uint32_t *chunk, uint32_t count);
MUST_CHECK bool ntc_sparse_grant(struct ntc_sparse *sparse, int from, const char *path, bool *failed,
                                 struct ntc_error *error);
/* Load a little more of the tables that searches go through. False: they are all there, or cannot be had. */
MUST_CHECK bool ntc_sparse_go_on(struct ntc_sparse *sparse, int from);
void ntc_sparse_destroy(struct ntc_sparse *sparse);

#endif
