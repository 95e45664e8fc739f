/*
 * Returns: RET goes where the word on the stack says and nowhere else, whatever the calls before it, and
 * finds there the code that the page tables, the privilege level and memory have by then. Source: Intel SDM
 * volume 2, RET; volume 3, 4.10 and 8.1.3.
 */
#include "paging.h"
#include "runtime.h"

#define WINDOW 0x0000323440200000ull /* the page of the calls */
#define BESIDE (WINDOW + 0x1000)     /* a page that stays */
#define OPEN (PTE_P | PTE_W | PTE_U)
#define ROUNDS 4

static const struct address_space *const space = &boot_space;
static uint8_t *frame_a, *frame_b;

/* Two calls 256 bytes apart: their return addresses differ above the low byte only. The callee adds RSI to
 * its return address, and drops RDX bytes of the stack. */
asm(".pushsection .text\n\t.balign 256\n"
    "return_one: call return_shift\n\tmov $1, %eax\n\tret\n\t"
    ".balign 256\n"
    "return_two: call return_shift\n\tmov $2, %eax\n\tret\n\t"
    ".balign 256\n"
    "return_out: call return_two\n\tmov $3, %eax\n\tret\n"
    "return_shift: add %rsi, (%rsp)\n\tadd %rdx, %rsp\n\tret\n"
    "return_pushed: lea 1f(%rip), %rax\n\tpush %rax\n\tmov $4, %eax\n\tret\n\tud2\n1:\tadd $5, %eax\n\tret\n"
    "return_release: push %rsi\n\tpush %rsi\n\tcall 2f\n\tsub $6, %eax\n\tret\n2:\tmov $15, %eax\n\tret $16\n"
    /* The flags that a callee leaves, in every way: just made, made before a load, made by an addition of
       memory. */
    "return_flags: push %rdi\n\tcall *%rdx\n\tpushf\n\tpop %rax\n\tadd $8, %rsp\n\tret\n"
    "return_sum: add %rsi, %rdi\n\tret\n"
    "return_sum_pop: push %rcx\n\tadd %rsi, %rdi\n\tpop %rcx\n\tret\n"
    "return_compare: push %rcx\n\tcmp %rsi, %rdi\n\tmov (%rsp), %rcx\n\tadd 16(%rsp), %rsi\n\tpop "
    "%rcx\n\tret\n"
    ".popsection");
extern unsigned return_one(long a, long shift, long drop), return_two(long a, long shift, long drop),
    return_out(long a, long shift, long drop), return_pushed(void), return_release(void);
extern unsigned long return_flags(unsigned long a, unsigned long b, void (*callee)(void));
extern void return_sum(void), return_sum_pop(void), return_compare(void);

static void check_unbalanced(void) {
    struct tally tally;
    tally_begin(&tally, "returns to another place than the call's");
    for (unsigned i = 0; i < ROUNDS; i++) {
        tally_case(&tally, return_one(0, 0, 0), 1, "one, round %u", i);
        tally_case(&tally, return_two(0, 0, 0), 2, "two, round %u", i);
        tally_case(&tally, return_one(0, 256, 0), 2, "one to two, round %u", i);
        tally_case(&tally, return_two(0, -256, 0), 1, "two to one, round %u", i);
        tally_case(&tally, return_out(0, 0, 0), 3, "out, round %u", i);
        tally_case(&tally, return_out(0, 0, 8), 3, "a frame dropped, round %u", i);
        tally_case(&tally, return_pushed(), 9, "no call, round %u", i);
        tally_case(&tally, return_release(), 9, "words released, round %u", i);
    }
    tally_end(&tally);
}

/* RET to where there can be no code: the word and what RET releases are still on the stack. */
SNIPPET(return_nowhere, "movabs $0x8000000000000000, %rax\n\tmov %rsp, %rbx\n\tpush %rax\n\tret");
SNIPPET(return_nowhere_release,
        "movabs $0x8000000000000000, %rax\n\tmov %rsp, %rbx\n\tpush %rax\n\tret $0x128");

static void check_nowhere(void) {
    static const char *const codes[] = {return_nowhere, return_nowhere_release};
    struct tally tally;
    tally_begin(&tally, "returns to a non-canonical address");
    for (unsigned i = 0; i < ARRAY_SIZE(codes) * ROUNDS; i++) {
        struct context c = context_kernel(codes[i % 2]);
        context_run(&c);
        tally_case(&tally, c.vector << 32 | c.error, (uint64_t)VECTOR_GP << 32, "case %u", i % 2);
        tally_case(&tally, c.sp, c.bx - 8, "stack pointer, case %u", i % 2);
        tally_case(&tally, *(const uint8_t *)c.ip, i % 2 ? 0xc2 : 0xc3, "instruction, case %u", i % 2);
    }
    tally_end(&tally);
}

static void check_flags(void) {
    static const unsigned long values[] = {
        0, 1, 0x7f, 0x80, 0x7fffffffffffffff, 0x8000000000000000, ~0ul, 0x123456789};
    const unsigned long arithmetic = 0x8d5;
    struct tally tally;
    tally_begin(&tally, "flags through returns");
    for (unsigned i = 0; i < ARRAY_SIZE(values) * ARRAY_SIZE(values) * 2; i++) {
        unsigned long a = values[i % 8], b = values[i / 8 % 8], sum;
        asm("add %2, %1\n\tpushf\n\tpop %0" : "=r"(sum), "+r"(a) : "r"(b) : "cc");
        sum &= arithmetic;
        a = values[i % 8];
        tally_case(&tally, return_flags(a, b, return_sum) & arithmetic, sum, "sum %lx, %lx", a, b);
        tally_case(&tally, return_flags(a, b, return_sum_pop) & arithmetic, sum, "sum, pop %lx, %lx", a, b);
        tally_case(&tally, return_flags(a, b, return_compare) & arithmetic, sum, "compare, sum %lx, %lx", a,
                   b);
    }
    tally_end(&tally);
}

/* A fault between pushes or pops finds the stack pointer as far as the program had moved it. */
SNIPPET(stack_push, "xor %ecx, %ecx\n\tpush %rax\n\tpush %rbx\n\tpush %rcx\n\tdiv %ecx\n\tpush %rax");
SNIPPET(stack_pop, "push %rax\n\tpush %rbx\n\tpush %rcx\n\tjmp 1f\n1:\txor %ecx, %ecx\n\tcmp %eax, %eax\n\t"
                   "pop %rdx\n\tpop %rbx\n\tdiv %ecx\n\tpop %rax");
SNIPPET(stack_both,
        "push %rax\n\tpush %rbx\n\tpop %rsi\n\txor %ecx, %ecx\n\tcmp %eax, %eax\n\tpush %rsi\n\tdiv "
        "%ecx\n\tpop %rsi");
SNIPPET(stack_call,
        "push %rax\n\tpush %rbx\n\tcall 1f\n1:\txor %ecx, %ecx\n\tpop %rdx\n\tdiv %ecx\n\tpop %rdx");

static void check_stack(void) {
    static const struct {
        const char *name, *code;
        long moved;
    } cases[] = {{"behind pushes", stack_push, -24},
                 {"behind pops", stack_pop, -8},
                 {"behind both", stack_both, -16},
                 {"behind a call", stack_call, -16}};
    struct tally tally;
    tally_begin(&tally, "stack pointer at a fault");
    for (unsigned i = 0; i < ARRAY_SIZE(cases) * ROUNDS; i++) {
        const unsigned which = i % ARRAY_SIZE(cases);
        struct context c = context_kernel(cases[which].code);
        unsigned long sp = c.sp;
        c.ax = c.bx = c.dx = 0;
        context_run(&c);
        tally_case(&tally, c.vector, VECTOR_DE, "%s", cases[which].name);
        tally_case(&tally, c.sp - sp, (unsigned long)cases[which].moved, "%s", cases[which].name);
        tally_case(&tally, *(const uint8_t *)c.ip, 0xf7, "instruction, %s", cases[which].name);
        tally_case(&tally, c.flags & 0x8d5, 0x44, "flags, %s", cases[which].name);
    }
    tally_end(&tally);
}

/* -- The page of the call changes before the return -- */

static unsigned long cr3_here, cr3_there;
static bool next_to_b;
static void (*next_flush)(void);

static void flush_page(void) {
    invlpg((void *)WINDOW);
}

static void flush_space(void) {
    flush_tlb();
}

static void flush_global(void) {
    write_cr4(read_cr4() ^ CR4_PGE);
    write_cr4(read_cr4() ^ CR4_PGE);
}

static const struct {
    const char *name;
    void (*flush)(void);
    bool global; /* reaches global pages */
} flushes[] = {
    {"INVLPG", flush_page, true}, {"MOV to CR3", flush_space, false}, {"CR4.PGE", flush_global, true}};

/*   0x300:  call *%rdi;  mov $value, %eax;  ret
 *   0x400:  call 0x1400;  mov $value, %eax;  int VECTOR_DONE
 *   0x500:  call 0x1400;  mov %cr0, %rax;  int VECTOR_DONE
 *   beside, 0x400:  int VECTOR_DONE;  ret        0x500: mov %rsi, %cr3;  ret
 */
static void frame_fill(uint8_t *frame, unsigned value) {
    const uint8_t kernel[] = {0xff, 0xd7, 0xb8, (uint8_t)value, 0, 0, 0, 0xc3};
    const uint8_t user[] = {0xe8, 0xfb, 0x0f, 0, 0, 0xb8, (uint8_t)value, 0, 0, 0, 0xcd, VECTOR_DONE};
    const uint8_t privileged[] = {0xe8, 0xfb, 0x0e, 0, 0, 0x0f, 0x20, 0xc0, 0xcd, VECTOR_DONE};
    for (unsigned i = 0; i < sizeof(kernel); i++)
        frame[0x300 + i] = kernel[i];
    for (unsigned i = 0; i < sizeof(user); i++)
        frame[0x400 + i] = user[i];
    for (unsigned i = 0; i < sizeof(privileged); i++)
        frame[0x500 + i] = privileged[i];
}

static void callee_nothing(void) {}

static void callee_remap(void) {
    uint64_t flags = page_entry_read(space, WINDOW, 1) & (OPEN | PTE_G);
    page_map(space, WINDOW, (unsigned long)(next_to_b ? frame_b : frame_a), flags, 1);
    next_flush();
}

static unsigned call_window(void (*callee)(void)) {
    return ((unsigned (*)(void (*)(void)))(WINDOW + 0x300))(callee);
}

static void check_remapped(uint64_t flags) {
    struct tally tally;
    tally_begin(&tally, flags & PTE_G ? "global page remapped by the callee" : "page remapped by the callee");
    for (unsigned i = 0; i < ARRAY_SIZE(flushes) * ROUNDS; i++) {
        if (flags & PTE_G && !flushes[i / ROUNDS].global)
            continue;
        next_flush = flushes[i / ROUNDS].flush;
        next_to_b = false;
        page_map(space, WINDOW, (unsigned long)frame_a, flags, 1);
        next_flush();
        for (unsigned k = 0; k < 3; k++)
            tally_case(&tally, call_window(callee_nothing), 1, "before, %s", flushes[i / ROUNDS].name);
        tally_case(&tally, call_window(callee_remap), 1, "the same, %s", flushes[i / ROUNDS].name);
        next_to_b = true;
        tally_case(&tally, call_window(callee_remap), 2, "another, %s", flushes[i / ROUNDS].name);
        tally_case(&tally, call_window(callee_nothing), 2, "after, %s", flushes[i / ROUNDS].name);

        next_to_b = false;
        callee_remap();
        struct context c = context_user((void *)0);
        c.ip = WINDOW + 0x400;
        context_run(&c);
        tally_case(&tally, c.vector, VECTOR_DONE, "at CPL 3, in the callee, %s", flushes[i / ROUNDS].name);
        next_to_b = i & 1;
        callee_remap();
        context_run(&c);
        tally_case(&tally, c.vector == VECTOR_DONE ? c.ax : 0, i & 1 ? 2 : 1, "at CPL 3, %s",
                   flushes[i / ROUNDS].name);
    }
    tally_end(&tally);
}

/* Another address space has another page there; the callee's own page is in both, global or not. */
static void check_spaces(uint64_t beside) {
    struct tally tally;
    tally_begin(&tally, beside & PTE_G ? "address space changed by a global callee"
                                       : "address space changed by the callee");
    page_map(space, BESIDE, page_entry_read(space, BESIDE, 1) & 0xfffffffffffff000ul & ~PTE_NX, OPEN | beside,
             1);
    invlpg((void *)BESIDE);
    uint64_t *root = page_alloc();
    for (unsigned i = 0; i < 512; i++)
        root[i] = ((volatile uint64_t *)space->root)[i];
    root[WINDOW >> 39 & 511] = 0;
    const struct address_space second = {root, 4, 8};
    page_map(&second, WINDOW, (unsigned long)frame_b, OPEN, 1);
    page_map(&second, BESIDE, page_entry_read(space, BESIDE, 1) & 0xfffffffffffff000ul & ~PTE_NX,
             OPEN | beside, 1);
    page_map(space, WINDOW, (unsigned long)frame_a, OPEN, 1);
    cr3_here = read_cr3();
    cr3_there = (unsigned long)root;
    write_cr3(cr3_here);
    for (unsigned i = 0; i < ROUNDS; i++)
        for (unsigned there = 0; there < 2; there++) {
            unsigned got;
            write_cr3(i & 1 ? cr3_here : cr3_there);
            asm volatile("call *%2"
                         : "=a"(got)
                         : "S"(there ? cr3_there : cr3_here), "r"(WINDOW + 0x300), "D"(BESIDE + 0x500)
                         : "memory", "cc");
            tally_case(&tally, got, there ? 2 : 1, "round %u", i);
            write_cr3(there ? cr3_here : cr3_there);
            struct context c = context_user((void *)0);
            c.ip = WINDOW + 0x400;
            context_run(&c);
            write_cr3(there ? cr3_there : cr3_here);
            context_run(&c);
            tally_case(&tally, c.vector == VECTOR_DONE ? c.ax : 0, there ? 2 : 1, "at CPL 3, round %u", i);
        }
    write_cr3(cr3_here);
    tally_end(&tally);
}

/* The same call at two privilege levels, the one between the other's call and return. */
static void check_levels(void) {
    struct tally tally;
    tally_begin(&tally, "privilege level");
    for (unsigned i = 0; i < ROUNDS; i++) {
        struct context user = context_user((void *)0), kernel = context_kernel((void *)(WINDOW + 0x500));
        user.ip = WINDOW + 0x500;
        context_run(&user);
        tally_case(&tally, user.vector, VECTOR_DONE, "CPL 3 in the callee");
        context_run(&kernel);
        tally_case(&tally, kernel.vector, VECTOR_DONE, "CPL 0 in the callee");
        context_run(&kernel);
        tally_case(&tally, kernel.vector, VECTOR_DONE, "CPL 0 reads CR0");
        tally_case(&tally, kernel.ip, WINDOW + 0x50a, "behind");
        context_run(&user);
        tally_case(&tally, user.vector, VECTOR_GP, "CPL 3 reads CR0");
        tally_case(&tally, user.ip, WINDOW + 0x505, "where");
    }
    tally_end(&tally);
}

/* The code behind the call is rewritten by the callee, at the same linear address and through an alias. */
static void callee_rewrite(void) {
    static uint8_t value;
    *(volatile uint8_t *)(next_to_b ? (uint8_t *)WINDOW + 0x303 : frame_a + 0x303) = value =
        (uint8_t)(value + 7);
    *(volatile uint8_t *)(frame_a + 0x800) = value;
    cpuid(0, 0);
}

static void check_rewritten(void) {
    struct tally tally;
    tally_begin(&tally, "rewritten by the callee");
    page_map(space, WINDOW, (unsigned long)frame_a, OPEN, 1);
    flush_page();
    for (unsigned i = 0; i < 8 * ROUNDS; i++) {
        next_to_b = i / 4 & 1;
        unsigned got = call_window(callee_rewrite);
        tally_case(&tally, got, frame_a[0x800], "%s, round %u", next_to_b ? "same address" : "alias", i);
        tally_case(&tally, call_window(callee_nothing), got, "again, round %u", i);
    }
    tally_end(&tally);
    frame_fill(frame_a, 1);
}

void kernel_main(void) {
    static const uint8_t callees[] = {0xcd, VECTOR_DONE, 0xc3}, switches[] = {0x0f, 0x22, 0xde, 0xc3};
    frame_a = page_alloc();
    frame_b = page_alloc();
    uint8_t *beside = page_alloc();
    for (unsigned i = 0; i < sizeof(callees); i++)
        beside[0x400 + i] = callees[i];
    for (unsigned i = 0; i < sizeof(switches); i++)
        beside[0x500 + i] = switches[i];
    page_map(space, BESIDE, (unsigned long)beside, OPEN, 1);
    frame_fill(frame_a, 1);
    frame_fill(frame_b, 2);
    check_unbalanced();
    check_nowhere();
    check_flags();
    check_stack();
    check_remapped(OPEN);
    if (cpuid(1, 0).d & BIT(13)) {
        write_cr4(read_cr4() | CR4_PGE);
        check_remapped(OPEN);
        check_remapped(OPEN | PTE_G);
        check_spaces(PTE_G);
    }
    check_spaces(0);
    check_levels();
    check_rewritten();
    checks_finish("returns64");
}
