/* The common integer instructions: moves, two-operand arithmetic, flags. */
#include "interp/flags.h"
#include "interp/memory.h"

int undefined_execute(struct vcpu *vcpu, struct decoded *d) {
    (void)d;
    return fault_ud(vcpu);
}

int nop_execute(struct vcpu *vcpu, struct decoded *d) {
    (void)vcpu;
    (void)d;
    return CPU_OK;
}

/* MOV, and with function 1 MOV to or from a segment register. */
static int mov_segment(struct vcpu *vcpu, struct decoded *d) {
    ZydisRegister to = d->insn.op[0].reg.value, from = d->insn.op[1].reg.value;
    if (d->insn.op[0].type == ZYDIS_OPERAND_TYPE_REGISTER &&
        ZydisRegisterGetClass(to) == ZYDIS_REGCLASS_SEGMENT) {
        uint64_t selector;
        unsigned segment = to - ZYDIS_REGISTER_ES;
        if (segment == SEG_CS)
            return fault_ud(vcpu);
        int result = operand_read(vcpu, d, 1, &selector);
        if (!result)
            result = cpu_load_segment(vcpu, segment, (uint16_t)selector);
        if (!result && segment == SEG_SS)
            vcpu->irq_shadow = SHADOW_MOV_SS;
        return result;
    }
    return operand_write(vcpu, d, 0, vcpu->segment[from - ZYDIS_REGISTER_ES].selector);
}

int mov_execute(struct vcpu *vcpu, struct decoded *d) {
    if (UNLIKELY(d->function))
        return mov_segment(vcpu, d);
    uint64_t value;
    int result = operand_read(vcpu, d, 1, &value);
    if (UNLIKELY(result))
        return result;
    return operand_write(vcpu, d, 0, value);
}

int movzx_execute(struct vcpu *vcpu, struct decoded *d) {
    uint64_t value;
    int result = operand_read(vcpu, d, 1, &value);
    if (!result)
        gpr_set(vcpu, &d->op[0], value);
    return result;
}

int movsx_execute(struct vcpu *vcpu, struct decoded *d) {
    uint64_t value;
    int result = operand_read(vcpu, d, 1, &value);
    if (result)
        return result;
    unsigned shift = 64 - 8u * d->op[1].size;
    gpr_set(vcpu, &d->op[0], (uint64_t)((int64_t)(value << shift) >> shift));
    return CPU_OK;
}

int lea_execute(struct vcpu *vcpu, struct decoded *d) {
    gpr_set(vcpu, &d->op[0], address_compute(vcpu, d));
    return CPU_OK;
}

enum alu { ALU_ADD, ALU_OR, ALU_ADC, ALU_SBB, ALU_AND, ALU_SUB, ALU_XOR, ALU_CMP };

static ALWAYS_INLINE uint64_t alu_compute(struct vcpu *vcpu, unsigned operation, uint64_t a, uint64_t b,
                                          unsigned size) {
    uint64_t result;
    switch (operation) {
    case ALU_ADD:
        return flags_add(vcpu, a, b, 0, size);
    case ALU_ADC:
        return flags_add(vcpu, a, b, vcpu->rflags & FLAG_CF, size);
    case ALU_SUB:
    case ALU_CMP:
        return flags_sub(vcpu, a, b, 0, size);
    case ALU_SBB:
        return flags_sub(vcpu, a, b, vcpu->rflags & FLAG_CF, size);
    case ALU_OR:
        result = a | b;
        break;
    case ALU_AND:
        result = a & b;
        break;
    default:
        result = a ^ b;
        break;
    }
    flags_logic(vcpu, result, size);
    return result;
}

int alu_execute(struct vcpu *vcpu, struct decoded *d) {
    uint64_t a, b;
    unsigned size = d->op[0].size;
    if (d->op[0].kind == OPERAND_MEMORY && d->function != ALU_CMP) {
        struct rmw rmw;
        int result = rmw_begin(vcpu, d->segment, address_compute(vcpu, d), size, &rmw);
        if (result)
            return result;
        b = d->op[1].kind == OPERAND_IMMEDIATE ? d->op[1].immediate : gpr_get(vcpu, &d->op[1]);
        uint64_t before = vcpu->rflags;
        result = rmw_finish(vcpu, &rmw, size, alu_compute(vcpu, d->function, rmw.value, b, size));
        if (UNLIKELY(result))
            vcpu->rflags = before;
        return result;
    }
    int result = operand_read(vcpu, d, 0, &a);
    if (UNLIKELY(result))
        return result;
    result = operand_read(vcpu, d, 1, &b);
    if (UNLIKELY(result))
        return result;
    uint64_t value = alu_compute(vcpu, d->function, a, b, size);
    if (d->function != ALU_CMP)
        gpr_set(vcpu, &d->op[0], value);
    return CPU_OK;
}

int test_execute(struct vcpu *vcpu, struct decoded *d) {
    uint64_t a, b;
    int result = operand_read(vcpu, d, 0, &a);
    if (!result)
        result = operand_read(vcpu, d, 1, &b);
    if (!result)
        flags_logic(vcpu, a & b, d->op[0].size);
    return result;
}

enum one_operand { ONE_INC, ONE_DEC, ONE_NEG, ONE_NOT };

static uint64_t one_compute(struct vcpu *vcpu, unsigned operation, uint64_t value, unsigned size) {
    uint64_t carry = vcpu->rflags & FLAG_CF;
    switch (operation) {
    case ONE_INC:
        value = flags_add(vcpu, value, 1, 0, size);
        flags_set(vcpu, carry, FLAG_CF);
        return value;
    case ONE_DEC:
        value = flags_sub(vcpu, value, 1, 0, size);
        flags_set(vcpu, carry, FLAG_CF);
        return value;
    case ONE_NEG:
        return flags_sub(vcpu, 0, value, 0, size);
    default:
        return ~value;
    }
}

/* INC, DEC, NEG, NOT. */
int incdec_execute(struct vcpu *vcpu, struct decoded *d) {
    unsigned size = d->op[0].size;
    if (d->op[0].kind != OPERAND_MEMORY) {
        gpr_set(vcpu, &d->op[0], one_compute(vcpu, d->function, gpr_get(vcpu, &d->op[0]), size));
        return CPU_OK;
    }
    struct rmw rmw;
    int result = rmw_begin(vcpu, d->segment, address_compute(vcpu, d), size, &rmw);
    if (result)
        return result;
    uint64_t before = vcpu->rflags;
    result = rmw_finish(vcpu, &rmw, size, one_compute(vcpu, d->function, rmw.value, size));
    if (UNLIKELY(result))
        vcpu->rflags = before;
    return result;
}

int setcc_execute(struct vcpu *vcpu, struct decoded *d) {
    return operand_write(vcpu, d, 0, flags_condition(vcpu->rflags, d->insn.z.opcode & 15));
}

/* CMOVcc reads its source, and clears the upper half of a 32-bit target, whatever the condition. */
int cmov_execute(struct vcpu *vcpu, struct decoded *d) {
    uint64_t value;
    int result = operand_read(vcpu, d, 1, &value);
    if (result)
        return result;
    bool taken = flags_condition(vcpu->rflags, d->insn.z.opcode & 15);
    gpr_set(vcpu, &d->op[0], taken ? value : gpr_get(vcpu, &d->op[0]));
    return CPU_OK;
}

/* XCHG of registers; with memory it is locked and runs natively. */
int xchg_execute(struct vcpu *vcpu, struct decoded *d) {
    uint64_t a = gpr_get(vcpu, &d->op[0]), b = gpr_get(vcpu, &d->op[1]);
    gpr_set(vcpu, &d->op[0], b);
    gpr_set(vcpu, &d->op[1], a);
    return CPU_OK;
}

/* CLC, STC, CMC, CLD, STD, LAHF, SAHF. */
int flag_execute(struct vcpu *vcpu, struct decoded *d) {
    const uint64_t in_ah = FLAG_SF | FLAG_ZF | FLAG_AF | FLAG_PF | FLAG_CF;
    switch (d->insn.z.mnemonic) {
    case ZYDIS_MNEMONIC_CLC:
        vcpu->rflags &= ~(uint64_t)FLAG_CF;
        break;
    case ZYDIS_MNEMONIC_STC:
        vcpu->rflags |= FLAG_CF;
        break;
    case ZYDIS_MNEMONIC_CMC:
        vcpu->rflags ^= FLAG_CF;
        break;
    case ZYDIS_MNEMONIC_CLD:
        vcpu->rflags &= ~(uint64_t)FLAG_DF;
        break;
    case ZYDIS_MNEMONIC_STD:
        vcpu->rflags |= FLAG_DF;
        break;
    case ZYDIS_MNEMONIC_LAHF:
        vcpu->gpr[GPR_RAX] = (vcpu->gpr[GPR_RAX] & ~0xff00ull) | ((vcpu->rflags & in_ah) | FLAG_FIXED) << 8;
        break;
    default:
        flags_set(vcpu, vcpu->gpr[GPR_RAX] >> 8 & in_ah, in_ah);
    }
    return CPU_OK;
}

int xlat_execute(struct vcpu *vcpu, struct decoded *d) {
    uint64_t value;
    uint64_t address = (vcpu->gpr[GPR_RBX] + (uint8_t)vcpu->gpr[GPR_RAX]) & d->address_mask;
    int result = memory_read(vcpu, d->segment, address, 1, &value);
    if (!result)
        gpr_put(vcpu, GPR_RAX, 1, value);
    return result;
}
