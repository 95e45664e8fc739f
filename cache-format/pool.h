/* Private to cache-format: a growing run of bytes, in which equal pieces may be made to stand once. */
#ifndef NESTOR_CACHE_POOL_H
#define NESTOR_CACHE_POOL_H

#include "base/types.h"

struct pool_piece;

struct pool {
    uint8_t *bytes;
    uint64_t length, room;
    struct pool_piece *piece; /* hash table of the pieces that pool_intern() added */
    uint64_t pieces, buckets;
};

/* Append; returns where the bytes were put, or NULL without memory. The place is good until the next call. */
void *pool_add(struct pool *pool, const void *bytes, uint64_t length);
/* Append zeroes up to a multiple of alignment. */
MUST_CHECK int pool_align(struct pool *pool, uint64_t alignment, uint8_t filler);
/* Append unless the same piece was interned before; *offset is where it stands. 0 or -ENOMEM. */
MUST_CHECK int pool_intern(struct pool *pool, const void *bytes, uint64_t length, uint64_t *offset);
void pool_destroy(struct pool *pool);

#endif
