/* The virtual machine as the engine sees it: N vCPUs, each a thread, over one guest memory.
 *
 *   vm_create(&vm, &options, mem, model);
 *   vm_connect(vm, i, env) for each vCPU;        // the machine's side of struct vcpu_env
 *   ... set the boot vCPU's registers through vm_vcpu(vm, 0) ...
 *   vm_start(vm);  ...  vm_stop(vm);  vm_destroy(vm);
 *
 * Lock order: code_lock is a leaf but for the per-vCPU request words, which are atomic.
 */
#ifndef NESTOR_VM_VM_H
#define NESTOR_VM_VM_H

#include "cpu/model.h"
#include "cpu/vcpu.h"

#include <sys/types.h>

#define VM_MAX_CPUS 32

/* How guest code is run. */
enum vm_engine {
    VM_ENGINE_AUTO,   /* ring 3 directly where that pays, all else translated */
    VM_ENGINE_DIRECT, /* ring 3 directly where that is possible, all else translated */
    VM_ENGINE_DBT,
    VM_ENGINE_INTERP,
};

struct vm_options {
    unsigned cpus;
    enum vm_engine engine;
    unsigned direct_max;       /* processes for direct execution, per vCPU; 0: the engine's default */
    bool count_spaces;         /* direct execution counts for each address space, too */
    uint64_t code_cache_size;  /* bytes per vCPU */
    bool code_cache_grows;     /* DBT_CODE_CACHE_GROWTH times, when it is too small */
    const struct trace *trace; /* of --trace and --dump; outlives the VM. NULL: no log */
    /* A vCPU met a triple fault: called on its thread, which then ends. */
    void (*on_shutdown)(void *context, struct vcpu *vcpu);
    void *context;
};

struct vm;

/* 0 or -errno. mem and model outlive the VM. All vCPUs are reset; vCPU 0 is the boot processor. */
MUST_CHECK int vm_create(struct vm **vm, const struct vm_options *options, struct guest_mem *mem,
                         const struct cpu_model *model);
void vm_destroy(struct vm *vm);
/* The processes that the vCPUs' threads attach to with ptrace(PTRACE_SEIZE): their number. */
unsigned vm_processes(const struct vm *vm, pid_t process[VM_MAX_CPUS]);
struct vcpu *vm_vcpu(struct vm *vm, unsigned index);
/* Give vCPU index its surroundings. hold_code and serve_code_requests are the VM's own and need not be set.
 */
void vm_connect(struct vm *vm, unsigned index, const struct vcpu_env *env);
MUST_CHECK int vm_start(struct vm *vm);
/* Make every vCPU thread end and wait for them. Not from a vCPU thread. */
void vm_stop(struct vm *vm);
/* The vCPU whose access is under way executes no instruction after this one, until vm_reset(): its thread
 * ends. Nothing on other threads. */
void vm_sleep(void);
/* Bring every vCPU back to its state after power-on, whatever it was; the threads must be stopped. */
void vm_reset(struct vm *vm);
/* What the process runs, from a signal handler and so async-signal-safe, before it dies of a fault in its own
 * code. Not a VM's but the process's, as its signal handlers are. */
void vm_set_crash_hook(void (*hook)(void));
/* Local APIC messages; any thread. */
void vm_send_init(struct vm *vm, unsigned index);
void vm_send_sipi(struct vm *vm, unsigned index, uint8_t vector);

#endif
