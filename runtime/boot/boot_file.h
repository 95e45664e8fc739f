/* A file to boot from: opened once, read as often as the guest boots, bounded by its size when opened. */
#ifndef NESTOR_BOOT_BOOT_FILE_H
#define NESTOR_BOOT_BOOT_FILE_H

#include "base/types.h"

struct boot_file {
    char *path;
    int fd;
    uint64_t size;
};

/* Open a regular file for reading. what names its role in messages ("kernel", "initrd"). 0 or -errno with
 * one diag_error() line; on failure *file is closed. */
MUST_CHECK int boot_file_open(struct boot_file *file, const char *path, const char *what);
void boot_file_close(struct boot_file *file);
/* Read exactly length bytes at offset; a file that shrank is an error told by one line. */
MUST_CHECK int boot_file_read(const struct boot_file *file, uint64_t offset, void *buffer, uint64_t length);

/* Bytes to parse: a whole file, or the kernel packed inside of it. */
struct payload;
struct boot_bytes {
    const struct boot_file *file; /* its path names the bytes in messages */
    struct payload *payload;      /* NULL: the file's own bytes */
    uint64_t size;
};

/* The same as boot_file_read() for either. */
MUST_CHECK int boot_bytes_read(const struct boot_bytes *bytes, uint64_t offset, void *buffer,
                               uint64_t length);

#endif
