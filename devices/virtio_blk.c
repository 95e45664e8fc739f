/* virtio block device (virtio 1.2, clause 5.2).
 *
 * Each queue is a channel of the disk engine: the doorbell kicks the channel, an engine thread takes the
 * chains and submits them with iovecs that point into guest RAM, and completions go back to the used ring on
 * whatever engine thread they come. A queue's lock guards its free requests, its count of requests in flight
 * and the giving side of its ring; taking from the ring is service()'s alone, which the engine never runs
 * twice at once for a channel.
 *
 * A driver may keep more chains outstanding than the ring has entries (it only has to reuse descriptors):
 * when no request is free, the queue is served again after the next completion.
 */
#include "devices/virtio_blk.h"

#include "base/diag.h"
#include "devices/virtio_pci.h"

#include <errno.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>

#define QUEUE_SIZE 256
#define SEGMENTS_MAX 254 /* of data, so that a chain fits the queue with header and status */
#define SEGMENT_BYTES_MAX (4 * MIB)
#define RANGES_MAX 32
#define RANGE_SECTORS_MAX (1u << 22)
#define PHYSICAL_BLOCK 4096
#define PCI_CLASS_STORAGE_OTHER 0x018000

enum feature {
    BLK_F_SIZE_MAX = 1,
    BLK_F_SEG_MAX = 2,
    BLK_F_RO = 5,
    BLK_F_BLK_SIZE = 6,
    BLK_F_FLUSH = 9,
    BLK_F_TOPOLOGY = 10,
    BLK_F_CONFIG_WCE = 11,
    BLK_F_MQ = 12,
    BLK_F_DISCARD = 13,
    BLK_F_WRITE_ZEROES = 14,
};

enum request_type {
    BLK_T_IN = 0,
    BLK_T_OUT = 1,
    BLK_T_FLUSH = 4,
    BLK_T_GET_ID = 8,
    BLK_T_DISCARD = 11,
    BLK_T_WRITE_ZEROES = 13,
};

enum request_status { BLK_S_OK = 0, BLK_S_IOERR = 1, BLK_S_UNSUPP = 2 };

struct request_header {
    uint32_t type;
    uint32_t reserved;
    uint64_t sector;
};

struct request_range {
    uint64_t sector;
    uint32_t sectors;
    uint32_t flags;
};
#define RANGE_UNMAP 1u

/* The configuration space (clause 5.2.4). */
struct __attribute__((packed)) blk_layout {
    uint64_t capacity;
    uint32_t size_max;
    uint32_t seg_max;
    uint16_t cylinders;
    uint8_t heads;
    uint8_t sectors;
    uint32_t blk_size;
    uint8_t physical_block_exp;
    uint8_t alignment_offset;
    uint16_t min_io_size;
    uint32_t opt_io_size;
    uint8_t writeback;
    uint8_t unused0;
    uint16_t num_queues;
    uint32_t max_discard_sectors;
    uint32_t max_discard_seg;
    uint32_t discard_sector_alignment;
    uint32_t max_write_zeroes_sectors;
    uint32_t max_write_zeroes_seg;
    uint8_t write_zeroes_may_unmap;
    uint8_t unused1[3];
};
_Static_assert(sizeof(struct blk_layout) == 60, "clause 5.2.4");

struct blk_request {
    struct disk_request io; /* first */
    struct blk_request *next_free;
    uint16_t head;
    uint8_t *status;
    uint32_t in_bytes; /* of a read, without the status byte */
    unsigned range, range_count;
    struct iovec *in_iov;
    unsigned in_iov_count;
    union {
        struct iovec iov[SEGMENTS_MAX + 2];
        struct request_range ranges[RANGES_MAX];
    };
};

struct blk_queue {
    pthread_mutex_t lock;
    struct blk_request *requests; /* QUEUE_SIZE of them; touched only as far as they were ever needed */
    unsigned fresh;               /* requests[fresh..] have never been used */
    struct blk_request *free;
    unsigned in_flight;
    bool starved;     /* service() ran out of requests */
    bool stop_wanted; /* the device wants the ring back */
    bool stopping;    /* service() takes nothing from it any more */
    bool stopped;     /* and nobody touches it */
};

struct virtio_blk {
    struct virtio_device device; /* first */
    struct virtio_pci transport;
    struct disk_image image;
    struct disk_engine *engine;
    char serial[VIRTIO_BLK_SERIAL_MAX];
    const struct trace *trace;
    struct virtio_blk_counters counters; /* atomic */
    unsigned stops_left;                 /* atomic: queues that have yet to stop */
    bool warned;                         /* atomic: an I/O error was told */
    unsigned queue_count;
    struct blk_queue queues[];
};

static struct blk_request *request_take(struct blk_queue *queue) {
    pthread_mutex_lock(&queue->lock);
    struct blk_request *request = queue->free;
    if (request)
        queue->free = request->next_free;
    else if (queue->fresh < QUEUE_SIZE)
        request = &queue->requests[queue->fresh++];
    else
        queue->starved = true;
    if (request)
        queue->in_flight++;
    pthread_mutex_unlock(&queue->lock);
    return request;
}

static void request_release(struct blk_queue *queue, struct blk_request *request) {
    request->next_free = queue->free;
    queue->free = request;
    queue->in_flight--;
}

/* The request is over: tell its status. The ring is published by queue_flush(). */
static void request_finish(struct virtio_blk *blk, unsigned index, struct blk_request *request,
                           uint8_t status) {
    struct blk_queue *queue = &blk->queues[index];
    struct guest_mem *mem = blk->device.mem;
    uint32_t written = 1;
    if (status == BLK_S_OK && request->in_bytes) {
        virtqueue_written(mem, request->in_iov, request->in_iov_count, request->in_bytes);
        written += request->in_bytes;
    }
    *request->status = status;
    virtqueue_written(mem, &(struct iovec){request->status, 1}, 1, 1);
    pthread_mutex_lock(&queue->lock);
    virtqueue_push(&blk->device.queues[index], request->head, written);
    request_release(queue, request);
    pthread_mutex_unlock(&queue->lock);
}

/* Publish, interrupt, and see whether a stop is complete or starved chains can go on. */
static void queue_flush(struct virtio_blk *blk, unsigned index) {
    struct blk_queue *queue = &blk->queues[index];
    bool stopped = false, again = false;
    pthread_mutex_lock(&queue->lock);
    if (!queue->stopped) {
        if (virtio_device_queue_live(&blk->device, index))
            virtio_device_publish(&blk->device, index);
        again = queue->starved && queue->free;
        queue->starved &= !again;
        stopped = queue->stopping && !queue->in_flight;
        queue->stopped = stopped;
    }
    pthread_mutex_unlock(&queue->lock);
    if (again)
        disk_engine_kick(blk->engine, index);
    if (stopped && !__atomic_sub_fetch(&blk->stops_left, 1, __ATOMIC_ACQ_REL))
        virtio_device_stopped(&blk->device);
}

static bool range_inside(const struct virtio_blk *blk, uint64_t sector, uint64_t sectors) {
    return sector <= blk->image.sectors && sectors <= blk->image.sectors - sector;
}

static bool writes_through(struct virtio_blk *blk) {
    const struct blk_layout *layout = (const void *)blk->device.config;
    if (virtio_device_has(&blk->device, 1ull << BLK_F_CONFIG_WCE))
        return !__atomic_load_n(&layout->writeback, __ATOMIC_RELAXED);
    return !virtio_device_has(&blk->device, 1ull << BLK_F_FLUSH); /* clause 5.2.6.2 */
}

/* Set up the next range of a discard or write-zeroes request. */
static void range_begin(struct virtio_blk *blk, struct blk_request *request) {
    const struct request_range *range = &request->ranges[request->range];
    if ((range->flags & RANGE_UNMAP) && blk->image.can_discard)
        request->io.operation = DISK_DISCARD;
    request->io.offset = range->sector * DISK_SECTOR;
    request->io.length = (uint64_t)range->sectors * DISK_SECTOR;
}

/* Take over the ranges of a discard or write-zeroes request: a status, or -1 if it can be submitted. */
static int ranges_parse(struct virtio_blk *blk, struct blk_request *request,
                        const struct virtqueue_chain *chain, bool discard) {
    uint32_t bytes = chain->readable_bytes - sizeof(struct request_header);
    struct request_range ranges[RANGES_MAX];
    if (discard && !blk->image.can_discard)
        return BLK_S_UNSUPP;
    if (blk->image.read_only || !bytes || bytes % sizeof ranges[0] || bytes > sizeof ranges)
        return BLK_S_IOERR;
    virtqueue_chain_read(chain, sizeof(struct request_header), ranges, bytes);
    request->range_count = bytes / sizeof ranges[0];
    for (unsigned i = 0; i < request->range_count; i++) {
        if (ranges[i].flags & ~(discard ? 0 : RANGE_UNMAP))
            return BLK_S_UNSUPP;
        if (!ranges[i].sectors || ranges[i].sectors > RANGE_SECTORS_MAX ||
            !range_inside(blk, ranges[i].sector, ranges[i].sectors))
            return BLK_S_IOERR;
        if (discard)
            ranges[i].flags = RANGE_UNMAP;
    }
    memcpy(request->ranges, ranges, bytes); /* over iov, which is needed no more */
    request->io.operation = DISK_WRITE_ZEROES;
    range_begin(blk, request);
    return -1;
}

/* Cut `bytes` off the front of iov[]. */
static void iov_advance(struct iovec **iov, unsigned *count, size_t bytes) {
    while (bytes && *count) {
        size_t piece = bytes < (*iov)->iov_len ? bytes : (*iov)->iov_len;
        (*iov)->iov_base = (uint8_t *)(*iov)->iov_base + piece;
        (*iov)->iov_len -= piece;
        bytes -= piece;
        if (!(*iov)->iov_len) {
            ++*iov;
            --*count;
        }
    }
}

static int transfer_parse(struct virtio_blk *blk, struct blk_request *request, struct virtqueue_chain *chain,
                          const struct request_header *header) {
    struct disk_request *io = &request->io;
    bool write = header->type == BLK_T_OUT;
    if (write) {
        io->iov = chain->iov;
        io->iov_count = chain->readable;
        iov_advance(&io->iov, &io->iov_count, sizeof *header);
        io->length = chain->readable_bytes - sizeof *header;
        io->durable = writes_through(blk);
    } else {
        io->iov = request->in_iov;
        io->iov_count = request->in_iov_count;
        io->length = chain->writable_bytes - 1;
    }
    if (io->length % DISK_SECTOR || !range_inside(blk, header->sector, io->length / DISK_SECTOR) ||
        (write && blk->image.read_only))
        return BLK_S_IOERR;
    io->operation = write ? DISK_WRITE : DISK_READ;
    io->offset = header->sector * DISK_SECTOR;
    if (!write)
        request->in_bytes = (uint32_t)io->length;
    return io->length ? -1 : BLK_S_OK;
}

/* What the chain asks for: a status where that can be told at once, or -1 with request->io ready to be
 * submitted. */
static int request_parse(struct virtio_blk *blk, struct blk_request *request, struct virtqueue_chain *chain) {
    struct request_header header;
    uint32_t in_bytes = chain->writable_bytes - 1;
    if (virtqueue_chain_read(chain, 0, &header, sizeof header) != sizeof header)
        return BLK_S_IOERR;
    switch (header.type) {
    case BLK_T_IN:
    case BLK_T_OUT:
        return transfer_parse(blk, request, chain, &header);
    case BLK_T_FLUSH:
        request->io.operation = DISK_FLUSH;
        return blk->image.read_only ? BLK_S_OK : -1;
    case BLK_T_GET_ID:
        if (in_bytes > sizeof blk->serial)
            in_bytes = sizeof blk->serial;
        virtqueue_chain_write(blk->device.mem, chain, 0, blk->serial, in_bytes);
        request->in_bytes = in_bytes;
        return BLK_S_OK;
    case BLK_T_DISCARD:
    case BLK_T_WRITE_ZEROES:
        return ranges_parse(blk, request, chain, header.type == BLK_T_DISCARD);
    default:
        return BLK_S_UNSUPP;
    }
}

/* Find the status byte, the last writable one, and cut it off. */
static bool status_split(struct blk_request *request, struct virtqueue_chain *chain) {
    if (!chain->writable)
        return false;
    struct iovec *last = &chain->iov[chain->readable + chain->writable - 1];
    request->status = (uint8_t *)last->iov_base + --last->iov_len;
    request->in_iov = chain->iov + chain->readable;
    request->in_iov_count = chain->writable - (last->iov_len ? 0 : 1);
    return true;
}

/* Take chains until there are none: 0, -EPROTO for a broken queue, -EAGAIN when out of requests. */
static int queue_take(struct virtio_blk *blk, unsigned index) {
    struct blk_queue *queue = &blk->queues[index];
    for (;;) {
        struct blk_request *request = request_take(queue);
        if (!request)
            return -EAGAIN;
        struct virtqueue_chain chain = {.iov = request->iov, .capacity = ARRAY_SIZE(request->iov)};
        request->in_bytes = 0;
        request->range = request->range_count = 0;
        request->io.durable = false;
        int result = virtio_device_pop(&blk->device, index, &chain);
        if (result > 0 && !status_split(request, &chain))
            result = virtqueue_break(&blk->device.queues[index]); /* nowhere to answer to */
        if (result <= 0) {
            pthread_mutex_lock(&queue->lock);
            request_release(queue, request);
            pthread_mutex_unlock(&queue->lock);
            return result;
        }
        request->head = chain.head;
        int status = request_parse(blk, request, &chain);
        if (status < 0)
            disk_engine_submit(blk->engine, index, &request->io);
        else
            request_finish(blk, index, request, (uint8_t)status);
    }
}

static void blk_service(void *context, unsigned index) {
    struct virtio_blk *blk = context;
    struct blk_queue *queue = &blk->queues[index];
    struct virtqueue *ring = &blk->device.queues[index];
    int result = 0;
    pthread_mutex_lock(&queue->lock);
    queue->stopping = queue->stop_wanted;
    bool serve = !queue->stopping && !queue->stopped;
    pthread_mutex_unlock(&queue->lock);
    if (serve && virtio_device_queue_live(&blk->device, index)) {
        do {
            virtqueue_disable_kick(ring);
            result = queue_take(blk, index);
        } while (!result && virtqueue_enable_kick(ring));
        if (result == -EPROTO)
            virtio_device_broken(&blk->device);
    }
    queue_flush(blk, index);
}

static void io_error_tell(struct virtio_blk *blk, int error) {
    if (!__atomic_exchange_n(&blk->warned, true, __ATOMIC_RELAXED))
        diag_warn("disk %s: %s; the guest is told of I/O errors", blk->image.path, strerror(error));
}

static void count_add(uint64_t *counter, uint64_t value) {
    __atomic_fetch_add(counter, value, __ATOMIC_RELAXED);
}

/* Count a request that is over, and tell the log. */
static void blk_account(struct virtio_blk *blk, unsigned index, const struct disk_request *io) {
    static const char *const names[] = {[DISK_READ] = "read",
                                        [DISK_WRITE] = "write",
                                        [DISK_FLUSH] = "flush",
                                        [DISK_DISCARD] = "discard",
                                        [DISK_WRITE_ZEROES] = "write zeroes"};
    struct virtio_blk_counters *counters = &blk->counters;
    if (io->result)
        count_add(&counters->errors, 1);
    switch (io->operation) {
    case DISK_READ:
        count_add(&counters->reads, 1);
        count_add(&counters->read_bytes, io->result ? 0 : io->length);
        break;
    case DISK_WRITE:
        count_add(&counters->writes, 1);
        count_add(&counters->written_bytes, io->result ? 0 : io->length);
        break;
    case DISK_FLUSH:
        count_add(&counters->flushes, 1);
        break;
    case DISK_DISCARD:
    case DISK_WRITE_ZEROES:
        count_add(&counters->discards, 1);
        break;
    }
    if (LIKELY(!blk->trace || !(blk->trace->subjects & TRACE_DISK)))
        return;
    if (io->operation == DISK_FLUSH)
        trace_line(blk->trace, "disk %s queue %u flush: %s", blk->image.path, index,
                   io->result ? strerror(-io->result) : "ok");
    else
        trace_line(blk->trace, "disk %s queue %u %s sector %llu count %llu: %s", blk->image.path, index,
                   names[io->operation], (unsigned long long)(io->offset / DISK_SECTOR),
                   (unsigned long long)(io->length / DISK_SECTOR), io->result ? strerror(-io->result) : "ok");
}

static void blk_complete(void *context, unsigned index, struct disk_request *io) {
    struct virtio_blk *blk = context;
    struct blk_request *request = (struct blk_request *)io;
    if (!io->result && ++request->range < request->range_count) {
        io->operation = DISK_WRITE_ZEROES;
        range_begin(blk, request);
        disk_engine_submit(blk->engine, index, io);
        return;
    }
    blk_account(blk, index, io);
    uint8_t status = io->result ? BLK_S_IOERR : BLK_S_OK;
    if (io->result == -EOPNOTSUPP)
        status = BLK_S_UNSUPP;
    else if (io->result)
        io_error_tell(blk, -io->result);
    request_finish(blk, index, request, status);
}

static void blk_completed(void *context, unsigned index) {
    queue_flush(context, index);
}

static const struct disk_client blk_client = {
    .service = blk_service,
    .complete = blk_complete,
    .completed = blk_completed,
};

static void blk_start(struct virtio_device *device) {
    struct virtio_blk *blk = (struct virtio_blk *)device;
    for (unsigned i = 0; i < blk->queue_count; i++) {
        struct blk_queue *queue = &blk->queues[i];
        pthread_mutex_lock(&queue->lock);
        queue->starved = queue->stop_wanted = queue->stopping = queue->stopped = false;
        pthread_mutex_unlock(&queue->lock);
        disk_engine_kick(blk->engine, i);
    }
}

static void blk_notify(struct virtio_device *device, unsigned queue) {
    disk_engine_kick(((struct virtio_blk *)device)->engine, queue);
}

static void blk_stop(struct virtio_device *device) {
    struct virtio_blk *blk = (struct virtio_blk *)device;
    __atomic_store_n(&blk->stops_left, blk->queue_count, __ATOMIC_RELEASE);
    for (unsigned i = 0; i < blk->queue_count; i++) {
        pthread_mutex_lock(&blk->queues[i].lock);
        blk->queues[i].stop_wanted = true;
        pthread_mutex_unlock(&blk->queues[i].lock);
        disk_engine_kick(blk->engine, i);
    }
}

static void blk_config_write(struct virtio_device *device, uint32_t offset, const uint8_t *data,
                             uint32_t size) {
    struct blk_layout *layout = (void *)device->config;
    if (offset == offsetof(struct blk_layout, writeback) && size == 1)
        __atomic_store_n(&layout->writeback, data[0] & 1, __ATOMIC_RELAXED);
}

static void blk_forget(struct virtio_device *device) {
    ((struct blk_layout *)device->config)->writeback = 1;
}

static const struct virtio_device_ops blk_ops = {
    .forget = blk_forget,
    .config_write = blk_config_write,
    .start = blk_start,
    .notify = blk_notify,
    .stop = blk_stop,
};

static uint64_t blk_configure(const struct disk_image *image, unsigned queues, struct blk_layout *layout) {
    uint64_t features = 1ull << BLK_F_SIZE_MAX | 1ull << BLK_F_SEG_MAX | 1ull << BLK_F_BLK_SIZE |
                        1ull << BLK_F_FLUSH | 1ull << BLK_F_TOPOLOGY | 1ull << BLK_F_MQ;
    *layout = (struct blk_layout){
        .capacity = image->sectors,
        .size_max = SEGMENT_BYTES_MAX,
        .seg_max = SEGMENTS_MAX,
        .blk_size = DISK_SECTOR,
        .physical_block_exp = 3,
        .min_io_size = PHYSICAL_BLOCK / DISK_SECTOR,
        .writeback = 1,
        .num_queues = (uint16_t)queues,
    };
    if (image->read_only)
        return features | 1ull << BLK_F_RO;
    features |= 1ull << BLK_F_CONFIG_WCE | 1ull << BLK_F_WRITE_ZEROES;
    layout->max_write_zeroes_sectors = RANGE_SECTORS_MAX;
    layout->max_write_zeroes_seg = RANGES_MAX;
    layout->write_zeroes_may_unmap = image->can_discard;
    if (image->can_discard) {
        features |= 1ull << BLK_F_DISCARD;
        layout->max_discard_sectors = RANGE_SECTORS_MAX;
        layout->max_discard_seg = RANGES_MAX;
        layout->discard_sector_alignment = PHYSICAL_BLOCK / DISK_SECTOR;
    }
    return features;
}

static int queues_init(struct virtio_blk *blk) {
    for (unsigned i = 0; i < blk->queue_count; i++) {
        blk->queues[i].stopped = true;
        blk->queues[i].requests = calloc(QUEUE_SIZE, sizeof *blk->queues[i].requests);
        if (!blk->queues[i].requests)
            return -ENOMEM;
        pthread_mutex_init(&blk->queues[i].lock, NULL);
    }
    return 0;
}

static void queues_free(struct virtio_blk *blk) {
    for (unsigned i = 0; i < blk->queue_count && blk->queues[i].requests; i++) {
        pthread_mutex_destroy(&blk->queues[i].lock);
        free(blk->queues[i].requests);
    }
}

int virtio_blk_create(struct virtio_blk **result_blk, const struct virtio_blk_config *config,
                      struct guest_mem *mem) {
    unsigned queues = config->queues ? config->queues : 1;
    uint16_t sizes[VIRTIO_BLK_QUEUES_MAX];
    struct blk_layout layout;
    if (queues > VIRTIO_BLK_QUEUES_MAX)
        queues = VIRTIO_BLK_QUEUES_MAX;
    for (unsigned i = 0; i < queues; i++)
        sizes[i] = QUEUE_SIZE;
    if (config->serial && strlen(config->serial) > VIRTIO_BLK_SERIAL_MAX) {
        diag_error("disk %s: serial '%s' is too long; use at most %d characters", config->path,
                   config->serial, VIRTIO_BLK_SERIAL_MAX);
        return -EINVAL;
    }
    struct virtio_blk *blk = calloc(1, sizeof *blk + queues * sizeof blk->queues[0]);
    if (!blk)
        return -ENOMEM;
    blk->queue_count = queues;
    blk->trace = config->trace;
    if (config->serial)
        memcpy(blk->serial, config->serial, strlen(config->serial));
    int result = disk_raw_open(&blk->image, config->path, config->read_only);
    if (result)
        goto free_blk;
    result = queues_init(blk);
    if (result)
        goto free_queues;
    uint64_t features = blk_configure(&blk->image, queues, &layout);
    result = virtio_device_init(&blk->device, &blk_ops, VIRTIO_ID_BLOCK, mem, features, queues, sizes);
    if (result)
        goto free_queues;
    memcpy(blk->device.config, &layout, sizeof layout);
    blk->device.config_size = sizeof layout;
    result = virtio_pci_init(&blk->transport, "virtio-blk", &blk->device, PCI_CLASS_STORAGE_OTHER);
    if (result)
        goto destroy_device;
    result =
        disk_engine_create(&blk->engine, config->engine, &blk->image, queues, QUEUE_SIZE, &blk_client, blk);
    if (result)
        goto destroy_pci;
    *result_blk = blk;
    return 0;
destroy_pci:
    virtio_pci_destroy(&blk->transport);
destroy_device:
    virtio_device_destroy(&blk->device);
free_queues:
    queues_free(blk);
    disk_raw_close(&blk->image);
free_blk:
    free(blk);
    return result;
}

int virtio_blk_destroy(struct virtio_blk *blk) {
    virtio_device_quiesce(&blk->device);
    disk_engine_destroy(blk->engine);
    int result = disk_raw_close(&blk->image);
    virtio_pci_destroy(&blk->transport);
    virtio_device_destroy(&blk->device);
    queues_free(blk);
    free(blk);
    return result;
}

struct pci_device *virtio_blk_pci(struct virtio_blk *blk) {
    return &blk->transport.pci;
}

void virtio_blk_quiesce(struct virtio_blk *blk) {
    virtio_device_quiesce(&blk->device);
}

void virtio_blk_resume(struct virtio_blk *blk) {
    virtio_device_resume(&blk->device);
}

const char *virtio_blk_engine(const struct virtio_blk *blk) {
    return disk_engine_name(blk->engine);
}

void virtio_blk_count(const struct virtio_blk *blk, struct virtio_blk_counters *counters) {
    const struct virtio_blk_counters *from = &blk->counters;
    *counters = (struct virtio_blk_counters){
        .reads = __atomic_load_n(&from->reads, __ATOMIC_RELAXED),
        .writes = __atomic_load_n(&from->writes, __ATOMIC_RELAXED),
        .flushes = __atomic_load_n(&from->flushes, __ATOMIC_RELAXED),
        .discards = __atomic_load_n(&from->discards, __ATOMIC_RELAXED),
        .read_bytes = __atomic_load_n(&from->read_bytes, __ATOMIC_RELAXED),
        .written_bytes = __atomic_load_n(&from->written_bytes, __ATOMIC_RELAXED),
        .errors = __atomic_load_n(&from->errors, __ATOMIC_RELAXED),
    };
}
