/* The part of a virtio device that all device types share (virtio 1.2, clauses 2 and 3): status, features,
 * queues, configuration space, and the common configuration structure as registers (clause 4.1.4.3). It knows
 * no bus: a transport (devices/virtio_pci.h) brings the accesses and carries the interrupts.
 *
 * Threads. Register accesses come from any vCPU thread and take `lock`. Queues are served by the device's own
 * worker, which needs no lock for that: rings are set up before the worker is told to start and are taken
 * down only after it said, by virtio_device_stopped(), that it no longer touches them. So a reset by the
 * guest ends a little after the write that asked for it, as clause 2.1.2 lets it; meanwhile the status does
 * not read as 0. Lock order: lock -> the worker's own locks -> the transport's interrupt lock. ops->start,
 * stop and notify are called on vCPU threads and only wake the worker.
 */
#ifndef NESTOR_DEVICES_VIRTIO_DEVICE_H
#define NESTOR_DEVICES_VIRTIO_DEVICE_H

#include "base/types.h"
#include "devices/virtio_queue.h"

#include <pthread.h>

#define VIRTIO_NO_VECTOR 0xffff
#define VIRTIO_CONFIG_MAX 128

enum virtio_id {
    VIRTIO_ID_NET = 1,
    VIRTIO_ID_BLOCK = 2,
    VIRTIO_ID_CONSOLE = 3,
    VIRTIO_ID_ENTROPY = 4,
};

enum virtio_status {
    VIRTIO_ACKNOWLEDGE = 1,
    VIRTIO_DRIVER = 2,
    VIRTIO_DRIVER_OK = 4,
    VIRTIO_FEATURES_OK = 8,
    VIRTIO_NEEDS_RESET = 64,
    VIRTIO_FAILED = 128,
};

/* Features of the transport and the rings (clause 6). */
#define VIRTIO_F_INDIRECT_DESC (1ull << 28)
#define VIRTIO_F_EVENT_IDX (1ull << 29)
#define VIRTIO_F_VERSION_1 (1ull << 32)

enum virtio_isr { VIRTIO_ISR_QUEUE = 1, VIRTIO_ISR_CONFIG = 2 };

struct virtio_device;

struct virtio_device_ops {
    /* Optional: whether the accepted features make sense together. */
    bool (*features_ok)(struct virtio_device *device, uint64_t features);
    /* Optional: the driver wrote config[offset .. offset + size), already checked to be inside; apply it or
     * not. */
    void (*config_write)(struct virtio_device *device, uint32_t offset, const uint8_t *data, uint32_t size);
    /* Optional: the device was reset. Under the lock; the worker has stopped. */
    void (*forget)(struct virtio_device *device);
    /* DRIVER_OK was set: the queues may be served. Under the device's lock. */
    void (*start)(struct virtio_device *device);
    /* The driver has put something into an enabled queue. No lock held. */
    void (*notify)(struct virtio_device *device, unsigned queue);
    /* Let go of the queues and have virtio_device_stopped() called, from another thread. Under the lock. */
    void (*stop)(struct virtio_device *device);
};

struct virtio_transport {
    /* Raise a queue's or the configuration's interrupt: by this MSI-X vector, or by these ISR bits. Any
     * thread. */
    void (*interrupt)(void *context, uint16_t vector, uint8_t isr);
    void *context;
};

enum virtio_phase { VIRTIO_IDLE, VIRTIO_RUNNING, VIRTIO_STOPPING };

struct virtio_device {
    const struct virtio_device_ops *ops;
    enum virtio_id id;
    struct guest_mem *mem;
    struct virtio_transport transport;
    uint64_t offered;
    unsigned queue_count;
    struct virtqueue *queues;
    uint32_t config_size;
    uint8_t config[VIRTIO_CONFIG_MAX]; /* under lock */

    pthread_mutex_t lock;
    pthread_cond_t stopped;
    enum virtio_phase phase;
    bool reset_wanted; /* forget everything once stopped; else a quiesce only */
    bool quiesced;
    uint64_t accepted; /* frozen from FEATURES_OK to reset */
    uint32_t offered_select;
    uint32_t accepted_select;
    uint16_t config_vector;
    uint16_t queue_select;
    uint8_t status;
    uint8_t generation;
};

/* queue_sizes: the largest size of each queue, powers of two up to VIRTQUEUE_SIZE_LIMIT. VERSION_1, EVENT_IDX
 * and INDIRECT_DESC are offered in addition to features. 0 or -ENOMEM. */
MUST_CHECK int virtio_device_init(struct virtio_device *device, const struct virtio_device_ops *ops,
                                  enum virtio_id id, struct guest_mem *mem, uint64_t features,
                                  unsigned queue_count, const uint16_t *queue_sizes);
/* The worker must be gone or stopped. */
void virtio_device_destroy(struct virtio_device *device);

/* The common configuration structure; size 1, 2, 4 or 8. */
uint64_t virtio_device_read(struct virtio_device *device, uint64_t offset, unsigned size);
void virtio_device_write(struct virtio_device *device, uint64_t offset, unsigned size, uint64_t value);
/* The device-specific configuration. */
uint64_t virtio_device_config_read(struct virtio_device *device, uint64_t offset, unsigned size);
void virtio_device_config_write(struct virtio_device *device, uint64_t offset, unsigned size, uint64_t value);
/* The driver's doorbell. */
void virtio_device_notify(struct virtio_device *device, unsigned queue);
/* Reset and wait until the worker has let go: for the machine's reset. Not from the worker. */
void virtio_device_reset(struct virtio_device *device);
/* Let the requests in flight finish and keep the queues untouched until resumed: for snapshots and teardown.
 * The driver's view does not change. Not from the worker. */
void virtio_device_quiesce(struct virtio_device *device);
void virtio_device_resume(struct virtio_device *device);

/* For the worker. True once a feature was accepted; stable while the queues are served. */
static inline bool virtio_device_has(const struct virtio_device *device, uint64_t feature) {
    return device->accepted & feature;
}
/* A queue that the driver has enabled and that is not broken. */
bool virtio_device_queue_live(struct virtio_device *device, unsigned queue);
/* virtqueue_pop() for a worker: -ECANCELED once the device is to stop, so that no driver can keep it busy for
 * ever. */
MUST_CHECK int virtio_device_pop(struct virtio_device *device, unsigned queue, struct virtqueue_chain *chain);
/* Publish what was pushed and interrupt the driver if it wants that. */
void virtio_device_publish(struct virtio_device *device, unsigned queue);
/* The driver broke the rules: set DEVICE_NEEDS_RESET and tell it (clause 2.1.2). Nothing happens while
 * stopping. */
void virtio_device_broken(struct virtio_device *device);
/* The configuration space changed: change it through this, at any time. */
void virtio_device_config_update(struct virtio_device *device, uint32_t offset, const void *data,
                                 uint32_t size);
/* The answer to ops->stop. */
void virtio_device_stopped(struct virtio_device *device);

#endif
