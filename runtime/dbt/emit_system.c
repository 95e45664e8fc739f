/* System instructions: the few that are written inline, and the exits to C for the others. */
#include "dbt/unit.h"

static uint32_t segment_base(bool is_fs) {
    return is_fs ? AREA_VCPU(segment[SEG_FS].base) : AREA_VCPU(segment[SEG_GS].base);
}

void emit_read_base(struct unit *unit, const struct item *item) {
    uint32_t base = segment_base(item->insn.z.mnemonic == ZYDIS_MNEMONIC_RDFSBASE);
    int target = insn_gpr(item->insn.op[0].reg.value);
    if (item->insn.op[0].size == 64)
        asm_load_gs(&unit->code, target, base);
    else
        asm_load32_gs(&unit->code, target, base);
}

/* MOV r, Sreg: 16 bits into a 16-bit register, zero-extended into a wider one. */
void emit_read_selector(struct unit *unit, const struct item *item) {
    struct code_buffer *c = &unit->code;
    unsigned segment = (unsigned)(item->insn.op[1].reg.value - ZYDIS_REGISTER_ES);
    uint32_t selector = AREA_VCPU(segment) + (uint32_t)(segment * sizeof(struct segment));
    int target = insn_gpr(item->insn.op[0].reg.value);
    if (item->insn.op[0].size == 16) {
        code_u8(c, 0x66);
        asm_load32_gs(c, target, selector);
        return;
    }
    code_u8(c, 0x65); /* movzx r32, word gs:[selector] */
    asm_rex(c, false, target, 0, 0);
    code_u8(c, 0x0f);
    code_u8(c, 0xb7);
    code_u8(c, (uint8_t)((target & 7) << 3 | 4));
    code_u8(c, 0x25);
    code_u32(c, selector);
}

void emit_helper(struct unit *unit, const struct item *item, enum site_kind kind) {
    const ZydisDecodedOperand *op = item->insn.op;
    if (item->helper == HELPER_INVLPG && kind == SITE_HELPER) {
        emit_address(unit, item, &op[0]);
        asm_store_gs(&unit->code, AREA_HOT(value), unit->t0);
    }
    emit_reload(unit);
    struct site *site = unit_site(unit, kind, item);
    site->flags_saved = unit->flags_saved;
    site->access = (uint8_t)item->helper;
    site->size = item->insn.z.operand_width;
    switch (item->helper) {
    case HELPER_SYSRET:
        site->size = item->insn.z.raw.rex.W ? 64 : 32;
        break;
    case HELPER_WRITE_BASE:
        site->reg = (uint8_t)(insn_gpr(op[0].reg.value) |
                              (item->insn.z.mnemonic == ZYDIS_MNEMONIC_WRFSBASE ? SEG_FS : SEG_GS) << 4);
        site->size = (uint16_t)(op[0].size / 8);
        break;
    case HELPER_READ_CR:
        site->reg = (uint8_t)(insn_gpr(op[0].reg.value) | (op[1].reg.value - ZYDIS_REGISTER_CR0) << 4);
        break;
    case HELPER_WRITE_CR:
        site->reg = (uint8_t)(insn_gpr(op[1].reg.value) | (op[0].reg.value - ZYDIS_REGISTER_CR0) << 4);
        break;
    case HELPER_STRING: {
        bool stos =
            item->insn.z.meta.category == ZYDIS_CATEGORY_STRINGOP &&
            (item->insn.z.mnemonic == ZYDIS_MNEMONIC_STOSB || item->insn.z.mnemonic == ZYDIS_MNEMONIC_STOSW ||
             item->insn.z.mnemonic == ZYDIS_MNEMONIC_STOSD || item->insn.z.mnemonic == ZYDIS_MNEMONIC_STOSQ);
        bool rep =
            item->insn.z.attributes & (ZYDIS_ATTRIB_HAS_REP | ZYDIS_ATTRIB_HAS_REPE | ZYDIS_ATTRIB_HAS_REPNE);
        site->size = (uint8_t)(item->insn.op[0].size / 8);
        site->reg = (uint8_t)(stos | rep << 1);
        break;
    }
    default:
        break;
    }
    emit_exit_to_c(unit, site);
    site->host = (uint32_t)(unit->code.at - unit->dbt->rw);
    unit->flags_saved = true;
    if (item->kind == KIND_HELPER)
        emit_load_resident(unit);
}

void emit_swapgs(struct unit *unit) {
    struct code_buffer *c = &unit->code;
    asm_load_gs(c, unit->t0, AREA_VCPU(segment[SEG_GS].base));
    asm_load_gs(c, unit->t1, AREA_VCPU(kernel_gs_base));
    asm_store_gs(c, AREA_VCPU(segment[SEG_GS].base), unit->t1);
    asm_store_gs(c, AREA_VCPU(kernel_gs_base), unit->t0);
}

void emit_set_ac(struct unit *unit, bool set) {
    struct code_buffer *c = &unit->code;
    asm_store8_imm_gs(c, AREA_HOT(acflag), set ? 4 : 0);
    asm_load_gs(c, unit->t0, set ? AREA_HOT(view_kernel_ac) : AREA_HOT(view_kernel));
    asm_store_gs(c, AREA_VCPU(view), unit->t0);
}
