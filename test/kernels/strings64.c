/*
 * REP MOVS and STOS over the end of a page: the two pages may follow one another in memory or not, the second
 * may be missing, read-only or hold code, and what was done before a fault stays done. Source: Intel SDM
 * volume 2, REP; volume 3, 4.6 and 8.1.3.
 */
#include "paging.h"
#include "runtime.h"

#define TARGET 0x0000234560000000ul
#define SOURCE (TARGET + 0x200000)
#define ROUNDS 2
#define OPEN (PTE_P | PTE_W)

static const struct address_space *const space = &boot_space;
static uint8_t *to[2], *from[2]; /* frames of the pages as they are mapped */
static uint8_t *frames;

/* (to, from, count, value): what is left of the count. */
asm(".pushsection .text\n"
    ".macro string name, insn\n"
    "\\name: mov %rcx, %rax\n\tmov %rdx, %rcx\n\trep \\insn\n\tmov %rcx, %rax\n\tret\n"
    ".endm\n"
    "string moves1, movsb\n\tstring moves2, movsw\n\tstring moves4, movsl\n\tstring moves8, movsq\n\t"
    "string stores1, stosb\n\tstring stores2, stosw\n\tstring stores4, stosl\n\tstring stores8, stosq\n\t"
    ".popsection");
typedef unsigned long string_insn(unsigned long to, unsigned long from, unsigned long count,
                                  unsigned long value);
extern string_insn moves1, moves2, moves4, moves8, stores1, stores2, stores4, stores8;
static string_insn *const insns[2][4] = {{moves1, moves2, moves4, moves8},
                                         {stores1, stores2, stores4, stores8}};

static void map_pair(unsigned long address, uint8_t **pair, uint64_t second) {
    page_map(space, address, (unsigned long)pair[0], OPEN, 1);
    page_map(space, address + 4096, (unsigned long)pair[1], second, 1);
    asm volatile("invlpg (%0)" : : "r"(address) : "memory");
    asm volatile("invlpg (%0)" : : "r"(address + 4096) : "memory");
}

/* The byte at an offset of a pair. */
static uint8_t *at(uint8_t **pair, unsigned offset) {
    return pair[offset / 4096] + offset % 4096;
}

static void fill(void) {
    for (unsigned i = 0; i < 8192; i++) {
        *at(to, i) = 0xee;
        *at(from, i) = (uint8_t)(i * 7 + i / 256);
    }
}

/* Bytes of the target that are not what they should be after `done` bytes from offset `start` on. */
static unsigned wrong_bytes(unsigned start, unsigned source, unsigned done, bool stores, unsigned size) {
    unsigned wrong = 0;
    for (unsigned i = 0; i < 8192; i++) {
        uint8_t want = 0xee;
        if (i - start < done)
            want = stores ? (uint8_t)(0x11 * ((i - start) % size + 1)) : *at(from, source + i - start);
        wrong += *at(to, i) != want;
    }
    return wrong;
}

static void check_whole(const char *name) {
    static const unsigned starts[] = {8, 4088, 4095, 1001}, lengths[] = {0, 64, 4096};
    struct tally tally;
    tally_begin(&tally, name);
    for (unsigned i = 0; i < ARRAY_SIZE(starts) * ARRAY_SIZE(lengths) * 8; i++) {
        unsigned scale = i % 4, stores = i / 4 % 2, length = lengths[i / 8 % ARRAY_SIZE(lengths)];
        unsigned start = starts[i / 8 / ARRAY_SIZE(lengths)], source = starts[(i / 3) % ARRAY_SIZE(starts)];
        for (unsigned round = 0; round < ROUNDS; round++) {
            fill();
            unsigned long left =
                insns[stores][scale](TARGET + start, SOURCE + source, length >> scale, 0x8877665544332211);
            tally_case(&tally, left, 0, "count, case %u", i);
            tally_case(&tally, wrong_bytes(start, source, length, stores, 1u << scale), 0, "bytes, case %u",
                       i);
        }
    }
    tally_end(&tally);
}

/* At the fault's page end: 96 bytes before it are done, and the registers stand there. */
SNIPPET(faulting_moves, "rep movsq");
SNIPPET(faulting_stores, "rep stosq");

static void check_fault(const char *name, bool stores, bool of_source, unsigned error) {
    for (unsigned i = 0; i < 2; i++) {
        struct context c = context_kernel(stores ? faulting_stores : faulting_moves);
        unsigned start = of_source ? 100 : 4000, source = of_source ? 4000 : 100;
        fill();
        if (error == 3) /* known already, but not for this */
            (void)*(volatile uint8_t *)(TARGET + 4096);
        c.di = TARGET + start;
        c.si = SOURCE + source;
        c.cx = 32;
        c.ax = 0x8877665544332211;
        context_run(&c);
        check_end(&c, VECTOR_PF, error, name);
        check(c.cr2, (of_source ? SOURCE : TARGET) + 4096, "%s: cr2", name);
        check(c.cx, 20, "%s: rcx", name);
        check(c.di, TARGET + start + 96, "%s: rdi", name);
        check(c.si, SOURCE + source + (stores ? 0 : 96), "%s: rsi", name);
        check(wrong_bytes(start, source, 96, stores, 8), 0, "%s: bytes", name);
        check(c.flags & FLAG_RF, FLAG_RF, "%s: rf", name);
    }
}

/* The target's second page holds code that is executed where it lies. */
static void check_code(void) {
    unsigned (*code)(void) = (unsigned (*)(void))(void *)to[1];
    struct tally tally;
    tally_begin(&tally, "code on the second page");
    fill();
    for (unsigned i = 0; i < ROUNDS * 4; i++) {
        uint8_t bytes[6] = {0xb8, (uint8_t)i, 0, 0, 0, 0xc3};
        for (unsigned k = 0; k < 6; k++)
            *at(from, 96 + k) = bytes[k];
        (void)*(volatile uint8_t *)(TARGET + 4096);
        (void)moves1(TARGET + 4000, SOURCE, 128, 0);
        tally_case(&tally, code(), i, "round %u", i);
    }
    tally_end(&tally);
}

void kernel_main(void) {
    frames = pages_alloc(8, 4096);
    write_cr0(read_cr0() | CR0_WP);
    for (unsigned i = 0; i < 4; i++) {
        /* One after the other, or not. */
        to[0] = frames;
        to[1] = frames + (i & 1 ? 5 : 1) * 4096;
        from[0] = frames + 2 * 4096;
        from[1] = frames + (i & 2 ? 6 : 3) * 4096;
        map_pair(TARGET, to, OPEN);
        map_pair(SOURCE, from, OPEN);
        check_whole(i == 0   ? "both in a row"
                    : i == 1 ? "the source in a row"
                    : i == 2 ? "the target in a row"
                             : "nothing in a row");
        check_code();
        map_pair(TARGET, to, PTE_P);
        check_fault("moves to a read-only page", false, false, 3);
        check_fault("stores to a read-only page", true, false, 3);
        map_pair(TARGET, to, 0);
        check_fault("moves to a missing page", false, false, 2);
        check_fault("stores to a missing page", true, false, 2);
        map_pair(TARGET, to, OPEN);
        map_pair(SOURCE, from, 0);
        check_fault("moves from a missing page", false, true, 0);
        map_pair(SOURCE, from, PTE_P);
        if (!i)
            check_whole("a source that may be read only");
    }
    checks_finish("strings64");
}
