/* Timers of a VM's devices: one queue per VM whose own thread runs the callbacks at their time.
 *
 * A queue may also be "manual": it has no thread and its clock moves only by timer_queue_advance(). Tests and
 * fuzzers use that to be exact and repeatable.
 *
 * timer_cancel() and timer_arm() do not wait for a callback that is already running or about to: a callback
 * takes its device's lock and looks there whether it is still wanted (the deadline that it was armed for has
 * come).
 */
#ifndef NESTOR_DEVICES_TIMER_H
#define NESTOR_DEVICES_TIMER_H

#include "base/types.h"

#define NS_PER_SECOND 1000000000ull

struct timer_queue;

struct timer {
    struct timer_queue *queue;
    void (*callback)(void *context);
    void *context;
    uint64_t deadline_ns;
    size_t slot; /* index into the queue's heap plus one; 0 when not armed */
};

/* A queue with its thread, or a manual one. NULL if out of memory or threads. */
MUST_CHECK struct timer_queue *timer_queue_create(void);
MUST_CHECK struct timer_queue *timer_queue_create_manual(void);
/* Stop the thread and free the queue. No timer may be armed or used afterwards. */
void timer_queue_destroy(struct timer_queue *queue);
bool timer_queue_is_manual(const struct timer_queue *queue);

/* Nanoseconds of CLOCK_MONOTONIC, or of the manual clock. */
uint64_t timer_now(struct timer_queue *queue);
/* Move a manual queue's clock on by ns, running what comes due in order of deadline with the clock at that
 * deadline. Callbacks that re-arm without letting time pass are run at most a bounded number of times. */
void timer_queue_advance(struct timer_queue *queue, uint64_t ns);

/* A timer needs no destruction beyond timer_cancel_sync(). */
void timer_init(struct timer *timer, struct timer_queue *queue, void (*callback)(void *context),
                void *context);
/* Run the callback once, at deadline_ns (absolute, in timer_now()'s time). Replaces an earlier deadline. */
void timer_arm(struct timer *timer, uint64_t deadline_ns);
void timer_cancel(struct timer *timer);
/* Cancel and wait until a running callback has returned. Must not be called from a callback or under a lock
 * that the callback takes: for destroying a device. */
void timer_cancel_sync(struct timer *timer);

/* ticks * numerator / denominator without overflow in between; saturates at UINT64_MAX. denominator is not 0.
 */
static inline uint64_t timer_scale(uint64_t ticks, uint64_t numerator, uint64_t denominator) {
    unsigned __int128 product = (unsigned __int128)ticks * numerator / denominator;
    return product > UINT64_MAX ? UINT64_MAX : (uint64_t)product;
}
/* The same, rounded up. */
static inline uint64_t timer_scale_up(uint64_t ticks, uint64_t numerator, uint64_t denominator) {
    unsigned __int128 product = ((unsigned __int128)ticks * numerator + denominator - 1) / denominator;
    return product > UINT64_MAX ? UINT64_MAX : (uint64_t)product;
}

#endif
