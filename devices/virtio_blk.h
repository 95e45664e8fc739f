/* virtio block device (virtio 1.2, clause 5.2) on a raw disk image. */
#ifndef NESTOR_DEVICES_VIRTIO_BLK_H
#define NESTOR_DEVICES_VIRTIO_BLK_H

#include "base/trace.h"
#include "base/types.h"
#include "devices/disk_engine.h"
#include "devices/pci.h"
#include "mem/guest_mem.h"

#define VIRTIO_BLK_QUEUES_MAX 16
#define VIRTIO_BLK_SERIAL_MAX 20

struct virtio_blk;

struct virtio_blk_config {
    const char *path;
    bool read_only;
    const char *serial; /* up to VIRTIO_BLK_SERIAL_MAX characters, or NULL */
    unsigned queues;    /* 0: one; best one per vCPU, up to VIRTIO_BLK_QUEUES_MAX */
    enum disk_engine_kind engine;
    const struct trace *trace; /* for TRACE_DISK; NULL: no log. Outlives the device */
};

/* Finished requests since the start. */
struct virtio_blk_counters {
    uint64_t reads, writes, flushes, discards; /* discards: and zeroing */
    uint64_t read_bytes, written_bytes;
    uint64_t errors;
};

/* Open and lock the image and start its I/O threads. On failure one line has told why; -errno. */
MUST_CHECK int virtio_blk_create(struct virtio_blk **blk, const struct virtio_blk_config *config,
                                 struct guest_mem *mem);
/* Let requests in flight end, flush, close. No register access may come any more. 0, or -errno of the flush.
 */
int virtio_blk_destroy(struct virtio_blk *blk);
struct pci_device *virtio_blk_pci(struct virtio_blk *blk);
/* Stop touching the rings and guest memory, with all requests in flight finished; and go on. */
void virtio_blk_quiesce(struct virtio_blk *blk);
void virtio_blk_resume(struct virtio_blk *blk);
/* From any thread. */
void virtio_blk_count(const struct virtio_blk *blk, struct virtio_blk_counters *counters);
/* "io_uring" or "threads". */
const char *virtio_blk_engine(const struct virtio_blk *blk);

#endif
