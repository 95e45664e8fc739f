#define _GNU_SOURCE
#include "base/trace.h"
#include "base/diag.h"

#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#define LINE_MAX_BYTES 512
#define NS_PER_SECOND 1000000000ull

static uint64_t now_ns(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * NS_PER_SECOND + (uint64_t)now.tv_nsec;
}

int trace_open(struct trace *trace, uint32_t subjects, const char *path) {
    *trace = (struct trace){.subjects = subjects, .fd = STDERR_FILENO, .start_ns = now_ns(), .path = path};
    if (!path)
        return 0;
    trace->fd = open(path, O_WRONLY | O_CREAT | O_TRUNC | O_APPEND | O_CLOEXEC, 0644);
    if (trace->fd < 0) {
        int error = errno;
        diag_error("--trace: '%s' cannot be written: %s; give a path in a writable directory", path,
                   strerror(error));
        *trace = (struct trace){.fd = STDERR_FILENO};
        return -error;
    }
    trace->owns_fd = true;
    return 0;
}

void trace_close(struct trace *trace) {
    if (trace->owns_fd)
        close(trace->fd);
    *trace = (struct trace){.fd = STDERR_FILENO};
}

/* A log that cannot be written (a full disk) is no reason to stop the VM: one line tells of the first loss.
 * Of standard error there is nobody to tell. */
static void tell_loss(const struct trace *trace, int error) {
    bool *told = &((struct trace *)trace)->told;
    if (trace->path && !__atomic_exchange_n(told, true, __ATOMIC_RELAXED))
        diag_warn("--trace: '%s' cannot be written: %s; what does not fit is lost", trace->path,
                  strerror(error));
}

static void put(const struct trace *trace, const char *bytes, size_t count) {
    while (count) {
        ssize_t done = write(trace->fd, bytes, count);
        if (done < 0 && errno == EINTR)
            continue;
        if (done <= 0) {
            tell_loss(trace, done ? errno : EIO);
            return;
        }
        bytes += done;
        count -= (size_t)done;
    }
}

static size_t format_time(const struct trace *trace, char *line, size_t size) {
    uint64_t ns = now_ns() - trace->start_ns;
    int count = snprintf(line, size, "[%5llu.%06llu] ", (unsigned long long)(ns / NS_PER_SECOND),
                         (unsigned long long)(ns % NS_PER_SECOND / 1000));
    return count < 0 ? 0 : (size_t)count;
}

/* Append to line[at], never past size - 1. */
static size_t format_rest(char *line, size_t at, size_t size, const char *format, va_list args) {
    int count = vsnprintf(line + at, size - at, format, args);
    size_t end = at + (count < 0 ? 0 : (size_t)count);
    return end < size ? end : size - 1;
}

void trace_line(const struct trace *trace, const char *format, ...) {
    char line[LINE_MAX_BYTES];
    va_list args;
    size_t end = format_time(trace, line, sizeof line);
    va_start(args, format);
    end = format_rest(line, end, sizeof line, format, args);
    va_end(args);
    line[end++] = '\n'; /* over the terminator */
    put(trace, line, end);
}

void trace_text_begin(struct trace_text *text, const struct trace *trace) {
    text->trace = trace;
    text->used = format_time(trace, text->bytes, sizeof text->bytes);
}

void trace_text_add(struct trace_text *text, const char *format, ...) {
    char line[LINE_MAX_BYTES];
    va_list args;
    va_start(args, format);
    size_t length = format_rest(line, 0, sizeof line, format, args);
    va_end(args);
    if (text->used + length > sizeof text->bytes)
        trace_text_end(text);
    memcpy(text->bytes + text->used, line, length);
    text->used += length;
}

void trace_text_end(struct trace_text *text) {
    put(text->trace, text->bytes, text->used);
    text->used = 0;
}
