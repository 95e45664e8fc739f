#include "cache-format/host_features.h"

#include <cpuid.h>
#include <stdio.h>
#include <string.h>

/* Extended state that the host's kernel must have enabled for a feature to be of use. */
enum state { STATE_NONE = 0, STATE_AVX = 6, STATE_AVX512 = 0xe6 };
enum { EAX, EBX, ECX, EDX };

static const struct host_feature {
    const char *name;
    uint32_t leaf;
    uint8_t reg, bit, state;
} features[NTC_HOST_FEATURES] = {
    [NTC_HOST_SSE3] = {"sse3", 1, ECX, 0, STATE_NONE},
    [NTC_HOST_SSSE3] = {"ssse3", 1, ECX, 9, STATE_NONE},
    [NTC_HOST_SSE4_1] = {"sse4_1", 1, ECX, 19, STATE_NONE},
    [NTC_HOST_SSE4_2] = {"sse4_2", 1, ECX, 20, STATE_NONE},
    [NTC_HOST_POPCNT] = {"popcnt", 1, ECX, 23, STATE_NONE},
    [NTC_HOST_CX16] = {"cx16", 1, ECX, 13, STATE_NONE},
    [NTC_HOST_LAHF] = {"lahf_lm", 0x80000001, ECX, 0, STATE_NONE},
    [NTC_HOST_MOVBE] = {"movbe", 1, ECX, 22, STATE_NONE},
    [NTC_HOST_AES] = {"aes", 1, ECX, 25, STATE_NONE},
    [NTC_HOST_PCLMUL] = {"pclmulqdq", 1, ECX, 1, STATE_NONE},
    [NTC_HOST_XSAVE] = {"xsave", 1, ECX, 27, STATE_NONE},
    [NTC_HOST_AVX] = {"avx", 1, ECX, 28, STATE_AVX},
    [NTC_HOST_F16C] = {"f16c", 1, ECX, 29, STATE_AVX},
    [NTC_HOST_FMA] = {"fma", 1, ECX, 12, STATE_AVX},
    [NTC_HOST_AVX2] = {"avx2", 7, EBX, 5, STATE_AVX},
    [NTC_HOST_BMI1] = {"bmi1", 7, EBX, 3, STATE_NONE},
    [NTC_HOST_BMI2] = {"bmi2", 7, EBX, 8, STATE_NONE},
    [NTC_HOST_LZCNT] = {"abm", 0x80000001, ECX, 5, STATE_NONE},
    [NTC_HOST_ADX] = {"adx", 7, EBX, 19, STATE_NONE},
    [NTC_HOST_RDRAND] = {"rdrand", 1, ECX, 30, STATE_NONE},
    [NTC_HOST_RDSEED] = {"rdseed", 7, EBX, 18, STATE_NONE},
    [NTC_HOST_SHA] = {"sha_ni", 7, EBX, 29, STATE_NONE},
    [NTC_HOST_FSGSBASE] = {"fsgsbase", 7, EBX, 0, STATE_NONE},
    [NTC_HOST_RDTSCP] = {"rdtscp", 0x80000001, EDX, 27, STATE_NONE},
    [NTC_HOST_RDPID] = {"rdpid", 7, ECX, 22, STATE_NONE},
    [NTC_HOST_ERMS] = {"erms", 7, EBX, 9, STATE_NONE},
    [NTC_HOST_FSRM] = {"fsrm", 7, EDX, 4, STATE_NONE},
    [NTC_HOST_CLFLUSHOPT] = {"clflushopt", 7, EBX, 23, STATE_NONE},
    [NTC_HOST_CLWB] = {"clwb", 7, EBX, 24, STATE_NONE},
    [NTC_HOST_AVX512F] = {"avx512f", 7, EBX, 16, STATE_AVX512},
    [NTC_HOST_AVX512DQ] = {"avx512dq", 7, EBX, 17, STATE_AVX512},
    [NTC_HOST_AVX512CD] = {"avx512cd", 7, EBX, 28, STATE_AVX512},
    [NTC_HOST_AVX512BW] = {"avx512bw", 7, EBX, 30, STATE_AVX512},
    [NTC_HOST_AVX512VL] = {"avx512vl", 7, EBX, 31, STATE_AVX512},
    [NTC_HOST_GFNI] = {"gfni", 7, ECX, 8, STATE_NONE},
    [NTC_HOST_VAES] = {"vaes", 7, ECX, 9, STATE_AVX},
    [NTC_HOST_VPCLMULQDQ] = {"vpclmulqdq", 7, ECX, 10, STATE_AVX},
};

static uint32_t xcr0(void) {
    unsigned a, b, c, d;
    if (!__get_cpuid(1, &a, &b, &c, &d) || !(c & bit_OSXSAVE))
        return 0;
    uint32_t low, high;
    __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
    return low;
}

uint64_t ntc_host_features(void) {
    uint64_t found = 0;
    uint32_t enabled = xcr0();
    for (unsigned i = 0; i < NTC_HOST_FEATURES; i++) {
        uint32_t out[4];
        if (!__get_cpuid_count(features[i].leaf, 0, &out[EAX], &out[EBX], &out[ECX], &out[EDX]))
            continue;
        if (out[features[i].reg] >> features[i].bit & 1 && (enabled & features[i].state) == features[i].state)
            found |= NTC_HOST_BIT(i);
    }
    return found;
}

const char *ntc_host_feature_name(unsigned feature) {
    return feature < NTC_HOST_FEATURES ? features[feature].name : NULL;
}

uint64_t ntc_host_feature_find(const char *name) {
    for (unsigned i = 0; i < NTC_HOST_FEATURES; i++)
        if (!strcmp(name, features[i].name))
            return NTC_HOST_BIT(i);
    return 0;
}

void ntc_host_features_print(uint64_t set, char *text, size_t size) {
    size_t used = 0;
    if (size)
        *text = 0;
    for (unsigned i = 0; i < 64 && used < size; i++) {
        if (!(set >> i & 1))
            continue;
        const char *name = ntc_host_feature_name(i);
        int wrote = name ? snprintf(text + used, size - used, "%s%s", used ? "," : "", name)
                         : snprintf(text + used, size - used, "%sbit%u", used ? "," : "", i);
        used += (size_t)wrote;
    }
}
