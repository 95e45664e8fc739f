#include "machine/cpu_link.h"
#include "base/trace.h"
#include "cpu/kvm_pv.h"

#include <inttypes.h>

static uint64_t ones(unsigned size) {
    return size >= 8 ? ~0ull : (1ull << size * 8) - 1;
}

static void trace_access(const struct cpu_link *link, const char *what, uint64_t address, unsigned size,
                         uint64_t value, bool claimed) {
    trace_line(link->trace, "cpu%u %s %#" PRIx64 "/%u %#" PRIx64 "%s", link->index, what, address, size,
               value, claimed ? "" : " (nothing there)");
}

/* Before each look at the local APIC. */
static void settle_eoi(struct cpu_link *link) {
    kvm_pv_eoi_settle(vm_vcpu(link->vm, link->index));
}

static uint64_t mmio_read(void *context, uint64_t gpa, unsigned size) {
    struct cpu_link *link = context;
    uint64_t value;
    settle_eoi(link);
    bool claimed = board_mmio_read(link->board, link->index, gpa, size, &value);
    if (!claimed)
        value = ones(size);
    if (UNLIKELY(link->trace_subjects & TRACE_MMIO))
        trace_access(link, "mmio read", gpa, size, value, claimed);
    return value;
}

static void mmio_write(void *context, uint64_t gpa, unsigned size, uint64_t value) {
    struct cpu_link *link = context;
    settle_eoi(link);
    bool claimed = board_mmio_write(link->board, link->index, gpa, size, value);
    if (UNLIKELY(link->trace_subjects & TRACE_MMIO))
        trace_access(link, "mmio write", gpa, size, value, claimed);
}

static uint32_t pio_read(void *context, uint16_t port, unsigned size) {
    struct cpu_link *link = context;
    uint64_t value;
    bool claimed = board_pio_read(link->board, port, size, &value);
    if (!claimed)
        value = ones(size);
    if (UNLIKELY(link->trace_subjects & TRACE_PIO))
        trace_access(link, "pio read", port, size, value, claimed);
    return (uint32_t)value;
}

static void pio_write(void *context, uint16_t port, unsigned size, uint32_t value) {
    struct cpu_link *link = context;
    bool claimed = board_pio_write(link->board, port, size, value);
    if (UNLIKELY(link->trace_subjects & TRACE_PIO))
        trace_access(link, "pio write", port, size, value, claimed);
}

static int irq_pending(void *context) {
    struct cpu_link *link = context;
    if (lapic_requested(link->lapic))
        settle_eoi(link);
    return lapic_interrupt_waits(link->lapic) ? 0 : -1;
}

static int irq_ack(void *context) {
    struct cpu_link *link = context;
    settle_eoi(link);
    int vector = lapic_interrupt_take(link->lapic);
    if (vector >= 0 && lapic_pv_eoi_candidate(link->lapic))
        kvm_pv_eoi_arm(vm_vcpu(link->vm, link->index));
    return vector;
}

static void eoi(void *context) {
    struct cpu_link *link = context;
    lapic_eoi(link->lapic);
}

static unsigned send_ipi(void *context, uint32_t apic_id, unsigned mode, uint8_t vector) {
    struct cpu_link *link = context;
    settle_eoi(link);
    return board_send_ipi(link->board, apic_id, mode, vector);
}

static void init_taken(void *context) {
    struct cpu_link *link = context;
    settle_eoi(link);
    lapic_init_reset(link->lapic);
}

static void ferr(void *context) {
    struct cpu_link *link = context;
    board_ferr(link->board, true);
}

static uint64_t tpr_read(void *context) {
    struct cpu_link *link = context;
    return lapic_cr8_get(link->lapic);
}

static void tpr_write(void *context, uint64_t tpr) {
    struct cpu_link *link = context;
    settle_eoi(link);
    lapic_cr8_set(link->lapic, (unsigned)tpr);
}

static bool apic_msr_read(void *context, uint32_t msr, uint64_t *value) {
    struct cpu_link *link = context;
    settle_eoi(link);
    if (msr == MSR_APIC_BASE)
        *value = lapic_base_get(link->lapic);
    else if (msr == MSR_TSC_DEADLINE)
        *value = lapic_tsc_deadline_get(link->lapic);
    else
        return lapic_msr_read(link->lapic, msr, value) == 0;
    return true;
}

static bool apic_msr_write(void *context, uint32_t msr, uint64_t value) {
    struct cpu_link *link = context;
    settle_eoi(link);
    if (msr == MSR_APIC_BASE)
        return lapic_base_set(link->lapic, value) == 0;
    if (msr == MSR_TSC_DEADLINE) {
        lapic_tsc_deadline_set(link->lapic, value);
        return true;
    }
    return lapic_msr_write(link->lapic, msr, value) == 0;
}

static void kick(void *context) {
    struct cpu_link *link = context;
    vcpu_request(vm_vcpu(link->vm, link->index), REQUEST_IRQ);
}

static void nmi(void *context) {
    struct cpu_link *link = context;
    vcpu_send_nmi(vm_vcpu(link->vm, link->index));
}

static void init(void *context) {
    struct cpu_link *link = context;
    vm_send_init(link->vm, link->index);
}

static void sipi(void *context, uint8_t vector) {
    struct cpu_link *link = context;
    vm_send_sipi(link->vm, link->index, vector);
}

void cpu_link_connect(struct cpu_link *link, struct vm *vm, struct board *board, unsigned index) {
    static const struct lapic_cpu_ops ops = {.kick = kick, .nmi = nmi, .init = init, .sipi = sipi};
    *link = (struct cpu_link){.vm = vm,
                              .board = board,
                              .lapic = board_lapic(board, index),
                              .index = index,
                              .trace = vm_vcpu(vm, index)->trace,
                              .trace_subjects = vm_vcpu(vm, index)->trace_subjects};
    const struct vcpu_env env = {
        .context = link,
        .mmio_read = mmio_read,
        .mmio_write = mmio_write,
        .pio_read = pio_read,
        .pio_write = pio_write,
        .irq_pending = irq_pending,
        .irq_ack = irq_ack,
        .init_taken = init_taken,
        .ferr = ferr,
        .tpr_read = tpr_read,
        .tpr_write = tpr_write,
        .eoi = eoi,
        .send_ipi = send_ipi,
        .apic_msr_read = apic_msr_read,
        .apic_msr_write = apic_msr_write,
    };
    vm_connect(vm, index, &env);
    lapic_connect(link->lapic, &ops, link);
}
