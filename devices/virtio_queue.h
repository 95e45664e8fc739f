/* Split virtqueues, seen from the device (virtio 1.2, clause 2.7).
 *
 * Every value in the rings is the guest's and may change at any moment: a descriptor is read exactly once,
 * checked, and only then used. A chain that breaks a rule breaks the queue: virtqueue_pop() then reports
 * -EPROTO for ever (until the queue is set up again) and the device asks for a reset.
 *
 * One thread at a time takes chains from a queue (pop, rewind, enable_kick), one thread at a time gives them
 * back (push, publish, wants_interrupt); the two may be different threads.
 */
#ifndef NESTOR_DEVICES_VIRTIO_QUEUE_H
#define NESTOR_DEVICES_VIRTIO_QUEUE_H

#include "base/types.h"
#include "mem/guest_mem.h"

#include <sys/uio.h>

#define VIRTQUEUE_SIZE_LIMIT 1024

/* One request of the driver, as host memory: device-readable pieces first, then device-writable ones. The
 * caller provides iov[] and capacity; a chain with more pieces breaks the queue. Empty descriptors are left
 * out. */
struct virtqueue_chain {
    struct iovec *iov;
    unsigned capacity;
    unsigned readable; /* iov[0 .. readable) */
    unsigned writable; /* iov[readable .. readable + writable) */
    uint32_t readable_bytes;
    uint32_t writable_bytes;
    uint16_t head; /* what virtqueue_push() wants back */
};

struct virtqueue {
    struct guest_mem *mem;

    /* What the driver programs; frozen while enabled. */
    uint16_t size_max;
    uint16_t size;
    uint16_t msix_vector;
    uint64_t descriptors_gpa;
    uint64_t driver_gpa;
    uint64_t device_gpa;
    bool enabled; /* atomic: set last, with release order */

    /* What virtqueue_start() derives. */
    bool event_idx;
    bool indirect;
    bool broken; /* atomic */
    const volatile struct virtqueue_descriptor *descriptors;
    const volatile uint16_t *available; /* flags, idx, ring[size], used_event */
    volatile uint8_t *used;             /* flags, idx, {id, length}[size], avail_event */

    /* Taking side. */
    uint16_t next_available;
    uint16_t seen_available; /* the driver's index when last read */
    /* Giving side. */
    uint16_t next_used;      /* filled up to here */
    uint16_t published_used; /* the driver was shown this index */
    uint16_t signalled_used; /* index at the last look at used_event */
};

/* Forget all state but mem and size_max. */
void virtqueue_reset(struct virtqueue *queue);
/* Look up the rings that the driver has programmed and begin with empty ones. -EINVAL for a size that is no
 * power of two or is too large, -EFAULT for rings that are misaligned or not in RAM: the queue is then
 * broken. */
MUST_CHECK int virtqueue_start(struct virtqueue *queue, bool event_idx, bool indirect);

/* Take the next chain: 1, 0 if there is none, -EPROTO if the queue is broken. */
MUST_CHECK int virtqueue_pop(struct virtqueue *queue, struct virtqueue_chain *chain);
/* Put back the last `count` chains taken, none of which was given back. */
void virtqueue_rewind(struct virtqueue *queue, unsigned count);
/* For a chain that the device type cannot make sense of: the queue is broken from now on. Returns -EPROTO. */
int virtqueue_break(struct virtqueue *queue);
/* Ask for no notification while the queue is being served: a hint. */
void virtqueue_disable_kick(struct virtqueue *queue);
/* Ask for a notification of the next chain. True if one is there already: serve again, no notification may
 * come. */
MUST_CHECK bool virtqueue_enable_kick(struct virtqueue *queue);

/* Give a chain back; `written` bytes of its writable part were filled. Visible only after
 * virtqueue_publish(). */
void virtqueue_push(struct virtqueue *queue, uint16_t head, uint32_t written);
void virtqueue_publish(struct virtqueue *queue);
/* Whether the driver wants an interrupt for what was published since this was last asked. */
MUST_CHECK bool virtqueue_wants_interrupt(struct virtqueue *queue);

/* Copy out of the chain's readable part or into its writable part, from byte `skip` on. Returns the bytes
 * copied: fewer than `length` where the chain ends. Written pages are reported to guest_mem. */
size_t virtqueue_chain_read(const struct virtqueue_chain *chain, size_t skip, void *buffer, size_t length);
size_t virtqueue_chain_write(struct guest_mem *mem, const struct virtqueue_chain *chain, size_t skip,
                             const void *buffer, size_t length);
/* Report the first `length` bytes of iov[] (host addresses inside RAM) as written by DMA. */
void virtqueue_written(struct guest_mem *mem, const struct iovec *iov, unsigned count, uint64_t length);

#endif
