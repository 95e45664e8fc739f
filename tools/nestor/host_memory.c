#define _GNU_SOURCE
#include "host_memory.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/diag.h"

static bool read_number(const char *path, uint64_t *number) {
    FILE *file = fopen(path, "re");
    if (!file)
        return false;
    bool read = fscanf(file, "%" SCNu64, number) == 1; /* "max" is no number: no limit */
    fclose(file);
    return read;
}

static void read_meminfo(struct host_memory *memory) {
    uint64_t total = UINT64_MAX, available = UINT64_MAX, swap_total = 0, swap_free = 0;
    char line[128];
    FILE *file = fopen("/proc/meminfo", "re");
    if (!file)
        return;
    while (fgets(line, sizeof line, file)) {
        sscanf(line, "MemTotal: %" SCNu64, &total);
        sscanf(line, "MemAvailable: %" SCNu64, &available);
        sscanf(line, "SwapTotal: %" SCNu64, &swap_total);
        sscanf(line, "SwapFree: %" SCNu64, &swap_free);
    }
    fclose(file);
    if (total != UINT64_MAX)
        memory->total = (total + swap_total) * KIB;
    if (available != UINT64_MAX)
        memory->available = (available + swap_free) * KIB;
}

static void apply_limit(struct host_memory *memory, const char *directory, const char *limit_name,
                        const char *usage_name) {
    char path[640];
    uint64_t limit, usage;
    snprintf(path, sizeof path, "%s/%s", directory, limit_name);
    if (!read_number(path, &limit) || limit >= memory->total)
        return;
    memory->total = limit;
    snprintf(path, sizeof path, "%s/%s", directory, usage_name);
    if (read_number(path, &usage) && usage < limit && limit - usage < memory->available)
        memory->available = limit - usage;
}

/* Limits hold for a group and for all above it: walk up from our own to the root of what we can see. */
static void read_control_groups(struct host_memory *memory) {
    char line[512], directory[576];
    FILE *file = fopen("/proc/self/cgroup", "re");
    if (!file)
        return;
    while (fgets(line, sizeof line, file)) {
        char *group = strrchr(line, ':');
        bool is_v2 = !strncmp(line, "0::", 3);
        if (!group || (!is_v2 && !strstr(line, ":memory:")))
            continue;
        group++;
        group[strcspn(group, "\n")] = 0;
        for (;;) {
            char *slash = strrchr(group, '/');
            snprintf(directory, sizeof directory, "/sys/fs/cgroup%s%s", is_v2 ? "" : "/memory",
                     strcmp(group, "/") ? group : "");
            if (is_v2)
                apply_limit(memory, directory, "memory.max", "memory.current");
            else
                apply_limit(memory, directory, "memory.limit_in_bytes", "memory.usage_in_bytes");
            if (!slash || !*group)
                break;
            *slash = 0;
        }
    }
    fclose(file);
}

void host_memory_read(struct host_memory *memory) {
    *memory = (struct host_memory){UINT64_MAX, UINT64_MAX};
    read_meminfo(memory);
    read_control_groups(memory);
}

int host_memory_check(uint64_t guest_memory, bool prealloc) {
    struct host_memory host;
    host_memory_read(&host);
    bool beyond = guest_memory > host.total;
    if (beyond || (prealloc && guest_memory > host.available)) {
        uint64_t most = beyond ? host.total : host.available;
        diag_error("--memory %lluM is more than this host has%s (%lluM); give less",
                   (unsigned long long)(guest_memory / MIB), beyond ? "" : " free for --prealloc",
                   (unsigned long long)(most / MIB));
        return -ENOMEM;
    }
    if (guest_memory > host.available)
        diag_warn("--memory %lluM is more than this host has free (%lluM); the guest may be killed",
                  (unsigned long long)(guest_memory / MIB), (unsigned long long)(host.available / MIB));
    return 0;
}
