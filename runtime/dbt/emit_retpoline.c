/* Retpolines: indirect branches that a kernel or a compiler spells as a call and a return, so that no
 * processor predicts them. The call leads over code that only a misprediction reaches:
 *
 *           call 2f
 *   1:      pause;  lfence;  jmp 1b        (or INT3, or anything else)
 *   2:      mov [rsp], reg
 *           ret
 *
 * They are known by their instructions, wherever they stand and however the gap is filled. All of it is one
 * item, which asks the jump cache as JMP reg would. The return address that the call pushes is overwritten
 * before anything can look at it, but for another processor: the register is stored in its place at once. The
 * one fault on the way is the call's own, of its push. (What the store and the return touch was just written
 * to.) RSP ends where it began. A target that is not canonical faults at the return, with RSP as the call
 * left it: the interpreter does the call then, and translated code goes on behind it (bad_target()).
 *
 * A return thunk is a jump to RET, and is translated as that.
 */
#include "dbt/emit.h"

#define GAP_MAX 64

unsigned retpoline_find(const struct unit *unit, struct item *item, unsigned offset) {
    int64_t gap = item->insn.op[0].imm.value.s;
    if (unit->portable || unit->function || gap <= 0 || gap > GAP_MAX || item->insn.z.operand_width == 16)
        return 0;
    unsigned rex = unit->code64, length = item->insn.length + (unsigned)gap + rex + 4;
    if (offset + length > unit->room || offset + length > unit->limit)
        return 0;
    /* [REX.W] 89 /r: MOV [rSP], reg; C3 */
    const uint8_t *at = unit->bytes + offset + length - 4;
    int reg = at[1] >> 3 & 7;
    if (at[0] != 0x89 || (at[1] & 0xc7) != 0x04 || at[2] != 0x24 || at[3] != 0xc3)
        return 0;
    if (rex && (at[-1] & 0xfb) != 0x48)
        return 0;
    if (rex)
        reg |= (at[-1] & 4) << 1;
    if (reg == GPR_RSP)
        return 0;
    item->through = (int8_t)reg;
    item->insn.gprs_read |= (uint16_t)(1u << reg);
    return length;
}

void emit_retpoline(struct unit *unit, const struct item *item) {
    struct code_buffer *c = &unit->code;
    struct host_memory to = emit_stack(unit, item, unit->code64 ? -8 : -4, VMEM_WRITE);
    asm_mem(c, unit->code64, 0x89, item->through, to.base, to.index, 0, to.disp);
    emit_rsp_settle(unit);
    emit_flags_clobber(unit);
    if (unit->code64)
        asm_mov(c, unit->t0, item->through);
    else
        asm_mov32(c, unit->t0, item->through);
    emit_jump(unit, item);
}
