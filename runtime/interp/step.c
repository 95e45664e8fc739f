/* One instruction after the other: breakpoints before it, its execution, traps after it. */
#include "interp/internal.h"
#include "interp/interp.h"
#include "interp/offer.h"
#include "interp/thunk.h"
#include "interp/xstate.h"

#include <errno.h>
#include <stdlib.h>
#include <sys/mman.h>

/* Iterations of a REP instruction between two looks at the vCPU's requests. */
#define REPEAT_LIMIT 4096

int interp_vcpu_create(struct vcpu *vcpu) {
    struct interp_vcpu *interp = calloc(1, sizeof *interp);
    if (!interp)
        return -ENOMEM;
    size_t cache_size = DECODE_CACHE_ENTRIES * sizeof *interp->cache;
    interp->cache = mmap(NULL, cache_size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    interp->thunks = thunk_arena_create();
    int error = interp->thunks ? ENOMEM : errno;
    interp->frame = aligned_alloc(64, align_up(sizeof *interp->frame, 64));
    interp->xstate = calloc(1, sizeof *interp->xstate);
    interp->offer = calloc(1, sizeof *interp->offer);
    interp->cache_mask = DECODE_CACHE_ENTRIES - 1;
    vcpu->interp = interp;
    if (interp->cache == MAP_FAILED || !interp->thunks || !interp->frame || !interp->xstate ||
        !interp->offer) {
        interp_vcpu_destroy(vcpu);
        return -error;
    }
    memset(interp->frame, 0, sizeof *interp->frame);
    xstate_layout_read(interp->xstate);
    insn_offer_read(interp->offer, vcpu->model);
    return 0;
}

void interp_vcpu_assist(struct vcpu *vcpu) {
    struct interp_vcpu *interp = vcpu->interp;
    uint64_t kept = align_up(DECODE_CACHE_FEW * sizeof *interp->cache, PAGE_SIZE);
    munmap((uint8_t *)interp->cache + kept, DECODE_CACHE_ENTRIES * sizeof *interp->cache - kept);
    interp->cache_mask = DECODE_CACHE_FEW - 1;
}

void interp_vcpu_destroy(struct vcpu *vcpu) {
    struct interp_vcpu *interp = vcpu->interp;
    if (!interp)
        return;
    if (interp->cache != MAP_FAILED)
        munmap(interp->cache, (interp->cache_mask + 1ull) * sizeof *interp->cache);
    thunk_arena_destroy(interp->thunks);
    free(interp->frame);
    free(interp->xstate);
    free(interp->offer);
    free(interp);
    vcpu->interp = NULL;
}

bool interp_insn_offered(const struct vcpu *vcpu, const struct insn *insn) {
    return insn_offered(vcpu->interp->offer, insn);
}

static ALWAYS_INLINE int execute(struct vcpu *vcpu) {
    struct interp_vcpu *interp = vcpu->interp;
    struct decoded *d;
    int result = interp_fetch(vcpu, &d);
    if (UNLIKELY(result))
        return result;
    uint64_t next = vcpu->rip + d->length;
    interp->next = d->code_size == 64 ? next : (uint32_t)next;
    interp->last = d->handler;
    vcpu->irq_shadow = 0;
    result = d->handler(vcpu, d);
    switch (result) {
    case CPU_OK:
        vcpu->rip = interp->next;
        vcpu->rflags &= ~(uint64_t)FLAG_RF;
        return CPU_OK;
    case STEP_JUMPED:
        /* IRET has loaded RF. */
        if (d->handler != iret_execute)
            vcpu->rflags &= ~(uint64_t)FLAG_RF;
        return CPU_OK;
    case STEP_REPEAT:
        /* An event between two iterations pushes RF (SDM vol. 3, 17.3.1.1). */
        vcpu->rflags |= FLAG_RF;
        return CPU_OK;
    default:
        return CPU_FAULT;
    }
}

int interp_execute(struct vcpu *vcpu) {
    vcpu_fpu_park(vcpu);
    vcpu->interp->pending_dr6 = 0;
    vcpu->interp->repeat_limit = REPEAT_LIMIT;
    return execute(vcpu);
}

static enum interp_result deliver(struct vcpu *vcpu) {
    if (vcpu->run_state == RUN_HALTED)
        vcpu->run_state = RUN_ACTIVE;
    vcpu->irq_shadow = 0;
    cpu_deliver_exception(vcpu);
    return vcpu->run_state == RUN_SHUTDOWN ? INTERP_SHUTDOWN : INTERP_EVENT;
}

static uint64_t code_linear(const struct vcpu *vcpu) {
    return cpu_is_code64(vcpu) ? vcpu->rip : (uint32_t)(vcpu->segment[SEG_CS].base + vcpu->rip);
}

/* No trap follows software interrupts, which clear TF on their way (SDM vol. 3, 17.3.1.4), nor SYSRET, which
 * has its own. */
static bool is_untrapped(interp_handler *handler) {
    return handler == int_execute || handler == int3_execute || handler == into_execute ||
           handler == icebp_execute || handler == sysret_execute;
}

/* A step under TF or with breakpoints enabled. */
static enum interp_result step_watched(struct vcpu *vcpu) {
    struct interp_vcpu *interp = vcpu->interp;
    bool single = vcpu->rflags & FLAG_TF, held = vcpu->irq_shadow == SHADOW_MOV_SS;
    if (!held)
        interp->pending_dr6 = 0;
    if (!held && !(vcpu->rflags & FLAG_RF)) {
        uint64_t hit = cpu_code_breakpoint(vcpu, code_linear(vcpu));
        if (hit) {
            cpu_fault_debug(vcpu, hit);
            return deliver(vcpu);
        }
    }
    interp->repeat_limit = single ? 1 : REPEAT_LIMIT;
    if (execute(vcpu))
        return deliver(vcpu);
    if (vcpu->irq_shadow == SHADOW_MOV_SS)
        return INTERP_DONE;
    /* INT1's own #DB takes the place of what MOV SS held back; a second one would find the handler on its
     * stack. */
    uint64_t dr6 = interp->last == icebp_execute ? 0 : interp->pending_dr6;
    bool silent =
        is_untrapped(interp->last) || (interp->last == syscall_execute && !(vcpu->rflags & FLAG_TF));
    if (single && !silent)
        dr6 |= DR6_BS;
    if (!dr6)
        return vcpu->run_state == RUN_HALTED ? INTERP_HALTED : INTERP_DONE;
    cpu_fault_debug(vcpu, dr6);
    return deliver(vcpu);
}

static ALWAYS_INLINE enum interp_result step(struct vcpu *vcpu) {
    if (UNLIKELY(vcpu->mode & MODE_STEP))
        return step_watched(vcpu);
    vcpu->interp->repeat_limit = REPEAT_LIMIT;
    if (UNLIKELY(execute(vcpu)))
        return deliver(vcpu);
    return UNLIKELY(vcpu->run_state != RUN_ACTIVE)
               ? vcpu->run_state == RUN_SHUTDOWN ? INTERP_SHUTDOWN : INTERP_HALTED
               : INTERP_DONE;
}

enum interp_result interp_step(struct vcpu *vcpu) {
    vcpu_fpu_park(vcpu);
    return step(vcpu);
}

uint64_t interp_run(struct vcpu *vcpu, uint64_t max_instructions) {
    uint64_t count = 0;
    vcpu_fpu_park(vcpu);
    while (count < max_instructions && vcpu->run_state == RUN_ACTIVE) {
        step(vcpu);
        count++;
        if (UNLIKELY(__atomic_load_n(&vcpu->requests, __ATOMIC_RELAXED)))
            break;
    }
    return count;
}
