/* Walking initial RAM disks: newc archives, one behind another, each packed or not (Linux
 * Documentation/driver-api/early-userspace/buffer-format.rst). */
#ifndef NESTOR_SBT_CPIO_H
#define NESTOR_SBT_CPIO_H

#include "base/types.h"

/* Called for each regular file; a non-zero result ends the walk and is its result. */
typedef int (*cpio_visitor)(void *context, const char *name, const uint8_t *data, size_t size);

/* Visit the files of an initrd. path names it in messages. 0, -errno after one diag_error() line, or what the
 * visitor returned. */
MUST_CHECK int cpio_walk(const char *path, const uint8_t *data, size_t size, cpio_visitor visit,
                         void *context);

#endif
