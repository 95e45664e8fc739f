/* memset and memcpy for code that runs while the guest's vector state is live: the C library's use vector
 * registers. */
#ifndef NESTOR_BASE_LIGHT_H
#define NESTOR_BASE_LIGHT_H

#include "base/types.h"

static inline void light_fill(void *target, uint8_t value, size_t count) {
    __asm__ volatile("rep stosb" : "+D"(target), "+c"(count) : "a"(value) : "memory");
}

static inline void light_copy(void *target, const void *source, size_t count) {
    __asm__ volatile("rep movsb" : "+D"(target), "+S"(source), "+c"(count)::"memory");
}

struct light_qword {
    uint64_t value;
} __attribute__((packed, may_alias));

static inline bool light_equal(const void *one, const void *other, size_t count) {
    const uint8_t *a = one, *b = other;
    for (; count >= 8; count -= 8, a += 8, b += 8)
        if (((const struct light_qword *)a)->value != ((const struct light_qword *)b)->value)
            return false;
    for (; count; count--)
        if (*a++ != *b++)
            return false;
    return true;
}

#endif
