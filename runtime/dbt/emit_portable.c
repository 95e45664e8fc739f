/* What a block holds of its surroundings: stubs, its own site numbers, links to other blocks, guest
 * addresses.
 *
 * In a vCPU's own code cache these are immediates and rel32s, patched in place. A portable unit (portable.h)
 * lies in memory that is shared and never written: there they come from a link slot or a constant at a fixed
 * distance from the code, and a relocation says which.
 */
#include "dbt/unit.h"

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

static void emit_load_const(struct unit *unit, int reg, unsigned index) {
    struct code_buffer *c = &unit->code;
    asm_rex(c, true, reg, 0, 0);
    code_u8(c, 0x8b);
    code_u8(c, (uint8_t)((reg & 7) << 3 | 5));
    emit_field(unit, NTC_RELOC_CONST, index);
}

/* jmp [rip + slot] */
static void emit_jmp_slot(struct unit *unit, enum ntc_reloc_kind kind, unsigned index) {
    code_u8(&unit->code, 0xff);
    code_u8(&unit->code, 0x25);
    emit_field(unit, kind, index);
}

void portable_begin(struct unit *unit) {
    unit->portable->relocs = unit->portable->slots = unit->portable->consts = 0;
    (void)add_const(unit, 0); /* PORTABLE_SITE_CONST */
}

void emit_stub_jump(struct unit *unit, enum runtime_slot stub) {
    struct dbt_vcpu *dbt = unit->dbt;
    if (unit->portable)
        emit_jmp_slot(unit, NTC_RELOC_RUNTIME, stub);
    else
        asm_jmp_to(&unit->code, dbt->rw + (dbt_stub(dbt, stub) - dbt->rx));
}

void emit_site_number(struct unit *unit, const struct site *site, int scratch) {
    struct code_buffer *c = &unit->code;
    if (!unit->portable) {
        asm_store32_imm_gs(c, AREA_HOT(site), unit_site_index(unit, site));
        return;
    }
    uint32_t number = unit_site_index(unit, site) - unit->block->first_site;
    emit_load_const(unit, scratch, PORTABLE_SITE_CONST);
    asm_lea(c, true, scratch, scratch, -1, 0, (int32_t)number);
    asm_store32_gs(c, AREA_HOT(site), scratch);
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
    *behind = (uint32_t)(c->at - unit->dbt->rw);
    return slot;
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

void emit_guest_address32(struct unit *unit, int reg, uint64_t address) {
    if (unit->portable)
        unit->code.overflow = true;
    asm_mov_imm(&unit->code, reg, (uint32_t)address);
}
