/* One vCPU's view of the board: struct vcpu_env on one side, struct lapic_cpu_ops on the other. */
#ifndef NESTOR_MACHINE_CPU_LINK_H
#define NESTOR_MACHINE_CPU_LINK_H

#include "machine/board.h"
#include "vm/vm.h"

struct cpu_link {
    struct vm *vm;
    struct board *board;
    struct lapic *lapic;
    unsigned index;
    const struct trace *trace;
    uint32_t trace_subjects; /* TRACE_*; 0: no log */
};

/* Connect vCPU index of vm to its LAPIC and the buses; *link outlives both. */
void cpu_link_connect(struct cpu_link *link, struct vm *vm, struct board *board, unsigned index);

#endif
