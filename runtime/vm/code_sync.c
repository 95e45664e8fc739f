/* Cross-modifying code.
 *
 * Two orders matter, and both are made by waiting until every other running vCPU has passed an instruction
 * boundary:
 *   - a page starts to hold code: first its state says so, then the write tags of all vCPUs go, then
 * everybody passes a boundary (a store that passed its inline check before is then done), and only then its
 * bytes are translated;
 *   - code was written: every vCPU drops its translations of it at a boundary before the writer goes on.
 * A vCPU that waits serves its own requests meanwhile, so two that wait for each other both get on. A device
 * thread that wrote code by DMA does not wait: its interrupt or used-ring entry comes after the requests, and
 * a vCPU serves those first.
 */
#include "vm/code_sync.h"
#include "cpu/fpu.h"
#include "dbt/dbt.h"
#include "mem/guest_mem.h"

#include <sched.h>

static struct vm_cpu *cpu_of(struct vcpu *vcpu) {
    return vcpu->vm;
}

static void serve_own(struct vm_cpu *cpu) {
    struct vm *vm = cpu->vm;
    pthread_mutex_lock(&vm->code_lock);
    struct code_queue queue = cpu->queue;
    cpu->queue.count = 0;
    cpu->queue.everything = false;
    uint64_t asked = cpu->asked;
    pthread_mutex_unlock(&vm->code_lock);
    if (queue.everything)
        dbt_drop_all(cpu->vcpu);
    for (unsigned i = 0; i < queue.count; i++)
        dbt_code_written(cpu->vcpu, queue.range[i].offset, queue.range[i].length);
    __atomic_store_n(&cpu->served, asked, __ATOMIC_RELEASE);
}

void code_sync_serve(void *context, struct vcpu *vcpu) {
    (void)context;
    vcpu_fpu_park(vcpu);
    serve_own(cpu_of(vcpu));
}

/* Ask a vCPU to pass a boundary; with length, to drop what it has translated of a range. The caller holds
 * code_lock. */
static void ask(struct vm_cpu *cpu, uint64_t offset, uint64_t length) {
    if (length) {
        if (cpu->queue.count < CODE_QUEUE) {
            cpu->queue.range[cpu->queue.count].offset = offset;
            cpu->queue.range[cpu->queue.count++].length = length;
        } else {
            cpu->queue.everything = true;
        }
    }
    cpu->asked++;
}

static bool has_served(const struct vm_cpu *cpu, uint64_t asked) {
    return !__atomic_load_n(&cpu->running, __ATOMIC_ACQUIRE) ||
           __atomic_load_n(&cpu->sleeping, __ATOMIC_ACQUIRE) ||
           __atomic_load_n(&cpu->served, __ATOMIC_ACQUIRE) >= asked;
}

/* Ask all vCPUs but one, and wait unless self is NULL (a device thread). */
static void ask_others(struct vm *vm, struct vcpu *self, uint64_t offset, uint64_t length) {
    uint64_t asked[VM_MAX_CPUS];
    pthread_mutex_lock(&vm->code_lock);
    for (unsigned i = 0; i < vm->options.cpus; i++) {
        if (vm->cpu[i].vcpu == self)
            continue;
        ask(&vm->cpu[i], offset, length);
        asked[i] = vm->cpu[i].asked;
    }
    pthread_mutex_unlock(&vm->code_lock);
    for (unsigned i = 0; i < vm->options.cpus; i++)
        if (vm->cpu[i].vcpu != self)
            vcpu_request(vm->cpu[i].vcpu, REQUEST_CODE);
    if (!self)
        return;
    for (unsigned i = 0; i < vm->options.cpus; i++) {
        if (vm->cpu[i].vcpu == self)
            continue;
        while (!has_served(&vm->cpu[i], asked[i])) {
            if (__atomic_load_n(&self->requests, __ATOMIC_ACQUIRE) & REQUEST_CODE) {
                __atomic_fetch_and(&self->requests, ~REQUEST_CODE, __ATOMIC_SEQ_CST);
                serve_own(cpu_of(self));
            }
            if (__atomic_load_n(&self->requests, __ATOMIC_ACQUIRE) & REQUEST_STOP)
                return;
            sched_yield();
        }
    }
}

void code_sync_written(void *context, uint64_t ram_offset, uint64_t length) {
    struct vm *vm = context;
    struct vcpu *self = vm_current_vcpu();
    if (self)
        dbt_code_written(self, ram_offset, length);
    if (vm->options.cpus > 1 || !self) {
        if (self)
            vcpu_fpu_park(self);
        ask_others(vm, self, ram_offset, length);
    } else if (!dbt_holds_code(self, ram_offset)) {
        __atomic_fetch_and(&vm->mem->state[ram_offset >> PAGE_SHIFT], (uint8_t)~PAGE_HOLDS_CODE,
                           __ATOMIC_SEQ_CST);
    }
}

void code_sync_hold(void *context, struct vcpu *vcpu, uint64_t ram_page) {
    (void)context;
    struct vm *vm = cpu_of(vcpu)->vm;
    for (unsigned i = 0; i < vm->options.cpus; i++)
        if (vm->cpu[i].vcpu != vcpu)
            vtlb_write_protect(vm->cpu[i].vcpu, ram_page);
    vcpu_fpu_park(vcpu);
    ask_others(vm, vcpu, 0, 0);
}

void code_sync_leave(struct vm_cpu *cpu) {
    serve_own(cpu);
}
