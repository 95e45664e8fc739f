/* The guest's extended state in vcpu->xsave, piece by piece (SDM vol. 1, chapter 13). */
#ifndef NESTOR_INTERP_XSTATE_H
#define NESTOR_INTERP_XSTATE_H

#include "interp/internal.h"

#define XSTATE_X87 (1u << 0)
#define XSTATE_SSE (1u << 1)
#define XSTATE_AVX (1u << 2)
#define XSTATE_OPMASK (1u << 5)
#define XSTATE_ZMM_HIGH (1u << 6)
#define XSTATE_HIGH_ZMM (1u << 7)
#define XSTATE_HEADER 512
/* Components 0 to 9: those that a guest may ever have. */
#define XSTATE_COMPONENTS 10

/* Where the processor keeps each component in the standard format, and its legacy MXCSR mask (CPUID leaf 0DH,
 * FXSAVE). */
struct xstate_layout {
    struct xstate_component {
        uint32_t offset, size;
        bool align64; /* in the compacted format */
    } component[XSTATE_COMPONENTS];
    uint32_t mxcsr_mask;
};

void xstate_layout_read(struct xstate_layout *layout);
/* XINUSE: the components that are not in their initial state. */
uint64_t xstate_in_use(const struct vcpu *vcpu);

/* Give a component's bytes their initial values / its bytes, true and marked in use (NULL: the host lacks it)
 * / put it back into its initial state. */
void xstate_component_init(struct vcpu *vcpu, unsigned index);
uint8_t *xstate_component_for_write(struct vcpu *vcpu, unsigned index);
void xstate_component_clear(struct vcpu *vcpu, unsigned index);

/* Copy 64 bytes of vector register n (0-31), upper parts included. */
void xstate_read_vector(const struct vcpu *vcpu, unsigned n, uint8_t value[64]);
/* Set vector register n to `length` bytes (16, 32, 64) of value and the rest of it to zero. */
void xstate_write_vector(struct vcpu *vcpu, unsigned n, const uint8_t *value, unsigned length);
uint64_t xstate_read_mask(const struct vcpu *vcpu, unsigned k);
void xstate_write_mask(struct vcpu *vcpu, unsigned k, uint64_t value);
/* MMX register n; reading it as MASKMOVQ does also puts the x87 unit into MMX state. */
uint64_t xstate_read_mmx(const struct vcpu *vcpu, unsigned n);
void xstate_enter_mmx(struct vcpu *vcpu);

/* After an x87 instruction ran in a thunk: its pointers become the guest's. */
void xstate_hide_host_pointers(struct vcpu *vcpu, uint64_t code_start, uint64_t code_end, uint64_t memory,
                               uint64_t guest_offset);

#endif
