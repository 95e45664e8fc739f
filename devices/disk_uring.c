/* Disk engine over io_uring: per channel one ring and one thread, which sleeps in a single place, waiting for
 * completions; a kick is one of them, by a read of an eventfd that is always in flight. What the page cache
 * can answer completes within the submitting system call.
 */
#define _GNU_SOURCE
#include "devices/disk_engine_private.h"

#include "base/diag.h"
#include "devices/worker_thread.h"

#include <errno.h>
#include <fcntl.h>
#include <liburing.h>
#include <semaphore.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <unistd.h>

#define CQE_BATCH 32

struct uring_channel {
    struct disk_uring *engine;
    unsigned index;
    struct io_uring ring;
    int event;
    uint64_t event_value;
    bool kicked; /* atomic: the eventfd has been written since the channel last began to be served */
    bool quit;   /* atomic */
    bool failed; /* the ring itself is of no more use */
    sem_t ready; /* posted once the thread knows whether it can work */
    struct iovec zeroes[DISK_ZERO_PIECES];
    pthread_t thread;
};

struct disk_uring {
    struct disk_engine base;
    unsigned started;
    struct uring_channel channels[];
};

/* Failures of a submission that pass: try again, after a moment where it is memory that lacks. */
static bool passing_failure(int result) {
    if (result == -ENOMEM)
        usleep(1000);
    return result == -EINTR || result == -EAGAIN || result == -EBUSY || result == -ENOMEM;
}

static struct io_uring_sqe *channel_sqe(struct uring_channel *channel) {
    struct io_uring_sqe *sqe;
    while (!(sqe = io_uring_get_sqe(&channel->ring))) {
        int result = io_uring_submit(&channel->ring);
        if (result < 0 && !passing_failure(result))
            return NULL;
    }
    return sqe;
}

static void channel_arm(struct uring_channel *channel) {
    struct io_uring_sqe *sqe = channel_sqe(channel);
    if (!sqe) {
        channel->failed = true;
        return;
    }
    io_uring_prep_read(sqe, channel->event, &channel->event_value, sizeof channel->event_value, 0);
    io_uring_sqe_set_data(sqe, NULL);
}

static void request_fail(struct uring_channel *channel, struct disk_request *request, int result) {
    const struct disk_engine *engine = &channel->engine->base;
    request->result = result;
    engine->client->complete(engine->context, channel->index, request);
}

/* Queue the request's next system call. */
static void request_step(struct uring_channel *channel, struct disk_request *request) {
    int fd = channel->engine->base.image->fd;
    enum disk_step step = disk_request_step(request);
    uint64_t offset = request->offset + request->done;
    struct io_uring_sqe *sqe = channel_sqe(channel);
    const struct iovec *iov;
    unsigned count;
    if (!sqe) {
        channel->failed = true;
        request_fail(channel, request, -EIO);
        return;
    }
    switch (step) {
    case DISK_STEP_READ:
        iov = disk_request_iov(request, channel->zeroes, &count);
        io_uring_prep_readv(sqe, fd, iov, count, offset);
        break;
    case DISK_STEP_WRITE:
    case DISK_STEP_WRITE_ZERO_PAGES:
        iov = disk_request_iov(request, channel->zeroes, &count);
        io_uring_prep_writev2(sqe, fd, iov, count, offset, request->durable ? RWF_DSYNC : 0);
        break;
    case DISK_STEP_SYNC:
        io_uring_prep_fsync(sqe, fd, IORING_FSYNC_DATASYNC);
        break;
    case DISK_STEP_PUNCH:
    case DISK_STEP_ZERO:
        io_uring_prep_fallocate(sqe, fd,
                                FALLOC_FL_KEEP_SIZE |
                                    (step == DISK_STEP_ZERO ? FALLOC_FL_ZERO_RANGE : FALLOC_FL_PUNCH_HOLE),
                                (off_t)offset, (off_t)request->length);
        break;
    }
    io_uring_sqe_set_data(sqe, request);
    /* The kernel copies the pieces at submission, and channel->zeroes is used again by the next one. */
    while (step == DISK_STEP_WRITE_ZERO_PAGES && !channel->failed && io_uring_sq_ready(&channel->ring)) {
        int result = io_uring_submit(&channel->ring);
        channel->failed = result < 0 && !passing_failure(result);
    }
}

/* Take in all completions there are. True if a kick was among them. */
static bool channel_reap(struct uring_channel *channel) {
    const struct disk_engine *engine = &channel->engine->base;
    struct io_uring_cqe *cqes[CQE_BATCH];
    struct {
        struct disk_request *request;
        int outcome;
    } done[CQE_BATCH];
    bool kicked = false, completed = false;
    unsigned count;
    while ((count = io_uring_peek_batch_cqe(&channel->ring, cqes, CQE_BATCH))) {
        for (unsigned i = 0; i < count; i++) {
            done[i].request = io_uring_cqe_get_data(cqes[i]);
            done[i].outcome = cqes[i]->res;
        }
        io_uring_cq_advance(&channel->ring, count);
        for (unsigned i = 0; i < count; i++) {
            struct disk_request *request = done[i].request;
            if (!request) {
                kicked = true;
            } else if (!disk_request_advance(request, disk_request_step(request), done[i].outcome)) {
                request_step(channel, request);
            } else {
                engine->client->complete(engine->context, channel->index, request);
                completed = true;
            }
        }
    }
    if (completed)
        engine->client->completed(engine->context, channel->index);
    return kicked;
}

/* A ring obeys no system call filter, so it is bound to the operations of a disk before it starts. */
static bool channel_restrict(struct uring_channel *channel) {
    static const uint8_t operations[] = {IORING_OP_READ, IORING_OP_READV, IORING_OP_WRITEV, IORING_OP_FSYNC,
                                         IORING_OP_FALLOCATE};
    struct io_uring_restriction rules[ARRAY_SIZE(operations)] = {0};
    for (unsigned i = 0; i < ARRAY_SIZE(operations); i++) {
        rules[i].opcode = IORING_RESTRICTION_SQE_OP;
        rules[i].sqe_op = operations[i];
    }
    return !io_uring_register((unsigned)channel->ring.ring_fd, IORING_REGISTER_RESTRICTIONS, rules,
                              ARRAY_SIZE(rules));
}

static void *channel_run(void *argument) {
    struct uring_channel *channel = argument;
    const struct disk_engine *engine = &channel->engine->base;
    /* liburing 2.3 declares io_uring_enable_rings() but does not export it. */
    if (!channel_restrict(channel) ||
        io_uring_register((unsigned)channel->ring.ring_fd, IORING_REGISTER_ENABLE_RINGS, NULL, 0))
        channel->failed = true;
    else
        channel_arm(channel);
    sem_post(&channel->ready);
    while (!channel->failed) {
        int result = io_uring_submit_and_wait(&channel->ring, 1);
        if (result < 0 && !passing_failure(result)) {
            diag_error("disk %s: io_uring failed: %s; the guest's disk stops", engine->image->path,
                       strerror(-result));
            break;
        }
        if (!channel_reap(channel))
            continue;
        if (__atomic_load_n(&channel->quit, __ATOMIC_ACQUIRE))
            break;
        channel_arm(channel);
        __atomic_store_n(&channel->kicked, false, __ATOMIC_SEQ_CST);
        engine->client->service(engine->context, channel->index);
    }
    return NULL;
}

static void channel_wake(struct uring_channel *channel) {
    uint64_t one = 1;
    ssize_t ignored = write(channel->event, &one, sizeof one);
    (void)ignored; /* a full counter wakes as well */
}

static void uring_kick(struct disk_engine *engine, unsigned index) {
    struct uring_channel *channel = &((struct disk_uring *)engine)->channels[index];
    if (!__atomic_exchange_n(&channel->kicked, true, __ATOMIC_SEQ_CST))
        channel_wake(channel);
}

static void uring_submit(struct disk_engine *engine, unsigned index, struct disk_request *request) {
    request_step(&((struct disk_uring *)engine)->channels[index], request);
}

static void channel_close(struct uring_channel *channel) {
    io_uring_queue_exit(&channel->ring);
    close(channel->event);
    sem_destroy(&channel->ready);
}

static void uring_destroy(struct disk_engine *engine) {
    struct disk_uring *uring = (struct disk_uring *)engine;
    for (unsigned i = 0; i < uring->started; i++) {
        struct uring_channel *channel = &uring->channels[i];
        __atomic_store_n(&channel->quit, true, __ATOMIC_RELEASE);
        channel_wake(channel);
        pthread_join(channel->thread, NULL);
        channel_close(channel);
    }
    free(uring);
}

static const struct disk_engine_ops uring_ops = {
    .name = "io_uring",
    .destroy = uring_destroy,
    .kick = uring_kick,
    .submit = uring_submit,
};

static int ring_create(struct io_uring *ring, unsigned depth) {
    /* The ring is enabled by the thread that will use it alone (Linux 6.1); older kernels do without. */
    static const unsigned flags[] = {
        IORING_SETUP_R_DISABLED | IORING_SETUP_SINGLE_ISSUER | IORING_SETUP_DEFER_TASKRUN |
            IORING_SETUP_SUBMIT_ALL,
        IORING_SETUP_R_DISABLED,
    };
    int result = -EINVAL;
    for (unsigned i = 0; i < ARRAY_SIZE(flags) && result == -EINVAL; i++)
        result = io_uring_queue_init(depth + CQE_BATCH, ring, flags[i]);
    if (result)
        return result;
    struct io_uring_probe *probe = io_uring_get_probe_ring(ring);
    bool usable = probe && (ring->features & IORING_FEAT_SUBMIT_STABLE) &&
                  io_uring_opcode_supported(probe, IORING_OP_READ) &&
                  io_uring_opcode_supported(probe, IORING_OP_FALLOCATE);
    io_uring_free_probe(probe);
    if (usable)
        return 0;
    io_uring_queue_exit(ring);
    return -EOPNOTSUPP;
}

static int channel_open(struct uring_channel *channel, unsigned depth) {
    int result = ring_create(&channel->ring, depth);
    if (result)
        return result;
    channel->event = eventfd(0, EFD_CLOEXEC);
    if (channel->event < 0) {
        result = -errno;
        io_uring_queue_exit(&channel->ring);
        return result;
    }
    sem_init(&channel->ready, 0, 0);
    result = worker_thread_create(&channel->thread, "nestor-disk", channel_run, channel);
    if (!result) {
        /* From here on the thread makes no other kinds of system calls than for I/O: a filter may be
         * installed. */
        while (sem_wait(&channel->ready))
            ;
        if (channel->failed) {
            pthread_join(channel->thread, NULL);
            result = -EIO;
        }
    }
    if (result)
        channel_close(channel);
    return result;
}

int disk_uring_create(struct disk_engine **engine, const struct disk_engine *base) {
    struct disk_uring *uring = calloc(1, sizeof *uring + base->channels * sizeof uring->channels[0]);
    if (!uring)
        return -ENOMEM;
    uring->base = *base;
    uring->base.ops = &uring_ops;
    for (; uring->started < base->channels; uring->started++) {
        struct uring_channel *channel = &uring->channels[uring->started];
        channel->engine = uring;
        channel->index = uring->started;
        int result = channel_open(channel, base->depth);
        if (result) {
            uring_destroy(&uring->base);
            return result;
        }
    }
    *engine = &uring->base;
    return 0;
}
