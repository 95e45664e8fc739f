/* From disk into memory that can no longer change: file.h. One pass: a thread reads a chunk into its own
 * buffer, digests it there, compares with the leaf, and writes the same buffer to where it is kept. A file
 * that changes meanwhile yields either the bytes that were signed or a digest that differs.
 */
#define _GNU_SOURCE
#include "cache-format/file.h"

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <sched.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "cache-format/digest.h"
#include "cache-format/file_private.h"
#include "cache-format/header.h"
#include "cache-format/host_features.h"
#include "cache-format/leaves.h"

#define THREADS_MAX 16u
#define CHUNKS_PER_THREAD 32u /* a thread costs about as much as this many chunks take */

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

static int pread_all(int fd, void *bytes, size_t length, uint64_t offset) {
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
    int result = pread_all(fd, header, there, 0);
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

/* -- Copying -- */

struct copy {
    int from, to;    /* to: a memory file, or -1 */
    uint8_t *memory; /* else: here */
    const uint8_t *leaves;
    uint64_t leaves_offset, load_size, file_size;
    uint64_t chunks, loaded_chunks;
    uint64_t next;  /* chunk to take; atomic */
    int64_t failed; /* 0, or the first -errno; -EBADMSG: a digest; atomic */
};

static bool pwrite_all(int fd, const uint8_t *bytes, size_t length, uint64_t offset) {
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

/* Up to LEAVES_AT_ONCE chunks from `first` on: read, digest, compare, keep. */
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
        number[count] = first + count;
        length[count] = chunk_place(copy, first + count, &start[count]);
        even &= length[count] == length[0];
        int result = pread_all(copy->from, at, length[count], start[count]);
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
        else if (!pwrite_all(copy->to, bytes[i], length[i], start[i]))
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

static int copy_all(struct copy *copy, const char *path, struct ntc_error *error) {
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
static int read_leaves(int fd, const char *path, const struct ntc_header *header, uint8_t **leaves,
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
    int result = pread_all(fd, *leaves, length, section->offset);
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

static struct copy copy_plan(int from, const struct ntc_header *header, const uint8_t *leaves, bool whole) {
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

/* -- Sealed memory files -- */

#define ALL_SEALS (F_SEAL_SEAL | F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_WRITE)

int ntc_memfd_check(int memfd, uint64_t size, struct ntc_error *error) {
    struct stat info;
    int seals = fcntl(memfd, F_GET_SEALS);
    if (seals < 0 || (seals & ALL_SEALS) != ALL_SEALS)
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
    int result = read_leaves(from, path, header, &leaves, error);
    if (result)
        return result;
    struct copy copy = copy_plan(from, header, leaves, false);
    copy.to = memfd_create("nestor-cache", MFD_CLOEXEC | MFD_ALLOW_SEALING);
    if (copy.to < 0 || ftruncate(copy.to, (off_t)header->load_size) ||
        !pwrite_all(copy.to, (const uint8_t *)header, sizeof *header, 0) ||
        !pwrite_all(copy.to, leaves, (size_t)(header->load_size - copy.leaves_offset), copy.leaves_offset))
        result = ntc_fail(error, NTC_FAULT_MEMORY, "no memory for a copy of cache '%s': %s", path,
                          strerror(errno));
    if (!result)
        result = copy_all(&copy, path, error);
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
    int result = ntc_memfd_check(memfd, size, error);
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
        result = read_leaves(fd, path, &header, &leaves, error);
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
            result = copy_all(&copy, path, error);
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
    free(file->path);
    *file = (struct ntc_file){.memfd = -1};
}
