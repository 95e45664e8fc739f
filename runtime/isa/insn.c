/* Decoding: Zydis does the work; this file derives what the tiers ask of every instruction. */
#include "isa/insn.h"

#include <cpuid.h>
#include <string.h>

/* The first four letters of the vendor: "Auth", "Hygo". */
#define VENDOR_AMD 0x68747541u
#define VENDOR_HYGON 0x6f677948u

static const ZydisMachineMode machine_mode[] = {
    ZYDIS_MACHINE_MODE_LONG_COMPAT_16, ZYDIS_MACHINE_MODE_LONG_COMPAT_32, ZYDIS_MACHINE_MODE_LONG_64};
static const ZydisStackWidth stack_width[] = {ZYDIS_STACK_WIDTH_16, ZYDIS_STACK_WIDTH_32,
                                              ZYDIS_STACK_WIDTH_64};

int insn_gpr(ZydisRegister reg) {
    if (reg >= ZYDIS_REGISTER_AL && reg <= ZYDIS_REGISTER_BL)
        return reg - ZYDIS_REGISTER_AL;
    if (reg >= ZYDIS_REGISTER_AH && reg <= ZYDIS_REGISTER_BH)
        return reg - ZYDIS_REGISTER_AH;
    if (reg >= ZYDIS_REGISTER_SPL && reg <= ZYDIS_REGISTER_R15B)
        return reg - ZYDIS_REGISTER_SPL + 4;
    if (reg >= ZYDIS_REGISTER_AX && reg <= ZYDIS_REGISTER_R15)
        return (reg - ZYDIS_REGISTER_AX) & 15;
    return -1;
}

bool insn_is_high_byte(ZydisRegister reg) {
    return reg >= ZYDIS_REGISTER_AH && reg <= ZYDIS_REGISTER_BH;
}

unsigned insn_segment(const struct insn *insn, const ZydisDecodedOperand *operand) {
    (void)insn;
    return operand->mem.segment >= ZYDIS_REGISTER_ES && operand->mem.segment <= ZYDIS_REGISTER_GS
               ? (unsigned)(operand->mem.segment - ZYDIS_REGISTER_ES)
               : 3;
}

static bool is_vector_register(ZydisRegister reg) {
    switch (ZydisRegisterGetClass(reg)) {
    case ZYDIS_REGCLASS_X87:
    case ZYDIS_REGCLASS_MMX:
    case ZYDIS_REGCLASS_XMM:
    case ZYDIS_REGCLASS_YMM:
    case ZYDIS_REGCLASS_ZMM:
    case ZYDIS_REGCLASS_MASK:
        return true;
    default:
        return reg == ZYDIS_REGISTER_MXCSR || reg == ZYDIS_REGISTER_X87CONTROL ||
               reg == ZYDIS_REGISTER_X87STATUS || reg == ZYDIS_REGISTER_X87TAG;
    }
}

static bool is_x87(const ZydisDecodedInstruction *z) {
    return z->encoding == ZYDIS_INSTRUCTION_ENCODING_LEGACY && z->opcode_map == ZYDIS_OPCODE_MAP_DEFAULT &&
           z->opcode >= 0xd8 && z->opcode <= 0xdf;
}

/* Zydis gives meaning to a few opcodes (JKZD, JKNZD, ...) that only the Knights Corner coprocessor had. */
static bool is_knights_corner(const ZydisDecodedInstruction *z) {
    return z->meta.isa_ext == ZYDIS_ISA_EXT_KNC || z->meta.isa_ext == ZYDIS_ISA_EXT_KNCE ||
           z->meta.isa_ext == ZYDIS_ISA_EXT_KNCV;
}

/* Reads or writes MXCSR though it names no vector register: conversions from memory to a general register. */
static bool is_scalar_conversion(const ZydisDecodedInstruction *z) {
    switch (z->mnemonic) {
    case ZYDIS_MNEMONIC_CVTSD2SI:
    case ZYDIS_MNEMONIC_CVTSS2SI:
    case ZYDIS_MNEMONIC_CVTTSD2SI:
    case ZYDIS_MNEMONIC_CVTTSS2SI:
    case ZYDIS_MNEMONIC_VCVTSD2SI:
    case ZYDIS_MNEMONIC_VCVTSS2SI:
    case ZYDIS_MNEMONIC_VCVTTSD2SI:
    case ZYDIS_MNEMONIC_VCVTTSS2SI:
    case ZYDIS_MNEMONIC_LDMXCSR:
    case ZYDIS_MNEMONIC_STMXCSR:
    case ZYDIS_MNEMONIC_VLDMXCSR:
    case ZYDIS_MNEMONIC_VSTMXCSR:
        return true;
    default:
        return false;
    }
}

/* Hint and address instructions name a memory operand that they do not access. */
static bool accesses_memory(const ZydisDecodedInstruction *z) {
    switch (z->meta.category) {
    case ZYDIS_CATEGORY_NOP:
    case ZYDIS_CATEGORY_WIDENOP:
    case ZYDIS_CATEGORY_PREFETCH:
    case ZYDIS_CATEGORY_PREFETCHWT1:
    case ZYDIS_CATEGORY_CLDEMOTE:
        return false;
    default:
        return true;
    }
}

/* A shift by a count in CL (or one masked to zero) may leave every flag as it was: the old flags are then an
 * input. */
static bool may_keep_flags(const struct insn *insn) {
    switch (insn->z.mnemonic) {
    case ZYDIS_MNEMONIC_SHL:
    case ZYDIS_MNEMONIC_SHR:
    case ZYDIS_MNEMONIC_SAR:
    case ZYDIS_MNEMONIC_ROL:
    case ZYDIS_MNEMONIC_ROR:
    case ZYDIS_MNEMONIC_RCL:
    case ZYDIS_MNEMONIC_RCR:
    case ZYDIS_MNEMONIC_SHLD:
    case ZYDIS_MNEMONIC_SHRD: {
        const ZydisDecodedOperand *count = &insn->op[insn->z.operand_count_visible - 1];
        unsigned mask = insn->z.operand_width == 64 ? 63 : 31;
        return count->type != ZYDIS_OPERAND_TYPE_IMMEDIATE || (count->imm.value.u & mask) == 0;
    }
    default:
        return insn->z.attributes & (ZYDIS_ATTRIB_HAS_REP | ZYDIS_ATTRIB_HAS_REPE | ZYDIS_ATTRIB_HAS_REPNE);
    }
}

static void note_register(struct insn *insn, const ZydisDecodedOperand *op) {
    int gpr = insn_gpr(op->reg.value);
    if (gpr >= 0) {
        if (op->actions & ZYDIS_OPERAND_ACTION_MASK_READ)
            insn->gprs_read |= 1u << gpr;
        if (op->actions & ZYDIS_OPERAND_ACTION_MASK_WRITE) {
            insn->gprs_written |= 1u << gpr;
            if (op->size < 32 || op->actions & ZYDIS_OPERAND_ACTION_CONDWRITE)
                insn->gprs_read |= 1u << gpr;
            if (gpr == 4 && op->visibility != ZYDIS_OPERAND_VISIBILITY_HIDDEN)
                insn->traits |= INSN_WRITES_RSP;
        }
        if (insn_is_high_byte(op->reg.value))
            insn->traits |= INSN_HIGH_BYTE;
    } else if (is_vector_register(op->reg.value)) {
        insn->traits |= INSN_VECTOR;
    }
}

static void note_memory(struct insn *insn, unsigned index, bool accessed) {
    const ZydisDecodedOperand *op = &insn->op[index];
    int base = insn_gpr(op->mem.base), reg = insn_gpr(op->mem.index);
    if (base >= 0)
        insn->gprs_read |= 1u << base;
    if (reg >= 0)
        insn->gprs_read |= 1u << reg;
    if (op->mem.type == ZYDIS_MEMOP_TYPE_VSIB)
        insn->traits |= INSN_VSIB;
    if (accessed && (op->mem.type == ZYDIS_MEMOP_TYPE_MEM || op->mem.type == ZYDIS_MEMOP_TYPE_VSIB) &&
        op->visibility != ZYDIS_OPERAND_VISIBILITY_HIDDEN)
        insn->memory = (int8_t)index;
}

/* The processors of AMD and Intel differ in a few encodings; translated code and applications that run
 * directly have the host's rule, so all tiers take it. Asked once: CPUID may cost microseconds. */
bool insn_host_is_amd(void) {
    static int known; /* 1: no, 2: yes; threads that race store the same */
    int answer = __atomic_load_n(&known, __ATOMIC_RELAXED);
    if (!answer) {
        unsigned eax, ebx = 0, ecx, edx;
        (void)__get_cpuid(0, &eax, &ebx, &ecx, &edx);
        answer = ebx == VENDOR_AMD || ebx == VENDOR_HYGON ? 2 : 1;
        __atomic_store_n(&known, answer, __ATOMIC_RELAXED);
    }
    return answer == 2;
}

/* Near branches with an operand-size prefix are of 16 bits on AMD; Intel ignores it. */
static void narrow_branch(struct insn *insn) {
    ZydisDecodedInstruction *z = &insn->z;
    bool is_branch = z->meta.category == ZYDIS_CATEGORY_COND_BR ||
                     z->meta.category == ZYDIS_CATEGORY_UNCOND_BR ||
                     z->meta.category == ZYDIS_CATEGORY_CALL || z->meta.category == ZYDIS_CATEGORY_RET;
    bool is_far = z->meta.branch_type == ZYDIS_BRANCH_TYPE_FAR ||
                  (z->opcode_map == ZYDIS_OPCODE_MAP_DEFAULT && z->opcode >= 0xca && z->opcode <= 0xcf);
    if (!is_branch || is_far || z->raw.rex.W || !(z->attributes & ZYDIS_ATTRIB_HAS_OPERANDSIZE))
        return;
    z->operand_width = 16;
    if (!insn->op[0].imm.is_relative && insn->op[0].size == 64) {
        insn->op[0].size = 16;
        if (insn->op[0].type == ZYDIS_OPERAND_TYPE_REGISTER)
            insn->op[0].reg.value = (ZydisRegister)(ZYDIS_REGISTER_AX + insn_gpr(insn->op[0].reg.value));
    }
}

/* PREFETCHW's opcode with a register: a NOP on Intel only. */
static bool is_register_prefetch(const ZydisDecodedInstruction *z) {
    return z->opcode_map == ZYDIS_OPCODE_MAP_0F && z->opcode == 0x0d && z->raw.modrm.mod == 3 &&
           z->encoding == ZYDIS_INSTRUCTION_ENCODING_LEGACY;
}

/* A repeat prefix makes LOOPE of LOOPNE and the reverse on AMD. */
static void choose_loop(ZydisDecodedInstruction *z) {
    if (z->mnemonic != ZYDIS_MNEMONIC_LOOPE && z->mnemonic != ZYDIS_MNEMONIC_LOOPNE)
        return;
    for (unsigned i = 0; i < z->raw.prefix_count; i++) {
        if (z->raw.prefixes[i].value == 0xf2)
            z->mnemonic = ZYDIS_MNEMONIC_LOOPNE;
        else if (z->raw.prefixes[i].value == 0xf3)
            z->mnemonic = ZYDIS_MNEMONIC_LOOPE;
    }
}

/* PAUSE with REX.B is XCHG R8 on AMD: take the prefix F3 for one that means nothing. False: it is no such. */
static bool unmake_pause(const ZydisDecodedInstruction *z, const uint8_t *bytes, uint8_t *other) {
    if (z->mnemonic != ZYDIS_MNEMONIC_PAUSE || !z->raw.rex.B)
        return false;
    for (unsigned i = 0; i < z->length; i++)
        other[i] = bytes[i] == 0xf3 ? 0x3e : bytes[i];
    return true;
}

enum insn_status insn_decode(struct insn *insn, const uint8_t *bytes, size_t count, unsigned code_size) {
    unsigned which = code_size == 64 ? 2 : code_size == 32 ? 1 : 0;
    ZydisDecoder decoder;
    if (!ZYAN_SUCCESS(ZydisDecoderInit(&decoder, machine_mode[which], stack_width[which])))
        return INSN_INVALID;
    bool follows_amd = insn_host_is_amd();
    if (follows_amd && code_size == 64)
        (void)ZydisDecoderEnableMode(&decoder, ZYDIS_DECODER_MODE_AMD_BRANCHES, ZYAN_TRUE);
    ZyanStatus status = ZydisDecoderDecodeFull(
        &decoder, bytes, count > INSN_MAX_LENGTH ? INSN_MAX_LENGTH : count, &insn->z, insn->op);
    if (status == ZYDIS_STATUS_NO_MORE_DATA)
        return count >= INSN_MAX_LENGTH ? INSN_TOO_LONG : INSN_SHORT;
    if (status == ZYDIS_STATUS_INSTRUCTION_TOO_LONG)
        return INSN_TOO_LONG;
    if (!ZYAN_SUCCESS(status) || is_knights_corner(&insn->z) ||
        (follows_amd && is_register_prefetch(&insn->z)))
        return INSN_INVALID;

    /* MOVSXD with a 16-bit operand size reads 16 bits (SDM vol. 2, MOVSX/MOVSXD); Zydis says 32, as AMD has
     * it. */
    if (insn->z.mnemonic == ZYDIS_MNEMONIC_MOVSXD && insn->z.operand_width == 16 && !follows_amd)
        insn->op[1].size = 16;
    if (follows_amd)
        choose_loop(&insn->z);
    if (follows_amd && code_size == 64) {
        uint8_t other[INSN_MAX_LENGTH];
        if (unmake_pause(&insn->z, bytes, other))
            return insn_decode(insn, other, insn->z.length, code_size);
        narrow_branch(insn);
    }

    insn->length = insn->z.length;
    insn->code_size = (uint8_t)code_size;
    memcpy(insn->bytes, bytes, insn->length);
    insn->memory = -1;
    insn->traits = 0;
    insn->gprs_read = insn->gprs_written = 0;
    bool accessed = accesses_memory(&insn->z);
    for (unsigned i = 0; i < insn->z.operand_count; i++) {
        const ZydisDecodedOperand *op = &insn->op[i];
        if (op->type == ZYDIS_OPERAND_TYPE_REGISTER)
            note_register(insn, op);
        else if (op->type == ZYDIS_OPERAND_TYPE_MEMORY)
            note_memory(insn, i, accessed);
    }
    if (insn->z.attributes & ZYDIS_ATTRIB_HAS_LOCK)
        insn->traits |= INSN_LOCKED;
    if (is_x87(&insn->z) || is_scalar_conversion(&insn->z) ||
        insn->z.encoding == ZYDIS_INSTRUCTION_ENCODING_EVEX ||
        insn->z.mnemonic == ZYDIS_MNEMONIC_VZEROUPPER || insn->z.mnemonic == ZYDIS_MNEMONIC_VZEROALL ||
        insn->z.mnemonic == ZYDIS_MNEMONIC_EMMS)
        insn->traits |= INSN_VECTOR;
    if (insn->memory >= 0 &&
        ((insn->z.encoding == ZYDIS_INSTRUCTION_ENCODING_EVEX &&
          insn->z.avx.mask.reg != ZYDIS_REGISTER_NONE && insn->z.avx.mask.reg != ZYDIS_REGISTER_K0) ||
         insn->z.mnemonic == ZYDIS_MNEMONIC_VMASKMOVPS || insn->z.mnemonic == ZYDIS_MNEMONIC_VMASKMOVPD ||
         insn->z.mnemonic == ZYDIS_MNEMONIC_VPMASKMOVD || insn->z.mnemonic == ZYDIS_MNEMONIC_VPMASKMOVQ))
        insn->traits |= INSN_MASKED;

    insn->flags_read = insn->flags_written = insn->flags_undefined = 0;
    if (insn->z.cpu_flags) {
        const ZydisAccessedFlags *flags = insn->z.cpu_flags;
        insn->flags_read = flags->tested;
        insn->flags_written = flags->modified | flags->set_0 | flags->set_1 | flags->undefined;
        insn->flags_undefined = flags->undefined;
        if (may_keep_flags(insn))
            insn->flags_read |= insn->flags_written;
    }
    return INSN_OK;
}
