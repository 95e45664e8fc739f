/* The counters of a machine as a JSON tree: what --stats, SIGUSR1 and Ctrl-A c give. Every key is explained
 * in docs/debugging.md. */
#ifndef NESTOR_MACHINE_COUNTERS_H
#define NESTOR_MACHINE_COUNTERS_H

#include "machine/machine.h"
#include "machine/vm_config.h"
#include "mem/guest_mem.h"

struct caches;
struct virtio_blk;
struct virtio_net;

/* What the counters are read from; everything may change meanwhile, so numbers that belong together can be
 * apart by what happens while they are read. */
struct counter_sources {
    const struct vm_config *config;
    const struct guest_mem *mem;
    struct vm *vm;
    struct virtio_blk *const *disks; /* config->disk_count of them */
    struct virtio_net *const *nets;  /* config->net_count of them; NULL where there is no card */
    const struct caches *caches;
    uint64_t started_ns; /* CLOCK_MONOTONIC at power-on */
    uint64_t resets, sleeps;
    int statm; /* /proc/self/statm, open for reading; negative: not to be had */
};

/* CLOCK_MONOTONIC. */
uint64_t counters_now_ns(void);
/* The caller deletes the tree. NULL without memory. */
cJSON *counters_collect(const struct counter_sources *sources);

#endif
