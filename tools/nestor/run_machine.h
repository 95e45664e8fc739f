/* The launcher's glue around one machine: its lines of characters, the signals from outside, the counters. */
#ifndef NESTOR_TOOLS_RUN_MACHINE_H
#define NESTOR_TOOLS_RUN_MACHINE_H

#include "machine/vm_config.h"

/* Make the machine, run it to its end, take it down. Returns the process's exit code. */
int run_machine(const struct vm_config *config);

#endif
