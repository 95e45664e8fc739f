/* Calling a thunk, and getting out of it when its instruction faults. Compiled without vector code: between
 * the load and the save of the guest's extended state nothing else may touch it. */
#define _GNU_SOURCE
#include "interp/thunk.h"

/* The frame that this thread's thunk runs on. Not the VM's or vCPU's state: it tells the signal handler,
 * which is handed nothing else, whether the fault is ours. */
static _Thread_local struct thunk_frame *volatile running;

/* Where a host cannot return to a program whose RSP is not canonical, a tick of its timer that meets the
 * guest's RSP comes as #GP. */
static bool may_be_tick(const struct thunk_frame *frame) {
    return frame->fault == VECTOR_GP + 1 && !cpu_is_canonical(frame->gpr[GPR_RSP]);
}

static void call(void (*entry)(struct thunk_frame *), struct thunk_frame *frame) {
    entry(frame);
    if (UNLIKELY(frame->fault) && may_be_tick(frame)) {
        frame->fault = 0;
        entry(frame);
    }
}

unsigned thunk_run(struct vcpu *vcpu, const struct thunk *thunk, struct thunk_frame *frame, bool vector) {
    void (*entry)(struct thunk_frame *) = (void (*)(struct thunk_frame *))(uintptr_t)thunk->entry;
    frame->fault = 0;
    frame->exit = thunk->exit;
    frame->insn_start = thunk->insn_start;
    frame->insn_end = thunk->insn_end;
    running = frame;
    if (vector) {
        vcpu_fpu_load(vcpu);
        call(entry, frame);
        vcpu_fpu_save(vcpu);
    } else {
        call(entry, frame);
    }
    running = NULL;
    return (unsigned)frame->fault;
}

bool interp_handle_signal(int sig, siginfo_t *info, ucontext_t *context) {
    struct thunk_frame *frame = running;
    greg_t *regs = context->uc_mcontext.gregs;
    const uint8_t *pc = (const uint8_t *)regs[REG_RIP];
    (void)info;
    if (!frame || pc < frame->insn_start || pc > frame->insn_end)
        return false;
    if (pc == frame->insn_end) { /* a tick, see above: do what comes next, which frees RSP */
        if (cpu_is_canonical((uint64_t)regs[REG_RSP]) || frame->host_rsp == (uint64_t)regs[REG_RSP])
            return false;
        frame->gpr[GPR_RSP] = (uint64_t)regs[REG_RSP];
        regs[REG_RSP] = (greg_t)frame->host_rsp;
        regs[REG_RIP] += THUNK_RSP_SAVE_LENGTH;
        return true;
    }
    if (sig != SIGFPE && sig != SIGSEGV && sig != SIGBUS && sig != SIGILL && sig != SIGTRAP)
        return false;
    frame->fault = (uint64_t)regs[REG_TRAPNO] + 1;
    regs[REG_RIP] = (greg_t)frame->exit;
    regs[REG_RSP] = (greg_t)frame->host_rsp; /* not all hosts can return to the guest's */
    return true;
}
