/*
 * Self-modifying code on one CPU: a store that reaches code must be seen by the very next instruction when
 * code and store use one linear address, and after a serialising instruction otherwise. Source: Intel SDM
 * volume 3, 8.1.3 and 11.6.
 */
#include "paging.h"
#include "runtime.h"

void check_immediates(void); /* smc_immediates64.c */

#define WINDOW 0x0000423440200000ull
#define OPEN (PTE_P | PTE_W | PTE_U)

/* Each routine gives 2 in eax when the store was seen; it is copied to a fresh page, and run again and again.
 */
#define ROUTINE(name, code)                                                                                  \
    extern const uint8_t name[], name##_end[];                                                               \
    asm(".pushsection .text\n" #name ":\n\t" code "\n\tret\n" #name "_end:\n\t.popsection")

ROUTINE(smc_next, "movb $1, 1f+1(%rip)\n\tmovb $2, 1f+1(%rip)\n1:\tmov $1, %eax");
ROUTINE(smc_next_long, "movl $2, 1f+1(%rip)\n1:\tmov $1, %eax\n\tmovl $1, 1b+1(%rip)");
ROUTINE(smc_after_jump, "movb $2, 1f+1(%rip)\n\tjmp 1f\n\tud2\n1:\tmov $1, %eax\n\tmovb $1, 1b+1(%rip)");
ROUTINE(smc_far_ahead, "movb $2, 1f+1(%rip)\n\t.fill 100, 1, 0x90\n1:\tmov $1, %eax\n\tmovb $1, 1b+1(%rip)");
ROUTINE(smc_loop,
        "mov $2, %ecx\n1:\tmov $1, %eax\n\tmovb $2, 1b+1(%rip)\n\tdec %ecx\n\tjnz 1b\n\tmovb $1, 1b+1(%rip)");
ROUTINE(smc_itself, "mov $1, %eax\n\tmovb $0xc3, 1f(%rip)\n1:\tnop\n\tud2");
ROUTINE(smc_stos, "mov $2, %eax\n\tmov $1, %ecx\n\tlea 1f+1(%rip), %rdi\n\trep stosb\n1:\tmov $1, "
                  "%eax\n\tmovb $1, 1b+1(%rip)");
ROUTINE(smc_movs, "mov $6, %ecx\n\tlea 2f(%rip), %rsi\n\tlea 1f(%rip), %rdi\n\trep movsb\n1:\tmov $1, "
                  "%eax\n\tret\n2:\tmov $2, %eax\n\tret");
ROUTINE(smc_push, "mov %rsp, %rdx\n\tlea 1f+8(%rip), %rsp\n\tmovabs $0x90909000000002b8, %rax\n\tpush "
                  "%rax\n1:\tmov $1, %eax\n\t.fill 3, 1, 0x90\n\tmov %rdx, %rsp\n\tmovb $1, 1b+1(%rip)");
ROUTINE(smc_mov_ch, "mov $0x200, %ecx\n\tmov %ch, 1f+1(%rip)\n1:\tmov $1, %eax\n\tmovb $1, 1b+1(%rip)");
ROUTINE(smc_mov_sil, "mov $2, %esi\n\tmov %sil, 1f+1(%rip)\n1:\tmov $1, %eax\n\tmovb $1, 1b+1(%rip)");
ROUTINE(smc_mov_r9w, "mov $2, %r9d\n\tmov %r9w, 1f+1(%rip)\n1:\tmov $1, %eax\n\tmovw $1, 1b+1(%rip)");
ROUTINE(smc_mov_r10,
        "movabs $0x90909000000002b8, %r10\n\tmov %r10, 1f(%rip)\n1:\tmov $1, %eax\n\t.fill 3, 1, "
        "0x90\n\tmovb $1, 1b+1(%rip)");
ROUTINE(smc_mov_wide, "movq $-2, 1f+2(%rip)\n1:\tmovabs $1, %rax\n\tneg %rax\n\tfs movq $1, 1b+2(%rip)");
ROUTINE(smc_xchg, "mov $2, %cl\n\txchg %cl, 1f+1(%rip)\n1:\tmov $1, %eax\n\tmovb $1, 1b+1(%rip)");
ROUTINE(smc_xadd, "mov $1, %ecx\n\tlock xadd %ecx, 1f+1(%rip)\n1:\tmov $1, %eax\n\tmovl $1, 1b+1(%rip)");
ROUTINE(
    smc_cmpxchg,
    "mov $1, %eax\n\tmov $2, %ecx\n\tlock cmpxchg %ecx, 1f+1(%rip)\n1:\tmov $1, %eax\n\tmovl $1, 1b+1(%rip)");
ROUTINE(smc_inc, "incb 1f+1(%rip)\n1:\tmov $1, %eax\n\tdecb 1b+1(%rip)");
ROUTINE(smc_sse, "movabs $0x90909000000002b8, %rax\n\tmovq %rax, %xmm0\n\tmovq %xmm0, 1f(%rip)\n1:\tmov $1, "
                 "%eax\n\t.fill 3, 1, 0x90\n\tmovb $1, 1b+1(%rip)");
ROUTINE(
    smc_x87,
    "fld1\n\tfistpl 1f+1(%rip)\n1:\tmov $2, %eax\n\tdec %eax\n\tinc %eax\n\tinc %eax\n\tmovb $2, 1b+1(%rip)");
ROUTINE(smc_bts, "btsl $1, 1f+1(%rip)\n1:\tmov $0, %eax\n\tmovb $0, 1b+1(%rip)");
ROUTINE(
    smc_setcc,
    "mov $2, %ecx\n\tcmp %ecx, %ecx\n\tsete 1f+1(%rip)\n1:\tmov $0, %eax\n\tinc %eax\n\tmovb $0, 1b+1(%rip)");
ROUTINE(smc_behind,
        "jmp 2f\n1:\tmov $1, %eax\n\tjmp 3f\n2:\tmovb $2, 1b+1(%rip)\n\tjmp 1b\n3:\tmovb $1, 1b+1(%rip)");
ROUTINE(smc_call_target, "movb $2, 1f+1(%rip)\n\tcall 1f\n\tmovb $1, 1f+1(%rip)\n\tret\n1:\tmov $1, %eax");
ROUTINE(
    smc_branch,
    "movb $(2f-1f-2), 1f+1(%rip)\n\tmov $1, %eax\n1:\tjmp 3f\n2:\tinc %eax\n3:\tmovb $(3b-1b-2), 1b+1(%rip)");

static uint8_t *page_a, *page_b;

static unsigned routine_call(const void *address) {
    return ((unsigned (*)(void))address)();
}

static void routine_copy(uint8_t *to, const uint8_t *from, const uint8_t *end) {
    for (; from < end; from++, to++)
        *(volatile uint8_t *)to = *from;
}

static void check_routines(void) {
#define ENTRY(name)                                                                                          \
    { #name, name, name##_end }
    static const struct {
        const char *name;
        const uint8_t *start, *end;
    } routines[] = {
        ENTRY(smc_next),     ENTRY(smc_next_long), ENTRY(smc_after_jump),  ENTRY(smc_far_ahead),
        ENTRY(smc_loop),     ENTRY(smc_stos),      ENTRY(smc_movs),        ENTRY(smc_push),
        ENTRY(smc_xchg),     ENTRY(smc_xadd),      ENTRY(smc_cmpxchg),     ENTRY(smc_inc),
        ENTRY(smc_sse),      ENTRY(smc_x87),       ENTRY(smc_bts),         ENTRY(smc_setcc),
        ENTRY(smc_mov_ch),   ENTRY(smc_mov_sil),   ENTRY(smc_mov_r9w),     ENTRY(smc_mov_r10),
        ENTRY(smc_mov_wide), ENTRY(smc_behind),    ENTRY(smc_call_target), ENTRY(smc_branch),
    };
    for (unsigned i = 0; i < ARRAY_SIZE(routines); i++) {
        struct tally tally;
        const unsigned want = 2;
        tally_begin(&tally, routines[i].name);
        for (unsigned round = 0; round < 3; round++) {
            routine_copy(page_a, routines[i].start, routines[i].end);
            for (unsigned run = 0; run < 3; run++)
                tally_case(&tally, routine_call(page_a), want, "run %u of copy %u", run, round);
        }
        /* Once more over a page end. */
        for (unsigned back = 1; back < 30; back += 3) {
            uint8_t *at = page_b - back;
            routine_copy(at, routines[i].start, routines[i].end);
            for (unsigned run = 0; run < 2; run++)
                tally_case(&tally, routine_call(at), want, "run %u, %u bytes before a page end", run, back);
        }
        tally_end(&tally);
    }
    struct tally tally;
    tally_begin(&tally, "smc_itself");
    for (unsigned round = 0; round < 3; round++) {
        routine_copy(page_a, smc_itself, smc_itself_end);
        tally_case(&tally, routine_call(page_a), 1, "run %u", round);
    }
    tally_end(&tally);
}

/* A just-in-time compiler: the same place gets new code many times, from the kernel, CPL 3 and an alias. */
SNIPPET(smc_user_store, "mov %esi, 1(%rdi)");
SNIPPET(smc_user_call, "call *%rdi");

static void check_rewriting(void) {
    struct tally tally;
    static const uint8_t code[] = {0xb8, 0, 0, 0, 0, 0xc3};
    routine_copy(page_a, code, code + sizeof(code));
    tally_begin(&tally, "rewritten by the kernel");
    for (unsigned i = 0; i < 200; i++) {
        *(volatile uint32_t *)(page_a + 1) = i;
        tally_case(&tally, routine_call(page_a), i, "round %u", i);
    }
    tally_end(&tally);
    tally_begin(&tally, "rewritten through an alias");
    for (unsigned i = 0; i < 50; i++) {
        struct context c = context_user(smc_user_store);
        c.di = (unsigned long)user_pointer(page_a);
        c.si = i + 1000;
        context_run(&c); /* IRET serialises */
        tally_case(&tally, routine_call(page_a), i + 1000, "round %u", i);
        *(volatile uint32_t *)(page_a + 1) = i + 2000;
        c = context_user(smc_user_call);
        c.di = (unsigned long)user_pointer(page_a);
        context_run(&c);
        tally_case(&tally, c.ax, i + 2000, "at CPL 3, round %u", i);
        cpuid(0, 0);
    }
    tally_end(&tally);
    tally_begin(&tally, "code beside hot data");
    volatile uint32_t *counter = (volatile uint32_t *)(page_a + 64);
    *counter = 0;
    *(volatile uint32_t *)(page_a + 1) = 7;
    for (unsigned i = 0; i < 1000; i++) {
        ++*counter;
        if (i % 16 == 0)
            tally_case(&tally, routine_call(page_a), 7, "round %u", i);
    }
    tally_case(&tally, *counter, 1000, "counter");
    tally_end(&tally);
    tally_begin(&tally, "written where data was, run where code was");
    for (unsigned i = 0; i < 64; i++) {
        uint8_t *at = page_a + 128 + 8 * i;
        routine_copy(at, code, code + sizeof(code));
        *(volatile uint8_t *)(at + 1) = (uint8_t)i;
        tally_case(&tally, routine_call(at), i, "routine %u", i);
        tally_case(&tally, routine_call(page_a + 128), 0, "routine 0 after %u", i);
    }
    tally_end(&tally);
}

/* An instruction over a page end, whose second page is written, remapped and aliased. */
static void check_page_ends(void) {
    const struct address_space *space = &boot_space;
    uint8_t *first = page_alloc(), *second = page_alloc(), *third = page_alloc();
    static const uint8_t code[] = {0xb8, 1, 0, 0, 0, 0xc3};
    struct tally tally;
    tally_begin(&tally, "instruction over a page end");
    for (unsigned back = 1; back < 5; back++) {
        unsigned long at = WINDOW + 0x1000 - back;
        page_map(space, WINDOW, (unsigned long)first, OPEN, 1);
        page_map(space, WINDOW + 0x1000, (unsigned long)second, OPEN, 1);
        flush_tlb();
        routine_copy((uint8_t *)at, code, code + sizeof(code));
        for (unsigned i = 0; i < sizeof(code) - back; i++)
            ((volatile uint8_t *)third)[i] = code[back + i];
        tally_case(&tally, routine_call((void *)at), 1, "first, %u bytes", back);
        *(volatile uint8_t *)(at + 4) = 1; /* the last byte of the instruction: in the second page */
        tally_case(&tally, routine_call((void *)at), 0x1000001, "rewritten, %u bytes", back);
        page_map(space, WINDOW + 0x1000, (unsigned long)third, OPEN, 1);
        invlpg((void *)(WINDOW + 0x1000));
        tally_case(&tally, routine_call((void *)at), 1, "second page remapped, %u bytes", back);
        if (back < 4) {
            *(volatile uint8_t *)(third + 3 - back + 1) = 2; /* by the identity mapping */
            cpuid(0, 0);
            tally_case(&tally, routine_call((void *)at), 0x2000001, "second page written by alias, %u bytes",
                       back);
        }
        page_entry_write(space, WINDOW + 0x1000, 1, 0);
        invlpg((void *)(WINDOW + 0x1000));
        struct context c = context_kernel((void *)at);
        context_run(&c);
        tally_case(&tally, c.vector, VECTOR_PF, "second page taken away, %u bytes", back);
        tally_case(&tally, c.cr2, WINDOW + 0x1000, "cr2, %u bytes", back);
    }
    tally_end(&tally);
    /* One frame at two linear addresses: both see a store through a third after a serialising instruction. */
    tally_begin(&tally, "one frame at two addresses");
    routine_copy(first, code, code + sizeof(code));
    page_map(space, WINDOW, (unsigned long)first, OPEN, 1);
    page_map(space, WINDOW + 0x5000, (unsigned long)first, OPEN, 1);
    flush_tlb();
    for (unsigned i = 0; i < 20; i++) {
        *(volatile uint8_t *)(first + 1) = (uint8_t)i;
        cpuid(0, 0);
        tally_case(&tally, routine_call((void *)WINDOW), i, "first address");
        tally_case(&tally, routine_call((void *)(WINDOW + 0x5000)), i, "second address");
        *(volatile uint8_t *)(WINDOW + 0x5001) = (uint8_t)(i + 100);
        cpuid(0, 0);
        tally_case(&tally, routine_call((void *)WINDOW), i + 100, "first address, stored by the second");
    }
    tally_end(&tally);
    /* A page table that is executed: the walker's own stores change it, but only A and D of one entry. */
    uint64_t *table = page_alloc();
    volatile uint64_t *pde = page_entry(space, WINDOW, 2);
    uint64_t old = *pde;
    routine_copy((uint8_t *)(table + 256), code, code + sizeof(code));
    *pde = (unsigned long)table | OPEN;
    page_map(space, WINDOW, (unsigned long)first, OPEN, 1);
    flush_tlb();
    check(routine_call(table + 256), 1, "code in a page table");
    *(volatile uint32_t *)WINDOW = 0;
    check(table[0] & (PTE_A | PTE_D), PTE_A | PTE_D, "accessed and dirty in a page table with code");
    check(routine_call(table + 256), 1, "code in a page table after a walk");
    *pde = old;
    flush_tlb();
}

void kernel_main(void) {
    page_a = pages_alloc(2, 4096);
    page_b = page_a + 4096;
    check_routines();
    check_rewriting();
    check_page_ends();
    check_immediates();
    checks_finish("smc64");
}
