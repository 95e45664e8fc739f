/* The CPU model: which features the guest may see and use. Frozen when the VM is made. */
#ifndef NESTOR_CPU_MODEL_H
#define NESTOR_CPU_MODEL_H

#include "cpu/vcpu.h"

struct cpuid_entry {
    uint32_t leaf, subleaf;
    bool has_subleaf;
    uint32_t eax, ebx, ecx, edx;
};

#define CPU_MODEL_ENTRIES 96

struct cpu_model {
    struct cpuid_entry entry[CPU_MODEL_ENTRIES];
    unsigned count;
    unsigned cpus;      /* vCPUs in the topology */
    uint64_t xcr0_mask; /* XCR0 bits the guest may set */
    uint64_t cr4_mask;  /* CR4 bits the guest may set */
    uint64_t tsc_hz;
    uint64_t arch_capabilities;
    bool is_amd; /* AuthenticAMD or HygonGenuine: SYSCALL, SYSENTER and some MSRs differ from Intel's */
    bool has_nx, has_pcid, has_1g_pages, has_invpcid, has_syscall, has_pge;
    char name[64];
};

/* Build the model for `--cpu SPEC`: "host" or a named model, then ",+feature" and ",-feature" (Linux's
 * /proc/cpuinfo names). The features are the host's less what is not virtualised (MPX, AMX, RTM, HLE, VMX,
 * SVM, MONITOR, PKU, CET, XSAVES, perfmon, ...), plus the KVM signature leaf 0x40000000. -EINVAL with one
 * line in error (of error_size bytes) for an unknown name or a feature that the host lacks. */
MUST_CHECK int cpu_model_create(struct cpu_model *model, const char *spec, unsigned cpus, char *error,
                                size_t error_size);
/* One line per known name, for --help and `--cpu help`. */
const char *const *cpu_model_names(void);
bool cpu_model_has(const struct cpu_model *model, const char *feature);

#endif
