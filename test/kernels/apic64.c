/*
 * The local APIC on one CPU: priorities, interrupt shadows, the timer in its three modes, NMI, x2APIC.
 * Source: Intel SDM volume 3, chapter 11, 6.7 (NMI), 6.8 (masking).
 */
#include "apic.h"

#include "paging.h"
#include "runtime.h"

#define VECTOR_A 0x51
#define VECTOR_B 0x61
#define VECTOR_TIMER 0x71

static volatile unsigned counts[256];
static volatile unsigned order[16], orders;
static volatile unsigned long last_ip, last_in_service, last_flags;

static void handler_count(struct context *frame) {
    unsigned vector = (unsigned)frame->vector;
    counts[vector]++;
    if (orders < ARRAY_SIZE(order))
        order[orders++] = vector;
    last_ip = frame->ip;
    last_flags = frame->flags;
    last_in_service = apic_bit(APIC_ISR, vector);
    apic_eoi();
}

static void counts_clear(void) {
    for (unsigned i = 0; i < 256; i++)
        counts[i] = 0;
    orders = 0;
}

/* Takes whatever is pending now. */
static void interrupts_window(void) {
    asm volatile("sti\n\tnop\n\tnop\n\tcli" : : : "memory");
}

static void check_ipis(void) {
    unsigned self = apic_id();
    const char *mode = apic_is_x2() ? "x2APIC" : "xAPIC";
    struct {
        const char *name;
        uint32_t destination, low;
        bool xapic_only;
    } ways[] = {
        {"self shorthand", 0, ICR_SELF, false},
        {"all shorthand", 0, ICR_ALL, false},
        {"physical", self, 0, false},
        {"physical broadcast", apic_is_x2() ? 0xffffffff : 0xff, 0, false},
        {"logical flat", 4, ICR_LOGICAL, true},
        {"logical flat, several", 0xc, ICR_LOGICAL, true},
        {"lowest priority", 4, ICR_LOGICAL | ICR_LOWEST, true},
    };
    if (!apic_is_x2()) {
        apic_write(APIC_DFR, 0xffffffff);
        apic_write(APIC_LDR, 4u << 24);
        check(apic_read(APIC_LDR), 4u << 24, "xAPIC: LDR keeps its byte");
    }
    for (unsigned i = 0; i < ARRAY_SIZE(ways); i++) {
        if (ways[i].xapic_only && apic_is_x2())
            continue;
        counts_clear();
        apic_ipi(ways[i].destination, ways[i].low | ICR_ASSERT | VECTOR_A);
        check(apic_bit(APIC_IRR, VECTOR_A), true, "%s: %s IPI waits in the IRR", mode, ways[i].name);
        interrupts_window();
        check(counts[VECTOR_A], 1, "%s: %s IPI", mode, ways[i].name);
        check(last_in_service, true, "%s: %s IPI is in service", mode, ways[i].name);
        check(apic_bit(APIC_IRR, VECTOR_A) || apic_bit(APIC_ISR, VECTOR_A), false, "%s: %s IPI is done", mode,
              ways[i].name);
    }
    counts_clear();
    apic_ipi(0, ICR_OTHERS | ICR_ASSERT | VECTOR_A);
    interrupts_window();
    check(counts[VECTOR_A], 0, "%s: others shorthand leaves out the sender", mode);
    if (!apic_is_x2()) {
        apic_ipi(8, ICR_LOGICAL | ICR_ASSERT | VECTOR_A);
        interrupts_window();
        check(counts[VECTOR_A], 0, "xAPIC: logical destination of another");
        apic_write(APIC_DFR, 0x0fffffff);
        apic_write(APIC_LDR, 0x21u << 24); /* cluster 2, member 0 */
        apic_ipi(0x23, ICR_LOGICAL | ICR_ASSERT | VECTOR_A);
        interrupts_window();
        check(counts[VECTOR_A], 1, "xAPIC: logical cluster");
        apic_ipi(0x13, ICR_LOGICAL | ICR_ASSERT | VECTOR_A);
        interrupts_window();
        check(counts[VECTOR_A], 1, "xAPIC: logical cluster of another");
        apic_write(APIC_DFR, 0xffffffff);
    }
}

static void handler_nest(struct context *frame) {
    unsigned vector = (unsigned)frame->vector;
    if (orders < ARRAY_SIZE(order))
        order[orders++] = vector;
    if (vector == VECTOR_A) {
        apic_ipi(0, ICR_SELF | ICR_ASSERT | VECTOR_B);       /* higher class: comes at once */
        apic_ipi(0, ICR_SELF | ICR_ASSERT | (VECTOR_A + 1)); /* the same class: waits for the EOI */
        interrupts_window();
        order[orders++] = 0;
    }
    apic_eoi();
}

#define SHADOW_WINDOW 0x0000523440200000ull
SNIPPET(shadow_sti, "sti\n\tnop\n\tnop\n\tcli");
SNIPPET(shadow_popf, "pushf\n\torl $0x200, (%rsp)\n\tpopf\n\tnop\n\tcli");
SNIPPET(shadow_cli, "sti\n\tcli\n\tnop");
SNIPPET(shadow_hlt, "sti\n\thlt\n\tcli");

static void check_priority(void) {
    unsigned long cr8;
    counts_clear();
    apic_ipi(0, ICR_SELF | ICR_ASSERT | VECTOR_A);
    apic_ipi(0, ICR_SELF | ICR_ASSERT | VECTOR_B);
    interrupts_window();
    check(order[0] << 8 | order[1], VECTOR_B << 8 | VECTOR_A, "the higher vector comes first");
    apic_write(APIC_TPR, 0x50);
    asm volatile("mov %%cr8, %0" : "=r"(cr8));
    check(cr8, 5, "cr8 is the upper half of the TPR");
    check(apic_read(APIC_PPR), 0x50, "PPR follows the TPR");
    counts_clear();
    apic_ipi(0, ICR_SELF | ICR_ASSERT | VECTOR_A);
    apic_ipi(0, ICR_SELF | ICR_ASSERT | VECTOR_B);
    interrupts_window();
    check(counts[VECTOR_A] << 8 | counts[VECTOR_B], 1, "the TPR holds its own class back, not the next");
    asm volatile("mov %0, %%cr8" : : "r"(4ul));
    check(apic_read(APIC_TPR), 0x40, "cr8 writes the TPR");
    interrupts_window();
    check(counts[VECTOR_A], 1, "a lower TPR lets it through");
    asm volatile("mov %0, %%cr8" : : "r"(0ul));

    trap_handle(VECTOR_A, handler_nest);
    trap_handle(VECTOR_A + 1, handler_nest);
    trap_handle(VECTOR_B, handler_nest);
    orders = 0;
    apic_ipi(0, ICR_SELF | ICR_ASSERT | VECTOR_A);
    interrupts_window();
    check(order[0] << 24 | order[1] << 16 | order[2] << 8 | order[3],
          VECTOR_A << 24 | VECTOR_B << 16 | (VECTOR_A + 1), "a higher class nests, the same class waits");
    trap_handle(VECTOR_A, handler_count);
    trap_handle(VECTOR_A + 1, handler_count);
    trap_handle(VECTOR_B, handler_count);

    static const struct {
        const char *name;
        const char *code;
        unsigned count, ip;
    } shadows[] = {
        {"sti holds interrupts for one instruction", shadow_sti, 1, 2},
        {"popf holds none", shadow_popf, 1, 9},
        {"sti and cli let none through", shadow_cli, 0, 0},
        {"sti and hlt wake up", shadow_hlt, 1, 2},
    };
    for (unsigned i = 0; i < ARRAY_SIZE(shadows); i++) {
        counts_clear();
        apic_ipi(0, ICR_SELF | ICR_ASSERT | VECTOR_A);
        struct context c = context_kernel(shadows[i].code);
        context_run(&c);
        check(counts[VECTOR_A], shadows[i].count, "%s", shadows[i].name);
        if (shadows[i].count)
            check(last_ip - (unsigned long)shadows[i].code, shadows[i].ip, "%s: rip", shadows[i].name);
        interrupts_window();
    }
    /* STI as the last byte of a page. */
    uint8_t *page = page_alloc();
    *(volatile uint8_t *)(page + 0xfff) = 0xfb;
    page_map(&boot_space, SHADOW_WINDOW, (unsigned long)page, PTE_P | PTE_W, 1);
    page = page_alloc();
    *(volatile uint32_t *)page = 0xfa909090; /* nop; nop; nop; cli */
    *(volatile uint32_t *)(page + 4) = 0xcd | VECTOR_DONE << 8;
    page_map(&boot_space, SHADOW_WINDOW + 0x1000, (unsigned long)page, PTE_P | PTE_W, 1);
    for (unsigned i = 0; i < 3; i++) {
        counts_clear();
        apic_ipi(0, ICR_SELF | ICR_ASSERT | VECTOR_A);
        struct context c = context_kernel((void *)(SHADOW_WINDOW + 0xfff));
        context_run(&c);
        check(counts[VECTOR_A] == 1 ? last_ip - SHADOW_WINDOW : 0, 0x1001, "sti at the end of a page, %u", i);
        interrupts_window();
    }
    check(last_flags & FLAG_RF, 0, "an interrupt between instructions pushes RF clear");
    apic_write(APIC_ESR, 0);
    apic_write(APIC_ESR, 0);
    trap_handle(5, handler_count); /* for a machine that delivers it */
    apic_ipi(0, ICR_SELF | ICR_ASSERT | 5);
    apic_write(APIC_ESR, 0);
    check(apic_read(APIC_ESR) & 0x20, 0x20, "an IPI with an illegal vector sets the ESR");
    counts_clear();
    interrupts_window();
    check(counts[5], 0, "an IPI with an illegal vector is not delivered");
    trap_handle(5, 0);
}

static bool wait_count(unsigned vector, unsigned wanted, unsigned milliseconds) {
    for (unsigned i = 0; i < milliseconds && counts[vector] < wanted; i++) {
        interrupts_enable();
        delay_us(1000);
        interrupts_disable();
    }
    return counts[vector] >= wanted;
}

static void check_timer(void) {
    const char *mode = apic_is_x2() ? "x2APIC" : "xAPIC";
    apic_write(APIC_TIMER_DIVIDE, 0xb); /* by 1 */
    check(apic_read(APIC_TIMER_DIVIDE), 0xb, "%s: timer divide", mode);
    counts_clear();
    apic_write(APIC_LVT_TIMER, VECTOR_TIMER);
    apic_write(APIC_TIMER_INITIAL, 1000000);
    uint32_t first = apic_read(APIC_TIMER_CURRENT);
    check(first <= 1000000, true, "%s: current count starts at the initial count", mode);
    check(wait_count(VECTOR_TIMER, 1, 500), true, "%s: one-shot timer", mode);
    check(apic_read(APIC_TIMER_CURRENT), 0, "%s: one-shot timer stays at 0", mode);
    delay_us(3000);
    interrupts_window();
    check(counts[VECTOR_TIMER], 1, "%s: one-shot timer comes once", mode);

    counts_clear();
    apic_write(APIC_LVT_TIMER, VECTOR_TIMER | LVT_PERIODIC);
    apic_write(APIC_TIMER_INITIAL, 1000000);
    check(wait_count(VECTOR_TIMER, 3, 1000), true, "%s: periodic timer comes again", mode);
    apic_write(APIC_TIMER_INITIAL, 0);
    interrupts_window();
    unsigned count = counts[VECTOR_TIMER];
    delay_us(5000);
    interrupts_window();
    check(counts[VECTOR_TIMER], count, "%s: an initial count of 0 stops the timer", mode);

    counts_clear();
    apic_write(APIC_LVT_TIMER, VECTOR_TIMER | LVT_MASKED);
    apic_write(APIC_TIMER_INITIAL, 10000);
    delay_us(2000);
    interrupts_window();
    check(counts[VECTOR_TIMER], 0, "%s: a masked timer", mode);
    apic_write(APIC_LVT_TIMER, VECTOR_TIMER);

    if (!(cpuid(1, 0).c & BIT(24))) {
        check_skip("TSC deadline", "no feature");
        return;
    }
    counts_clear();
    check(read_msr(MSR_TSC_DEADLINE), 0, "%s: the deadline is 0 in another mode", mode);
    apic_write(APIC_LVT_TIMER, VECTOR_TIMER | LVT_DEADLINE);
    asm volatile("mfence");
    write_msr(MSR_TSC_DEADLINE, read_tsc() + 3000000);
    check(wait_count(VECTOR_TIMER, 1, 500), true, "%s: TSC deadline", mode);
    check(read_msr(MSR_TSC_DEADLINE), 0, "%s: the deadline is 0 when it is past", mode);
    write_msr(MSR_TSC_DEADLINE, 1);
    check(wait_count(VECTOR_TIMER, 2, 100), true, "%s: a deadline in the past comes at once", mode);
    uint64_t far = read_tsc() + (1ull << 40);
    write_msr(MSR_TSC_DEADLINE, far);
    check(read_msr(MSR_TSC_DEADLINE), far, "%s: the deadline can be read", mode);
    write_msr(MSR_TSC_DEADLINE, 0);
    check(read_msr(MSR_TSC_DEADLINE), 0, "%s: a deadline of 0 disarms", mode);
    apic_write(APIC_TIMER_INITIAL, 1000);
    check(apic_read(APIC_TIMER_CURRENT), 0, "%s: the initial count is ignored in deadline mode", mode);
    delay_us(3000);
    interrupts_window();
    check(counts[VECTOR_TIMER], 2, "%s: nothing more comes", mode);
    apic_write(APIC_LVT_TIMER, LVT_MASKED);
}

static volatile unsigned long rep_cx, rep_di;
static volatile bool rep_hit, rep_resume;
SNIPPET(rep_stos, "rep stosb");

static void handler_rep(struct context *frame) {
    if (frame->ip == (unsigned long)rep_stos) {
        rep_hit = true;
        rep_cx = frame->cx;
        rep_di = frame->di;
        rep_resume = frame->flags & FLAG_RF;
    }
    apic_eoi();
}

/* An interrupt inside a string instruction: its state is that of a whole number of iterations. */
static void check_rep(void) {
    const unsigned long bytes = 0x800000;
    unsigned long start = 0x1000000;
    trap_handle(VECTOR_TIMER, handler_rep);
    apic_write(APIC_TIMER_DIVIDE, 0xb);
    apic_write(APIC_LVT_TIMER, VECTOR_TIMER);
    rep_hit = false;
    uint32_t delay = 20000;
    for (unsigned i = 0; i < 12 && !rep_hit; i++, delay *= 2) {
        struct context c = context_kernel(rep_stos);
        c.cx = bytes;
        c.di = start;
        c.ax = 0x5a;
        c.flags |= FLAG_IF;
        apic_write(APIC_TIMER_INITIAL, delay);
        context_run(&c);
        apic_write(APIC_TIMER_INITIAL, 0);
        interrupts_window();
        check(c.vector << 32 | c.cx, (uint64_t)VECTOR_DONE << 32, "rep stosb under a timer ends");
        check(c.di, start + bytes, "rep stosb under a timer: rdi");
    }
    if (rep_hit) {
        check(rep_cx + rep_di, start + bytes, "interrupt in rep stosb: rcx and rdi agree");
        check(rep_cx != 0, true, "interrupt in rep stosb: iterations are left");
        /* RF is set unless the interrupt came before the first iteration (SDM 3, 17.3.1.1). */
        check(rep_resume, rep_cx != bytes, "interrupt in rep stosb: RF is pushed set");
    } else {
        check_skip("interrupt in rep stosb", "none came inside");
    }
    check(*(volatile uint8_t *)start == 0x5a && *(volatile uint8_t *)(start + bytes - 1) == 0x5a, true,
          "rep stosb under a timer: memory");
    trap_handle(VECTOR_TIMER, handler_count);
    apic_write(APIC_LVT_TIMER, LVT_MASKED);
}

SNIPPET(spin_self, "sti\n1:\tjmp 1b");
SNIPPET(spin_loop, "sti\n1:\tinc %eax\n\tjmp 1b");
SNIPPET(spin_indirect, "sti\n\tlea 1f(%rip), %rax\n1:\tjmp *%rax");
SNIPPET(spin_call, "sti\n1:\tcall 2f\n\tjmp 1b\n2:\tret");
SNIPPET(spin_flags, "sti\n1:\tcmp %rax, %rax\n\tje 1b");
SNIPPET(spin_halt, "sti\n1:\thlt\n\tjmp 1b");

static void handler_leave(struct context *frame) {
    frame->ip = (unsigned long)rep_stos + 2; /* where the snippet ends */
    apic_eoi();
}

/* An interrupt reaches code that never leaves its loop. */
static void check_loops(void) {
    static const struct {
        const char *name;
        const char *code;
    } loops[] = {{"jmp to itself", spin_self},
                 {"loop of two instructions", spin_loop},
                 {"indirect jmp to itself", spin_indirect},
                 {"call and ret", spin_call},
                 {"loop on flags", spin_flags},
                 {"hlt", spin_halt}};
    trap_handle(VECTOR_TIMER, handler_leave);
    apic_write(APIC_LVT_TIMER, VECTOR_TIMER);
    for (unsigned i = 0; i < ARRAY_SIZE(loops); i++)
        for (unsigned user = 0; user < 2; user++) {
            if (user && loops[i].code == spin_halt)
                continue;
            struct context c = user ? context_user(loops[i].code + 1) : context_kernel(loops[i].code);
            c.flags |= user ? FLAG_IF : 0;
            apic_write(APIC_TIMER_INITIAL, 1000000);
            if (user)
                trap_handle(VECTOR_TIMER, 0); /* ends the context */
            context_run(&c);
            check(c.vector, user ? VECTOR_TIMER : VECTOR_DONE, "a timer reaches: %s, CPL %u", loops[i].name,
                  user ? 3 : 0);
            if (user) {
                apic_eoi();
                trap_handle(VECTOR_TIMER, handler_leave);
            }
        }
    trap_handle(VECTOR_TIMER, handler_count);
    apic_write(APIC_LVT_TIMER, LVT_MASKED);
}

static volatile unsigned nmi_depth, nmi_deepest, nmi_total;

static void handler_nmi(struct context *frame) {
    (void)frame;
    nmi_depth++;
    if (nmi_depth > nmi_deepest)
        nmi_deepest = nmi_depth;
    if (nmi_total++ == 0) {
        apic_ipi(apic_id(), ICR_NMI | ICR_ASSERT);
        delay_us(500);
    }
    nmi_depth--;
}

static void check_nmi(void) {
    trap_handle(VECTOR_NMI, handler_nmi);
    apic_ipi(apic_id(), ICR_NMI | ICR_ASSERT);
    delay_us(500);
    check(nmi_total, 2, "NMI with interrupts off, and another one from its handler");
    check(nmi_deepest, 1, "NMIs are blocked until IRET");
    trap_handle(VECTOR_NMI, 0);
}

static void check_x2(void) {
    uint64_t base = read_msr(MSR_APIC_BASE);
    uint32_t id = apic_id(), version = apic_read(APIC_VERSION);
    if (!(cpuid(1, 0).c & BIT(21))) {
        check_skip("x2APIC", "no feature");
        check(TRY("rdmsr", : : "c"(0x802) : "rax", "rdx"), VECTOR_GP, "x2APIC register without the feature");
        return;
    }
    check(TRY("rdmsr", : : "c"(0x802) : "rax", "rdx"), VECTOR_GP, "x2APIC register in xAPIC mode");
    check(TRY("wrmsr",
              :
              : "c"(MSR_APIC_BASE), "a"((uint32_t)((base & ~APIC_BASE_ENABLE) | APIC_BASE_X2)), "d"(0)),
          VECTOR_GP, "APIC_BASE: EXTD without EN");
    write_msr(MSR_APIC_BASE, base | APIC_BASE_X2);
    check(apic_is_x2(), true, "x2APIC mode");
    check(apic_id(), id, "x2APIC: ID");
    check(apic_read(APIC_VERSION), version, "x2APIC: version");
    check(apic_read(APIC_LDR), (id >> 4) << 16 | 1u << (id & 15), "x2APIC: LDR comes from the ID");
    static const struct {
        const char *name;
        unsigned msr;
        bool write;
    } faults[] = {{"read of DFR", 0x80e, false},          {"read of EOI", 0x80b, false},
                  {"write of ID", 0x802, true},           {"write of LDR", 0x80d, true},
                  {"write of PPR", 0x80a, true},          {"write of ISR", 0x810, true},
                  {"read of SELF_IPI", 0x83f, false},     {"read of 0x831", 0x831, false},
                  {"write of current count", 0x839, true}};
    for (unsigned i = 0; i < ARRAY_SIZE(faults); i++)
        check(faults[i].write ? TRY("wrmsr",
                                    :
                                    : "c"(faults[i].msr), "a"(0), "d"(0))
                              : TRY("rdmsr",
                                    :
                                    : "c"(faults[i].msr)
                                    : "rax", "rdx"),
              VECTOR_GP, "x2APIC: %s", faults[i].name);
    check(TRY("wrmsr", : : "c"(0x80b), "a"(1), "d"(0)), VECTOR_GP, "x2APIC: EOI with a value");
    check(TRY("wrmsr", : : "c"(0x808), "a"(0x100), "d"(0)), VECTOR_GP, "x2APIC: TPR with a reserved bit");
    counts_clear();
    write_msr(0x83f, VECTOR_A);
    interrupts_window();
    check(counts[VECTOR_A], 1, "x2APIC: SELF_IPI");
    check_ipis();
    check_priority();
    check_timer();
    check(TRY("wrmsr",
              :
              : "c"(MSR_APIC_BASE), "a"((uint32_t)base), "d"(0)),
          VECTOR_GP, "APIC_BASE: x2APIC to xAPIC");
    write_msr(MSR_APIC_BASE, base & ~(uint64_t)APIC_BASE_ENABLE);
    check(cpuid(1, 0).d & BIT(9), 0, "cpuid: no APIC while it is off");
    check(TRY("wrmsr",
              :
              : "c"(MSR_APIC_BASE), "a"((uint32_t)(base | APIC_BASE_X2)), "d"(0)),
          VECTOR_GP, "APIC_BASE: off to x2APIC");
    write_msr(MSR_APIC_BASE, base);
    check(apic_is_x2(), false, "xAPIC mode again");
    check(apic_read(APIC_SVR) & 0x1ff, 0xff, "switching the APIC off resets it");
}

void kernel_main(void) {
    check(read_msr(MSR_APIC_BASE) & ~0x200ull, 0xfee00000 | APIC_BASE_ENABLE | 0x100, "APIC_BASE at start");
    check(apic_read(APIC_VERSION) & 0xf0, 0x10, "version");
    check((apic_read(APIC_VERSION) >> 16 & 0xff) >= 3, true, "highest LVT entry");
    apic_enable();
    trap_handle(VECTOR_A, handler_count);
    trap_handle(VECTOR_A + 1, handler_count);
    trap_handle(VECTOR_B, handler_count);
    trap_handle(VECTOR_TIMER, handler_count);
    check_ipis();
    check_priority();
    check_timer();
    check_rep();
    check_loops();
    check_nmi();
    check_x2();
    checks_finish("apic64");
}
