/* The engines' guest. See guest.h.
 *
 * A case ends with the first exception or SYSCALL, whose handler is one HLT at CPL 0. Physical memory:
 * page tables from 4 KiB, the kernel's pages (GDT and TSS, IDT, handlers, stack) from 1 MiB, the pages of
 * layout.c from 2 MiB. They are set up once; per case only the contents of the latter change.
 */
#include "guest.h"

#include "base/diag.h"
#include "cpu/fpu.h"
#include "cpu/mode.h"
#include "cpu/system.h"
#include "layout.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#define TABLES_GPA 0x1000ull
#define TABLES_END 0x80000ull
#define KERNEL_GPA 0x100000ull
#define PAGES_GPA 0x200000ull

/* Pages at GUEST_KERNEL_BASE. */
#define KERNEL_GDT 0x0000u
#define KERNEL_TSS 0x0800u
#define KERNEL_IDT 0x1000u
#define KERNEL_HANDLERS 0x2000u /* 16 bytes a vector */
#define KERNEL_SYSCALL 0x3000u
#define KERNEL_STACK_TOP 0x6000u
#define KERNEL_PAGES 6u

#define GDT_ENTRIES 16u /* as Linux has */
#define TSS_SELECTOR 0x40u
#define TSS_SIZE 104u

static uint64_t table_alloc(uint64_t *next) {
    uint64_t gpa = *next;
    *next += PAGE_SIZE;
    return gpa;
}

static int map_page(struct guest *guest, uint64_t *next, uint64_t virtual, uint64_t gpa, uint64_t bits) {
    uint64_t table = guest->cr3;
    for (unsigned shift = 39;; shift -= 9) {
        uint64_t *entry = guest_mem_ptr(&guest->mem, table + (virtual >> shift & 511) * 8, 8);
        if (!entry)
            return -ENOMEM;
        if (shift == 12) {
            *entry = gpa | bits | PTE_P;
            return 0;
        }
        if (!(*entry & PTE_P)) {
            if (*next >= TABLES_END)
                return -ENOMEM;
            *entry = table_alloc(next) | PTE_P | PTE_W | PTE_U;
        }
        table = *entry & PAGE_MASK & ~PTE_NX;
    }
}

static int map_all(struct guest *guest) {
    uint64_t next = TABLES_GPA, gpa = PAGES_GPA;
    int error = 0;
    guest->cr3 = table_alloc(&next);
    for (unsigned i = 0; i < KERNEL_PAGES && !error; i++)
        error = map_page(guest, &next, GUEST_KERNEL_BASE + i * PAGE_SIZE, KERNEL_GPA + i * PAGE_SIZE, PTE_W);
    for (unsigned i = 0; i < layout_region_count; i++) {
        const struct layout_region *region = &layout_regions[i];
        uint64_t bits = PTE_U | (region->writable ? PTE_W : 0) | (region->executable ? 0 : PTE_NX);
        for (unsigned j = 0; j < region->pages && !error; j++, gpa += PAGE_SIZE)
            error = map_page(guest, &next, region->base + j * PAGE_SIZE, gpa, bits);
    }
    return error;
}

static uint64_t segment_descriptor(uint64_t attributes) {
    return 0xffff | (attributes & 0xff) << 40 | (attributes & 0xf000) << 40 | 0xfull << 48;
}

static int build_kernel(struct guest *guest) {
    uint8_t *kernel = guest_mem_ptr(&guest->mem, KERNEL_GPA, KERNEL_PAGES * PAGE_SIZE);
    if (!kernel)
        return -ENOMEM;
    uint64_t *gdt = (uint64_t *)(void *)(kernel + KERNEL_GDT);
    gdt[1] = segment_descriptor(0xc09b);
    gdt[2] = segment_descriptor(0xa09b);
    gdt[3] = segment_descriptor(0xc093);
    gdt[5] = segment_descriptor(0xc0f3);
    gdt[6] = segment_descriptor(0xa0fb);
    uint64_t tss = GUEST_KERNEL_BASE + KERNEL_TSS, stack = GUEST_KERNEL_BASE + KERNEL_STACK_TOP;
    gdt[8] = (TSS_SIZE - 1) | (tss & 0xffffff) << 16 | 0x8bull << 40 | (tss >> 24 & 0xff) << 56;
    gdt[9] = tss >> 32;
    memcpy(kernel + KERNEL_TSS + 4, &stack, 8);
    kernel[KERNEL_TSS + 102] = TSS_SIZE; /* I/O map base beyond the limit */
    for (unsigned vector = 0; vector < 256; vector++) {
        uint64_t handler = GUEST_KERNEL_BASE + KERNEL_HANDLERS + 16 * vector;
        /* Linux opens INT3, INTO and INT 0x80 to user code. */
        uint64_t dpl = vector == VECTOR_BP || vector == VECTOR_OF || vector == 0x80 ? 3 : 0;
        uint64_t gate[2] = {(handler & 0xffff) | 0x10ull << 16 | (0x8eull | dpl << 5) << 40 |
                                (handler >> 16 & 0xffff) << 48,
                            handler >> 32};
        memcpy(kernel + KERNEL_IDT + 16 * vector, gate, sizeof gate);
    }
    memset(kernel + KERNEL_HANDLERS, 0xf4, 2 * PAGE_SIZE);
    return 0;
}

static uint64_t env_mmio_read(void *context, uint64_t gpa, unsigned size) {
    (void)context;
    (void)gpa;
    (void)size;
    return UINT64_MAX;
}

static void env_mmio_write(void *context, uint64_t gpa, unsigned size, uint64_t value) {
    (void)context;
    (void)gpa;
    (void)size;
    (void)value;
}

static uint32_t env_pio_read(void *context, uint16_t port, unsigned size) {
    (void)context;
    (void)port;
    (void)size;
    return UINT32_MAX;
}

static void env_pio_write(void *context, uint16_t port, unsigned size, uint32_t value) {
    (void)context;
    (void)port;
    (void)size;
    (void)value;
}

static int env_no_irq(void *context) {
    (void)context;
    return -1;
}

static uint64_t env_tpr_read(void *context) {
    (void)context;
    return 0;
}

static void env_tpr_write(void *context, uint64_t tpr) {
    (void)context;
    (void)tpr;
}

static bool env_msr_read(void *context, uint32_t msr, uint64_t *value) {
    (void)context;
    (void)msr;
    (void)value;
    return false;
}

static bool env_msr_write(void *context, uint32_t msr, uint64_t value) {
    (void)context;
    (void)msr;
    (void)value;
    return false;
}

int guest_create(struct guest *guest) {
    char message[160];
    memset(guest, 0, sizeof *guest);
    int error = guest_mem_create(&guest->mem, GUEST_RAM_SIZE, GUEST_MEM_PREALLOC);
    if (error) {
        diag_error("nestor-diff: no memory for the guest: %s", strerror(-error));
        return error;
    }
    error = cpu_model_create(&guest->model, "host", 1, message, sizeof message);
    if (error)
        diag_error("nestor-diff: %s", message);
    if (!error)
        error = map_all(guest);
    if (!error)
        error = build_kernel(guest);
    guest->env = (struct vcpu_env){.mmio_read = env_mmio_read,
                                   .mmio_write = env_mmio_write,
                                   .pio_read = env_pio_read,
                                   .pio_write = env_pio_write,
                                   .irq_pending = env_no_irq,
                                   .irq_ack = env_no_irq,
                                   .tpr_read = env_tpr_read,
                                   .tpr_write = env_tpr_write,
                                   .apic_msr_read = env_msr_read,
                                   .apic_msr_write = env_msr_write};
    if (error)
        guest_mem_destroy(&guest->mem);
    return error;
}

void guest_destroy(struct guest *guest) {
    guest_mem_destroy(&guest->mem);
}

int guest_add_vcpu(struct guest *guest, struct vcpu *vcpu) {
    vcpu->self = vcpu;
    vcpu->mem = &guest->mem;
    vcpu->model = &guest->model;
    vcpu->model_1g_pages = guest->model.has_1g_pages;
    vcpu->env = &guest->env;
    vcpu->is_bsp = true;
    vcpu->xsave_size = DIFF_XSAVE_SIZE;
    vcpu->xsave = aligned_alloc(64, DIFF_XSAVE_SIZE);
    vcpu->host_xfeatures = layout_xstate()->mask;
    if (!vcpu->xsave)
        return -ENOMEM;
    memset(vcpu->xsave, 0, DIFF_XSAVE_SIZE);
    int error = vtlb_create(vcpu);
    if (error)
        return error;
    cpu_reset(vcpu, false);
    vcpu->run_state = RUN_ACTIVE;
    vcpu->cr0 = CR0_PE | CR0_MP | CR0_ET | CR0_NE | CR0_WP | CR0_AM | CR0_PG;
    vcpu->cr4 = CR4_PAE | CR4_PGE | CR4_OSFXSR | CR4_OSXMMEXCPT | CR4_OSXSAVE |
                ((CR4_FSGSBASE | CR4_SMEP | CR4_SMAP | CR4_UMIP) & guest->model.cr4_mask);
    vcpu->efer = EFER_SCE | EFER_LME | EFER_LMA | EFER_NXE;
    vcpu->xcr0 = layout_xstate()->mask;
    vcpu->cr3 = guest->cr3;
    vcpu->star = 0x0023001000000000ull;
    vcpu->lstar = GUEST_KERNEL_BASE + KERNEL_SYSCALL;
    vcpu->cstar = GUEST_KERNEL_BASE + KERNEL_SYSCALL + 16;
    vcpu->sfmask = FLAG_TF | FLAG_IF | FLAG_DF | FLAG_AC | FLAG_NT;
    vcpu->gdtr = (struct descriptor_table){GUEST_KERNEL_BASE + KERNEL_GDT, 8 * GDT_ENTRIES - 1};
    vcpu->idtr = (struct descriptor_table){GUEST_KERNEL_BASE + KERNEL_IDT, 4095};
    vcpu->tr = (struct segment){TSS_SELECTOR, 0x8b, TSS_SIZE - 1, GUEST_KERNEL_BASE + KERNEL_TSS};
    vcpu->ldtr = (struct segment){.attributes = SEG_UNUSABLE};
    vtlb_switch_space(vcpu, 0, false);
    return 0;
}

void guest_remove_vcpu(struct vcpu *vcpu) {
    free(vcpu->xsave);
    vtlb_destroy(vcpu);
}

static void load_segment(struct segment *segment, uint16_t selector, uint64_t base) {
    *segment = (struct segment){.selector = selector, .base = base, .limit = UINT32_MAX};
    switch (selector) {
    case DIFF_CS_32:
        segment->attributes = 0xc0fb;
        break;
    case DIFF_DS:
        segment->attributes = 0xc0f3;
        break;
    case DIFF_CS_64:
        segment->attributes = 0xa0fb;
        break;
    default:
        segment->attributes = SEG_UNUSABLE;
        segment->limit = 0;
    }
}

/* A host without 32-bit code may lack Linux's segment for it, and LAR, VERR and loads show that. */
static bool host_has_code_32(void) {
    uint32_t rights = 0;
    __asm__("lar %1, %0" : "+r"(rights) : "r"(DIFF_CS_32) : "cc");
    return rights != 0;
}

static void load_descriptors(struct guest *guest, const struct diff_case *test) {
    uint64_t *gdt = guest_mem_ptr(&guest->mem, KERNEL_GPA + KERNEL_GDT, 8 * GDT_ENTRIES);
    gdt[DIFF_CS_32 >> 3] = test->mode == 32 || host_has_code_32() ? segment_descriptor(0xc0fb) : 0;
    guest_mem_written(&guest->mem, KERNEL_GPA + KERNEL_GDT, 8 * GDT_ENTRIES);
}

static void load_pages(struct guest *guest, const struct diff_case *test) {
    uint64_t gpa = PAGES_GPA;
    for (unsigned i = 0; i < layout_region_count; i++) {
        const struct layout_region *region = &layout_regions[i];
        uint64_t size = region->pages * PAGE_SIZE;
        uint8_t *pages = guest_mem_ptr(&guest->mem, gpa, size);
        if (region->kind == LAYOUT_KIND_DATA)
            memcpy(pages, test->data + region->offset, size);
        else if (region->writable == !!test->writable_code)
            memcpy(pages, test->code, size);
        else
            memset(pages, LAYOUT_FILLER, size);
        guest_mem_written(&guest->mem, gpa, size);
        gpa += size;
    }
}

void guest_load(struct guest *guest, struct vcpu *vcpu, const struct diff_case *test) {
    load_pages(guest, test);
    load_descriptors(guest, test);
    memcpy(vcpu->gpr, test->regs.gpr, sizeof vcpu->gpr);
    vcpu->rip = test->regs.rip;
    vcpu->rflags = test->regs.rflags;
    for (unsigned i = 0; i < 6; i++)
        load_segment(&vcpu->segment[i], test->regs.selector[i],
                     i == SEG_FS   ? test->regs.fs_base
                     : i == SEG_GS ? test->regs.gs_base
                                   : 0);
    vcpu->cpl = 3;
    vcpu->cr2 = 0;
    vcpu->dr[6] = 0xffff0ff0;
    vcpu->dr[7] = 0x400;
    vcpu->irq_shadow = 0;
    vcpu->event_in_delivery = false;
    vcpu->run_state = RUN_ACTIVE;
    vcpu->requests = 0;
    vcpu->fpu_live = 0;
    memcpy(vcpu->xsave, test->xsave, layout_xstate()->size);
    cpu_mode_changed(vcpu);
    vtlb_select_view(vcpu);
}

bool guest_is_over(const struct vcpu *vcpu) {
    return vcpu->cpl == 0;
}

static bool pushes_error(uint32_t vector) {
    return vector == VECTOR_DF || (vector >= VECTOR_TS && vector <= VECTOR_PF) || vector == VECTOR_AC ||
           vector == 21;
}

/* Undo the delivery: the frame on the kernel's stack holds the interrupted context. */
static void store_end(struct guest *guest, struct vcpu *vcpu, struct diff_state *state) {
    uint64_t place = vcpu->rip - GUEST_KERNEL_BASE;
    state->regs.rip = vcpu->rip;
    state->regs.rflags = vcpu->rflags;
    state->regs.selector[1] = vcpu->segment[SEG_CS].selector;
    state->regs.selector[2] = vcpu->segment[SEG_SS].selector;
    if (place - KERNEL_SYSCALL < PAGE_SIZE) {
        state->end = DIFF_END_SYSCALL;
        state->regs.rip = vcpu->gpr[GPR_RCX];
        state->regs.rflags = vcpu->gpr[GPR_R11];
        state->regs.selector[1] = DIFF_CS_64;
        state->regs.selector[2] = DIFF_DS;
        return;
    }
    uint64_t stack = vcpu->gpr[GPR_RSP] - GUEST_KERNEL_BASE;
    uint64_t frame[6];
    if (place - KERNEL_HANDLERS >= PAGE_SIZE || stack > KERNEL_STACK_TOP - 40 ||
        guest_mem_read(&guest->mem, KERNEL_GPA + stack, frame, stack > KERNEL_STACK_TOP - 48 ? 40 : 48)) {
        state->end = DIFF_END_LOST;
        return;
    }
    state->end = DIFF_END_EXCEPTION;
    state->vector = (uint32_t)((place - KERNEL_HANDLERS) / 16);
    unsigned i = 0;
    if (pushes_error(state->vector))
        state->error = (uint32_t)frame[i++];
    state->regs.rip = frame[i];
    state->regs.selector[1] = (uint16_t)frame[i + 1];
    state->regs.rflags = frame[i + 2];
    state->regs.gpr[GPR_RSP] = frame[i + 3];
    state->regs.selector[2] = (uint16_t)frame[i + 4];
    if (state->vector == VECTOR_PF)
        state->cr2 = vcpu->cr2;
}

void guest_store(struct guest *guest, struct vcpu *vcpu, const struct diff_case *test, bool timeout,
                 struct diff_state *state) {
    vcpu_fpu_park(vcpu);
    state->end = DIFF_END_TIMEOUT;
    state->vector = state->error = 0;
    state->cr2 = 0;
    memset(&state->regs, 0, sizeof state->regs);
    memcpy(state->regs.gpr, vcpu->gpr, sizeof state->regs.gpr);
    for (unsigned i = 0; i < 6; i++)
        state->regs.selector[i] = vcpu->segment[i].selector;
    state->regs.rip = vcpu->rip;
    state->regs.rflags = vcpu->rflags;
    state->regs.fs_base = vcpu->segment[SEG_FS].base;
    state->regs.gs_base = vcpu->segment[SEG_GS].base;
    if (!timeout)
        store_end(guest, vcpu, state);
    memcpy(state->xsave, vcpu->xsave, layout_xstate()->size);
    uint64_t gpa = PAGES_GPA;
    for (unsigned i = 0; i < layout_region_count; i++) {
        const struct layout_region *region = &layout_regions[i];
        uint64_t size = region->pages * PAGE_SIZE;
        const uint8_t *pages = guest_mem_ptr(&guest->mem, gpa, size);
        if (region->kind == LAYOUT_KIND_DATA)
            memcpy(state->data + region->offset, pages, size);
        else if (region->writable == !!test->writable_code)
            memcpy(state->code, pages, size);
        gpa += size;
    }
}
