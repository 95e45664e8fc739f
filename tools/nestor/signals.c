#define _GNU_SOURCE
#include "signals.h"

#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "base/diag.h"
#include "options.h"
#include "terminal.h"

struct signal_watch {
    const struct signal_actions *actions;
    void *context;
    pthread_t thread;
    time_t deadline; /* of a guest that was asked to power off, CLOCK_MONOTONIC; 0: none */
    bool is_stopping;
    bool end; /* set before the thread is woken with SIGCONT; atomic */
};

static void watched_set(sigset_t *set) {
    static const int watched[] = {SIGINT, SIGTERM, SIGHUP, SIGUSR1, SIGCONT, SIGWINCH};
    sigemptyset(set);
    for (size_t i = 0; i < ARRAY_SIZE(watched); i++)
        sigaddset(set, watched[i]);
}

static time_t now_seconds(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return now.tv_sec;
}

static void stop(struct signal_watch *watch, int signal) {
    if (watch->is_stopping) {
        terminal_restore();
        _exit(EXIT_CODE_SIGNAL + signal);
    }
    watch->is_stopping = true;
    watch->actions->stop(watch->context, EXIT_CODE_SIGNAL + signal);
}

static void handle(struct signal_watch *watch, int signal) {
    switch (signal) {
    case SIGTERM:
        if (watch->deadline || watch->is_stopping) {
            stop(watch, signal);
            break;
        }
        if (watch->actions->power_button(watch->context))
            watch->deadline = now_seconds() + SIGNALS_GRACE_SECONDS;
        break;
    case SIGINT:
    case SIGHUP:
        stop(watch, signal);
        break;
    case SIGUSR1:
        watch->actions->counters(watch->context);
        break;
    case SIGWINCH:
        watch->actions->resized(watch->context);
        break;
    case SIGCONT:
        terminal_reenter_raw();
        break;
    }
}

static void *signal_thread(void *argument) {
    struct signal_watch *watch = argument;
    sigset_t set;
    watched_set(&set);
    while (!__atomic_load_n(&watch->end, __ATOMIC_ACQUIRE)) {
        bool timed = watch->deadline && !watch->is_stopping;
        time_t left = timed ? watch->deadline - now_seconds() : 0;
        struct timespec timeout = {.tv_sec = left > 0 ? left : 0};
        int signal = timed ? sigtimedwait(&set, NULL, &timeout) : sigwaitinfo(&set, NULL);
        if (__atomic_load_n(&watch->end, __ATOMIC_ACQUIRE))
            break;
        if (signal > 0) {
            handle(watch, signal);
        } else if (errno == EAGAIN) {
            diag_warn("the guest did not power off within %d seconds; stopping it", SIGNALS_GRACE_SECONDS);
            stop(watch, SIGTERM);
        }
    }
    return NULL;
}

void signal_watch_block(void) {
    sigset_t set;
    watched_set(&set);
    pthread_sigmask(SIG_BLOCK, &set, NULL);
    signal(SIGPIPE, SIG_IGN);
    signal(SIGXFSZ, SIG_IGN); /* a limit of file sizes is an error of the write, told like a full disk */
}

int signal_watch_start(struct signal_watch **result_watch, const struct signal_actions *actions,
                       void *context) {
    struct signal_watch *watch = calloc(1, sizeof *watch);
    if (!watch)
        return -ENOMEM;
    watch->actions = actions;
    watch->context = context;
    int result = -pthread_create(&watch->thread, NULL, signal_thread, watch);
    if (result) {
        diag_error(
            "no thread to watch for signals: %s; raise the limit of processes (ulimit -u), or free memory",
            strerror(-result));
        free(watch);
        return result;
    }
    pthread_setname_np(watch->thread, "signals");
    *result_watch = watch;
    return 0;
}

void signal_watch_stop(struct signal_watch *watch) {
    if (!watch)
        return;
    __atomic_store_n(&watch->end, true, __ATOMIC_RELEASE);
    pthread_kill(watch->thread, SIGCONT);
    pthread_join(watch->thread, NULL);
    free(watch);
}
