/* Re-encoding: copy the guest's opcode bytes, replace what addresses memory, and make explicit what the
 * guest's code size left implicit. The layout of an instruction is [legacy prefixes] [REX | VEX | EVEX] [0F
 * [38|3A]] opcode [ModRM [SIB] [disp]] [imm] and Zydis's raw view tells where each part lies, so nothing here
 * knows single opcodes but for the few forms that 64-bit mode dropped.
 */
#include "isa/encode.h"

static bool has_special_register(const struct insn *insn) {
    for (unsigned i = 0; i < insn->z.operand_count_visible; i++) {
        if (insn->op[i].type != ZYDIS_OPERAND_TYPE_REGISTER)
            continue;
        switch (ZydisRegisterGetClass(insn->op[i].reg.value)) {
        case ZYDIS_REGCLASS_SEGMENT:
        case ZYDIS_REGCLASS_CONTROL:
        case ZYDIS_REGCLASS_DEBUG:
        case ZYDIS_REGCLASS_TEST:
        case ZYDIS_REGCLASS_TMM:
        case ZYDIS_REGCLASS_BOUND:
            return true;
        default:
            break;
        }
    }
    return false;
}

bool insn_can_encode(const struct insn *insn) {
    const ZydisDecodedInstruction *z = &insn->z;
    switch (z->meta.category) {
    case ZYDIS_CATEGORY_INVALID:
    case ZYDIS_CATEGORY_AMD3DNOW:
    case ZYDIS_CATEGORY_AMX_TILE:
    case ZYDIS_CATEGORY_AVX2GATHER:
    case ZYDIS_CATEGORY_CALL:
    case ZYDIS_CATEGORY_CET:
    case ZYDIS_CATEGORY_CLZERO:
    case ZYDIS_CATEGORY_COND_BR:
    case ZYDIS_CATEGORY_DECIMAL:
    case ZYDIS_CATEGORY_ENQCMD:
    case ZYDIS_CATEGORY_GATHER:
    case ZYDIS_CATEGORY_HRESET:
    case ZYDIS_CATEGORY_INTERRUPT:
    case ZYDIS_CATEGORY_IO:
    case ZYDIS_CATEGORY_IOSTRINGOP:
    case ZYDIS_CATEGORY_KEYLOCKER:
    case ZYDIS_CATEGORY_KEYLOCKER_WIDE:
    case ZYDIS_CATEGORY_KNC:
    case ZYDIS_CATEGORY_MPX:
    case ZYDIS_CATEGORY_PADLOCK:
    case ZYDIS_CATEGORY_PCONFIG:
    case ZYDIS_CATEGORY_PKU:
    case ZYDIS_CATEGORY_POP:
    case ZYDIS_CATEGORY_PT:
    case ZYDIS_CATEGORY_PUSH:
    case ZYDIS_CATEGORY_RDPID:
    case ZYDIS_CATEGORY_RDPRU:
    case ZYDIS_CATEGORY_RDWRFSGS:
    case ZYDIS_CATEGORY_RET:
    case ZYDIS_CATEGORY_SCATTER:
    case ZYDIS_CATEGORY_SEGOP:
    case ZYDIS_CATEGORY_SGX:
    case ZYDIS_CATEGORY_SMAP:
    case ZYDIS_CATEGORY_STRINGOP:
    case ZYDIS_CATEGORY_SYSCALL:
    case ZYDIS_CATEGORY_SYSRET:
    case ZYDIS_CATEGORY_SYSTEM:
    case ZYDIS_CATEGORY_TSX_LDTRK:
    case ZYDIS_CATEGORY_UINTR:
    case ZYDIS_CATEGORY_UNCOND_BR:
    case ZYDIS_CATEGORY_VTX:
    case ZYDIS_CATEGORY_WAITPKG:
    case ZYDIS_CATEGORY_XSAVE:
    case ZYDIS_CATEGORY_XSAVEOPT:
        return false;
    default:
        break;
    }
    switch (z->meta.isa_set) {
    case ZYDIS_ISA_SET_AMD3DNOW:
    case ZYDIS_ISA_SET_FMA4:
    case ZYDIS_ISA_SET_INVPCID:
    case ZYDIS_ISA_SET_KNCE:
    case ZYDIS_ISA_SET_KNCJKBR:
    case ZYDIS_ISA_SET_KNCSTREAM:
    case ZYDIS_ISA_SET_KNCV:
    case ZYDIS_ISA_SET_KNC_MISC:
    case ZYDIS_ISA_SET_KNC_PF_HINT:
    case ZYDIS_ISA_SET_LWP:
    case ZYDIS_ISA_SET_MCOMMIT:
    case ZYDIS_ISA_SET_SGX:
    case ZYDIS_ISA_SET_SGX_ENCLV:
    case ZYDIS_ISA_SET_SMX:
    case ZYDIS_ISA_SET_SNP:
    case ZYDIS_ISA_SET_SVM:
    case ZYDIS_ISA_SET_TBM:
    case ZYDIS_ISA_SET_TDX:
    case ZYDIS_ISA_SET_VMFUNC:
    case ZYDIS_ISA_SET_VTX:
    case ZYDIS_ISA_SET_XOP:
        return false;
    default:
        break;
    }
    switch (z->mnemonic) {
    case ZYDIS_MNEMONIC_BOUND:
    case ZYDIS_MNEMONIC_CLI:
    case ZYDIS_MNEMONIC_CLUI:
    case ZYDIS_MNEMONIC_CPUID:
    case ZYDIS_MNEMONIC_ENTER:
    case ZYDIS_MNEMONIC_FNSAVE:
    case ZYDIS_MNEMONIC_FNSTENV:
    case ZYDIS_MNEMONIC_FLDENV:
    case ZYDIS_MNEMONIC_FRSTOR:
    case ZYDIS_MNEMONIC_FXRSTOR:
    case ZYDIS_MNEMONIC_FXRSTOR64:
    case ZYDIS_MNEMONIC_FXSAVE:
    case ZYDIS_MNEMONIC_FXSAVE64:
    case ZYDIS_MNEMONIC_HLT:
    case ZYDIS_MNEMONIC_LEA:
    case ZYDIS_MNEMONIC_LEAVE:
    case ZYDIS_MNEMONIC_MASKMOVDQU:
    case ZYDIS_MNEMONIC_MASKMOVQ:
    case ZYDIS_MNEMONIC_VMASKMOVDQU:
    case ZYDIS_MNEMONIC_MOVDIR64B:
    case ZYDIS_MNEMONIC_MONITOR:
    case ZYDIS_MNEMONIC_MWAIT:
    case ZYDIS_MNEMONIC_MONITORX:
    case ZYDIS_MNEMONIC_MWAITX:
    case ZYDIS_MNEMONIC_RDPMC:
    case ZYDIS_MNEMONIC_RDTSC:
    case ZYDIS_MNEMONIC_RDTSCP:
    case ZYDIS_MNEMONIC_SALC:
    case ZYDIS_MNEMONIC_STI:
    case ZYDIS_MNEMONIC_UD0:
    case ZYDIS_MNEMONIC_UD1:
    case ZYDIS_MNEMONIC_UD2:
    case ZYDIS_MNEMONIC_XABORT:
    case ZYDIS_MNEMONIC_XBEGIN:
    case ZYDIS_MNEMONIC_XEND:
    case ZYDIS_MNEMONIC_XTEST:
    case ZYDIS_MNEMONIC_XLAT:
    case ZYDIS_MNEMONIC_ARPL:
        return false;
    default:
        return !(insn->traits & INSN_VSIB) && !has_special_register(insn);
    }
}

static bool has_prefix(const struct insn *insn, uint8_t value, bool effective_too) {
    for (unsigned i = 0; i < insn->z.raw.prefix_count; i++) {
        if (insn->z.raw.prefixes[i].value != value)
            continue;
        if (insn->z.raw.prefixes[i].type == ZYDIS_PREFIX_TYPE_MANDATORY ||
            (effective_too && insn->z.raw.prefixes[i].type == ZYDIS_PREFIX_TYPE_EFFECTIVE))
            return true;
    }
    return false;
}

/* Does VEX.W or EVEX.W only select the width of a general register? Outside 64-bit code it is then ignored,
 * which includes the memory operand that may stand in for the register. */
static bool w_selects_gpr(const struct insn *insn) {
    switch (insn->z.mnemonic) {
    case ZYDIS_MNEMONIC_VCVTSI2SD:
    case ZYDIS_MNEMONIC_VCVTSI2SS:
    case ZYDIS_MNEMONIC_VCVTUSI2SD:
    case ZYDIS_MNEMONIC_VCVTUSI2SS:
    case ZYDIS_MNEMONIC_VMOVD:
    case ZYDIS_MNEMONIC_VPCMPESTRI: /* of EAX and EDX, implicit */
    case ZYDIS_MNEMONIC_VPCMPESTRM:
    case ZYDIS_MNEMONIC_VPEXTRD:
    case ZYDIS_MNEMONIC_VPINSRD:
        return true;
    default:
        break;
    }
    for (unsigned i = 0; i < insn->z.operand_count_visible; i++)
        if (insn->op[i].type == ZYDIS_OPERAND_TYPE_REGISTER && insn_gpr(insn->op[i].reg.value) >= 0)
            return true;
    return false;
}

/* ModRM (reg field given), SIB and displacement for a host memory operand. */
static void encode_memory(struct code_buffer *code, unsigned reg, const struct host_memory *memory,
                          bool wide_disp) {
    unsigned field = (reg & 7) << 3;
    if (memory->base < 0) {
        code_u8(code, (uint8_t)(field | 4));
        code_u8(code, (uint8_t)(memory->index < 0 ? 0x25 : (memory->index & 7) << 3 | 5));
        code_u32(code, (uint32_t)memory->disp);
        return;
    }
    unsigned base = (unsigned)memory->base & 7, mod;
    if (memory->disp == 0 && base != 5)
        mod = 0;
    else if (memory->disp >= -128 && memory->disp <= 127 && !(wide_disp && memory->disp))
        mod = 1;
    else
        mod = 2;
    if (memory->index >= 0 || base == 4) {
        unsigned index = memory->index >= 0 ? (unsigned)memory->index & 7 : 4;
        code_u8(code, (uint8_t)(mod << 6 | field | 4));
        code_u8(code, (uint8_t)(index << 3 | base));
    } else {
        code_u8(code, (uint8_t)(mod << 6 | field | base));
    }
    if (mod == 1)
        code_u8(code, (uint8_t)memory->disp);
    else if (mod == 2)
        code_u32(code, (uint32_t)memory->disp);
}

struct parts {
    const struct host_memory *memory; /* NULL: a register form or no ModRM */
    uint8_t opcode[4];                /* escape bytes and opcode */
    unsigned opcode_length;
    bool has_modrm;
    bool made_modrm; /* the guest's form has none: its REX.R names nothing */
    uint8_t modrm;
    unsigned tail; /* offset of the immediate */
};

/* An immediate whose upper half names a register: outside 64-bit code its bit 7 is ignored. */
static bool has_register_immediate(const struct insn *insn) {
    for (unsigned i = 0; i < insn->z.operand_count_visible; i++)
        if (insn->op[i].encoding == ZYDIS_OPERAND_ENCODING_IS4)
            return true;
    return false;
}

static void encode_tail(struct code_buffer *code, const struct insn *insn, const struct parts *parts,
                        bool evex) {
    if (parts->has_modrm) {
        if (parts->memory)
            encode_memory(code, parts->modrm >> 3 & 7, parts->memory, evex);
        else
            code_u8(code, parts->modrm);
    }
    if (insn->code_size != 64 && has_register_immediate(insn)) {
        code_u8(code, insn->bytes[parts->tail] & 0x7f);
        return;
    }
    code_bytes(code, insn->bytes + parts->tail, insn->length - parts->tail);
}

static bool high(int8_t reg) {
    return reg >= 8;
}

static bool encode_legacy(struct code_buffer *code, const struct insn *insn, struct parts *parts) {
    const ZydisDecodedInstruction *z = &insn->z;
    bool rex_w = z->attributes & ZYDIS_ATTRIB_HAS_REX && z->raw.rex.W;
    bool rex_r = z->attributes & ZYDIS_ATTRIB_HAS_REX && z->raw.rex.R && !parts->made_modrm;
    bool rex_x = false, rex_b = z->attributes & ZYDIS_ATTRIB_HAS_REX && z->raw.rex.B;
    if (parts->memory) {
        rex_b = high(parts->memory->base);
        rex_x = high(parts->memory->index);
    }
    unsigned rex = (unsigned)rex_w << 3 | (unsigned)rex_r << 2 | (unsigned)rex_x << 1 | rex_b;
    bool need_rex = rex || z->attributes & ZYDIS_ATTRIB_HAS_REX;
    if (rex && insn->traits & INSN_HIGH_BYTE)
        return false;
    if (insn->traits & INSN_HIGH_BYTE)
        need_rex = false;

    if (insn->traits & INSN_LOCKED)
        code_u8(code, 0xf0);
    bool size_prefix = insn->traits & INSN_VECTOR ? has_prefix(insn, 0x66, true)
                                                  : has_prefix(insn, 0x66, false) || z->operand_width == 16;
    if (size_prefix)
        code_u8(code, 0x66);
    if (parts->memory && parts->memory->in_vcpu)
        code_u8(code, 0x65);
    if (has_prefix(insn, 0xf2, false))
        code_u8(code, 0xf2);
    else if (has_prefix(insn, 0xf3, false))
        code_u8(code, 0xf3);
    if (need_rex)
        code_u8(code, (uint8_t)(0x40 | rex));
    code_bytes(code, parts->opcode, parts->opcode_length);
    encode_tail(code, insn, parts, false);
    return true;
}

static bool encode_vex(struct code_buffer *code, const struct insn *insn, struct parts *parts) {
    const uint8_t *vex = insn->bytes + insn->z.raw.vex.offset;
    uint8_t first, second;
    if (vex[0] == 0xc5) {
        first = (uint8_t)((vex[1] & 0x80) | 0x60 | 1);
        second = vex[1] & 0x7f;
    } else {
        first = vex[1];
        second = vex[2];
    }
    if (insn->code_size != 64) {
        first |= 0xe0;
        second |= 0x40;
        if (w_selects_gpr(insn))
            second &= 0x7f;
    }
    if (parts->memory) {
        first = (uint8_t)((first & ~0x60u) | (high(parts->memory->index) ? 0 : 0x40) |
                          (high(parts->memory->base) ? 0 : 0x20));
        if (parts->memory->in_vcpu)
            code_u8(code, 0x65);
    }
    code_u8(code, 0xc4);
    code_u8(code, first);
    code_u8(code, second);
    code_bytes(code, parts->opcode, parts->opcode_length);
    encode_tail(code, insn, parts, false);
    return true;
}

static bool encode_evex(struct code_buffer *code, const struct insn *insn, struct parts *parts) {
    uint8_t evex[4];
    memcpy(evex, insn->bytes + insn->z.raw.evex.offset, sizeof evex);
    if (insn->code_size != 64) {
        evex[1] |= 0xf0;
        evex[2] |= 0x40;
        evex[3] |= 0x08;
        if (w_selects_gpr(insn))
            evex[2] &= 0x7f;
    }
    if (parts->memory) {
        evex[1] = (uint8_t)((evex[1] & ~0x60u) | (high(parts->memory->index) ? 0 : 0x40) |
                            (high(parts->memory->base) ? 0 : 0x20));
        if (parts->memory->in_vcpu)
            code_u8(code, 0x65);
    }
    code_bytes(code, evex, sizeof evex);
    code_bytes(code, parts->opcode, parts->opcode_length);
    encode_tail(code, insn, parts, true);
    return true;
}

/* The forms that mean something else, or nothing, in 64-bit mode. */
static void translate_dropped_forms(const struct insn *insn, struct parts *parts) {
    const ZydisDecodedInstruction *z = &insn->z;
    if (z->encoding != ZYDIS_INSTRUCTION_ENCODING_LEGACY || z->opcode_map != ZYDIS_OPCODE_MAP_DEFAULT)
        return;
    uint8_t opcode = z->opcode;
    if (insn->code_size != 64 && opcode >= 0x40 && opcode <= 0x4f) {
        parts->opcode[0] = 0xff;
        parts->has_modrm = true;
        parts->modrm = (uint8_t)(0xc0 | (opcode & 8) | (opcode & 7));
    } else if (insn->code_size != 64 && opcode == 0x82) {
        parts->opcode[0] = 0x80;
    } else if (opcode >= 0xa0 && opcode <= 0xa3) {
        static const uint8_t with_modrm[] = {0x8a, 0x8b, 0x88, 0x89};
        parts->opcode[0] = with_modrm[opcode - 0xa0];
        parts->has_modrm = parts->made_modrm = true;
        parts->modrm = 0;
        parts->tail = insn->length;
    }
}

/* VZEROALL and VZEROUPPER reach registers 0-7 alone outside 64-bit code, all 16 in it: VXORPS or VMOVAPS of
 * each XMM register with itself has the same effect on the upper parts. */
static void encode_vzero(struct code_buffer *code, const struct insn *insn) {
    for (unsigned reg = 0; reg < 8; reg++) {
        code_u8(code, 0xc5);
        if (insn->z.mnemonic == ZYDIS_MNEMONIC_VZEROALL) {
            code_u8(code, (uint8_t)(0x80 | (~reg & 15) << 3));
            code_u8(code, 0x57);
        } else {
            code_u8(code, 0xf8);
            code_u8(code, 0x28);
        }
        code_u8(code, (uint8_t)(0xc0 | reg << 3 | reg));
    }
}

bool insn_encode(struct code_buffer *code, const struct insn *insn, const struct host_memory *memory) {
    const ZydisDecodedInstruction *z = &insn->z;
    struct parts parts = {.memory = insn->memory >= 0 ? memory : NULL};
    if (insn->memory >= 0 && !memory)
        return false;
    if (insn->memory < 0 && insn->code_size == 64) {
        code_bytes(code, insn->bytes, insn->length);
        return true;
    }
    if (z->mnemonic == ZYDIS_MNEMONIC_VZEROALL || z->mnemonic == ZYDIS_MNEMONIC_VZEROUPPER) {
        encode_vzero(code, insn);
        return true;
    }

    unsigned from = 0;
    switch (z->encoding) {
    case ZYDIS_INSTRUCTION_ENCODING_LEGACY:
        from = z->raw.prefix_count;
        break;
    case ZYDIS_INSTRUCTION_ENCODING_VEX:
        from = z->raw.vex.offset + z->raw.vex.size;
        break;
    case ZYDIS_INSTRUCTION_ENCODING_EVEX:
        from = z->raw.evex.offset + 4u;
        break;
    default:
        return false;
    }
    parts.has_modrm = z->attributes & ZYDIS_ATTRIB_HAS_MODRM;
    unsigned opcode_end;
    if (parts.has_modrm) {
        opcode_end = z->raw.modrm.offset;
        parts.modrm = insn->bytes[opcode_end];
        parts.tail = opcode_end + 1u;
        if (z->raw.modrm.mod != 3) {
            if (!memory) {
                /* A hint that names memory without touching it: give it a register-free nop. */
                code_u8(code, 0x90);
                return true;
            }
            if (z->attributes & ZYDIS_ATTRIB_HAS_SIB)
                parts.tail++;
            parts.tail += z->raw.disp.size / 8u;
            parts.memory = memory;
        }
    } else {
        unsigned extra = z->raw.imm[0].size / 8u + z->raw.imm[1].size / 8u + z->raw.disp.size / 8u;
        opcode_end = insn->length - extra;
        parts.tail = opcode_end;
    }
    if (opcode_end < from || opcode_end - from > sizeof parts.opcode)
        return false;
    parts.opcode_length = opcode_end - from;
    memcpy(parts.opcode, insn->bytes + from, parts.opcode_length);
    translate_dropped_forms(insn, &parts);

    uint8_t *start = code->at;
    bool done = z->encoding == ZYDIS_INSTRUCTION_ENCODING_LEGACY ? encode_legacy(code, insn, &parts)
                : z->encoding == ZYDIS_INSTRUCTION_ENCODING_VEX  ? encode_vex(code, insn, &parts)
                                                                 : encode_evex(code, insn, &parts);
    if (!done)
        code->at = start;
    return done;
}
