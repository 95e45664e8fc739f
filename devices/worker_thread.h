/* Threads of device backends. */
#ifndef NESTOR_DEVICES_WORKER_THREAD_H
#define NESTOR_DEVICES_WORKER_THREAD_H

#include "base/types.h"

#include <pthread.h>

/* Start a joinable thread with all signals blocked (they are for the vCPU threads and the launcher), a small
 * stack, and a name of up to 15 characters. 0 or -errno. */
MUST_CHECK int worker_thread_create(pthread_t *thread, const char *name, void *(*run)(void *argument),
                                    void *argument);

#endif
