/* cache-sample: makes cache files for the tests of nestor-cache.
 *
 *   cache-sample FILE UNITS [STEP]   made-up units, added in an order that STEP decides; unsigned
 *   cache-sample FILE code           one unit of real instructions
 *   cache-sample FILE damage AT      flips a bit of the byte at offset AT
 *   cache-sample FILE open TRUST DIR BROKER   opens it as a VM does, by the store in DIR that BROKER runs;
 * says how cache-sample FILE redigest       makes root and leaves right again, so that only contents are
 * wrong; unsigned
 */
#define _GNU_SOURCE
#include <stdlib.h>
#include <string.h>

#include "cache-format/store.h"
#include "cache_sample.h"

#include <stdio.h>

static int fail(const struct ntc_error *error) {
    fprintf(stderr, "%s\n", error->line);
    return 1;
}

static int write_units(const char *path, uint32_t units, uint32_t step) {
    struct ntc_error error = {.line = "no writer"};
    struct ntc_writer *writer =
        sample_writer(&(struct sample_options){.units = units, .step = step, .with_ir = true});
    int result = writer ? ntc_writer_write(writer, path, NULL, NULL, &error) : -1;
    ntc_writer_destroy(writer);
    return result ? fail(&error) : 0;
}

/* xor eax, eax; mov rdi, constant; call; ret — and host code that has a bit of everything. */
static int write_code(const char *path) {
    static const uint8_t guest[] = {0x31, 0xc0, 0x48, 0xc7, 0xc7, 0x00, 0x00, 0x20,
                                    0x82, 0xe8, 0x10, 0x00, 0x00, 0x00, 0xc3};
    static const uint8_t host[] = {0x31, 0xc0,                         /* xor eax, eax */
                                   0x48, 0x8b, 0x3d, 0,    0,    0, 0, /* mov rdi, [constant] */
                                   0xff, 0x25, 0,    0,    0,    0,    /* jmp [slot] */
                                   0x65, 0xc7, 0x04, 0x25, 0x40, 0, 0, 0, 0, 0, 0, 0, /* mov gs:[64], site */
                                   0xff, 0x25, 0,    0,    0,    0}; /* jmp [run-time slot] */
    static const uint64_t slot = 15, constant = 0xffffffff82200000;
    static const struct ntc_site site = {
        .host = 15, .guest = 9, .length = 5, .kind = NTC_SITE_CALL, .slot = 0, .target = 0x1e};
    static const struct ntc_reloc relocs[] = {
        {.place = 5, .kind = NTC_RELOC_CONST, .width = 4},
        {.place = 11, .kind = NTC_RELOC_SLOT, .width = 4},
        {.place = 23, .kind = NTC_RELOC_SITE, .width = 4},
        {.place = 29, .kind = NTC_RELOC_RUNTIME, .index = 2, .width = 4},
        {.place = 0,
         .where = NTC_PLACE_CONST,
         .kind = NTC_RELOC_SLIDE,
         .width = 8,
         .addend = (int64_t)0xffffffff82200000}};
    static const struct ntc_field field = {.offset = 5, .size = 4, .kind = NTC_FIELD_SLIDE};
    static const struct ntc_unit_entry entry = {0, 0, 0};
    static const struct ntc_point points[] = {{0, 0, 0}, {2, 2, 0}, {9, 9, 0}};
    static const char ir[] = "define void @start()\n  ret void\n";
    struct ntc_map_builder map = {0};
    struct ntc_writer *writer;
    struct ntc_error error = {.line = "no writer"};
    uint32_t image;
    for (unsigned i = 0; i < ARRAY_SIZE(points); i++)
        if (ntc_map_add(&map, &points[i]))
            return 1;
    const struct ntc_unit unit = {.link_address = SAMPLE_KERNEL_BASE + 0x40,
                                  .guest_length = sizeof guest,
                                  .mode = SAMPLE_MODE,
                                  .heat = 12,
                                  .generator = NTC_GENERATOR_LLVM,
                                  .bytes = guest,
                                  .code = host,
                                  .code_length = sizeof host,
                                  .slots = &slot,
                                  .slot_count = 1,
                                  .consts = &constant,
                                  .const_count = 1,
                                  .sites = &site,
                                  .site_count = 1,
                                  .relocs = relocs,
                                  .reloc_count = ARRAY_SIZE(relocs),
                                  .fields = &field,
                                  .field_count = 1,
                                  .entries = &entry,
                                  .entry_count = 1,
                                  .map = map.bytes,
                                  .map_length = map.length,
                                  .name = "start",
                                  .ir = ir,
                                  .ir_length = sizeof ir - 1};
    const struct ntc_image_input input = {.link_base = SAMPLE_KERNEL_BASE,
                                          .link_length = SAMPLE_LENGTH,
                                          .slide_align = 2 * MIB,
                                          .kind = NTC_IMAGE_KERNEL,
                                          .name = "vmlinux"};
    if (ntc_writer_create(&writer, &(struct ntc_writer_options){.producer = "sample", .with_ir = true}) ||
        ntc_writer_add_image(writer, &input, &image) || ntc_writer_add_unit(writer, &unit, 0) ||
        ntc_writer_write(writer, path, NULL, NULL, &error))
        return fail(&error);
    ntc_writer_destroy(writer);
    ntc_map_builder_destroy(&map);
    return 0;
}

static int open_shared(const char *path, const char *trusted, const char *directory, const char *broker) {
    const char *const argv[] = {broker, "broker", "--dir", directory, "--idle", "60", NULL};
    const struct ntc_store_options options = {.directory = directory, .broker = argv};
    struct ntc_trust trust = {0};
    struct ntc_error error;
    struct ntc_file file;
    if (ntc_trust_add(&trust, trusted, &error))
        return fail(&error);
    const struct ntc_demand demand = {
        .translator_abi = SAMPLE_ABI, .translator_layout = SAMPLE_LAYOUT, .trust = &trust};
    int result = ntc_store_open(&file, path, &demand, &options, &error);
    ntc_trust_destroy(&trust);
    if (result)
        return fail(&error);
    printf("%s, %u units\n", file.origin, sample_walk(&file.view));
    ntc_file_close(&file);
    return 0;
}

static uint8_t *read_all(const char *path, size_t *size) {
    FILE *file = fopen(path, "re");
    if (!file || fseek(file, 0, SEEK_END))
        exit(1);
    *size = (size_t)ftell(file);
    rewind(file);
    uint8_t *bytes = malloc(*size + 1);
    if (!bytes || fread(bytes, 1, *size, file) != *size)
        exit(1);
    fclose(file);
    return bytes;
}

static int write_back(const char *path, const uint8_t *bytes, size_t size) {
    FILE *file = fopen(path, "we");
    return file && fwrite(bytes, 1, size, file) == size && !fclose(file) ? 0 : 1;
}

int main(int argc, char **argv) {
    size_t size;
    if (argc < 3)
        return 2;
    if (!strcmp(argv[2], "code"))
        return write_code(argv[1]);
    if (!strcmp(argv[2], "open") && argc == 6)
        return open_shared(argv[1], argv[3], argv[4], argv[5]);
    if (strcmp(argv[2], "damage") != 0 && strcmp(argv[2], "redigest") != 0)
        return write_units(argv[1], (uint32_t)strtoul(argv[2], NULL, 0),
                           argc > 3 ? (uint32_t)strtoul(argv[3], NULL, 0) : 1);
    uint8_t *bytes = read_all(argv[1], &size);
    if (!strcmp(argv[2], "redigest")) {
        sample_redigest(bytes, size);
    } else {
        size_t at = argc > 3 ? strtoul(argv[3], NULL, 0) : 0;
        if (at >= size)
            return 2;
        bytes[at] ^= 0x04;
    }
    int result = write_back(argv[1], bytes, size);
    free(bytes);
    return result;
}
