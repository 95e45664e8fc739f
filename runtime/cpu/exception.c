/* Exceptions and interrupts: recording them, and delivering them with what follows when delivery itself fails
 * (SDM vol. 3, chapter 6; double faults: table 6-5). How one event passes its gate is event.c's. */
#include "cpu/cpu_trace.h"
#include "cpu/event.h"
#include "cpu/fpu.h"

#define DR6_BREAKPOINTS 0xfull
#define DR6_BD (1ull << 13)
#define DR7_GD (1ull << 13)

int cpu_fault(struct vcpu *vcpu, uint8_t vector, uint32_t error) {
    vcpu->exception = (struct exception){.vector = vector, .has_error = true, .error = error};
    return CPU_FAULT;
}

int cpu_fault_plain(struct vcpu *vcpu, uint8_t vector) {
    vcpu->exception = (struct exception){.vector = vector};
    return CPU_FAULT;
}

int cpu_fault_debug(struct vcpu *vcpu, uint64_t dr6_bits) {
    vcpu->exception = (struct exception){.vector = VECTOR_DB, .dr6 = dr6_bits};
    return CPU_FAULT;
}

enum severity { BENIGN, CONTRIBUTORY, PAGE_FAULT, DOUBLE_FAULT };

static enum severity severity_of(uint8_t vector) {
    switch (vector) {
    case VECTOR_DE:
    case VECTOR_TS:
    case VECTOR_NP:
    case VECTOR_SS:
    case VECTOR_GP:
        return CONTRIBUTORY;
    case VECTOR_PF:
        return PAGE_FAULT;
    case VECTOR_DF:
        return DOUBLE_FAULT;
    default:
        return BENIGN;
    }
}

/* RF of the pushed image is 1 for fault-class exceptions (SDM vol. 3, 17.3.1.1). Of the causes of #DB only
 * general detect is one that is not an instruction breakpoint. */
static uint64_t flags_image(const struct vcpu *vcpu, const struct exception *exception) {
    switch (exception->vector) {
    case VECTOR_DB:
        return vcpu->rflags | (exception->dr6 & DR6_BD ? FLAG_RF : 0);
    case VECTOR_BP:
    case VECTOR_OF:
    case VECTOR_DF:
    case VECTOR_MC:
        return vcpu->rflags;
    default:
        return vcpu->rflags | FLAG_RF;
    }
}

/* The registers that an exception changes whether or not its handler is reached. */
static void record_cause(struct vcpu *vcpu, const struct exception *exception) {
    if (exception->vector == VECTOR_PF) {
        vcpu->cr2 = exception->cr2;
    } else if (exception->vector == VECTOR_DB) {
        if (exception->dr6 & DR6_BREAKPOINTS)
            vcpu->dr[6] &= ~DR6_BREAKPOINTS;
        vcpu->dr[6] |= exception->dr6;
        vcpu->dr[7] &= ~DR7_GD;
    }
}

static void delivered(struct vcpu *vcpu) {
    vcpu->event_in_delivery = false;
    vcpu->irq_shadow = 0;
    if (vcpu->run_state == RUN_HALTED)
        __atomic_store_n(&vcpu->run_state, RUN_ACTIVE, __ATOMIC_RELEASE);
}

/* Deliver vcpu->exception, raised while an event of severity `first` was being delivered. */
static void deliver_after(struct vcpu *vcpu, enum severity first) {
    for (;;) {
        struct exception exception = vcpu->exception;
        enum severity second = severity_of(exception.vector);
        record_cause(vcpu, &exception);
        cpu_trace(vcpu, TRACE_EXCEPTIONS, CPU_TRACE_EXCEPTION, 0, 0, false);
        if (first == DOUBLE_FAULT && second != BENIGN) {
            vcpu->event_in_delivery = false;
            cpu_trace(vcpu, TRACE_EXCEPTIONS, CPU_TRACE_TRIPLE_FAULT, 0, 0, false);
            __atomic_store_n(&vcpu->run_state, RUN_SHUTDOWN, __ATOMIC_RELEASE);
            return;
        }
        if ((first == CONTRIBUTORY && second == CONTRIBUTORY) ||
            (first == PAGE_FAULT && (second == CONTRIBUTORY || second == PAGE_FAULT))) {
            exception = (struct exception){.vector = VECTOR_DF, .has_error = true};
            second = DOUBLE_FAULT;
        }
        struct event event = {.vector = exception.vector,
                              .is_software = exception.is_software,
                              .has_error = exception.has_error,
                              .ext = !exception.is_software,
                              .error = exception.error,
                              .rip = vcpu->rip,
                              .flags = flags_image(vcpu, &exception)};
        vcpu->delivering = exception;
        vcpu->event_in_delivery = true;
        if (LIKELY(event_deliver(vcpu, &event) == CPU_OK)) {
            delivered(vcpu);
            return;
        }
        first = second;
    }
}

void cpu_deliver_exception(struct vcpu *vcpu) {
    deliver_after(vcpu, BENIGN);
}

static void deliver_external(struct vcpu *vcpu, uint8_t vector) {
    struct event event = {.vector = vector, .ext = 1, .rip = vcpu->rip, .flags = vcpu->rflags};
    vcpu->delivering = (struct exception){.vector = vector};
    vcpu->event_in_delivery = true;
    if (LIKELY(event_deliver(vcpu, &event) == CPU_OK))
        delivered(vcpu);
    else
        deliver_after(vcpu, BENIGN);
}

void cpu_deliver_interrupt(struct vcpu *vcpu, uint8_t vector) {
    cpu_trace(vcpu, TRACE_INTERRUPTS, CPU_TRACE_INTERRUPT, vector, 0, false);
    deliver_external(vcpu, vector);
}

void cpu_deliver_nmi(struct vcpu *vcpu) {
    cpu_trace(vcpu, TRACE_INTERRUPTS, CPU_TRACE_NMI, VECTOR_NMI, 0, false);
    vcpu->nmi_blocked = 1;
    deliver_external(vcpu, VECTOR_NMI);
}

int cpu_software_interrupt(struct vcpu *vcpu, uint8_t vector, uint64_t next, bool is_int_n) {
    struct event event = {.vector = vector,
                          .is_software = true,
                          .is_int_n = is_int_n,
                          .rip = next,
                          .flags = vcpu->rflags & ~(uint64_t)FLAG_RF};
    cpu_trace(vcpu, TRACE_EXCEPTIONS, CPU_TRACE_SOFTWARE, vector, 0, false);
    int result = event_deliver(vcpu, &event);
    if (!result)
        vcpu->irq_shadow = 0;
    return result;
}

int cpu_icebp(struct vcpu *vcpu, uint64_t next) {
    struct event event = {
        .vector = VECTOR_DB, .ext = 1, .rip = next, .flags = vcpu->rflags & ~(uint64_t)FLAG_RF};
    int result = event_deliver(vcpu, &event);
    if (result)
        return result;
    vcpu->dr[7] &= ~DR7_GD;
    vcpu->irq_shadow = 0;
    cpu_mode_changed(vcpu);
    return CPU_OK;
}
