/* Guest memory by linear address, for C: the interpreter, the system layer and the translator's helpers.
 *
 * Each function checks permissions as the given accessor, fills the software TLB, sets A and D, and reaches
 * RAM or the machine's MMIO. CPU_FAULT leaves the #PF in vcpu->exception. Linear addresses are canonical
 * already: the segmentation layer (segment.h, cpu_linear()) has checked that and raises #GP or #SS. An access
 * that crosses a page checks both pages before it stores anything.
 */
#ifndef NESTOR_CPU_VMEM_H
#define NESTOR_CPU_VMEM_H

#include "cpu/vcpu.h"

enum vmem_as {
    AS_CURRENT, /* an explicit access at the current CPL, AC and SMAP rules applied */
    AS_SYSTEM,  /* an implicit supervisor access: descriptor tables, TSS, inner stacks */
    AS_USER,    /* as CPL 3 would, whatever the CPL (stack pushes to an outer level) */
};

enum vmem_access { VMEM_READ = 0, VMEM_WRITE = 1, VMEM_FETCH = 2 };

/* Any size up to 4096 bytes. */
MUST_CHECK int vmem_read(struct vcpu *vcpu, uint64_t linear, void *buffer, unsigned size, enum vmem_as as);
MUST_CHECK int vmem_write(struct vcpu *vcpu, uint64_t linear, const void *buffer, unsigned size,
                          enum vmem_as as);
/* Check that all of [linear, linear + size) may be accessed, and set A/D, without accessing it. */
MUST_CHECK int vmem_probe(struct vcpu *vcpu, uint64_t linear, unsigned size, enum vmem_access access,
                          enum vmem_as as);
/* Host pointer for an access within one page of RAM; *host is NULL (and CPU_OK) when it is MMIO or crosses a
 * page. After storing through it call vmem_written(). */
MUST_CHECK int vmem_host(struct vcpu *vcpu, uint64_t linear, unsigned size, enum vmem_access access,
                         enum vmem_as as, void **host);
/* Tell that size bytes at a pointer from vmem_host() were stored to. */
void vmem_written(struct vcpu *vcpu, void *host, unsigned size);
/* Fetch up to size instruction bytes at linear with execute permission; stops short at a page whose fetch
 * faults. Returns the number of bytes (0: vcpu->exception holds the fault of the first byte; a shorter count
 * than asked: the exception holds the fault that the missing bytes would raise). */
unsigned vmem_fetch(struct vcpu *vcpu, uint64_t linear, uint8_t *buffer, unsigned size);

static inline MUST_CHECK int vmem_read_u16(struct vcpu *vcpu, uint64_t linear, uint16_t *value,
                                           enum vmem_as as) {
    return vmem_read(vcpu, linear, value, sizeof *value, as);
}
static inline MUST_CHECK int vmem_read_u32(struct vcpu *vcpu, uint64_t linear, uint32_t *value,
                                           enum vmem_as as) {
    return vmem_read(vcpu, linear, value, sizeof *value, as);
}
static inline MUST_CHECK int vmem_read_u64(struct vcpu *vcpu, uint64_t linear, uint64_t *value,
                                           enum vmem_as as) {
    return vmem_read(vcpu, linear, value, sizeof *value, as);
}

#endif
