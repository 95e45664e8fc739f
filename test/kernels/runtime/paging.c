/*
 * The page-table builder. Tables lie in identity-mapped memory, so physical and kernel addresses are the
 * same.
 */
#include "paging.h"

#include "runtime.h"

#ifdef __x86_64__
extern uint64_t boot_pml4[];
const struct address_space boot_space = {boot_pml4, 4, 8};
#endif

unsigned page_shift(const struct address_space *space, unsigned level) {
    return 12 + (level - 1) * (space->width == 8 ? 9 : 10);
}

static uint64_t entry_get(const struct address_space *space, const volatile void *entry) {
    return space->width == 8 ? *(const volatile uint64_t *)entry : *(const volatile uint32_t *)entry;
}

static void entry_set(const struct address_space *space, volatile void *entry, uint64_t value) {
    if (space->width == 8)
        *(volatile uint64_t *)entry = value;
    else
        *(volatile uint32_t *)entry = (uint32_t)value;
}

volatile void *page_entry(const struct address_space *space, uint64_t address, unsigned level) {
    uint8_t *table = space->root;
    unsigned mask = space->width == 8 ? 511 : 1023;
    for (unsigned at = space->levels;; at--) {
        unsigned top_mask = space->levels == 3 && at == 3 ? 3 : mask;
        void *entry = table + ((address >> page_shift(space, at)) & top_mask) * space->width;
        if (at == level)
            return entry;
        uint64_t value = entry_get(space, entry);
        if (!(value & PTE_P)) {
            value = (unsigned long)page_alloc() | PTE_P;
            if (!(space->levels == 3 && at == 3)) /* PAE's PDPTEs have no W, U, A */
                value |= PTE_W | PTE_U | PTE_A;
            entry_set(space, entry, value);
        }
        table = (uint8_t *)(unsigned long)(value & PTE_ADDRESS);
    }
}

uint64_t page_entry_read(const struct address_space *space, uint64_t address, unsigned level) {
    return entry_get(space, page_entry(space, address, level));
}

void page_entry_write(const struct address_space *space, uint64_t address, unsigned level, uint64_t value) {
    entry_set(space, page_entry(space, address, level), value);
}

void page_map(const struct address_space *space, uint64_t address, uint64_t physical, uint64_t flags,
              unsigned level) {
    page_entry_write(space, address, level, physical | flags | (level > 1 ? PTE_PS : 0));
}

#ifndef __x86_64__
struct address_space address_space_create(unsigned levels) {
    struct address_space space = {page_alloc(), levels, levels == 3 ? 8 : 4};
    uint64_t step = 1ull << page_shift(&space, 2);
    for (uint64_t at = 0; at < BIT(30); at += step) {
        page_map(&space, at, at, PTE_P | PTE_W, 2);
        page_map(&space, at + USER_ALIAS, at, PTE_P | PTE_W | PTE_U, 2);
        page_map(&space, at + 0xc0000000, at + 0xc0000000, PTE_P | PTE_W | PTE_PCD, 2);
    }
    return space;
}

void paging_enable(const struct address_space *space) {
    write_cr4((read_cr4() & ~(CR4_PAE | CR4_PSE)) | (space->levels == 3 ? CR4_PAE : CR4_PSE));
    write_cr3((unsigned long)space->root);
    write_cr0(read_cr0() | CR0_PG | CR0_WP);
}

void paging_disable(void) {
    write_cr0(read_cr0() & ~CR0_PG);
    write_cr4(read_cr4() & ~(CR4_PAE | CR4_PSE));
}
#endif
