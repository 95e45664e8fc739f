/* Digests of chunks: BLAKE2b-256 (RFC 7693), salted with the chunk's number. libsodium digests one message at
 * a time; where the processor has AVX2, four chunks of one length go through the rounds side by side here, a
 * lane each, which more than doubles the speed at which a file can be verified. A test holds the results to
 * libsodium's.
 */
#include "cache-format/digest.h"
#include "cache-format/file.h"

#include <immintrin.h>
#include <string.h>

#include "cache-format/leaves.h"

#define BLOCK 128u
#define ROUNDS 12u

static const char leaf_personal[] = "nestor-ntc-leaf1";

void ntc_leaf_digest(const uint8_t *bytes, size_t length, uint64_t number, uint8_t *leaf) {
    digest_personal(leaf, NTC_DIGEST_SIZE, bytes, length, leaf_personal, number);
}

static const uint64_t initial[8] = {0x6a09e667f3bcc908, 0xbb67ae8584caa73b, 0x3c6ef372fe94f82b,
                                    0xa54ff53a5f1d36f1, 0x510e527fade682d1, 0x9b05688c2b3e6c1f,
                                    0x1f83d9abfb41bd6b, 0x5be0cd19137e2179};

static const uint8_t schedule[ROUNDS][16] = {{0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15},
                                             {14, 10, 4, 8, 9, 15, 13, 6, 1, 12, 0, 2, 11, 7, 5, 3},
                                             {11, 8, 12, 0, 5, 2, 15, 13, 10, 14, 3, 6, 7, 1, 9, 4},
                                             {7, 9, 3, 1, 13, 12, 11, 14, 2, 6, 5, 10, 4, 0, 15, 8},
                                             {9, 0, 5, 7, 2, 4, 10, 15, 14, 1, 11, 12, 6, 8, 3, 13},
                                             {2, 12, 6, 10, 0, 11, 8, 3, 4, 13, 7, 5, 15, 14, 1, 9},
                                             {12, 5, 1, 15, 14, 13, 4, 10, 0, 7, 6, 3, 9, 2, 8, 11},
                                             {13, 11, 7, 14, 12, 1, 3, 9, 5, 0, 15, 4, 8, 6, 2, 10},
                                             {6, 15, 14, 9, 11, 3, 0, 8, 12, 2, 13, 7, 1, 4, 10, 5},
                                             {10, 2, 8, 4, 7, 6, 1, 5, 15, 11, 9, 14, 3, 12, 13, 0},
                                             {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15},
                                             {14, 10, 4, 8, 9, 15, 13, 6, 1, 12, 0, 2, 11, 7, 5, 3}};

#define WITH_AVX2 __attribute__((target("avx2")))

/* The mixing function G of RFC 7693, 3.1, on four messages. */
WITH_AVX2 static inline void mix(__m256i *v, unsigned a, unsigned b, unsigned c, unsigned d, __m256i x,
                                 __m256i y) {
    const __m256i by24 = _mm256_setr_epi8(3, 4, 5, 6, 7, 0, 1, 2, 11, 12, 13, 14, 15, 8, 9, 10, 3, 4, 5, 6, 7,
                                          0, 1, 2, 11, 12, 13, 14, 15, 8, 9, 10);
    const __m256i by16 = _mm256_setr_epi8(2, 3, 4, 5, 6, 7, 0, 1, 10, 11, 12, 13, 14, 15, 8, 9, 2, 3, 4, 5, 6,
                                          7, 0, 1, 10, 11, 12, 13, 14, 15, 8, 9);
    v[a] = _mm256_add_epi64(_mm256_add_epi64(v[a], v[b]), x);
    v[d] = _mm256_shuffle_epi32(_mm256_xor_si256(v[d], v[a]), 0xb1); /* by 32 */
    v[c] = _mm256_add_epi64(v[c], v[d]);
    v[b] = _mm256_shuffle_epi8(_mm256_xor_si256(v[b], v[c]), by24);
    v[a] = _mm256_add_epi64(_mm256_add_epi64(v[a], v[b]), y);
    v[d] = _mm256_shuffle_epi8(_mm256_xor_si256(v[d], v[a]), by16);
    v[c] = _mm256_add_epi64(v[c], v[d]);
    __m256i word = _mm256_xor_si256(v[b], v[c]);
    v[b] = _mm256_or_si256(_mm256_srli_epi64(word, 63), _mm256_add_epi64(word, word));
}

/* Word i of four blocks becomes message[i]. */
WITH_AVX2 static inline void transpose(__m256i *message, const uint8_t *const *block) {
    for (unsigned i = 0; i < 16; i += 4) {
        __m256i row[4];
        for (unsigned lane = 0; lane < LEAVES_AT_ONCE; lane++)
            row[lane] =
                _mm256_loadu_si256((const __m256i *)(const void *)(block[lane] + i * sizeof(uint64_t)));
        __m256i low01 = _mm256_unpacklo_epi64(row[0], row[1]), high01 = _mm256_unpackhi_epi64(row[0], row[1]);
        __m256i low23 = _mm256_unpacklo_epi64(row[2], row[3]), high23 = _mm256_unpackhi_epi64(row[2], row[3]);
        message[i] = _mm256_permute2x128_si256(low01, low23, 0x20);
        message[i + 1] = _mm256_permute2x128_si256(high01, high23, 0x20);
        message[i + 2] = _mm256_permute2x128_si256(low01, low23, 0x31);
        message[i + 3] = _mm256_permute2x128_si256(high01, high23, 0x31);
    }
}

/* The compression function F of RFC 7693, 3.2, on four messages. */
WITH_AVX2 static void compress(__m256i *h, const uint8_t *const *block, uint64_t counter, bool last) {
    __m256i m[16], v[16];
    transpose(m, block);
    for (unsigned i = 0; i < 8; i++) {
        v[i] = h[i];
        v[8 + i] = _mm256_set1_epi64x((long long)initial[i]);
    }
    v[12] = _mm256_xor_si256(v[12], _mm256_set1_epi64x((long long)counter));
    if (last)
        v[14] = _mm256_xor_si256(v[14], _mm256_set1_epi64x(-1));
#pragma GCC unroll 12
    for (unsigned round = 0; round < ROUNDS; round++) {
        const uint8_t *s = schedule[round];
        mix(v, 0, 4, 8, 12, m[s[0]], m[s[1]]);
        mix(v, 1, 5, 9, 13, m[s[2]], m[s[3]]);
        mix(v, 2, 6, 10, 14, m[s[4]], m[s[5]]);
        mix(v, 3, 7, 11, 15, m[s[6]], m[s[7]]);
        mix(v, 0, 5, 10, 15, m[s[8]], m[s[9]]);
        mix(v, 1, 6, 11, 12, m[s[10]], m[s[11]]);
        mix(v, 2, 7, 8, 13, m[s[12]], m[s[13]]);
        mix(v, 3, 4, 9, 14, m[s[14]], m[s[15]]);
    }
    for (unsigned i = 0; i < 8; i++)
        h[i] = _mm256_xor_si256(h[i], _mm256_xor_si256(v[i], v[8 + i]));
}

WITH_AVX2 static void digest_four(const uint8_t *const *bytes, size_t length, const uint64_t *number,
                                  uint8_t *const *leaf) {
    uint64_t personal[2], word[LEAVES_AT_ONCE];
    uint8_t tail[LEAVES_AT_ONCE][BLOCK];
    const uint8_t *block[LEAVES_AT_ONCE];
    __m256i h[8];
    memcpy(personal, leaf_personal, sizeof personal);
    for (unsigned i = 0; i < 8; i++)
        h[i] = _mm256_set1_epi64x((long long)initial[i]);
    /* The parameter block: digest length, no key, sequential mode; salt; personalisation. */
    h[0] = _mm256_xor_si256(h[0], _mm256_set1_epi64x(0x01010000 | NTC_DIGEST_SIZE));
    h[4] = _mm256_xor_si256(h[4], _mm256_loadu_si256((const __m256i *)(const void *)number));
    h[6] = _mm256_xor_si256(h[6], _mm256_set1_epi64x((long long)personal[0]));
    h[7] = _mm256_xor_si256(h[7], _mm256_set1_epi64x((long long)personal[1]));
    size_t at = 0;
    for (; length - at > BLOCK; at += BLOCK) {
        for (unsigned lane = 0; lane < LEAVES_AT_ONCE; lane++)
            block[lane] = bytes[lane] + at;
        compress(h, block, at + BLOCK, false);
    }
    memset(tail, 0, sizeof tail);
    for (unsigned lane = 0; lane < LEAVES_AT_ONCE; lane++) {
        memcpy(tail[lane], bytes[lane] + at, length - at);
        block[lane] = tail[lane];
    }
    compress(h, block, length, true);
    for (unsigned i = 0; i < NTC_DIGEST_SIZE / sizeof(uint64_t); i++) {
        _mm256_storeu_si256((__m256i *)(void *)word, h[i]);
        for (unsigned lane = 0; lane < LEAVES_AT_ONCE; lane++)
            memcpy(leaf[lane] + i * sizeof(uint64_t), &word[lane], sizeof(uint64_t));
    }
}

void leaves_digest(const uint8_t *const *bytes, size_t length, const uint64_t *number, uint8_t *const *leaf) {
    if (__builtin_cpu_supports("avx2")) {
        digest_four(bytes, length, number, leaf);
        return;
    }
    for (unsigned i = 0; i < LEAVES_AT_ONCE; i++)
        ntc_leaf_digest(bytes[i], length, number[i], leaf[i]);
}
