/* virtio entropy device (virtio 1.2, clause 5.4). */
#include "devices/virtio_rng.h"

#include "devices/virtio_pci.h"
#include "devices/virtio_worker.h"

#include <errno.h>
#include <stdlib.h>
#include <sys/random.h>

#define QUEUE_SIZE 64
#define CHAIN_PIECES 64
#define REQUEST_BYTES_MAX (64 * KIB) /* a driver that asks for more gets a part, as the clause lets it */
#define PCI_CLASS_OTHER 0xff0000

struct virtio_rng {
    struct virtio_device device; /* first */
    struct virtio_pci transport;
    struct virtio_worker worker;
    struct iovec pieces[CHAIN_PIECES];
};

static uint32_t chain_fill(struct virtio_rng *rng, const struct virtqueue_chain *chain) {
    const struct iovec *iov = chain->iov + chain->readable;
    uint32_t filled = 0;
    for (unsigned i = 0; i < chain->writable; i++) {
        size_t room =
            iov[i].iov_len < REQUEST_BYTES_MAX - filled ? iov[i].iov_len : REQUEST_BYTES_MAX - filled;
        size_t done = 0;
        while (done < room) {
            ssize_t result = getrandom((uint8_t *)iov[i].iov_base + done, room - done, 0);
            if (result > 0)
                done += (size_t)result;
        }
        filled += (uint32_t)room;
    }
    virtqueue_written(rng->device.mem, iov, chain->writable, filled);
    return filled;
}

static void rng_service(struct virtio_device *device) {
    struct virtio_rng *rng = (struct virtio_rng *)device;
    struct virtqueue *ring = &device->queues[0];
    struct virtqueue_chain chain = {.iov = rng->pieces, .capacity = CHAIN_PIECES};
    int result;
    if (!virtio_device_queue_live(device, 0))
        return;
    do {
        virtqueue_disable_kick(ring);
        while ((result = virtio_device_pop(device, 0, &chain)) > 0)
            virtqueue_push(ring, chain.head, chain_fill(rng, &chain));
    } while (!result && virtqueue_enable_kick(ring));
    virtio_device_publish(device, 0);
    if (result < 0)
        virtio_device_broken(device);
}

static void rng_start(struct virtio_device *device) {
    virtio_worker_want(&((struct virtio_rng *)device)->worker, true);
}

static void rng_stop(struct virtio_device *device) {
    virtio_worker_want(&((struct virtio_rng *)device)->worker, false);
}

static void rng_notify(struct virtio_device *device, unsigned queue) {
    (void)queue;
    virtio_worker_kick(&((struct virtio_rng *)device)->worker);
}

static const struct virtio_device_ops rng_ops = {.start = rng_start, .notify = rng_notify, .stop = rng_stop};

int virtio_rng_create(struct virtio_rng **result_rng, struct guest_mem *mem) {
    static const uint16_t sizes[] = {QUEUE_SIZE};
    struct virtio_rng *rng = calloc(1, sizeof *rng);
    if (!rng)
        return -ENOMEM;
    int result = virtio_device_init(&rng->device, &rng_ops, VIRTIO_ID_ENTROPY, mem, 0, 1, sizes);
    if (result)
        goto free_rng;
    result = virtio_pci_init(&rng->transport, "virtio-rng", &rng->device, PCI_CLASS_OTHER);
    if (result)
        goto destroy_device;
    result = virtio_worker_start(&rng->worker, "nestor-rng", &rng->device, rng_service);
    if (result)
        goto destroy_pci;
    *result_rng = rng;
    return 0;
destroy_pci:
    virtio_pci_destroy(&rng->transport);
destroy_device:
    virtio_device_destroy(&rng->device);
free_rng:
    free(rng);
    return result;
}

void virtio_rng_destroy(struct virtio_rng *rng) {
    virtio_device_quiesce(&rng->device);
    virtio_worker_end(&rng->worker);
    virtio_pci_destroy(&rng->transport);
    virtio_device_destroy(&rng->device);
    free(rng);
}

struct pci_device *virtio_rng_pci(struct virtio_rng *rng) {
    return &rng->transport.pci;
}

void virtio_rng_quiesce(struct virtio_rng *rng) {
    virtio_device_quiesce(&rng->device);
}

void virtio_rng_resume(struct virtio_rng *rng) {
    virtio_device_resume(&rng->device);
}
