/* The interpreter: executes everything, one instruction at a time, and is the reference for the other tiers.
 *
 * It keeps no architectural state of its own: struct vcpu is exact before and after every call. The guest's
 * extended state is parked in vcpu->xsave while it runs. Vectors, x87 and the rarer integer arithmetic run on
 * the processor itself, in thunks (thunk.h): the process installs handlers for SIGFPE, SIGSEGV, SIGBUS,
 * SIGILL and SIGTRAP with SA_ONSTACK | SA_SIGINFO that first offer the signal to interp_handle_signal().
 */
#ifndef NESTOR_INTERP_INTERP_H
#define NESTOR_INTERP_INTERP_H

#include "cpu/vcpu.h"

#include <signal.h>
#include <ucontext.h>

/* Make and free vcpu->interp: decode cache and thunk memory; vcpu->model is set by then. 0 or -errno. */
MUST_CHECK int interp_vcpu_create(struct vcpu *vcpu);
void interp_vcpu_destroy(struct vcpu *vcpu);

/* Another tier does most of the work: remember fewer decoded instructions. Before the first one. */
void interp_vcpu_assist(struct vcpu *vcpu);

struct insn;
/* Has the guest's CPU model this instruction? When not, no other tier may execute it: the interpreter raises
 * #UD or does what a processor without it does. One table lookup. */
bool interp_insn_offered(const struct vcpu *vcpu, const struct insn *insn);

enum interp_result {
    INTERP_DONE,     /* an instruction (or a part of a repeated one) completed */
    INTERP_EVENT,    /* an exception was delivered: rip is at its handler */
    INTERP_HALTED,   /* run_state is RUN_HALTED */
    INTERP_SHUTDOWN, /* triple fault: run_state is RUN_SHUTDOWN */
};

/* Execute the instruction at vcpu->rip and deliver what comes of it: its fault, or the single-step and
 * data-breakpoint trap after it; code breakpoints are looked at first. Of a REP string instruction a bounded
 * number of iterations is done (one under TF), rip stays at it until the last one. */
enum interp_result interp_step(struct vcpu *vcpu);

/* The same without breakpoints, traps and delivery: CPU_FAULT leaves vcpu->exception set and rip at the
 * instruction. CPU_OK: rip, RF and irq_shadow are those of the next boundary. */
MUST_CHECK int interp_execute(struct vcpu *vcpu);

/* Step until max_instructions are done, a request is seen (after one step at least: a request that cannot be
 * served yet must not stop the vCPU) or the vCPU is no longer active. Returns the number of steps. */
uint64_t interp_run(struct vcpu *vcpu, uint64_t max_instructions);

/* For the process's signal handlers: true when the signal was a fault of a guest instruction in a thunk of
 * this thread; the context then resumes at the thunk's way out. Async-signal-safe. */
bool interp_handle_signal(int sig, siginfo_t *info, ucontext_t *context);

#endif
