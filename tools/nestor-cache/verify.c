/* verify: every byte against its digest, the signature, and every record against the specification, beyond
 * what a reader would look at.
 */
#include "nestor-cache/command.h"

#include <cjson/cJSON.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#define XXH_INLINE_ALL
#include <xxhash.h>

static int bad(const struct ntc_file *file, struct ntc_error *error, const char *what, uint64_t number,
               const char *why) {
    return ntc_fail(error, NTC_FAULT_MALFORMED, "cache '%s' is malformed: %s %" PRIu64 ": %s", file->path,
                    what, number, why);
}

static bool same_hash(const struct ntc_unit *unit, const uint8_t *hash) {
    uint8_t bytes[NTC_UNIT_GUEST_MAX];
    memcpy(bytes, unit->bytes, unit->guest_length);
    for (unsigned i = 0; i < unit->field_count; i++)
        memset(bytes + unit->fields[i].offset, 0, unit->fields[i].size);
    XXH128_hash_t found = XXH3_128bits(bytes, unit->guest_length);
    return !memcmp(hash, &found.low64, 8) && !memcmp(hash + 8, &found.high64, 8);
}

static uint32_t word_at(const uint8_t *bytes) {
    uint32_t word;
    memcpy(&word, bytes, sizeof word);
    return word;
}

/* What the writer settled: does it lead where the relocation says? */
static bool settled(const struct ntc_view *view, const struct ntc_unit *unit) {
    for (uint32_t i = 0; i < unit->link_count; i++) {
        const struct ntc_link *link = &unit->links[i];
        const uint8_t *place = unit->code + link->place;
        uint64_t leads =
            (uint64_t)(place + 4 - view->code) + link->addend + (uint64_t)(int64_t)(int32_t)word_at(place);
        uint64_t slots = (uint64_t)((const uint8_t *)view->slots - view->code), wanted;
        if (link->kind == NTC_RELOC_SITE) {
            if (word_at(place) != unit->first_site + link->index)
                return false;
            continue;
        }
        if (link->kind == NTC_RELOC_SLOT)
            wanted = slots + (unit->first_slot + (uint64_t)link->index) * 8;
        else if (link->kind == NTC_RELOC_RUNTIME)
            wanted = slots + link->index * 8ull;
        else
            wanted = (uint64_t)((const uint8_t *)view->consts - view->code) +
                     (unit->first_const + (uint64_t)link->index) * 8;
        if (leads != wanted)
            return false;
    }
    return true;
}

static int verify_units(const struct ntc_file *file, struct ntc_error *error) {
    const struct ntc_view *view = &file->view;
    for (uint64_t i = 0; i < view->count[NTC_SECTION_IMAGES]; i++)
        if (!ntc_view_image(view, (uint32_t)i))
            return bad(file, error, "image", i, "its record");
    for (uint64_t i = 0; i < view->count[NTC_SECTION_UNITS]; i++) {
        struct ntc_unit unit;
        struct ntc_unit_entry entry;
        uint64_t at = 0;
        uint32_t entries = 0;
        if (ntc_unit_open(view, (uint32_t)i, &unit))
            return bad(file, error, "unit", i, ntc_unit_complaint(view, (uint32_t)i));
        if (!same_hash(&unit, view->notes[i].bytes_hash))
            return bad(file, error, "unit", i, "the hash of its guest bytes");
        if (!settled(view, &unit))
            return bad(file, error, "unit", i, "a link that its code does not follow");
        while (ntc_unit_entry(view, (uint32_t)i, &unit, &at, &entry))
            entries++;
        if (entries != unit.entry_count)
            return bad(file, error, "unit", i, "its number of entries");
    }
    return 0;
}

/* Every entry is found by its address, and by its first bytes if it says so. */
static int verify_searches(const struct ntc_file *file, struct ntc_error *error) {
    const struct ntc_view *view = &file->view;
    for (uint64_t i = 0; i < view->count[NTC_SECTION_ENTRIES]; i++) {
        const struct ntc_entry_record *entry = &view->entries[i];
        struct ntc_search search;
        struct ntc_hit hit;
        bool found = false;
        if (entry->unit >= view->count[NTC_SECTION_UNITS] || (!entry->digest_length && entry->check))
            return bad(file, error, "entry", i, "its record");
        const struct ntc_unit_record *unit = &view->units[entry->unit];
        const struct ntc_image_record *image = &view->images[unit->image];
        uint64_t address = image->link_base + entry->address, guest = address - unit->link_address;
        if (guest >= unit->guest_length)
            return bad(file, error, "entry", i, "it lies outside its unit");
        ntc_search_address(&search, view, unit->image, address, unit->mode);
        while (!found && ntc_search_next(&search, &hit))
            found = hit.entry == i;
        if (!found)
            return bad(file, error, "entry", i, "it is not found by its address");
        if (!entry->digest_length)
            continue;
        found = false;
        if (entry->digest_length > unit->guest_length - guest)
            return bad(file, error, "entry", i, "its digest is longer than its unit");
        ntc_search_content(&search, view, view->bytes + unit->bytes + guest, entry->digest_length,
                           unit->mode);
        while (!found && ntc_search_next(&search, &hit))
            found = hit.entry == i;
        if (!found)
            return bad(file, error, "entry", i, "it is not found by its first bytes");
    }
    return 0;
}

/* PLACES say where the code of each unit starts; the units do not overlap. */
static int verify_places(const struct ntc_file *file, struct ntc_error *error) {
    const struct ntc_view *view = &file->view;
    uint64_t end = 0;
    for (uint64_t i = 0; i < view->count[NTC_SECTION_PLACES]; i++) {
        const struct ntc_unit_record *unit = &view->units[i];
        if (view->places[i] != unit->code || unit->code < end)
            return bad(file, error, "place", i, "its unit");
        end = (uint64_t)unit->code + unit->code_length;
    }
    return 0;
}

/* LIKELY lies before the leaves. */
static int verify_likely(const struct ntc_file *file, struct ntc_error *error) {
    const struct ntc_view *view = &file->view;
    uint64_t end = (uint64_t)(view->leaves - view->base);
    for (uint64_t i = 0; i < view->count[NTC_SECTION_LIKELY]; i++) {
        const struct ntc_range *range = &view->likely[i];
        if (range->length &&
            (range->offset < NTC_HEADER_SIZE || range->offset >= end || range->length > end - range->offset))
            return bad(file, error, "range", i, "it lies outside of what is loaded");
    }
    return 0;
}

static int verify_one(const struct cache_options *options, const char *path, const struct ntc_trust *trust,
                      cJSON *all) {
    struct ntc_error error = {0};
    struct ntc_file file;
    uint64_t units = 0;
    int result = ntc_file_read(&file, path, &error);
    if (!result) {
        units = file.view.count[NTC_SECTION_UNITS];
        if (!options->no_signature)
            result = ntc_signature_check(file.view.header, trust, path, &error);
        if (!result)
            result = verify_units(&file, &error);
        if (!result)
            result = verify_searches(&file, &error);
        if (!result)
            result = verify_places(&file, &error);
        if (!result)
            result = verify_likely(&file, &error);
        ntc_file_close(&file);
    }
    if (all) {
        cJSON *json = cJSON_CreateObject();
        cJSON_AddItemToArray(all, json);
        cJSON_AddStringToObject(json, "file", path);
        cJSON_AddBoolToObject(json, "ok", !result);
        cJSON_AddNumberToObject(json, "units", (double)units);
        cJSON_AddStringToObject(json, "fault", ntc_fault_name(error.fault));
        cJSON_AddStringToObject(json, "message", error.line);
        return result ? CACHE_FAILED : CACHE_OK;
    }
    if (result)
        return cache_fail(&error);
    printf("%s: %" PRIu64 " units verified%s\n", path, units,
           options->no_signature ? "; nobody asked who signed" : ", signed by a trusted key");
    return CACHE_OK;
}

int cache_verify(const struct cache_options *options) {
    cJSON *all = options->json ? cJSON_CreateArray() : NULL;
    struct ntc_trust trust;
    struct ntc_error error;
    int status = CACHE_OK;
    if (cache_trust(options, &trust, &error)) {
        cJSON_Delete(all);
        return cache_fail(&error);
    }
    for (int i = 0; i < options->arguments; i++)
        if (verify_one(options, options->argument[i], &trust, all))
            status = CACHE_FAILED;
    ntc_trust_destroy(&trust);
    if (all && cache_json_print(all))
        status = CACHE_FAILED;
    return status;
}
