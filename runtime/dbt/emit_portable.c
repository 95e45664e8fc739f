/* What a block holds of its surroundings: stubs, its own site numbers, links to other blocks, guest
 * addresses.
 *
 * In a vCPU's own code cache these are immediates and rel32s, patched in place. A portable unit (portable.h)
 * lies in memory that is shared and never written: there they come from a link slot or a constant at a fixed
 * distance from the code, and a relocation says which.
 */
#include "dbt/emit.h"

static void add_reloc(struct unit *unit, const struct ntc_reloc *reloc) {
    struct portable *portable = unit->portable;
    if (portable->relocs == PORTABLE_MAX)
        unit->code.overflow = true;
    else
        portable->reloc[portable->relocs++] = *reloc;
}

/* A RIP-relative operand at the end of its instruction. */
static void emit_field(struct unit *unit, enum ntc_reloc_kind kind, unsigned index) {
    struct code_buffer *c = &unit->code;
    add_reloc(unit, &(struct ntc_reloc){.place = (uint32_t)(c->at - c->start),
                                        .kind = (uint8_t)kind,
                                        .where = NTC_PLACE_CODE,
                                        .index = (uint16_t)index,
                                        .width = 4});
    code_u32(c, 0);
}

static unsigned add_const(struct unit *unit, uint64_t value) {
    struct portable *portable = unit->portable;
    if (portable->consts == PORTABLE_MAX) {
        unit->code.overflow = true;
        return 0;
    }
    portable->constant[portable->consts] = value;
    return portable->consts++;
}

/* mov reg, [rip + constant or slot] */
static void emit_load_word(struct unit *unit, int reg, enum ntc_reloc_kind kind, unsigned index) {
    struct code_buffer *c = &unit->code;
    asm_rex(c, true, reg, 0, 0);
    code_u8(c, 0x8b);
    code_u8(c, (uint8_t)((reg & 7) << 3 | 5));
    emit_field(unit, kind, index);
}

static void emit_load_const(struct unit *unit, int reg, unsigned index) {
    emit_load_word(unit, reg, NTC_RELOC_CONST, index);
}

/* jmp [rip + slot] */
static void emit_jmp_slot(struct unit *unit, enum ntc_reloc_kind kind, unsigned index) {
    code_u8(&unit->code, 0xff);
    code_u8(&unit->code, 0x25);
    emit_field(unit, kind, index);
}

void portable_begin(struct unit *unit) {
    struct portable *portable = unit->portable;
    portable->relocs = portable->consts = 0;
    memset(portable->tail, 0, sizeof portable->tail);
    portable->slots = PORTABLE_SITE_SLOT + 1;
    portable->slot[PORTABLE_SITE_SLOT] = 0;
    portable->exit[PORTABLE_SITE_SLOT].link = false;
    portable->switch_slot = PORTABLE_SITE_SLOT;
    portable->switch_bit = PORTABLE_SITE_SWITCHES;
}

/* Without flags, which may be live: mov a, [rip + first site]; mov b, gs:[site]; lea a, [a + b]; mov
 * gs:[site], a; jmp [rip + stub] */
static void emit_tail(struct unit *unit, enum runtime_slot stub) {
    struct code_buffer *c = &unit->code;
    int a = stub == RUNTIME_MEMORY ? unit->t1 : GPR_R10, b = stub == RUNTIME_MEMORY ? unit->t2 : GPR_R11;
    emit_load_word(unit, a, NTC_RELOC_SLOT, PORTABLE_SITE_SLOT);
    asm_load32_gs(c, b, AREA_HOT(site));
    asm_lea(c, true, a, a, b, 0, 0);
    asm_store32_gs(c, AREA_HOT(site), a);
    emit_jmp_slot(unit, NTC_RELOC_RUNTIME, stub);
}

/* A vCPU's own block: the site goes along in a register that nothing is in at that point. A block with one
 * scratch has none in mid-instruction. */
static void leave_own(struct unit *unit, const struct site *site, enum runtime_slot stub) {
    struct code_buffer *c = &unit->code;
    const struct dbt_vcpu *dbt = unit->dbt;
    uint32_t index = unit_site_index(unit, site);
    const uint8_t *to = dbt_stub(dbt, stub);
    if (stub == RUNTIME_MEMORY && unit->narrow) {
        asm_store32_imm_gs(c, AREA_HOT(site), index);
    } else if (stub == RUNTIME_MEMORY) {
        asm_mov_imm(c, unit->t1, index);
        to = dbt->stub_memory_by[unit->t1];
    } else {
        asm_mov_imm(c, GPR_R9, index);
        to -= STUB_SITE_BYTES;
    }
    asm_jmp_to(c, dbt->rw + (to - dbt->rx));
}

/* In a portable unit the number is that within the unit; the unit's tail for the stub makes it whole. The
 * first exit has the tail in place. */
void emit_leave_to(struct unit *unit, const struct site *site, enum runtime_slot stub) {
    struct code_buffer *c = &unit->code;
    struct portable *portable = unit->portable;
    if (!portable) {
        leave_own(unit, site, stub);
        return;
    }
    asm_store32_imm_gs(c, AREA_HOT(site), unit_site_index(unit, site) - unit->block->first_site);
    uint8_t **tail = &portable->tail[stub][stub == RUNTIME_MEMORY ? unit->t1 * 16 + unit->t2 : 0];
    if (*tail) {
        asm_jmp_to(c, *tail);
    } else {
        *tail = c->at;
        emit_tail(unit, stub);
    }
}

uint32_t emit_patchable_jump(struct unit *unit, uint32_t *behind) {
    struct code_buffer *c = &unit->code;
    struct portable *portable = unit->portable;
    if (!portable) {
        uint8_t *place = asm_jmp(c);
        if (!c->overflow)
            asm_patch_rel32(place, c->at);
        *behind = (uint32_t)(c->at - unit->dbt->rw);
        return (uint32_t)(place - unit->dbt->rw);
    }
    if (portable->slots == PORTABLE_MAX) {
        c->overflow = true;
        return 0;
    }
    uint32_t slot = portable->slots++;
    emit_jmp_slot(unit, NTC_RELOC_SLOT, slot);
    portable->slot[slot] = (uint64_t)(c->at - c->start);
    portable->exit[slot].link = false;
    *behind = (uint32_t)(c->at - unit->dbt->rw);
    return slot;
}

/* The bits of slots that no address has are switches: those of slot 0 above the block's number, then those of
 * slots that nothing jumps through. A slot of its own for each check would be half of all. The flags are
 * saved. */
uint8_t *portable_switch(struct unit *unit, struct site *site) {
    struct code_buffer *c = &unit->code;
    struct portable *portable = unit->portable;
    if (portable->switch_bit == 64) {
        if (portable->slots == PORTABLE_MAX) {
            c->overflow = true;
            return NULL;
        }
        portable->switch_slot = portable->slots++;
        portable->slot[portable->switch_slot] = 0;
        portable->exit[portable->switch_slot].link = false;
        portable->switch_bit = PORTABLE_SWITCHES;
    }
    site->cold = portable->switch_slot;
    site->target = (int32_t)portable->switch_bit++;
    emit_load_word(unit, unit->t1, NTC_RELOC_SLOT, site->cold);
    asm_bt_imm(c, unit->t1, (unsigned)site->target);
    return asm_jcc(c, COND_B);
}

bool portable_shared_exit(struct unit *unit, struct site *site) {
    struct portable *portable = unit->portable;
    if (!portable || site->kind != SITE_LINK || site->state)
        return false;
    for (uint32_t slot = 0; slot < portable->slots; slot++) {
        const struct portable_exit *exit = &portable->exit[slot];
        if (!exit->link || exit->target != site->target || exit->flags_saved != site->flags_saved)
            continue;
        emit_jmp_slot(unit, NTC_RELOC_SLOT, slot);
        site->host = slot;
        return true;
    }
    return false;
}

void portable_share_exit(struct unit *unit, const struct site *site) {
    if (unit->portable && site->kind == SITE_LINK && !site->state && !unit->code.overflow)
        unit->portable->exit[site->host] =
            (struct portable_exit){.target = site->target, .link = true, .flags_saved = site->flags_saved};
}

void emit_guest_address(struct unit *unit, int reg, uint64_t address) {
    if (!unit->portable) {
        asm_mov_imm(&unit->code, reg, address);
        return;
    }
    if (!unit->code64)
        unit->code.overflow = true;
    unsigned index = add_const(unit, address);
    add_reloc(unit, &(struct ntc_reloc){.place = index,
                                        .kind = NTC_RELOC_ADDRESS,
                                        .where = NTC_PLACE_CONST,
                                        .width = 8,
                                        .addend = (int64_t)(address - unit->block->rip)});
    emit_load_const(unit, reg, index);
}

void emit_field_value(struct unit *unit, const struct item *item, int reg, int number, bool relative) {
    const struct ntc_field *field = &unit->field[number];
    int64_t value = ntc_field_value(field, unit->bytes), end = field->offset + field->size;
    int64_t rest = item->guest + item->insn.length - end;
    unsigned index =
        add_const(unit, (uint64_t)value + (relative ? unit->block->rip + (uint64_t)(end + rest) : 0));
    add_reloc(unit, &(struct ntc_reloc){.place = index,
                                        .kind = relative ? NTC_RELOC_FIELD_PC : NTC_RELOC_FIELD,
                                        .where = NTC_PLACE_CONST,
                                        .width = 8,
                                        .index = (uint16_t)number,
                                        .addend = relative ? rest : 0});
    emit_load_const(unit, reg, index);
}

/* opcode reg, [rip + the field's value] */
static void emit_op_field(struct unit *unit, const struct item *item, uint8_t opcode, int reg) {
    struct code_buffer *c = &unit->code;
    const struct ntc_field *field = &unit->field[item->imm_field];
    unsigned index = add_const(unit, (uint64_t)ntc_field_value(field, unit->bytes));
    add_reloc(unit, &(struct ntc_reloc){.place = index,
                                        .kind = NTC_RELOC_FIELD,
                                        .where = NTC_PLACE_CONST,
                                        .width = 8,
                                        .index = (uint16_t)item->imm_field});
    asm_rex(c, item->insn.op[0].size == 64, reg, 0, 0);
    code_u8(c, opcode);
    code_u8(c, (uint8_t)((reg & 7) << 3 | 5));
    emit_field(unit, NTC_RELOC_CONST, index);
}

void emit_with_field(struct unit *unit, const struct item *item, const struct host_memory *memory) {
    const struct insn *insn = &item->insn;
    bool move = insn->z.mnemonic == ZYDIS_MNEMONIC_MOV;
    unsigned operation = insn->z.opcode == 0x81 ? insn->z.raw.modrm.reg : insn->z.opcode >> 3;
    if (!memory) {
        emit_op_field(unit, item, move ? 0x8b : (uint8_t)(operation * 8 + 3),
                      insn_gpr(insn->op[0].reg.value));
        return;
    }
    emit_field_value(unit, item, unit->t2, item->imm_field, false);
    asm_mem(&unit->code, insn->op[0].size == 64, move ? 0x89 : (uint8_t)(operation * 8 + 1), unit->t2,
            memory->base, memory->index, 0, memory->disp);
}

void emit_guest_address32(struct unit *unit, int reg, uint64_t address) {
    if (unit->portable)
        unit->code.overflow = true;
    asm_mov_imm(&unit->code, reg, (uint32_t)address);
}
