/* Stack accesses of 64-bit code: a TLB of one page in front of the TLB.
 *
 * The area remembers the page (and its addend) that the stack was last found on with permission to write. An
 * access or group within it needs no look at the TLB:
 *
 *   lea t0, [rsp + lo];  mov t2, t0;  sub t2, gs:[stack_page];  cmp t2, 4096 - size;  ja cold
 *   mov addend, gs:[stack_addend]
 *
 * It holds for the current view only, and until anything could have flushed or protected a page: whoever
 * changes the view (STAC, CLAC) and every return from C forget it. Forgotten means a page of non-canonical
 * addresses and an addend of 0, so that a stack pointer that matches by chance faults on the host as it does
 * in the guest.
 */
#include "dbt/unit.h"

void emit_forget_stack(struct unit *unit) {
    struct code_buffer *c = &unit->code;
    asm_mov_imm(c, unit->t0, VTLB_INVALID);
    asm_store_gs(c, AREA_HOT(stack_page), unit->t0);
    asm_store64_imm_gs(c, AREA_HOT(stack_addend), 0);
}

void emit_stack_probe(struct unit *unit, const struct item *item, const struct stack_range *range) {
    struct code_buffer *c = &unit->code;
    asm_lea(c, true, unit->t0, GPR_RSP, -1, 0, range->lo);
    asm_mov(c, unit->t2, unit->t0);
    asm_alu_gs(c, ASM_SUB, unit->t2, AREA_HOT(stack_page));
    asm_cmp_imm(c, unit->t2, (int32_t)(PAGE_SIZE - range->size));
    struct cold *cold = unit_cold(unit, asm_jcc(c, COND_A), SITE_STACK, NO_INDEX);
    asm_load_gs(c, range->addend, AREA_HOT(stack_addend));
    cold->back = c->at;
    cold->item = item;
    cold->stack = *range;
}

/* The TLB itself; t0 is the address, the flags are saved. */
void emit_cold_stack(struct unit *unit, const struct cold *cold) {
    struct code_buffer *c = &unit->code;
    const struct stack_range range = cold->stack;
    const struct item *item = cold->item;
    uint8_t *back = cold->back, *read_only = NULL;
    struct site *site = emit_probe(unit, item, range.size, range.access, (uint32_t)(c->at - unit->dbt->rw));
    if (range.group)
        group_site(unit, item, site);
    else
        site->plain = true;
    if (range.access != VMEM_WRITE) {
        asm_alu_mem(c, ASM_CMP, unit->t2, unit->t1, offsetof(struct vtlb_entry, tag_write));
        read_only = asm_jcc(c, COND_NE);
    }
    asm_load(c, range.addend, unit->t1, offsetof(struct vtlb_entry, addend));
    asm_store_gs(c, AREA_HOT(stack_page), unit->t2);
    asm_store_gs(c, AREA_HOT(stack_addend), range.addend);
    asm_jmp_to(c, back);
    if (!read_only || c->overflow)
        return;
    asm_patch_rel32(read_only, c->at);
    asm_load(c, range.addend, unit->t1, offsetof(struct vtlb_entry, addend));
    asm_jmp_to(c, back);
}
