/*
 * TLB semantics: after an invalidation no stale translation may be used, for data or for code. Whether a
 * stale one is used before is the machine's affair and is not judged. Source: Intel SDM volume 3, 4.10.
 */
#include "tlb64.h"
#include "paging.h"
#include "runtime.h"

#define LOW_WINDOW 0x0000323440200000ull
#define HIGH_WINDOW 0xffffb23440200000ull
#define WINDOW window
#define OPEN (PTE_P | PTE_W | PTE_U)

static const struct address_space *const space = &boot_space;
static uint64_t window = LOW_WINDOW; /* the half of the addresses is a kernel of its own to some */
static uint8_t *frame_a, *frame_b;
static bool has_pcid, has_invpcid, has_pge;

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

static void flush_invpcid_address(void) {
    invpcid(0, read_cr3() & 0xfff, WINDOW);
}

static void flush_invpcid_context(void) {
    invpcid(1, read_cr3() & 0xfff, 0);
}

static void flush_invpcid_all(void) {
    invpcid(2, 0, 0);
}

static void flush_invpcid_non_global(void) {
    invpcid(3, 0, 0);
}

struct flush {
    const char *name;
    void (*flush)(void);
    bool global; /* flushes global pages too */
    bool needs_invpcid;
};

static const struct flush flushes[] = {
    {"invlpg", flush_invlpg, true, false},
    {"mov to cr3", flush_cr3, false, false},
    {"CR4.PGE", flush_pge, true, false},
    {"invpcid of an address", flush_invpcid_address, false, true},
    {"invpcid of a context", flush_invpcid_context, false, true},
    {"invpcid of all", flush_invpcid_all, true, true},
    {"invpcid of all but global", flush_invpcid_non_global, false, true},
};

static unsigned window_read(void) {
    return *(volatile uint32_t *)(WINDOW + 0x100);
}

static unsigned window_call(void) {
    return ((unsigned (*)(void))(void *)(WINDOW + 0x200))();
}

SNIPPET(tlb_user, "mov 0x100(%rdi), %ecx\n\tadd $0x200, %rdi\n\tcall *%rdi");

static unsigned window_user(void) {
    struct context c = context_user(tlb_user);
    c.di = WINDOW;
    context_run(&c);
    return c.vector == VECTOR_DONE ? (unsigned)(c.ax << 8 | c.cx) : 0xdead0000u | (unsigned)c.vector;
}

static void frame_fill(uint8_t *frame, unsigned value) {
    *(volatile uint32_t *)(frame + 0x100) = value;
    frame[0x200] = 0xb8; /* mov $value, %eax */
    *(volatile uint32_t *)(frame + 0x201) = value;
    *(volatile uint8_t *)(frame + 0x205) = 0xc3;
}

static void check_switch(const struct flush *flush, uint64_t flags) {
    const char *kind = flags & PTE_G ? "global page" : "page";
    struct tally tally;
    tally_begin(&tally, flush->name);
    for (unsigned round = 0; round < 4; round++) {
        page_map(space, WINDOW, (unsigned long)frame_a, flags, 1);
        flush->flush();
        tally_case(&tally, window_read(), 1, "read of the first %s", kind);
        tally_case(&tally, window_call(), 1, "call into the first %s", kind);
        tally_case(&tally, window_user(), 0x101, "user access to the first %s", kind);
        page_map(space, WINDOW, (unsigned long)frame_b, flags, 1);
        flush->flush();
        if (round & 1)
            tally_case(&tally, window_call(), 2, "call into the second %s", kind);
        tally_case(&tally, window_read(), 2, "read of the second %s", kind);
        tally_case(&tally, window_call(), 2, "call into the second %s", kind);
        tally_case(&tally, window_user(), 0x202, "user access to the second %s", kind);
        page_entry_write(space, WINDOW, 1, 0);
        flush->flush();
        tally_case(&tally,
                   TRY("mov 0x100(%0), %%eax",
                       :
                       : "r"(WINDOW)
                       : "rax"),
                   VECTOR_PF, "read of no %s", kind);
        tally_case(&tally, window_user(), 0xdead000e, "user access to no %s", kind);
    }
    tally_end(&tally);
}

/* Permissions taken away take effect with the flush; those given work at the second try at the latest. */
static void check_permissions(void) {
    struct tally down, up;
    tally_begin(&down, "permissions taken away");
    tally_begin(&up, "permissions given");
    for (unsigned i = 0; i < ARRAY_SIZE(flushes); i++) {
        if (flushes[i].needs_invpcid && !has_invpcid)
            continue;
        page_map(space, WINDOW, (unsigned long)frame_a, OPEN, 1);
        flushes[i].flush();
        *(volatile uint32_t *)WINDOW = 1;
        (void)window_call();
        page_map(space, WINDOW, (unsigned long)frame_a, PTE_P | PTE_U | PTE_A | PTE_D, 1);
        flushes[i].flush();
        tally_case(&down,
                   TRY("movl $1, (%0)",
                       :
                       : "r"(WINDOW)
                       : "memory"),
                   VECTOR_PF, "write, %s", flushes[i].name);
        page_map(space, WINDOW, (unsigned long)frame_a, OPEN | PTE_NX | PTE_A | PTE_D, 1);
        flushes[i].flush();
        struct context c = context_kernel((void *)(WINDOW + 0x200));
        context_run(&c);
        tally_case(&down, c.vector, VECTOR_PF, "execution, %s", flushes[i].name);
        page_map(space, WINDOW, (unsigned long)frame_a, OPEN, 1);
        flushes[i].flush();
        (void)window_user();
        page_map(space, WINDOW, (unsigned long)frame_a, PTE_P | PTE_W, 1);
        flushes[i].flush();
        tally_case(&down, window_user(), 0xdead000e, "user access, %s", flushes[i].name);
    }
    tally_end(&down);

    flush_pge();
    page_map(space, WINDOW, (unsigned long)frame_a, PTE_P | PTE_NX, 1);
    flush_invlpg();
    (void)window_read();
    page_map(space, WINDOW, (unsigned long)frame_a, OPEN, 1);
    unsigned tries = 0;
    while (tries < 3 && TRY("movl $1, (%0)", : : "r"(WINDOW) : "memory") != NO_TRAP)
        tries++;
    tally_case(&up, tries <= 1, true, "write after at most one spurious fault");
    for (tries = 0; tries < 3 && window_user() != 0x101; tries++)
        ;
    tally_case(&up, tries <= 2, true, "user access and execution after spurious faults");
    page_entry_write(space, WINDOW, 1, 0);
    flush_invlpg();
    (void)TRY("mov (%0), %%eax", : : "r"(WINDOW) : "rax");
    page_map(space, WINDOW, (unsigned long)frame_b, OPEN, 1);
    tally_case(&up,
               TRY("mov (%0), %%eax",
                   :
                   : "r"(WINDOW)
                   : "rax"),
               NO_TRAP, "a missing page is never cached");
    tally_case(&up, window_read(), 2, "a page made present");
    tally_end(&up);
}

static void check_accessed_dirty(void) {
    page_map(space, WINDOW, (unsigned long)frame_a, OPEN, 1);
    flush_invlpg();
    (void)window_read();
    check(page_entry_read(space, WINDOW, 1) & (PTE_A | PTE_D), PTE_A, "a read sets accessed");
    *(volatile uint32_t *)WINDOW = 1;
    check(page_entry_read(space, WINDOW, 1) & (PTE_A | PTE_D), PTE_A | PTE_D,
          "a write through a clean translation sets dirty");
    page_map(space, WINDOW, (unsigned long)frame_a, OPEN, 1);
    flush_invlpg();
    *(volatile uint32_t *)WINDOW = 1;
    check(page_entry_read(space, WINDOW, 1) & (PTE_A | PTE_D), PTE_A | PTE_D,
          "bits cleared and flushed are set again");
    page_map(space, WINDOW, (unsigned long)frame_a, OPEN, 1);
    flush_cr3();
    (void)window_call();
    check(page_entry_read(space, WINDOW, 1) & (PTE_A | PTE_D), PTE_A, "a fetch sets accessed");
}

static void check_large(void) {
    uint8_t *large = pages_alloc(512, 0x200000);
    volatile uint64_t *pde = page_entry(space, WINDOW, 2);
    uint64_t table = *pde;
    static const unsigned pages[] = {0, 1, 37, 511};
    struct tally tally;
    tally_begin(&tally, "large page split and joined");
    for (unsigned round = 0; round < 3; round++) {
        for (unsigned i = 0; i < ARRAY_SIZE(pages); i++) {
            *(volatile uint32_t *)(large + pages[i] * 4096 + 8) = 100 + i;
            page_map(space, WINDOW + pages[i] * 4096, (unsigned long)(i & 1 ? frame_a : frame_b), OPEN, 1);
        }
        *(volatile uint32_t *)(frame_a + 8) = 11;
        *(volatile uint32_t *)(frame_b + 8) = 12;
        *pde = (unsigned long)large | OPEN | PTE_PS | (round == 2 && has_pge ? PTE_G : 0);
        flush_cr3();
        flush_pge();
        for (unsigned i = 0; i < ARRAY_SIZE(pages); i++)
            tally_case(&tally, *(volatile uint32_t *)(WINDOW + pages[i] * 4096 + 8), 100 + i, "joined");
        if (round == 2)
            flush_cr3(); /* which global pages survive */
        *pde = table;
        /* One INVLPG anywhere in a large page drops all of it (SDM 3, 4.10.4.2). */
        invlpg((void *)(WINDOW + pages[round] * 4096));
        for (unsigned i = 0; i < ARRAY_SIZE(pages); i++)
            tally_case(&tally, *(volatile uint32_t *)(WINDOW + pages[i] * 4096 + 8), i & 1 ? 11 : 12,
                       "split, page %u", pages[i]);
    }
    tally_end(&tally);

    /* Another table below the PDE, the PDPTE and the PML4E. */
    tally_begin(&tally, "upper entries changed");
    for (unsigned level = 2; level <= 4; level++)
        for (unsigned way = 0; way < 2; way++) {
            volatile uint64_t *entry = page_entry(space, WINDOW, level);
            uint64_t old = *entry;
            page_map(space, WINDOW, (unsigned long)frame_a, OPEN, 1);
            flush_invlpg();
            tally_case(&tally, window_read(), 1, "before, level %u", level);
            *entry = 0;
            page_map(space, WINDOW, (unsigned long)frame_b, OPEN, 1);
            if (way)
                flush_invlpg();
            else
                flush_cr3();
            tally_case(&tally, window_read(), 2, "after, level %u", level);
            tally_case(&tally, window_call(), 2, "call after, level %u", level);
            *entry = old;
            flush_cr3();
            tally_case(&tally, window_call(), 1, "call, level %u put back", level);
            tally_case(&tally, window_read(), 1, "level %u put back", level);
        }
    tally_end(&tally);
}

/* A sweep may bring in translations of pages further on, but only of those whose accessed bit is set, and
 * what is flushed is gone all the same. */
static void check_sweep(void) {
    const uint64_t seen = OPEN | PTE_A | PTE_D, fifth[] = {OPEN | PTE_D, OPEN, OPEN | PTE_A};
    uint8_t *frame[2] = {page_alloc(), page_alloc()}; /* that never held code */
    struct tally tally;
    *(volatile uint32_t *)(frame[0] + 0x100) = 1;
    *(volatile uint32_t *)(frame[1] + 0x100) = 2;
    tally_begin(&tally, "sweep over pages");
    for (unsigned round = 0; round < 6; round++) {
        bool accessed = fifth[round % 3] & PTE_A;
        for (unsigned i = 0; i < 16; i++)
            page_map(space, WINDOW + i * 4096, (unsigned long)frame[i & 1],
                     i == 5                ? fifth[round % 3]
                     : i == 7 && round & 1 ? seen & ~(uint64_t)PTE_W
                                           : seen,
                     1);
        flush_cr3();
        for (unsigned i = 0; i < 3; i++) {
            volatile uint32_t *at = (volatile uint32_t *)(WINDOW + i * 4096 + 0x100);
            tally_case(&tally, *at, i & 1 ? 2 : 1, "page %u", i);
            if (round)
                *at = i & 1 ? 2 : 1;
        }
        page_map(space, WINDOW + 3 * 4096, (unsigned long)frame[0], seen, 1);
        invlpg((void *)(WINDOW + 3 * 4096));
        page_entry_write(space, WINDOW + 4 * 4096, 1, 0);
        invlpg((void *)(WINDOW + 4 * 4096));
        if (!accessed)
            page_map(space, WINDOW + 5 * 4096, (unsigned long)frame[0], fifth[round % 3], 1); /* no flush */
        page_map(space, WINDOW + 6 * 4096, (unsigned long)frame[0], seen & ~(uint64_t)PTE_W, 1);
        invlpg((void *)(WINDOW + 6 * 4096));
        tally_case(&tally, *(volatile uint32_t *)(WINDOW + 3 * 4096 + 0x100), 1, "page mapped anew");
        tally_case(&tally,
                   TRY("mov 0x100(%0), %%eax",
                       :
                       : "r"(WINDOW + 4 * 4096)
                       : "rax"),
                   VECTOR_PF, "page taken away");
        if (accessed) {
            *(volatile uint32_t *)(WINDOW + 5 * 4096 + 0x100) = 2;
            tally_case(&tally, page_entry_read(space, WINDOW + 5 * 4096, 1) & PTE_D, PTE_D,
                       "written, clean before");
        } else {
            tally_case(&tally, *(volatile uint32_t *)(WINDOW + 5 * 4096 + 0x100), 1,
                       "page not accessed before");
            tally_case(&tally, page_entry_read(space, WINDOW + 5 * 4096, 1) & PTE_A, PTE_A, "accessed now");
        }
        tally_case(&tally, page_entry_read(space, WINDOW + 7 * 4096, 1) & PTE_A, PTE_A, "accessed");
        tally_case(&tally, *(volatile uint32_t *)(WINDOW + 6 * 4096 + 0x100), 1, "page made read-only");
        tally_case(&tally,
                   TRY("movl $2, 0x100(%0)",
                       :
                       : "r"(WINDOW + 7 * 4096)
                       : "memory"),
                   round & 1 ? VECTOR_PF : NO_TRAP, "page that is read-only");
    }
    tally_end(&tally);
    for (unsigned i = 1; i < 16; i++)
        page_entry_write(space, WINDOW + i * 4096, 1, 0);
    flush_cr3();
}

static void check_pcid(void) {
    uint64_t *other = page_alloc();
    unsigned long root = read_cr3();
    check(TRY("mov %0, %%cr3\n\tmov %1, %%cr4",
              :
              : "r"(root | 8), "r"(read_cr4() | CR4_PCIDE)
              : "memory"),
          VECTOR_GP, "CR4.PCIDE with cr3[11:0] set");
    write_cr3(root);
    write_cr4(read_cr4() | CR4_PCIDE);
    for (unsigned i = 0; i < 512; i++)
        other[i] = ((volatile uint64_t *)space->root)[i];
    other[WINDOW >> 39 & 511] = 0;
    const struct address_space second = {other, 4, 8};
    page_map(space, WINDOW, (unsigned long)frame_a, OPEN, 1);
    page_map(&second, WINDOW, (unsigned long)frame_b, OPEN, 1);
    unsigned long cr3_a = root | 1, cr3_b = (unsigned long)other | 2, keep = BIT(63);
    struct tally tally;
    tally_begin(&tally, "PCIDs keep apart");
    write_cr3(cr3_a);
    for (unsigned i = 0; i < 6; i++) {
        tally_case(&tally, window_read(), 1, "read, PCID 1");
        tally_case(&tally, window_call(), 1, "call, PCID 1");
        write_cr3(cr3_b | (i & 1 ? keep : 0));
        tally_case(&tally, read_cr3(), cr3_b, "bit 63 is not kept in cr3");
        tally_case(&tally, window_read(), 2, "read, PCID 2");
        tally_case(&tally, window_call(), 2, "call, PCID 2");
        write_cr3(cr3_a | (i & 2 ? keep : 0));
    }
    /* A flushing load of one PCID sees its changes; INVPCID reaches a PCID that is not loaded. */
    page_map(&second, WINDOW, (unsigned long)frame_a, OPEN, 1);
    write_cr3(cr3_b);
    tally_case(&tally, window_call(), 1, "flushing load of PCID 2");
    tally_case(&tally, window_read(), 1, "flushing load of PCID 2");
    if (has_invpcid)
        for (unsigned type = 0; type < 4; type++) {
            unsigned want = type & 1 ? 1 : 2;
            write_cr3(cr3_a | keep);
            page_map(&second, WINDOW, (unsigned long)(want == 1 ? frame_a : frame_b), OPEN, 1);
            invpcid(type, type < 2 ? 2 : 0, type ? 0 : WINDOW);
            write_cr3(cr3_b | keep);
            tally_case(&tally, window_call(), want, "invpcid type %u of another PCID", type);
            tally_case(&tally, window_read(), want, "invpcid type %u of another PCID", type);
        }
    page_map(&second, WINDOW, (unsigned long)frame_b, OPEN, 1);
    write_cr3(cr3_b | keep);
    flush_invlpg();
    tally_case(&tally, window_read(), 2, "invlpg in PCID 2");
    tally_end(&tally);
    write_cr3(root);
    write_cr3((unsigned long)root);
    write_cr4(read_cr4() & ~CR4_PCIDE);
    page_map(space, WINDOW, (unsigned long)frame_b, OPEN, 1);
    flush_invlpg();
    check(window_read(), 2, "after PCIDE is cleared");
    check(TRY("mov %0, %%cr3", : : "r"(root | keep) : "memory"), VECTOR_GP, "cr3 bit 63 without PCIDE");
}

/* More PCIDs in use than a TLB may tell apart at a time, none of them ever flushed; a global page is one for
 * all. */
static void check_many_pcids(void) {
    enum { COUNT = 23, ROOTS = 3 };
    struct tally tally;
    tally_begin(&tally, "many PCIDs");
    unsigned long root[ROOTS], here = read_cr3();
    const uint64_t address = WINDOW, beside = WINDOW + 0x1000;
    uint8_t *frame[ROOTS];
    for (unsigned i = 0; i < ROOTS; i++) {
        uint64_t *table = page_alloc();
        for (unsigned k = 0; k < 512; k++)
            table[k] = ((volatile uint64_t *)space->root)[k];
        table[address >> 39 & 511] = 0;
        frame[i] = page_alloc();
        frame_fill(frame[i], 10 + i);
        const struct address_space one = {table, 4, 8};
        page_map(&one, address, (unsigned long)frame[i], OPEN, 1);
        page_map(&one, beside, (unsigned long)frame_a, OPEN | (has_pge ? PTE_G : 0), 1);
        root[i] = (unsigned long)table;
    }
    write_cr4(read_cr4() | CR4_PCIDE);
    for (unsigned step = 0; step < 3 * COUNT; step++) {
        unsigned pcid = 1 + step % COUNT, which = pcid % ROOTS;
        write_cr3(root[which] | pcid | BIT(63));
        tally_case(&tally, window_read(), 10 + which, "read, PCID %u", pcid);
        tally_case(&tally, window_call(), 10 + which, "call, PCID %u", pcid);
        tally_case(&tally, *(volatile uint32_t *)(beside + 0x100), 1, "global, PCID %u", pcid);
    }
    for (unsigned i = 0; i < ROOTS && has_pge; i++) {
        const struct address_space one = {(void *)root[i], 4, 8};
        page_map(&one, beside, (unsigned long)frame_b, OPEN | PTE_G, 1);
    }
    if (has_pge) {
        invlpg((void *)beside);
        for (unsigned pcid = COUNT; pcid > COUNT - 6; pcid--) {
            write_cr3(root[pcid % ROOTS] | pcid | BIT(63));
            tally_case(&tally, *(volatile uint32_t *)(beside + 0x100), 2, "another global page, PCID %u",
                       pcid);
        }
    }
    write_cr3(here);
    write_cr4(read_cr4() & ~CR4_PCIDE);
    tally_end(&tally);
}

/* Code that flushes the page it is on, behind a change of that page's entry. */
static void check_own_page(void) {
    static const uint8_t flush[][3] = {{0x0f, 0x01, 0x3f} /* invlpg (%rdi) */,
                                       {0x0f, 0x22, 0xd8} /* mov %rax, %cr3 */};
    struct tally tally;
    tally_begin(&tally, "code that flushes its own page");
    for (unsigned i = 0; i < 8; i++) {
        for (unsigned k = 0; k < 2; k++) {
            volatile uint8_t *at = (k ? frame_b : frame_a) + 0x600;
            const uint8_t code[] = {0x48,
                                    0x89,
                                    0x11,
                                    flush[i & 1][0],
                                    flush[i & 1][1],
                                    flush[i & 1][2],
                                    0xb8,
                                    (uint8_t)(k + 1),
                                    0,
                                    0,
                                    0,
                                    0xcd,
                                    VECTOR_DONE}; /* mov %rdx, (%rcx) first */
            for (unsigned n = 0; n < sizeof(code); n++)
                at[n] = code[n];
        }
        page_map(space, WINDOW, (unsigned long)frame_a, OPEN, 1);
        flush_invlpg();
        struct context c = context_kernel((void *)(WINDOW + 0x600));
        c.cx = (unsigned long)page_entry(space, WINDOW, 1);
        c.dx = (unsigned long)frame_b | OPEN;
        c.di = WINDOW;
        c.ax = read_cr3();
        context_run(&c);
        tally_case(&tally, c.vector == VECTOR_DONE ? c.ax : 0, 2, "round %u", i);
    }
    tally_end(&tally);
    page_entry_write(space, WINDOW, 1, 0);
    flush_invlpg();
}

/* Code in one page that calls directly into the next, after a flush or none; the next page changes. */
#define NEXT (WINDOW + 0x1000)
enum calls_entry { CALLS_CR3 = 0x300, CALLS_INVLPG = 0x340, CALLS_PLAIN = 0x380 };

static void calls_fill(uint8_t *frame) {
    static const struct {
        unsigned at, bytes;
        uint8_t code[3];
    } entries[] = {
        {CALLS_CR3, 3, {0x0f, 0x22, 0xdf}},    /* mov %rdi, %cr3 */
        {CALLS_INVLPG, 3, {0x0f, 0x01, 0x3f}}, /* invlpg (%rdi) */
        {CALLS_PLAIN, 0, {0}},
    };
    for (unsigned i = 0; i < ARRAY_SIZE(entries); i++) {
        uint8_t *code = frame + entries[i].at;
        for (unsigned k = 0; k < entries[i].bytes; k++)
            *code++ = entries[i].code[k];
        *code = 0xe8; /* call NEXT + 0x200 */
        *(volatile uint32_t *)(code + 1) = (uint32_t)(frame + 0x1200 - (code + 5));
        *(volatile uint8_t *)(code + 5) = 0xc3;
    }
}

static unsigned calls(enum calls_entry entry, uint64_t argument) {
    return ((unsigned (*)(uint64_t))(void *)(WINDOW + (unsigned)entry))(argument);
}

static void check_direct_calls(uint64_t global, uint64_t pcid) {
    uint8_t *frame = page_alloc();
    uint64_t *other = page_alloc();
    const struct address_space second = {other, 4, 8};
    calls_fill(frame);
    page_map(space, WINDOW, (unsigned long)frame, OPEN | global, 1);
    for (unsigned i = 0; i < 512; i++)
        other[i] = ((volatile uint64_t *)space->root)[i];
    other[WINDOW >> 39 & 511] = 0;
    page_map(&second, WINDOW, (unsigned long)frame, OPEN | global, 1);
    uint64_t root = read_cr3() & ~0xfffull, cr3_a = root | pcid, cr3_b = (unsigned long)other | pcid << 1;
    struct tally tally;
    tally_begin(&tally, global ? "direct calls out of a global page" : "direct calls between pages");
    for (unsigned round = 0; round < 8; round++) {
        page_map(space, NEXT, (unsigned long)frame_a, OPEN, 1);
        page_map(&second, NEXT, (unsigned long)frame_b, OPEN, 1);
        for (unsigned i = 0; i < 8; i++) {
            tally_case(&tally, calls(CALLS_CR3, cr3_a), 1, "the first space, round %u", round);
            tally_case(&tally, calls(CALLS_PLAIN, 0), 1, "staying there, round %u", round);
            if (round & 1) {
                tally_case(&tally, calls(CALLS_CR3, cr3_b), 2, "the second space, round %u", round);
                tally_case(&tally, calls(CALLS_PLAIN, 0), 2, "staying there, round %u", round);
            }
        }
        tally_case(&tally, calls(CALLS_CR3, cr3_a), 1, "back in the first space, round %u", round);
        for (unsigned i = 0; i < 8; i++)
            tally_case(&tally, calls(CALLS_PLAIN, 0), 1, "staying there, round %u", round);
        page_map(space, NEXT, (unsigned long)frame_b, OPEN, 1);
        if (round & 2) {
            tally_case(&tally, calls(CALLS_CR3, cr3_a), 2, "another page, CR3, round %u", round);
            tally_case(&tally, page_entry_read(space, NEXT, 1) & PTE_A, PTE_A, "accessed, CR3");
            page_map(space, NEXT, (unsigned long)frame_b, OPEN, 1);
            tally_case(&tally, calls(CALLS_CR3, cr3_a), 2, "A cleared, CR3, round %u", round);
            tally_case(&tally, page_entry_read(space, NEXT, 1) & PTE_A, PTE_A, "A cleared, CR3");
        } else {
            tally_case(&tally, calls(CALLS_INVLPG, NEXT), 2, "another page, INVLPG, round %u", round);
            tally_case(&tally, page_entry_read(space, NEXT, 1) & PTE_A, PTE_A, "accessed, INVLPG");
        }
        tally_case(&tally, calls(CALLS_PLAIN, 0), 2, "staying there, round %u", round);
    }
    tally_end(&tally);
    write_cr3(root);
    page_entry_write(space, NEXT, 1, 0);
    flush_pge();
}

/* The same with both pages global: the next one becomes another, not executable, or not global. */
static void check_global_calls(void) {
    uint8_t *frame = page_alloc();
    const uint64_t global = OPEN | PTE_G;
    struct tally tally;
    tally_begin(&tally, "direct calls between global pages");
    calls_fill(frame);
    page_map(space, WINDOW, (unsigned long)frame, global, 1);
    flush_invlpg();
    for (unsigned round = 0; round < 6; round++) {
        page_map(space, NEXT, (unsigned long)frame_a, global, 1);
        invlpg((void *)NEXT);
        for (unsigned i = 0; i < 4; i++)
            tally_case(&tally, calls(CALLS_PLAIN, 0), 1, "before, round %u", round);
        page_map(space, NEXT, (unsigned long)frame_b, global, 1);
        if (round & 1)
            flush_pge();
        else
            invlpg((void *)NEXT);
        for (unsigned i = 0; i < 4; i++)
            tally_case(&tally, calls(CALLS_PLAIN, 0), 2, "another page, round %u", round);
        page_map(space, NEXT, (unsigned long)frame_b, global | PTE_NX, 1);
        invlpg((void *)NEXT);
        struct context c = context_kernel((void *)(WINDOW + CALLS_PLAIN));
        context_run(&c);
        tally_case(&tally, c.vector == VECTOR_PF ? c.ip : 0, NEXT + 0x200, "not executable, round %u", round);
        page_map(space, NEXT, (unsigned long)frame_a, global, 1);
        invlpg((void *)NEXT);
        tally_case(&tally, calls(CALLS_PLAIN, 0), 1, "back, round %u", round);
        page_map(space, NEXT, (unsigned long)frame_a, OPEN, 1);
        invlpg((void *)NEXT);
        for (unsigned i = 0; i < 4; i++)
            tally_case(&tally, calls(CALLS_PLAIN, 0), 1, "not global, round %u", round);
        page_map(space, NEXT, (unsigned long)frame_b, OPEN, 1);
        flush_cr3();
        tally_case(&tally, calls(CALLS_PLAIN, 0), 2, "not global, another page, round %u", round);
    }
    tally_end(&tally);
    page_entry_write(space, NEXT, 1, 0);
    flush_pge();
}

SNIPPET(tlb_invpcid, "invpcid (%rdi), %rax");

static void check_invpcid_faults(void) {
    static const struct {
        const char *name;
        unsigned long type;
        struct invpcid_descriptor descriptor;
        unsigned vector;
    } cases[] = {
        {"invpcid type 4", 4, {0, 0}, VECTOR_GP},
        {"invpcid with reserved bits", 1, {BIT(12), 0}, VECTOR_GP},
        {"invpcid of PCID 1 without PCIDE", 1, {1, 0}, VECTOR_GP},
        {"invpcid of a non-canonical address", 0, {0, BIT(63)}, VECTOR_GP},
        {"invpcid of a context ignores the address", 1, {0, BIT(63)}, NO_TRAP},
    };
    for (unsigned i = 0; i < ARRAY_SIZE(cases); i++)
        check(TRY("invpcid %0, %1",
                  :
                  : "m"(cases[i].descriptor), "r"(cases[i].type)
                  : "memory"),
              cases[i].vector, "%s", cases[i].name);
    struct context c = context_user(tlb_invpcid);
    c.di = (unsigned long)user_pointer(gdt);
    context_run(&c);
    check_end(&c, VECTOR_GP, 0, "invpcid at CPL 3");
}

static void check_half(void) {
    for (unsigned pge = 0; pge <= has_pge; pge++) {
        write_cr4((read_cr4() & ~CR4_PGE) | (pge ? CR4_PGE : 0));
        for (unsigned i = 0; i < ARRAY_SIZE(flushes); i++) {
            if (flushes[i].needs_invpcid && !has_invpcid)
                continue;
            check_switch(&flushes[i], OPEN);
            if (pge && flushes[i].global)
                check_switch(&flushes[i], OPEN | PTE_G);
        }
    }
    check_permissions();
    check_accessed_dirty();
    check_large();
    check_sweep();
    for (unsigned pge = 0; pge <= has_pge; pge++) {
        write_cr4((read_cr4() & ~CR4_PGE) | (pge ? CR4_PGE : 0));
        check_own_page();
        check_direct_calls(0, 0);
    }
    check_direct_calls(has_pge ? PTE_G : 0, 0);
    if (has_pge)
        check_global_calls();
    if (has_pcid) {
        check_pcid();
        check_many_pcids();
        write_cr4(read_cr4() | CR4_PCIDE);
        check_direct_calls(0, 1);
        write_cr4(read_cr4() & ~CR4_PCIDE);
    } else {
        check_skip("PCID", "no feature");
    }
}

void kernel_main(void) {
    has_pcid = cpuid(1, 0).c & BIT(17);
    has_invpcid = cpuid(7, 0).b & BIT(10);
    has_pge = cpuid(1, 0).d & BIT(13);
    frame_a = page_alloc();
    frame_b = page_alloc();
    frame_fill(frame_a, 1);
    frame_fill(frame_b, 2);
    check_half();
    window = HIGH_WINDOW;
    check_half();
    conflicts_check(has_pge, has_pcid, has_invpcid);
    if (has_invpcid)
        check_invpcid_faults();
    else
        check_skip("INVPCID", "no feature");
    checks_finish("tlb64");
}
