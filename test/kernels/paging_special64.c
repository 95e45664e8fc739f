/*
 * Paging beyond the plain walk: accesses over a page end, implicit supervisor accesses, STAC and CLAC,
 * accessed and dirty bits of both pages, and instructions that must not fault. Source: Intel SDM volume
 * 3, 4.6 to 4.8.
 */
#include "paging.h"

#include "runtime.h"

void paging_special_check(void);

#define WINDOW 0x0000223440200000ull
#define PAGE(n) (WINDOW + 0x1000ull * (n))

static uint8_t *frames;
static const struct address_space *const space = &boot_space;

static void window_map(unsigned page, uint64_t flags) {
    page_map(space, PAGE(page), (unsigned long)frames + 0x1000ul * page, flags, 1);
    invlpg((void *)PAGE(page));
}

SNIPPET(special_read8, "mov (%rdi), %rax");
SNIPPET(special_write8, "mov %rax, (%rdi)");
SNIPPET(special_write16, "movups %xmm0, (%rdi)");
SNIPPET(special_rmw4, "lock addl $1, (%rdi)");
SNIPPET(special_jump, "jmp *%rdi");

struct cross_case {
    const char *name;
    const void *code;
    uint64_t first, second;
    unsigned back; /* bytes of the access in the first page */
    bool user;
    unsigned long error;
    unsigned page; /* that CR2 lies in; its start, or the access's address in page 0 */
};

#define OPEN (PTE_P | PTE_W | PTE_U)

static void check_crossing(void) {
    static const struct cross_case cases[] = {
        {"read into a missing page", special_read8, OPEN, 0, 3, false, 0, 1},
        {"read out of a missing page", special_read8, 0, OPEN, 3, false, 0, 0},
        {"read over two missing pages", special_read8, 0, 0, 3, false, 0, 0},
        {"write into a missing page", special_write8, OPEN, 0, 7, false, PF_W, 1},
        {"write into a read-only page", special_write8, OPEN, PTE_P | PTE_U, 1, false, PF_P | PF_W, 1},
        {"write out of a read-only page", special_write8, PTE_P | PTE_U, OPEN, 1, false, PF_P | PF_W, 0},
        {"16-byte write into a read-only page", special_write16, OPEN, PTE_P, 9, false, PF_P | PF_W, 1},
        {"locked add into a read-only page", special_rmw4, OPEN, PTE_P, 2, false, PF_P | PF_W, 1},
        {"user read into a supervisor page", special_read8, OPEN, PTE_P | PTE_W, 4, true, PF_P | PF_U, 1},
        {"user write into a supervisor page", special_write8, OPEN, PTE_P | PTE_W, 4, true,
         PF_P | PF_U | PF_W, 1},
        {"user fetch into a supervisor page", special_jump, OPEN, PTE_P | PTE_W, 2, true, PF_P | PF_U | PF_I,
         1},
        {"fetch into a missing page", special_jump, OPEN, 0, 1, false, PF_I, 1},
        {"fetch into a no-execute page", special_jump, OPEN, OPEN | PTE_NX, 4, false, PF_P | PF_I, 1},
        {"fetch at the end of a page", special_jump, OPEN, 0, 0, false, PF_I, 1},
    };
    for (unsigned i = 0; i < ARRAY_SIZE(cases); i++) {
        const struct cross_case *want = &cases[i];
        struct context c = want->user ? context_user(want->code) : context_kernel(want->code);
        uint64_t address = PAGE(1) - want->back;
        window_map(0, OPEN);
        window_map(1, OPEN);
        for (unsigned j = 0; j < 32; j++)
            ((volatile uint8_t *)PAGE(1))[(int)j - 16] = 0;
        static const uint8_t move[] = {0x48, 0xc7, 0xc0, 1, 0, 0, 0}; /* mov $1, %rax */
        for (unsigned j = 0; want->code == special_jump && j < sizeof(move); j++)
            ((volatile uint8_t *)address)[j] = move[j];
        window_map(0, want->first);
        window_map(1, want->second);
        c.di = address;
        c.ax = ~0ul;
        context_run(&c);
        check_end(&c, VECTOR_PF, want->error, want->name);
        check(c.cr2, want->page ? PAGE(1) : address, "%s: cr2", want->name);
        if (want->code == special_jump)
            check(c.ip, address, "%s: rip", want->name);
        window_map(0, OPEN);
        check(((volatile uint8_t *)PAGE(1))[-1] == 0xff, 0, "%s: nothing is written", want->name);
    }
    window_map(0, OPEN);
    window_map(1, OPEN);
    *(volatile uint64_t *)(PAGE(1) - 4) = 1;
    check(page_entry_read(space, PAGE(0), 1) & (PTE_A | PTE_D), PTE_A | PTE_D,
          "crossing write: first page dirty");
    check(page_entry_read(space, PAGE(1), 1) & (PTE_A | PTE_D), PTE_A | PTE_D,
          "crossing write: second page dirty");
    window_map(0, OPEN);
    window_map(1, OPEN);
    (void)*(volatile uint64_t *)(PAGE(1) - 4);
    check(page_entry_read(space, PAGE(0), 1) & (PTE_A | PTE_D), PTE_A, "crossing read: first page accessed");
    check(page_entry_read(space, PAGE(1), 1) & (PTE_A | PTE_D), PTE_A, "crossing read: second page accessed");
    *(volatile uint64_t *)(PAGE(1) - 4) = 1;
    check(page_entry_read(space, PAGE(1), 1) & PTE_D, PTE_D, "a write after a read sets dirty");
}

SNIPPET(special_load_fs, "mov %ax, %fs\n\txor %eax, %eax\n\tmov %eax, %fs");
SNIPPET(special_stac, "stac");
SNIPPET(special_clac, "clac");

static void check_implicit(void) {
    bool has_smap = cpuid(7, 0).b & BIT(20);
    uint64_t data = segment_descriptor(
        0, 0xfffff, SEGMENT_DATA | SEGMENT_ACCESSED | DESCRIPTOR_PRESENT | DESCRIPTOR_DPL(3),
        SEGMENT_BIG | SEGMENT_PAGES);
    struct context c;
    /* The LDT on page 2 of the window: descriptor loads are supervisor accesses whatever the CPL (SDM
     * 3, 4.6.1). */
    window_map(2, PTE_P | PTE_W);
    *(volatile uint64_t *)(PAGE(2) + 8) = data;
    *(volatile uint64_t *)(PAGE(2) + 16) = data & ~BIT(40);
    uint16_t selector = gdt_set_system(0, PAGE(2), 0xfff, SYSTEM_LDT | DESCRIPTOR_PRESENT);
    asm volatile("lldt %w0" : : "r"((unsigned)selector));
    c = context_user(special_load_fs);
    c.ax = 0x0f;
    context_run(&c);
    check_end(&c, VECTOR_DONE, 0, "segment load at CPL 3 from a supervisor page");
    window_map(2, PTE_P);
    c = context_user(special_load_fs);
    c.ax = 0x0f;
    context_run(&c);
    check_end(&c, VECTOR_DONE, 0, "segment load of an accessed descriptor on a read-only page");
    c = context_user(special_load_fs);
    c.ax = 0x17;
    context_run(&c);
    check_end(&c, VECTOR_PF, PF_P | PF_W, "segment load that sets accessed on a read-only page");
    check(c.cr2 & ~7ull, PAGE(2) + 16, "segment load that sets accessed on a read-only page: cr2");
    window_map(2, 0);
    c = context_user(special_load_fs);
    c.ax = 0x0f;
    context_run(&c);
    check_end(&c, VECTOR_PF, 0, "segment load at CPL 3 from a missing page");
    check(c.cr2, PAGE(2) + 8, "segment load at CPL 3 from a missing page: cr2");
    window_map(2, OPEN);
    c = context_user(special_load_fs);
    c.ax = 0x0f;
    context_run(&c);
    check_end(&c, VECTOR_DONE, 0, "segment load from a user page without SMAP");
    if (has_smap) {
        write_cr4(read_cr4() | CR4_SMAP);
        for (unsigned user = 0; user < 2; user++) {
            c = user ? context_user(special_load_fs) : context_kernel(special_load_fs);
            c.flags |= FLAG_AC;
            c.ax = 0x0f;
            context_run(&c);
            check_end(&c, VECTOR_PF, PF_P, "segment load from a user page with SMAP and AC");
        }
        window_map(3, OPEN);
        check(TRY("stac\n\tmov (%0), %%al\n\tclac", : : "r"(PAGE(3)) : "rax"), NO_TRAP, "read after stac");
        check(TRY("stac\n\tclac\n\tmov (%0), %%al", : : "r"(PAGE(3)) : "rax"), VECTOR_PF, "read after clac");
        check(probe.error, PF_P, "read after clac: error code");
        asm volatile("" : : : "memory");
        c = context_kernel(special_stac);
        context_run(&c);
        check(c.flags & FLAG_AC, FLAG_AC, "stac sets AC");
        c = context_kernel(special_clac);
        c.flags |= FLAG_AC;
        context_run(&c);
        check(c.flags & FLAG_AC, 0, "clac clears AC");
        c = context_user(special_stac);
        context_run(&c);
        check_end(&c, VECTOR_UD, 0, "stac at CPL 3");
        write_cr4(read_cr4() & ~CR4_SMAP);
    }
    asm volatile("lldt %w0" : : "r"(0));
}

static void check_no_fault(void) {
    uint64_t hole = PAGE(16), bad = BIT(63);
    check(TRY("prefetcht0 (%0)", : : "r"(hole)), NO_TRAP, "prefetch of a missing page");
    check(TRY("nopl (%0)", : : "r"(hole)), NO_TRAP, "nop with an operand in a missing page");
    check(TRY("lea (%0), %%rax", : : "r"(bad) : "rax"), NO_TRAP, "lea of a non-canonical address");
    check(TRY("invlpg (%0)", : : "r"(bad)), NO_TRAP, "invlpg of a non-canonical address");
    check(TRY("clflush (%0)", : : "r"(hole)), VECTOR_PF, "clflush of a missing page");
    unsigned long count = 0, source = hole, target = hole;
    check(TRY("rep movsb",
              : "+c"(count), "+S"(source), "+D"(target)
              :
              : "memory"),
          NO_TRAP, "rep movsb of no bytes");
    check(TRY("mov $0, %%eax\n\ttest %%eax, %%eax\n\tcmovnz (%0), %%eax",
              :
              : "r"(hole)
              : "rax"),
          VECTOR_PF, "cmov reads although its condition is false");
    write_cr2(0x1234);
    check(TRY("ud2", :), VECTOR_UD, "ud2");
    check(read_cr2(), 0x1234, "cr2 is left by other exceptions");
}

void paging_special_check(void) {
    frames = pages_alloc(8, 4096);
    check_crossing();
    check_implicit();
    check_no_fault();
}
