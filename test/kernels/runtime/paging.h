#ifndef KERNELS_PAGING_H
#define KERNELS_PAGING_H
/*
 * A page-table builder for every paging mode. Levels count from 1 (4 KiB entries) as the SDM's figures do:
 * PTE 1, PDE 2, PDPTE 3, PML4E 4.
 */
#include <stdint.h>

struct address_space {
    void *root;      /* what CR3 points to */
    unsigned levels; /* 2, 3 or 4 */
    unsigned width;  /* bytes of an entry: 4 (32-bit paging) or 8 */
};

unsigned page_shift(const struct address_space *space, unsigned level);
/* The entry of `level` that maps `address`; missing tables above are made with P W U A. */
volatile void *page_entry(const struct address_space *space, uint64_t address, unsigned level);
uint64_t page_entry_read(const struct address_space *space, uint64_t address, unsigned level);
void page_entry_write(const struct address_space *space, uint64_t address, unsigned level, uint64_t value);
/* Maps one page of `level`: PS is added above level 1. */
void page_map(const struct address_space *space, uint64_t address, uint64_t physical, uint64_t flags,
              unsigned level);

#ifdef __x86_64__
extern const struct address_space boot_space;
#else
/* An empty space of `levels` 2 (32-bit paging) or 3 (PAE), with 0..1 GiB, the user alias and the devices
 * mapped as the 64-bit kernels have them. */
struct address_space address_space_create(unsigned levels);
/* Turns paging on (in either mode) with WP, or off again. */
void paging_enable(const struct address_space *space);
void paging_disable(void);
#endif

#endif
