/* Flags that need not be kept, because the instruction that made them can make them again.
 *
 * A check clobbers the host's flags. Where the guest's are the work of a comparison, an addition or a logical
 * instruction whose registers still hold what they held, they are let go instead of saved (unit->remake says
 * whose they are), and made again by whoever turns out to need them:
 *   - a later instruction of the block, or its end;
 *   - a check that fails: its cold path makes and saves them;
 *   - a fault on the host: its place in the block names a piece of code behind the block, to which the signal
 *     handler returns (dbt_handle_signal()). That makes the flags and faults once more, with them live.
 * In a portable unit the map says of such a place that its flags are made again (PORTABLE_STATE_REMADE), and
 * of the code that does it which instruction it is for (PORTABLE_STATE_REMAKES).
 */
#include "dbt/emit.h"
#include "dbt/rewrite.h"

static bool is_register(const ZydisDecodedOperand *op) {
    return op->type == ZYDIS_OPERAND_TYPE_REGISTER && insn_gpr(op->reg.value) >= 0;
}

static bool is_sum(const struct item *item) {
    return item->insn.z.mnemonic == ZYDIS_MNEMONIC_ADD || item->insn.z.mnemonic == ZYDIS_MNEMONIC_SUB;
}

static bool is_logical(const struct item *item) {
    return item->insn.z.mnemonic == ZYDIS_MNEMONIC_AND || item->insn.z.mnemonic == ZYDIS_MNEMONIC_OR ||
           item->insn.z.mnemonic == ZYDIS_MNEMONIC_XOR;
}

/* The registers that the flags can be made from again; 0: they cannot (by an immediate that is a field, only
 * the result is known). */
static uint16_t sources(const struct unit *unit, const struct item *item) {
    const struct insn *insn = &item->insn;
    const ZydisDecodedOperand *op = insn->op;
    uint16_t registers;
    if (!is_register(&op[0]) || (item->imm_field >= 0 && !is_logical(item)))
        return 0;
    switch (insn->z.mnemonic) {
    case ZYDIS_MNEMONIC_CMP:
    case ZYDIS_MNEMONIC_TEST:
        registers = item->kind == KIND_COPY ? insn->gprs_read : 0;
        break;
    case ZYDIS_MNEMONIC_AND:
    case ZYDIS_MNEMONIC_OR:
    case ZYDIS_MNEMONIC_XOR:
        registers = op[0].size >= 32 ? insn->gprs_written : 0;
        break;
    case ZYDIS_MNEMONIC_ADD:
    case ZYDIS_MNEMONIC_SUB:
        if (unit->narrow || item->kind != KIND_COPY || op[0].size < 32)
            return 0;
        registers = insn->gprs_written;
        if (is_register(&op[1])) {
            uint16_t other = (uint16_t)(1u << insn_gpr(op[1].reg.value));
            registers = registers == other ? 0 : registers | other;
        } else if (op[1].type != ZYDIS_OPERAND_TYPE_IMMEDIATE || (int32_t)op[1].imm.value.s == INT32_MIN) {
            return 0;
        }
        break;
    default:
        return 0;
    }
    return registers >> GPR_RSP & 1 ? 0 : registers;
}

/* op reg, imm32: the ALU family's digit */
static void emit_alu_imm(struct code_buffer *c, bool wide, int digit, int reg, int32_t value) {
    asm_rex(c, wide, 0, 0, reg);
    code_u8(c, 0x81);
    code_u8(c, (uint8_t)(0xc0 | digit << 3 | (reg & 7)));
    code_u32(c, (uint32_t)value);
}

static void emit_alu_reg(struct code_buffer *c, bool wide, uint8_t opcode, int to, int from) {
    asm_rex(c, wide, to, 0, from);
    code_u8(c, opcode);
    code_u8(c, (uint8_t)(0xc0 | (to & 7) << 3 | (from & 7)));
}

/* In t1: what the register was before, and the operation once more. SUB is done as CMP. */
static void emit_sum(struct unit *unit, const struct item *item) {
    struct code_buffer *c = &unit->code;
    const ZydisDecodedOperand *op = item->insn.op;
    bool wide = op[0].size == 64, add = item->insn.z.mnemonic == ZYDIS_MNEMONIC_ADD;
    int result = insn_gpr(op[0].reg.value);
    if (op[1].type == ZYDIS_OPERAND_TYPE_IMMEDIATE) {
        int32_t value = (int32_t)op[1].imm.value.s;
        asm_lea(c, wide, unit->t1, result, -1, 0, add ? -value : value);
        emit_alu_imm(c, wide, add ? 0 : 7, unit->t1, value);
        return;
    }
    int other = insn_gpr(op[1].reg.value);
    if (add) {
        asm_mov(c, unit->t1, result);
        emit_alu_reg(c, wide, ASM_SUB, unit->t1, other);
        emit_alu_reg(c, wide, ASM_ADD, unit->t1, other);
    } else {
        asm_lea(c, wide, unit->t1, result, other, 0, 0);
        emit_alu_reg(c, wide, ASM_CMP, unit->t1, other);
    }
}

void emit_remake(struct unit *unit, const struct item *item) {
    struct code_buffer *c = &unit->code;
    const ZydisDecodedOperand *op = item->insn.op;
    if (is_sum(item)) {
        emit_sum(unit, item);
    } else if (item->insn.z.mnemonic == ZYDIS_MNEMONIC_CMP || item->insn.z.mnemonic == ZYDIS_MNEMONIC_TEST) {
        insn_encode(c, &item->insn, NULL);
        rewrite_note(unit, item);
    } else {
        int result = insn_gpr(op[0].reg.value); /* logical: by the result alone, and AF is 0 */
        emit_alu_reg(c, op[0].size == 64, 0x85, result, result);
    }
}

static bool is_plain(enum kind kind) {
    switch (kind) {
    case KIND_COPY:
    case KIND_NOP:
    case KIND_LEA:
    case KIND_MEMORY:
    case KIND_PUSH:
    case KIND_POP:
    case KIND_JCC:
    case KIND_JCXZ:
    case KIND_JMP:
    case KIND_CALL:
    case KIND_RET:
    case KIND_RETPOLINE:
    case KIND_JMP_INDIRECT:
    case KIND_CALL_INDIRECT:
        return true;
    default:
        return false;
    }
}

/* Does the item take away what the flags would be made from, and not the flags with it? */
static bool spoils(const struct unit *unit, const struct item *item, const struct item *maker) {
    return item->insn.gprs_written & sources(unit, maker) &&
           (item->insn.flags_written & FLAGS_ARITHMETIC) != FLAGS_ARITHMETIC;
}

void emit_flags_lose(struct unit *unit, const struct item *item) {
    const struct dbt_vcpu *dbt = unit->dbt;
    if (unit->flags_saved || unit->remake)
        return;
    if (!unit->maker || !unit->block->pcs || !is_plain(item->kind) || spoils(unit, item, unit->maker)) {
        emit_flags_clobber(unit);
        return;
    }
    unit->remake = unit->maker;
    unit_note_pc(unit, dbt->pc[dbt->pcs - 1].guest);
}

void remake_before(struct unit *unit, const struct item *item) {
    if (!unit->remake)
        return;
    if (!is_plain(item->kind))
        emit_flags_live(unit);
    else if (spoils(unit, item, unit->remake))
        emit_flags_clobber(unit);
}

const struct item *remake_after(const struct unit *unit, const struct item *item, const struct item *maker) {
    uint32_t written = item->insn.flags_written & FLAGS_ARITHMETIC;
    if (!is_plain(item->kind))
        return NULL;
    if (written)
        return written == FLAGS_ARITHMETIC && (item->kind == KIND_COPY || item->kind == KIND_MEMORY) &&
                       sources(unit, item)
                   ? item
                   : NULL;
    return maker && item->insn.gprs_written & sources(unit, maker) ? NULL : maker;
}

/* For each place where flags are nowhere: what makes them, and a fault with them live. */
void emit_remakes(struct unit *unit, uint32_t first, uint32_t count) {
    struct dbt_vcpu *dbt = unit->dbt;
    struct code_buffer *c = &unit->code;
    unsigned maker = 0, guest = 0, offset = 0; /* of the last one */
    int lag = 0;
    unit->flags_saved = false;
    for (uint32_t i = 0; i < count && !c->overflow; i++) {
        struct pc_entry *entry = &dbt->pc[first + i];
        if (!entry->remake)
            continue;
        if (entry->remake != maker || entry->guest != guest || entry->rsp_lag != lag) {
            maker = entry->remake;
            guest = entry->guest;
            unit->rsp_lag = lag = entry->rsp_lag;
            offset = (unsigned)(c->at - c->start);
            unit_note_pc(unit, guest);
            dbt->pc[dbt->pcs - 1].remakes = true;
            emit_remake(unit, &unit->item[maker - 1]);
            code_u8(c, 0x0f); /* ud2 */
            code_u8(c, 0x0b);
        }
        entry->remake = (uint16_t)offset;
    }
}
