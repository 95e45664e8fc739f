#ifndef KERNELS_DESCRIPTOR_H
#define KERNELS_DESCRIPTOR_H
/*
 * The descriptor tables. Source: Intel SDM volume 3, 3.4.5 (segments), 6.11 (gates), 8.2 (TSS).
 */
#include <stdint.h>

#include "x86.h"

/* Bits 40..47 of a descriptor. */
#define SEGMENT_DATA 0x12       /* S, writable */
#define SEGMENT_DATA_RO 0x10    /* S, read-only */
#define SEGMENT_DATA_DOWN 0x16  /* S, writable, expand-down */
#define SEGMENT_CODE 0x1a       /* S, code, readable */
#define SEGMENT_CODE_XO 0x18    /* S, code, execute-only */
#define SEGMENT_CONFORMING 0x1e /* S, code, readable, conforming */
#define SEGMENT_ACCESSED 0x01
#define SYSTEM_LDT 0x02
#define SYSTEM_TSS16 0x01
#define SYSTEM_TSS 0x09
#define SYSTEM_TSS_BUSY 0x0b
#define GATE_CALL16 0x04
#define GATE_TASK 0x05
#define GATE_INTERRUPT16 0x06
#define GATE_TRAP16 0x07
#define GATE_CALL 0x0c
#define GATE_INTERRUPT 0x0e
#define GATE_TRAP 0x0f
#define DESCRIPTOR_DPL(n) ((n) << 5)
#define DESCRIPTOR_PRESENT 0x80
/* Bits 52..55. */
#define SEGMENT_AVL 1
#define SEGMENT_LONG 2
#define SEGMENT_BIG 4
#define SEGMENT_PAGES 8

struct __attribute__((packed)) tss64 {
    uint32_t reserved0;
    uint64_t rsp[3];
    uint64_t reserved1;
    uint64_t ist[7]; /* IST1 is ist[0] */
    uint64_t reserved2;
    uint16_t reserved3;
    uint16_t io_map;
};

struct tss32 {
    uint32_t link;
    struct {
        uint32_t sp, ss;
    } ring[3];
    uint32_t cr3, ip, flags, ax, cx, dx, bx, sp, bp, si, di, es, cs, ss, ds, fs, gs, ldt;
    uint16_t trap, io_map;
};

#define IO_MAP_BYTES 8193 /* 65536 ports and the closing byte of ones */

extern uint64_t gdt[];
extern uint64_t idt[];

void descriptors_load(unsigned cpu);

uint64_t segment_descriptor(uint32_t base, uint32_t limit, unsigned type, unsigned flags);
/* Writes a scratch descriptor: `slot` counts from SCRATCH_SELECTOR; gives its selector with RPL 0. */
uint16_t gdt_set(unsigned slot, uint64_t descriptor);
/* Writes a 16-byte system descriptor in two slots (64-bit mode). */
uint16_t gdt_set_system(unsigned slot, uint64_t base, uint32_t limit, unsigned type);

/* The gate of a vector: type is GATE_... | DESCRIPTOR_DPL() | DESCRIPTOR_PRESENT. */
void gate_set(unsigned vector, const void *handler, uint16_t selector, unsigned type, unsigned ist);
/* The gate as the runtime set it, with another type and IST. */
void gate_retype(unsigned vector, unsigned type, unsigned ist);
void gate_reset(unsigned vector);

#ifdef __x86_64__
struct tss64 *cpu_tss(unsigned cpu);
#else
struct tss32 *cpu_tss(unsigned cpu);
extern struct tss32 tss_fault, tss_other;
#endif
uint8_t *cpu_io_map(unsigned cpu); /* follows the TSS; off (beyond the limit) until io_map is set */
#define IO_MAP_OFFSET 104

/* Top of a stack on which IST 1..3 of a CPU, or ring-0 entry (0), push. */
unsigned long cpu_stack_top(unsigned cpu, unsigned ist);

#endif
