/* The host signals that engines turn into guest faults. */
#ifndef NESTOR_TEST_DIFF_SIGNALS_H
#define NESTOR_TEST_DIFF_SIGNALS_H

#include "cpu/vcpu.h"

#include <signal.h>

/* What an engine does with a signal while one of its vCPUs runs; false: not its own. */
typedef bool signals_handler(struct vcpu *vcpu, int signal, siginfo_t *info, void *context);

/* Install the handlers and an alternate stack, once. 0 or -errno. */
MUST_CHECK int signals_install(void);
/* An engine starts (vcpu NULL: ends) running a vCPU. on_alarm is called in the handler when it has run for
 * seconds already. */
void signals_enter(struct vcpu *vcpu, signals_handler *handler, void (*on_alarm)(struct vcpu *vcpu),
                   unsigned seconds);

#endif
