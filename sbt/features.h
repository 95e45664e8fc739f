/* The CPU features that a Linux kernel patches itself by, as far as they can be known beforehand.
 *
 * A feature is word * 32 + bit of Linux's x86_capability (arch/x86/include/asm/cpufeatures.h). Most words are
 * CPUID registers; the kernel's own words (3, 7, 8, 11, 21 and the bug words behind) follow from CPUID by the
 * kernel's logic, of which the rules in features.c know what concerns a guest of Nestor. What they do not
 * know is `unknown`: code is then translated both ways.
 */
#ifndef NESTOR_SBT_FEATURES_H
#define NESTOR_SBT_FEATURES_H

#include "cpu/model.h"

#define FEATURE_WORDS 32

struct features {
    uint32_t on[FEATURE_WORDS];
    uint32_t known[FEATURE_WORDS];
};

void features_create(struct features *features, const struct cpu_model *model);

static inline bool features_has(const struct features *features, unsigned feature) {
    return feature / 32 < FEATURE_WORDS && features->on[feature / 32] >> feature % 32 & 1;
}

static inline bool features_knows(const struct features *features, unsigned feature) {
    return feature / 32 < FEATURE_WORDS && features->known[feature / 32] >> feature % 32 & 1;
}

#endif
