/*
 * SYSCALL, SYSRET and IRET between rings 3 and 0 many times over: what the last crossing found may have
 * changed by the next one. Source: Intel SDM volume 2, SYSCALL, SYSRET, IRET; volume 3, 4.10 and 5.8.8.
 */
#include "apic.h"
#include "paging.h"
#include "runtime.h"

#define ROUNDS 8
#define TRIGGER 5           /* the call at which the handler does what it is told to */
#define DATA 0x8000000000ul /* of user code; other frames in other address spaces */
#define TABLE 0x6000000000ul
#define NOWHERE 0x7000000000ul
#define SELF_VECTOR 0x51
#define MASK                                                                                                 \
    (FLAG_CF | FLAG_PF | FLAG_AF | FLAG_ZF | FLAG_SF | FLAG_TF | FLAG_IF | FLAG_DF | FLAG_OF |               \
     FLAG_IOPL(3) | FLAG_NT | FLAG_AC)
#define STAR(kernel, user) ((uint64_t)(kernel) << 32 | (uint64_t)(user) << 48)

SNIPPET(user_calls, "1:\tsyscall\n\tmov %ds, %r12d\n\tdec %ebx\n\tjnz 1b");
SNIPPET(user_clock, "1:\tsyscall\n\trdtsc\n\tdec %ebx\n\tjnz 1b");
SNIPPET(user_masks, "1:\tsyscall\n\tcli\n\tsti\n\tdec %ebx\n\tjnz 1b");
SNIPPET(user_words, "1:\tsyscall\n\tsmsw %eax\n\tdec %ebx\n\tjnz 1b");
SNIPPET(user_carry, "1:\tstc\n\tsyscall\n\tdec %ebx\n\tjnz 1b");
SNIPPET(user_pops, "1:\tsyscall\n\tdec %ebx\n\tjnz 1b\n\tmov %r13, %rsp\n\tpop %rax");
SNIPPET(user_peeks, "1:\tsyscall\n\tdec %ebx\n\tjnz 1b\n\tmov (%r13), %rax");
SNIPPET(user_port, "1:\tsyscall\n\tdec %ebx\n\tjnz 1b\n\tin $0x80, %al");
/* Copied to a page that differs between address spaces; its immediate, too. */
SNIPPET(
    user_loads,
    "1:\tsyscall\n\tshl $4, %r14\n\tor (%r13), %r14\n\tshl $4, %r15\n\tor $0, %r15\n\tdec %ebx\n\tjnz 1b");
#define USER_LOADS_IMMEDIATE 17 /* where it is */

SNIPPET(user_stacks,
        "1:\tpush %rbx\n\tsyscall\n\tpop %r12\n\tshl $4, %r14\n\tor %r12, %r14\n\tdec %ebx\n\tjnz 1b");
SNIPPET(user_tops, "1:\tsyscall\n\tshl $4, %r14\n\tor (%rsp), %r14\n\tdec %ebx\n\tjnz 1b");

/* What the handlers saw, and what they are to do. */
struct seen {
    unsigned long calls, ip, flags_pushed, flags, cs, ss, other;
};
struct seen seen;
void (*trigger)(void);
void (*trigger_call)(void);
unsigned long trigger_value, kernel_stack[512], user_sp, return_cs, return_ss, spare_root,
    spare_kept; /* bit 63: what the TLB knows of it is kept */
struct __attribute__((packed)) {
    uint16_t limit;
    uint64_t base;
} own_gdtr, other_gdtr;

/* Everything but RAX, RCX, RDX and R11 is the user's. At the trigger's call its code runs, with a stack. */
asm(".pushsection .text\n"
    ".macro crossing_enter\n\t"
    "mov %rsp, user_sp(%rip)\n\tlea kernel_stack + 4096(%rip), %rsp\n\t"
    "pushfq\n\tpopq seen + 24(%rip)\n\t"
    "mov %rcx, seen + 8(%rip)\n\tmov %r11, seen + 16(%rip)\n\t"
    "mov %cs, seen + 32(%rip)\n\tmov %ss, seen + 40(%rip)\n\t"
    "incq seen(%rip)\n\tcmpq $5, seen(%rip)\n\tjne 7f\n\tcall *trigger(%rip)\n7:\n"
    ".endm\n"
    "enter_sysret: crossing_enter\n\tmov user_sp(%rip), %rsp\n\tsysretq\n"
    "enter_other: incq seen + 48(%rip)\n\tsysretq\n"
    "enter_iret: crossing_enter\n\t"
    "pushq return_ss(%rip)\n\tpushq user_sp(%rip)\n\tpush %r11\n\tpushq return_cs(%rip)\n\tpush "
    "%rcx\n\tiretq\n"
    "enter_resume: crossing_enter\n\tbts $16, %r11\n\t"
    "pushq return_ss(%rip)\n\tpushq user_sp(%rip)\n\tpush %r11\n\tpushq return_cs(%rip)\n\tpush "
    "%rcx\n\tiretq\n"
    "enter_switch: mov spare_root(%rip), %rax\n\tmov %cr3, %rdx\n\tmov %rdx, spare_root(%rip)\n\t"
    "or spare_kept(%rip), %rax\n\tmov %rax, %cr3\n\tsysretq\n"
    "enter_nowhere: incq seen(%rip)\n\tcmpq $5, seen(%rip)\n\tje 1f\n\tsysretq\n"
    "1:\tmov trigger_value(%rip), %rsp\n\tiretq\n"
    "trigger_nothing: ret\n"
    "trigger_c: push %rcx\n\tpush %r11\n\tpush %rdi\n\tpush %rsi\n\tpush %r8\n\tpush %r9\n\tpush %r10\n\t"
    "call *trigger_call(%rip)\n\t"
    "pop %r10\n\tpop %r9\n\tpop %r8\n\tpop %rsi\n\tpop %rdi\n\tpop %r11\n\tpop %rcx\n\tret\n"
    "trigger_flags: or trigger_value(%rip), %r11\n\tret\n"
    "trigger_ip: mov trigger_value(%rip), %rcx\n\tret\n"
    "trigger_ds: mov trigger_value(%rip), %ds\n\tret\n"
    "trigger_cr4: mov %cr4, %rax\n\tor trigger_value(%rip), %rax\n\tmov %rax, %cr4\n\tret\n"
    "trigger_nt: pushq $0x4002\n\tpopfq\n\tret\n"
    "trigger_gdt: lgdt other_gdtr(%rip)\n\tret\n"
    "trigger_cs: mov trigger_value(%rip), %rax\n\tmov %rax, gdt + 0x30(%rip)\n\tret\n"
    "trigger_ss: mov trigger_value(%rip), %rax\n\tmov %rax, gdt + 0x28(%rip)\n\tret\n"
    "trigger_ipi: mov $0xfee00300, %eax\n\tmovl $0x40051, (%rax)\n\tret\n"
    "trigger_star: mov trigger_value + 4(%rip), %edx\n\tpush %rcx\n\tmov $0xc0000081, %ecx\n\t"
    "xor %eax, %eax\n\twrmsr\n\tpop %rcx\n\tret\n"
    ".popsection");
extern const char enter_sysret[], enter_other[], enter_iret[], enter_resume[], enter_switch[],
    enter_nowhere[];
extern void trigger_nothing(void), trigger_flags(void), trigger_ip(void), trigger_ds(void), trigger_cr4(void),
    trigger_nt(void), trigger_gdt(void), trigger_cs(void), trigger_ss(void), trigger_ipi(void),
    trigger_star(void), trigger_c(void);

static void run_context(struct context *c, const void *handler, void (*at_trigger)(void)) {
    write_msr(MSR_LSTAR, (unsigned long)handler);
    trigger = at_trigger;
    seen = (struct seen){0};
    c->flags |= FLAG_IF;
    c->bx = ROUNDS;
    context_run(c);
}

static struct context run(const void *handler, const void *code, void (*at_trigger)(void),
                          unsigned long value) {
    struct context c = context_user(code);
    trigger_value = value;
    run_context(&c, handler, at_trigger);
    return c;
}

static const char *name_of(const void *handler) {
    return handler == enter_iret ? "iret" : "sysret";
}

static void check_through(const void *handler, const char *when) {
    for (unsigned i = 0; i < 2; i++) {
        struct context c = run(handler, user_calls, trigger_nothing, 0);
        check_end(&c, VECTOR_DONE, 0, when);
        check(seen.calls, ROUNDS, "%s, %s: calls", name_of(handler), when);
        check(seen.cs << 16 | seen.ss, KERNEL_CS << 16 | KERNEL_DS, "%s, %s: kernel's cs and ss",
              name_of(handler), when);
        check(c.cs << 16 | c.ss, USER_CS << 16 | USER_DS, "%s, %s: user's cs and ss", name_of(handler), when);
        check(seen.flags, FLAG_FIXED, "%s, %s: kernel's flags", name_of(handler), when);
        check(seen.flags_pushed & FLAG_IF, FLAG_IF, "%s, %s: r11", name_of(handler), when);
        check(seen.ip, (unsigned long)user_pointer(user_calls) + 2, "%s, %s: rcx", name_of(handler), when);
        check(c.flags & (FLAG_IF | FLAG_ZF), FLAG_IF | FLAG_ZF, "%s, %s: user's flags", name_of(handler),
              when);
    }
}

static void check_registers(void) {
    struct context c;
    check_through(enter_sysret, "at first");
    write_msr(MSR_STAR, STAR(KERNEL_CS | 3, USER_CS32));
    (void)run(enter_sysret, user_calls, trigger_nothing, 0);
    check(seen.cs << 16 | seen.ss, KERNEL_CS << 16 | (KERNEL_DS | 3), "another STAR: kernel's cs and ss");
    write_msr(MSR_STAR, STAR(KERNEL_CS, USER_CS32));
    c = run(enter_sysret, user_calls, trigger_star, STAR(KERNEL_CS, 0x43));
    check(c.cs << 16 | c.ss, 0x53 << 16 | 0x4b, "another STAR between: user's cs and ss");
    write_msr(MSR_STAR, STAR(KERNEL_CS, USER_CS32));
    check_through(enter_sysret, "with STAR as it was");

    write_msr(MSR_SFMASK, FLAG_IF);
    (void)run(enter_sysret, user_carry, trigger_nothing, 0);
    check(seen.flags & (FLAG_IF | FLAG_CF), FLAG_CF, "another SFMASK: kernel's flags");
    check(seen.flags_pushed & (FLAG_IF | FLAG_CF), FLAG_IF | FLAG_CF, "another SFMASK: r11");
    write_msr(MSR_SFMASK, MASK);
    check_through(enter_sysret, "with SFMASK as it was");

    (void)run(enter_sysret, user_carry, trigger_nothing, 0);
    check(seen.flags, FLAG_FIXED, "SYSCALL clears CF");
    check(seen.flags_pushed & (FLAG_IF | FLAG_CF), FLAG_IF | FLAG_CF, "SYSCALL clears CF: r11");
    (void)run(enter_other, user_calls, trigger_nothing, 0);
    check(seen.other << 16 | seen.calls, ROUNDS << 16, "another LSTAR");
    check_through(enter_sysret, "with LSTAR as it was");

    write_msr(MSR_EFER, read_msr(MSR_EFER) & ~EFER_SCE);
    c = run(enter_sysret, user_calls, trigger_nothing, 0);
    check_end(&c, VECTOR_UD, 0, "without EFER.SCE");
    write_msr(MSR_EFER, read_msr(MSR_EFER) | EFER_SCE);
    check_through(enter_sysret, "with EFER.SCE again");
}

static void check_control(const void *handler) {
    struct context c = run(handler, user_clock, trigger_nothing, 0);
    check_end(&c, VECTOR_DONE, 0, "rdtsc without CR4.TSD");
    c = run(handler, user_clock, trigger_cr4, CR4_TSD);
    check_end(&c, VECTOR_GP, 0, "rdtsc when CR4.TSD is set between");
    check(seen.calls, TRIGGER, "%s: rdtsc faults at once", name_of(handler));
    write_cr4(read_cr4() & ~CR4_TSD);
    c = run(handler, user_clock, trigger_nothing, 0);
    check_end(&c, VECTOR_DONE, 0, "rdtsc without CR4.TSD again");
    if (cpuid(7, 0).c & BIT(2)) {
        c = run(handler, user_words, trigger_cr4, CR4_UMIP);
        check_end(&c, VECTOR_GP, 0, "smsw when CR4.UMIP is set between");
        check(seen.calls, TRIGGER, "%s: smsw faults at once", name_of(handler));
        write_cr4(read_cr4() & ~CR4_UMIP);
    }
    check_through(handler, "with CR4 as it was");
}

static void check_flags(const void *handler) {
    static const struct {
        const char *name;
        unsigned long flags;
    } cases[] = {{"AC", FLAG_AC}, {"ID", FLAG_ID},        {"NT", FLAG_NT},
                 {"DF", FLAG_DF}, {"IOPL", FLAG_IOPL(3)}, {"CF and OF", FLAG_CF | FLAG_OF}};
    for (unsigned i = 0; i < ARRAY_SIZE(cases); i++) {
        bool carried = cases[i].flags & FLAG_CF;
        struct context c = run(handler, user_calls, trigger_flags, cases[i].flags);
        check_end(&c, VECTOR_DONE, 0, cases[i].name);
        /* DEC leaves CF alone and makes OF. */
        check(c.flags & cases[i].flags, carried ? FLAG_CF : cases[i].flags, "%s sets %s", name_of(handler),
              cases[i].name);
        check(seen.flags_pushed & cases[i].flags, carried ? FLAG_CF : cases[i].flags,
              "%s sets %s: the next call's r11", name_of(handler), cases[i].name);
        check(seen.calls, ROUNDS, "%s sets %s: calls", name_of(handler), cases[i].name);
    }
    struct context c = run(handler, user_calls, trigger_flags, FLAG_TF);
    check_end(&c, VECTOR_DB, 0, "TF set between");
    unsigned long after = (unsigned long)user_pointer(user_calls) + 2;
    check(c.ip - after, handler == enter_iret ? 3 : 0, "%s sets TF: where it traps", name_of(handler));
    c = run(handler, user_masks, trigger_nothing, 0);
    check_end(&c, VECTOR_GP, 0, "cli without IOPL");
    c = run(handler, user_masks, trigger_flags, FLAG_IOPL(3));
    check_end(&c, VECTOR_GP, 0, "cli before IOPL is set");
    c = run(handler, user_calls, trigger_ip, NOWHERE);
    check(c.vector, VECTOR_PF, "%s to where nothing is mapped", name_of(handler));
    check(c.ip, NOWHERE, "%s to where nothing is mapped: rip", name_of(handler));
    check(c.cs, USER_CS, "%s to where nothing is mapped: in ring 3", name_of(handler));
    check_through(handler, "with ordinary flags");
}

/* IRET with RF, as behind every fault: one instruction later it is gone (SDM vol. 3, 17.3.1.1). */
static void check_resume(void) {
    const unsigned long after = (unsigned long)user_pointer(user_calls) + 2;
    for (unsigned i = 0; i < 2; i++) {
        struct context c = run(enter_resume, user_calls, trigger_nothing, 0);
        check_end(&c, VECTOR_DONE, 0, "iret with RF");
        check(seen.calls, ROUNDS, "iret with RF: calls");
        check(seen.flags, FLAG_FIXED, "iret with RF: kernel's flags");
        check(seen.flags_pushed & (FLAG_RF | FLAG_IF), FLAG_IF, "iret with RF: the next call's r11");
        check(c.flags & (FLAG_RF | FLAG_IF | FLAG_ZF), FLAG_IF | FLAG_ZF, "iret with RF: user's flags");
        c = run(enter_resume, user_carry, trigger_nothing, 0);
        check(c.flags & (FLAG_RF | FLAG_CF), FLAG_CF, "iret with RF and CF: user's flags");
        check(seen.flags_pushed & (FLAG_RF | FLAG_CF), FLAG_CF, "iret with RF and CF: the next call's r11");
        c = run(enter_resume, user_port, trigger_nothing, 0);
        check_end(&c, VECTOR_GP, 0, "iret with RF, before a fault");
        check(c.flags & FLAG_RF, FLAG_RF, "iret with RF, before a fault: flags");
        c = run(enter_resume, user_calls, trigger_flags, FLAG_TF);
        check_end(&c, VECTOR_DB, 0, "iret with RF and TF");
        check(c.ip - after, 3, "iret with RF and TF: where it traps");
        c = run(enter_resume, user_calls, trigger_flags, FLAG_NT | FLAG_AC);
        check_end(&c, VECTOR_DONE, 0, "iret with RF, NT and AC");
        check(c.flags & (FLAG_NT | FLAG_AC | FLAG_RF), FLAG_NT | FLAG_AC, "iret with RF, NT and AC: flags");
    }
    check_through(enter_iret, "after iret with RF");
}

static struct context run_at(const void *handler, const void *code, unsigned long address) {
    struct context c = context_user(code);
    c.r13 = address;
    run_context(&c, handler, trigger_nothing);
    return c;
}

/* Ring 3 may not do behind a return what the kernel could before it. */
static void check_rights(const void *handler) {
    struct context c = run_at(handler, user_pops, (unsigned long)&kernel_stack[500]);
    check_end(&c, VECTOR_PF, 5, "ring 3 pops off the kernel's stack");
    c = run_at(handler, user_peeks, (unsigned long)&seen);
    check_end(&c, VECTOR_PF, 5, "ring 3 reads what the kernel wrote");
    c = run_at(handler, user_port, 0);
    check_end(&c, VECTOR_GP, 0, "ring 3 reads a port");
    check(seen.calls, ROUNDS, "%s: calls before ring 3 oversteps", name_of(handler));
    check_through(handler, "after a fault");
}

/* Interrupts that wait while the kernel has IF clear come before the first instruction in ring 3. */
static void check_interrupt(const void *handler) {
    for (unsigned i = 0; i < 2; i++) {
        struct context c = run(handler, user_calls, trigger_ipi, 0);
        check(c.vector, SELF_VECTOR, "%s with an interrupt waiting: vector", name_of(handler));
        check(c.ip, seen.ip, "%s with an interrupt waiting: rip", name_of(handler));
        check(c.cs, USER_CS, "%s with an interrupt waiting: cs", name_of(handler));
        check(seen.calls, TRIGGER, "%s with an interrupt waiting: calls", name_of(handler));
        apic_eoi();
    }
    check_through(handler, "after an interrupt");
}

static uint64_t *other_frame, *gdt_frame;

static void exchange_gdt(void) {
    page_map(&boot_space, TABLE, (unsigned long)other_frame, PTE_P | PTE_W | PTE_G, 1);
    asm volatile("invlpg (%0)" : : "r"(TABLE) : "memory");
}

static void check_descriptors(void) {
    uint64_t cs = gdt[USER_CS / 8], ss = gdt[USER_DS / 8], *copy = pages_alloc(1, 4096);
    struct context c;
    gdt_frame = pages_alloc(1, 4096);
    check_through(enter_iret, "at first");
    c = run(enter_iret, user_calls, trigger_cs, cs & ~((uint64_t)DESCRIPTOR_PRESENT << 40));
    check_end(&c, VECTOR_NP, USER_CS & ~3, "iret to a cs that is not present any more");
    check(seen.calls, TRIGGER, "iret to a cs that is not present any more: calls");
    gdt[USER_CS / 8] = cs;
    check_through(enter_iret, "with cs as it was");
    c = run(enter_iret, user_calls, trigger_ss, ss & ~((uint64_t)2 << 40));
    check_end(&c, VECTOR_GP, USER_DS & ~3, "iret to an ss that is read-only now");
    gdt[USER_DS / 8] = ss;
    check_through(enter_iret, "with ss as it was");

    for (unsigned i = 0; i < GDT_BYTES / 8; i++)
        copy[i] = gdt[i];
    copy[USER_CS / 8] &= ~((uint64_t)DESCRIPTOR_PRESENT << 40);
    asm volatile("sgdt own_gdtr" : : : "memory");
    other_gdtr.limit = own_gdtr.limit;
    other_gdtr.base = (unsigned long)copy;
    c = run(enter_iret, user_calls, trigger_gdt, 0);
    check_end(&c, VECTOR_NP, USER_CS & ~3, "iret by another GDT");
    asm volatile("lgdt own_gdtr" : : : "memory");
    check_through(enter_iret, "with the GDT as it was");

    /* The same by the page tables: its page is another one at the trigger. */
    for (unsigned i = 0; i < GDT_BYTES / 8; i++)
        gdt_frame[i] = gdt[i];
    page_map(&boot_space, TABLE, (unsigned long)gdt_frame, PTE_P | PTE_W | PTE_G, 1);
    other_gdtr.base = TABLE;
    other_frame = copy;
    asm volatile("lgdt other_gdtr" : : : "memory");
    check_through(enter_iret, "with the GDT elsewhere");
    trigger_call = exchange_gdt;
    c = run(enter_iret, user_calls, trigger_c, 0);
    check_end(&c, VECTOR_NP, USER_CS & ~3, "iret by a GDT whose page was exchanged");
    asm volatile("lgdt own_gdtr" : : : "memory");
    check_through(enter_iret, "with the GDT back where it was");

    return_ss = KERNEL_DS;
    c = run(enter_iret, user_calls, trigger_nothing, 0);
    check_end(&c, VECTOR_GP, KERNEL_DS, "iret with the kernel's ss");
    return_ss = USER_DS;
    check_through(enter_iret, "with selectors as they were");

    c = run(enter_iret, user_calls, trigger_ds, KERNEL_DS);
    check(c.r12, 0, "iret takes the kernel's ds away");
    c = run(enter_iret, user_calls, trigger_ds, USER_DS);
    check(c.r12, USER_DS, "iret leaves the user's ds");
    asm volatile("mov %0, %%ds" : : "r"(0));
    c = run(enter_iret, user_calls, trigger_nt, 0);
    check_end(&c, VECTOR_GP, 0, "iret under NT");
    check(seen.calls, TRIGGER, "iret under NT: calls");
    check_through(enter_iret, "at last");
}

#define STACK_TOP (DATA + 4096)
static uint64_t *stack_frame;
static unsigned long stack_rights;

static void exchange_stack(void) {
    page_map(&boot_space, DATA, (unsigned long)stack_frame, stack_rights, 1);
    asm volatile("invlpg (%0)" : : "r"(DATA) : "memory");
}

static struct context run_on_stack(const void *handler, void (*at_trigger)(void), unsigned long rights) {
    uint64_t *first = page_alloc();
    struct context c = context_user(user_stacks);
    page_map(&boot_space, DATA, (unsigned long)first, PTE_P | PTE_W | PTE_U, 1);
    asm volatile("invlpg (%0)" : : "r"(DATA) : "memory");
    stack_rights = rights;
    trigger_call = exchange_stack;
    c.sp = STACK_TOP;
    run_context(&c, handler, at_trigger);
    return c;
}

/* Ring 3's stack is another page, or another one's to write to, since the last crossing. */
static void check_stacks(const void *handler) {
    struct context c = run_on_stack(handler, trigger_nothing, 0);
    check_end(&c, VECTOR_DONE, 0, "calls between push and pop");
    check(c.r14, 0x87654321, "%s: what was pushed", name_of(handler));
    stack_frame = page_alloc();
    stack_frame[511] = 0xe;
    c = run_on_stack(handler, trigger_c, PTE_P | PTE_W | PTE_U);
    check_end(&c, VECTOR_DONE, 0, "calls between push and pop, the stack exchanged");
    check(c.r14, 0x8765e321, "%s: what is on the stack that was exchanged", name_of(handler));
    stack_frame[511] = 0xd;
    c = run_on_stack(handler, trigger_c, PTE_P | PTE_U);
    check_end(&c, VECTOR_PF, 7, "a push, the stack read-only now");
    check(c.r14, 0x8765d, "%s: what is on the stack that is read-only", name_of(handler));
    c = run_on_stack(handler, trigger_c, PTE_P | PTE_W);
    check_end(&c, VECTOR_PF, 5, "a pop, the stack the kernel's now");
    check(c.r14, 0x8765, "%s: what was popped before", name_of(handler));
    page_map(&boot_space, DATA, 0, 0, 1);
    asm volatile("invlpg (%0)" : : "r"(DATA) : "memory");
}

/* Each call changes the address space: ring 3 finds its own code and memory. */
static void check_spaces(void) {
    struct address_space other = {page_alloc(), 4, 8};
    const struct address_space *spaces[2] = {&boot_space, &other};
    for (unsigned i = 0; i < 512; i++)
        page_entry_write(&other, (uint64_t)i << 39, 4, page_entry_read(&boot_space, (uint64_t)i << 39, 4));
    page_entry_write(&other, DATA, 4, 0);
    for (unsigned i = 0; i < 2; i++) {
        uint8_t *frames = pages_alloc(2, 4096);
        for (unsigned k = 0; k < 64; k++)
            frames[4096 + k] = ((const uint8_t *)user_loads)[k];
        frames[0] = (uint8_t)(i + 1);
        frames[4096 + USER_LOADS_IMMEDIATE] = (uint8_t)(i + 5);
        for (unsigned k = 0; k < 2; k++)
            page_map(spaces[i], DATA + k * 4096, (unsigned long)frames + k * 4096, PTE_P | PTE_W | PTE_U, 1);
    }
    spare_root = (unsigned long)other.root;
    for (unsigned i = 0; i < 8; i++) {
        if (i == 4) { /* once more, each with its PCID */
            if (!(cpuid(1, 0).c & BIT(17)))
                break;
            write_cr4(read_cr4() | CR4_PCIDE);
            spare_root |= 1;
            spare_kept = BIT(63);
        }
        struct context c = context_user(user_loads);
        c.ip = DATA + 4096;
        c.r13 = DATA;
        run_context(&c, enter_switch, trigger_nothing);
        check_end(&c, VECTOR_DONE, 0, "calls that change the address space");
        check(c.r14, 0x21212121, "calls that change the address space: what ring 3 reads");
        check(c.r15, 0x65656565, "calls that change the address space: what ring 3 runs");
        c = context_user(user_tops);
        c.sp = DATA;
        run_context(&c, enter_switch, trigger_nothing);
        check_end(&c, VECTOR_DONE, 0, "calls that change the stack");
        check(c.r14, 0x21212121, "calls that change the address space: what is on ring 3's stack");
    }
    write_cr4(read_cr4() & ~CR4_PCIDE);
    spare_kept = 0;
}

/* IRET from a stack that is nowhere: the fault comes on a stack of its own. */
static void check_no_stack(void) {
    static const unsigned long stacks[] = {BIT(63), BIT(63) + 0x800, BIT(47), ~BIT(62)};
    gate_retype(VECTOR_SS, GATE_INTERRUPT | DESCRIPTOR_PRESENT, 1);
    for (unsigned i = 0; i < ARRAY_SIZE(stacks); i++) {
        struct context c = run(enter_nowhere, user_calls, trigger_nothing, stacks[i]);
        check_end(&c, VECTOR_SS, 0, "iret with no stack");
        check(c.sp, stacks[i], "iret with no stack: rsp");
    }
    gate_reset(VECTOR_SS);
}

void kernel_main(void) {
    /* Kernel code that is relied on lies on global pages, and its data segments are null, as in systems. */
    if (cpuid(1, 0).d & BIT(13))
        write_cr4(read_cr4() | CR4_PGE);
    for (unsigned long at = 0; at < 0x1000000; at += 0x200000)
        page_entry_write(&boot_space, at, 2, page_entry_read(&boot_space, at, 2) | PTE_G);
    write_cr3(read_cr3());
    asm volatile("mov %0, %%ds\n\tmov %0, %%es\n\tmov %0, %%fs\n\tmov %0, %%gs" : : "r"(0));
    write_msr(MSR_EFER, read_msr(MSR_EFER) | EFER_SCE);
    write_msr(MSR_STAR, STAR(KERNEL_CS, USER_CS32));
    write_msr(MSR_SFMASK, MASK);
    return_cs = USER_CS;
    return_ss = USER_DS;
    apic_enable();
    check_registers();
    check_descriptors();
    static const char *const handlers[] = {enter_sysret, enter_iret};
    for (unsigned i = 0; i < ARRAY_SIZE(handlers); i++) {
        check_control(handlers[i]);
        check_flags(handlers[i]);
        check_rights(handlers[i]);
        check_interrupt(handlers[i]);
        check_stacks(handlers[i]);
    }
    check_resume();
    check_no_stack();
    check_spaces();
    checks_finish("crossing64");
}
