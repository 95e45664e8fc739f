/* The host CPU features that translated code may need, beyond x86-64's base: a bit each, never renumbered. */
#ifndef NESTOR_CACHE_HOST_FEATURES_H
#define NESTOR_CACHE_HOST_FEATURES_H

#include "base/types.h"

enum ntc_host_feature {
    NTC_HOST_SSE3 = 0,
    NTC_HOST_SSSE3,
    NTC_HOST_SSE4_1,
    NTC_HOST_SSE4_2,
    NTC_HOST_POPCNT,
    NTC_HOST_CX16,
    NTC_HOST_LAHF,
    NTC_HOST_MOVBE,
    NTC_HOST_AES,
    NTC_HOST_PCLMUL,
    NTC_HOST_XSAVE,
    NTC_HOST_AVX,
    NTC_HOST_F16C,
    NTC_HOST_FMA,
    NTC_HOST_AVX2,
    NTC_HOST_BMI1,
    NTC_HOST_BMI2,
    NTC_HOST_LZCNT,
    NTC_HOST_ADX,
    NTC_HOST_RDRAND,
    NTC_HOST_RDSEED,
    NTC_HOST_SHA,
    NTC_HOST_FSGSBASE,
    NTC_HOST_RDTSCP,
    NTC_HOST_RDPID,
    NTC_HOST_ERMS,
    NTC_HOST_FSRM,
    NTC_HOST_CLFLUSHOPT,
    NTC_HOST_CLWB,
    NTC_HOST_AVX512F,
    NTC_HOST_AVX512DQ,
    NTC_HOST_AVX512CD,
    NTC_HOST_AVX512BW,
    NTC_HOST_AVX512VL,
    NTC_HOST_GFNI,
    NTC_HOST_VAES,
    NTC_HOST_VPCLMULQDQ,
    NTC_HOST_FEATURES,
};

#define NTC_HOST_BIT(feature) (1ull << (feature))

/* Those of this machine, as far as the kernel lets them be used (XCR0). */
uint64_t ntc_host_features(void);
/* As in /proc/cpuinfo ("bmi2", "pni" as "sse3"); NULL for a number that is not defined. */
const char *ntc_host_feature_name(unsigned feature);
/* The bit of a name, or 0. */
uint64_t ntc_host_feature_find(const char *name);
/* The names of features, with commas; what does not fit is cut off. */
void ntc_host_features_print(uint64_t features, char *text, size_t size);

#endif
