/* Opening raw images. The lock is an open file description lock (fcntl(2), F_OFD_SETLK) on the whole file: it
 * goes away with the descriptor however the process ends, and it also keeps a second disk of the same VM off
 * the file. */
#define _GNU_SOURCE
#include "devices/disk_raw.h"

#include "base/diag.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

static int image_lock(const struct disk_image *image) {
    struct flock lock = {.l_type = image->read_only ? F_RDLCK : F_WRLCK, .l_whence = SEEK_SET};
    if (!fcntl(image->fd, F_OFD_SETLK, &lock))
        return 0;
    if (errno == EAGAIN || errno == EACCES) {
        diag_error(
            "disk %s: in use by another process; stop that one, or open the disk with readonly=on in both",
            image->path);
        return -EBUSY;
    }
    /* Some network file systems have no locks: nothing to protect with, yet no reason not to run. */
    diag_warn("disk %s: cannot be locked (%s); make sure that nothing else writes to it", image->path,
              strerror(errno));
    return 0;
}

static int image_measure(struct disk_image *image) {
    struct stat stat;
    if (fstat(image->fd, &stat)) {
        int result = -errno;
        diag_error("disk %s: cannot be examined: %s", image->path, strerror(errno));
        return result;
    }
    if (!S_ISREG(stat.st_mode) && !S_ISBLK(stat.st_mode)) {
        diag_error("disk %s: is neither a file nor a block device; give a disk image", image->path);
        return -EINVAL;
    }
    off_t size = lseek(image->fd, 0, SEEK_END);
    if (size <= 0) {
        diag_error("disk %s: is empty; give it a size, for instance with: truncate -s 1G", image->path);
        return -EINVAL;
    }
    image->file_size = (uint64_t)size;
    image->sectors = ((uint64_t)size + DISK_SECTOR - 1) / DISK_SECTOR;
    if (!image->read_only) {
        /* Behind the end of a file nothing is lost by trying. */
        uint64_t behind = align_up(image->file_size, PAGE_SIZE);
        image->can_discard =
            S_ISBLK(stat.st_mode) ||
            !fallocate(image->fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, (off_t)behind, PAGE_SIZE);
    }
    return 0;
}

int disk_raw_open(struct disk_image *image, const char *path, bool read_only) {
    int result;
    *image = (struct disk_image){.read_only = read_only, .fd = -1, .path = strdup(path)};
    if (!image->path)
        return -ENOMEM;
    /* O_NONBLOCK: a FIFO given by mistake must not hang the launcher. */
    image->fd = open(path, (read_only ? O_RDONLY : O_RDWR) | O_CLOEXEC | O_NOCTTY | O_NONBLOCK);
    if (image->fd < 0) {
        result = -errno;
        const char *mend = "";
        if (result == -EACCES || result == -EROFS || result == -EPERM)
            mend = read_only ? "; check its permissions" : "; check its permissions or use readonly=on";
        diag_error("disk %s: cannot be opened: %s%s", path, strerror(errno), mend);
        goto fail;
    }
    result = image_measure(image);
    if (result)
        goto fail;
    if (fcntl(image->fd, F_SETFL, 0)) { /* io_uring takes O_NONBLOCK at its word even for files */
        result = -errno;
        goto fail;
    }
    result = image_lock(image);
    if (result)
        goto fail;
    return 0;
fail:
    if (image->fd >= 0)
        close(image->fd);
    free(image->path);
    *image = (struct disk_image){.fd = -1};
    return result;
}

int disk_raw_close(struct disk_image *image) {
    int result = 0;
    if (image->fd < 0)
        return 0;
    if (!image->read_only && fdatasync(image->fd)) {
        result = -errno;
        diag_error("disk %s: the last writes may be lost: %s", image->path, strerror(errno));
    }
    close(image->fd);
    free(image->path);
    *image = (struct disk_image){.fd = -1};
    return result;
}
