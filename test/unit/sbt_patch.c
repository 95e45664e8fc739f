/* What a kernel's text becomes: every kind of patched place in a sample that is assembled for the purpose, in
 * both layouts of the kernel's tables, as a relocatable module and as a linked kernel. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "sbt/cpio.h"
#include "sbt/discover.h"

static unsigned failures;

static void fail(const char *file, const char *what) {
    fprintf(stderr, "%s: %s\n", file, what);
    failures++;
}

struct expectation {
    const char *symbol;
    enum stage stage;
    uint8_t length;
    uint8_t bytes[10];
};

/* Of both layouts. Distances were taken from the sample's assembly listing by hand. */
static const struct expectation common[] = {
    {"traced", STAGE_EARLY, 1, {0xe8}},
    {"traced", STAGE_TRACED, 6, {0x0f, 0x1f, 0x44, 0x00, 0x00, 0xe9}},
    {"traced", STAGE_READY, 10, {0x0f, 0x1f, 0x44, 0x00, 0x00, 0xc3, 0xcc, 0xcc, 0xcc, 0xcc}},
    {"label_off", STAGE_READY, 5, {0x0f, 0x1f, 0x44, 0x00, 0x00}},
    {"label_on", STAGE_READY, 2, {0xeb, 0x01}},
    {"call_set", STAGE_READY, 1, {0xe8}},
    {"call_none", STAGE_READY, 5, {0x0f, 0x1f, 0x44, 0x00, 0x00}},
    {"tail_none", STAGE_READY, 5, {0xc3, 0xcc, 0xcc, 0xcc, 0xcc}},
    {"thunk_jump", STAGE_READY, 3, {0xff, 0xe0, 0xcc}},
    {"thunk_jump", STAGE_TRACED, 1, {0xe9}},
    {"thunk_condition", STAGE_READY, 5, {0x75, 0x04, 0xff, 0xe0, 0xcc}},
    {"alternative_left", STAGE_EARLY, 7, {0x90, 0x90, 0x90, 0x90, 0x90, 0x90, 0x90}},
    {"alternative_left", STAGE_READY, 7, {0x0f, 0x1f, 0x80, 0x00, 0x00, 0x00, 0x00}},
    {"alternative_absent", STAGE_READY, 2, {0xfa, 0x90}},
    {"alternative_either", STAGE_READY, 3, {0x0f, 0x1f, 0x00}},
    {"sealed", STAGE_EARLY, 4, {0xf3, 0x0f, 0x1e, 0xfa}},
    {"sealed", STAGE_READY, 4, {0x66, 0x0f, 0x1f, 0x00}},
    {"locked", STAGE_READY, 3, {0xf0, 0xff, 0x07}},
    {"locked", STAGE_READY_ONE, 3, {0x3e, 0xff, 0x07}},
};

static const struct expectation layout_old[] = {
    {"thunk_call", STAGE_READY, 5, {0x41, 0xff, 0xd3, 0x66, 0x90}},
    {"alternative_jump", STAGE_READY, 5, {0xeb, 0x06, 0x0f, 0x1f, 0x00}},
};

static const struct expectation layout_new[] = {
    {"thunk_call", STAGE_READY, 5, {0x41, 0xff, 0xd3, 0x66, 0x90}},
    {"alternative_jump", STAGE_READY, 5, {0xeb, 0x06, 0xcc, 0xcc, 0xcc}},
};

static void expect(const char *file, const struct patched *patched, const struct expectation *list,
                   size_t count) {
    for (size_t i = 0; i < count; i++) {
        const struct image_symbol *symbol = image_symbol_named(patched->image, list[i].symbol);
        const uint8_t *bytes =
            symbol ? patched_at(patched, list[i].stage, symbol->address, list[i].length) : NULL;
        if (!bytes || memcmp(bytes, list[i].bytes, list[i].length) != 0) {
            fail(file, list[i].symbol);
            for (unsigned k = 0; bytes && k < list[i].length; k++)
                fprintf(stderr, " %02x", bytes[k]);
            fprintf(stderr, "\n");
        }
    }
}

static uint64_t address_of(const struct image *image, const char *name) {
    const struct image_symbol *symbol = image_symbol_named(image, name);
    return symbol ? symbol->address : 0;
}

/* A CALL that an alternative put in place leads to the same function as where it was assembled. */
static void expect_call(const char *file, const struct patched *patched, const char *at, const char *target) {
    uint64_t from = address_of(patched->image, at), to = address_of(patched->image, target);
    const uint8_t *bytes = patched_at(patched, STAGE_READY, from, 5);
    int32_t distance;
    if (bytes)
        memcpy(&distance, bytes + 1, 4);
    if (!bytes || bytes[0] != 0xe8 || from + 5 + (uint64_t)(int64_t)distance != to)
        fail(file, at);
}

static void expect_choice(const char *file, const struct patched *patched, const char *at,
                          enum patch_kind kind, uint8_t first) {
    uint64_t address = address_of(patched->image, at);
    size_t i = patched_choice_from(patched, address);
    if (i == patched->choices || patched->choice[i].address != address || patched->choice[i].kind != kind ||
        patched->option_bytes[patched->choice[i].bytes] != first)
        fail(file, at);
}

static void check_code(const char *file, const struct discovery *discovery, const char *symbol,
                       unsigned flags) {
    uint64_t address = address_of(discovery->patched->image, symbol);
    for (unsigned i = 0; i < discovery->patched->sections; i++) {
        const struct patched_section *section = &discovery->patched->section[i];
        if (address - section->address < section->size &&
            (discovery->map[i][address - section->address] & flags) == flags)
            return;
    }
    fail(file, symbol);
}

static void check_image(const char *file, const struct image *image, const struct features *features,
                        bool old) {
    struct patched patched;
    struct discovery discovery;
    if (patched_create(&patched, image, features)) {
        fail(file, "patched_create");
        return;
    }
    expect(file, &patched, common, ARRAY_SIZE(common));
    expect(file, &patched, old ? layout_old : layout_new, 2);
    expect_call(file, &patched, "alternative_taken", "traced");
    expect_call(file, &patched, "call_set", "traced");
    expect_choice(file, &patched, "alternative_either", PATCH_ALTERNATIVE, 0x0f);
    expect_choice(file, &patched, "label_off", PATCH_JUMP_LABEL, 0xe9);
    expect_choice(file, &patched, "label_on", PATCH_JUMP_LABEL, 0x66);
    for (unsigned kind = 0; kind < PATCH_KINDS; kind++)
        if (!patch_kind_name((enum patch_kind)kind))
            fail(file, "a kind of patch without a name");
        else if (patched.skipped[kind])
            fail(file, patch_kind_name((enum patch_kind)kind));
    if (discovery_create(&discovery, &patched)) {
        fail(file, "discovery_create");
    } else {
        check_code(file, &discovery, "traced", CODE_FUNCTION | CODE_ENTRY | CODE_READY | CODE_EARLY);
        check_code(file, &discovery, "label_target", CODE_ENTRY | CODE_READY);
        check_code(file, &discovery, "alternative_end", CODE_READY);
        check_code(file, &discovery, "call_none", CODE_READY);
        discovery_destroy(&discovery);
    }
    patched_destroy(&patched);
}

static uint8_t *read_file(const char *path, size_t *size) {
    FILE *file = fopen(path, "rb");
    uint8_t *bytes = malloc(MIB);
    *size = 0;
    if (file && bytes)
        *size = fread(bytes, 1, MIB, file);
    if (file)
        fclose(file);
    return bytes;
}

static int count_file(void *context, const char *name, const uint8_t *data, size_t size) {
    unsigned *count = context;
    (void)data;
    *count += !strcmp(name, "a/b") && size == 3;
    return 0;
}

static void check_cpio(void) {
    static const char archive[] =
        "070701"
        "00000001000081A4000000000000000000000001000000000000000300000000000000000000"
        "0000000000000000000400000000a/b\0\0\0xyz\0"
        "07070100000001000081A400000000000000000000000100000000000000000000000000000000"
        "00000000000000000000000B00000000TRAILER!!!\0\0\0\0";
    unsigned count = 0;
    if (cpio_walk("archive", (const uint8_t *)archive, sizeof archive - 1, count_file, &count) || count != 1)
        fail("cpio", "a member is lost");
    if (!cpio_walk("archive", (const uint8_t *)archive, 60, count_file, &count))
        fail("cpio", "a truncated archive is taken");
}

int main(void) {
    static const struct {
        const char *name;
        bool old, module;
    } samples[] = {{"sample-old.o", true, true},
                   {"sample-new.o", false, true},
                   {"sample-old.elf", true, false},
                   {"sample-new.elf", false, false}};
    struct features features = {{0}, {0}};
    features.on[3] = features.known[3] = 1u << 21;
    features.known[8] = 1u << 16;
    for (size_t i = 0; i < ARRAY_SIZE(samples); i++) {
        char path[4096];
        struct image image;
        snprintf(path, sizeof path, "%s/%s", SAMPLE_DIRECTORY, samples[i].name);
        size_t size;
        uint8_t *bytes = read_file(path, &size);
        if (samples[i].module ? image_open_module(&image, path, bytes, size)
                              : image_open_kernel(&image, path)) {
            fail(path, "cannot be opened");
        } else {
            check_image(samples[i].name, &image, &features, samples[i].old);
            image_close(&image);
        }
        free(bytes);
    }
    check_cpio();
    return failures ? EXIT_FAILURE : EXIT_SUCCESS;
}
