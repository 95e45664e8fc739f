/*
 * Debug exceptions: single-step, breakpoints on execution, data and ports, RF, the shadow of MOV SS, general
 * detect, and access to the debug registers. Source: Intel SDM volume 3, chapter 17.
 */
#include "runtime.h"

#define DR6_CLEAR 0xffff0ff0ul
#define DR6_B(n) BIT(n)
#define DR6_BD BIT(13)
#define DR6_BS BIT(14)
#define DR7_FIXED BIT(10)
#define DR7_LOCAL(n) BIT(2 * (n))
#define DR7_GLOBAL(n) BIT(2 * (n) + 1)
#define DR7_GD BIT(13)
#define DR7_KIND(n, rw, len) ((unsigned long)((rw) | (len) << 2) << (16 + 4 * (n)))
#define ANY_RIP 0xff
#define EXECUTE 0
#define WRITE 1
#define PORT 2
#define ACCESS 3

static volatile uint64_t watched[4] __attribute__((aligned(64)));

/* Where each #DB came, by a handler that lets the code go on. */
static struct {
    unsigned count;
    unsigned long ip[64], dr6[64], flags[64], cx[64];
} trace;

static bool trace_resume; /* set RF before returning */

static void handler_trace(struct context *frame) {
    if (trace.count < 64) {
        trace.ip[trace.count] = frame->ip;
        trace.dr6[trace.count] = read_dr6();
        trace.flags[trace.count] = frame->flags;
        trace.cx[trace.count] = frame->cx;
    }
    trace.count++;
    write_dr6(DR6_CLEAR);
    if (trace_resume)
        frame->flags |= FLAG_RF;
}

SNIPPET(resumed_pushf, "pushf\n\tpop %rax");

static struct context traced(const void *code, unsigned long flags, bool user) {
    struct context c = user ? context_user(code) : context_kernel(code);
    trace.count = 0;
    c.flags |= flags;
    c.di = (unsigned long)(user ? user_pointer(watched) : (void *)watched);
    write_dr6(DR6_CLEAR);
    trap_handle(VECTOR_DB, handler_trace);
    context_run(&c);
    trap_handle(VECTOR_DB, 0);
    write_dr7(DR7_FIXED);
    return c;
}

/* Labels in the traced code, as offsets from its start. */
struct step_case {
    const char *name;
    const char *code;
    unsigned steps;
    uint8_t offsets[8];
};

SNIPPET(step_nops, "nop\n\tnop\n\tnop");
SNIPPET(step_ss, "mov %ss, %eax\n\tmov %eax, %ss\n\tnop\n\tnop");       /* 2 2 1 1 */
SNIPPET(step_jump, "jmp 1f\n\tud2\n1:\tnop");                           /* 2 2 1 */
SNIPPET(step_call, "call 1f\n\tjmp 2f\n1:\tret\n2:");                   /* 5 2 1 */
SNIPPET(step_pushf, "pushf\n\tpop %rax");                               /* 1 1 */
SNIPPET(step_popf_off, "pushf\n\tandl $~0x100, (%rsp)\n\tpopf\n\tnop"); /* 1 7 1 1 */
SNIPPET(step_cpuid, "xor %eax, %eax\n\tcpuid\n\trdtsc\n\tnop");         /* 2 2 2 1 */
SNIPPET(step_sti, "sti\n\tcli\n\tnop");                                 /* 1 1 1 */
SNIPPET(step_cr, "mov %cr0, %rax\n\tmov %rax, %cr0\n\tnop");            /* 3 3 1 */

static void check_steps(void) {
    static const struct step_case cases[] = {
        {"nops", step_nops, 3, {1, 2, 3}},
        {"mov ss holds the trap back for one instruction", step_ss, 3, {2, 5, 6}},
        {"jmp", step_jump, 2, {4, 5}},
        {"call and ret", step_call, 3, {7, 5, 8}},
        {"pushf", step_pushf, 2, {1, 2}},
        {"popf that clears TF still traps", step_popf_off, 3, {1, 8, 9}},
        {"cpuid and rdtsc", step_cpuid, 4, {2, 4, 6, 7}},
        {"sti and cli", step_sti, 3, {1, 2, 3}},
        {"control registers", step_cr, 3, {3, 6, 7}},
    };
    for (unsigned i = 0; i < ARRAY_SIZE(cases); i++) {
        struct context c = traced(cases[i].code, FLAG_TF, false);
        struct tally tally;
        tally_begin(&tally, cases[i].name);
        tally_case(&tally, c.vector, VECTOR_DONE, "end");
        tally_case(&tally, trace.count, cases[i].steps, "steps");
        for (unsigned j = 0; j < cases[i].steps && j < trace.count; j++) {
            tally_case(&tally, trace.ip[j] - (unsigned long)cases[i].code, cases[i].offsets[j],
                       "rip of step %u", j);
            tally_case(&tally, trace.dr6[j], DR6_CLEAR | DR6_BS, "dr6 of step %u", j);
            tally_case(&tally, trace.flags[j] & FLAG_RF, 0, "RF of step %u", j);
        }
        tally_end(&tally);
    }
    struct context c = traced(step_pushf, FLAG_TF, true);
    check(c.ax & FLAG_TF, FLAG_TF, "pushf shows TF");
    check(c.flags & FLAG_TF, FLAG_TF, "int n pushes TF and is not followed by a trap");
    check(trace.count, 2, "steps at CPL 3");
}

SNIPPET(step_rep, "mov $4, %ecx\n\tmov %rdi, %rsi\n\trep movsb\n\tnop");    /* 5 3 2 1 */
SNIPPET(step_popf_on, "pushf\n\torl $0x100, (%rsp)\n\tpopf\n\tnop\n\tnop"); /* 1 7 1 1 1 */
SNIPPET(step_fault, "nop\n\tud2");
SNIPPET(step_int, "int $0x50\n\tnop");

static volatile unsigned long handler_flags;

static void handler_flags_look(struct context *frame) {
    (void)frame;
    handler_flags = read_flags();
}

static void check_step_forms(void) {
    struct context c = traced(step_rep, FLAG_TF, false);
    check(trace.count, 7, "rep movsb of four: a trap after each iteration");
    struct tally tally;
    tally_begin(&tally, "rep movsb: rip and rcx of each trap");
    for (unsigned i = 0; i < 4; i++) {
        unsigned long rip = (unsigned long)step_rep + (i == 3 ? 10 : 8);
        tally_case(&tally, trace.ip[2 + i], rip, "rip %u", i);
        tally_case(&tally, trace.cx[2 + i], 3 - i, "rcx %u", i);
        /* SDM 3, 17.3.1.1: RF is pushed set by all but the last iteration. */
        tally_case(&tally, trace.flags[2 + i] & FLAG_RF, i == 3 ? 0 : FLAG_RF, "RF %u", i);
    }
    tally_end(&tally);

    c = traced(step_popf_on, 0, false);
    check(trace.count, 2, "popf that sets TF: the next instruction traps first");
    check(trace.ip[0] - (unsigned long)step_popf_on, 10, "popf that sets TF: rip");
    c = traced(step_fault, FLAG_TF, false);
    check_end(&c, VECTOR_UD, 0, "an exception in a traced instruction");
    check(trace.count, 1, "an exception in a traced instruction is not followed by a trap");
    check(c.flags & (FLAG_TF | FLAG_RF), FLAG_TF | FLAG_RF, "an exception in a traced instruction: flags");
    gate_retype(0x50, GATE_INTERRUPT | DESCRIPTOR_PRESENT, 0);
    trap_handle(0x50, handler_flags_look);
    c = traced(step_int, FLAG_TF, false);
    check(handler_flags & FLAG_TF, 0, "int n clears TF");
    check(trace.count, 1, "int n itself is not trapped");
    check(trace.ip[0] - (unsigned long)step_int, 3,
          "after the handler's iret the next instruction is trapped");
    trap_handle(0x50, 0);
    write_dr6(DR6_CLEAR);
    c = context_kernel(step_nops);
    c.flags |= FLAG_TF;
    context_run(&c);
    check_end(&c, VECTOR_DB, 0, "single-step");
    check(read_flags() & FLAG_TF, 0, "the handler runs without TF");
}

SNIPPET(break_code, "nop\n\tnop\n\tmov $1, %eax\n\tnop");                    /* 1 1 5 1 */
SNIPPET(break_rep, "mov $3, %ecx\n\tlea 8(%rdi), %rdi\n\trep stosb\n\tnop"); /* 5 4 2 1 */
SNIPPET(break_ss, "mov %ss, (%rdi)\n\tmov (%rdi), %ss\n\tnop\n\tnop");       /* 2 2 1 1 */
SNIPPET(break_out, "mov $0, %al\n\tout %al, $0x80\n\tnop");                  /* 2 2 1 */
SNIPPET(break_read, "mov (%rdi), %rax\n\tnop");                              /* 3 1 */
SNIPPET(break_write, "mov %rax, (%rdi)\n\tnop");
SNIPPET(break_add, "addb $1, (%rdi)\n\tnop");
SNIPPET(break_push, "mov %rsp, %rbx\n\tlea 8(%rdi), %rsp\n\tpush %rax\n\tmov %rbx, %rsp"); /* 3 4 1 3 */

static void check_execution(void) {
    for (unsigned user = 0; user < 2; user++) {
        unsigned long start = (unsigned long)(user ? user_pointer(break_code) : (void *)break_code);
        write_dr0(start + 2);
        write_dr7(DR7_FIXED | DR7_LOCAL(0) | DR7_KIND(0, EXECUTE, 0));
        trace_resume = true;
        struct context c = traced(break_code, 0, user);
        trace_resume = false;
        check_end(&c, VECTOR_DONE, 0, "execution breakpoint resumed with RF");
        check(trace.count, 1, "execution breakpoint comes once");
        check(trace.ip[0], start + 2, "execution breakpoint: rip is the instruction's");
        check(trace.dr6[0] & 0xf00f, DR6_B(0), "execution breakpoint: dr6");
        check(trace.flags[0] & FLAG_RF, 0, "execution breakpoint pushes RF as it was");
        check(c.ax, 1, "execution breakpoint: the instruction runs after it");
        write_dr7(DR7_FIXED | DR7_GLOBAL(0) | DR7_KIND(0, EXECUTE, 0));
        trace_resume = true;
        c = traced(break_code, FLAG_TF, user);
        trace_resume = false;
        check_end(&c, VECTOR_DONE, 0, "execution breakpoint with single-step");
        check(trace.dr6[1] & DR6_BS, DR6_BS, "single-step before the breakpoint");
        write_dr7(DR7_FIXED | DR7_LOCAL(0) | DR7_KIND(0, EXECUTE, 0));
        c = traced(break_code + 2, FLAG_RF, user);
        check(trace.count, 0, "RF set by iret holds off the first instruction's breakpoint");
        write_dr7(DR7_FIXED);
        c = user ? context_user(resumed_pushf) : context_kernel(resumed_pushf);
        c.flags |= FLAG_RF;
        context_run(&c);
        check(c.vector == VECTOR_DONE ? c.ax & FLAG_RF : 1, 0,
              "RF set by iret is gone when the first instruction pushes it");
        write_dr7(DR7_FIXED | DR7_KIND(0, EXECUTE, 0));
        c = traced(break_code, 0, user);
        check(trace.count, 0, "a breakpoint that is not enabled");
    }
    write_dr0((unsigned long)break_code + 3); /* inside an instruction */
    write_dr7(DR7_FIXED | DR7_LOCAL(0) | DR7_KIND(0, EXECUTE, 0));
    traced(break_code, 0, false);
    check(trace.count, 0, "a breakpoint inside an instruction");
}

static void check_data(void) {
    static const struct {
        const char *name;
        const char *code;
        unsigned kind, length, offset, count;
        unsigned ip;
    } cases[] = {
        {"write breakpoint, read", break_read, WRITE, 2, 0, 0, 0},
        {"write breakpoint, write", break_write, WRITE, 2, 0, 1, 3},
        {"access breakpoint, read", break_read, ACCESS, 2, 0, 1, 3},
        {"access breakpoint, write", break_write, ACCESS, 2, 0, 1, 3},
        {"access breakpoint of a byte inside", break_read, ACCESS, 0, 7, 1, 3},
        {"access breakpoint of two bytes inside", break_write, ACCESS, 1, 6, 1, 3},
        {"access breakpoint of four bytes inside", break_write, ACCESS, 3, 4, 1, 3},
        {"access breakpoint behind", break_read, ACCESS, 0, 8, 0, 0},
        {"access breakpoint, read and write", break_add, ACCESS, 0, 0, 1, 3},
        {"write breakpoint of a byte behind", break_add, WRITE, 0, 1, 0, 0},
        {"write breakpoint, push", break_push, WRITE, 2, 0, 1, 8},
        /* A fast string operation may report it later than the iteration (SDM 1, 7.3.9.3). */
        {"write breakpoint, rep stosb", break_rep, WRITE, 0, 9, 1, ANY_RIP},
        {"write breakpoint, last of rep stosb", break_rep, WRITE, 0, 10, 1, 11},
    };
    for (unsigned user = 0; user < 2; user++)
        for (unsigned i = 0; i < ARRAY_SIZE(cases); i++) {
            unsigned long base = (unsigned long)(user ? user_pointer(watched) : (void *)watched);
            unsigned long start = (unsigned long)(user ? user_pointer(cases[i].code) : (void *)cases[i].code);
            write_dr1(base + cases[i].offset);
            write_dr7(DR7_FIXED | DR7_LOCAL(1) | DR7_KIND(1, cases[i].kind, cases[i].length));
            struct context c = traced(cases[i].code, 0, user);
            check(c.vector << 32 | trace.count, (uint64_t)VECTOR_DONE << 32 | cases[i].count,
                  "%s: end and traps", cases[i].name);
            if (cases[i].count && trace.count) {
                if (cases[i].ip != ANY_RIP)
                    check(trace.ip[0] - start, cases[i].ip, "%s: rip", cases[i].name);
                check(trace.dr6[0] & 0xf002, DR6_B(1), "%s: dr6", cases[i].name);
            }
        }
    /* A trap that MOV SS brings is held back with it, and is not lost to the next instruction. */
    write_dr0((unsigned long)watched);
    write_dr7(DR7_FIXED | DR7_LOCAL(0) | DR7_KIND(0, ACCESS, 1));
    traced(break_ss, 0, false);
    check(trace.count, 2, "breakpoint on the operand of mov ss");
    check(trace.ip[1] - (unsigned long)break_ss, 5, "breakpoint on the operand of mov ss: rip");
}

static void check_ports(void) {
    write_cr4(read_cr4() | CR4_DE);
    write_dr0(0x80);
    write_dr7(DR7_FIXED | DR7_LOCAL(0) | DR7_KIND(0, PORT, 0));
    traced(break_out, 0, false);
    check(trace.count, 1, "port breakpoint");
    check(trace.ip[0] - (unsigned long)break_out, 4, "port breakpoint: rip");
    check(trace.dr6[0] & 0xf001, DR6_B(0), "port breakpoint: dr6");
    write_dr0(0x84);
    write_dr7(DR7_FIXED | DR7_LOCAL(0) | DR7_KIND(0, PORT, 0));
    traced(break_out, 0, false);
    check(trace.count, 0, "port breakpoint of another port");
    check(TRY("mov %%dr4, %%rax", : : : "rax"), VECTOR_UD, "dr4 with CR4.DE");
    check(TRY("mov %%rax, %%dr5", :), VECTOR_UD, "dr5 with CR4.DE");
    write_cr4(read_cr4() & ~CR4_DE);
    unsigned long value;
    write_dr6(DR6_CLEAR);
    check(TRY("mov %%dr4, %0", : "=r"(value)), NO_TRAP, "dr4 without CR4.DE");
    check(value, DR6_CLEAR, "dr4 without CR4.DE is dr6");
}

SNIPPET(debug_read_dr, "mov %dr7, %rax");
SNIPPET(debug_write_dr, "mov %rax, %dr0");

static void check_registers(void) {
    unsigned long value;
    write_dr6(0);
    check(read_dr6(), DR6_CLEAR, "fixed ones of dr6");
    write_dr6(DR6_CLEAR);
    write_dr7(0);
    check(read_dr7(), DR7_FIXED, "fixed one of dr7");
    check(TRY("mov %0, %%dr6", : : "r"(BIT(32))), VECTOR_GP, "dr6 with an upper bit");
    check(TRY("mov %0, %%dr7", : : "r"(BIT(32) | DR7_FIXED)), VECTOR_GP, "dr7 with an upper bit");
    check(TRY("mov %1, %%dr3\n\tmov %%dr3, %0", : "=r"(value) : "r"(0x7fff12345678)), NO_TRAP, "dr3");
    check(value, 0x7fff12345678, "dr3 keeps an address");
    struct context c = context_user(debug_read_dr);
    context_run(&c);
    check_end(&c, VECTOR_GP, 0, "read of dr7 at CPL 3");
    c = context_user(debug_write_dr);
    context_run(&c);
    check_end(&c, VECTOR_GP, 0, "write of dr0 at CPL 3");
    write_dr7(DR7_FIXED | DR7_GD);
    c = context_kernel(debug_write_dr);
    context_run(&c);
    check_end(&c, VECTOR_DB, 0, "general detect");
    check(c.ip, (unsigned long)debug_write_dr, "general detect is a fault");
    check(read_dr7() & DR7_GD, 0, "general detect clears GD");
    check(read_dr6() & (DR6_BD | DR6_BS), DR6_BD, "general detect: dr6");
    write_dr7(DR7_FIXED);
    write_dr6(DR6_CLEAR);
    c = context_kernel(step_nops);
    c.flags |= FLAG_TF;
    context_run(&c);
    check(read_dr6(), DR6_CLEAR | DR6_BS, "single-step: dr6");
    check(TRY(".byte 0xf1", :), VECTOR_DB, "int1");
    check(read_dr6() & DR6_BS, DR6_BS, "dr6 is not cleared by the processor");
    write_dr6(DR6_CLEAR);
}

void kernel_main(void) {
    check_registers();
    check_steps();
    check_step_forms();
    check_execution();
    check_data();
    check_ports();
    checks_finish("debug64");
}
