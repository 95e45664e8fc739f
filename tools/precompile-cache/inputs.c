/* The files that are named: kernel, modules, initial RAM disk, profiles. */
#define _GNU_SOURCE
#include "precompile-cache/precompile.h"

#include <errno.h>
#include <fcntl.h>
#include <fts.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/diag.h"
#include "dbt/portable.h"
#include "sbt/cpio.h"
#include "sbt/unpack.h"

#define FILE_LIMIT (1 * GIB)
#define MODULE_LIMIT (256 * MIB)
#define IMAGES_LIMIT 65000u

static int out_of_memory(void) {
    diag_error("precompile-cache: out of memory");
    return -ENOMEM;
}

static int read_file(const char *path, uint8_t **bytes, size_t *size) {
    struct stat status;
    int fd = open(path, O_RDONLY | O_CLOEXEC), result = 0;
    *bytes = NULL;
    if (fd < 0 || fstat(fd, &status)) {
        result = -errno;
        diag_error("file '%s' cannot be read: %s", path, strerror(errno));
    } else if (!S_ISREG(status.st_mode) || (uint64_t)status.st_size > FILE_LIMIT) {
        result = -EINVAL;
        diag_error("file '%s' is no regular file of at most 1 GiB", path);
    }
    size_t room = result ? 0 : (size_t)status.st_size;
    if (!result) {
        *bytes = malloc(room ? room : 1);
        result = *bytes ? 0 : out_of_memory();
    }
    *size = 0;
    while (!result && *size < room) {
        ssize_t got = read(fd, *bytes + *size, room - *size);
        if (got < 0 && errno == EINTR)
            continue;
        if (got <= 0) {
            result = got < 0 ? -errno : -EIO;
            diag_error("file '%s' cannot be read: %s", path, got < 0 ? strerror(errno) : "it became shorter");
            break;
        }
        *size += (size_t)got;
    }
    if (fd >= 0)
        close(fd);
    if (result) {
        free(*bytes);
        *bytes = NULL;
    }
    return result;
}

static int add_image(struct precompile *p, struct precompile_image **image) {
    if (p->images == IMAGES_LIMIT) {
        diag_error("precompile-cache: more than %u modules; name fewer", IMAGES_LIMIT);
        return -E2BIG;
    }
    if (p->images == p->image_room) {
        size_t room = p->image_room ? p->image_room * 2 : 64;
        struct precompile_image *grown = realloc(p->image, room * sizeof *grown);
        if (!grown)
            return out_of_memory();
        p->image = grown;
        p->image_room = room;
    }
    *image = &p->image[p->images];
    **image = (struct precompile_image){0};
    return 0;
}

int precompile_open_kernel(struct precompile *p, const char *path) {
    struct precompile_image *image;
    int result = add_image(p, &image);
    if (!result)
        result = image_open_kernel(&image->image, path);
    if (result)
        return result;
    p->images++;
    result = add_image(p, &image);
    if (!result)
        result = image_open_loader(&image->image, path);
    if (!result)
        p->images++;
    return result == -ENOENT ? 0 : result;
}

static bool is_module_name(const char *name) {
    const char *dot = strstr(name, ".ko");
    return dot && (!dot[3] || !strcmp(dot, ".ko.xz") || !strcmp(dot, ".ko.zst") || !strcmp(dot, ".ko.gz"));
}

/* Takes bytes over. */
static int add_module(struct precompile *p, const char *path, uint8_t *bytes, size_t size) {
    struct precompile_image *image;
    int result = 0;
    if (unpack_is_packed(bytes, size)) {
        uint8_t *unpacked;
        size_t unpacked_size, used;
        result = unpack_stream(path, bytes, size, MODULE_LIMIT, &unpacked, &unpacked_size, &used);
        free(bytes);
        if (result)
            return result;
        bytes = unpacked;
        size = unpacked_size;
    }
    /* The same file again, from the module tree and from the initial RAM disk, say. */
    for (size_t i = 0; i < p->images; i++)
        if (p->image[i].bytes && p->image[i].size == size && !memcmp(p->image[i].bytes, bytes, size)) {
            free(bytes);
            return 0;
        }
    result = add_image(p, &image);
    if (result) {
        free(bytes);
        return result;
    }
    image->bytes = bytes;
    image->size = size;
    image->name = strdup(path);
    p->images++;
    return image->name ? 0 : out_of_memory();
}

static int compare_paths(const FTSENT **left, const FTSENT **right) {
    return strcmp((*left)->fts_name, (*right)->fts_name);
}

int precompile_add_modules(struct precompile *p, const char *path) {
    char *const roots[] = {(char *)path, NULL};
    FTS *tree = fts_open(roots, FTS_PHYSICAL | FTS_NOCHDIR, compare_paths);
    if (!tree)
        return out_of_memory();
    int result = 0;
    size_t before = p->images;
    FTSENT *entry;
    while (!result && (entry = fts_read(tree))) {
        if (entry->fts_info == FTS_NS || entry->fts_info == FTS_DNR || entry->fts_info == FTS_ERR) {
            diag_error("modules '%s' cannot be read: %s", entry->fts_path, strerror(entry->fts_errno));
            result = -entry->fts_errno;
        } else if (entry->fts_info == FTS_F && (!entry->fts_level || is_module_name(entry->fts_name))) {
            uint8_t *bytes;
            size_t size;
            result = read_file(entry->fts_path, &bytes, &size);
            if (!result)
                result = add_module(p, entry->fts_path, bytes, size);
        }
    }
    fts_close(tree);
    if (!result && p->images == before)
        diag_warn("modules '%s': there is no new module (.ko, .ko.xz, .ko.zst, .ko.gz)", path);
    return result;
}

static int take_member(void *context, const char *name, const uint8_t *data, size_t size) {
    if (!is_module_name(name))
        return 0;
    uint8_t *copy = malloc(size ? size : 1);
    if (!copy)
        return out_of_memory();
    memcpy(copy, data, size);
    return add_module(context, name, copy, size);
}

int precompile_add_initrd(struct precompile *p, const char *path) {
    uint8_t *bytes;
    size_t size;
    int result = read_file(path, &bytes, &size);
    if (!result)
        result = cpio_walk(path, bytes, size, take_member, p);
    free(bytes);
    return result;
}

/* The modes of kernel code that a profile saw, besides the first, as far as code depends on them. */
static void take_modes(struct precompile *p) {
    for (uint64_t i = 0; i < p->profile.lines; i++) {
        uint32_t mode = p->profile.line[i].mode;
        bool known = mode == NTC_PROFILE_ANY_MODE || mode == dbt_portable_key(mode, PORTABLE_ANYWHERE);
        for (unsigned k = 0; k < p->mode_count && !known; k++)
            known = mode == dbt_portable_key(p->modes[k], PORTABLE_SCALAR) ||
                    mode == dbt_portable_key(p->modes[k], PORTABLE_VECTOR);
        if (!known && p->mode_count < BLOCKS_MODES_MAX)
            p->modes[p->mode_count++] = dbt_portable_mode_like(p->modes[0], mode);
    }
}

int precompile_read_profile(struct precompile *p, const char *path) {
    struct ntc_error error;
    int result = ntc_profile_read(&p->profile, path, &error);
    if (result)
        diag_error("%s", error.line);
    else
        take_modes(p);
    return result;
}

void precompile_close_inputs(struct precompile *p) {
    for (size_t i = 0; i < p->images; i++) {
        struct precompile_image *image = &p->image[i];
        if (image->analysed) {
            pieces_destroy(&image->cut);
            estimate_destroy(&image->estimate);
            discovery_destroy(&image->discovery);
            patched_destroy(&image->patched);
        }
        image_close(&image->image);
        free(image->bytes);
        free(image->name);
    }
    free(p->image);
    ntc_profile_destroy(&p->profile);
}
