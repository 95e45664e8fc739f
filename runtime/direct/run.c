/* Running ring 3 in a stub, and judging why it stopped.
 *
 * Of a stop, the host's kernel tells the registers and, for a fault, an address; nothing of it is taken as
 * the guest's exception. A system call is made by the processor's rules on those registers. After a fault,
 * either the page can be mapped with more than it had, and the instruction is tried again; or the interpreter
 * executes that one instruction: it walks the guest's tables, sets A and D, and raises whatever the guest's
 * processor would.
 */
#define _GNU_SOURCE
#include "cpu/pending.h"
#include "cpu/system.h"
#include "direct/private.h"
#include "interp/interp.h"
#include "mem/guest_mem.h"

#include <elf.h>
#include <errno.h>
#include <string.h>
#include <sys/ptrace.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#define STOP_SYSCALL (SIGTRAP | 0x80)
#define EMULATED_INTERVAL 16 /* round trips for each stop that only has something emulated */
#define EMULATED_BURST 64
#define STEPS_KEPT_OUT 256 /* instructions that are worth interpreting to stay out of the DBT */

enum next {
    NEXT_RUN,   /* the stub goes on as it stands */
    NEXT_ENTER, /* the vCPU's state goes into the stub again */
    NEXT_LEAVE,
};

/* One stay in a stub. */
struct stay {
    struct direct_stub *stub;
    struct user_regs_struct regs;
};

void direct_kick_from_handler(struct vcpu *vcpu) {
    struct direct_vcpu *direct = vcpu->direct;
    if (!direct || !direct->family.running)
        return;
    int error = errno;
    ptrace(PTRACE_INTERRUPT, direct->family.running, NULL, NULL);
    errno = error;
}

/* The stub died, or does what it cannot: the guest's thread cannot go on where it was. */
static enum next lose(struct vcpu *vcpu, struct stay *stay) {
    vcpu->direct->stats.lost++;
    pool_drop(vcpu, stay->stub);
    (void)cpu_fault(vcpu, VECTOR_GP, 0);
    cpu_deliver_exception(vcpu);
    return NEXT_LEAVE;
}

/* Registers and extended state as ring 3 left them; stay->regs are its registers already. */
static bool fetch_rest(struct vcpu *vcpu, struct stay *stay) {
    if (state_fetch_vectors(vcpu, stay->stub))
        return false;
    stay->stub->flags = (uint32_t)stay->regs.eflags;
    return state_from_stub(vcpu, &stay->regs);
}

static bool fetch(struct vcpu *vcpu, struct stay *stay) {
    return !ptrace(PTRACE_GETREGS, stay->stub->pid, NULL, &stay->regs) && fetch_rest(vcpu, stay);
}

static enum next deliver(struct vcpu *vcpu) {
    vcpu->direct->stats.guest_faults++;
    cpu_deliver_exception(vcpu);
    return NEXT_LEAVE;
}

static bool may_go_on(const struct vcpu *vcpu) {
    return vcpu->run_state == RUN_ACTIVE && vcpu->cpl == 3 &&
           !vcpu_must_serve(vcpu, __atomic_load_n(&vcpu->requests, __ATOMIC_RELAXED)) && state_fits(vcpu);
}

static bool has_emulated_often(const struct direct_stub *stub) {
    return (int64_t)(stub->emulated_turn - __builtin_ia32_rdtsc()) > 0;
}

/* Stops for what the interpreter must do may take a small part of a stub's time, and a burst of them more for
 * once: each has its turn, an interval behind the one before, and may come a burst early. */
static bool is_emulating_often(const struct direct_vcpu *direct, struct direct_stub *stub) {
    uint64_t interval = EMULATED_INTERVAL * direct->costs.round_trip_ns * direct->cycles_per_us / 1000;
    uint64_t now = __builtin_ia32_rdtsc(), earliest = now - interval * EMULATED_BURST;
    if ((int64_t)(stub->emulated_turn - earliest) < 0)
        stub->emulated_turn = earliest;
    stub->emulated_turn += interval;
    return has_emulated_often(stub);
}

/* The instruction that a stub cannot execute, by the interpreter; then, with an address, its page if that has
 * become mappable. On a page that is kept out of the stub, all there is up to its end: the guest's vDSO reads
 * the clock with RDTSCP. */
static enum next emulate(struct vcpu *vcpu, struct stay *stay, uint64_t linear) {
    struct direct_stats *stats = &vcpu->direct->stats;
    uint64_t page = vcpu->rip & PAGE_MASK;
    bool kept_out = linear != NO_ADDRESS && (linear & PAGE_MASK) == page;
    unsigned steps = 0;
    do {
        enum interp_result result = interp_step(vcpu);
        if (result == INTERP_EVENT) {
            stats->guest_faults++;
            stay->stub->touched = linear;
            return NEXT_LEAVE;
        }
        if (!may_go_on(vcpu))
            return NEXT_LEAVE;
        if (!steps && linear != NO_ADDRESS) {
            int added = mapping_add(vcpu, stay->stub, linear);
            if (added > 0)
                return NEXT_ENTER;
            if (added < 0) {
                pool_drop(vcpu, stay->stub);
                return NEXT_LEAVE;
            }
        }
    } while (kept_out && (vcpu->rip & PAGE_MASK) == page && ++steps < STEPS_KEPT_OUT);
    stats->emulated++;
    bool often =
        is_emulating_often(vcpu->direct, stay->stub) && !(kept_out && mapping_admit_cpuid(vcpu, stay->stub));
    if (steps < STEPS_KEPT_OUT && !often)
        return NEXT_ENTER;
    direct_hold(vcpu);
    return NEXT_LEAVE;
}

/* A call by any of the instructions there are; RIP is behind it. */
static enum next serve_syscall(struct vcpu *vcpu, struct stay *stay) {
    uint8_t code[2] = {0};
    vcpu->direct->stats.syscalls++;
    vcpu->gpr[GPR_RAX] = stay->regs.orig_rax; /* the host's kernel has put an error into RAX */
    uint64_t next = vcpu->rip;
    vcpu->rip = cpu_is_code64(vcpu) ? next - 2 : (uint32_t)(next - 2);
    if (stub_owns(&vcpu->direct->family, next)) {
        direct_hold(vcpu); /* fetching there faults in the guest */
        return NEXT_LEAVE;
    }
    if (vmem_fetch(vcpu, vcpu->rip, code, sizeof code) < sizeof code)
        return deliver(vcpu);
    if (code[0] == 0xcd && code[1] == 0x80) {
        (void)interp_step(vcpu);
        return NEXT_LEAVE;
    }
    if (cpu_is_code64(vcpu))
        return cpu_syscall(vcpu, next) ? deliver(vcpu) : NEXT_LEAVE;
    /* SYSENTER, out of code that was written after it was mapped. The host's kernel has moved EBP to ESP, and
     * SYSENTER needs neither EIP nor ESP. */
    vcpu->gpr[GPR_RBP] = stay->regs.rsp;
    return cpu_sysenter(vcpu) ? deliver(vcpu) : NEXT_LEAVE;
}

/* Is there code[0..length) right before RIP? */
static bool is_behind(struct vcpu *vcpu, const uint8_t *code, unsigned length) {
    uint8_t found[2];
    uint64_t at = vcpu->rip - length;
    return vmem_fetch(vcpu, cpu_is_code64(vcpu) ? at : (uint32_t)at, found, length) == length &&
           !memcmp(found, code, length);
}

/* SIGTRAP of the processor: INT3, ICEBP or a single step. RIP is behind the instruction. */
static enum next serve_trap(struct vcpu *vcpu, int code) {
    static const uint8_t int3[] = {0xcc}, int_3[] = {0xcd, 3}, icebp[] = {0xf1};
    uint64_t next = vcpu->rip;
    if (code == SI_KERNEL) {
        unsigned length = is_behind(vcpu, int3, 1) ? 1 : is_behind(vcpu, int_3, 2) ? 2 : 1;
        vcpu->rip -= length;
        return cpu_software_interrupt(vcpu, VECTOR_BP, next, length == 2) ? deliver(vcpu) : NEXT_LEAVE;
    }
    if (code != TRAP_TRACE && is_behind(vcpu, icebp, 1)) {
        vcpu->rip--;
        return cpu_icebp(vcpu, next) ? deliver(vcpu) : NEXT_LEAVE;
    }
    (void)cpu_fault_debug(vcpu, DR6_BS);
    return deliver(vcpu);
}

/* INTO and INT 4 are traps that look like a #GP of the next instruction. */
static bool is_overflow_trap(struct vcpu *vcpu) {
    static const uint8_t into[] = {0xce}, int_4[] = {0xcd, 4};
    return is_behind(vcpu, int_4, 2) ||
           (!cpu_is_code64(vcpu) && vcpu->rflags & FLAG_OF && is_behind(vcpu, into, 1));
}

/* Go on in another tier, with the saved registers and the vector state that the stub still has. */
static enum next step_out(struct vcpu *vcpu, struct stay *stay) {
    if (state_fetch_vectors(vcpu, stay->stub) || !state_from_stub(vcpu, &stay->regs))
        return lose(vcpu, stay);
    direct_hold(vcpu);
    return NEXT_LEAVE;
}

/* The same, and the stub is of no use any more. */
static enum next retire(struct vcpu *vcpu, struct stay *stay) {
    enum next next = step_out(vcpu, stay);
    pool_drop(vcpu, stay->stub);
    return next;
}

static enum next serve_fault(struct vcpu *vcpu, struct stay *stay, int signal) {
    siginfo_t info;
    struct direct_stub *stub = stay->stub;
    if (ptrace(PTRACE_GETSIGINFO, stub->pid, NULL, &info))
        return lose(vcpu, stay);
    if (info.si_code <= 0)
        return NEXT_RUN; /* a process sent it: the stub never gets it */
    vcpu->direct->stats.faults++;
    uint64_t linear = NO_ADDRESS, trips = vcpu->direct->family.trips;
    if (ptrace(PTRACE_GETREGS, stub->pid, NULL, &stay->regs))
        return lose(vcpu, stay);
    if (signal == SIGSEGV && (info.si_code == SEGV_MAPERR || info.si_code == SEGV_ACCERR)) {
        /* It may be mappable as the tables are. Orders lose the registers. */
        linear = (uint64_t)info.si_addr;
        int added = mapping_add(vcpu, stub, linear);
        if (added < 0)
            return added == -ESRCH ? lose(vcpu, stay) : retire(vcpu, stay);
        stay->regs.orig_rax = UINT64_MAX;
        /* Ring 3 can have by itself what the kernel lets no tracer set: null selectors with a privilege
         * level, a base in the upper half. */
        if (vcpu->direct->family.trips != trips && ptrace(PTRACE_SETREGS, stub->pid, NULL, &stay->regs))
            return errno == ESRCH ? lose(vcpu, stay) : step_out(vcpu, stay);
        if (added)
            return NEXT_RUN;
    }
    if (!fetch_rest(vcpu, stay))
        return lose(vcpu, stay);
    if (stub_owns(&vcpu->direct->family, vcpu->rip)) {
        direct_hold(vcpu); /* fetching there faults in the guest */
        return NEXT_LEAVE;
    }
    if (signal == SIGTRAP)
        return serve_trap(vcpu, info.si_code);
    if (signal == SIGSEGV && info.si_code == SI_KERNEL && is_overflow_trap(vcpu))
        return cpu_software_interrupt(vcpu, VECTOR_OF, vcpu->rip, true) ? deliver(vcpu) : NEXT_LEAVE;
    return emulate(vcpu, stay, linear);
}

static enum next serve_stop(struct vcpu *vcpu, struct stay *stay, int status) {
    unsigned event = (unsigned)status >> 16;
    int signal = WSTOPSIG(status);
    if (!status)
        return lose(vcpu, stay);
    if (event == PTRACE_EVENT_STOP) {
        vcpu->direct->stats.kicks++;
        return fetch(vcpu, stay) ? NEXT_LEAVE : lose(vcpu, stay);
    }
    if (event == PTRACE_EVENT_SECCOMP) {
        /* The host's kernel is about to emulate a vsyscall; RIP is still there. Going on from it kills the
         * stub. */
        if (!fetch(vcpu, stay))
            return lose(vcpu, stay);
        pool_drop(vcpu, stay->stub);
        direct_hold(vcpu);
        return NEXT_LEAVE;
    }
    if (event)
        return NEXT_RUN;
    if (signal == STOP_SYSCALL)
        return fetch(vcpu, stay) ? serve_syscall(vcpu, stay) : lose(vcpu, stay);
    if (signal == SIGSEGV || signal == SIGBUS || signal == SIGILL || signal == SIGFPE || signal == SIGTRAP)
        return serve_fault(vcpu, stay, signal);
    return NEXT_RUN;
}

/* The vCPU's state into the stub, and all that its mappings need first. */
static bool enter(struct vcpu *vcpu, struct stay *stay) {
    struct direct_stub *stub = stay->stub;
    int result = mapping_sync(vcpu, stub, stub->touched);
    stub->touched = NO_ADDRESS;
    if (result) {
        pool_drop(vcpu, stub);
        return false;
    }
    if ((vcpu->rflags ^ stub->flags) & FLAG_ID)
        return false;
    if (mapping_collides(vcpu) || tls_sync(vcpu, stub) ||
        (!vcpu->direct->host_fsgsbase && !tls_agrees(vcpu, stub)))
        return false;
    state_to_stub(vcpu, &stay->regs);
    if (ptrace(PTRACE_SETREGS, stub->pid, NULL, &stay->regs))
        return false;
    return state_load_vectors(vcpu, stub) == 0;
}

/* Let the stub run until it stops. 0: gone; -1: not begun, there is a request. */
static int run_stub(struct vcpu *vcpu, const struct direct_stub *stub) {
    struct direct_vcpu *direct = vcpu->direct;
    int status = -1;
    uint64_t start = __builtin_ia32_rdtsc();
    direct->family.running = stub->pid;
    __atomic_signal_fence(__ATOMIC_SEQ_CST);
    /* A kick from here on finds it running, whether or not it does already: the interruption waits for it. */
    if (!vcpu_must_serve(vcpu, __atomic_load_n(&vcpu->requests, __ATOMIC_SEQ_CST)))
        status = ptrace(PTRACE_SYSEMU, stub->pid, NULL, NULL) ? 0 : stub_wait(stub->pid);
    if (status > 0 && (unsigned)status >> 16 == PTRACE_EVENT_STOP && stub_has_trapped(stub->pid))
        status = ptrace(PTRACE_SYSEMU, stub->pid, NULL, NULL) ? 0 : stub_wait(stub->pid);
    direct->family.running = 0;
    if (status >= 0) {
        uint64_t ticks = __builtin_ia32_rdtsc() - start;
        direct->stats.runs++;
        direct->stats.native_ns += ticks * 1000 / direct->cycles_per_us;
        vcpu->blocked_ticks += ticks; /* no steal time: the stub has run */
    }
    return status;
}

static void stay_in_stub(struct vcpu *vcpu) {
    struct stay stay = {.stub = pool_get(vcpu)};
    enum next next = NEXT_ENTER;
    if (!stay.stub || has_emulated_often(stay.stub)) {
        direct_hold(vcpu);
        return;
    }
    pool_place(vcpu->direct, stay.stub);
    vcpu->direct->stats.stays++;
    while (next != NEXT_LEAVE) {
        if (next == NEXT_ENTER && !enter(vcpu, &stay)) {
            direct_hold(vcpu);
            return;
        }
        int status = run_stub(vcpu, stay.stub);
        if (status >= 0) {
            next = serve_stop(vcpu, &stay, status);
            bool goes_on = tier_goes_on(vcpu, stay.stub, next == NEXT_RUN);
            if (!goes_on && next == NEXT_RUN && !fetch(vcpu, &stay))
                next = lose(vcpu, &stay);
            else if (!goes_on)
                next = NEXT_LEAVE;
        } else if (next == NEXT_ENTER) {
            return; /* the state is the vCPU's still */
        } else {
            next = fetch(vcpu, &stay) ? NEXT_LEAVE : lose(vcpu, &stay);
        }
    }
}

void direct_run(struct vcpu *vcpu) {
    uint64_t root = direct_root(vcpu);
    stay_in_stub(vcpu);
    spaces_charge(vcpu->direct, root);
}
