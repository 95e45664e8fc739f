/*
 * 32-bit paging (4 KiB and 4 MiB pages) and PAE paging (4 KiB and 2 MiB): every permission combination of the
 * two lower levels against a model of SDM volume 3, 4.3 to 4.7, the PDPTEs of PAE, and switching paging on
 * and off.
 */
#include "paging.h"
#include "runtime.h"

#define WINDOW 0x50801000u

enum access { READ, WRITE, FETCH, USER_READ, USER_WRITE, USER_FETCH, ACCESSES };
static const char *const access_names[] = {"read", "write", "fetch", "user read", "user write", "user fetch"};

struct walk_case {
    uint64_t entries[3];
    unsigned leaf;
    enum access access;
    bool wp, smep, nxe;
};

static struct address_space space;
static bool pae, has_smep, has_nx, has_pse36;
static uint64_t physical_reserved;
static uint8_t *frame;

static unsigned long walk_model(const struct walk_case *c) {
    bool user = c->access >= USER_READ;
    bool write = c->access == WRITE || c->access == USER_WRITE;
    bool fetch = c->access == FETCH || c->access == USER_FETCH;
    bool all_w = true, all_u = true, any_nx = false;
    /* The I bit of the error code: SMEP, or NX in a mode that has it (4.7). */
    unsigned long error =
        (write ? PF_W : 0) | (user ? PF_U : 0) | (fetch && (c->smep || (pae && c->nxe)) ? PF_I : 0);
    for (unsigned level = 2; level >= c->leaf; level--) {
        uint64_t entry = c->entries[level];
        bool large = level == 2 && (entry & PTE_PS);
        if (!(entry & PTE_P))
            return VECTOR_PF << 8 | error;
        bool reserved = pae && (((entry & PTE_NX) && !c->nxe) || (entry & physical_reserved));
        if (large)
            reserved |= pae ? (entry & 0x1fe000) != 0 : (entry & (has_pse36 ? BIT(21) : 0x3fe000)) != 0;
        if (reserved)
            return VECTOR_PF << 8 | error | PF_P | PF_RSVD;
        all_w &= (entry & PTE_W) != 0;
        all_u &= (entry & PTE_U) != 0;
        any_nx |= pae && (entry & PTE_NX);
    }
    bool bad = fetch && any_nx;
    if (user)
        bad |= !all_u || (write && !all_w);
    else
        bad |= (write && !all_w && c->wp) || (fetch && all_u && c->smep);
    return bad ? VECTOR_PF << 8 | error | PF_P : VECTOR_DONE << 8;
}

static volatile void *window_entries[3];

static uint64_t window_get(unsigned level) {
    return pae ? *(volatile uint64_t *)window_entries[level] : *(volatile uint32_t *)window_entries[level];
}

static void window_set(unsigned level, uint64_t value) {
    if (pae)
        *(volatile uint64_t *)window_entries[level] = value;
    else
        *(volatile uint32_t *)window_entries[level] = (uint32_t)value;
}

SNIPPET(window_read, "mov (%edi), %al");
SNIPPET(window_write, "movb $0xc3, (%edi)");
SNIPPET(window_fetch, "call *%edi");

static void walk_run(struct tally *tally, const struct walk_case *c) {
    static const void *const codes[] = {window_read, window_write, window_fetch};
    unsigned long cr0 = (read_cr0() & ~CR0_WP) | (c->wp ? CR0_WP : 0);
    unsigned long cr4 = (read_cr4() & ~CR4_SMEP) | (c->smep ? CR4_SMEP : 0);
    if (cr0 != read_cr0())
        write_cr0(cr0);
    if (cr4 != read_cr4())
        write_cr4(cr4);
    if (has_nx && !(read_msr(MSR_EFER) & EFER_NXE) == c->nxe)
        write_msr(MSR_EFER, c->nxe ? EFER_NXE : 0);
    for (unsigned level = c->leaf; level <= 2; level++)
        window_set(level, c->entries[level]);
    invlpg((void *)WINDOW);
    struct context context =
        c->access < USER_READ ? context_kernel(codes[c->access]) : context_user(codes[c->access - 3]);
    context.di = WINDOW;
    context_run(&context);
    uint64_t got = context.vector << 8 | context.error, want = walk_model(c);
    if (got == want && context.vector == VECTOR_PF && context.cr2 != WINDOW) {
        got = context.cr2;
        want = WINDOW;
    }
    for (unsigned level = c->leaf; level <= 2 && got == want; level++) {
        uint64_t before = c->entries[level];
        got = window_get(level);
        if (context.vector == VECTOR_DONE) {
            want = before | PTE_A | (c->access % 3 == WRITE && level == c->leaf ? PTE_D : 0);
        } else {
            uint64_t free = before & PTE_P ? PTE_A : 0;
            got &= ~free;
            want = before & ~free;
        }
    }
    tally_case(tally, got, want, "%s pde %llx pte %llx wp %d smep %d nxe %d", access_names[c->access],
               (unsigned long long)c->entries[2], (unsigned long long)c->entries[1], c->wp, c->smep, c->nxe);
}

static uint64_t spread(unsigned bits) {
    return (bits & 1 ? 0 : PTE_W) | (bits & 2 ? 0 : PTE_U) | (bits & 4 ? 0 : PTE_P) |
           (bits & 8 && pae && has_nx ? PTE_NX : 0);
}

static void check_level(unsigned leaf, const char *name) {
    struct tally tally;
    struct walk_case c = {.leaf = leaf};
    uint64_t old = page_entry_read(&space, WINDOW, 2);
    uint64_t table = (unsigned long)page_alloc(), physical = (unsigned long)frame;
    tally_begin(&tally, name);
    window_entries[2] = page_entry(&space, WINDOW, 2);
    if (leaf == 1) {
        window_set(2, table | PTE_P | PTE_W | PTE_U);
        window_entries[1] = page_entry(&space, WINDOW, 1);
    }
    unsigned large = leaf == 2 ? PTE_PS : 0;
    unsigned combinations = pae ? 16 : 8;
    for (unsigned mode = 0; mode < 8; mode++) {
        c.wp = mode & 1;
        c.smep = (mode & 2) && has_smep;
        c.nxe = (mode & 4) && has_nx;
        for (unsigned bits = 0; bits < combinations; bits++)
            for (unsigned upper = 0; upper < (leaf == 1 ? combinations : 1); upper++)
                for (c.access = 0; c.access < ACCESSES; c.access++) {
                    /* All of them in the mode that checks most, else one upper entry. */
                    if (mode != 7 && upper != 0 && upper != (bits ^ 1))
                        continue;
                    c.entries[leaf] = physical | large | spread(bits) | ((bits ^ upper) & 1 ? PTE_A : 0);
                    if (leaf == 1)
                        c.entries[2] = table | spread(upper);
                    walk_run(&tally, &c);
                }
    }
    /* Reserved bits. */
    c.wp = true;
    c.smep = c.nxe = false;
    for (unsigned bit = 12; bit < 63; bit++) {
        bool checked = leaf == 2 && (pae         ? bit >= 13 && bit <= 20
                                     : has_pse36 ? bit == 21
                                                 : bit >= 13 && bit <= 21);
        checked |= pae && (physical_reserved >> bit & 1);
        if (!checked)
            continue;
        for (c.access = 0; c.access < ACCESSES; c.access++) {
            if (leaf == 1)
                c.entries[2] = table | PTE_P | PTE_W | PTE_U;
            c.entries[leaf] = physical | large | PTE_P | PTE_W | PTE_U | BIT(bit);
            walk_run(&tally, &c);
        }
    }
    tally_end(&tally);
    window_set(2, old);
    if (has_nx)
        write_msr(MSR_EFER, 0);
    write_cr4(read_cr4() & ~CR4_SMEP);
    write_cr0(read_cr0() | CR0_WP);
    flush_tlb();
}

static void check_pdptes(void) {
    volatile uint64_t *pdpt = space.root;
    uint64_t old = pdpt[2];
    /* PDPTEs are loaded with CR3 and checked then (SDM 3, 4.4.1). */
    check(TRY("mov (%0), %%al", : : "r"(0x80000000) : "eax"), VECTOR_PF, "PAE: a missing PDPTE");
    check(probe.error, 0, "PAE: a missing PDPTE: error code");
    static const uint64_t bad[] = {PTE_P | PTE_W, PTE_P | PTE_U, PTE_P | BIT(5), PTE_P | BIT(8),
                                   PTE_P | BIT(63)};
    for (unsigned i = 0; i < ARRAY_SIZE(bad); i++) {
        pdpt[2] = bad[i];
        check(TRY("mov %0, %%cr3",
                  :
                  : "r"(space.root)
                  : "memory"),
              VECTOR_GP, "PAE: mov to cr3 with a reserved bit, %u", i);
    }
    pdpt[2] = 0x1e6; /* not present: nothing is checked */
    check(TRY("mov %0, %%cr3",
              :
              : "r"(space.root)
              : "memory"),
          NO_TRAP, "PAE: mov to cr3 with a PDPTE not present");
    pdpt[2] = old;
    uint64_t *directory = page_alloc();
    directory[0] = (unsigned long)frame | PTE_P | PTE_W | PTE_PS;
    pdpt[2] = (unsigned long)directory | PTE_P;
    check(TRY("mov (%0), %%al",
              :
              : "r"(0x80000000)
              : "eax"),
          VECTOR_PF, "PAE: a PDPTE in memory alone does nothing");
    write_cr3((unsigned long)space.root);
    check(TRY("mov (%0), %%al", : : "r"(0x80000000) : "eax"), NO_TRAP, "PAE: mov to cr3 loads the PDPTEs");
    pdpt[2] = 0;
    check(TRY("invlpg (%0)\n\tmov (%0), %%al",
              :
              : "r"(0x80000000)
              : "eax"),
          NO_TRAP, "PAE: invlpg leaves the PDPTEs");
    write_cr4(read_cr4() ^ CR4_PGE);
    write_cr4(read_cr4() ^ CR4_PGE);
    check(TRY("mov (%0), %%al",
              :
              : "r"(0x80000000)
              : "eax"),
          VECTOR_PF, "PAE: a change of CR4.PGE loads the PDPTEs");
    check(TRY("mov %0, %%cr4",
              :
              : "r"((unsigned long)(read_cr4() | CR4_PCIDE))),
          VECTOR_GP, "CR4.PCIDE outside long mode");
}

static void check_modes(void) {
    /* CR4.PSE clear: PS is ignored and the PDE points to a table. */
    struct address_space small = address_space_create(2);
    paging_disable();
    uint8_t *value = page_alloc();
    *(volatile uint8_t *)value = 0x77;
    uint32_t *table = page_alloc();
    table[WINDOW >> 12 & 1023] = (unsigned long)value | PTE_P | PTE_W;
    /* Without PSE the whole space must be made of tables: identity for the first 8 MiB. */
    uint32_t *root = page_alloc(), *low = pages_alloc(2, 4096);
    for (unsigned i = 0; i < 2048; i++)
        low[i] = i << 12 | PTE_P | PTE_W;
    root[0] = (unsigned long)low | PTE_P | PTE_W;
    root[1] = (unsigned long)(low + 1024) | PTE_P | PTE_W;
    root[WINDOW >> 22] = (unsigned long)table | PTE_P | PTE_W | PTE_PS;
    write_cr4(read_cr4() & ~CR4_PSE);
    write_cr3((unsigned long)root);
    write_cr0(read_cr0() | CR0_PG);
    unsigned vector = TRY("mov (%0), %%al", : : "r"(WINDOW) : "eax");
    uint8_t got = vector == NO_TRAP ? *(volatile uint8_t *)WINDOW : 0;
    write_cr0(read_cr0() & ~CR0_PG);
    check(got, 0x77, "without CR4.PSE the PS bit is ignored");
    /* On, off, and in the other mode: nothing stale. */
    struct tally tally;
    tally_begin(&tally, "paging switched on and off");
    struct address_space wide = address_space_create(3);
    for (unsigned i = 0; i < 4; i++) {
        const struct address_space *now = i & 1 ? &wide : &small;
        page_map(now, WINDOW & ~0x3fffffu, ((unsigned long)frame & ~0x3fffffu), PTE_P | PTE_W, 2);
        *(volatile uint8_t *)(unsigned long)((unsigned long)frame & ~0x3fffffu) = (uint8_t)(i + 1);
        paging_enable(now);
        tally_case(&tally, *(volatile uint8_t *)(WINDOW & ~0x3fffffu), i + 1, "levels %u", now->levels);
        paging_disable();
        tally_case(&tally, TRY("mov (%0), %%al", : : "r"(0x1000) : "eax"), NO_TRAP, "paging off");
    }
    tally_end(&tally);
}

void kernel_main(void) {
    struct cpuid features = cpuid(7, 0), extended = cpuid(0x80000001, 0);
    has_smep = features.b & BIT(7);
    has_nx = extended.d & BIT(20);
    has_pse36 = cpuid(1, 0).d & BIT(17);
    physical_reserved = BIT(52) - BIT(cpuid(0x80000008, 0).a & 0xff);
    frame = pages_alloc(1024, 0x400000);
    for (unsigned i = 0; i < 1024; i++)
        *(volatile uint8_t *)(frame + 0x1000 * i) = 0xc3;

    space = address_space_create(2);
    paging_enable(&space);
    check_level(1, "32-bit paging, 4 KiB pages");
    check_level(2, "32-bit paging, 4 MiB pages");
    paging_disable();
    pae = true;
    /* Bits 52..62 are reserved in every PAE entry (SDM 3, 4.4.2). */
    physical_reserved |= BIT(63) - BIT(52);
    space = address_space_create(3);
    paging_enable(&space);
    check_level(1, "PAE paging, 4 KiB pages");
    check_level(2, "PAE paging, 2 MiB pages");
    check_pdptes();
    paging_disable();
    check_modes();
    checks_finish("paging32");
}
