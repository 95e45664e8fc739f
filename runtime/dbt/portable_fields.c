/* Fields of portable units: places of the guest's code whose value depends on where an image was loaded
 * (docs/cache-format.md). The host code takes such a value from a constant, so that it is the same wherever
 * the guest's code stands. Where no way to write that is known the field is stuck: the unit then matches only
 * guest bytes that are as recorded there.
 */
#include "dbt/unit.h"

static int field_number(const struct unit *unit, uint32_t offset, uint32_t length) {
    unsigned low = 0, high = unit->fields;
    while (low < high) { /* the first one that ends behind offset */
        unsigned middle = low + (high - low) / 2;
        if (unit->field[middle].offset + unit->field[middle].size <= offset)
            low = middle + 1;
        else
            high = middle;
    }
    return low < unit->fields && unit->field[low].offset < offset + length ? (int)low : -1;
}

static bool is_relative(const struct insn *insn) {
    return insn->op[0].type == ZYDIS_OPERAND_TYPE_IMMEDIATE && insn->op[0].imm.is_relative;
}

static bool displacement_is_kept_out(const struct item *item) {
    if (item->insn.z.address_width != 64)
        return false;
    switch (item->kind) {
    case KIND_MEMORY:
    case KIND_BIT_MEMORY:
    case KIND_PUSH:
    case KIND_JMP_INDIRECT:
    case KIND_CALL_INDIRECT:
        return true;
    case KIND_LEA:
        return item->insn.z.operand_width == 64;
    default:
        return false;
    }
}

static bool immediate_is_kept_out(const struct item *item) {
    const struct insn *insn = &item->insn;
    uint8_t opcode = insn->z.opcode;
    bool add_to_sub = insn->z.opcode_map == ZYDIS_OPCODE_MAP_DEFAULT &&
                      (opcode == 0x81 || (opcode < 0x40 && (opcode & 7) == 5));
    bool move = insn->z.opcode_map == ZYDIS_OPCODE_MAP_DEFAULT && (opcode == 0xc7 || (opcode & 0xf8) == 0xb8);
    switch (item->kind) {
    case KIND_JMP:
    case KIND_CALL:
    case KIND_JCC:
        return is_relative(insn);
    case KIND_PUSH:
        return insn->op[0].type == ZYDIS_OPERAND_TYPE_IMMEDIATE;
    case KIND_COPY:
    case KIND_MEMORY:
        return (add_to_sub || move) && insn->op[0].size >= 32 && !(insn->traits & INSN_LOCKED);
    default:
        return false;
    }
}

/* The interpreter and NOPs take nothing from the code. */
static bool compiles_nothing(const struct item *item) {
    return item->kind == KIND_INTERPRET || item->kind == KIND_NOP;
}

void portable_find_fields(struct unit *unit, struct item *item) {
    const struct insn *insn = &item->insn;
    uint32_t at = item->guest, end = at + insn->length;
    while (at < end) {
        int number = field_number(unit, at, end - at);
        if (number < 0)
            return;
        const struct ntc_field *field = &unit->field[number];
        uint32_t offset = field->offset - (uint32_t)item->guest;
        at = field->offset + (uint32_t)field->size;
        if (compiles_nothing(item))
            continue;
        if (field->offset >= item->guest && insn->z.raw.disp.size == field->size * 8 &&
            insn->z.raw.disp.offset == offset && displacement_is_kept_out(item))
            item->disp_field = (int16_t)number;
        else if (field->offset >= item->guest && insn->z.raw.imm[0].size == field->size * 8 &&
                 insn->z.raw.imm[0].offset == offset && immediate_is_kept_out(item))
            item->imm_field = (int16_t)number;
        else
            unit->field_stuck[number] = true;
    }
}
