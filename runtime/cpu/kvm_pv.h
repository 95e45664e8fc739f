/* KVM's paravirtual interface as guests know it: clocks and steal time through MSRs and shared memory, and
 * hypercalls (Linux, Documentation/virt/kvm/x86/msr.rst, cpuid.rst and hypercalls.rst). */
#ifndef NESTOR_CPU_KVM_PV_H
#define NESTOR_CPU_KVM_PV_H

#include "cpu/vcpu.h"

#define MSR_KVM_WALL_CLOCK 0x4b564d00u
#define MSR_KVM_SYSTEM_TIME 0x4b564d01u
#define MSR_KVM_ASYNC_PF 0x4b564d02u
#define MSR_KVM_STEAL_TIME 0x4b564d03u
#define MSR_KVM_EOI 0x4b564d04u
#define MSR_KVM_POLL_CONTROL 0x4b564d05u
/* The first two, by their first numbers. */
#define MSR_KVM_WALL_CLOCK_OLD 0x11u
#define MSR_KVM_SYSTEM_TIME_OLD 0x12u
#define MSR_KVM_FIRST 0x4b564d00u
#define MSR_KVM_LAST 0x4b564dffu

#define LEAF_KVM_SIGNATURE 0x40000000u
#define LEAF_KVM_FEATURES 0x40000001u
#define LEAF_KVM_TIMING 0x40000010u
#define KVM_FEATURE_CLOCKSOURCE (1u << 0)
#define KVM_FEATURE_NOP_IO_DELAY (1u << 1)
#define KVM_FEATURE_CLOCKSOURCE2 (1u << 3)
#define KVM_FEATURE_ASYNC_PF (1u << 4)
#define KVM_FEATURE_STEAL_TIME (1u << 5)
#define KVM_FEATURE_PV_EOI (1u << 6)
#define KVM_FEATURE_PV_SEND_IPI (1u << 11)
#define KVM_FEATURE_CLOCKSOURCE_STABLE (1u << 24)

static inline bool is_kvm_pv_msr(uint32_t index) {
    return index - MSR_KVM_FIRST <= MSR_KVM_LAST - MSR_KVM_FIRST || index == MSR_KVM_WALL_CLOCK_OLD ||
           index == MSR_KVM_SYSTEM_TIME_OLD;
}

/* The MSRs of the family; CPU_FAULT (#GP) where the model does not offer one or the value is malformed. */
MUST_CHECK int kvm_pv_read(struct vcpu *vcpu, uint32_t index, uint64_t *value);
MUST_CHECK int kvm_pv_write(struct vcpu *vcpu, uint32_t index, uint64_t value);
/* VMCALL or VMMCALL: the call's number and arguments are in the vCPU's registers, its result goes to RAX
 * (Linux, Documentation/virt/kvm/x86/hypercalls.rst). */
void kvm_pv_hypercall(struct vcpu *vcpu);
/* Write the guest's clock page again: after tsc_offset changed. */
void kvm_pv_update_clock(struct vcpu *vcpu);
/* Bring the guest's steal time up to date, at most once a millisecond: what passed since the last time less
 * the thread's own processor time and vcpu->blocked_ticks. vCPU thread only. Cheap when the guest asked for
 * none. */
void kvm_pv_account_steal(struct vcpu *vcpu);

/* PV EOI. A flag in guest memory tells the guest that it may end the interrupt in service by clearing the
 * flag. It is set only while nothing else waits for that; whoever looks at the local APIC's state afterwards,
 * or changes it, settles first: the flag is taken back, and the EOI is done if the guest has cleared it. vCPU
 * thread only. */
void kvm_pv_eoi_arm(struct vcpu *vcpu);
void kvm_pv_eoi_settle_armed(struct vcpu *vcpu);
static inline void kvm_pv_eoi_settle(struct vcpu *vcpu) {
    if (UNLIKELY(vcpu->pv_eoi_armed))
        kvm_pv_eoi_settle_armed(vcpu);
}

#endif
