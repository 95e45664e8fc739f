/* The timer queue: a binary heap under one mutex and a thread that sleeps until its top.
 *
 * Arming is hot (every tick a guest programs), so the thread is woken only when the new deadline lies before
 * the one that it sleeps for; moving the earliest deadline back or cancelling it lets the thread wake once
 * for nothing. Callbacks run without the queue's mutex; a timer is off the heap before its callback runs, so
 * a callback may re-arm.
 */
#include "devices/timer.h"

#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <stdlib.h>
#include <sys/prctl.h>
#include <time.h>

/* Callbacks run at one instant of a manual clock before it is forced on. */
#define MANUAL_CALLBACKS_PER_ADVANCE 4096

struct timer_queue {
    pthread_mutex_t lock;
    pthread_cond_t wake; /* of the thread: an earlier deadline, or stop */
    pthread_cond_t ran;  /* a callback has returned */
    pthread_t thread;
    struct timer **heap;
    size_t count;
    size_t capacity;
    struct timer *running;   /* whose callback is being run */
    uint64_t sleeping_until; /* what the thread waits for; UINT64_MAX if for ever */
    uint64_t manual_now;
    bool manual;
    bool stop;
};

static uint64_t host_now(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * NS_PER_SECOND + (uint64_t)now.tv_nsec;
}

uint64_t timer_now(struct timer_queue *queue) {
    if (queue->manual)
        return __atomic_load_n(&queue->manual_now, __ATOMIC_RELAXED);
    return host_now();
}

bool timer_queue_is_manual(const struct timer_queue *queue) {
    return queue->manual;
}

static void heap_place(struct timer_queue *queue, size_t index, struct timer *timer) {
    queue->heap[index] = timer;
    timer->slot = index + 1;
}

static void heap_sift_up(struct timer_queue *queue, size_t index) {
    struct timer *timer = queue->heap[index];
    while (index > 0) {
        size_t parent = (index - 1) / 2;
        if (queue->heap[parent]->deadline_ns <= timer->deadline_ns)
            break;
        heap_place(queue, index, queue->heap[parent]);
        index = parent;
    }
    heap_place(queue, index, timer);
}

static void heap_sift_down(struct timer_queue *queue, size_t index) {
    struct timer *timer = queue->heap[index];
    for (;;) {
        size_t child = 2 * index + 1;
        if (child >= queue->count)
            break;
        if (child + 1 < queue->count && queue->heap[child + 1]->deadline_ns < queue->heap[child]->deadline_ns)
            child++;
        if (timer->deadline_ns <= queue->heap[child]->deadline_ns)
            break;
        heap_place(queue, index, queue->heap[child]);
        index = child;
    }
    heap_place(queue, index, timer);
}

static void heap_remove(struct timer_queue *queue, struct timer *timer) {
    size_t index = timer->slot - 1;
    struct timer *last = queue->heap[--queue->count];
    timer->slot = 0;
    if (last == timer)
        return;
    heap_place(queue, index, last);
    heap_sift_up(queue, index);
    heap_sift_down(queue, last->slot - 1);
}

/* Take the top off and run its callback; the lock is held on entry and exit, but not during the callback. */
static void run_top(struct timer_queue *queue) {
    struct timer *timer = queue->heap[0];
    heap_remove(queue, timer);
    queue->running = timer;
    pthread_mutex_unlock(&queue->lock);
    timer->callback(timer->context);
    pthread_mutex_lock(&queue->lock);
    queue->running = NULL;
    pthread_cond_broadcast(&queue->ran);
}

static void *timer_thread(void *argument) {
    struct timer_queue *queue = argument;
    /* The default slack of 50 us would delay every tick of every guest. */
    prctl(PR_SET_TIMERSLACK, 1ul, 0ul, 0ul, 0ul);
    pthread_mutex_lock(&queue->lock);
    while (!queue->stop) {
        if (queue->count == 0) {
            queue->sleeping_until = UINT64_MAX;
            pthread_cond_wait(&queue->wake, &queue->lock);
            continue;
        }
        uint64_t deadline = queue->heap[0]->deadline_ns;
        if (deadline <= host_now()) {
            run_top(queue);
            continue;
        }
        queue->sleeping_until = deadline;
        struct timespec until = {.tv_sec = (time_t)(deadline / NS_PER_SECOND),
                                 .tv_nsec = (long)(deadline % NS_PER_SECOND)};
        pthread_cond_timedwait(&queue->wake, &queue->lock, &until);
        queue->sleeping_until = 0;
    }
    pthread_mutex_unlock(&queue->lock);
    return NULL;
}

static struct timer_queue *queue_create(bool manual) {
    struct timer_queue *queue = calloc(1, sizeof *queue);
    if (!queue)
        return NULL;
    pthread_condattr_t attributes;
    pthread_condattr_init(&attributes);
    pthread_condattr_setclock(&attributes, CLOCK_MONOTONIC);
    pthread_mutex_init(&queue->lock, NULL);
    pthread_cond_init(&queue->wake, &attributes);
    pthread_cond_init(&queue->ran, NULL);
    pthread_condattr_destroy(&attributes);
    queue->manual = manual;
    queue->manual_now = NS_PER_SECOND;
    if (!manual) {
        /* Signals are for the threads that ask for them. */
        sigset_t all, before;
        sigfillset(&all);
        pthread_sigmask(SIG_SETMASK, &all, &before);
        int error = pthread_create(&queue->thread, NULL, timer_thread, queue);
        pthread_sigmask(SIG_SETMASK, &before, NULL);
        if (error) {
            free(queue);
            return NULL;
        }
    }
    return queue;
}

struct timer_queue *timer_queue_create(void) {
    return queue_create(false);
}

struct timer_queue *timer_queue_create_manual(void) {
    return queue_create(true);
}

void timer_queue_destroy(struct timer_queue *queue) {
    if (!queue)
        return;
    if (!queue->manual) {
        pthread_mutex_lock(&queue->lock);
        queue->stop = true;
        pthread_cond_signal(&queue->wake);
        pthread_mutex_unlock(&queue->lock);
        pthread_join(queue->thread, NULL);
    }
    pthread_cond_destroy(&queue->ran);
    pthread_cond_destroy(&queue->wake);
    pthread_mutex_destroy(&queue->lock);
    free(queue->heap);
    free(queue);
}

void timer_queue_advance(struct timer_queue *queue, uint64_t ns) {
    pthread_mutex_lock(&queue->lock);
    uint64_t end = queue->manual_now + ns;
    for (unsigned runs = 0; runs < MANUAL_CALLBACKS_PER_ADVANCE; runs++) {
        if (queue->count == 0 || queue->heap[0]->deadline_ns > end)
            break;
        if (queue->heap[0]->deadline_ns > queue->manual_now)
            __atomic_store_n(&queue->manual_now, queue->heap[0]->deadline_ns, __ATOMIC_RELAXED);
        run_top(queue);
    }
    __atomic_store_n(&queue->manual_now, end, __ATOMIC_RELAXED);
    pthread_mutex_unlock(&queue->lock);
}

void timer_init(struct timer *timer, struct timer_queue *queue, void (*callback)(void *context),
                void *context) {
    *timer = (struct timer){.queue = queue, .callback = callback, .context = context};
}

static bool heap_reserve(struct timer_queue *queue) {
    if (queue->count < queue->capacity)
        return true;
    size_t capacity = queue->capacity ? 2 * queue->capacity : 32;
    struct timer **heap = realloc(queue->heap, capacity * sizeof *heap);
    if (!heap)
        return false;
    queue->heap = heap;
    queue->capacity = capacity;
    return true;
}

void timer_arm(struct timer *timer, uint64_t deadline_ns) {
    struct timer_queue *queue = timer->queue;
    /* Keep the seconds within time_t's range. */
    if (deadline_ns > INT64_MAX)
        deadline_ns = INT64_MAX;
    pthread_mutex_lock(&queue->lock);
    if (timer->slot) {
        timer->deadline_ns = deadline_ns;
        heap_sift_up(queue, timer->slot - 1);
        heap_sift_down(queue, timer->slot - 1);
    } else if (heap_reserve(queue)) {
        timer->deadline_ns = deadline_ns;
        queue->heap[queue->count++] = timer;
        heap_sift_up(queue, queue->count - 1);
    }
    if (!queue->manual && deadline_ns < queue->sleeping_until)
        pthread_cond_signal(&queue->wake);
    pthread_mutex_unlock(&queue->lock);
}

void timer_cancel(struct timer *timer) {
    struct timer_queue *queue = timer->queue;
    pthread_mutex_lock(&queue->lock);
    if (timer->slot)
        heap_remove(queue, timer);
    pthread_mutex_unlock(&queue->lock);
}

void timer_cancel_sync(struct timer *timer) {
    struct timer_queue *queue = timer->queue;
    if (!queue)
        return;
    pthread_mutex_lock(&queue->lock);
    for (;;) {
        if (timer->slot)
            heap_remove(queue, timer);
        if (queue->running != timer)
            break;
        pthread_cond_wait(&queue->ran, &queue->lock);
    }
    pthread_mutex_unlock(&queue->lock);
}
