/* Inside of a LAPIC, shared by its registers, its timer and the message delivery. */
#ifndef NESTOR_DEVICES_LAPIC_PRIVATE_H
#define NESTOR_DEVICES_LAPIC_PRIVATE_H

#include <pthread.h>
#include <stdatomic.h>

#include "devices/lapic.h"

/* Register numbers: offset in the page >> 4, MSR - 0x800. */
enum lapic_register {
    REG_ID = 0x02,
    REG_VERSION = 0x03,
    REG_TPR = 0x08,
    REG_APR = 0x09,
    REG_PPR = 0x0a,
    REG_EOI = 0x0b,
    REG_RRD = 0x0c,
    REG_LDR = 0x0d,
    REG_DFR = 0x0e,
    REG_SVR = 0x0f,
    REG_ISR = 0x10,
    REG_TMR = 0x18,
    REG_IRR = 0x20,
    REG_ESR = 0x28,
    REG_ICR_LOW = 0x30,
    REG_ICR_HIGH = 0x31,
    REG_LVT_FIRST = LAPIC_LVT_TIMER,
    REG_LVT_LAST = LAPIC_LVT_ERROR,
    REG_TIMER_INITIAL = 0x38,
    REG_TIMER_CURRENT = 0x39,
    REG_TIMER_DIVIDE = 0x3e,
    REG_SELF_IPI = 0x3f,
    REG_COUNT = 0x40,
};

#define LAPIC_ALIGNMENT 64

#define LVT_VECTOR 0xffu
#define LVT_DELIVERY_SHIFT 8
#define LVT_POLARITY (1u << 13)
#define LVT_REMOTE_IRR (1u << 14)
#define LVT_LEVEL (1u << 15)
#define LVT_MASKED (1u << 16)
#define LVT_TIMER_MODE (3u << 17)
#define LVT_TIMER_ONE_SHOT (0u << 17)
#define LVT_TIMER_PERIODIC (1u << 17)
#define LVT_TIMER_DEADLINE (2u << 17)
#define SVR_ENABLE (1u << 8)
#define ESR_SEND_ILLEGAL_VECTOR (1u << 5)
#define ESR_RECEIVE_ILLEGAL_VECTOR (1u << 6)
#define ESR_ILLEGAL_REGISTER (1u << 7)

/* The messages' side (irr, tmr, irr_waiting, errors, pins) is written by any thread; the rest by the vCPU's
 * own thread, but may be read by others: hence atomics throughout, relaxed where nothing hangs on the order.
 */
struct lapic {
    /* Cache lines of its own: neighbours' vCPUs write theirs all the time. */
    _Alignas(LAPIC_ALIGNMENT) _Atomic uint32_t irr[8];
    _Atomic uint32_t tmr[8];
    _Atomic uint32_t irr_waiting; /* 0 only if the IRR is empty */
    _Atomic uint32_t errors;      /* accumulated until the next write of the ESR */
    _Atomic uint32_t lint_level[2];
    _Atomic uint32_t extint_latched; /* an ExtINT message came */

    _Atomic uint32_t isr[8];
    int isr_top; /* highest bit of the ISR, or LAPIC_NONE */
    unsigned isr_count;
    _Atomic uint32_t ppr;
    _Atomic uint32_t regs[REG_COUNT]; /* ID, TPR, LDR, DFR, SVR, ESR, ICR, LVTs, timer counts */
    _Atomic uint64_t base;            /* IA32_APIC_BASE */

    pthread_mutex_t timer_lock; /* the following; LVT_TIMER is only written with it held */
    struct timer timer;
    bool timer_running;
    uint64_t timer_deadline_ns;
    uint64_t tsc_deadline; /* 0 when not armed */
    int64_t tsc_offset;

    struct lapic_set *set;
    uint32_t initial_id;
    const struct lapic_cpu_ops *ops;
    void *context;
};

struct lapic_set {
    struct lapic_set_config config;
    _Atomic bool ids_moved;       /* some guest wrote an xAPIC ID: find by search */
    _Atomic unsigned arbitration; /* rotates among equals in lowest-priority delivery */
    struct lapic lapics[];
};

static inline uint32_t lapic_reg(struct lapic *lapic, unsigned reg) {
    return atomic_load_explicit(&lapic->regs[reg], memory_order_relaxed);
}
static inline void lapic_reg_store(struct lapic *lapic, unsigned reg, uint32_t value) {
    atomic_store_explicit(&lapic->regs[reg], value, memory_order_relaxed);
}
static inline bool lapic_x2apic(struct lapic *lapic) {
    return atomic_load_explicit(&lapic->base, memory_order_relaxed) & LAPIC_BASE_X2APIC;
}
static inline bool lapic_software_enabled(struct lapic *lapic) {
    return lapic_reg(lapic, REG_SVR) & SVR_ENABLE;
}
static inline void lapic_kick(struct lapic *lapic) {
    if (lapic->ops)
        lapic->ops->kick(lapic->context);
}

/* lapic.c */
void lapic_tpr_write(struct lapic *lapic, uint32_t tpr);
void lapic_accept(struct lapic *lapic, uint8_t vector, bool level_triggered);
void lapic_error(struct lapic *lapic, uint32_t error);
void lapic_lvt_fire(struct lapic *lapic, enum lapic_lvt source);

/* lapic_deliver.c: a write of the ICR with its 32-bit (x2APIC) or 8-bit destination. */
void lapic_send(struct lapic *lapic, uint32_t icr, uint32_t destination);

/* lapic_timer.c */
void lapic_timer_init(struct lapic *lapic);
void lapic_timer_reset(struct lapic *lapic);
void lapic_timer_lvt_write(struct lapic *lapic, uint32_t value);
void lapic_timer_initial_write(struct lapic *lapic, uint32_t value);
void lapic_timer_divide_write(struct lapic *lapic, uint32_t value);
uint32_t lapic_timer_current(struct lapic *lapic);

#endif
