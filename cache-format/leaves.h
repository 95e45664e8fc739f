/* Private to cache-format: digests of several chunks at once. */
#ifndef NESTOR_CACHE_LEAVES_H
#define NESTOR_CACHE_LEAVES_H

#include "base/types.h"

#define LEAVES_AT_ONCE 4u

/* As ntc_leaf_digest(), of LEAVES_AT_ONCE chunks of one length. */
void leaves_digest(const uint8_t *const *bytes, size_t length, const uint64_t *number, uint8_t *const *leaf);

#endif
