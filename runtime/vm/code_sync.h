/* Keeping every vCPU's translations true to guest memory when somebody else writes it. */
#ifndef NESTOR_VM_CODE_SYNC_H
#define NESTOR_VM_CODE_SYNC_H

#include "vm/private.h"

/* guest_mem.on_code_written: context is the VM. */
void code_sync_written(void *context, uint64_t ram_offset, uint64_t length);
/* vcpu_env.hold_code and .serve_code_requests. */
void code_sync_hold(void *context, struct vcpu *vcpu, uint64_t ram_page);
void code_sync_serve(void *context, struct vcpu *vcpu);
/* A vCPU thread ends: nobody shall wait for it any longer. */
void code_sync_leave(struct vm_cpu *cpu);

#endif
