/* Descriptor tables and the segments they make. Everything here checks first and changes nothing of the vCPU:
 * the callers commit registers only after the last thing that can fault. */
#include "cpu/descriptor.h"

static int table_locate(struct vcpu *vcpu, uint16_t selector, unsigned size, uint8_t vector, unsigned ext,
                        uint64_t *address) {
    uint64_t base = vcpu->gdtr.base;
    uint32_t limit = vcpu->gdtr.limit, offset = selector & 0xfff8u;
    if (selector & SELECTOR_TI) {
        if (vcpu->ldtr.attributes & SEG_UNUSABLE)
            return cpu_fault(vcpu, vector, selector_error(selector, ext));
        base = vcpu->ldtr.base;
        limit = vcpu->ldtr.limit;
    }
    if (offset + size - 1 > limit)
        return cpu_fault(vcpu, vector, selector_error(selector, ext));
    *address = base + offset;
    if (!cpu_is_long(vcpu))
        *address = (uint32_t)*address;
    else if (!cpu_is_canonical(*address))
        return cpu_fault(vcpu, vector, selector_error(selector, ext));
    return CPU_OK;
}

int descriptor_read(struct vcpu *vcpu, uint16_t selector, uint8_t vector, unsigned ext, uint64_t *raw) {
    uint64_t address;
    int result = table_locate(vcpu, selector, 8, vector, ext, &address);
    return result ? result : table_read_u64(vcpu, address, raw);
}

int descriptor_read_upper(struct vcpu *vcpu, uint16_t selector, uint8_t vector, unsigned ext,
                          uint64_t *upper) {
    uint64_t address;
    int result = table_locate(vcpu, selector, 16, vector, ext, &address);
    return result ? result : table_read_u64(vcpu, address + 8, upper);
}

/* Change bits of a descriptor's type byte as the processor does: with a locked update where it is RAM. */
static int type_update(struct vcpu *vcpu, uint16_t selector, uint8_t set, uint8_t clear) {
    uint64_t address;
    void *host;
    int result = table_locate(vcpu, selector, 8, VECTOR_GP, 0, &address);
    if (result)
        return result;
    address += 5;
    result = vmem_host(vcpu, address, 1, VMEM_WRITE, AS_SYSTEM, &host);
    if (result)
        return result;
    if (host) {
        if (set)
            __atomic_fetch_or((uint8_t *)host, set, __ATOMIC_SEQ_CST);
        if (clear)
            __atomic_fetch_and((uint8_t *)host, (uint8_t)~clear, __ATOMIC_SEQ_CST);
        vmem_written(vcpu, host, 1);
        return CPU_OK;
    }
    uint8_t type;
    result = vmem_read(vcpu, address, &type, 1, AS_SYSTEM);
    if (result)
        return result;
    type = (uint8_t)((type | set) & ~clear);
    return vmem_write(vcpu, address, &type, 1, AS_SYSTEM);
}

int descriptor_set_accessed(struct vcpu *vcpu, uint16_t selector, uint64_t *raw) {
    if (LIKELY(descriptor_type(*raw) & TYPE_ACCESSED))
        return CPU_OK;
    *raw |= (uint64_t)TYPE_ACCESSED << 40;
    return type_update(vcpu, selector, TYPE_ACCESSED, 0);
}

int descriptor_set_busy(struct vcpu *vcpu, uint16_t selector, bool busy) {
    return type_update(vcpu, selector, busy ? TYPE_BUSY : 0, busy ? 0 : TYPE_BUSY);
}

int descriptor_load_stack(struct vcpu *vcpu, uint16_t selector, unsigned cpl, uint8_t vector, unsigned ext,
                          struct segment *segment) {
    uint64_t raw;
    if (selector_is_null(selector))
        return cpu_fault(vcpu, vector, ext);
    int result = descriptor_read(vcpu, selector, vector, ext, &raw);
    if (result)
        return result;
    if ((selector & SELECTOR_RPL) != cpl || !descriptor_is_segment(raw) ||
        (descriptor_type(raw) & (TYPE_CODE | TYPE_WRITABLE)) != TYPE_WRITABLE || descriptor_dpl(raw) != cpl)
        return cpu_fault(vcpu, vector, selector_error(selector, ext));
    if (!descriptor_present(raw))
        return cpu_fault(vcpu, VECTOR_SS, selector_error(selector, ext));
    result = descriptor_set_accessed(vcpu, selector, &raw);
    if (!result)
        segment_set(segment, selector, raw);
    return result;
}

bool segment_contains(const struct segment *segment, uint64_t offset, unsigned size) {
    uint64_t last = offset + size - 1;
    if (last < offset)
        return false;
    bool expands_down =
        (segment->attributes & (SEG_S | TYPE_CODE | TYPE_EXPAND_DOWN)) == (SEG_S | TYPE_EXPAND_DOWN);
    if (LIKELY(!expands_down))
        return last <= segment->limit;
    return offset > segment->limit && last <= (segment->attributes & SEG_DB ? 0xffffffffull : 0xffffull);
}

struct segment segment_null(uint16_t selector) {
    return (struct segment){.selector = selector, .attributes = SEG_UNUSABLE};
}

struct segment segment_vm86(uint16_t selector) {
    return (struct segment){.selector = selector,
                            .attributes = SEG_P | SEG_S | SEG_DPL | TYPE_WRITABLE | TYPE_ACCESSED,
                            .limit = 0xffff,
                            .base = (uint64_t)selector << 4};
}

/* SDM vol. 2, IRET and RET, "RETURN-TO-OUTER-PRIVILEGE-LEVEL". The bases stay: a null FS has one, too. */
void segment_drop_inner(struct vcpu *vcpu, unsigned cpl) {
    static const uint8_t data_segments[] = {SEG_ES, SEG_DS, SEG_FS, SEG_GS};
    for (unsigned i = 0; i < ARRAY_SIZE(data_segments); i++) {
        struct segment *segment = &vcpu->segment[data_segments[i]];
        uint32_t attributes = segment->attributes;
        if (attributes & SEG_UNUSABLE) {
            segment->selector = 0;
            continue;
        }
        bool conforming = (attributes & (TYPE_CODE | TYPE_EXPAND_DOWN)) == (TYPE_CODE | TYPE_EXPAND_DOWN);
        if (!conforming && (attributes & SEG_DPL) >> SEG_DPL_SHIFT < cpl) {
            segment->selector = 0;
            segment->attributes = SEG_UNUSABLE;
        }
    }
}
