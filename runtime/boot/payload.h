/* Unpacking a bzImage's payload: the compressed ELF file inside, in any format that x86 kernels use. */
#ifndef NESTOR_BOOT_PAYLOAD_H
#define NESTOR_BOOT_PAYLOAD_H

#include "base/types.h"

/* The name of the compression that data starts with ("gzip", "xz", "lzma", "zstd", "lz4", "bzip2", and the
 * unsupported "lzo"), "ELF" for none, or NULL when it is none of them. */
const char *payload_format(const uint8_t *data, size_t size);

bool payload_can_unpack(const char *format);

/* Zeroed memory straight from the system and back to it, or NULL. */
uint8_t *payload_allocate(size_t size);
void payload_free(uint8_t *memory, size_t size);

/* Unpack into a fresh allocation of at most limit bytes. data is the payload as the setup header delimits it,
 * with the four bytes of unpacked size that the kernel's build appends. path names the file in messages. 0,
 * or -errno after one diag_error() line. The caller frees *unpacked with payload_free(). */
MUST_CHECK int payload_unpack(const char *path, const uint8_t *data, size_t size, size_t limit,
                              uint8_t **unpacked, size_t *unpacked_size);
#endif
