/*
 * Corners where events meet: debug traps in the shadow of MOV SS, before general detect and around HLT; the
 * selectors of XGETBV; the TSC and its adjustment; system instructions whose operands lie in device memory.
 * Source: Intel SDM volume 3, 6.8.3, 17.2.4, 17.3, 17.17.3; volume 2, HLT, XGETBV.
 */
#include "apic.h"

#include "runtime.h"

#define DR6_CLEAR 0xffff0ff0ul
#define DR6_BS BIT(14)
#define DR6_BD BIT(13)
#define DR7_FIXED BIT(10)
#define DR7_GD BIT(13)
#define DR7_ACCESS_4 (BIT(1) | 0xful << 16)
#define MSR_TSC_ADJUST 0x3b
#define DEVICE 0xff000000ul

static struct {
    unsigned count;
    unsigned long ip[16], dr6[16];
} trace;
static volatile unsigned breakpoints;
static volatile unsigned long breakpoint_ip;
static volatile uint64_t watched[2] __attribute__((aligned(64)));

static void handler_trace(struct context *frame) {
    if (trace.count < 16) {
        trace.ip[trace.count] = frame->ip;
        trace.dr6[trace.count] = read_dr6();
    }
    trace.count++;
    write_dr6(0);
}

static void handler_breakpoint(struct context *frame) {
    breakpoints++;
    breakpoint_ip = frame->ip;
}

static void handler_eoi(struct context *frame) {
    (void)frame;
    apic_eoi();
}

SNIPPET(movss_icebp, "mov %ss, %eax\n\tmov %eax, %ss\n\t.byte 0xf1\n\t.byte 0xf1\n\tnop\n\tnop");
/* The first #DB of any kind clears DR7.GD: TF comes last. */
SNIPPET(movss_detect, "pushf\n\torl $0x100, (%rsp)\n\tmov %ss, %eax\n\tpopf\n\tmov %eax, %ss\n\t"
                      "mov %rbx, %dr6\n\tnop");
SNIPPET(sti_hlt, "sti\n\thlt\n\tcli\n\tnop");
SNIPPET(sti_step, "sti\n\tnop\n\tcli");

struct step {
    unsigned offset;
    unsigned long dr6; /* beyond what is always set */
};

static void check_trace(const char *name, const void *code, unsigned long flags, unsigned long dr7,
                        const struct step *steps, unsigned count) {
    struct context c = context_kernel(code);
    c.flags |= flags;
    trace.count = 0;
    write_dr6(0);
    write_dr7(DR7_FIXED | dr7);
    context_run(&c);
    write_dr7(DR7_FIXED);
    check(trace.count, count, "%s: traps", name);
    for (unsigned i = 0; i < count; i++) {
        check(trace.ip[i] - (unsigned long)code, steps[i].offset, "%s: rip of trap %u", name, i);
        check(trace.dr6[i], DR6_CLEAR | steps[i].dr6, "%s: dr6 of trap %u", name, i);
    }
}

static void check_traps(void) {
    static const struct step icebp[] = {{2, DR6_BS}, {5, 0}, {6, 0}, {7, DR6_BS}, {8, DR6_BS}};
    static const struct step detect[] = {{13, DR6_BD}, {16, DR6_BS}, {17, DR6_BS}};
    static const struct step halt[] = {{1, DR6_BS}, {2, DR6_BS}, {3, DR6_BS}, {4, DR6_BS}};
    static const struct step shadow[] = {{1, DR6_BS}, {2, DR6_BS}, {3, DR6_BS}};
    trap_handle(VECTOR_DB, handler_trace);
    check_trace("icebp behind mov ss", movss_icebp, FLAG_TF, 0, icebp, ARRAY_SIZE(icebp));
    check_trace("general detect behind mov ss", movss_detect, 0, DR7_GD, detect, ARRAY_SIZE(detect));
    check_trace("sti", sti_step, FLAG_TF, 0, shadow, ARRAY_SIZE(shadow));
    apic_write(APIC_TIMER_DIVIDE, 0xb);
    trap_handle(0x51, handler_eoi);
    apic_write(APIC_LVT_TIMER, 0x51);
    apic_write(APIC_TIMER_INITIAL, 2000000);
    check_trace("hlt", sti_hlt, FLAG_TF, 0, halt, ARRAY_SIZE(halt));
    delay_us(3000);
    asm volatile("sti\n\tnop\n\tcli");
}

SNIPPET(watch_icebp, "mov (%rdi), %ss\n\t.byte 0xf1\n\tnop");
SNIPPET(watch_int1, "mov (%rdi), %ss\n\tint $1\n\tnop");
SNIPPET(watch_int3, "mov (%rdi), %ss\n\tint3\n\tnop");

static void watch(const void *code) {
    struct context c = context_kernel(code);
    watched[0] = KERNEL_DS;
    c.di = (unsigned long)watched;
    trace.count = breakpoints = 0;
    write_dr6(0);
    write_dr0((unsigned long)watched);
    write_dr7(DR7_FIXED | DR7_ACCESS_4);
    context_run(&c);
    write_dr7(DR7_FIXED);
}

/* A data breakpoint of MOV SS waits for the next instruction. */
static void check_watched(void) {
    trap_handle(VECTOR_BP, handler_breakpoint);
    watch(watch_icebp);
    check(trace.count, 1, "mov ss that is watched, icebp: one #DB");
    watch(watch_int1);
    check(trace.count, 2, "mov ss that is watched, int 1: two");
    watch(watch_int3);
    check(trace.count << 8 | breakpoints, 0x101, "mov ss that is watched, int3: one #DB, one #BP");
    check(breakpoint_ip, (unsigned long)watch_int3 + 3, "mov ss that is watched, int3: rip of #BP");
    write_dr6(0);
    check(read_dr6(), DR6_CLEAR, "dr6 reads its fixed bits");
    trap_handle(VECTOR_BP, 0);
    trap_handle(VECTOR_DB, 0);
}

static unsigned xgetbv_try(unsigned long index) {
    return TRY("xgetbv", : : "c"(index) : "eax", "edx");
}

static unsigned xsetbv_try(unsigned long index, unsigned value) {
    return TRY("xsetbv", : : "c"(index), "a"(value), "d"(0));
}

static void check_xcrs(void) {
    struct tally tally;
    if (!(cpuid(1, 0).c & BIT(26))) {
        check_skip("XGETBV", "no XSAVE");
        return;
    }
    write_cr4(read_cr4() & ~CR4_OSXSAVE);
    check(cpuid(1, 0).c >> 27 & 1, 0, "CPUID shows CR4.OSXSAVE clear");
    check(xgetbv_try(0), VECTOR_UD, "xgetbv without CR4.OSXSAVE");
    write_cr4(read_cr4() | CR4_OSXSAVE);
    check(cpuid(1, 0).c >> 27 & 1, 1, "CPUID shows CR4.OSXSAVE set");
    check(xgetbv_try(0x1234500000000), NO_TRAP, "xgetbv: the upper half of rcx means nothing");
    check(xsetbv_try(0x1234500000000, 3), NO_TRAP, "xsetbv: the upper half of rcx means nothing");
    tally_begin(&tally, "other extended control registers");
    for (unsigned i = 1; i < 32; i++) {
        if (i != 1)
            tally_case(&tally, xgetbv_try(i), VECTOR_GP, "xgetbv %u", i);
        tally_case(&tally, xsetbv_try(i, 1), VECTOR_GP, "xsetbv %u", i);
        tally_case(&tally, xgetbv_try(BIT(i)), i ? VECTOR_GP : NO_TRAP, "xgetbv of bit %u", i);
        tally_case(&tally, xsetbv_try(BIT(i), 3), VECTOR_GP, "xsetbv of bit %u", i);
    }
    tally_end(&tally);
}

static void check_tsc(void) {
    const uint64_t far = 100000000000;
    if (!(cpuid(7, 0).b & BIT(1))) {
        check_skip("TSC_ADJUST", "no feature");
        return;
    }
    check(read_msr(MSR_TSC_ADJUST), 0, "TSC_ADJUST is 0 after a reset");
    uint64_t before = read_tsc();
    write_msr(MSR_TSC_ADJUST, far);
    check(read_msr(MSR_TSC_ADJUST), far, "TSC_ADJUST is read back");
    check(read_tsc() - before >= far, true, "TSC_ADJUST moves the TSC");
    write_msr(MSR_TSC_ADJUST, 0);
    before = read_tsc();
    write_msr(MSR_TSC, far);
    check(read_tsc() >= far, true, "the TSC goes on from what is written to it");
    check(before <= far - read_msr(MSR_TSC_ADJUST), true, "and TSC_ADJUST says how far it was moved");
    write_msr(MSR_TSC_ADJUST, 0);
    check(read_tsc() >= before, true, "and takes it back");
}

static void check_device_operands(void) {
    volatile uint16_t *words = (volatile uint16_t *)DEVICE;
    volatile uint8_t *bytes = (volatile uint8_t *)DEVICE;
    unsigned long cr0 = read_cr0(), count = 300;
    uint16_t tr = read_tr(), ss;
    volatile uint8_t *to;

    words[1] = 0x5555;
    asm volatile("smsw %0" : "=m"(words[0]));
    check(words[0] == (uint16_t)cr0 && words[1] == 0x5555, true, "smsw to device memory");
    words[0] = (uint16_t)(cr0 ^ CR0_TS);
    asm volatile("lmsw %0" : : "m"(words[0]));
    check(read_cr0() ^ cr0, CR0_TS, "lmsw from device memory");
    words[0] = (uint16_t)((cr0 & ~CR0_PE) ^ CR0_EM);
    asm volatile("lmsw %0" : : "m"(words[0]));
    check(read_cr0() ^ cr0, CR0_EM, "lmsw does not clear PE");
    write_cr0(cr0);
    words[0] = 0;
    asm volatile("mov %1, %%ss\n\tmov %%ss, %0" : "=r"(ss) : "m"(words[0]));
    check(ss, 0, "null into ss from device memory");
    words[0] = 3;
    check(TRY("mov %0, %%ss", : : "m"(words[0])), VECTOR_GP, "null with another RPL into ss");
    asm volatile("mov %0, %%ss" : : "r"(KERNEL_DS));
    ((volatile uint8_t *)gdt)[(tr & ~7u) + 5] &= (uint8_t)~2u;
    words[0] = tr;
    asm volatile("ltr %0" : : "m"(words[0]) : "memory");
    check(((volatile uint8_t *)gdt)[(tr & ~7u) + 5] & 2, 2, "ltr from device memory marks the TSS busy");
    asm volatile("lea 1f(%%rip), %%rax\n\tmov %%rax, %0\n\tmovw %%cs, %1\n\trex64 ljmp *%0\n\tud2\n1:"
                 : "=m"(*(volatile uint64_t *)(bytes + 64)), "=m"(*(volatile uint16_t *)(bytes + 72))
                 :
                 : "rax", "memory");
    check(true, true, "far jump through device memory");
    out8(0xe0, 0x99);
    to = bytes + 4000;
    asm volatile("rep insb" : "+D"(to), "+c"(count) : "d"(0xe0) : "memory");
    check(bytes[4299] == 0x99 && to == bytes + 4300, true, "rep insb across pages of device memory");
    *(volatile uint16_t *)(bytes + 4095) = 0x88aa;
    check(bytes[4095] == 0xaa && bytes[4096] == 0x88, true, "a word across pages of device memory");
    asm volatile("enter $0x18, $0\n\tleave");
    asm volatile("mov %%rsp, %%rbx\n\tmov %0, %%rsp\n\tpushq $-7\n\tpushq %1\n\tpop %%rax\n\tmov %%rbx, %%rsp"
                 :
                 : "r"(bytes + 8192), "m"(words[0])
                 : "rax", "rbx", "memory");
    check(*(volatile uint64_t *)(bytes + 8184), -7ul, "a stack in device memory");
    check(TRY("jmp *%0", : : "m"((uint64_t){0x1111111111111111})), VECTOR_GP, "a jump to nowhere");
    check(TRY(".byte 0x8d, 0xc0", : : : "eax"), VECTOR_UD, "lea of a register");
    check(TRY(".byte 0x0f, 0x38, 0xf0, 0xc0", : : : "eax"), VECTOR_UD, "movbe of a register");
}

/* What was pushed is popped, whatever comes between: CPUID of subleaves that nobody has asked for, copies
 * over the end of a page. */
static void check_stack_between(void) {
    static uint8_t pages[4 * 4096] __attribute__((aligned(4096)));
    struct tally tally;
    tally_begin(&tally, "the stack around CPUID and REP MOVSB");
    for (unsigned i = 0; i < 64; i++) {
        unsigned long first, second, one = 0x1111000000000000 + i, two = 0x2222000000000000 + i;
        unsigned leaf = 0, subleaf = 0x1000 + i;
        asm volatile("push %4\n\tpush %5\n\tcpuid\n\tpop %1\n\tpop %0"
                     : "=&r"(first), "=&r"(second), "+a"(leaf), "+c"(subleaf)
                     : "r"(one), "r"(two)
                     : "rbx", "rdx", "memory");
        tally_case(&tally, first, one, "cpuid, first, %u", i);
        tally_case(&tally, second, two, "cpuid, second, %u", i);
        const uint8_t *from = pages + 4096 - i;
        uint8_t *to = pages + 3 * 4096 - 7;
        unsigned long count = 16;
        asm volatile("push %5\n\tpush %6\n\trep movsb\n\tpop %1\n\tpop %0"
                     : "=&r"(first), "=&r"(second), "+S"(from), "+D"(to), "+c"(count)
                     : "r"(one), "r"(two)
                     : "memory");
        tally_case(&tally, first, one, "rep movsb, first, %u", i);
        tally_case(&tally, second, two, "rep movsb, second, %u", i);
    }
    tally_end(&tally);
}

void kernel_main(void) {
    apic_enable();
    check_tsc();
    check_traps();
    check_watched();
    check_xcrs();
    check_device_operands();
    check_stack_between();
    checks_finish("corners64");
}
