/* The page walker. Every level is one `struct level` step: fetch the entry, check present and reserved bits,
 * gather rights; at the leaf judge the access, then set A (all levels) and D (leaf) with locked updates, as
 * the processor does. */
#include "cpu/paging.h"
#include "cpu/mode.h"
#include "cpu/system.h"
#include "mem/guest_mem.h"

#define PHYSICAL_MASK ((1ull << GUEST_PHYSICAL_BITS) - 1)
#define ADDRESS_MASK PAGING_ADDRESS_MASK
#define RESERVED_HIGH (0x000fffffffffffffull & ~PHYSICAL_MASK)

#define MAX_LEVELS 4

/* One paging mode's shape. */
struct walk {
    unsigned levels;
    unsigned bits_per_level;
    unsigned entry_size;
    bool nx; /* bit 63 is NX rather than reserved */
};

struct path {
    void *entry[MAX_LEVELS]; /* host pointers, root first; NULL for a PDPTE held in the processor */
    uint64_t value[MAX_LEVELS];
    unsigned depth;      /* entries read */
    unsigned leaf_shift; /* log2 of the page size */
    bool user, writable, nx;
};

static uint64_t masked_a20(const struct vcpu *vcpu, uint64_t physical) {
    return vcpu->a20_masked ? physical & ~(1ull << 20) : physical;
}

static void *table_entry(struct vcpu *vcpu, uint64_t physical) {
    uint64_t offset = guest_mem_offset(vcpu->mem, masked_a20(vcpu, physical));
    return offset == GUEST_NO_RAM ? NULL : vcpu->mem->base + offset;
}

static uint64_t load_entry(const void *entry, unsigned size) {
    return size == 8 ? __atomic_load_n((const uint64_t *)entry, __ATOMIC_RELAXED)
                     : __atomic_load_n((const uint32_t *)entry, __ATOMIC_RELAXED);
}

/* Set bits in an entry unless it changed since it was read. */
static bool update_entry(struct vcpu *vcpu, void *entry, unsigned size, uint64_t old, uint64_t bits) {
    bool done;
    if (size == 8) {
        uint64_t expected = old;
        done = __atomic_compare_exchange_n((uint64_t *)entry, &expected, old | bits, false, __ATOMIC_SEQ_CST,
                                           __ATOMIC_RELAXED);
    } else {
        uint32_t expected = (uint32_t)old;
        done = __atomic_compare_exchange_n((uint32_t *)entry, &expected, (uint32_t)(old | bits), false,
                                           __ATOMIC_SEQ_CST, __ATOMIC_RELAXED);
    }
    if (done)
        vmem_written(vcpu, entry, size);
    return done;
}

static struct walk walk_shape(const struct vcpu *vcpu) {
    if (vcpu->efer & EFER_LMA)
        return (struct walk){.levels = 4, .bits_per_level = 9, .entry_size = 8, .nx = vcpu->efer & EFER_NXE};
    if (vcpu->cr4 & CR4_PAE)
        return (struct walk){.levels = 3, .bits_per_level = 9, .entry_size = 8, .nx = vcpu->efer & EFER_NXE};
    return (struct walk){.levels = 2, .bits_per_level = 10, .entry_size = 4};
}

/* Bits that must be zero in an entry at a level counted from the leaf (0: PT). */
static uint64_t reserved_bits(const struct vcpu *vcpu, const struct walk *walk, unsigned level, bool large) {
    if (walk->entry_size == 4)
        return large ? 1ull << 21 : 0; /* PSE-36 with MAXPHYADDR 40: bits 13-20 are address */
    uint64_t reserved = RESERVED_HIGH | (walk->nx ? 0 : PTE_NX);
    if (walk->levels == 3)
        reserved |= 0x7ff0000000000000ull; /* PAE: bits 52-62 */
    if (large)
        reserved |= level == 1 ? 0x1fe000ull : 0x3fffe000ull;
    else if (level == 3 || (level == 2 && !vcpu->model_1g_pages))
        reserved |= PTE_PS;
    return reserved;
}

/* Read the tables down to the leaf. 0, or the error code bits (P, RSVD) of the page fault with PF_PRESENT
 * clear meaning not present; *fault tells whether there is one. */
static inline __attribute__((always_inline)) uint32_t
walk_levels(struct vcpu *vcpu, uint64_t linear, const struct walk *walk, struct path *path, bool *fault) {
    uint64_t table = walk->levels == 3 ? 0 : vcpu->cr3 & (walk->levels == 4 ? ADDRESS_MASK : 0xfffff000ull);
    *path = (struct path){.user = true, .writable = true};
    *fault = true;
    for (unsigned level = walk->levels; level-- > 0;) {
        unsigned shift = PAGE_SHIFT + level * walk->bits_per_level;
        unsigned index = (unsigned)(linear >> shift) & ((1u << walk->bits_per_level) - 1);
        bool is_pdpte = walk->levels == 3 && level == 2;
        void *entry = NULL;
        uint64_t value;
        if (is_pdpte) {
            value = vcpu->pdpte[index & 3];
        } else {
            entry = table_entry(vcpu, table + (uint64_t)index * walk->entry_size);
            value = entry ? load_entry(entry, walk->entry_size) : 0;
        }
        if (!(value & PTE_P))
            return 0;
        bool large = value & PTE_PS && level > 0 && !is_pdpte &&
                     (walk->entry_size == 4 ? (vcpu->cr4 & CR4_PSE) != 0
                                            : level == 1 || (level == 2 && vcpu->model_1g_pages));
        if (!is_pdpte && value & reserved_bits(vcpu, walk, level, large))
            return PF_PRESENT | PF_RESERVED;
        path->entry[path->depth] = entry;
        path->value[path->depth++] = value;
        if (!is_pdpte) {
            path->user &= (value & PTE_U) != 0;
            path->writable &= (value & PTE_W) != 0;
            path->nx |= walk->nx && value & PTE_NX;
        }
        if (large || level == 0) {
            path->leaf_shift = shift;
            *fault = false;
            return 0;
        }
        table = value & (walk->entry_size == 4 ? 0xfffff000ull : ADDRESS_MASK);
    }
    return 0;
}

/* The same, by code of its own for long mode. */
static uint32_t walk_tables(struct vcpu *vcpu, uint64_t linear, const struct walk *walk, struct path *path,
                            bool *fault) {
    const struct walk four = {.levels = 4, .bits_per_level = 9, .entry_size = 8, .nx = walk->nx};
    if (LIKELY(walk->levels == 4))
        return walk_levels(vcpu, linear, &four, path, fault);
    return walk_levels(vcpu, linear, walk, path, fault);
}

static uint64_t leaf_address(const struct walk *walk, const struct path *path, uint64_t linear) {
    uint64_t value = path->value[path->depth - 1], offset_mask = (1ull << path->leaf_shift) - 1;
    if (walk->entry_size == 4) {
        if (path->leaf_shift == PAGE_SHIFT)
            return (value & 0xfffff000ull) | (linear & offset_mask);
        return (value & 0xffc00000ull) | (value >> 13 & 0xff) << 32 | (linear & offset_mask);
    }
    return (value & ADDRESS_MASK & ~offset_mask) | (linear & offset_mask);
}

static int page_fault(struct vcpu *vcpu, uint64_t linear, uint32_t error, enum vmem_access access,
                      bool user) {
    if (access == VMEM_WRITE)
        error |= PF_WRITE;
    if (user)
        error |= PF_USER;
    if (access == VMEM_FETCH &&
        (vcpu->cr4 & CR4_SMEP || (vcpu->efer & EFER_NXE && (vcpu->cr4 & CR4_PAE || vcpu->efer & EFER_LMA))))
        error |= PF_FETCH;
    vcpu->exception =
        (struct exception){.vector = VECTOR_PF, .has_error = true, .error = error, .cr2 = linear};
    return CPU_FAULT;
}

/* SDM vol. 3, 4.6: may this accessor do that with a page of these rights? */
static bool permitted(const struct vcpu *vcpu, const struct path *path, enum vmem_access access, bool user,
                      bool ac) {
    if (user && !path->user)
        return false;
    bool wp = vcpu->cr0 & CR0_WP;
    switch (access) {
    case VMEM_FETCH:
        return !path->nx && (user || !path->user || !(vcpu->cr4 & CR4_SMEP));
    case VMEM_WRITE:
        if (!path->writable && (user || wp))
            return false;
        break;
    case VMEM_READ:
        break;
    }
    return user || !path->user || ac || !(vcpu->cr4 & CR4_SMAP);
}

static int walk_unpaged(struct vcpu *vcpu, uint64_t linear, struct translation *translation) {
    *translation = (struct translation){
        .gpa = masked_a20(vcpu, (uint32_t)linear),
        .size = PAGE_SIZE,
        .writable = true,
        .executable = true,
        .accessed = true,
    };
    return CPU_OK;
}

int paging_walk(struct vcpu *vcpu, uint64_t linear, enum vmem_access access, bool user, bool ac,
                struct translation *translation) {
    if (!(vcpu->cr0 & CR0_PG))
        return walk_unpaged(vcpu, linear, translation);
    const struct walk walk = walk_shape(vcpu);
    for (;;) {
        struct path path;
        bool fault;
        uint32_t error = walk_tables(vcpu, linear, &walk, &path, &fault);
        if (fault)
            return page_fault(vcpu, linear, error, access, user);
        if (!permitted(vcpu, &path, access, user, ac))
            return page_fault(vcpu, linear, PF_PRESENT, access, user);
        unsigned leaf = path.depth - 1;
        bool changed = false;
        for (unsigned i = 0; i < path.depth && !changed; i++) {
            uint64_t bits = PTE_A | (i == leaf && access == VMEM_WRITE ? PTE_D : 0);
            if (path.entry[i] && (path.value[i] & bits) != bits) {
                changed = !update_entry(vcpu, path.entry[i], walk.entry_size, path.value[i], bits);
                path.value[i] |= bits;
            }
        }
        if (changed)
            continue; /* another processor changed the entry meanwhile: walk again */
        *translation = (struct translation){
            .gpa = masked_a20(vcpu, leaf_address(&walk, &path, linear)),
            .size = 1ull << path.leaf_shift,
            .writable = path.value[leaf] & PTE_D && permitted(vcpu, &path, VMEM_WRITE, user, ac),
            .executable = permitted(vcpu, &path, VMEM_FETCH, user, ac),
            .global = vcpu->cr4 & CR4_PGE && path.value[leaf] & PTE_G,
            .user = path.user,
            .accessed = true,
        };
        if (walk.entry_size == 8 && path.leaf_shift == PAGE_SHIFT) {
            translation->entry = path.entry[leaf];
            translation->entry_value = path.value[leaf];
        }
        return CPU_OK;
    }
}

bool paging_peek(struct vcpu *vcpu, uint64_t linear, struct translation *translation) {
    if (!(vcpu->cr0 & CR0_PG))
        return walk_unpaged(vcpu, linear, translation) == CPU_OK;
    const struct walk walk = walk_shape(vcpu);
    struct path path;
    bool fault;
    walk_tables(vcpu, linear, &walk, &path, &fault);
    if (fault)
        return false;
    bool accessed = true;
    for (unsigned i = 0; i < path.depth; i++)
        accessed &= !path.entry[i] || path.value[i] & PTE_A;
    *translation = (struct translation){.gpa = masked_a20(vcpu, leaf_address(&walk, &path, linear)),
                                        .size = 1ull << path.leaf_shift,
                                        .writable = path.writable,
                                        .executable = permitted(vcpu, &path, VMEM_FETCH, false, false),
                                        .accessed = accessed,
                                        .global = vcpu->cr4 & CR4_PGE && path.value[path.depth - 1] & PTE_G};
    return true;
}

int paging_load_pdptes(struct vcpu *vcpu, uint64_t cr3) {
    uint64_t loaded[4];
    for (unsigned i = 0; i < 4; i++) {
        const void *entry = table_entry(vcpu, (cr3 & 0xffffffe0ull) + i * 8);
        loaded[i] = entry ? load_entry(entry, 8) : 0;
        if (loaded[i] & PTE_P && loaded[i] & (RESERVED_HIGH | 0xfff00000000001e6ull))
            return cpu_fault(vcpu, VECTOR_GP, 0);
    }
    for (unsigned i = 0; i < 4; i++)
        vcpu->pdpte[i] = loaded[i];
    return CPU_OK;
}
