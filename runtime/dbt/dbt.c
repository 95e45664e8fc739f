/* Life and death of a vCPU's translator: the area, the code region, the tables; and its part in the signal
 * handlers. */
#define _GNU_SOURCE
#include "dbt/dbt.h"
#include "base/pages.h"
#include "dbt/host_gs.h"
#include "dbt/portable.h"
#include "dbt/rewrite.h"
#include "dbt/unit.h"

#include <cpuid.h>
#include <errno.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <ucontext.h>
#include <unistd.h>

#define AREA_BYTES align_up(sizeof(struct dbt_area), PAGE_SIZE)
#define CODE_REACH (2 * GIB - PAGE_SIZE) /* also from the area to the end of code, which is shorter */
#define CODE_CACHE_MIN (1 * MIB)
#define BLOCK_HOST_LEAST 128 /* most blocks' code is longer */
#define CODE_REGION_MAX GIB

_Static_assert(CODE_REACH / BLOCK_HOST_LEAST <= 1ull << (PORTABLE_SITE_SWITCHES - 32),
               "a block's number fits");

static int memfd_of(const char *name, uint64_t size) {
    int fd = memfd_create(name, MFD_CLOEXEC);
    if (fd < 0)
        return -errno;
    if (ftruncate(fd, (off_t)size)) {
        int result = -errno;
        close(fd);
        return result;
    }
    return fd;
}

static void *map_shared(int fd, uint64_t size, int protection) {
    void *address = mmap(NULL, size, protection, MAP_SHARED, fd, 0);
    return address == MAP_FAILED ? NULL : address;
}

static void *reserve(void *address, uint64_t size) {
    int fixed = address ? MAP_FIXED : 0;
    void *place = mmap(address, size, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | fixed, -1, 0);
    return place == MAP_FAILED ? NULL : place;
}

/* Code names the area relative to RIP, so its place is right behind it. */
struct vcpu *dbt_area_create(void) {
    int fd = memfd_of("nestor-vcpu", AREA_BYTES);
    if (fd < 0) {
        errno = -fd;
        return NULL;
    }
    uint8_t *place = reserve(NULL, AREA_BYTES + CODE_REACH);
    void *mapped =
        mmap(place, AREA_BYTES, PROT_READ | PROT_WRITE, place ? MAP_SHARED | MAP_FIXED : MAP_SHARED, fd, 0);
    if (mapped == MAP_FAILED) {
        if (place)
            munmap(place, AREA_BYTES + CODE_REACH);
        close(fd);
        errno = ENOMEM;
        return NULL;
    }
    struct dbt_area *area = mapped;
    area->vcpu.self = &area->vcpu;
    area->area_fd = fd;
    area->reserved = place ? CODE_REACH : 0;
    return &area->vcpu;
}

void dbt_area_destroy(struct vcpu *vcpu) {
    struct dbt_area *area = area_of(vcpu);
    close(area->area_fd);
    munmap(area, AREA_BYTES + area->reserved);
}

/* The two other mappings of the area, with their poll pages shut. */
static int map_aliases(struct dbt_vcpu *dbt, struct dbt_area *area) {
    dbt->area = area;
    dbt->alias[AREA_RUN] = (uint8_t *)area;
    for (enum area_alias alias = AREA_MASKED; alias < AREA_ALIASES; alias++) {
        uint8_t *base = map_shared(area->area_fd, AREA_BYTES, PROT_READ | PROT_WRITE);
        if (!base)
            return -ENOMEM;
        dbt->alias[alias] = base;
        struct dbt_area *view = (struct dbt_area *)base;
        if (mprotect(view->sti_poll, PAGE_SIZE, PROT_NONE) ||
            (alias == AREA_STOP && mprotect(view->poll, PAGE_SIZE, PROT_NONE)))
            return -errno;
    }
    dbt->current_alias = AREA_STOP;
    return 0;
}

static int map_code(struct dbt_vcpu *dbt, uint64_t size) {
    dbt->size = size;
    dbt->code_fd = memfd_of("nestor-code", dbt->size);
    if (dbt->code_fd < 0)
        return dbt->code_fd;
    dbt->rw = map_shared(dbt->code_fd, dbt->size, PROT_READ | PROT_WRITE);
    /* Links from here to caches are rel32s: they have their places behind it. */
    uint8_t *place = dbt->area->reserved ? (uint8_t *)dbt->area + AREA_BYTES : NULL;
    void *rx = mmap(place, dbt->size, PROT_READ | PROT_EXEC, place ? MAP_SHARED | MAP_FIXED : MAP_SHARED,
                    dbt->code_fd, 0);
    dbt->reached = dbt->size;
    dbt->reach = place ? CODE_REACH : dbt->size;
    dbt->rx = rx == MAP_FAILED ? NULL : rx;
    if (!dbt->rw || !dbt->rx)
        return -ENOMEM;
    if (place)
        dbt->area_seen = dbt->rw - AREA_BYTES;
    return 0;
}

static void unmap_code(struct dbt_vcpu *dbt) {
    if (dbt->rx && dbt->area->reserved)
        (void)reserve(dbt->rx, dbt->reach); /* should it fail, what is there stays until the area goes */
    else if (dbt->rx)
        munmap(dbt->rx, dbt->reach);
}

static uint64_t grown(uint64_t size) {
    uint64_t most = size > CODE_REGION_MAX ? size : CODE_REGION_MAX;
    return size < most / DBT_CODE_CACHE_GROWTH ? size * DBT_CODE_CACHE_GROWTH : most;
}

int dbt_vcpu_create(struct vcpu *vcpu, const struct dbt_options *options) {
    struct dbt_vcpu *dbt = aligned_alloc(64, align_up(sizeof *dbt, 64));
    if (!dbt)
        return -ENOMEM;
    memset(dbt, 0, sizeof *dbt);
    vcpu->dbt = dbt;
    dbt->code_fd = -1;
    dbt->fsgsbase = host_has_fsgsbase();
    uint32_t eax, ebx, ecx, edx;
    dbt->xgetbv_in_use = __get_cpuid_count(0xd, 1, &eax, &ebx, &ecx, &edx) && eax & 4;
    int result = map_aliases(dbt, area_of(vcpu));
    uint64_t size = align_up(
        options->code_cache_size < CODE_CACHE_MIN ? CODE_CACHE_MIN : options->code_cache_size, PAGE_SIZE);
    if (!result)
        result = map_code(dbt, options->code_cache_grows ? grown(size) : size);
    if (result)
        goto fail;
    /* A block's exits number about one in 40 bytes. */
    dbt->max_blocks = (uint32_t)(dbt->size / BLOCK_HOST_LEAST);
    dbt->max_sites = (uint32_t)(dbt->size / 10); /* those of cached units take numbers, but no memory yet */
    dbt->max_pcs = (uint32_t)(dbt->size / 20);
    dbt->block = pages_map_large(dbt->max_blocks * sizeof *dbt->block);
    dbt->site = pages_map_large(dbt->max_sites * sizeof *dbt->site);
    dbt->pc = pages_map_large(dbt->max_pcs * sizeof *dbt->pc);
    dbt->unit = calloc(1, sizeof *dbt->unit);
    dbt->rewrite = calloc(REWRITES, sizeof *dbt->rewrite);
    result = -ENOMEM;
    if (!dbt->block || !dbt->site || !dbt->pc || !dbt->unit || !dbt->rewrite)
        goto fail;
    dbt->area->hot.percpu_none = &dbt->area->percpu[0];
    dbt->area->hot.percpu_of_base = &dbt->area->percpu[1];
    dbt_emit_stubs(dbt);
    result = code_divide(dbt, size, options->parts);
    if (result)
        goto fail;
    vcpu->cpuid_changed = 1;
    block_flush_all(vcpu);
    dbt->stats = (struct dbt_stats){.code_limit = dbt->stats.code_limit};
    return 0;
fail:
    dbt_vcpu_destroy(vcpu);
    return result;
}

static void unmap(void *address, uint64_t size) {
    if (address)
        munmap(address, size);
}

void dbt_vcpu_destroy(struct vcpu *vcpu) {
    struct dbt_vcpu *dbt = vcpu->dbt;
    if (!dbt)
        return;
    cached_destroy(dbt);
    portable_log_destroy(dbt);
    unmap(dbt->alias[AREA_MASKED], AREA_BYTES);
    unmap(dbt->alias[AREA_STOP], AREA_BYTES);
    unmap(dbt->rw, dbt->size);
    unmap_code(dbt);
    unmap(dbt->block, dbt->max_blocks * sizeof *dbt->block);
    unmap(dbt->site, dbt->max_sites * sizeof *dbt->site);
    unmap(dbt->pc, dbt->max_pcs * sizeof *dbt->pc);
    if (dbt->code_fd >= 0)
        close(dbt->code_fd);
    free(dbt->unit);
    free(dbt->rewrite);
    free(dbt->evicted);
    free(dbt);
    vcpu->dbt = NULL;
}

void dbt_thread_enter(struct vcpu *vcpu) {
    vcpu->dbt->current_alias = AREA_RUN;
    vcpu->dbt->area->hot.alias = AREA_RUN;
    host_gs_set(vcpu->dbt->fsgsbase, vcpu->dbt->alias[AREA_RUN]);
}

bool dbt_can_run(const struct vcpu *vcpu) {
    uint32_t mode = vcpu->mode;
    if (mode & (MODE_STEP | MODE_AC | MODE_VM86) || !(mode & MODE_PROTECTED) || vcpu->rflags & FLAG_DF)
        return false;
    return (mode & MODE_CODE_MASK) == MODE_CODE_64 ||
           ((mode & MODE_CODE_MASK) == MODE_CODE_32 && mode & MODE_FLAT);
}

/* Is address in the page at this offset of an area's alias that may have it shut? */
static bool is_poll_address(const struct dbt_vcpu *dbt, const uint8_t *address, size_t page) {
    for (enum area_alias alias = AREA_MASKED; alias < AREA_ALIASES; alias++)
        if ((uint64_t)(address - (dbt->alias[alias] + page)) < PAGE_SIZE)
            return true;
    return false;
}

/* Some virtual hosts cannot return to a program whose RSP is not canonical: what interrupts it, were it a
 * tick of the host's timer, comes as a fault of whatever instruction it met. Stubs have none of their own;
 * one that was met while RSP is the guest's goes on by a detour. */
static bool carry_on(struct dbt_vcpu *dbt, uint64_t pc, ucontext_t *user) {
    struct dbt_hot *hot = &dbt->area->hot;
    greg_t *rsp = &user->uc_mcontext.gregs[REG_RSP];
    if (pc - (uint64_t)dbt->rx >= dbt->stubs_end || cpu_is_canonical((uint64_t)*rsp))
        return false;
    if (pc != (uint64_t)dbt->stub_carried) {
        hot->kept_rsp = (uint64_t)*rsp;
        hot->kept_pc = pc;
    }
    *rsp = (greg_t)hot->host_rsp;
    user->uc_mcontext.gregs[REG_RIP] = (greg_t)dbt->stub_carry_on;
    return true;
}

bool dbt_handle_signal(struct vcpu *vcpu, int signal, siginfo_t *info, void *context) {
    struct dbt_vcpu *dbt = vcpu->dbt;
    ucontext_t *user = context;
    uint64_t pc = (uint64_t)user->uc_mcontext.gregs[REG_RIP];
    if (!code_part_at(dbt, pc - (uint64_t)dbt->rx) && !cached_holds(dbt, pc))
        return carry_on(dbt, pc, user);
    /* The guest's RSP is kept here, for hosts that cannot return with it. */
    struct dbt_hot *hot = &dbt->area->hot;
    greg_t *rsp = &user->uc_mcontext.gregs[REG_RSP];
    if (!dbt->remakes)
        hot->save[GPR_RSP] = (uint64_t)*rsp;
    *rsp = (greg_t)hot->host_rsp;
    uint64_t remake = block_remake(dbt, pc);
    dbt->remakes = remake != 0;
    if (dbt->remakes) { /* it faults again, with the flags live; no flags are made from RSP */
        user->uc_mcontext.gregs[REG_RIP] = (greg_t)remake;
        return true;
    }
    hot->fault_pc = pc;
    hot->fault_is_poll =
        signal == SIGSEGV && is_poll_address(dbt, info->si_addr, offsetof(struct dbt_area, poll));
    hot->fault_is_sti_poll =
        signal == SIGSEGV && is_poll_address(dbt, info->si_addr, offsetof(struct dbt_area, sti_poll));
    user->uc_mcontext.gregs[REG_RIP] = (greg_t)dbt->stub_fault;
    return true;
}

bool dbt_is_translated(const struct vcpu *vcpu, uint64_t host_pc) {
    const struct dbt_vcpu *dbt = vcpu->dbt;
    return dbt && (host_pc - (uint64_t)dbt->rx < dbt->size || cached_holds(dbt, host_pc));
}

void dbt_kick_from_handler(struct vcpu *vcpu) {
    struct dbt_vcpu *dbt = vcpu->dbt;
    if (!dbt->in_code)
        return;
    dbt->current_alias = AREA_STOP;
    dbt->area->hot.alias = AREA_STOP;
    host_gs_set(dbt->fsgsbase, dbt->alias[AREA_STOP]);
}

const struct dbt_stats *dbt_vcpu_stats(const struct vcpu *vcpu) {
    vcpu->dbt->stats.code_bytes = code_in_use(vcpu->dbt);
    return &vcpu->dbt->stats;
}
