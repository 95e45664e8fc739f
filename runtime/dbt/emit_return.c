/* Returns: a cache of landings that the calls themselves fill.
 *
 * The block of a call holds a landing for the return. The call writes its host address into a table, at the
 * slot that the low byte of the return address names; RET jumps to what stands in the slot of its own target,
 * and the landing sees to it that this is the return address it stands for:
 *
 *   call:     push;  lea t, [landing];  mov gs:[slot], t
 *   ret:      mov r11, [rsp];  lea rsp, [rsp + 8];  mov r9d, site;  movzx r10d, r11b
 *             jmp gs:[r10 * 8 + table]
 *   landing:  cmp r11, return address;  jne stub_return;  jmp block (a link like any other)
 *
 * The flags are saved at a RET. No state can get out of step: whatever RET finds in its slot is a landing or
 * stub_return, which asks the jump cache, and so does a landing whose address is another one.
 *
 * A landing is on the page of its call and leads to that page only, so it may be jumped to as long as the
 * page that the call was executed from is where it was, in the mode that the call was made for. Rings 0 to 2
 * and ring 3 have tables of their own, emptied when what they rely on changes: see jump.c. A block that is
 * dropped takes its landing out of its slot (block_kill()).
 */
#include "dbt/emit.h"
#include "mem/guest_mem.h"

#define TARGET GPR_R11
#define INDEX GPR_R10
#define SITE GPR_R9
_Static_assert((HOMED >> TARGET & HOMED >> INDEX & HOMED >> SITE & 1) == 1, "free between blocks");
_Static_assert(RETURN_SLOTS == 256, "the index is a byte");

static uint32_t table_of(const struct unit *unit) {
    bool user = unit->block->mode & MODE_CPL3;
    return (uint32_t)(offsetof(struct dbt_area, returns) + user * RETURN_SLOTS * sizeof(uint64_t));
}

void return_expect(struct unit *unit) {
    struct code_buffer *c = &unit->code;
    uint64_t back = unit->end_rip;
    if (!unit->code64 || unit->portable || unit->function || unit->block->ram_page2 != GUEST_NO_RAM ||
        (unit->block->rip ^ back) & PAGE_MASK)
        return;
    unit->landing = asm_lea_rip(c, unit->t2);
    asm_store_gs(c, table_of(unit) + (uint32_t)(back % RETURN_SLOTS * sizeof(uint64_t)), unit->t2);
}

void emit_landing(struct unit *unit) {
    struct code_buffer *c = &unit->code;
    const struct dbt_vcpu *dbt = unit->dbt;
    uint64_t back = unit->end_rip;
    if (!unit->landing || c->overflow)
        return;
    asm_patch_rel32(unit->landing, c->at);
    if ((uint64_t)(int64_t)(int32_t)back == back) {
        asm_cmp_imm(c, TARGET, (int32_t)back);
    } else {
        asm_mov_imm(c, INDEX, back);
        asm_alu(c, ASM_CMP, TARGET, INDEX);
    }
    uint8_t *other = asm_jcc(c, COND_NE);
    if (!c->overflow)
        asm_patch_rel32(other, dbt->rw + (dbt->stub_return - dbt->rx));
    struct site *site = unit_link_site(unit, &unit->item[unit->items - 1], back);
    site->flags_saved = true;
    emit_unlinked(unit, site);
}

void emit_ret(struct unit *unit, const struct item *item) {
    struct code_buffer *c = &unit->code;
    int size = unit->code64 ? 8 : 4, release = 0;
    if (item->insn.z.operand_count_visible)
        release = (int)(item->insn.op[0].imm.value.u & 0xffff);
    struct host_memory from = emit_stack(unit, item, 0, VMEM_READ);
    asm_mem(c, unit->code64, 0x8b, unit->t0, from.base, from.index, 0, from.disp);
    emit_rsp_move(unit, size + release);
    emit_rsp_settle(unit);
    if (!unit->code64 || unit->portable) {
        emit_jump(unit, item);
        return;
    }
    emit_flags_clobber(unit);
    struct site *site = unit_site(unit, SITE_JUMP_MISS, item);
    site->flags_saved = true;
    if (unit->t0 != TARGET)
        asm_mov(c, TARGET, unit->t0);
    emit_reload(unit);
    asm_mov_imm(c, SITE, unit_site_index(unit, site));
    asm_movzx8(c, INDEX, TARGET);
    code_u8(c, 0x65); /* jmp gs:[index * 8 + table] */
    asm_mem(c, false, 0xff, 4, -1, INDEX, 3, (int32_t)table_of(unit));
}
