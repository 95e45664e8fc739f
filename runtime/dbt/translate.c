/* From guest code to a block: decode a run of instructions, find out which registers are free,
 * emit, publish.
 *
 * A block has one entry and several exits: it goes on behind conditional branches not taken, and ends at an
 * unconditional one, at an instruction for the interpreter, at the end of the page, or when scratch registers
 * would run out.
 */
#include "cpu/vmem.h"
#include "dbt/unit.h"
#include "interp/interp.h"
#include "mem/guest_mem.h"

#define SCRATCHES 3

static bool vector_allowed(const struct insn *insn, uint32_t mode) {
    const ZydisDecodedInstruction *z = &insn->z;
    if (z->mnemonic == ZYDIS_MNEMONIC_FWAIT)
        return !(mode & MODE_NO_WAIT);
    if (!(insn->traits & INSN_VECTOR))
        return true;
    switch (z->encoding) {
    case ZYDIS_INSTRUCTION_ENCODING_EVEX:
        return !(mode & (MODE_AVX512_UD | MODE_SSE_NM));
    case ZYDIS_INSTRUCTION_ENCODING_VEX:
        return !(mode &
                 ((z->meta.category == ZYDIS_CATEGORY_KMASK ? MODE_AVX512_UD : MODE_AVX_UD) | MODE_SSE_NM));
    case ZYDIS_INSTRUCTION_ENCODING_LEGACY:
        break;
    default:
        return false;
    }
    bool x87 = z->opcode_map == ZYDIS_OPCODE_MAP_DEFAULT, mmx = false;
    for (unsigned i = 0; i < z->operand_count; i++)
        if (insn->op[i].type == ZYDIS_OPERAND_TYPE_REGISTER &&
            ZydisRegisterGetClass(insn->op[i].reg.value) == ZYDIS_REGCLASS_MMX)
            mmx = true;
    if (x87 || mmx || z->mnemonic == ZYDIS_MNEMONIC_EMMS)
        return !(mode & (MODE_NO_X87 | (mmx ? MODE_SSE_NM | MODE_SSE_UD : 0)));
    return !(mode & (MODE_SSE_NM | MODE_SSE_UD));
}

/* Can the memory operand be reached through the inline check? */
static bool memory_allowed(const struct unit *unit, const struct insn *insn) {
    const ZydisDecodedOperand *op = &insn->op[insn->memory];
    uint32_t mode = unit->block->mode;
    if (op->size == 0 || op->size % 8 || op->size / 8 > 64 || insn->z.address_width == 16)
        return false;
    if (unit->code64)
        return true;
    switch (insn_segment(insn, op)) {
    case SEG_FS:
        return mode & MODE_FS_WIDE;
    case SEG_GS:
        return mode & MODE_GS_WIDE;
    case SEG_CS:
        return !(op->actions & ZYDIS_OPERAND_ACTION_MASK_WRITE);
    default:
        return true;
    }
}

static bool is_bit_test(const struct insn *insn) {
    switch (insn->z.mnemonic) {
    case ZYDIS_MNEMONIC_BT:
    case ZYDIS_MNEMONIC_BTS:
    case ZYDIS_MNEMONIC_BTR:
    case ZYDIS_MNEMONIC_BTC:
        return insn->op[1].type == ZYDIS_OPERAND_TYPE_REGISTER;
    default:
        return false;
    }
}

static enum kind classify_stack(const struct unit *unit, const struct insn *insn) {
    unsigned width = unit->code64 ? 64 : 32;
    if (!unit->code64 && !(unit->block->mode & MODE_STACK_32))
        return KIND_INTERPRET;
    if (insn->z.operand_width != width || (insn->z.address_width != width && insn->memory >= 0))
        return KIND_INTERPRET;
    const ZydisDecodedOperand *op = &insn->op[0];
    bool pop = insn->z.meta.category == ZYDIS_CATEGORY_POP;
    if (op->type == ZYDIS_OPERAND_TYPE_REGISTER)
        return insn_gpr(op->reg.value) < 0 ? KIND_INTERPRET : pop ? KIND_POP : KIND_PUSH;
    if (pop)
        return KIND_INTERPRET;
    if (op->type == ZYDIS_OPERAND_TYPE_MEMORY)
        return memory_allowed(unit, insn) ? KIND_PUSH : KIND_INTERPRET;
    return KIND_PUSH;
}

static enum kind classify_branch(const struct unit *unit, const struct insn *insn) {
    const ZydisDecodedInstruction *z = &insn->z;
    unsigned width = unit->code64 ? 64 : 32;
    if (z->meta.branch_type == ZYDIS_BRANCH_TYPE_FAR ||
        (!unit->code64 && !(unit->block->mode & MODE_STACK_32)))
        return KIND_INTERPRET;
    bool direct = insn->op[0].type == ZYDIS_OPERAND_TYPE_IMMEDIATE;
    if (z->meta.category == ZYDIS_CATEGORY_COND_BR) {
        switch (z->mnemonic) {
        case ZYDIS_MNEMONIC_JCXZ:
        case ZYDIS_MNEMONIC_LOOPE:
        case ZYDIS_MNEMONIC_LOOPNE:
            return KIND_INTERPRET;
        case ZYDIS_MNEMONIC_JECXZ:
        case ZYDIS_MNEMONIC_JRCXZ:
        case ZYDIS_MNEMONIC_LOOP:
            return z->address_width == 16 || z->operand_width == 16 ? KIND_INTERPRET : KIND_JCXZ;
        default:
            return z->operand_width == 16 ? KIND_INTERPRET : KIND_JCC;
        }
    }
    if (z->operand_width != width)
        return KIND_INTERPRET;
    if (!direct && insn->op[0].type == ZYDIS_OPERAND_TYPE_MEMORY && !memory_allowed(unit, insn))
        return KIND_INTERPRET;
    if (z->meta.category == ZYDIS_CATEGORY_CALL)
        return direct ? KIND_CALL : KIND_CALL_INDIRECT;
    return direct ? KIND_JMP : KIND_JMP_INDIRECT;
}

static enum kind helper(struct item *item, enum helper which, bool ends) {
    item->helper = which;
    return ends ? KIND_HELPER_END : KIND_HELPER;
}

static enum kind classify_string(const struct unit *unit, struct item *item) {
    const struct insn *insn = &item->insn;
    unsigned width = unit->code64 ? 64 : 32;
    if (insn->z.address_width != width || insn->z.attributes & ZYDIS_ATTRIB_HAS_SEGMENT)
        return KIND_INTERPRET;
    switch (insn->z.mnemonic) {
    case ZYDIS_MNEMONIC_MOVSB:
    case ZYDIS_MNEMONIC_MOVSW:
    case ZYDIS_MNEMONIC_MOVSQ:
    case ZYDIS_MNEMONIC_STOSB:
    case ZYDIS_MNEMONIC_STOSW:
    case ZYDIS_MNEMONIC_STOSD:
    case ZYDIS_MNEMONIC_STOSQ:
    case ZYDIS_MNEMONIC_MOVSD:
        return helper(item, HELPER_STRING, false);
    default:
        return KIND_INTERPRET;
    }
}

static enum kind classify_lea(const struct unit *unit, const struct insn *insn) {
    ZydisRegister base = insn->op[1].mem.base;
    bool relative = base == ZYDIS_REGISTER_RIP || base == ZYDIS_REGISTER_EIP;
    if (unit->code64)
        return relative && insn->z.operand_width == 16 ? KIND_INTERPRET : KIND_LEA;
    return insn->z.operand_width == 32 && insn->z.address_width == 32 ? KIND_LEA : KIND_INTERPRET;
}

static enum kind classify(struct unit *unit, struct item *item) {
    const struct insn *insn = &item->insn;
    const ZydisDecodedInstruction *z = &insn->z;
    uint32_t mode = unit->block->mode;
    bool system = mode & MODE_CPL0;
    if (!interp_insn_offered(unit->vcpu, insn))
        return KIND_INTERPRET;
    switch (z->meta.category) {
    case ZYDIS_CATEGORY_NOP:
    case ZYDIS_CATEGORY_WIDENOP:
    case ZYDIS_CATEGORY_PREFETCH:
    case ZYDIS_CATEGORY_PREFETCHWT1:
    case ZYDIS_CATEGORY_CLDEMOTE:
        return KIND_NOP;
    case ZYDIS_CATEGORY_COND_BR:
    case ZYDIS_CATEGORY_UNCOND_BR:
    case ZYDIS_CATEGORY_CALL:
        return classify_branch(unit, insn);
    case ZYDIS_CATEGORY_STRINGOP:
        return classify_string(unit, item);
    default:
        break;
    }
    switch (z->mnemonic) {
    case ZYDIS_MNEMONIC_ENDBR32:
    case ZYDIS_MNEMONIC_ENDBR64:
        return KIND_NOP;
    case ZYDIS_MNEMONIC_PUSH:
    case ZYDIS_MNEMONIC_POP:
        return classify_stack(unit, insn);
    case ZYDIS_MNEMONIC_LEAVE:
        return z->operand_width == (unit->code64 ? 64 : 32) && (unit->code64 || mode & MODE_STACK_32)
                   ? KIND_LEAVE
                   : KIND_INTERPRET;
    case ZYDIS_MNEMONIC_RET:
        return z->meta.branch_type != ZYDIS_BRANCH_TYPE_FAR && z->operand_width == (unit->code64 ? 64 : 32) &&
                       (unit->code64 || mode & MODE_STACK_32)
                   ? KIND_RET
                   : KIND_INTERPRET;
    case ZYDIS_MNEMONIC_LEA:
        return classify_lea(unit, insn);
    case ZYDIS_MNEMONIC_PUSHFQ:
        return helper(item, HELPER_PUSHF, false);
    case ZYDIS_MNEMONIC_POPFQ:
        return helper(item, HELPER_POPF, false);
    case ZYDIS_MNEMONIC_CLI:
        return mode & MODE_IO_FREE ? KIND_CLI : KIND_INTERPRET;
    case ZYDIS_MNEMONIC_STI:
        return mode & MODE_IO_FREE ? KIND_STI : KIND_INTERPRET;
    case ZYDIS_MNEMONIC_STAC:
        return system ? KIND_STAC : KIND_INTERPRET;
    case ZYDIS_MNEMONIC_CLAC:
        return system ? KIND_CLAC : KIND_INTERPRET;
    case ZYDIS_MNEMONIC_SWAPGS:
        return system && unit->code64 ? KIND_SWAPGS : KIND_INTERPRET;
    case ZYDIS_MNEMONIC_RDTSC:
        return mode & (MODE_TSD | MODE_TSC_OFFSET) ? KIND_INTERPRET : KIND_RDTSC;
    case ZYDIS_MNEMONIC_RDTSCP:
        return mode & (MODE_TSD | MODE_TSC_OFFSET) ? KIND_INTERPRET : KIND_RDTSCP;
    case ZYDIS_MNEMONIC_CPUID:
        return helper(item, HELPER_CPUID, false);
    case ZYDIS_MNEMONIC_RDMSR:
        return system ? helper(item, HELPER_RDMSR, false) : KIND_INTERPRET;
    case ZYDIS_MNEMONIC_WRMSR:
        return system ? helper(item, HELPER_WRMSR, false) : KIND_INTERPRET;
    case ZYDIS_MNEMONIC_SYSCALL:
        return unit->code64 ? helper(item, HELPER_SYSCALL, true) : KIND_INTERPRET;
    case ZYDIS_MNEMONIC_SYSRET:
        return unit->code64 && system ? helper(item, HELPER_SYSRET, true) : KIND_INTERPRET;
    case ZYDIS_MNEMONIC_IRETQ:
        return helper(item, HELPER_IRET, true);
    case ZYDIS_MNEMONIC_RDFSBASE:
    case ZYDIS_MNEMONIC_RDGSBASE:
        return unit->code64 && mode & MODE_FSGSBASE ? KIND_READ_BASE : KIND_INTERPRET;
    case ZYDIS_MNEMONIC_WRFSBASE:
    case ZYDIS_MNEMONIC_WRGSBASE:
        return unit->code64 && mode & MODE_FSGSBASE ? helper(item, HELPER_WRITE_BASE, false) : KIND_INTERPRET;
    case ZYDIS_MNEMONIC_INVLPG:
        return system && unit->code64 && insn_segment(insn, &insn->op[0]) < SEG_FS
                   ? helper(item, HELPER_INVLPG, false)
                   : KIND_INTERPRET;
    case ZYDIS_MNEMONIC_MOV:
        if (insn->op[0].type == ZYDIS_OPERAND_TYPE_REGISTER &&
            insn->op[1].type == ZYDIS_OPERAND_TYPE_REGISTER &&
            ZydisRegisterGetClass(insn->op[1].reg.value) == ZYDIS_REGCLASS_SEGMENT &&
            insn_gpr(insn->op[0].reg.value) >= 0)
            return KIND_READ_SELECTOR;
        if (system && insn->op[0].type == ZYDIS_OPERAND_TYPE_REGISTER &&
            ZydisRegisterGetClass(insn->op[0].reg.value) == ZYDIS_REGCLASS_CONTROL)
            return helper(item, HELPER_WRITE_CR, false);
        if (system && insn->op[1].type == ZYDIS_OPERAND_TYPE_REGISTER &&
            ZydisRegisterGetClass(insn->op[1].reg.value) == ZYDIS_REGCLASS_CONTROL)
            return helper(item, HELPER_READ_CR, false);
        break;
    default:
        break;
    }
    if (!vector_allowed(insn, mode) || !insn_can_encode(insn))
        return KIND_INTERPRET;
    if (insn->memory < 0)
        return KIND_COPY;
    if (!memory_allowed(unit, insn))
        return KIND_INTERPRET;
    if (is_bit_test(insn))
        return z->operand_width == 16 || (unit->code64 && z->address_width != 64) ? KIND_INTERPRET
                                                                                  : KIND_BIT_MEMORY;
    return KIND_MEMORY;
}

static bool ends_block(enum kind kind) {
    return kind >= KIND_JMP;
}

static bool needs_scratch(const struct unit *unit, const struct item *item) {
    switch (item->kind) {
    case KIND_COPY:
    case KIND_NOP:
    case KIND_LEA:
    case KIND_CLI:
    case KIND_STI:
    case KIND_RDTSC:
    case KIND_RDTSCP:
    case KIND_READ_BASE:
    case KIND_READ_SELECTOR:
    case KIND_HELPER_END:
    case KIND_INTERPRET:
        return false;
    case KIND_HELPER:
        return item->helper == HELPER_INVLPG;
    case KIND_JCC:
    case KIND_JCXZ:
    case KIND_JMP:
        return branch_needs_lookup(unit, branch_target(unit, item));
    default:
        return true;
    }
}

/* Registers in the order in which they are taken as scratches; RAX only ever as t2 (flags go through it). */
static const int8_t scratch_order[] = {GPR_RDI, GPR_RSI, GPR_RBP, GPR_RBX, GPR_RDX, GPR_RCX, GPR_R8,
                                       GPR_R9,  GPR_R10, GPR_R11, GPR_R12, GPR_R13, GPR_R14, GPR_R15};

static unsigned free_registers(uint16_t used) {
    return 16 - (unsigned)__builtin_popcount((unsigned)used | 1u << GPR_RSP);
}

static void choose_scratches(struct unit *unit, uint16_t used) {
    int chosen[SCRATCHES];
    unsigned count = 0;
    bool rax = !(used & 1);
    for (unsigned i = 0; i < ARRAY_SIZE(scratch_order) && count < (rax ? 2u : 3u); i++)
        if (!(used >> scratch_order[i] & 1))
            chosen[count++] = scratch_order[i];
    if (rax)
        chosen[count++] = GPR_RAX;
    unit->t0 = chosen[0];
    unit->t1 = chosen[1];
    unit->t2 = chosen[2];
    unit->spilled = (uint16_t)(1u << unit->t0 | 1u << unit->t1 | 1u << unit->t2);
    if (unit->block->mode & MODE_UNGROUPED || !unit->code64)
        return;
    unsigned wanted = group_count(unit);
    used |= unit->spilled;
    for (unsigned i = 0, taken = 0; i < ARRAY_SIZE(scratch_order) && taken < wanted; i++) {
        if (used >> scratch_order[i] & 1)
            continue;
        unit->group[taken++].reg = scratch_order[i];
        unit->spilled |= (uint16_t)(1u << scratch_order[i]);
    }
}

/* Decode one instruction at offset from the block's start. 0 when the block must end before it. */
static unsigned decode_at(struct unit *unit, struct item *item, unsigned offset) {
    struct vcpu *vcpu = unit->vcpu;
    struct block *block = unit->block;
    uint64_t room = PAGE_SIZE - (block->ram_offset & (PAGE_SIZE - 1));
    const uint8_t *bytes = vcpu->mem->base + block->ram_offset + offset;
    unsigned code_size = unit->code64 ? 64 : 32;
    if (offset >= room)
        return 0;
    enum insn_status status = insn_decode(&item->insn, bytes, room - offset, code_size);
    if (status == INSN_OK)
        return item->insn.length;
    if (offset || status != INSN_SHORT)
        return 0;
    /* The first instruction crosses into the next page. */
    uint8_t both[INSN_MAX_LENGTH];
    void *host;
    uint64_t second = (block->rip & PAGE_MASK) + PAGE_SIZE;
    if (vmem_host(vcpu, unit->code64 ? second : (uint32_t)second, 1, VMEM_FETCH, AS_CURRENT, &host) || !host)
        return 0;
    uint64_t ram_page2 = (uint64_t)((uint8_t *)host - vcpu->mem->base) & PAGE_MASK;
    block_hold_page(vcpu, ram_page2);
    unsigned got = vmem_fetch(vcpu, block->rip, both, sizeof both);
    if (got <= room || insn_decode(&item->insn, both, got, code_size) != INSN_OK)
        return 0;
    block->ram_page2 = ram_page2;
    return item->insn.length;
}

/* STI holds interrupts off for one instruction: inline only when that one is plain and in this block. */
static void settle_sti(struct unit *unit) {
    for (unsigned i = 0; i < unit->items; i++) {
        if (unit->item[i].kind != KIND_STI)
            continue;
        if (i + 1 < unit->items && unit->item[i + 1].kind < KIND_JCC && unit->item[i + 1].kind != KIND_STI)
            continue;
        unit->item[i].kind = KIND_INTERPRET;
        unit->items = i + 1;
        unit->end_rip = unit->block->rip + unit->item[i].guest + unit->item[i].insn.length;
        return;
    }
}

/* Fill unit->item. False when the first instruction cannot even be decoded. */
static bool gather(struct unit *unit) {
    uint16_t used = 0;
    unsigned offset = 0, exits = 0;
    bool scratch = false;
    unit->items = 0;
    while (unit->items < BLOCK_MAX_INSNS && exits < BLOCK_MAX_EXITS) {
        struct item *item = &unit->item[unit->items];
        unsigned length = decode_at(unit, item, offset);
        if (!length)
            break;
        item->guest = (uint16_t)offset;
        item->helper = HELPER_NONE;
        item->kind = classify(unit, item);
        uint16_t now = used | item->insn.gprs_read | item->insn.gprs_written;
        if (free_registers(now) < SCRATCHES && unit->items)
            break;
        used = now;
        scratch |= needs_scratch(unit, item);
        if (item->kind == KIND_JCC || item->kind == KIND_JCXZ)
            exits++;
        unit->items++;
        offset += length;
        if (ends_block(item->kind) || unit->block->ram_page2 != GUEST_NO_RAM)
            break;
    }
    if (!unit->items)
        return false;
    unit->end_rip = unit->block->rip + offset;
    settle_sti(unit);
    if (!ends_block(unit->item[unit->items - 1].kind))
        scratch |= branch_needs_lookup(unit, unit->code64 ? unit->end_rip : (uint32_t)unit->end_rip);
    unit->t0 = unit->t1 = unit->t2 = -1;
    unit->spilled = 0;
    group_reset(unit);
    if (scratch)
        choose_scratches(unit, used);
    for (unsigned i = 0; i < unit->items; i++) {
        struct item *item = &unit->item[i];
        if ((item->kind == KIND_MEMORY || item->kind == KIND_BIT_MEMORY) &&
            item->insn.traits & INSN_HIGH_BYTE && unit->t0 >= 8) {
            item->kind = KIND_INTERPRET;
            unit->items = i + 1;
            unit->end_rip = unit->block->rip + item->guest + item->insn.length;
        }
    }
    return true;
}

static uint32_t segment_base(bool is_fs) {
    return is_fs ? AREA_VCPU(segment[SEG_FS].base) : AREA_VCPU(segment[SEG_GS].base);
}

static void emit_read_base(struct unit *unit, const struct item *item) {
    uint32_t base = segment_base(item->insn.z.mnemonic == ZYDIS_MNEMONIC_RDFSBASE);
    int target = insn_gpr(item->insn.op[0].reg.value);
    if (item->insn.op[0].size == 64)
        asm_load_gs(&unit->code, target, base);
    else
        asm_load32_gs(&unit->code, target, base);
}

/* MOV r, Sreg: 16 bits into a 16-bit register, zero-extended into a wider one. */
static void emit_read_selector(struct unit *unit, const struct item *item) {
    struct code_buffer *c = &unit->code;
    unsigned segment = (unsigned)(item->insn.op[1].reg.value - ZYDIS_REGISTER_ES);
    uint32_t selector = AREA_VCPU(segment) + (uint32_t)(segment * sizeof(struct segment));
    int target = insn_gpr(item->insn.op[0].reg.value);
    if (item->insn.op[0].size == 16) {
        code_u8(c, 0x66);
        asm_load32_gs(c, target, selector);
        return;
    }
    code_u8(c, 0x65); /* movzx r32, word gs:[selector] */
    asm_rex(c, false, target, 0, 0);
    code_u8(c, 0x0f);
    code_u8(c, 0xb7);
    code_u8(c, (uint8_t)((target & 7) << 3 | 4));
    code_u8(c, 0x25);
    code_u32(c, selector);
}

static void emit_helper(struct unit *unit, const struct item *item, enum site_kind kind) {
    const ZydisDecodedOperand *op = item->insn.op;
    if (item->helper == HELPER_INVLPG && kind == SITE_HELPER) {
        emit_address(unit, item, &op[0]);
        asm_store_gs(&unit->code, AREA_HOT(value), unit->t0);
    }
    emit_flags_for_exit(unit);
    emit_reload(unit);
    struct site *site = unit_site(unit, kind, item);
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
    case HELPER_STRING: {
        bool stos =
            item->insn.z.meta.category == ZYDIS_CATEGORY_STRINGOP &&
            (item->insn.z.mnemonic == ZYDIS_MNEMONIC_STOSB || item->insn.z.mnemonic == ZYDIS_MNEMONIC_STOSW ||
             item->insn.z.mnemonic == ZYDIS_MNEMONIC_STOSD || item->insn.z.mnemonic == ZYDIS_MNEMONIC_STOSQ);
        bool rep =
            item->insn.z.attributes & (ZYDIS_ATTRIB_HAS_REP | ZYDIS_ATTRIB_HAS_REPE | ZYDIS_ATTRIB_HAS_REPNE);
        site->size = (uint8_t)(item->insn.op[0].size / 8);
        site->reg = (uint8_t)(stos | rep << 1);
        break;
    }
    default:
        break;
    }
    emit_exit_to_c(unit, unit_site_index(unit, site));
    site->host = (uint32_t)(unit->code.at - unit->dbt->rw);
}

static void emit_swapgs(struct unit *unit) {
    struct code_buffer *c = &unit->code;
    asm_load_gs(c, unit->t0, AREA_VCPU(segment[SEG_GS].base));
    asm_load_gs(c, unit->t1, AREA_VCPU(kernel_gs_base));
    asm_store_gs(c, AREA_VCPU(segment[SEG_GS].base), unit->t1);
    asm_store_gs(c, AREA_VCPU(kernel_gs_base), unit->t0);
}

static void emit_set_ac(struct unit *unit, bool set) {
    struct code_buffer *c = &unit->code;
    asm_store8_imm_gs(c, AREA_HOT(acflag), set ? 4 : 0);
    asm_load_gs(c, unit->t0, set ? AREA_HOT(view_kernel_ac) : AREA_HOT(view_kernel));
    asm_store_gs(c, AREA_VCPU(view), unit->t0);
}

static void emit_item(struct unit *unit, const struct item *item) {
    struct code_buffer *c = &unit->code;
    switch (item->kind) {
    case KIND_NOP:
        break;
    case KIND_COPY:
        emit_native(unit, item, NULL);
        break;
    case KIND_LEA:
        emit_lea(unit, item);
        break;
    case KIND_MEMORY:
        emit_memory(unit, item);
        break;
    case KIND_BIT_MEMORY:
        emit_bit_memory(unit, item);
        break;
    case KIND_PUSH:
        emit_push(unit, item);
        break;
    case KIND_POP:
        emit_pop(unit, item);
        break;
    case KIND_LEAVE:
        emit_leave_insn(unit, item);
        break;
    case KIND_RDTSC:
    case KIND_RDTSCP:
        code_u8(c, 0x0f);
        code_u8(c, 0x31);
        if (item->kind == KIND_RDTSCP)
            asm_load32_gs(c, GPR_RCX, AREA_VCPU(tsc_aux));
        break;
    case KIND_CLI:
        asm_store8_imm_gs(c, AREA_HOT(iflag), 0);
        break;
    case KIND_STI:
        asm_store8_imm_gs(c, AREA_HOT(iflag), 2);
        break;
    case KIND_STAC:
    case KIND_CLAC:
        emit_set_ac(unit, item->kind == KIND_STAC);
        break;
    case KIND_SWAPGS:
        emit_swapgs(unit);
        break;
    case KIND_READ_BASE:
        emit_read_base(unit, item);
        break;
    case KIND_READ_SELECTOR:
        emit_read_selector(unit, item);
        break;
    case KIND_JCC:
        emit_jcc(unit, item);
        break;
    case KIND_JCXZ:
        emit_jcxz(unit, item);
        break;
    case KIND_HELPER:
    case KIND_HELPER_END:
        emit_helper(unit, item, SITE_HELPER);
        break;
    case KIND_INTERPRET:
        emit_helper(unit, item, SITE_INTERPRET);
        break;
    case KIND_JMP:
        emit_link(unit, item, branch_target(unit, item));
        break;
    case KIND_CALL:
        emit_call(unit, item);
        break;
    case KIND_JMP_INDIRECT:
        emit_jump_indirect(unit, item);
        break;
    case KIND_CALL_INDIRECT:
        emit_call_indirect(unit, item);
        break;
    case KIND_RET:
        emit_ret(unit, item);
        break;
    }
}

static void emit_block(struct unit *unit) {
    struct code_buffer *c = &unit->code;
    unit->flags_saved = false;
    unit->colds = 0;
    unit_site(unit, SITE_DEAD, NULL);
    for (int reg = 0; reg < 16; reg++)
        if (unit->spilled >> reg & 1)
            asm_store_gs(c, AREA_GPR(reg), reg);
    unit->loop_entry = c->at;
    unit_note_pc(unit, 0);
    asm_store8_imm_gs(c, (uint32_t)offsetof(struct dbt_area, poll), 0);
    bool sti = false;
    for (unsigned i = 0; i < unit->items; i++) {
        const struct item *item = &unit->item[i];
        if (i)
            unit_note_pc(unit, item->guest);
        if (sti)
            asm_store8_imm_gs(c, (uint32_t)offsetof(struct dbt_area, sti_poll), 0);
        sti = i && unit->item[i - 1].kind == KIND_STI;
        emit_item(unit, item);
        group_after(unit, item);
        /* The poll comes when the instruction behind STI is done, that is, before the one after it. */
    }
    if (!ends_block(unit->item[unit->items - 1].kind)) {
        unit_note_pc(unit, (unsigned)(unit->end_rip - unit->block->rip));
        if (sti)
            asm_store8_imm_gs(c, (uint32_t)offsetof(struct dbt_area, sti_poll), 0);
        emit_link(unit, NULL, unit->code64 ? unit->end_rip : (uint32_t)unit->end_rip);
    }
    emit_colds(unit);
    /* A killed block's entry is overwritten with an exit: keep room for it. */
    while (c->at - c->start < 24)
        code_u8(c, 0x90);
}

uint32_t dbt_translate(struct vcpu *vcpu, uint64_t ram_offset, uint32_t mode) {
    struct dbt_vcpu *dbt = vcpu->dbt;
    if (dbt->used + BLOCK_MAX_HOST > dbt->size || dbt->blocks == dbt->max_blocks ||
        dbt->sites + BLOCK_MAX_INSNS * 4 > dbt->max_sites ||
        dbt->pcs + BLOCK_MAX_INSNS * 2 + 2 > dbt->max_pcs)
        block_flush_all(vcpu);
    /* The page must be known to hold code before its bytes are read: a store that comes later is then
     * noticed. Before the tables are looked at, too: it may serve requests, which change them. */
    block_hold_page(vcpu, ram_offset & PAGE_MASK);
    uint64_t flushes = dbt->stats.flushes;
    struct unit *unit = dbt->unit;
    uint32_t index = dbt->blocks;
    struct block *block = &dbt->block[index];
    *block = (struct block){.rip = vcpu->rip,
                            .ram_offset = ram_offset,
                            .ram_page2 = GUEST_NO_RAM,
                            .mode = mode,
                            .host = (uint32_t)dbt->used,
                            .incoming = NO_INDEX,
                            .first_site = dbt->sites,
                            .first_pc = dbt->pcs};
    unit->vcpu = vcpu;
    unit->dbt = dbt;
    unit->block = block;
    unit->index = index;
    unit->code64 = cpu_is_code64(vcpu);
    unit->code = (struct code_buffer){
        .start = dbt->rw + dbt->used, .at = dbt->rw + dbt->used, .end = dbt->rw + dbt->used + BLOCK_MAX_HOST};

    if (!gather(unit) || dbt->stats.flushes != flushes)
        return NO_INDEX;
    emit_block(unit);
    if (unit->code.overflow) {
        dbt->sites = block->first_site;
        dbt->pcs = block->first_pc;
        return NO_INDEX;
    }
    block->host_size = (uint32_t)(unit->code.at - unit->code.start);
    block->loop_entry = (uint32_t)(unit->loop_entry - dbt->rw);
    block->spilled = unit->spilled;
    block->guest_length = (uint16_t)(unit->end_rip - block->rip);
    dbt->used = align_up(dbt->used + block->host_size, 16);
    dbt->blocks++;
    dbt->stats.blocks++;
    dbt->stats.guest_instructions += unit->items;
    dbt->stats.guest_bytes += block->guest_length;
    dbt->stats.host_bytes += block->host_size;
    block_publish(vcpu, index);
    return index;
}
