/* What the translator does with an instruction: which emitter takes it, which C helper, or the interpreter.
 * The mode of the block is known, so whatever would fault by mode alone (#NM, #UD) is the interpreter's from
 * the start. */
#include "dbt/unit.h"
#include "interp/interp.h"

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
    const ZydisDecodedInstruction *z = &insn->z;
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
        item->helper = HELPER_STRING;
        return unit->code64 && z->attributes & ZYDIS_ATTRIB_HAS_REP ? KIND_REP : KIND_HELPER;
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

/* Is it a control register that is nothing but a word, which nobody wants to hear of? (Portable code asks C.)
 */
static bool reads_plain_cr(const struct unit *unit, const struct insn *insn) {
    unsigned number = insn->op[1].reg.value - ZYDIS_REGISTER_CR0;
    return unit->code64 && !unit->portable && !unit->function && !(unit->vcpu->trace_subjects & TRACE_CR) &&
           number <= 4 && number != 1;
}

enum kind unit_classify(struct unit *unit, struct item *item) {
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
    case ZYDIS_MNEMONIC_STD:
        return KIND_INTERPRET; /* and so is what follows: dbt_can_run() */
    case ZYDIS_MNEMONIC_CLD:
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
        return unit->code64 && z->operand_width == 64 ? KIND_PUSHF : KIND_INTERPRET;
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
        return unit->code64 ? KIND_CPUID : helper(item, HELPER_CPUID, false);
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
    case ZYDIS_MNEMONIC_XSAVE64:
    case ZYDIS_MNEMONIC_XSAVEOPT64:
    case ZYDIS_MNEMONIC_XSAVEC64:
    case ZYDIS_MNEMONIC_XRSTOR64:
        return z->address_width == 64 ? helper(item, HELPER_XSTATE, false) : KIND_INTERPRET;
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
            return reads_plain_cr(unit, insn) ? KIND_READ_CR : helper(item, HELPER_READ_CR, false);
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
    if (is_bit_test(insn)) {
        /* In 32-bit code the sum of address and bit offset shows whether it wraps, unless a base is in it. */
        bool is_flat = unit->code64 ? z->address_width == 64 : insn_segment(insn, &insn->op[0]) < SEG_FS;
        return z->operand_width == 16 || !is_flat ? KIND_INTERPRET : KIND_BIT_MEMORY;
    }
    return KIND_MEMORY;
}
