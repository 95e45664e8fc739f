/* The instructions that LLVM is told the meaning of: moves, arithmetic, logic, shifts, the stack. What is not
 * here is copied (llvm_native.c). Each makes all its checks before it changes anything, so that the side exit
 * of any of them is the state before the instruction. */
#include "sbt/llvm_private.h"

static const struct insn *insn_of(const struct lifter *l) {
    return &l->insn->insn;
}

static LLVMValueRef immediate(struct lifter *l, const ZydisDecodedOperand *op, unsigned width) {
    uint64_t value = op->imm.is_signed ? (uint64_t)op->imm.value.s : op->imm.value.u;
    if (width < 64)
        value &= (1ull << width) - 1;
    return LLVMConstInt(lift_int(l, width), value, false);
}

/* A place that an instruction reads and perhaps writes. */
struct place {
    const ZydisDecodedOperand *op;
    LLVMValueRef host; /* NULL: a register or an immediate */
    unsigned width;
};

static bool place_open(struct lifter *l, struct place *place, const ZydisDecodedOperand *op,
                       enum vmem_access access) {
    *place = (struct place){.op = op, .width = op->size};
    if (op->size != 8 && op->size != 16 && op->size != 32 && op->size != 64)
        return false;
    if (op->type == ZYDIS_OPERAND_TYPE_MEMORY) {
        struct lift_address address = lift_operand_address(l, op);
        place->host = lift_check(l, &address, op->size / 8u, access);
        return true;
    }
    return op->type == ZYDIS_OPERAND_TYPE_IMMEDIATE || insn_gpr(op->reg.value) >= 0;
}

static LLVMValueRef place_read(struct lifter *l, const struct place *place, unsigned width) {
    if (place->host)
        return lift_load(l, place->host, place->width);
    if (place->op->type == ZYDIS_OPERAND_TYPE_IMMEDIATE)
        return immediate(l, place->op, width);
    return lift_read_register(l, place->op->reg.value);
}

static void place_write(struct lifter *l, const struct place *place, LLVMValueRef value) {
    if (place->host)
        lift_store(l, place->host, value);
    else
        lift_write_register(l, place->op->reg.value, value);
}

static void set_flags(struct lifter *l, enum flags_kind kind, LLVMValueRef a, LLVMValueRef b, LLVMValueRef c,
                      LLVMValueRef result) {
    l->state.flags = flags_make(kind, a, b, c, result);
}

static bool lift_move(struct lifter *l) {
    const ZydisDecodedOperand *op = insn_of(l)->op;
    struct place to, from;
    if (!place_open(l, &from, &op[1], VMEM_READ) || !place_open(l, &to, &op[0], VMEM_WRITE))
        return false;
    if (!to.host && !from.host && to.width == 64 && op[1].type == ZYDIS_OPERAND_TYPE_REGISTER) {
        /* Keep what is known of the value. */
        struct lift_address same = lift_register_address(l, (unsigned)insn_gpr(op[1].reg.value), 0);
        lift_set_sum(l, (unsigned)insn_gpr(op[0].reg.value), same.root, same.offset);
        return true;
    }
    place_write(l, &to, place_read(l, &from, to.width));
    return true;
}

static bool lift_extend(struct lifter *l, bool is_signed) {
    const ZydisDecodedOperand *op = insn_of(l)->op;
    struct place to, from;
    if (!place_open(l, &from, &op[1], VMEM_READ) || !place_open(l, &to, &op[0], VMEM_WRITE))
        return false;
    LLVMValueRef value = place_read(l, &from, from.width);
    place_write(l, &to, LLVMBuildIntCast2(l->builder, value, lift_int(l, to.width), is_signed, ""));
    return true;
}

enum operation { OP_ADD, OP_SUB, OP_CMP, OP_AND, OP_OR, OP_XOR, OP_TEST, OP_ADC, OP_SBB };

/* ADD or SUB of a constant to a whole register: it stays the same root. */
static bool lift_adjust(struct lifter *l, enum operation operation) {
    const ZydisDecodedOperand *op = insn_of(l)->op;
    if ((operation != OP_ADD && operation != OP_SUB) || op[0].type != ZYDIS_OPERAND_TYPE_REGISTER ||
        op[0].size != 64 || op[1].type != ZYDIS_OPERAND_TYPE_IMMEDIATE)
        return false;
    unsigned reg = (unsigned)insn_gpr(op[0].reg.value);
    int64_t amount = op[1].imm.value.s;
    LLVMValueRef a = lift_get(l, &l->state, reg), b = lift_constant(l, (uint64_t)amount);
    struct lift_address to = lift_register_address(l, reg, operation == OP_ADD ? amount : -amount);
    lift_set_sum(l, reg, to.root, to.offset);
    set_flags(l, operation == OP_ADD ? FLAGS_ADD : FLAGS_SUB, a, b, NULL, lift_get(l, &l->state, reg));
    return true;
}

static bool lift_binary(struct lifter *l, enum operation operation) {
    const ZydisDecodedOperand *op = insn_of(l)->op;
    LLVMBuilderRef builder = l->builder;
    bool writes = operation != OP_CMP && operation != OP_TEST;
    struct place to, from;
    if (lift_adjust(l, operation))
        return true;
    if (!place_open(l, &to, &op[0], writes ? VMEM_WRITE : VMEM_READ) ||
        !place_open(l, &from, &op[1], VMEM_READ))
        return false;
    LLVMValueRef a = place_read(l, &to, to.width), b = place_read(l, &from, to.width), c, result;
    bool same = op[0].type == ZYDIS_OPERAND_TYPE_REGISTER && op[1].type == ZYDIS_OPERAND_TYPE_REGISTER &&
                op[0].reg.value == op[1].reg.value;
    switch (operation) {
    case OP_ADD:
        result = LLVMBuildAdd(builder, a, b, "");
        set_flags(l, FLAGS_ADD, a, b, NULL, result);
        break;
    case OP_SUB:
    case OP_CMP:
        result = LLVMBuildSub(builder, a, b, "");
        set_flags(l, FLAGS_SUB, a, b, NULL, result);
        break;
    case OP_ADC:
    case OP_SBB:
        c = flags_carry(l, &l->state.flags);
        result = LLVMBuildIntCast2(builder, c, lift_int(l, to.width), false, "");
        if (operation == OP_ADC)
            result = LLVMBuildAdd(builder, LLVMBuildAdd(builder, a, b, ""), result, "");
        else
            result = LLVMBuildSub(builder, LLVMBuildSub(builder, a, b, ""), result, "");
        set_flags(l, operation == OP_ADC ? FLAGS_ADC : FLAGS_SBB, a, b, c, result);
        break;
    default:
        result = operation == OP_OR    ? LLVMBuildOr(builder, a, b, "")
                 : operation == OP_XOR ? same ? LLVMConstNull(LLVMTypeOf(a)) : LLVMBuildXor(builder, a, b, "")
                                       : LLVMBuildAnd(builder, a, b, "");
        set_flags(l, FLAGS_LOGIC, result, NULL, NULL, result);
        break;
    }
    if (writes)
        place_write(l, &to, result);
    return true;
}

static bool lift_unary(struct lifter *l, ZydisMnemonic mnemonic) {
    LLVMBuilderRef builder = l->builder;
    struct place to;
    if (!place_open(l, &to, &insn_of(l)->op[0], VMEM_WRITE))
        return false;
    LLVMValueRef a = place_read(l, &to, to.width), result, one = LLVMConstInt(LLVMTypeOf(a), 1, false), c;
    switch (mnemonic) {
    case ZYDIS_MNEMONIC_INC:
    case ZYDIS_MNEMONIC_DEC:
        c = flags_carry(l, &l->state.flags);
        result = mnemonic == ZYDIS_MNEMONIC_INC ? LLVMBuildAdd(builder, a, one, "")
                                                : LLVMBuildSub(builder, a, one, "");
        set_flags(l, mnemonic == ZYDIS_MNEMONIC_INC ? FLAGS_INC : FLAGS_DEC, a, NULL, c, result);
        break;
    case ZYDIS_MNEMONIC_NEG:
        result = LLVMBuildNeg(builder, a, "");
        set_flags(l, FLAGS_SUB, LLVMConstNull(LLVMTypeOf(a)), a, NULL, result);
        break;
    default:
        result = LLVMBuildNot(builder, a, "");
        break;
    }
    place_write(l, &to, result);
    return true;
}

/* By a constant that is not 0 and less than the width. */
static bool lift_shift(struct lifter *l, enum flags_kind kind) {
    const ZydisDecodedOperand *op = insn_of(l)->op;
    struct place to;
    if (op[1].type != ZYDIS_OPERAND_TYPE_IMMEDIATE || (op[0].size != 32 && op[0].size != 64))
        return false;
    uint64_t count = op[1].imm.value.u & (op[0].size - 1u);
    if (!count || !place_open(l, &to, &op[0], VMEM_WRITE))
        return false;
    LLVMValueRef a = place_read(l, &to, to.width), b = LLVMConstInt(LLVMTypeOf(a), count, false);
    LLVMValueRef result = kind == FLAGS_SHL   ? LLVMBuildShl(l->builder, a, b, "")
                          : kind == FLAGS_SHR ? LLVMBuildLShr(l->builder, a, b, "")
                                              : LLVMBuildAShr(l->builder, a, b, "");
    set_flags(l, kind, a, b, NULL, result);
    place_write(l, &to, result);
    return true;
}

/* Two and three operands. */
static bool lift_multiply(struct lifter *l) {
    const struct insn *insn = insn_of(l);
    const ZydisDecodedOperand *op = insn->op;
    struct place to, from;
    unsigned count = insn->z.operand_count_visible;
    if (count < 2 || op[0].size == 16 || !place_open(l, &from, &op[1], VMEM_READ) ||
        !place_open(l, &to, &op[0], VMEM_WRITE))
        return false;
    LLVMValueRef a = place_read(l, &from, to.width);
    LLVMValueRef b = count == 3 ? immediate(l, &op[2], to.width) : place_read(l, &to, to.width);
    LLVMValueRef result = LLVMBuildMul(l->builder, a, b, "");
    set_flags(l, FLAGS_IMUL, a, b, NULL, NULL);
    place_write(l, &to, result);
    return true;
}

static bool lift_conditional(struct lifter *l, bool is_set) {
    const struct insn *insn = insn_of(l);
    struct place to, from;
    if (!is_set && !place_open(l, &from, &insn->op[1], VMEM_READ))
        return false;
    if (!place_open(l, &to, &insn->op[0], VMEM_WRITE))
        return false;
    LLVMValueRef condition = flags_condition(l, &l->state.flags, insn->z.opcode & 15);
    if (is_set) {
        place_write(l, &to, LLVMBuildZExt(l->builder, condition, l->i8, ""));
        return true;
    }
    LLVMValueRef yes = place_read(l, &from, to.width), no = place_read(l, &to, to.width);
    place_write(l, &to, LLVMBuildSelect(l->builder, condition, yes, no, ""));
    return true;
}

static bool lift_exchange(struct lifter *l) {
    const ZydisDecodedOperand *op = insn_of(l)->op;
    struct place a, b;
    if (op[0].type != ZYDIS_OPERAND_TYPE_REGISTER || op[1].type != ZYDIS_OPERAND_TYPE_REGISTER ||
        !place_open(l, &a, &op[0], VMEM_WRITE) || !place_open(l, &b, &op[1], VMEM_WRITE))
        return false;
    LLVMValueRef first = place_read(l, &a, a.width), second = place_read(l, &b, b.width);
    place_write(l, &a, second);
    place_write(l, &b, first);
    return true;
}

static bool lift_widen_rax(struct lifter *l, unsigned from, unsigned to) {
    LLVMValueRef rax = lift_resize(l, lift_get(l, &l->state, GPR_RAX), from);
    LLVMValueRef wide = LLVMBuildSExt(l->builder, rax, lift_int(l, to), "");
    lift_set(l, GPR_RAX, lift_resize(l, wide, 64));
    return true;
}

static bool lift_sign_to_rdx(struct lifter *l, unsigned width) {
    LLVMValueRef rax = lift_resize(l, lift_get(l, &l->state, GPR_RAX), width);
    LLVMValueRef sign = LLVMBuildAShr(l->builder, rax, LLVMConstInt(LLVMTypeOf(rax), width - 1, false), "");
    lift_set(l, GPR_RDX, lift_resize(l, sign, 64));
    return true;
}

static bool lift_integer(struct lifter *l) {
    const struct insn *insn = insn_of(l);
    if (insn->traits & (INSN_LOCKED | INSN_VECTOR))
        return false;
    switch (insn->z.mnemonic) {
    case ZYDIS_MNEMONIC_MOV:
        return lift_move(l);
    case ZYDIS_MNEMONIC_MOVZX:
        return lift_extend(l, false);
    case ZYDIS_MNEMONIC_MOVSX:
    case ZYDIS_MNEMONIC_MOVSXD:
        return lift_extend(l, true);
    case ZYDIS_MNEMONIC_ADD:
        return lift_binary(l, OP_ADD);
    case ZYDIS_MNEMONIC_SUB:
        return lift_binary(l, OP_SUB);
    case ZYDIS_MNEMONIC_CMP:
        return lift_binary(l, OP_CMP);
    case ZYDIS_MNEMONIC_AND:
        return lift_binary(l, OP_AND);
    case ZYDIS_MNEMONIC_OR:
        return lift_binary(l, OP_OR);
    case ZYDIS_MNEMONIC_XOR:
        return lift_binary(l, OP_XOR);
    case ZYDIS_MNEMONIC_TEST:
        return lift_binary(l, OP_TEST);
    case ZYDIS_MNEMONIC_ADC:
        return lift_binary(l, OP_ADC);
    case ZYDIS_MNEMONIC_SBB:
        return lift_binary(l, OP_SBB);
    case ZYDIS_MNEMONIC_INC:
    case ZYDIS_MNEMONIC_DEC:
    case ZYDIS_MNEMONIC_NEG:
    case ZYDIS_MNEMONIC_NOT:
        return lift_unary(l, insn->z.mnemonic);
    case ZYDIS_MNEMONIC_SHL:
        return lift_shift(l, FLAGS_SHL);
    case ZYDIS_MNEMONIC_SHR:
        return lift_shift(l, FLAGS_SHR);
    case ZYDIS_MNEMONIC_SAR:
        return lift_shift(l, FLAGS_SAR);
    case ZYDIS_MNEMONIC_IMUL:
        return lift_multiply(l);
    case ZYDIS_MNEMONIC_XCHG:
        return lift_exchange(l);
    case ZYDIS_MNEMONIC_CBW:
        lift_write_register(l, ZYDIS_REGISTER_AX,
                            LLVMBuildSExt(l->builder, lift_read_register(l, ZYDIS_REGISTER_AL), l->i16, ""));
        return true;
    case ZYDIS_MNEMONIC_CWDE:
        return lift_widen_rax(l, 16, 32);
    case ZYDIS_MNEMONIC_CDQE:
        return lift_widen_rax(l, 32, 64);
    case ZYDIS_MNEMONIC_CDQ:
        return lift_sign_to_rdx(l, 32);
    case ZYDIS_MNEMONIC_CQO:
        return lift_sign_to_rdx(l, 64);
    default:
        break;
    }
    if (insn->z.meta.category == ZYDIS_CATEGORY_CMOV)
        return lift_conditional(l, false);
    if (insn->z.meta.category == ZYDIS_CATEGORY_SETCC)
        return lift_conditional(l, true);
    return false;
}

static bool lift_lea(struct lifter *l) {
    const struct insn *insn = insn_of(l);
    struct lift_address address = {
        .offset = insn->op[1].mem.disp.has_displacement ? insn->op[1].mem.disp.value : 0};
    const ZydisDecodedOperand *op = &insn->op[1];
    int base = insn_gpr(op->mem.base), index = insn_gpr(op->mem.index);
    unsigned scale = op->mem.scale == 8 ? 3 : op->mem.scale == 4 ? 2 : op->mem.scale == 2 ? 1 : 0;
    unsigned reg = (unsigned)insn_gpr(insn->op[0].reg.value);
    if (op->mem.base == ZYDIS_REGISTER_RIP || op->mem.base == ZYDIS_REGISTER_EIP) {
        address.root = lift_guest_address(l);
        address.offset += (int64_t)l->insn->guest + insn->length;
    } else if (base >= 0) {
        address = lift_register_address(l, (unsigned)base, address.offset);
    }
    if (index < 0 && address.root && insn->z.operand_width == 64 && insn->z.address_width == 64) {
        lift_set_sum(l, reg, address.root, address.offset);
        return true;
    }
    LLVMValueRef sum = lift_constant(l, (uint64_t)address.offset);
    if (address.root)
        sum = LLVMBuildAdd(l->builder, address.root, sum, "");
    if (index >= 0) {
        LLVMValueRef scaled = lift_get(l, &l->state, (unsigned)index);
        scaled = LLVMBuildShl(l->builder, scaled, lift_constant(l, scale), "");
        sum = LLVMBuildAdd(l->builder, sum, scaled, "");
    }
    if (insn->z.address_width == 32)
        sum = lift_resize(l, lift_resize(l, sum, 32), 64);
    lift_write_register(l, insn->op[0].reg.value, lift_resize(l, sum, insn->op[0].size));
    return true;
}

static bool lift_push(struct lifter *l) {
    const ZydisDecodedOperand *op = &insn_of(l)->op[0];
    struct place from;
    struct lift_address stack;
    LLVMValueRef value;
    if (op->type == ZYDIS_OPERAND_TYPE_IMMEDIATE) {
        value = immediate(l, op, 64);
    } else {
        if (!place_open(l, &from, op, VMEM_READ))
            return false;
        value = place_read(l, &from, 64);
    }
    stack = lift_register_address(l, GPR_RSP, -8);
    lift_store(l, lift_check(l, &stack, 8, VMEM_WRITE), value);
    lift_set_sum(l, GPR_RSP, stack.root, stack.offset);
    return true;
}

static bool lift_pop(struct lifter *l) {
    unsigned reg = (unsigned)insn_gpr(insn_of(l)->op[0].reg.value);
    struct lift_address stack = lift_register_address(l, GPR_RSP, 0);
    LLVMValueRef value = lift_load(l, lift_check(l, &stack, 8, VMEM_READ), 64);
    lift_set_sum(l, GPR_RSP, stack.root, stack.offset + 8);
    lift_set(l, reg, value);
    return true;
}

static bool lift_leave_frame(struct lifter *l) {
    struct lift_address frame = lift_register_address(l, GPR_RBP, 0);
    LLVMValueRef value = lift_load(l, lift_check(l, &frame, 8, VMEM_READ), 64);
    lift_set_sum(l, GPR_RSP, frame.root, frame.offset + 8);
    lift_set(l, GPR_RBP, value);
    return true;
}

bool lift_item(struct lifter *l, const struct item *item) {
    switch (item->kind) {
    case KIND_NOP:
        return true;
    case KIND_LEA:
        return lift_lea(l);
    case KIND_PUSH:
        return lift_push(l);
    case KIND_POP:
        return lift_pop(l);
    case KIND_LEAVE:
        return lift_leave_frame(l);
    case KIND_COPY:
    case KIND_MEMORY:
        return lift_integer(l) || lift_native(l, item);
    case KIND_BIT_MEMORY:
        return lift_native(l, item);
    default:
        return lift_system(l, item);
    }
}
