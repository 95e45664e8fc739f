/* Split virtqueues (virtio 1.2, clause 2.7): rings in guest RAM, all of it hostile.
 *
 * Invariants: no pointer is formed from a guest value that guest_mem_ptr() has not checked; the number of
 * descriptors walked for one chain is bounded by the table they are in; indexes are free-running 16-bit
 * counters that are masked at every use. The device's own progress is never read back from guest memory.
 *
 * Serving a queue:
 *     do {
 *         virtqueue_disable_kick(queue);
 *         while ((result = virtqueue_pop(queue, &chain)) > 0)
 *             ... virtqueue_push(queue, chain.head, written);
 *         virtqueue_publish(queue);
 *     } while (!result && virtqueue_enable_kick(queue));
 *     if (virtqueue_wants_interrupt(queue)) ...
 */
#include "devices/virtio_queue.h"

#include <errno.h>
#include <string.h>

struct virtqueue_descriptor {
    uint64_t address;
    uint32_t length;
    uint16_t flags;
    uint16_t next;
};

enum {
    DESCRIPTOR_NEXT = 1,
    DESCRIPTOR_WRITABLE = 2,
    DESCRIPTOR_INDIRECT = 4,
};

enum {
    AVAILABLE_NO_INTERRUPT = 1,
    USED_NO_NOTIFY = 1,
    RING_HEADER = 4,  /* flags and idx of either ring */
    USED_ELEMENT = 8, /* id and length */
    RING_EVENT = 2,   /* used_event or avail_event behind the ring */
};

void virtqueue_reset(struct virtqueue *queue) {
    *queue = (struct virtqueue){
        .mem = queue->mem, .size_max = queue->size_max, .size = queue->size_max, .msix_vector = 0xffff};
}

int virtqueue_start(struct virtqueue *queue, bool event_idx, bool indirect) {
    unsigned size = queue->size;
    int result;
    queue->event_idx = event_idx;
    queue->indirect = indirect;
    queue->next_available = queue->seen_available = 0;
    queue->next_used = queue->published_used = queue->signalled_used = 0;

    result = -EINVAL;
    if (!size || size > queue->size_max || (size & (size - 1)))
        goto broken;
    result = -EFAULT;
    if ((queue->descriptors_gpa & 15) || (queue->driver_gpa & 1) || (queue->device_gpa & 3))
        goto broken;
    queue->descriptors = guest_mem_ptr(queue->mem, queue->descriptors_gpa, 16ull * size);
    queue->available = guest_mem_ptr(queue->mem, queue->driver_gpa, RING_HEADER + 2ull * size + RING_EVENT);
    queue->used = guest_mem_ptr(queue->mem, queue->device_gpa,
                                RING_HEADER + (uint64_t)USED_ELEMENT * size + RING_EVENT);
    if (!queue->descriptors || !queue->available || !queue->used)
        goto broken;
    __atomic_store_n(&queue->broken, false, __ATOMIC_RELEASE);
    return 0;
broken:
    __atomic_store_n(&queue->broken, true, __ATOMIC_RELEASE);
    return result;
}

int virtqueue_break(struct virtqueue *queue) {
    __atomic_store_n(&queue->broken, true, __ATOMIC_RELEASE);
    return -EPROTO;
}

/* What was written to guest memory before is seen before the new value. */
static void used_write16(struct virtqueue *queue, uint32_t offset, uint16_t value) {
    __atomic_store_n((volatile uint16_t *)(queue->used + offset), value, __ATOMIC_RELEASE);
    guest_mem_written(queue->mem, queue->device_gpa + offset, 2);
}

static uint16_t available_read(const struct virtqueue *queue, unsigned index) {
    return __atomic_load_n(&queue->available[index], __ATOMIC_ACQUIRE);
}

static struct virtqueue_descriptor descriptor_read(const volatile struct virtqueue_descriptor *table,
                                                   unsigned index) {
    const volatile struct virtqueue_descriptor *at = &table[index];
    return (struct virtqueue_descriptor){at->address, at->length, at->flags, at->next};
}

/* Append one buffer; false where it is no RAM, comes in the wrong order, or does not fit. */
static bool chain_append(const struct virtqueue *queue, struct virtqueue_chain *chain,
                         const struct virtqueue_descriptor *descriptor) {
    bool writable = descriptor->flags & DESCRIPTOR_WRITABLE;
    if (!writable && chain->writable)
        return false;
    if (!descriptor->length)
        return true;
    unsigned count = chain->readable + chain->writable;
    if (count >= chain->capacity)
        return false;
    uint32_t *bytes = writable ? &chain->writable_bytes : &chain->readable_bytes;
    if (__builtin_add_overflow(*bytes, descriptor->length, bytes))
        return false;
    void *host = guest_mem_ptr(queue->mem, descriptor->address, descriptor->length);
    if (!host)
        return false;
    chain->iov[count] = (struct iovec){host, descriptor->length};
    if (writable)
        chain->writable++;
    else
        chain->readable++;
    return true;
}

/* Walk a whole chain from table[index]; an indirect table ends it (clause 2.7.5.3). */
static bool chain_walk(const struct virtqueue *queue, struct virtqueue_chain *chain, unsigned index) {
    const volatile struct virtqueue_descriptor *table = queue->descriptors;
    unsigned size = queue->size;
    unsigned left = size;
    bool nested = false;
    for (;;) {
        if (index >= size || !left--)
            return false;
        struct virtqueue_descriptor descriptor = descriptor_read(table, index);
        if (descriptor.flags & DESCRIPTOR_INDIRECT) {
            if (nested || !queue->indirect || (descriptor.flags & DESCRIPTOR_NEXT))
                return false;
            if (!descriptor.length || descriptor.length % sizeof descriptor || (descriptor.address & 15))
                return false;
            table = guest_mem_ptr(queue->mem, descriptor.address, descriptor.length);
            if (!table)
                return false;
            /* A table may be large; a chain in it may not. */
            size = left = descriptor.length / sizeof descriptor;
            if (left > VIRTQUEUE_SIZE_LIMIT)
                left = VIRTQUEUE_SIZE_LIMIT;
            index = 0;
            nested = true;
            continue;
        }
        if (!chain_append(queue, chain, &descriptor))
            return false;
        if (!(descriptor.flags & DESCRIPTOR_NEXT))
            return true;
        index = descriptor.next;
    }
}

int virtqueue_pop(struct virtqueue *queue, struct virtqueue_chain *chain) {
    if (UNLIKELY(__atomic_load_n(&queue->broken, __ATOMIC_RELAXED)))
        return -EPROTO;
    if (queue->next_available == queue->seen_available) {
        queue->seen_available = available_read(queue, 1);
        uint16_t waiting = queue->seen_available - queue->next_available;
        if (!waiting)
            return 0;
        if (waiting > queue->size)
            return virtqueue_break(queue);
    }
    chain->readable = chain->writable = 0;
    chain->readable_bytes = chain->writable_bytes = 0;
    chain->head = queue->available[2 + (queue->next_available & (queue->size - 1))];
    if (!chain_walk(queue, chain, chain->head))
        return virtqueue_break(queue);
    queue->next_available++;
    return 1;
}

void virtqueue_rewind(struct virtqueue *queue, unsigned count) {
    queue->next_available -= (uint16_t)count;
}

void virtqueue_disable_kick(struct virtqueue *queue) {
    /* With event indexes the old avail_event is behind the driver already. */
    if (!queue->event_idx && !__atomic_load_n(&queue->broken, __ATOMIC_RELAXED))
        used_write16(queue, 0, USED_NO_NOTIFY);
}

bool virtqueue_enable_kick(struct virtqueue *queue) {
    if (__atomic_load_n(&queue->broken, __ATOMIC_RELAXED))
        return false;
    if (queue->event_idx)
        used_write16(queue, RING_HEADER + USED_ELEMENT * queue->size, queue->seen_available);
    else
        used_write16(queue, 0, 0);
    /* The driver stores idx, then reads the event; we store the event, then read idx: one of us sees the
     * other. */
    __atomic_thread_fence(__ATOMIC_SEQ_CST);
    return available_read(queue, 1) != queue->seen_available;
}

void virtqueue_push(struct virtqueue *queue, uint16_t head, uint32_t written) {
    uint32_t offset = RING_HEADER + USED_ELEMENT * (queue->next_used & (queue->size - 1u));
    volatile uint32_t *element = (volatile uint32_t *)(queue->used + offset);
    element[0] = head;
    element[1] = written;
    guest_mem_written(queue->mem, queue->device_gpa + offset, USED_ELEMENT);
    queue->next_used++;
}

void virtqueue_publish(struct virtqueue *queue) {
    if (queue->published_used == queue->next_used)
        return;
    used_write16(queue, 2, queue->next_used);
    queue->published_used = queue->next_used;
}

bool virtqueue_wants_interrupt(struct virtqueue *queue) {
    uint16_t now = queue->published_used;
    uint16_t before = queue->signalled_used;
    if (now == before)
        return false;
    __atomic_thread_fence(__ATOMIC_SEQ_CST);
    queue->signalled_used = now;
    if (!queue->event_idx)
        return !(available_read(queue, 0) & AVAILABLE_NO_INTERRUPT);
    /* Did the index pass the event on its way from before to now? (clause 2.7.7.2) */
    uint16_t event = available_read(queue, 2u + queue->size);
    return (uint16_t)(now - event - 1) < (uint16_t)(now - before);
}

/* Copy between a buffer and iov[], from byte skip of the latter on. */
static size_t iov_copy(const struct iovec *iov, unsigned count, size_t skip, uint8_t *buffer, size_t length,
                       struct guest_mem *written_to) {
    size_t done = 0;
    for (unsigned i = 0; i < count && done < length; i++) {
        if (skip >= iov[i].iov_len) {
            skip -= iov[i].iov_len;
            continue;
        }
        uint8_t *at = (uint8_t *)iov[i].iov_base + skip;
        size_t piece = iov[i].iov_len - skip;
        if (piece > length - done)
            piece = length - done;
        if (written_to) {
            memcpy(at, buffer + done, piece);
            struct iovec part = {at, piece};
            virtqueue_written(written_to, &part, 1, piece);
        } else {
            memcpy(buffer + done, at, piece);
        }
        done += piece;
        skip = 0;
    }
    return done;
}

size_t virtqueue_chain_read(const struct virtqueue_chain *chain, size_t skip, void *buffer, size_t length) {
    return iov_copy(chain->iov, chain->readable, skip, buffer, length, NULL);
}

size_t virtqueue_chain_write(struct guest_mem *mem, const struct virtqueue_chain *chain, size_t skip,
                             const void *buffer, size_t length) {
    /* iov_copy() only reads from the buffer in this direction. */
    return iov_copy(chain->iov + chain->readable, chain->writable, skip, (uint8_t *)(uintptr_t)buffer, length,
                    mem);
}

void virtqueue_written(struct guest_mem *mem, const struct iovec *iov, unsigned count, uint64_t length) {
    for (unsigned i = 0; i < count && length; i++) {
        uint64_t piece = iov[i].iov_len < length ? iov[i].iov_len : length;
        guest_mem_written(mem, guest_mem_gpa(mem, (uint64_t)((uint8_t *)iov[i].iov_base - mem->base)), piece);
        length -= piece;
    }
}
