/* From disk into memory that can no longer change: file.h. */
#define _GNU_SOURCE
#include "cache-format/file.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "cache-format/copy.h"
#include "cache-format/digest.h"
#include "cache-format/file_private.h"
#include "cache-format/header.h"
#include "cache-format/host_features.h"
#include "cache-format/parts.h"

#ifndef F_SEAL_FUTURE_WRITE
#define F_SEAL_FUTURE_WRITE 0x0010 /* Linux 5.1 */
#endif
#ifndef MADV_POPULATE_READ
#define MADV_POPULATE_READ 22 /* Linux 5.14 */
#endif
#define POPULATE_MAX (4 * MIB) /* that is mapped at once: about a millisecond */

static const char root_personal[] = "nestor-ntc-root1";

void ntc_root_digest(const struct ntc_header *header, const uint8_t *leaves, uint8_t *root) {
    crypto_generichash_blake2b_state state;
    uint8_t salt[crypto_generichash_blake2b_SALTBYTES] = {0};
    crypto_generichash_blake2b_init_salt_personal(&state, NULL, 0, NTC_DIGEST_SIZE, salt,
                                                  (const uint8_t *)root_personal);
    crypto_generichash_blake2b_update(&state, (const uint8_t *)header, NTC_HEADER_SIGNED);
    crypto_generichash_blake2b_update(&state, leaves, (size_t)header->leaf_count * NTC_DIGEST_SIZE);
    crypto_generichash_blake2b_final(&state, root, NTC_DIGEST_SIZE);
}

int ntc_signature_check(const struct ntc_header *header, const struct ntc_trust *trust, const char *path,
                        struct ntc_error *error) {
    char id[2 * NTC_KEY_ID_SIZE + 1];
    uint8_t message[sizeof NTC_SIGNATURE_CONTEXT - 1 + NTC_DIGEST_SIZE];
    if (header->signature_kind != NTC_ED25519)
        return ntc_fail(error, NTC_FAULT_UNSIGNED, "cache '%s' is not signed; sign it with nestor-cache sign",
                        path);
    if (sodium_init() < 0)
        return ntc_fail(error, NTC_FAULT_MEMORY, "libsodium cannot be used on this host");
    ntc_key_id_print(header->key_id, id);
    const struct ntc_public_key *key = ntc_trust_find(trust, header->key_id);
    if (!key)
        return ntc_fail(
            error, NTC_FAULT_UNTRUSTED,
            "cache '%s' is signed by key %s, which is not trusted; name its .pub file with --trust", path,
            id);
    memcpy(message, NTC_SIGNATURE_CONTEXT, sizeof NTC_SIGNATURE_CONTEXT - 1);
    memcpy(message + sizeof NTC_SIGNATURE_CONTEXT - 1, header->root, NTC_DIGEST_SIZE);
    if (crypto_sign_ed25519_verify_detached(header->signature, message, sizeof message, key->key))
        return ntc_fail(error, NTC_FAULT_SIGNATURE, "cache '%s': the signature is not that of key %s", path,
                        id);
    return 0;
}

void ntc_sign_root(struct ntc_header *header, const struct ntc_secret_key *key) {
    uint8_t message[sizeof NTC_SIGNATURE_CONTEXT - 1 + NTC_DIGEST_SIZE];
    memcpy(message, NTC_SIGNATURE_CONTEXT, sizeof NTC_SIGNATURE_CONTEXT - 1);
    memcpy(message + sizeof NTC_SIGNATURE_CONTEXT - 1, header->root, NTC_DIGEST_SIZE);
    header->signature_kind = NTC_ED25519;
    memcpy(header->key_id, key->public_key.id, sizeof header->key_id);
    crypto_sign_ed25519_detached(header->signature, NULL, message, sizeof message, key->secret);
}

int ntc_demand_check(const struct ntc_demand *demand, const struct ntc_header *header, const char *path,
                     struct ntc_error *error) {
    if (header->translator_abi != demand->translator_abi ||
        header->translator_layout != demand->translator_layout)
        return ntc_fail(error, NTC_FAULT_ABI,
                        "cache '%s' is for another version of the translator; make it again with this one",
                        path);
    uint64_t missing = header->host_features & ~demand->host_features;
    if (missing) {
        char names[200];
        ntc_host_features_print(missing, names, sizeof names);
        return ntc_fail(error, NTC_FAULT_FEATURES,
                        "cache '%s' is for a host CPU with %s; make it again for this one", path, names);
    }
    return 0;
}

/* -- Opening -- */

int ntc_read_error(int result, const char *path, struct ntc_error *error) {
    if (result == -ENODATA)
        return ntc_fail(error, NTC_FAULT_TRUNCATED, "cache '%s' is truncated; copy or make it again", path);
    return ntc_fail(error, NTC_FAULT_IO, "cache '%s' cannot be read: %s", path, strerror(-result));
}

int ntc_open_path(const char *path, int *fd, struct ntc_error *error) {
    *fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOCTTY);
    if (*fd < 0)
        return ntc_fail(error, NTC_FAULT_IO, "cache '%s' cannot be opened: %s", path, strerror(errno));
    return 0;
}

int ntc_read_header(int fd, const char *path, struct ntc_header *header, struct ntc_error *error) {
    struct stat info;
    if (fstat(fd, &info) || !S_ISREG(info.st_mode))
        return ntc_fail(error, NTC_FAULT_IO, "cache '%s' is not a regular file", path);
    memset(header, 0, sizeof *header);
    size_t there = (uint64_t)info.st_size < sizeof *header ? (size_t)info.st_size : sizeof *header;
    int result = copy_read(fd, header, there, 0);
    if (result)
        return ntc_read_error(result, path, error);
    if (there < sizeof header->magic || memcmp(header->magic, NTC_MAGIC, sizeof header->magic))
        return ntc_fail(error, NTC_FAULT_MAGIC, "'%s' is not a cache file; precompile-cache makes them",
                        path);
    if (there < sizeof *header)
        return ntc_read_error(-ENODATA, path, error);
    result = ntc_header_check(header, path, error);
    if (result)
        return result;
    if ((uint64_t)info.st_size < header->file_size)
        return ntc_read_error(-ENODATA, path, error);
    if ((uint64_t)info.st_size > header->file_size)
        return ntc_fail(error, NTC_FAULT_MALFORMED,
                        "cache '%s' is longer than its header says; copy or make it again", path);
    return 0;
}

/* -- Sealed memory files -- */

#define ALL_SEALS (F_SEAL_SEAL | F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_WRITE)
/* Of one that comes in parts: who has it cannot change it. */
#define PART_SEALS (F_SEAL_SEAL | F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_FUTURE_WRITE)

int ntc_memfd_check(int memfd, uint64_t size, bool in_parts, struct ntc_error *error) {
    struct stat info;
    int wanted = in_parts ? PART_SEALS : ALL_SEALS, seals = fcntl(memfd, F_GET_SEALS);
    if (seals < 0 || (seals & wanted) != wanted)
        return ntc_fail(error, NTC_FAULT_STORE, "the cache store gave a descriptor that can still change");
    if (fstat(memfd, &info) || info.st_uid != geteuid())
        return ntc_fail(error, NTC_FAULT_STORE, "the cache store gave a descriptor of another user");
    if ((uint64_t)info.st_size != size)
        return ntc_fail(error, NTC_FAULT_STORE, "the cache store gave a descriptor of another file");
    return 0;
}

int ntc_memfd_fill(int from, const char *path, const struct ntc_header *header, int *memfd,
                   struct ntc_error *error) {
    uint8_t *leaves;
    int result = copy_leaves(from, path, header, &leaves, error);
    if (result)
        return result;
    struct copy copy = copy_plan(from, header, leaves, false);
    copy.to = memfd_create("nestor-cache", MFD_CLOEXEC | MFD_ALLOW_SEALING);
    if (copy.to < 0 || ftruncate(copy.to, (off_t)header->load_size) ||
        !copy_write(copy.to, (const uint8_t *)header, sizeof *header, 0) ||
        !copy_write(copy.to, leaves, (size_t)(header->load_size - copy.leaves_offset), copy.leaves_offset))
        result = ntc_fail(error, NTC_FAULT_MEMORY, "no memory for a copy of cache '%s': %s", path,
                          strerror(errno));
    if (!result)
        result = copy_run(&copy, path, error);
    if (!result && fcntl(copy.to, F_ADD_SEALS, ALL_SEALS))
        result = ntc_fail(error, NTC_FAULT_MEMORY, "the copy of cache '%s' cannot be sealed: %s", path,
                          strerror(errno));
    free(leaves);
    if (result && copy.to >= 0)
        close(copy.to);
    if (!result)
        *memfd = copy.to;
    return result;
}

int ntc_file_adopt(struct ntc_file *file, const char *path, int memfd, uint64_t size, const char *origin,
                   struct ntc_error *error) {
    *file = (struct ntc_file){.memfd = memfd, .size = size, .origin = origin, .path = strdup(path)};
    int result = ntc_memfd_check(memfd, size, false, error);
    file->base = MAP_FAILED;
    if (!result && file->path)
        file->base = mmap(NULL, size, PROT_READ, MAP_SHARED, memfd, 0);
    if (!result && file->base == MAP_FAILED)
        result = ntc_fail(error, NTC_FAULT_MEMORY, "no memory to map cache '%s'", path);
    if (!result)
        result = ntc_view_open(&file->view, file->base, size, error);
    if (result)
        ntc_file_close(file);
    return result;
}

static struct ntc_parts *make_parts(const struct ntc_file *file, uint64_t load_size, int socket) {
    const struct ntc_header *header = file->view.header;
    struct ntc_parts *parts = calloc(1, sizeof *parts);
    if (!parts)
        return NULL;
    parts->chunks = (uint32_t)ntc_parts_chunks(ntc_header_section(header, NTC_SECTION_LEAVES)->offset);
    parts->present = (const uint64_t *)(const void *)((const uint8_t *)file->base + load_size);
    parts->asked = calloc(parts->chunks / 64 + 1, sizeof *parts->asked);
    parts->base = file->view.base;
    parts->mapped = calloc(parts->chunks / 64 + 1, sizeof *parts->mapped);
    parts->socket = socket;
    parts->waits = true;
    parts->path = file->path;
    memcpy(parts->root, header->root, sizeof parts->root);
    for (uint32_t kind = 1; kind < NTC_SECTION_KINDS; kind++) {
        const struct ntc_section *section = ntc_header_section(header, kind);
        if (!section)
            continue;
        parts->place[kind] = section->offset;
        parts->record[kind] = section->record_size;
    }
    if (parts->asked && parts->mapped)
        return parts;
    free(parts->asked);
    free(parts->mapped);
    free(parts);
    return NULL;
}

int ntc_file_adopt_parts(struct ntc_file *file, const char *path, int memfd, const struct ntc_header *header,
                         int socket, struct ntc_error *error) {
    uint64_t leaves_offset = ntc_header_section(header, NTC_SECTION_LEAVES)->offset;
    uint64_t size = header->load_size + ntc_parts_state_size(ntc_parts_chunks(leaves_offset));
    *file = (struct ntc_file){
        .memfd = memfd, .size = size, .origin = "shared", .path = strdup(path), .base = MAP_FAILED};
    int result = ntc_memfd_check(memfd, size, true, error);
    if (!result && file->path)
        file->base = mmap(NULL, size, PROT_READ, MAP_SHARED, memfd, 0);
    if (!result && file->base == MAP_FAILED)
        result = ntc_fail(error, NTC_FAULT_MEMORY, "no memory to map cache '%s'", path);
    if (!result)
        result = ntc_view_open(&file->view, file->base, header->load_size, error);
    if (!result) {
        file->view.parts = make_parts(file, header->load_size, socket);
        if (!file->view.parts)
            result = ntc_fail(error, NTC_FAULT_MEMORY, "no memory to map cache '%s'", path);
    }
    if (!file->view.parts)
        close(socket);
    if (result)
        ntc_file_close(file);
    return result;
}

void ntc_file_populate(const struct ntc_file *file) {
    const struct ntc_view *view = &file->view;
    const struct ntc_section *consts = ntc_header_section(view->header, NTC_SECTION_CONSTS);
    for (uint64_t i = 0; i < view->count[NTC_SECTION_LIKELY]; i++) {
        const struct ntc_range *range = &view->likely[i];
        uint64_t from = range->offset & PAGE_MASK, end = view->header->load_size;
        if (!range->length || from < consts->offset + consts->length || from >= end)
            continue; /* code, slots and constants are read where they are mapped for execution */
        uint64_t length = range->offset - from + range->length;
        if (view->parts && length > POPULATE_MAX)
            continue; /* mapped by and by, as it is needed: parts.c */
        if (length > end - from || !ntc_parts_have(view, from, length))
            continue; /* a hole would become a page of zeroes */
        (void)madvise((uint8_t *)file->base + from, align_up(length, PAGE_SIZE), MADV_POPULATE_READ);
    }
}

void ntc_file_do_not_wait(struct ntc_file *file) {
    if (file->view.parts)
        file->view.parts->waits = false;
}

struct ntc_file_counts ntc_file_count(const struct ntc_file *file) {
    const struct ntc_parts *parts = file->view.parts;
    uint64_t chunks = 0;
    if (!parts)
        return (struct ntc_file_counts){.loaded = file->size};
    for (uint32_t i = 0; i <= (parts->chunks - 1) / 64; i++)
        chunks += (uint64_t)__builtin_popcountll(__atomic_load_n(&parts->present[i], __ATOMIC_RELAXED));
    return (struct ntc_file_counts){.loaded = chunks * NTC_CHUNK_SIZE,
                                    .requests = __atomic_load_n(&parts->requests, __ATOMIC_RELAXED),
                                    .wait_tsc = __atomic_load_n(&parts->wait_tsc, __ATOMIC_RELAXED)};
}

int ntc_file_load(struct ntc_file *file, const char *path, const struct ntc_demand *demand,
                  struct ntc_error *error) {
    struct ntc_header header;
    int fd, memfd, result = ntc_open_path(path, &fd, error);
    if (result)
        return result;
    result = ntc_read_header(fd, path, &header, error);
    if (!result)
        result = ntc_demand_check(demand, &header, path, error);
    if (!result)
        result = ntc_signature_check(&header, demand->trust, path, error);
    if (!result)
        result = ntc_memfd_fill(fd, path, &header, &memfd, error);
    close(fd);
    return result ? result : ntc_file_adopt(file, path, memfd, header.load_size, "copied", error);
}

int ntc_file_read(struct ntc_file *file, const char *path, struct ntc_error *error) {
    struct ntc_header header;
    uint8_t *leaves = NULL;
    int fd, result = ntc_open_path(path, &fd, error);
    if (result)
        return result;
    *file = (struct ntc_file){.memfd = -1, .base = MAP_FAILED, .origin = "copied"};
    result = ntc_read_header(fd, path, &header, error);
    if (!result)
        result = copy_leaves(fd, path, &header, &leaves, error);
    if (!result) {
        struct copy copy = copy_plan(fd, &header, leaves, true);
        file->size = header.file_size;
        file->path = strdup(path);
        file->base = mmap(NULL, file->size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        copy.memory = file->base;
        if (file->base == MAP_FAILED || !file->path) {
            result = ntc_fail(error, NTC_FAULT_MEMORY, "no memory for a copy of cache '%s'", path);
        } else {
            memcpy(file->base, &header, sizeof header);
            memcpy(copy.memory + copy.leaves_offset, leaves, (size_t)(header.load_size - copy.leaves_offset));
            result = copy_run(&copy, path, error);
        }
    }
    free(leaves);
    close(fd);
    if (!result && mprotect(file->base, file->size, PROT_READ))
        result = ntc_fail(error, NTC_FAULT_MEMORY, "no memory to map cache '%s'", path);
    if (!result)
        result = ntc_view_open(&file->view, file->base, file->size, error);
    if (result)
        ntc_file_close(file);
    return result;
}

void ntc_file_close(struct ntc_file *file) {
    if (file->base && file->base != MAP_FAILED)
        munmap(file->base, file->size);
    if (file->memfd >= 0)
        close(file->memfd);
    if (file->view.parts) {
        close(file->view.parts->socket);
        free(file->view.parts->asked);
        free(file->view.parts->mapped);
        free(file->view.parts);
    }
    free(file->path);
    *file = (struct ntc_file){.memfd = -1};
}
