/* The cache format without its security: what is written is what is read, in whatever order it was added;
 * searches find it, comparisons tell guest bytes apart, a file can be made again from a file.
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "cache-format/file.h"
#include "cache-format/leaves.h"
#include "cache_sample.h"
#include "devices_check.h"

#define UNITS 900u

static char directory[] = "/tmp/nestor-cache-format.XXXXXX";

static const char *in_directory(const char *name) {
    static char path[4][256];
    static unsigned next;
    char *p = path[next++ % 4];
    snprintf(p, sizeof path[0], "%s/%s", directory, name);
    return p;
}

static void write_sample(const char *name, const struct sample_options *options,
                         struct ntc_writer_summary *summary) {
    struct ntc_error error = {0};
    struct ntc_writer *writer = sample_writer(options);
    CHECK(writer);
    if (!writer)
        exit(1);
    if (ntc_writer_write(writer, in_directory(name), NULL, summary, &error)) {
        fprintf(stderr, "%s\n", error.line);
        exit(1);
    }
    ntc_writer_destroy(writer);
}

static void read_file(struct ntc_file *file, const char *name) {
    struct ntc_error error = {0};
    if (ntc_file_read(file, in_directory(name), &error)) {
        fprintf(stderr, "%s\n", error.line);
        exit(1);
    }
}

static bool same_files(const char *a, const char *b) {
    struct ntc_file one, other;
    read_file(&one, a);
    read_file(&other, b);
    bool same = one.size == other.size && !memcmp(one.base, other.base, one.size);
    ntc_file_close(&one);
    ntc_file_close(&other);
    return same;
}

/* The number of the unit at a sample's address. */
static uint32_t find_unit(const struct ntc_view *view, uint32_t number) {
    struct ntc_search search;
    struct ntc_hit hit;
    ntc_search_address(&search, view, number & 1, sample_address(number), SAMPLE_MODE);
    return ntc_search_next(&search, &hit) && !hit.guest ? hit.unit : UINT32_MAX;
}

static uint32_t load32(const uint8_t *bytes) {
    uint32_t value;
    memcpy(&value, bytes, sizeof value);
    return value;
}

/* What the writer settled in a unit's code leads where it should. */
static void check_settled(const struct ntc_view *view, const struct ntc_unit *unit) {
    const uint8_t *code_start = view->code;
    for (uint32_t i = 0; i < unit->link_count; i++) {
        const struct ntc_link *link = &unit->links[i];
        const uint8_t *place = unit->code + link->place;
        const uint8_t *leads = place + 4 + link->addend + (int32_t)load32(place);
        switch (link->kind) {
        case NTC_RELOC_SLOT:
            CHECK(leads == (const uint8_t *)&unit->slots[link->index]);
            break;
        case NTC_RELOC_CONST:
            CHECK(leads == (const uint8_t *)&unit->consts[link->index]);
            break;
        case NTC_RELOC_RUNTIME:
            CHECK(leads == (const uint8_t *)&view->slots[link->index]);
            break;
        case NTC_RELOC_SITE:
            CHECK(load32(place) == unit->first_site + link->index);
            CHECK(&view->sites[load32(place)] == &unit->sites[link->index]);
            break;
        default:
            CHECK(false);
        }
    }
    CHECK(unit->code >= code_start);
}

static void check_unit(const struct ntc_view *view, uint32_t number) {
    struct sample_unit sample;
    struct ntc_unit unit;
    sample_unit_make(&sample, number);
    uint32_t at = find_unit(view, number);
    const struct ntc_unit *expected = &sample.unit;
    CHECK(at != UINT32_MAX);
    if (at == UINT32_MAX || ntc_unit_open(view, at, &unit)) {
        CHECK(false);
        sample_unit_destroy(&sample);
        return;
    }
    CHECK_EQUAL(unit.link_address, expected->link_address);
    CHECK_EQUAL(unit.guest_length, expected->guest_length);
    CHECK(!memcmp(unit.bytes, expected->bytes, unit.guest_length));
    CHECK_EQUAL(unit.code_length, expected->code_length);
    CHECK_EQUAL(unit.heat, expected->heat);
    CHECK_EQUAL(unit.generator, expected->generator);
    CHECK_EQUAL(unit.abi_data, number);
    CHECK(!strcmp(unit.name, sample.name));
    CHECK_EQUAL(unit.site_count, expected->site_count);
    CHECK(!memcmp(unit.sites, expected->sites, unit.site_count * sizeof *unit.sites));
    /* The last relocation is settled when the unit is used, those before it by the writer. */
    CHECK_EQUAL(unit.reloc_count, 1);
    CHECK(!memcmp(unit.relocs, &expected->relocs[expected->reloc_count - 1], sizeof *unit.relocs));
    CHECK_EQUAL(unit.link_count, expected->reloc_count - 1);
    for (uint32_t i = 0; i < unit.link_count; i++) {
        const struct ntc_reloc link = ntc_link_reloc(&unit.links[i]);
        CHECK(!memcmp(&link, &expected->relocs[i], sizeof link));
    }
    CHECK_EQUAL(unit.field_count, expected->field_count);
    CHECK(!memcmp(unit.consts, expected->consts, unit.const_count * sizeof *unit.consts));
    CHECK_EQUAL(unit.slot_count, expected->slot_count);
    for (unsigned i = 0; i < unit.slot_count; i++)
        CHECK_EQUAL(unit.slots[i] - unit.code_offset, expected->slots[i]);
    check_settled(view, &unit);
    struct ntc_unit_entry entry;
    uint64_t cursor = 0;
    for (unsigned i = 0; i < expected->entry_count; i++) {
        CHECK(ntc_unit_entry(view, at, &unit, &cursor, &entry));
        CHECK_EQUAL(entry.guest, expected->entries[i].guest);
        CHECK_EQUAL(entry.host, expected->entries[i].host);
    }
    CHECK(!ntc_unit_entry(view, at, &unit, &cursor, &entry));
    struct ntc_point point;
    for (uint32_t i = 0; i < 8; i++) {
        uint32_t host = i * unit.code_length / 8, next = (i + 1) * unit.code_length / 8;
        CHECK(ntc_map_find(&unit, host, &point) && point.host == host && point.guest == i * 4);
        CHECK(!memcmp(&unit.states[point.state], &sample.states[i % 2], sizeof sample.states[0]));
        CHECK(ntc_map_find(&unit, next - 1, &point) && point.host == host);
    }
    sample_unit_destroy(&sample);
}

static void test_round_trip(void) {
    struct ntc_writer_summary summary;
    struct ntc_file file;
    write_sample("a.ntc", &(struct sample_options){.units = UNITS, .with_ir = true}, &summary);
    read_file(&file, "a.ntc");
    CHECK_EQUAL(summary.units, UNITS);
    CHECK_EQUAL(summary.entries, 3 * UNITS);
    CHECK_EQUAL(summary.entries_not_indexed, UNITS); /* those 3 bytes before an end */
    CHECK_EQUAL(file.view.count[NTC_SECTION_UNITS], UNITS);
    CHECK_EQUAL(file.size, summary.file_size);
    CHECK(!memcmp(file.view.header->root, summary.root, sizeof summary.root));
    CHECK_EQUAL(sample_walk(&file.view), UNITS);
    for (uint32_t i = 0; i < UNITS; i++)
        check_unit(&file.view, i);
    struct ntc_unit unit;
    CHECK(!ntc_unit_open(&file.view, find_unit(&file.view, 5), &unit));
    CHECK(unit.ir && !memcmp(unit.ir, "; function 5\n", 13));
    /* Hot code comes first. */
    uint32_t before = UINT32_MAX;
    for (uint32_t i = 0; i < UNITS; i++) {
        uint32_t heat = file.view.notes[i].heat;
        uint32_t class = heat ? 32u - (uint32_t)__builtin_clz(heat) : 0;
        CHECK(class <= before);
        before = class;
    }
    ntc_file_close(&file);
}

static void test_determinism(void) {
    struct ntc_writer_summary summary;
    write_sample("b.ntc",
                 &(struct sample_options){.units = UNITS, .step = 7, .with_ir = true, .module_first = true},
                 &summary);
    CHECK(same_files("a.ntc", "b.ntc"));
    /* Two writes of one writer, and every unit twice. */
    struct ntc_error error;
    struct ntc_writer *writer = sample_writer(&(struct sample_options){.units = UNITS, .with_ir = true});
    CHECK(writer && !ntc_writer_write(writer, in_directory("b.ntc"), NULL, &summary, &error));
    for (uint32_t i = 0; i < UNITS; i++) {
        struct sample_unit sample;
        sample_unit_make(&sample, i);
        CHECK(!ntc_writer_add_unit(writer, &sample.unit, 0));
        sample_unit_destroy(&sample);
    }
    uint32_t number;
    CHECK(!ntc_writer_add_image(writer,
                                &(struct ntc_image_input){.link_base = SAMPLE_KERNEL_BASE,
                                                          .link_length = SAMPLE_LENGTH,
                                                          .slide_align = 2 * MIB,
                                                          .kind = NTC_IMAGE_KERNEL,
                                                          .name = "vmlinux",
                                                          .version = "6.1.0"},
                                &number));
    CHECK_EQUAL(number, 0);
    CHECK(!ntc_writer_write(writer, in_directory("b.ntc"), NULL, &summary, &error));
    CHECK_EQUAL(summary.duplicates, UNITS);
    CHECK_EQUAL(summary.images, 2);
    CHECK(same_files("a.ntc", "b.ntc"));
    ntc_writer_destroy(writer);
}

/* A file made from a file's units is the same file. */
static void test_again(void) {
    struct ntc_file file;
    struct ntc_writer *writer;
    struct ntc_error error;
    read_file(&file, "a.ntc");
    CHECK(!ntc_writer_create(&writer, &(struct ntc_writer_options){.translator_abi = SAMPLE_ABI,
                                                                   .translator_layout = SAMPLE_LAYOUT,
                                                                   .producer = "test 1",
                                                                   .with_ir = true}));
    CHECK(!ntc_writer_add_file(writer, &file.view, 0, NULL, NULL));
    CHECK(!ntc_writer_write(writer, in_directory("c.ntc"), NULL, NULL, &error));
    ntc_writer_destroy(writer);
    ntc_file_close(&file);
    CHECK(same_files("a.ntc", "c.ntc"));
}

static void test_preference(void) {
    struct sample_unit one, other;
    struct ntc_error error;
    struct ntc_file file;
    for (unsigned order = 0; order < 2; order++) {
        struct ntc_writer *writer = sample_writer(&(struct sample_options){.units = 2});
        sample_unit_make(&one, 0);
        sample_unit_make(&other, 0);
        one.unit.abi_data = 100;
        other.unit.abi_data = 200;
        other.unit.heat = 1u << 20;
        CHECK(!ntc_writer_add_unit(writer, order ? &one.unit : &other.unit, order ? 2 : 1));
        CHECK(!ntc_writer_add_unit(writer, order ? &other.unit : &one.unit, order ? 1 : 2));
        CHECK(!ntc_writer_write(writer, in_directory("d.ntc"), NULL, NULL, &error));
        read_file(&file, "d.ntc");
        CHECK_EQUAL(file.view.units[0].abi_data, 100);
        CHECK_EQUAL(file.view.notes[0].heat, 1u << 20); /* the kept one inherits it */
        ntc_file_close(&file);
        ntc_writer_destroy(writer);
        sample_unit_destroy(&one);
        sample_unit_destroy(&other);
    }
}

static void test_refusals(void) {
    struct sample_unit sample;
    struct ntc_writer *writer = sample_writer(&(struct sample_options){.units = 2});
    struct ntc_unit unit;
#define REFUSED(change)                                                                                      \
    do {                                                                                                     \
        sample_unit_make(&sample, 2);                                                                        \
        unit = sample.unit;                                                                                  \
        change;                                                                                              \
        CHECK(ntc_writer_add_unit(writer, &unit, 0));                                                        \
        sample_unit_destroy(&sample);                                                                        \
    } while (0)
    REFUSED(unit.image = 2);
    REFUSED(unit.guest_length = 0);
    REFUSED(unit.guest_length = NTC_UNIT_GUEST_MAX + 1);
    REFUSED(unit.link_address -= PAGE_SIZE);
    REFUSED(unit.link_address = SAMPLE_KERNEL_BASE + SAMPLE_LENGTH - 4);
    REFUSED(unit.entry_count = 0);
    REFUSED(sample.entries[1].guest = 0);
    REFUSED(sample.entries[2].host = unit.code_length);
    REFUSED(sample.sites[0].host = unit.code_length + 1);
    REFUSED(sample.sites[5].slot = 4);
    REFUSED(sample.sites[5].kind = 99);
    REFUSED(sample.relocs[unit.reloc_count - 1].place = 2);
    REFUSED(sample.relocs[unit.reloc_count - 1].width = 3);
    REFUSED(sample.relocs[unit.reloc_count - 2].index = NTC_RUNTIME_SLOTS);
    REFUSED(unit.field_count = 3); /* the third is all zero: no size */
    REFUSED(unit.generator = NTC_GENERATORS);
    REFUSED(sample.states[1].where[3] = 200);
    REFUSED(sample.map.bytes[0] = 0xff);
    REFUSED(unit.code_offset = 1 << 20; sample.slots[0] = 0; unit.slot_count = 1);
    ntc_writer_destroy(writer);
}

/* -- Searching and comparing -- */

static void test_search(void) {
    struct ntc_file file;
    struct ntc_search search;
    struct ntc_hit hit;
    unsigned found = 0, wanted = 0;
    read_file(&file, "a.ntc");
    for (uint32_t i = 0; i < UNITS; i++) {
        struct sample_unit sample;
        sample_unit_make(&sample, i);
        for (unsigned e = 0; e < 2; e++) {
            uint32_t guest = sample.entries[e].guest;
            wanted++;
            ntc_search_content(&search, &file.view, sample.bytes + guest, sample.unit.guest_length - guest,
                               SAMPLE_MODE);
            while (ntc_search_next(&search, &hit)) {
                if (hit.address != sample.unit.link_address + guest)
                    continue;
                found++;
                CHECK_EQUAL(hit.guest, guest);
                CHECK_EQUAL(hit.host, sample.entries[e].host);
                CHECK_EQUAL(hit.image, i & 1);
            }
            ntc_search_content(&search, &file.view, sample.bytes + guest, 64, SAMPLE_MODE ^ 1);
            CHECK(!ntc_search_next(&search, &hit));
            ntc_search_address(&search, &file.view, i & 1, sample.unit.link_address + guest, SAMPLE_MODE);
            CHECK(ntc_search_next(&search, &hit) && hit.guest == guest && !ntc_search_next(&search, &hit));
            ntc_search_address(&search, &file.view, i & 1, sample.unit.link_address + guest, SAMPLE_MODE ^ 1);
            CHECK(!ntc_search_next(&search, &hit));
            ntc_search_address(&search, &file.view, i & 1, sample.unit.link_address + guest + 1, SAMPLE_MODE);
            CHECK(!ntc_search_next(&search, &hit));
        }
        sample_unit_destroy(&sample);
    }
    CHECK_EQUAL(found, wanted);
    ntc_search_address(&search, &file.view, 2, SAMPLE_KERNEL_BASE, SAMPLE_MODE);
    CHECK(!ntc_search_next(&search, &hit));
    ntc_search_address(&search, &file.view, 0, SAMPLE_KERNEL_BASE + SAMPLE_LENGTH, SAMPLE_MODE);
    CHECK(!ntc_search_next(&search, &hit));
    ntc_file_close(&file);
}

/* Unit 2 has fields: bytes 20-23 follow the kernel's slide, bytes 30-33 the distance to it. */
static void test_compare(void) {
    struct ntc_file file;
    struct ntc_unit unit;
    uint8_t bytes[256];
    uint64_t slide[2] = {0x1200000, 0x5000};
    bool known[2] = {true, true};
    const struct ntc_slides slides = {slide, known, 2};
    read_file(&file, "a.ntc");
    CHECK(!ntc_unit_open(&file.view, find_unit(&file.view, 2), &unit));
    CHECK_EQUAL(unit.field_count, 2);
    memcpy(bytes, unit.bytes, unit.guest_length);
    CHECK(!ntc_unit_compare(&unit, slide[0], &slides, bytes, 0, unit.guest_length));
    uint32_t moved = load32(bytes + 20) + (uint32_t)slide[0];
    memcpy(bytes + 20, &moved, 4);
    CHECK(ntc_unit_compare(&unit, slide[0], &slides, bytes, 0, unit.guest_length));
    /* In two pieces, cut inside a field. */
    CHECK(ntc_unit_compare(&unit, slide[0], &slides, bytes, 0, 22));
    CHECK(ntc_unit_compare(&unit, slide[0], &slides, bytes + 22, 22, unit.guest_length - 22));
    bytes[23] ^= 1;
    CHECK(ntc_unit_compare(&unit, slide[0], &slides, bytes, 0, 22));
    CHECK(!ntc_unit_compare(&unit, slide[0], &slides, bytes + 22, 22, unit.guest_length - 22));
    bytes[23] ^= 1;
    for (uint32_t i = 0; i < unit.guest_length; i++) {
        bytes[i] ^= 0x80;
        CHECK(!ntc_unit_compare(&unit, slide[0], &slides, bytes, 0, unit.guest_length));
        bytes[i] ^= 0x80;
    }
    /* The same unit, were it the module's. */
    uint32_t apart = load32(unit.bytes + 30) + (uint32_t)slide[0] - (uint32_t)slide[1];
    memcpy(bytes + 30, &apart, 4);
    CHECK(ntc_unit_compare(&unit, slide[1], &slides, bytes, 0, unit.guest_length));
    known[0] = false;
    CHECK(!ntc_unit_compare(&unit, slide[1], &slides, bytes, 0, unit.guest_length));
    CHECK(ntc_unit_compare(&unit, slide[1], &slides, bytes, 0, 20));
    CHECK(!ntc_unit_compare(&unit, slide[1], &slides, bytes, 0, unit.guest_length + 1));
    bytes[20] = 0xf0, bytes[21] = bytes[22] = bytes[23] = 0xff;
    CHECK(ntc_field_value(&unit.fields[0], bytes) == -16);
    ntc_file_close(&file);
}

/* Many functions begin alike: a search stays short, and those left out of the index are found by address. */
static void test_equal_beginnings(void) {
    const struct ntc_writer_options options = {.producer = "test"};
    struct ntc_writer *writer;
    struct ntc_writer_summary summary;
    struct ntc_error error;
    struct ntc_file file;
    struct ntc_search search;
    struct ntc_hit hit;
    uint32_t image;
    unsigned found = 0;
    CHECK(!ntc_writer_create(&writer, &options));
    CHECK(!ntc_writer_add_image(writer,
                                &(struct ntc_image_input){.link_base = SAMPLE_KERNEL_BASE,
                                                          .link_length = SAMPLE_LENGTH,
                                                          .slide_align = 1},
                                &image));
    for (uint32_t i = 0; i < 500; i++) {
        struct sample_unit sample;
        sample_unit_make(&sample, 2 * i);
        memset(sample.bytes, 0x90, 80);
        sample.unit.guest_length = 84;
        memcpy(sample.bytes + 80, &i, 4);
        sample.unit.field_count = 0;
        sample.unit.entry_count = 1;
        sample.unit.site_count = sample.unit.reloc_count = 0;
        sample.unit.heat = i;
        CHECK(!ntc_writer_add_unit(writer, &sample.unit, 0));
        sample_unit_destroy(&sample);
    }
    CHECK(!ntc_writer_write(writer, in_directory("e.ntc"), NULL, &summary, &error));
    ntc_writer_destroy(writer);
    /* The one that is not likely is in a table of its own, which is searched behind the other. */
    CHECK_EQUAL(summary.entries_not_indexed, 500 - 65);
    read_file(&file, "e.ntc");
    uint8_t bytes[64];
    memset(bytes, 0x90, sizeof bytes);
    ntc_search_content(&search, &file.view, bytes, sizeof bytes, SAMPLE_MODE);
    while (ntc_search_next(&search, &hit)) {
        CHECK(found < 64 ? file.view.notes[hit.unit].heat >= 500 - 64 : !file.view.notes[hit.unit].heat);
        found++;
    }
    CHECK_EQUAL(found, 65);
    CHECK(file.view.header->required_flags == NTC_REQUIRE_INDEX_LIKELY && file.view.header->index_likely);
    CHECK(find_unit(&file.view, 0) != UINT32_MAX);
    ntc_file_close(&file);
}

/* Four chunks at once have the digests that libsodium gives each. */
static void test_leaves(void) {
    static uint8_t chunk[LEAVES_AT_ONCE][3000];
    static const size_t lengths[] = {0, 1, 8, 127, 128, 129, 255, 256, 257, 1000, 3000};
    const uint8_t *bytes[LEAVES_AT_ONCE];
    uint64_t number[LEAVES_AT_ONCE];
    uint8_t digests[LEAVES_AT_ONCE][NTC_DIGEST_SIZE], expected[NTC_DIGEST_SIZE], *leaf[LEAVES_AT_ONCE];
    for (unsigned i = 0; i < LEAVES_AT_ONCE; i++) {
        for (size_t j = 0; j < sizeof chunk[i]; j++)
            chunk[i][j] = (uint8_t)(j * 7 + j / 251 + i * 31);
        bytes[i] = chunk[i];
        number[i] = i * 0x100000001ull;
        leaf[i] = digests[i];
    }
    for (unsigned l = 0; l < ARRAY_SIZE(lengths); l++) {
        leaves_digest(bytes, lengths[l], number, leaf);
        for (unsigned i = 0; i < LEAVES_AT_ONCE; i++) {
            ntc_leaf_digest(chunk[i], lengths[l], number[i], expected);
            CHECK(!memcmp(expected, digests[i], sizeof expected));
        }
    }
}

static void test_empty(void) {
    struct ntc_file file;
    write_sample("f.ntc", &(struct sample_options){.units = 0}, NULL);
    read_file(&file, "f.ntc");
    CHECK_EQUAL(sample_walk(&file.view), 0);
    ntc_file_close(&file);
}

static void clean_up(void) {
    static const char *const names[] = {"a.ntc", "b.ntc", "c.ntc", "d.ntc", "e.ntc", "f.ntc"};
    for (unsigned i = 0; i < ARRAY_SIZE(names); i++)
        unlink(in_directory(names[i]));
    CHECK(!rmdir(directory)); /* no temporary file is left */
}

int main(void) {
    if (!mkdtemp(directory))
        return 1;
    test_round_trip();
    test_determinism();
    test_again();
    test_preference();
    test_refusals();
    test_search();
    test_compare();
    test_equal_beginnings();
    test_leaves();
    test_empty();
    clean_up();
    return check_result();
}
