#include "values.h"

#include "layout.h"

#include <string.h>

#define POOL_SIZE (256 * 1024u)

static const uint64_t integers[] = {
    0,
    1,
    2,
    3,
    7,
    8,
    15,
    16,
    31,
    32,
    63,
    64,
    0x7f,
    0x80,
    0xff,
    0x100,
    0x7fff,
    0x8000,
    0xffff,
    0x10000,
    0x7fffffff,
    0x80000000,
    0xffffffff,
    0x100000000,
    0x7fffffffffffffff,
    0x8000000000000000,
    0xffffffffffffffff,
    0xfffffffffffffffe,
    0xffffffff80000000,
    0xffffffff7fffffff,
    0x0101010101010101,
    0x8080808080808080,
    0x7f7f7f7f7f7f7f7f,
    0x00ff00ff00ff00ff,
    0x5555555555555555,
    0x0123456789abcdef,
};
static const uint64_t doubles[] = {
    0x0000000000000000, 0x8000000000000000, 0x3ff0000000000000, 0xbff0000000000000, 0x4000000000000000,
    0x7ff0000000000000, 0xfff0000000000000, 0x7ff8000000000000, 0xfff8000000000000, 0x7ff0000000000001,
    0x7ff4000000000000, 0x0000000000000001, 0x800fffffffffffff, 0x0010000000000000, 0x7fefffffffffffff,
    0x41dfffffffc00000, 0x41e0000000000000, 0xc1e0000000000000, 0x43e0000000000000, 0xc3e0000000000000,
    0x3fe0000000000000, 0x3ff8000000000000, 0x400921fb54442d18, 0x3ca0000000000000, 0x47efffffe0000000,
    0x36a0000000000000, 0x3690000000000000,
};
static const uint32_t floats[] = {
    0x00000000, 0x80000000, 0x3f800000, 0xbf800000, 0x40000000, 0x7f800000, 0xff800000,
    0x7fc00000, 0xffc00000, 0x7f800001, 0x7fa00000, 0x00000001, 0x807fffff, 0x00800000,
    0x7f7fffff, 0x4f000000, 0xcf000000, 0x4effffff, 0x5f000000, 0x3f000000, 0x3fc00000,
    0x40490fdb, 0x33800000, 0x47800000, 0x38800000, 0x33000000,
};
static const uint16_t halves[] = {
    0x0000, 0x8000, 0x3c00, 0xbc00, 0x4000, 0x7c00, 0xfc00, 0x7e00, 0xfe00,
    0x7c01, 0x7d00, 0x0001, 0x83ff, 0x0400, 0x7bff, 0x3800, 0x3e00, 0x4248,
};

static uint64_t value_pointer(struct rng *rng) {
    const struct layout_region *region = &layout_regions[rng_below(rng, layout_region_count)];
    return region->base + rng_below(rng, (uint32_t)(region->pages * PAGE_SIZE));
}

uint64_t value_u64(struct rng *rng) {
    uint64_t random = rng_u64(rng);
    switch (rng_below(rng, 10)) {
    case 0:
    case 1:
        return integers[random % ARRAY_SIZE(integers)];
    case 2:
        return (uint64_t)(int64_t)(int8_t)random;
    case 3:
        return 1ull << (random & 63);
    case 4:
        return doubles[random % ARRAY_SIZE(doubles)];
    case 5:
        return (uint64_t)floats[(random >> 32) % ARRAY_SIZE(floats)] << 32 |
               floats[(uint32_t)random % ARRAY_SIZE(floats)];
    case 6:
        return (uint64_t)halves[random % 18] | (uint64_t)halves[(random >> 8) % 18] << 16 |
               (uint64_t)halves[(random >> 16) % 18] << 32 | (uint64_t)halves[(random >> 24) % 18] << 48;
    case 7:
        return value_pointer(rng);
    default:
        return random;
    }
}

/* Whole pages come from a pool that is made once from a fixed seed, at random offsets. */
static const uint8_t *value_pool(void) {
    static uint8_t pool[POOL_SIZE];
    static bool is_filled;
    if (!is_filled) {
        struct rng rng;
        rng_init(&rng, 0x706f6f6c);
        for (unsigned i = 0; i < POOL_SIZE; i += 8) {
            uint64_t value = value_u64(&rng);
            memcpy(pool + i, &value, 8);
        }
        is_filled = true;
    }
    return pool;
}

void value_fill(struct rng *rng, uint8_t *at, size_t size) {
    const uint8_t *pool = value_pool();
    while (size) {
        size_t part = size < 1024 ? size : 1024;
        memcpy(at, pool + 8 * rng_below(rng, (POOL_SIZE - 1024) / 8), part);
        at += part;
        size -= part;
    }
}

static void put_u16(uint8_t *at, uint16_t value) {
    memcpy(at, &value, 2);
}

static void value_x87(struct rng *rng, uint8_t *image) {
    static const uint16_t exponents[] = {0, 1, 0x3ffe, 0x3fff, 0x4000, 0x401e, 0x403e, 0x7ffe, 0x7fff};
    bool is_plain = rng_permille(rng, 700);
    put_u16(image, is_plain
                       ? 0x37f
                       : (uint16_t)((rng_u64(rng) & 0xf3f) | (rng_permille(rng, 600) ? 0x3f : 0)) | 0x40);
    /* Exception bits of the status word stay clear unless masked, else the first waiting instruction is #MF.
     */
    put_u16(image + 2, is_plain ? (uint16_t)(rng_below(rng, 8) << 11)
                                : (uint16_t)((rng_u64(rng) & 0x7f00) |
                                             (rng_permille(rng, 200) ? rng_u64(rng) & 0x7f : 0)));
    image[4] = rng_permille(rng, 300) ? 0 : (uint8_t)rng_u64(rng);
    for (unsigned i = 0; i < 8; i++) {
        uint8_t *reg = image + 32 + 16 * i;
        uint64_t mantissa = value_u64(rng);
        uint16_t exponent = rng_permille(rng, 500) ? exponents[rng_below(rng, ARRAY_SIZE(exponents))]
                                                   : (uint16_t)(0x3fff - 40 + rng_below(rng, 80));
        if (rng_permille(rng, 850)) /* else an unnormal or a pseudo-number */
            mantissa = exponent ? mantissa | 1ull << 63 : mantissa & ~(1ull << 63);
        memcpy(reg, &mantissa, 8);
        put_u16(reg + 8, exponent | (rng_permille(rng, 500) ? 0x8000 : 0));
    }
    uint16_t status;
    memcpy(&status, image + 2, 2);
    uint16_t control;
    memcpy(&control, image, 2);
    /* ES and B (bits 7 and 15) follow from unmasked exceptions, as the processor would have them. */
    status &= 0x7f7f;
    if (status & ~control & 0x3f)
        status |= 0x8080;
    put_u16(image + 2, status);
}

void value_xsave(struct rng *rng, uint8_t *image) {
    const struct layout_xstate *xstate = layout_xstate();
    memset(image, 0, DIFF_XSAVE_SIZE);
    value_x87(rng, image);
    uint32_t mxcsr = 0x1f80;
    if (rng_permille(rng, 300))
        mxcsr = (uint32_t)(rng_u64(rng) & 0xffff) | (rng_permille(rng, 600) ? 0x1f80 : 0);
    memcpy(image + 24, &mxcsr, 4);
    mxcsr = 0xffff;
    memcpy(image + 28, &mxcsr, 4);
    value_fill(rng, image + 160, 256);
    for (unsigned i = 2; i < 8; i++)
        if (xstate->mask >> i & 1)
            value_fill(rng, image + xstate->offset[i], xstate->length[i]);
    uint64_t in_use = xstate->mask;
    if (rng_permille(rng, 80))
        in_use &= rng_u64(rng);
    memcpy(image + 512, &in_use, 8);
}
