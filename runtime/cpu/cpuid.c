/* CPUID: the model's frozen entries, and the few fields that follow the vCPU's own state. Runs with the
 * guest's extended state live. */
#include "cpu/fpu.h"
#include "cpu/kvm_pv.h"
#include "cpu/model.h"
#include "cpu/system.h"

#define ECX1_OSXSAVE (1u << 27)
#define EDX1_APIC (1u << 9)
#define APIC_BASE_ENABLED (1ull << 11)
#define EDX_EXTENDED_SYSCALL (1u << 11)
#define LEAF_TOPOLOGY 0xbu
#define LEAF_XSAVE 0xdu
#define LEAF_EXTENDED 0x80000000u
#define XSAVE_LEGACY_SIZE 576u
#define XSAVE_ALIGNED 2u /* ECX of a component: starts at 64 bytes in the compacted format */

static const struct cpuid_entry *find(const struct cpu_model *model, uint32_t leaf, uint32_t subleaf) {
    for (unsigned i = 0; i < model->count; i++) {
        const struct cpuid_entry *entry = &model->entry[i];
        if (entry->leaf == leaf && (!entry->has_subleaf || entry->subleaf == subleaf))
            return entry;
    }
    return NULL;
}

static uint32_t highest(const struct cpu_model *model, uint32_t base) {
    const struct cpuid_entry *entry = find(model, base, 0);
    return entry ? entry->eax : 0;
}

/* Beyond the highest leaf Intel's processors answer with that of the highest basic one, AMD's with zeros. */
static bool is_in_range(const struct cpu_model *model, uint32_t *leaf) {
    uint32_t base = *leaf & 0xffff0000u;
    if (base == 0 || base == LEAF_EXTENDED || base == LEAF_KVM_SIGNATURE)
        if (*leaf <= highest(model, base))
            return true;
    if (model->is_amd)
        return false;
    *leaf = highest(model, 0);
    return true;
}

static uint32_t xsave_size(const struct cpu_model *model, uint64_t components, bool compacted) {
    uint32_t size = XSAVE_LEGACY_SIZE;
    for (uint32_t i = 2; i < 63; i++) {
        const struct cpuid_entry *entry;
        if (!(components >> i & 1) || !(entry = find(model, LEAF_XSAVE, i)))
            continue;
        if (compacted)
            size = (entry->ecx & XSAVE_ALIGNED ? (size + 63) & ~63u : size) + entry->eax;
        else if (entry->ebx + entry->eax > size)
            size = entry->ebx + entry->eax;
    }
    return size;
}

static bool apic_is_enabled(struct vcpu *vcpu) {
    uint64_t base;
    if (!vcpu->env || !vcpu->env->apic_msr_read)
        return true;
    vcpu_fpu_park(vcpu);
    return vcpu->env->apic_msr_read(vcpu->env->context, MSR_APIC_BASE, &base) && base & APIC_BASE_ENABLED;
}

/* Fields that depend on which vCPU asks and on its state. */
static void apply_state(struct vcpu *vcpu, uint32_t leaf, uint32_t subleaf, uint32_t out[4]) {
    switch (leaf) {
    case 1:
        out[1] = (out[1] & 0x00ffffffu) | vcpu->index << 24;
        if (vcpu->cr4 & CR4_OSXSAVE)
            out[2] |= ECX1_OSXSAVE;
        if (out[3] & EDX1_APIC && !apic_is_enabled(vcpu))
            out[3] &= ~EDX1_APIC;
        break;
    case LEAF_TOPOLOGY:
        out[2] = (out[2] & ~0xffu) | (subleaf & 0xff);
        out[3] = vcpu->index;
        break;
    case LEAF_XSAVE:
        if (subleaf == 0 && out[0])
            out[1] = xsave_size(vcpu->model, vcpu->xcr0, false);
        else if (subleaf == 1 && out[0])
            out[1] = xsave_size(vcpu->model, vcpu->xcr0, true);
        break;
    case LEAF_EXTENDED + 1:
        if (!vcpu->model->is_amd && !cpu_is_code64(vcpu))
            out[3] &= ~EDX_EXTENDED_SYSCALL;
        break;
    default:
        break;
    }
}

void cpu_cpuid(struct vcpu *vcpu, uint32_t leaf, uint32_t subleaf, uint32_t out[4]) {
    out[0] = out[1] = out[2] = out[3] = 0;
    if (!is_in_range(vcpu->model, &leaf))
        return;
    const struct cpuid_entry *entry = find(vcpu->model, leaf, subleaf);
    if (entry) {
        out[0] = entry->eax;
        out[1] = entry->ebx;
        out[2] = entry->ecx;
        out[3] = entry->edx;
    }
    apply_state(vcpu, leaf, subleaf, out);
}
