/* Address spaces of the machine: who answers at a port or at an MMIO address.
 *
 * Readers are lock-free and may be many; adding and removing is rare (PCI BARs move) and serialised. An
 * access that began before a range was removed may still reach its device afterwards, as it may on a real
 * bus: a device must outlive the bus, or all vCPUs must be stopped before it goes.
 */
#ifndef NESTOR_MACHINE_BUS_H
#define NESTOR_MACHINE_BUS_H

#include <pthread.h>
#include <stdatomic.h>

#include "base/types.h"

#define BUS_RANGES_MAX 512

struct bus_ops {
    /* offset counts from the range's base; [offset, offset + size) lies in the range; size 1, 2, 4 or 8. */
    uint64_t (*read)(void *context, uint64_t offset, unsigned size);
    void (*write)(void *context, uint64_t offset, unsigned size, uint64_t value);
};

struct bus_range {
    _Atomic uint64_t base;
    _Atomic uint64_t length;
    _Atomic(const struct bus_ops *) ops;
    _Atomic(void *) context;
};

struct bus {
    pthread_mutex_t lock;      /* of writers */
    _Atomic uint32_t sequence; /* odd while the ranges change */
    _Atomic uint32_t count;
    struct bus_range ranges[BUS_RANGES_MAX]; /* sorted by base, disjoint */
};

void bus_init(struct bus *bus);
void bus_destroy(struct bus *bus);
/* Claim [base, base + length). -EEXIST if any of it is taken, -EINVAL if it is empty or wraps, -ENOSPC. */
MUST_CHECK int bus_add(struct bus *bus, uint64_t base, uint64_t length, const struct bus_ops *ops,
                       void *context);
/* Give up the range that starts at base. -ENOENT if there is none. */
int bus_remove(struct bus *bus, uint64_t base);

/* An access of 1, 2, 4 or 8 bytes. False, with *value all ones of that size, if nobody claims it: then a
 * write was dropped. One that runs over a range's end is split into bytes. */
bool bus_read(struct bus *bus, uint64_t address, unsigned size, uint64_t *value);
bool bus_write(struct bus *bus, uint64_t address, unsigned size, uint64_t value);

#endif
