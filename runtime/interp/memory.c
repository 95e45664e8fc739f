/* Linear addresses and read-modify-write accesses. */
#include "interp/memory.h"

/* An access that segmentation refuses. One that begins inside the segment is checked for alignment first. */
static int segmentation_fault(struct vcpu *vcpu, unsigned segment, uint64_t offset, unsigned alignment,
                              enum vmem_access access) {
    struct exception exception = vcpu->exception;
    uint64_t linear;
    if (!(vcpu->mode & MODE_AC))
        return CPU_FAULT;
    if (!cpu_linear(vcpu, segment, offset, 1, access, &linear) && linear & (alignment - 1))
        return cpu_fault(vcpu, VECTOR_AC, 0);
    vcpu->exception = exception;
    return CPU_FAULT;
}

int memory_linear_aligned(struct vcpu *vcpu, unsigned segment, uint64_t offset, unsigned size,
                          unsigned alignment, enum vmem_access access, uint64_t *linear) {
    uint32_t mode = vcpu->mode;
    if ((mode & MODE_CODE_MASK) == MODE_CODE_64) {
        uint64_t address = offset;
        if (segment >= SEG_FS)
            address += vcpu->segment[segment].base;
        if (UNLIKELY(!cpu_is_canonical(address) || !cpu_is_canonical(address + size - 1))) {
            int result = cpu_linear(vcpu, segment, offset, size, access, linear);
            return result ? segmentation_fault(vcpu, segment, offset, alignment, access) : CPU_OK;
        }
        *linear = address;
    } else if (mode & MODE_FLAT && segment < SEG_FS && (segment != SEG_CS || access != VMEM_WRITE) &&
               offset + size - 1 <= UINT32_MAX) {
        *linear = offset;
    } else {
        int result = cpu_linear(vcpu, segment, offset, size, access, linear);
        if (UNLIKELY(result))
            return segmentation_fault(vcpu, segment, offset, alignment, access);
    }
    if (UNLIKELY(mode & (MODE_AC | MODE_STEP))) {
        if (mode & MODE_AC && *linear & (alignment - 1))
            return cpu_fault(vcpu, VECTOR_AC, 0);
        if (mode & MODE_STEP)
            vcpu->interp->pending_dr6 |= cpu_data_breakpoint(vcpu, *linear, size, access == VMEM_WRITE);
    }
    return CPU_OK;
}

int memory_linear(struct vcpu *vcpu, unsigned segment, uint64_t offset, unsigned size,
                  enum vmem_access access, uint64_t *linear) {
    return memory_linear_aligned(vcpu, segment, offset, size, memory_alignment(size), access, linear);
}

int memory_linear_wrapping(struct vcpu *vcpu, unsigned segment, uint64_t offset, unsigned size,
                           unsigned alignment, enum vmem_access access, uint64_t *linear) {
    bool wraps =
        !cpu_is_code64(vcpu) && offset + size - 1 > UINT32_MAX && vcpu->segment[segment].limit == UINT32_MAX;
    return memory_linear_aligned(vcpu, segment, offset, wraps ? 1 : size, alignment, access, linear);
}

int rmw_begin(struct vcpu *vcpu, unsigned segment, uint64_t offset, unsigned size, struct rmw *rmw) {
    int result = memory_linear(vcpu, segment, offset, size, VMEM_WRITE, &rmw->linear);
    if (UNLIKELY(result))
        return result;
    rmw->needs_note = false;
    rmw->host = memory_tlb_write(vcpu, rmw->linear, size);
    if (UNLIKELY(!rmw->host)) {
        rmw->needs_note = true;
        result = vmem_host(vcpu, rmw->linear, size, VMEM_WRITE, AS_CURRENT, &rmw->host);
        if (result)
            return result;
        if (!rmw->host) {
            result = vmem_probe(vcpu, rmw->linear, size, VMEM_WRITE, AS_CURRENT);
            if (result)
                return result;
            rmw->value = 0;
            return vmem_read(vcpu, rmw->linear, &rmw->value, size, AS_CURRENT);
        }
    }
    rmw->value = host_load(rmw->host, size);
    return CPU_OK;
}

int rmw_finish(struct vcpu *vcpu, struct rmw *rmw, unsigned size, uint64_t value) {
    if (UNLIKELY(!rmw->host))
        return vmem_write(vcpu, rmw->linear, &value, size, AS_CURRENT);
    host_store(rmw->host, value, size);
    if (rmw->needs_note)
        vmem_written(vcpu, rmw->host, size);
    return CPU_OK;
}
