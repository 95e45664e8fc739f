/* The code between translated code and C, emitted once at the start of every code region.
 *
 *   stub_enter       C function: saves the callee-saved registers, then `load`.
 *   load             guest registers but those of HOMED from the vCPU, then jmp gs:[resume] with the flags
 *                    saved.
 *   stub_exit        jumped to between two instructions, with the flags saved: stores those registers, calls
 *                    dbt_exit_guest().
 *   stub_exit_live   the same with the flags live.
 *   stub_look_up     the same with a target that the jump cache does not know, after a look at its second
 *                    table.
 *   stub_return      jumped to by a RET whose slot holds no landing for its target, which is in R11, the
 *                    site in R9: asks the jump cache, then as stub_look_up.
 *   stub_memory      jumped to in mid-instruction: saves the host registers as they stand, calls
 *                    dbt_exit_memory(), which may resume them unchanged. stub_memory_by[]: with the site in
 *                    a register.
 *   stub_carry_on    goes on in a stub with the RSP that it had.
 *   stub_fault       where the handler of a fault signal returns to: the same with the host's flags, calls
 *                    dbt_exit_fault().
 *
 * hot.site says which site it was: a portable unit has stored it there, the vCPU's own blocks have it in R9
 * and jump to an instruction that does so first (stub_take_site()).
 *
 * The C functions return enum resume. RSP holds a guest value outside the stubs, so nothing but the stubs
 * uses the stack.
 */
#include "dbt/emit.h"

static void emit_save_registers(struct code_buffer *c, uint32_t offset, uint16_t registers) {
    for (int reg = 0; reg < 16; reg++)
        if (registers >> reg & 1)
            asm_store_gs(c, offset + (uint32_t)reg * 8, reg);
}

static void emit_load_registers(struct code_buffer *c, uint32_t offset, uint16_t registers) {
    for (int reg = 0; reg < 16; reg++)
        if (registers >> reg & 1)
            asm_load_gs(c, reg, offset + (uint32_t)reg * 8);
}

/* mov r11, rax; lahf; seto al; mov gs:[flags], eax; mov rax, r11 */
static void emit_save_live_flags(struct code_buffer *c) {
    static const uint8_t take[] = {0x9f, 0x0f, 0x90, 0xc0};
    asm_mov(c, BOUNDARY_SCRATCH, GPR_RAX);
    code_bytes(c, take, sizeof take);
    asm_store32_gs(c, AREA_HOT(flags), GPR_RAX);
    asm_mov(c, GPR_RAX, BOUNDARY_SCRATCH);
}

static void emit_call_c(struct code_buffer *c, uint64_t (*function)(struct vcpu *)) {
    asm_load_gs(c, GPR_RDI, AREA_VCPU(self));
    asm_mov_imm(c, GPR_RAX, (uint64_t)function);
    code_u8(c, 0xff);
    code_u8(c, 0xd0); /* call rax */
}

static void emit_leave(struct code_buffer *c) {
    static const uint8_t restore[] = {0x48, 0x83, 0xc4, 0x08,                         /* add rsp, 8 */
                                      0x41, 0x5f, 0x41, 0x5e, 0x41, 0x5d, 0x41, 0x5c, /* pop r15..r12 */
                                      0x5d, 0x5b, 0xc3}; /* pop rbp; pop rbx; ret */
    code_bytes(c, restore, sizeof restore);
}

/* test eax, eax / cmp eax, RESUME_LOAD; the caller patches the place */
static uint8_t *emit_branch_on(struct code_buffer *c, uint8_t value) {
    code_u8(c, 0x83);
    code_u8(c, 0xf8);
    code_u8(c, value);
    return asm_jcc(c, COND_E);
}

/* One of the jump cache's tables (area.h). */
struct table {
    uint32_t multiplier;
    unsigned bits;
    size_t key, host; /* offsets */
};

static const struct table first_table = {JUMP_CACHE_MULTIPLIER, JUMP_CACHE_BITS,
                                         offsetof(struct dbt_area, jump.key),
                                         offsetof(struct dbt_area, jump.host)};
static const struct table second_table = {JUMP_SECOND_MULTIPLIER, JUMP_SECOND_BITS,
                                          offsetof(struct dbt_area, second.key),
                                          offsetof(struct dbt_area, second.host)};

/* Look up the target in R8; with what HOMED leaves free. A canonical target has bits 63-47 alike. unknown[]:
 * the places of the branches for "no". */
static void emit_lookup(struct code_buffer *c, const struct table *table, uint8_t *unknown[2]) {
    unknown[0] = asm_jump_not_canonical(c, GPR_R8, GPR_R9);
    asm_alu_gs(c, ASM_XOR, GPR_R8, AREA_HOT(jump_key));
    asm_hash(c, GPR_R9, GPR_R8, table->multiplier, table->bits);
    code_u8(c, 0x65);
    asm_mem(c, true, ASM_CMP, GPR_R8, -1, GPR_R9, 3, (int32_t)table->key);
    unknown[1] = asm_jcc(c, COND_NE);
    code_u8(c, 0x65); /* jmp gs:[r9 * 8 + host] */
    asm_mem(c, false, 0xff, 4, -1, GPR_R9, 3, (int32_t)table->host);
}

/* STUB_SITE_BYTES long, wherever the area is. */
void stub_take_site(struct code_buffer *c) {
    const uint8_t *area = c->area;
    c->area = NULL;
    asm_store32_gs(c, AREA_HOT(site), GPR_R9);
    c->area = area;
}

static void emit_memory_exits(struct dbt_vcpu *dbt, struct code_buffer *c, const uint8_t *load) {
    dbt->stub_memory = dbt->rx + (c->at - dbt->rw);
    uint8_t *memory = c->at;
    emit_save_registers(c, AREA_HOT(save), UINT16_MAX);
    asm_load_gs(c, GPR_RSP, AREA_HOT(host_rsp));
    emit_call_c(c, dbt_exit_memory);
    asm_patch_rel32(emit_branch_on(c, RESUME_LOAD), load);
    uint8_t *raw = emit_branch_on(c, RESUME_RAW);
    emit_leave(c);
    asm_patch_rel32(raw, c->at);
    emit_load_registers(c, AREA_HOT(save), UINT16_MAX);
    asm_jmp_gs(c, AREA_HOT(resume));
    for (int reg = 0; reg < 16; reg++) {
        dbt->stub_memory_by[reg] = dbt->rx + (c->at - dbt->rw);
        asm_store32_gs(c, AREA_HOT(site), reg);
        asm_jmp_to(c, memory);
    }
}

void dbt_emit_stubs(struct dbt_vcpu *dbt) {
    struct code_buffer code = {
        .start = dbt->rw, .at = dbt->rw, .end = dbt->rw + dbt->size, .area = dbt->area_seen};
    struct code_buffer *c = &code;

    const uint16_t carried = (uint16_t)~HOMED;

    uint8_t *load = c->at;
    emit_load_registers(c, AREA_GPR(0), carried);
    asm_jmp_gs(c, AREA_HOT(resume));

    dbt->stub_enter = dbt->rx + (c->at - dbt->rw);
    static const uint8_t save[] = {0x53, 0x55, 0x41, 0x54, 0x41,
                                   0x55, 0x41, 0x56, 0x41, 0x57, /* push rbx..r15 */
                                   0x48, 0x83, 0xec, 0x08};      /* sub rsp, 8 */
    code_bytes(c, save, sizeof save);
    asm_store_gs(c, AREA_HOT(host_rsp), GPR_RSP);
    asm_jmp_to(c, load);

    dbt->stub_return = dbt->rx + (c->at - dbt->rw);
    uint8_t *unknown_return[2], *unknown[2];
    asm_store32_gs(c, AREA_HOT(site), GPR_R9);
    asm_mov(c, GPR_R8, GPR_R11);
    asm_store_gs(c, AREA_HOT(target), GPR_R8);
    emit_lookup(c, &first_table, unknown_return);

    stub_take_site(c);
    for (unsigned i = 0; i < ARRAY_SIZE(unknown_return); i++)
        asm_patch_rel32(unknown_return[i], c->at);
    dbt->stub_look_up = dbt->rx + (c->at - dbt->rw);
    asm_load_gs(c, GPR_R8, AREA_HOT(target));
    emit_lookup(c, &second_table, unknown);

    stub_take_site(c);
    dbt->stub_exit_live = dbt->rx + (c->at - dbt->rw);
    emit_save_live_flags(c);
    uint8_t *with_flags = asm_jmp(c);
    stub_take_site(c);
    asm_patch_rel32(with_flags, c->at);
    dbt->stub_exit = dbt->rx + (c->at - dbt->rw);
    for (unsigned i = 0; i < ARRAY_SIZE(unknown); i++)
        asm_patch_rel32(unknown[i], c->at);
    emit_save_registers(c, AREA_GPR(0), carried);
    asm_load_gs(c, GPR_RSP, AREA_HOT(host_rsp));
    emit_call_c(c, dbt_exit_guest);
    asm_patch_rel32(emit_branch_on(c, RESUME_LOAD), load);
    emit_leave(c);

    dbt_emit_crossings(dbt, c);

    emit_memory_exits(dbt, c, load);
    stack_emit_stubs(dbt, c);

    dbt->stub_fault = dbt->rx + (c->at - dbt->rw);
    emit_save_registers(c, AREA_HOT(save), (uint16_t) ~(1u << GPR_RSP));
    code_u8(c, 0x9c); /* pushfq; pop gs:[save_flags] */
    asm_gs(c, false, 0x8f, 0, AREA_HOT(save_flags));
    emit_call_c(c, dbt_exit_fault);
    asm_patch_rel32(emit_branch_on(c, RESUME_LOAD), load);
    emit_leave(c);

    dbt->stub_carry_on = dbt->rx + (c->at - dbt->rw);
    asm_load_gs(c, GPR_RSP, AREA_HOT(kept_rsp));
    dbt->stub_carried = dbt->rx + (c->at - dbt->rw);
    asm_jmp_gs(c, AREA_HOT(kept_pc));

    dbt->used = dbt->stubs_end = align_up((uint64_t)(c->at - dbt->rw), 64);
}

const uint8_t *dbt_stub(const struct dbt_vcpu *dbt, enum runtime_slot stub) {
    switch (stub) {
    case RUNTIME_EXIT:
        return dbt->stub_exit;
    case RUNTIME_MEMORY:
        return dbt->stub_memory;
    case RUNTIME_LOOK_UP:
        return dbt->stub_look_up;
    case RUNTIME_SYSRET:
        return dbt->stub_sysret;
    case RUNTIME_IRET:
        return dbt->stub_iret;
    case RUNTIME_SYSCALL:
        return dbt->stub_syscall;
    default:
        return dbt->stub_exit_live;
    }
}
