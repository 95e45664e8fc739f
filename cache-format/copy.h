/* Private to cache-format: chunks of a file, verified on the way to where they are kept. */
#ifndef NESTOR_CACHE_COPY_H
#define NESTOR_CACHE_COPY_H

#include "cache-format/error.h"
#include "cache-format/format.h"

struct copy {
    int from, to;    /* to: a memory file, or -1 */
    uint8_t *memory; /* else: here; either way at their offsets in the file */
    const uint8_t *leaves;
    uint64_t leaves_offset, load_size, file_size;
    const uint32_t *list; /* numbers of the chunks to copy; NULL: the first ones */
    uint64_t chunks;      /* how many */
    uint64_t loaded_chunks;
    uint64_t next;  /* in turn; atomic */
    int64_t failed; /* 0, or the first -errno; -EBADMSG: a digest; atomic */
};

/* All chunks of the file, or those that a VM loads. */
struct copy copy_plan(int from, const struct ntc_header *header, const uint8_t *leaves, bool whole);
/* Copy them, in several threads if there are many. */
MUST_CHECK int copy_run(struct copy *copy, const char *path, struct ntc_error *error);
/* The leaves up to load_size, once it is known that they and the header make the root. The caller frees them.
 */
MUST_CHECK int copy_leaves(int fd, const char *path, const struct ntc_header *header, uint8_t **leaves,
                           struct ntc_error *error);

/* All of length bytes. 0, -ENODATA at the end of the file, or -errno. */
MUST_CHECK int copy_read(int fd, void *bytes, size_t length, uint64_t offset);
MUST_CHECK bool copy_write(int fd, const uint8_t *bytes, size_t length, uint64_t offset);

#endif
