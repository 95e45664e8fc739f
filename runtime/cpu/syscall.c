/* The fast system calls (SDM vol. 2, SYSCALL, SYSRET, SYSENTER, SYSEXIT, SWAPGS). None of them reads a
 * descriptor: the segments they load are constants. Where AMD's processors differ, the model's vendor
 * decides. */
#include "cpu/descriptor.h"
#include "cpu/mode_switch.h"
#include "cpu/model.h"

#define FLAGS_SYSRET 0x3c7fd7ull /* what SYSRET takes from R11: all but RF and VM */

#define ATTRIBUTES_CODE(dpl)                                                                                 \
    (SEG_P | SEG_S | (dpl) << SEG_DPL_SHIFT | TYPE_CODE | TYPE_WRITABLE | TYPE_ACCESSED | SEG_G)
#define ATTRIBUTES_DATA(dpl)                                                                                 \
    (SEG_P | SEG_S | (dpl) << SEG_DPL_SHIFT | TYPE_WRITABLE | TYPE_ACCESSED | SEG_G | SEG_DB)

static struct segment code_segment(uint64_t selector, unsigned cpl, bool is_code64) {
    return (struct segment){.selector = (uint16_t)((selector & 0xfffc) | cpl),
                            .attributes = ATTRIBUTES_CODE(cpl) | (is_code64 ? SEG_L : SEG_DB),
                            .limit = UINT32_MAX};
}

static struct segment stack_segment(uint64_t selector, unsigned cpl) {
    return (struct segment){
        .selector = (uint16_t)selector, .attributes = ATTRIBUTES_DATA(cpl), .limit = UINT32_MAX};
}

static void load_code(struct vcpu *vcpu, uint64_t selector, unsigned cpl, bool is_code64) {
    struct segment cs = code_segment(selector, cpl, is_code64);
    segment_copy(&vcpu->segment[SEG_CS], &cs);
    vcpu->cpl = (uint8_t)cpl;
}

static void load_stack(struct vcpu *vcpu, uint64_t selector, unsigned cpl) {
    struct segment ss = stack_segment(selector, cpl);
    segment_copy(&vcpu->segment[SEG_SS], &ss);
}

void cpu_syscall_segments(const struct vcpu *vcpu, bool user, struct segment *cs, struct segment *ss) {
    uint64_t kernel = vcpu->star >> 32, base = vcpu->star >> 48;
    *cs = user ? code_segment(base + 16, 3, true) : code_segment(kernel, 0, true);
    *ss = user ? stack_segment((base + 8) | SELECTOR_RPL, 3) : stack_segment(kernel + 8, 0);
}

int cpu_syscall(struct vcpu *vcpu, uint64_t next) {
    bool was_code64 = cpu_is_code64(vcpu);
    if (UNLIKELY(!(vcpu->efer & EFER_SCE)))
        return cpu_fault_plain(vcpu, VECTOR_UD);
    if (UNLIKELY(!was_code64)) {
        /* Intel: 64-bit mode only. AMD: also in compatibility and legacy protected mode. */
        if (!vcpu->model->is_amd || !(vcpu->mode & MODE_PROTECTED))
            return cpu_fault_plain(vcpu, VECTOR_UD);
        if (!cpu_is_long(vcpu)) {
            vcpu->gpr[GPR_RCX] = (uint32_t)next;
            vcpu->rip = (uint32_t)vcpu->star;
            vcpu->rflags &= ~(uint64_t)(FLAG_IF | FLAG_RF | FLAG_VM);
            load_code(vcpu, vcpu->star >> 32, 0, false);
            load_stack(vcpu, (vcpu->star >> 32) + 8, 0);
            cpu_mode_changed(vcpu);
            return CPU_OK;
        }
    }
    vcpu->gpr[GPR_RCX] = next;
    vcpu->gpr[GPR_R11] = vcpu->rflags & ~(uint64_t)FLAG_RF;
    vcpu->rip = was_code64 ? vcpu->lstar : vcpu->cstar;
    vcpu->rflags = (vcpu->rflags & ~(vcpu->sfmask | FLAG_RF)) | FLAG_FIXED;
    load_code(vcpu, vcpu->star >> 32, 0, true);
    load_stack(vcpu, (vcpu->star >> 32) + 8, 0);
    if (LIKELY(was_code64))
        mode_changed_in_64(vcpu);
    else
        cpu_mode_changed(vcpu);
    return CPU_OK;
}

int cpu_sysret(struct vcpu *vcpu, unsigned operand_size) {
    bool was_code64 = cpu_is_code64(vcpu), amd = vcpu->model->is_amd;
    if (UNLIKELY(!(vcpu->efer & EFER_SCE) || (!was_code64 && !amd)))
        return cpu_fault_plain(vcpu, VECTOR_UD);
    if (UNLIKELY(vcpu->cpl != 0 || !(vcpu->mode & MODE_PROTECTED)))
        return cpu_fault(vcpu, VECTOR_GP, 0);
    bool to_code64 = operand_size == 8;
    uint64_t base = vcpu->star >> 48;
    if (to_code64 && UNLIKELY(!cpu_is_canonical(vcpu->gpr[GPR_RCX]))) {
        if (!amd)
            return cpu_fault(vcpu, VECTOR_GP, 0);
        /* AMD faults at the target instead: the address stays and the fetch there raises #GP. */
    }
    vcpu->rip = to_code64 ? vcpu->gpr[GPR_RCX] : (uint32_t)vcpu->gpr[GPR_RCX];
    if (cpu_is_long(vcpu))
        vcpu->rflags = (vcpu->gpr[GPR_R11] & FLAGS_SYSRET) | FLAG_FIXED;
    else
        vcpu->rflags |= FLAG_IF;
    load_code(vcpu, to_code64 ? base + 16 : base, 3, to_code64);
    load_stack(vcpu, (base + 8) | SELECTOR_RPL, 3);
    vcpu->irq_shadow = 0;
    if (LIKELY(was_code64 && to_code64))
        mode_changed_in_64(vcpu);
    else
        cpu_mode_changed(vcpu);
    /* TF counts as SYSRET leaves it, not as it was: the trap comes before the first instruction in user mode.
     * Undocumented, but kernels avoid SYSRET for it. */
    return UNLIKELY(vcpu->rflags & FLAG_TF) ? cpu_fault_debug(vcpu, DR6_BS) : CPU_OK;
}

int cpu_sysenter(struct vcpu *vcpu) {
    if (cpu_is_long(vcpu) && vcpu->model->is_amd)
        return cpu_fault_plain(vcpu, VECTOR_UD);
    if (!(vcpu->cr0 & CR0_PE) || selector_is_null((uint16_t)vcpu->sysenter_cs))
        return cpu_fault(vcpu, VECTOR_GP, 0);
    bool is_long = cpu_is_long(vcpu);
    vcpu->rflags &= ~(uint64_t)(FLAG_VM | FLAG_IF | FLAG_RF);
    vcpu->gpr[GPR_RSP] = is_long ? vcpu->sysenter_esp : (uint32_t)vcpu->sysenter_esp;
    vcpu->rip = is_long ? vcpu->sysenter_eip : (uint32_t)vcpu->sysenter_eip;
    load_code(vcpu, vcpu->sysenter_cs, 0, is_long);
    load_stack(vcpu, (vcpu->sysenter_cs & 0xfffc) + 8, 0);
    cpu_mode_changed(vcpu);
    return CPU_OK;
}

int cpu_sysexit(struct vcpu *vcpu, unsigned operand_size) {
    bool to_code64 = operand_size == 8;
    if (cpu_is_long(vcpu) && vcpu->model->is_amd)
        return cpu_fault_plain(vcpu, VECTOR_UD);
    if (!(vcpu->mode & MODE_PROTECTED) || vcpu->cpl != 0 || selector_is_null((uint16_t)vcpu->sysenter_cs))
        return cpu_fault(vcpu, VECTOR_GP, 0);
    if (to_code64 && (!cpu_is_canonical(vcpu->gpr[GPR_RDX]) || !cpu_is_canonical(vcpu->gpr[GPR_RCX])))
        return cpu_fault(vcpu, VECTOR_GP, 0);
    uint64_t base = vcpu->sysenter_cs + (to_code64 ? 32 : 16);
    vcpu->rip = to_code64 ? vcpu->gpr[GPR_RDX] : (uint32_t)vcpu->gpr[GPR_RDX];
    vcpu->gpr[GPR_RSP] = to_code64 ? vcpu->gpr[GPR_RCX] : (uint32_t)vcpu->gpr[GPR_RCX];
    load_code(vcpu, base, 3, to_code64);
    load_stack(vcpu, (base + 8) | SELECTOR_RPL, 3);
    vcpu->irq_shadow = 0;
    cpu_mode_changed(vcpu);
    return CPU_OK;
}

int cpu_swapgs(struct vcpu *vcpu) {
    if (UNLIKELY(!cpu_is_code64(vcpu)))
        return cpu_fault_plain(vcpu, VECTOR_UD);
    if (UNLIKELY(vcpu->cpl))
        return cpu_fault(vcpu, VECTOR_GP, 0);
    uint64_t base = vcpu->segment[SEG_GS].base;
    vcpu->segment[SEG_GS].base = vcpu->kernel_gs_base;
    vcpu->kernel_gs_base = base;
    return CPU_OK;
}
