/* Arithmetic flags in C (SDM vol. 1, 3.4.3.1), for the integer instructions that are not worth a thunk. Flags
 * that the manual leaves undefined get the values that Intel's processors give them. */
#ifndef NESTOR_INTERP_FLAGS_H
#define NESTOR_INTERP_FLAGS_H

#include "interp/internal.h"

static inline uint64_t size_mask(unsigned size) {
    return size >= 8 ? UINT64_MAX : (1ull << 8 * size) - 1;
}

static inline uint64_t flags_result(uint64_t result, unsigned size) {
    uint64_t flags = result & size_mask(size) ? 0 : FLAG_ZF;
    flags |= result >> (8 * size - 1) & 1 ? FLAG_SF : 0;
    flags |= __builtin_parity((unsigned)(result & 0xff)) ? 0 : FLAG_PF;
    return flags;
}

static inline void flags_set(struct vcpu *vcpu, uint64_t flags, uint64_t mask) {
    vcpu->rflags = (vcpu->rflags & ~mask) | flags;
}

/* a + b + carry, and the flags of it. */
static inline uint64_t flags_add(struct vcpu *vcpu, uint64_t a, uint64_t b, unsigned carry, unsigned size) {
    uint64_t result = (a + b + carry) & size_mask(size);
    unsigned sign = 8 * size - 1;
    uint64_t carries = (a & b) | ((a | b) & ~result), flags = flags_result(result, size);
    flags |= carries >> sign & 1 ? FLAG_CF : 0;
    flags |= (a ^ b ^ result) & 0x10;
    flags |= ((a ^ result) & (b ^ result)) >> sign & 1 ? FLAG_OF : 0;
    flags_set(vcpu, flags, FLAGS_ARITHMETIC);
    return result;
}

/* a - b - borrow, and the flags of it. */
static inline uint64_t flags_sub(struct vcpu *vcpu, uint64_t a, uint64_t b, unsigned borrow, unsigned size) {
    uint64_t result = (a - b - borrow) & size_mask(size);
    unsigned sign = 8 * size - 1;
    uint64_t borrows = (~a & b) | ((~a | b) & result), flags = flags_result(result, size);
    flags |= borrows >> sign & 1 ? FLAG_CF : 0;
    flags |= (a ^ b ^ result) & 0x10;
    flags |= ((a ^ b) & (a ^ result)) >> sign & 1 ? FLAG_OF : 0;
    flags_set(vcpu, flags, FLAGS_ARITHMETIC);
    return result;
}

static inline void flags_logic(struct vcpu *vcpu, uint64_t result, unsigned size) {
    flags_set(vcpu, flags_result(result, size), FLAGS_ARITHMETIC);
}

/* Condition code 0-15 as encoded in Jcc, SETcc, CMOVcc (SDM vol. 1, appendix B). */
static inline bool flags_condition(uint64_t flags, unsigned code) {
    bool value;
    switch (code >> 1) {
    case 0:
        value = flags & FLAG_OF;
        break;
    case 1:
        value = flags & FLAG_CF;
        break;
    case 2:
        value = flags & FLAG_ZF;
        break;
    case 3:
        value = flags & (FLAG_CF | FLAG_ZF);
        break;
    case 4:
        value = flags & FLAG_SF;
        break;
    case 5:
        value = flags & FLAG_PF;
        break;
    case 6:
        value = !(flags & FLAG_SF) != !(flags & FLAG_OF);
        break;
    default:
        value = flags & FLAG_ZF || !(flags & FLAG_SF) != !(flags & FLAG_OF);
        break;
    }
    return value != (code & 1);
}

#endif
