/* The CPU model: the host's CPUID, less what is not virtualised, plus what the engine provides.
 *
 * Two things shape it. Features come from one table (features.h), on the terms stated there. And the guest is
 * told that its processor is immune to the speculation attacks whose mitigations would buy it nothing under
 * translation but cost it dearly: ARCH_CAPABILITIES (and AMD's counterparts in the table) says so, and
 * IBRS_ALL makes Linux choose "Enhanced IBRS": one write of SPEC_CTRL at boot instead of retpolines, return
 * thunks or writes at every entry. IBPB, STIBP and SSBD are not offered: nothing here could carry them out.
 */
#include "cpu/model.h"
#include "cpu/features.h"
#include "cpu/host_clock.h"
#include "cpu/kvm_pv.h"
#include "cpu/paging.h"

#include <cpuid.h>
#include <errno.h>
#include <stdio.h>
#include <string.h>

#define LINEAR_BITS 48u
#define XCR0_BASE 3ull
#define XCR0_AVX 4ull
#define XCR0_AVX512 0xe0ull
#define HIGHEST_BASIC_INTEL 0x16u
#define HIGHEST_BASIC 0xdu
#define HIGHEST_EXTENDED_INTEL 0x80000008u
#define HIGHEST_EXTENDED_AMD 0x80000021u
#define CACHE_SUBLEAVES 5u
#define LAPIC_BUS_KHZ 1000000u /* leaf 0x40000010: the timer counts nanoseconds */
#define BASELINE_LEVELS 4u
#define LEVEL_HOST 0u

/* IA32_ARCH_CAPABILITIES (SDM vol. 4): immune to all that has a bit, Enhanced IBRS. RRSBA and RSBA are clear.
 */
#define ARCH_RDCL_NO (1ull << 0)
#define ARCH_IBRS_ALL (1ull << 1)
#define ARCH_SKIP_L1DFL (1ull << 3)
#define ARCH_SSB_NO (1ull << 4)
#define ARCH_MDS_NO (1ull << 5)
#define ARCH_IF_PSCHANGE_MC_NO (1ull << 6)
#define ARCH_TAA_NO (1ull << 8)
#define ARCH_SBDR_SSDP_NO (1ull << 13)
#define ARCH_FBSDP_NO (1ull << 14)
#define ARCH_PSDP_NO (1ull << 15)
#define ARCH_BHI_NO (1ull << 20)
#define ARCH_PBRSB_NO (1ull << 24)
#define ARCH_GDS_NO (1ull << 26)
#define ARCH_RFDS_NO (1ull << 27)
#define ARCH_ITS_NO (1ull << 62)
#define ARCH_OFFERED                                                                                         \
    (ARCH_RDCL_NO | ARCH_IBRS_ALL | ARCH_SKIP_L1DFL | ARCH_SSB_NO | ARCH_MDS_NO | ARCH_IF_PSCHANGE_MC_NO |   \
     ARCH_TAA_NO | ARCH_SBDR_SSDP_NO | ARCH_FBSDP_NO | ARCH_PSDP_NO | ARCH_BHI_NO | ARCH_PBRSB_NO |          \
     ARCH_GDS_NO | ARCH_RFDS_NO | ARCH_ITS_NO)

static const char *const model_names[] = {"host", "x86-64-v1", "x86-64-v2", "x86-64-v3", "x86-64-v4", NULL};

const char *const *cpu_model_names(void) {
    return model_names;
}

static void host_cpuid(uint32_t leaf, uint32_t subleaf, uint32_t out[4]) {
    memset(out, 0, 4 * sizeof *out);
    uint32_t highest = __get_cpuid_max(leaf & 0x80000000u, NULL);
    if (highest && leaf <= highest)
        __cpuid_count(leaf, subleaf, out[REG_EAX], out[REG_EBX], out[REG_ECX], out[REG_EDX]);
}

static uint64_t host_xcr0(void) {
    uint32_t out[4], low, high;
    host_cpuid(1, 0, out);
    if (!(out[REG_ECX] >> 27 & 1))
        return XCR0_BASE;
    __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
    return (uint64_t)high << 32 | low;
}

static struct cpuid_entry *find_entry(struct cpu_model *model, uint32_t leaf, uint32_t subleaf) {
    for (unsigned i = 0; i < model->count; i++)
        if (model->entry[i].leaf == leaf &&
            (!model->entry[i].has_subleaf || model->entry[i].subleaf == subleaf))
            return &model->entry[i];
    return NULL;
}

static struct cpuid_entry *add_entry(struct cpu_model *model, uint32_t leaf, const uint32_t value[4]) {
    struct cpuid_entry *entry = &model->entry[model->count++];
    *entry = (struct cpuid_entry){.leaf = leaf,
                                  .eax = value[REG_EAX],
                                  .ebx = value[REG_EBX],
                                  .ecx = value[REG_ECX],
                                  .edx = value[REG_EDX]};
    return entry;
}

static struct cpuid_entry *add_subleaf(struct cpu_model *model, uint32_t leaf, uint32_t subleaf,
                                       const uint32_t value[4]) {
    struct cpuid_entry *entry = add_entry(model, leaf, value);
    entry->has_subleaf = true;
    entry->subleaf = subleaf;
    return entry;
}

static const uint32_t none[4];

static void add_host(struct cpu_model *model, uint32_t leaf) {
    uint32_t value[4];
    host_cpuid(leaf, 0, value);
    add_entry(model, leaf, value);
}

static uint32_t *entry_register(struct cpuid_entry *entry, unsigned reg) {
    switch (reg) {
    case REG_EAX:
        return &entry->eax;
    case REG_EBX:
        return &entry->ebx;
    case REG_ECX:
        return &entry->ecx;
    default:
        return &entry->edx;
    }
}

static bool feature_is_set(const struct cpu_model *model, const struct cpu_feature *feature) {
    struct cpuid_entry *entry = find_entry((struct cpu_model *)model, feature->leaf, feature->subleaf);
    return entry && *entry_register(entry, feature->reg) >> feature->bit & 1;
}

static void feature_set(struct cpu_model *model, const struct cpu_feature *feature, bool on) {
    struct cpuid_entry *entry = find_entry(model, feature->leaf, feature->subleaf);
    uint32_t bit = 1u << feature->bit;
    if (!entry)
        return;
    uint32_t *value = entry_register(entry, feature->reg);
    *value = on ? *value | bit : *value & ~bit;
}

/* State components that an AVX or AVX-512 feature needs from the host's kernel, too. */
static bool host_has(const struct cpu_model *model, const struct cpu_feature *feature) {
    if (feature->terms == OFFER_ALWAYS || feature->terms == OFFER_ASKED)
        return true;
    if (feature->terms == OFFER_AMD)
        return model->is_amd;
    uint32_t value[4];
    uint64_t xcr0 = host_xcr0();
    host_cpuid(feature->leaf, feature->subleaf, value);
    if (!(value[feature->reg] >> feature->bit & 1))
        return false;
    for (const struct cpu_feature *f = feature; f;
         f = f->requires ? cpu_feature_find(f->requires, strlen(f->requires)) : NULL) {
        if (!strcmp(f->name, "avx") && !(xcr0 & XCR0_AVX))
            return false;
        if (!strcmp(f->name, "avx512f") && (xcr0 & XCR0_AVX512) != XCR0_AVX512)
            return false;
    }
    return true;
}

/* ceil(log2(n)) */
static unsigned log2_up(unsigned n) {
    unsigned bits = 0;
    while (1u << bits < n)
        bits++;
    return bits;
}

static void add_basic(struct cpu_model *model) {
    uint32_t value[4];
    host_cpuid(0, 0, value);
    uint32_t cap = model->is_amd ? HIGHEST_BASIC : HIGHEST_BASIC_INTEL;
    value[REG_EAX] = value[REG_EAX] > cap             ? cap
                     : value[REG_EAX] < HIGHEST_BASIC ? HIGHEST_BASIC
                                                      : value[REG_EAX];
    add_entry(model, 0, value);

    host_cpuid(1, 0, value);
    unsigned threads = 1u << log2_up(model->cpus);
    value[REG_EBX] = (value[REG_EBX] & 0xff00u) | (threads > 255 ? 255 : threads) << 16;
    value[REG_ECX] = 0;
    value[REG_EDX] = model->cpus > 1 ? 1u << 28 : 0; /* HTT: more than one logical processor */
    add_entry(model, 1, value);

    add_host(model, 2);
    for (uint32_t i = 0; i < CACHE_SUBLEAVES; i++) {
        host_cpuid(4, i, value);
        unsigned level = value[REG_EAX] >> 5 & 7;
        if (value[REG_EAX] & 0x1f) {
            uint32_t cores = threads > 64 ? 63 : threads - 1;
            value[REG_EAX] = (value[REG_EAX] & 0x3fffu) | cores << 26 | (level >= 3 ? threads - 1 : 0) << 14;
        }
        add_subleaf(model, 4, i, value);
    }
    add_entry(model, 5, none);
    add_entry(model, 6, none);
    add_subleaf(model, 7, 0, (const uint32_t[4]){2, 0, 0, 0});
    add_subleaf(model, 7, 1, none);
    add_subleaf(model, 7, 2, none);

    /* Topology: one package of cores with one thread each; ECX and EDX are completed when asked. */
    add_subleaf(model, 0xb, 0, (const uint32_t[4]){0, 1, 0x100, 0});
    add_subleaf(model, 0xb, 1, (const uint32_t[4]){log2_up(model->cpus), model->cpus, 0x200, 0});
    if (!model->is_amd) {
        uint32_t mhz = (uint32_t)(model->tsc_hz / 1000000);
        add_entry(model, 0x16, (const uint32_t[4]){mhz, mhz, 100, 0});
    }
}

static void add_xsave(struct cpu_model *model) {
    uint32_t value[4];
    add_subleaf(model, 0xd, 0, none); /* completed when the features are settled */
    add_subleaf(model, 0xd, 1, none);
    for (uint32_t i = 2; i < 8; i++) {
        if (!((XCR0_AVX | XCR0_AVX512) >> i & 1))
            continue;
        host_cpuid(0xd, i, value);
        value[REG_EDX] = 0;
        add_subleaf(model, 0xd, i, value);
    }
}

static void add_kvm(struct cpu_model *model) {
    uint32_t signature[4] = {LEAF_KVM_TIMING};
    memcpy(signature + 1, "KVMKVMKVM\0\0\0", 12);
    add_entry(model, LEAF_KVM_SIGNATURE, signature);
    add_entry(model, LEAF_KVM_FEATURES, none);
    add_entry(model, LEAF_KVM_TIMING,
              (const uint32_t[4]){(uint32_t)(model->tsc_hz / 1000), LAPIC_BUS_KHZ, 0, 0});
}

static void add_extended(struct cpu_model *model) {
    uint32_t value[4];
    add_entry(model, 0x80000000u,
              (const uint32_t[4]){model->is_amd ? HIGHEST_EXTENDED_AMD : HIGHEST_EXTENDED_INTEL});
    struct cpuid_entry *top = find_entry(model, 0x80000000u, 0), *basic = find_entry(model, 0, 0);
    if (model->is_amd) { /* repeats the vendor */
        top->ebx = basic->ebx;
        top->ecx = basic->ecx;
        top->edx = basic->edx;
    }
    host_cpuid(0x80000001u, 0, value);
    value[REG_EBX] = value[REG_ECX] = value[REG_EDX] = 0;
    if (model->is_amd) {
        host_cpuid(1, 0, value);
        value[REG_EBX] = 0;
        value[REG_ECX] = model->cpus > 1 ? 2 : 0; /* CmpLegacy: the logical processors are cores */
        value[REG_EDX] = 0;
    } else {
        value[REG_EAX] = 0;
    }
    add_entry(model, 0x80000001u, value);
    for (uint32_t leaf = 0x80000002u; leaf <= 0x80000006u; leaf++)
        add_host(model, leaf);
    add_entry(model, 0x80000007u, none);
    uint32_t cores = model->is_amd ? (model->cpus - 1) | log2_up(model->cpus) << 12 : 0;
    add_entry(model, 0x80000008u, (const uint32_t[4]){GUEST_PHYSICAL_BITS | LINEAR_BITS << 8, 0, cores, 0});
    if (model->is_amd)
        add_entry(model, HIGHEST_EXTENDED_AMD, none);
}

/* Features go when what they build upon went. */
static void drop_dependents(struct cpu_model *model) {
    bool changed;
    do {
        changed = false;
        for (unsigned i = 0; i < cpu_feature_count; i++) {
            const struct cpu_feature *feature = &cpu_features[i];
            if (feature->requires && feature_is_set(model, feature) &&
                !cpu_model_has(model, feature->requires)) {
                feature_set(model, feature, false);
                changed = true;
            }
        }
    } while (changed);
}

static uint64_t cr4_of(const struct cpu_model *model, const char *feature, uint64_t bits) {
    return cpu_model_has(model, feature) ? bits : 0;
}

/* Everything that follows from the final feature bits. */
static void settle(struct cpu_model *model) {
    model->has_nx = cpu_model_has(model, "nx");
    model->has_pcid = cpu_model_has(model, "pcid");
    model->has_1g_pages = cpu_model_has(model, "pdpe1gb");
    model->has_invpcid = cpu_model_has(model, "invpcid");
    model->has_syscall = cpu_model_has(model, "syscall");
    model->has_pge = cpu_model_has(model, "pge");
    model->arch_capabilities = cpu_model_has(model, "arch_capabilities") ? ARCH_OFFERED : 0;
    model->cr4_mask = CR4_PCE | cr4_of(model, "vme", CR4_VME | CR4_PVI) | cr4_of(model, "tsc", CR4_TSD) |
                      cr4_of(model, "de", CR4_DE) | cr4_of(model, "pse", CR4_PSE) |
                      cr4_of(model, "pae", CR4_PAE) | cr4_of(model, "mce", CR4_MCE) |
                      cr4_of(model, "pge", CR4_PGE) | cr4_of(model, "fxsr", CR4_OSFXSR) |
                      cr4_of(model, "sse", CR4_OSXMMEXCPT) | cr4_of(model, "umip", CR4_UMIP) |
                      cr4_of(model, "fsgsbase", CR4_FSGSBASE) | cr4_of(model, "pcid", CR4_PCIDE) |
                      cr4_of(model, "xsave", CR4_OSXSAVE) | cr4_of(model, "smep", CR4_SMEP) |
                      cr4_of(model, "smap", CR4_SMAP);
    model->xcr0_mask = XCR0_BASE;
    if (cpu_model_has(model, "avx"))
        model->xcr0_mask |= XCR0_AVX;
    if (cpu_model_has(model, "avx512f"))
        model->xcr0_mask |= XCR0_AVX512;
    for (uint32_t i = 2; i < 8; i++) {
        struct cpuid_entry *component = find_entry(model, 0xd, i);
        if (component && !(model->xcr0_mask >> i & 1))
            component->eax = component->ebx = component->ecx = component->edx = 0;
    }
    if (!cpu_model_has(model, "xsave"))
        return;
    struct cpuid_entry *whole = find_entry(model, 0xd, 0);
    whole->eax = (uint32_t)model->xcr0_mask;
    whole->ecx = 576;
    for (uint32_t i = 2; i < 8; i++) {
        const struct cpuid_entry *component = find_entry(model, 0xd, i);
        if (component && component->ebx + component->eax > whole->ecx)
            whole->ecx = component->ebx + component->eax;
    }
}

static int select_base(struct cpu_model *model, const char *name, size_t length, char *error,
                       size_t error_size) {
    unsigned level = LEVEL_HOST;
    for (; model_names[level]; level++)
        if (strlen(model_names[level]) == length && !strncmp(model_names[level], name, length))
            break;
    if (!model_names[level]) {
        snprintf(error, error_size, "unknown CPU model '%.*s'; --cpu help lists those there are", (int)length,
                 name);
        return -EINVAL;
    }
    for (unsigned i = 0; i < cpu_feature_count; i++) {
        const struct cpu_feature *feature = &cpu_features[i];
        bool wanted = feature->terms == OFFER_HOST
                          ? level == LEVEL_HOST || (feature->level && feature->level <= level) ||
                                (level >= 3 && !strcmp(feature->requires ? feature->requires : "", "xsave"))
                          : feature->terms != OFFER_ASKED;
        if (!wanted)
            continue;
        if (host_has(model, feature)) {
            feature_set(model, feature, true);
        } else if (level != LEVEL_HOST && feature->level) {
            snprintf(error, error_size, "CPU model '%s' needs %s, which this host lacks; use --cpu host",
                     model_names[level], feature->name);
            return -EINVAL;
        }
    }
    snprintf(model->name, sizeof model->name, "%s", model_names[level]);
    return 0;
}

/* One ",+feature" or ",-feature". */
static int apply_change(struct cpu_model *model, const char *item, size_t length, char *error,
                        size_t error_size) {
    bool on = *item == '+';
    if (length < 2 || (*item != '+' && *item != '-')) {
        snprintf(error, error_size, "bad CPU feature '%.*s'; write +NAME or -NAME", (int)length, item);
        return -EINVAL;
    }
    const struct cpu_feature *feature = cpu_feature_find(item + 1, length - 1);
    if (!feature) {
        snprintf(error, error_size, "unknown CPU feature '%.*s'; names are those of /proc/cpuinfo",
                 (int)length - 1, item + 1);
        return -EINVAL;
    }
    if (on && !host_has(model, feature)) {
        snprintf(error, error_size, "CPU feature '%s' is not in this host; leave it out", feature->name);
        return -EINVAL;
    }
    if (on && feature->requires && !cpu_model_has(model, feature->requires)) {
        snprintf(error, error_size, "CPU feature '%s' needs '%s'; add +%s before it", feature->name,
                 feature->requires, feature->requires);
        return -EINVAL;
    }
    feature_set(model, feature, on);
    return 0;
}

static bool host_is_amd(void) {
    uint32_t value[4];
    char vendor[13] = {0};
    host_cpuid(0, 0, value);
    memcpy(vendor, &value[REG_EBX], 4);
    memcpy(vendor + 4, &value[REG_EDX], 4);
    memcpy(vendor + 8, &value[REG_ECX], 4);
    return !strcmp(vendor, "AuthenticAMD") || !strcmp(vendor, "HygonGenuine");
}

int cpu_model_create(struct cpu_model *model, const char *spec, unsigned cpus, char *error,
                     size_t error_size) {
    memset(model, 0, sizeof *model);
    model->cpus = cpus ? cpus : 1;
    model->is_amd = host_is_amd();
    model->tsc_hz = host_tsc_hz();
    add_basic(model);
    add_xsave(model);
    add_kvm(model);
    add_extended(model);
    size_t length = strcspn(spec, ",");
    int result = select_base(model, spec, length, error, error_size);
    for (spec += length; !result && *spec == ',';) {
        spec++;
        length = strcspn(spec, ",");
        result = apply_change(model, spec, length, error, error_size);
        spec += length;
    }
    if (result)
        return result;
    drop_dependents(model);
    settle(model);
    return 0;
}

bool cpu_model_has(const struct cpu_model *model, const char *feature) {
    const struct cpu_feature *known = cpu_feature_find(feature, strlen(feature));
    return known && feature_is_set(model, known);
}
