/* Asynchronous I/O on a disk image, off the vCPU threads: by io_uring where the host allows it, else by a
 * pool of threads. The choice is made at run time.
 *
 * An engine has channels, one per queue of the disk. A channel is kicked from any thread (cheap, never blocks
 * on I/O) and then served: the client's service() runs on an engine thread, never twice at once for one
 * channel, and submits requests. Finished requests come back through complete(), on an engine thread; with a
 * pool, on several at once. completed() follows each batch of them. Nothing runs, polls or wakes while there
 * is nothing to do.
 */
#ifndef NESTOR_DEVICES_DISK_ENGINE_H
#define NESTOR_DEVICES_DISK_ENGINE_H

#include "base/types.h"
#include "devices/disk_raw.h"

#include <sys/uio.h>

enum disk_engine_kind { DISK_ENGINE_AUTO, DISK_ENGINE_IO_URING, DISK_ENGINE_THREADS };

enum disk_operation {
    DISK_READ,
    DISK_WRITE,
    DISK_FLUSH,
    DISK_DISCARD,     /* reads as zeros afterwards, space is given back */
    DISK_WRITE_ZEROES /* space stays allocated */
};

struct disk_request {
    enum disk_operation operation;
    bool durable;    /* DISK_WRITE: on stable storage before it completes */
    uint64_t offset; /* bytes */
    uint64_t length;
    struct iovec *iov; /* READ, WRITE: length bytes in all; untouchable until complete */
    unsigned iov_count;
    int result; /* 0 or -errno once complete */

    /* The engine's. */
    unsigned channel;
    uint64_t done;
    struct iovec *rest;
    unsigned rest_count;
    size_t consumed; /* bytes of rest[0] that are done */
    struct disk_request *next;
};

struct disk_client {
    void (*service)(void *context, unsigned channel);
    void (*complete)(void *context, unsigned channel, struct disk_request *request);
    void (*completed)(void *context, unsigned channel);
};

struct disk_engine;

/* At most `depth` requests are in flight on a channel. Prints one line where a forced kind is not to be had.
 * 0 or -errno. */
MUST_CHECK int disk_engine_create(struct disk_engine **engine, enum disk_engine_kind kind,
                                  const struct disk_image *image, unsigned channels, unsigned depth,
                                  const struct disk_client *client, void *context);
/* No request may be in flight. Joins the threads. */
void disk_engine_destroy(struct disk_engine *engine);
const char *disk_engine_name(const struct disk_engine *engine);
void disk_engine_kick(struct disk_engine *engine, unsigned channel);
/* From service() or complete() of that channel only. */
void disk_engine_submit(struct disk_engine *engine, unsigned channel, struct disk_request *request);

#endif
