/* The end after a fault that nobody expected. */
#ifndef NESTOR_VM_CRASH_H
#define NESTOR_VM_CRASH_H

#include "cpu/vcpu.h"

#include <signal.h>

/* From a fault signal's handler: tell on stderr what happened where, run the hook of vm_set_crash_hook(), and
 * arrange that the process dies of the signal when the handler returns. vcpu: whose thread this is, or NULL.
 * Async-signal-safe. */
void crash_tell(int signal, const siginfo_t *info, const void *context, const struct vcpu *vcpu);

#endif
