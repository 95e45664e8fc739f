/* Private to cache-format: libsodium's digests as the specification uses them. */
#ifndef NESTOR_CACHE_DIGEST_H
#define NESTOR_CACHE_DIGEST_H

#include "base/types.h"

#include <sodium.h>

/* BLAKE2b of length size, personalised with 16 characters, salted with a number. */
static inline void digest_personal(uint8_t *digest, size_t size, const void *bytes, size_t length,
                                   const char *personal, uint64_t number) {
    uint8_t salt[crypto_generichash_blake2b_SALTBYTES] = {0};
    for (unsigned i = 0; i < 8; i++)
        salt[i] = (uint8_t)(number >> 8 * i);
    crypto_generichash_blake2b_salt_personal(digest, size, bytes, length, NULL, 0, salt,
                                             (const uint8_t *)personal);
}

#endif
