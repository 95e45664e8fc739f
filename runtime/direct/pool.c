/* The stubs of a vCPU: one for each guest address space that runs here, the least recently used one goes
 * first. */
#define _GNU_SOURCE
#include "base/diag.h"
#include "direct/private.h"
#include "direct/scan.h"

#include <sched.h>
#include <stdlib.h>
#include <string.h>

#define BIND_US 20000 /* then the scheduler may place both anew */

static void forget(struct vcpu *vcpu, struct direct_stub *stub) {
    mapping_clear(vcpu, &stub->mapping);
    stub->pid = 0;
    stub->root = NO_ADDRESS;
    stub->xstate_valid = false;
}

void pool_drop(struct vcpu *vcpu, struct direct_stub *stub) {
    if (stub->pid)
        stub_kill(&vcpu->direct->family, stub->pid);
    forget(vcpu, stub);
}

void pool_drop_all(struct vcpu *vcpu) {
    for (unsigned i = 0; i < vcpu->direct->options.max_stubs; i++)
        if (vcpu->direct->stub[i].pid)
            pool_drop(vcpu, &vcpu->direct->stub[i]);
}

void pool_drop_others(struct vcpu *vcpu, const struct direct_stub *stub) {
    for (unsigned i = 0; i < vcpu->direct->options.max_stubs; i++)
        if (vcpu->direct->stub[i].pid && &vcpu->direct->stub[i] != stub)
            pool_drop(vcpu, &vcpu->direct->stub[i]);
}

static bool start_stub(struct vcpu *vcpu, struct direct_stub *stub) {
    struct direct_vcpu *direct = vcpu->direct;
    if (!stub->xstate)
        stub->xstate = calloc(1, align_up(direct->family.xstate_size, PAGE_SIZE));
    pid_t pid = stub->xstate ? stub_fork(&direct->family) : -1;
    if (pid < 0) {
        direct->broken = true;
        diag_warn("no process for a guest address space: %s; vCPU %u goes on without direct execution",
                  strerror(-pid), vcpu->index);
        return false;
    }
    stub->pid = pid;
    stub->cpu = -1;
    stub->flags = 0;
    stub->cpuid_faults = direct->family.cpuid_faults;
    stub->scan = stub->cpuid_faults ? 0 : SCAN_CPUID;
    stub->emulated_turn = 0;
    memset(stub->tls, 0, sizeof stub->tls);
    stub->xstate_valid = false;
    stub->touched = NO_ADDRESS;
    direct->stats.stubs_made++;
    return true;
}

struct direct_stub *pool_get(struct vcpu *vcpu) {
    struct direct_vcpu *direct = vcpu->direct;
    uint64_t root = direct_root(vcpu);
    struct direct_stub *oldest = &direct->stub[0];
    for (unsigned i = 0; i < direct->options.max_stubs; i++) {
        struct direct_stub *stub = &direct->stub[i];
        if (stub->pid && stub->root == root) {
            stub->last_used = ++direct->clock;
            return stub;
        }
        if (!stub->pid ? oldest->pid != 0 : oldest->pid && stub->last_used < oldest->last_used)
            oldest = stub;
    }
    if (oldest->pid) {
        spaces_charge(direct, root);
        direct->stats.stubs_evicted++;
        spaces_charge(direct, oldest->root);
        pool_drop(vcpu, oldest);
    }
    if (!start_stub(vcpu, oldest))
        return NULL;
    oldest->root = root;
    oldest->last_used = ++direct->clock;
    oldest->mapping.flushes = vcpu->flushes;
    oldest->mapping.revocations = __atomic_load_n(&vcpu->direct_revocations, __ATOMIC_SEQ_CST);
    return oldest;
}

static void bind(pid_t pid, int cpu) {
    cpu_set_t set;
    CPU_ZERO(&set);
    CPU_SET(cpu, &set);
    (void)sched_setaffinity(pid, sizeof set, &set);
}

static void unbind(const struct direct_vcpu *direct) {
    (void)sched_setaffinity(0, sizeof direct->allowed, &direct->allowed);
}

void direct_idle(struct vcpu *vcpu) {
    struct direct_vcpu *direct = vcpu->direct;
    if (!direct || direct->bound_cpu < 0)
        return;
    direct->bound_cpu = -1;
    unbind(direct);
}

void pool_stay_here(struct direct_vcpu *direct) {
    direct->bound_cpu = sched_getcpu();
    direct->bound_until = __builtin_ia32_rdtsc() + BIND_US * direct->cycles_per_us;
    bind(0, direct->bound_cpu);
}

/* Both on one processor: a wake-up across two costs many times what a switch does. */
void pool_place(struct direct_vcpu *direct, struct direct_stub *stub) {
    uint64_t now = __builtin_ia32_rdtsc();
    if (direct->bound_cpu < 0 || now >= direct->bound_until) {
        if (direct->bound_cpu >= 0) {
            unbind(direct);
            sched_yield();
        }
        pool_stay_here(direct);
    }
    if (stub->cpu != direct->bound_cpu) {
        bind(stub->pid, direct->bound_cpu);
        stub->cpu = direct->bound_cpu;
    }
}
