/* FXSAVE, FXRSTOR and the XSAVE family: images in guest memory made from and taken into vcpu->xsave (SDM vol.
 * 1, 10.5 and chapter 13). Outside 64-bit code the upper eight vector registers are neither stored nor
 * changed. */
#include "interp/memory.h"
#include "interp/xstate.h"

#define FCW_DEFINED 0x1f7fu
#define FCW_FIXED 0x0040u
#define FSW_SUMMARY 0x8080u /* ES and B */
#define X87_EXCEPTIONS 0x3fu
#define FXSAVE_SIZE 512
#define FXSAVE_WRITTEN 464
#define HEADER_SIZE 64
#define MXCSR_INITIAL 0x1f80u
#define COMPACTED (1ull << 63)
#define IMAGE_MAX 4096

static bool vector_unavailable(struct vcpu *vcpu, int *result) {
    *result = CPU_OK;
    if (vcpu->cr0 & (CR0_EM | CR0_TS))
        *result = cpu_fault_plain(vcpu, VECTOR_NM);
    return *result;
}

static uint32_t image_mxcsr(const struct vcpu *vcpu) {
    uint32_t mxcsr;
    memcpy(&mxcsr, vcpu->xsave + 24, sizeof mxcsr);
    return mxcsr;
}

static void set_mxcsr(struct vcpu *vcpu, uint32_t mxcsr) {
    memcpy(vcpu->xsave + 24, &mxcsr, sizeof mxcsr);
}

/* The part of a component that this code size reaches. */
static uint32_t visible_size(const struct vcpu *vcpu, unsigned index) {
    uint32_t size = vcpu->interp->xstate->component[index].size;
    if (cpu_is_code64(vcpu))
        return size;
    switch (index) {
    case 1:
    case 2:
    case 6:
        return size / 2;
    case 7:
        return 0;
    default:
        return size;
    }
}

/* Make stale bytes true without marking the component in use. */
static const uint8_t *component_bytes(struct vcpu *vcpu, unsigned index) {
    if (!(xstate_in_use(vcpu) >> index & 1))
        xstate_component_init(vcpu, index);
    return vcpu->xsave + vcpu->interp->xstate->component[index].offset;
}

/* An area is tried from its end: of two pages that fault, the second one is reported. */
static int area_probe(struct vcpu *vcpu, uint64_t linear, uint32_t size, enum vmem_access access) {
    int result = vmem_probe(vcpu, linear + size - 1, 1, access, AS_CURRENT);
    return result ? result : vmem_probe(vcpu, linear, 1, access, AS_CURRENT);
}

int fxsave_execute(struct vcpu *vcpu, struct decoded *d) {
    uint64_t linear;
    int result;
    uint8_t image[FXSAVE_WRITTEN];
    if (vector_unavailable(vcpu, &result))
        return result;
    result = memory_linear(vcpu, d->segment, address_compute(vcpu, d), FXSAVE_SIZE, VMEM_WRITE, &linear);
    if (result)
        return result;
    if (linear & 15)
        return fault_gp(vcpu);
    result = area_probe(vcpu, linear, FXSAVE_SIZE, VMEM_WRITE);
    if (!result)
        result = vmem_read(vcpu, linear, image, sizeof image, AS_CURRENT);
    if (result)
        return result;
    memcpy(image, component_bytes(vcpu, 0), 160);
    memcpy(image + 28, &vcpu->interp->xstate->mxcsr_mask, 4);
    image[5] = 0;
    for (unsigned i = 0; i < 8; i++)
        memset(image + 32 + 16 * i + 10, 0, 6);
    memcpy(image + 160, component_bytes(vcpu, 1), visible_size(vcpu, 1));
    return vmem_write(vcpu, linear, image, sizeof image, AS_CURRENT);
}

/* Take the x87 part of a legacy region, its control and status word as the processor takes them: reserved
 * bits of FCW are fixed, ES and B of FSW say whether an unmasked exception is pending (SDM vol.
 * 1, 8.1.3, 8.1.5). */
static void load_x87(struct vcpu *vcpu, const uint8_t *image) {
    uint8_t *to = xstate_component_for_write(vcpu, 0);
    uint16_t fcw, fsw;
    memcpy(&fcw, image, sizeof fcw);
    memcpy(&fsw, image + 2, sizeof fsw);
    fcw = (fcw & FCW_DEFINED) | FCW_FIXED;
    fsw &= (uint16_t)~FSW_SUMMARY;
    if (fsw & ~fcw & X87_EXCEPTIONS)
        fsw |= FSW_SUMMARY;
    memcpy(to, image, 24);
    memcpy(to, &fcw, sizeof fcw);
    memcpy(to + 2, &fsw, sizeof fsw);
    memcpy(to + 32, image + 32, 128);
}

int fxrstor_execute(struct vcpu *vcpu, struct decoded *d) {
    uint64_t linear;
    int result;
    uint8_t image[FXSAVE_SIZE];
    uint32_t mxcsr;
    if (vector_unavailable(vcpu, &result))
        return result;
    result = memory_linear(vcpu, d->segment, address_compute(vcpu, d), FXSAVE_SIZE, VMEM_READ, &linear);
    if (result)
        return result;
    if (linear & 15)
        return fault_gp(vcpu);
    result = area_probe(vcpu, linear, FXSAVE_SIZE, VMEM_READ);
    if (!result)
        result = vmem_read(vcpu, linear, image, sizeof image, AS_CURRENT);
    if (result)
        return result;
    memcpy(&mxcsr, image + 24, sizeof mxcsr);
    if (vcpu->cr4 & CR4_OSFXSR && mxcsr & ~vcpu->interp->xstate->mxcsr_mask)
        return fault_gp(vcpu);
    load_x87(vcpu, image);
    if (vcpu->cr4 & CR4_OSFXSR) {
        set_mxcsr(vcpu, mxcsr);
        memcpy(xstate_component_for_write(vcpu, 1), image + 160, visible_size(vcpu, 1));
    }
    return CPU_OK;
}

/* Offset of a component in the compacted format under XCOMP_BV. */
static uint32_t compacted_offset(const struct vcpu *vcpu, unsigned index, uint64_t components) {
    const struct xstate_component *table = vcpu->interp->xstate->component;
    uint32_t offset = XSTATE_HEADER + HEADER_SIZE;
    if (index < 2)
        return table[index].offset;
    for (unsigned i = 2; i <= index; i++) {
        if (!(components >> i & 1))
            continue;
        if (table[i].align64)
            offset = (uint32_t)align_up(offset, 64);
        if (i == index)
            break;
        offset += table[i].size;
    }
    return offset;
}

static uint32_t image_offset(const struct vcpu *vcpu, unsigned index, bool compacted, uint64_t components) {
    return compacted ? compacted_offset(vcpu, index, components)
                     : vcpu->interp->xstate->component[index].offset;
}

/* Bytes of an image that holds the requested components, whether they are in use or not, and in 32-bit code
 * whether it reaches them or not: all of them must be accessible. */
static uint32_t image_size(const struct vcpu *vcpu, bool compacted, uint64_t components, uint64_t requested) {
    uint32_t size = XSTATE_HEADER + HEADER_SIZE;
    for (unsigned i = 2; i < XSTATE_COMPONENTS; i++) {
        if (!(requested >> i & 1) || (compacted && !(components >> i & 1)))
            continue;
        uint32_t end = image_offset(vcpu, i, compacted, components) + vcpu->interp->xstate->component[i].size;
        size = end > size ? end : size;
    }
    return size;
}

/* What comes before every instruction of the family: availability, and the requested features. */
static int begin(struct vcpu *vcpu, struct decoded *d, uint64_t *requested, uint64_t *offset) {
    if (!(vcpu->cr4 & CR4_OSXSAVE))
        return fault_ud(vcpu);
    if (vcpu->cr0 & CR0_TS)
        return cpu_fault_plain(vcpu, VECTOR_NM);
    *requested = (vcpu->gpr[GPR_RDX] << 32 | (uint32_t)vcpu->gpr[GPR_RAX]) & vcpu->xcr0 &
                 ((1u << XSTATE_COMPONENTS) - 1);
    *offset = address_compute(vcpu, d);
    return CPU_OK;
}

/* Linear address of the image, aligned, with all of its bytes accessible. */
static int image_linear(struct vcpu *vcpu, struct decoded *d, uint64_t offset, uint32_t size,
                        enum vmem_access access, uint64_t *linear) {
    int result = memory_linear(vcpu, d->segment, offset, size, access, linear);
    if (!result && *linear & 63)
        result = fault_gp(vcpu);
    return result ? result : area_probe(vcpu, *linear, size, access);
}

static int write_part(struct vcpu *vcpu, uint64_t linear, uint32_t offset, const void *bytes, uint32_t size) {
    return size ? vmem_write(vcpu, linear + offset, bytes, size, AS_CURRENT) : CPU_OK;
}

int xsave_execute(struct vcpu *vcpu, struct decoded *d) {
    ZydisMnemonic mnemonic = d->insn.z.mnemonic;
    bool compacted = mnemonic == ZYDIS_MNEMONIC_XSAVEC || mnemonic == ZYDIS_MNEMONIC_XSAVEC64;
    bool optimised =
        compacted || mnemonic == ZYDIS_MNEMONIC_XSAVEOPT || mnemonic == ZYDIS_MNEMONIC_XSAVEOPT64;
    uint64_t requested, offset, linear, header[2];
    int result = begin(vcpu, d, &requested, &offset);
    if (result)
        return result;
    uint64_t in_use = xstate_in_use(vcpu) & requested;
    if (compacted && requested & XSTATE_SSE && image_mxcsr(vcpu) != MXCSR_INITIAL)
        in_use |= XSTATE_SSE;
    uint64_t stored = optimised ? in_use : requested;
    uint32_t size = image_size(vcpu, compacted, requested, requested);
    if (size > IMAGE_MAX)
        return fault_gp(vcpu);
    result = image_linear(vcpu, d, offset, size, VMEM_WRITE, &linear);
    if (!result)
        result = vmem_read(vcpu, linear + XSTATE_HEADER, header, sizeof header, AS_CURRENT);
    if (result)
        return result;
    if (compacted)
        header[1] = requested | COMPACTED;
    header[0] = compacted ? in_use : (header[0] & ~requested) | in_use;

    if (stored & XSTATE_X87) {
        const uint8_t *x87 = component_bytes(vcpu, 0);
        result = write_part(vcpu, linear, 0, x87, 24);
        if (!result)
            result = write_part(vcpu, linear, 32, x87 + 32, 128);
    }
    bool with_mxcsr = compacted ? stored & XSTATE_SSE : requested & (XSTATE_SSE | XSTATE_AVX);
    if (!result && with_mxcsr) {
        const uint32_t mxcsr[2] = {image_mxcsr(vcpu), vcpu->interp->xstate->mxcsr_mask};
        result = write_part(vcpu, linear, 24, mxcsr, sizeof mxcsr);
    }
    for (unsigned i = 1; i < XSTATE_COMPONENTS && !result; i++)
        if (stored >> i & 1)
            result = write_part(vcpu, linear, image_offset(vcpu, i, compacted, requested),
                                component_bytes(vcpu, i), visible_size(vcpu, i));
    return result ? result : write_part(vcpu, linear, XSTATE_HEADER, header, compacted ? 16 : 8);
}

static bool all_zero(const uint64_t *words, unsigned from, unsigned to) {
    for (unsigned i = from; i < to; i++)
        if (words[i])
            return false;
    return true;
}

static bool header_is_valid(const struct vcpu *vcpu, const uint64_t header[8]) {
    if (header[1] & COMPACTED)
        return !(header[1] & ~COMPACTED & ~vcpu->xcr0) && !(header[0] & ~header[1]) && all_zero(header, 2, 8);
    return !(header[0] & ~vcpu->xcr0) && all_zero(header, 1, 3);
}

/* Back to the initial state, as far as this code size reaches. */
static void init_component(struct vcpu *vcpu, unsigned index) {
    uint32_t visible = visible_size(vcpu, index);
    if (visible == vcpu->interp->xstate->component[index].size)
        xstate_component_clear(vcpu, index);
    else if (visible && xstate_in_use(vcpu) >> index & 1)
        memset(xstate_component_for_write(vcpu, index), 0, visible);
}

/* In 64-bit code alignment comes before canonicality. */
static bool is_misaligned(const struct vcpu *vcpu, const struct decoded *d, uint64_t offset) {
    uint64_t base = d->segment >= SEG_FS ? vcpu->segment[d->segment].base : 0;
    return cpu_is_code64(vcpu) && (base + offset) & 63;
}

/* The processor's order of faults: alignment, the area's first byte, the header, what the header says, the
 * whole area that the header asks for (in the standard format whether it is in use or not), its MXCSR. */
int xrstor_execute(struct vcpu *vcpu, struct decoded *d) {
    uint64_t requested, offset, linear, header_linear, header[8];
    uint8_t image[IMAGE_MAX];
    int result = begin(vcpu, d, &requested, &offset);
    if (!result && is_misaligned(vcpu, d, offset))
        result = fault_gp(vcpu);
    if (!result)
        result = memory_linear(vcpu, d->segment, offset, 1, VMEM_READ, &linear);
    if (!result && linear & 63)
        result = fault_gp(vcpu);
    if (!result)
        result = vmem_probe(vcpu, linear, 1, VMEM_READ, AS_CURRENT);
    if (!result)
        result =
            memory_linear(vcpu, d->segment, offset + XSTATE_HEADER, sizeof header, VMEM_READ, &header_linear);
    if (!result)
        result = vmem_read(vcpu, header_linear, header, sizeof header, AS_CURRENT);
    if (result)
        return result;
    if (!header_is_valid(vcpu, header))
        return fault_gp(vcpu);
    bool compacted = header[1] & COMPACTED;
    uint64_t components = header[1] & ~COMPACTED, loaded = requested & header[0];
    uint32_t size = image_size(vcpu, compacted, components, compacted ? loaded : requested);
    if (size > IMAGE_MAX)
        return fault_gp(vcpu);
    result = image_linear(vcpu, d, offset, size, VMEM_READ, &linear);
    if (!result)
        result = vmem_read(vcpu, linear, image, size, AS_CURRENT);
    if (result)
        return result;

    uint32_t mxcsr = MXCSR_INITIAL;
    bool set = compacted ? requested & XSTATE_SSE : requested & (XSTATE_SSE | XSTATE_AVX);
    if (set && (!compacted || loaded & XSTATE_SSE))
        memcpy(&mxcsr, image + 24, sizeof mxcsr);
    if (mxcsr & ~vcpu->interp->xstate->mxcsr_mask)
        return fault_gp(vcpu);
    if (set)
        set_mxcsr(vcpu, mxcsr);
    for (unsigned i = 0; i < XSTATE_COMPONENTS; i++) {
        if (!(requested >> i & 1))
            continue;
        if (!(loaded >> i & 1)) {
            init_component(vcpu, i);
        } else if (i == 0) {
            load_x87(vcpu, image);
        } else if (visible_size(vcpu, i)) {
            uint8_t *to = xstate_component_for_write(vcpu, i);
            if (to)
                memcpy(to, image + image_offset(vcpu, i, compacted, components), visible_size(vcpu, i));
        }
    }
    return CPU_OK;
}
