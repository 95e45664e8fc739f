#include "cache-format/pool.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#define XXH_INLINE_ALL
#include <xxhash.h>

struct pool_piece {
    uint64_t hash, offset, length;
    bool used;
};

static uint8_t *room_for(struct pool *pool, uint64_t length) {
    if (!pool->bytes || pool->room - pool->length < length) {
        uint64_t room = pool->room ? pool->room : 4096;
        while (room - pool->length < length)
            room *= 2;
        uint8_t *bytes = realloc(pool->bytes, room);
        if (!bytes)
            return NULL;
        pool->bytes = bytes;
        pool->room = room;
    }
    uint8_t *at = pool->bytes + pool->length;
    pool->length += length;
    return at;
}

void *pool_add(struct pool *pool, const void *bytes, uint64_t length) {
    uint8_t *at = room_for(pool, length);
    if (at && length)
        memcpy(at, bytes, length);
    return at;
}

int pool_align(struct pool *pool, uint64_t alignment, uint8_t filler) {
    uint64_t length = align_up(pool->length, alignment) - pool->length;
    uint8_t *at = room_for(pool, length);
    if (!at)
        return -ENOMEM;
    memset(at, filler, length);
    return 0;
}

static struct pool_piece *find_piece(const struct pool *pool, uint64_t hash, const void *bytes,
                                     uint64_t length) {
    for (uint64_t i = hash;; i++) {
        struct pool_piece *piece = &pool->piece[i & (pool->buckets - 1)];
        if (!piece->used || (piece->hash == hash && piece->length == length &&
                             !memcmp(pool->bytes + piece->offset, bytes, length)))
            return piece;
    }
}

static int grow_table(struct pool *pool) {
    uint64_t before = pool->buckets;
    struct pool_piece *old = pool->piece;
    pool->buckets = before ? before * 2 : 1024;
    pool->piece = calloc(pool->buckets, sizeof *pool->piece);
    if (!pool->piece) {
        pool->piece = old;
        pool->buckets = before;
        return -ENOMEM;
    }
    for (uint64_t i = 0; i < before; i++)
        if (old[i].used)
            *find_piece(pool, old[i].hash, pool->bytes + old[i].offset, old[i].length) = old[i];
    free(old);
    return 0;
}

int pool_intern(struct pool *pool, const void *bytes, uint64_t length, uint64_t *offset) {
    if (pool->pieces * 2 >= pool->buckets && grow_table(pool))
        return -ENOMEM;
    uint64_t hash = XXH3_64bits(bytes, length);
    struct pool_piece *piece = find_piece(pool, hash, bytes, length);
    if (!piece->used) {
        uint64_t at = pool->length;
        if (!pool_add(pool, bytes, length))
            return -ENOMEM;
        *piece = (struct pool_piece){.hash = hash, .offset = at, .length = length, .used = true};
        pool->pieces++;
    }
    *offset = piece->offset;
    return 0;
}

void pool_destroy(struct pool *pool) {
    free(pool->bytes);
    free(pool->piece);
    *pool = (struct pool){0};
}
