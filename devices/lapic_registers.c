/* The LAPIC's register file behind its two doors, the xAPIC page and the x2APIC MSRs
 * (SDM volume 3, "Local APIC Register Address Map" and "x2APIC Register Address Space"). */
#include <errno.h>

#include "devices/lapic_private.h"

#define VERSION (0x14u | (REG_LVT_LAST - REG_LVT_FIRST) << 16)

/* Bits of a register that software may set; 0: not writable. */
static uint32_t writable_bits(unsigned reg) {
    switch (reg) {
    case REG_TPR:
        return 0xff;
    case REG_SVR:
        return 0x3ff;
    case LAPIC_LVT_TIMER:
        return LVT_VECTOR | LVT_MASKED | LVT_TIMER_MODE;
    case LAPIC_LVT_ERROR:
        return LVT_VECTOR | LVT_MASKED;
    case LAPIC_LVT_THERMAL:
    case LAPIC_LVT_PERF:
        return LVT_VECTOR | 7u << LVT_DELIVERY_SHIFT | LVT_MASKED;
    case LAPIC_LVT_LINT0:
    case LAPIC_LVT_LINT1:
        return LVT_VECTOR | 7u << LVT_DELIVERY_SHIFT | LVT_POLARITY | LVT_LEVEL | LVT_MASKED;
    case REG_ICR_LOW:
        return 0x000ccfff;
    case REG_TIMER_INITIAL:
    case REG_ICR_HIGH:
        return UINT32_MAX;
    case REG_TIMER_DIVIDE:
        return 0xb;
    case REG_SELF_IPI:
        return 0xff;
    default:
        return 0;
    }
}

/* False for a register that does not exist. */
static bool register_read(struct lapic *lapic, unsigned reg, uint32_t *value) {
    switch (reg) {
    case REG_ID:
        *value = lapic_x2apic(lapic) ? lapic_reg(lapic, REG_ID) : lapic_reg(lapic, REG_ID) << 24;
        return true;
    case REG_VERSION:
        *value = VERSION;
        return true;
    case REG_PPR:
    case REG_APR:
        *value = atomic_load_explicit(&lapic->ppr, memory_order_relaxed);
        return true;
    case REG_ISR ... REG_ISR + 7:
        *value = atomic_load(&lapic->isr[reg - REG_ISR]);
        return true;
    case REG_TMR ... REG_TMR + 7:
        *value = atomic_load(&lapic->tmr[reg - REG_TMR]);
        return true;
    case REG_IRR ... REG_IRR + 7:
        *value = atomic_load(&lapic->irr[reg - REG_IRR]);
        return true;
    case REG_TIMER_CURRENT:
        *value = lapic_timer_current(lapic);
        return true;
    case REG_EOI:
    case REG_RRD:
        *value = 0;
        return true;
    case REG_TPR:
    case REG_LDR:
    case REG_DFR:
    case REG_SVR:
    case REG_ESR:
    case REG_ICR_LOW:
    case REG_ICR_HIGH:
    case REG_LVT_FIRST ... REG_LVT_LAST:
    case REG_TIMER_INITIAL:
    case REG_TIMER_DIVIDE:
        *value = lapic_reg(lapic, reg);
        return true;
    default:
        return false;
    }
}

static void svr_write(struct lapic *lapic, uint32_t value) {
    lapic_reg_store(lapic, REG_SVR, value);
    if (value & SVR_ENABLE)
        return;
    for (unsigned reg = REG_LVT_FIRST; reg <= REG_LVT_LAST; reg++) {
        if (reg == LAPIC_LVT_TIMER)
            lapic_timer_lvt_write(lapic, lapic_reg(lapic, reg) | LVT_MASKED);
        else
            atomic_fetch_or(&lapic->regs[reg], LVT_MASKED);
    }
}

static void lvt_write(struct lapic *lapic, unsigned reg, uint32_t value) {
    if (!lapic_software_enabled(lapic))
        value |= LVT_MASKED;
    if (reg == LAPIC_LVT_TIMER) {
        lapic_timer_lvt_write(lapic, value);
        return;
    }
    /* Remote IRR is the unit's own; it goes with level triggering. */
    if (value & LVT_LEVEL)
        value |= lapic_reg(lapic, reg) & LVT_REMOTE_IRR;
    lapic_reg_store(lapic, reg, value);
    if (reg == LAPIC_LVT_LINT0 && atomic_load(&lapic->lint_level[0]) && !(value & LVT_MASKED)) {
        if ((value >> LVT_DELIVERY_SHIFT & 7) == LAPIC_EXTINT || value & LVT_LEVEL)
            lapic_lint_set(lapic, 0, true);
    }
}

/* A write of bits that were checked. False for a register that does not exist or is read-only. */
static bool register_write(struct lapic *lapic, unsigned reg, uint32_t value) {
    switch (reg) {
    case REG_ID:
        if ((value >> 24) != lapic_reg(lapic, REG_ID)) {
            atomic_store(&lapic->set->ids_moved, true);
            lapic_reg_store(lapic, REG_ID, value >> 24);
        }
        return true;
    case REG_TPR:
        lapic_tpr_write(lapic, value);
        return true;
    case REG_EOI:
        lapic_eoi(lapic);
        return true;
    case REG_LDR:
        lapic_reg_store(lapic, REG_LDR, value & 0xff000000);
        return true;
    case REG_DFR:
        lapic_reg_store(lapic, REG_DFR, value | 0x0fffffff);
        return true;
    case REG_SVR:
        svr_write(lapic, value & writable_bits(reg));
        return true;
    case REG_ESR:
        lapic_reg_store(lapic, REG_ESR, atomic_exchange(&lapic->errors, 0));
        return true;
    case REG_ICR_LOW:
        value &= writable_bits(reg);
        lapic_reg_store(lapic, REG_ICR_LOW, value);
        lapic_send(lapic, value, lapic_reg(lapic, REG_ICR_HIGH) >> 24);
        return true;
    case REG_ICR_HIGH:
        lapic_reg_store(lapic, REG_ICR_HIGH, value & 0xff000000);
        return true;
    case REG_LVT_FIRST ... REG_LVT_LAST:
        lvt_write(lapic, reg, value & writable_bits(reg));
        return true;
    case REG_TIMER_INITIAL:
        lapic_timer_initial_write(lapic, value);
        return true;
    case REG_TIMER_DIVIDE:
        lapic_timer_divide_write(lapic, value & writable_bits(reg));
        return true;
    default:
        return false;
    }
}

uint64_t lapic_mmio_read(struct lapic *lapic, uint64_t offset, unsigned size) {
    unsigned within = offset & 15;
    uint32_t value = 0;
    /* Outside the first four of a register's sixteen bytes nothing is defined. */
    if (offset >= PAGE_SIZE || size > 8 || within >= 4)
        return 0;
    unsigned reg = (unsigned)(offset >> 4);
    if (!register_read(lapic, reg, &value))
        lapic_error(lapic, ESR_ILLEGAL_REGISTER);
    uint64_t shifted = (uint64_t)value >> (8 * within);
    return size < 4 ? shifted & ((1u << (8 * size)) - 1) : shifted;
}

void lapic_mmio_write(struct lapic *lapic, uint64_t offset, unsigned size, uint64_t value) {
    /* Registers are to be written whole and aligned. */
    if (offset >= PAGE_SIZE || offset & 15 || size < 4)
        return;
    if (!register_write(lapic, (unsigned)(offset >> 4), (uint32_t)value))
        lapic_error(lapic, ESR_ILLEGAL_REGISTER);
}

int lapic_msr_read(struct lapic *lapic, uint32_t msr, uint64_t *value) {
    unsigned reg = msr - LAPIC_MSR_FIRST;
    if (!lapic_x2apic(lapic) || reg >= REG_COUNT)
        return -EINVAL;
    uint32_t low;
    switch (reg) {
    case REG_APR:
    case REG_EOI:
    case REG_RRD:
    case REG_DFR:
    case REG_ICR_HIGH:
        return -EINVAL;
    default:
        if (!register_read(lapic, reg, &low))
            return -EINVAL;
    }
    *value = low;
    if (reg == REG_ICR_LOW)
        *value |= (uint64_t)lapic_reg(lapic, REG_ICR_HIGH) << 32;
    return 0;
}

int lapic_msr_write(struct lapic *lapic, uint32_t msr, uint64_t value) {
    unsigned reg = msr - LAPIC_MSR_FIRST;
    if (!lapic_x2apic(lapic) || reg >= REG_COUNT)
        return -EINVAL;
    uint32_t low = (uint32_t)value;
    switch (reg) {
    case REG_ICR_LOW:
        if (low & ~writable_bits(reg))
            return -EINVAL;
        lapic_reg_store(lapic, REG_ICR_LOW, low);
        lapic_reg_store(lapic, REG_ICR_HIGH, (uint32_t)(value >> 32));
        lapic_send(lapic, low, (uint32_t)(value >> 32));
        return 0;
    case REG_EOI:
        if (value)
            return -EINVAL;
        lapic_eoi(lapic);
        return 0;
    case REG_ESR:
        if (value)
            return -EINVAL;
        register_write(lapic, reg, 0);
        return 0;
    case REG_SELF_IPI:
        if (value & ~0xffull)
            return -EINVAL;
        if (low < 16)
            lapic_error(lapic, ESR_SEND_ILLEGAL_VECTOR);
        else if (lapic_software_enabled(lapic))
            lapic_accept(lapic, (uint8_t)low, false);
        return 0;
    case REG_ID:
    case REG_LDR:
    case REG_DFR:
    case REG_ICR_HIGH:
        return -EINVAL;
    default:
        /* Delivery status and remote IRR are read-only, not reserved: LVTs are written back as they were
         * read. */
        if (value >> 32 ||
            low & ~(writable_bits(reg) |
                    (reg >= REG_LVT_FIRST && reg <= REG_LVT_LAST ? LVT_REMOTE_IRR | 1u << 12 : 0)))
            return -EINVAL;
        return register_write(lapic, reg, low) ? 0 : -EINVAL;
    }
}
