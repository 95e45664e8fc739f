/* How much memory this host can give a VM. */
#ifndef NESTOR_TOOLS_HOST_MEMORY_H
#define NESTOR_TOOLS_HOST_MEMORY_H

#include "base/types.h"

struct host_memory {
    uint64_t total;     /* bytes: RAM and swap, or the control group's limit if that is less */
    uint64_t available; /* of it, without pushing others out */
};

/* Reads /proc/meminfo and the memory limits of this process's control groups (v1 and v2). Where nothing can
 * be read, the fields are UINT64_MAX. */
void host_memory_read(struct host_memory *memory);
/* Refuse a guest that cannot fit, with one line; warn of one that may not. 0 or -ENOMEM. */
MUST_CHECK int host_memory_check(uint64_t guest_memory, bool prealloc);

#endif
