/* Interesting values: boundaries, denormals, NaNs, infinities in every width, pointers into the layout. */
#ifndef NESTOR_TEST_DIFF_VALUES_H
#define NESTOR_TEST_DIFF_VALUES_H

#include "case.h"
#include "rng.h"

/* One 64-bit value, as an integer, a double, two floats, four halves, bytes or an address. */
uint64_t value_u64(struct rng *rng);
/* Fill memory (a multiple of 8 bytes) with them; cheap, for whole pages. */
void value_fill(struct rng *rng, uint8_t *at, size_t size);
/* A valid extended state in the standard XSAVE format. */
void value_xsave(struct rng *rng, uint8_t *image);

#endif
