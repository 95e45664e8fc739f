/* LAPIC: registers in both modes, priorities, IPIs of every kind, the timer, LINT pins. */
#include <string.h>

#include "devices/lapic.h"
#include "devices_check.h"

#define CPUS 4
#define TSC_HZ 2000000000ull

enum {
    ID = 0x20,
    VERSION = 0x30,
    TPR = 0x80,
    PPR = 0xa0,
    EOI = 0xb0,
    LDR = 0xd0,
    DFR = 0xe0,
    SVR = 0xf0,
    ISR = 0x100,
    TMR = 0x180,
    IRR = 0x200,
    ESR = 0x280,
    ICR = 0x300,
    ICR_HIGH = 0x310,
    LVT_TIMER = 0x320,
    LVT_LINT0 = 0x350,
    LVT_LINT1 = 0x360,
    LVT_ERROR = 0x370,
    TIMER_INITIAL = 0x380,
    TIMER_CURRENT = 0x390,
    TIMER_DIVIDE = 0x3e0,
};

struct cpu {
    unsigned kicks, nmis, inits, sipis;
    uint8_t sipi_vector;
};

static struct cpu cpus[CPUS];
static unsigned broadcasts;
static uint8_t broadcast_vector;

static void cpu_kick(void *context) {
    ((struct cpu *)context)->kicks++;
}
static void cpu_nmi(void *context) {
    ((struct cpu *)context)->nmis++;
}
static void cpu_init(void *context) {
    ((struct cpu *)context)->inits++;
}
static void cpu_sipi(void *context, uint8_t vector) {
    ((struct cpu *)context)->sipis++;
    ((struct cpu *)context)->sipi_vector = vector;
}
static const struct lapic_cpu_ops cpu_ops = {cpu_kick, cpu_nmi, cpu_init, cpu_sipi};

static void eoi_broadcast(void *context, uint8_t vector) {
    (void)context;
    broadcasts++;
    broadcast_vector = vector;
}
static uint8_t extint(void *context) {
    (void)context;
    return 0x77;
}

static struct timer_queue *queue;
static struct lapic_set *set;

static struct lapic *cpu(unsigned index) {
    return lapic_set_get(set, index);
}
static uint32_t rd(unsigned index, unsigned offset) {
    return (uint32_t)lapic_mmio_read(cpu(index), offset, 4);
}
static void wr(unsigned index, unsigned offset, uint32_t value) {
    lapic_mmio_write(cpu(index), offset, 4, value);
}

static void setup(void) {
    struct lapic_set_config config = {.count = CPUS,
                                      .timers = queue,
                                      .tsc_hz = TSC_HZ,
                                      .physical_bits = 40,
                                      .eoi_broadcast = eoi_broadcast,
                                      .extint_acknowledge = extint};
    set = lapic_set_create(&config);
    memset(cpus, 0, sizeof cpus);
    for (unsigned i = 0; i < CPUS; i++) {
        lapic_connect(cpu(i), &cpu_ops, &cpus[i]);
        wr(i, SVR, 0x1ff);
    }
}

static void test_reset_state(void) {
    setup();
    lapic_power_on(cpu(1));
    CHECK_EQUAL(rd(1, ID), 1u << 24);
    CHECK_EQUAL(rd(1, VERSION), 0x50014);
    CHECK_EQUAL(rd(1, SVR), 0xff);
    CHECK_EQUAL(rd(1, DFR), UINT32_MAX);
    CHECK_EQUAL(rd(1, LDR), 0);
    CHECK_EQUAL(rd(1, LVT_TIMER), 0x10000);
    CHECK_EQUAL(rd(1, LVT_LINT0), 0x10000);
    CHECK_EQUAL(lapic_base_get(cpu(1)), 0xfee00800);
    CHECK_EQUAL(lapic_base_get(cpu(0)), 0xfee00900);
    /* Disabled by software: LVTs stay masked, fixed interrupts are not taken. */
    wr(1, LVT_TIMER, 0x30);
    CHECK_EQUAL(rd(1, LVT_TIMER), 0x10030);
    CHECK_EQUAL(lapic_set_deliver(set, 1, false, LAPIC_FIXED, 0x40, false), 0);
    CHECK_EQUAL(lapic_set_deliver(set, 1, false, LAPIC_NMI, 0, false), 1);
    CHECK_EQUAL(cpus[1].nmis, 1);
    lapic_set_destroy(set);
}

static void test_priorities(void) {
    setup();
    CHECK_EQUAL(lapic_pending(cpu(0)), -1);
    lapic_set_deliver(set, 0, false, LAPIC_FIXED, 0x31, false);
    lapic_set_deliver(set, 0, false, LAPIC_FIXED, 0x52, true);
    CHECK_EQUAL(rd(0, IRR + 0x10), 1u << 0x11);
    CHECK_EQUAL(rd(0, IRR + 0x20), 1u << 0x12);
    CHECK_EQUAL(rd(0, TMR + 0x20), 1u << 0x12);
    wr(0, TPR, 0x50);
    CHECK_EQUAL(lapic_pending(cpu(0)), -1);
    unsigned kicks = cpus[0].kicks;
    lapic_cr8_set(cpu(0), 4);
    CHECK(cpus[0].kicks > kicks);
    CHECK_EQUAL(rd(0, TPR), 0x40);
    CHECK_EQUAL(lapic_acknowledge(cpu(0)), 0x52);
    CHECK(!lapic_pv_eoi_candidate(cpu(0)));
    CHECK_EQUAL(rd(0, PPR), 0x50);
    CHECK_EQUAL(rd(0, ISR + 0x20), 1u << 0x12);
    CHECK_EQUAL(lapic_acknowledge(cpu(0)), -1);
    wr(0, TPR, 0);
    CHECK_EQUAL(lapic_pending(cpu(0)), -1);
    broadcasts = 0;
    wr(0, EOI, 0);
    CHECK_EQUAL(broadcasts, 1);
    CHECK_EQUAL(broadcast_vector, 0x52);
    CHECK_EQUAL(lapic_acknowledge(cpu(0)), 0x31);
    CHECK(lapic_pv_eoi_candidate(cpu(0)));
    /* A higher one nests. */
    lapic_set_deliver(set, 0, false, LAPIC_FIXED, 0x80, false);
    CHECK(!lapic_pv_eoi_candidate(cpu(0)));
    CHECK_EQUAL(lapic_acknowledge(cpu(0)), 0x80);
    wr(0, EOI, 0);
    CHECK_EQUAL(rd(0, ISR + 0x10), 1u << 0x11);
    wr(0, EOI, 0);
    wr(0, EOI, 0);
    CHECK_EQUAL(broadcasts, 1);
    CHECK_EQUAL(rd(0, PPR), 0);
    lapic_set_destroy(set);
}

static void ipi(unsigned from, uint32_t to, uint32_t icr) {
    wr(from, ICR_HIGH, to << 24);
    wr(from, ICR, icr);
}

static void test_ipis(void) {
    setup();
    ipi(0, 2, 0x4041); /* fixed, physical */
    CHECK_EQUAL(lapic_pending(cpu(2)), 0x41);
    CHECK_EQUAL(lapic_pending(cpu(1)), -1);
    ipi(0, 0xff, 0x4042); /* broadcast */
    for (unsigned i = 0; i < CPUS; i++)
        CHECK_EQUAL(lapic_acknowledge(cpu(i)), 0x42);
    ipi(1, 0, 0x44043);                     /* self */
    CHECK_EQUAL(lapic_pending(cpu(1)), -1); /* same class as what is in service */
    for (unsigned i = 0; i < CPUS; i++)
        wr(i, EOI, 0);
    CHECK_EQUAL(lapic_acknowledge(cpu(1)), 0x43);
    wr(1, EOI, 0);
    CHECK_EQUAL(lapic_acknowledge(cpu(2)), 0x41);
    wr(2, EOI, 0);
    ipi(3, 0, 0xc4400); /* NMI to all but self */
    CHECK_EQUAL(cpus[0].nmis + cpus[1].nmis + cpus[2].nmis, 3);
    CHECK_EQUAL(cpus[3].nmis, 0);
    ipi(0, 3, 0x4500);
    ipi(0, 3, 0x8500); /* level de-assert: nothing */
    ipi(0, 3, 0x4699);
    CHECK_EQUAL(cpus[3].inits, 1);
    CHECK_EQUAL(cpus[3].sipis, 1);
    CHECK_EQUAL(cpus[3].sipi_vector, 0x99);
    /* Logical, flat: CPUs 1 and 2. */
    for (unsigned i = 0; i < CPUS; i++)
        wr(i, LDR, 1u << (24 + i));
    ipi(0, 6, 0x4860);
    CHECK_EQUAL(lapic_pending(cpu(0)), -1);
    CHECK_EQUAL(lapic_acknowledge(cpu(1)), 0x60);
    CHECK_EQUAL(lapic_acknowledge(cpu(2)), 0x60);
    /* Lowest priority among all: not those in service. */
    unsigned taken = lapic_set_deliver(set, 0xf, true, LAPIC_LOWEST_PRIORITY, 0x61, false);
    CHECK_EQUAL(taken, 1);
    CHECK((lapic_pending(cpu(0)) == 0x61) != (lapic_pending(cpu(3)) == 0x61));
    /* Cluster model. */
    for (unsigned i = 0; i < CPUS; i++) {
        wr(i, DFR, 0x0fffffff);
        wr(i, LDR, (i / 2) << 28 | 1u << (24 + i % 2));
        lapic_acknowledge(cpu(i));
        wr(i, EOI, 0);
        wr(i, EOI, 0);
    }
    ipi(0, 0x12, 0x4870);
    CHECK_EQUAL(lapic_acknowledge(cpu(3)), 0x70);
    CHECK_EQUAL(lapic_pending(cpu(1)), -1);
    /* Illegal vectors are errors of the sender and of the receiver. */
    wr(0, LVT_ERROR, 0xe0);
    ipi(0, 1, 0x4005);
    wr(0, ESR, 0);
    CHECK_EQUAL(rd(0, ESR), 0x20);
    CHECK_EQUAL(lapic_acknowledge(cpu(0)), 0xe0);
    wr(0, EOI, 0);
    wr(0, ESR, 0);
    CHECK_EQUAL(rd(0, ESR), 0);
    lapic_set_deliver(set, 1, false, LAPIC_FIXED, 3, false);
    wr(1, ESR, 0);
    CHECK_EQUAL(rd(1, ESR), 0x40);
    /* A message-signalled interrupt. */
    lapic_set_msi(set, 0xfee00000 | 2 << 12, 0x4090);
    CHECK_EQUAL(lapic_acknowledge(cpu(2)), 0x90);
    /* A changed ID is found. */
    wr(2, ID, 9u << 24);
    ipi(0, 9, 0x40a0);
    CHECK_EQUAL(lapic_acknowledge(cpu(2)), 0xa0);
    lapic_set_destroy(set);
}

static void test_modes(void) {
    setup();
    uint64_t value;
    struct lapic *lapic = cpu(2);
    CHECK(lapic_msr_read(lapic, 0x802, &value) < 0);
    CHECK(lapic_base_set(lapic, 0xfee00000 | LAPIC_BASE_X2APIC) < 0);
    CHECK(lapic_base_set(lapic, 1ull << 40 | LAPIC_BASE_ENABLE) < 0);
    CHECK(lapic_base_set(lapic, LAPIC_DEFAULT_BASE | LAPIC_BASE_ENABLE | 1) < 0);
    CHECK_EQUAL(lapic_base_set(lapic, 0xfed40000 | LAPIC_BASE_ENABLE), 0);
    CHECK_EQUAL(lapic_mmio_base(lapic), 0xfed40000);
    CHECK_EQUAL(lapic_base_set(lapic, 0xfee00000 | LAPIC_BASE_ENABLE | LAPIC_BASE_X2APIC), 0);
    CHECK_EQUAL(lapic_mmio_base(lapic), LAPIC_NOT_MAPPED);
    CHECK_EQUAL(lapic_msr_read(lapic, 0x802, &value), 0);
    CHECK_EQUAL(value, 2);
    CHECK_EQUAL(lapic_msr_read(lapic, 0x80d, &value), 0);
    CHECK_EQUAL(value, 4);
    CHECK_EQUAL(lapic_msr_read(lapic, 0x80f, &value), 0);
    CHECK_EQUAL(value, 0x1ff);
    CHECK(lapic_msr_read(lapic, 0x80b, &value) < 0);
    CHECK(lapic_msr_read(lapic, 0x80e, &value) < 0);
    CHECK(lapic_msr_read(lapic, 0x831, &value) < 0);
    CHECK(lapic_msr_read(lapic, 0x83f, &value) < 0);
    CHECK(lapic_msr_read(lapic, 0x8ff, &value) < 0);
    CHECK(lapic_msr_write(lapic, 0x802, 1) < 0);
    CHECK(lapic_msr_write(lapic, 0x80b, 1) < 0);
    CHECK(lapic_msr_write(lapic, 0x808, 0x100) < 0);
    CHECK(lapic_msr_write(lapic, 0x832, 1u << 20) < 0);
    CHECK(lapic_msr_write(lapic, 0x83f, 0x100) < 0);
    CHECK_EQUAL(lapic_msr_write(lapic, 0x83f, 0x55), 0);
    CHECK_EQUAL(lapic_acknowledge(lapic), 0x55);
    CHECK_EQUAL(lapic_msr_write(lapic, 0x80b, 0), 0);
    CHECK_EQUAL(lapic_msr_write(lapic, 0x830, 3ull << 32 | 0x40b1), 0);
    CHECK_EQUAL(lapic_acknowledge(cpu(3)), 0xb1);
    CHECK_EQUAL(lapic_msr_read(lapic, 0x830, &value), 0);
    CHECK_EQUAL(value, 3ull << 32 | 0x40b1);
    /* Logical in x2APIC mode: cluster 0, bit 2. */
    lapic_set_deliver(set, 4, true, LAPIC_FIXED, 0xc0, false);
    CHECK_EQUAL(lapic_acknowledge(lapic), 0xc0);
    lapic_init_reset(lapic);
    CHECK(lapic_base_get(lapic) & LAPIC_BASE_X2APIC);
    CHECK_EQUAL(lapic_msr_read(lapic, 0x80d, &value), 0);
    CHECK_EQUAL(value, 4);
    CHECK(lapic_base_set(lapic, LAPIC_DEFAULT_BASE | LAPIC_BASE_ENABLE) < 0);
    CHECK_EQUAL(lapic_base_set(lapic, LAPIC_DEFAULT_BASE), 0);
    CHECK(!lapic_enabled(lapic));
    CHECK(lapic_base_set(lapic, LAPIC_DEFAULT_BASE | LAPIC_BASE_ENABLE | LAPIC_BASE_X2APIC) < 0);
    CHECK_EQUAL(lapic_base_set(lapic, LAPIC_DEFAULT_BASE | LAPIC_BASE_ENABLE), 0);
    CHECK_EQUAL(rd(2, SVR), 0xff);
    lapic_set_destroy(set);
}

static void test_timer(void) {
    setup();
    wr(0, TIMER_DIVIDE, 0xb); /* by 1 */
    wr(0, LVT_TIMER, 0xf0);
    wr(0, TIMER_INITIAL, 1000000);
    timer_queue_advance(queue, 400000);
    CHECK_EQUAL(rd(0, TIMER_CURRENT), 600000);
    CHECK_EQUAL(lapic_pending(cpu(0)), -1);
    timer_queue_advance(queue, 600000);
    CHECK_EQUAL(lapic_acknowledge(cpu(0)), 0xf0);
    wr(0, EOI, 0);
    CHECK_EQUAL(rd(0, TIMER_CURRENT), 0);
    timer_queue_advance(queue, 2000000);
    CHECK_EQUAL(lapic_pending(cpu(0)), -1);
    /* Periodic, divided by 16. */
    wr(0, TIMER_DIVIDE, 3);
    wr(0, LVT_TIMER, 0x200f1);
    wr(0, TIMER_INITIAL, 10000);
    for (unsigned i = 0; i < 5; i++) {
        timer_queue_advance(queue, 160000);
        CHECK_EQUAL(lapic_acknowledge(cpu(0)), 0xf1);
        wr(0, EOI, 0);
    }
    timer_queue_advance(queue, 16000);
    CHECK_EQUAL(rd(0, TIMER_CURRENT), 9000);
    wr(0, TIMER_DIVIDE, 0xb);
    CHECK_EQUAL(rd(0, TIMER_CURRENT), 9000);
    /* To one-shot: counts on to zero, then stops. */
    wr(0, LVT_TIMER, 0xf1);
    timer_queue_advance(queue, 100000);
    CHECK_EQUAL(lapic_acknowledge(cpu(0)), 0xf1);
    wr(0, EOI, 0);
    CHECK_EQUAL(rd(0, TIMER_CURRENT), 0);
    wr(0, LVT_TIMER, 0x200f1);
    CHECK_EQUAL(rd(0, TIMER_CURRENT), 0);
    /* TSC deadline. */
    wr(0, LVT_TIMER, 0x400f2);
    lapic_set_tsc_offset(cpu(0), -12345);
    uint64_t tsc = timer_scale(timer_now(queue), TSC_HZ, NS_PER_SECOND) - 12345;
    lapic_tsc_deadline_set(cpu(0), tsc + TSC_HZ / 1000);
    CHECK_EQUAL(lapic_tsc_deadline_get(cpu(0)), tsc + TSC_HZ / 1000);
    timer_queue_advance(queue, 999000);
    CHECK_EQUAL(lapic_pending(cpu(0)), -1);
    timer_queue_advance(queue, 1001);
    CHECK_EQUAL(lapic_acknowledge(cpu(0)), 0xf2);
    CHECK_EQUAL(lapic_tsc_deadline_get(cpu(0)), 0);
    wr(0, EOI, 0);
    lapic_tsc_deadline_set(cpu(0), 1);
    CHECK_EQUAL(lapic_acknowledge(cpu(0)), 0xf2);
    wr(0, EOI, 0);
    lapic_tsc_deadline_set(cpu(0), UINT64_MAX);
    lapic_tsc_deadline_set(cpu(0), 0);
    CHECK_EQUAL(lapic_tsc_deadline_get(cpu(0)), 0);
    /* The smallest period there is must not run away. */
    wr(0, LVT_TIMER, 0x200f3);
    wr(0, TIMER_INITIAL, 1);
    timer_queue_advance(queue, 10000000);
    CHECK_EQUAL(lapic_acknowledge(cpu(0)), 0xf3);
    lapic_set_destroy(set);
}

static void test_pins(void) {
    setup();
    wr(0, LVT_LINT0, 0x700);
    CHECK(!lapic_accepts_extint(cpu(0)));
    lapic_lint_set(cpu(0), 0, true);
    CHECK(lapic_accepts_extint(cpu(0)));
    CHECK_EQUAL(lapic_interrupt_take(cpu(0)), 0x77);
    wr(0, LVT_LINT0, 0x10700);
    CHECK(!lapic_accepts_extint(cpu(0)));
    lapic_lint_set(cpu(0), 0, false);
    wr(0, LVT_LINT0, 0x8066); /* fixed, level */
    lapic_lint_set(cpu(0), 0, true);
    CHECK_EQUAL(lapic_acknowledge(cpu(0)), 0x66);
    CHECK_EQUAL(rd(0, LVT_LINT0), 0xc066);
    wr(0, EOI, 0);
    CHECK_EQUAL(lapic_acknowledge(cpu(0)), 0x66);
    lapic_lint_set(cpu(0), 0, false);
    wr(0, EOI, 0);
    CHECK_EQUAL(lapic_pending(cpu(0)), -1);
    wr(0, LVT_LINT1, 0x400);
    lapic_lint_set(cpu(0), 1, true);
    lapic_lint_set(cpu(0), 1, true);
    CHECK_EQUAL(cpus[0].nmis, 1);
    /* Globally disabled, the pins are INTR and NMI. */
    CHECK_EQUAL(lapic_base_set(cpu(0), LAPIC_DEFAULT_BASE | LAPIC_BASE_BSP), 0);
    lapic_lint_set(cpu(0), 0, true);
    CHECK(lapic_accepts_extint(cpu(0)));
    lapic_set_destroy(set);
}

int main(void) {
    queue = timer_queue_create_manual();
    test_reset_state();
    test_priorities();
    test_ipis();
    test_modes();
    test_timer();
    test_pins();
    timer_queue_destroy(queue);
    return check_result();
}
