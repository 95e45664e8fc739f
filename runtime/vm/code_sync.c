/* Cross-modifying code.
 *
 * Two orders matter, and both are made by waiting until every other running vCPU has passed an instruction
 * boundary:
 *   - a page starts to hold code: first its state says so, then the write tags of all vCPUs go, then
 * everybody passes a boundary (a store that passed its inline check before is then done), and only then its
 * bytes are translated;
 *   - code was written: every vCPU that holds translations of it drops them at a boundary before the writer
 * goes on. A vCPU that waits serves its own requests meanwhile, so two that wait for each other both get on.
 * A device thread that wrote code by DMA does not wait: its interrupt or used-ring entry comes after the
 * requests, and a vCPU serves those first.
 */
#include "vm/code_sync.h"
#include "cpu/fpu.h"
#include "dbt/dbt.h"
#include "mem/guest_mem.h"

#include <sched.h>

static struct vm_cpu *cpu_of(struct vcpu *vcpu) {
    return vcpu->vm;
}

/* A page that nobody holds translations of any more may be written freely again. */
static void release_page(struct guest_mem *mem, uint64_t ram_offset) {
    uint64_t page = ram_offset >> PAGE_SHIFT;
    if (__atomic_load_n(&mem->code_holders[page], __ATOMIC_SEQ_CST))
        return;
    __atomic_fetch_and(&mem->state[page], (uint8_t)~PAGE_HOLDS_CODE, __ATOMIC_SEQ_CST);
    if (__atomic_load_n(&mem->code_holders[page], __ATOMIC_SEQ_CST)) /* somebody began to just now */
        __atomic_fetch_or(&mem->state[page], PAGE_HOLDS_CODE, __ATOMIC_SEQ_CST);
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
    for (unsigned i = 0; i < queue.count; i++) {
        dbt_code_written(cpu->vcpu, queue.range[i].offset, queue.range[i].length);
        release_page(vm->mem, queue.range[i].offset);
    }
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

static uint32_t bit_of(const struct vcpu *vcpu) {
    return 1u << vcpu->index % 32;
}

/* Ask the vCPUs of a mask, and wait for them unless self is NULL (a device thread). */
static void ask_all(struct vm *vm, struct vcpu *self, uint32_t mask, uint64_t offset, uint64_t length) {
    uint64_t asked[VM_MAX_CPUS];
    pthread_mutex_lock(&vm->code_lock);
    for (unsigned i = 0; i < vm->options.cpus; i++) {
        if (!(mask & bit_of(vm->cpu[i].vcpu)))
            continue;
        ask(&vm->cpu[i], offset, length);
        asked[i] = vm->cpu[i].asked;
    }
    pthread_mutex_unlock(&vm->code_lock);
    for (unsigned i = 0; i < vm->options.cpus; i++)
        if (mask & bit_of(vm->cpu[i].vcpu))
            vcpu_request(vm->cpu[i].vcpu, REQUEST_CODE);
    if (!self)
        return;
    for (unsigned i = 0; i < vm->options.cpus; i++) {
        if (!(mask & bit_of(vm->cpu[i].vcpu)))
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
    uint32_t holders = __atomic_load_n(&vm->mem->code_holders[ram_offset >> PAGE_SHIFT], __ATOMIC_SEQ_CST);
    if (self) {
        dbt_code_written(self, ram_offset, length);
        holders &= ~bit_of(self);
    }
    if (holders) {
        if (self)
            vcpu_fpu_park(self);
        ask_all(vm, self, holders, ram_offset, length);
    }
    release_page(vm->mem, ram_offset);
}

void code_sync_hold(void *context, struct vcpu *vcpu, uint64_t ram_page) {
    (void)context;
    struct vm *vm = cpu_of(vcpu)->vm;
    uint32_t writers = 0;
    for (unsigned i = 0; i < vm->options.cpus; i++) {
        struct vcpu *other = vm->cpu[i].vcpu;
        /* No hint: it has no write tag, and whoever makes one from now on sees the page's state. */
        uint64_t page = ram_page >> PAGE_SHIFT;
        bool direct = other->direct_write && __atomic_load_n(&other->direct_write[page], __ATOMIC_SEQ_CST);
        if (other == vcpu ||
            (!direct && __atomic_load_n(&other->write_hint[page], __ATOMIC_SEQ_CST) == WRITE_HINT_NONE))
            continue;
        vtlb_write_protect(other, ram_page);
        writers |= bit_of(other);
    }
    if (writers) {
        vcpu_fpu_park(vcpu);
        ask_all(vm, vcpu, writers, 0, 0);
    }
}

void code_sync_leave(struct vm_cpu *cpu) {
    serve_own(cpu);
}
