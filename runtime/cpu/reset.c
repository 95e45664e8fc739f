/* Power-on, INIT and SIPI (SDM vol. 3, 9.1, table 9-1; 8.4). */
#include "cpu/descriptor.h"
#include "cpu/fpu.h"

#define CR0_AT_RESET (CR0_CD | CR0_NW | CR0_ET)
#define DR6_AT_RESET 0xffff0ff0ull
#define DR7_AT_RESET 0x400ull
#define PAT_AT_RESET 0x0007040600070406ull
#define MISC_ENABLE_AT_RESET 0x1801ull
#define RESET_RIP 0xfff0ull
#define WAKING_CS 0x10u
#define WAKING_DS 0x18u
#define RESET_CS 0xf000u
#define RESET_CS_BASE 0xffff0000ull
#define MXCSR_AT_RESET 0x1f80u
#define FCW_AT_RESET 0x40u
#define XSAVE_MXCSR 24u
#define XSAVE_XSTATE_BV 512u
#define XSTATE_X87_SSE 3ull

static void reset_segments(struct vcpu *vcpu) {
    const struct segment data = {.attributes = SEG_P | SEG_S | TYPE_WRITABLE | TYPE_ACCESSED,
                                 .limit = 0xffff};
    for (unsigned i = 0; i < SEG_COUNT; i++)
        vcpu->segment[i] = data;
    vcpu->segment[SEG_CS].attributes |= TYPE_CODE;
    vcpu->segment[SEG_CS].selector = RESET_CS;
    vcpu->segment[SEG_CS].base = RESET_CS_BASE;
    vcpu->gdtr = vcpu->idtr = (struct descriptor_table){.limit = 0xffff};
    vcpu->ldtr = (struct segment){.attributes = SEG_P | TYPE_LDT, .limit = 0xffff};
    vcpu->tr = (struct segment){.attributes = SEG_P | TYPE_TSS_BUSY, .limit = 0xffff};
}

/* The x87 and vector state of power-on, in the parked image. */
static void reset_extended_state(struct vcpu *vcpu) {
    vcpu_fpu_park(vcpu);
    if (!vcpu->xsave)
        return;
    for (uint32_t i = 0; i < vcpu->xsave_size; i++)
        ((volatile uint8_t *)vcpu->xsave)[i] = 0;
    *(uint16_t *)vcpu->xsave = FCW_AT_RESET;
    vcpu->xsave[4] = 0xff; /* abridged tag word: FTW 5555H, every register holds +0.0 */
    *(uint32_t *)(vcpu->xsave + XSAVE_MXCSR) = MXCSR_AT_RESET;
    *(uint64_t *)(vcpu->xsave + XSAVE_XSTATE_BV) = XSTATE_X87_SSE;
}

/* What INIT leaves alone and power-on does not. */
static void reset_power_on(struct vcpu *vcpu) {
    vcpu->pat = PAT_AT_RESET;
    vcpu->misc_enable = MISC_ENABLE_AT_RESET;
    vcpu->tsc_offset -= vcpu->tsc_adjust;
    vcpu->tsc_aux = vcpu->tsc_adjust = vcpu->spec_ctrl = vcpu->mtrr_def_type = 0;
    vcpu->star = vcpu->lstar = vcpu->cstar = vcpu->sfmask = 0;
    vcpu->sysenter_cs = vcpu->sysenter_esp = vcpu->sysenter_eip = 0;
    vcpu->kernel_gs_base = 0;
    vcpu->xcr0 = 1;
    for (unsigned i = 0; i < ARRAY_SIZE(vcpu->mtrr_fixed); i++)
        ((volatile uint64_t *)vcpu->mtrr_fixed)[i] = 0;
    for (unsigned i = 0; i < ARRAY_SIZE(vcpu->mtrr_variable); i++)
        ((volatile uint64_t *)vcpu->mtrr_variable)[i] = 0;
    vcpu->kvm_system_time = vcpu->kvm_wall_clock = vcpu->kvm_steal_time = 0;
    vcpu->kvm_async_pf = vcpu->kvm_pv_eoi = 0;
    vcpu->pv_eoi_armed = false;
    vcpu->kvm_poll_control = 1;
    reset_extended_state(vcpu);
}

void cpu_reset(struct vcpu *vcpu, bool is_init) {
    for (unsigned i = 0; i < ARRAY_SIZE(vcpu->gpr); i++)
        ((volatile uint64_t *)vcpu->gpr)[i] = 0;
    if (vcpu->model) { /* family, model, stepping */
        uint32_t out[4];
        cpu_cpuid(vcpu, 1, 0, out);
        vcpu->gpr[GPR_RDX] = out[0];
    }
    vcpu->cpuid_changed = 1;
    vcpu->rip = RESET_RIP;
    vcpu->rflags = FLAG_FIXED;
    vcpu->cr0 = is_init ? (vcpu->cr0 & (CR0_CD | CR0_NW)) | CR0_ET : CR0_AT_RESET;
    vcpu->cr2 = vcpu->cr3 = vcpu->cr4 = 0;
    vcpu->efer = 0;
    vcpu->pdpte[0] = vcpu->pdpte[1] = vcpu->pdpte[2] = vcpu->pdpte[3] = 0;
    vcpu->dr[0] = vcpu->dr[1] = vcpu->dr[2] = vcpu->dr[3] = 0;
    vcpu->dr[6] = DR6_AT_RESET;
    vcpu->dr[7] = DR7_AT_RESET;
    vcpu->cpl = vcpu->irq_shadow = vcpu->nmi_blocked = 0;
    vcpu->event_in_delivery = false;
    __atomic_store_n(&vcpu->nmis, 0, __ATOMIC_SEQ_CST);
    reset_segments(vcpu);
    if (!is_init)
        reset_power_on(vcpu);
    vtlb_flush_all(vcpu);
    vtlb_switch_space(vcpu, 0, false);
    cpu_mode_changed(vcpu);
    __atomic_store_n(&vcpu->run_state, vcpu->is_bsp ? RUN_ACTIVE : RUN_WAIT_FOR_SIPI, __ATOMIC_RELEASE);
}

void cpu_wake(struct vcpu *vcpu, uint32_t address, bool protected_mode) {
    vcpu->cr0 = CR0_ET; /* caches on, as firmware leaves them */
    if (protected_mode) {
        vcpu->cr0 |= CR0_PE;
        const uint32_t common = SEG_P | SEG_S | SEG_G | SEG_DB | TYPE_WRITABLE | TYPE_ACCESSED;
        for (unsigned i = 0; i < SEG_COUNT; i++)
            vcpu->segment[i] =
                (struct segment){.selector = WAKING_DS, .attributes = common, .limit = 0xffffffff, .base = 0};
        vcpu->segment[SEG_CS].selector = WAKING_CS;
        vcpu->segment[SEG_CS].attributes |= TYPE_CODE;
        vcpu->rip = address;
    } else {
        vcpu->segment[SEG_CS].selector = (uint16_t)(address >> 4);
        vcpu->segment[SEG_CS].base = (uint64_t)(uint16_t)(address >> 4) << 4;
        vcpu->rip = address & 15;
    }
    cpu_mode_changed(vcpu);
}

void cpu_sipi(struct vcpu *vcpu, uint8_t vector) {
    if (vcpu->run_state != RUN_WAIT_FOR_SIPI)
        return;
    vcpu->segment[SEG_CS].selector = (uint16_t)(vector << 8);
    vcpu->segment[SEG_CS].base = (uint64_t)vector << 12;
    vcpu->rip = 0;
    cpu_mode_changed(vcpu);
    __atomic_store_n(&vcpu->run_state, RUN_ACTIVE, __ATOMIC_RELEASE);
}
