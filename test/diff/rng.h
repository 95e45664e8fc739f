/* A small deterministic random source (xoshiro256**): the same seed gives the same stream on every host. */
#ifndef NESTOR_TEST_DIFF_RNG_H
#define NESTOR_TEST_DIFF_RNG_H

#include "base/types.h"

struct rng {
    uint64_t s[4];
};

static inline uint64_t rng_mix(uint64_t *state) {
    uint64_t z = (*state += 0x9e3779b97f4a7c15ull);
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9ull;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebull;
    return z ^ (z >> 31);
}

static inline void rng_init(struct rng *rng, uint64_t seed) {
    for (unsigned i = 0; i < 4; i++)
        rng->s[i] = rng_mix(&seed);
}

static inline uint64_t rng_rotl(uint64_t x, unsigned k) {
    return x << k | x >> (64 - k);
}

static inline uint64_t rng_u64(struct rng *rng) {
    uint64_t *s = rng->s, result = rng_rotl(s[1] * 5, 7) * 9, t = s[1] << 17;
    s[2] ^= s[0];
    s[3] ^= s[1];
    s[1] ^= s[2];
    s[0] ^= s[3];
    s[2] ^= t;
    s[3] = rng_rotl(s[3], 45);
    return result;
}

/* Uniform in [0, limit), limit > 0. */
static inline uint32_t rng_below(struct rng *rng, uint32_t limit) {
    return (uint32_t)((rng_u64(rng) >> 32) * limit >> 32);
}

/* True in about n of a thousand. */
static inline bool rng_permille(struct rng *rng, unsigned n) {
    return rng_below(rng, 1000) < n;
}

#endif
