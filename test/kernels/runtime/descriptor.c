/*
 * One GDT and IDT for all CPUs, one TSS each. The TSS is laid out with a full I/O map behind it, whose offset
 * stays beyond the limit until a test moves it.
 */
#include "descriptor.h"

#include "layout.h"
#include "trap.h"

#define STUB_BYTES 16
#define SMALL_STACK 4096

#ifdef __x86_64__
#define GATE_WORDS 2
#define CPU_TSS_SELECTOR(cpu) (TSS_SELECTOR + 16 * (cpu))
struct tss_area {
    struct tss64 tss;
    uint8_t io_map[IO_MAP_BYTES];
};
#else
#define GATE_WORDS 1
#define CPU_TSS_SELECTOR(cpu) (TSS32_SELECTOR + 0 * (cpu))
struct tss_area {
    struct tss32 tss;
    uint8_t io_map[IO_MAP_BYTES];
};
struct tss32 tss_fault, tss_other;
#endif
_Static_assert(offsetof(struct tss_area, io_map) == IO_MAP_OFFSET, "descriptor.h");

extern const uint8_t trap_stubs[];

uint64_t gdt[GDT_BYTES / 8] __attribute__((aligned(16)));
uint64_t idt[256 * GATE_WORDS] __attribute__((aligned(16)));
static struct tss_area tss_areas[MAX_CPUS] __attribute__((aligned(16)));
static uint8_t small_stacks[MAX_CPUS][4][SMALL_STACK] __attribute__((aligned(16)));

uint64_t segment_descriptor(uint32_t base, uint32_t limit, unsigned type, unsigned flags) {
    return (uint64_t)(base >> 24) << 56 | (uint64_t)(flags & 15) << 52 | (uint64_t)(limit >> 16 & 15) << 48 |
           (uint64_t)(type & 0xff) << 40 | (uint64_t)(base & 0xffffff) << 16 | (limit & 0xffff);
}

uint16_t gdt_set(unsigned slot, uint64_t descriptor) {
    uint16_t selector = (uint16_t)(SCRATCH_SELECTOR + 8 * slot);
    *(volatile uint64_t *)&gdt[selector / 8] = descriptor;
    asm volatile("" : : : "memory");
    return selector;
}

uint16_t gdt_set_system(unsigned slot, uint64_t base, uint32_t limit, unsigned type) {
    gdt_set(slot + 1, base >> 32);
    return gdt_set(slot, segment_descriptor((uint32_t)base, limit, type, 0));
}

unsigned long cpu_stack_top(unsigned cpu, unsigned ist) {
    return (unsigned long)small_stacks[cpu][ist] + SMALL_STACK;
}

void gate_set(unsigned vector, const void *handler, uint16_t selector, unsigned type, unsigned ist) {
    unsigned long address = (unsigned long)handler;
    volatile uint64_t *gate = &idt[vector * GATE_WORDS];
#ifdef __x86_64__
    gate[1] = address >> 32;
#endif
    gate[0] = (uint64_t)(address >> 16 & 0xffff) << 48 | (uint64_t)(type & 0xff) << 40 | (uint64_t)ist << 32 |
              (uint64_t)selector << 16 | (address & 0xffff);
    asm volatile("" : : : "memory");
}

void gate_retype(unsigned vector, unsigned type, unsigned ist) {
    gate_set(vector, trap_stubs + vector * STUB_BYTES, KERNEL_CS, type, ist);
}

void gate_reset(unsigned vector) {
    unsigned type = GATE_INTERRUPT | DESCRIPTOR_PRESENT;
    if (vector == VECTOR_BP || vector == VECTOR_OF || vector == VECTOR_DONE)
        type |= DESCRIPTOR_DPL(3);
#ifdef __x86_64__
    gate_retype(vector, type, vector == VECTOR_DF);
#else
    if (vector == VECTOR_DF)
        gate_set(vector, 0, TSS32_FAULT_SELECTOR, GATE_TASK | DESCRIPTOR_PRESENT, 0);
    else
        gate_retype(vector, type, 0);
#endif
}

uint8_t *cpu_io_map(unsigned cpu) {
    return tss_areas[cpu].io_map;
}

#ifdef __x86_64__
struct tss64 *cpu_tss(unsigned cpu) {
    return &tss_areas[cpu].tss;
}
#else
struct tss32 *cpu_tss(unsigned cpu) {
    return &tss_areas[cpu].tss;
}
#endif

static void gdt_fill(void) {
    const unsigned code = SEGMENT_CODE | SEGMENT_ACCESSED | DESCRIPTOR_PRESENT;
    const unsigned data = SEGMENT_DATA | SEGMENT_ACCESSED | DESCRIPTOR_PRESENT;
    const unsigned big = SEGMENT_BIG | SEGMENT_PAGES;
#ifdef __x86_64__
    gdt[KERNEL_CS / 8] = segment_descriptor(0, 0xfffff, code, SEGMENT_LONG | SEGMENT_PAGES);
    gdt[KERNEL_DS / 8] = segment_descriptor(0, 0xfffff, data, big);
    gdt[KERNEL_CS32 / 8] = segment_descriptor(0, 0xfffff, code, big);
    gdt[USER_CS32 / 8] = segment_descriptor(0, 0xfffff, code | DESCRIPTOR_DPL(3), big);
    gdt[USER_DS / 8] = segment_descriptor(0, 0xfffff, data | DESCRIPTOR_DPL(3), big);
    gdt[USER_CS / 8] = segment_descriptor(0, 0xfffff, code | DESCRIPTOR_DPL(3), SEGMENT_LONG | SEGMENT_PAGES);
#else
    gdt[KERNEL_CS / 8] = segment_descriptor(0, 0xfffff, code, big);
    gdt[KERNEL_DS / 8] = segment_descriptor(0, 0xfffff, data, big);
    gdt[USER32_CS / 8] = segment_descriptor(0, 0xfffff, code | DESCRIPTOR_DPL(3), big);
    gdt[USER32_DS / 8] = segment_descriptor(0, 0xfffff, data | DESCRIPTOR_DPL(3), big);
    gdt[CODE16_SELECTOR / 8] = segment_descriptor(0, 0xffff, code, 0);
    gdt[DATA16_SELECTOR / 8] = segment_descriptor(0, 0xffff, data, 0);
    gdt[TSS32_FAULT_SELECTOR / 8] =
        segment_descriptor((uint32_t)&tss_fault, sizeof(tss_fault) - 1, SYSTEM_TSS | DESCRIPTOR_PRESENT, 0);
    gdt[TSS32_OTHER_SELECTOR / 8] =
        segment_descriptor((uint32_t)&tss_other, sizeof(tss_other) - 1, SYSTEM_TSS | DESCRIPTOR_PRESENT, 0);
#endif
    for (unsigned vector = 0; vector < 256; vector++)
        gate_reset(vector);
}

void descriptors_load(unsigned cpu) {
    unsigned selector = CPU_TSS_SELECTOR(cpu);
    struct tss_area *area = &tss_areas[cpu];
    unsigned long base = (unsigned long)area;
    struct table_register gdtr = {GDT_BYTES - 1, (unsigned long)gdt};
    struct table_register idtr = {sizeof(idt) - 1, (unsigned long)idt};

    if (cpu == 0)
        gdt_fill();
    for (unsigned i = 0; i < IO_MAP_BYTES; i += IO_MAP_BYTES - 1)
        area->io_map[i] = 0xff;
    area->tss.io_map = sizeof(*area);
#ifdef __x86_64__
    area->tss.rsp[0] = cpu_stack_top(cpu, 0);
    for (unsigned ist = 1; ist < 4; ist++)
        area->tss.ist[ist - 1] = cpu_stack_top(cpu, ist);
    gdt[selector / 8 + 1] = base >> 32;
#else
    area->tss.ring[0].sp = cpu_stack_top(cpu, 0);
    area->tss.ring[0].ss = KERNEL_DS;
#endif
    gdt[selector / 8] =
        segment_descriptor((uint32_t)base, sizeof(*area) - 1, SYSTEM_TSS | DESCRIPTOR_PRESENT, 0);
    asm volatile("lgdt %0\n\tlidt %1\n\tltr %w2\n\tlldt %w3"
                 :
                 : "m"(gdtr), "m"(idtr), "r"(selector), "r"(0)
                 : "memory");
}
