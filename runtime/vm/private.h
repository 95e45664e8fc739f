/* Shared inside runtime/vm. */
#ifndef NESTOR_VM_PRIVATE_H
#define NESTOR_VM_PRIVATE_H

#include "vm/vm.h"

#include <pthread.h>
#include <sys/types.h>

#define CODE_QUEUE 64

/* Code that was written by somebody else: pages this vCPU must look at. Guarded by vm.code_lock. */
struct code_queue {
    struct {
        uint64_t offset, length;
    } range[CODE_QUEUE];
    unsigned count;
    bool everything; /* the queue overflowed: drop all translations */
};

struct vm_cpu {
    struct vcpu *vcpu;
    struct vm *vm;
    struct vcpu_env env;
    pthread_t thread;
    bool has_thread;
    pid_t tid;
    bool sleeping; /* (any thread) in a futex wait on vcpu->requests */
    bool running;  /* (any thread) the thread can be signalled */
    void *signal_stack;
    struct code_queue queue;
    uint64_t asked, served; /* (any thread) code requests: served catches up with asked at a boundary */
};

struct vm {
    struct vm_options options;
    struct guest_mem *mem;
    const struct cpu_model *model;
    pthread_mutex_t code_lock;
    struct vm_cpu cpu[VM_MAX_CPUS];
};

/* The vCPU whose thread this is, or NULL. */
struct vcpu *vm_current_vcpu(void);

#endif
