/* How a kernel's text is cut into units: what is too large for one is made in halves, with and without the
 * places that may change, and what branches from one half to the other enters it. And which of it a boot is
 * estimated to run. The generator is made up: it takes notes. */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "sbt/blocks.h"

#define UNIT_MAX 32u /* guest bytes that the generator takes at a time */
#define NOTES_MAX 1024u

static unsigned failures;

static void fail(const char *what) {
    fprintf(stderr, "%s\n", what);
    failures++;
}

static struct note {
    uint64_t address;
    uint32_t length;
    uint16_t entry[64], stop_from, stop_to;
    unsigned entries, stops;
    uint32_t heat;
} note[NOTES_MAX];
static unsigned notes;

static void *generator_create(const struct cpu_model *model) {
    (void)model;
    return note;
}

static void generator_destroy(void *state) {
    (void)state;
}

static int generator_translate(void *state, const struct codegen_request *request, struct ntc_unit *unit) {
    struct note *to = &note[notes];
    (void)state;
    if (request->length > UNIT_MAX)
        return -E2BIG;
    if (notes == NOTES_MAX || request->entries > ARRAY_SIZE(to->entry))
        return -ENOMEM;
    *to = (struct note){.address = request->address,
                        .length = request->length,
                        .entries = request->entries,
                        .stops = request->stops};
    memcpy(to->entry, request->entry, request->entries * sizeof *request->entry);
    if (request->stops) {
        to->stop_from = (uint16_t)request->stop[0].from;
        to->stop_to = (uint16_t)request->stop[0].to;
    }
    *unit = (struct ntc_unit){.link_address = request->address, .guest_length = request->length};
    return 0;
}

static const struct codegen generator = {.name = "notes",
                                         .create = generator_create,
                                         .destroy = generator_destroy,
                                         .translate = generator_translate};

static int sink(void *context, const struct ntc_unit *unit) {
    (void)context;
    note[notes++].heat = unit->heat;
    return 0;
}

static uint64_t address_of(const struct image *image, const char *name) {
    const struct image_symbol *symbol = image_symbol_named(image, name);
    if (!symbol)
        fail(name);
    return symbol ? symbol->address : 0;
}

static bool holds(const struct note *unit, uint64_t address) {
    return address - unit->address < unit->length;
}

static bool enters(const struct note *unit, uint64_t address) {
    for (unsigned i = 0; i < unit->entries; i++)
        if (unit->address + unit->entry[i] == address)
            return true;
    return false;
}

/* In every unit that holds it, and there are such. */
static void expect_entered(const struct image *image, const char *name) {
    uint64_t address = address_of(image, name);
    unsigned units = 0;
    for (unsigned i = 0; i < notes; i++) {
        units += holds(&note[i], address);
        if (holds(&note[i], address) && !enters(&note[i], address))
            fail(name);
    }
    if (!units)
        fail(name);
}

static void check_halves(const struct image *image) {
    uint64_t label = address_of(image, "label_long"), start = address_of(image, "long_function");
    unsigned without = 0;
    expect_entered(image, "long_back");
    expect_entered(image, "long_far");
    for (unsigned i = 0; i < notes; i++) {
        const struct note *unit = &note[i];
        if (!unit->stops || !holds(unit, label))
            continue;
        without++;
        if (unit->address + unit->stop_from != label || unit->stop_to != unit->stop_from + 5)
            fail("a half leaves out something else than its place");
        if (!enters(unit, label + 5))
            fail("what lies behind a place is not entered");
        if (unit->address != start)
            fail("the half begins elsewhere");
    }
    if (!without)
        fail("the half is not made without its place");
}

static void check_estimate(const struct image *image, const struct estimate *estimate) {
    uint32_t init = estimate_at(estimate, address_of(image, "kernel_init"), STAGE_READY),
             called = estimate_at(estimate, address_of(image, "long_function"), STAGE_READY),
             lonely = estimate_at(estimate, address_of(image, "lonely"), STAGE_READY);
    if (init != ESTIMATE_SURE || called <= lonely || called > init)
        fail("estimated in the wrong order");
    if (estimate_at(estimate, address_of(image, "long_function"), STAGE_EARLY) >= called)
        fail("early text is estimated from what runs later");
    if (estimate_at(estimate, 0, STAGE_READY))
        fail("an address in front of all functions is estimated to run");
}

/* What is made for when a place differs is less likely than what stands there. */
static void check_heat(const struct image *image) {
    uint64_t label = address_of(image, "label_long");
    uint32_t plain = 0, without = 0;
    for (unsigned i = 0; i < notes; i++)
        if (holds(&note[i], label) && holds(&note[i], label - 1)) {
            uint32_t *most = note[i].stops ? &without : &plain;
            *most = note[i].heat > *most ? note[i].heat : *most;
        }
    if (!without || plain <= without)
        fail("heats are in the wrong order");
}

static int check(const struct image *image, const struct features *features) {
    struct patched patched;
    struct discovery discovery;
    struct pieces pieces;
    struct estimate estimate;
    int result = patched_create(&patched, image, features);
    if (!result)
        result = discovery_create(&discovery, &patched);
    if (!result)
        result = estimate_create(&estimate, &discovery);
    if (!result)
        result = pieces_create(&pieces, &discovery);
    if (result)
        return result;
    struct blocks_options options = {.codegen = &generator,
                                     .modes = {0},
                                     .mode_count = 1,
                                     .estimate = &estimate,
                                     .stages = {[STAGE_EARLY] = true, [STAGE_READY] = true}};
    struct blocks *blocks = blocks_create(&discovery, &pieces, &options, NULL, sink, NULL);
    for (size_t i = 0; blocks && i < pieces.count && !result; i++)
        result = blocks_make_piece(blocks, i);
    if (blocks && !result) {
        check_halves(image);
        check_heat(image);
        check_estimate(image, &estimate);
    }
    blocks_destroy(blocks);
    pieces_destroy(&pieces);
    estimate_destroy(&estimate);
    discovery_destroy(&discovery);
    patched_destroy(&patched);
    return blocks ? result : -ENOMEM;
}

int main(void) {
    struct features features = {{0}, {0}};
    struct image image;
    if (image_open_kernel(&image, SAMPLE_DIRECTORY "/sample-new.elf"))
        return EXIT_FAILURE;
    if (check(&image, &features))
        fail("the sample cannot be gone through");
    image_close(&image);
    return failures ? EXIT_FAILURE : EXIT_SUCCESS;
}
