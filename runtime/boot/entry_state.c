/* GDT, identity page tables and register state for the entry points of boot protocols.
 *
 * Linux (boot.rst, "32-bit" and "64-bit boot protocol"): flat segments, __BOOT_CS 0x10 and __BOOT_DS 0x18 in
 * a GDT, interrupts off. PVH (Xen docs/misc/pvh.pandoc): protected mode, CR4 0, flat segments, a 32-bit TSS
 * of base 0 and limit 0x67. Multiboot 3.2: flat segments, paging off, A20 open. One state serves the last
 * three. */
#include "boot/entry_state.h"

#include <errno.h>

#include "base/diag.h"
#include "mem/guest_mem.h"

#define BOOT_CS 0x10
#define BOOT_DS 0x18
#define GDT_ENTRIES 4

#define CODE_SEGMENT (0xb | SEG_S | SEG_P | SEG_G) /* execute, read, accessed */
#define DATA_SEGMENT (0x3 | SEG_S | SEG_P | SEG_G | SEG_DB)
#define BUSY_TSS (0xb | SEG_P) /* type 11: a busy TSS of 32 or 64 bits */
#define LDT_SEGMENT (0x2 | SEG_P)

#define IDENTITY_GIB 4
#define ENTRIES_PER_TABLE 512

/* A descriptor of base 0 and limit 4 GiB (SDM vol. 3, 3.4.5). */
static uint64_t flat_descriptor(uint32_t attributes) {
    return 0xffffull | 0xfull << 48 | (uint64_t)(attributes & 0xf0ff) << 40;
}

static int place_low(struct boot_layout *layout, uint64_t length, uint64_t *address) {
    *address = boot_layout_place_low(layout, length, PAGE_SIZE, PAGE_SIZE, BOOT_LOW_END);
    if (*address)
        return 0;
    diag_error("no room below 640 KiB for %llu bytes of boot data; raise --memory or shorten --append",
               (unsigned long long)length);
    return -ENOMEM;
}

static int set_flat(struct boot_layout *layout, uint64_t rip, uint32_t code_size, struct boot_state *state) {
    const uint32_t code = CODE_SEGMENT | code_size;
    const uint64_t gdt[GDT_ENTRIES] = {0, 0, flat_descriptor(code), flat_descriptor(DATA_SEGMENT)};
    uint64_t base;
    int result = place_low(layout, sizeof gdt, &base);
    if (result)
        return result;
    result = guest_mem_write(layout->mem, base, gdt, sizeof gdt);
    if (result)
        return result;

    state->rip = rip;
    state->rflags = FLAG_FIXED;
    state->cr0 = CR0_PE | CR0_ET;
    state->gdtr = (struct descriptor_table){base, sizeof gdt - 1};
    /* Without an IDT any exception before the kernel loads its own is a triple fault, as it should be. */
    state->idtr = (struct descriptor_table){0, 0};
    for (int i = 0; i < SEG_COUNT; i++)
        state->segment[i] = (struct segment){BOOT_DS, DATA_SEGMENT, 0xffffffff, 0};
    state->segment[SEG_CS] = (struct segment){BOOT_CS, code, 0xffffffff, 0};
    state->tr = (struct segment){0, BUSY_TSS, 0x67, 0};
    state->ldtr = (struct segment){0, LDT_SEGMENT, 0xffff, 0};
    return 0;
}

int entry_state_flat32(struct boot_layout *layout, uint64_t rip, struct boot_state *state) {
    return set_flat(layout, rip, SEG_DB, state);
}

/* PML4, PDPT and one page directory for each GiB, in consecutive pages. */
static int write_identity_tables(struct boot_layout *layout, uint64_t *root) {
    const uint64_t size = (2 + IDENTITY_GIB) * PAGE_SIZE;
    int result = place_low(layout, size, root);
    if (result)
        return result;
    uint64_t *table = guest_mem_ptr(layout->mem, *root, size);
    if (!table)
        return -EFAULT;
    for (uint64_t i = 0; i < size / sizeof *table; i++)
        table[i] = 0;
    table[0] = (*root + PAGE_SIZE) | PTE_P | PTE_W;
    for (uint64_t i = 0; i < IDENTITY_GIB; i++)
        table[ENTRIES_PER_TABLE + i] = (*root + (2 + i) * PAGE_SIZE) | PTE_P | PTE_W;
    for (uint64_t i = 0; i < IDENTITY_GIB * ENTRIES_PER_TABLE; i++)
        table[2 * ENTRIES_PER_TABLE + i] = i * 2 * MIB | PTE_P | PTE_W | PTE_PS;
    guest_mem_written(layout->mem, *root, size);
    return 0;
}

int entry_state_long64(struct boot_layout *layout, uint64_t rip, struct boot_state *state) {
    int result = set_flat(layout, rip, SEG_L, state);
    if (result)
        return result;
    result = write_identity_tables(layout, &state->cr3);
    if (result)
        return result;
    state->cr0 |= CR0_PG;
    state->cr4 = CR4_PAE;
    state->efer = EFER_LME | EFER_LMA;
    state->long_mode = true;
    return 0;
}
