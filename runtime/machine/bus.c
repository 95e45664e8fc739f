/* The bus is a sorted array under a sequence counter. A reader searches it, copies the entry, and starts
 * again if the counter moved meanwhile; what it may read in between is stale or mixed but always inside the
 * array. */
#include "machine/bus.h"

#include <errno.h>
#include <sched.h>

struct target {
    uint64_t base, length;
    const struct bus_ops *ops;
    void *context;
};

void bus_init(struct bus *bus) {
    pthread_mutex_init(&bus->lock, NULL);
    atomic_init(&bus->sequence, 0);
    atomic_init(&bus->count, 0);
}

void bus_destroy(struct bus *bus) {
    pthread_mutex_destroy(&bus->lock);
}

static uint64_t range_base(struct bus *bus, uint32_t index) {
    return atomic_load_explicit(&bus->ranges[index].base, memory_order_relaxed);
}

/* Number of ranges whose base is at or below an address. */
static uint32_t ranges_upto(struct bus *bus, uint64_t address) {
    uint32_t low = 0, high = atomic_load_explicit(&bus->count, memory_order_relaxed);
    while (low < high) {
        uint32_t middle = (low + high) / 2;
        if (range_base(bus, middle) <= address)
            low = middle + 1;
        else
            high = middle;
    }
    return low;
}

static void range_load(struct bus_range *range, struct target *target) {
    target->base = atomic_load_explicit(&range->base, memory_order_relaxed);
    target->length = atomic_load_explicit(&range->length, memory_order_relaxed);
    target->ops = atomic_load_explicit(&range->ops, memory_order_relaxed);
    target->context = atomic_load_explicit(&range->context, memory_order_relaxed);
}

static void range_store(struct bus_range *range, const struct target *target) {
    atomic_store_explicit(&range->base, target->base, memory_order_relaxed);
    atomic_store_explicit(&range->length, target->length, memory_order_relaxed);
    atomic_store_explicit(&range->ops, target->ops, memory_order_relaxed);
    atomic_store_explicit(&range->context, target->context, memory_order_relaxed);
}

/* The range that holds an address. */
static bool bus_find(struct bus *bus, uint64_t address, struct target *target) {
    for (;;) {
        uint32_t before = atomic_load_explicit(&bus->sequence, memory_order_acquire);
        if (before & 1) {
            sched_yield();
            continue;
        }
        uint32_t upto = ranges_upto(bus, address);
        if (upto)
            range_load(&bus->ranges[upto - 1], target);
        atomic_thread_fence(memory_order_acquire);
        if (atomic_load_explicit(&bus->sequence, memory_order_relaxed) == before)
            return upto && address - target->base < target->length;
    }
}

/* Writers hold the lock. */
static void change_begin(struct bus *bus) {
    uint32_t sequence = atomic_load_explicit(&bus->sequence, memory_order_relaxed);
    atomic_store_explicit(&bus->sequence, sequence + 1, memory_order_relaxed);
    atomic_thread_fence(memory_order_release);
}

static void change_end(struct bus *bus) {
    uint32_t sequence = atomic_load_explicit(&bus->sequence, memory_order_relaxed);
    atomic_store_explicit(&bus->sequence, sequence + 1, memory_order_release);
}

static void range_move(struct bus *bus, uint32_t to, uint32_t from) {
    struct target target;
    range_load(&bus->ranges[from], &target);
    range_store(&bus->ranges[to], &target);
}

int bus_add(struct bus *bus, uint64_t base, uint64_t length, const struct bus_ops *ops, void *context) {
    if (length == 0 || base + length - 1 < base)
        return -EINVAL;
    int result = 0;
    pthread_mutex_lock(&bus->lock);
    uint32_t count = atomic_load_explicit(&bus->count, memory_order_relaxed);
    uint32_t at = ranges_upto(bus, base);
    struct target below = {0};
    if (at)
        range_load(&bus->ranges[at - 1], &below);
    if (at && base - below.base < below.length)
        result = -EEXIST;
    else if (at < count && range_base(bus, at) - base < length)
        result = -EEXIST;
    else if (count == BUS_RANGES_MAX)
        result = -ENOSPC;
    if (!result) {
        change_begin(bus);
        for (uint32_t i = count; i > at; i--)
            range_move(bus, i, i - 1);
        struct target target = {base, length, ops, context};
        range_store(&bus->ranges[at], &target);
        atomic_store_explicit(&bus->count, count + 1, memory_order_relaxed);
        change_end(bus);
    }
    pthread_mutex_unlock(&bus->lock);
    return result;
}

int bus_remove(struct bus *bus, uint64_t base) {
    int result = -ENOENT;
    pthread_mutex_lock(&bus->lock);
    uint32_t count = atomic_load_explicit(&bus->count, memory_order_relaxed);
    uint32_t at = ranges_upto(bus, base);
    if (at && range_base(bus, at - 1) == base) {
        change_begin(bus);
        for (uint32_t i = at; i < count; i++)
            range_move(bus, i - 1, i);
        atomic_store_explicit(&bus->count, count - 1, memory_order_relaxed);
        change_end(bus);
        result = 0;
    }
    pthread_mutex_unlock(&bus->lock);
    return result;
}

static uint64_t all_ones(unsigned size) {
    return UINT64_MAX >> (64 - 8 * size);
}

bool bus_read(struct bus *bus, uint64_t address, unsigned size, uint64_t *value) {
    struct target target;
    if (!bus_find(bus, address, &target)) {
        *value = all_ones(size);
        return false;
    }
    uint64_t offset = address - target.base;
    if (LIKELY(size <= target.length - offset)) {
        *value = target.ops->read(target.context, offset, size) & all_ones(size);
        return true;
    }
    *value = 0;
    for (unsigned i = 0; i < size; i++) {
        uint64_t byte;
        bus_read(bus, address + i, 1, &byte);
        *value |= byte << (8 * i);
    }
    return true;
}

bool bus_write(struct bus *bus, uint64_t address, unsigned size, uint64_t value) {
    struct target target;
    if (!bus_find(bus, address, &target))
        return false;
    uint64_t offset = address - target.base;
    if (LIKELY(size <= target.length - offset)) {
        target.ops->write(target.context, offset, size, value & all_ones(size));
        return true;
    }
    for (unsigned i = 0; i < size; i++)
        bus_write(bus, address + i, 1, value >> (8 * i) & 0xff);
    return true;
}
