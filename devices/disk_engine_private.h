/* What the two kinds of disk engines share; private to devices/disk_*.c. */
#ifndef NESTOR_DEVICES_DISK_ENGINE_PRIVATE_H
#define NESTOR_DEVICES_DISK_ENGINE_PRIVATE_H

#include "devices/disk_engine.h"

struct disk_engine_ops {
    const char *name;
    void (*destroy)(struct disk_engine *engine);
    void (*kick)(struct disk_engine *engine, unsigned channel);
    void (*submit)(struct disk_engine *engine, unsigned channel, struct disk_request *request);
};

struct disk_engine {
    const struct disk_engine_ops *ops;
    const struct disk_image *image;
    const struct disk_client *client;
    void *context;
    unsigned channels;
    unsigned depth;
};

/* Create one kind; base has everything but ops. */
MUST_CHECK int disk_uring_create(struct disk_engine **engine, const struct disk_engine *base);
MUST_CHECK int disk_threads_create(struct disk_engine **engine, const struct disk_engine *base);

/* One system call of a request: which one, and what remains after it. */
enum disk_step {
    DISK_STEP_READ,
    DISK_STEP_WRITE,
    DISK_STEP_SYNC,
    DISK_STEP_PUNCH,
    DISK_STEP_ZERO,
    DISK_STEP_WRITE_ZERO_PAGES, /* where the file system cannot zero a range */
};
/* Forget earlier progress. */
void disk_request_begin(struct disk_request *request);
enum disk_step disk_request_step(const struct disk_request *request);
/* iov for a READ, WRITE or WRITE_ZERO_PAGES step. `zeroes` has room for DISK_ZERO_PIECES entries. */
#define DISK_ZERO_PIECES 16
const struct iovec *disk_request_iov(const struct disk_request *request, struct iovec *zeroes,
                                     unsigned *count);
/* Take in a step's outcome (bytes or -errno). True once the request is complete with its result set. */
MUST_CHECK bool disk_request_advance(struct disk_request *request, enum disk_step step, int64_t outcome);

#endif
