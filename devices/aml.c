/* AML writer. A package length is one to four bytes and is known only at the end of its term, so aml_end()
 * makes room for it in front of the body; terms are small, the moving costs nothing. */
#include "devices/aml.h"

#include <stdlib.h>
#include <string.h>

#define OP_NAME 0x08
#define OP_BYTE 0x0a
#define OP_WORD 0x0b
#define OP_DWORD 0x0c
#define OP_STRING 0x0d
#define OP_QWORD 0x0e
#define OP_SCOPE 0x10
#define OP_BUFFER 0x11
#define OP_PACKAGE 0x12
#define OP_METHOD 0x14
#define OP_DUAL_NAME 0x2e
#define OP_MULTI_NAME 0x2f
#define OP_EXTENDED 0x5b
#define OP_EXTENDED_DEVICE 0x82
#define OP_ARG0 0x68
#define OP_STORE 0x70
#define OP_IF 0xa0
#define OP_RETURN 0xa4
/* Address space descriptors: producer, fixed minimum and maximum. */
#define RANGE_FLAGS 0x0c

void aml_init(struct aml *aml) {
    *aml = (struct aml){0};
}

void aml_destroy(struct aml *aml) {
    free(aml->data);
    *aml = (struct aml){0};
}

static bool reserve(struct aml *aml, size_t more) {
    if (aml->failed)
        return false;
    if (aml->capacity - aml->size >= more)
        return true;
    size_t capacity = 2 * aml->capacity + more + 256;
    uint8_t *data = realloc(aml->data, capacity);
    if (!data) {
        aml->failed = true;
        return false;
    }
    aml->data = data;
    aml->capacity = capacity;
    return true;
}

void aml_bytes(struct aml *aml, const void *bytes, size_t count) {
    if (!reserve(aml, count))
        return;
    memcpy(aml->data + aml->size, bytes, count);
    aml->size += count;
}

static void byte(struct aml *aml, uint8_t value) {
    aml_bytes(aml, &value, 1);
}

static void little(struct aml *aml, uint64_t value, unsigned bytes) {
    aml_bytes(aml, &value, bytes);
}

static void path(struct aml *aml, const char *name) {
    if (*name == '\\')
        byte(aml, (uint8_t)*name++);
    size_t segments = (strlen(name) + 1) / 5;
    if (segments == 2) {
        byte(aml, OP_DUAL_NAME);
    } else if (segments > 2) {
        byte(aml, OP_MULTI_NAME);
        byte(aml, (uint8_t)segments);
    }
    for (size_t i = 0; i < segments; i++)
        aml_bytes(aml, name + 5 * i, 4);
}

static void begin(struct aml *aml) {
    if (aml->depth == AML_DEPTH) {
        aml->failed = true;
        return;
    }
    aml->open[aml->depth++] = aml->size;
}

void aml_end(struct aml *aml) {
    if (aml->failed || aml->depth == 0) {
        aml->failed = true;
        return;
    }
    size_t start = aml->open[--aml->depth];
    size_t body = aml->size - start;
    /* The length counts its own bytes. */
    size_t width = body + 1 < 0x40 ? 1 : body + 2 < 0x1000 ? 2 : body + 3 < 0x100000 ? 3 : 4;
    size_t length = body + width;
    if (!reserve(aml, width))
        return;
    memmove(aml->data + start + width, aml->data + start, body);
    aml->size += width;
    if (width == 1) {
        aml->data[start] = (uint8_t)length;
        return;
    }
    aml->data[start] = (uint8_t)((width - 1) << 6 | (length & 15));
    for (size_t i = 1; i < width; i++)
        aml->data[start + i] = (uint8_t)(length >> (8 * i - 4));
}

void aml_begin_scope(struct aml *aml, const char *name) {
    byte(aml, OP_SCOPE);
    begin(aml);
    path(aml, name);
}

void aml_begin_device(struct aml *aml, const char *name) {
    byte(aml, OP_EXTENDED);
    byte(aml, OP_EXTENDED_DEVICE);
    begin(aml);
    path(aml, name);
}

void aml_begin_method(struct aml *aml, const char *name, unsigned arguments) {
    byte(aml, OP_METHOD);
    begin(aml);
    path(aml, name);
    byte(aml, (uint8_t)(arguments & 7));
}

void aml_begin_package(struct aml *aml, unsigned elements) {
    byte(aml, OP_PACKAGE);
    begin(aml);
    byte(aml, (uint8_t)elements);
}

void aml_begin_if(struct aml *aml, const char *name) {
    byte(aml, OP_IF);
    begin(aml);
    path(aml, name);
}

void aml_integer(struct aml *aml, uint64_t value) {
    if (value <= 1) {
        byte(aml, (uint8_t)value);
    } else if (value <= UINT8_MAX) {
        byte(aml, OP_BYTE);
        little(aml, value, 1);
    } else if (value <= UINT16_MAX) {
        byte(aml, OP_WORD);
        little(aml, value, 2);
    } else if (value <= UINT32_MAX) {
        byte(aml, OP_DWORD);
        little(aml, value, 4);
    } else {
        byte(aml, OP_QWORD);
        little(aml, value, 8);
    }
}

void aml_string(struct aml *aml, const char *text) {
    byte(aml, OP_STRING);
    aml_bytes(aml, text, strlen(text) + 1);
}

void aml_name(struct aml *aml, const char *name) {
    byte(aml, OP_NAME);
    path(aml, name);
}

void aml_name_integer(struct aml *aml, const char *name, uint64_t value) {
    aml_name(aml, name);
    aml_integer(aml, value);
}

static unsigned hex_digit(char c) {
    return c >= 'A' ? (unsigned)(c - 'A') + 10 : (unsigned)(c - '0');
}

void aml_name_eisa_id(struct aml *aml, const char *name, const char *id) {
    uint32_t maker = (uint32_t)(id[0] - '@') << 10 | (uint32_t)(id[1] - '@') << 5 | (uint32_t)(id[2] - '@');
    uint32_t product =
        hex_digit(id[3]) << 12 | hex_digit(id[4]) << 8 | hex_digit(id[5]) << 4 | hex_digit(id[6]);
    aml_name_integer(aml, name, __builtin_bswap32(maker << 16 | product));
}

void aml_return_name(struct aml *aml, const char *name) {
    byte(aml, OP_RETURN);
    path(aml, name);
}

void aml_store_arg0(struct aml *aml, const char *name) {
    byte(aml, OP_STORE);
    byte(aml, OP_ARG0);
    path(aml, name);
}

void aml_begin_resources(struct aml *aml) {
    aml_name(aml, "_CRS");
    byte(aml, OP_BUFFER);
    begin(aml);
    byte(aml, OP_WORD);
    aml->resource = aml->size;
    little(aml, 0, 2);
}

void aml_end_resources(struct aml *aml) {
    static const uint8_t end_tag[2] = {0x79, 0x00};
    aml_bytes(aml, end_tag, sizeof end_tag);
    if (!aml->failed) {
        uint16_t size = (uint16_t)(aml->size - aml->resource - 2);
        memcpy(aml->data + aml->resource, &size, sizeof size);
    }
    aml_end(aml);
}

void aml_io(struct aml *aml, uint16_t base, uint8_t length) {
    byte(aml, 0x47);
    byte(aml, 1); /* decodes 16 bits */
    little(aml, base, 2);
    little(aml, base, 2);
    byte(aml, 1);
    byte(aml, length);
}

void aml_irq(struct aml *aml, unsigned irq) {
    byte(aml, 0x22);
    little(aml, 1u << irq, 2);
}

void aml_memory32(struct aml *aml, uint32_t base, uint32_t length, bool writable) {
    byte(aml, 0x86);
    little(aml, 9, 2);
    byte(aml, writable);
    little(aml, base, 4);
    little(aml, length, 4);
}

/* Granularity, minimum, maximum, translation and length, each of some bytes. */
static void range(struct aml *aml, uint8_t tag, uint8_t type, uint8_t type_flags, uint64_t first,
                  uint64_t last, unsigned bytes) {
    byte(aml, tag);
    little(aml, 3 + 5 * bytes, 2);
    byte(aml, type);
    byte(aml, RANGE_FLAGS);
    byte(aml, type_flags);
    little(aml, 0, bytes);
    little(aml, first, bytes);
    little(aml, last, bytes);
    little(aml, 0, bytes);
    little(aml, last - first + 1, bytes);
}

void aml_bus_range(struct aml *aml, uint16_t first, uint16_t last) {
    range(aml, 0x88, 2, 0, first, last, 2);
}

void aml_io_range(struct aml *aml, uint16_t first, uint16_t last) {
    range(aml, 0x88, 1, 3, first, last, 2);
}

void aml_memory_range32(struct aml *aml, uint32_t first, uint32_t last) {
    range(aml, 0x87, 0, 1, first, last, 4);
}

void aml_memory_range64(struct aml *aml, uint64_t first, uint64_t last) {
    range(aml, 0x8a, 0, 1, first, last, 8);
}
