#include "direct/tables.h"
#include "cpu/paging.h"
#include "mem/guest_mem.h"

#define PHYSICAL_MASK ((1ull << GUEST_PHYSICAL_BITS) - 1)
#define ADDRESS_MASK (PHYSICAL_MASK & PAGE_MASK)
#define RESERVED_HIGH (0x000fffffffffffffull & ~PHYSICAL_MASK)
#define RESERVED_2M 0x1fe000ull
#define RESERVED_1G 0x3fffe000ull

static const uint64_t *table_at(const struct vcpu *vcpu, uint64_t physical) {
    uint64_t offset = guest_mem_offset(vcpu->mem, physical & ADDRESS_MASK);
    return offset == GUEST_NO_RAM ? NULL : (const uint64_t *)(vcpu->mem->base + offset);
}

static uint64_t reserved_bits(const struct vcpu *vcpu) {
    return RESERVED_HIGH | (vcpu->efer & EFER_NXE ? 0 : PTE_NX);
}

/* What an entry that has been used (A is set) leaves of the rights. */
static uint64_t narrow(uint64_t rights, uint64_t entry) {
    if ((entry & (PTE_P | PTE_U | PTE_A)) != (PTE_P | PTE_U | PTE_A))
        return 0;
    if (!(entry & PTE_W))
        rights &= ~MAP_WRITE;
    if (entry & PTE_NX)
        rights &= ~MAP_EXECUTE;
    return rights;
}

void tables_walk(const struct vcpu *vcpu, uint64_t linear, struct tables_path *path) {
    *path = (struct tables_path){.rights = MAP_READ | MAP_WRITE | MAP_EXECUTE};
    uint64_t physical = vcpu->cr3;
    for (unsigned level = 0; level < 3; level++) {
        unsigned shift = 39 - 9 * level;
        const uint64_t *table = table_at(vcpu, physical);
        uint64_t entry = table ? __atomic_load_n(&table[linear >> shift & 511], __ATOMIC_RELAXED) : 0;
        path->entry[level] = entry;
        path->rights = narrow(path->rights, entry);
        if (!path->rights)
            return;
        bool large = level && entry & PTE_PS;
        uint64_t reserved = reserved_bits(vcpu);
        if (large)
            reserved |= level == 1 ? RESERVED_1G : RESERVED_2M;
        else if (!level)
            reserved |= PTE_PS;
        if (entry & reserved || (large && level == 1 && !vcpu->model_1g_pages)) {
            path->rights = 0;
            return;
        }
        if (large) {
            uint64_t size = 1ull << shift;
            path->large = (entry & ADDRESS_MASK & ~(size - 1)) | (linear & (size - 1) & ~(REGION_SIZE - 1));
            if (!(entry & PTE_D))
                path->rights &= ~MAP_WRITE;
            return;
        }
        physical = entry;
    }
    path->table = table_at(vcpu, physical);
    if (!path->table)
        path->rights = 0;
}

uint64_t tables_rights(const struct vcpu *vcpu, const struct tables_path *path, unsigned index,
                       uint64_t entry) {
    uint64_t rights = path->rights, physical;
    if (!rights)
        return 0;
    if (path->table) {
        rights = narrow(rights, entry);
        if (!rights || entry & reserved_bits(vcpu))
            return 0;
        if (!(entry & PTE_D))
            rights &= ~MAP_WRITE;
        physical = entry & ADDRESS_MASK;
    } else {
        physical = path->large + index * PAGE_SIZE;
    }
    uint64_t offset = guest_mem_offset(vcpu->mem, physical);
    return offset == GUEST_NO_RAM ? 0 : offset | rights;
}
