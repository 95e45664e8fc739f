/* Private to cache-format: memory access in files that run while a guest's vector registers are live. */
#ifndef NESTOR_CACHE_LIGHT_MEMORY_H
#define NESTOR_CACHE_LIGHT_MEMORY_H

#include "base/types.h"

struct light_word {
    uint64_t value;
} __attribute__((packed, may_alias));

/* length bytes (8 at most) as a little-endian number. */
static inline uint64_t light_load(const uint8_t *bytes, uint32_t length) {
    if (length == 8)
        return ((const struct light_word *)bytes)->value;
    uint64_t value = 0;
    for (uint32_t i = 0; i < length; i++)
        value |= (uint64_t)bytes[i] << 8 * i;
    return value;
}

#endif
