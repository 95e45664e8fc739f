/* The code between translated code and C, emitted once at the start of every code region.
 *
 *   stub_enter(vcpu, host)  C function: saves the callee-saved registers, then stub_load.
 *   stub_load               guest registers and flags from the vCPU, then jmp gs:[resume].
 *   stub_exit               jumped to with the whole guest state in the host's registers: saves it, calls
 * dbt_exit_guest(). stub_raw                jumped to in mid-instruction: saves the host registers as they
 * stand, calls dbt_exit_raw(), which either resumes them unchanged or goes on as stub_exit does. The C
 * functions return enum resume. RSP holds a guest value outside the stubs, so nothing but the stubs uses the
 * stack.
 */
#include "dbt/asm.h"
#include "dbt/private.h"

static void emit_save_registers(struct code_buffer *c, uint32_t offset) {
    for (int reg = 0; reg < 16; reg++)
        asm_store_gs(c, offset + (uint32_t)reg * 8, reg);
}

static void emit_load_registers(struct code_buffer *c, uint32_t offset) {
    for (int reg = 0; reg < 16; reg++)
        asm_load_gs(c, reg, offset + (uint32_t)reg * 8);
}

/* pushfq; pop gs:[save_flags] — on the C stack. */
static void emit_save_flags(struct code_buffer *c) {
    code_u8(c, 0x9c);
    asm_gs(c, false, 0x8f, 0, AREA_HOT(save_flags));
}

/* Clobbers RAX. POPF is slow and needed for DF only:
 *   test byte gs:[save_flags + 1], DF >> 8;  jnz slow
 *   mov eax, gs:[load_flags];  add al, 127;  sahf;  jmp done
 *   slow: push gs:[save_flags];  popfq;  done:
 */
static void emit_load_flags(struct code_buffer *c) {
    static const uint8_t give[] = {0x04, 0x7f, 0x9e};
    asm_gs(c, false, 0xf6, 0, AREA_HOT(save_flags) + 1);
    code_u8(c, FLAG_DF >> 8);
    uint8_t *slow = asm_jcc(c, COND_NE);
    asm_load32_gs(c, GPR_RAX, AREA_HOT(load_flags));
    code_bytes(c, give, sizeof give);
    uint8_t *done = asm_jmp(c);
    asm_patch_rel32(slow, c->at);
    asm_gs(c, false, 0xff, 6, AREA_HOT(save_flags));
    code_u8(c, 0x9d);
    asm_patch_rel32(done, c->at);
}

static void emit_call_c(struct code_buffer *c, uint64_t (*function)(struct vcpu *)) {
    code_u8(c, 0xfc); /* cld */
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

void dbt_emit_stubs(struct dbt_vcpu *dbt) {
    struct code_buffer code = {.start = dbt->rw, .at = dbt->rw, .end = dbt->rw + dbt->size}, *c = &code;

    dbt->stub_load = dbt->rx + (c->at - dbt->rw);
    uint8_t *load = c->at;
    emit_load_flags(c);
    emit_load_registers(c, AREA_GPR(0));
    asm_jmp_gs(c, AREA_HOT(resume));

    dbt->stub_enter = dbt->rx + (c->at - dbt->rw);
    static const uint8_t save[] = {0x53, 0x55, 0x41, 0x54, 0x41,
                                   0x55, 0x41, 0x56, 0x41, 0x57, /* push rbx..r15 */
                                   0x48, 0x83, 0xec, 0x08};      /* sub rsp, 8 */
    code_bytes(c, save, sizeof save);
    asm_store_gs(c, AREA_HOT(host_rsp), GPR_RSP);
    asm_jmp_to(c, load);

    dbt->stub_exit = dbt->rx + (c->at - dbt->rw);
    emit_save_registers(c, AREA_GPR(0));
    asm_load_gs(c, GPR_RSP, AREA_HOT(host_rsp));
    emit_save_flags(c);
    emit_call_c(c, dbt_exit_guest);
    asm_patch_rel32(emit_branch_on(c, RESUME_LOAD), load);
    emit_leave(c);

    dbt->stub_raw = dbt->rx + (c->at - dbt->rw);
    emit_save_registers(c, AREA_HOT(save));
    asm_load_gs(c, GPR_RSP, AREA_HOT(host_rsp));
    emit_save_flags(c);
    emit_call_c(c, dbt_exit_raw);
    asm_patch_rel32(emit_branch_on(c, RESUME_LOAD), load);
    uint8_t *raw = emit_branch_on(c, RESUME_RAW);
    emit_leave(c);
    asm_patch_rel32(raw, c->at);
    emit_load_flags(c);
    emit_load_registers(c, AREA_HOT(save));
    asm_jmp_gs(c, AREA_HOT(resume));

    dbt->used = dbt->stubs_end = align_up((uint64_t)(c->at - dbt->rw), 64);
}
