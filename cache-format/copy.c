/* One pass over chunks: copy.h. A thread reads a chunk into its own buffer, digests it there, compares with
 * the leaf, and writes the same buffer to where it is kept. A file that changes meanwhile yields either the
 * bytes that were signed or a digest that differs.
 */
#define _GNU_SOURCE
#include "cache-format/copy.h"

#include <errno.h>
#include <pthread.h>
#include <sched.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "cache-format/digest.h"
#include "cache-format/file_private.h"
#include "cache-format/header.h"
#include "cache-format/leaves.h"

#define THREADS_MAX 16u
#define CHUNKS_PER_THREAD 32u /* a thread costs about as much as this many chunks take */

int copy_read(int fd, void *bytes, size_t length, uint64_t offset) {
    uint8_t *at = bytes;
    while (length) {
        ssize_t got = pread(fd, at, length, (off_t)offset);
        if (got < 0 && errno == EINTR)
            continue;
        if (got <= 0)
            return got ? -errno : -ENODATA;
        at += got;
        offset += (uint64_t)got;
        length -= (size_t)got;
    }
    return 0;
}

bool copy_write(int fd, const uint8_t *bytes, size_t length, uint64_t offset) {
    while (length) {
        ssize_t wrote = pwrite(fd, bytes, length, (off_t)offset);
        if (wrote < 0 && errno == EINTR)
            continue;
        if (wrote <= 0)
            return false;
        bytes += wrote;
        offset += (uint64_t)wrote;
        length -= (size_t)wrote;
    }
    return true;
}

/* Where chunk `number` lies: its offset and length. */
static size_t chunk_place(const struct copy *copy, uint64_t number, uint64_t *start) {
    uint64_t end = copy->leaves_offset;
    *start = NTC_HEADER_SIZE + number * NTC_CHUNK_SIZE;
    if (number >= copy->loaded_chunks) {
        *start = copy->load_size + (number - copy->loaded_chunks) * NTC_CHUNK_SIZE;
        end = copy->file_size;
    }
    return end - *start < NTC_CHUNK_SIZE ? (size_t)(end - *start) : NTC_CHUNK_SIZE;
}

/* Up to LEAVES_AT_ONCE chunks from the one in turn on: read, digest, compare, keep. */
static int copy_chunks(struct copy *copy, uint64_t first, uint8_t *buffer) {
    uint8_t digests[LEAVES_AT_ONCE][NTC_DIGEST_SIZE], *leaf[LEAVES_AT_ONCE];
    const uint8_t *bytes[LEAVES_AT_ONCE];
    uint64_t start[LEAVES_AT_ONCE], number[LEAVES_AT_ONCE];
    size_t length[LEAVES_AT_ONCE];
    unsigned count = 0;
    bool even = true;
    for (; count < LEAVES_AT_ONCE && first + count < copy->chunks; count++) {
        uint8_t *at = buffer + (size_t)count * NTC_CHUNK_SIZE;
        bytes[count] = at;
        leaf[count] = digests[count];
        number[count] = copy->list ? copy->list[first + count] : first + count;
        length[count] = chunk_place(copy, number[count], &start[count]);
        even &= length[count] == length[0];
        int result = copy_read(copy->from, at, length[count], start[count]);
        if (result)
            return result;
    }
    if (even && count == LEAVES_AT_ONCE)
        leaves_digest(bytes, length[0], number, leaf);
    else
        for (unsigned i = 0; i < count; i++)
            ntc_leaf_digest(bytes[i], length[i], number[i], leaf[i]);
    for (unsigned i = 0; i < count; i++) {
        if (memcmp(leaf[i], copy->leaves + number[i] * NTC_DIGEST_SIZE, NTC_DIGEST_SIZE))
            return -EBADMSG;
        if (copy->to < 0)
            memcpy(copy->memory + start[i], bytes[i], length[i]);
        else if (!copy_write(copy->to, bytes[i], length[i], start[i]))
            return -ENOMEM;
    }
    return 0;
}

static void *copy_thread(void *context) {
    struct copy *copy = context;
    uint8_t *buffer = malloc((size_t)LEAVES_AT_ONCE * NTC_CHUNK_SIZE);
    int64_t result = buffer ? 0 : -ENOMEM;
    while (!result && !__atomic_load_n(&copy->failed, __ATOMIC_RELAXED)) {
        uint64_t number = __atomic_fetch_add(&copy->next, LEAVES_AT_ONCE, __ATOMIC_RELAXED);
        if (number >= copy->chunks)
            break;
        result = copy_chunks(copy, number, buffer);
    }
    int64_t none = 0;
    if (result)
        __atomic_compare_exchange_n(&copy->failed, &none, result, false, __ATOMIC_RELAXED, __ATOMIC_RELAXED);
    free(buffer);
    return NULL;
}

static unsigned usable_processors(void) {
    cpu_set_t set;
    return sched_getaffinity(0, sizeof set, &set) ? 1 : (unsigned)CPU_COUNT(&set);
}

int copy_run(struct copy *copy, const char *path, struct ntc_error *error) {
    pthread_t thread[THREADS_MAX];
    unsigned threads = 0, wanted = usable_processors();
    if (wanted > copy->chunks / CHUNKS_PER_THREAD)
        wanted = (unsigned)(copy->chunks / CHUNKS_PER_THREAD);
    while (threads + 1 < wanted && threads < THREADS_MAX &&
           !pthread_create(&thread[threads], NULL, copy_thread, copy))
        threads++;
    copy_thread(copy);
    while (threads)
        pthread_join(thread[--threads], NULL);
    switch (copy->failed) {
    case 0:
        return 0;
    case -EBADMSG:
        return ntc_fail(
            error, NTC_FAULT_DIGEST,
            "cache '%s' is damaged or was changed: its digest does not match; copy or make it again", path);
    case -ENOMEM:
        return ntc_fail(error, NTC_FAULT_MEMORY, "no memory for a copy of cache '%s'", path);
    default:
        return ntc_read_error((int)copy->failed, path, error);
    }
}

/* The leaves, once it is known that they and the header make the root. The caller frees them. */
int copy_leaves(int fd, const char *path, const struct ntc_header *header, uint8_t **leaves,
                struct ntc_error *error) {
    const struct ntc_section *section = ntc_header_section(header, NTC_SECTION_LEAVES);
    uint8_t root[NTC_DIGEST_SIZE];
    if (sodium_init() < 0)
        return ntc_fail(error, NTC_FAULT_MEMORY, "libsodium cannot be used on this host");
    /* What follows the leaves up to the end of their page is under no digest: it must be zero. */
    size_t length = (size_t)(header->load_size - section->offset);
    *leaves = malloc(length);
    if (!*leaves)
        return ntc_fail(error, NTC_FAULT_MEMORY, "no memory for the digests of cache '%s'", path);
    int result = copy_read(fd, *leaves, length, section->offset);
    if (result) {
        result = ntc_read_error(result, path, error);
    } else {
        ntc_root_digest(header, *leaves, root);
        if (memcmp(root, header->root, sizeof root) ||
            !ntc_is_zero(*leaves + section->length, length - section->length))
            result =
                ntc_fail(error, NTC_FAULT_DIGEST,
                         "cache '%s' is damaged or was changed: its digest does not match; copy or make it "
                         "again",
                         path);
    }
    if (result) {
        free(*leaves);
        *leaves = NULL;
    }
    return result;
}

struct copy copy_plan(int from, const struct ntc_header *header, const uint8_t *leaves, bool whole) {
    uint64_t leaves_offset = ntc_header_section(header, NTC_SECTION_LEAVES)->offset;
    uint64_t loaded = (leaves_offset - NTC_HEADER_SIZE + NTC_CHUNK_SIZE - 1) / NTC_CHUNK_SIZE;
    return (struct copy){.from = from,
                         .to = -1,
                         .leaves = leaves,
                         .leaves_offset = leaves_offset,
                         .load_size = header->load_size,
                         .file_size = header->file_size,
                         .loaded_chunks = loaded,
                         .chunks = whole ? header->leaf_count : loaded};
}
