/* The table of CPU features: names as in Linux's /proc/cpuinfo, where CPUID has them, and on what terms a
 * guest gets them. Private to runtime/cpu. */
#ifndef NESTOR_CPU_FEATURES_H
#define NESTOR_CPU_FEATURES_H

#include "base/types.h"

enum feature_terms {
    OFFER_HOST,   /* when the host has it */
    OFFER_ALWAYS, /* the engine provides it itself */
    OFFER_AMD,    /* as OFFER_ALWAYS, on AMD's processors only */
    OFFER_ASKED,  /* provided by the engine, but only when asked for */
};

enum cpuid_register { REG_EAX, REG_EBX, REG_ECX, REG_EDX };

struct cpu_feature {
    const char *name;
    uint32_t leaf, subleaf;
    uint8_t reg, bit;
    uint8_t terms;        /* enum feature_terms */
    uint8_t level;        /* x86-64-vN that requires it; 0: none */
    const char *requires; /* a feature without which it goes, too; or NULL */
};

extern const struct cpu_feature cpu_features[];
extern const unsigned cpu_feature_count;

/* NULL when there is no such name. */
const struct cpu_feature *cpu_feature_find(const char *name, size_t length);

#endif
