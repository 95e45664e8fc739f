/* Task state segments: the inner stacks they hold and the hardware task switch (SDM vol. 3, chapter 7).
 * Private to runtime/cpu. */
#ifndef NESTOR_CPU_TASK_H
#define NESTOR_CPU_TASK_H

#include "cpu/stack.h"

/* SS:SP of an inner level from the current TSS (16- or 32-bit), checked up to and including the segment. */
MUST_CHECK int task_inner_stack(struct vcpu *vcpu, unsigned cpl, unsigned ext, struct stack *stack);
/* RSP of an inner level, or of an IST entry when ist is 1 to 7, from the 64-bit TSS. */
MUST_CHECK int task_inner_rsp(struct vcpu *vcpu, unsigned cpl, unsigned ist, unsigned ext, uint64_t *rsp);

enum task_switch { TASK_JUMP, TASK_CALL, TASK_IRET, TASK_GATE };

struct task_transfer {
    uint16_t selector;    /* of the TSS */
    enum task_switch why; /* TASK_GATE: an event through a task gate of the IDT; it nests as a call does */
    unsigned ext;
    bool has_error; /* push error on the new task's stack */
    uint32_t error;
    uint64_t rip, flags; /* what the old task resumes with */
};

/* Check the TSS descriptor and switch. CPU_FAULT may come from before the switch (nothing changed) or from
 * loading the new task's state: then the vCPU is in the new task, as SDM vol. 3, 7.3, step 12 has it. */
MUST_CHECK int task_switch(struct vcpu *vcpu, const struct task_transfer *transfer);

#endif
