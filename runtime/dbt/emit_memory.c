/* Instructions that access memory: address, inline TLB check, the guest's own instruction on the host
 * address.
 *
 *   lea  t0, [guest address]            add t0, gs:[segment base]        (FS, GS)
 *   lea  t2, [t0 + size - 1]            the page of the last byte ...
 *   mov  t1, t0
 *   shr  t1, 12 - 5
 *   and  t1d, mask << 5
 *   add  t1, gs:[view]
 *   and  t2, -4096
 *   cmp  t2, [t1 + tag]                 ... against the entry of the first
 *   jne  cold
 *   add  t0, [t1 + addend]
 *   <insn> [t0]
 */
#include "dbt/emit.h"

_Static_assert(sizeof(struct vtlb_entry) == 32, "the index is scaled by shifts");
#define ENTRY_SHIFT 5

bool emit_address(struct unit *unit, const struct item *item, const ZydisDecodedOperand *op) {
    struct code_buffer *c = &unit->code;
    const struct insn *insn = &item->insn;
    bool wide = unit->code64 && insn->z.address_width == 64;
    int base = insn_gpr(op->mem.base), index = insn_gpr(op->mem.index);
    int64_t disp = op->mem.disp.has_displacement ? op->mem.disp.value : 0;
    if (op->mem.base == ZYDIS_REGISTER_RIP || op->mem.base == ZYDIS_REGISTER_EIP) {
        uint64_t linear = unit->block->rip + item->guest + insn->length + (uint64_t)disp;
        if (item->disp_field >= 0)
            emit_field_value(unit, item, unit->t0, item->disp_field, true);
        else if (wide)
            emit_guest_address(unit, unit->t0, linear);
        else
            emit_guest_address32(unit, unit->t0, linear);
    } else if (item->disp_field >= 0) {
        unsigned scale = op->mem.scale == 8 ? 3 : op->mem.scale == 4 ? 2 : op->mem.scale == 2 ? 1 : 0;
        emit_field_value(unit, item, unit->t0, item->disp_field, false);
        if (index >= 0)
            asm_lea(c, true, unit->t0, unit->t0, index, scale, 0);
        if (base >= 0)
            asm_lea(c, true, unit->t0, base, unit->t0, 0, 0);
    } else if (base < 0 && index < 0) {
        asm_mov_imm(c, unit->t0, wide ? (uint64_t)disp : (uint32_t)disp);
    } else if (base >= 0 && index < 0 && !disp) {
        if (wide)
            asm_mov(c, unit->t0, base);
        else
            asm_mov32(c, unit->t0, base);
    } else {
        unsigned scale = op->mem.scale == 8 ? 3 : op->mem.scale == 4 ? 2 : op->mem.scale == 2 ? 1 : 0;
        asm_lea(c, wide, unit->t0, base, index, scale, (int32_t)disp);
    }
    unsigned segment = insn_segment(insn, op);
    if (segment == SEG_FS || segment == SEG_GS) {
        asm_alu_gs(c, ASM_ADD, unit->t0,
                   segment == SEG_FS ? AREA_VCPU(segment[SEG_FS].base) : AREA_VCPU(segment[SEG_GS].base));
        if (!unit->code64)
            asm_mov32(c, unit->t0, unit->t0);
    }
    return true;
}

void emit_entry(struct code_buffer *c, int to, int address, uint32_t mask) {
    asm_mov(c, to, address);
    asm_shr(c, to, PAGE_SHIFT - ENTRY_SHIFT);
    asm_and32_imm(c, to, mask << ENTRY_SHIFT);
    asm_alu_gs(c, ASM_ADD, to, AREA_VCPU(view));
}

/* The exit of a check that failed at place: raw state, t0 is the address, the flags are saved. */
static struct site *probe_site(struct unit *unit, const struct item *item, uint8_t *place, unsigned size,
                               enum vmem_access access, uint32_t retry) {
    struct site *site = unit_site(unit, SITE_MEMORY, item);
    site->reg = (uint8_t)unit->t0;
    site->size = (uint16_t)size;
    site->access = (uint8_t)access;
    site->flags_saved = true;
    site->host = retry;
    unit_cold(unit, place, SITE_MEMORY, unit_site_index(unit, site));
    return site;
}

static int32_t tag_of(enum vmem_access access) {
    return access == VMEM_WRITE ? TLB_ENTRY(tag_write) : TLB_ENTRY(tag_read);
}

/* t1 = the entry of the page of t0's address, compared for [t0, t0 + size). */
struct site *emit_probe(struct unit *unit, const struct item *item, unsigned size, enum vmem_access access,
                        uint32_t retry) {
    struct code_buffer *c = &unit->code;
    if (size > 1)
        asm_lea(c, true, unit->t2, unit->t0, -1, 0, (int32_t)size - 1);
    else
        asm_mov(c, unit->t2, unit->t0);
    emit_entry(c, unit->t1, unit->t0, unit_tlb_mask(unit));
    asm_and_imm(c, unit->t2, (int32_t)PAGE_MASK);
    asm_alu_mem(c, ASM_CMP, unit->t2, unit->t1, tag_of(access));
    return probe_site(unit, item, asm_jcc(c, COND_NE), size, access, retry);
}

static uint32_t here(const struct unit *unit) {
    return (uint32_t)(unit->code.at - unit->dbt->rw);
}

void emit_check(struct unit *unit, const struct item *item, unsigned size, enum vmem_access access,
                bool plain) {
    emit_probe(unit, item, size, access, here(unit))->plain = plain;
    asm_alu_mem(&unit->code, ASM_ADD, unit->t0, unit->t1, TLB_ENTRY(addend));
}

/* The linear address of an operand that names no register and moves with nothing. */
static bool fixed_address(const struct unit *unit, const struct item *item, const ZydisDecodedOperand *op,
                          uint64_t *linear) {
    const struct insn *insn = &item->insn;
    bool relative = op->mem.base == ZYDIS_REGISTER_RIP || op->mem.base == ZYDIS_REGISTER_EIP;
    unsigned segment = insn_segment(insn, op);
    if (unit->portable || segment == SEG_FS || segment == SEG_GS || op->mem.index != ZYDIS_REGISTER_NONE ||
        (!relative && op->mem.base != ZYDIS_REGISTER_NONE))
        return false;
    *linear = op->mem.disp.has_displacement ? (uint64_t)op->mem.disp.value : 0;
    if (relative)
        *linear += unit->block->rip + item->guest + insn->length;
    if (!unit->code64 || insn->z.address_width != 64)
        *linear = (uint32_t)*linear;
    return true;
}

/* Its check, for which the entry and the page are known:
 *   mov t0, address;  mov t1, gs:[view];  cmp [t1 + tag], page;  jne cold;  add t0, [t1 + addend]
 */
static void emit_fixed_check(struct unit *unit, const struct item *item, uint64_t linear, unsigned size,
                             enum vmem_access access, bool plain) {
    struct code_buffer *c = &unit->code;
    uint64_t page = linear & PAGE_MASK;
    int32_t entry = (int32_t)((linear >> PAGE_SHIFT & unit_tlb_mask(unit)) * sizeof(struct vtlb_entry));
    uint32_t retry = here(unit);
    asm_mov_imm(c, unit->t0, linear);
    asm_load_gs(c, unit->t1, AREA_VCPU(view));
    if ((uint64_t)(int64_t)(int32_t)page == page) {
        asm_mem(c, true, 0x81, 7, unit->t1, -1, 0, entry + tag_of(access));
        code_u32(c, (uint32_t)page);
    } else {
        asm_mov_imm(c, unit->t2, page);
        asm_alu_mem(c, ASM_CMP, unit->t2, unit->t1, entry + tag_of(access));
    }
    probe_site(unit, item, asm_jcc(c, COND_NE), size, access, retry)->plain = plain;
    asm_alu_mem(c, ASM_ADD, unit->t0, unit->t1, entry + TLB_ENTRY(addend));
}

/* t0 = the host address of a memory operand. */
static void emit_operand(struct unit *unit, const struct item *item, const ZydisDecodedOperand *op,
                         unsigned size, enum vmem_access access, bool plain) {
    uint64_t linear;
    if (fixed_address(unit, item, op, &linear) && (linear & (PAGE_SIZE - 1)) + size <= PAGE_SIZE) {
        emit_fixed_check(unit, item, linear, size, access, plain);
        return;
    }
    emit_address(unit, item, op);
    emit_check(unit, item, size, access, plain);
}

/* A single access that has a memo. False: it has none. */
static bool emit_operand_memo(struct unit *unit, const struct item *item, const struct use *use, bool plain,
                              struct host_memory *memory) {
    bool stack = use->base == GPR_RSP && use->index < 0;
    if (!stack && !memo_suits(unit, item, use))
        return false;
    emit_memo_probe(unit, item,
                    &(struct memo_range){.use = *use,
                                         .memo = stack ? unit_stack_memo(unit) : memo_next(unit, use->access),
                                         .addend = (int8_t)unit->t0,
                                         .plain = plain});
    *memory = (struct host_memory){.base = (int8_t)use->base, .index = (int8_t)unit->t0, .disp = use->disp};
    return true;
}

void emit_load_operand(struct unit *unit, const struct item *item) {
    struct use use;
    struct host_memory memory = {.base = (int8_t)unit->t0, .index = -1};
    const ZydisDecodedOperand *op = &item->insn.op[0];
    unsigned size = unit->code64 ? 8 : 4;
    bool memo = group_operand(unit, item, &use) && emit_operand_memo(unit, item, &use, true, &memory);
    if (!memo && !emit_percpu(unit, item, op, size, VMEM_READ, true, &memory))
        emit_operand(unit, item, op, size, VMEM_READ, true);
    asm_mem(&unit->code, unit->code64, 0x8b, unit->t0, memory.base, memory.index, 0, memory.disp);
}

static enum vmem_access access_of(const ZydisDecodedOperand *op) {
    return op->actions & ZYDIS_OPERAND_ACTION_MASK_WRITE ? VMEM_WRITE : VMEM_READ;
}

void emit_memory(struct unit *unit, const struct item *item) {
    const ZydisDecodedOperand *op = &item->insn.op[item->insn.memory];
    struct host_memory memory = {.base = (int8_t)unit->t0, .index = -1};
    bool plain = !(item->insn.traits & (INSN_MASKED | INSN_VECTOR)) &&
                 item->insn.z.mnemonic != ZYDIS_MNEMONIC_CMPXCHG16B;
    struct use use;
    bool simple = group_operand(unit, item, &use);
    if (!simple || !group_cover(unit, item, &use, &memory)) {
        emit_flags_lose(unit, item);
        bool memo = simple && emit_operand_memo(unit, item, &use, plain, &memory);
        if (!memo && !emit_percpu(unit, item, op, op->size / 8, access_of(op), plain, &memory))
            emit_operand(unit, item, op, op->size / 8, access_of(op), plain);
    }
    emit_native(unit, item, &memory);
}

/* BT and its kin with a register offset address memory beyond the operand: the check is made on the unit that
 * the offset selects, the instruction then runs on the operand's own host address and finds that unit by
 * itself. */
void emit_bit_memory(struct unit *unit, const struct item *item) {
    struct code_buffer *c = &unit->code;
    const ZydisDecodedOperand *op = &item->insn.op[item->insn.memory];
    int offset = insn_gpr(item->insn.op[1].reg.value);
    unsigned bytes = op->size / 8u, shift = bytes == 8 ? 6 : 5;
    emit_flags_clobber(unit);
    emit_address(unit, item, op);
    asm_store_gs(c, AREA_HOT(value), unit->t0);
    uint32_t retry = here(unit);
    if (bytes == 8) {
        asm_mov(c, unit->t2, offset);
    } else {
        asm_rex(c, true, unit->t2, 0, offset);
        code_u8(c, 0x63); /* movsxd t2, offset32 */
        code_u8(c, (uint8_t)(0xc0 | (unit->t2 & 7) << 3 | (offset & 7)));
    }
    asm_sar(c, unit->t2, (uint8_t)shift);
    asm_load_gs(c, unit->t0, AREA_HOT(value));
    asm_lea(c, true, unit->t0, unit->t0, unit->t2, bytes == 8 ? 3 : 2, 0);
    emit_probe(unit, item, bytes, access_of(op), retry)->plain = true;
    asm_load_gs(c, unit->t0, AREA_HOT(value));
    asm_alu_mem(c, ASM_ADD, unit->t0, unit->t1, TLB_ENTRY(addend));
    struct host_memory memory = {.base = (int8_t)unit->t0, .index = -1};
    emit_native(unit, item, &memory);
}

void emit_lea(struct unit *unit, const struct item *item) {
    struct code_buffer *c = &unit->code;
    const struct insn *insn = &item->insn;
    const ZydisDecodedOperand *op = &insn->op[1];
    int target = insn_gpr(insn->op[0].reg.value);
    if (item->disp_field >= 0) { /* 64 bits wide: see field_is_kept_out() */
        (void)emit_address(unit, item, op);
        asm_mov(c, target, unit->t0);
    } else if (op->mem.base == ZYDIS_REGISTER_RIP || op->mem.base == ZYDIS_REGISTER_EIP) {
        uint64_t value = unit->block->rip + item->guest + insn->length + (uint64_t)op->mem.disp.value;
        if (insn->z.address_width == 32)
            value = (uint32_t)value;
        if (insn->z.operand_width == 64 && insn->z.address_width == 64)
            emit_guest_address(unit, target, value);
        else
            emit_guest_address32(unit, target, value);
    } else if (unit->code64) {
        code_bytes(c, insn->bytes, insn->length);
    } else {
        int base = insn_gpr(op->mem.base), index = insn_gpr(op->mem.index);
        int64_t disp = op->mem.disp.has_displacement ? op->mem.disp.value : 0;
        unsigned scale = op->mem.scale == 8 ? 3 : op->mem.scale == 4 ? 2 : op->mem.scale == 2 ? 1 : 0;
        if (base < 0 && index < 0)
            asm_mov_imm(c, target, (uint32_t)disp);
        else
            asm_lea(c, false, target, base, index, scale, (int32_t)disp);
    }
}

/* RSP in a run of PUSH, POP, CALL and RET that share a check: the host's register stays behind while the
 * guest's moves, and is brought up to date by one addition. The next access does not wait for the last one's
 * then, which costs more than the operations do. Between them may stand what does not name RSP; whatever may
 * leave the block comes after the addition, and a fault finds in its place's pc_entry what is missing. */
#define RSP_LAG_MAX 1024

void emit_rsp_settle(struct unit *unit) {
    const struct dbt_vcpu *dbt = unit->dbt;
    if (!unit->rsp_lag)
        return;
    asm_lea(&unit->code, true, GPR_RSP, GPR_RSP, -1, 0, unit->rsp_lag);
    unit->rsp_lag = 0;
    unit_note_pc(unit, dbt->pc[dbt->pcs - 1].guest);
}

void emit_rsp_move(struct unit *unit, int32_t delta) {
    if (!unit->code64 || unit->portable || unit->function) {
        asm_lea(&unit->code, unit->code64, GPR_RSP, GPR_RSP, -1, 0, delta);
        return;
    }
    unit->rsp_lag += delta;
    if (unit->rsp_lag < -RSP_LAG_MAX || unit->rsp_lag > RSP_LAG_MAX)
        emit_rsp_settle(unit);
}

void emit_rsp_before(struct unit *unit, const struct item *item) {
    const struct insn *insn = &item->insn;
    const ZydisDecodedOperand *op = insn->op;
    bool waits;
    switch (item->kind) {
    case KIND_COPY:
    case KIND_LEA:
    case KIND_NOP:
        waits = !((insn->gprs_read | insn->gprs_written) >> GPR_RSP & 1);
        break;
    case KIND_PUSH:
        waits = op->type == ZYDIS_OPERAND_TYPE_IMMEDIATE ||
                (op->type == ZYDIS_OPERAND_TYPE_REGISTER && insn_gpr(op->reg.value) != GPR_RSP);
        break;
    case KIND_POP:
        waits = insn_gpr(op->reg.value) != GPR_RSP;
        break;
    case KIND_CALL:
    case KIND_RET:
    case KIND_RETPOLINE:
        waits = true;
        break;
    default:
        waits = false;
    }
    if (!waits)
        emit_rsp_settle(unit);
}

/* t0 = linear address of [rsp + delta] */
static void emit_stack_address(struct unit *unit, int base, int32_t delta) {
    if (delta)
        asm_lea(&unit->code, unit->code64, unit->t0, base, -1, 0, delta);
    else if (unit->code64)
        asm_mov(&unit->code, unit->t0, base);
    else
        asm_mov32(&unit->code, unit->t0, base);
}

/* See unit.h. */
struct host_memory emit_stack(struct unit *unit, const struct item *item, int32_t delta,
                              enum vmem_access access) {
    unsigned size = unit->code64 ? 8 : 4;
    struct host_memory memory = {.base = (int8_t)unit->t0, .index = -1};
    const struct use use = {.base = GPR_RSP, .index = -1, .disp = delta, .size = size, .access = access};
    if (group_cover(unit, item, &use, &memory))
        return memory;
    emit_rsp_settle(unit);
    emit_flags_lose(unit, item);
    if (unit->code64) {
        emit_memo_probe(
            unit, item,
            &(struct memo_range){
                .use = use, .memo = unit_stack_memo(unit), .addend = (int8_t)unit->t1, .plain = true});
        return (struct host_memory){.base = GPR_RSP, .index = (int8_t)unit->t1, .disp = delta};
    }
    emit_stack_address(unit, GPR_RSP, delta);
    emit_check(unit, item, size, access, true);
    return memory;
}

void emit_push(struct unit *unit, const struct item *item) {
    struct code_buffer *c = &unit->code;
    const ZydisDecodedOperand *op = &item->insn.op[0];
    int size = unit->code64 ? 8 : 4;
    if (op->type == ZYDIS_OPERAND_TYPE_MEMORY) {
        emit_flags_lose(unit, item);
        emit_load_operand(unit, item);
        asm_store_gs(c, AREA_HOT(value), unit->t0);
    }
    struct host_memory to = emit_stack(unit, item, -size, VMEM_WRITE);
    if (item->imm_field >= 0) {
        emit_field_value(unit, item, unit->t2, item->imm_field, false);
        asm_mem(c, true, 0x89, unit->t2, to.base, to.index, 0, to.disp);
    } else if (op->type == ZYDIS_OPERAND_TYPE_REGISTER) {
        asm_mem(c, unit->code64, 0x89, insn_gpr(op->reg.value), to.base, to.index, 0, to.disp);
    } else if (op->type == ZYDIS_OPERAND_TYPE_MEMORY) {
        asm_load_gs(c, unit->t2, AREA_HOT(value));
        asm_mem(c, unit->code64, 0x89, unit->t2, to.base, to.index, 0, to.disp);
    } else {
        asm_mem(c, unit->code64, 0xc7, 0, to.base, to.index, 0, to.disp);
        code_u32(c, (uint32_t)op->imm.value.u);
    }
    emit_rsp_move(unit, -size);
}

void emit_pop(struct unit *unit, const struct item *item) {
    struct code_buffer *c = &unit->code;
    int size = unit->code64 ? 8 : 4, target = insn_gpr(item->insn.op[0].reg.value);
    struct host_memory from = emit_stack(unit, item, 0, VMEM_READ);
    asm_mem(c, unit->code64, 0x8b, target, from.base, from.index, 0, from.disp);
    if (target != GPR_RSP)
        emit_rsp_move(unit, size);
}

void emit_leave_insn(struct unit *unit, const struct item *item) {
    struct code_buffer *c = &unit->code;
    int size = unit->code64 ? 8 : 4;
    emit_flags_lose(unit, item);
    emit_stack_address(unit, GPR_RBP, 0);
    emit_check(unit, item, (unsigned)size, VMEM_READ, true);
    /* The load may still fault, on a non-canonical address: nothing has changed until then. */
    asm_mem(c, unit->code64, 0x8b, unit->t0, unit->t0, -1, 0, 0);
    asm_lea(c, unit->code64, GPR_RSP, GPR_RBP, -1, 0, size);
    if (unit->code64)
        asm_mov(c, GPR_RBP, unit->t0);
    else
        asm_mov32(c, GPR_RBP, unit->t0);
}
