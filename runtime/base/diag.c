#include "base/diag.h"

#include <stdarg.h>
#include <stdio.h>
#include <unistd.h>

static void emit(const char *kind, const char *format, va_list args) {
    char line[1024];
    int head = snprintf(line, sizeof line, "nestor: %s", kind);
    int body = vsnprintf(line + head, sizeof line - head - 1, format, args);
    size_t length = (size_t)head + (body < 0 ? 0 : (size_t)body);
    if (length > sizeof line - 2)
        length = sizeof line - 2;
    line[length++] = '\n';
    ssize_t ignored = write(STDERR_FILENO, line, length);
    (void)ignored;
}

void diag_error(const char *format, ...) {
    va_list args;
    va_start(args, format);
    emit("", format, args);
    va_end(args);
}

void diag_warn(const char *format, ...) {
    va_list args;
    va_start(args, format);
    emit("warning: ", format, args);
    va_end(args);
}
