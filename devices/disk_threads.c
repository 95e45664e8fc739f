/* Disk engine over a pool of threads that make ordinary system calls, for hosts without io_uring.
 *
 * A kick is a job like a request: whichever thread is free serves the channel and then, most often, itself
 * carries out what it found, so that a lone request costs one wake-up. `lock` guards all that the threads
 * share.
 */
#define _GNU_SOURCE
#include "devices/disk_engine_private.h"

#include "base/diag.h"
#include "devices/worker_thread.h"

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/uio.h>
#include <unistd.h>

#define POOL_THREADS 8
#define POOL_CHANNELS 64

struct disk_threads {
    struct disk_engine base;
    pthread_mutex_t lock;
    pthread_cond_t work;
    uint64_t kicked;  /* channels to be served */
    uint64_t serving; /* channels that a thread is in */
    struct disk_request *first, *last;
    unsigned waiting; /* requests in that list */
    unsigned idle;    /* threads without work */
    bool quit;
    unsigned thread_count;
    pthread_t threads[POOL_THREADS];
};

static int64_t step_perform(int fd, const struct disk_request *request, enum disk_step step) {
    struct iovec zeroes[DISK_ZERO_PIECES];
    off_t offset = (off_t)(request->offset + request->done);
    int flags = request->durable ? RWF_DSYNC : 0;
    const struct iovec *iov;
    unsigned count;
    int64_t outcome = -1;
    switch (step) {
    case DISK_STEP_READ:
        iov = disk_request_iov(request, zeroes, &count);
        outcome = preadv(fd, iov, (int)count, offset);
        break;
    case DISK_STEP_WRITE:
    case DISK_STEP_WRITE_ZERO_PAGES:
        iov = disk_request_iov(request, zeroes, &count);
        outcome = pwritev2(fd, iov, (int)count, offset, flags);
        break;
    case DISK_STEP_SYNC:
        outcome = fdatasync(fd);
        break;
    case DISK_STEP_PUNCH:
        outcome = fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, offset, (off_t)request->length);
        break;
    case DISK_STEP_ZERO:
        outcome = fallocate(fd, FALLOC_FL_ZERO_RANGE | FALLOC_FL_KEEP_SIZE, offset, (off_t)request->length);
        break;
    }
    return outcome < 0 ? -errno : outcome;
}

static void request_perform(struct disk_engine *engine, struct disk_request *request) {
    enum disk_step step;
    do
        step = disk_request_step(request);
    while (!disk_request_advance(request, step, step_perform(engine->image->fd, request, step)));
    unsigned channel = request->channel;
    engine->client->complete(engine->context, channel, request);
    engine->client->completed(engine->context, channel);
}

static void *pool_run(void *argument) {
    struct disk_threads *pool = argument;
    struct disk_engine *engine = &pool->base;
    pthread_mutex_lock(&pool->lock);
    for (;;) {
        uint64_t serve = pool->kicked & ~pool->serving;
        if (serve) {
            uint64_t bit = serve & -serve;
            pool->kicked &= ~bit;
            pool->serving |= bit;
            pthread_mutex_unlock(&pool->lock);
            engine->client->service(engine->context, (unsigned)__builtin_ctzll(bit));
            pthread_mutex_lock(&pool->lock);
            pool->serving &= ~bit;
        } else if (pool->first) {
            struct disk_request *request = pool->first;
            pool->first = request->next;
            pool->waiting--;
            pthread_mutex_unlock(&pool->lock);
            request_perform(engine, request);
            pthread_mutex_lock(&pool->lock);
        } else if (pool->quit) {
            break;
        } else {
            pool->idle++;
            pthread_cond_wait(&pool->work, &pool->lock);
            pool->idle--;
        }
    }
    pthread_mutex_unlock(&pool->lock);
    return NULL;
}

static void pool_kick(struct disk_engine *engine, unsigned channel) {
    struct disk_threads *pool = (struct disk_threads *)engine;
    uint64_t bit = 1ull << channel;
    pthread_mutex_lock(&pool->lock);
    bool wake = !((pool->kicked | pool->serving) & bit) && pool->idle;
    pool->kicked |= bit;
    if (wake)
        pthread_cond_signal(&pool->work);
    pthread_mutex_unlock(&pool->lock);
}

static void pool_submit(struct disk_engine *engine, unsigned channel, struct disk_request *request) {
    struct disk_threads *pool = (struct disk_threads *)engine;
    (void)channel;
    request->next = NULL;
    pthread_mutex_lock(&pool->lock);
    if (pool->first)
        pool->last->next = request;
    else
        pool->first = request;
    pool->last = request;
    /* The caller's own thread takes one when it is back from here. */
    if (++pool->waiting > 1 && pool->idle)
        pthread_cond_signal(&pool->work);
    pthread_mutex_unlock(&pool->lock);
}

static void pool_destroy(struct disk_engine *engine) {
    struct disk_threads *pool = (struct disk_threads *)engine;
    pthread_mutex_lock(&pool->lock);
    pool->quit = true;
    pthread_cond_broadcast(&pool->work);
    pthread_mutex_unlock(&pool->lock);
    for (unsigned i = 0; i < pool->thread_count; i++)
        pthread_join(pool->threads[i], NULL);
    pthread_cond_destroy(&pool->work);
    pthread_mutex_destroy(&pool->lock);
    free(pool);
}

static const struct disk_engine_ops pool_ops = {
    .name = "threads",
    .destroy = pool_destroy,
    .kick = pool_kick,
    .submit = pool_submit,
};

int disk_threads_create(struct disk_engine **engine, const struct disk_engine *base) {
    if (base->channels > POOL_CHANNELS)
        return -EINVAL;
    struct disk_threads *pool = calloc(1, sizeof *pool);
    if (!pool)
        return -ENOMEM;
    pool->base = *base;
    pool->base.ops = &pool_ops;
    pthread_mutex_init(&pool->lock, NULL);
    pthread_cond_init(&pool->work, NULL);
    for (; pool->thread_count < POOL_THREADS; pool->thread_count++) {
        int result = worker_thread_create(&pool->threads[pool->thread_count], "nestor-disk", pool_run, pool);
        if (!result)
            continue;
        if (pool->thread_count)
            break; /* fewer will do */
        diag_error("disk %s: no thread for its I/O: %s; raise the limit of processes (ulimit -u)",
                   base->image->path, strerror(-result));
        pool_destroy(&pool->base);
        return result;
    }
    *engine = &pool->base;
    return 0;
}
