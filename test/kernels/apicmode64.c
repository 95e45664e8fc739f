/*
 * The local APIC's modes and what a timer, an NMI and an interrupt to oneself are allowed to take.
 * Source: Intel SDM volume 3, chapter 11 (states of the APIC, timer, NMI), 6.7.1; volume 2, CPUID.
 */
#include "apic.h"

#include "runtime.h"

#define VECTOR_A 0x51
#define VECTOR_TIMER 0x71
#define APIC_MMIO 0xfee00000ul
#define OTHER_BASE 0xfed40000ul
#define BASE_BSP 0x100ul

static volatile unsigned taken, nmis;

static void handler_count(struct context *frame) {
    (void)frame;
    taken++;
    apic_eoi();
}

static uint32_t mmio(unsigned long base, unsigned reg) {
    return *(volatile uint32_t *)(base + reg);
}

static unsigned long read_cr8(void) {
    unsigned long value;
    asm volatile("mov %%cr8, %0" : "=r"(value));
    return value;
}

static void write_cr8(unsigned long value) {
    asm volatile("mov %0, %%cr8" : : "r"(value) : "memory");
}

static unsigned base_try(uint64_t value) {
    return TRY("wrmsr",
               :
               : "c"(MSR_APIC_BASE), "a"((uint32_t)value), "d"((uint32_t)(value >> 32))
               : "memory");
}

static void check_disabled(const char *name) {
    check(mmio(APIC_MMIO, APIC_VERSION), 0xffffffff, "%s: no register page: version", name);
    check(mmio(APIC_MMIO, APIC_TPR), 0xffffffff, "%s: no register page: TPR", name);
    unsigned long old = read_cr8();
    write_cr8(old ^ 0xf);
    check(read_cr8(), old ^ 0xf, "%s: cr8 is there", name);
    write_cr8(old);
}

static void check_states(void) {
    uint64_t base = read_msr(MSR_APIC_BASE), bare = base & ~(uint64_t)(APIC_BASE_ENABLE | APIC_BASE_X2);
    uint32_t version = apic_read(APIC_VERSION);
    check(base, APIC_MMIO | BASE_BSP | APIC_BASE_ENABLE, "IA32_APIC_BASE after a reset");
    check(version & 0xff, 0x14, "version");
    write_msr(MSR_APIC_BASE, bare);
    check(cpuid(1, 0).d >> 9 & 1, 0, "disabled: CPUID has no APIC");
    check_disabled("disabled");
    check(base_try(bare | APIC_BASE_X2), VECTOR_GP, "disabled to x2APIC without enable");
    check(base_try(bare | APIC_BASE_X2 | APIC_BASE_ENABLE), VECTOR_GP, "disabled to x2APIC");
    check(base_try(base), NO_TRAP, "disabled to xAPIC");
    check(cpuid(1, 0).d >> 9 & 1, 1, "xAPIC: CPUID has an APIC");
    check(mmio(APIC_MMIO, APIC_VERSION), version, "xAPIC: version");
    check(mmio(APIC_MMIO, APIC_SVR) & 0x100, 0, "xAPIC: software-disabled after it was disabled");
    write_cr8(3);
    check(mmio(APIC_MMIO, APIC_TPR), 0x30, "xAPIC: cr8 is the TPR");
    write_cr8(0);
    check(base_try(bare | APIC_BASE_X2), VECTOR_GP, "xAPIC to x2APIC without enable");
    check(base_try(base | 1), VECTOR_GP, "a reserved low bit");
    check(base_try(base | 1ull << (cpuid(0x80000008, 0).a & 0xff)), VECTOR_GP,
          "an address bit that there is not");
    write_msr(MSR_APIC_BASE, OTHER_BASE | BASE_BSP | APIC_BASE_ENABLE);
    check(mmio(OTHER_BASE, APIC_VERSION), version, "relocated: version");
    check(mmio(APIC_MMIO, APIC_VERSION), 0xffffffff, "relocated: nothing at the old place");
    write_msr(MSR_APIC_BASE, base);

    uint32_t initial = cpuid(1, 0).b >> 24;
    check(apic_id(), initial, "xAPIC: ID is CPUID's");
    check(base_try(base | APIC_BASE_X2), NO_TRAP, "xAPIC to x2APIC");
    check_disabled("x2APIC");
    check(apic_id(), initial, "x2APIC: ID is CPUID's");
    check(cpuid(0xb, 0).d, initial, "x2APIC: ID of leaf 0xb");
    check(TRY("wrmsr", : : "c"(0x802), "a"(1), "d"(0)), VECTOR_GP, "x2APIC: the ID cannot be written");
    check(base_try(base), VECTOR_GP, "x2APIC to xAPIC");
    check(base_try(bare | APIC_BASE_X2), VECTOR_GP, "x2APIC to x2APIC without enable");
    check(base_try(bare), NO_TRAP, "x2APIC to disabled");
    check(base_try(base), NO_TRAP, "and to xAPIC");
    apic_enable();
}

/* What was asked for with interrupts enabled has come when the next instruction but one looks. */
static void check_promptness(void) {
    unsigned seen;
    trap_handle(VECTOR_A, handler_count);
    trap_handle(VECTOR_TIMER, handler_count);
    taken = 0;
    interrupts_enable();
    apic_ipi(0, ICR_SELF | ICR_ASSERT | VECTOR_A);
    asm volatile("nop\n\tmovl %1, %0" : "=r"(seen) : "m"(taken));
    check(seen, 1, "an IPI to oneself comes at once");
    if (cpuid(1, 0).c & BIT(24)) {
        apic_write(APIC_LVT_TIMER, VECTOR_TIMER | LVT_DEADLINE);
        asm volatile("mfence");
        taken = 0;
        uint64_t now = read_tsc();
        asm volatile("wrmsr\n\tnop\n\tmovl %1, %0"
                     : "=r"(seen)
                     : "m"(taken), "c"(MSR_TSC_DEADLINE), "a"((uint32_t)now), "d"((uint32_t)(now >> 32)));
        check(seen, 1, "a deadline that is past comes at once");
        check(read_msr(MSR_TSC_DEADLINE), 0, "and is disarmed");
    }
    write_msr(MSR_APIC_BASE, read_msr(MSR_APIC_BASE) | APIC_BASE_X2);
    apic_enable();
    taken = 0;
    asm volatile("wrmsr\n\tnop\n\tmovl %1, %0" : "=r"(seen) : "m"(taken), "c"(0x83f), "a"(VECTOR_A), "d"(0));
    check(seen, 1, "x2APIC: the self-IPI register's interrupt comes at once");
    interrupts_disable();
    taken = 0;
    write_msr(0x83f, VECTOR_A);
    asm volatile("sti\n\tnop\n\tmovl %1, %0\n\tcli" : "=r"(seen) : "m"(taken));
    check(seen, 1, "a waiting interrupt comes behind sti's shadow");
    taken = 0;
    write_msr(0x83f, VECTOR_A);
    asm volatile("pushf\n\torl $0x200, (%%rsp)\n\tpopf\n\tmovl %1, %0\n\tcli" : "=r"(seen) : "m"(taken));
    check(seen, 1, "a waiting interrupt comes right after popf");
    taken = 0;
    apic_write(APIC_TPR, 0x60);
    write_msr(0x83f, VECTOR_A);
    interrupts_enable();
    asm volatile("mov %2, %%cr8\n\tnop\n\tmovl %1, %0" : "=r"(seen) : "m"(taken), "r"(0ul));
    interrupts_disable();
    check(seen, 1, "a waiting interrupt comes when cr8 lets it");
}

static void handler_nmi(struct context *frame) {
    (void)frame;
    if (++nmis == 1)
        for (unsigned i = 0; i < 10; i++)
            apic_ipi(apic_id(), ICR_NMI | ICR_ASSERT);
}

/* One NMI is in service, one waits; the rest is lost. */
static void check_pending_nmis(void) {
    struct tally tally;
    trap_handle(VECTOR_NMI, handler_nmi);
    tally_begin(&tally, "NMIs that come during an NMI are one");
    for (unsigned i = 0; i < 200; i++) {
        nmis = 0;
        apic_ipi(apic_id(), ICR_NMI | ICR_ASSERT);
        asm volatile("nop\n\tnop");
        tally_case(&tally, nmis, 2, "round %u", i);
    }
    tally_end(&tally);
}

static void timer_mode(uint32_t mode) {
    apic_write(APIC_LVT_TIMER, VECTOR_TIMER | LVT_MASKED | mode);
}

static uint32_t count_below(uint32_t limit) {
    uint32_t count;
    while ((count = apic_read(APIC_TIMER_CURRENT)) > limit)
        cpu_pause();
    return count;
}

/* A change between one-shot and periodic leaves the count running (SDM 3, 11.5.4). */
static void check_timer_modes(void) {
    const uint32_t initial = 200000000; /* ns */
    apic_write(APIC_TIMER_DIVIDE, 0xb);
    timer_mode(0);
    apic_write(APIC_TIMER_INITIAL, initial);
    timer_mode(LVT_PERIODIC);
    check(apic_read(APIC_TIMER_INITIAL), initial, "the initial count outlives a change of mode");
    timer_mode(0);
    apic_write(APIC_TIMER_INITIAL, initial);
    check(apic_read(APIC_TIMER_CURRENT) != 0, true, "one-shot: counts");
    count_below(0);
    check(apic_read(APIC_TIMER_CURRENT), 0, "one-shot: stays at 0");
    apic_write(APIC_TIMER_INITIAL, initial);
    count_below(initial / 2);
    timer_mode(LVT_PERIODIC);
    uint32_t count = apic_read(APIC_TIMER_CURRENT);
    check(count != 0 && count < initial / 2, true, "to periodic: the count goes on");
    for (unsigned i = 0; i < 4000 && apic_read(APIC_TIMER_CURRENT) < initial / 2; i++)
        delay_us(100);
    check(apic_read(APIC_TIMER_CURRENT) > initial / 2, true, "periodic: starts again");
    count_below(initial / 2);
    timer_mode(0);
    check(apic_read(APIC_TIMER_CURRENT) < initial / 2, true, "to one-shot: the count goes on");
    count_below(0);
    check(apic_read(APIC_TIMER_CURRENT), 0, "one-shot again: stays at 0");
    timer_mode(LVT_PERIODIC);
    check(apic_read(APIC_TIMER_CURRENT), 0, "to periodic at 0: stays at 0");
    apic_write(APIC_TIMER_INITIAL, 0);
}

void kernel_main(void) {
    check_states();
    check_promptness();
    check_pending_nmis();
    check_timer_modes();
    checks_finish("apicmode64");
}
