#ifndef KERNELS_TLB64_H
#define KERNELS_TLB64_H
#include <stdbool.h>
#include <stdint.h>

struct invpcid_descriptor {
    uint64_t pcid, address;
};

static inline void invpcid(unsigned long type, uint64_t pcid, uint64_t address) {
    struct invpcid_descriptor descriptor = {pcid, address};
    asm volatile("invpcid %0, %1" : : "m"(descriptor), "r"(type) : "memory");
}

void conflicts_check(bool has_pge, bool has_pcid, bool has_invpcid); /* tlb_conflicts64.c */

#endif
