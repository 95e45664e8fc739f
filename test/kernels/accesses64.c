/*
 * Accesses one after the other, in one run of code, to pages whose rights, whose translation or whose content
 * changes between them: an emulator that remembers a check, or shares one among several accesses, must not
 * let them through on the strength of what held before. Stack accesses, loops of CPL 3, several accesses off
 * one register. Source: Intel SDM volume 3, 4.6, 4.8 and 4.10.
 */
#include "paging.h"
#include "runtime.h"
#include "tlb64.h"

#define WINDOW 0x0000323440200000ull
#define NEXT (WINDOW + 0x1000)
#define OPEN (PTE_P | PTE_W | PTE_U | PTE_A | PTE_D)
#define CLEAN (OPEN & ~(uint64_t)PTE_D)
#define SEALED (CLEAN & ~(uint64_t)PTE_W)
#define SHUT (OPEN & ~(uint64_t)PTE_U)
#define ROUNDS 4
#define WRITE_REFUSED 3 /* error codes: P W, P W U */
#define USER_WRITE_REFUSED 7

static const struct address_space *const space = &boot_space;
static uint8_t *frame_a, *frame_b;

static void map(uint64_t address, const uint8_t *frame, uint64_t flags) {
    page_map(space, address, (unsigned long)frame, flags, 1);
    invlpg((void *)address);
}

static uint64_t word_at(const uint8_t *frame, unsigned offset) {
    return *(const volatile uint64_t *)(frame + offset);
}

static void word_set(uint8_t *frame, unsigned offset, uint64_t value) {
    *(volatile uint64_t *)(frame + offset) = value;
}

/* -- The stack of CPL 0, in the window; R8 keeps the real one. #PF has a stack of its own. -- */

#define ON_STACK(name, code) SNIPPET(name, "mov %rsp, %r8\n\tmov %rdi, %rsp\n\t" code "\n\tmov %r8, %rsp")

/* RDX is the new entry, RCX where it goes. */
ON_STACK(accesses_invlpg, "push %rsi\n\tmov %rdx, (%rcx)\n\tinvlpg -8(%rdi)\n\tpush %rsi\n\tpop %rax");
ON_STACK(accesses_cr3,
         "mov %cr3, %r9\n\tpush %rsi\n\tmov %rdx, (%rcx)\n\tmov %r9, %cr3\n\tpush %rsi\n\tpop %rax");
ON_STACK(accesses_pge,
         "mov %cr4, %r9\n\tmov %r9, %r10\n\txor $0x80, %r10\n\tpush %rsi\n\tmov %rdx, (%rcx)\n\t"
         "mov %r10, %cr4\n\tmov %r9, %cr4\n\tpush %rsi\n\tpop %rax");
/* RAX is another CR3. */
ON_STACK(accesses_space,
         "mov %cr3, %r9\n\tpush %rsi\n\tmov %rax, %cr3\n\tpush %rsi\n\tpop %rax\n\tmov %r9, %cr3");
ON_STACK(accesses_pop_push, "pop %rax\n\tpush %rsi");
ON_STACK(accesses_load_push, "mov (%rsp), %rax\n\tmov 8(%rsp), %rax\n\tpush %rsi");
ON_STACK(accesses_pop_alone, "pop %rax\n\tjmp 1f\n1:\tpush %rsi");
ON_STACK(accesses_clac, "stac\n\tpush %rsi\n\tclac\n\tpush %rsi");
ON_STACK(accesses_popf_ac, "stac\n\tpush %rsi\n\tpushf\n\tbtrq $18, (%rsp)\n\tpopf\n\tpush %rsi");
/* The stack is where code is: RSI and RDX are two versions of a routine at 0x200. */
ON_STACK(accesses_code,
         "push %rsi\n\tlea -8(%rdi), %r9\n\tcall *%r9\n\tmov %eax, %ecx\n\tpop %rbx\n\tpush %rdx\n\t"
         "call *%r9");

static struct context on_stack(const char *code, uint64_t sp, uint64_t value) {
    struct context c = context_kernel(code);
    c.di = sp;
    c.si = value;
    return c;
}

static void check_stack_flushed(void) {
    static const struct {
        const char *name, *code;
    } ways[] = {{"INVLPG", accesses_invlpg}, {"MOV to CR3", accesses_cr3}, {"CR4.PGE", accesses_pge}};
    volatile void *entry = page_entry(space, WINDOW, 1);
    struct tally tally;
    tally_begin(&tally, "a stack's page changes between pushes");
    for (unsigned i = 0; i < ARRAY_SIZE(ways) * ROUNDS; i++) {
        const unsigned way = i % ARRAY_SIZE(ways);
        map(WINDOW, frame_a, OPEN);
        word_set(frame_a, 0x7f0, 0);
        word_set(frame_b, 0x7f0, 0);
        struct context c = on_stack(ways[way].code, WINDOW + 0x800, 100 + i);
        c.cx = (unsigned long)entry;
        c.dx = (unsigned long)frame_b | OPEN;
        context_run(&c);
        tally_case(&tally, c.vector, VECTOR_DONE, "%s", ways[way].name);
        tally_case(&tally, word_at(frame_a, 0x7f8), 100 + i, "before, %s", ways[way].name);
        tally_case(&tally, word_at(frame_a, 0x7f0), 0, "the old page, %s", ways[way].name);
        tally_case(&tally, word_at(frame_b, 0x7f0), 100 + i, "the new page, %s", ways[way].name);
        tally_case(&tally, c.ax, 100 + i, "popped, %s", ways[way].name);

        map(WINDOW, frame_a, OPEN);
        c = on_stack(ways[way].code, WINDOW + 0x800, 200 + i);
        c.cx = (unsigned long)entry;
        c.dx = (unsigned long)frame_a | SEALED;
        context_run(&c);
        tally_case(&tally, c.vector << 32 | c.error, (unsigned long)VECTOR_PF << 32 | WRITE_REFUSED,
                   "write-protected, %s", ways[way].name);
        tally_case(&tally, c.sp, WINDOW + 0x7f8, "where, %s", ways[way].name);
    }
    tally_end(&tally);
}

static void check_stack_spaces(bool pcid) {
    struct tally tally;
    tally_begin(&tally, pcid ? "a stack in two spaces with PCIDs" : "a stack in two spaces");
    uint64_t *root = page_alloc();
    const struct address_space second = {root, 4, 8};
    for (unsigned i = 0; i < 512; i++)
        root[i] = ((volatile uint64_t *)space->root)[i];
    root[WINDOW >> 39 & 511] = 0;
    map(WINDOW, frame_a, OPEN);
    page_map(&second, WINDOW, (unsigned long)frame_b, OPEN, 1);
    if (pcid)
        write_cr4(read_cr4() | CR4_PCIDE);
    for (unsigned i = 0; i < ROUNDS; i++) {
        struct context c = on_stack(accesses_space, WINDOW + 0x800, 300 + i);
        c.ax = (unsigned long)root | (pcid ? 1 | BIT(63) : 0);
        word_set(frame_a, 0x7f0, 0);
        context_run(&c);
        tally_case(&tally, c.vector, VECTOR_DONE, "round %u", i);
        tally_case(&tally, word_at(frame_a, 0x7f8), 300 + i, "the first space's page, round %u", i);
        tally_case(&tally, word_at(frame_a, 0x7f0), 0, "left alone, round %u", i);
        tally_case(&tally, word_at(frame_b, 0x7f0), 300 + i, "the second space's page, round %u", i);
    }
    if (pcid)
        write_cr4(read_cr4() & ~CR4_PCIDE);
    tally_end(&tally);
}

static void check_stack_rights(void) {
    static const struct {
        const char *name, *code;
        unsigned moved;
    } reads[] = {{"POP", accesses_pop_push, 8},
                 {"loads", accesses_load_push, 0},
                 {"POP, elsewhere", accesses_pop_alone, 8}};
    struct tally tally;
    tally_begin(&tally, "a push behind reads of the stack");
    for (unsigned i = 0; i < ARRAY_SIZE(reads) * ROUNDS; i++) {
        const unsigned which = i % ARRAY_SIZE(reads);
        map(WINDOW, frame_a, SEALED);
        struct context c = on_stack(reads[which].code, WINDOW + 0x800, 1);
        context_run(&c);
        tally_case(&tally, c.vector << 32 | c.error, (unsigned long)VECTOR_PF << 32 | WRITE_REFUSED,
                   "write-protected, %s", reads[which].name);
        tally_case(&tally, c.sp, WINDOW + 0x800 + reads[which].moved, "where, %s", reads[which].name);
        map(WINDOW, frame_a, CLEAN);
        c = on_stack(reads[which].code, WINDOW + 0x800, 1);
        context_run(&c);
        tally_case(&tally, c.vector, VECTOR_DONE, "clean, %s", reads[which].name);
        tally_case(&tally, page_entry_read(space, WINDOW, 1) & PTE_D, PTE_D, "D, %s", reads[which].name);
    }
    tally_end(&tally);
}

static void check_stack_code(void) {
    const uint64_t one = 0x9090c300000001b8, two = 0x9090c300000002b8; /* mov $n, %eax; ret */
    struct tally tally;
    tally_begin(&tally, "a stack on a page of code");
    map(WINDOW, frame_a, OPEN);
    for (unsigned i = 0; i < ROUNDS; i++) {
        struct context c = on_stack(accesses_code, WINDOW + 0x208, i & 1 ? two : one);
        c.dx = i & 1 ? one : two;
        context_run(&c);
        tally_case(&tally, c.vector, VECTOR_DONE, "round %u", i);
        tally_case(&tally, c.cx, i & 1 ? 2 : 1, "before, round %u", i);
        tally_case(&tally, c.ax, i & 1 ? 1 : 2, "after, round %u", i);
    }
    tally_end(&tally);
}

static void check_stack_smap(void) {
    static const char *const codes[] = {accesses_clac, accesses_popf_ac};
    if (!(cpuid(7, 0).b & BIT(20))) {
        check_skip("a stack under SMAP", "no SMAP");
        return;
    }
    struct tally tally;
    tally_begin(&tally, "a stack under SMAP");
    write_cr4(read_cr4() | CR4_SMAP);
    const uint8_t *frame = page_alloc(); /* that never held code */
    for (unsigned i = 0; i < ARRAY_SIZE(codes) * ROUNDS; i++) {
        map(WINDOW, frame, OPEN);
        struct context c = on_stack(codes[i % ARRAY_SIZE(codes)], WINDOW + 0x800, 1);
        context_run(&c);
        tally_case(&tally, c.vector << 32 | c.error, (unsigned long)VECTOR_PF << 32 | WRITE_REFUSED,
                   "case %u", (unsigned)(i % ARRAY_SIZE(codes)));
        tally_case(&tally, c.sp, WINDOW + 0x7f8, "where, case %u", (unsigned)(i % ARRAY_SIZE(codes)));
    }
    write_cr4(read_cr4() & ~CR4_SMAP);
    tally_end(&tally);
}

/* What was read may not be executed for that, and the other way round. */
SNIPPET(accesses_read_run, "mov (%rdi), %ecx\n\tmov (%rdi), %edx\n\tcall *%rdi");
SNIPPET(accesses_run_read, "call *%rdi\n\tmov %eax, %edx\n\tcall *%rdi\n\tmov (%rdi), %rcx");

static void check_execution(void) {
    const uint64_t routine = 0x9090c300000001b8; /* mov $1, %eax; ret */
    struct tally tally;
    tally_begin(&tally, "reads and execution of one page");
    word_set(frame_a, 0x300, routine);
    for (unsigned i = 0; i < ROUNDS; i++) {
        map(WINDOW, frame_a, OPEN | PTE_NX);
        struct context c = context_kernel(accesses_read_run);
        c.di = WINDOW + 0x300;
        context_run(&c);
        tally_case(&tally, c.vector << 32 | c.error, (unsigned long)VECTOR_PF << 32 | 0x11, "not executable");
        tally_case(&tally, c.ip, WINDOW + 0x300, "where");
        tally_case(&tally, c.dx, (uint32_t)routine, "read");
        if (!(cpuid(7, 0).b & BIT(20)))
            continue;
        write_cr4(read_cr4() | CR4_SMAP);
        map(WINDOW, frame_a, OPEN);
        c = context_kernel(accesses_run_read);
        c.di = WINDOW + 0x300;
        context_run(&c);
        write_cr4(read_cr4() & ~CR4_SMAP);
        tally_case(&tally, c.vector << 32 | c.error, (unsigned long)VECTOR_PF << 32 | 1,
                   "executed under SMAP");
        tally_case(&tally, c.dx, 1, "executed");
    }
    tally_end(&tally);
}

SNIPPET(accesses_user_push, "push %rsi\n\tpush %rsi\n\tpop %rax");

/* CPL 3 with the stack pointer where ring 0 has just pushed. */
static void check_stack_levels(void) {
    struct tally tally;
    tally_begin(&tally, "CPL 3 on the stack of CPL 0");
    for (unsigned i = 0; i < 5 * ROUNDS; i++) {
        struct context c = context_user(accesses_user_push);
        c.sp = ((unsigned long)__builtin_frame_address(0) & ~0xffful) + (i % 5) * 0x1000ul - 0x2000 + 0x800;
        context_run(&c);
        tally_case(&tally, c.vector << 32 | c.error, (unsigned long)VECTOR_PF << 32 | USER_WRITE_REFUSED,
                   "page %u", i % 5);
        map(WINDOW, frame_a, SHUT);
        struct context k = on_stack(accesses_pop_push, WINDOW + 0x800, 1);
        context_run(&k);
        tally_case(&tally, k.vector, VECTOR_DONE, "CPL 0");
        c = context_user(accesses_user_push);
        c.sp = WINDOW + 0x800;
        context_run(&c);
        tally_case(&tally, c.vector << 32 | c.error, (unsigned long)VECTOR_PF << 32 | USER_WRITE_REFUSED,
                   "the same stack");
    }
    tally_end(&tally);
}

/* -- Loops of CPL 3 -- */

#define LOOP(body) "mov $3, %ecx\n1:\t" body "\n\tdec %ecx\n\tjnz 1b\n\t"

SNIPPET(accesses_reads, LOOP("mov 0x100(%rdi), %eax"));
SNIPPET(accesses_writes, LOOP("mov %esi, 0x100(%rdi)"));
SNIPPET(accesses_adds, LOOP("add %esi, 0x100(%rdi)"));
/* More loops than there can be memories of them. */
SNIPPET(accesses_many_reads, ".rept 80\n\t" LOOP("mov 0x100(%rdi), %eax") ".endr");
SNIPPET(accesses_many_writes, ".rept 80\n\t" LOOP("mov %esi, 0x100(%rdi)") ".endr");
/* All registers but one are in use; RSI steps over the end of a page. */
SNIPPET(accesses_crowded,
        "mov $6, %ecx\n1:\tadd (%rdi), %rax\n\tadd %rax, %rbx\n\tadd %rbx, %rdx\n\tadd %rdx, %rbp\n\t"
        "add %rbp, %r8\n\tadd %r8, %r9\n\tadd %r9, %r10\n\tadd %r10, %r11\n\tadd %r11, %r12\n\t"
        "add %r12, %r13\n\tadd %r13, %r14\n\tadd (%rsi), %rax\n\tadd $8, %rsi\n\tdec %ecx\n\tjnz 1b");

static struct context loop(const char *code, uint64_t at, uint64_t value) {
    struct context c = context_user(code);
    c.di = at;
    c.si = value;
    context_run(&c);
    return c;
}

static void flush_invlpg(void) {
    invlpg((void *)WINDOW);
}

static void flush_cr3(void) {
    flush_tlb();
}

static void flush_pge(void) {
    write_cr4(read_cr4() ^ CR4_PGE);
    write_cr4(read_cr4() ^ CR4_PGE);
}

static void flush_invpcid(void) {
    invpcid(0, read_cr3() & 0xfff, WINDOW);
}

static void check_loops_flushed(void) {
    static const struct {
        const char *name;
        void (*flush)(void);
    } ways[] = {{"INVLPG", flush_invlpg},
                {"MOV to CR3", flush_cr3},
                {"CR4.PGE", flush_pge},
                {"INVPCID", flush_invpcid}};
    struct tally tally;
    tally_begin(&tally, "a page changes between loops of CPL 3");
    for (unsigned i = 0; i < ARRAY_SIZE(ways) * ROUNDS; i++) {
        const unsigned way = i % ARRAY_SIZE(ways);
        if (ways[way].flush == flush_invpcid && !(cpuid(7, 0).b & BIT(10)))
            continue;
        page_map(space, WINDOW, (unsigned long)frame_a, OPEN, 1);
        ways[way].flush();
        word_set(frame_a, 0x100, 1);
        word_set(frame_b, 0x100, 2);
        tally_case(&tally, loop(accesses_reads, WINDOW, 0).ax, 1, "read, %s", ways[way].name);
        page_map(space, WINDOW, (unsigned long)frame_b, OPEN, 1);
        ways[way].flush();
        tally_case(&tally, loop(accesses_reads, WINDOW, 0).ax, 2, "read of another, %s", ways[way].name);
        loop(accesses_writes, WINDOW, 22);
        tally_case(&tally, word_at(frame_b, 0x100), 22, "written, %s", ways[way].name);
        page_map(space, WINDOW, (unsigned long)frame_a, OPEN, 1);
        ways[way].flush();
        loop(accesses_writes, WINDOW, 11);
        tally_case(&tally, word_at(frame_b, 0x100), 22, "the old page, %s", ways[way].name);
        tally_case(&tally, word_at(frame_a, 0x100), 11, "the new page, %s", ways[way].name);
        loop(accesses_adds, WINDOW, 1);
        tally_case(&tally, word_at(frame_a, 0x100), 14, "added to, %s", ways[way].name);
        page_map(space, WINDOW, (unsigned long)frame_a, SEALED, 1);
        ways[way].flush();
        struct context c = loop(accesses_writes, WINDOW, 12);
        tally_case(&tally, c.vector << 32 | c.error, (unsigned long)VECTOR_PF << 32 | USER_WRITE_REFUSED,
                   "write-protected, %s", ways[way].name);
        tally_case(&tally, loop(accesses_reads, WINDOW, 0).ax, 14, "read all the same, %s", ways[way].name);
        page_map(space, WINDOW, (unsigned long)frame_a, SHUT, 1);
        ways[way].flush();
        tally_case(&tally, loop(accesses_reads, WINDOW, 0).vector, VECTOR_PF, "shut, %s", ways[way].name);
        page_entry_write(space, WINDOW, 1, 0);
        ways[way].flush();
        tally_case(&tally, loop(accesses_reads, WINDOW, 0).vector, VECTOR_PF, "gone, %s", ways[way].name);
    }
    tally_end(&tally);
}

static void check_loops_spaces(void) {
    if (!(cpuid(1, 0).c & BIT(17))) {
        check_skip("loops of CPL 3 in two spaces", "no PCID");
        return;
    }
    struct tally tally;
    tally_begin(&tally, "loops of CPL 3 in two spaces");
    uint64_t *root = page_alloc();
    const struct address_space second = {root, 4, 8};
    for (unsigned i = 0; i < 512; i++)
        root[i] = ((volatile uint64_t *)space->root)[i];
    root[WINDOW >> 39 & 511] = 0;
    map(WINDOW, frame_a, OPEN);
    page_map(&second, WINDOW, (unsigned long)frame_b, OPEN, 1);
    unsigned long here = read_cr3();
    write_cr4(read_cr4() | CR4_PCIDE);
    word_set(frame_a, 0x100, 1);
    word_set(frame_b, 0x100, 2);
    for (unsigned i = 0; i < 2 * ROUNDS; i++) {
        write_cr3(i & 1 ? (unsigned long)root | 1 | BIT(63) : here | BIT(63));
        tally_case(&tally, loop(accesses_reads, WINDOW, 0).ax, i & 1 ? 2 : 1, "read, round %u", i);
    }
    write_cr3(here);
    write_cr4(read_cr4() & ~CR4_PCIDE);
    tally_end(&tally);
}

static void check_loops_rights(void) {
    struct tally tally;
    tally_begin(&tally, "loops that write behind loops that read");
    for (unsigned i = 0; i < ROUNDS; i++) {
        map(WINDOW, frame_a, SEALED);
        word_set(frame_a, 0x100, 7);
        tally_case(&tally, loop(accesses_many_reads, WINDOW, 0).ax, 7, "reads");
        struct context c = loop(accesses_many_writes, WINDOW, 8);
        tally_case(&tally, c.vector << 32 | c.error, (unsigned long)VECTOR_PF << 32 | USER_WRITE_REFUSED,
                   "write-protected");
        map(WINDOW, frame_a, CLEAN);
        tally_case(&tally, loop(accesses_many_reads, WINDOW, 0).ax, 7, "reads");
        tally_case(&tally, page_entry_read(space, WINDOW, 1) & PTE_D, 0, "D behind reads");
        loop(accesses_many_writes, WINDOW, 8);
        tally_case(&tally, page_entry_read(space, WINDOW, 1) & PTE_D, PTE_D, "D behind writes");
    }
    tally_end(&tally);
}

static void check_loops_crowded(void) {
    enum { TURNS = 6, TURN_OF_FAULT = 3 };
    static const struct {
        const char *name;
        bool first, last; /* are the pages there? */
        unsigned turns;
    } cases[] = {{"all there", true, true, TURNS},
                 {"the first page gone", false, true, 0},
                 {"the last page gone", true, false, TURN_OF_FAULT}};
    struct tally tally;
    tally_begin(&tally, "loops with all registers in use");
    for (unsigned i = 0; i < ARRAY_SIZE(cases) * ROUNDS; i++) {
        const unsigned which = i % ARRAY_SIZE(cases);
        map(WINDOW, frame_a, cases[which].first ? OPEN : 0);
        map(NEXT, frame_b, OPEN);
        map(NEXT + 0x1000, frame_a, cases[which].last ? OPEN : 0);
        struct context c = context_user(accesses_crowded);
        c.di = WINDOW;
        c.si = NEXT + 0x1000 - 8 * TURN_OF_FAULT;
        c.bx = c.dx = c.bp = 1000;
        c.r8 = c.r9 = c.r10 = c.r11 = c.r12 = c.r13 = c.r14 = 2000 + i;
        for (unsigned k = 0; k < TURNS; k++) {
            word_set(frame_a, 8 * k, 3);
            word_set(frame_b, 0x1000 - 8 * TURNS + 8 * k, 5);
        }
        struct context want = c;
        unsigned long *chain[] = {&want.ax,  &want.bx,  &want.dx,  &want.bp,  &want.r8, &want.r9,
                                  &want.r10, &want.r11, &want.r12, &want.r13, &want.r14};
        for (unsigned turn = 0; turn < TURNS && cases[which].first; turn++) {
            want.ax += 3;
            for (unsigned k = 1; k < ARRAY_SIZE(chain); k++)
                *chain[k] += *chain[k - 1];
            if (turn == cases[which].turns)
                break;
            want.ax += turn < TURN_OF_FAULT ? 5 : 3;
            want.si += 8;
        }
        context_run(&c);
        tally_case(&tally, c.vector, cases[which].turns == TURNS ? VECTOR_DONE : VECTOR_PF, "%s",
                   cases[which].name);
        const unsigned long got[] = {c.ax, c.bx, c.dx, c.bp, c.r8, c.r9, c.r10, c.r11, c.r12, c.r13, c.r14};
        for (unsigned k = 0; k < ARRAY_SIZE(chain); k++)
            tally_case(&tally, got[k], *chain[k], "register %u, %s", k, cases[which].name);
        tally_case(&tally, c.si, want.si, "RSI, %s", cases[which].name);
        tally_case(&tally, c.di, want.di, "RDI, %s", cases[which].name);
        tally_case(&tally, c.cx, TURNS - cases[which].turns, "RCX, %s", cases[which].name);
    }
    tally_end(&tally);
    page_entry_write(space, NEXT + 0x1000, 1, 0);
    invlpg((void *)(NEXT + 0x1000));
}

/* -- Several accesses off one register -- */

SNIPPET(accesses_then_write, "mov (%rdi), %eax\n\tmov 8(%rdi), %ecx\n\tmov %esi, 4(%rdi)");
SNIPPET(accesses_over_end, "mov (%rdi), %rax\n\tmov 1016(%rdi), %rcx\n\tmov 1020(%rdi), %rdx");
SNIPPET(accesses_divide,
        "mov (%rdi), %eax\n\txor %edx, %edx\n\tdiv %esi\n\tmov %eax, (%rdi)\n\tmov %eax, 8(%rdi)");
SNIPPET(accesses_moved, "mov (%rdi), %rax\n\tadd $8, %rdi\n\tmov (%rdi), %rcx\n\tsub $24, %rdi\n\tmov "
                        "(%rdi), %rdx\n\tmov 8(%rdi), %rbx");
SNIPPET(accesses_pop_rsp,
        "mov %rsp, %r8\n\tmov %rdi, %rsp\n\tpop %rax\n\tpop %rsp\n\tpop %rcx\n\tpop %rdx\n\tmov %r8, %rsp");

SNIPPET(accesses_moved_far, "mov (%rdi), %rax\n\tadd $1000, %rdi\n\tmov (%rdi), %rcx\n\tmov 100(%rdi), %rdx");
SNIPPET(accesses_indexed, "mov (%rdi, %rsi, 8), %rax\n\tmov 8(%rdi, %rsi, 8), %rcx\n\tadd $1, %rsi\n\t"
                          "mov (%rdi, %rsi, 8), %rdx\n\tmov 8(%rdi, %rsi, 8), %rbx");
SNIPPET(accesses_stepping,
        "xor %ebx, %ebx\n1:\tmov (%rdi), %rax\n\tmov 8(%rdi), %rdx\n\tadd %rax, %rbx\n\tadd %rdx, %rbx\n\t"
        "add $8, %rdi\n\tsub $1, %ecx\n\tjnz 1b");

/* Accesses that a range checked before does not reach. */
static void check_reach(bool user) {
    struct context (*make)(const void *) = user ? context_user : context_kernel;
    struct tally tally;
    tally_begin(&tally, user ? "accesses beyond others at CPL 3" : "accesses beyond others at CPL 0");
    map(WINDOW, frame_a, OPEN);
    map(NEXT, frame_b, OPEN);
    for (unsigned i = 0; i < ROUNDS; i++) {
        for (unsigned at = 0; at < 0x1000; at += 8) {
            word_set(frame_a, at, 0x10000 + at);
            word_set(frame_b, at, 0x20000 + at);
        }
        struct context c = make(accesses_moved_far);
        c.di = NEXT - 1040;
        context_run(&c);
        tally_case(&tally, c.ax, 0x11000 - 1040, "moved far, first");
        tally_case(&tally, c.cx, 0x11000 - 40, "moved far, second");
        tally_case(&tally, c.dx, 0x20040ull << 32, "moved far, third");
        c = make(accesses_indexed);
        c.di = WINDOW + 0x200;
        c.si = 5;
        context_run(&c);
        tally_case(&tally, c.ax << 48 | c.cx << 32 | (c.dx & 0xffff) << 16 | (c.bx & 0xffff),
                   0x0228ull << 48 | 0x10230ull << 32 | 0x0230 << 16 | 0x0238, "moved index");
        uint64_t sum = 0;
        for (unsigned k = 0; k < 40; k++)
            for (unsigned half = 0; half < 2; half++) {
                unsigned at = 0x1000 - 160 + 8 * (k + half);
                sum += at < 0x1000 ? 0x10000 + at : 0x20000 + at - 0x1000;
            }
        c = make(accesses_stepping);
        c.di = NEXT - 160;
        c.cx = 40;
        context_run(&c);
        tally_case(&tally, c.bx, sum, "steps over the end of a page");
    }
    tally_end(&tally);
}

/* A store that lies across two pages itself, to a page that holds code: its second half is not behind its
 * first. */
static void check_store_across(void) {
    struct tally tally;
    tally_begin(&tally, "a store that lies across pages");
    map(WINDOW, frame_a, OPEN);
    map(NEXT, frame_b, OPEN);
    for (unsigned i = 0; i < ROUNDS; i++) {
        static const uint8_t head[] = {0xc7, 0x07, 0x11, 0x22}; /* movl $0x44332211, (%rdi) */
        static const uint8_t tail[] = {0x33, 0x44, 0xcd, VECTOR_DONE};
        for (unsigned k = 0; k < 4; k++) {
            *(volatile uint8_t *)(frame_a + 0xffc + k) = head[k];
            *(volatile uint8_t *)(frame_b + k) = tail[k];
        }
        struct context c = context_kernel((void *)(NEXT - 4));
        c.di = WINDOW + 0x100;
        context_run(&c);
        tally_case(&tally, c.vector, VECTOR_DONE, "round %u", i);
        tally_case(&tally, (uint32_t)word_at(frame_a, 0x100), 0x44332211, "round %u", i);
        word_set(frame_a, 0x100, 0);
    }
    tally_end(&tally);
}

/* Flags that live through a check of memory: of a sum of a register and itself. */
SNIPPET(accesses_double, "add %rax, %rax\n\tmov (%rdi), %rcx\n\tseto %dl\n\tlahf");
SNIPPET(accesses_double_alone, "add %rax, %rax\n\tseto %dl\n\tlahf");

static void check_flags(void) {
    static const unsigned long values[] = {0, 1, 0x7f, 0x80, 8, 0x4000000000000000, 0x8000000000000000, ~0ul};
    struct tally tally;
    tally_begin(&tally, "flags of a register added to itself");
    map(WINDOW, frame_a, OPEN);
    for (unsigned i = 0; i < ARRAY_SIZE(values); i++) {
        struct context c = context_kernel(accesses_double), want = context_kernel(accesses_double_alone);
        c.ax = want.ax = values[i];
        c.di = WINDOW;
        context_run(&c);
        context_run(&want);
        tally_case(&tally, c.ax >> 8 & 0xff, want.ax >> 8 & 0xff, "%lx", values[i]);
        tally_case(&tally, c.dx & 0xff, want.dx & 0xff, "OF, %lx", values[i]);
    }
    tally_end(&tally);
}

/* One page at several addresses, each written to before another of them is executed from. */
static void check_aliases(void) {
    enum { ALIASES = 4 };
    struct tally tally;
    tally_begin(&tally, "code written through other addresses of its page");
    for (unsigned i = 0; i < ALIASES * ROUNDS; i++) {
        const uint8_t *frame = page_alloc(); /* that never held code */
        for (unsigned k = 0; k <= ALIASES; k++)
            map(WINDOW + k * 0x5000, frame, OPEN);
        for (unsigned k = 0; k < ALIASES; k++) {
            volatile uint8_t *at = (volatile uint8_t *)(WINDOW + k * 0x5000 + 0x400);
            at[0] = 0xb8; /* mov $i, %eax; ret */
            *(volatile uint32_t *)(at + 1) = i;
            at[5] = 0xc3;
        }
        unsigned (*routine)(void) = (unsigned (*)(void))(WINDOW + ALIASES * 0x5000 + 0x400);
        (void)cpuid(0, 0);
        tally_case(&tally, routine(), i, "round %u", i);
        *(volatile uint32_t *)(WINDOW + i % ALIASES * 0x5000 + 0x401) = i + 1000;
        (void)cpuid(0, 0);
        tally_case(&tally, routine(), i + 1000, "through address %u", i % ALIASES);
    }
    tally_end(&tally);
}

static void check_groups(bool user) {
    struct tally tally;
    tally_begin(&tally, user ? "accesses off one register at CPL 3" : "accesses off one register at CPL 0");
    for (unsigned i = 0; i < ROUNDS; i++) {
        struct context (*make)(const void *) = user ? context_user : context_kernel;
        map(WINDOW, frame_a, SEALED);
        map(NEXT, frame_b, OPEN);
        struct context c = make(accesses_then_write);
        c.di = WINDOW;
        context_run(&c);
        tally_case(&tally, c.vector << 32 | c.error,
                   (unsigned long)VECTOR_PF << 32 | (user ? USER_WRITE_REFUSED : WRITE_REFUSED),
                   "write-protected");
        tally_case(&tally, c.cr2, WINDOW + 4, "where");
        map(WINDOW, frame_a, CLEAN);
        c = make(accesses_then_write);
        c.di = WINDOW;
        context_run(&c);
        tally_case(&tally, page_entry_read(space, WINDOW, 1) & PTE_D, PTE_D, "D");

        /* A read whose page is written next, unless something comes between. */
        for (unsigned divisor = 0; divisor < 2; divisor++) {
            map(WINDOW, frame_a, CLEAN);
            c = make(accesses_divide);
            c.di = WINDOW;
            c.si = divisor;
            context_run(&c);
            tally_case(&tally, c.vector, divisor ? VECTOR_DONE : VECTOR_DE, "division by %u", divisor);
            tally_case(&tally, page_entry_read(space, WINDOW, 1) & PTE_D, divisor ? PTE_D : 0,
                       "D, division by %u", divisor);
        }

        map(WINDOW, frame_a, OPEN);
        word_set(frame_a, 0xff8, 0x1111111122222222);
        word_set(frame_b, 0, 0x3333333344444444);
        c = make(accesses_over_end);
        c.di = WINDOW + 0x1000 - 1024;
        context_run(&c);
        tally_case(&tally, c.cx, 0x1111111122222222, "the last word");
        tally_case(&tally, c.dx, 0x4444444411111111, "over the end");

        for (unsigned k = 0; k < 4; k++)
            word_set(frame_a, 0x800 + 8 * k, 0x100 + k);
        c = make(accesses_moved);
        c.di = WINDOW + 0x810;
        context_run(&c);
        tally_case(&tally, c.ax << 48 | c.cx << 32 | c.dx << 16 | c.bx, 0x0102010301000101, "moved base");
        word_set(frame_a, 0x800, 0x77);
        word_set(frame_a, 0x808, NEXT + 0x10);
        word_set(frame_a, 0x810, 0x88);
        word_set(frame_b, 0x10, 0x99);
        word_set(frame_b, 0x18, 0xaa);
        c = make(accesses_pop_rsp);
        c.di = WINDOW + 0x800;
        context_run(&c);
        tally_case(&tally, c.ax << 32 | c.cx << 16 | c.dx, 0x77009900aa, "pop %%rsp");
    }
    tally_end(&tally);
}

void kernel_main(void) {
    frame_a = page_alloc();
    (void)page_alloc(); /* pages side by side are not so in memory */
    frame_b = page_alloc();
    write_cr0(read_cr0() | CR0_WP);
    gate_retype(VECTOR_PF, GATE_INTERRUPT | DESCRIPTOR_PRESENT, 1);
    check_execution();
    check_stack_flushed();
    check_stack_spaces(false);
    if (cpuid(1, 0).c & BIT(17))
        check_stack_spaces(true);
    check_stack_rights();
    check_stack_code();
    check_stack_smap();
    check_stack_levels();
    check_loops_flushed();
    if (cpuid(1, 0).d & BIT(13)) {
        write_cr4(read_cr4() | CR4_PGE);
        check_stack_flushed();
        check_loops_flushed();
    }
    check_loops_spaces();
    check_loops_rights();
    check_loops_crowded();
    check_groups(false);
    check_groups(true);
    check_reach(false);
    check_reach(true);
    check_store_across();
    check_aliases();
    check_flags();
    checks_finish("accesses64");
}
