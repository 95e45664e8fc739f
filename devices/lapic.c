/* The LAPIC's interrupt state: request, service and priority, local sources, the life of the whole unit.
 *
 * Posting (lapic_accept) sets the TMR and then the IRR bit, then irr_waiting, then kicks; the vCPU reads
 * irr_waiting first. Clearing irr_waiting is followed by another look at the IRR, so a bit that is posted in
 * between is never lost. */
#include "devices/lapic_private.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#define APIC_BASE_ADDRESS_SHIFT 12

struct lapic_set *lapic_set_create(const struct lapic_set_config *config) {
    if (config->count == 0 || config->count > LAPIC_MAX_COUNT || config->tsc_hz == 0)
        return NULL;
    size_t size = sizeof(struct lapic_set) + config->count * sizeof(struct lapic);
    struct lapic_set *set = aligned_alloc(LAPIC_ALIGNMENT, align_up(size, LAPIC_ALIGNMENT));
    if (!set)
        return NULL;
    memset(set, 0, size);
    set->config = *config;
    for (unsigned i = 0; i < config->count; i++) {
        struct lapic *lapic = &set->lapics[i];
        lapic->set = set;
        lapic->initial_id = i;
        pthread_mutex_init(&lapic->timer_lock, NULL);
        lapic_timer_init(lapic);
        lapic_power_on(lapic);
    }
    return set;
}

void lapic_set_destroy(struct lapic_set *set) {
    if (!set)
        return;
    for (unsigned i = 0; i < set->config.count; i++) {
        timer_cancel_sync(&set->lapics[i].timer);
        pthread_mutex_destroy(&set->lapics[i].timer_lock);
    }
    free(set);
}

struct lapic *lapic_set_get(struct lapic_set *set, unsigned index) {
    return index < set->config.count ? &set->lapics[index] : NULL;
}

unsigned lapic_set_count(const struct lapic_set *set) {
    return set->config.count;
}

void lapic_connect(struct lapic *lapic, const struct lapic_cpu_ops *ops, void *context) {
    lapic->context = context;
    lapic->ops = ops;
}

static int highest_bit(_Atomic uint32_t words[8]) {
    for (int i = 7; i >= 0; i--) {
        uint32_t word = atomic_load_explicit(&words[i], memory_order_acquire);
        if (word)
            return 32 * i + 31 - __builtin_clz(word);
    }
    return LAPIC_NONE;
}

/* PPR of SDM volume 3, "Task and Processor Priorities". */
static void ppr_update(struct lapic *lapic) {
    uint32_t tpr = lapic_reg(lapic, REG_TPR);
    uint32_t service = lapic->isr_top == LAPIC_NONE ? 0 : (uint32_t)lapic->isr_top;
    uint32_t ppr = (tpr & 0xf0) >= (service & 0xf0) ? tpr : service & 0xf0;
    atomic_store_explicit(&lapic->ppr, ppr, memory_order_relaxed);
}

int lapic_pending(struct lapic *lapic) {
    if (LIKELY(!atomic_load_explicit(&lapic->irr_waiting, memory_order_acquire)))
        return LAPIC_NONE;
    int vector = highest_bit(lapic->irr);
    uint32_t ppr = atomic_load_explicit(&lapic->ppr, memory_order_relaxed);
    if (vector == LAPIC_NONE || ((uint32_t)vector & 0xf0) <= (ppr & 0xf0))
        return LAPIC_NONE;
    return vector;
}

bool lapic_requested(struct lapic *lapic) {
    return atomic_load_explicit(&lapic->irr_waiting, memory_order_acquire);
}

int lapic_acknowledge(struct lapic *lapic) {
    int vector = lapic_pending(lapic);
    if (vector == LAPIC_NONE)
        return LAPIC_NONE;
    uint32_t bit = 1u << (vector & 31);
    atomic_fetch_and(&lapic->irr[vector >> 5], ~bit);
    if (highest_bit(lapic->irr) == LAPIC_NONE) {
        atomic_store(&lapic->irr_waiting, 0);
        if (highest_bit(lapic->irr) != LAPIC_NONE)
            atomic_store(&lapic->irr_waiting, 1);
    }
    atomic_fetch_or_explicit(&lapic->isr[vector >> 5], bit, memory_order_relaxed);
    lapic->isr_top = vector;
    lapic->isr_count++;
    ppr_update(lapic);
    return vector;
}

void lapic_eoi(struct lapic *lapic) {
    int vector = lapic->isr_top;
    if (vector == LAPIC_NONE)
        return;
    uint32_t bit = 1u << (vector & 31);
    atomic_fetch_and_explicit(&lapic->isr[vector >> 5], ~bit, memory_order_relaxed);
    lapic->isr_top = highest_bit(lapic->isr);
    lapic->isr_count--;
    ppr_update(lapic);
    if (atomic_load_explicit(&lapic->tmr[vector >> 5], memory_order_acquire) & bit) {
        uint32_t lint0 = lapic_reg(lapic, LAPIC_LVT_LINT0);
        if (lint0 & LVT_REMOTE_IRR && (lint0 & LVT_VECTOR) == (uint32_t)vector) {
            atomic_fetch_and(&lapic->regs[LAPIC_LVT_LINT0], ~LVT_REMOTE_IRR);
            if (atomic_load(&lapic->lint_level[0]))
                lapic_lint_set(lapic, 0, true);
        }
        if (lapic->set->config.eoi_broadcast)
            lapic->set->config.eoi_broadcast(lapic->set->config.context, (uint8_t)vector);
    }
    if (lapic_pending(lapic) != LAPIC_NONE)
        lapic_kick(lapic);
}

bool lapic_pv_eoi_candidate(struct lapic *lapic) {
    int vector = lapic->isr_top;
    return lapic->isr_count == 1 && !atomic_load(&lapic->irr_waiting) &&
           !(atomic_load(&lapic->tmr[vector >> 5]) & 1u << (vector & 31));
}

void lapic_accept(struct lapic *lapic, uint8_t vector, bool level_triggered) {
    if (vector < 16) {
        lapic_error(lapic, ESR_RECEIVE_ILLEGAL_VECTOR);
        return;
    }
    uint32_t bit = 1u << (vector & 31);
    if (level_triggered)
        atomic_fetch_or(&lapic->tmr[vector >> 5], bit);
    else if (atomic_load_explicit(&lapic->tmr[vector >> 5], memory_order_relaxed) & bit)
        atomic_fetch_and(&lapic->tmr[vector >> 5], ~bit);
    atomic_fetch_or(&lapic->irr[vector >> 5], bit);
    atomic_store(&lapic->irr_waiting, 1);
    lapic_kick(lapic);
}

void lapic_error(struct lapic *lapic, uint32_t error) {
    uint32_t lvt = lapic_reg(lapic, LAPIC_LVT_ERROR);
    uint32_t before = atomic_fetch_or(&lapic->errors, error);
    /* An error interrupt with an illegal vector is itself an error: noted, and the end of it. */
    if (before & error || lvt & LVT_MASKED)
        return;
    if ((lvt & LVT_VECTOR) < 16)
        atomic_fetch_or(&lapic->errors, ESR_RECEIVE_ILLEGAL_VECTOR);
    else
        lapic_accept(lapic, (uint8_t)lvt, false);
}

bool lapic_accepts_extint(struct lapic *lapic) {
    if (atomic_load_explicit(&lapic->extint_latched, memory_order_acquire))
        return true;
    if (!atomic_load_explicit(&lapic->lint_level[0], memory_order_acquire))
        return false;
    if (!lapic_enabled(lapic))
        return true; /* the pin is then INTR */
    uint32_t lvt = lapic_reg(lapic, LAPIC_LVT_LINT0);
    return !(lvt & LVT_MASKED) && (lvt >> LVT_DELIVERY_SHIFT & 7) == LAPIC_EXTINT;
}

bool lapic_interrupt_waits(struct lapic *lapic) {
    return lapic_pending(lapic) != LAPIC_NONE || lapic_accepts_extint(lapic);
}

int lapic_interrupt_take(struct lapic *lapic) {
    if (UNLIKELY(lapic_accepts_extint(lapic)) && lapic->set->config.extint_acknowledge) {
        atomic_store(&lapic->extint_latched, 0);
        return lapic->set->config.extint_acknowledge(lapic->set->config.context);
    }
    return lapic_acknowledge(lapic);
}

void lapic_lvt_fire(struct lapic *lapic, enum lapic_lvt source) {
    uint32_t lvt = lapic_reg(lapic, source);
    if (lvt & LVT_MASKED)
        return;
    /* The timer and the error entry have no delivery mode. */
    enum lapic_delivery mode = LAPIC_FIXED;
    if (source != LAPIC_LVT_TIMER && source != LAPIC_LVT_ERROR)
        mode = (enum lapic_delivery)(lvt >> LVT_DELIVERY_SHIFT & 7);
    switch (mode) {
    case LAPIC_FIXED:
        lapic_accept(lapic, (uint8_t)lvt, false);
        break;
    case LAPIC_NMI:
        if (lapic->ops)
            lapic->ops->nmi(lapic->context);
        break;
    case LAPIC_INIT:
        if (lapic->ops)
            lapic->ops->init(lapic->context);
        break;
    default:
        break;
    }
}

void lapic_local_interrupt(struct lapic *lapic, enum lapic_lvt source) {
    if (!lapic_enabled(lapic) || (source != LAPIC_LVT_PERF && source != LAPIC_LVT_THERMAL))
        return;
    lapic_lvt_fire(lapic, source);
    if (source == LAPIC_LVT_PERF)
        atomic_fetch_or(&lapic->regs[source], LVT_MASKED);
}

void lapic_lint_set(struct lapic *lapic, unsigned pin, bool level) {
    enum lapic_lvt source = pin ? LAPIC_LVT_LINT1 : LAPIC_LVT_LINT0;
    bool before = atomic_exchange(&lapic->lint_level[pin & 1], level);
    if (!level)
        return;
    if (!lapic_enabled(lapic)) {
        if (pin == 0)
            lapic_kick(lapic);
        else if (!before && lapic->ops)
            lapic->ops->nmi(lapic->context);
        return;
    }
    uint32_t lvt = lapic_reg(lapic, source);
    if (lvt & LVT_MASKED)
        return;
    unsigned mode = lvt >> LVT_DELIVERY_SHIFT & 7;
    if (mode == LAPIC_EXTINT) {
        lapic_kick(lapic);
    } else if (mode == LAPIC_FIXED && lvt & LVT_LEVEL && pin == 0) {
        if (!(atomic_fetch_or(&lapic->regs[source], LVT_REMOTE_IRR) & LVT_REMOTE_IRR))
            lapic_accept(lapic, (uint8_t)lvt, true);
    } else if (!before) {
        lapic_lvt_fire(lapic, source);
    }
}

unsigned lapic_cr8_get(struct lapic *lapic) {
    return lapic_reg(lapic, REG_TPR) >> 4;
}

void lapic_tpr_write(struct lapic *lapic, uint32_t tpr) {
    lapic_reg_store(lapic, REG_TPR, tpr & 0xff);
    ppr_update(lapic);
    if (lapic_pending(lapic) != LAPIC_NONE)
        lapic_kick(lapic);
}

void lapic_cr8_set(struct lapic *lapic, unsigned cr8) {
    lapic_tpr_write(lapic, (cr8 & 15) << 4);
}

static uint32_t x2apic_ldr(uint32_t id) {
    return (id >> 4) << 16 | 1u << (id & 15);
}

static void registers_reset(struct lapic *lapic) {
    uint32_t id = lapic_reg(lapic, REG_ID);
    lapic_timer_reset(lapic);
    for (unsigned i = 0; i < 8; i++) {
        atomic_store(&lapic->irr[i], 0);
        atomic_store(&lapic->tmr[i], 0);
        atomic_store(&lapic->isr[i], 0);
    }
    atomic_store(&lapic->irr_waiting, 0);
    atomic_store(&lapic->errors, 0);
    atomic_store(&lapic->extint_latched, 0);
    lapic->isr_top = LAPIC_NONE;
    lapic->isr_count = 0;
    for (unsigned i = 0; i < REG_COUNT; i++)
        lapic_reg_store(lapic, i, 0);
    for (unsigned i = REG_LVT_FIRST; i <= REG_LVT_LAST; i++)
        lapic_reg_store(lapic, i, LVT_MASKED);
    lapic_reg_store(lapic, REG_ID, id);
    lapic_reg_store(lapic, REG_DFR, UINT32_MAX);
    lapic_reg_store(lapic, REG_SVR, 0xff);
    if (lapic_x2apic(lapic))
        lapic_reg_store(lapic, REG_LDR, x2apic_ldr(lapic->initial_id));
    ppr_update(lapic);
}

void lapic_init_reset(struct lapic *lapic) {
    registers_reset(lapic);
}

void lapic_power_on(struct lapic *lapic) {
    bool bsp = lapic->initial_id == 0;
    atomic_store(&lapic->base, LAPIC_DEFAULT_BASE | LAPIC_BASE_ENABLE | (bsp ? LAPIC_BASE_BSP : 0));
    lapic_reg_store(lapic, REG_ID, lapic->initial_id);
    registers_reset(lapic);
    if (bsp) {
        lapic_reg_store(lapic, LAPIC_LVT_LINT0, LAPIC_EXTINT << LVT_DELIVERY_SHIFT);
        lapic_reg_store(lapic, LAPIC_LVT_LINT1, LAPIC_NMI << LVT_DELIVERY_SHIFT);
    }
}

uint64_t lapic_base_get(struct lapic *lapic) {
    return atomic_load_explicit(&lapic->base, memory_order_relaxed);
}

int lapic_base_set(struct lapic *lapic, uint64_t value) {
    uint64_t old = lapic_base_get(lapic);
    unsigned bits = lapic->set->config.physical_bits;
    uint64_t address_mask = ((1ull << (bits ? bits : 36)) - 1) & PAGE_MASK;
    if (value & ~(address_mask | LAPIC_BASE_BSP | LAPIC_BASE_X2APIC | LAPIC_BASE_ENABLE))
        return -EINVAL;
    bool enable = value & LAPIC_BASE_ENABLE, x2apic = value & LAPIC_BASE_X2APIC;
    bool was_enabled = old & LAPIC_BASE_ENABLE, was_x2apic = old & LAPIC_BASE_X2APIC;
    /* The legal transitions: SDM volume 3, "x2APIC State Transitions". */
    if (x2apic && !enable)
        return -EINVAL;
    if ((was_x2apic && enable && !x2apic) || (!was_enabled && x2apic))
        return -EINVAL;
    atomic_store(&lapic->base, value);
    if (enable != was_enabled) {
        lapic_reg_store(lapic, REG_ID, lapic->initial_id);
        registers_reset(lapic);
    } else if (x2apic && !was_x2apic) {
        lapic_reg_store(lapic, REG_ID, lapic->initial_id);
        lapic_reg_store(lapic, REG_LDR, x2apic_ldr(lapic->initial_id));
        lapic_reg_store(lapic, REG_ICR_HIGH, 0);
    }
    lapic_kick(lapic);
    return 0;
}

uint64_t lapic_mmio_base(struct lapic *lapic) {
    uint64_t base = lapic_base_get(lapic);
    if ((base & (LAPIC_BASE_ENABLE | LAPIC_BASE_X2APIC)) != LAPIC_BASE_ENABLE)
        return LAPIC_NOT_MAPPED;
    return base >> APIC_BASE_ADDRESS_SHIFT << APIC_BASE_ADDRESS_SHIFT;
}

bool lapic_enabled(struct lapic *lapic) {
    return lapic_base_get(lapic) & LAPIC_BASE_ENABLE;
}

uint32_t lapic_id(struct lapic *lapic) {
    return lapic_reg(lapic, REG_ID);
}
