/* A thread that serves the queues of one simple virtio device: woken by a doorbell, it calls service() and
 * sleeps again. */
#ifndef NESTOR_DEVICES_VIRTIO_WORKER_H
#define NESTOR_DEVICES_VIRTIO_WORKER_H

#include "base/types.h"
#include "devices/virtio_device.h"

#include <pthread.h>

struct virtio_worker {
    struct virtio_device *device;
    void (*service)(struct virtio_device *device);
    pthread_t thread;
    pthread_mutex_t lock; /* guards what follows */
    pthread_cond_t wake;
    bool kicked;
    bool wanted; /* the queues are to be served */
    bool quit;
};

MUST_CHECK int virtio_worker_start(struct virtio_worker *worker, const char *name,
                                   struct virtio_device *device,
                                   void (*service)(struct virtio_device *device));
/* Join the thread; the device has been quiesced. */
void virtio_worker_end(struct virtio_worker *worker);
void virtio_worker_kick(struct virtio_worker *worker);
/* For the device's start and stop. */
void virtio_worker_want(struct virtio_worker *worker, bool wanted);

#endif
