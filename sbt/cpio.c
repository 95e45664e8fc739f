/* newc archives. Every number is eight hexadecimal digits of a foreign file. */
#define _GNU_SOURCE
#include "sbt/cpio.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/diag.h"
#include "sbt/unpack.h"

#define HEADER 110u
#define UNPACKED_LIMIT (1 * GIB)
#define MODE_TYPE 0170000u
#define MODE_FILE 0100000u

enum field { FIELD_MODE = 1, FIELD_SIZE = 6, FIELD_NAME = 11 };

static bool number(const uint8_t *header, enum field field, uint32_t *value) {
    *value = 0;
    for (unsigned i = 0; i < 8; i++) {
        uint8_t c = header[6 + 8 * (unsigned)field + i];
        unsigned digit = 16;
        if (c >= '0' && c <= '9')
            digit = c - (unsigned)'0';
        else if ((c | 32) >= 'a' && (c | 32) <= 'f')
            digit = (c | 32u) - 'a' + 10;
        if (digit == 16)
            return false;
        *value = *value << 4 | digit;
    }
    return true;
}

static int damaged(const char *path) {
    diag_error("initrd '%s' is damaged or no cpio archive; get a complete copy", path);
    return -EINVAL;
}

/* One member at data; *used is what it takes. */
static int visit_member(const char *path, const uint8_t *data, size_t size, size_t *used, cpio_visitor visit,
                        void *context) {
    uint32_t mode, length, name_size;
    if (size < HEADER || !number(data, FIELD_MODE, &mode) || !number(data, FIELD_SIZE, &length) ||
        !number(data, FIELD_NAME, &name_size))
        return damaged(path);
    size_t body = align_up((uint64_t)HEADER + name_size, 4);
    if (!name_size || body > size || length > size - body || data[HEADER + name_size - 1])
        return damaged(path);
    *used = align_up((uint64_t)body + length, 4);
    if (*used > size)
        *used = size;
    if ((mode & MODE_TYPE) != MODE_FILE)
        return 0;
    return visit(context, (const char *)data + HEADER, data + body, length);
}

static int walk(const char *path, const uint8_t *data, size_t size, bool may_unpack, cpio_visitor visit,
                void *context) {
    size_t at = 0;
    while (at < size) {
        size_t used = 1;
        int result = 0;
        if (size - at >= 6 && (!memcmp(data + at, "070701", 6) || !memcmp(data + at, "070702", 6))) {
            result = visit_member(path, data + at, size - at, &used, visit, context);
        } else if (data[at] && may_unpack && unpack_is_packed(data + at, size - at)) {
            uint8_t *inner;
            size_t inner_size;
            result = unpack_stream(path, data + at, size - at, UNPACKED_LIMIT, &inner, &inner_size, &used);
            if (!result) {
                result = walk(path, inner, inner_size, false, visit, context);
                free(inner);
            }
        } else if (data[at]) {
            return damaged(path);
        }
        if (result)
            return result;
        at += used ? used : 1;
    }
    return 0;
}

int cpio_walk(const char *path, const uint8_t *data, size_t size, cpio_visitor visit, void *context) {
    return walk(path, data, size, true, visit, context);
}
