/*
 * What a faulting instruction leaves behind: registers, flags and memory as before it, except for the
 * completed iterations of a string instruction.
 */
#include "runtime.h"

#include "paging.h"

#define WINDOW 0x10000000000ull /* page 0 writable, page 1 unmapped, page 2 read-only, page 3 unmapped */
#define READ_ONLY (WINDOW + 0x2000)

void exceptions_state_check(void);

static uint8_t *page_writable, *page_read_only;

struct state_case {
    const char *name;
    const void *code;
    unsigned long ax, cx, di, si, sp; /* sp 0: the context's own */
    unsigned long error, cr2;
    unsigned long want_cx, want_di, want_si;
};

SNIPPET(state_push, "push (%rdi)");
SNIPPET(state_push_bad_stack, "push %rax");
SNIPPET(state_pop, "pop (%rdi)");
SNIPPET(state_pop_bad_stack, "pop %rax");
SNIPPET(state_add, "add %rax, (%rdi)");
SNIPPET(state_add_load, "add (%rsi), %rcx");
SNIPPET(state_xadd, "xadd %rcx, (%rdi)");
SNIPPET(state_xchg, "xchg %rcx, (%rdi)");
SNIPPET(state_cmpxchg, "cmpxchg %rcx, (%rdi)");
SNIPPET(state_cmpxchg16b, "xor %edx, %edx\n\tcmpxchg16b (%rdi)");
SNIPPET(state_bts, "bts %rcx, (%rdi)");
SNIPPET(state_shl, "shll %cl, (%rdi)");
SNIPPET(state_rep_movs, "rep movsb");
SNIPPET(state_rep_movsq, "rep movsq");
SNIPPET(state_rep_stos, "rep stosl");
SNIPPET(state_rep_lods, "rep lodsw");
SNIPPET(state_rep_cmps, "repe cmpsb");
SNIPPET(state_rep_scas, "repne scasb");
SNIPPET(state_rep_movs_down, "std\n\trep movsb");
SNIPPET(state_call, "call *(%rdi)");
SNIPPET(state_call_bad_stack, "call *%rcx");
SNIPPET(state_ret_bad_stack, "ret $16");
SNIPPET(state_leave, "mov %rdi, %rbp\n\tleave");
SNIPPET(state_enter, "enter $16, $0");
SNIPPET(state_store, "mov %rax, (%rdi)");
SNIPPET(state_store16, "movups %xmm0, (%rdi)");
SNIPPET(state_fxsave, "fxsave (%rdi)");

#define ANY 0x1234567
#define UNCHANGED(cx, di, si) .want_cx = (cx), .want_di = (di), .want_si = (si)

static const struct state_case cases[] = {
    {"push from unmapped", state_push, ANY, ANY, WINDOW + 0x1000, ANY, 0, 0, WINDOW + 0x1000,
     UNCHANGED(ANY, WINDOW + 0x1000, ANY)},
    {"push onto unmapped", state_push_bad_stack, ANY, ANY, ANY, ANY, WINDOW + 0x2000, PF_W, WINDOW + 0x1ff8,
     UNCHANGED(ANY, ANY, ANY)},
    {"pop to unmapped", state_pop, ANY, ANY, WINDOW + 0x1000, ANY, 0, PF_W, WINDOW + 0x1000,
     UNCHANGED(ANY, WINDOW + 0x1000, ANY)},
    {"pop from unmapped", state_pop_bad_stack, ANY, ANY, ANY, ANY, WINDOW + 0x1ff0, 0, WINDOW + 0x1ff0,
     UNCHANGED(ANY, ANY, ANY)},
    {"add to read-only", state_add, ANY, ANY, READ_ONLY, ANY, 0, PF_P | PF_W, READ_ONLY,
     UNCHANGED(ANY, READ_ONLY, ANY)},
    {"add from unmapped", state_add_load, ANY, ANY, ANY, WINDOW + 0x1008, 0, 0, WINDOW + 0x1008,
     UNCHANGED(ANY, ANY, WINDOW + 0x1008)},
    {"xadd to read-only", state_xadd, ANY, ANY, READ_ONLY, ANY, 0, PF_P | PF_W, READ_ONLY,
     UNCHANGED(ANY, READ_ONLY, ANY)},
    {"xadd to unmapped", state_xadd, ANY, ANY, WINDOW + 0x1000, ANY, 0, PF_W, WINDOW + 0x1000,
     UNCHANGED(ANY, WINDOW + 0x1000, ANY)},
    {"xchg with read-only", state_xchg, ANY, ANY, READ_ONLY, ANY, 0, PF_P | PF_W, READ_ONLY,
     UNCHANGED(ANY, READ_ONLY, ANY)},
    {"cmpxchg of unequal read-only", state_cmpxchg, ANY, ANY, READ_ONLY, ANY, 0, PF_P | PF_W, READ_ONLY,
     UNCHANGED(ANY, READ_ONLY, ANY)},
    {"cmpxchg16b of unequal read-only", state_cmpxchg16b, ANY, ANY, READ_ONLY, ANY, 0, PF_P | PF_W, READ_ONLY,
     UNCHANGED(ANY, READ_ONLY, ANY)},
    {"bts in read-only", state_bts, ANY, 0x41, READ_ONLY, ANY, 0, PF_P | PF_W, READ_ONLY + 8,
     UNCHANGED(0x41, READ_ONLY, ANY)},
    {"shl of read-only", state_shl, ANY, 3, READ_ONLY, ANY, 0, PF_P | PF_W, READ_ONLY,
     UNCHANGED(3, READ_ONLY, ANY)},
    {"rep movsb into unmapped", state_rep_movs, ANY, 32, WINDOW + 0xff0, WINDOW, 0, PF_W, WINDOW + 0x1000,
     UNCHANGED(16, WINDOW + 0x1000, WINDOW + 16)},
    {"rep movsb from unmapped", state_rep_movs, ANY, 32, WINDOW, WINDOW + 0xffb, 0, 0, WINDOW + 0x1000,
     UNCHANGED(27, WINDOW + 5, WINDOW + 0x1000)},
    {"rep movsq over a page end", state_rep_movsq, ANY, 8, WINDOW + 0xfec, WINDOW, 0, PF_W, WINDOW + 0x1000,
     UNCHANGED(6, WINDOW + 0xffc, WINDOW + 16)},
    {"rep movsb down from unmapped", state_rep_movs_down, ANY, 32, WINDOW + 0x80, READ_ONLY + 7, 0, 0,
     WINDOW + 0x1fff, UNCHANGED(24, WINDOW + 0x78, WINDOW + 0x1fff)},
    {"rep stosl into unmapped", state_rep_stos, ANY, 9, WINDOW + 0xff0, ANY, 0, PF_W, WINDOW + 0x1000,
     UNCHANGED(5, WINDOW + 0x1000, ANY)},
    {"rep stosl into read-only", state_rep_stos, ANY, 9, READ_ONLY, ANY, 0, PF_P | PF_W, READ_ONLY,
     UNCHANGED(9, READ_ONLY, ANY)},
    {"rep lodsw from unmapped", state_rep_lods, ANY, 9, ANY, WINDOW + 0xffc, 0, 0, WINDOW + 0x1000,
     UNCHANGED(7, ANY, WINDOW + 0x1000)},
    {"repe cmpsb over unmapped", state_rep_cmps, ANY, 9, WINDOW + 0xffe, READ_ONLY, 0, 0, WINDOW + 0x1000,
     UNCHANGED(7, WINDOW + 0x1000, READ_ONLY + 2)},
    {"repne scasb over unmapped", state_rep_scas, 0xff, 9, WINDOW + 0xffe, ANY, 0, 0, WINDOW + 0x1000,
     UNCHANGED(7, WINDOW + 0x1000, ANY)},
    {"call through unmapped", state_call, ANY, ANY, WINDOW + 0x1000, ANY, 0, 0, WINDOW + 0x1000,
     UNCHANGED(ANY, WINDOW + 0x1000, ANY)},
    {"call on an unmapped stack", state_call_bad_stack, ANY, 0x1000, ANY, ANY, WINDOW + 0x2000, PF_W,
     WINDOW + 0x1ff8, UNCHANGED(0x1000, ANY, ANY)},
    {"ret from an unmapped stack", state_ret_bad_stack, ANY, ANY, ANY, ANY, WINDOW + 0x1800, 0,
     WINDOW + 0x1800, UNCHANGED(ANY, ANY, ANY)},
    {"leave from unmapped", state_leave, ANY, ANY, WINDOW + 0x1100, ANY, 0, 0, WINDOW + 0x1100,
     UNCHANGED(ANY, WINDOW + 0x1100, ANY)},
    {"enter on an unmapped stack", state_enter, ANY, ANY, ANY, ANY, WINDOW + 0x2000, PF_W, WINDOW + 0x1ff8,
     UNCHANGED(ANY, ANY, ANY)},
    {"store over a page end", state_store, ~0ul, ANY, WINDOW + 0xffc, ANY, 0, PF_W, WINDOW + 0x1000,
     UNCHANGED(ANY, WINDOW + 0xffc, ANY)},
    {"store over a page start", state_store, ~0ul, ANY, READ_ONLY - 3, ANY, 0, PF_W, READ_ONLY - 3,
     UNCHANGED(ANY, READ_ONLY - 3, ANY)},
    {"16-byte store over a page end", state_store16, ANY, ANY, WINDOW + 0xff9, ANY, 0, PF_W, WINDOW + 0x1000,
     UNCHANGED(ANY, WINDOW + 0xff9, ANY)},
    {"fxsave into unmapped", state_fxsave, ANY, ANY, WINDOW + 0x1000, ANY, 0, PF_W, WINDOW + 0x1000,
     UNCHANGED(ANY, WINDOW + 0x1000, ANY)},
};

static uint64_t page_sum(const uint8_t *page) {
    uint64_t sum = 0;
    for (unsigned i = 0; i < 512; i++)
        sum = sum * 31 + ((const volatile uint64_t *)page)[i];
    return sum;
}

static void state_case_check(const struct state_case *want) {
    const unsigned long flags = FLAG_FIXED | FLAG_CF | FLAG_SF | FLAG_AF;
    struct context c = context_kernel(want->code);
    for (unsigned i = 0; i < 512; i++)
        ((volatile uint64_t *)page_writable)[i] = 0;
    c.ax = want->ax;
    c.cx = want->cx;
    c.di = want->di;
    c.si = want->si;
    c.sp = want->sp ? want->sp : c.sp;
    unsigned long sp = c.sp;
    c.flags = flags;
    context_run(&c);
    check_end(&c, VECTOR_PF, want->error, want->name);
    /* Which byte of a wholly unmapped area is touched first is the processor model's own choice. */
    unsigned long cr2 = want->code == state_fxsave && c.cr2 - want->cr2 < 512 ? want->cr2 : c.cr2;
    check(cr2, want->cr2, "%s: cr2", want->name);
    struct tally tally;
    tally_begin(&tally, want->name);
    tally_case(&tally, c.cx, want->want_cx, "rcx");
    tally_case(&tally, c.di, want->want_di, "rdi");
    tally_case(&tally, c.si, want->want_si, "rsi");
    tally_case(&tally, c.sp, sp, "rsp");
    bool string = want->code == state_rep_cmps || want->code == state_rep_scas ||
                  want->code == state_cmpxchg16b || want->code == state_rep_movs_down;
    if (!string)
        tally_case(&tally, c.flags & 0xcd5, flags & 0xcd5, "flags");
    if (want->code == state_store || want->code == state_store16)
        tally_case(&tally, ((volatile uint64_t *)page_writable)[511], 0, "memory before the page end");
    tally_end(&tally);
}

void exceptions_state_check(void) {
    const uint8_t *unchanged;
    page_writable = page_alloc();
    page_read_only = page_alloc();
    unchanged = page_read_only;
    page_map(&boot_space, WINDOW, (unsigned long)page_writable, PTE_P | PTE_W, 1);
    page_map(&boot_space, READ_ONLY, (unsigned long)page_read_only, PTE_P, 1);
    /* These delivered on the unmapped stack would be double faults. */
    gate_retype(VECTOR_PF, GATE_INTERRUPT | DESCRIPTOR_PRESENT, 2);
    uint64_t before = page_sum(unchanged);
    for (unsigned i = 0; i < ARRAY_SIZE(cases); i++)
        state_case_check(&cases[i]);
    check(page_sum(unchanged), before, "the read-only page is unchanged");
    gate_reset(VECTOR_PF);
}
