/* The text format of regression files. One item a line; # starts a comment; numbers are hexadecimal.
 *
 *   mode 64|32            writable-code 0|1
 *   entry OFFSET          offset of the stream in the code region; INT3 fills the rest
 *   reg NAME VALUE        general registers r0-r15 in encoding order, rflags, fs_base, gs_base
 *   selectors ES CS SS DS FS GS
 *   xsave OFFSET BYTES    of the standard-format image; bytes not given are 0
 *   data ADDRESS BYTES    likewise
 *   code BYTES            appended to the stream
 */
#include "regression.h"

#include "base/diag.h"
#include "compare.h"
#include "layout.h"

#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

static void write_bytes(FILE *out, const char *item, uint64_t address, const uint8_t *bytes, size_t size) {
    static const uint8_t zero[32];
    for (size_t i = 0; i < size; i += 32) {
        size_t part = size - i < 32 ? size - i : 32;
        if (!memcmp(bytes + i, zero, part))
            continue;
        fprintf(out, "%s %" PRIx64 " ", item, address + i);
        for (size_t j = 0; j < part; j++)
            fprintf(out, "%02x", bytes[i + j]);
        fputc('\n', out);
    }
}

static void write_comment(FILE *out, const struct diff_case *test) {
    char *text = NULL;
    size_t size = 0;
    FILE *memory = open_memstream(&text, &size);
    if (!memory)
        return;
    compare_disassemble(memory, test, 0);
    fclose(memory);
    char *rest = text, *line;
    while ((line = strsep(&rest, "\n")))
        if (*line)
            fprintf(out, "# %s\n", line);
    free(text);
}

int regression_write(const char *path, const struct diff_case *test, const char *title) {
    FILE *out = fopen(path, "we");
    if (!out)
        return -errno;
    fprintf(out, "# %s\n", title);
    write_comment(out, test);
    fprintf(out, "mode %u\nwritable-code %u\nentry %x\n", test->mode, test->writable_code, test->entry);
    for (unsigned i = 0; i < 16; i++)
        if (test->regs.gpr[i])
            fprintf(out, "reg r%u %" PRIx64 "\n", i, test->regs.gpr[i]);
    fprintf(out, "reg rflags %" PRIx64 "\nreg fs_base %" PRIx64 "\nreg gs_base %" PRIx64 "\nselectors",
            test->regs.rflags, test->regs.fs_base, test->regs.gs_base);
    for (unsigned i = 0; i < 6; i++)
        fprintf(out, " %x", test->regs.selector[i]);
    fputc('\n', out);
    write_bytes(out, "xsave", 0, test->xsave, layout_xstate()->size);
    for (unsigned i = 0; i < layout_region_count; i++)
        if (layout_regions[i].kind == LAYOUT_KIND_DATA)
            write_bytes(out, "data", layout_regions[i].base, test->data + layout_regions[i].offset,
                        layout_regions[i].pages * PAGE_SIZE);
    for (uint32_t i = 0; i < test->length; i += 32) {
        fprintf(out, "code ");
        for (uint32_t j = i; j < i + 32 && j < test->length; j++)
            fprintf(out, "%02x", test->code[test->entry + j]);
        fputc('\n', out);
    }
    int error = ferror(out) ? -EIO : 0;
    if (fclose(out) && !error)
        error = -errno;
    return error;
}

static int hex_digit(char c) {
    if (c >= '0' && c <= '9')
        return c - '0';
    if (c >= 'a' && c <= 'f')
        return c - 'a' + 10;
    return -1;
}

/* Bytes in hexadecimal; the number of them, or -1. */
static int parse_bytes(const char *text, uint8_t *bytes, size_t room) {
    size_t count = 0;
    if (!text)
        return -1;
    for (; text[0] && text[1]; text += 2, count++) {
        int high = hex_digit(text[0]), low = hex_digit(text[1]);
        if (high < 0 || low < 0 || count == room)
            return -1;
        bytes[count] = (uint8_t)(high << 4 | low);
    }
    return *text ? -1 : (int)count;
}

static bool parse_register(struct diff_case *test, const char *name, uint64_t value) {
    char *end;
    if (!strcmp(name, "rflags")) {
        test->regs.rflags = value;
    } else if (!strcmp(name, "fs_base")) {
        test->regs.fs_base = value;
    } else if (!strcmp(name, "gs_base")) {
        test->regs.gs_base = value;
    } else {
        unsigned long number = strtoul(name + 1, &end, 10);
        if (name[0] != 'r' || end == name + 1 || *end || number > 15)
            return false;
        test->regs.gpr[number] = value;
    }
    return true;
}

static bool parse_line(struct diff_case *test, char *line) {
    char *rest = line, *item = strsep(&rest, " ");
    char *first = rest ? strsep(&rest, " ") : NULL;
    if (!first)
        return false;
    uint64_t number = strtoull(first, NULL, 16);
    if (!strcmp(item, "mode")) {
        test->mode = !strcmp(first, "64") ? 64 : 32;
    } else if (!strcmp(item, "writable-code")) {
        test->writable_code = number != 0;
    } else if (!strcmp(item, "entry")) {
        if (number > DIFF_CODE_SIZE - 16)
            return false;
        test->entry = (uint32_t)number;
    } else if (!strcmp(item, "reg")) {
        return rest && parse_register(test, first, strtoull(rest, NULL, 16));
    } else if (!strcmp(item, "selectors")) {
        for (unsigned i = 0; i < 6; i++) {
            if (!first)
                return false;
            test->regs.selector[i] = (uint16_t)strtoul(first, NULL, 16);
            first = rest ? strsep(&rest, " ") : NULL;
        }
    } else if (!strcmp(item, "xsave")) {
        return number < DIFF_XSAVE_SIZE &&
               parse_bytes(rest, test->xsave + number, DIFF_XSAVE_SIZE - number) >= 0;
    } else if (!strcmp(item, "data")) {
        const struct layout_region *region = layout_find(number);
        if (!region || region->kind != LAYOUT_KIND_DATA)
            return false;
        size_t offset = region->offset + (number - region->base);
        return parse_bytes(rest, test->data + offset, DIFF_DATA_SIZE - offset) >= 0;
    } else if (!strcmp(item, "code")) {
        uint32_t at = test->entry + test->length;
        int count = parse_bytes(first, test->code + at, DIFF_CODE_SIZE - 16 - at);
        if (count < 0)
            return false;
        test->length += (uint32_t)count;
    } else {
        return false;
    }
    return true;
}

int regression_read(const char *path, struct diff_case *test) {
    FILE *in = fopen(path, "re");
    if (!in) {
        diag_error("nestor-diff: %s: %s", path, strerror(errno));
        return -ENOENT;
    }
    char *line = NULL;
    size_t size = 0;
    unsigned number = 0;
    int error = 0;
    memset(test, 0, sizeof *test);
    memset(test->code, 0xcc, DIFF_CODE_SIZE);
    while (!error && getline(&line, &size, in) >= 0) {
        number++;
        line[strcspn(line, "\n")] = 0;
        if (!*line || *line == '#')
            continue;
        if (!parse_line(test, line)) {
            diag_error(
                "nestor-diff: %s:%u: not a line of a regression file; write it anew with --write-regression",
                path, number);
            error = -EINVAL;
        }
    }
    free(line);
    fclose(in);
    test->regs.rip = layout_code_base(test) + test->entry;
    /* Components that this host lacks cannot be loaded; instructions that need them are #UD everywhere. */
    uint64_t in_use;
    memcpy(&in_use, test->xsave + 512, 8);
    in_use &= layout_xstate()->mask;
    memcpy(test->xsave + 512, &in_use, 8);
    return error;
}
