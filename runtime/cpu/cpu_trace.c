/* The text of a vCPU's trace lines. */
#include "cpu/cpu_trace.h"

#include <inttypes.h>
#include <stdio.h>

static const char *const vector_names[32] = {
    [VECTOR_DE] = "#DE", [VECTOR_DB] = "#DB", [VECTOR_NMI] = "NMI", [VECTOR_BP] = "#BP", [VECTOR_OF] = "#OF",
    [VECTOR_BR] = "#BR", [VECTOR_UD] = "#UD", [VECTOR_NM] = "#NM",  [VECTOR_DF] = "#DF", [VECTOR_TS] = "#TS",
    [VECTOR_NP] = "#NP", [VECTOR_SS] = "#SS", [VECTOR_GP] = "#GP",  [VECTOR_PF] = "#PF", [VECTOR_MF] = "#MF",
    [VECTOR_AC] = "#AC", [VECTOR_MC] = "#MC", [VECTOR_XM] = "#XM",
};

static const char *vector_name(uint8_t vector) {
    return vector < ARRAY_SIZE(vector_names) && vector_names[vector] ? vector_names[vector] : "reserved";
}

/* "#PF(14) error 0x2 cr2 0x1000" */
static void name_exception(const struct exception *exception, char *text, size_t size) {
    char error[24] = "", cause[40] = "";
    if (exception->has_error)
        snprintf(error, sizeof error, " error %#" PRIx32, exception->error);
    if (exception->vector == VECTOR_PF)
        snprintf(cause, sizeof cause, " cr2 %#" PRIx64, exception->cr2);
    else if (exception->vector == VECTOR_DB)
        snprintf(cause, sizeof cause, " dr6 %#" PRIx64, exception->dr6);
    snprintf(text, size, "%s(%u)%s%s", vector_name(exception->vector), exception->vector, error, cause);
}

void cpu_trace_write(const struct vcpu *vcpu, enum cpu_trace_event event, uint32_t index, uint64_t value,
                     bool faulted) {
    const struct trace *trace = vcpu->trace;
    unsigned cpu = vcpu->index;
    char exception[96];
    char place[64];
    name_exception(&vcpu->exception, exception, sizeof exception);
    snprintf(place, sizeof place, "at %04x:%#" PRIx64 " cpl %u", vcpu->segment[SEG_CS].selector, vcpu->rip,
             vcpu->cpl);
    switch (event) {
    case CPU_TRACE_EXCEPTION:
        trace_line(trace, "cpu%u exception %s %s", cpu, exception, place);
        return;
    case CPU_TRACE_TRIPLE_FAULT:
        trace_line(trace, "cpu%u triple fault after %s %s", cpu, exception, place);
        return;
    case CPU_TRACE_SOFTWARE:
        trace_line(trace, "cpu%u software interrupt %#x %s", cpu, index, place);
        return;
    case CPU_TRACE_INTERRUPT:
        trace_line(trace, "cpu%u interrupt %#x %s", cpu, index, place);
        return;
    case CPU_TRACE_NMI:
        trace_line(trace, "cpu%u NMI %s", cpu, place);
        return;
    case CPU_TRACE_INIT:
        trace_line(trace, "cpu%u INIT %s", cpu, place);
        return;
    case CPU_TRACE_SIPI:
        trace_line(trace, "cpu%u SIPI %#x", cpu, index);
        return;
    case CPU_TRACE_MSR_READ:
    case CPU_TRACE_MSR_WRITE:
    case CPU_TRACE_CR_READ:
    case CPU_TRACE_CR_WRITE:
        break;
    }
    bool msr = event == CPU_TRACE_MSR_READ || event == CPU_TRACE_MSR_WRITE;
    bool read = event == CPU_TRACE_MSR_READ || event == CPU_TRACE_CR_READ;
    char name[16], result[128];
    snprintf(name, sizeof name, msr ? "msr %#x" : "cr%u", index);
    if (faulted && read)
        snprintf(result, sizeof result, "%s", exception);
    else
        snprintf(result, sizeof result, "%#" PRIx64 "%s%s", value, faulted ? " " : "",
                 faulted ? exception : "");
    trace_line(trace, "cpu%u %s %s %s %s", cpu, read ? "read" : "write", name, result, place);
}
