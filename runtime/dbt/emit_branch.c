/* Leaving a block: direct links, and the jump cache for everything whose target may lie elsewhere next time.
 *
 * A direct exit is a jmp rel32 (or a Jcc's rel32 when nothing was spilled) that leads to cold code until
 * block_link() patches it.
 *
 * The jump cache is asked with the guest's target in t0 and the flags saved. Bits 63-47 must be as in the
 * block's own address, so that the target is canonical (see jump.c); t0 ^= gs:[jump_key] is the key, its low
 * half times JUMP_CACHE_MULTIPLIER gives the index. What is cached is the entry for saved flags. By the jump,
 * registers that the block spilled hold guest values again: the index is in one that it did not spill, or
 * else the host's target goes through gs:[target].
 */
#include "dbt/emit.h"

#define JUMP_KEY ((int32_t)offsetof(struct dbt_area, jump.key))
#define JUMP_HOST ((int32_t)offsetof(struct dbt_area, jump.host))

uint64_t branch_target(const struct unit *unit, const struct item *item) {
    uint64_t target =
        unit->block->rip + item->guest + item->insn.length + (uint64_t)item->insn.op[0].imm.value.s;
    return unit->code64 ? target : (uint32_t)target;
}

#define MISSES 2

/* The lookup; miss[] gains the places of the branches for "no" (NULL: none), at which t0 is the key. Flags
 * are saved. */
static void emit_jump_lookup(struct unit *unit, uint8_t *miss[MISSES]) {
    struct code_buffer *c = &unit->code;
    uint16_t spilled = unit_spilled_here(unit);
    int index = spilled >> unit->t1 & 1 ? unit->t2 : unit->t1;
    miss[1] = NULL;
    if (unit->code64)
        asm_mov(c, index, unit->t0);
    asm_alu_gs(c, ASM_XOR, unit->t0, AREA_HOT(jump_key));
    if (unit->code64) {
        asm_sar(c, index, 47);
        if (unit->block->rip >> 63)
            asm_cmp_imm(c, index, -1);
        miss[1] = asm_jcc(c, COND_NE);
    }
    asm_hash(c, index, unit->t0, JUMP_CACHE_MULTIPLIER, JUMP_CACHE_BITS);
    code_u8(c, 0x65);
    asm_mem(c, true, ASM_CMP, unit->t0, -1, index, 3, JUMP_KEY);
    miss[0] = asm_jcc(c, COND_NE);
    if (spilled >> index & 1) {
        code_u8(c, 0x65);
        asm_mem(c, true, 0x8b, index, -1, index, 3, JUMP_HOST);
        asm_store_gs(c, AREA_HOT(target), index);
        emit_reload(unit);
        asm_jmp_gs(c, AREA_HOT(target));
        return;
    }
    emit_reload(unit);
    code_u8(c, 0x65); /* jmp gs:[index * 8 + host] */
    asm_mem(c, false, 0xff, 4, -1, index, 3, JUMP_HOST);
}

void emit_jump(struct unit *unit, const struct item *item) {
    emit_flags_clobber(unit);
    uint8_t *miss[MISSES];
    emit_jump_lookup(unit, miss);
    struct site *site = unit_site(unit, SITE_JUMP_MISS, item);
    site->flags_saved = true;
    site->retpoline = item && item->kind == KIND_RETPOLINE;
    for (unsigned i = 0; i < MISSES; i++)
        if (miss[i])
            unit_cold(unit, miss[i], SITE_JUMP_MISS, unit_site_index(unit, site));
}

/* Must a direct branch to target be looked up each time? In user mode a block may be shared between address
 * spaces (and outlive a remapping), so only a target on the block's own page is as valid as the block itself.
 */
bool branch_needs_lookup(const struct unit *unit, uint64_t target) {
    return unit->block->mode & MODE_CPL3 && (target ^ unit->block->rip) & PAGE_MASK;
}

struct site *unit_link_site(struct unit *unit, const struct item *item, uint64_t target) {
    struct site *site = unit_site(unit, SITE_LINK, item);
    site->target = (int32_t)(target - unit->block->rip);
    if (item && item->imm_field >= 0)
        site->state = (uint16_t)(item->imm_field + 1);
    return site;
}

void emit_link(struct unit *unit, const struct item *item, uint64_t target) {
    struct code_buffer *c = &unit->code;
    if (unit->remake)
        emit_flags_live(unit);
    if (branch_needs_lookup(unit, target)) {
        asm_mov_imm(c, unit->t0, target);
        emit_jump(unit, item);
        return;
    }
    if (unit->function && (!item || item->imm_field < 0) && function_jump(unit, target))
        return;
    if (target == unit->block->rip && item && !unit->function) {
        if (unit->body_saved)
            emit_flags_clobber(unit);
        else
            emit_flags_live(unit);
        asm_jmp_to(c, unit->body);
        return;
    }
    emit_reload(unit);
    struct site *site = unit_link_site(unit, item, target);
    site->flags_saved = unit->flags_saved;
    emit_unlinked(unit, site);
}

/* A conditional exit whose rel32 is at place; flags are real there. */
static void emit_side_exit(struct unit *unit, const struct item *item, uint8_t *place, uint64_t target) {
    if (unit->code.overflow)
        return;
    if (unit->function && item->imm_field < 0 && function_branch(unit, place, target))
        return;
    if (target == unit->block->rip && !unit->function && !branch_needs_lookup(unit, target)) {
        if (unit->loop_live)
            asm_patch_rel32(place, unit->loop_live);
        else
            unit->loop_place = place;
        return;
    }
    struct site *site = unit_link_site(unit, item, target);
    uint32_t index = unit_site_index(unit, site);
    if (branch_needs_lookup(unit, target)) {
        site->kind = SITE_JUMP_MISS;
        site->flags_saved = true;
        unit_cold(unit, place, SITE_JUMP_MISS, index)->look_up = true;
        return;
    }
    site->host = (uint32_t)(place - unit->dbt->rw);
    (void)unit_cold(unit, place, SITE_LINK, index);
}

void emit_cold_lookup(struct unit *unit, const struct site *site) {
    struct code_buffer *c = &unit->code;
    emit_save_flags(unit, unit->t1);
    asm_mov_imm(c, unit->t0, unit->block->rip + (uint64_t)(int64_t)site->target);
    uint8_t *miss[MISSES];
    emit_jump_lookup(unit, miss);
    for (unsigned i = 0; i < MISSES && !c->overflow; i++)
        if (miss[i])
            asm_patch_rel32(miss[i], c->at);
}

void emit_jcc(struct unit *unit, const struct item *item) {
    emit_flags_live(unit);
    const ZydisDecodedInstruction *z = &item->insn.z;
    enum asm_cond cond = (enum asm_cond)(z->opcode & 15);
    uint8_t *place = asm_jcc(&unit->code, cond);
    emit_side_exit(unit, item, place, branch_target(unit, item));
}

/* JRCXZ, JECXZ and LOOP (no flags): a short branch over a jump. */
void emit_jcxz(struct unit *unit, const struct item *item) {
    struct code_buffer *c = &unit->code;
    bool wide = item->insn.z.address_width == 64, loop = item->insn.z.mnemonic == ZYDIS_MNEMONIC_LOOP;
    emit_flags_live(unit);
    if (loop)
        asm_lea(c, wide, GPR_RCX, GPR_RCX, -1, 0, -1);
    if (!wide)
        code_u8(c, 0x67);
    code_u8(c, 0xe3);
    if (loop) {
        code_u8(c, 5); /* jrcxz +5: fall through; jmp target */
    } else {
        static const uint8_t over[] = {2, 0xeb, 5}; /* jrcxz +2; jmp +5; jmp target */
        code_bytes(c, over, sizeof over);
    }
    emit_side_exit(unit, item, asm_jmp(c), branch_target(unit, item));
}

static void emit_push_return(struct unit *unit, const struct item *item) {
    struct code_buffer *c = &unit->code;
    int size = unit->code64 ? 8 : 4;
    uint64_t back = unit->block->rip + item->guest + item->insn.length;
    struct host_memory to = emit_stack(unit, item, -size, VMEM_WRITE);
    if (!unit->portable && (!unit->code64 || (uint64_t)(int64_t)(int32_t)back == back)) {
        asm_mem(c, unit->code64, 0xc7, 0, to.base, to.index, 0, to.disp);
        code_u32(c, (uint32_t)back);
    } else {
        emit_guest_address(unit, unit->t2, back);
        asm_mem(c, true, 0x89, unit->t2, to.base, to.index, 0, to.disp);
    }
    emit_rsp_move(unit, -size);
    emit_rsp_settle(unit);
    return_expect(unit);
}

void emit_call(struct unit *unit, const struct item *item) {
    emit_push_return(unit, item);
    emit_link(unit, item, branch_target(unit, item));
}

/* t0 = the target that operand 0 names. */
static void emit_indirect_target(struct unit *unit, const struct item *item) {
    struct code_buffer *c = &unit->code;
    const ZydisDecodedOperand *op = &item->insn.op[0];
    if (op->type == ZYDIS_OPERAND_TYPE_REGISTER) {
        if (unit->code64)
            asm_mov(c, unit->t0, insn_gpr(op->reg.value));
        else
            asm_mov32(c, unit->t0, insn_gpr(op->reg.value));
        return;
    }
    emit_load_operand(unit, item);
}

void emit_jump_indirect(struct unit *unit, const struct item *item) {
    emit_flags_clobber(unit);
    emit_indirect_target(unit, item);
    emit_jump(unit, item);
}

void emit_call_indirect(struct unit *unit, const struct item *item) {
    struct code_buffer *c = &unit->code;
    emit_flags_clobber(unit);
    emit_indirect_target(unit, item);
    asm_store_gs(c, AREA_HOT(target), unit->t0);
    emit_push_return(unit, item);
    asm_load_gs(c, unit->t0, AREA_HOT(target));
    emit_jump(unit, item);
}
