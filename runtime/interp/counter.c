/* MSRs, CPUID, counters, extended control registers and segment bases. */
#include "cpu/model.h"
#include "interp/flags.h"
#include "interp/memory.h"
#include "interp/xstate.h"

static void set_edx_eax(struct vcpu *vcpu, uint64_t value) {
    vcpu->gpr[GPR_RAX] = (uint32_t)value;
    vcpu->gpr[GPR_RDX] = value >> 32;
}

static uint64_t get_edx_eax(const struct vcpu *vcpu) {
    return vcpu->gpr[GPR_RDX] << 32 | (uint32_t)vcpu->gpr[GPR_RAX];
}

int rdmsr_execute(struct vcpu *vcpu, struct decoded *d) {
    uint64_t value;
    (void)d;
    if (vcpu->cpl)
        return fault_gp(vcpu);
    int result = cpu_rdmsr(vcpu, (uint32_t)vcpu->gpr[GPR_RCX], &value);
    if (!result)
        set_edx_eax(vcpu, value);
    return result;
}

int wrmsr_execute(struct vcpu *vcpu, struct decoded *d) {
    (void)d;
    if (vcpu->cpl)
        return fault_gp(vcpu);
    return cpu_wrmsr(vcpu, (uint32_t)vcpu->gpr[GPR_RCX], get_edx_eax(vcpu));
}

int cpuid_execute(struct vcpu *vcpu, struct decoded *d) {
    uint32_t out[4];
    (void)d;
    cpu_cpuid(vcpu, (uint32_t)vcpu->gpr[GPR_RAX], (uint32_t)vcpu->gpr[GPR_RCX], out);
    vcpu->gpr[GPR_RAX] = out[0];
    vcpu->gpr[GPR_RBX] = out[1];
    vcpu->gpr[GPR_RCX] = out[2];
    vcpu->gpr[GPR_RDX] = out[3];
    return CPU_OK;
}

/* RDTSC, RDTSCP. */
int rdtsc_execute(struct vcpu *vcpu, struct decoded *d) {
    uint64_t value;
    int result = cpu_rdtsc(vcpu, &value);
    if (result)
        return result;
    set_edx_eax(vcpu, value);
    if (d->insn.z.mnemonic == ZYDIS_MNEMONIC_RDTSCP)
        vcpu->gpr[GPR_RCX] = (uint32_t)vcpu->tsc_aux;
    return CPU_OK;
}

int rdpmc_execute(struct vcpu *vcpu, struct decoded *d) {
    uint64_t value;
    (void)d;
    int result = cpu_rdpmc(vcpu, (uint32_t)vcpu->gpr[GPR_RCX], &value);
    if (!result)
        set_edx_eax(vcpu, value);
    return result;
}

int rdpid_execute(struct vcpu *vcpu, struct decoded *d) {
    gpr_put(vcpu, d->op[0].gpr, d->code_size == 64 ? 8 : 4, (uint32_t)vcpu->tsc_aux);
    return CPU_OK;
}

int xgetbv_execute(struct vcpu *vcpu, struct decoded *d) {
    (void)d;
    if (!(vcpu->cr4 & CR4_OSXSAVE))
        return fault_ud(vcpu);
    switch ((uint32_t)vcpu->gpr[GPR_RCX]) {
    case 0:
        set_edx_eax(vcpu, vcpu->xcr0);
        return CPU_OK;
    case 1:
        if (!cpu_model_has(vcpu->model, "xgetbv1"))
            return fault_gp(vcpu);
        set_edx_eax(vcpu, xstate_in_use(vcpu) & vcpu->xcr0);
        return CPU_OK;
    default:
        return fault_gp(vcpu);
    }
}

int xsetbv_execute(struct vcpu *vcpu, struct decoded *d) {
    (void)d;
    if (!(vcpu->cr4 & CR4_OSXSAVE))
        return fault_ud(vcpu);
    if (vcpu->cpl)
        return fault_gp(vcpu);
    return cpu_xsetbv(vcpu, (uint32_t)vcpu->gpr[GPR_RCX], get_edx_eax(vcpu));
}

/* RDFSBASE, RDGSBASE, WRFSBASE, WRGSBASE. */
int segment_base_execute(struct vcpu *vcpu, struct decoded *d) {
    if (!cpu_is_code64(vcpu) || !(vcpu->mode & MODE_FSGSBASE))
        return fault_ud(vcpu);
    ZydisMnemonic mnemonic = d->insn.z.mnemonic;
    bool is_fs = mnemonic == ZYDIS_MNEMONIC_RDFSBASE || mnemonic == ZYDIS_MNEMONIC_WRFSBASE;
    struct segment *segment = &vcpu->segment[is_fs ? SEG_FS : SEG_GS];
    if (mnemonic == ZYDIS_MNEMONIC_RDFSBASE || mnemonic == ZYDIS_MNEMONIC_RDGSBASE) {
        gpr_set(vcpu, &d->op[0], segment->base);
        return CPU_OK;
    }
    uint64_t base = gpr_get(vcpu, &d->op[0]);
    if (!cpu_is_canonical(base))
        return fault_gp(vcpu);
    segment->base = base;
    return CPU_OK;
}
