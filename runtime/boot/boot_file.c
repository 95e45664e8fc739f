#define _GNU_SOURCE
#include "boot/boot_file.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/diag.h"
#include "boot/payload.h"

int boot_file_open(struct boot_file *file, const char *path, const char *what) {
    struct stat status;
    *file = (struct boot_file){.fd = -1};
    /* O_NONBLOCK: a FIFO is refused below instead of waited for. */
    file->fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    if (file->fd < 0) {
        int error = errno;
        diag_error("%s '%s' cannot be opened: %s; %s", what, path, strerror(error),
                   error == EMFILE || error == ENFILE ? "raise the limit of open files (ulimit -n)"
                                                      : "give the path of a readable file");
        return -error;
    }
    if (fstat(file->fd, &status) || !S_ISREG(status.st_mode)) {
        diag_error("%s '%s' is not a regular file; give the path of a file", what, path);
        boot_file_close(file);
        return -EINVAL;
    }
    if (!status.st_size) {
        diag_error("%s '%s' is empty; give a complete file", what, path);
        boot_file_close(file);
        return -EINVAL;
    }
    file->size = (uint64_t)status.st_size;
    file->path = strdup(path);
    if (!file->path) {
        boot_file_close(file);
        return -ENOMEM;
    }
    return 0;
}

void boot_file_close(struct boot_file *file) {
    if (file->fd >= 0)
        close(file->fd);
    free(file->path);
    *file = (struct boot_file){.fd = -1};
}

static int refuse_truncated(const char *path, uint64_t end) {
    diag_error("'%s' is truncated: it ends before byte %llu; get a complete copy", path,
               (unsigned long long)end);
    return -EINVAL;
}

int boot_file_read(const struct boot_file *file, uint64_t offset, void *buffer, uint64_t length) {
    uint8_t *target = buffer;
    if (offset > file->size || length > file->size - offset)
        return refuse_truncated(file->path, offset + length);
    while (length) {
        /* One call moves at most 2 GiB: stay well under it. */
        size_t piece = length < GIB ? (size_t)length : (size_t)GIB;
        ssize_t count = pread(file->fd, target, piece, (off_t)offset);
        if (count < 0 && errno == EINTR)
            continue;
        if (count < 0) {
            int error = errno;
            diag_error("'%s' cannot be read: %s", file->path, strerror(error));
            return -error;
        }
        if (!count) {
            diag_error("'%s' became shorter while it was read; start again when nothing writes to it",
                       file->path);
            return -EIO;
        }
        target += count;
        offset += (uint64_t)count;
        length -= (uint64_t)count;
    }
    return 0;
}

int boot_bytes_read(const struct boot_bytes *bytes, uint64_t offset, void *buffer, uint64_t length) {
    if (!bytes->payload)
        return boot_file_read(bytes->file, offset, buffer, length);
    if (offset > bytes->size || length > bytes->size - offset)
        return refuse_truncated(bytes->file->path, offset + length);
    return payload_read(bytes->payload, offset, buffer, length);
}
