/* Signals from outside, turned into calls on one thread of their own.
 *
 * SIGTERM presses the power button; a second one, or SIGNALS_GRACE_SECONDS without an end, stops the VM hard.
 * A press that only woke a sleeping guest does not count. SIGINT and SIGHUP stop it at once; SIGUSR1 asks for
 * the counters; SIGWINCH tells of the terminal's new size; SIGCONT makes the terminal raw again. A signal to
 * stop that comes while the VM is being stopped ends the process on the spot. */
#ifndef NESTOR_TOOLS_SIGNALS_H
#define NESTOR_TOOLS_SIGNALS_H

#include "base/types.h"

#define SIGNALS_GRACE_SECONDS 60

/* All are called on the signal thread. */
struct signal_actions {
    /* False: the guest slept and was only woken. */
    bool (*power_button)(void *context);
    /* End the VM; the process is to exit with exit_code. */
    void (*stop)(void *context, int exit_code);
    void (*counters)(void *context);
    void (*resized)(void *context);
};

struct signal_watch;

/* Block what is watched, in this thread and in all that it makes later. Call first thing in main(): signals
 * that come before signal_watch_start() are kept for it. */
void signal_watch_block(void);
/* 0 or -errno after one line. */
MUST_CHECK int signal_watch_start(struct signal_watch **watch, const struct signal_actions *actions,
                                  void *context);
void signal_watch_stop(struct signal_watch *watch);

#endif
