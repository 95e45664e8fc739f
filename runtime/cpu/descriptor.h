/* Segment descriptors as the system functions handle them: read, check, decode. Private to
 * runtime/cpu. `ext` is the EXT bit of an error code (SDM vol. 3, 6.13): 1 while an event that the program
 * did not ask for is being delivered, else 0. */
#ifndef NESTOR_CPU_DESCRIPTOR_H
#define NESTOR_CPU_DESCRIPTOR_H

#include "cpu/system.h"

/* Types of segments (S set) and of system descriptors (S clear): SDM vol. 3, tables 3-1 and 3-2. */
#define TYPE_ACCESSED 1u
#define TYPE_WRITABLE 2u    /* data; the same bit makes code readable */
#define TYPE_EXPAND_DOWN 4u /* data; the same bit makes code conforming */
#define TYPE_CODE 8u

enum system_type {
    TYPE_TSS16 = 1,
    TYPE_LDT = 2,
    TYPE_TSS16_BUSY = 3,
    TYPE_CALL_GATE16 = 4,
    TYPE_TASK_GATE = 5,
    TYPE_INTERRUPT_GATE16 = 6,
    TYPE_TRAP_GATE16 = 7,
    TYPE_TSS = 9, /* 32-bit, or 64-bit when EFER.LMA */
    TYPE_TSS_BUSY = 11,
    TYPE_CALL_GATE = 12,
    TYPE_INTERRUPT_GATE = 14,
    TYPE_TRAP_GATE = 15,
};
#define TYPE_BUSY 2u

#define SELECTOR_RPL 3u
#define SELECTOR_TI 4u

static inline bool selector_is_null(uint16_t selector) {
    return !(selector & ~SELECTOR_RPL);
}

static inline uint32_t selector_error(uint16_t selector, unsigned ext) {
    return (selector & 0xfffcu) | ext;
}

/* SEG_* bits of a descriptor. */
static inline uint32_t descriptor_attributes(uint64_t raw) {
    return (uint32_t)(raw >> 40) & 0xf0ffu;
}

static inline unsigned descriptor_type(uint64_t raw) {
    return raw >> 40 & SEG_TYPE;
}

static inline unsigned descriptor_dpl(uint64_t raw) {
    return raw >> 45 & 3;
}

static inline bool descriptor_present(uint64_t raw) {
    return raw >> 47 & 1;
}

static inline bool descriptor_is_segment(uint64_t raw) {
    return raw >> 44 & 1;
}

static inline bool descriptor_is_code(uint64_t raw) {
    return descriptor_is_segment(raw) && descriptor_type(raw) & TYPE_CODE;
}

static inline bool descriptor_is_conforming(uint64_t raw) {
    return (descriptor_type(raw) & (TYPE_CODE | TYPE_EXPAND_DOWN)) == (TYPE_CODE | TYPE_EXPAND_DOWN);
}

static inline uint64_t descriptor_base(uint64_t raw) {
    return (raw >> 16 & 0xffffff) | (raw >> 32 & 0xff000000);
}

static inline uint32_t descriptor_limit(uint64_t raw) {
    uint32_t limit = (uint32_t)((raw & 0xffff) | (raw >> 32 & 0xf0000));
    return raw >> 55 & 1 ? limit << 12 | 0xfff : limit;
}

/* Field by field: a struct put together on the stack and copied costs failed store forwarding on hot paths.
 */
static inline void segment_set(struct segment *segment, unsigned selector, uint64_t raw) {
    segment->selector = (uint16_t)selector;
    segment->attributes = descriptor_attributes(raw);
    segment->limit = descriptor_limit(raw);
    segment->base = descriptor_base(raw);
}

static inline void segment_copy(struct segment *target, const struct segment *source) {
    target->selector = source->selector;
    target->attributes = source->attributes;
    target->limit = source->limit;
    target->base = source->base;
}

static inline struct segment descriptor_segment(uint16_t selector, uint64_t raw) {
    return (struct segment){.selector = selector,
                            .attributes = descriptor_attributes(raw),
                            .limit = descriptor_limit(raw),
                            .base = descriptor_base(raw)};
}

static inline uint16_t selector_with_rpl(uint16_t selector, unsigned rpl) {
    return (uint16_t)((selector & ~SELECTOR_RPL) | rpl);
}

/* A word of guest memory, which need not be aligned. */
struct guest_u64 {
    uint64_t value;
} __attribute__((packed));

/* Eight bytes of a system table: the software TLB's hit inline. */
static inline MUST_CHECK int table_read_u64(struct vcpu *vcpu, uint64_t linear, uint64_t *value) {
    const struct vtlb_view *view = vcpu->space->view[VIEW_KERNEL];
    const struct vtlb_entry *entry = &view->entry[vtlb_index(view, linear)];
    if (LIKELY(entry->tag_read == ((linear + 7) & PAGE_MASK))) {
        *value = ((const volatile struct guest_u64 *)(linear + entry->addend))->value;
        return CPU_OK;
    }
    return vmem_read_u64(vcpu, linear, value, AS_SYSTEM);
}

/* The eight bytes of a descriptor; beyond its table: `vector` with the selector as error code. */
MUST_CHECK int descriptor_read(struct vcpu *vcpu, uint16_t selector, uint8_t vector, unsigned ext,
                               uint64_t *raw);
/* The upper eight bytes of a 16-byte system descriptor (EFER.LMA). */
MUST_CHECK int descriptor_read_upper(struct vcpu *vcpu, uint16_t selector, uint8_t vector, unsigned ext,
                                     uint64_t *upper);
/* Set the accessed bit in memory and in *raw where it is clear. */
MUST_CHECK int descriptor_set_accessed(struct vcpu *vcpu, uint16_t selector, uint64_t *raw);
/* Set or clear the busy bit of a TSS descriptor in memory. */
MUST_CHECK int descriptor_set_busy(struct vcpu *vcpu, uint16_t selector, bool busy);
/* A stack segment for a privilege level: RPL and DPL equal to cpl, writable data, present. Failures raise
 * `vector` (#GP or #TS), absence #SS. Null selectors fail. */
MUST_CHECK int descriptor_load_stack(struct vcpu *vcpu, uint16_t selector, unsigned cpl, uint8_t vector,
                                     unsigned ext, struct segment *segment);

/* May [offset, offset + size) be reached through this segment's limit? */
bool segment_contains(const struct segment *segment, uint64_t offset, unsigned size);
/* A null selector in a data segment register. */
struct segment segment_null(uint16_t selector);
/* The SS of 64-bit mode after a change to an inner level. */
static inline void segment_set_null_stack(struct segment *segment, unsigned cpl) {
    segment->selector = (uint16_t)cpl;
    segment->attributes = SEG_UNUSABLE | SEG_DB | cpl << SEG_DPL_SHIFT;
    segment->limit = 0;
    segment->base = 0;
}
/* A segment register as vm86 mode loads it. */
struct segment segment_vm86(uint16_t selector);
/* On a return to an outer level: take away what that level may not keep in DS, ES, FS and GS. */
void segment_drop_inner(struct vcpu *vcpu, unsigned cpl);

#endif
