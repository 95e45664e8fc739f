/*
 * More code than a translator can keep: long stretches that are executed once in a while, between calls of
 * routines that stay. Whatever is thrown out to make room, jumps, calls and returns lead where they should,
 * and code that was rewritten meanwhile is what it became. Source: Intel SDM volume 3, 8.1.3.
 */
#include "paging.h"
#include "runtime.h"

#define WINDOW                                                                                               \
    0xffffc23440200000ull /* global, where there is that: what is reached indirectly may be remembered */
#define PAGES 64          /* of jumps; half of them are several times what the smallest code cache holds */
#define ROUTINES 64
#define RETURNS 3

static uint8_t *stretch, *routines;

/* Runs pages of jumps, each of which ends with JMP *%rbp; by jumps only, so that no call comes between this
 * one and its return. */
void stretch_run(const uint8_t *first, unsigned long pages);
asm(".pushsection .text\nstretch_run: push %rbp\n\tlea 1f(%rip), %rbp\n1:\ttest %rsi, %rsi\n\tjz 2f\n\tdec "
    "%rsi\n\t"
    "mov %rdi, %rax\n\tadd $4096, %rdi\n\tjmp *%rax\n2:\tpop %rbp\n\tret\n.popsection");

static void stretch_fill(void) {
    for (unsigned page = 0; page < PAGES; page++) {
        uint8_t *at = stretch + page * 4096;
        for (unsigned i = 0; i < 4094; i += 2) {
            at[i] = 0xeb; /* jmp .+2 */
            at[i + 1] = 0;
        }
        at[4094] = 0xff;
        at[4095] = 0xe5;
    }
}

static uint8_t *routine_at(unsigned i) {
    return routines + i % 4 * 4096 + i / 4 * 64;
}

/* mov $value, %eax; jmp to the tail on the last page: add $1000, %eax; ret */
static void routine_fill(unsigned i, unsigned value) {
    uint8_t *at = routine_at(i);
    const uint8_t *tail = routines + 4 * 4096 + i * 32;
    *(volatile uint8_t *)at = 0xb8;
    *(volatile uint32_t *)(at + 1) = value;
    *(volatile uint8_t *)(at + 5) = 0xe9;
    *(volatile uint32_t *)(at + 6) = (uint32_t)(tail - (at + 10));
}

static void tail_fill(unsigned i) {
    static const uint8_t code[] = {0x05, 0xe8, 0x03, 0, 0, 0xc3};
    for (unsigned k = 0; k < sizeof(code); k++)
        routines[4 * 4096 + i * 32 + k] = code[k];
}

static unsigned routine_call(unsigned i) {
    return ((unsigned (*)(void))(void *)(WINDOW + (unsigned long)(routine_at(i) - routines)))();
}

static void check_between(void) {
    unsigned value[ROUTINES], seed = 1;
    struct tally tally;
    tally_begin(&tally, "calls between stretches of code");
    for (unsigned i = 0; i < ROUTINES; i++) {
        value[i] = i;
        tail_fill(i);
        routine_fill(i, i);
    }
    for (unsigned step = 0; step < PAGES; step++) {
        stretch_run(stretch + step % PAGES * 4096, 1);
        for (unsigned k = 0; k < 16; k++) {
            seed = seed * 1103515245 + 12345;
            unsigned i = seed >> 16 & (ROUTINES - 1);
            if (k % 4 == 3) {
                value[i] = seed >> 8 & 0xffff;
                routine_fill(i, value[i]);
            }
            tally_case(&tally, routine_call(i), value[i] + 1000, "routine %u, step %u", i, step);
        }
    }
    tally_end(&tally);
}

/* The stretch runs while a call waits for its return. */
static void check_return(void) {
    struct tally tally;
    tally_begin(&tally, "a return behind a long stretch of code");
    for (unsigned i = 0; i < RETURNS; i++) {
        unsigned long pages = PAGES / 2, sum = i;
        stretch_run(stretch + (i & 1) * PAGES / 2 * 4096, pages);
        sum += routine_call(i);
        tally_case(&tally, sum, i + *(volatile uint32_t *)(routine_at(i) + 1) + 1000, "round %u", i);
    }
    tally_end(&tally);
}

void kernel_main(void) {
    stretch = pages_alloc(PAGES, 4096);
    routines = pages_alloc(5, 4096);
    stretch_fill();
    if (cpuid(1, 0).d & BIT(13))
        write_cr4(read_cr4() | CR4_PGE);
    for (unsigned i = 0; i < 5; i++)
        page_map(&boot_space, WINDOW + i * 4096, (unsigned long)routines + i * 4096, PTE_P | PTE_W | PTE_G,
                 1);
    check_between();
    check_return();
    checks_finish("evict64");
}
