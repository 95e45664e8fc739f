/* Model-specific registers (SDM vol. 4) and the time-stamp counter. What is not here raises #GP, which is
 * what guests probe for. */
#include "cpu/cpu_trace.h"
#include "cpu/fpu.h"
#include "cpu/host_clock.h"
#include "cpu/kvm_pv.h"
#include "cpu/model.h"
#include "cpu/paging.h"
#include "cpu/system.h"

#define MSR_PLATFORM_ID 0x17u
#define MSR_EBL_CR_POWERON 0x2au
#define MSR_SMI_COUNT 0x34u
#define MSR_FEATURE_CONTROL 0x3au
#define MSR_UCODE_WRITE 0x79u
#define MSR_UCODE_REV 0x8bu
#define MSR_PLATFORM_INFO 0xceu
#define MSR_MTRR_CAP 0xfeu
#define MSR_MISC_FEATURES 0x140u
#define MSR_MCG_CAP 0x179u
#define MSR_MCG_STATUS 0x17au
#define MSR_MCG_CTL 0x17bu
#define MSR_DEBUGCTL 0x1d9u
#define MSR_MTRR_VARIABLE 0x200u
#define MSR_MTRR_FIX_64K 0x250u
#define MSR_MTRR_FIX_16K 0x258u
#define MSR_MTRR_FIX_4K 0x268u
#define MSR_MTRR_DEF_TYPE 0x2ffu
#define MSR_AMD_COUNTER_FIRST 0xc0010000u /* PerfEvtSel0 to 3, PerfCtr0 to 3 */
#define MSR_AMD_COUNTER_LAST 0xc0010007u
#define MSR_AMD_SYSCFG 0xc0010010u
#define MSR_AMD_HWCR 0xc0010015u
#define MSR_AMD_MMIO_CONF 0xc0010058u
#define MSR_AMD_NB_CFG 0xc001001fu
#define MSR_AMD_PATCH_LOADER 0xc0010020u
#define MSR_AMD_INT_PENDING 0xc0010055u
#define MSR_AMD_TSEG_ADDR 0xc0010112u
#define MSR_AMD_LS_CFG 0xc0011020u
#define MSR_AMD_DE_CFG 0xc0011029u

#define MTRR_CAP (8ull | 1ull << 8 | 1ull << 10) /* 8 variable ranges, fixed ranges, write-combining */
#define MTRR_DEF_TYPE_DEFINED 0xcffull
#define MTRR_MASK_VALID (1ull << 11)
#define FEATURE_CONTROL_LOCKED 1ull
#define INTEL_UCODE_REVISION (1ull << 32)
#define AMD_UCODE_REVISION 0x1000065ull
#define AMD_DE_CFG_LFENCE_SERIALIZES 2ull
#define AMD_HWCR_TSC_AT_P0 (1ull << 24) /* the TSC counts at one rate; Linux warns of firmware without it */
#define DEBUGCTL_ACCEPTED 3ull          /* LBR and BTF: accepted, without effect */
#define SPEC_CTRL_DEFINED (7ull | 1ull << 10) /* IBRS, STIBP, SSBD; BHI_DIS_S */
#define MISC_ENABLE_FIXED 0x1800ull           /* BTS and PEBS are not there */
#define MISC_ENABLE_WRITABLE 0x400c50009ull

static int general_protection(struct vcpu *vcpu) {
    return cpu_fault(vcpu, VECTOR_GP, 0);
}

static bool is_memory_type(uint64_t type) {
    return type < 8 && (0x73u >> type & 1); /* UC WC WT WP WB */
}

static bool are_memory_types(uint64_t value, uint8_t allowed) {
    for (unsigned i = 0; i < 8; i++, value >>= 8)
        if ((value & 0xff) > 7 || !(allowed >> (value & 7) & 1))
            return false;
    return true;
}

static bool is_x2apic(uint32_t index) {
    return index >= MSR_X2APIC_FIRST && index <= MSR_X2APIC_LAST;
}

static uint64_t *fixed_mtrr(struct vcpu *vcpu, uint32_t index) {
    if (index == MSR_MTRR_FIX_64K)
        return &vcpu->mtrr_fixed[0];
    if (index == MSR_MTRR_FIX_16K || index == MSR_MTRR_FIX_16K + 1)
        return &vcpu->mtrr_fixed[1 + index - MSR_MTRR_FIX_16K];
    if (index >= MSR_MTRR_FIX_4K && index < MSR_MTRR_FIX_4K + 8)
        return &vcpu->mtrr_fixed[3 + index - MSR_MTRR_FIX_4K];
    return NULL;
}

/* Registers that only hold a value: NULL for all others. */
static uint64_t *plain_register(struct vcpu *vcpu, uint32_t index) {
    switch (index) {
    case MSR_TSC_ADJUST:
        return &vcpu->tsc_adjust;
    case MSR_SYSENTER_CS:
        return &vcpu->sysenter_cs;
    case MSR_SYSENTER_ESP:
        return &vcpu->sysenter_esp;
    case MSR_SYSENTER_EIP:
        return &vcpu->sysenter_eip;
    case MSR_MISC_ENABLE:
        return &vcpu->misc_enable;
    case MSR_PAT:
        return &vcpu->pat;
    case MSR_MTRR_DEF_TYPE:
        return &vcpu->mtrr_def_type;
    case MSR_EFER:
        return &vcpu->efer;
    case MSR_STAR:
        return &vcpu->star;
    case MSR_LSTAR:
        return &vcpu->lstar;
    case MSR_CSTAR:
        return &vcpu->cstar;
    case MSR_SFMASK:
        return &vcpu->sfmask;
    case MSR_FS_BASE:
        return &vcpu->segment[SEG_FS].base;
    case MSR_GS_BASE:
        return &vcpu->segment[SEG_GS].base;
    case MSR_KERNEL_GS_BASE:
        return &vcpu->kernel_gs_base;
    case MSR_TSC_AUX:
        return &vcpu->tsc_aux;
    default:
        if (index >= MSR_MTRR_VARIABLE && index < MSR_MTRR_VARIABLE + 16)
            return &vcpu->mtrr_variable[index - MSR_MTRR_VARIABLE];
        return fixed_mtrr(vcpu, index);
    }
}

static int read_intel(struct vcpu *vcpu, uint32_t index, uint64_t *value) {
    switch (index) {
    case MSR_UCODE_REV:
        *value = INTEL_UCODE_REVISION;
        return CPU_OK;
    case MSR_FEATURE_CONTROL:
        *value = FEATURE_CONTROL_LOCKED;
        return CPU_OK;
    case MSR_PLATFORM_ID:
    case MSR_EBL_CR_POWERON:
    case MSR_SMI_COUNT:
    case MSR_PLATFORM_INFO:
    case MSR_MISC_FEATURES:
        *value = 0;
        return CPU_OK;
    default:
        return general_protection(vcpu);
    }
}

static int read_amd(struct vcpu *vcpu, uint32_t index, uint64_t *value) {
    switch (index) {
    case MSR_UCODE_REV:
        *value = AMD_UCODE_REVISION;
        return CPU_OK;
    case MSR_AMD_DE_CFG:
        *value = AMD_DE_CFG_LFENCE_SERIALIZES;
        return CPU_OK;
    case MSR_AMD_HWCR:
        *value = AMD_HWCR_TSC_AT_P0;
        return CPU_OK;
    /* No CPUID bit tells of the first four counters, so whoever resets them does it unasked. These never
     * count. */
    case MSR_AMD_COUNTER_FIRST ... MSR_AMD_COUNTER_LAST:
    case MSR_AMD_SYSCFG:
    case MSR_AMD_NB_CFG:
    case MSR_AMD_MMIO_CONF:
    case MSR_AMD_INT_PENDING:
    case MSR_AMD_TSEG_ADDR:
    case MSR_AMD_LS_CFG:
        *value = 0;
        return CPU_OK;
    default:
        return general_protection(vcpu);
    }
}

static int read_register(struct vcpu *vcpu, uint32_t index, uint64_t *value) {
    if (vcpu->cpl)
        return general_protection(vcpu);
    const uint64_t *plain = plain_register(vcpu, index);
    if (LIKELY(plain != NULL)) {
        *value = *plain;
        return CPU_OK;
    }
    if (is_x2apic(index) || index == MSR_APIC_BASE || index == MSR_TSC_DEADLINE) {
        vcpu_fpu_park(vcpu);
        return vcpu->env->apic_msr_read(vcpu->env->context, index, value) ? CPU_OK : general_protection(vcpu);
    }
    if (is_kvm_pv_msr(index))
        return kvm_pv_read(vcpu, index, value);
    switch (index) {
    case MSR_TSC:
        *value = host_tsc() + vcpu->tsc_offset;
        return CPU_OK;
    case MSR_SPEC_CTRL:
        if (!vcpu->model->arch_capabilities)
            return general_protection(vcpu);
        *value = vcpu->spec_ctrl;
        return CPU_OK;
    case MSR_ARCH_CAPABILITIES:
        if (!vcpu->model->arch_capabilities)
            return general_protection(vcpu);
        *value = vcpu->model->arch_capabilities;
        return CPU_OK;
    case MSR_MTRR_CAP:
        *value = MTRR_CAP;
        return CPU_OK;
    case MSR_MCG_CAP: /* no banks */
    case MSR_MCG_STATUS:
    case MSR_DEBUGCTL:
        *value = 0;
        return CPU_OK;
    default:
        return vcpu->model->is_amd ? read_amd(vcpu, index, value) : read_intel(vcpu, index, value);
    }
}

static int write_efer(struct vcpu *vcpu, uint64_t value) {
    uint64_t defined = EFER_LME | EFER_LMA | (vcpu->model->has_syscall ? EFER_SCE : 0) |
                       (vcpu->model->has_nx ? EFER_NXE : 0);
    uint64_t changed = vcpu->efer ^ value;
    if (value & ~defined || (changed & EFER_LME && vcpu->cr0 & CR0_PG))
        return general_protection(vcpu);
    vcpu->efer = (value & ~EFER_LMA) | (vcpu->efer & EFER_LMA);
    if (changed & EFER_NXE)
        vtlb_flush_all(vcpu);
    cpu_mode_changed(vcpu);
    return CPU_OK;
}

static void set_tsc_offset(struct vcpu *vcpu, uint64_t offset) {
    vcpu->tsc_adjust += offset - vcpu->tsc_offset;
    vcpu->tsc_offset = offset;
    kvm_pv_update_clock(vcpu);
    cpu_mode_changed(vcpu);
}

/* Base and mask of a variable range. */
static bool is_valid_variable_mtrr(uint32_t index, uint64_t value) {
    if (value >> GUEST_PHYSICAL_BITS)
        return false;
    return index & 1 ? !(value & 0xfff & ~MTRR_MASK_VALID) : !(value & 0xf00) && is_memory_type(value & 0xff);
}

/* Is value one that this plain register takes? */
static bool is_valid_plain(uint32_t index, uint64_t value) {
    switch (index) {
    case MSR_SYSENTER_ESP:
    case MSR_SYSENTER_EIP:
    case MSR_LSTAR:
    case MSR_CSTAR:
    case MSR_FS_BASE:
    case MSR_GS_BASE:
    case MSR_KERNEL_GS_BASE:
        return cpu_is_canonical(value);
    case MSR_SFMASK:
    case MSR_TSC_AUX:
        return !(value >> 32);
    case MSR_PAT:
        return are_memory_types(value, 0xf3);
    case MSR_MTRR_DEF_TYPE:
        return !(value & ~MTRR_DEF_TYPE_DEFINED) && is_memory_type(value & 0xff);
    case MSR_SYSENTER_CS:
    case MSR_STAR:
        return true;
    default:
        return index < MSR_MTRR_FIX_64K ? is_valid_variable_mtrr(index, value)
                                        : are_memory_types(value, 0x73);
    }
}

static int write_amd(struct vcpu *vcpu, uint32_t index) {
    switch (index) {
    case MSR_UCODE_REV:
    case MSR_AMD_PATCH_LOADER:
    case MSR_AMD_COUNTER_FIRST ... MSR_AMD_COUNTER_LAST:
    case MSR_AMD_SYSCFG:
    case MSR_AMD_HWCR:
    case MSR_AMD_NB_CFG:
    case MSR_AMD_MMIO_CONF:
    case MSR_AMD_INT_PENDING:
    case MSR_AMD_LS_CFG:
    case MSR_AMD_DE_CFG:
        return CPU_OK; /* nothing of these is modelled, nor does it show */
    default:
        return general_protection(vcpu);
    }
}

static int write_register(struct vcpu *vcpu, uint32_t index, uint64_t value) {
    if (vcpu->cpl)
        return general_protection(vcpu);
    switch (index) {
    case MSR_EFER:
        return write_efer(vcpu, value);
    case MSR_TSC:
        set_tsc_offset(vcpu, value - host_tsc());
        return CPU_OK;
    case MSR_TSC_ADJUST:
        set_tsc_offset(vcpu, vcpu->tsc_offset + value - vcpu->tsc_adjust);
        return CPU_OK;
    case MSR_MISC_ENABLE:
        if (value & ~(MISC_ENABLE_WRITABLE | MISC_ENABLE_FIXED))
            return general_protection(vcpu);
        vcpu->misc_enable = value | MISC_ENABLE_FIXED;
        return CPU_OK;
    case MSR_SPEC_CTRL:
        if (!vcpu->model->arch_capabilities || value & ~SPEC_CTRL_DEFINED)
            return general_protection(vcpu);
        vcpu->spec_ctrl = value;
        return CPU_OK;
    case MSR_MCG_STATUS:
    case MSR_UCODE_REV:
        return value ? general_protection(vcpu) : CPU_OK;
    case MSR_UCODE_WRITE:
        return vcpu->model->is_amd ? general_protection(vcpu) : CPU_OK;
    case MSR_DEBUGCTL:
        return value & ~DEBUGCTL_ACCEPTED ? general_protection(vcpu) : CPU_OK;
    case MSR_MISC_FEATURES:
        return value || vcpu->model->is_amd ? general_protection(vcpu) : CPU_OK;
    default:
        break;
    }
    uint64_t *plain = plain_register(vcpu, index);
    if (plain) {
        if (!is_valid_plain(index, value))
            return general_protection(vcpu);
        *plain = index == MSR_SYSENTER_CS ? (uint32_t)value : value;
        return CPU_OK;
    }
    if (is_x2apic(index) || index == MSR_APIC_BASE || index == MSR_TSC_DEADLINE) {
        vcpu_fpu_park(vcpu);
        vcpu->cpuid_changed |= index == MSR_APIC_BASE;
        return vcpu->env->apic_msr_write(vcpu->env->context, index, value) ? CPU_OK
                                                                           : general_protection(vcpu);
    }
    if (is_kvm_pv_msr(index))
        return kvm_pv_write(vcpu, index, value);
    return vcpu->model->is_amd ? write_amd(vcpu, index) : general_protection(vcpu);
}

int cpu_rdmsr(struct vcpu *vcpu, uint32_t index, uint64_t *value) {
    int result = read_register(vcpu, index, value);
    if (cpu_traces(vcpu, TRACE_MSR))
        cpu_trace(vcpu, TRACE_MSR, CPU_TRACE_MSR_READ, index, result ? 0 : *value, result);
    return result;
}

int cpu_wrmsr(struct vcpu *vcpu, uint32_t index, uint64_t value) {
    int result = write_register(vcpu, index, value);
    vcpu->crossing_changed |= index == MSR_STAR || index == MSR_SFMASK;
    cpu_trace(vcpu, TRACE_MSR, CPU_TRACE_MSR_WRITE, index, value, result);
    return result;
}

int cpu_rdtsc(struct vcpu *vcpu, uint64_t *value) {
    if (vcpu->mode & MODE_TSD)
        return general_protection(vcpu);
    *value = host_tsc() + vcpu->tsc_offset;
    return CPU_OK;
}

/* No performance counters are offered: no counter number is valid. */
int cpu_rdpmc(struct vcpu *vcpu, uint32_t counter, uint64_t *value) {
    (void)counter;
    *value = 0;
    return general_protection(vcpu);
}
