/* Raw disk images: a regular file or a block device, opened, sized and locked. */
#ifndef NESTOR_DEVICES_DISK_RAW_H
#define NESTOR_DEVICES_DISK_RAW_H

#include "base/types.h"

#define DISK_SECTOR 512

struct disk_image {
    char *path;
    int fd;
    bool read_only;
    bool can_discard; /* holes can be punched: they read as zeros */
    uint64_t file_size;
    uint64_t
        sectors; /* of 512 bytes; a last partial one reads as padded with zeros and is completed by a write */
};

/* Open and lock an image for as long as it is open: exclusively for writing, else shared with other readers.
 * On failure one line says what and where, and -errno is returned (-EBUSY: in use by another process). */
MUST_CHECK int disk_raw_open(struct disk_image *image, const char *path, bool read_only);
/* Write back what the host still caches, unlock and close. 0, or -errno of the write-back. */
int disk_raw_close(struct disk_image *image);

#endif
