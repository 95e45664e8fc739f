/*
 * Exceptions in 64-bit mode: which vector, which error code, what the frame says, and in what state the
 * machine is left. Source: Intel SDM volume 3, chapter 6, and the instruction pages of volume 2.
 */
#include "runtime.h"

#include "paging.h"

#define NON_CANONICAL 0x8000000000000000ull
#define HOLE 0x10000000000ull /* linear addresses that nothing else maps */

SNIPPET(load_by_rbp, "mov (%rbp), %rax");
SNIPPET(load_by_rsp, "mov (%rsp), %rax");
SNIPPET(load_by_rbp_gs, "mov %gs:(%rbp), %rax");
SNIPPET(push_rax, "push %rax");
SNIPPET(ret_near, "ret");

static void check_instructions(void) {
    unsigned long noncanonical = NON_CANONICAL, x = 0, at;
    check(TRY("ud2", :), VECTOR_UD, "ud2");
    check(TRY(".byte 0x0f, 0xff, 0xc0", :), VECTOR_UD, "ud0");
    check(TRY(".byte 0x0f, 0xb9, 0xc0", :), VECTOR_UD, "ud1");
    check(TRY("xor %%edx, %%edx\n\tmov $1, %%eax\n\txor %%ecx, %%ecx\n\tdivl %%ecx", ::
                  : "rax", "rcx", "rdx"),
          VECTOR_DE, "div by zero");
    check(TRY("mov $1, %%edx\n\txor %%eax, %%eax\n\tmov $1, %%ecx\n\tdivl %%ecx", ::
                  : "rax", "rcx", "rdx"),
          VECTOR_DE, "div overflow");
    check(TRY("mov $0x80000000, %%eax\n\tcltd\n\tmov $-1, %%ecx\n\tidivl %%ecx", ::
                  : "rax", "rcx", "rdx"),
          VECTOR_DE, "idiv minimum by -1");
    check(TRY("mov $0x80, %%eax\n\tmovsbw %%al, %%ax\n\tmov $-1, %%ecx\n\tidivb %%cl", ::
                  : "rax", "rcx"),
          VECTOR_DE, "idiv byte minimum by -1");
    check(TRY("mov (%1), %0", : "=r"(x) : "r"(noncanonical)), VECTOR_GP, "non-canonical load");
    check(probe.error, 0, "non-canonical load: error code");
    check(TRY("mov %0, (%1)", ::"r"(x), "r"(noncanonical)), VECTOR_GP, "non-canonical store");
    page_map(&boot_space, 0x7ffffffff000, (unsigned long)page_alloc(), PTE_P | PTE_W, 1);
    at = 0x7ffffffffff8;
    check(TRY("mov (%1), %0", : "=r"(x) : "r"(at)), NO_TRAP, "load up to the canonical end");
    at++;
    check(TRY("mov (%1), %0",
              : "=r"(x)
              : "r"(at)),
          VECTOR_GP, "load that crosses into the non-canonical hole");
    struct context c = context_kernel(load_by_rbp);
    c.bp = NON_CANONICAL;
    context_run(&c);
    check_end(&c, VECTOR_SS, 0, "non-canonical load by rbp");
    c = context_user(load_by_rsp);
    c.sp = NON_CANONICAL;
    context_run(&c);
    check_end(&c, VECTOR_SS, 0, "non-canonical load by rsp");
    c = context_kernel(load_by_rbp_gs); /* in 64-bit mode the prefix changes the segment but not the base */
    c.bp = NON_CANONICAL;
    context_run(&c);
    check_end(&c, VECTOR_GP, 0, "non-canonical load by rbp with a gs prefix");
    c = context_user(push_rax);
    c.sp = 0xffff800000000000;
    context_run(&c);
    check_end(&c, VECTOR_SS, 0, "push onto the non-canonical hole");
    c = context_user(ret_near);
    c.sp = NON_CANONICAL;
    context_run(&c);
    check_end(&c, VECTOR_SS, 0, "ret from a non-canonical stack");
    /* Near branches check their target before they load RIP (SDM 2, JMP): the frame shows the branch. */
    check(TRY("lea 1f(%%rip), %0\n1:\tjmp *%1",
              : "=&r"(at)
              : "r"(noncanonical)),
          VECTOR_GP, "jump to a non-canonical address");
    check(probe.ip, at, "jump to a non-canonical address: rip is the jump's");
    check(TRY("int3", :), VECTOR_BP, "int3");
    check(TRY(".byte 0xcd, 0x03", :), VECTOR_BP, "int 3");
    check(TRY("int $0x41", :), 0x41, "int n");
    check(TRY(".byte 0xf1", :), VECTOR_DB, "int1");
    check(TRY(".rept 14\n\t.byte 0x66\n\t.endr\n\tnop", :), NO_TRAP, "instruction of 15 bytes");
    check(TRY(".rept 15\n\t.byte 0x66\n\t.endr\n\tnop", :), VECTOR_GP, "instruction of 16 bytes");
    check(TRY(".byte 0xf0\n\tnop", :), VECTOR_UD, "lock nop");
    check(TRY(".byte 0xf0\n\tadd %%eax, %%ecx", ::: "rcx"), VECTOR_UD, "lock add to a register");
    check(TRY(".byte 0xf0\n\tmov %%eax, (%0)", ::"r"(&x)), VECTOR_UD, "lock mov");
    check(TRY(".byte 0xf0\n\tcmp %%eax, (%0)", ::"r"(&x)), VECTOR_UD, "lock cmp");
    check(TRY("mov %0, %%rax\n\tmovaps (%%rax), %%xmm0", ::"r"((unsigned long)gdt + 8)
              : "rax"),
          VECTOR_GP, "movaps unaligned");
    check(TRY("mov %0, %%rax\n\tcmpxchg16b (%%rax)", ::"r"((unsigned long)gdt + 8)
              : "rax", "rdx"),
          VECTOR_GP, "cmpxchg16b unaligned");
    static const uint8_t invalid[] = {0x06, 0x0e, 0x16, 0x1e, 0x27, 0x2f, 0x37, 0x3f,
                                      0x60, 0x61, 0x82, 0x9a, 0xce, 0xd4, 0xd6, 0xea};
    static uint8_t code[16];
    struct tally tally;
    tally_begin(&tally, "opcodes that 64-bit mode has not");
    for (unsigned i = 0; i < ARRAY_SIZE(invalid); i++) {
        for (unsigned j = 0; j < sizeof(code); j++)
            ((volatile uint8_t *)code)[j] = 0x90;
        *(volatile uint8_t *)code = invalid[i];
        c = context_kernel(code);
        context_run(&c);
        tally_case(&tally, c.vector, VECTOR_UD, "opcode 0x%x", invalid[i]);
    }
    tally_end(&tally);
}

/* A vector through a gate in a bad state: the fault that comes of it. */
SNIPPET(raise_int, "int $0x50");
SNIPPET(raise_ud, "ud2");
SNIPPET(raise_icebp, ".byte 0xf1");
SNIPPET(raise_int3, "int3");
SNIPPET(raise_load, "mov (%rax), %rcx");

static void check_gate(unsigned vector, const void *code, bool user, unsigned want, unsigned error,
                       const char *name) {
    struct context c = user ? context_user(code) : context_kernel(code);
    c.ax = NON_CANONICAL;
    unsigned long ip = c.ip;
    context_run(&c);
    check_end(&c, want, error, name);
    check(c.ip, ip, "%s: rip", name);
    gate_reset(vector);
}

static void check_gates(void) {
    const unsigned present = DESCRIPTOR_PRESENT;
    gate_retype(0x50, GATE_INTERRUPT, 0);
    check_gate(0x50, raise_int, false, VECTOR_NP, 0x50 * 8 + 2, "int n, gate not present");
    gate_retype(0x50, GATE_TASK | present, 0);
    check_gate(0x50, raise_int, false, VECTOR_GP, 0x50 * 8 + 2, "int n, task gate");
    gate_retype(0x50, GATE_CALL | present, 0);
    check_gate(0x50, raise_int, false, VECTOR_GP, 0x50 * 8 + 2, "int n, call gate");
    gate_retype(0x50, GATE_INTERRUPT16 | present, 0);
    check_gate(0x50, raise_int, false, VECTOR_GP, 0x50 * 8 + 2, "int n, 16-bit gate");
    gate_retype(0x50, 0x12 | present, 0);
    check_gate(0x50, raise_int, false, VECTOR_GP, 0x50 * 8 + 2, "int n, not a system descriptor");
    check_gate(0x50, raise_int, true, VECTOR_GP, 0x50 * 8 + 2, "int n at CPL 3, gate DPL 0");
    gate_retype(0x50, GATE_INTERRUPT | DESCRIPTOR_DPL(2), 0);
    check_gate(0x50, raise_int, true, VECTOR_GP, 0x50 * 8 + 2, "int n at CPL 3, DPL is checked before P");
    gate_retype(3, GATE_INTERRUPT | present, 0);
    check_gate(3, raise_int3, true, VECTOR_GP, 3 * 8 + 2, "int3 at CPL 3, gate DPL 0");
    gate_set(0x50, raise_ud, 0, GATE_INTERRUPT | present, 0);
    check_gate(0x50, raise_int, false, VECTOR_GP, 0, "gate with a null selector");
    gate_set(0x50, raise_ud, 3, GATE_INTERRUPT | present, 0);
    check_gate(0x50, raise_int, false, VECTOR_GP, 0, "gate with a null selector of RPL 3");
    gate_set(0x50, raise_ud, 0x7f8, GATE_INTERRUPT | present, 0);
    check_gate(0x50, raise_int, false, VECTOR_GP, 0x7f8, "gate with a selector beyond the limit");
    gate_set(0x50, raise_ud, KERNEL_DS, GATE_INTERRUPT | present, 0);
    check_gate(0x50, raise_int, false, VECTOR_GP, KERNEL_DS, "gate to a data segment");
    gate_set(0x50, raise_ud, KERNEL_CS32, GATE_INTERRUPT | present, 0);
    check_gate(0x50, raise_int, false, VECTOR_GP, KERNEL_CS32, "gate to a 32-bit segment");
    gate_set(0x50, raise_ud, USER_CS, GATE_INTERRUPT | present, 0);
    check_gate(0x50, raise_int, false, VECTOR_GP, USER_CS & ~3, "gate to a DPL 3 segment");
    unsigned selector =
        gdt_set(0, segment_descriptor(0, 0xfffff, SEGMENT_CODE, SEGMENT_LONG | SEGMENT_PAGES));
    gate_set(0x50, raise_ud, (uint16_t)selector, GATE_INTERRUPT | present, 0);
    check_gate(0x50, raise_int, false, VECTOR_NP, selector, "gate to a segment not present");
    gdt_set(0, segment_descriptor(0, 0xfffff, SEGMENT_CODE | present, SEGMENT_LONG | SEGMENT_BIG));
    gate_set(0x50, raise_ud, (uint16_t)selector, GATE_INTERRUPT | present, 0);
    check_gate(0x50, raise_int, false, VECTOR_GP, selector, "gate to a segment with L and D");
    gate_set(0x50, (void *)NON_CANONICAL, KERNEL_CS, GATE_INTERRUPT | present, 0);
    check_gate(0x50, raise_int, false, VECTOR_GP, 0, "gate with a non-canonical offset");

    /* A benign exception through a bad gate: the second is delivered, with EXT (6.13, 6.15 table 6-5). */
    gate_retype(VECTOR_UD, GATE_INTERRUPT, 0);
    check_gate(VECTOR_UD, raise_ud, false, VECTOR_NP, VECTOR_UD * 8 + 3, "#UD, gate not present");
    gate_retype(VECTOR_UD, GATE_CALL | present, 0);
    check_gate(VECTOR_UD, raise_ud, true, VECTOR_GP, VECTOR_UD * 8 + 3, "#UD at CPL 3, call gate");
    gate_set(VECTOR_UD, raise_ud, KERNEL_DS, GATE_INTERRUPT | present, 0);
    check_gate(VECTOR_UD, raise_ud, false, VECTOR_GP, KERNEL_DS + 1, "#UD, gate to a data segment");
    gate_set(VECTOR_UD, raise_ud, 0, GATE_INTERRUPT | present, 0);
    check_gate(VECTOR_UD, raise_ud, false, VECTOR_GP, 1, "#UD, gate with a null selector");
    gate_retype(VECTOR_DB, GATE_INTERRUPT, 0);
    check_gate(VECTOR_DB, raise_icebp, true, VECTOR_NP, VECTOR_DB * 8 + 3, "int1, gate not present");
    gate_retype(VECTOR_BP, GATE_INTERRUPT | DESCRIPTOR_DPL(3), 0);
    check_gate(VECTOR_BP, raise_int3, true, VECTOR_NP, VECTOR_BP * 8 + 2, "int3, gate not present");

    /* Contributory with contributory, and page fault with either. */
    gate_retype(VECTOR_GP, GATE_INTERRUPT, 0);
    check_gate(VECTOR_GP, raise_load, false, VECTOR_DF, 0, "#GP, gate not present");
    gate_retype(VECTOR_GP, GATE_CALL | present, 0);
    check_gate(VECTOR_GP, raise_load, true, VECTOR_DF, 0, "#GP at CPL 3, call gate");

    struct table_register idtr = {0x4f * 16 + 15, (unsigned long)idt},
                          all = {256 * 16 - 1, (unsigned long)idt};
    asm volatile("lidt %0" : : "m"(idtr));
    check_gate(0x50, raise_int, false, VECTOR_GP, 0x50 * 8 + 2, "int n beyond the IDT's limit");
    idtr.limit = 0x50 * 16 + 14;
    asm volatile("lidt %0" : : "m"(idtr));
    check_gate(0x50, raise_int, false, VECTOR_GP, 0x50 * 8 + 2, "int n, last byte beyond the IDT's limit");
    asm volatile("lidt %0" : : "m"(all));
}

/* Faults while the frame is pushed. */
static void check_pushes(void) {
    struct context c;
    const unsigned interrupt = GATE_INTERRUPT | DESCRIPTOR_PRESENT;

    c = context_kernel(raise_ud);
    c.sp = NON_CANONICAL;
    context_run(&c);
    check_end(&c, VECTOR_DF, 0, "#UD on a non-canonical stack");
    check(c.sp, NON_CANONICAL, "#UD on a non-canonical stack: rsp");
    gate_retype(VECTOR_SS, interrupt, 2);
    c = context_kernel(raise_int);
    c.sp = NON_CANONICAL;
    context_run(&c);
    check_end(&c, VECTOR_SS, 0, "int n on a non-canonical stack");
    gate_reset(VECTOR_SS);

    c = context_kernel(raise_load);
    c.ax = HOLE;
    c.sp = HOLE + 0x2000;
    context_run(&c);
    check_end(&c, VECTOR_DF, 0, "#PF on an unmapped stack");
    check(c.ip, (unsigned long)raise_load, "#PF on an unmapped stack: rip");

    gate_retype(VECTOR_PF, interrupt, 2);
    c = context_kernel(raise_ud);
    c.sp = HOLE + 0x2000;
    context_run(&c);
    check_end(&c, VECTOR_PF, PF_W, "#UD on an unmapped stack");
    check(c.cr2, HOLE + 0x1ff8, "#UD on an unmapped stack: cr2");
    c = context_kernel(raise_load);
    c.ax = NON_CANONICAL;
    c.sp = HOLE + 0x2008; /* aligned down first */
    context_run(&c);
    check_end(&c, VECTOR_PF, PF_W, "#GP on an unmapped stack");
    check(c.cr2, HOLE + 0x1ff8, "#GP on an unmapped stack: cr2");
    check(c.ip, (unsigned long)raise_load, "#GP on an unmapped stack: rip");
    gate_reset(VECTOR_PF);

    /* From CPL 3 onto a bad RSP0. */
    struct tss64 *tss = cpu_tss(0);
    uint64_t saved = tss->rsp[0];
    tss->rsp[0] = HOLE + 0x2000;
    gate_retype(VECTOR_PF, interrupt, 2);
    c = context_user(raise_ud);
    context_run(&c);
    check_end(&c, VECTOR_PF, PF_W, "#UD at CPL 3 onto an unmapped RSP0");
    check(c.cs, USER_CS, "#UD at CPL 3 onto an unmapped RSP0: cs");
    tss->rsp[0] = NON_CANONICAL;
    gate_retype(VECTOR_SS, interrupt, 3);
    c = context_user(raise_int3);
    context_run(&c);
    check_end(&c, VECTOR_SS, 0, "int3 at CPL 3 onto a non-canonical RSP0");
    tss->rsp[0] = saved;
    gate_reset(VECTOR_SS);
    gate_reset(VECTOR_PF);
}

static volatile unsigned long seen_flags, seen_top, seen_ss, seen_frame_flags;

static void handler_look(struct context *frame) {
    seen_flags = read_flags();
    seen_top = (unsigned long)(&frame->ss + 1);
    seen_frame_flags = frame->flags;
    asm volatile("mov %%ss, %0" : "=r"(seen_ss));
    frame->ip += frame->vector == VECTOR_UD ? 2 : 0;
}

SNIPPET(two_events, "int $0x50\n\tud2");

static void check_frame(void) {
    const unsigned interrupt = GATE_INTERRUPT | DESCRIPTOR_PRESENT | DESCRIPTOR_DPL(3);
    const unsigned trap = GATE_TRAP | DESCRIPTOR_PRESENT | DESCRIPTOR_DPL(3);
    const unsigned long set =
        FLAG_CF | FLAG_ZF | FLAG_SF | FLAG_OF | FLAG_DF | FLAG_AC | FLAG_NT | FLAG_ID | FLAG_IF | FLAG_FIXED;
    struct context c;

    trap_handle(0x50, handler_look);
    trap_handle(VECTOR_UD, handler_look);
    for (unsigned user = 0; user < 2; user++) {
        const char *cpl = user ? "CPL 3" : "CPL 0";
        for (unsigned gate = 0; gate < 2; gate++) {
            gate_retype(0x50, gate ? trap : interrupt, 0);
            c = user ? context_user(two_events) : context_kernel(two_events);
            c.flags = set & ~FLAG_NT;
            context_run(&c);
            check(c.vector, VECTOR_DONE, "%s gate from %s returns", gate ? "trap" : "interrupt", cpl);
            check(c.flags, set & ~FLAG_NT, "%s gate from %s: flags after return", gate ? "trap" : "interrupt",
                  cpl);
        }
        gate_retype(0x50, trap, 0);
        c = user ? context_user(raise_int) : context_kernel(raise_int);
        c.flags = set;
        context_run(&c);
        check(seen_flags & (FLAG_IF | FLAG_NT | FLAG_TF | FLAG_RF | FLAG_AC), FLAG_IF | FLAG_AC,
              "trap gate from %s keeps IF and AC, clears NT", cpl);
        check(seen_frame_flags, set, "trap gate from %s: pushed flags", cpl);
        gate_retype(0x50, interrupt, 0);
        c = user ? context_user(raise_int) : context_kernel(raise_int);
        context_run(&c);
        c = user ? context_user(raise_int) : context_kernel(raise_int);
        c.flags = set;
        context_run(&c);
        check(seen_flags & (FLAG_IF | FLAG_NT | FLAG_TF | FLAG_RF | FLAG_AC), FLAG_AC,
              "interrupt gate from %s clears IF and NT", cpl);
        check(seen_ss, user ? 0 : KERNEL_DS, "interrupt from %s: ss", cpl);
        if (user)
            check(seen_top, cpu_stack_top(0, 0), "interrupt from CPL 3: on RSP0");
        for (unsigned ist = 1; ist < 4; ist++) {
            gate_retype(0x50, interrupt, ist);
            c = user ? context_user(raise_int) : context_kernel(raise_int);
            context_run(&c);
            check(seen_top, cpu_stack_top(0, ist), "IST %u from %s", ist, cpl);
        }
        gate_reset(0x50);
    }
    gate_retype(0x50, interrupt, 0);
    c = context_kernel(raise_int);
    c.sp += 8;
    unsigned long sp = c.sp;
    context_run(&c);
    check(seen_top, sp & ~15ul, "the frame starts on 16 bytes");
    check(c.sp, sp, "the pushed rsp is the true one");
    cpu_tss(0)->ist[0] += 8 - 16;
    gate_retype(0x50, interrupt, 1);
    c = context_kernel(raise_int);
    context_run(&c);
    check(seen_top, cpu_stack_top(0, 1) - 16, "IST stacks are aligned too");
    cpu_tss(0)->ist[0] += 16 - 8;
    gate_reset(0x50);
    trap_handle(0x50, 0);
    trap_handle(VECTOR_UD, 0);

    /* RF in the pushed flags: set by faults, not by traps and software interrupts (SDM 3, 17.3.1.1). */
    c = context_kernel(raise_ud);
    context_run(&c);
    check(c.flags & FLAG_RF, FLAG_RF, "a fault pushes RF set");
    c = context_kernel(raise_int);
    context_run(&c);
    check(c.flags & FLAG_RF, 0, "int n pushes RF clear");
    c = context_kernel(raise_int3);
    context_run(&c);
    check(c.flags & FLAG_RF, 0, "int3 pushes RF clear");
    check(c.ip, (unsigned long)raise_int3 + 1, "int3: rip is after it");
    c = context_user(raise_icebp);
    context_run(&c);
    check_end(&c, VECTOR_DB, 0, "int1 at CPL 3 ignores the gate's DPL");
    check(c.ip, (unsigned long)user_pointer(raise_icebp) + 1, "int1: rip is after it");
}

static volatile unsigned long calls;

static __attribute__((noinline)) void kernel_function(void) {
    calls++;
}

SNIPPET(jump_rax, "jmp *%rax");

/* A branch of ring 3 to any non-canonical address is a #GP, whatever the address. A translator that knows
 * targets by a hash of the address and of who asks must not take one of these for code that the kernel ran:
 * the bits above 47 and the low ones are those with which tags of contexts could be told apart. */
static void check_targets(void) {
    void (*volatile function)(void) = kernel_function;
    struct tally tally;
    tally_begin(&tally, "jumps of ring 3 to non-canonical addresses");
    for (unsigned long tag = 1; tag < 32; tag++) {
        for (unsigned long other = 0; other < tag; other++) {
            unsigned long spread = ((tag * 0x9e3779b1) ^ (other * 0x9e3779b1)) & 0x3fff;
            for (unsigned i = 0; i < 2; i++) {
                function();
                struct context c = context_user(jump_rax);
                c.ax = (unsigned long)kernel_function ^ (tag ^ other) << 48 ^ (i ? spread : 0);
                context_run(&c);
                tally_case(&tally, c.vector, VECTOR_GP, "jump to 0x%lx", c.ax);
            }
        }
    }
    tally_end(&tally);
}

void exceptions_state_check(void);

void kernel_main(void) {
    check_instructions();
    check_gates();
    check_pushes();
    check_frame();
    check_targets();
    exceptions_state_check();
    checks_finish("exceptions64");
}
