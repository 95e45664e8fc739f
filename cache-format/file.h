/* A cache file in memory that can no longer change: a private copy for tools, a sealed memory file for VMs.
 *
 * A file on disk can change or shrink after it was checked, and a private mapping would follow it. So it is
 * read once, chunk by chunk: the bytes that are digested are the bytes that are kept. For execution they go
 * into a memfd that is then sealed against every change; only such a descriptor yields executable mappings.
 * Of a large file the store's memfd comes in parts, each of which cannot change once it is there (parts.h).
 */
#ifndef NESTOR_CACHE_FILE_H
#define NESTOR_CACHE_FILE_H

#include "cache-format/key.h"
#include "cache-format/view.h"

struct ntc_file {
    struct ntc_view view;
    void *base;         /* read-only mapping of view.size bytes */
    uint64_t size;      /* of the mapping */
    int memfd;          /* sealed; -1: for reading only */
    char *path;         /* as given */
    const char *origin; /* "copied" (by this process) or "shared" (from the store) */
};

/* What a file must be for before a VM may use it. */
struct ntc_demand {
    uint32_t translator_abi;
    uint64_t translator_layout;
    uint64_t host_features; /* that are there: ntc_host_features() */
    const struct ntc_trust *trust;
};

/* Read and verify a whole file, for tools: root digest, not who signed it. */
MUST_CHECK int ntc_file_read(struct ntc_file *file, const char *path, struct ntc_error *error);

/* Copy what a VM needs of the file into a sealed memory file of this process, verifying it in several
 * threads. The signature is checked first. */
MUST_CHECK int ntc_file_load(struct ntc_file *file, const char *path, const struct ntc_demand *demand,
                             struct ntc_error *error);

void ntc_file_close(struct ntc_file *file);

struct ntc_file_counts {
    uint64_t loaded;   /* bytes that are in memory, whoever asked for them */
    uint64_t requests; /* of this file for more, since it was opened */
    uint64_t wait_tsc; /* spent on them, by all threads, whether they waited or not */
};
/* Map what lookups of likely units read at once, instead of by page faults. */
void ntc_file_populate(const struct ntc_file *file);
/* From now on a part that is not there is asked for and done without until it has come. */
void ntc_file_do_not_wait(struct ntc_file *file);
struct ntc_file_counts ntc_file_count(const struct ntc_file *file);

/* Does the header meet demand? */
MUST_CHECK int ntc_demand_check(const struct ntc_demand *demand, const struct ntc_header *header,
                                const char *path, struct ntc_error *error);
/* Is the root signed by a key in trust? */
MUST_CHECK int ntc_signature_check(const struct ntc_header *header, const struct ntc_trust *trust,
                                   const char *path, struct ntc_error *error);

/* BLAKE2b-256 of the covered header bytes and the leaves. */
void ntc_root_digest(const struct ntc_header *header, const uint8_t *leaves, uint8_t *root);
/* BLAKE2b-256 of one chunk. */
void ntc_leaf_digest(const uint8_t *bytes, size_t length, uint64_t number, uint8_t *leaf);

#endif
