/* System instructions: the few that are written inline, and the exits to C for the others. */
#include "dbt/emit.h"

static uint32_t segment_base(bool is_fs) {
    return is_fs ? AREA_VCPU(segment[SEG_FS].base) : AREA_VCPU(segment[SEG_GS].base);
}

void emit_read_base(struct unit *unit, const struct item *item) {
    uint32_t base = segment_base(item->insn.z.mnemonic == ZYDIS_MNEMONIC_RDFSBASE);
    int target = insn_gpr(item->insn.op[0].reg.value);
    if (item->insn.op[0].size == 64)
        asm_load_gs(&unit->code, target, base);
    else
        asm_load32_gs(&unit->code, target, base);
}

/* MOV r, CRn, where C need not be asked. */
void emit_read_cr(struct unit *unit, const struct item *item) {
    static const uint32_t registers[] = {AREA_VCPU(cr0), 0, AREA_VCPU(cr2), AREA_VCPU(cr3), AREA_VCPU(cr4)};
    const ZydisDecodedOperand *op = item->insn.op;
    asm_load_gs(&unit->code, insn_gpr(op[0].reg.value), registers[op[1].reg.value - ZYDIS_REGISTER_CR0]);
}

/* MOV r, Sreg: 16 bits into a 16-bit register, zero-extended into a wider one. */
void emit_read_selector(struct unit *unit, const struct item *item) {
    struct code_buffer *c = &unit->code;
    unsigned segment = (unsigned)(item->insn.op[1].reg.value - ZYDIS_REGISTER_ES);
    uint32_t selector = AREA_VCPU(segment) + (uint32_t)(segment * sizeof(struct segment));
    int target = insn_gpr(item->insn.op[0].reg.value);
    if (item->insn.op[0].size == 16) {
        code_u8(c, 0x66);
        asm_load32_gs(c, target, selector);
        return;
    }
    asm_movzx_gs(c, true, target, selector);
}

static enum xstate_insn xstate_insn(const struct item *item) {
    switch (item->insn.z.mnemonic) {
    case ZYDIS_MNEMONIC_XSAVEOPT64:
        return XSTATE_SAVE_OPTIMISED;
    case ZYDIS_MNEMONIC_XSAVEC64:
        return XSTATE_SAVE_COMPACTED;
    case ZYDIS_MNEMONIC_XRSTOR64:
        return XSTATE_RESTORE;
    default:
        return XSTATE_SAVE;
    }
}

static bool is_stos(const struct item *item) {
    switch (item->insn.z.mnemonic) {
    case ZYDIS_MNEMONIC_STOSB:
    case ZYDIS_MNEMONIC_STOSW:
    case ZYDIS_MNEMONIC_STOSD:
    case ZYDIS_MNEMONIC_STOSQ:
        return true;
    default:
        return false;
    }
}

static void describe_string(const struct item *item, struct site *site) {
    bool rep =
        item->insn.z.attributes & (ZYDIS_ATTRIB_HAS_REP | ZYDIS_ATTRIB_HAS_REPE | ZYDIS_ATTRIB_HAS_REPNE);
    site->size = (uint8_t)(item->insn.op[0].size / 8);
    site->reg = (uint8_t)(is_stos(item) | rep << 1);
}

void unit_describe_helper(const struct item *item, struct site *site) {
    const ZydisDecodedOperand *op = item->insn.op;
    site->access = (uint8_t)item->helper;
    site->size = item->insn.z.operand_width;
    switch (item->helper) {
    case HELPER_SYSRET:
        site->size = item->insn.z.raw.rex.W ? 64 : 32;
        break;
    case HELPER_WRITE_BASE:
        site->reg = (uint8_t)(insn_gpr(op[0].reg.value) |
                              (item->insn.z.mnemonic == ZYDIS_MNEMONIC_WRFSBASE ? SEG_FS : SEG_GS) << 4);
        site->size = (uint16_t)(op[0].size / 8);
        break;
    case HELPER_READ_CR:
        site->reg = (uint8_t)(insn_gpr(op[0].reg.value) | (op[1].reg.value - ZYDIS_REGISTER_CR0) << 4);
        break;
    case HELPER_WRITE_CR:
        site->reg = (uint8_t)(insn_gpr(op[1].reg.value) | (op[0].reg.value - ZYDIS_REGISTER_CR0) << 4);
        break;
    case HELPER_XSTATE:
        site->reg = (uint8_t)xstate_insn(item);
        break;
    case HELPER_STRING:
        describe_string(item, site);
        break;
    default:
        break;
    }
}

/* The stub that tries SYSCALL, SYSRET or IRET without C; RUNTIME_EXIT: there is none. */
static enum runtime_slot crossing_stub(const struct unit *unit, const struct item *item) {
    bool wide = item->insn.z.raw.rex.W;
    if (!unit->code64)
        return RUNTIME_EXIT;
    switch (item->helper) {
    case HELPER_SYSCALL:
        return unit->block->mode & MODE_CPL3 && !unit->portable ? RUNTIME_SYSCALL : RUNTIME_EXIT;
    case HELPER_SYSRET:
        return unit->block->mode & MODE_CPL0 && wide ? RUNTIME_SYSRET : RUNTIME_EXIT;
    case HELPER_IRET:
        return unit->block->mode & MODE_CPL0 && wide ? RUNTIME_IRET : RUNTIME_EXIT;
    default:
        return RUNTIME_EXIT;
    }
}

static void emit_crossing(struct unit *unit, const struct item *item, enum runtime_slot stub) {
    emit_reload(unit);
    if (!unit->flags_saved)
        emit_save_flags(unit, BOUNDARY_SCRATCH); /* a block that ends so may have no scratches */
    struct site *site = unit_site(unit, SITE_HELPER, item);
    site->flags_saved = true;
    unit_describe_helper(item, site);
    if (stub == RUNTIME_SYSCALL)
        asm_mov_imm(&unit->code, GPR_R8, unit->block->rip + item->guest + item->insn.length);
    emit_leave_to(unit, site, stub);
    site->host = (uint32_t)(unit->code.at - unit->dbt->rw);
    unit->flags_saved = true;
}

void emit_helper(struct unit *unit, const struct item *item, enum site_kind kind) {
    enum runtime_slot stub = kind == SITE_HELPER ? crossing_stub(unit, item) : RUNTIME_EXIT;
    if (stub != RUNTIME_EXIT) {
        emit_crossing(unit, item, stub);
        return;
    }
    if ((item->helper == HELPER_INVLPG || item->helper == HELPER_XSTATE) && kind == SITE_HELPER) {
        emit_flags_clobber(unit);
        emit_address(unit, item, &item->insn.op[0]);
        asm_store_gs(&unit->code, AREA_HOT(value), unit->t0);
    }
    emit_reload(unit);
    struct site *site = unit_site(unit, kind, item);
    site->flags_saved = unit->flags_saved;
    unit_describe_helper(item, site);
    emit_exit_to_c(unit, site);
    site->host = (uint32_t)(unit->code.at - unit->dbt->rw);
    unit->flags_saved = true;
    if (item->kind == KIND_HELPER)
        emit_load_resident(unit);
}

/* The way to C of an instruction that is written inline for the common case. */
static void emit_helper_at(struct unit *unit, const struct item *item, enum helper helper,
                           uint8_t *const *places, unsigned count) {
    struct site *site = unit_site(unit, SITE_HELPER, item);
    site->access = (uint8_t)helper;
    site->flags_saved = true;
    if (helper == HELPER_STRING)
        describe_string(item, site);
    for (unsigned i = 0; i < count; i++)
        unit_cold(unit, places[i], SITE_HELPER, unit_site_index(unit, site))->back = unit->code.at;
}

/* to |= byte of the area << shift */
static void emit_gather_flag(struct code_buffer *c, int to, int scratch, uint32_t offset, uint8_t shift) {
    asm_movzx_gs(c, false, scratch, offset);
    if (shift)
        asm_shl(c, scratch, shift);
    asm_alu(c, ASM_OR, to, scratch);
}

void emit_flags_image(struct code_buffer *c, int to, int scratch, uint32_t others) {
    asm_load32_gs(c, to, AREA_VCPU(rflags));
    asm_and32_imm(c, to, others & ~(uint32_t)(FLAGS_ARITHMETIC | FLAG_IF | FLAG_AC));
    emit_gather_flag(c, to, scratch, AREA_HOT(flags) + 1, 0);
    emit_gather_flag(c, to, scratch, AREA_HOT(flags), 11);
    emit_gather_flag(c, to, scratch, AREA_HOT(iflag), 8);
    emit_gather_flag(c, to, scratch, AREA_HOT(acflag), 16);
}

/* VM and RF are pushed as 0. */
void emit_pushf(struct unit *unit, const struct item *item) {
    struct code_buffer *c = &unit->code;
    emit_flags_clobber(unit);
    emit_flags_image(c, unit->t0, unit->t1, 0x00fcffff);
    asm_store_gs(c, AREA_HOT(value), unit->t0);
    struct host_memory to = emit_stack(unit, item, -8, VMEM_WRITE);
    asm_load_gs(c, unit->t2, AREA_HOT(value));
    asm_mem(c, true, 0x89, unit->t2, to.base, to.index, 0, to.disp);
    asm_lea(c, true, GPR_RSP, GPR_RSP, -1, 0, -8);
}

/* A REP MOVS or STOS. */
struct string_insn {
    unsigned scale;        /* log2 of the element's size */
    bool moves;            /* not STOS */
    uint8_t *to_helper[2]; /* places of the branches for "no" */
    unsigned to_helpers;
};

/* t1 = the TLB entry of the page of base, compared with the page in t2. Goes to the helper unless they are
 * the same. */
static void emit_string_entry(struct unit *unit, struct string_insn *string, int base, int32_t tag) {
    struct code_buffer *c = &unit->code;
    emit_entry(c, unit->t1, base, unit_tlb_mask(unit));
    asm_and_imm(c, unit->t2, (int32_t)PAGE_MASK);
    asm_alu_mem(c, ASM_CMP, unit->t2, unit->t1, tag);
    string->to_helper[string->to_helpers++] = asm_jcc(c, COND_NE);
}

/*   lea t2, [last byte of RCX elements]
 *   probe rdi, t2;  mov t0, addend;  (probe rsi, t2;  mov t1, addend;  add rsi, t1)
 *   add rdi, t0;  rep ...;  sub rdi, t0;  (sub rsi, t1)
 */
static void emit_string_page(struct unit *unit, struct string_insn *string) {
    struct code_buffer *c = &unit->code;
    asm_lea(c, true, unit->t2, GPR_RDI, GPR_RCX, string->scale, -1);
    emit_string_entry(unit, string, GPR_RDI, TLB_ENTRY(tag_write));
    asm_load(c, unit->t0, unit->t1, TLB_ENTRY(addend));
    if (string->moves) {
        asm_lea(c, true, unit->t2, GPR_RSI, GPR_RCX, string->scale, -1);
        emit_string_entry(unit, string, GPR_RSI, TLB_ENTRY(tag_read));
        asm_load(c, unit->t1, unit->t1, TLB_ENTRY(addend));
        asm_alu(c, ASM_ADD, GPR_RSI, unit->t1);
    }
    asm_alu(c, ASM_ADD, GPR_RDI, unit->t0);
    code_u8(c, 0xf3);
    if (string->scale == 1)
        code_u8(c, 0x66);
    if (string->scale == 3)
        code_u8(c, 0x48);
    code_u8(c, (uint8_t)((string->moves ? 0xa4 : 0xaa) | (string->scale > 0)));
    asm_alu(c, ASM_SUB, GPR_RDI, unit->t0);
    if (string->moves)
        asm_alu(c, ASM_SUB, GPR_RSI, unit->t1);
}

/* cmovCC to, from */
static void emit_move_if(struct code_buffer *c, enum asm_cond cond, bool wide, int to, int from) {
    asm_rex(c, wide, to, 0, from);
    code_u8(c, 0x0f);
    code_u8(c, (uint8_t)(0x40 | cond));
    code_u8(c, (uint8_t)(0xc0 | (to & 7) << 3 | (from & 7)));
}

/* t2 = how many elements lie before the next end of a page; goes to the helper if there is none. */
static void emit_string_room(struct unit *unit, struct string_insn *string) {
    struct code_buffer *c = &unit->code;
    asm_mov32(c, unit->t2, GPR_RDI);
    asm_and32_imm(c, unit->t2, PAGE_SIZE - 1);
    if (string->moves) {
        asm_mov32(c, unit->t1, GPR_RSI);
        asm_and32_imm(c, unit->t1, PAGE_SIZE - 1);
        asm_alu(c, ASM_CMP, unit->t1, unit->t2);
        emit_move_if(c, COND_A, false, unit->t2, unit->t1);
    }
    asm_mov_imm(c, unit->t1, PAGE_SIZE);
    asm_alu(c, ASM_SUB, unit->t1, unit->t2);
    asm_mov32(c, unit->t2, unit->t1);
    if (string->scale) {
        asm_shr32(c, unit->t2, (uint8_t)string->scale);
        string->to_helper[string->to_helpers++] = asm_jcc(c, COND_E);
    }
}

/* REP MOVS and REP STOS, page by page; between two pages the instruction may be interrupted.
 *
 *   again:  cmp rcx, elements of a page;  ja pieces (so that the last byte's address cannot wrap round)
 *           probe [rdi, +rcx), [rsi, +rcx)          (RCX = 0 probes the byte before, and does nothing)
 *           ... on these pages;  jmp done
 *   pieces: cmp gs:[requests], 0;  jne helper
 *           t2 = elements before the next end of a page, no more than RCX
 *           sub rcx, t2;  mov gs:[value], rcx;  mov rcx, t2
 *           ... on these pages, or: add rcx, gs:[value];  jmp helper
 *           mov rcx, gs:[value];  cmp rcx, 0;  jne again
 *   done:
 */
void emit_rep(struct unit *unit, const struct item *item) {
    struct code_buffer *c = &unit->code;
    struct string_insn string = {.scale = (unsigned)__builtin_ctz(item->insn.op[0].size / 8u),
                                 .moves = !is_stos(item)};
    uint8_t *to_pieces[3], *to_helper[5];
    unsigned pieces = 0, helper = 0;
    emit_flags_clobber(unit);
    uint8_t *again = c->at;
    asm_cmp_imm(c, GPR_RCX, (int32_t)(PAGE_SIZE >> string.scale));
    to_pieces[pieces++] = asm_jcc(c, COND_A);
    emit_string_page(unit, &string);
    while (string.to_helpers)
        to_pieces[pieces++] = string.to_helper[--string.to_helpers];
    uint8_t *whole = asm_jmp(c);
    for (unsigned i = 0; i < pieces && !c->overflow; i++)
        asm_patch_rel32(to_pieces[i], c->at);
    asm_gs_imm(c, false, 0x83, 7, AREA_VCPU(requests), 1); /* cmp dword gs:[requests], 0 */
    code_u8(c, 0);
    to_helper[helper++] = asm_jcc(c, COND_NE);
    emit_string_room(unit, &string);
    while (string.to_helpers)
        to_helper[helper++] = string.to_helper[--string.to_helpers];
    asm_alu(c, ASM_CMP, unit->t2, GPR_RCX);
    emit_move_if(c, COND_A, true, unit->t2, GPR_RCX);
    asm_alu(c, ASM_SUB, GPR_RCX, unit->t2);
    asm_store_gs(c, AREA_HOT(value), GPR_RCX);
    asm_mov(c, GPR_RCX, unit->t2);
    emit_string_page(unit, &string);
    asm_load_gs(c, GPR_RCX, AREA_HOT(value));
    asm_cmp_imm(c, GPR_RCX, 0);
    uint8_t *rest = asm_jcc(c, COND_NE), *all = asm_jmp(c);
    for (unsigned i = 0; i < string.to_helpers && !c->overflow; i++)
        asm_patch_rel32(string.to_helper[i], c->at);
    asm_alu_gs(c, ASM_ADD, GPR_RCX, AREA_HOT(value));
    to_helper[helper++] = asm_jmp(c);
    if (!c->overflow) {
        asm_patch_rel32(rest, again);
        asm_patch_rel32(whole, c->at);
        asm_patch_rel32(all, c->at);
    }
    emit_helper_at(unit, item, HELPER_STRING, to_helper, helper);
}

_Static_assert(sizeof(struct cpuid_memo) == 32, "the index is scaled by a shift");

/* t0 = ECX:EAX against gs:[t1 + key], t1 being the index's offset. Writing 32-bit registers clears the upper
 * halves, as CPUID does. */
void emit_cpuid(struct unit *unit, const struct item *item) {
    static const int target[4] = {GPR_RAX, GPR_RBX, GPR_RCX, GPR_RDX};
    struct code_buffer *c = &unit->code;
    int32_t memo = offsetof(struct dbt_area, cpuid);
    emit_flags_clobber(unit);
    asm_mov32(c, unit->t0, GPR_RCX);
    asm_shl(c, unit->t0, 32);
    asm_mov32(c, unit->t1, GPR_RAX);
    asm_alu(c, ASM_OR, unit->t0, unit->t1);
    asm_lea(c, false, unit->t1, GPR_RAX, GPR_RCX, 1, 0);
    asm_and32_imm(c, unit->t1, CPUID_MEMO_SIZE - 1);
    asm_shl(c, unit->t1, 5);
    code_u8(c, 0x65);
    asm_mem(c, true, ASM_CMP, unit->t0, unit->t1, -1, 0, memo + (int32_t)offsetof(struct cpuid_memo, key));
    uint8_t *place = asm_jcc(c, COND_NE);
    for (int i = 0; i < 4; i++) {
        code_u8(c, 0x65);
        asm_mem(c, false, 0x8b, target[i], unit->t1, -1, 0,
                memo + (int32_t)offsetof(struct cpuid_memo, answer) + 4 * i);
    }
    emit_helper_at(unit, item, HELPER_CPUID, &place, 1);
}

/* Exchange two words of the area. */
static void emit_exchange(struct unit *unit, uint32_t one, uint32_t other) {
    struct code_buffer *c = &unit->code;
    asm_load_gs(c, unit->t0, one);
    asm_load_gs(c, unit->t1, other);
    asm_store_gs(c, one, unit->t1);
    asm_store_gs(c, other, unit->t0);
}

void emit_swapgs(struct unit *unit) {
    emit_exchange(unit, AREA_VCPU(segment[SEG_GS].base), AREA_VCPU(kernel_gs_base));
    emit_exchange(unit, AREA_HOT(percpu), AREA_HOT(percpu_swapped));
}

void emit_set_ac(struct unit *unit, bool set) {
    struct code_buffer *c = &unit->code;
    asm_store8_imm_gs(c, AREA_HOT(acflag), set ? 4 : 0);
    asm_load_gs(c, unit->t0, set ? AREA_HOT(view_kernel_ac) : AREA_HOT(view_kernel));
    asm_store_gs(c, AREA_VCPU(view), unit->t0);
    asm_store_gs(c, AREA_HOT(stack_view), unit->t0);
    emit_forget(c, AREA_HOT(stack), unit->t0);
}
