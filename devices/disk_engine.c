/* The choice of a disk engine, and the progress of a request through its system calls, which is the same for
 * both: short reads and writes go on where they stopped, a read behind the end of the file gives zeros, and a
 * file system without FALLOC_FL_ZERO_RANGE has zeros written. */
#include "devices/disk_engine_private.h"

#include "base/diag.h"

#include <errno.h>
#include <string.h>

int disk_engine_create(struct disk_engine **engine, enum disk_engine_kind kind,
                       const struct disk_image *image, unsigned channels, unsigned depth,
                       const struct disk_client *client, void *context) {
    const struct disk_engine base = {
        .image = image, .client = client, .context = context, .channels = channels, .depth = depth};
    if (kind != DISK_ENGINE_THREADS) {
        int result = disk_uring_create(engine, &base);
        if (!result)
            return 0;
        if (kind == DISK_ENGINE_IO_URING) {
            diag_error("disk %s: this host does not allow io_uring: %s; use threads", image->path,
                       strerror(-result));
            return result;
        }
    }
    return disk_threads_create(engine, &base);
}

void disk_engine_destroy(struct disk_engine *engine) {
    engine->ops->destroy(engine);
}

const char *disk_engine_name(const struct disk_engine *engine) {
    return engine->ops->name;
}

void disk_engine_kick(struct disk_engine *engine, unsigned channel) {
    engine->ops->kick(engine, channel);
}

void disk_engine_submit(struct disk_engine *engine, unsigned channel, struct disk_request *request) {
    request->channel = channel;
    disk_request_begin(request);
    engine->ops->submit(engine, channel, request);
}

/* `done` counts bytes; for WRITE_ZEROES a set rest_count says that pages of zeros are being written. */
void disk_request_begin(struct disk_request *request) {
    bool transfer = request->operation == DISK_READ || request->operation == DISK_WRITE;
    request->done = 0;
    request->result = 0;
    request->consumed = 0;
    request->rest = transfer ? request->iov : NULL;
    request->rest_count = transfer ? request->iov_count : 0;
}

enum disk_step disk_request_step(const struct disk_request *request) {
    switch (request->operation) {
    case DISK_READ:
        return DISK_STEP_READ;
    case DISK_WRITE:
        return DISK_STEP_WRITE;
    case DISK_DISCARD:
        return DISK_STEP_PUNCH;
    case DISK_WRITE_ZEROES:
        return request->rest_count ? DISK_STEP_WRITE_ZERO_PAGES : DISK_STEP_ZERO;
    case DISK_FLUSH:
        break;
    }
    return DISK_STEP_SYNC;
}

const struct iovec *disk_request_iov(const struct disk_request *request, struct iovec *zeroes,
                                     unsigned *count) {
    static const uint8_t zero_pages[64 * KIB];
    if (request->operation != DISK_WRITE_ZEROES) {
        *count = request->rest_count;
        return request->rest;
    }
    uint64_t left = request->length - request->done;
    for (*count = 0; *count < DISK_ZERO_PIECES && left; (*count)++) {
        size_t piece = left < sizeof zero_pages ? left : sizeof zero_pages;
        zeroes[*count] = (struct iovec){(void *)(uintptr_t)zero_pages, piece};
        left -= piece;
    }
    return zeroes;
}

/* The piece that a short transfer stopped in is whole again: whoever looks at iov[] sees what was submitted.
 */
static void restore_piece(struct disk_request *request) {
    if (!request->consumed)
        return;
    request->rest->iov_base = (uint8_t *)request->rest->iov_base - request->consumed;
    request->rest->iov_len += request->consumed;
    request->consumed = 0;
}

static void skip_rest(struct disk_request *request, uint64_t bytes) {
    request->done += bytes;
    bytes += request->consumed;
    restore_piece(request);
    for (; request->rest_count && bytes >= request->rest->iov_len; request->rest++, request->rest_count--)
        bytes -= request->rest->iov_len;
    if (request->rest_count && bytes) {
        request->rest->iov_base = (uint8_t *)request->rest->iov_base + bytes;
        request->rest->iov_len -= bytes;
        request->consumed = bytes;
    }
}

static void zero_rest(struct disk_request *request) {
    for (unsigned i = 0; i < request->rest_count; i++)
        memset(request->rest[i].iov_base, 0, request->rest[i].iov_len);
    restore_piece(request);
    request->done = request->length;
}

bool disk_request_advance(struct disk_request *request, enum disk_step step, int64_t outcome) {
    if (outcome == -EINTR || outcome == -EAGAIN)
        return false;
    if (outcome == -EOPNOTSUPP && step == DISK_STEP_ZERO) {
        request->rest_count = 1;
        return false;
    }
    if (outcome < 0) {
        restore_piece(request);
        request->result = (int)outcome;
        return true;
    }
    switch (step) {
    case DISK_STEP_READ:
        if (!outcome)
            zero_rest(request);
        else
            skip_rest(request, (uint64_t)outcome);
        return request->done >= request->length;
    case DISK_STEP_WRITE:
        skip_rest(request, (uint64_t)outcome);
        break;
    case DISK_STEP_WRITE_ZERO_PAGES:
        request->done += (uint64_t)outcome;
        break;
    default:
        return true;
    }
    if (!outcome && request->done < request->length) {
        restore_piece(request);
        request->result = -EIO;
        return true;
    }
    return request->done >= request->length;
}
