#define _GNU_SOURCE
#include "stats_file.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/diag.h"

static int write_all(int fd, const char *text, size_t length) {
    while (length) {
        ssize_t count = write(fd, text, length);
        if (count < 0 && errno == EINTR)
            continue;
        if (count < 0)
            return -errno;
        text += count;
        length -= (size_t)count;
    }
    return 0;
}

/* A device or a pipe cannot be replaced: write into it. */
static bool is_replaceable(const char *path) {
    struct stat status;
    return stat(path, &status) || S_ISREG(status.st_mode);
}

static int write_file(const char *path, const char *text, size_t length) {
    char temporary[PATH_MAX];
    bool replace = is_replaceable(path);
    int written = snprintf(temporary, sizeof temporary, replace ? "%s.tmp.%d" : "%s", path, (int)getpid());
    if (written < 0 || (size_t)written >= sizeof temporary)
        return -ENAMETOOLONG;
    int fd = open(temporary, O_WRONLY | O_CLOEXEC | (replace ? O_CREAT | O_TRUNC | O_NOFOLLOW : 0), 0644);
    if (fd < 0)
        return -errno;
    int result = write_all(fd, text, length);
    if (close(fd) && !result)
        result = -errno;
    if (replace && !result && rename(temporary, path))
        result = -errno;
    if (replace && result)
        unlink(temporary);
    return result;
}

/* The text, newline included; NULL after one line. */
static char *text_of(const cJSON *tree, size_t *length) {
    char *json = cJSON_Print(tree);
    char *text = NULL;
    int count = json ? asprintf(&text, "%s\n", json) : -1;
    cJSON_free(json);
    if (count < 0) {
        diag_error("--stats: no memory for the counters");
        return NULL;
    }
    *length = (size_t)count;
    return text;
}

void stats_file_tell(const cJSON *tree) {
    size_t length;
    char *text = text_of(tree, &length);
    if (text)
        (void)write_all(STDERR_FILENO, text, length); /* there is nowhere to complain */
    free(text);
}

int stats_file_write(const char *path, const cJSON *tree) {
    size_t length;
    char *text = text_of(tree, &length);
    if (!text)
        return -ENOMEM;
    int result = strcmp(path, "-") ? write_file(path, text, length) : write_all(STDOUT_FILENO, text, length);
    free(text);
    if (result)
        diag_error("--stats: '%s' cannot be written: %s; give a path in a writable directory", path,
                   strerror(-result));
    return result;
}
