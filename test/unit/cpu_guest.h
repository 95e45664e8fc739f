/* A vCPU with RAM and descriptor tables but no instructions: the tests call the system functions themselves.
 */
#ifndef NESTOR_TEST_CPU_GUEST_H
#define NESTOR_TEST_CPU_GUEST_H

#include "devices_check.h"

#include "cpu/model.h"
#include "cpu/system.h"
#include "mem/guest_mem.h"

#define GUEST_RAM (16 * MIB)
#define GUEST_GDT 0x1000ull
#define GUEST_IDT 0x2000ull
#define GUEST_TSS 0x3000ull
#define GUEST_TSS2 0x3800ull
#define GUEST_TABLES 0x10000ull
#define GUEST_STACK0 0x80000ull /* top of the ring-0 stack of the TSS */
#define GUEST_STACK3 0x90000ull
#define GUEST_HANDLER 0x40000ull

/* Selectors of the GDT that guest_create() builds. */
#define SEL_CODE0 0x08u
#define SEL_DATA0 0x10u
#define SEL_CODE3_32 0x1bu
#define SEL_DATA3 0x23u
#define SEL_CODE3 0x2bu /* 64-bit; in legacy mode a 32-bit alias of SEL_CODE3_32 */
#define SEL_TSS 0x30u   /* 16 bytes */
#define SEL_TSS2 0x40u
#define SEL_GATE 0x50u /* free for tests: 16 bytes */

struct guest {
    struct vcpu vcpu;
    struct guest_mem mem;
    struct cpu_model model;
    uint64_t tpr;
};

/* At CPL 0 in 64-bit mode with 4-level paging (RAM mapped to itself, user-accessible), or in flat 32-bit
 * protected mode without paging. */
void guest_create(struct guest *guest, bool long_mode);
void guest_destroy(struct guest *guest);
/* A gate of the IDT to GUEST_HANDLER + vector * 16. */
void guest_gate(struct guest *guest, uint8_t vector, unsigned type, unsigned dpl, unsigned ist);
/* Move to CPL 3 with the stack at GUEST_STACK3 and rip. */
void guest_to_user(struct guest *guest, uint64_t rip);
uint64_t guest_u64(struct guest *guest, uint64_t at);
uint32_t guest_u32(struct guest *guest, uint64_t at);
void guest_set_u64(struct guest *guest, uint64_t at, uint64_t value);
void guest_set_u32(struct guest *guest, uint64_t at, uint32_t value);
/* The PTE-like leaf (2 MiB) that maps an address in long mode. */
uint64_t *guest_leaf(struct guest *guest, uint64_t linear);

#endif
