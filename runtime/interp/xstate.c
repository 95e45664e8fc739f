/* Registers inside the parked XSAVE image. A component whose bit in XSTATE_BV is clear is in its initial
 * state and its bytes are stale: readers see the initial state, writers make the bytes true first. */
#include "interp/xstate.h"

#include <cpuid.h>

#define LEGACY_ST 32
#define LEGACY_XMM 160

void xstate_layout_read(struct xstate_layout *layout) {
    uint32_t a, b, c, d;
    memset(layout, 0, sizeof *layout);
    layout->component[0] = (struct xstate_component){.offset = 0, .size = LEGACY_XMM};
    layout->component[1] = (struct xstate_component){.offset = LEGACY_XMM, .size = 256};
    for (unsigned i = 2; i < XSTATE_COMPONENTS; i++) {
        __cpuid_count(0xd, i, a, b, c, d);
        layout->component[i] = (struct xstate_component){.offset = b, .size = a, .align64 = c & 2};
    }
    _Alignas(16) uint8_t image[512] = {0};
    __asm__ volatile("fxsave64 %0" : "=m"(image));
    memcpy(&layout->mxcsr_mask, image + 28, 4);
    if (!layout->mxcsr_mask)
        layout->mxcsr_mask = 0xffbf;
}

static uint64_t *state_bits(const struct vcpu *vcpu) {
    return (uint64_t *)(vcpu->xsave + XSTATE_HEADER);
}

uint64_t xstate_in_use(const struct vcpu *vcpu) {
    return *state_bits(vcpu);
}

/* The bytes of a component, or NULL while it is in its initial state or absent. */
static uint8_t *component(const struct vcpu *vcpu, unsigned index) {
    const struct xstate_component *where = &vcpu->interp->xstate->component[index];
    if (!(*state_bits(vcpu) >> index & 1) || !where->size)
        return NULL;
    return vcpu->xsave + where->offset;
}

void xstate_component_init(struct vcpu *vcpu, unsigned index) {
    const struct xstate_component *where = &vcpu->interp->xstate->component[index];
    if (index == 0) {
        uint32_t mxcsr[2];
        memcpy(mxcsr, vcpu->xsave + 24, sizeof mxcsr);
        memset(vcpu->xsave, 0, LEGACY_XMM);
        memcpy(vcpu->xsave + 24, mxcsr, sizeof mxcsr);
        vcpu->xsave[0] = 0x7f;
        vcpu->xsave[1] = 0x03;
    } else {
        memset(vcpu->xsave + where->offset, 0, where->size);
    }
}

uint8_t *xstate_component_for_write(struct vcpu *vcpu, unsigned index) {
    const struct xstate_component *where = &vcpu->interp->xstate->component[index];
    if (!where->size || !(vcpu->host_xfeatures >> index & 1))
        return NULL;
    if (!(*state_bits(vcpu) >> index & 1)) {
        xstate_component_init(vcpu, index);
        *state_bits(vcpu) |= 1ull << index;
    }
    return vcpu->xsave + where->offset;
}

void xstate_component_clear(struct vcpu *vcpu, unsigned index) {
    *state_bits(vcpu) &= ~(1ull << index);
}

/* The parts of vector register n: up to three pieces of the image. */
struct vector_part {
    unsigned component, offset, size, at;
};

static unsigned vector_parts(unsigned n, struct vector_part parts[3]) {
    if (n >= 16) {
        parts[0] = (struct vector_part){7, (n - 16) * 64, 64, 0};
        return 1;
    }
    parts[0] = (struct vector_part){1, n * 16, 16, 0};
    parts[1] = (struct vector_part){2, n * 16, 16, 16};
    parts[2] = (struct vector_part){6, n * 32, 32, 32};
    return 3;
}

void xstate_read_vector(const struct vcpu *vcpu, unsigned n, uint8_t value[64]) {
    struct vector_part parts[3];
    unsigned count = vector_parts(n & 31, parts);
    memset(value, 0, 64);
    for (unsigned i = 0; i < count; i++) {
        const uint8_t *from = component(vcpu, parts[i].component);
        if (from)
            memcpy(value + parts[i].at, from + parts[i].offset, parts[i].size);
    }
}

void xstate_write_vector(struct vcpu *vcpu, unsigned n, const uint8_t *value, unsigned length) {
    uint8_t whole[64] = {0};
    struct vector_part parts[3];
    unsigned count = vector_parts(n & 31, parts);
    memcpy(whole, value, length < 64 ? length : 64);
    for (unsigned i = 0; i < count; i++) {
        if (parts[i].at >= length && !component(vcpu, parts[i].component))
            continue;
        uint8_t *to = xstate_component_for_write(vcpu, parts[i].component);
        if (to)
            memcpy(to + parts[i].offset, whole + parts[i].at, parts[i].size);
    }
}

uint64_t xstate_read_mask(const struct vcpu *vcpu, unsigned k) {
    const uint8_t *from = component(vcpu, 5);
    uint64_t value = 0;
    if (from)
        memcpy(&value, from + 8 * (k & 7), sizeof value);
    return value;
}

void xstate_write_mask(struct vcpu *vcpu, unsigned k, uint64_t value) {
    uint8_t *to = xstate_component_for_write(vcpu, 5);
    if (to)
        memcpy(to + 8 * (k & 7), &value, sizeof value);
}

/* MMX registers alias the significands of the physical x87 registers; the image holds them by stack position,
 * TOP being what it is before the MMX instruction. */
uint64_t xstate_read_mmx(const struct vcpu *vcpu, unsigned n) {
    const uint8_t *image = component(vcpu, 0);
    uint64_t value = 0;
    if (image) {
        unsigned top = image[3] >> 3 & 7;
        memcpy(&value, image + LEGACY_ST + 16 * ((n - top) & 7), sizeof value);
    }
    return value;
}

void xstate_enter_mmx(struct vcpu *vcpu) {
    uint8_t *image = xstate_component_for_write(vcpu, 0);
    if (!image)
        return;
    uint8_t stack[8][16];
    unsigned top = image[3] >> 3 & 7;
    for (unsigned i = 0; i < 8; i++)
        memcpy(stack[(top + i) & 7], image + LEGACY_ST + 16 * i, 16);
    memcpy(image + LEGACY_ST, stack, sizeof stack);
    image[3] &= (uint8_t)~0x38;
    image[4] = 0xff;
}

void xstate_hide_host_pointers(struct vcpu *vcpu, uint64_t code_start, uint64_t code_end, uint64_t memory,
                               uint64_t guest_offset) {
    uint8_t *image = component(vcpu, 0);
    uint64_t fip, fdp;
    if (!image)
        return;
    memcpy(&fip, image + 8, sizeof fip);
    memcpy(&fdp, image + 16, sizeof fdp);
    if (fip >= code_start && fip < code_end)
        memcpy(image + 8, &vcpu->rip, sizeof vcpu->rip);
    if (memory && fdp == memory)
        memcpy(image + 16, &guest_offset, sizeof guest_offset);
}
