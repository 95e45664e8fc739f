#define _GNU_SOURCE
#include "devices/worker_thread.h"

#include <signal.h>

#define WORKER_STACK (256 * KIB)

int worker_thread_create(pthread_t *thread, const char *name, void *(*run)(void *argument), void *argument) {
    pthread_attr_t attributes;
    sigset_t all, before;
    int result = pthread_attr_init(&attributes);
    if (result)
        return -result;
    pthread_attr_setstacksize(&attributes, WORKER_STACK);
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    result = pthread_create(thread, &attributes, run, argument);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    pthread_attr_destroy(&attributes);
    if (!result)
        pthread_setname_np(*thread, name);
    return -result;
}
