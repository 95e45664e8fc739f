/* The stack instructions. Each leaves RSP and RBP as they were when it faults. */
#include "interp/flags.h"
#include "interp/memory.h"

static bool is_segment_register(const ZydisDecodedOperand *op) {
    return op->type == ZYDIS_OPERAND_TYPE_REGISTER &&
           ZydisRegisterGetClass(op->reg.value) == ZYDIS_REGCLASS_SEGMENT;
}

/* With a 32-bit operand size only the selector's word is stored; the rest of the slot keeps its contents (SDM
 * vol. 2, PUSH, recent processors). */
static int push_segment(struct vcpu *vcpu, struct decoded *d, unsigned segment) {
    uint64_t rsp = (vcpu->gpr[GPR_RSP] - d->operand_size) & stack_mask(vcpu);
    unsigned width = d->operand_size == 8 ? 8 : 2;
    int result = memory_write(vcpu, SEG_SS, rsp, width, vcpu->segment[segment].selector);
    if (!result)
        stack_set(vcpu, rsp);
    return result;
}

int push_execute(struct vcpu *vcpu, struct decoded *d) {
    const ZydisDecodedOperand *op = &d->insn.op[0];
    uint64_t value;
    if (UNLIKELY(d->op[0].kind == OPERAND_OTHER)) {
        if (is_segment_register(op))
            return push_segment(vcpu, d, op->reg.value - ZYDIS_REGISTER_ES);
        return fault_ud(vcpu);
    }
    int result = operand_read(vcpu, d, 0, &value);
    return result ? result : stack_push(vcpu, value, d->operand_size);
}

int pop_execute(struct vcpu *vcpu, struct decoded *d) {
    uint64_t value, rsp = vcpu->gpr[GPR_RSP];
    int result = stack_peek(vcpu, 0, d->operand_size, &value);
    if (UNLIKELY(result))
        return result;
    if (UNLIKELY(d->op[0].kind == OPERAND_OTHER)) {
        if (!is_segment_register(&d->insn.op[0]))
            return fault_ud(vcpu);
        unsigned segment = d->insn.op[0].reg.value - ZYDIS_REGISTER_ES;
        uint64_t mask = stack_mask(vcpu);
        result = cpu_load_segment(vcpu, segment, (uint16_t)value);
        if (result)
            return result;
        /* The pop itself used the old stack size. */
        uint64_t popped = (rsp + d->operand_size) & mask;
        vcpu->gpr[GPR_RSP] = mask == 0xffff ? (rsp & ~0xffffull) | popped : popped;
        if (segment == SEG_SS)
            vcpu->irq_shadow = SHADOW_MOV_SS;
        return CPU_OK;
    }
    /* A destination that is addressed by RSP, or is RSP, sees the incremented value. */
    stack_release(vcpu, d->operand_size);
    result = operand_write(vcpu, d, 0, value);
    if (UNLIKELY(result))
        vcpu->gpr[GPR_RSP] = rsp;
    return result;
}

int pushf_execute(struct vcpu *vcpu, struct decoded *d) {
    uint64_t value;
    int result = cpu_pushf_value(vcpu, d->operand_size, &value);
    return result ? result : stack_push(vcpu, value, d->operand_size);
}

int popf_execute(struct vcpu *vcpu, struct decoded *d) {
    uint64_t value;
    int result = stack_peek(vcpu, 0, d->operand_size, &value);
    if (!result)
        result = cpu_popf(vcpu, value, d->operand_size);
    if (!result)
        stack_release(vcpu, d->operand_size);
    return result;
}

int pusha_execute(struct vcpu *vcpu, struct decoded *d) {
    uint64_t rsp = vcpu->gpr[GPR_RSP];
    for (unsigned i = 0; i < 8; i++) {
        int result = stack_push(vcpu, i == GPR_RSP ? rsp : vcpu->gpr[i], d->operand_size);
        if (result) {
            vcpu->gpr[GPR_RSP] = rsp;
            return result;
        }
    }
    return CPU_OK;
}

int popa_execute(struct vcpu *vcpu, struct decoded *d) {
    uint64_t value[8];
    for (unsigned i = 0; i < 8; i++) {
        int result = stack_peek(vcpu, i * d->operand_size, d->operand_size, &value[7 - i]);
        if (result)
            return result;
    }
    for (unsigned i = 0; i < 8; i++)
        if (i != GPR_RSP)
            gpr_put(vcpu, i, d->operand_size, value[i]);
    stack_release(vcpu, 8u * d->operand_size);
    return CPU_OK;
}

int enter_execute(struct vcpu *vcpu, struct decoded *d) {
    uint64_t rsp = vcpu->gpr[GPR_RSP], rbp = vcpu->gpr[GPR_RBP];
    unsigned size = d->operand_size, level = d->op[1].immediate & 31;
    uint64_t allocate = d->op[0].immediate & 0xffff, link = rbp, value, linear;
    int result = stack_push(vcpu, rbp, size);
    if (result)
        return result;
    uint64_t frame = vcpu->gpr[GPR_RSP];
    for (unsigned i = 1; i < level && !result; i++) {
        link -= size;
        result = memory_read(vcpu, SEG_SS, link & stack_mask(vcpu), size, &value);
        if (!result)
            result = stack_push(vcpu, value, size);
    }
    if (!result && level)
        result = stack_push(vcpu, frame, size);
    if (!result) {
        stack_set(vcpu, vcpu->gpr[GPR_RSP] - allocate);
        /* The new top of the stack is checked as the next PUSH's last word would be. */
        result =
            memory_linear(vcpu, SEG_SS, vcpu->gpr[GPR_RSP] & stack_mask(vcpu), size, VMEM_WRITE, &linear);
        if (!result)
            result = vmem_probe(vcpu, linear, size, VMEM_WRITE, AS_CURRENT);
    }
    if (result) {
        vcpu->gpr[GPR_RSP] = rsp;
        return result;
    }
    gpr_put(vcpu, GPR_RBP, size, frame);
    return CPU_OK;
}

int leave_execute(struct vcpu *vcpu, struct decoded *d) {
    uint64_t value, frame = vcpu->gpr[GPR_RBP] & stack_mask(vcpu);
    int result = memory_read(vcpu, SEG_SS, frame, d->operand_size, &value);
    if (result)
        return result;
    stack_set(vcpu, frame + d->operand_size);
    gpr_put(vcpu, GPR_RBP, d->operand_size, value);
    return CPU_OK;
}

/* LDS, LES, LFS, LGS, LSS. */
int load_far_pointer_execute(struct vcpu *vcpu, struct decoded *d) {
    static const uint8_t segments[] = {SEG_DS, SEG_ES, SEG_FS, SEG_GS, SEG_SS};
    static const ZydisMnemonic mnemonics[] = {ZYDIS_MNEMONIC_LDS, ZYDIS_MNEMONIC_LES, ZYDIS_MNEMONIC_LFS,
                                              ZYDIS_MNEMONIC_LGS, ZYDIS_MNEMONIC_LSS};
    unsigned which = 0;
    while (which < ARRAY_SIZE(mnemonics) - 1 && mnemonics[which] != d->insn.z.mnemonic)
        which++;
    uint64_t address = address_compute(vcpu, d), offset, selector;
    int result = memory_read(vcpu, d->segment, address, d->op[0].size, &offset);
    if (!result)
        result = memory_read(vcpu, d->segment, (address + d->op[0].size) & d->address_mask, 2, &selector);
    if (!result)
        result = cpu_load_segment(vcpu, segments[which], (uint16_t)selector);
    if (!result)
        gpr_set(vcpu, &d->op[0], offset);
    return result;
}
