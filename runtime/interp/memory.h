/* The interpreter's access to guest memory: segmentation, alignment checks, data breakpoints, and a probe of
 * the software TLB before the general paths of cpu/vmem.h. */
#ifndef NESTOR_INTERP_MEMORY_H
#define NESTOR_INTERP_MEMORY_H

#include "interp/internal.h"

static inline uint64_t address_compute(const struct vcpu *vcpu, const struct decoded *d) {
    uint64_t address = d->displacement;
    if (d->base >= 0)
        address += vcpu->gpr[d->base];
    else if (d->base == BASE_RIP)
        address += vcpu->interp->next;
    if (d->index >= 0)
        address += vcpu->gpr[d->index] << d->scale_shift;
    return address & d->address_mask;
}

/* What an operand is aligned to for #AC by its size alone (SDM vol. 3, table 6-7). */
static inline unsigned memory_alignment(unsigned size) {
    return size == 2 || size == 4 || size == 8 ? size : size == 10 ? 8 : size == 6 ? 4 : 1;
}

/* Linear address of [segment:offset, +size) with every check but paging: limits, canonicality, alignment
 * (#AC), and the data breakpoints noted. */
MUST_CHECK int memory_linear(struct vcpu *vcpu, unsigned segment, uint64_t offset, unsigned size,
                             enum vmem_access access, uint64_t *linear);
/* The same for an operand that is aligned to `alignment` for #AC rather than to its size. */
MUST_CHECK int memory_linear_aligned(struct vcpu *vcpu, unsigned segment, uint64_t offset, unsigned size,
                                     unsigned alignment, enum vmem_access access, uint64_t *linear);

/* The same for the accesses of string instructions, gathers and scatters, which may wrap around at the end of
 * a segment of 4 GiB: SDM vol. 3, 5.3, leaves open what of an instruction may. */
MUST_CHECK int memory_linear_wrapping(struct vcpu *vcpu, unsigned segment, uint64_t offset, unsigned size,
                                      unsigned alignment, enum vmem_access access, uint64_t *linear);

static inline void *memory_tlb_read(const struct vcpu *vcpu, uint64_t linear, unsigned size) {
    const struct vtlb_entry *entry = &vcpu->view->entry[vtlb_index(vcpu->view, linear)];
    return entry->tag_read == ((linear + size - 1) & PAGE_MASK) ? (void *)(linear + entry->addend) : NULL;
}

static inline void *memory_tlb_write(const struct vcpu *vcpu, uint64_t linear, unsigned size) {
    const struct vtlb_entry *entry = &vcpu->view->entry[vtlb_index(vcpu->view, linear)];
    return __atomic_load_n(&entry->tag_write, __ATOMIC_RELAXED) == ((linear + size - 1) & PAGE_MASK)
               ? (void *)(linear + entry->addend)
               : NULL;
}

/* Guest RAM at any alignment, in one access. */
typedef uint16_t __attribute__((aligned(1), may_alias)) guest_u16;
typedef uint32_t __attribute__((aligned(1), may_alias)) guest_u32;
typedef uint64_t __attribute__((aligned(1), may_alias)) guest_u64;

static ALWAYS_INLINE uint64_t host_load(const void *host, unsigned size) {
    switch (size) {
    case 1:
        return *(const volatile uint8_t *)host;
    case 2:
        return *(const volatile guest_u16 *)host;
    case 4:
        return *(const volatile guest_u32 *)host;
    default:
        return *(const volatile guest_u64 *)host;
    }
}

static ALWAYS_INLINE void host_store(void *host, uint64_t value, unsigned size) {
    switch (size) {
    case 1:
        *(volatile uint8_t *)host = (uint8_t)value;
        break;
    case 2:
        *(volatile guest_u16 *)host = (uint16_t)value;
        break;
    case 4:
        *(volatile guest_u32 *)host = (uint32_t)value;
        break;
    default:
        *(volatile guest_u64 *)host = value;
    }
}

/* size is 1, 2, 4 or 8. */
static inline MUST_CHECK int memory_read(struct vcpu *vcpu, unsigned segment, uint64_t offset, unsigned size,
                                         uint64_t *value) {
    uint64_t linear;
    int result = memory_linear(vcpu, segment, offset, size, VMEM_READ, &linear);
    if (UNLIKELY(result))
        return result;
    void *host = memory_tlb_read(vcpu, linear, size);
    if (LIKELY(host != NULL)) {
        *value = host_load(host, size);
        return CPU_OK;
    }
    uint64_t read = 0;
    result = vmem_read(vcpu, linear, &read, size, AS_CURRENT);
    *value = read;
    return result;
}

static inline MUST_CHECK int memory_write(struct vcpu *vcpu, unsigned segment, uint64_t offset, unsigned size,
                                          uint64_t value) {
    uint64_t linear;
    int result = memory_linear(vcpu, segment, offset, size, VMEM_WRITE, &linear);
    if (UNLIKELY(result))
        return result;
    void *host = memory_tlb_write(vcpu, linear, size);
    if (LIKELY(host != NULL)) {
        host_store(host, value, size);
        return CPU_OK;
    }
    return vmem_write(vcpu, linear, &value, size, AS_CURRENT);
}

/* A read-modify-write under way. */
struct rmw {
    uint64_t linear;
    void *host;      /* NULL: MMIO or a page crosser */
    uint64_t value;  /* as read */
    bool needs_note; /* vmem_written() is due */
};

/* Check for writing, then read. */
MUST_CHECK int rmw_begin(struct vcpu *vcpu, unsigned segment, uint64_t offset, unsigned size,
                         struct rmw *rmw);
MUST_CHECK int rmw_finish(struct vcpu *vcpu, struct rmw *rmw, unsigned size, uint64_t value);

/* -- explicit operands of a decoded instruction -- */

static inline uint64_t gpr_get(const struct vcpu *vcpu, const struct operand *op) {
    if (op->kind == OPERAND_HIGH_BYTE)
        return vcpu->gpr[op->gpr] >> 8 & 0xff;
    uint64_t value = vcpu->gpr[op->gpr];
    switch (op->size) {
    case 1:
        return (uint8_t)value;
    case 2:
        return (uint16_t)value;
    case 4:
        return (uint32_t)value;
    default:
        return value;
    }
}

/* Write a whole register of a width: 32-bit writes clear the upper half, narrower ones keep the rest. */
static inline void gpr_put(struct vcpu *vcpu, unsigned gpr, unsigned size, uint64_t value) {
    uint64_t *reg = &vcpu->gpr[gpr];
    switch (size) {
    case 1:
        *reg = (*reg & ~0xffull) | (uint8_t)value;
        break;
    case 2:
        *reg = (*reg & ~0xffffull) | (uint16_t)value;
        break;
    case 4:
        *reg = (uint32_t)value;
        break;
    default:
        *reg = value;
    }
}

static inline void gpr_set(struct vcpu *vcpu, const struct operand *op, uint64_t value) {
    if (op->kind == OPERAND_HIGH_BYTE)
        vcpu->gpr[op->gpr] = (vcpu->gpr[op->gpr] & ~0xff00ull) | (value & 0xff) << 8;
    else
        gpr_put(vcpu, op->gpr, op->size, value);
}

static inline MUST_CHECK int operand_read(struct vcpu *vcpu, const struct decoded *d, unsigned index,
                                          uint64_t *value) {
    const struct operand *op = &d->op[index];
    switch (op->kind) {
    case OPERAND_IMMEDIATE:
        *value = op->immediate;
        return CPU_OK;
    case OPERAND_MEMORY:
        return memory_read(vcpu, d->segment, address_compute(vcpu, d), op->size, value);
    default:
        *value = gpr_get(vcpu, op);
        return CPU_OK;
    }
}

static inline MUST_CHECK int operand_write(struct vcpu *vcpu, const struct decoded *d, unsigned index,
                                           uint64_t value) {
    const struct operand *op = &d->op[index];
    if (op->kind == OPERAND_MEMORY)
        return memory_write(vcpu, d->segment, address_compute(vcpu, d), op->size, value);
    gpr_set(vcpu, op, value);
    return CPU_OK;
}

/* -- the stack -- */

static inline uint64_t stack_mask(const struct vcpu *vcpu) {
    return cpu_is_code64(vcpu) ? UINT64_MAX : vcpu->mode & MODE_STACK_32 ? 0xffffffffull : 0xffffull;
}

static inline void stack_set(struct vcpu *vcpu, uint64_t rsp) {
    uint64_t mask = stack_mask(vcpu);
    if (mask == 0xffff)
        vcpu->gpr[GPR_RSP] = (vcpu->gpr[GPR_RSP] & ~0xffffull) | (rsp & 0xffff);
    else
        vcpu->gpr[GPR_RSP] = rsp & mask;
}

static inline MUST_CHECK int stack_push(struct vcpu *vcpu, uint64_t value, unsigned size) {
    uint64_t rsp = (vcpu->gpr[GPR_RSP] - size) & stack_mask(vcpu);
    int result = memory_write(vcpu, SEG_SS, rsp, size, value);
    if (LIKELY(!result))
        stack_set(vcpu, rsp);
    return result;
}

/* Read the top of the stack plus offset bytes; the caller moves RSP. */
static inline MUST_CHECK int stack_peek(struct vcpu *vcpu, uint64_t offset, unsigned size, uint64_t *value) {
    return memory_read(vcpu, SEG_SS, (vcpu->gpr[GPR_RSP] + offset) & stack_mask(vcpu), size, value);
}

static inline void stack_release(struct vcpu *vcpu, uint64_t bytes) {
    stack_set(vcpu, vcpu->gpr[GPR_RSP] + bytes);
}

#endif
