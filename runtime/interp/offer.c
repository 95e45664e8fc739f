/* The instructions of a CPU model, by the instruction sets that Zydis sorts them into. A set that is not
 * listed is not offered: what a host may have of it is not virtualised (features.c). Sets that are always
 * there are those of every 64-bit processor, those whose instructions the interpreter tells apart itself (the
 * hypercalls among VMX's and SVM's), and those that are hints, so no-operations where the feature is missing
 * (CET's and MPX's encodings, prefetches). */
#include "interp/offer.h"
#include "cpu/model.h"

#define FEATURES_MAX 3
#define ALWAYS ""

static const char *const needs[ZYDIS_ISA_SET_MAX_VALUE + 1][FEATURES_MAX] = {
    [ZYDIS_ISA_SET_ADOX_ADCX] = {"adx"},
    [ZYDIS_ISA_SET_AES] = {"aes"},
    [ZYDIS_ISA_SET_AMD] = {ALWAYS},
    [ZYDIS_ISA_SET_AVX] = {"avx"},
    [ZYDIS_ISA_SET_AVX2] = {"avx2"},
    [ZYDIS_ISA_SET_AVX2GATHER] = {"avx2"},
    [ZYDIS_ISA_SET_AVX512BW_128] = {"avx512bw", "avx512vl"},
    [ZYDIS_ISA_SET_AVX512BW_128N] = {"avx512bw"},
    [ZYDIS_ISA_SET_AVX512BW_256] = {"avx512bw", "avx512vl"},
    [ZYDIS_ISA_SET_AVX512BW_512] = {"avx512bw"},
    [ZYDIS_ISA_SET_AVX512BW_KOP] = {"avx512bw"},
    [ZYDIS_ISA_SET_AVX512CD_128] = {"avx512cd", "avx512vl"},
    [ZYDIS_ISA_SET_AVX512CD_256] = {"avx512cd", "avx512vl"},
    [ZYDIS_ISA_SET_AVX512CD_512] = {"avx512cd"},
    [ZYDIS_ISA_SET_AVX512DQ_128] = {"avx512dq", "avx512vl"},
    [ZYDIS_ISA_SET_AVX512DQ_128N] = {"avx512dq"},
    [ZYDIS_ISA_SET_AVX512DQ_256] = {"avx512dq", "avx512vl"},
    [ZYDIS_ISA_SET_AVX512DQ_512] = {"avx512dq"},
    [ZYDIS_ISA_SET_AVX512DQ_KOP] = {"avx512dq"},
    [ZYDIS_ISA_SET_AVX512DQ_SCALAR] = {"avx512dq"},
    [ZYDIS_ISA_SET_AVX512F_128] = {"avx512f", "avx512vl"},
    [ZYDIS_ISA_SET_AVX512F_128N] = {"avx512f"},
    [ZYDIS_ISA_SET_AVX512F_256] = {"avx512f", "avx512vl"},
    [ZYDIS_ISA_SET_AVX512F_512] = {"avx512f"},
    [ZYDIS_ISA_SET_AVX512F_KOP] = {"avx512f"},
    [ZYDIS_ISA_SET_AVX512F_SCALAR] = {"avx512f"},
    [ZYDIS_ISA_SET_AVX512_BF16_128] = {"avx512_bf16", "avx512vl"},
    [ZYDIS_ISA_SET_AVX512_BF16_256] = {"avx512_bf16", "avx512vl"},
    [ZYDIS_ISA_SET_AVX512_BF16_512] = {"avx512_bf16"},
    [ZYDIS_ISA_SET_AVX512_BITALG_128] = {"avx512_bitalg", "avx512vl"},
    [ZYDIS_ISA_SET_AVX512_BITALG_256] = {"avx512_bitalg", "avx512vl"},
    [ZYDIS_ISA_SET_AVX512_BITALG_512] = {"avx512_bitalg"},
    [ZYDIS_ISA_SET_AVX512_FP16_128] = {"avx512_fp16", "avx512vl"},
    [ZYDIS_ISA_SET_AVX512_FP16_128N] = {"avx512_fp16"},
    [ZYDIS_ISA_SET_AVX512_FP16_256] = {"avx512_fp16", "avx512vl"},
    [ZYDIS_ISA_SET_AVX512_FP16_512] = {"avx512_fp16"},
    [ZYDIS_ISA_SET_AVX512_FP16_SCALAR] = {"avx512_fp16"},
    [ZYDIS_ISA_SET_AVX512_GFNI_128] = {"gfni", "avx512f", "avx512vl"},
    [ZYDIS_ISA_SET_AVX512_GFNI_256] = {"gfni", "avx512f", "avx512vl"},
    [ZYDIS_ISA_SET_AVX512_GFNI_512] = {"gfni", "avx512f"},
    [ZYDIS_ISA_SET_AVX512_IFMA_128] = {"avx512ifma", "avx512vl"},
    [ZYDIS_ISA_SET_AVX512_IFMA_256] = {"avx512ifma", "avx512vl"},
    [ZYDIS_ISA_SET_AVX512_IFMA_512] = {"avx512ifma"},
    [ZYDIS_ISA_SET_AVX512_VAES_128] = {"vaes", "avx512f", "avx512vl"},
    [ZYDIS_ISA_SET_AVX512_VAES_256] = {"vaes", "avx512f", "avx512vl"},
    [ZYDIS_ISA_SET_AVX512_VAES_512] = {"vaes", "avx512f"},
    [ZYDIS_ISA_SET_AVX512_VBMI2_128] = {"avx512_vbmi2", "avx512vl"},
    [ZYDIS_ISA_SET_AVX512_VBMI2_256] = {"avx512_vbmi2", "avx512vl"},
    [ZYDIS_ISA_SET_AVX512_VBMI2_512] = {"avx512_vbmi2"},
    [ZYDIS_ISA_SET_AVX512_VBMI_128] = {"avx512vbmi", "avx512vl"},
    [ZYDIS_ISA_SET_AVX512_VBMI_256] = {"avx512vbmi", "avx512vl"},
    [ZYDIS_ISA_SET_AVX512_VBMI_512] = {"avx512vbmi"},
    [ZYDIS_ISA_SET_AVX512_VNNI_128] = {"avx512_vnni", "avx512vl"},
    [ZYDIS_ISA_SET_AVX512_VNNI_256] = {"avx512_vnni", "avx512vl"},
    [ZYDIS_ISA_SET_AVX512_VNNI_512] = {"avx512_vnni"},
    [ZYDIS_ISA_SET_AVX512_VP2INTERSECT_128] = {"avx512_vp2intersect", "avx512vl"},
    [ZYDIS_ISA_SET_AVX512_VP2INTERSECT_256] = {"avx512_vp2intersect", "avx512vl"},
    [ZYDIS_ISA_SET_AVX512_VP2INTERSECT_512] = {"avx512_vp2intersect"},
    [ZYDIS_ISA_SET_AVX512_VPCLMULQDQ_128] = {"vpclmulqdq", "avx512f", "avx512vl"},
    [ZYDIS_ISA_SET_AVX512_VPCLMULQDQ_256] = {"vpclmulqdq", "avx512f", "avx512vl"},
    [ZYDIS_ISA_SET_AVX512_VPCLMULQDQ_512] = {"vpclmulqdq", "avx512f"},
    [ZYDIS_ISA_SET_AVX512_VPOPCNTDQ_128] = {"avx512_vpopcntdq", "avx512vl"},
    [ZYDIS_ISA_SET_AVX512_VPOPCNTDQ_256] = {"avx512_vpopcntdq", "avx512vl"},
    [ZYDIS_ISA_SET_AVX512_VPOPCNTDQ_512] = {"avx512_vpopcntdq"},
    [ZYDIS_ISA_SET_AVXAES] = {"avx", "aes"},
    [ZYDIS_ISA_SET_AVX_GFNI] = {"avx", "gfni"},
    [ZYDIS_ISA_SET_AVX_VNNI] = {"avx_vnni"},
    [ZYDIS_ISA_SET_BMI1] = {"bmi1"},
    [ZYDIS_ISA_SET_BMI2] = {"bmi2"},
    [ZYDIS_ISA_SET_CET] = {ALWAYS},
    [ZYDIS_ISA_SET_CLDEMOTE] = {ALWAYS},
    [ZYDIS_ISA_SET_CLFLUSHOPT] = {"clflushopt"},
    [ZYDIS_ISA_SET_CLFSH] = {"clflush"},
    [ZYDIS_ISA_SET_CLWB] = {"clwb"},
    [ZYDIS_ISA_SET_CMOV] = {"cmov"},
    [ZYDIS_ISA_SET_CMPXCHG16B] = {"cx16"},
    [ZYDIS_ISA_SET_F16C] = {"f16c"},
    [ZYDIS_ISA_SET_FAT_NOP] = {ALWAYS},
    [ZYDIS_ISA_SET_FCMOV] = {"fpu", "cmov"},
    [ZYDIS_ISA_SET_FMA] = {"fma"},
    [ZYDIS_ISA_SET_FXSAVE] = {"fxsr"},
    [ZYDIS_ISA_SET_FXSAVE64] = {"fxsr"},
    [ZYDIS_ISA_SET_GFNI] = {"gfni"},
    [ZYDIS_ISA_SET_I186] = {ALWAYS},
    [ZYDIS_ISA_SET_I286PROTECTED] = {ALWAYS},
    [ZYDIS_ISA_SET_I286REAL] = {ALWAYS},
    [ZYDIS_ISA_SET_I386] = {ALWAYS},
    [ZYDIS_ISA_SET_I486] = {ALWAYS},
    [ZYDIS_ISA_SET_I486REAL] = {ALWAYS},
    [ZYDIS_ISA_SET_I86] = {ALWAYS},
    [ZYDIS_ISA_SET_INVPCID] = {"invpcid"},
    [ZYDIS_ISA_SET_LAHF] = {ALWAYS},
    [ZYDIS_ISA_SET_LONGMODE] = {ALWAYS},
    [ZYDIS_ISA_SET_LZCNT] = {"abm"},
    [ZYDIS_ISA_SET_MOVBE] = {"movbe"},
    [ZYDIS_ISA_SET_MOVDIR] = {ALWAYS},
    [ZYDIS_ISA_SET_MPX] = {ALWAYS},
    [ZYDIS_ISA_SET_PAUSE] = {ALWAYS},
    [ZYDIS_ISA_SET_PCLMULQDQ] = {"pclmulqdq"},
    [ZYDIS_ISA_SET_PENTIUMMMX] = {"mmx"},
    [ZYDIS_ISA_SET_PENTIUMREAL] = {ALWAYS},
    [ZYDIS_ISA_SET_POPCNT] = {"popcnt"},
    [ZYDIS_ISA_SET_PPRO] = {ALWAYS},
    [ZYDIS_ISA_SET_PREFETCHWT1] = {ALWAYS},
    [ZYDIS_ISA_SET_PREFETCH_NOP] = {ALWAYS},
    [ZYDIS_ISA_SET_RDPID] = {"rdpid"},
    [ZYDIS_ISA_SET_RDPMC] = {ALWAYS},
    [ZYDIS_ISA_SET_RDRAND] = {"rdrand"},
    [ZYDIS_ISA_SET_RDSEED] = {"rdseed"},
    [ZYDIS_ISA_SET_RDTSCP] = {"rdtscp"},
    [ZYDIS_ISA_SET_RDWRFSGS] = {"fsgsbase"},
    [ZYDIS_ISA_SET_SERIALIZE] = {"serialize"},
    [ZYDIS_ISA_SET_SHA] = {"sha_ni"},
    [ZYDIS_ISA_SET_SMAP] = {"smap"},
    [ZYDIS_ISA_SET_SSE] = {"sse"},
    [ZYDIS_ISA_SET_SSE2] = {"sse2"},
    [ZYDIS_ISA_SET_SSE2MMX] = {"sse2"},
    [ZYDIS_ISA_SET_SSE3] = {"pni"},
    [ZYDIS_ISA_SET_SSE3X87] = {"pni"},
    [ZYDIS_ISA_SET_SSE4] = {"sse4_1"},
    [ZYDIS_ISA_SET_SSE42] = {"sse4_2"},
    [ZYDIS_ISA_SET_SSE4A] = {"sse4a"},
    [ZYDIS_ISA_SET_SSEMXCSR] = {"sse"},
    [ZYDIS_ISA_SET_SSE_PREFETCH] = {ALWAYS},
    [ZYDIS_ISA_SET_SSSE3] = {"ssse3"},
    [ZYDIS_ISA_SET_SSSE3MMX] = {"ssse3"},
    [ZYDIS_ISA_SET_SVM] = {ALWAYS},
    [ZYDIS_ISA_SET_VAES] = {"vaes"},
    [ZYDIS_ISA_SET_VPCLMULQDQ] = {"vpclmulqdq"},
    [ZYDIS_ISA_SET_VTX] = {ALWAYS},
    [ZYDIS_ISA_SET_X87] = {"fpu"},
    [ZYDIS_ISA_SET_XSAVE] = {"xsave"},
    [ZYDIS_ISA_SET_XSAVEC] = {"xsavec"},
    [ZYDIS_ISA_SET_XSAVEOPT] = {"xsaveopt"},
};

void insn_offer_read(struct insn_offer *offer, const struct cpu_model *model) {
    for (unsigned set = 0; set <= ZYDIS_ISA_SET_MAX_VALUE; set++) {
        bool has = needs[set][0] != NULL;
        for (unsigned i = 0; i < FEATURES_MAX && has && needs[set][i]; i++)
            has = !*needs[set][i] || cpu_model_has(model, needs[set][i]);
        offer->isa_set[set] = has;
    }
    offer->cx8 = cpu_model_has(model, "cx8");
    offer->lahf_lm = cpu_model_has(model, "lahf_lm");
    offer->movdir64b = cpu_model_has(model, "movdir64b");
    offer->movdiri = cpu_model_has(model, "movdiri");
    offer->msr = cpu_model_has(model, "msr");
    offer->pclmulqdq = cpu_model_has(model, "pclmulqdq");
    offer->sep = cpu_model_has(model, "sep");
    offer->tsc = cpu_model_has(model, "tsc");
}

bool insn_offered(const struct insn_offer *offer, const struct insn *insn) {
    if (!offer->isa_set[insn->z.meta.isa_set])
        return false;
    /* Instructions with a feature bit of their own inside a larger set. */
    switch (insn->z.mnemonic) {
    case ZYDIS_MNEMONIC_CMPXCHG8B:
        return offer->cx8;
    case ZYDIS_MNEMONIC_LAHF:
    case ZYDIS_MNEMONIC_SAHF:
        return offer->lahf_lm || insn->code_size != 64;
    case ZYDIS_MNEMONIC_MOVDIR64B:
        return offer->movdir64b;
    case ZYDIS_MNEMONIC_MOVDIRI:
        return offer->movdiri;
    case ZYDIS_MNEMONIC_RDMSR:
    case ZYDIS_MNEMONIC_WRMSR:
        return offer->msr;
    case ZYDIS_MNEMONIC_RDTSC:
        return offer->tsc;
    case ZYDIS_MNEMONIC_SYSENTER:
    case ZYDIS_MNEMONIC_SYSEXIT:
        return offer->sep;
    case ZYDIS_MNEMONIC_VPCLMULQDQ:
        return offer->pclmulqdq;
    default:
        return true;
    }
}
