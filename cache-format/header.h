/* Private to cache-format: the header of a file, wherever it stands. */
#ifndef NESTOR_CACHE_HEADER_H
#define NESTOR_CACHE_HEADER_H

#include "cache-format/error.h"
#include "cache-format/format.h"

/* Everything that the specification says of the header and the section table, but for digests. */
MUST_CHECK int ntc_header_check(const struct ntc_header *header, const char *path, struct ntc_error *error);
const struct ntc_section *ntc_header_section(const struct ntc_header *header, uint32_t kind);
bool ntc_is_zero(const void *bytes, size_t length);

#endif
