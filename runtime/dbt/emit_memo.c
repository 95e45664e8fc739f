/* Memos: TLBs of one page in front of the TLB, for accesses that keep to a page.
 *
 * A memo is a page and its addend in the vCPU's area. An access or group within that page needs no look at
 * the TLB, nor more than one scratch:
 *
 *   lea a, [base + index + lo];  sub a, gs:[memo page];  cmp a, 4096 - size;  ja cold
 *   mov a, gs:[memo addend];  (add the index);  <insn> [base + a + disp]
 *
 * The stack has one memo for all 64-bit code of ring 3, and one for that of the others. Each remembers a page
 * that may be written, for one view (hot.stack_view, hot.user_stack_view): whoever changes the view that a
 * ring has (STAC, CLAC, C) forgets it. The other memos are for ring 3 alone,
 * which has one view, and are dealt out to accesses in turn, those of reads apart from those of writes. When
 * vcpu->tlb_lost says that the TLB has lost something, all are forgotten before translated code goes on;
 * those of one page, when vcpu->lost_pages names it. Only accesses that move by small steps, or not at all,
 * while a loop goes on get one: an access that wanders would pay for a mispredicted branch beside the TLB.
 *
 * Forgotten means a page of non-canonical addresses and an addend of 0, so that an address that matches by
 * chance faults on the host as it does in the guest.
 */
#include "dbt/emit.h"

#define STEP_MAX 256

static uint32_t page_of(uint32_t memo) {
    return memo + (uint32_t)offsetof(struct memo, page);
}

static uint32_t addend_of(uint32_t memo) {
    return memo + (uint32_t)offsetof(struct memo, addend);
}

void emit_forget(struct code_buffer *c, uint32_t memo, int scratch) {
    asm_mov_imm(c, scratch, MEMO_PAGE_NONE);
    asm_store_gs(c, page_of(memo), scratch);
    asm_store64_imm_gs(c, addend_of(memo), 0);
}

/* Does every item leave the register alone, or move it by a constant? *steps: one moves it. */
static bool is_steady(const struct unit *unit, int reg, bool *steps) {
    for (unsigned i = 0; i < unit->items; i++) {
        const struct item *item = &unit->item[i];
        int32_t delta;
        if (!(item->insn.gprs_written >> reg & 1))
            continue;
        if (!item_steps(item, reg, &delta) || delta < -STEP_MAX || delta > STEP_MAX)
            return false;
        *steps = true;
    }
    return true;
}

/* A load whose result the block jumps to: a table of targets is small. */
static bool feeds_jump(const struct unit *unit, const struct item *item, const struct use *use) {
    const struct item *last = &unit->item[unit->items - 1];
    if (use->index < 0 || last->kind != KIND_JMP_INDIRECT)
        return false;
    if (item == last)
        return true;
    const ZydisDecodedOperand *target = &last->insn.op[0];
    return target->type == ZYDIS_OPERAND_TYPE_REGISTER && insn_gpr(target->reg.value) >= 0 &&
           item->insn.gprs_written == 1u << insn_gpr(target->reg.value);
}

bool memo_suits(const struct unit *unit, const struct item *item, const struct use *use) {
    bool steps = false;
    if (!unit->code64 || unit->portable || !(unit->block->mode & MODE_CPL3))
        return false;
    if (unit->narrow || feeds_jump(unit, item, use))
        return true;
    return is_steady(unit, use->base, &steps) && (use->index < 0 || is_steady(unit, use->index, &steps)) &&
           (unit->loop || steps);
}

uint32_t memo_next(struct unit *unit, enum vmem_access access) {
    unsigned slot = unit->dbt->next_memo[access]++ % MEMO_SLOTS;
    return AREA_MEMO(access, slot);
}

static void emit_addend(struct unit *unit, const struct memo_range *range) {
    if (range->use.index >= 0)
        asm_lea(&unit->code, true, range->addend, range->addend, range->use.index, range->use.scale, 0);
}

void emit_memo_probe(struct unit *unit, const struct item *item, const struct memo_range *range) {
    struct code_buffer *c = &unit->code;
    asm_lea(c, true, range->addend, range->use.base, range->use.index, range->use.scale, range->use.disp);
    asm_alu_gs(c, ASM_SUB, range->addend, page_of(range->memo));
    asm_cmp_imm(c, range->addend, (int32_t)(PAGE_SIZE - range->use.size));
    struct cold *cold = unit_cold(unit, asm_jcc(c, COND_A), SITE_MEMO, NO_INDEX);
    asm_load_gs(c, range->addend, addend_of(range->memo));
    emit_addend(unit, range);
    cold->back = c->at;
    cold->item = item;
    cold->range = *range;
}

/* A register that the probe may borrow: not one that it needs. */
static int borrow(const struct memo_range *range, int not_this) {
    static const int8_t order[] = {GPR_RDI, GPR_RSI, GPR_RDX, GPR_RCX, GPR_RBX};
    for (unsigned i = 0;; i++)
        if (order[i] != range->use.base && order[i] != range->use.index && order[i] != range->addend &&
            order[i] != not_this)
            return order[i];
}

/* Of the stack: a stub asks the TLB (stack.c). */
static void emit_cold_stack(struct unit *unit, const struct cold *from) {
    struct code_buffer *c = &unit->code;
    const struct memo_range *range = &from->range;
    const struct use *use = &range->use;
    const struct stack_stub *stub =
        &unit->dbt->stub_stack[(unit->block->mode & MODE_CPL3) != 0][use->access][range->addend];
    uint32_t to = stub->miss;
    if (from->remake) {
        emit_remake(unit, from->remake);
        emit_save_flags(unit, unit->t1);
        asm_lea(c, true, range->addend, use->base, -1, 0, use->disp);
        to = stub->again;
    }
    struct site *site = unit_site(unit, SITE_MEMORY, from->item);
    site->reg = (uint8_t)range->addend;
    site->size = (uint16_t)use->size;
    site->access = (uint8_t)use->access;
    site->flags_saved = true;
    site->plain = range->plain;
    site->host = stub->again;
    site->back = (uint32_t)(from->back - unit->dbt->rw);
    uint32_t plain = NO_INDEX;
    if (range->group) {
        site->group = true;
        plain = unit_site_index(unit, group_plain_site(unit, from->item));
    }
    emit_leave_memory(unit, site, plain, unit->dbt->rw + to);
}

/* The TLB itself; the flags are saved. A block with one scratch borrows the two that are missing. */
void emit_cold_memo(struct unit *unit, const struct cold *from) {
    struct code_buffer *c = &unit->code;
    const struct memo_range range = from->range;
    const struct use *use = &range.use;
    const struct item *item = from->item;
    uint8_t *back = from->back, *read_only = NULL;
    uint32_t retry = (uint32_t)(c->at - unit->dbt->rw);
    int t1 = unit->t1, t2 = unit->t2;
    if (!unit->portable && range.memo == unit_stack_memo(unit)) {
        emit_cold_stack(unit, from);
        return;
    }
    if (from->remake) {
        emit_remake(unit, from->remake);
        emit_save_flags(unit, unit->t1);
    }
    if (unit->narrow) {
        unit->t1 = borrow(&range, -1);
        unit->t2 = borrow(&range, unit->t1);
        asm_store_gs(c, AREA_HOT(borrowed[0]), unit->t1);
        asm_store_gs(c, AREA_HOT(borrowed[1]), unit->t2);
    }
    asm_lea(c, true, unit->t0, use->base, use->index, use->scale, use->disp);
    struct site *site = emit_probe(unit, item, use->size, use->access, retry);
    struct cold *cold = &unit->cold[unit->colds - 1];
    if (unit->narrow) {
        cold->borrowed[0] = (int8_t)unit->t1;
        cold->borrowed[1] = (int8_t)unit->t2;
    }
    if (range.group)
        group_site(unit, item, site);
    else
        site->plain = range.plain;
    if (range.memo == unit_stack_memo(unit) && use->access != VMEM_WRITE) {
        asm_alu_mem(c, ASM_CMP, unit->t2, unit->t1, TLB_ENTRY(tag_write));
        read_only = asm_jcc(c, COND_NE);
    }
    asm_store_gs(c, page_of(range.memo), unit->t2);
    asm_load(c, unit->t2, unit->t1, TLB_ENTRY(addend));
    asm_store_gs(c, addend_of(range.memo), unit->t2);
    if (read_only && !c->overflow)
        asm_patch_rel32(read_only, c->at);
    asm_load(c, range.addend, unit->t1, TLB_ENTRY(addend));
    emit_addend(unit, &range);
    if (unit->narrow) {
        asm_load_gs(c, unit->t1, AREA_HOT(borrowed[0]));
        asm_load_gs(c, unit->t2, AREA_HOT(borrowed[1]));
    }
    asm_jmp_to(c, back);
    unit->t1 = t1;
    unit->t2 = t2;
}
