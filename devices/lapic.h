/* Local APICs of a VM: xAPIC registers in one page, x2APIC registers as MSRs, and the delivery of interrupt
 * messages between them (Intel SDM volume 3, chapter "Advanced Programmable Interrupt Controller").
 *
 * Each LAPIC belongs to one vCPU thread: register accesses, acknowledgement, EOI and INIT happen on it only.
 * Messages (lapic_set_deliver(), lapic_set_msi(), the LINT pins and the timer) come from any thread and touch
 * atomics only; they end in a callback to the CPU, which takes no device lock.
 *
 * The timer counts at LAPIC_TIMER_HZ before its divider; the TSC deadline is in guest TSC ticks.
 */
#ifndef NESTOR_DEVICES_LAPIC_H
#define NESTOR_DEVICES_LAPIC_H

#include "base/types.h"
#include "devices/timer.h"

#define LAPIC_DEFAULT_BASE 0xfee00000ull
#define LAPIC_TIMER_HZ 1000000000ull
#define LAPIC_MAX_COUNT 255
#define LAPIC_NOT_MAPPED UINT64_MAX
#define LAPIC_NONE (-1)

#define LAPIC_BASE_BSP (1ull << 8)
#define LAPIC_BASE_X2APIC (1ull << 10)
#define LAPIC_BASE_ENABLE (1ull << 11)
#define LAPIC_MSR_FIRST 0x800u
#define LAPIC_MSR_LAST 0x8ffu

enum lapic_delivery {
    LAPIC_FIXED = 0,
    LAPIC_LOWEST_PRIORITY = 1,
    LAPIC_SMI = 2,
    LAPIC_NMI = 4,
    LAPIC_INIT = 5,
    LAPIC_STARTUP = 6,
    LAPIC_EXTINT = 7,
};

enum lapic_lvt {
    LAPIC_LVT_TIMER = 0x32,
    LAPIC_LVT_THERMAL = 0x33,
    LAPIC_LVT_PERF = 0x34,
    LAPIC_LVT_LINT0 = 0x35,
    LAPIC_LVT_LINT1 = 0x36,
    LAPIC_LVT_ERROR = 0x37,
};

struct lapic;
struct lapic_set;

/* What a LAPIC tells its CPU. Any thread, possibly under a device's lock; must not call back. */
struct lapic_cpu_ops {
    void (*kick)(
        void *context); /* an interrupt may have become deliverable: look at lapic_pending() and ExtINT */
    void (*nmi)(void *context);
    void (*init)(void *context); /* the vCPU thread calls lapic_init_reset() when it takes it */
    void (*sipi)(void *context, uint8_t vector);
};

struct lapic_set_config {
    unsigned count; /* LAPICs, with IDs 0 to count - 1; number 0 is the bootstrap processor's */
    struct timer_queue *timers;
    uint64_t tsc_hz;
    unsigned physical_bits; /* MAXPHYADDR, for the reserved bits of IA32_APIC_BASE */
    /* EOI of a level-triggered interrupt. */
    void (*eoi_broadcast)(void *context, uint8_t vector);
    /* INTA cycle towards the 8259s: the vector. */
    uint8_t (*extint_acknowledge)(void *context);
    void *context;
};

/* NULL if out of memory or count is out of range. */
MUST_CHECK struct lapic_set *lapic_set_create(const struct lapic_set_config *config);
void lapic_set_destroy(struct lapic_set *set);
struct lapic *lapic_set_get(struct lapic_set *set, unsigned index);
unsigned lapic_set_count(const struct lapic_set *set);

/* Connect a LAPIC's outputs; before any vCPU or device runs. */
void lapic_connect(struct lapic *lapic, const struct lapic_cpu_ops *ops, void *context);
/* Guest TSC = host TSC + offset. The vCPU's thread, or before it runs. */
void lapic_set_tsc_offset(struct lapic *lapic, int64_t offset);

/* Power-on (and machine reset) state; the BSP's LINT0 as ExtINT and LINT1 as NMI, as firmware leaves them. */
void lapic_power_on(struct lapic *lapic);
/* Effect of INIT: everything but the ID and IA32_APIC_BASE (SDM 3, "Local APIC State After It Receives an
 * INIT"). */
void lapic_init_reset(struct lapic *lapic);

/* Highest vector in the IRR above the PPR, or LAPIC_NONE. Reads atomics only; one load when nothing is
 * pending. */
int lapic_pending(struct lapic *lapic);
/* False only if the IRR is empty. */
bool lapic_requested(struct lapic *lapic);
/* Take that vector into service (IRR -> ISR) and return it, or LAPIC_NONE. */
int lapic_acknowledge(struct lapic *lapic);
/* An external interrupt of the 8259s waits and this LAPIC lets it through to its CPU. */
bool lapic_accepts_extint(struct lapic *lapic);
/* Both in order: vector of the interrupt to deliver now (INTA cycle for ExtINT), or LAPIC_NONE. */
int lapic_interrupt_take(struct lapic *lapic);
/* True if lapic_interrupt_take() would return a vector. */
bool lapic_interrupt_waits(struct lapic *lapic);
/* Write of the EOI register. */
void lapic_eoi(struct lapic *lapic);
/* True if the EOI of what was last acknowledged may be left to a paravirtual flag: one edge-triggered
 * interrupt is in service and none waits. */
bool lapic_pv_eoi_candidate(struct lapic *lapic);

/* CR8: bits 7:4 of the TPR. */
unsigned lapic_cr8_get(struct lapic *lapic);
void lapic_cr8_set(struct lapic *lapic, unsigned cr8);

/* IA32_APIC_BASE. Writing returns -EINVAL where the processor raises #GP(0). */
uint64_t lapic_base_get(struct lapic *lapic);
MUST_CHECK int lapic_base_set(struct lapic *lapic, uint64_t value);
/* Guest-physical address of the register page, or LAPIC_NOT_MAPPED (disabled, or x2APIC mode). */
uint64_t lapic_mmio_base(struct lapic *lapic);
bool lapic_enabled(struct lapic *lapic); /* globally: CPUID.01H:EDX.APIC */
uint32_t lapic_id(struct lapic *lapic);  /* as its register now says */

/* xAPIC registers; offset into the page. */
uint64_t lapic_mmio_read(struct lapic *lapic, uint64_t offset, unsigned size);
void lapic_mmio_write(struct lapic *lapic, uint64_t offset, unsigned size, uint64_t value);
/* MSRs 0x800 to 0x8FF. -EINVAL where the processor raises #GP(0). */
MUST_CHECK int lapic_msr_read(struct lapic *lapic, uint32_t msr, uint64_t *value);
MUST_CHECK int lapic_msr_write(struct lapic *lapic, uint32_t msr, uint64_t value);
/* IA32_TSC_DEADLINE. */
uint64_t lapic_tsc_deadline_get(struct lapic *lapic);
void lapic_tsc_deadline_set(struct lapic *lapic, uint64_t deadline);

/* Pins LINT0 (0) and LINT1 (1). Any thread. */
void lapic_lint_set(struct lapic *lapic, unsigned pin, bool level);
/* A local source fires: LAPIC_LVT_PERF (which masks itself), LAPIC_LVT_THERMAL. */
void lapic_local_interrupt(struct lapic *lapic, enum lapic_lvt source);

/* An interrupt message, as an IOAPIC sends it. destination is an 8-bit xAPIC or a 32-bit
 * x2APIC one. Returns the number of LAPICs that took it. Any thread. */
unsigned lapic_set_deliver(struct lapic_set *set, uint32_t destination, bool logical,
                           enum lapic_delivery mode, uint8_t vector, bool level_triggered);
/* A write to 0xFEExxxxx. Any thread. */
void lapic_set_msi(struct lapic_set *set, uint64_t address, uint32_t data);

#endif
