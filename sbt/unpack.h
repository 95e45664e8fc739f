/* Unpacking files that do not state their unpacked size: modules and initial RAM disks. */
#ifndef NESTOR_SBT_UNPACK_H
#define NESTOR_SBT_UNPACK_H

#include "base/types.h"

/* Is it gzip, xz, zstd or lzma by its first bytes? */
bool unpack_is_packed(const uint8_t *data, size_t size);
/* Unpack the stream that data starts with (what follows it is left alone, *used says how much was read) into
 * a fresh allocation of at most limit bytes, which the caller frees. path names the file in messages. 0, or
 * -errno after one diag_error() line. */
MUST_CHECK int unpack_stream(const char *path, const uint8_t *data, size_t size, size_t limit,
                             uint8_t **unpacked, size_t *unpacked_size, size_t *used);

#endif
