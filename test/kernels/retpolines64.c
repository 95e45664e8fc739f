/*
 * Retpolines: a call over a gap, a store to the word that it pushed, a return. What they leave behind is what
 * their instructions say, one by one, whatever an engine makes of the whole. Source: Intel SDM volume 2, CALL
 * and RET; volume 3, 8.1.3.
 */
#include "paging.h"
#include "runtime.h"

#define ROUNDS 4
#define ARITHMETIC 0x8d5u
#define CANONICAL_END 0x0000800000000000ul
#define NOWHERE 0x0000323440400000ul /* a page that is not there */

static const struct address_space *const space = &boot_space;
static uint8_t *page;

/* Where they lead: what lies below the stack pointer goes to RBX or RCX. */
SNIPPET(end_in_rbx, "mov -8(%rsp), %rbx");
SNIPPET(end_in_rcx, "mov -8(%rsp), %rcx");

static const struct {
    const char *name;
    unsigned length;
    uint8_t bytes[16];
} gaps[] = {{"pause, lfence, jmp", 7, {0xf3, 0x90, 0x0f, 0xae, 0xe8, 0xeb, 0xf9}},
            {"int3", 1, {0xcc}},
            {"lfence, jmp, padding", 11, {0x0f, 0xae, 0xe8, 0xeb, 0xfb, 0xcc, 0xcc, 0xcc, 0xcc, 0xcc, 0xcc}}};

struct places {
    unsigned long call, mov, ret;
};

/* Write one at `offset` of the page, from scratch. */
static struct places retpoline_make(unsigned offset, unsigned gap, unsigned reg) {
    volatile uint8_t *at = page + offset;
    struct places places = {.call = (unsigned long)at};
    *at++ = 0xe8;
    for (unsigned i = 0; i < 4; i++)
        *at++ = i ? 0 : (uint8_t)gaps[gap].length;
    for (unsigned i = 0; i < gaps[gap].length; i++)
        *at++ = gaps[gap].bytes[i];
    places.mov = (unsigned long)at;
    *at++ = (uint8_t)(0x48 | (reg & 8) >> 1);
    *at++ = 0x89;
    *at++ = (uint8_t)(0x04 | (reg & 7) << 3);
    *at++ = 0x24;
    places.ret = (unsigned long)at;
    *at++ = 0xc3;
    *at++ = 0xcc;
    return places;
}

static unsigned long *context_register(struct context *c, unsigned reg) {
    unsigned long *const order[16] = {&c->ax, &c->cx, &c->dx,  &c->bx,  &c->sp,  &c->bp,  &c->si,  &c->di,
                                      &c->r8, &c->r9, &c->r10, &c->r11, &c->r12, &c->r13, &c->r14, &c->r15};
    return order[reg];
}

static void check_registers(void) {
    struct tally tally;
    tally_begin(&tally, "by every register, over every gap");
    for (unsigned reg = 0; reg < 16; reg++) {
        for (unsigned i = 0; i < ARRAY_SIZE(gaps) * ROUNDS && reg != 4; i++) {
            const unsigned gap = i % ARRAY_SIZE(gaps);
            struct places places = retpoline_make(64 * gap, gap, reg);
            const bool to_rcx = reg == 3 || (i & 1 && reg != 1);
            const unsigned long target = (unsigned long)(to_rcx ? end_in_rcx : end_in_rbx);
            struct context c = context_kernel((void *)places.call);
            unsigned long sp = c.sp, flags = i & 2 ? ARITHMETIC : 0;
            c.flags |= flags;
            *context_register(&c, reg) = target;
            context_run(&c);
            tally_case(&tally, c.vector, VECTOR_DONE, "register %u, %s", reg, gaps[gap].name);
            tally_case(&tally, c.ip - target, 7, "where, register %u, %s", reg, gaps[gap].name);
            tally_case(&tally, c.sp - sp, 0, "stack pointer, register %u, %s", reg, gaps[gap].name);
            tally_case(&tally, c.flags & ARITHMETIC, flags, "flags, register %u, %s", reg, gaps[gap].name);
            tally_case(&tally, to_rcx ? c.cx : c.bx, target, "stack, register %u, %s", reg, gaps[gap].name);
        }
    }
    tally_end(&tally);
}

/* The call's push faults at the call, with nothing moved; the target's fetch at the target; a target that is
 * not canonical at the return, behind the call. */
static void check_faults(void) {
    struct places places = retpoline_make(0, 0, 0);
    const unsigned long alias = (unsigned long)user_pointer(page) - (unsigned long)page;
    struct tally tally;
    tally_begin(&tally, "faults");
    for (unsigned i = 0; i < ROUNDS; i++) {
        struct context c = context_user((void *)places.call);
        c.ax = (unsigned long)user_pointer(end_in_rbx);
        const struct context good = c;
        context_run(&c);
        tally_case(&tally, c.vector, VECTOR_DONE, "none, round %u", i);
        tally_case(&tally, c.bx, good.ax, "stack, round %u", i);

        c = good;
        c.sp = NOWHERE + 0x800;
        context_run(&c);
        tally_case(&tally, c.vector, VECTOR_PF, "push, round %u", i);
        tally_case(&tally, c.error, 6, "error of the push, round %u", i);
        tally_case(&tally, c.cr2, NOWHERE + 0x7f8, "address of the push, round %u", i);
        tally_case(&tally, c.ip - alias, places.call, "instruction of the push, round %u", i);
        tally_case(&tally, c.sp, NOWHERE + 0x800, "stack pointer of the push, round %u", i);

        c = good;
        c.sp = NOWHERE; /* the word lies on the page before, which is there or not */
        page_map(space, NOWHERE - 0x1000, (unsigned long)page + 0x1000, PTE_P | PTE_W | PTE_U, 1);
        invlpg((void *)(NOWHERE - 0x1000));
        context_run(&c);
        tally_case(&tally, c.vector, VECTOR_DONE, "at the end of a page, round %u", i);
        tally_case(&tally, ((volatile unsigned long *)page)[0x1ff8 / 8], good.ax, "its word, round %u", i);
        page_map(space, NOWHERE - 0x1000, (unsigned long)page + 0x1000, PTE_P | PTE_U, 1);
        invlpg((void *)(NOWHERE - 0x1000));
        c = good;
        c.sp = NOWHERE;
        context_run(&c);
        tally_case(&tally, c.vector == VECTOR_PF ? c.error : ~0ul, 7, "read-only, round %u", i);

        c = good;
        c.ax = NOWHERE + 0x123;
        context_run(&c);
        tally_case(&tally, c.vector, VECTOR_PF, "target, round %u", i);
        tally_case(&tally, c.ip, NOWHERE + 0x123, "where, round %u", i);
        tally_case(&tally, c.sp, good.sp, "stack pointer at the target, round %u", i);

        c = good;
        c.ax = CANONICAL_END + i;
        c.flags |= ARITHMETIC;
        context_run(&c);
        tally_case(&tally, c.vector, VECTOR_GP, "not canonical, round %u", i);
        tally_case(&tally, c.error, 0, "its error, round %u", i);
        tally_case(&tally, c.ip - alias, places.ret, "at the return, round %u", i);
        tally_case(&tally, c.sp, good.sp - 8, "its stack pointer, round %u", i);
        tally_case(&tally, c.flags & ARITHMETIC, ARITHMETIC, "its flags, round %u", i);
    }
    tally_end(&tally);
}

/* Each of its bytes counts, whenever it is written. */
static void check_rewritten(void) {
    struct places places = retpoline_make(0, 0, 0);
    struct tally tally;
    tally_begin(&tally, "rewritten");
    for (unsigned i = 0; i < ROUNDS; i++) {
        struct context c = context_kernel((void *)places.call);
        c.ax = (unsigned long)end_in_rbx;
        c.dx = (unsigned long)end_in_rcx;
        const struct context good = c;
        context_run(&c);
        tally_case(&tally, c.vector == VECTOR_DONE ? c.bx : 0, good.ax, "as made, round %u", i);

        ((volatile uint8_t *)places.mov)[2] = 0x14; /* mov %rdx, (%rsp) */
        c = good;
        context_run(&c);
        tally_case(&tally, c.vector == VECTOR_DONE ? c.cx : 0, good.dx, "another register, round %u", i);
        ((volatile uint8_t *)places.mov)[2] = 0x04;

        *(volatile uint16_t *)places.ret = 0x40cd; /* int $0x40 */
        c = good;
        context_run(&c);
        tally_case(&tally, c.ip, places.ret + 2, "no return, round %u", i);
        tally_case(&tally, c.sp, good.sp - 8, "stack pointer without it, round %u", i);
        *(volatile uint16_t *)places.ret = 0xccc3;

        ((volatile uint8_t *)places.call)[1] += 4; /* past the store: to its own return address */
        *(volatile uint16_t *)(places.call + 5) = 0x40cd;
        c = good;
        context_run(&c);
        tally_case(&tally, c.ip, places.call + 7, "no store, round %u", i);
        tally_case(&tally, c.sp, good.sp, "stack pointer without it, round %u", i);
        places = retpoline_make(0, 0, 0);
    }
    tally_end(&tally);
}

void kernel_main(void) {
    page = pages_alloc(2, 4096);
    check_registers();
    check_faults();
    check_rewritten();
    checks_finish("retpolines64");
}
