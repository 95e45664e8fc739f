/* Timer queue: order, re-arming, cancelling, the manual clock and the real thread. */
#include <pthread.h>
#include <stdatomic.h>
#include <time.h>

#include "devices/timer.h"
#include "devices_check.h"

struct event {
    struct timer timer;
    struct timer_queue *queue;
    uint64_t fired_at;
    uint64_t period;
    _Atomic unsigned count;
};

static void fire(void *context) {
    struct event *event = context;
    event->fired_at = timer_now(event->queue);
    atomic_fetch_add(&event->count, 1);
    if (event->period)
        timer_arm(&event->timer, event->timer.deadline_ns + event->period);
}

static void test_manual(void) {
    struct timer_queue *queue = timer_queue_create_manual();
    enum { EVENTS = 100 };
    static struct event events[EVENTS];
    uint64_t start = timer_now(queue);
    for (unsigned i = 0; i < EVENTS; i++) {
        events[i].queue = queue;
        timer_init(&events[i].timer, queue, fire, &events[i]);
        timer_arm(&events[i].timer, start + 1000 + (i * 37 % EVENTS) * 10);
    }
    for (unsigned i = 0; i < EVENTS; i += 3)
        timer_cancel(&events[i].timer);
    timer_arm(&events[0].timer, start + 5);
    timer_queue_advance(queue, 100000);
    for (unsigned i = 1; i < EVENTS; i++) {
        CHECK_EQUAL(events[i].count, i % 3 != 0);
        if (i % 3)
            CHECK_EQUAL(events[i].fired_at, start + 1000 + (i * 37 % EVENTS) * 10);
    }
    CHECK_EQUAL(events[0].fired_at, start + 5);
    CHECK_EQUAL(timer_now(queue), start + 100000);
    events[1].period = 100;
    events[1].count = 0;
    timer_arm(&events[1].timer, timer_now(queue) + 100);
    timer_queue_advance(queue, 1000);
    CHECK_EQUAL(events[1].count, 10);
    timer_cancel_sync(&events[1].timer);
    timer_queue_advance(queue, 1000);
    CHECK_EQUAL(events[1].count, 10);
    timer_queue_destroy(queue);
}

static void test_thread(void) {
    struct timer_queue *queue = timer_queue_create();
    struct event early = {.queue = queue}, late = {.queue = queue}, never = {.queue = queue};
    timer_init(&early.timer, queue, fire, &early);
    timer_init(&late.timer, queue, fire, &late);
    timer_init(&never.timer, queue, fire, &never);
    uint64_t start = timer_now(queue);
    timer_arm(&never.timer, UINT64_MAX);
    timer_arm(&late.timer, start + 20000000);
    timer_arm(&early.timer, start + 1000000);
    for (unsigned i = 0; i < 5000 && !(early.count && late.count); i++)
        nanosleep(&(struct timespec){.tv_nsec = 1000000}, NULL);
    timer_cancel_sync(&early.timer);
    timer_cancel_sync(&late.timer);
    timer_cancel_sync(&never.timer);
    CHECK_EQUAL(early.count, 1);
    CHECK_EQUAL(late.count, 1);
    CHECK_EQUAL(never.count, 0);
    CHECK(early.fired_at >= start + 1000000);
    CHECK(late.fired_at >= start + 20000000);
    timer_queue_destroy(queue);
}

int main(void) {
    test_manual();
    test_thread();
    CHECK_EQUAL(timer_scale(UINT64_MAX, 1000, 1), UINT64_MAX);
    CHECK_EQUAL(timer_scale_up(1, 1, 3), 1);
    return check_result();
}
