#include "direct/scan.h"
#include "isa/insn.h"

#include <string.h>

/* Could an instruction to be kept out have 0F and these bytes? Cheap, and often wrong. */
static bool is_suspicious(const uint8_t *after, unsigned what) {
    unsigned reg = after[1] >> 3 & 7;
    switch (after[0]) {
    case 0x34: /* SYSENTER */
    case 0x02: /* LAR */
    case 0x03: /* LSL */
        return true;
    case 0x05: /* SYSCALL */
        return what & SCAN_COMPAT_CALL;
    case 0xa2: /* CPUID */
        return what & SCAN_CPUID;
    case 0x01: /* RDTSCP */
        return after[1] == 0xf9;
    case 0xc7: /* RDPID */
        return reg == 7 && after[1] >= 0xc0;
    case 0x00: /* VERR, VERW */
        return reg == 4 || reg == 5;
    case 0xae: /* RDFSBASE and its kin */
        return what & SCAN_BASES && after[1] >= 0xc0 && reg < 4;
    case 0xa1: /* POP FS, POP GS, LFS, LGS */
    case 0xa9:
    case 0xb4:
    case 0xb5:
        return what & SCAN_BASES;
    default:
        return false;
    }
}

static bool loads_wide_segment(const struct insn *insn) {
    const ZydisDecodedOperand *to = &insn->op[0];
    return to->type == ZYDIS_OPERAND_TYPE_REGISTER &&
           (to->reg.value == ZYDIS_REGISTER_FS || to->reg.value == ZYDIS_REGISTER_GS);
}

static bool is_kept_out(const struct insn *insn, unsigned what) {
    switch (insn->z.mnemonic) {
    case ZYDIS_MNEMONIC_SYSENTER: /* the host answers it with a return address of its own */
    case ZYDIS_MNEMONIC_LAR:      /* the host's descriptors */
    case ZYDIS_MNEMONIC_LSL:
    case ZYDIS_MNEMONIC_VERR:
    case ZYDIS_MNEMONIC_VERW:
    case ZYDIS_MNEMONIC_RDTSCP: /* the host's TSC_AUX */
    case ZYDIS_MNEMONIC_RDPID:
        return true;
    case ZYDIS_MNEMONIC_SYSCALL:
        return what & SCAN_COMPAT_CALL;
    case ZYDIS_MNEMONIC_CPUID:
        return what & SCAN_CPUID;
    case ZYDIS_MNEMONIC_POPF:
    case ZYDIS_MNEMONIC_POPFD:
    case ZYDIS_MNEMONIC_POPFQ:
        return what & SCAN_POPF;
    case ZYDIS_MNEMONIC_RDFSBASE:
    case ZYDIS_MNEMONIC_RDGSBASE:
    case ZYDIS_MNEMONIC_WRFSBASE:
    case ZYDIS_MNEMONIC_WRGSBASE:
    case ZYDIS_MNEMONIC_LFS:
    case ZYDIS_MNEMONIC_LGS:
        return what & SCAN_BASES;
    case ZYDIS_MNEMONIC_MOV:
    case ZYDIS_MNEMONIC_POP:
        return what & SCAN_BASES && loads_wide_segment(insn);
    default:
        return false;
    }
}

/* Decoding falls into step with the program within a few instructions, wherever it begins. */
static bool is_instruction(const uint8_t *code, unsigned at, unsigned length, unsigned code_size,
                           unsigned what) {
    unsigned pos = at > SCAN_BEFORE ? at - SCAN_BEFORE : 0;
    while (pos <= at) {
        struct insn insn;
        if (insn_decode(&insn, code + pos, length - pos, code_size) != INSN_OK) {
            pos++;
            continue;
        }
        if (pos + insn.length > at)
            return is_kept_out(&insn, what);
        pos += insn.length;
    }
    return false;
}

bool scan_finds(const uint8_t *code, unsigned from, unsigned to, unsigned length, unsigned code_size,
                unsigned what) {
    const uint8_t *at = code + from, *end = code + to;
    for (; (at = memchr(at, 0x0f, (size_t)(end - at))); at++)
        if (is_suspicious(at + 1, what) &&
            is_instruction(code, (unsigned)(at - code), length, code_size, what))
            return true;
    at = what & SCAN_BASES ? code + from : end;
    for (; (at = memchr(at, 0x8e, (size_t)(end - at))); at++) /* MOV FS and MOV GS */
        if ((at[1] >> 3 & 6) == 4 && is_instruction(code, (unsigned)(at - code), length, code_size, what))
            return true;
    at = what & SCAN_POPF ? code + from : end;
    for (; (at = memchr(at, 0x9d, (size_t)(end - at))); at++)
        if (is_instruction(code, (unsigned)(at - code), length, code_size, what))
            return true;
    return false;
}
