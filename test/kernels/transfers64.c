/*
 * Control transfers of 64-bit mode: SYSCALL, SYSRET, SYSENTER, SYSEXIT, IRET and far RET between 64-bit and
 * compatibility mode, far JMP and CALL, 64-bit call gates, and SWAPGS. Source: Intel SDM volume 2, and volume
 * 3, 5.8.
 */
#include "runtime.h"

#define NON_CANONICAL BIT(63)

SNIPPET(sys_call, "syscall");
SNIPPET(sys_enter, "sysenter");
SNIPPET(sys_return, "sysretq");
SNIPPET(sys_return32, "sysretl");
SNIPPET(sys_exit, "sysexitq");
SNIPPET(sys_exit32, "sysexitl");
SNIPPET(landing, "nop");

static const unsigned long user_flags = FLAG_CF | FLAG_PF | FLAG_AF | FLAG_ZF | FLAG_SF | FLAG_OF | FLAG_DF |
                                        FLAG_AC | FLAG_ID | FLAG_IF | FLAG_FIXED;

static void check_syscall(void) {
    struct context c;
    write_msr(MSR_STAR, (uint64_t)KERNEL_CS << 32 | (uint64_t)USER_CS32 << 48);
    write_msr(MSR_LSTAR, (unsigned long)landing);
    static const unsigned long masks[] = {0,
                                          FLAG_IF,
                                          FLAG_DF | FLAG_CF,
                                          FLAG_AC | FLAG_ID | FLAG_ZF,
                                          ~0u,
                                          FLAG_PF | FLAG_AF | FLAG_SF | FLAG_OF};
    for (unsigned i = 0; i < ARRAY_SIZE(masks); i++) {
        write_msr(MSR_SFMASK, masks[i]);
        c = context_user(sys_call);
        c.flags = user_flags;
        unsigned long ip = c.ip, sp = c.sp;
        context_run(&c);
        check_end(&c, VECTOR_DONE, 0, "syscall");
        check(c.ip, (unsigned long)landing + 3, "syscall: target");
        check(c.cs << 16 | c.ss, KERNEL_CS << 16 | KERNEL_DS, "syscall: cs and ss");
        check(c.cx, ip + 2, "syscall: rcx");
        check(c.r11, user_flags, "syscall: r11");
        check(c.flags, (user_flags & ~masks[i]) | FLAG_FIXED, "syscall: flags under mask 0x%lx", masks[i]);
        check(c.sp, sp, "syscall: rsp");
    }
    write_msr(MSR_SFMASK, FLAG_TF | FLAG_IF);
    c = context_user(sys_call);
    c.flags |= FLAG_TF;
    context_run(&c);
    check_end(&c, VECTOR_DONE, 0, "syscall under TF that the mask clears");
    check(c.r11 & FLAG_TF, FLAG_TF, "syscall under TF: r11");
    write_msr(MSR_EFER, read_msr(MSR_EFER) & ~EFER_SCE);
    c = context_user(sys_call);
    context_run(&c);
    check_end(&c, VECTOR_UD, 0, "syscall without EFER.SCE");
    check(TRY("sysretq", :), VECTOR_UD, "sysret without EFER.SCE");
    write_msr(MSR_EFER, read_msr(MSR_EFER) | EFER_SCE);
    check(TRY("wrmsr", : : "c"(MSR_LSTAR), "a"(0), "d"(0x80000000)), VECTOR_GP, "a non-canonical LSTAR");
    check(TRY("wrmsr", : : "c"(MSR_CSTAR), "a"(0), "d"(0x80000000)), VECTOR_GP, "a non-canonical CSTAR");

    for (unsigned narrow = 0; narrow < 2; narrow++) {
        const char *name = narrow ? "sysret to 32-bit" : "sysret";
        c = context_kernel(narrow ? sys_return32 : sys_return);
        c.cx = (unsigned long)user_pointer(landing) + (narrow ? 0xabcd00000000 : 0);
        c.r11 = user_flags | FLAG_NT | FLAG_RF | FLAG_VM | FLAG_IOPL(3);
        unsigned long sp = c.sp;
        context_run(&c);
        check_end(&c, VECTOR_DONE, 0, name);
        check(c.cs, narrow ? USER_CS32 : USER_CS, "%s: cs", name);
        check(c.ss, USER_DS, "%s: ss", name);
        check(c.ip, (unsigned long)user_pointer(landing) + 3, "%s: rip", name);
        check(c.flags, user_flags | FLAG_NT | FLAG_IOPL(3), "%s: flags", name);
        check(c.sp, sp, "%s: rsp", name);
        /* TF counts as SYSRET leaves it. */
        c = context_kernel(narrow ? sys_return32 : sys_return);
        c.cx = (unsigned long)user_pointer(landing);
        c.r11 = user_flags | FLAG_TF;
        context_run(&c);
        check_end(&c, VECTOR_DB, 0, name);
        check(c.ip, (unsigned long)user_pointer(landing), "%s: TF traps before the first instruction", name);
        check(c.cs, narrow ? USER_CS32 : USER_CS, "%s: TF traps in user mode", name);
        check(c.flags & (FLAG_TF | FLAG_RF), FLAG_TF, "%s: flags of that trap", name);
        check(read_dr6() & BIT(14), BIT(14), "%s: dr6 of that trap", name);
        c = context_kernel(narrow ? sys_return32 : sys_return);
        c.cx = (unsigned long)user_pointer(landing);
        c.flags |= FLAG_TF;
        c.r11 = user_flags;
        context_run(&c);
        check_end(&c, VECTOR_DONE, 0, "a traced sysret that clears TF");
    }
    c = context_user(sys_return);
    context_run(&c);
    check_end(&c, VECTOR_GP, 0, "sysret at CPL 3");
    if (cpu_is_intel()) {
        c = context_kernel(sys_return);
        c.cx = NON_CANONICAL;
        c.r11 = FLAG_FIXED;
        context_run(&c);
        check_end(&c, VECTOR_GP, 0, "sysret to a non-canonical address");
        check(c.cs, KERNEL_CS, "sysret to a non-canonical address: faults at CPL 0");
        c = context_user(sys_call);
        c.cs = USER_CS32;
        context_run(&c);
        check_end(&c, VECTOR_UD, 0, "syscall in compatibility mode");
    }
    /* The selectors are loaded as they are; the hidden parts are fixed (SDM 2, SYSCALL). */
    write_msr(MSR_STAR, (uint64_t)(KERNEL_CS | 3) << 32 | (uint64_t)(USER_CS32 & ~3) << 48);
    c = context_user(sys_call);
    context_run(&c);
    check(c.cs << 16 | c.ss, KERNEL_CS << 16 | (KERNEL_DS | 3), "syscall with RPL bits in STAR");
    c = context_kernel(sys_return);
    c.cx = (unsigned long)user_pointer(landing);
    c.r11 = FLAG_FIXED;
    context_run(&c);
    check(c.cs << 16 | c.ss, USER_CS << 16 | USER_DS, "sysret without RPL bits in STAR");
    write_msr(MSR_STAR, (uint64_t)KERNEL_CS << 32 | (uint64_t)USER_CS32 << 48);
}

static void check_sysenter(void) {
    struct context c;
    write_msr(MSR_SYSENTER_CS, KERNEL_CS);
    write_msr(MSR_SYSENTER_ESP, cpu_stack_top(0, 3));
    write_msr(MSR_SYSENTER_EIP, (unsigned long)landing);
    check(read_msr(MSR_SYSENTER_EIP), (unsigned long)landing, "SYSENTER_EIP");
    for (unsigned narrow = 0; narrow < 2; narrow++) {
        c = context_user(sys_enter);
        c.cs = narrow ? USER_CS32 : USER_CS;
        c.flags = user_flags;
        context_run(&c);
        check_end(&c, VECTOR_DONE, 0, narrow ? "sysenter in compatibility mode" : "sysenter");
        check(c.cs << 16 | c.ss, KERNEL_CS << 16 | KERNEL_DS, "sysenter: cs and ss");
        check(c.ip, (unsigned long)landing + 3, "sysenter: rip");
        check(c.sp, cpu_stack_top(0, 3), "sysenter: rsp");
        check(c.flags, user_flags & ~FLAG_IF, "sysenter: flags");
        c = context_kernel(narrow ? sys_exit32 : sys_exit);
        c.dx = (unsigned long)user_pointer(landing);
        c.cx = c.sp + USER_ALIAS;
        unsigned long sp = c.cx;
        context_run(&c);
        check_end(&c, VECTOR_DONE, 0, narrow ? "sysexit to 32-bit" : "sysexit");
        check(c.cs << 16 | c.ss,
              (KERNEL_CS + (narrow ? 16 : 32) + 3) << 16 | (KERNEL_CS + (narrow ? 24 : 40) + 3),
              "sysexit: cs and ss");
        check(c.sp, sp, "sysexit: rsp");
        check(c.ip, (unsigned long)user_pointer(landing) + 3, "sysexit: rip");
    }
    c = context_user(sys_exit);
    context_run(&c);
    check_end(&c, VECTOR_GP, 0, "sysexit at CPL 3");
    c = context_kernel(sys_exit);
    c.dx = NON_CANONICAL;
    context_run(&c);
    check_end(&c, VECTOR_GP, 0, "sysexit to a non-canonical address");
    write_msr(MSR_SYSENTER_CS, 0);
    c = context_user(sys_enter);
    context_run(&c);
    check_end(&c, VECTOR_GP, 0, "sysenter with a null SYSENTER_CS");
    check(TRY("sysexitq", : : "d"(0ul), "c"(0ul)), VECTOR_GP, "sysexit with a null SYSENTER_CS");
}

/* rax = cs, rbx = rip, rcx = ss, rdx = rsp, rsi = flags */
SNIPPET(go_iret, "push %rcx\n\tpush %rdx\n\tpush %rsi\n\tpush %rax\n\tpush %rbx\n\tiretq");
SNIPPET(
    go_iret32,
    "sub $20, %rsp\n\tmov %ecx, 16(%rsp)\n\tmov %edx, 12(%rsp)\n\tmov %esi, 8(%rsp)\n\tmov %eax, 4(%rsp)\n\t"
    "mov %ebx, (%rsp)\n\tiretl");
SNIPPET(go_lret, "push %rcx\n\tpush %rdx\n\tpush %rax\n\tpush %rbx\n\tlretq");
/* LJMP and LCALL *(%rsp) with REX.W, which not every assembler writes. */
SNIPPET(go_jump, "push %rax\n\tpush %rbx\n\t.byte 0x48, 0xff, 0x2c, 0x24");
SNIPPET(go_jump32, "sub $8, %rsp\n\tmov %ebx, (%rsp)\n\tmov %eax, 4(%rsp)\n\tljmp *(%rsp)");
SNIPPET(go_call, "push %rax\n\tpush %rbx\n\t.byte 0x48, 0xff, 0x1c, 0x24");
SNIPPET(go_call_back, "push %rax\n\tpush %rbx\n\t.byte 0x48, 0xff, 0x1c, 0x24\n\tmov $7, %r8d");
SNIPPET(compat_code, ".code32\n\tinc %eax\n\t.code64"); /* one byte: a REX prefix in 64-bit mode */
SNIPPET(far_return, "lretq");

static struct context go(const void *code, unsigned cs, const void *target, bool user) {
    struct context c = context_kernel(code);
    c.ax = cs;
    c.bx = (unsigned long)(user ? user_pointer(target) : target);
    c.cx = user ? USER_DS : KERNEL_DS;
    c.dx = c.sp - 1024 + (user ? USER_ALIAS : 0);
    c.si = FLAG_FIXED;
    return c;
}

static void check_far(void) {
    static const struct {
        const char *name;
        const void *code;
        unsigned cs;
        bool user;
    } returns[] = {
        {"iretq to CPL 3", go_iret, USER_CS, true},
        {"iretq to compatibility mode", go_iret, USER_CS32, true},
        {"iretq to CPL 0", go_iret, KERNEL_CS, false},
        {"iretl to CPL 3", go_iret32, USER_CS, true},
        {"iretl to CPL 0", go_iret32, KERNEL_CS, false},
        {"lretq to CPL 3", go_lret, USER_CS, true},
        {"lretq to compatibility mode", go_lret, USER_CS32, true},
    };
    struct context c;
    for (unsigned i = 0; i < ARRAY_SIZE(returns); i++) {
        c = go(returns[i].code, returns[i].cs, landing, returns[i].user);
        unsigned long sp = c.dx;
        context_run(&c);
        check_end(&c, VECTOR_DONE, 0, returns[i].name);
        check(c.cs, returns[i].cs, "%s: cs", returns[i].name);
        check(c.ss, returns[i].user ? USER_DS : KERNEL_DS, "%s: ss", returns[i].name);
        check(c.sp, sp, "%s: rsp", returns[i].name);
    }
    c = go(go_iret, USER_CS32, compat_code, true);
    c.ax = USER_CS32;
    context_run(&c);
    check(c.ax, USER_CS32 + 1, "compatibility mode runs 32-bit code");
    c = go(go_iret, USER_CS, landing, true);
    c.cx = 0;
    context_run(&c);
    check_end(&c, VECTOR_GP, 0, "iretq to CPL 3 with a null ss");
    c = go(go_iret, KERNEL_CS, landing, false);
    c.cx = 0;
    context_run(&c);
    check_end(&c, VECTOR_DONE, 0, "iretq to 64-bit CPL 0 with a null ss");
    check(c.ss, 0, "iretq to 64-bit CPL 0 with a null ss: ss");
    c = go(go_iret, KERNEL_CS32, landing, false);
    c.cx = 0;
    context_run(&c);
    check_end(&c, VECTOR_GP, 0, "iretq to compatibility mode at CPL 0 with a null ss");
    c = go(go_iret, KERNEL_CS, landing, false);
    c.si |= FLAG_NT;
    context_run(&c);
    check_end(&c, VECTOR_DONE, 0, "iretq that sets NT");
    c = go(go_iret, KERNEL_CS, landing, false);
    c.flags |= FLAG_NT;
    context_run(&c);
    check_end(&c, VECTOR_GP, 0, "iretq under NT");
    c = go(go_iret, KERNEL_CS, (void *)NON_CANONICAL, false);
    context_run(&c);
    check_end(&c, VECTOR_GP, 0, "iretq to a non-canonical address");
    check(c.ip, (unsigned long)go_iret + 5, "iretq to a non-canonical address: rip");
    c = go(go_iret, USER_CS, (void *)NON_CANONICAL, false);
    c.cx = USER_DS;
    context_run(&c);
    check_end(&c, VECTOR_GP, 0, "iretq to a non-canonical address at CPL 3");
    c = go(go_iret, 0, landing, false);
    context_run(&c);
    check_end(&c, VECTOR_GP, 0, "iretq to a null cs");
    uint16_t both = gdt_set(
        0, segment_descriptor(0, 0xfffff, SEGMENT_CODE | DESCRIPTOR_PRESENT, SEGMENT_LONG | SEGMENT_BIG));
    c = go(go_iret, both, landing, false);
    context_run(&c);
    check_end(&c, VECTOR_GP, both, "iretq to a segment with L and D");
    c = go(go_jump32, both, landing, false);
    context_run(&c);
    check_end(&c, VECTOR_GP, both, "far jmp to a segment with L and D");

    static const struct {
        const char *name;
        const void *code;
    } jumps[] = {{"far jmp", go_jump}, {"far jmp with a 32-bit offset", go_jump32}, {"far call", go_call}};
    for (unsigned i = 0; i < ARRAY_SIZE(jumps); i++) {
        c = go(jumps[i].code, KERNEL_CS, landing, false);
        context_run(&c);
        check_end(&c, VECTOR_DONE, 0, jumps[i].name);
        check(c.ip, (unsigned long)landing + 3, "%s: rip", jumps[i].name);
        c = go(jumps[i].code, KERNEL_CS32, compat_code, false);
        context_run(&c);
        check_end(&c, VECTOR_DONE, 0, "to compatibility mode");
        check(c.cs << 32 | c.ax, (uint64_t)KERNEL_CS32 << 32 | (KERNEL_CS32 + 1), "%s to compatibility mode",
              jumps[i].name);
        c = go(jumps[i].code, USER_CS, landing, false);
        context_run(&c);
        check_end(&c, VECTOR_GP, USER_CS & ~3, "far transfer to DPL 3");
        c = go(jumps[i].code, TSS_SELECTOR, landing, false);
        context_run(&c);
        check_end(&c, VECTOR_GP, TSS_SELECTOR, "far transfer to a TSS: 64-bit mode has no tasks");
    }
    c = go(go_call_back, KERNEL_CS, far_return, false);
    unsigned long sp = c.sp;
    context_run(&c);
    check_end(&c, VECTOR_DONE, 0, "far call and far ret");
    check(c.r8 << 32 | (sp - c.sp), 7ul << 32 | 16, "far call and far ret: rsp");
}

static void gate_write(unsigned slot, const void *target, unsigned selector, unsigned type, unsigned count) {
    unsigned long address = (unsigned long)target;
    gdt_set(slot, (uint64_t)(address >> 16 & 0xffff) << 48 | (uint64_t)type << 40 | (uint64_t)count << 32 |
                      (uint64_t)selector << 16 | (address & 0xffff));
    gdt_set(slot + 1, address >> 32);
}

SNIPPET(gate_target,
        "mov (%rsp), %r8\n\tmov 8(%rsp), %r9\n\tmov 16(%rsp), %r10\n\tmov 24(%rsp), %r11\n\tmov %rsp, %r12");

static void check_call_gates(void) {
    const unsigned present = DESCRIPTOR_PRESENT, open = present | DESCRIPTOR_DPL(3) | GATE_CALL;
    struct context c;
    gate_write(0, gate_target, KERNEL_CS, open, 0);
    c = context_user(go_call);
    c.ax = SCRATCH_SELECTOR | 3;
    unsigned long ip = c.ip, sp = c.sp;
    context_run(&c);
    check_end(&c, VECTOR_DONE, 0, "call gate from CPL 3");
    check(c.cs, KERNEL_CS, "call gate from CPL 3: cs");
    check(c.ss, 0, "call gate from CPL 3: ss is null");
    check(c.r12, cpu_stack_top(0, 0) - 32, "call gate from CPL 3: rsp");
    check(c.r8 - ip, 6, "call gate from CPL 3: return rip");
    check(c.r9 << 16 | c.r11, (unsigned long)USER_CS << 16 | USER_DS,
          "call gate from CPL 3: return cs and ss");
    check(c.r10, sp - 16, "call gate from CPL 3: return rsp");
    gate_write(0, far_return, KERNEL_CS, open, 0);
    c = context_user(go_call_back);
    c.ax = SCRATCH_SELECTOR | 3;
    context_run(&c);
    check_end(&c, VECTOR_DONE, 0, "call gate and lretq");
    check(c.cs << 16 | c.r8, (unsigned long)USER_CS << 16 | 7, "call gate and lretq: cs and after");
    struct {
        const char *name;
        unsigned selector, type, upper, vector, error;
    } cases[] = {
        {"call gate of DPL 0 from CPL 3", KERNEL_CS, present | GATE_CALL, 0, VECTOR_GP, SCRATCH_SELECTOR},
        {"call gate not present", KERNEL_CS, GATE_CALL | DESCRIPTOR_DPL(3), 0, VECTOR_NP, SCRATCH_SELECTOR},
        {"call gate with a null selector", 0, open, 0, VECTOR_GP, 0},
        {"call gate to data", KERNEL_DS, open, 0, VECTOR_GP, KERNEL_DS},
        {"call gate to a 32-bit segment", KERNEL_CS32, open, 0, VECTOR_GP, KERNEL_CS32},
        {"call gate with a type in its upper half", KERNEL_CS, open, 0x1f00, VECTOR_GP, SCRATCH_SELECTOR},
        {"16-bit call gate", KERNEL_CS, present | DESCRIPTOR_DPL(3) | GATE_CALL16, 0, VECTOR_GP,
         SCRATCH_SELECTOR},
        {"task gate", KERNEL_CS, present | DESCRIPTOR_DPL(3) | GATE_TASK, 0, VECTOR_GP, SCRATCH_SELECTOR},
    };
    for (unsigned i = 0; i < ARRAY_SIZE(cases); i++) {
        gate_write(0, gate_target, cases[i].selector, cases[i].type, 0);
        gdt_set(1, (uint64_t)cases[i].upper << 32);
        c = context_user(go_call);
        c.ax = SCRATCH_SELECTOR | 3;
        context_run(&c);
        check_end(&c, cases[i].vector, cases[i].error, cases[i].name);
    }
}

SNIPPET(user_swapgs, "swapgs");
SNIPPET(user_gsbase, "rdgsbase %rax");

static void check_gs(void) {
    write_msr(MSR_GS_BASE, 0x1111111111);
    write_msr(MSR_KERNEL_GS_BASE, 0x2222222222);
    asm volatile("swapgs");
    check(read_msr(MSR_GS_BASE), 0x2222222222, "swapgs: GS base");
    check(read_msr(MSR_KERNEL_GS_BASE), 0x1111111111, "swapgs: kernel GS base");
    struct context c = context_user(user_swapgs);
    context_run(&c);
    check_end(&c, VECTOR_GP, 0, "swapgs at CPL 3");
    check(TRY("wrmsr", : : "c"(MSR_GS_BASE), "a"(0), "d"(0x80000000)), VECTOR_GP, "a non-canonical GS base");
    asm volatile("mov %0, %%gs" : : "r"(USER_DS));
    check(read_msr(MSR_GS_BASE), 0, "a load of gs loads its base");
    write_msr(MSR_FS_BASE, (unsigned long)gdt);
    unsigned long value;
    asm volatile("mov %%fs:%c1, %0" : "=r"(value) : "i"(KERNEL_CS));
    check(value, gdt[KERNEL_CS / 8], "load by the FS base");
    asm volatile("mov %%fs:(%k1), %0" : "=r"(value) : "r"(0xabcd00000008ul));
    check(value, gdt[KERNEL_CS / 8], "a 32-bit address wraps before the base");
    if (cpuid(7, 0).b & 1) {
        write_cr4(read_cr4() & ~CR4_FSGSBASE);
        check(TRY("rdfsbase %0", : "=r"(value)), VECTOR_UD, "rdfsbase without CR4.FSGSBASE");
        write_cr4(read_cr4() | CR4_FSGSBASE);
        check(TRY("rdfsbase %0", : "=r"(value)), NO_TRAP, "rdfsbase");
        check(value, (unsigned long)gdt, "rdfsbase: value");
        check(TRY("wrgsbase %0", : : "r"(NON_CANONICAL)), VECTOR_GP, "wrgsbase of a non-canonical address");
        asm volatile("wrgsbase %0" : : "r"(0x3333333333));
        check(read_msr(MSR_GS_BASE), 0x3333333333, "wrgsbase");
        c = context_user(user_gsbase);
        context_run(&c);
        check(c.ax, 0x3333333333, "rdgsbase at CPL 3");
    }
    asm volatile("mov %0, %%gs\n\tmov %0, %%fs" : : "r"(0));
}

void kernel_main(void) {
    check_syscall();
    if (cpu_is_intel())
        check_sysenter();
    else
        check_skip("sysenter", "not in 64-bit mode of this vendor");
    check_far();
    check_call_gates();
    check_gs();
    checks_finish("transfers64");
}
