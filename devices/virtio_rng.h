/* virtio entropy device (virtio 1.2, clause 5.4), fed by the host kernel's getrandom(2). */
#ifndef NESTOR_DEVICES_VIRTIO_RNG_H
#define NESTOR_DEVICES_VIRTIO_RNG_H

#include "base/types.h"
#include "devices/pci.h"
#include "mem/guest_mem.h"

struct virtio_rng;

MUST_CHECK int virtio_rng_create(struct virtio_rng **rng, struct guest_mem *mem);
/* No register access may come any more. */
void virtio_rng_destroy(struct virtio_rng *rng);
struct pci_device *virtio_rng_pci(struct virtio_rng *rng);
void virtio_rng_quiesce(struct virtio_rng *rng);
void virtio_rng_resume(struct virtio_rng *rng);

#endif
