/* The rule table: each allowance names its reason. Everything not listed here is compared exactly.
 *
 * Undefined flags are the SDM's (vol. 2, "Flags Affected" of each instruction), where needed narrower or
 * wider than Zydis's tables. The generator never lets an instruction read a flag that is undefined (it puts a
 * CMP before), so an undefined flag can show up in the final RFLAGS only, where it is masked.
 */
#include "rules.h"

#include "cpu/x86.h"
#include "oracle.h"

#include <cpuid.h>

struct exclusion {
    ZydisMnemonic mnemonic;
    const char *reason;
};

static const char umip[] =
    "Linux emulates it under UMIP with dummy values; natively it shows no processor's result";
static const char tsx[] = "transactional memory is hidden from guests, so it is #UD there and real natively";
static const char hypervisor[] = "natively it would call the hypervisor below the host";
static const char sysenter[] =
    "natively it enters Linux's 32-bit landing pad, which changes EBP, ESP and ECX";
static const char cet[] =
    "shadow stacks are hidden from guests; natively Linux may enable them for a process";
static const char keys[] = "protection keys are hidden from guests and belong to the host's process natively";
static const char hidden[] = "the feature is hidden from guests, so it is #UD there, but not on every host";
static const char svm[] = "natively it is #GP or #UD as the host's hypervisor uses it or not";
static const char waits[] = "its result depends on a timer of the host";

static const struct exclusion exclusions[] = {
    {ZYDIS_MNEMONIC_SGDT, umip},          {ZYDIS_MNEMONIC_SIDT, umip},
    {ZYDIS_MNEMONIC_SLDT, umip},          {ZYDIS_MNEMONIC_STR, umip},
    {ZYDIS_MNEMONIC_SMSW, umip},          {ZYDIS_MNEMONIC_XBEGIN, tsx},
    {ZYDIS_MNEMONIC_XEND, tsx},           {ZYDIS_MNEMONIC_XABORT, tsx},
    {ZYDIS_MNEMONIC_XTEST, tsx},          {ZYDIS_MNEMONIC_XSUSLDTRK, tsx},
    {ZYDIS_MNEMONIC_XRESLDTRK, tsx},      {ZYDIS_MNEMONIC_VMCALL, hypervisor},
    {ZYDIS_MNEMONIC_VMMCALL, hypervisor}, {ZYDIS_MNEMONIC_SYSENTER, sysenter},
    {ZYDIS_MNEMONIC_RDSSPD, cet},         {ZYDIS_MNEMONIC_RDSSPQ, cet},
    {ZYDIS_MNEMONIC_INCSSPD, cet},        {ZYDIS_MNEMONIC_INCSSPQ, cet},
    {ZYDIS_MNEMONIC_RDPKRU, keys},        {ZYDIS_MNEMONIC_WRPKRU, keys},
    {ZYDIS_MNEMONIC_XSAVES, hidden},      {ZYDIS_MNEMONIC_XSAVES64, hidden},
    {ZYDIS_MNEMONIC_XRSTORS, hidden},     {ZYDIS_MNEMONIC_XRSTORS64, hidden},
    {ZYDIS_MNEMONIC_ENQCMD, hidden},      {ZYDIS_MNEMONIC_ENQCMDS, hidden},
    {ZYDIS_MNEMONIC_PTWRITE, hidden},     {ZYDIS_MNEMONIC_ENCLU, hidden},
    {ZYDIS_MNEMONIC_ENCLS, hidden},       {ZYDIS_MNEMONIC_ENCLV, hidden},
    {ZYDIS_MNEMONIC_UMWAIT, waits},       {ZYDIS_MNEMONIC_TPAUSE, waits},
    {ZYDIS_MNEMONIC_UMONITOR, waits},     {ZYDIS_MNEMONIC_MWAITX, waits},
    {ZYDIS_MNEMONIC_MONITORX, waits},     {ZYDIS_MNEMONIC_TDCALL, hidden},
    {ZYDIS_MNEMONIC_SEAMCALL, hidden},    {ZYDIS_MNEMONIC_SEAMOPS, hidden},
    {ZYDIS_MNEMONIC_SEAMRET, hidden},     {ZYDIS_MNEMONIC_CLZERO, hidden},
    {ZYDIS_MNEMONIC_RDPRU, hidden},       {ZYDIS_MNEMONIC_VMRUN, svm},
    {ZYDIS_MNEMONIC_VMLOAD, svm},         {ZYDIS_MNEMONIC_VMSAVE, svm},
    {ZYDIS_MNEMONIC_SKINIT, svm},         {ZYDIS_MNEMONIC_INVLPGA, svm},
    {ZYDIS_MNEMONIC_PVALIDATE, svm},      {ZYDIS_MNEMONIC_RMPADJUST, svm},
    {ZYDIS_MNEMONIC_RMPUPDATE, svm},      {ZYDIS_MNEMONIC_PSMASH, svm},
    {ZYDIS_MNEMONIC_INVLPGB, svm},        {ZYDIS_MNEMONIC_TLBSYNC, svm},
    {ZYDIS_MNEMONIC_MCOMMIT, hidden},     {ZYDIS_MNEMONIC_CLGI, svm},
    {ZYDIS_MNEMONIC_STGI, svm},
};

/* What a hypervisor below the host may take from CPUID though the processor goes on executing it. */
static const struct {
    ZydisMnemonic mnemonic;
    uint8_t reg, bit; /* of leaf 7: 1 EBX, 2 ECX */
} hideable[] = {
    {ZYDIS_MNEMONIC_RDSEED, 1, 18},  {ZYDIS_MNEMONIC_RDPID, 2, 22},   {ZYDIS_MNEMONIC_RDFSBASE, 1, 0},
    {ZYDIS_MNEMONIC_RDGSBASE, 1, 0}, {ZYDIS_MNEMONIC_WRFSBASE, 1, 0}, {ZYDIS_MNEMONIC_WRGSBASE, 1, 0},
};

static bool host_hides(ZydisMnemonic mnemonic) {
    static uint32_t leaf[4];
    static bool is_known;
    if (!is_known)
        is_known = __get_cpuid_count(7, 0, &leaf[0], &leaf[1], &leaf[2], &leaf[3]);
    for (unsigned i = 0; i < ARRAY_SIZE(hideable); i++)
        if (hideable[i].mnemonic == mnemonic)
            return !(leaf[hideable[i].reg] >> hideable[i].bit & 1);
    return false;
}

const char *rule_exclusion(ZydisMnemonic mnemonic, unsigned mode) {
    for (unsigned i = 0; i < ARRAY_SIZE(exclusions); i++)
        if (exclusions[i].mnemonic == mnemonic)
            return exclusions[i].reason;
    if ((mnemonic == ZYDIS_MNEMONIC_WRFSBASE || mnemonic == ZYDIS_MNEMONIC_WRGSBASE) &&
        !oracle_has_fsgsbase())
        return "the host's kernel loses it at the next switch";
    if (host_hides(mnemonic))
        return "the host's CPUID does not offer it, the processor may execute it nevertheless";
    if (mode == 32 && mnemonic == ZYDIS_MNEMONIC_SYSCALL)
        return "in compatibility mode Linux's entry changes EBP and ECX (AMD) or it is #UD (Intel)";
    return NULL;
}

bool rule_is_volatile(ZydisMnemonic mnemonic) {
    switch (mnemonic) {
    case ZYDIS_MNEMONIC_RDTSC:  /* time goes on */
    case ZYDIS_MNEMONIC_RDTSCP: /* the same, and the processor's number */
    case ZYDIS_MNEMONIC_RDPID:  /* the processor's number */
    case ZYDIS_MNEMONIC_RDRAND:
    case ZYDIS_MNEMONIC_RDSEED:
    case ZYDIS_MNEMONIC_CPUID:  /* the guest's model is not the host's */
    case ZYDIS_MNEMONIC_XGETBV: /* XCR0 may be narrower in a guest; XINUSE depends on what an engine saves */
    case ZYDIS_MNEMONIC_RDPRU:
        return true;
    default:
        return false;
    }
}

bool rule_is_state_image(ZydisMnemonic mnemonic) {
    switch (mnemonic) {
    case ZYDIS_MNEMONIC_FLDENV:
    case ZYDIS_MNEMONIC_FNSTENV:
    case ZYDIS_MNEMONIC_FRSTOR:
    case ZYDIS_MNEMONIC_FNSAVE:
    case ZYDIS_MNEMONIC_FXSAVE:
    case ZYDIS_MNEMONIC_FXSAVE64:
    case ZYDIS_MNEMONIC_FXRSTOR:
    case ZYDIS_MNEMONIC_FXRSTOR64:
    case ZYDIS_MNEMONIC_XSAVE:
    case ZYDIS_MNEMONIC_XSAVE64:
    case ZYDIS_MNEMONIC_XSAVEC:
    case ZYDIS_MNEMONIC_XSAVEC64:
    case ZYDIS_MNEMONIC_XSAVEOPT:
    case ZYDIS_MNEMONIC_XSAVEOPT64:
    case ZYDIS_MNEMONIC_XRSTOR:
    case ZYDIS_MNEMONIC_XRSTOR64:
        return true;
    default:
        return false;
    }
}

bool rule_is_masked(const ZydisDecodedInstruction *instruction) {
    switch (instruction->mnemonic) {
    case ZYDIS_MNEMONIC_VMASKMOVPS:
    case ZYDIS_MNEMONIC_VMASKMOVPD:
    case ZYDIS_MNEMONIC_VPMASKMOVD:
    case ZYDIS_MNEMONIC_VPMASKMOVQ:
        return true;
    default:
        break;
    }
    return instruction->encoding == ZYDIS_INSTRUCTION_ENCODING_EVEX &&
           instruction->avx.mask.reg != ZYDIS_REGISTER_NONE && instruction->avx.mask.reg != ZYDIS_REGISTER_K0;
}

bool rule_is_wide_far_pointer(const ZydisDecodedInstruction *instruction) {
    switch (instruction->mnemonic) {
    case ZYDIS_MNEMONIC_JMP:
    case ZYDIS_MNEMONIC_CALL:
        return instruction->operand_width == 64 && instruction->meta.branch_type == ZYDIS_BRANCH_TYPE_FAR;
    case ZYDIS_MNEMONIC_LFS:
    case ZYDIS_MNEMONIC_LGS:
    case ZYDIS_MNEMONIC_LSS:
        return instruction->operand_width == 64;
    default:
        return false;
    }
}

bool rule_is_vex_gather(const ZydisDecodedInstruction *instruction) {
    return instruction->encoding == ZYDIS_INSTRUCTION_ENCODING_VEX &&
           (instruction->meta.category == ZYDIS_CATEGORY_AVX2GATHER ||
            instruction->meta.category == ZYDIS_CATEGORY_GATHER);
}

bool rule_is_converting_store(ZydisMnemonic mnemonic) {
    return mnemonic == ZYDIS_MNEMONIC_VCVTPS2PH;
}

bool rule_is_split_store(const ZydisDecodedInstruction *instruction, const ZydisDecodedOperand *operand) {
    return (instruction->mnemonic == ZYDIS_MNEMONIC_FSTP || instruction->mnemonic == ZYDIS_MNEMONIC_FBSTP) &&
           operand[0].type == ZYDIS_OPERAND_TYPE_MEMORY && operand[0].size == 80;
}

bool rule_is_aligned_image(ZydisMnemonic mnemonic) {
    switch (mnemonic) {
    case ZYDIS_MNEMONIC_FLDENV:
    case ZYDIS_MNEMONIC_FNSTENV:
    case ZYDIS_MNEMONIC_FRSTOR:
    case ZYDIS_MNEMONIC_FNSAVE:
        return false;
    default:
        return rule_is_state_image(mnemonic);
    }
}

bool rule_is_repeated_store(const ZydisDecodedInstruction *instruction) {
    bool stores = false;
    switch (instruction->mnemonic) {
    case ZYDIS_MNEMONIC_MOVSB:
    case ZYDIS_MNEMONIC_MOVSW:
    case ZYDIS_MNEMONIC_MOVSD:
    case ZYDIS_MNEMONIC_MOVSQ:
    case ZYDIS_MNEMONIC_STOSB:
    case ZYDIS_MNEMONIC_STOSW:
    case ZYDIS_MNEMONIC_STOSD:
    case ZYDIS_MNEMONIC_STOSQ:
        stores = instruction->meta.category == ZYDIS_CATEGORY_STRINGOP;
        break;
    default:
        break;
    }
    return stores &&
           instruction->attributes & (ZYDIS_ATTRIB_HAS_REP | ZYDIS_ATTRIB_HAS_REPE | ZYDIS_ATTRIB_HAS_REPNE);
}

bool rule_is_repeated_load(const ZydisDecodedInstruction *instruction) {
    switch (instruction->mnemonic) {
    case ZYDIS_MNEMONIC_LODSB:
    case ZYDIS_MNEMONIC_LODSW:
    case ZYDIS_MNEMONIC_LODSD:
    case ZYDIS_MNEMONIC_LODSQ:
        return instruction->attributes &
               (ZYDIS_ATTRIB_HAS_REP | ZYDIS_ATTRIB_HAS_REPE | ZYDIS_ATTRIB_HAS_REPNE);
    default:
        return false;
    }
}

bool rule_is_repeated_comparison(const ZydisDecodedInstruction *instruction) {
    return instruction->attributes & (ZYDIS_ATTRIB_HAS_REPE | ZYDIS_ATTRIB_HAS_REPNE);
}

bool rule_enters_mmx(const ZydisDecodedInstruction *instruction, const ZydisDecodedOperand *operand) {
    for (unsigned i = 0; i < instruction->operand_count_visible; i++)
        if (operand[i].type == ZYDIS_OPERAND_TYPE_REGISTER &&
            ZydisRegisterGetClass(operand[i].reg.value) == ZYDIS_REGCLASS_MMX)
            return true;
    return false;
}

static const struct {
    ZydisMnemonic mnemonic;
    uint32_t undefined;
} undefined_flags[] = {
    {ZYDIS_MNEMONIC_AND, FLAG_AF},
    {ZYDIS_MNEMONIC_OR, FLAG_AF},
    {ZYDIS_MNEMONIC_XOR, FLAG_AF},
    {ZYDIS_MNEMONIC_TEST, FLAG_AF},
    {ZYDIS_MNEMONIC_ANDN, FLAG_AF | FLAG_PF},
    {ZYDIS_MNEMONIC_BEXTR, FLAG_AF | FLAG_SF | FLAG_PF},
    {ZYDIS_MNEMONIC_BLSI, FLAG_AF | FLAG_PF},
    {ZYDIS_MNEMONIC_BLSR, FLAG_AF | FLAG_PF},
    {ZYDIS_MNEMONIC_BLSMSK, FLAG_AF | FLAG_PF},
    {ZYDIS_MNEMONIC_BZHI, FLAG_AF | FLAG_PF},
    {ZYDIS_MNEMONIC_LZCNT, FLAG_OF | FLAG_SF | FLAG_PF | FLAG_AF},
    {ZYDIS_MNEMONIC_TZCNT, FLAG_OF | FLAG_SF | FLAG_PF | FLAG_AF},
    {ZYDIS_MNEMONIC_BSF, FLAG_CF | FLAG_OF | FLAG_SF | FLAG_AF | FLAG_PF},
    {ZYDIS_MNEMONIC_BSR, FLAG_CF | FLAG_OF | FLAG_SF | FLAG_AF | FLAG_PF},
    {ZYDIS_MNEMONIC_BT, FLAG_OF | FLAG_SF | FLAG_AF | FLAG_PF},
    {ZYDIS_MNEMONIC_BTS, FLAG_OF | FLAG_SF | FLAG_AF | FLAG_PF},
    {ZYDIS_MNEMONIC_BTR, FLAG_OF | FLAG_SF | FLAG_AF | FLAG_PF},
    {ZYDIS_MNEMONIC_BTC, FLAG_OF | FLAG_SF | FLAG_AF | FLAG_PF},
    {ZYDIS_MNEMONIC_MUL, FLAG_SF | FLAG_ZF | FLAG_AF | FLAG_PF},
    {ZYDIS_MNEMONIC_IMUL, FLAG_SF | FLAG_ZF | FLAG_AF | FLAG_PF},
    {ZYDIS_MNEMONIC_DIV, FLAGS_ARITHMETIC},
    {ZYDIS_MNEMONIC_IDIV, FLAGS_ARITHMETIC},
    {ZYDIS_MNEMONIC_AAA, FLAG_OF | FLAG_SF | FLAG_ZF | FLAG_PF},
    {ZYDIS_MNEMONIC_AAS, FLAG_OF | FLAG_SF | FLAG_ZF | FLAG_PF},
    {ZYDIS_MNEMONIC_AAM, FLAG_OF | FLAG_AF | FLAG_CF},
    {ZYDIS_MNEMONIC_AAD, FLAG_OF | FLAG_AF | FLAG_CF},
    {ZYDIS_MNEMONIC_DAA, FLAG_OF},
    {ZYDIS_MNEMONIC_DAS, FLAG_OF},
};

/* Shifts and rotates: a count of 0 leaves all flags alone, OF is defined for a count of 1 only, CF of a
 * shift by the operand's width or more and everything after an overlong SHLD/SHRD are undefined. */
static bool shift_flags(const ZydisDecodedInstruction *instruction, const ZydisDecodedOperand *operand,
                        struct rule_flags *flags) {
    unsigned count_operand = 1;
    bool is_rotate = false, is_double = false, keeps_cf = false;
    switch (instruction->mnemonic) {
    case ZYDIS_MNEMONIC_SHL:
    case ZYDIS_MNEMONIC_SHR:
        break;
    case ZYDIS_MNEMONIC_SAR:
        keeps_cf = true;
        break;
    case ZYDIS_MNEMONIC_ROL:
    case ZYDIS_MNEMONIC_ROR:
    case ZYDIS_MNEMONIC_RCL:
    case ZYDIS_MNEMONIC_RCR:
        is_rotate = true;
        break;
    case ZYDIS_MNEMONIC_SHLD:
    case ZYDIS_MNEMONIC_SHRD:
        is_double = true;
        count_operand = 2;
        break;
    default:
        return false;
    }
    unsigned width = operand[0].size;
    bool known = operand[count_operand].type == ZYDIS_OPERAND_TYPE_IMMEDIATE;
    unsigned count = known ? (unsigned)operand[count_operand].imm.value.u & (width == 64 ? 63 : 31) : 0;
    if (instruction->mnemonic == ZYDIS_MNEMONIC_RCL || instruction->mnemonic == ZYDIS_MNEMONIC_RCR)
        flags->read |= FLAG_CF;
    flags->defined = 0;
    flags->undefined = 0;
    if (known && count == 0)
        return true;
    bool overlong = known ? count >= width : width < 32;
    if (!known || count != 1)
        flags->undefined |= FLAG_OF;
    if (!is_rotate)
        flags->undefined |= FLAG_AF;
    if (!is_rotate && !keeps_cf && overlong)
        flags->undefined |= FLAG_CF;
    if (is_double && (known ? count > width : width < 32))
        flags->undefined = FLAGS_ARITHMETIC;
    if (known)
        flags->defined = (is_rotate ? FLAG_CF | FLAG_OF : FLAGS_ARITHMETIC) & ~flags->undefined;
    return true;
}

struct rule_flags rule_flags(const ZydisDecodedInstruction *instruction, const ZydisDecodedOperand *operand) {
    struct rule_flags flags = {0};
    const ZydisAccessedFlags *access = instruction->cpu_flags;
    if (access) {
        flags.read = access->tested & FLAGS_ARITHMETIC;
        flags.undefined = access->undefined & FLAGS_ARITHMETIC;
        flags.defined =
            (access->modified | access->set_0 | access->set_1) & FLAGS_ARITHMETIC & ~flags.undefined;
    }
    if (shift_flags(instruction, operand, &flags))
        return flags;
    for (unsigned i = 0; i < ARRAY_SIZE(undefined_flags); i++) {
        if (undefined_flags[i].mnemonic == instruction->mnemonic) {
            flags.undefined |= undefined_flags[i].undefined;
            flags.defined &= ~flags.undefined;
        }
    }
    if (instruction->attributes & (ZYDIS_ATTRIB_HAS_REP | ZYDIS_ATTRIB_HAS_REPE | ZYDIS_ATTRIB_HAS_REPNE))
        flags.defined = 0; /* a count of 0 leaves them alone */
    switch (instruction->mnemonic) {
    case ZYDIS_MNEMONIC_PUSHF:
    case ZYDIS_MNEMONIC_PUSHFD:
    case ZYDIS_MNEMONIC_PUSHFQ:
    case ZYDIS_MNEMONIC_SYSCALL: /* R11 */
        flags.read = FLAGS_ARITHMETIC;
        break;
    case ZYDIS_MNEMONIC_LAHF:
        flags.read = FLAGS_ARITHMETIC & ~FLAG_OF;
        break;
    default:
        break;
    }
    return flags;
}
