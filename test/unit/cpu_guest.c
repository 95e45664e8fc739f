#define _GNU_SOURCE
#include "cpu_guest.h"

#include <stdlib.h>
#include <string.h>

#define XSAVE_SIZE 16384u

static uint64_t mmio_read(void *context, uint64_t gpa, unsigned size) {
    (void)context, (void)gpa, (void)size;
    return ~0ull;
}

static void mmio_write(void *context, uint64_t gpa, unsigned size, uint64_t value) {
    (void)context, (void)gpa, (void)size, (void)value;
}

static uint64_t tpr_read(void *context) {
    return ((struct guest *)context)->tpr;
}

static void tpr_write(void *context, uint64_t tpr) {
    ((struct guest *)context)->tpr = tpr;
}

static const struct vcpu_env environment = {
    .mmio_read = mmio_read, .mmio_write = mmio_write, .tpr_read = tpr_read, .tpr_write = tpr_write};

uint64_t guest_u64(struct guest *guest, uint64_t at) {
    uint64_t value;
    memcpy(&value, guest->mem.base + at, sizeof value);
    return value;
}

uint32_t guest_u32(struct guest *guest, uint64_t at) {
    return (uint32_t)guest_u64(guest, at);
}

void guest_set_u64(struct guest *guest, uint64_t at, uint64_t value) {
    memcpy(guest->mem.base + at, &value, sizeof value);
}

void guest_set_u32(struct guest *guest, uint64_t at, uint32_t value) {
    memcpy(guest->mem.base + at, &value, sizeof value);
}

uint64_t *guest_leaf(struct guest *guest, uint64_t linear) {
    return (uint64_t *)(guest->mem.base + GUEST_TABLES + 2 * PAGE_SIZE) + (linear >> 21);
}

void guest_gate(struct guest *guest, uint8_t vector, unsigned type, unsigned dpl, unsigned ist) {
    uint64_t target = GUEST_HANDLER + vector * 16u;
    uint64_t low = (target & 0xffff) | (uint64_t)SEL_CODE0 << 16 | (uint64_t)ist << 32 |
                   (uint64_t)(0x80u | dpl << 5 | type) << 40 | (target & 0xffff0000u) << 32;
    bool is_long = guest->vcpu.efer & EFER_LMA;
    guest_set_u64(guest, GUEST_IDT + vector * (is_long ? 16u : 8u), low);
    if (is_long)
        guest_set_u64(guest, GUEST_IDT + vector * 16u + 8, target >> 32);
}

static void build_tables(struct guest *guest, bool long_mode) {
    uint64_t code0 = long_mode ? 0x00af9b000000ffff : 0x00cf9b000000ffff;
    uint64_t code3 = long_mode ? 0x00affb000000ffff : 0x00cffb000000ffff;
    guest_set_u64(guest, GUEST_GDT + SEL_CODE0, code0);
    guest_set_u64(guest, GUEST_GDT + SEL_DATA0, 0x00cf93000000ffff);
    guest_set_u64(guest, GUEST_GDT + (SEL_CODE3_32 & ~7u), 0x00cffb000000ffff);
    guest_set_u64(guest, GUEST_GDT + (SEL_DATA3 & ~7u), 0x00cff3000000ffff);
    guest_set_u64(guest, GUEST_GDT + (SEL_CODE3 & ~7u), code3);
    guest_set_u64(guest, GUEST_GDT + SEL_TSS, 0x0000890000000067 | GUEST_TSS << 16);
    guest_set_u64(guest, GUEST_GDT + SEL_TSS2, 0x0000890000000067 | GUEST_TSS2 << 16);
    if (long_mode) {
        guest_set_u64(guest, GUEST_TSS + 4, GUEST_STACK0);
        guest_set_u64(guest, GUEST_TSS + 0x24, GUEST_STACK0 - 0x4000); /* IST1 */
    } else {
        guest_set_u32(guest, GUEST_TSS + 4, GUEST_STACK0);
        guest_set_u32(guest, GUEST_TSS + 8, SEL_DATA0);
    }
    uint64_t *pml4 = (uint64_t *)(guest->mem.base + GUEST_TABLES);
    uint64_t *pdpt = (uint64_t *)(guest->mem.base + GUEST_TABLES + PAGE_SIZE);
    pml4[0] = (GUEST_TABLES + PAGE_SIZE) | PTE_P | PTE_W | PTE_U;
    pdpt[0] = (GUEST_TABLES + 2 * PAGE_SIZE) | PTE_P | PTE_W | PTE_U;
    for (uint64_t at = 0; at < GUEST_RAM; at += 2 * MIB)
        *guest_leaf(guest, at) = at | PTE_P | PTE_W | PTE_U | PTE_PS;
}

static struct segment flat(uint16_t selector, uint32_t attributes) {
    return (struct segment){
        .selector = selector, .attributes = attributes | SEG_S | SEG_P | SEG_G, .limit = 0xffffffff};
}

void guest_create(struct guest *guest, bool long_mode) {
    char error[128];
    struct vcpu *vcpu = &guest->vcpu;
    memset(guest, 0, sizeof *guest);
    vcpu->mem = &guest->mem;
    if (guest_mem_create(&guest->mem, GUEST_RAM, 0) ||
        cpu_model_create(&guest->model, "host", 2, error, sizeof error) || vtlb_create(vcpu)) {
        perror("cpu test: cannot make a guest");
        exit(1);
    }
    vcpu->self = vcpu;
    vcpu->model = &guest->model;
    vcpu->model_1g_pages = guest->model.has_1g_pages;
    static _Thread_local struct vcpu_env env;
    env = environment;
    env.context = guest;
    vcpu->env = &env;
    vcpu->is_bsp = true;
    vcpu->xsave_size = XSAVE_SIZE;
    vcpu->xsave = aligned_alloc(64, XSAVE_SIZE);
    vcpu->host_xfeatures = 7;
    cpu_reset(vcpu, false);
    build_tables(guest, long_mode);

    vcpu->gdtr = (struct descriptor_table){.base = GUEST_GDT, .limit = 0xfff};
    vcpu->idtr = (struct descriptor_table){.base = GUEST_IDT, .limit = 0xfff};
    vcpu->cr0 = CR0_PE | CR0_MP | CR0_ET | CR0_NE | CR0_WP;
    if (long_mode) {
        vcpu->cr0 |= CR0_PG;
        vcpu->cr3 = GUEST_TABLES;
        vcpu->cr4 = CR4_PAE | CR4_PGE | CR4_OSFXSR | CR4_OSXSAVE;
        vcpu->efer = EFER_SCE | EFER_LME | EFER_LMA | EFER_NXE;
    }
    for (unsigned s = 0; s < SEG_COUNT; s++)
        vcpu->segment[s] = flat(SEL_DATA0, 0x3 | SEG_DB);
    vcpu->segment[SEG_CS] = flat(SEL_CODE0, 0xb | (long_mode ? SEG_L : SEG_DB));
    vcpu->gpr[GPR_RSP] = GUEST_STACK0 - 0x100;
    vcpu->rip = 0x5000;
    cpu_mode_changed(vcpu);
    CHECK(cpu_ltr(vcpu, SEL_TSS) == CPU_OK);
}

void guest_destroy(struct guest *guest) {
    vtlb_destroy(&guest->vcpu);
    free(guest->vcpu.xsave);
    guest_mem_destroy(&guest->mem);
}

void guest_to_user(struct guest *guest, uint64_t rip) {
    struct vcpu *vcpu = &guest->vcpu;
    bool is_long = vcpu->efer & EFER_LMA;
    for (unsigned s = 0; s < SEG_COUNT; s++)
        vcpu->segment[s] = flat(SEL_DATA3, 0x3 | SEG_DB | SEG_DPL);
    vcpu->segment[SEG_CS] =
        flat(is_long ? SEL_CODE3 : SEL_CODE3_32, 0xb | SEG_DPL | (is_long ? SEG_L : SEG_DB));
    vcpu->cpl = 3;
    vcpu->gpr[GPR_RSP] = GUEST_STACK3;
    vcpu->rip = rip;
    cpu_mode_changed(vcpu);
}
