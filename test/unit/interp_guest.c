#define _GNU_SOURCE
#include "interp_guest.h"

#include "cpu/model.h"
#include "cpu/vtlb.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#define PAGE_TABLES 0x100000ull
#define CODE_REAL 0x1000u

uint64_t test_host_xcr0(void) {
    uint32_t low, high;
    __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
    (void)high;
    return low & 0xe7;
}

static uint64_t no_mmio_read(void *context, uint64_t gpa, unsigned size) {
    (void)context, (void)gpa, (void)size;
    return ~0ull;
}
static void no_mmio_write(void *context, uint64_t gpa, unsigned size, uint64_t value) {
    (void)context, (void)gpa, (void)size, (void)value;
}
static uint32_t no_pio_read(void *context, uint16_t port, unsigned size) {
    (void)context, (void)size;
    return port * 0x01010101u;
}
static void no_pio_write(void *context, uint16_t port, unsigned size, uint32_t value) {
    (void)context, (void)port, (void)size, (void)value;
}

static int no_irq(void *context) {
    (void)context;
    return -1;
}
static uint64_t no_tpr_read(void *context) {
    (void)context;
    return 0;
}
static void no_tpr_write(void *context, uint64_t tpr) {
    (void)context, (void)tpr;
}
static bool no_msr_read(void *context, uint32_t msr, uint64_t *value) {
    (void)context, (void)msr, (void)value;
    return false;
}
static bool no_msr_write(void *context, uint32_t msr, uint64_t value) {
    (void)context, (void)msr, (void)value;
    return false;
}

static const struct vcpu_env env = {.mmio_read = no_mmio_read,
                                    .mmio_write = no_mmio_write,
                                    .pio_read = no_pio_read,
                                    .pio_write = no_pio_write,
                                    .irq_pending = no_irq,
                                    .irq_ack = no_irq,
                                    .tpr_read = no_tpr_read,
                                    .tpr_write = no_tpr_write,
                                    .apic_msr_read = no_msr_read,
                                    .apic_msr_write = no_msr_write};

static struct segment flat(uint16_t selector, uint32_t attributes) {
    return (struct segment){.selector = selector, .attributes = attributes, .limit = 0xffffffff};
}

static void enter_long_mode(struct test_guest *guest) {
    struct vcpu *vcpu = &guest->vcpu;
    uint64_t *pml4 = guest_mem_ptr(&guest->mem, PAGE_TABLES, 4096);
    uint64_t *pdpt = guest_mem_ptr(&guest->mem, PAGE_TABLES + 4096, 4096);
    uint64_t *pd = guest_mem_ptr(&guest->mem, PAGE_TABLES + 8192, 4096);
    pml4[0] = (PAGE_TABLES + 4096) | PTE_P | PTE_W | PTE_U;
    pdpt[0] = (PAGE_TABLES + 8192) | PTE_P | PTE_W | PTE_U;
    for (unsigned i = 0; i < TEST_RAM_SIZE >> 21; i++)
        pd[i] = (uint64_t)i << 21 | PTE_P | PTE_W | PTE_U | PTE_PS;
    /* The data region stands alone: what lies around it is not mapped. */
    uint64_t *pt = guest_mem_ptr(&guest->mem, PAGE_TABLES + 12288, 4096);
    pd[TEST_DATA >> 21] = (PAGE_TABLES + 12288) | PTE_P | PTE_W | PTE_U;
    for (unsigned i = 0; i < TEST_MAPPED_SIZE >> PAGE_SHIFT; i++)
        pt[i] = (TEST_DATA + i * PAGE_SIZE) | PTE_P | PTE_W | PTE_U;
    vcpu->cr0 = CR0_PE | CR0_MP | CR0_ET | CR0_NE | CR0_WP | CR0_PG;
    vcpu->cr3 = PAGE_TABLES;
    vcpu->cr4 = CR4_PAE | CR4_OSFXSR | CR4_OSXMMEXCPT | CR4_OSXSAVE | CR4_FSGSBASE;
    vcpu->efer = EFER_SCE | EFER_LME | EFER_LMA | EFER_NXE;
    vcpu->xcr0 = test_host_xcr0();
    vcpu->cpl = 3;
    for (unsigned s = 0; s < SEG_COUNT; s++)
        vcpu->segment[s] = flat(0x2b, 0x3 | SEG_S | SEG_DPL | SEG_P | SEG_DB | SEG_G);
    vcpu->segment[SEG_CS] = flat(0x33, 0xb | SEG_S | SEG_DPL | SEG_P | SEG_L | SEG_G);
}

static void enter_protected_mode(struct test_guest *guest) {
    struct vcpu *vcpu = &guest->vcpu;
    vcpu->cr0 = CR0_PE | CR0_ET | CR0_NE;
    vcpu->cr4 = CR4_OSFXSR | CR4_OSXMMEXCPT;
    for (unsigned s = 0; s < SEG_COUNT; s++)
        vcpu->segment[s] = flat(0x10, 0x3 | SEG_S | SEG_P | SEG_DB | SEG_G);
    vcpu->segment[SEG_CS] = flat(0x8, 0xb | SEG_S | SEG_P | SEG_DB | SEG_G);
}

static void enter_real_mode(struct test_guest *guest) {
    struct vcpu *vcpu = &guest->vcpu;
    vcpu->cr0 = CR0_ET;
    for (unsigned s = 0; s < SEG_COUNT; s++)
        vcpu->segment[s] = (struct segment){.attributes = 0x3 | SEG_S | SEG_P, .limit = 0xffff};
}

void test_guest_create(struct test_guest *guest, enum test_mode mode) {
    struct vcpu *vcpu = &guest->vcpu;
    memset(guest, 0, sizeof *guest);
    if (guest_mem_create(&guest->mem, TEST_RAM_SIZE, 0)) {
        perror("interp test: no memory");
        exit(1);
    }
    char error[256];
    if (cpu_model_create(&guest->model, "host", 1, error, sizeof error)) {
        fprintf(stderr, "interp test: %s\n", error);
        exit(1);
    }
    vcpu->self = vcpu;
    vcpu->model = &guest->model;
    vcpu->mem = &guest->mem;
    vcpu->env = &env;
    vcpu->rflags = FLAG_FIXED;
    vcpu->xsave_size = 4096;
    vcpu->xsave = aligned_alloc(64, vcpu->xsave_size);
    vcpu->host_xfeatures = test_host_xcr0();
    memset(vcpu->xsave, 0, vcpu->xsave_size);
    *(uint32_t *)(vcpu->xsave + 24) = 0x1f80;
    if (vtlb_create(vcpu) || interp_vcpu_create(vcpu)) {
        perror("interp test: no memory");
        exit(1);
    }
    if (mode == TEST_USER64)
        enter_long_mode(guest);
    else if (mode == TEST_PROTECTED32)
        enter_protected_mode(guest);
    else
        enter_real_mode(guest);
    cpu_mode_changed(vcpu);
    vtlb_select_view(vcpu);
}

void test_guest_destroy(struct test_guest *guest) {
    interp_vcpu_destroy(&guest->vcpu);
    vtlb_destroy(&guest->vcpu);
    free(guest->vcpu.xsave);
    guest_mem_destroy(&guest->mem);
}

void test_guest_code(struct test_guest *guest, const void *code, size_t size) {
    uint64_t at = guest->vcpu.cr0 & CR0_PE ? TEST_CODE : CODE_REAL;
    memcpy(guest->mem.base + at, code, size);
    guest->vcpu.rip = at;
}

static void (*other_handler)(int, siginfo_t *, void *);

static void handle_signal(int sig, siginfo_t *info, void *context) {
    if (interp_handle_signal(sig, info, context))
        return;
    if (other_handler) {
        other_handler(sig, info, context);
        return;
    }
    signal(sig, SIG_DFL);
}

void test_install_signals(void (*other)(int, siginfo_t *, void *)) {
    static const int signals[] = {SIGFPE, SIGSEGV, SIGBUS, SIGILL, SIGTRAP};
    static uint8_t alternate[256 * KIB];
    stack_t stack = {.ss_sp = alternate, .ss_size = sizeof alternate};
    struct sigaction action = {.sa_sigaction = handle_signal, .sa_flags = SA_SIGINFO | SA_ONSTACK};
    other_handler = other;
    sigaltstack(&stack, NULL);
    for (unsigned i = 0; i < ARRAY_SIZE(signals); i++)
        sigaction(signals[i], &action, NULL);
}
