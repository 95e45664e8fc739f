/*
 * Gates and tasks in 32-bit protected mode: call gates with parameters, interrupt and trap gates of both
 * sizes, task gates, JMP, CALL and IRET between tasks, double faults by a task, INTO, BOUND, and virtual-8086
 * mode. Source: Intel SDM volume 3, 5.8, 6.12, 8.3, 21.2.
 */
#include "runtime.h"

#define SELECTOR SCRATCH_SELECTOR
#define PRESENT DESCRIPTOR_PRESENT
#define OPEN (DESCRIPTOR_PRESENT | DESCRIPTOR_DPL(3))

static uint64_t call_gate(const void *target, unsigned selector, unsigned type, unsigned count) {
    uint32_t address = (uint32_t)(unsigned long)target;
    return (uint64_t)(address >> 16) << 48 | (uint64_t)type << 40 | (uint64_t)count << 32 | selector << 16 |
           (address & 0xffff);
}

SNIPPET(gate_call,
        "push $0x11\n\tpush $0x22\n\tpush $0x33\n\tpush %eax\n\tpush $0\n\tlcall *(%esp)\n\tmov $7, %edi");
SNIPPET(
    gate_look,
    "mov %esp, %ebp\n\tmov (%esp), %eax\n\tmov 4(%esp), %ebx\n\tmov 8(%esp), %ecx\n\tmov 12(%esp), %edx\n\t"
    "mov 16(%esp), %esi\n\tmov 20(%esp), %edi");
SNIPPET(gate_return, "lret $8");
SNIPPET(gate_jump, "push %eax\n\tpush $0\n\tljmp *(%esp)");

static void check_call_gates(void) {
    struct context c;
    gdt_set(0, call_gate(gate_look, KERNEL_CS, OPEN | GATE_CALL, 2));
    c = context_user(gate_call);
    c.ax = SELECTOR | 3;
    unsigned long ip = c.ip, sp = c.sp;
    context_run(&c);
    check_end(&c, VECTOR_DONE, 0, "call gate from CPL 3");
    check(c.cs, KERNEL_CS, "call gate from CPL 3: cs");
    check(c.bp, cpu_stack_top(0, 0) - 24, "call gate from CPL 3: esp");
    check(c.ax - ip, 12, "call gate from CPL 3: return eip");
    check(c.bx, USER32_CS, "call gate from CPL 3: return cs");
    check(c.cx, 0, "call gate from CPL 3: first parameter");
    check(c.dx, SELECTOR | 3, "call gate from CPL 3: second parameter");
    check(c.si, sp - 20, "call gate from CPL 3: return esp");
    check(c.di, USER32_DS, "call gate from CPL 3: return ss");
    gdt_set(0, call_gate(gate_return, KERNEL_CS, OPEN | GATE_CALL, 2));
    c = context_user(gate_call);
    c.ax = SELECTOR | 3;
    context_run(&c);
    check_end(&c, VECTOR_DONE, 0, "call gate and lret n");
    check(c.sp, sp - 12, "call gate and lret n: esp");
    check(c.di << 16 | c.cs, 7 << 16 | USER32_CS, "call gate and lret n: after");
    gdt_set(0, call_gate(gate_look, KERNEL_CS, OPEN | GATE_CALL, 2));
    c = context_kernel(gate_call);
    c.ax = SELECTOR;
    context_run(&c);
    check_end(&c, VECTOR_DONE, 0, "call gate at one level");
    check(c.cx << 16 | c.dx, SELECTOR, "call gate at one level copies nothing: its parameters lie there");

    static const struct {
        const char *name;
        const void *code;
        unsigned selector, type, rpl, vector, error;
    } cases[] = {
        {"call gate of DPL 0 from CPL 3", gate_call, KERNEL_CS, PRESENT | GATE_CALL, 3, VECTOR_GP, SELECTOR},
        {"call gate of DPL 2 with RPL 3", gate_call, KERNEL_CS, PRESENT | GATE_CALL | DESCRIPTOR_DPL(2), 3,
         VECTOR_GP, SELECTOR},
        {"call gate not present", gate_call, KERNEL_CS, GATE_CALL | DESCRIPTOR_DPL(3), 3, VECTOR_NP,
         SELECTOR},
        {"call gate with a null selector", gate_call, 0, OPEN | GATE_CALL, 3, VECTOR_GP, 0},
        {"call gate to data", gate_call, KERNEL_DS, OPEN | GATE_CALL, 3, VECTOR_GP, KERNEL_DS},
        {"call gate beyond the GDT", gate_call, GDT_BYTES, OPEN | GATE_CALL, 3, VECTOR_GP, GDT_BYTES},
        {"jmp through a gate to an inner level", gate_jump, KERNEL_CS, OPEN | GATE_CALL, 3, VECTOR_GP,
         KERNEL_CS},
        {"jmp through a gate to the same level", gate_jump, USER32_CS, OPEN | GATE_CALL, 3, VECTOR_DONE, 0},
    };
    for (unsigned i = 0; i < ARRAY_SIZE(cases); i++) {
        gdt_set(0, call_gate(gate_look, cases[i].selector, cases[i].type, 0));
        c = context_user(cases[i].code);
        c.ax = SELECTOR | cases[i].rpl;
        context_run(&c);
        check_end(&c, cases[i].vector, cases[i].error, cases[i].name);
    }
    /* The inner stack from the TSS is checked as #TS. */
    struct tss32 *tss = cpu_tss(0);
    static const struct {
        const char *name;
        unsigned ss, vector, error;
    } stacks[] = {{"inner ss null", 0, VECTOR_TS, 0},
                  {"inner ss of DPL 3", USER32_DS, VECTOR_TS, USER32_DS & ~3},
                  {"inner ss is code", KERNEL_CS, VECTOR_TS, KERNEL_CS},
                  {"inner ss with RPL 3", KERNEL_DS | 3, VECTOR_TS, KERNEL_DS},
                  {"inner ss beyond the GDT", GDT_BYTES, VECTOR_TS, GDT_BYTES},
                  {"inner ss not present", SELECTOR + 8, VECTOR_SS, SELECTOR + 8}};
    gdt_set(0, call_gate(gate_look, KERNEL_CS, OPEN | GATE_CALL, 0));
    gdt_set(1, segment_descriptor(0, 0xfffff, SEGMENT_DATA, SEGMENT_BIG | SEGMENT_PAGES));
    for (unsigned i = 0; i < ARRAY_SIZE(stacks); i++) {
        tss->ring[0].ss = stacks[i].ss;
        /* The exception that follows needs the same stack: take it in a task. */
        tss_other = (struct tss32){.ip = (uint32_t)(unsigned long)gate_look,
                                   .flags = FLAG_FIXED,
                                   .cs = KERNEL_CS,
                                   .ss = KERNEL_DS,
                                   .ds = KERNEL_DS,
                                   .es = KERNEL_DS,
                                   .sp = cpu_stack_top(0, 2),
                                   .io_map = 104};
        tss_other.ring[0].ss = KERNEL_DS;
        tss_other.ring[0].sp = cpu_stack_top(0, 3);
        unsigned wrong = stacks[i].vector == VECTOR_TS ? VECTOR_SS : VECTOR_TS;
        tss_fault = tss_other;
        gate_set(stacks[i].vector, 0, TSS32_OTHER_SELECTOR, GATE_TASK | PRESENT, 0);
        gate_set(wrong, 0, TSS32_FAULT_SELECTOR, GATE_TASK | PRESENT, 0);
        *(volatile uint64_t *)&gdt[TSS32_FAULT_SELECTOR / 8] &= ~BIT(41);
        *(volatile uint64_t *)&gdt[TSS32_OTHER_SELECTOR / 8] &= ~BIT(41);
        c = context_user(gate_call);
        c.ax = SELECTOR | 3;
        context_run(&c);
        check(c.vector, VECTOR_DONE, "%s: taken by a task", stacks[i].name);
        check(c.ax, stacks[i].error, "%s: error code", stacks[i].name); /* gate_look: [esp] */
        check(read_tr(), TSS32_OTHER_SELECTOR, "%s: vector", stacks[i].name);
        check(tss_other.link, TSS32_SELECTOR, "%s: back link", stacks[i].name);
        check(tss->cs, USER32_CS, "%s: saved cs", stacks[i].name);
        tss->ring[0].ss = KERNEL_DS;
        gate_reset(stacks[i].vector);
        gate_reset(wrong);
        *(volatile uint64_t *)&gdt[TSS32_SELECTOR / 8] &= ~BIT(41);
        asm volatile("ltr %w0\n\tclts" : : "r"(TSS32_SELECTOR));
        write_flags(FLAG_FIXED);
    }
}

static void task_set(const void *code, unsigned long flags) {
    tss_other = (struct tss32){.ip = (uint32_t)(unsigned long)code,
                               .flags = flags | FLAG_FIXED,
                               .cs = KERNEL_CS,
                               .ss = KERNEL_DS,
                               .ds = KERNEL_DS,
                               .es = USER32_DS,
                               .fs = KERNEL_DS,
                               .gs = 0,
                               .sp = cpu_stack_top(0, 2),
                               .ax = 0x1111,
                               .bx = 0x2222,
                               .cx = 0x3333,
                               .dx = 0x4444,
                               .si = 0x5555,
                               .di = 0x6666,
                               .bp = 0x7777,
                               .io_map = 104};
    tss_other.cr3 = read_cr3();
    *(volatile uint64_t *)&gdt[TSS32_OTHER_SELECTOR / 8] =
        segment_descriptor((uint32_t)(unsigned long)&tss_other, sizeof(tss_other) - 1, SYSTEM_TSS | OPEN, 0);
}

static bool task_busy(unsigned selector) {
    return *(volatile uint64_t *)&gdt[selector / 8] >> 41 & 1;
}

static void task_restore(void) {
    *(volatile uint64_t *)&gdt[TSS32_SELECTOR / 8] &= ~BIT(41);
    asm volatile("ltr %w0\n\tclts" : : "r"(TSS32_SELECTOR));
    write_flags(FLAG_FIXED);
}

SNIPPET(task_nop, "nop");
SNIPPET(task_iret, "mov %cr0, %edi\n\tiret\n\tmov $9, %esi");
SNIPPET(task_int, "mov $5, %ebx\n\tint $0x50\n\tmov $6, %ecx");
SNIPPET(task_jump, "ljmp $0xd0, $0");
SNIPPET(task_call, "mov $5, %ebx\n\tlcall $0xd0, $0\n\tmov $6, %ecx");

static void check_tasks(void) {
    struct context c;
    task_set(task_nop, FLAG_CF);
    c = context_kernel(task_jump);
    context_run(&c);
    check_end(&c, VECTOR_DONE, 0, "jmp to a task");
    check(c.ip, (unsigned long)task_nop + 3, "jmp to a task: eip");
    check(c.ax << 16 | c.bx, 0x11112222, "jmp to a task: registers");
    check(c.es << 16 | c.gs, USER32_DS << 16, "jmp to a task: segments");
    check(c.flags & (FLAG_NT | FLAG_CF), FLAG_CF, "jmp to a task: flags");
    check(read_cr0() & CR0_TS, CR0_TS, "jmp to a task sets TS");
    check(read_tr(), TSS32_OTHER_SELECTOR, "jmp to a task: tr");
    check(task_busy(TSS32_OTHER_SELECTOR) << 1 | task_busy(TSS32_SELECTOR), 2, "jmp to a task: busy bits");
    check(cpu_tss(0)->ip, (unsigned long)task_jump + 7, "jmp to a task saves the old eip");
    task_restore();

    task_set(task_iret, 0);
    c = context_kernel(task_call);
    context_run(&c);
    check_end(&c, VECTOR_DONE, 0, "call to a task and iret");
    check(c.bx << 16 | c.cx, 5 << 16 | 6, "call to a task and iret: registers");
    check(tss_other.link, TSS32_SELECTOR, "call to a task: back link");
    check(tss_other.flags & FLAG_NT, 0, "iret saves NT clear in the task it leaves");
    check(tss_other.di & CR0_TS, CR0_TS, "the task saw TS");
    check(tss_other.ip, (unsigned long)task_iret + 4, "iret saves eip in the task it leaves");
    check(task_busy(TSS32_OTHER_SELECTOR) << 1 | task_busy(TSS32_SELECTOR), 1,
          "call to a task and iret: busy bits");
    asm volatile("clts");

    task_set(task_nop, 0);
    c = context_kernel(task_call);
    context_run(&c);
    check(c.flags & FLAG_NT, FLAG_NT, "call to a task sets NT");
    check(task_busy(TSS32_OTHER_SELECTOR) << 1 | task_busy(TSS32_SELECTOR), 3, "call to a task: busy bits");
    task_restore();

    for (unsigned user = 0; user < 2; user++) {
        task_set(task_iret, 0);
        gate_set(0x50, 0, TSS32_OTHER_SELECTOR, GATE_TASK | OPEN, 0);
        c = user ? context_user(task_int) : context_kernel(task_int);
        context_run(&c);
        check_end(&c, VECTOR_DONE, 0,
                  user ? "int n through a task gate from CPL 3" : "int n through a task gate");
        check(c.bx << 16 | c.cx, 5 << 16 | 6, "int n through a task gate: registers");
        check(c.cs, user ? USER32_CS : KERNEL_CS, "int n through a task gate: cs");
        asm volatile("clts");
    }
    gate_reset(0x50);

    static const struct {
        const char *name;
        unsigned offset;
        uint16_t value;
        unsigned vector, error;
    } bad[] = {
        {"task with a null cs", offsetof(struct tss32, cs), 0, VECTOR_TS, 0},
        {"task whose cs is data", offsetof(struct tss32, cs), KERNEL_DS, VECTOR_TS, KERNEL_DS},
        {"task with a null ss", offsetof(struct tss32, ss), 0, VECTOR_TS, 0},
        {"task whose ss is code", offsetof(struct tss32, ss), KERNEL_CS, VECTOR_TS, KERNEL_CS},
        {"task whose ds is beyond the GDT", offsetof(struct tss32, ds), GDT_BYTES, VECTOR_TS, GDT_BYTES},
        {"task whose ldt is data", offsetof(struct tss32, ldt), KERNEL_DS, VECTOR_TS, KERNEL_DS},
    };
    for (unsigned i = 0; i < ARRAY_SIZE(bad); i++) {
        /* The fault comes in the new task; a third one takes it. */
        task_set(task_nop, 0);
        *(volatile uint16_t *)((uint8_t *)&tss_other + bad[i].offset) = bad[i].value;
        tss_fault = (struct tss32){.ip = (uint32_t)(unsigned long)gate_look,
                                   .flags = FLAG_FIXED,
                                   .cs = KERNEL_CS,
                                   .ss = KERNEL_DS,
                                   .ds = KERNEL_DS,
                                   .es = KERNEL_DS,
                                   .sp = cpu_stack_top(0, 1),
                                   .io_map = 104};
        *(volatile uint64_t *)&gdt[TSS32_FAULT_SELECTOR / 8] &= ~BIT(41);
        gate_set(VECTOR_TS, 0, TSS32_FAULT_SELECTOR, GATE_TASK | PRESENT, 0);
        c = context_kernel(task_jump);
        context_run(&c);
        check(c.vector, VECTOR_DONE, "%s: #TS is taken", bad[i].name);
        check(c.ax, bad[i].error, "%s: error code", bad[i].name);
        check(tss_fault.link, TSS32_OTHER_SELECTOR, "%s: in the new task", bad[i].name);
        gate_reset(VECTOR_TS);
        task_restore();
    }
    task_set(task_nop, 0);
    *(volatile uint64_t *)&gdt[TSS32_OTHER_SELECTOR / 8] |= BIT(41);
    c = context_kernel(task_jump);
    context_run(&c);
    check_end(&c, VECTOR_GP, TSS32_OTHER_SELECTOR, "jmp to a busy task");
    *(volatile uint64_t *)&gdt[TSS32_OTHER_SELECTOR / 8] &= ~(BIT(41) | BIT(47));
    c = context_kernel(task_jump);
    context_run(&c);
    check_end(&c, VECTOR_NP, TSS32_OTHER_SELECTOR, "jmp to a task not present");
    task_set(task_nop, 0);
    *(volatile uint64_t *)&gdt[TSS32_OTHER_SELECTOR / 8] -= 2; /* limit 0x65 */
    c = context_kernel(task_jump);
    context_run(&c);
    check_end(&c, VECTOR_TS, TSS32_OTHER_SELECTOR, "jmp to a task with a short TSS");
    c = context_kernel(task_iret);
    c.flags |= FLAG_NT;
    cpu_tss(0)->link = 0;
    context_run(&c);
    check_end(&c, VECTOR_TS, 0, "iret under NT with a null back link");
}

SNIPPET(raise_ud, "ud2");
SNIPPET(raise_int, "int $0x50");
SNIPPET(raise_into, "into");
SNIPPET(raise_bound, "bound %eax, (%ebx)");
SNIPPET(raise_gp, "mov %ax, %es");

static void check_gates(void) {
    struct context c;
    c = context_user(raise_into);
    c.flags |= FLAG_OF;
    context_run(&c);
    check_end(&c, VECTOR_OF, 0, "into with OF");
    check(c.ip, (unsigned long)raise_into + 1, "into: eip is after it");
    c = context_user(raise_into);
    context_run(&c);
    check_end(&c, VECTOR_DONE, 0, "into without OF");
    static const int32_t bounds[] = {-5, 10};
    static const int32_t indices[] = {-6, -5, 0, 10, 11};
    for (unsigned i = 0; i < ARRAY_SIZE(indices); i++) {
        c = context_user(raise_bound);
        c.ax = (unsigned long)indices[i];
        c.bx = (unsigned long)bounds;
        context_run(&c);
        bool inside = indices[i] >= bounds[0] && indices[i] <= bounds[1];
        check_end(&c, inside ? VECTOR_DONE : VECTOR_BR, 0, "bound");
        if (!inside)
            check(c.ip, (unsigned long)raise_bound, "bound: eip is the instruction's");
    }
    gate_retype(0x50, GATE_INTERRUPT, 0);
    c = context_user(raise_int);
    context_run(&c);
    check_end(&c, VECTOR_GP, 0x50 * 8 + 2, "int n at CPL 3, DPL is checked before P");
    gate_retype(0x50, GATE_CALL | PRESENT, 0);
    c = context_kernel(raise_int);
    context_run(&c);
    check_end(&c, VECTOR_GP, 0x50 * 8 + 2, "int n through a call gate");
    gate_set(0x50, raise_ud, USER32_CS, GATE_INTERRUPT | PRESENT, 0);
    c = context_kernel(raise_int);
    context_run(&c);
    check_end(&c, VECTOR_GP, USER32_CS & ~3, "int n to a segment of DPL 3");
    gate_set(0x50, 0, TSS32_SELECTOR, GATE_TASK | PRESENT, 0);
    c = context_kernel(raise_int);
    context_run(&c);
    check_end(&c, VECTOR_GP, TSS32_SELECTOR, "int n through a task gate to a busy task");
    gate_reset(0x50);
    gate_retype(VECTOR_UD, GATE_INTERRUPT, 0);
    c = context_user(raise_ud);
    context_run(&c);
    check_end(&c, VECTOR_NP, VECTOR_UD * 8 + 3, "#UD, gate not present");
    gate_reset(VECTOR_UD);
    /* A conforming handler runs at the interrupted level, on its stack. */
    gdt_set(0, segment_descriptor(0, 0xfffff, SEGMENT_CONFORMING | PRESENT, SEGMENT_BIG | SEGMENT_PAGES));
    gate_set(0x50, gate_look, SELECTOR, GATE_INTERRUPT | OPEN, 0);
    c = context_user(raise_int);
    unsigned long sp = c.sp;
    context_run(&c);
    check_end(&c, VECTOR_DONE, 0, "handler in a conforming segment");
    check(c.cs << 16 | (sp - c.bp), (SELECTOR | 3) << 16 | 12, "handler in a conforming segment: cs and esp");
    gate_reset(0x50);
    /* A double fault goes to its task. */
    tss_fault = (struct tss32){.ip = (uint32_t)(unsigned long)gate_look,
                               .flags = FLAG_FIXED,
                               .cs = KERNEL_CS,
                               .ss = KERNEL_DS,
                               .ds = KERNEL_DS,
                               .es = KERNEL_DS,
                               .sp = cpu_stack_top(0, 1),
                               .io_map = 104};
    *(volatile uint64_t *)&gdt[TSS32_FAULT_SELECTOR / 8] &= ~BIT(41);
    gate_retype(VECTOR_GP, GATE_INTERRUPT, 0);
    c = context_kernel(raise_gp);
    c.ax = GDT_BYTES;
    context_run(&c);
    check_end(&c, VECTOR_DONE, 0, "double fault by a task");
    check(c.ax, 0, "double fault by a task: error code");
    check(cpu_tss(0)->ip, (unsigned long)raise_gp, "double fault by a task: saved eip");
    gate_reset(VECTOR_GP);
    task_restore();
}

/* 16-bit gates push words and go to a 16-bit offset: a handler below 64 KiB. */
static void check_gates16(void) {
    static const uint8_t handler[] = {0x66, 0xff, 0x34, 0x24,
                                      0x66, 0x58, 0xcd, VECTOR_DONE}; /* pushw (%esp); popw %ax */
    for (unsigned i = 0; i < sizeof(handler); i++)
        ((volatile uint8_t *)0xb000)[i] = handler[i];
    for (unsigned trap = 0; trap < 2; trap++) {
        const char *name = trap ? "16-bit trap gate" : "16-bit interrupt gate";
        gate_set(0x50, (void *)0x1230b000, KERNEL_CS, (trap ? GATE_TRAP16 : GATE_INTERRUPT16) | PRESENT, 0);
        struct context c = context_kernel(raise_int);
        unsigned long sp = c.sp, next = c.ip + 2;
        c.flags |= FLAG_IF;
        context_run(&c);
        check_end(&c, VECTOR_DONE, 0, name);
        check(c.ip, 0xb000 + sizeof(handler), "%s: eip", name);
        check(c.ax, next & 0xffff, "%s: return ip", name);
        check(sp - c.sp, 6, "%s: three words", name);
        check(*(volatile uint16_t *)(sp - 4), KERNEL_CS, "%s: cs", name);
        check(*(volatile uint16_t *)(sp - 2) & FLAG_IF, FLAG_IF, "%s: flags", name);
        check(c.flags & FLAG_IF, trap ? FLAG_IF : 0, "%s: IF", name);
    }
    gate_reset(0x50);
}

/* Virtual-8086 mode: code and stack in low memory. */
#define V86_CODE 0x9000
extern const uint8_t v86_code[], v86_code_end[];
asm(".pushsection .text\n\t.code16\nv86_code:\n\tmov %cs, %ax\n\tmov $0x1234, %bx\n\tmov %bx, %es\n\tmov "
    "%es, %cx\n\t"
    "movw $0x55aa, %ds:0x10\n\tint $0x40\n\tcli\n\tint "
    "$0x21\n\thlt\n\t.code32\nv86_code_end:\n\t.popsection");

static struct context v86_context(unsigned long flags) {
    struct context c = context_kernel(0);
    c.cs = V86_CODE >> 4;
    c.ip = 0;
    c.flags = FLAG_FIXED | FLAG_VM | flags;
    c.ss = 0x8000 >> 4;
    c.sp = 0x800;
    c.v8086_es = c.v8086_fs = c.v8086_gs = 0;
    c.v8086_ds = 0xa000 >> 4;
    return c;
}

static void check_v86(void) {
    for (unsigned i = 0; v86_code + i < v86_code_end; i++)
        ((volatile uint8_t *)V86_CODE)[i] = v86_code[i];
    struct context c = v86_context(FLAG_IOPL(3));
    context_run(&c);
    check_end(&c, VECTOR_DONE, 0, "int n in virtual-8086 mode, IOPL 3");
    check(c.ax, V86_CODE >> 4, "virtual-8086 mode: cs");
    check(c.cx, 0x1234, "virtual-8086 mode: a segment register takes any value");
    check(c.v8086_es, 0x1234, "virtual-8086 mode: es is pushed");
    check(c.ds | c.es | c.fs | c.gs, 0, "virtual-8086 mode: the data segments are null in the handler");
    check(c.flags & FLAG_VM, FLAG_VM, "virtual-8086 mode: pushed flags");
    check(*(volatile uint16_t *)0xa010, 0x55aa, "virtual-8086 mode: store through ds");
    c = v86_context(0);
    context_run(&c);
    check_end(&c, VECTOR_GP, 0, "int n in virtual-8086 mode, IOPL 0");
    c = v86_context(FLAG_IOPL(3));
    c.ip = 17;
    while (((volatile uint8_t *)V86_CODE)[c.ip] != 0xfa)
        c.ip++;
    unsigned long cli = c.ip;
    context_run(&c);
    check_end(&c, VECTOR_GP, 0x21 * 8 + 2, "int n in virtual-8086 mode to a gate of DPL 0");
    c = v86_context(0);
    c.ip = cli;
    context_run(&c);
    check_end(&c, VECTOR_GP, 0, "cli in virtual-8086 mode, IOPL 0");
    check(c.ip, cli, "cli in virtual-8086 mode, IOPL 0: ip");
    c = v86_context(FLAG_IOPL(3));
    c.ip = 0x10000;
    context_run(&c);
    check_end(&c, VECTOR_GP, 0, "ip beyond 64 KiB in virtual-8086 mode");
}

void kernel_main(void) {
    check_call_gates();
    check_tasks();
    check_gates();
    check_gates16();
    check_v86();
    checks_finish("gates32");
}
