/* A processor's own data: what ring 0 of 64-bit code reaches through GS at constant offsets.
 *
 * Kernels do so every few instructions, to the same few dozen pages. Each page, named by its offset from GS's
 * base, has a slot in a table of host addresses, so an access is
 *
 *   mov t0, gs:[table];  mov t0, [t0 + slot];  test t0, t0;  je cold;  <insn> [t0 + offset in the page]
 *
 * and the cold path asks the TLB and fills the slot. There are two tables: one for the base that was current
 * when C last looked, if that is at a page's start, and an empty one for every other base; SWAPGS exchanges
 * the tables with the bases, and C chooses behind anything else that loads one (percpu.c). Like the memos,
 * the table is emptied when the TLB has lost something, a page's slot with the page. Only what the kernel's
 * view without AC lets through is entered, which CLAC and STAC do not take away.
 */
#include "dbt/emit.h"
#include "dbt/percpu.h"

/* The offset from GS's base that the operand is at. False: it moves with something. */
static bool constant_offset(const struct unit *unit, const struct item *item, const ZydisDecodedOperand *op,
                            uint64_t *offset) {
    const struct insn *insn = &item->insn;
    bool relative = op->mem.base == ZYDIS_REGISTER_RIP;
    if (insn_segment(insn, op) != SEG_GS || insn->z.address_width != 64 || item->disp_field >= 0 ||
        op->mem.index != ZYDIS_REGISTER_NONE || (!relative && op->mem.base != ZYDIS_REGISTER_NONE))
        return false;
    *offset = op->mem.disp.has_displacement ? (uint64_t)op->mem.disp.value : 0;
    if (relative)
        *offset += unit->block->rip + item->guest + insn->length;
    return true;
}

static bool suits(const struct unit *unit) {
    return unit->code64 && unit->block->mode & MODE_CPL0 && !unit->portable && !unit->function &&
           !unit->narrow;
}

bool emit_percpu(struct unit *unit, const struct item *item, const ZydisDecodedOperand *op, unsigned size,
                 enum vmem_access access, bool plain, struct host_memory *memory) {
    struct code_buffer *c = &unit->code;
    uint64_t offset;
    if (!suits(unit) || !constant_offset(unit, item, op, &offset) ||
        (offset & (PAGE_SIZE - 1)) + size > PAGE_SIZE)
        return false;
    uint32_t slot = percpu_slot(unit->dbt, offset & PAGE_MASK);
    if (slot == NO_INDEX)
        return false;
    uint32_t place = (uint32_t)offsetof(struct percpu_table, page) + (access * PERCPU_SLOTS + slot) * 8;
    asm_load_gs(c, unit->t0, AREA_HOT(percpu));
    asm_load(c, unit->t0, unit->t0, (int32_t)place);
    asm_test(c, unit->t0, unit->t0);
    struct cold *cold = unit_cold(unit, asm_jcc(c, COND_E), SITE_PERCPU, NO_INDEX);
    cold->back = c->at;
    cold->item = item;
    cold->range = (struct memo_range){.use = {.base = -1,
                                              .index = -1,
                                              .disp = (int32_t)(offset & (PAGE_SIZE - 1)),
                                              .size = size,
                                              .access = access},
                                      .memo = place,
                                      .plain = plain};
    *memory = (struct host_memory){
        .base = (int8_t)unit->t0, .index = -1, .disp = (int32_t)(offset & (PAGE_SIZE - 1))};
    return true;
}

/* The TLB itself; the flags are saved. t0 = the page's host address, which the slot gets if it may. */
void emit_cold_percpu(struct unit *unit, const struct cold *from) {
    struct code_buffer *c = &unit->code;
    const struct memo_range range = from->range;
    const struct item *item = from->item;
    const ZydisDecodedOperand *op = &item->insn.op[item->kind == KIND_MEMORY ? item->insn.memory : 0];
    uint8_t *back = from->back;
    uint32_t retry = (uint32_t)(c->at - unit->dbt->rw);
    if (from->remake) {
        emit_remake(unit, from->remake);
        emit_save_flags(unit, unit->t1);
    }
    (void)emit_address(unit, item, op);
    emit_probe(unit, item, range.use.size, range.use.access, retry)->plain = range.plain;
    asm_alu_mem(c, ASM_ADD, unit->t0, unit->t1, TLB_ENTRY(addend));
    asm_lea(c, true, unit->t0, unit->t0, -1, 0, -range.use.disp);
    asm_load_gs(c, unit->t1, AREA_VCPU(view));
    asm_alu_gs(c, ASM_CMP, unit->t1, AREA_HOT(view_kernel));
    uint8_t *other_view = asm_jcc(c, COND_NE);
    asm_load_gs(c, unit->t1, AREA_HOT(percpu));
    asm_alu_gs(c, ASM_CMP, unit->t1, AREA_HOT(percpu_none));
    uint8_t *other_base = asm_jcc(c, COND_E);
    asm_store(c, unit->t1, (int32_t)range.memo, unit->t0);
    asm_store8_imm_gs(c, AREA_HOT(percpu_filled), 1);
    asm_jmp_to(c, back);
    if (c->overflow)
        return;
    asm_patch_rel32(other_view, back);
    asm_patch_rel32(other_base, back);
}
