#include "machine/counters.h"

#include "cpu/host_clock.h"
#include "dbt/dbt.h"
#include "devices/virtio_blk.h"
#include "devices/virtio_net.h"
#include "direct/direct.h"
#include "machine/caches.h"

#include <stdio.h>
#include <time.h>
#include <unistd.h>

#define NS_PER_SECOND 1000000000ull

struct counter {
    const char *name;
    uint64_t value;
};

uint64_t counters_now_ns(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * NS_PER_SECOND + (uint64_t)now.tv_nsec;
}

static void add(cJSON *object, const struct counter *counter, size_t count) {
    for (size_t i = 0; i < count; i++)
        cJSON_AddNumberToObject(object, counter[i].name, (double)counter[i].value);
}

/* Pages that the process has resident: 0 where the host does not say. */
static uint64_t resident_bytes(int statm) {
    char text[128];
    unsigned long long total, resident;
    ssize_t count = statm < 0 ? -1 : pread(statm, text, sizeof text - 1, 0);
    if (count <= 0)
        return 0;
    text[count] = 0;
    return sscanf(text, "%llu %llu", &total, &resident) == 2 ? resident * (uint64_t)sysconf(_SC_PAGESIZE) : 0;
}

static void add_memory(cJSON *tree, const struct counter_sources *sources) {
    uint64_t guest = guest_mem_resident(sources->mem);
    uint64_t resident = resident_bytes(sources->statm);
    const struct counter counter[] = {
        {"guest_bytes", sources->mem->size},
        {"guest_touched_bytes", guest},
        {"resident_bytes", resident},
        {"overhead_bytes", resident > guest ? resident - guest : 0},
    };
    add(cJSON_AddObjectToObject(tree, "memory"), counter, ARRAY_SIZE(counter));
}

static void add_direct(cJSON *object, const struct direct_stats *stats) {
    const struct counter counter[] = {
        {"stays", stats->stays},
        {"runs", stats->runs},
        {"native_ns", stats->native_ns},
        {"syscalls", stats->syscalls},
        {"faults", stats->faults},
        {"guest_faults", stats->guest_faults},
        {"emulated", stats->emulated},
        {"kicks", stats->kicks},
        {"lost", stats->lost},
        {"pages_mapped", stats->pages_mapped},
        {"map_calls", stats->map_calls},
        {"pages_unmapped", stats->pages_unmapped},
        {"revalidations", stats->revalidations},
        {"full_flushes", stats->full_flushes},
        {"stubs_made", stats->stubs_made},
        {"stubs_evicted", stats->stubs_evicted},
        {"moves_up", stats->moves_up},
        {"moves_down", stats->moves_down},
    };
    add(object, counter, ARRAY_SIZE(counter));
}

/* The first place is for those that had to make room, and has no root. */
static void add_spaces(cJSON *direct, const struct vcpu *vcpu) {
    char root[32];
    unsigned count;
    const struct direct_space *space = direct_vcpu_spaces(vcpu, &count);
    if (!space)
        return;
    cJSON *array = cJSON_AddArrayToObject(direct, "spaces");
    for (unsigned i = 0; i < count; i++) {
        if (space[i].root == DIRECT_NO_ROOT && (i || !space[i].stats.stays))
            continue;
        cJSON *object = cJSON_CreateObject();
        snprintf(root, sizeof root, i ? "0x%llx" : "others", (unsigned long long)space[i].root);
        cJSON_AddStringToObject(object, "root", root);
        add_direct(object, &space[i].stats);
        cJSON_AddItemToArray(array, object);
    }
}

static void add_vcpu_direct(cJSON *object, const struct vcpu *vcpu) {
    const struct direct_costs *costs = direct_vcpu_costs(vcpu);
    if (!costs)
        return;
    const struct counter counter[] = {
        {"round_trip_ns", costs->round_trip_ns},
        {"map_ns", costs->map_ns},
    };
    cJSON *direct = cJSON_AddObjectToObject(object, "direct");
    add_direct(direct, direct_vcpu_stats(vcpu));
    add(direct, counter, ARRAY_SIZE(counter));
    add_spaces(direct, vcpu);
}

static void add_vcpu(cJSON *array, const struct vcpu *vcpu) {
    const struct dbt_stats *stats = dbt_vcpu_stats(vcpu);
    const struct counter counter[] = {
        {"blocks", stats->blocks},
        {"guest_instructions_translated", stats->guest_instructions},
        {"guest_bytes_translated", stats->guest_bytes},
        {"host_bytes_emitted", stats->host_bytes},
        {"translate_ns", stats->translate_ns},
        {"translate_ring0_ns", stats->translate_ring0_ns},
        {"code_cache_bytes", stats->code_bytes},
        {"code_cache_limit", stats->code_limit},
        {"cache_flushes", stats->flushes},
        {"cache_evictions", stats->evictions},
        {"block_invalidations", stats->invalidations},
        {"blocks_revived", stats->revived},
        {"cached_blocks", stats->cached_blocks},
        {"cached_units", stats->cached_units},
        {"cache_misses", stats->cache_misses},
        {"cache_differs", stats->cache_differs},
        {"cache_ns", (uint64_t)((double)stats->cache_tsc * 1e9 / (double)host_tsc_hz())},
        {"links", stats->links},
        {"exits", stats->exits},
        {"jump_misses", stats->jump_misses},
        {"tlb_recalls", stats->tlb_recalls},
        {"tlb_slow", stats->tlb_slow},
        {"tlb_fills", stats->tlb_fills},
        {"polls", stats->polls},
        {"interpreted", stats->interpreted},
        {"exceptions", stats->exceptions},
    };
    cJSON *object = cJSON_CreateObject();
    add(object, counter, ARRAY_SIZE(counter));
    add_vcpu_direct(object, vcpu);
    cJSON_AddItemToArray(array, object);
}

static void add_caches(cJSON *array, const struct counter_sources *sources) {
    for (unsigned i = 0; i < sources->caches->count; i++) {
        const struct ntc_file_counts counts = ntc_file_count(&sources->caches->file[i]);
        const struct counter counter[] = {
            {"open_ns", sources->caches->open_ns[i]},
            {"mapped_bytes", counts.loaded},
            {"load_requests", counts.requests},
            {"load_ns", (uint64_t)((double)counts.wait_tsc * 1e9 / (double)host_tsc_hz())},
        };
        cJSON *object = cJSON_CreateObject();
        cJSON_AddStringToObject(object, "file", sources->caches->path[i]);
        cJSON_AddStringToObject(object, "origin", sources->caches->file[i].origin);
        add(object, counter, ARRAY_SIZE(counter));
        cJSON_AddItemToArray(array, object);
    }
}

static void add_disk(cJSON *array, const struct virtio_blk *disk, const char *file) {
    struct virtio_blk_counters counters;
    virtio_blk_count(disk, &counters);
    const struct counter counter[] = {
        {"reads", counters.reads},     {"read_bytes", counters.read_bytes},
        {"writes", counters.writes},   {"written_bytes", counters.written_bytes},
        {"flushes", counters.flushes}, {"discards", counters.discards},
        {"errors", counters.errors},
    };
    cJSON *object = cJSON_CreateObject();
    cJSON_AddStringToObject(object, "file", file);
    cJSON_AddStringToObject(object, "engine", virtio_blk_engine(disk));
    add(object, counter, ARRAY_SIZE(counter));
    cJSON_AddItemToArray(array, object);
}

static void add_net(cJSON *array, const struct virtio_net *net) {
    struct virtio_net_counters counters;
    virtio_net_count(net, &counters);
    const struct counter counter[] = {
        {"sent_frames", counters.sent_frames},
        {"sent_bytes", counters.sent_bytes},
        {"received_frames", counters.received_frames},
        {"received_bytes", counters.received_bytes},
    };
    cJSON *object = cJSON_CreateObject();
    add(object, counter, ARRAY_SIZE(counter));
    cJSON_AddItemToArray(array, object);
}

static const char *const engine_names[] = {[VM_ENGINE_AUTO] = "auto",
                                           [VM_ENGINE_DIRECT] = "direct",
                                           [VM_ENGINE_DBT] = "dbt",
                                           [VM_ENGINE_INTERP] = "interp"};

cJSON *counters_collect(const struct counter_sources *sources) {
    const struct vm_config *config = sources->config;
    cJSON *tree = cJSON_CreateObject();
    if (!tree)
        return NULL;
    if (config->name)
        cJSON_AddStringToObject(tree, "name", config->name);
    cJSON_AddStringToObject(tree, "engine", engine_names[config->engine]);
    uint64_t up = counters_now_ns() - sources->started_ns;
    cJSON_AddNumberToObject(tree, "uptime_seconds", (double)up / 1e9);
    cJSON_AddNumberToObject(tree, "resets", (double)sources->resets);
    cJSON_AddNumberToObject(tree, "sleeps", (double)sources->sleeps);
    add_memory(tree, sources);
    cJSON *cpus = cJSON_AddArrayToObject(tree, "vcpus");
    for (unsigned i = 0; i < config->cpus; i++)
        add_vcpu(cpus, vm_vcpu(sources->vm, i));
    add_caches(cJSON_AddArrayToObject(tree, "caches"), sources);
    cJSON *disks = cJSON_AddArrayToObject(tree, "disks");
    for (size_t i = 0; i < config->disk_count; i++)
        add_disk(disks, sources->disks[i], config->disk[i].file);
    cJSON *nets = cJSON_AddArrayToObject(tree, "nets");
    for (size_t i = 0; i < config->net_count; i++)
        if (sources->nets[i])
            add_net(nets, sources->nets[i]);
    return tree;
}
