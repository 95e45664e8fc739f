/* Segmentation: logical to linear addresses, loads of segment registers, LDTR and TR, and the instructions
 * that ask about descriptors (SDM vol. 3, chapters 3 and 5). */
#include "cpu/descriptor.h"

static int linear_fault(struct vcpu *vcpu, enum segment_index segment) {
    return cpu_fault(vcpu, segment == SEG_SS ? VECTOR_SS : VECTOR_GP, 0);
}

int cpu_linear(struct vcpu *vcpu, enum segment_index segment, uint64_t offset, unsigned size,
               enum vmem_access access, uint64_t *linear) {
    const struct segment *s = &vcpu->segment[segment];
    if (LIKELY(cpu_is_code64(vcpu))) {
        uint64_t address = segment >= SEG_FS ? s->base + offset : offset;
        if (UNLIKELY(!cpu_is_canonical(address) || !cpu_is_canonical(address + size - 1)))
            return linear_fault(vcpu, segment);
        *linear = address;
        return CPU_OK;
    }
    if (LIKELY(vcpu->mode & MODE_PROTECTED)) {
        uint32_t attributes = s->attributes;
        if (attributes & SEG_UNUSABLE)
            return linear_fault(vcpu, segment);
        if (access == VMEM_WRITE) {
            if ((attributes & (TYPE_CODE | TYPE_WRITABLE)) != TYPE_WRITABLE)
                return linear_fault(vcpu, segment);
        } else if (access == VMEM_READ && (attributes & (TYPE_CODE | TYPE_WRITABLE)) == TYPE_CODE) {
            return linear_fault(vcpu, segment);
        }
    }
    if (!segment_contains(s, offset, size))
        return linear_fault(vcpu, segment);
    *linear = (uint32_t)(s->base + offset);
    return CPU_OK;
}

static int load_null(struct vcpu *vcpu, enum segment_index segment, uint16_t selector) {
    if (segment != SEG_SS) {
        vcpu->segment[segment] = segment_null(selector);
    } else {
        if (!cpu_is_code64(vcpu) || vcpu->cpl == 3 || (selector & SELECTOR_RPL) != vcpu->cpl)
            return cpu_fault(vcpu, VECTOR_GP, 0);
        segment_set_null_stack(&vcpu->segment[SEG_SS], vcpu->cpl);
    }
    if (!cpu_is_code64(vcpu))
        cpu_mode_changed(vcpu);
    return CPU_OK;
}

static int load_protected(struct vcpu *vcpu, enum segment_index segment, uint16_t selector) {
    if (selector_is_null(selector))
        return load_null(vcpu, segment, selector);
    if (segment == SEG_SS) {
        struct segment ss;
        int result = descriptor_load_stack(vcpu, selector, vcpu->cpl, VECTOR_GP, 0, &ss);
        if (!result)
            segment_copy(&vcpu->segment[SEG_SS], &ss);
        return result;
    }
    uint64_t raw;
    int result = descriptor_read(vcpu, selector, VECTOR_GP, 0, &raw);
    if (result)
        return result;
    unsigned type = descriptor_type(raw), dpl = descriptor_dpl(raw), rpl = selector & SELECTOR_RPL;
    bool readable = !(type & TYPE_CODE) || type & TYPE_WRITABLE;
    if (!descriptor_is_segment(raw) || !readable ||
        (!descriptor_is_conforming(raw) && (rpl > dpl || vcpu->cpl > dpl)))
        return cpu_fault(vcpu, VECTOR_GP, selector_error(selector, 0));
    if (!descriptor_present(raw))
        return cpu_fault(vcpu, VECTOR_NP, selector_error(selector, 0));
    result = descriptor_set_accessed(vcpu, selector, &raw);
    if (!result)
        segment_set(&vcpu->segment[segment], selector, raw);
    return result;
}

int cpu_load_segment(struct vcpu *vcpu, enum segment_index segment, uint16_t selector) {
    if (segment == SEG_CS)
        return cpu_fault_plain(vcpu, VECTOR_UD);
    if (UNLIKELY(!(vcpu->mode & MODE_PROTECTED))) {
        if (vcpu->rflags & FLAG_VM) {
            vcpu->segment[segment] = segment_vm86(selector);
        } else { /* real mode keeps limit and attributes */
            vcpu->segment[segment].selector = selector;
            vcpu->segment[segment].base = (uint64_t)selector << 4;
            vcpu->segment[segment].attributes &= ~SEG_UNUSABLE;
        }
        cpu_mode_changed(vcpu);
        return CPU_OK;
    }
    int result = load_protected(vcpu, segment, selector);
    if (!result && !cpu_is_code64(vcpu))
        cpu_mode_changed(vcpu);
    return result;
}

/* LLDT and LTR: protected mode, CPL 0. */
static int check_privileged(struct vcpu *vcpu) {
    if (!(vcpu->mode & MODE_PROTECTED))
        return cpu_fault_plain(vcpu, VECTOR_UD);
    return vcpu->cpl ? cpu_fault(vcpu, VECTOR_GP, 0) : CPU_OK;
}

/* Read a system descriptor of the GDT; in long mode all 16 bytes of it. */
static int read_system(struct vcpu *vcpu, uint16_t selector, uint64_t *raw, uint64_t *base) {
    uint64_t upper = 0;
    if (selector & SELECTOR_TI)
        return cpu_fault(vcpu, VECTOR_GP, selector_error(selector, 0));
    int result = descriptor_read(vcpu, selector, VECTOR_GP, 0, raw);
    if (!result && cpu_is_long(vcpu))
        result = descriptor_read_upper(vcpu, selector, VECTOR_GP, 0, &upper);
    *base = descriptor_base(*raw) | upper << 32;
    if (!result && cpu_is_long(vcpu) && (!cpu_is_canonical(*base) || upper >> 40 & 0x1f))
        return cpu_fault(vcpu, VECTOR_GP, selector_error(selector, 0));
    return result;
}

int cpu_lldt(struct vcpu *vcpu, uint16_t selector) {
    uint64_t raw = 0, base;
    int result = check_privileged(vcpu);
    if (result)
        return result;
    if (selector_is_null(selector)) {
        vcpu->ldtr = segment_null(selector);
        return CPU_OK;
    }
    result = read_system(vcpu, selector, &raw, &base);
    if (result)
        return result;
    if (descriptor_is_segment(raw) || descriptor_type(raw) != TYPE_LDT)
        return cpu_fault(vcpu, VECTOR_GP, selector_error(selector, 0));
    if (!descriptor_present(raw))
        return cpu_fault(vcpu, VECTOR_NP, selector_error(selector, 0));
    vcpu->ldtr = descriptor_segment(selector, raw);
    vcpu->ldtr.base = base;
    return CPU_OK;
}

int cpu_ltr(struct vcpu *vcpu, uint16_t selector) {
    uint64_t raw = 0, base;
    int result = check_privileged(vcpu);
    if (result)
        return result;
    if (selector_is_null(selector))
        return cpu_fault(vcpu, VECTOR_GP, 0);
    result = read_system(vcpu, selector, &raw, &base);
    if (result)
        return result;
    unsigned type = descriptor_type(raw);
    if (descriptor_is_segment(raw) || (type != TYPE_TSS && (type != TYPE_TSS16 || cpu_is_long(vcpu))))
        return cpu_fault(vcpu, VECTOR_GP, selector_error(selector, 0));
    if (!descriptor_present(raw))
        return cpu_fault(vcpu, VECTOR_NP, selector_error(selector, 0));
    result = descriptor_set_busy(vcpu, selector, true);
    if (result)
        return result;
    vcpu->tr = descriptor_segment(selector, raw);
    vcpu->tr.base = base;
    vcpu->tr.attributes |= TYPE_BUSY;
    return CPU_OK;
}

/* LAR, LSL, VERR, VERW: a selector that has no readable descriptor is no fault, only ZF = 0. */
static int inspect(struct vcpu *vcpu, uint16_t selector, uint64_t *raw, bool *ok) {
    *ok = false;
    if (!(vcpu->mode & MODE_PROTECTED))
        return cpu_fault_plain(vcpu, VECTOR_UD);
    if (selector_is_null(selector))
        return CPU_OK;
    struct exception before = vcpu->exception;
    int result = descriptor_read(vcpu, selector, VECTOR_GP, 0, raw);
    if (result) {
        if (vcpu->exception.vector == VECTOR_PF)
            return result;
        vcpu->exception = before;
        return CPU_OK;
    }
    *ok = true;
    return CPU_OK;
}

static bool is_visible(const struct vcpu *vcpu, uint16_t selector, uint64_t raw) {
    unsigned dpl = descriptor_dpl(raw);
    return (descriptor_is_segment(raw) && descriptor_is_conforming(raw)) ||
           (vcpu->cpl <= dpl && (selector & SELECTOR_RPL) <= dpl);
}

/* System types that LAR (gates, too) and LSL know: SDM vol. 2, LAR and LSL. */
static bool is_known_system(const struct vcpu *vcpu, uint64_t raw, bool gates) {
    switch (descriptor_type(raw)) {
    case TYPE_TSS16:
    case TYPE_TSS16_BUSY:
        return !cpu_is_long(vcpu);
    case TYPE_LDT:
    case TYPE_TSS:
    case TYPE_TSS_BUSY:
        return true;
    case TYPE_CALL_GATE16:
    case TYPE_TASK_GATE:
        return gates && !cpu_is_long(vcpu);
    case TYPE_CALL_GATE:
        return gates;
    default:
        return false;
    }
}

/* In long mode the upper half of a system descriptor must be there and carry type 0. */
static int check_upper(struct vcpu *vcpu, uint16_t selector, uint64_t raw, bool *ok) {
    if (!*ok || descriptor_is_segment(raw) || !cpu_is_long(vcpu))
        return CPU_OK;
    struct exception before = vcpu->exception;
    uint64_t upper;
    if (descriptor_read_upper(vcpu, selector, VECTOR_GP, 0, &upper)) {
        if (vcpu->exception.vector == VECTOR_PF)
            return CPU_FAULT;
        vcpu->exception = before;
        *ok = false;
    } else if (upper >> 40 & 0x1f) {
        *ok = false;
    }
    return CPU_OK;
}

int cpu_lar(struct vcpu *vcpu, uint16_t selector, uint32_t *rights, bool *ok) {
    uint64_t raw = 0;
    int result = inspect(vcpu, selector, &raw, ok);
    if (result || !*ok)
        return result;
    *ok = (descriptor_is_segment(raw) || is_known_system(vcpu, raw, true)) && is_visible(vcpu, selector, raw);
    result = check_upper(vcpu, selector, raw, ok);
    if (!result && *ok)
        *rights = (uint32_t)(raw >> 32) & 0x00ffff00u;
    return result;
}

int cpu_lsl(struct vcpu *vcpu, uint16_t selector, uint32_t *limit, bool *ok) {
    uint64_t raw = 0;
    int result = inspect(vcpu, selector, &raw, ok);
    if (result || !*ok)
        return result;
    *ok =
        (descriptor_is_segment(raw) || is_known_system(vcpu, raw, false)) && is_visible(vcpu, selector, raw);
    result = check_upper(vcpu, selector, raw, ok);
    if (!result && *ok)
        *limit = descriptor_limit(raw);
    return result;
}

int cpu_verify(struct vcpu *vcpu, uint16_t selector, bool for_write, bool *ok) {
    uint64_t raw = 0;
    int result = inspect(vcpu, selector, &raw, ok);
    if (result || !*ok)
        return result;
    unsigned type = descriptor_type(raw);
    bool fits = for_write ? (type & (TYPE_CODE | TYPE_WRITABLE)) == TYPE_WRITABLE
                          : (type & (TYPE_CODE | TYPE_WRITABLE)) != TYPE_CODE;
    *ok = descriptor_is_segment(raw) && fits && is_visible(vcpu, selector, raw);
    return CPU_OK;
}
