/* KVM's paravirtual interface as guests know it: clocks and steal time through MSRs and shared memory (Linux,
 * Documentation/virt/kvm/x86/msr.rst and cpuid.rst). */
#ifndef NESTOR_CPU_KVM_PV_H
#define NESTOR_CPU_KVM_PV_H

#include "cpu/vcpu.h"

#define MSR_KVM_WALL_CLOCK 0x4b564d00u
#define MSR_KVM_SYSTEM_TIME 0x4b564d01u
#define MSR_KVM_STEAL_TIME 0x4b564d03u
#define MSR_KVM_EOI 0x4b564d04u
#define MSR_KVM_POLL_CONTROL 0x4b564d05u
#define MSR_KVM_FIRST 0x4b564d00u
#define MSR_KVM_LAST 0x4b564dffu

#define LEAF_KVM_SIGNATURE 0x40000000u
#define LEAF_KVM_FEATURES 0x40000001u
#define LEAF_KVM_TIMING 0x40000010u
#define KVM_FEATURE_NOP_IO_DELAY (1u << 1)
#define KVM_FEATURE_CLOCKSOURCE2 (1u << 3)
#define KVM_FEATURE_STEAL_TIME (1u << 5)
#define KVM_FEATURE_PV_EOI (1u << 6)
#define KVM_FEATURE_CLOCKSOURCE_STABLE (1u << 24)

/* The MSRs of the family; CPU_FAULT (#GP) where the model does not offer one or the value is malformed. */
MUST_CHECK int kvm_pv_read(struct vcpu *vcpu, uint32_t index, uint64_t *value);
MUST_CHECK int kvm_pv_write(struct vcpu *vcpu, uint32_t index, uint64_t value);
/* Write the guest's clock page again: after tsc_offset changed. */
void kvm_pv_update_clock(struct vcpu *vcpu);
/* Add ns of involuntary wait to the guest's steal time; vCPU thread only. Cheap when the guest asked for
 * none. */
void kvm_pv_add_steal(struct vcpu *vcpu, uint64_t ns);

#endif
