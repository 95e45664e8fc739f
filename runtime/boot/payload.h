/* Unpacking a bzImage's payload: the compressed ELF file inside, in any format that x86 kernels use. */
#ifndef NESTOR_BOOT_PAYLOAD_H
#define NESTOR_BOOT_PAYLOAD_H

#include "base/types.h"

/* The name of the compression that data starts with ("gzip", "xz", "lzma", "zstd", "lz4", "bzip2", and the
 * unsupported "lzo"), "ELF" for none, or NULL when it is none of them. */
const char *payload_format(const uint8_t *data, size_t size);

bool payload_can_unpack(const char *format);

/* A payload that is being unpacked. */
struct payload;

/* Read a payload out of a file and begin to unpack it, to at most limit bytes. [offset, offset + size) is the
 * payload as the setup header delimits it, with the four bytes of unpacked size that the kernel's build
 * appends; the file stays the caller's. 0, or -errno after one diag_error() line. */
struct boot_file;
MUST_CHECK int payload_open(struct payload **payload, const struct boot_file *file, uint64_t offset,
                            size_t size, size_t limit);
void payload_close(struct payload *payload);
size_t payload_size(const struct payload *payload);
/* Bytes of what it unpacks to, all of which the caller knows to be inside of it; cheapest in ascending order.
 * 0, or -errno after one line. */
MUST_CHECK int payload_read(struct payload *payload, uint64_t offset, void *buffer, uint64_t length);
/* Is all of it sound, also what was not asked for? 0, or -errno after one line. */
MUST_CHECK int payload_check(struct payload *payload);
#endif
