/* A place to append machine code to. Appenders never fail half way: past the end they only set overflow,
 * which the owner checks once at the end of a transaction. */
#ifndef NESTOR_ISA_CODE_BUFFER_H
#define NESTOR_ISA_CODE_BUFFER_H

#include "base/types.h"

#include <string.h>

struct code_buffer {
    uint8_t *start;
    uint8_t *at;
    uint8_t *end;
    const uint8_t *area; /* what dbt/asm.h says of it; NULL as a rule */
    bool overflow;
};

static inline void code_bytes(struct code_buffer *code, const void *bytes, size_t count) {
    if (UNLIKELY((size_t)(code->end - code->at) < count)) {
        code->overflow = true;
        return;
    }
    memcpy(code->at, bytes, count);
    code->at += count;
}

static inline void code_u8(struct code_buffer *code, uint8_t value) {
    if (UNLIKELY(code->at == code->end)) {
        code->overflow = true;
        return;
    }
    *code->at++ = value;
}

static inline void code_u32(struct code_buffer *code, uint32_t value) {
    code_bytes(code, &value, sizeof value);
}

static inline void code_u64(struct code_buffer *code, uint64_t value) {
    code_bytes(code, &value, sizeof value);
}

#endif
