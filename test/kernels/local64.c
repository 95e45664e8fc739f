/*
 * Code on pages that are not global, while CR4.PGE is clear as it is for whatever unpacks a kernel: it runs
 * from page to page many times, through direct and indirect branches, and pages change behind loads of CR3,
 * INVLPG and CR4.PGE. The launcher's counters tell whether an engine kept such branches (local64.test).
 * Source: Intel SDM volume 3, 4.10.
 */
#include "paging.h"
#include "runtime.h"

#define WINDOW 0x0000323440200000ul
#define NEXT (WINDOW + 0x1000)
#define OPEN (PTE_P | PTE_W)
#define ROUNDS 50000u

static const struct address_space *const space = &boot_space;
static uint8_t *first, *second, *other;

static void put(uint8_t *at, const uint8_t *code, unsigned length) {
    for (unsigned i = 0; i < length; i++)
        ((volatile uint8_t *)at)[i] = code[i];
}

static void put_jump(uint8_t *at, const uint8_t *opcode, unsigned length, unsigned long from,
                     unsigned long to) {
    put(at, opcode, length);
    *(volatile uint32_t *)(at + length) = (uint32_t)(to - (from + length + 4));
}

/* At the end of the first page begins an instruction that ends on the second: add $step, %eax. */
static void fill(uint8_t *next, uint8_t step) {
    static const uint8_t jump[] = {0xe9}, jump_not_zero[] = {0x0f, 0x85}, count[] = {0xff, 0xc9},
                         back[] = {0xc3};
    put(next, &step, 1);
    put_jump(next + 1, jump, 1, NEXT + 1, WINDOW + 0x100);
    put(next + 0x200, count, 2); /* dec %ecx */
    put_jump(next + 0x202, jump_not_zero, 2, NEXT + 0x202, WINDOW + 0xffe);
    put(next + 0x208, back, 1);
}

static void fill_first(void) {
    static const uint8_t add[] = {0x83, 0xc0}, jump[] = {0xe9};
    put(first + 0xffe, add, 2);
    put_jump(first + 0x100, jump, 1, WINDOW + 0x100, NEXT + 0x200);
}

/* Round and round, over the instruction on both pages. */
static unsigned go_round(unsigned count) {
    unsigned sum = 0;
    __asm__ volatile("call *%2" : "+a"(sum), "+c"(count) : "r"(WINDOW + 0xffe) : "memory", "cc");
    return sum;
}

static unsigned call_often(unsigned count) {
    unsigned sum = 0;
    for (unsigned i = 0; i < count; i++)
        sum += go_round(1);
    return sum;
}

static void map_next(const uint8_t *next) {
    page_map(space, NEXT, (unsigned long)next, OPEN, 1);
}

static void change_pge(void) {
    write_cr4(read_cr4() ^ CR4_PGE);
    write_cr4(read_cr4() ^ CR4_PGE);
}

static void change_by_invlpg(void) {
    invlpg((void *)NEXT);
}

static void check_round(const uint8_t *next, unsigned step, const char *how) {
    map_next(next);
    if (how[0] == 'C')
        flush_tlb();
    else if (how[0] == 'I')
        change_by_invlpg();
    else
        change_pge();
    check(go_round(ROUNDS), ROUNDS * step, "direct branches, %s", how);
    check(call_often(ROUNDS), ROUNDS * step, "calls through a register, %s", how);
}

void kernel_main(void) {
    write_cr4(read_cr4() & ~CR4_PGE);
    first = page_alloc();
    second = page_alloc();
    other = page_alloc();
    fill_first();
    fill(second, 1);
    fill(other, 3);
    page_map(space, WINDOW, (unsigned long)first, OPEN, 1);
    check_round(second, 1, "CR3");
    check_round(other, 3, "CR3, another page");
    check_round(second, 1, "INVLPG");
    check_round(other, 3, "PGE");
    checks_finish("local64");
}
