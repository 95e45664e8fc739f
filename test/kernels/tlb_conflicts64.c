/*
 * Pages that are in each other's way. A TLB whose sets are chosen by address bits has the pages below in one
 * set, and may keep what it throws out of that in another place: what is flushed must be gone from there,
 * too, and what is found there must have the rights, the address space and the accessed and dirty bits that
 * it had. Source: Intel SDM volume 3, 4.10.
 */
#include "paging.h"
#include "runtime.h"
#include "tlb64.h"

#define BASE 0x0000343440200000ull
#define STRIDE 0x4000000ull /* 64 MiB: 16,384 pages */
#define MOST 8
#define OPEN (PTE_P | PTE_W | PTE_U)

static const struct address_space *const space = &boot_space;
/* What page i leads to, before and after: a word that says so, and a routine that returns it. */
static uint8_t *frame[2][MOST];

static uint64_t page_at(unsigned i) {
    return BASE + i * STRIDE;
}

static unsigned value_of(unsigned i, unsigned which) {
    return 1 + i + 100 * which;
}

static void map(const struct address_space *in, unsigned i, unsigned which, uint64_t flags) {
    page_map(in, page_at(i), (unsigned long)frame[which][i], flags, 1);
}

static unsigned read_at(unsigned i) {
    return *(volatile uint32_t *)(page_at(i) + 0x100);
}

static void write_at(unsigned i, unsigned value) {
    *(volatile uint32_t *)(page_at(i) + 0x100) = value;
}

static unsigned call_at(unsigned i) {
    return ((unsigned (*)(void))(void *)(page_at(i) + 0x200))();
}

SNIPPET(conflicts_user, "mov 0x100(%rdi), %ecx\n\tmov %ecx, 0x100(%rdi)\n\tadd $0x200, %rdi\n\tcall *%rdi");

static unsigned user_at(unsigned i) {
    struct context c = context_user(conflicts_user);
    c.di = page_at(i);
    context_run(&c);
    return c.vector == VECTOR_DONE && c.ax == c.cx ? (unsigned)c.ax : 0xdead0000u | (unsigned)c.vector;
}

SNIPPET(conflicts_user_read, "mov (%rdi), %rax");

/* A word read at CPL 3; 0xdead0000 + the vector if it is not to be had. */
static unsigned user_read(uint64_t address) {
    struct context c = context_user(conflicts_user_read);
    c.di = address;
    context_run(&c);
    return c.vector == VECTOR_DONE ? (uint32_t)c.ax : 0xdead0000u | (unsigned)c.vector;
}

static unsigned try_read(unsigned i) {
    return TRY("mov 0x100(%0), %%eax", : : "r"(page_at(i)) : "rax");
}

static unsigned try_write(unsigned i) {
    return TRY("movl %1, 0x100(%0)", : : "r"(page_at(i)), "r"(value_of(i, 0)) : "memory");
}

static void touch(unsigned pages) {
    for (unsigned i = 0; i < pages; i++)
        write_at(i, read_at(i));
}

static void flush_page(uint64_t address) {
    invlpg((void *)address);
}

static void flush_cr3(uint64_t address) {
    (void)address;
    flush_tlb();
}

static void flush_pge(uint64_t address) {
    (void)address;
    write_cr4(read_cr4() ^ CR4_PGE);
    write_cr4(read_cr4() ^ CR4_PGE);
}

static void flush_invpcid_address(uint64_t address) {
    invpcid(0, read_cr3() & 0xfff, address);
}

static void flush_invpcid_context(uint64_t address) {
    (void)address;
    invpcid(1, read_cr3() & 0xfff, 0);
}

static void flush_invpcid_all(uint64_t address) {
    (void)address;
    invpcid(2, 0, 0);
}

static const struct flush {
    const char *name;
    void (*flush)(uint64_t address);
    bool global; /* flushes global pages too */
    bool needs_invpcid, needs_pge;
} flushes[] = {
    {"invlpg", flush_page, true, false, false},
    {"mov to cr3", flush_cr3, false, false, false},
    {"CR4.PGE", flush_pge, true, false, true},
    {"invpcid of an address", flush_invpcid_address, false, true, false},
    {"invpcid of a context", flush_invpcid_context, false, true, false},
    {"invpcid of all", flush_invpcid_all, true, true, false},
};

static void check_flush(const struct flush *flush, uint64_t global) {
    struct tally tally;
    tally_begin(&tally, flush->name);
    for (unsigned pages = 2; pages <= MOST; pages++) {
        for (unsigned k = 0; k < pages; k++) {
            for (unsigned i = 0; i < pages; i++) {
                map(space, i, 0, OPEN | global);
                flush->flush(page_at(i));
            }
            touch(pages);
            map(space, k, 1, OPEN | global);
            flush->flush(page_at(k));
            for (unsigned i = 0; i < pages; i++) {
                tally_case(&tally, read_at(i), value_of(i, i == k), "page %u of %u, %u changed", i, pages, k);
                tally_case(&tally, call_at(i), value_of(i, i == k), "call of page %u of %u", i, pages);
                tally_case(&tally, user_at(i), value_of(i, i == k), "page %u of %u at CPL 3", i, pages);
            }
            page_map(space, page_at(k), (unsigned long)frame[1][k], (PTE_P | PTE_U | PTE_A) | global, 1);
            flush->flush(page_at(k));
            touch(k);
            tally_case(&tally, try_write(k), VECTOR_PF, "page %u of %u made read-only", k, pages);
            tally_case(&tally, user_at(k), 0xdead0000u | VECTOR_PF, "page %u of %u made read-only, CPL 3", k,
                       pages);
            page_entry_write(space, page_at(k), 1, 0);
            flush->flush(page_at(k));
            tally_case(&tally, try_read(k), VECTOR_PF, "page %u of %u taken away", k, pages);
        }
    }
    tally_end(&tally);
}

static void map_all(void) {
    for (unsigned i = 0; i < MOST; i++)
        map(space, i, 0, OPEN);
    flush_tlb();
}

/* What was read only must still set D when it is written. */
static void check_dirty(void) {
    struct tally tally;
    tally_begin(&tally, "dirty bits of pages in each other's way");
    for (unsigned pages = 2; pages <= MOST; pages++) {
        map_all();
        for (unsigned round = 0; round < 2; round++)
            for (unsigned i = 0; i < pages; i++)
                (void)read_at(i);
        for (unsigned i = 0; i < pages; i++) {
            tally_case(&tally, page_entry_read(space, page_at(i), 1) & (PTE_A | PTE_D), PTE_A, "page %u read",
                       i);
            write_at(i, value_of(i, 0));
            tally_case(&tally, page_entry_read(space, page_at(i), 1) & PTE_D, PTE_D, "page %u written", i);
        }
    }
    tally_end(&tally);
}

/* Stores by translations that were out of the way while their page began to hold code. */
static void check_code(void) {
    struct tally tally;
    tally_begin(&tally, "code rewritten through pages in each other's way");
    map_all();
    for (unsigned round = 0; round < 4; round++)
        for (unsigned pages = 2; pages <= MOST; pages++)
            for (unsigned i = 0; i < pages; i++) {
                touch(pages);
                *(volatile uint32_t *)(page_at(i) + 0x201) = 1000 + i;
                touch(pages);
                unsigned (*code)(void) = (unsigned (*)(void))(void *)(frame[0][i] + 0x200);
                tally_case(&tally, code(), 1000 + i, "code of page %u elsewhere", i);
                touch(round & 1 ? i : pages);
                *(volatile uint32_t *)(page_at(i) + 0x201) = value_of(i, 0);
                tally_case(&tally, code(), value_of(i, 0), "code of page %u elsewhere, rewritten", i);
                tally_case(&tally, call_at(i), value_of(i, 0), "code of page %u, rewritten", i);
                /* The page is written elsewhere, and the right to write it here comes back. */
                *(volatile uint32_t *)(frame[0][i] + 0x201) = 2000 + i;
                touch(pages);
                tally_case(&tally, code(), 2000 + i, "code of page %u, rewritten elsewhere", i);
                *(volatile uint32_t *)(page_at(i) + 0x201) = value_of(i, 0);
                tally_case(&tally, code(), value_of(i, 0), "code of page %u, rewritten again", i);
            }
    tally_end(&tally);
}

/* A large page's parts in the way of small pages: INVLPG anywhere in it drops all of them. */
static void check_large(void) {
    static const unsigned parts[] = {0,   1,   15, 16,
                                     255, 510, 511}; /* for ring 3, which has views of its own */
    uint8_t *large = pages_alloc(512, 0x200000);
    volatile uint64_t *pde = page_entry(space, BASE, 2);
    uint64_t table = *pde;
    struct tally tally;
    tally_begin(&tally, "parts of a large page in the way of small ones");
    for (unsigned pages = 2; pages <= MOST; pages++) {
        map_all();
        *(volatile uint32_t *)(large + 0x100) = 77;
        *pde = (unsigned long)large | OPEN | PTE_PS;
        flush_cr3(0);
        touch(pages);
        tally_case(&tally, read_at(0), 77, "large page among %u", pages);
        for (unsigned i = 0; i < ARRAY_SIZE(parts); i++) {
            *(volatile uint32_t *)(large + parts[i] * 4096 + 0x100) = 77 + parts[i];
            tally_case(&tally, user_read(BASE + parts[i] * 4096 + 0x100), 77 + parts[i],
                       "part %u of the large page at CPL 3", parts[i]);
        }
        touch(pages);
        *pde = table;
        flush_page(BASE + 0x123000);
        for (unsigned i = 0; i < pages; i++)
            tally_case(&tally, read_at(i), value_of(i, 0), "page %u of %u after the split", i, pages);
        for (unsigned i = 0; i < ARRAY_SIZE(parts); i++)
            tally_case(&tally, user_read(BASE + parts[i] * 4096 + 0x100),
                       parts[i] ? 0xdead0000u | VECTOR_PF : value_of(0, 0),
                       "part %u at CPL 3 after the split", parts[i]);
    }
    tally_end(&tally);
}

/* The first page and the last: no translation is there before one is made, whatever an empty TLB holds. */
static void check_ends(void) {
    volatile uint64_t *entry = page_alloc();
    uint64_t above[5];
    for (unsigned level = 2; level <= 4; level++)
        above[level] = page_entry_read(space, 0, level);
    for (unsigned i = 0; i < 512; i++)
        entry[i] = (uint64_t)i * 4096 | PTE_P | PTE_W;
    page_entry_write(space, 0, 2, (unsigned long)entry | OPEN);
    page_entry_write(space, 0, 3, above[3] | PTE_U);
    page_entry_write(space, 0, 4, above[4] | PTE_U);
    struct tally tally;
    tally_begin(&tally, "the ends of the address space");
    for (unsigned round = 0; round < 2; round++) {
        *entry = 0;
        flush_tlb();
        for (unsigned size = 1; size < 8; size++)
            tally_case(&tally, user_read(-(uint64_t)size), 0xdead0000u | VECTOR_PF,
                       "read from %u bytes before the end", size);
        for (unsigned offset = 0; offset < 4096; offset += 1024)
            tally_case(&tally, user_read(offset), 0xdead0000u | VECTOR_PF, "read at %x", offset);
        *entry = (unsigned long)frame[0][0] | OPEN;
        flush_page(0);
        tally_case(&tally, user_read(0x100), value_of(0, 0), "the first page");
        for (unsigned size = 1; size < 8; size++)
            tally_case(&tally, user_read(-(uint64_t)size), 0xdead0000u | VECTOR_PF,
                       "read from %u bytes before the end into the first page", size);
        *entry = (unsigned long)frame[1][0] | OPEN;
        flush_page(0);
        tally_case(&tally, user_read(0x100), value_of(0, 1), "the first page, changed");
    }
    for (unsigned level = 2; level <= 4; level++)
        page_entry_write(space, 0, level, above[level]);
    flush_tlb();
    tally_end(&tally);
}

static void check_pcid(bool has_invpcid) {
    uint64_t *other = page_alloc();
    unsigned long root = read_cr3();
    write_cr4(read_cr4() | CR4_PCIDE);
    for (unsigned i = 0; i < 512; i++)
        other[i] = ((volatile uint64_t *)space->root)[i];
    other[BASE >> 39 & 511] = 0;
    const struct address_space second = {other, 4, 8};
    unsigned long cr3_a = root | 1, cr3_b = (unsigned long)other | 2, keep = BIT(63);
    struct tally tally;
    tally_begin(&tally, "PCIDs with pages in each other's way");
    for (unsigned pages = 2; pages <= MOST; pages++) {
        for (unsigned i = 0; i < MOST; i++) {
            map(space, i, 0, OPEN);
            map(&second, i, 1, OPEN);
        }
        write_cr3(cr3_b);
        write_cr3(cr3_a);
        for (unsigned round = 0; round < 3; round++) {
            touch(pages);
            write_cr3(cr3_b | keep);
            touch(pages);
            for (unsigned i = 0; i < pages; i++)
                tally_case(&tally, read_at(i), value_of(i, 1), "page %u of %u, PCID 2", i, pages);
            write_cr3(cr3_a | keep);
            for (unsigned i = 0; i < pages; i++)
                tally_case(&tally, read_at(i), value_of(i, 0), "page %u of %u, PCID 1", i, pages);
        }
        map(&second, 0, 0, OPEN);
        if (has_invpcid)
            invpcid(0, 2, page_at(0));
        write_cr3(cr3_b | (has_invpcid ? keep : 0));
        tally_case(&tally, read_at(0), value_of(0, 0), "page changed in PCID 2 from outside");
        for (unsigned i = 1; i < pages; i++)
            tally_case(&tally, read_at(i), value_of(i, 1), "page %u beside it", i);
        write_cr3(cr3_a | keep);
    }
    tally_end(&tally);
    write_cr3(root);
    write_cr4(read_cr4() & ~CR4_PCIDE);
}

void conflicts_check(bool has_pge, bool has_pcid, bool has_invpcid) {
    for (unsigned i = 0; i < MOST; i++)
        for (unsigned which = 0; which < 2; which++) {
            uint8_t *page = frame[which][i] = page_alloc();
            *(volatile uint32_t *)(page + 0x100) = value_of(i, which);
            page[0x200] = 0xb8; /* mov $value, %eax; ret */
            *(volatile uint32_t *)(page + 0x201) = value_of(i, which);
            *(volatile uint8_t *)(page + 0x205) = 0xc3;
        }
    for (unsigned i = 0; i < ARRAY_SIZE(flushes); i++) {
        if ((flushes[i].needs_invpcid && !has_invpcid) || (flushes[i].needs_pge && !has_pge))
            continue;
        check_flush(&flushes[i], 0);
        if (has_pge && flushes[i].global)
            check_flush(&flushes[i], PTE_G);
    }
    check_dirty();
    check_code();
    check_large();
    check_ends();
    if (has_pcid)
        check_pcid(has_invpcid);
}
