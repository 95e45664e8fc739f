/* Threads: locks, atomics, thread-local data, signals to one of them. */
#define _GNU_SOURCE
#include "ring3.h"

#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

enum { THREADS = 4, ROUNDS = 20000 };

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_barrier_t barrier;
static uint64_t guarded, atomic_sum;
static __thread uint64_t own;
static volatile int stop;

static void *contend(void *argument) {
    uint64_t number = (uint64_t)(uintptr_t)argument;
    own = number;
    for (int i = 0; i < ROUNDS; i++) {
        pthread_mutex_lock(&lock);
        guarded++;
        pthread_mutex_unlock(&lock);
        __atomic_fetch_add(&atomic_sum, number, __ATOMIC_SEQ_CST);
        if (i % 1000 == 0) {
            sched_yield();
            if (own != number)
                return (void *)1;
        }
    }
    return NULL;
}

static void contention(void) {
    pthread_t threads[THREADS];
    void *result;
    for (uintptr_t i = 0; i < THREADS; i++)
        CHECK(!pthread_create(&threads[i], NULL, contend, (void *)(i + 1)));
    for (int i = 0; i < THREADS; i++)
        CHECK(!pthread_join(threads[i], &result) && !result);
    CHECK(guarded == (uint64_t)THREADS * ROUNDS);
    CHECK(atomic_sum == (uint64_t)ROUNDS * (1 + 2 + 3 + 4));
}

static void *nothing(void *argument) {
    own = (uintptr_t)argument;
    return (void *)(uintptr_t)(own + 1);
}

static void many_short(void) {
    for (uintptr_t i = 0; i < 400; i++) {
        pthread_t thread;
        void *result;
        CHECK(!pthread_create(&thread, NULL, nothing, (void *)i));
        CHECK(!pthread_join(thread, &result) && (uintptr_t)result == i + 1);
    }
}

/* Dekker's handshake by locked instructions: each round exactly one of two threads may win. */
static uint32_t flag[2], winners, both;

static void *race(void *argument) {
    uintptr_t self = (uintptr_t)argument;
    for (int i = 0; i < 3000; i++) {
        pthread_barrier_wait(&barrier);
        __atomic_exchange_n(&flag[self], 1, __ATOMIC_SEQ_CST);
        if (!__atomic_load_n(&flag[!self], __ATOMIC_SEQ_CST))
            __atomic_fetch_add(&winners, 1, __ATOMIC_SEQ_CST);
        pthread_barrier_wait(&barrier);
        if (!self) {
            both += __atomic_exchange_n(&winners, 0, __ATOMIC_SEQ_CST) > 1;
            flag[0] = flag[1] = 0;
        }
    }
    return NULL;
}

static void ordering(void) {
    pthread_t threads[2];
    CHECK(!pthread_barrier_init(&barrier, NULL, 2));
    for (uintptr_t i = 0; i < 2; i++)
        CHECK(!pthread_create(&threads[i], NULL, race, (void *)i));
    for (int i = 0; i < 2; i++)
        CHECK(!pthread_join(threads[i], NULL));
    CHECK(!both);
}

/* One thread takes pages away and gives them back while others use them: none sees a page that is gone. */
static volatile uint32_t *arena;
static volatile uint32_t torn;

static void *reader(void *argument) {
    (void)argument;
    while (!stop) {
        for (size_t i = 0; i < 64; i++) {
            uint32_t value = arena[i * PAGE / 4];
            if (value != 0 && value != i + 7)
                torn++;
        }
    }
    return NULL;
}

static void shootdowns(void) {
    pthread_t threads[2];
    arena = ring3_map(64 * PAGE, PROT_READ | PROT_WRITE);
    for (int i = 0; i < 2; i++)
        CHECK(!pthread_create(&threads[i], NULL, reader, NULL));
    for (int round = 0; round < 200; round++) {
        for (size_t i = 0; i < 64; i++)
            arena[i * PAGE / 4] = (uint32_t)i + 7;
        CHECK(!mprotect((void *)arena, 32 * PAGE, PROT_READ));
        CHECK(!madvise((void *)(arena + 32 * PAGE / 4), 32 * PAGE, MADV_DONTNEED));
        CHECK(!mprotect((void *)arena, 32 * PAGE, PROT_READ | PROT_WRITE));
        for (size_t i = 32; i < 64; i++)
            CHECK(!arena[i * PAGE / 4]);
    }
    stop = 1;
    for (int i = 0; i < 2; i++)
        CHECK(!pthread_join(threads[i], NULL));
    CHECK(!torn);
}

static volatile int taken;
static volatile pid_t taker;

static void take(int signo, siginfo_t *info, void *context) {
    (void)signo;
    (void)info;
    (void)context;
    taker = (pid_t)syscall(SYS_gettid);
    taken++;
}

static void *spin(void *argument) {
    uint64_t seed = 3;
    *(volatile pid_t *)argument = (pid_t)syscall(SYS_gettid);
    while (!stop)
        ring3_random(&seed);
    return NULL;
}

/* A signal reaches a thread that computes and never calls. */
static void directed_signals(void) {
    pthread_t thread;
    volatile pid_t id = 0;
    ring3_handle(SIGUSR1, take, 0);
    CHECK(!pthread_create(&thread, NULL, spin, (void *)&id));
    while (!id)
        sched_yield();
    for (int i = 0; i < 200; i++) {
        CHECK(!syscall(SYS_tgkill, getpid(), id, SIGUSR1));
        while (taken <= i)
            sched_yield();
        CHECK(taker == id);
    }
    stop = 1;
    CHECK(!pthread_join(thread, NULL));
}

const struct ring3_check ring3_threads[] = {
    {"threads-contention", contention},
    {"threads-many-short", many_short},
    {"threads-ordering", ordering},
    {"threads-shootdowns", shootdowns},
    {"threads-directed-signals", directed_signals},
    {0},
};
