/* The host-wide store: each cache file is copied and verified once per user and host; every other VM of that
 * user gets a descriptor of the same sealed memory.
 *
 * A broker, a small process without a guest, listens on a socket in a directory of the user's. It is started
 * by the first VM and ends by itself when nobody asked for a while. It is handed an open file, copies and
 * verifies it itself, and answers with the sealed memfd. The receiver accepts only a peer of its own user and
 * a memfd with all seals whose header and leaves make the root digest it asked for, and checks the signature
 * of that root itself. docs/cache-format.md has the protocol and says why that is enough.
 */
#ifndef NESTOR_CACHE_STORE_H
#define NESTOR_CACHE_STORE_H

#include "cache-format/file.h"

struct ntc_store_options {
    const char *directory; /* NULL: $XDG_RUNTIME_DIR/nestor, or /tmp/nestor-UID */
    const char *const
        *broker; /* argv of a program that runs ntc_broker_run(); NULL: use one only if it runs */
};

/* As ntc_file_load(), but from the store; without a store (none runs, none can be started) the file is loaded
 * privately: file->origin tells. */
MUST_CHECK int ntc_store_open(struct ntc_file *file, const char *path, const struct ntc_demand *demand,
                              const struct ntc_store_options *options, struct ntc_error *error);

/* What the broker holds. */
struct ntc_store_entry {
    uint8_t root[NTC_DIGEST_SIZE];
    uint64_t size;
    uint64_t served; /* how often it was handed out */
};
/* The number of entries (at most max are filled in), or -errno; -ENOENT: no broker runs. */
MUST_CHECK int ntc_store_list(const struct ntc_store_options *options, struct ntc_store_entry *entry,
                              unsigned max, struct ntc_error *error);
/* Ask the broker to end. -ENOENT: none runs. */
MUST_CHECK int ntc_store_stop(const struct ntc_store_options *options, struct ntc_error *error);

/* The broker's life: serve until idle_seconds have passed without a request. Call it in a process of its own.
 * Returns at once with 0 when another one serves already. */
MUST_CHECK int ntc_broker_run(const char *directory, unsigned idle_seconds, struct ntc_error *error);

#endif
