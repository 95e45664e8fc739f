/* Linux's feature words from a CPU model. Bit numbers are the kernel's interface to its own alternatives and
 * hold for Linux 6.1 to 6.12. */
#include "sbt/features.h"

#include <string.h>

#define FEATURE(word, bit) ((word)*32u + (bit))

/* Words that are a CPUID register as it is. */
static const struct {
    uint8_t word;
    uint32_t leaf, subleaf;
    char reg;
} cpuid_words[] = {
    {0, 1, 0, 'd'},  {1, 0x80000001, 0, 'd'},  {4, 1, 0, 'c'},           {6, 0x80000001, 0, 'c'},
    {9, 7, 0, 'b'},  {10, 0xd, 1, 'a'},        {12, 7, 1, 'a'},          {13, 0x80000008, 0, 'b'},
    {14, 6, 0, 'a'}, {15, 0x8000000a, 0, 'd'}, {16, 7, 0, 'c'},          {17, 0x80000007, 0, 'b'},
    {18, 7, 0, 'd'}, {19, 0x8000001f, 0, 'a'}, {20, 0x80000021, 0, 'a'},
};

enum vendor { ANY, AMD, INTEL };

/* The kernel's own bits whose state is certain: on when the vendor fits and the model has the feature (NULL:
 * always; "": never). */
static const struct {
    uint16_t feature;
    uint8_t vendor;
    const char *model;
} rules[] = {
    {FEATURE(3, 14), AMD, "syscall"},        /* SYSCALL32 */
    {FEATURE(3, 15), INTEL, "sep"},          /* SYSENTER32 */
    {FEATURE(3, 16), ANY, NULL},             /* REP_GOOD */
    {FEATURE(3, 18), ANY, "sse2"},           /* LFENCE_RDTSC up to 6.2; see patch_alternatives.c */
    {FEATURE(3, 21), ANY, NULL},             /* ALWAYS */
    {FEATURE(3, 28), ANY, ""},               /* APERFMPERF */
    {FEATURE(7, 7), ANY, "invpcid"},         /* INVPCID_SINGLE */
    {FEATURE(7, 11), ANY, ""},               /* PTI: the model is immune to what it is for */
    {FEATURE(7, 12), ANY, ""},               /* KERNEL_IBRS */
    {FEATURE(7, 13), ANY, ""},               /* RSB_VMEXIT or FILL_RETURN_BUFFER of old */
    {FEATURE(8, 15), AMD, NULL},             /* VMMCALL */
    {FEATURE(8, 16), ANY, ""},               /* XENPV */
    {FEATURE(8, 18), ANY, ""},               /* VM_PAGE_FLUSH, coherent encryption */
    {FEATURE(8, 19), ANY, ""},               /* ENCRYPTED hypercalls */
    {FEATURE(8, 20), ANY, ""},               /* PVUNLOCK: no KVM_FEATURE_PV_UNHALT is offered */
    {FEATURE(8, 21), ANY, "kvm_steal_time"}, /* VCPUPREEMPT */
    {FEATURE(8, 22), ANY, ""},               /* TDX_GUEST */
    {FEATURE(11, 12), ANY, ""},              /* RETPOLINE: Enhanced IBRS is chosen */
    {FEATURE(11, 13), ANY, ""},              /* RETPOLINE_LFENCE */
    {FEATURE(11, 14), ANY, ""},              /* RETHUNK */
    {FEATURE(11, 15), ANY, ""},              /* UNRET */
    {FEATURE(11, 19), ANY, ""},              /* CALL_DEPTH */
    {FEATURE(20, 2), ANY, "sse2"},           /* LFENCE_RDTSC from 6.3 on: the kernel sets it everywhere */
};

static uint32_t model_register(const struct cpu_model *model, uint32_t leaf, uint32_t subleaf, char reg) {
    for (unsigned i = 0; i < model->count; i++) {
        const struct cpuid_entry *entry = &model->entry[i];
        if (entry->leaf == leaf && (!entry->has_subleaf || entry->subleaf == subleaf))
            return reg == 'a' ? entry->eax : reg == 'b' ? entry->ebx : reg == 'c' ? entry->ecx : entry->edx;
    }
    return 0;
}

void features_create(struct features *features, const struct cpu_model *model) {
    memset(features, 0, sizeof *features);
    for (unsigned i = 0; i < ARRAY_SIZE(cpuid_words); i++) {
        unsigned word = cpuid_words[i].word;
        features->on[word] =
            model_register(model, cpuid_words[i].leaf, cpuid_words[i].subleaf, cpuid_words[i].reg);
        features->known[word] = UINT32_MAX;
    }
    /* CPUID shows OSXSAVE as soon as the kernel has set CR4, which it does before it reads its features. */
    if (cpu_model_has(model, "xsave"))
        features->on[4] |= 1u << 27;
    for (unsigned i = 0; i < ARRAY_SIZE(rules); i++) {
        unsigned word = rules[i].feature / 32, bit = rules[i].feature % 32;
        bool on = rules[i].vendor == ANY || (rules[i].vendor == AMD) == model->is_amd;
        if (on && rules[i].model)
            on = *rules[i].model && cpu_model_has(model, rules[i].model);
        features->known[word] |= 1u << bit;
        if (on)
            features->on[word] |= 1u << bit;
    }
}
