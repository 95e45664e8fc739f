/* The launcher's confinement of its own process: what a guest that has taken the VMM over could still do.
 *
 *   sandbox_shed_privileges();   // before the machine's threads are made
 *   ... open files, make threads ...
 *   sandbox_lock(&needs);        // before the first vCPU runs
 *
 * The list of system calls with a reason for each is in docs/security.md.
 */
#ifndef NESTOR_TOOLS_SANDBOX_H
#define NESTOR_TOOLS_SANDBOX_H

#include "base/types.h"

#include <sys/types.h>

struct sandbox_needs {
    bool network;      /* user networking: sockets, and reading /etc/resolv.conf */
    bool writes_files; /* --stats FILE: makes and renames files */
    /* Direct execution: the processes that threads attach to as tracers, and their children. */
    const pid_t *traced;
    size_t traced_count;
};

/* No new privileges from here on, and no capability but those that opening what the options name may take;
 * threads made later have no more. Never fails: what cannot be given up was not there. */
void sandbox_shed_privileges(void);
/* Give up the rest, and confine all threads of the process to the system calls that a running VM makes. Where
 * the host has no such filters, one line says so and the VM runs without. */
void sandbox_lock(const struct sandbox_needs *needs);

#endif
