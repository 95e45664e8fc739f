/* The guest's page tables (SDM vol. 3, chapter 4): none, 32-bit, PAE, 4-level. */
#ifndef NESTOR_CPU_PAGING_H
#define NESTOR_CPU_PAGING_H

#include "cpu/vmem.h"

struct translation {
    uint64_t gpa;  /* of the byte asked for */
    uint64_t size; /* of the page: 4K, 2M, 4M, 1G */
    bool writable; /* a store by this accessor is permitted and D is set: no further walk is needed for one */
    bool executable; /* a fetch by this accessor is permitted */
    bool global;
    bool user;     /* open to CPL 3 */
    bool accessed; /* A is set all the way */
    /* A 4K page's entry of 8 bytes, for who wants to look at those beside it; NULL: none. */
    const uint64_t *entry;
    uint64_t entry_value;
};

/* Walk for one access; user: CPL 3 rules, ac: supervisor accesses may touch user pages though SMAP is on.
 * Sets A, and D for a write. CPU_FAULT: vcpu->exception holds the #PF (error code, cr2). */
MUST_CHECK int paging_walk(struct vcpu *vcpu, uint64_t linear, enum vmem_access access, bool user, bool ac,
                           struct translation *translation);
/* Walk for a look, as the supervisor: nothing is refused, and A and D stay. False when not mapped. */
bool paging_peek(struct vcpu *vcpu, uint64_t linear, struct translation *translation);
/* PAE: load the four PDPTEs for a new CR3 (SDM vol. 3, 4.4.1); CPU_FAULT (#GP(0)) when a reserved bit is set.
 */
MUST_CHECK int paging_load_pdptes(struct vcpu *vcpu, uint64_t cr3);
/* Bits of a physical address the guest may use: MAXPHYADDR. */
#define GUEST_PHYSICAL_BITS 40
/* What of an entry of 8 bytes is the address of a 4K page; all else are rights and remarks. */
#define PAGING_ADDRESS_MASK (((1ull << GUEST_PHYSICAL_BITS) - 1) & PAGE_MASK)

#endif
