/* The guest that engines run a case in: a vCPU at CPL 3 of a flat address space with layout.c's pages, the
 * descriptor tables that Linux has, and a kernel that is nothing but an IDT full of HLT. */
#ifndef NESTOR_TEST_DIFF_GUEST_H
#define NESTOR_TEST_DIFF_GUEST_H

#include "case.h"
#include "cpu/model.h"
#include "mem/guest_mem.h"

/* Physical and (kernel-half) virtual places. */
#define GUEST_RAM_SIZE (8 * MIB)
#define GUEST_KERNEL_BASE 0xffffffff80000000ull

struct guest {
    struct guest_mem mem;
    struct cpu_model model;
    struct vcpu_env env;
    uint64_t cr3;
};

/* Make RAM, page tables, GDT, IDT and TSS. 0 or -errno. */
MUST_CHECK int guest_create(struct guest *guest);
void guest_destroy(struct guest *guest);
/* Give a zeroed vCPU everything but its engine: surroundings, memory for TLB and extended state, reset. */
MUST_CHECK int guest_add_vcpu(struct guest *guest, struct vcpu *vcpu);
void guest_remove_vcpu(struct vcpu *vcpu);
/* Put a case into memory and vCPU. */
void guest_load(struct guest *guest, struct vcpu *vcpu, const struct diff_case *test);
/* Is the vCPU in the guest's kernel, that is, is the case over? */
bool guest_is_over(const struct vcpu *vcpu);
/* Read the end state back: the kernel stack's frame says what ended it. timeout: it did not end. */
void guest_store(struct guest *guest, struct vcpu *vcpu, const struct diff_case *test, bool timeout,
                 struct diff_state *state);

#endif
