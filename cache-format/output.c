/* A file appears whole or not at all: a temporary one beside it, synced, then renamed over it. Of two writers
 * the later rename wins, with all of its bytes.
 */
#define _GNU_SOURCE
#include "cache-format/writer_private.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

static int write_all(int fd, const uint8_t *bytes, uint64_t length) {
    while (length) {
        ssize_t wrote = write(fd, bytes, length < 1u << 30 ? length : 1u << 30);
        if (wrote < 0 && errno == EINTR)
            continue;
        if (wrote <= 0)
            return wrote ? -errno : -ENOSPC;
        bytes += wrote;
        length -= (uint64_t)wrote;
    }
    return 0;
}

static int refuse(const char *path, int result, struct ntc_error *error) {
    if (result == -ENOSPC || result == -EDQUOT || result == -EFBIG)
        return ntc_fail(error, NTC_FAULT_NO_SPACE,
                        "cache '%s' cannot be written: %s; what was there before is unchanged", path,
                        strerror(-result));
    return ntc_fail(error, NTC_FAULT_IO, "cache '%s' cannot be written: %s", path, strerror(-result));
}

/* The directory's entry reaches the disk, too. Failing here loses nothing that was there. */
static void sync_directory(const char *path) {
    const char *slash = strrchr(path, '/');
    char *name = slash ? strndup(path, (size_t)(slash - path) + 1) : strdup(".");
    int fd = name ? open(name, O_RDONLY | O_DIRECTORY | O_CLOEXEC) : -1;
    if (fd >= 0) {
        (void)fsync(fd);
        close(fd);
    }
    free(name);
}

int ntc_output_replace(const char *path, const void *bytes, uint64_t length, struct ntc_error *error) {
    char *temporary;
    struct stat there;
    if (!stat(path, &there) && !S_ISREG(there.st_mode))
        return ntc_fail(error, NTC_FAULT_IO, "cache '%s' cannot be written: it is not a regular file", path);
    if (asprintf(&temporary, "%s.XXXXXX", path) < 0)
        return ntc_fail(error, NTC_FAULT_MEMORY, "no memory to write cache '%s'", path);
    int fd = mkostemp(temporary, O_CLOEXEC);
    int result = fd < 0 ? -errno : 0;
    if (!result) {
        mode_t mask = umask(0);
        umask(mask);
        result = write_all(fd, bytes, length);
        if (!result && fchmod(fd, 0666 & ~mask))
            result = -errno;
        if (!result && fsync(fd))
            result = -errno;
        if (close(fd) && !result)
            result = -errno;
        if (!result && rename(temporary, path))
            result = -errno;
        if (result)
            unlink(temporary);
        else
            sync_directory(path);
    }
    free(temporary);
    return result ? refuse(path, result, error) : 0;
}
