/* The system flags and what they guard: CLI, STI, PUSHF, POPF with the rules of IOPL and virtual-8086 mode
 * (SDM vol. 3, 20.3; vol. 1, 19.5 for ports), and HLT. */
#include "cpu/system.h"
#include "cpu/task.h"

#define FLAGS_POPF16 (FLAGS_ARITHMETIC | FLAG_TF | FLAG_DF | FLAG_NT)
#define FLAGS_POPF (FLAGS_POPF16 | FLAG_AC | FLAG_ID)
#define FLAGS_PUSHED 0x00fcffffull /* VM and RF read as 0 */
#define TSS_IO_MAP 0x66u

static bool iopl_permits(const struct vcpu *vcpu) {
    return vcpu->cpl <= (vcpu->rflags >> FLAG_IOPL_SHIFT & 3);
}

/* At IOPL < CPL: does IF stand for VIF? */
static bool has_virtual_interrupts(const struct vcpu *vcpu) {
    if (vcpu->rflags & FLAG_VM)
        return vcpu->cr4 & CR4_VME;
    return vcpu->cpl == 3 && vcpu->cr4 & CR4_PVI;
}

int cpu_cli(struct vcpu *vcpu) {
    if (!(vcpu->cr0 & CR0_PE) || iopl_permits(vcpu))
        vcpu->rflags &= ~(uint64_t)FLAG_IF;
    else if (has_virtual_interrupts(vcpu))
        vcpu->rflags &= ~(uint64_t)FLAG_VIF;
    else
        return cpu_fault(vcpu, VECTOR_GP, 0);
    return CPU_OK;
}

int cpu_sti(struct vcpu *vcpu) {
    if (!(vcpu->cr0 & CR0_PE) || iopl_permits(vcpu)) {
        if (!(vcpu->rflags & FLAG_IF))
            vcpu->irq_shadow = 1;
        vcpu->rflags |= FLAG_IF;
        return CPU_OK;
    }
    if (!has_virtual_interrupts(vcpu) || vcpu->rflags & FLAG_VIP)
        return cpu_fault(vcpu, VECTOR_GP, 0);
    vcpu->rflags |= FLAG_VIF;
    return CPU_OK;
}

int cpu_pushf_value(struct vcpu *vcpu, unsigned operand_size, uint64_t *value) {
    uint64_t image = vcpu->rflags & FLAGS_PUSHED;
    if (UNLIKELY(vcpu->rflags & FLAG_VM) && (vcpu->rflags & FLAG_IOPL) != FLAG_IOPL) {
        if (!(vcpu->cr4 & CR4_VME) || operand_size != 2)
            return cpu_fault(vcpu, VECTOR_GP, 0);
        image = (image & ~(uint64_t)FLAG_IF) | FLAG_IOPL | (vcpu->rflags & FLAG_VIF ? FLAG_IF : 0);
    }
    *value = operand_size == 2 ? (uint16_t)image : image;
    return CPU_OK;
}

/* POPF of vm86 mode at IOPL < 3 with CR4.VME: IF of the image goes to VIF. */
static int popf_virtual(struct vcpu *vcpu, uint64_t value, unsigned operand_size) {
    if (!(vcpu->cr4 & CR4_VME) || operand_size != 2 || value & FLAG_TF ||
        (value & FLAG_IF && vcpu->rflags & FLAG_VIP))
        return cpu_fault(vcpu, VECTOR_GP, 0);
    uint64_t mask = FLAGS_POPF16 | FLAG_VIF | FLAG_RF;
    value = (value & FLAGS_POPF16) | (value & FLAG_IF ? FLAG_VIF : 0);
    vcpu->rflags = (vcpu->rflags & ~mask) | value;
    cpu_mode_changed(vcpu);
    return CPU_OK;
}

int cpu_popf(struct vcpu *vcpu, uint64_t value, unsigned operand_size) {
    if (UNLIKELY(vcpu->rflags & FLAG_VM) && (vcpu->rflags & FLAG_IOPL) != FLAG_IOPL)
        return popf_virtual(vcpu, value, operand_size);
    uint64_t mask = operand_size == 2 ? FLAGS_POPF16 : FLAGS_POPF;
    if (vcpu->cpl == 0)
        mask |= FLAG_IOPL;
    if (iopl_permits(vcpu))
        mask |= FLAG_IF;
    uint64_t old = vcpu->rflags, flags = (old & ~mask & ~(uint64_t)FLAG_RF) | (value & mask);
    if (operand_size > 2 && !(old & FLAG_VM) && vcpu->cpl == 0)
        flags &= ~(uint64_t)(FLAG_VIF | FLAG_VIP);
    vcpu->rflags = flags;
    if ((old ^ flags) & (FLAG_TF | FLAG_IOPL | FLAG_AC))
        cpu_mode_changed(vcpu);
    return CPU_OK;
}

int cpu_hlt(struct vcpu *vcpu) {
    if (vcpu->cpl)
        return cpu_fault(vcpu, VECTOR_GP, 0);
    __atomic_store_n(&vcpu->run_state, RUN_HALTED, __ATOMIC_RELEASE);
    return CPU_OK;
}

int cpu_check_io(struct vcpu *vcpu, uint16_t port, unsigned size) {
    uint16_t map, bits;
    if (LIKELY(!(vcpu->cr0 & CR0_PE) || (iopl_permits(vcpu) && !(vcpu->rflags & FLAG_VM))))
        return CPU_OK;
    unsigned type = vcpu->tr.attributes & SEG_TYPE & ~TYPE_BUSY;
    if (vcpu->tr.attributes & SEG_UNUSABLE || type != TYPE_TSS || vcpu->tr.limit < TSS_IO_MAP + 1)
        return cpu_fault(vcpu, VECTOR_GP, 0);
    int result = vmem_read_u16(vcpu, vcpu->tr.base + TSS_IO_MAP, &map, AS_SYSTEM);
    if (result)
        return result;
    /* The processor reads two bytes, so that the last bits of a map need a byte behind them. */
    uint32_t offset = map + port / 8u;
    if (offset + 1 > vcpu->tr.limit)
        return cpu_fault(vcpu, VECTOR_GP, 0);
    result = vmem_read_u16(vcpu, vcpu->tr.base + offset, &bits, AS_SYSTEM);
    if (result)
        return result;
    return bits >> (port & 7) & ((1u << size) - 1) ? cpu_fault(vcpu, VECTOR_GP, 0) : CPU_OK;
}
