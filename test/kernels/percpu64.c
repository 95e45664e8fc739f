/*
 * Memory that ring 0 reaches through GS at constant offsets, as kernels reach a processor's own data: GS's
 * base, the page tables, rights and memory may change between two accesses of one instruction. Source: Intel
 * SDM volume 3, 3.4.4.1, 4.6, 4.10; volume 2, SWAPGS.
 */
#include "paging.h"
#include "runtime.h"

#define WINDOW 0x0000123450000000ul
#define OTHER (WINDOW + 0x200000) /* another base, another frame */
#define MANY (WINDOW + 0x400000)
#define LARGE (WINDOW + 0x600000)
#define PAGES 80 /* more than anybody keeps apart */
#define ROUNDS 4
#define OPEN (PTE_P | PTE_W)

static const struct address_space *const space = &boot_space;
static uint8_t *frame[4];
extern const unsigned long percpu_word;

asm(".pushsection .text\n"
    "gs_read: mov %gs:16, %rax\n\tret\n"
    "gs_read_relative: mov %gs:percpu_word(%rip), %rax\n\tret\n"
    "gs_read_across: mov %gs:4092, %rax\n\tret\n"
    "gs_read_end: mov %gs:4088, %rax\n\tret\n"
    "gs_write: mov %rdi, %gs:24\n\tret\n"
    "gs_write_code: mov %edi, %gs:65\n\tret\n"
    "gs_add: add %rdi, %gs:32\n\tmov %gs:32, %rax\n\tret\n"
    /* The flags come through. */
    "gs_carry: cmp %rsi, %rdi\n\tmov %gs:16, %rdx\n\tsbb %rax, %rax\n\tret\n"
    "gs_push: pushq %gs:16\n\tpop %rax\n\tret\n"
    "gs_swaps: mov %gs:16, %rax\n\tswapgs\n\tshl $8, %rax\n\tor %gs:16, %rax\n\tswapgs\n\tshl $8, %rax\n\t"
    "or %gs:16, %rax\n\tret\n"
    "gs_many: xor %eax, %eax\n\t.set at, 0\n\t.rept 80\n\tadd %gs:(at * 4096 + 8), %rax\n\t.set at, at + "
    "1\n\t"
    ".endr\n\tret\n"
    ".popsection\n"
    ".pushsection .data\n\t.balign 4096\n\t.skip 16\npercpu_word: .quad 0\n\t.popsection");
extern unsigned long gs_read(void), gs_read_relative(void), gs_read_across(void), gs_read_end(void),
    gs_add(unsigned long value), gs_carry(unsigned long a, unsigned long b), gs_push(void), gs_swaps(void),
    gs_many(void);
extern void gs_write(unsigned long value), gs_write_code(unsigned value);

static unsigned long word(unsigned i, unsigned offset) {
    return *(unsigned long *)(frame[i] + offset);
}

static void map(unsigned long address, unsigned i, uint64_t flags) {
    page_map(space, address, (unsigned long)frame[i], flags, 1);
    asm volatile("invlpg (%0)" : : "r"(address) : "memory");
}

static void check_bases(void) {
    struct tally tally;
    unsigned long low_word;
    asm volatile("mov 16, %0" : "=r"(low_word));
    tally_begin(&tally, "GS with another base");
    for (unsigned i = 0; i < ROUNDS; i++) {
        write_msr(MSR_GS_BASE, WINDOW);
        tally_case(&tally, gs_read(), word(0, 16), "first, round %u", i);
        tally_case(&tally, gs_push(), word(0, 16), "first, pushed, round %u", i);
        write_msr(MSR_GS_BASE, OTHER);
        tally_case(&tally, gs_read(), word(1, 16), "second, round %u", i);
        write_msr(MSR_GS_BASE, WINDOW + 8);
        tally_case(&tally, gs_read(), word(0, 24), "in mid-page, round %u", i);
        write_msr(MSR_GS_BASE, WINDOW - ((unsigned long)&percpu_word & ~0xffful));
        tally_case(&tally, gs_read_relative(), word(0, 16), "relative to RIP, round %u", i);
        asm volatile("mov %0, %%gs" : : "r"(USER_DS));
        tally_case(&tally, gs_read(), low_word, "none, round %u", i);
        if (cpuid(7, 0).b & 1) {
            write_cr4(read_cr4() | CR4_FSGSBASE);
            asm volatile("wrgsbase %0" : : "r"(OTHER));
            tally_case(&tally, gs_read(), word(1, 16), "by WRGSBASE, round %u", i);
        }
    }
    tally_end(&tally);

    static const unsigned long bases[] = {WINDOW, OTHER, WINDOW + 8};
    unsigned long values[] = {word(0, 16), word(1, 16), word(0, 24)};
    tally_begin(&tally, "SWAPGS between accesses");
    for (unsigned i = 0; i < ROUNDS * 9; i++) {
        unsigned one = i % 3, other = i / 3 % 3;
        write_msr(MSR_GS_BASE, bases[one]);
        write_msr(MSR_KERNEL_GS_BASE, bases[other]);
        for (unsigned k = 0; k < 3; k++)
            tally_case(&tally, gs_swaps(), values[one] << 16 | values[other] << 8 | values[one],
                       "bases %u and %u", one, other);
        asm volatile("swapgs");
        tally_case(&tally, gs_read(), values[other], "bases %u and %u, swapped", one, other);
    }
    tally_end(&tally);
}

static void check_mappings(void) {
    struct address_space second = {page_alloc(), 4, 8};
    struct tally tally;
    write_msr(MSR_GS_BASE, WINDOW);
    tally_begin(&tally, "the page that GS leads to is another one");
    for (unsigned i = 0; i < ROUNDS * 2; i++) {
        map(WINDOW, i & 1, OPEN | (i & 2 ? PTE_G : 0));
        tally_case(&tally, gs_read(), word(i & 1, 16), "read, round %u", i);
        gs_write(i + 100);
        tally_case(&tally, word(i & 1, 24), i + 100, "written, round %u", i);
        tally_case(&tally, gs_carry(i, 3), i < 3 ? ~0ul : 0, "flags, round %u", i);
    }
    map(WINDOW, 0, OPEN);
    for (unsigned i = 0; i < 512; i++)
        page_entry_write(&second, (uint64_t)i << 39, 4, page_entry_read(space, (uint64_t)i << 39, 4));
    page_entry_write(&second, WINDOW, 4, 0);
    page_map(&second, WINDOW, (unsigned long)frame[2], OPEN, 1);
    for (unsigned i = 0; i < ROUNDS * 2; i++) {
        write_cr3((unsigned long)(i & 1 ? second.root : space->root));
        tally_case(&tally, gs_read(), word(i & 1 ? 2 : 0, 16), "another address space, round %u", i);
    }
    write_cr3((unsigned long)space->root);
    tally_end(&tally);

    map(WINDOW + 4096, 3, OPEN);
    (void)gs_read();
    check(gs_read_across(), (word(0, 4088) >> 32) | word(3, 0) << 32, "an access over two pages");
    write_msr(MSR_GS_BASE, WINDOW + 8);
    check(gs_read(), word(0, 24), "a base in mid-page");
    check(gs_read_end(), word(3, 0), "a base in mid-page: the next page");
    write_msr(MSR_GS_BASE, WINDOW);
    check(gs_read_end(), word(0, 4088), "the last word of the page");
    map(WINDOW + 4096, 3, 0);
    check(TRY("mov %%gs:4092, %%rax", : : : "rax", "memory"), VECTOR_PF, "the second page is not present");
    check(probe.cr2, WINDOW + 4096, "the second page is not present: cr2");
    map(WINDOW, 0, 0);
    check(TRY("mov %%gs:16, %%rax", : : : "rax", "memory"), VECTOR_PF, "the page is not present");
    check(probe.cr2 << 8 | probe.error, (WINDOW + 16) << 8, "the page is not present: cr2 and error");
    for (unsigned i = 0; i < 2; i++) {
        unsigned long a = i ? 1 : 5;
        check(TRY("cmp %1, %0\n\tmov %%gs:16, %%rdx\n\tsbb %%rax, %%rax",
                  :
                  : "r"(a), "r"(3ul)
                  : "rax", "rdx", "memory"),
              VECTOR_PF, "the page is not present, behind a comparison");
        check(probe.flags & FLAG_CF, i ? FLAG_CF : 0, "the page is not present: flags of the comparison");
    }
    map(WINDOW, 0, OPEN);
    check(gs_read(), word(0, 16), "the page is back");
}

static void check_rights(void) {
    write_cr0(read_cr0() | CR0_WP);
    write_msr(MSR_GS_BASE, WINDOW);
    map(WINDOW, 0, OPEN);
    (void)gs_read();
    check(page_entry_read(space, WINDOW, 1) & (PTE_A | PTE_D), PTE_A, "a read sets A alone");
    gs_write(7);
    check(page_entry_read(space, WINDOW, 1) & (PTE_A | PTE_D), PTE_A | PTE_D, "a write sets D");
    map(WINDOW, 0, PTE_P);
    check(gs_read(), word(0, 16), "a read-only page is read");
    check(TRY("mov %0, %%gs:24", : : "r"(8ul) : "memory"), VECTOR_PF, "a read-only page is written");
    check(probe.error, 3, "a read-only page is written: error");
    check(TRY("add %0, %%gs:32", : : "r"(8ul) : "memory"), VECTOR_PF, "a read-only page is added to");
    map(WINDOW, 0, OPEN);
    check(gs_add(5) - word(0, 32), 0, "a page that may be written again");

    if (!(cpuid(7, 0).b & BIT(20)))
        return check_skip("SMAP", "not there");
    map(WINDOW, 0, OPEN | PTE_U);
    write_cr4(read_cr4() | CR4_SMAP);
    for (unsigned i = 0; i < ROUNDS; i++) {
        asm volatile("stac");
        check(gs_read(), word(0, 16), "a user's page with AC");
        asm volatile("clac");
        check(TRY("mov %%gs:16, %%rax", : : : "rax", "memory"), VECTOR_PF, "a user's page without AC");
    }
    write_cr4(read_cr4() & ~CR4_SMAP);
    map(WINDOW, 0, OPEN);
}

/* Code on the page, run where it lies and written through GS. */
static void check_code(void) {
    unsigned (*code)(void) = (unsigned (*)(void))(void *)(frame[0] + 64);
    struct tally tally;
    frame[0][64] = 0xb8; /* mov $imm, %eax; ret */
    frame[0][69] = 0xc3;
    tally_begin(&tally, "code written through GS");
    for (unsigned i = 0; i < ROUNDS * 2; i++) {
        gs_write_code(i + 1000);
        tally_case(&tally, code(), i + 1000, "round %u", i);
        gs_write(i);
        tally_case(&tally, word(0, 24), i, "beside it, round %u", i);
    }
    tally_end(&tally);
}

static void check_many(void) {
    uint8_t *pages = pages_alloc(PAGES, 4096);
    unsigned long sum = 0;
    write_msr(MSR_GS_BASE, MANY);
    for (unsigned i = 0; i < PAGES; i++) {
        *(unsigned long *)(pages + i * 4096ul + 8) = 1ul << i % 48;
        page_map(space, MANY + i * 4096ul, (unsigned long)pages + i * 4096ul, OPEN, 1);
        sum += 1ul << i % 48;
    }
    for (unsigned i = 0; i < ROUNDS; i++)
        check(gs_many(), sum, "the sum of many pages");
}

/* INVLPG names another part of the large page that GS leads to (SDM vol. 3, 4.10.4.2), or a page beside. */
static void check_large(void) {
    uint8_t *large = pages_alloc(512, 0x200000);
    volatile uint64_t *pde = page_entry(space, LARGE, 2);
    struct tally tally;
    map(LARGE + 5 * 4096ul, 1, OPEN);
    map(LARGE + 6 * 4096ul, 2, OPEN);
    const uint64_t table = *pde;
    *(unsigned long *)(large + 5 * 4096ul + 16) = 99;
    write_msr(MSR_GS_BASE, LARGE + 5 * 4096ul);
    tally_begin(&tally, "the large page that GS leads to is split");
    for (unsigned i = 0; i < ROUNDS * 2; i++) {
        *pde = (unsigned long)large | OPEN | PTE_PS | (i & 1 ? PTE_G : 0);
        asm volatile("invlpg (%0)" : : "r"(LARGE + 5 * 4096ul) : "memory");
        tally_case(&tally, gs_read(), 99, "joined, round %u", i);
        *pde = table;
        asm volatile("invlpg (%0)" : : "r"(LARGE + 300 * 4096ul) : "memory");
        tally_case(&tally, gs_read(), word(1, 16), "split, round %u", i);
    }
    tally_end(&tally);
    tally_begin(&tally, "many pages are flushed one by one");
    for (unsigned i = 0; i < ROUNDS * 2; i++) {
        (void)gs_read();
        page_map(space, LARGE + 5 * 4096ul, (unsigned long)frame[i & 1], OPEN, 1);
        for (unsigned k = 0; k < 16; k++)
            asm volatile("invlpg (%0)" : : "r"(LARGE + k * 4096ul) : "memory");
        tally_case(&tally, gs_read(), word(i & 1, 16), "round %u", i);
    }
    tally_end(&tally);
}

void kernel_main(void) {
    if (cpuid(1, 0).d & BIT(13))
        write_cr4(read_cr4() | CR4_PGE);
    for (unsigned i = 0; i < ARRAY_SIZE(frame); i++) {
        frame[i] = page_alloc();
        for (unsigned k = 0; k < 4096; k += 8)
            *(unsigned long *)(frame[i] + k) = k == 16 ? i + 1 : k == 24 ? i + 11 : k * 0x100010001ul + i;
    }
    map(WINDOW, 0, OPEN);
    map(OTHER, 1, OPEN);
    check_bases();
    check_mappings();
    check_rights();
    check_code();
    check_many();
    check_large();
    checks_finish("percpu64");
}
