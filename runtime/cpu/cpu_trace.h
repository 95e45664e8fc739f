/* What a vCPU tells --trace.
 *
 * The hooks are called from files that run with the guest's extended state in the host's registers. Each is
 * one test of vcpu->trace_subjects; what is behind it parks that state and brings it back, so that a VM
 * behaves the same with and without a log.
 */
#ifndef NESTOR_CPU_CPU_TRACE_H
#define NESTOR_CPU_CPU_TRACE_H

#include "base/trace.h"
#include "cpu/fpu.h"

enum cpu_trace_event {
    CPU_TRACE_EXCEPTION,    /* value: none; vcpu->exception is about to be delivered */
    CPU_TRACE_TRIPLE_FAULT, /* value: none */
    CPU_TRACE_SOFTWARE,     /* INT n and its like; index: the vector */
    CPU_TRACE_INTERRUPT,    /* index: the vector */
    CPU_TRACE_NMI,
    CPU_TRACE_INIT,
    CPU_TRACE_SIPI, /* index: the vector */
    CPU_TRACE_MSR_READ,
    CPU_TRACE_MSR_WRITE,
    CPU_TRACE_CR_READ,
    CPU_TRACE_CR_WRITE,
};

/* With the extended state parked. faulted: the access raised vcpu->exception. */
void cpu_trace_write(const struct vcpu *vcpu, enum cpu_trace_event event, uint32_t index, uint64_t value,
                     bool faulted);

static inline bool cpu_traces(const struct vcpu *vcpu, uint32_t subjects) {
    return UNLIKELY(vcpu->trace_subjects & subjects);
}

static inline void cpu_trace(struct vcpu *vcpu, uint32_t subject, enum cpu_trace_event event, uint32_t index,
                             uint64_t value, bool faulted) {
    if (!cpu_traces(vcpu, subject))
        return;
    bool live = vcpu->fpu_live;
    vcpu_fpu_park(vcpu);
    cpu_trace_write(vcpu, event, index, value, faulted);
    if (live)
        vcpu_fpu_unpark(vcpu);
}

#endif
