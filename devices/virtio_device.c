/* Common part of virtio devices (virtio 1.2, clauses 2, 3 and 4.1.4.3).
 *
 * Life: IDLE --DRIVER_OK--> RUNNING --status 0, machine reset or quiesce--> STOPPING --worker let go--> IDLE.
 * While STOPPING for a reset, register writes are dropped. A quiesced device stays IDLE with its status
 * untouched and goes back to RUNNING on resume.
 */
#include "devices/virtio_device.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

/* Offsets of the common configuration structure (clause 4.1.4.3). */
enum {
    COMMON_OFFERED_SELECT = 0,
    COMMON_OFFERED = 4,
    COMMON_ACCEPTED_SELECT = 8,
    COMMON_ACCEPTED = 12,
    COMMON_CONFIG_VECTOR = 16,
    COMMON_QUEUE_COUNT = 18,
    COMMON_STATUS = 20,
    COMMON_GENERATION = 21,
    COMMON_QUEUE_SELECT = 22,
    COMMON_QUEUE_SIZE = 24,
    COMMON_QUEUE_VECTOR = 26,
    COMMON_QUEUE_ENABLE = 28,
    COMMON_QUEUE_NOTIFY_OFF = 30,
    COMMON_QUEUE_DESCRIPTORS = 32,
    COMMON_QUEUE_DRIVER = 40,
    COMMON_QUEUE_DEVICE = 48,
    COMMON_SIZE = 64,
};

int virtio_device_init(struct virtio_device *device, const struct virtio_device_ops *ops, enum virtio_id id,
                       struct guest_mem *mem, uint64_t features, unsigned queue_count,
                       const uint16_t *queue_sizes) {
    *device = (struct virtio_device){.ops = ops, .id = id, .mem = mem, .queue_count = queue_count};
    device->offered = features | VIRTIO_F_VERSION_1 | VIRTIO_F_EVENT_IDX | VIRTIO_F_INDIRECT_DESC;
    device->config_vector = VIRTIO_NO_VECTOR;
    device->queues = calloc(queue_count, sizeof *device->queues);
    if (!device->queues)
        return -ENOMEM;
    for (unsigned i = 0; i < queue_count; i++) {
        device->queues[i].mem = mem;
        device->queues[i].size_max = queue_sizes[i];
        virtqueue_reset(&device->queues[i]);
    }
    pthread_mutex_init(&device->lock, NULL);
    pthread_cond_init(&device->stopped, NULL);
    return 0;
}

void virtio_device_destroy(struct virtio_device *device) {
    pthread_cond_destroy(&device->stopped);
    pthread_mutex_destroy(&device->lock);
    free(device->queues);
}

static void raise_interrupt(struct virtio_device *device, uint16_t vector, uint8_t isr) {
    if (device->transport.interrupt)
        device->transport.interrupt(device->transport.context, vector, isr);
}

/* Back to the state after power-on; the worker holds nothing. */
static void forget(struct virtio_device *device) {
    for (unsigned i = 0; i < device->queue_count; i++)
        virtqueue_reset(&device->queues[i]);
    device->accepted = 0;
    device->offered_select = device->accepted_select = 0;
    device->config_vector = VIRTIO_NO_VECTOR;
    device->queue_select = 0;
    device->status = 0;
    device->quiesced = false;
    if (device->ops->forget)
        device->ops->forget(device);
}

/* Begin to stop, or finish at once when nothing runs. */
static void begin_stop(struct virtio_device *device, bool reset) {
    device->reset_wanted |= reset;
    if (device->phase == VIRTIO_RUNNING) {
        __atomic_store_n(&device->phase, VIRTIO_STOPPING, __ATOMIC_RELEASE);
        device->ops->stop(device);
    } else if (device->phase == VIRTIO_IDLE && device->reset_wanted) {
        device->reset_wanted = false;
        forget(device);
    }
}

static void begin_run(struct virtio_device *device) {
    __atomic_store_n(&device->phase, VIRTIO_RUNNING, __ATOMIC_RELEASE);
    device->ops->start(device);
}

void virtio_device_stopped(struct virtio_device *device) {
    pthread_mutex_lock(&device->lock);
    if (device->phase == VIRTIO_STOPPING) {
        __atomic_store_n(&device->phase, VIRTIO_IDLE, __ATOMIC_RELEASE);
        if (device->reset_wanted) {
            device->reset_wanted = false;
            forget(device);
        }
        pthread_cond_broadcast(&device->stopped);
    }
    pthread_mutex_unlock(&device->lock);
}

static void stop_and_wait(struct virtio_device *device, bool reset) {
    begin_stop(device, reset);
    while (device->phase == VIRTIO_STOPPING)
        pthread_cond_wait(&device->stopped, &device->lock);
}

void virtio_device_reset(struct virtio_device *device) {
    pthread_mutex_lock(&device->lock);
    stop_and_wait(device, true);
    pthread_mutex_unlock(&device->lock);
}

void virtio_device_quiesce(struct virtio_device *device) {
    pthread_mutex_lock(&device->lock);
    if (device->phase != VIRTIO_IDLE) {
        device->quiesced = true;
        stop_and_wait(device, false);
    }
    pthread_mutex_unlock(&device->lock);
}

void virtio_device_resume(struct virtio_device *device) {
    pthread_mutex_lock(&device->lock);
    if (device->quiesced) {
        device->quiesced = false;
        begin_run(device);
    }
    pthread_mutex_unlock(&device->lock);
}

static void status_write(struct virtio_device *device, uint8_t value) {
    if (!value) {
        begin_stop(device, true);
        return;
    }
    uint8_t added = value & ~device->status;
    /* Bits are only added; NEEDS_RESET is the device's. */
    value = (uint8_t)((value | device->status) & ~VIRTIO_NEEDS_RESET) | (device->status & VIRTIO_NEEDS_RESET);
    if (added & VIRTIO_FEATURES_OK) {
        uint64_t features = device->accepted;
        bool ok = (features & VIRTIO_F_VERSION_1) && !(features & ~device->offered) &&
                  (!device->ops->features_ok || device->ops->features_ok(device, features));
        if (!ok)
            value &= ~VIRTIO_FEATURES_OK;
    }
    if (!(value & VIRTIO_FEATURES_OK))
        value &= ~VIRTIO_DRIVER_OK; /* nothing runs without agreed features */
    bool start = (value & ~device->status) & VIRTIO_DRIVER_OK;
    device->status = value;
    if (!start)
        return;
    begin_run(device);
}

static void needs_reset_locked(struct virtio_device *device) {
    if (device->status & VIRTIO_NEEDS_RESET)
        return;
    device->status |= VIRTIO_NEEDS_RESET;
    device->generation++;
    if (device->status & VIRTIO_DRIVER_OK)
        raise_interrupt(device, device->config_vector, VIRTIO_ISR_CONFIG);
}

void virtio_device_broken(struct virtio_device *device) {
    pthread_mutex_lock(&device->lock);
    if (device->phase == VIRTIO_RUNNING)
        needs_reset_locked(device);
    pthread_mutex_unlock(&device->lock);
}

static void queue_enable(struct virtio_device *device, struct virtqueue *queue) {
    if (queue->enabled || !(device->status & VIRTIO_FEATURES_OK))
        return;
    bool event_idx = device->accepted & VIRTIO_F_EVENT_IDX;
    bool indirect = device->accepted & VIRTIO_F_INDIRECT_DESC;
    if (virtqueue_start(queue, event_idx, indirect))
        needs_reset_locked(device);
    __atomic_store_n(&queue->enabled, true, __ATOMIC_RELEASE);
}

/* The structure as the driver would read it whole: slow, exact for any access width. */
static void common_snapshot(const struct virtio_device *device, uint8_t *image) {
    const struct virtqueue *queue =
        device->queue_select < device->queue_count ? &device->queues[device->queue_select] : NULL;
    struct __attribute__((packed)) {
        uint32_t offered_select, offered, accepted_select, accepted;
        uint16_t config_vector, queue_count;
        uint8_t status, generation;
        uint16_t queue_select, queue_size, queue_vector, queue_enable, queue_notify_off;
        uint64_t descriptors, driver, device;
        uint16_t notify_data, queue_reset;
        uint32_t reserved;
    } common = {
        .offered_select = device->offered_select,
        .offered =
            device->offered_select < 2 ? (uint32_t)(device->offered >> 32 * device->offered_select) : 0,
        .accepted_select = device->accepted_select,
        .accepted =
            device->accepted_select < 2 ? (uint32_t)(device->accepted >> 32 * device->accepted_select) : 0,
        .config_vector = device->config_vector,
        .queue_count = (uint16_t)device->queue_count,
        .status = device->status,
        .generation = device->generation,
        .queue_select = device->queue_select,
    };
    _Static_assert(sizeof common == COMMON_SIZE, "clause 4.1.4.3");
    if (queue) {
        common.queue_size = queue->size;
        common.queue_vector = queue->msix_vector;
        common.queue_enable = queue->enabled;
        common.queue_notify_off = device->queue_select;
        common.notify_data = device->queue_select;
        common.descriptors = queue->descriptors_gpa;
        common.driver = queue->driver_gpa;
        common.device = queue->device_gpa;
    }
    memcpy(image, &common, sizeof common);
}

uint64_t virtio_device_read(struct virtio_device *device, uint64_t offset, unsigned size) {
    uint8_t image[COMMON_SIZE];
    uint64_t value = 0;
    if (offset > COMMON_SIZE || size > COMMON_SIZE - offset || size > sizeof value)
        return 0;
    pthread_mutex_lock(&device->lock);
    common_snapshot(device, image);
    pthread_mutex_unlock(&device->lock);
    memcpy(&value, image + offset, size);
    return value;
}

static void set_half(uint64_t *value, bool high, uint64_t half) {
    *value = high ? (*value & UINT32_MAX) | half << 32 : (*value & ~(uint64_t)UINT32_MAX) | (uint32_t)half;
}

static void queue_write(struct virtio_device *device, uint64_t offset, unsigned size, uint64_t value) {
    if (device->queue_select >= device->queue_count)
        return;
    struct virtqueue *queue = &device->queues[device->queue_select];
    if (size == 2 && offset == COMMON_QUEUE_VECTOR) {
        /* The transport has replaced a vector that does not exist by VIRTIO_NO_VECTOR. */
        __atomic_store_n(&queue->msix_vector, (uint16_t)value, __ATOMIC_RELAXED);
        return;
    }
    if (queue->enabled)
        return;
    if (size == 2 && offset == COMMON_QUEUE_SIZE)
        queue->size = (uint16_t)value;
    else if (size == 2 && offset == COMMON_QUEUE_ENABLE && value == 1)
        queue_enable(device, queue);
    else if (size == 4 && offset >= COMMON_QUEUE_DESCRIPTORS && offset < COMMON_QUEUE_DEVICE + 8 &&
             !(offset & 3)) {
        uint64_t *addresses[] = {&queue->descriptors_gpa, &queue->driver_gpa, &queue->device_gpa};
        set_half(addresses[(offset - COMMON_QUEUE_DESCRIPTORS) / 8], offset & 4, value);
    }
}

static void common_write(struct virtio_device *device, uint64_t offset, unsigned size, uint64_t value) {
    if (size == 1 && offset == COMMON_STATUS)
        status_write(device, (uint8_t)value);
    else if (size == 4 && offset == COMMON_OFFERED_SELECT)
        device->offered_select = (uint32_t)value;
    else if (size == 4 && offset == COMMON_ACCEPTED_SELECT)
        device->accepted_select = (uint32_t)value;
    else if (size == 4 && offset == COMMON_ACCEPTED) {
        if (device->accepted_select < 2 && !(device->status & VIRTIO_FEATURES_OK))
            set_half(&device->accepted, device->accepted_select, value);
    } else if (size == 2 && offset == COMMON_CONFIG_VECTOR)
        device->config_vector = (uint16_t)value;
    else if (size == 2 && offset == COMMON_QUEUE_SELECT)
        device->queue_select = (uint16_t)value;
    else
        queue_write(device, offset, size, value);
}

void virtio_device_write(struct virtio_device *device, uint64_t offset, unsigned size, uint64_t value) {
    pthread_mutex_lock(&device->lock);
    bool resetting = device->phase == VIRTIO_STOPPING && device->reset_wanted;
    if (!resetting && size == 8) {
        common_write(device, offset, 4, value & UINT32_MAX);
        common_write(device, offset + 4, 4, value >> 32);
    } else if (!resetting) {
        common_write(device, offset, size, value);
    }
    pthread_mutex_unlock(&device->lock);
}

uint64_t virtio_device_config_read(struct virtio_device *device, uint64_t offset, unsigned size) {
    uint64_t value = 0;
    pthread_mutex_lock(&device->lock);
    if (offset < device->config_size) {
        uint64_t inside = device->config_size - offset;
        memcpy(&value, device->config + offset, size < inside ? size : inside);
    }
    pthread_mutex_unlock(&device->lock);
    return value;
}

void virtio_device_config_write(struct virtio_device *device, uint64_t offset, unsigned size,
                                uint64_t value) {
    uint8_t bytes[sizeof value];
    memcpy(bytes, &value, sizeof value);
    pthread_mutex_lock(&device->lock);
    if (device->ops->config_write && offset < device->config_size && size <= device->config_size - offset)
        device->ops->config_write(device, (uint32_t)offset, bytes, size);
    pthread_mutex_unlock(&device->lock);
}

void virtio_device_config_update(struct virtio_device *device, uint32_t offset, const void *data,
                                 uint32_t size) {
    pthread_mutex_lock(&device->lock);
    memcpy(device->config + offset, data, size);
    device->generation++;
    if (device->status & VIRTIO_DRIVER_OK)
        raise_interrupt(device, device->config_vector, VIRTIO_ISR_CONFIG);
    pthread_mutex_unlock(&device->lock);
}

bool virtio_device_queue_live(struct virtio_device *device, unsigned queue) {
    return __atomic_load_n(&device->queues[queue].enabled, __ATOMIC_ACQUIRE) &&
           !__atomic_load_n(&device->queues[queue].broken, __ATOMIC_ACQUIRE);
}

int virtio_device_pop(struct virtio_device *device, unsigned queue, struct virtqueue_chain *chain) {
    if (__atomic_load_n(&device->phase, __ATOMIC_RELAXED) != VIRTIO_RUNNING)
        return -ECANCELED;
    return virtqueue_pop(&device->queues[queue], chain);
}

void virtio_device_notify(struct virtio_device *device, unsigned queue) {
    if (queue < device->queue_count && __atomic_load_n(&device->phase, __ATOMIC_ACQUIRE) == VIRTIO_RUNNING &&
        virtio_device_queue_live(device, queue))
        device->ops->notify(device, queue);
}

void virtio_device_publish(struct virtio_device *device, unsigned queue) {
    struct virtqueue *at = &device->queues[queue];
    virtqueue_publish(at);
    if (virtqueue_wants_interrupt(at))
        raise_interrupt(device, __atomic_load_n(&at->msix_vector, __ATOMIC_RELAXED), VIRTIO_ISR_QUEUE);
}
