/*
 * KVM's paravirtual interface: clocks, steal time, PV EOI. Source: Linux, Documentation/virt/kvm/x86/msr.rst
 * and cpuid.rst.
 */
#include "apic.h"

#include "runtime.h"

#define MSR_WALL_CLOCK 0x4b564d00
#define MSR_SYSTEM_TIME 0x4b564d01
#define MSR_ASYNC_PF 0x4b564d02
#define MSR_STEAL_TIME 0x4b564d03
#define MSR_PV_EOI 0x4b564d04
#define OLD_MSR_WALL_CLOCK 0x11
#define OLD_MSR_SYSTEM_TIME 0x12
#define ENABLE 1ul

#define VECTOR_A 0x51
#define VECTOR_B 0x61

struct clock {
    uint32_t version, pad0;
    uint64_t tsc, system_time;
    uint32_t multiplier;
    int8_t shift;
    uint8_t flags, pad[2];
};

struct wall_clock {
    uint32_t version, seconds, nanoseconds;
};

struct steal {
    uint64_t steal;
    uint32_t version, flags;
    uint8_t preempted, pad8[3];
    uint32_t pad[11];
};

static unsigned write_vector(uint32_t msr, uint64_t value) {
    return TRY("wrmsr", : : "c"(msr), "a"((uint32_t)value), "d"((uint32_t)(value >> 32)) : "memory");
}

static void check_leaves(void) {
    struct cpuid signature = cpuid(0x40000000, 0), features = cpuid(0x40000001, 0);
    check(cpuid(1, 0).c >> 31, 1, "CPUID says that there is a hypervisor");
    check(signature.b == 0x4b4d564b && signature.c == 0x564b4d56 && signature.d == 0x4d, true,
          "its signature");
    check(signature.a >= 0x40000001, true, "its highest leaf");
    check(features.a & BIT(0), BIT(0), "it has a clock by the old registers");
    check(features.a & BIT(3), BIT(3), "it has a clock by the new registers");
    check(features.a & BIT(4), BIT(4), "it has asynchronous page faults");
    check(features.a & BIT(5), BIT(5), "it has steal time");
    check(features.a & BIT(6), BIT(6), "it has PV EOI");
    check(features.a & BIT(11), BIT(11), "it has a call that sends interrupts");
    check(features.a & BIT(24), BIT(24), "its clock is stable");
}

static uint64_t clock_ns(volatile struct clock *clock) {
    for (;;) {
        uint32_t version = clock->version;
        uint64_t ticks = read_tsc() - clock->tsc;
        ticks = clock->shift < 0 ? ticks >> -clock->shift : ticks << clock->shift;
        uint64_t ns = clock->system_time + (uint64_t)((unsigned __int128)ticks * clock->multiplier >> 32);
        if (!(version & 1) && version == clock->version)
            return ns;
    }
}

static void check_clock(uint32_t system_time, uint32_t wall_clock, const char *name) {
    volatile struct clock *clock = page_alloc();
    volatile struct wall_clock *wall = (void *)((uint8_t *)clock + 256);
    check(write_vector(system_time, (uint64_t)clock | 2), VECTOR_GP, "%s: a reserved bit", name);
    write_msr(system_time, (uint64_t)clock | ENABLE);
    check(read_msr(system_time), (uint64_t)clock | ENABLE, "%s: the register is read back", name);
    check(clock->version != 0 && !(clock->version & 1), true, "%s: the version is even", name);
    check(clock->flags & 1, 1, "%s: the time is stable", name);
    uint64_t before = clock_ns(clock);
    delay_us(20000);
    uint64_t passed = clock_ns(clock) - before;
    check(passed >= 19000000, true, "%s: 20 ms of the PIT are not less by the clock", name);
    write_msr(wall_clock, (uint64_t)wall);
    check(wall->version != 0 && !(wall->version & 1), true, "%s: the wall clock's version is even", name);
    check(wall->seconds > 1600000000 && wall->nanoseconds < 1000000000, true, "%s: the wall clock", name);
    uint32_t version = clock->version;
    write_msr(system_time, 0);
    write_msr(MSR_TSC, read_tsc());
    check(clock->version, version, "%s: a clock that is off is not written", name);
}

static void check_steal(void) {
    volatile struct steal *steal = page_alloc();
    check(write_vector(MSR_STEAL_TIME, (uint64_t)steal | 2), VECTOR_GP, "steal time: a reserved bit");
    check(write_vector(MSR_STEAL_TIME, (uint64_t)steal | 0x20), VECTOR_GP,
          "steal time: 64 bytes are aligned");
    write_msr(MSR_STEAL_TIME, (uint64_t)steal | ENABLE);
    check(read_msr(MSR_STEAL_TIME), (uint64_t)steal | ENABLE, "steal time: the register is read back");
    for (unsigned i = 0; i < 20; i++) {
        apic_ipi(0, ICR_SELF | ICR_ASSERT | SPURIOUS_VECTOR);
        interrupts_enable();
        delay_us(1000);
        interrupts_disable();
    }
    check(steal->version & 1, 0, "steal time: the version is even");
    check(steal->flags | steal->preempted, 0, "steal time: no flags");
    write_msr(MSR_STEAL_TIME, 0);
}

static volatile uint32_t *flag;
static volatile unsigned taken, flagged, nested_flag;
static volatile bool nest;

/* As a guest of KVM ends an interrupt. */
static void end_interrupt(void) {
    uint8_t was_set;
    asm volatile("btrl $0, %1\n\tsetc %0" : "=q"(was_set), "+m"(*flag) : : "cc");
    if (was_set)
        flagged++;
    else
        apic_eoi();
}

static void handler(struct context *frame) {
    taken++;
    if (nest && frame->vector == VECTOR_A) {
        nest = false;
        apic_ipi(0, ICR_SELF | ICR_ASSERT | (VECTOR_A + 1)); /* waits for this one's end */
        asm volatile("nop");
        nested_flag = *flag & 1;
    }
    end_interrupt();
}

static void handler_plain(struct context *frame) {
    (void)frame;
    taken++;
    nested_flag = *flag & 1;
    apic_eoi();
    flagged += *flag & 1;
}

static void window(void) {
    asm volatile("sti\n\tnop\n\tnop\n\tnop\n\tcli" : : : "memory");
}

static bool in_service(void) {
    for (unsigned i = 0; i < 8; i++)
        if (apic_read(APIC_ISR + 16 * i))
            return true;
    return false;
}

static void expect(unsigned want_taken, unsigned want_flagged, const char *name) {
    check(taken, want_taken, "%s: interrupts", name);
    check(flagged, want_flagged, "%s: ended by the flag", name);
    check(in_service(), false, "%s: nothing is left in service", name);
    check(*flag & 1, 0, "%s: the flag is clear", name);
    taken = flagged = 0;
}

static void check_pv_eoi(const char *mode) {
    flag = page_alloc();
    trap_handle(VECTOR_A, handler);
    trap_handle(VECTOR_A + 1, handler);
    trap_handle(VECTOR_B, handler);
    check(write_vector(MSR_PV_EOI, (uint64_t)flag | 2), VECTOR_GP, "%s: PV EOI: a reserved bit", mode);
    apic_ipi(0, ICR_SELF | ICR_ASSERT | VECTOR_A);
    window();
    expect(1, 0, "PV EOI that is off");
    write_msr(MSR_PV_EOI, (uint64_t)flag | ENABLE);
    check(read_msr(MSR_PV_EOI), (uint64_t)flag | ENABLE, "%s: PV EOI: the register is read back", mode);
    apic_ipi(0, ICR_SELF | ICR_ASSERT | VECTOR_A);
    window();
    expect(1, 1, "one interrupt");
    apic_ipi(0, ICR_SELF | ICR_ASSERT | VECTOR_A);
    apic_ipi(0, ICR_SELF | ICR_ASSERT | VECTOR_B);
    window();
    expect(2, 1, "two interrupts, of which one waits for the other");
    nest = true;
    apic_ipi(0, ICR_SELF | ICR_ASSERT | VECTOR_A);
    window();
    check(nested_flag, 0, "%s: PV EOI: the flag goes when another interrupt waits", mode);
    expect(2, 1, "one interrupt, and another meanwhile");
    trap_handle(VECTOR_A, handler_plain);
    apic_ipi(0, ICR_SELF | ICR_ASSERT | VECTOR_A);
    window();
    check(nested_flag, 1, "%s: PV EOI: the flag is there for who ignores it", mode);
    expect(1, 0, "a write to the EOI register all the same");
    /* Many in a row: each is delivered, though no register of the APIC is touched between them. */
    trap_handle(VECTOR_A, handler);
    apic_write(APIC_TIMER_DIVIDE, 0xb);
    apic_write(APIC_LVT_TIMER, VECTOR_A | LVT_PERIODIC);
    apic_write(APIC_TIMER_INITIAL, 500000);
    interrupts_enable();
    for (unsigned i = 0; i < 2000 && taken < 20; i++)
        delay_us(1000);
    interrupts_disable();
    apic_write(APIC_TIMER_INITIAL, 0);
    apic_write(APIC_LVT_TIMER, LVT_MASKED);
    window();
    check(taken >= 20, true, "%s: PV EOI: a periodic timer goes on", mode);
    check(flagged != 0, true, "%s: PV EOI: most of its interrupts are ended by the flag", mode);
    taken = flagged = 0;
    write_msr(MSR_PV_EOI, 0);
}

/* A guest may ask for them; none come, since it is never shown that a page is away. */
static void check_async_faults(void) {
    static volatile uint32_t reason[16] __attribute__((aligned(64)));
    check(write_vector(MSR_ASYNC_PF, (uint64_t)reason | 3), NO_TRAP, "asynchronous page faults: on");
    check(read_msr(MSR_ASYNC_PF), (uint64_t)reason | 3,
          "asynchronous page faults: the register is read back");
    check(write_vector(MSR_ASYNC_PF, (uint64_t)reason | 0x10), VECTOR_GP,
          "asynchronous page faults: a reserved bit");
    check(write_vector(MSR_ASYNC_PF, (uint64_t)reason | 9), VECTOR_GP,
          "asynchronous page faults: not by interrupts");
    *(volatile uint8_t *)page_alloc() = 1;
    check(reason[0], 0, "asynchronous page faults: none");
    check(write_vector(MSR_ASYNC_PF, 0), NO_TRAP, "asynchronous page faults: off");
}

/* The call that sends an interrupt to the processors of two sets of bits, from an APIC ID on. */
static long send(uint64_t low, uint64_t high, uint64_t first, uint64_t icr) {
    long result;
    asm volatile("vmcall" : "=a"(result) : "a"(10ul), "b"(low), "c"(high), "d"(first), "S"(icr) : "memory");
    return result;
}

static void check_send(const char *mode) {
    trap_handle(VECTOR_A, handler_plain);
    taken = flagged = 0;
    check((uint64_t)send(1, 0, 0, VECTOR_A), 1, "%s: interrupts by a call: its result", mode);
    window();
    check(taken, 1, "%s: interrupts by a call: it comes", mode);
    check((uint64_t)send(~2ul, ~0ul, 0, VECTOR_A), 1, "%s: interrupts by a call: IDs that nobody has", mode);
    window();
    check(taken, 2, "%s: interrupts by a call: one of many", mode);
    check((uint64_t)send(0xffffffff, 0, 0xffffffff, 0), 0, "%s: interrupts by a call: to nobody", mode);
    check((uint64_t)send(1, 0, 0, 0x800 | VECTOR_A), -22ul, "%s: interrupts by a call: not logically", mode);
    check((uint64_t)send(1, 0, 0, 0x40000 | VECTOR_A), -22ul, "%s: interrupts by a call: no shorthands",
          mode);
    window();
    check(taken, 2, "%s: interrupts by a call: no more come", mode);
    taken = flagged = 0;
}

void kernel_main(void) {
    apic_enable();
    check_leaves();
    check_clock(MSR_SYSTEM_TIME, MSR_WALL_CLOCK, "clock");
    check_clock(OLD_MSR_SYSTEM_TIME, OLD_MSR_WALL_CLOCK, "clock by the old registers");
    trap_handle(SPURIOUS_VECTOR, handler_plain);
    flag = page_alloc();
    check_steal();
    check_async_faults();
    taken = flagged = 0;
    check_pv_eoi("xAPIC");
    check_send("xAPIC");
    write_msr(MSR_APIC_BASE, read_msr(MSR_APIC_BASE) | APIC_BASE_X2);
    apic_enable();
    check_pv_eoi("x2APIC");
    check_send("x2APIC");
    checks_finish("kvm64");
}
