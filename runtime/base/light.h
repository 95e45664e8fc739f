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

#endif
