/*
 * 4-level paging: every permission combination against a model of SDM volume 3, 4.5 to 4.8. One window of
 * linear addresses has its own tables at every level; a case writes the entries, makes one access and
 * compares vector, error code, CR2 and the accessed and dirty bits with what the model says.
 */
#include "runtime.h"

#include "paging.h"

#define WINDOW 0x0000123441a01000ull /* 26 MiB + 4 KiB into its gigabyte: RAM lies there */
#define FRAME_BYTE 0xc3              /* RET: the window can be read, written with it and executed */

enum access { READ, WRITE, FETCH, USER_READ, USER_WRITE, USER_FETCH, ACCESSES };
static const char *const access_names[] = {"read", "write", "fetch", "user read", "user write", "user fetch"};

struct walk_case {
    uint64_t entries[5]; /* by level; from the top to `leaf` */
    unsigned leaf;
    enum access access;
    bool wp, smep, smap, ac, nxe;
};

struct walk_result {
    unsigned vector;
    unsigned long error;
};

static const struct address_space *const space = &boot_space;
static uint64_t physical_reserved; /* address bits from MAXPHYADDR up */
static bool has_smep, has_smap, has_gigabyte;

static struct walk_result walk_model(const struct walk_case *c) {
    bool user = c->access >= USER_READ;
    bool write = c->access == WRITE || c->access == USER_WRITE;
    bool fetch = c->access == FETCH || c->access == USER_FETCH;
    bool all_w = true, all_u = true, any_nx = false;
    unsigned long error = (write ? PF_W : 0) | (user ? PF_U : 0) | (fetch && (c->smep || c->nxe) ? PF_I : 0);
    for (unsigned level = 4; level >= c->leaf; level--) {
        uint64_t entry = c->entries[level];
        if (!(entry & PTE_P))
            return (struct walk_result){VECTOR_PF, error};
        bool reserved = (entry & PTE_NX) && !c->nxe;
        reserved |= level == 4 && (entry & PTE_PS);
        reserved |= level == 3 && (entry & PTE_PS) && (!has_gigabyte || (entry & 0x3fffe000));
        reserved |= level == 2 && (entry & PTE_PS) && (entry & 0x1fe000);
        reserved |= (entry & physical_reserved) != 0;
        if (reserved)
            return (struct walk_result){VECTOR_PF, error | PF_P | PF_RSVD};
        all_w &= (entry & PTE_W) != 0;
        all_u &= (entry & PTE_U) != 0;
        any_nx |= (entry & PTE_NX) != 0;
    }
    bool bad = fetch && any_nx;
    if (user)
        bad |= !all_u || (write && !all_w);
    else
        bad |= (write && !all_w && c->wp) || (fetch && all_u && c->smep) ||
               (!fetch && all_u && c->smap && !c->ac);
    return bad ? (struct walk_result){VECTOR_PF, error | PF_P} : (struct walk_result){NO_TRAP, 0};
}

SNIPPET(user_read, "mov (%rdi), %al");
SNIPPET(user_write, "movb $0xc3, (%rdi)");
SNIPPET(user_fetch, "call *%rdi");

static unsigned access_make(enum access access, unsigned long address) {
    struct context c;
    switch (access) {
    case READ:
        return TRY("mov (%0), %%al", : : "r"(address) : "rax", "memory");
    case WRITE:
        return TRY("movb $0xc3, (%0)", : : "r"(address) : "memory");
    case FETCH:
        /* The fault comes at the target, with the return address pushed: put the stack right afterwards. */
        return TRY("mov %%rsp, %%rbx\n\tlea 771f(%%rip), %%rax\n\tpush %%rax\n\tjmp *%0\n"
                   "771:\tmov %%rbx, %%rsp",
                   :
                   : "r"(address)
                   : "rax", "rbx", "memory");
    default:
        c = context_user(access == USER_READ ? user_read : access == USER_WRITE ? user_write : user_fetch);
        c.di = address;
        context_run(&c);
        if (c.vector == VECTOR_DONE)
            return NO_TRAP;
        probe.error = c.error;
        probe.cr2 = c.cr2;
        probe.ip = c.ip;
        return (unsigned)c.vector;
    }
}

static void walk_mode(const struct walk_case *c) {
    static unsigned long cr0, cr4;
    static uint64_t efer;
    unsigned long new_cr0 = (read_cr0() & ~CR0_WP) | (c->wp ? CR0_WP : 0);
    unsigned long new_cr4 =
        (read_cr4() & ~(CR4_SMEP | CR4_SMAP)) | (c->smep ? CR4_SMEP : 0) | (c->smap ? CR4_SMAP : 0);
    uint64_t new_efer = EFER_SCE | EFER_LME | EFER_LMA | (c->nxe ? EFER_NXE : 0);
    if (new_cr0 != cr0)
        write_cr0(cr0 = new_cr0);
    if (new_cr4 != cr4)
        write_cr4(cr4 = new_cr4);
    if (new_efer != efer)
        write_msr(MSR_EFER, efer = new_efer);
}

static volatile uint64_t *window_entries[5];

static void walk_run(struct tally *tally, const struct walk_case *c) {
    for (unsigned level = c->leaf; level <= 4; level++)
        *window_entries[level] = c->entries[level];
    invlpg((void *)WINDOW);
    if (c->ac)
        write_flags(read_flags() | FLAG_AC);
    unsigned vector = access_make(c->access, WINDOW);
    if (c->ac)
        write_flags(read_flags() & ~FLAG_AC);
    struct walk_result want = walk_model(c);
    unsigned long error = vector == NO_TRAP ? 0 : probe.error;
    uint64_t got = (uint64_t)vector << 32 | error, wanted = (uint64_t)want.vector << 32 | want.error;
    if (got == wanted && vector == VECTOR_PF && probe.cr2 != WINDOW) {
        got = probe.cr2;
        wanted = WINDOW;
    }
    bool write = c->access == WRITE || c->access == USER_WRITE;
    for (unsigned level = c->leaf; level <= 4 && got == wanted; level++) {
        uint64_t after = *window_entries[level], before = c->entries[level];
        if (vector == NO_TRAP) {
            uint64_t set = PTE_A | (write && level == c->leaf ? PTE_D : 0);
            got = after;
            wanted = before | set;
        } else {
            /* A may be set above the entry that faults; nothing else may change, nor an entry that is not
             * present. */
            got = after & ~(before & PTE_P ? PTE_A : 0);
            wanted = before & ~(before & PTE_P ? PTE_A : 0);
        }
    }
    tally_case(tally, got, wanted,
               "%s pml4e %llx pdpte %llx pde %llx pte %llx wp %d smep %d smap %d ac %d nxe %d",
               access_names[c->access], (unsigned long long)c->entries[4], (unsigned long long)c->entries[3],
               (unsigned long long)c->entries[2], (unsigned long long)c->entries[1], c->wp, c->smep, c->smap,
               c->ac, c->nxe);
}

static uint64_t spread(unsigned bits) {
    return (bits & 1 ? 0 : PTE_W) | (bits & 2 ? 0 : PTE_U) | (bits & 4 ? PTE_NX : 0) | (bits & 8 ? 0 : PTE_P);
}

/* All modes that CR0.WP, SMEP, SMAP and AC make, or the one numbered. */
static void mode_set(struct walk_case *c, unsigned mode) {
    c->wp = mode & 1;
    c->smep = (mode & 2) && has_smep;
    c->smap = (mode & 4) && has_smap;
    c->ac = (mode & 8) && has_smap;
}

static void check_level(struct walk_case base, const char *name) {
    struct tally tally;
    unsigned leaf = base.leaf;
    uint64_t frame = base.entries[leaf] & ~(PTE_P | PTE_W | PTE_U | PTE_NX | PTE_A | PTE_D);
    tally_begin(&tally, name);
    /* Every leaf by every mode and access. */
    for (unsigned mode = 0; mode < 16; mode++) {
        struct walk_case c = base;
        mode_set(&c, mode);
        walk_mode(&c);
        for (unsigned bits = 0; bits < 16; bits++)
            for (unsigned ad = 0; ad < 4; ad++)
                for (c.access = 0; c.access < ACCESSES; c.access++) {
                    c.entries[leaf] = frame | spread(bits) | (ad & 1 ? PTE_A : 0) | (ad & 2 ? PTE_D : 0);
                    walk_run(&tally, &c);
                }
    }
    /* Every entry above with every leaf permission, in the strict and in the lax mode. */
    for (unsigned level = leaf + 1; level <= 4; level++)
        for (unsigned mode = 0; mode < 8; mode += 7)
            for (unsigned bits = 0; bits < 16; bits++)
                for (unsigned leaf_bits = 0; leaf_bits < 8; leaf_bits++)
                    for (unsigned access = 0; access < ACCESSES; access++) {
                        struct walk_case c = base;
                        mode_set(&c, mode);
                        walk_mode(&c);
                        c.access = access;
                        c.entries[leaf] = frame | spread(leaf_bits);
                        c.entries[level] =
                            (c.entries[level] & PTE_ADDRESS) | spread(bits) | (bits & 1 ? PTE_A : 0);
                        walk_run(&tally, &c);
                    }
    /* NX is a reserved bit while EFER.NXE is clear. */
    for (unsigned level = leaf; level <= 4; level++)
        for (unsigned bits = 0; bits < 16; bits++)
            for (unsigned access = 0; access < ACCESSES; access++) {
                struct walk_case c = base;
                mode_set(&c, bits & 1 ? 7 : 1);
                c.nxe = false;
                walk_mode(&c);
                c.access = access;
                c.entries[level] = (c.entries[level] & (PTE_ADDRESS | PTE_PS)) | spread(bits);
                walk_run(&tally, &c);
            }
    /* Reserved bits, alone and with P clear. */
    static const uint64_t reserved[] = {BIT(51), BIT(48), BIT(20), BIT(13)};
    for (unsigned level = leaf; level <= 4; level++)
        for (unsigned i = 0; i < ARRAY_SIZE(reserved); i++)
            for (unsigned access = 0; access < ACCESSES; access++)
                for (unsigned present = 0; present < 2; present++) {
                    if (i >= 2 && !(level == leaf && leaf > 1))
                        continue;
                    if ((i == 2 && leaf == 2) || (i < 2 && !(reserved[i] & physical_reserved)))
                        continue;
                    struct walk_case c = base;
                    mode_set(&c, 1);
                    walk_mode(&c);
                    c.access = access;
                    c.entries[level] = (c.entries[level] & ~(present ? 0 : PTE_P)) | reserved[i];
                    if (i == 2)
                        c.entries[level] |= BIT(29);
                    walk_run(&tally, &c);
                }
    tally_end(&tally);
}

void paging_special_check(void);

void kernel_main(void) {
    struct cpuid features = cpuid(7, 0);
    has_smep = features.b & BIT(7);
    has_smap = features.b & BIT(20);
    has_gigabyte = cpuid(0x80000001, 0).d & BIT(26);

    physical_reserved = BIT(52) - BIT(cpuid(0x80000008, 0).a & 0xff);

    for (unsigned level = 4; level >= 1; level--)
        window_entries[level] = page_entry(space, WINDOW, level);
    uint8_t *large = pages_alloc(1024, 0x200000);
    uint64_t frame = (unsigned long)large;
    for (unsigned i = 0; i < 4; i++)
        ((volatile uint8_t *)large)[0x1000 * i] = FRAME_BYTE;

    const uint64_t open = PTE_P | PTE_W | PTE_U;
    struct walk_case base = {.leaf = 1, .nxe = true};
    for (unsigned level = 4; level >= 2; level--)
        base.entries[level] = *window_entries[level] | open | PTE_A;
    base.entries[1] = frame | open;
    check_level(base, "4 KiB pages");

    struct walk_case restored = base;
    base.leaf = 2;
    base.entries[2] = frame | open | PTE_PS;
    base.entries[1] = 0;
    check_level(base, "2 MiB pages");

    if (has_gigabyte) {
        /* The window's place in its gigabyte is beyond the RAM of a small machine, so put RET where it lies.
         */
        base = restored;
        base.leaf = 3;
        base.entries[3] = open | PTE_PS;
        base.entries[2] = base.entries[1] = 0;
        if ((WINDOW & 0x3fffffff) < 0x4000000) {
            *(volatile uint8_t *)(WINDOW & 0x3fffffff) = FRAME_BYTE;
            check_level(base, "1 GiB pages");
        }
    } else {
        check_skip("1 GiB pages", "no feature");
    }
    walk_mode(&(struct walk_case){.wp = true, .nxe = true});
    for (unsigned level = 4; level >= 1; level--)
        *window_entries[level] = restored.entries[level];
    flush_tlb();
    paging_special_check();
    checks_finish("paging64");
}
