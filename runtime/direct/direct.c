/* Life and death of a vCPU's direct execution, and its costs on this host. */
#define _GNU_SOURCE
#include "direct/direct.h"
#include "base/diag.h"
#include "cpu/mode.h"
#include "cpu/model.h"
#include "direct/private.h"
#include "mem/guest_mem.h"

#include <errno.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/auxv.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#define HWCAP2_FSGSBASE 2ul
#define TRIALS 64
#define LOW_END_DEFAULT 65536
#define AREAS_DEFAULT 65530
#define AREAS_SPARE 4 /* one in so many of the host's limit stays free */

static uint64_t now_ns(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

static uint64_t read_number(const char *path, uint64_t otherwise) {
    unsigned long long value;
    FILE *file = fopen(path, "re");
    if (!file)
        return otherwise;
    int count = fscanf(file, "%llu", &value);
    fclose(file);
    return count == 1 ? value : otherwise;
}

/* What a round trip and a mapping cost; the template does the work of a stub. */
static int measure(struct vcpu *vcpu) {
    struct direct_vcpu *direct = vcpu->direct;
    struct stub_family *family = &direct->family;
    uint64_t best;
    int result = stub_measure_trip(family, &direct->costs.round_trip_ns);
    best = UINT64_MAX;
    for (unsigned i = 0; i < TRIALS && !result; i++) {
        unsigned done;
        uint64_t start = now_ns();
        family->orders[family->order_count++] = (struct stub_order){
            SYS_mmap,
            {GIB + i * 2 * PAGE_SIZE, PAGE_SIZE, PROT_READ, MAP_SHARED | MAP_FIXED, STUB_RAM_FD, 0}};
        result = stub_apply(family, family->template, &done);
        uint64_t took = now_ns() - start;
        best = took < best ? took : best;
    }
    direct->costs.map_ns = best;
    if (!result) {
        unsigned done;
        family->orders[family->order_count++] =
            (struct stub_order){SYS_munmap, {GIB, 2 * TRIALS * PAGE_SIZE}};
        result = stub_apply(family, family->template, &done);
    }
    return result;
}

/* NESTOR_MAX_MAP_COUNT stands in for a host with a lower limit. */
static unsigned areas_allowed(void) {
    uint64_t areas = read_number("/proc/sys/vm/max_map_count", AREAS_DEFAULT);
    const char *text = getenv("NESTOR_MAX_MAP_COUNT");
    uint64_t lower = text ? strtoull(text, NULL, 10) : 0;
    areas = lower && lower < areas ? lower : areas < UINT32_MAX ? areas : UINT32_MAX;
    return (unsigned)(areas - areas / AREAS_SPARE);
}

static int look_at_host(struct vcpu *vcpu, const char **failed_at) {
    struct direct_vcpu *direct = vcpu->direct;
    direct->cycles_per_us = vcpu->model->tsc_hz / 1000000;
    direct->low_end = align_up(read_number("/proc/sys/vm/mmap_min_addr", LOW_END_DEFAULT), PAGE_SIZE);
    direct->max_areas = areas_allowed();
    direct->host_fsgsbase = getauxval(AT_HWCAP2) & HWCAP2_FSGSBASE;
    direct->is_amd = vcpu->model->is_amd;
    direct->xcr0 = vcpu->host_xfeatures;
    /* Stops are waited for: no signal for each of them. */
    const struct sigaction action = {.sa_handler = SIG_DFL, .sa_flags = SA_NOCLDSTOP};
    sigaction(SIGCHLD, &action, NULL);
    CPU_ZERO(&direct->allowed);
    int result = sched_getaffinity(0, sizeof direct->allowed, &direct->allowed) ? -errno : 0;
    pool_stay_here(direct); /* the process that is made now stays here, too */
    if (!result)
        result = stub_family_create(&direct->family, vcpu->mem->fd, failed_at);
    if (result)
        return result;
    *failed_at = "a trial run";
    if (direct->family.xstate_size < vcpu->xsave_size)
        return -EINVAL;
    return measure(vcpu);
}

int direct_create(struct vcpu *vcpu, const struct direct_options *options) {
    struct direct_vcpu *direct = calloc(1, sizeof *direct);
    const char *failed_at = "the processors it may use";
    if (!direct)
        return -ENOMEM;
    vcpu->direct = direct;
    direct->options = *options;
    if (!direct->options.max_stubs || direct->options.max_stubs > STUBS_MAX)
        direct->options.max_stubs = STUBS_DEFAULT;
    direct->hold = UINT64_MAX;
    direct->bound_cpu = -1;
    direct->family.orders_fd = -1;
    direct->stub = calloc(direct->options.max_stubs, sizeof *direct->stub);
    vcpu->direct_write = mmap(NULL, vcpu->mem->size >> PAGE_SHIFT, PROT_READ | PROT_WRITE,
                              MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (vcpu->direct_write == MAP_FAILED)
        vcpu->direct_write = NULL;
    if (!direct->stub || !vcpu->direct_write || spaces_create(direct)) {
        direct_destroy(vcpu);
        return -ENOMEM;
    }
    int result = look_at_host(vcpu, &failed_at);
    direct_idle(vcpu);
    if (result) {
        if (!vcpu->index)
            diag_warn("no direct execution on this host: %s: %s; applications run translated", failed_at,
                      strerror(-result));
        direct_destroy(vcpu);
        return 0;
    }
    stub_family_detach(&direct->family);
    return 0;
}

void direct_destroy(struct vcpu *vcpu) {
    struct direct_vcpu *direct = vcpu->direct;
    if (!direct)
        return;
    vcpu->tier_up = NULL;
    stub_family_destroy(&direct->family);
    for (unsigned i = 0; direct->stub && i < direct->options.max_stubs; i++) {
        mapping_clear(vcpu, &direct->stub[i].mapping);
        free(direct->stub[i].xstate);
    }
    free(direct->stub);
    spaces_destroy(direct);
    if (vcpu->direct_write)
        munmap(vcpu->direct_write, vcpu->mem->size >> PAGE_SHIFT);
    vcpu->direct_write = NULL;
    vcpu->direct = NULL;
    free(direct);
}

pid_t direct_template(const struct vcpu *vcpu) {
    return vcpu->direct ? vcpu->direct->family.template : 0;
}

void direct_thread_enter(struct vcpu *vcpu) {
    struct direct_vcpu *direct = vcpu->direct;
    if (!direct)
        return;
    int result = stub_family_attach(&direct->family);
    direct->attached = !result;
    direct->broken = !direct->attached;
    direct->hold = UINT64_MAX;
    vcpu->tier_up = direct->attached ? tier_wants_direct : NULL;
    if (result)
        diag_warn("vCPU %u goes on without direct execution: ptrace: %s", vcpu->index, strerror(-result));
}

void direct_thread_leave(struct vcpu *vcpu) {
    struct direct_vcpu *direct = vcpu->direct;
    if (!direct || !direct->attached)
        return;
    vcpu->tier_up = NULL;
    pool_drop_all(vcpu);
    stub_family_detach(&direct->family);
    direct->attached = false;
    direct_idle(vcpu);
}

bool direct_wanted(struct vcpu *vcpu) {
    return vcpu->tier_up && vcpu->mode & MODE_CPL3 && vcpu->tier_up(vcpu);
}

const struct direct_stats *direct_vcpu_stats(const struct vcpu *vcpu) {
    return vcpu->direct ? &vcpu->direct->stats : NULL;
}

const struct direct_costs *direct_vcpu_costs(const struct vcpu *vcpu) {
    return vcpu->direct ? &vcpu->direct->costs : NULL;
}
