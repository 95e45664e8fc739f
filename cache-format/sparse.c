/* A memory file that is filled chunk by chunk and in which nothing that was filled can change.
 *
 * Before anybody else has the descriptor it gets what every VM reads, and is sealed against growing,
 * shrinking and every write but those through mappings that exist (F_SEAL_FUTURE_WRITE); the one that exists
 * is ours. A chunk is verified in a private buffer, copied in, and its pages are unmapped here: with that the
 * last way to write to them is gone, for the store as well. Only then its bit is set. So a VM that maps the
 * file sees zeroes or what was signed, and what a bit stands for no longer changes.
 */
#define _GNU_SOURCE
#include "cache-format/sparse.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "base/pages.h"
#include "cache-format/copy.h"
#include "cache-format/header.h"
#include "cache-format/parts.h"
#include "cache-format/store_private.h"

#ifndef F_SEAL_FUTURE_WRITE
#define F_SEAL_FUTURE_WRITE 0x0010 /* Linux 5.1 */
#endif

/* Chunks that are loaded with one that is waited for: whose neighbours are needed often, and four are
 * digested in little more time than one. */
#define GROUP 4u
#define CHUNKS_AT_ONCE 16u

static uint64_t leaves_offset_of(const struct ntc_header *header) {
    return ntc_header_section(header, NTC_SECTION_LEAVES)->offset;
}

bool ntc_sparse_fits(const struct ntc_header *header) {
    return header->load_size > NTC_PARTS_FROM && ntc_header_section(header, NTC_SECTION_LIKELY)->record_count;
}

static bool is_present(const struct ntc_sparse *sparse, uint64_t chunk) {
    return sparse->present[chunk / 64] >> chunk % 64 & 1;
}

/* Pages of bytes that stand as they are to stay. */
static void give_up(struct ntc_sparse *sparse, uint64_t from, uint64_t to) {
    from &= PAGE_MASK;
    munmap(sparse->map + from, align_up(to, PAGE_SIZE) - from);
}

/* How many chunks of the list from its place `at` on lie behind each other. */
static uint32_t run_at(const uint32_t *list, uint32_t count, uint32_t at) {
    uint32_t run = 1;
    while (at + run < count && list[at + run] == list[at] + run)
        run++;
    return run;
}

int ntc_sparse_load(struct ntc_sparse *sparse, int from, const char *path, const uint32_t *chunk,
                    uint32_t count, struct ntc_error *error) {
    uint64_t chunks = ntc_parts_chunks(leaves_offset_of(&sparse->head));
    uint32_t *list = malloc((count + 1ull) * sizeof *list), wanted = 0;
    if (!list)
        return ntc_fail(error, NTC_FAULT_MEMORY, "no memory for a copy of cache '%s'", path);
    for (uint32_t i = 0; i < count; i++) {
        bool known = chunk[i] >= chunks || is_present(sparse, chunk[i]);
        for (uint32_t j = i; j && !known && count <= STORE_CHUNKS_MAX; j--)
            known = chunk[j - 1] == chunk[i];
        if (!known)
            list[wanted++] = chunk[i];
    }
    struct copy copy = copy_plan(from, &sparse->head, sparse->leaves, false);
    copy.memory = sparse->map;
    if (!sparse->sealed) /* faster than through the mapping, page by page */
        copy.to = sparse->memfd;
    copy.list = list;
    copy.chunks = wanted;
    for (uint32_t i = 0, run; i < wanted && sparse->sealed; i += run) {
        run = run_at(list, wanted, i);
        (void)madvise(sparse->map + NTC_HEADER_SIZE + (uint64_t)list[i] * NTC_CHUNK_SIZE,
                      run * NTC_CHUNK_SIZE, PAGES_POPULATE_WRITE); /* all of its pages at once */
    }
    int result = copy_run(&copy, path, error);
    for (uint32_t i = 0, run; i < wanted && !result; i += run) {
        run = run_at(list, wanted, i);
        uint64_t start = NTC_HEADER_SIZE + (uint64_t)list[i] * NTC_CHUNK_SIZE;
        uint64_t end =
            list[i] + run == chunks ? sparse->head.load_size : start + (uint64_t)run * NTC_CHUNK_SIZE;
        give_up(sparse, start, end);
        sparse->filled += end - start;
        for (uint32_t j = i; j < i + run; j++)
            __atomic_fetch_or(&sparse->present[list[j] / 64], 1ull << list[j] % 64, __ATOMIC_RELEASE);
    }
    free(list);
    return result;
}

/* What a VM reads in any case: small tables, the run time's slots, and the chunk that shares a page with the
 * leaves. */
static const struct always {
    enum ntc_section_kind kind;
    uint64_t length; /* 0: all of it */
} always[] = {{NTC_SECTION_IMAGES, 0},
              {NTC_SECTION_PAGES, 0},
              {NTC_SECTION_STATES, 0},
              {NTC_SECTION_STRINGS, 0},
              {NTC_SECTION_PLACES, 0},
              {NTC_SECTION_LIKELY, 0},
              {NTC_SECTION_SLOTS, NTC_RUNTIME_SLOTS * 8ull}};

static void mark(uint8_t *wanted, uint64_t offset, uint64_t length, uint64_t end) {
    if (offset < NTC_HEADER_SIZE || offset >= end || !length)
        return;
    uint64_t last = length < end - offset ? offset + length - 1 : end - 1;
    for (uint64_t chunk = (offset - NTC_HEADER_SIZE) / NTC_CHUNK_SIZE;
         chunk <= (last - NTC_HEADER_SIZE) / NTC_CHUNK_SIZE; chunk++)
        wanted[chunk] = 1;
}

static int load_marked(struct ntc_sparse *sparse, int from, const char *path, const uint8_t *wanted,
                       uint64_t chunks, struct ntc_error *error) {
    uint32_t *list = malloc((chunks + 1) * sizeof *list), count = 0;
    if (!list)
        return ntc_fail(error, NTC_FAULT_MEMORY, "no memory for a copy of cache '%s'", path);
    for (uint64_t i = 0; i < chunks; i++)
        if (wanted[i])
            list[count++] = (uint32_t)i;
    int result = ntc_sparse_load(sparse, from, path, list, count, error);
    free(list);
    return result;
}

static int load_first(struct ntc_sparse *sparse, int from, const char *path, struct ntc_error *error) {
    const struct ntc_header *header = &sparse->head;
    uint64_t end = leaves_offset_of(header), chunks = ntc_parts_chunks(end);
    uint8_t *wanted = calloc(chunks + 1, 1);
    if (!wanted)
        return ntc_fail(error, NTC_FAULT_MEMORY, "no memory for a copy of cache '%s'", path);
    wanted[chunks - 1] = 1;
    for (unsigned i = 0; i < ARRAY_SIZE(always); i++) {
        const struct ntc_section *section = ntc_header_section(header, always[i].kind);
        mark(wanted, section->offset, always[i].length ? always[i].length : section->length, end);
    }
    /* LIKELY has to be read before it can be followed: it is a few ranges. */
    const struct ntc_section *likely = ntc_header_section(header, NTC_SECTION_LIKELY);
    struct ntc_range *range = malloc(likely->length + 1);
    int result = range ? copy_read(from, range, likely->length, likely->offset) : -ENOMEM;
    /* Not verified, so no more than a hint: whatever it says, what is loaded is verified. */
    for (uint32_t i = 0; i < likely->record_count && !result; i++)
        mark(wanted, range[i].offset, range[i].length, end);
    result = load_marked(sparse, from, path, wanted, chunks, error);
    free(range);
    free(wanted);
    return result;
}

int ntc_sparse_create(struct ntc_sparse *sparse, int from, const char *path, const struct ntc_header *header,
                      struct ntc_error *error) {
    uint64_t leaves_offset = leaves_offset_of(header),
             state = ntc_parts_state_size(ntc_parts_chunks(leaves_offset));
    *sparse = (struct ntc_sparse){
        .memfd = -1, .map = MAP_FAILED, .head = *header, .size = header->load_size + state};
    int result = copy_leaves(from, path, header, &sparse->leaves, error);
    if (result)
        return result;
    sparse->wished = calloc(state / sizeof *sparse->wished, sizeof *sparse->wished);
    sparse->memfd = memfd_create("nestor-cache", MFD_CLOEXEC | MFD_ALLOW_SEALING);
    if (sparse->wished && sparse->memfd >= 0 && !ftruncate(sparse->memfd, (off_t)sparse->size))
        sparse->map =
            mmap(NULL, sparse->size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_NORESERVE, sparse->memfd, 0);
    if (sparse->map == MAP_FAILED) {
        result = ntc_fail(error, NTC_FAULT_MEMORY, "no memory for a copy of cache '%s': %s", path,
                          strerror(errno));
    } else {
        sparse->present = (uint64_t *)(void *)(sparse->map + header->load_size);
        memcpy(sparse->map, header, sizeof *header);
        memcpy(sparse->map + leaves_offset, sparse->leaves, (size_t)(header->load_size - leaves_offset));
        sparse->filled = NTC_HEADER_SIZE;
        result = load_first(sparse, from, path, error);
        give_up(sparse, 0, NTC_HEADER_SIZE);
    }
    sparse->sealed = true;
    if (!result &&
        fcntl(sparse->memfd, F_ADD_SEALS, F_SEAL_SEAL | F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_FUTURE_WRITE))
        result = ntc_fail(error, NTC_FAULT_MEMORY, "the copy of cache '%s' cannot be sealed: %s", path,
                          strerror(errno));
    if (result)
        ntc_sparse_destroy(sparse);
    return result;
}

/* The groups that the chunks are in. */
static uint32_t widen(const uint32_t *chunk, uint32_t count, uint32_t *list) {
    uint32_t wanted = 0;
    for (uint32_t i = 0; i < count; i++) {
        uint32_t first = chunk[i] / GROUP * GROUP;
        bool twice = false;
        for (uint32_t j = 0; j < i; j++)
            twice |= chunk[j] / GROUP == chunk[i] / GROUP;
        for (uint32_t k = 0; k < GROUP && !twice; k++)
            list[wanted++] = first + k;
    }
    return wanted;
}

int ntc_sparse_ask(struct ntc_sparse *sparse, int from, const char *path, const uint32_t *chunk,
                   uint32_t count, struct ntc_error *error) {
    uint32_t list[STORE_CHUNKS_MAX * GROUP];
    /* What is wrong with a neighbour is no matter. */
    if (!ntc_sparse_load(sparse, from, path, list, widen(chunk, count, list), NULL))
        return 0;
    return ntc_sparse_load(sparse, from, path, chunk, count, error);
}

void ntc_sparse_wish(struct ntc_sparse *sparse, const uint32_t *chunk, uint32_t count) {
    uint64_t chunks = ntc_parts_chunks(leaves_offset_of(&sparse->head));
    for (uint32_t i = 0; i < count; i++) {
        uint64_t bit = 1ull << chunk[i] % 64;
        if (chunk[i] >= chunks || is_present(sparse, chunk[i]) || sparse->wished[chunk[i] / 64] & bit)
            continue;
        sparse->wished[chunk[i] / 64] |= bit;
        sparse->wishes++;
    }
}

bool ntc_sparse_grant(struct ntc_sparse *sparse, int from, const char *path, bool *failed,
                      struct ntc_error *error) {
    uint64_t words = (ntc_parts_chunks(leaves_offset_of(&sparse->head)) + 63) / 64;
    uint32_t list[CHUNKS_AT_ONCE], count = 0;
    for (uint64_t i = 0; sparse->wishes && i < words; i++)
        for (; sparse->wished[i] && count < CHUNKS_AT_ONCE; sparse->wished[i] &= sparse->wished[i] - 1)
            list[count++] = (uint32_t)(i * 64 + (unsigned)__builtin_ctzll(sparse->wished[i]));
    sparse->wishes = count < CHUNKS_AT_ONCE ? 0 : sparse->wishes - count;
    if (count && ntc_sparse_load(sparse, from, path, list, count, NULL))
        for (uint32_t i = 0; i < count; i++)
            *failed |= ntc_sparse_load(sparse, from, path, &list[i], 1, error) != 0;
    return sparse->wishes != 0;
}

bool ntc_sparse_go_on(struct ntc_sparse *sparse, int from) {
    static const enum ntc_section_kind tables[] = {NTC_SECTION_ENTRIES, NTC_SECTION_UNITS, NTC_SECTION_INDEX};
    uint32_t list[CHUNKS_AT_ONCE], count = 0;
    while (sparse->table < ARRAY_SIZE(tables) && !count) {
        const struct ntc_section *section = ntc_header_section(&sparse->head, tables[sparse->table]);
        uint64_t end = section->offset + section->length - NTC_HEADER_SIZE;
        uint64_t chunk = (section->offset - NTC_HEADER_SIZE) / NTC_CHUNK_SIZE + sparse->table_chunk;
        for (; count < CHUNKS_AT_ONCE && chunk * NTC_CHUNK_SIZE < end; chunk++, sparse->table_chunk++)
            list[count++] = (uint32_t)chunk;
        if (count)
            break;
        sparse->table++;
        sparse->table_chunk = 0;
    }
    if (count && ntc_sparse_load(sparse, from, "(as sent)", list, count, NULL))
        sparse->table = ARRAY_SIZE(tables);
    return sparse->table < ARRAY_SIZE(tables);
}

void ntc_sparse_destroy(struct ntc_sparse *sparse) {
    if (sparse->map != MAP_FAILED && sparse->map)
        munmap(sparse->map, sparse->size);
    if (sparse->memfd >= 0)
        close(sparse->memfd);
    free(sparse->leaves);
    free(sparse->wished);
    *sparse = (struct ntc_sparse){.memfd = -1, .map = MAP_FAILED};
}
