/* info: what a file is. stats: how much of what is in it. */
#include "nestor-cache/command.h"

#include <cjson/cJSON.h>
#include <inttypes.h>
#include <string.h>

#include "cache-format/host_features.h"

static void print_features(uint64_t features) {
    char text[400];
    ntc_host_features_print(features, text, sizeof text);
    printf("host features     %s\n", *text ? text : "none beyond x86-64");
}

static void info_text(const struct ntc_file *file, const struct ntc_trust *trust) {
    const struct ntc_header *h = file->view.header;
    char root[2 * NTC_DIGEST_SIZE + 1], id[2 * NTC_KEY_ID_SIZE + 1];
    cache_hex(h->root, sizeof h->root, root);
    ntc_key_id_print(h->key_id, id);
    printf("file              %s\n", file->path);
    printf("format            %u.%u, made by %s\n", h->version_major, h->version_minor,
           (const char *)h->producer);
    printf("size              %" PRIu64 " bytes, of which VMs load %" PRIu64 "\n", h->file_size,
           h->load_size);
    printf("root digest       %s\n", root);
    const char *word = cache_signature_word(h, trust);
    if (h->signature_kind == NTC_UNSIGNED)
        puts("signature         none");
    else
        printf("signature         by key %s: %s\n", id, word);
    printf("translator        ABI %u, layout %016" PRIx64 "\n", h->translator_abi, h->translator_layout);
    print_features(h->host_features);
    for (uint32_t i = 0; i < file->view.count[NTC_SECTION_IMAGES]; i++) {
        const struct ntc_image_record *image = ntc_view_image(&file->view, i);
        if (image)
            printf("image             %s %s at %016" PRIx64 "-%016" PRIx64 ", %u units, %u entries\n",
                   ntc_view_string(&file->view, image->name), ntc_view_string(&file->view, image->version),
                   image->link_base, image->link_base + (image->link_length - 1), image->unit_count,
                   image->entry_count);
    }
    for (uint32_t i = 0; i < h->section_count; i++) {
        const char *name = ntc_section_name(h->section[i].kind);
        printf("section           %-8s %12" PRIu64 " bytes, %u records of %u\n", name ? name : "unknown",
               h->section[i].length, h->section[i].record_count, h->section[i].record_size);
    }
}

static cJSON *info_json(const struct ntc_file *file, const struct ntc_trust *trust) {
    const struct ntc_header *h = file->view.header;
    char text[400];
    cJSON *json = cJSON_CreateObject();
    cJSON_AddStringToObject(json, "file", file->path);
    snprintf(text, sizeof text, "%u.%u", h->version_major, h->version_minor);
    cJSON_AddStringToObject(json, "format", text);
    cJSON_AddStringToObject(json, "producer", (const char *)h->producer);
    cJSON_AddNumberToObject(json, "file_size", (double)h->file_size);
    cJSON_AddNumberToObject(json, "load_size", (double)h->load_size);
    cache_hex(h->root, sizeof h->root, text);
    cJSON_AddStringToObject(json, "root", text);
    cJSON_AddStringToObject(json, "signature", cache_signature_word(h, trust));
    ntc_key_id_print(h->key_id, text);
    cJSON_AddStringToObject(json, "key_id", h->signature_kind ? text : "");
    cJSON_AddNumberToObject(json, "translator_abi", h->translator_abi);
    cache_json_hex64(json, "translator_layout", h->translator_layout);
    cJSON *features = cJSON_AddArrayToObject(json, "host_features");
    for (unsigned i = 0; i < NTC_HOST_FEATURES; i++)
        if (h->host_features >> i & 1)
            cJSON_AddItemToArray(features, cJSON_CreateString(ntc_host_feature_name(i)));
    cJSON *images = cJSON_AddArrayToObject(json, "images");
    for (uint32_t i = 0; i < file->view.count[NTC_SECTION_IMAGES]; i++) {
        const struct ntc_image_record *image = ntc_view_image(&file->view, i);
        if (!image)
            continue;
        cJSON *one = cJSON_CreateObject();
        cJSON_AddItemToArray(images, one);
        cJSON_AddStringToObject(one, "name", ntc_view_string(&file->view, image->name));
        cJSON_AddStringToObject(one, "version", ntc_view_string(&file->view, image->version));
        cache_json_hex64(one, "link_base", image->link_base);
        cache_json_hex64(one, "link_length", image->link_length);
        cJSON_AddNumberToObject(one, "units", image->unit_count);
        cJSON_AddNumberToObject(one, "entries", image->entry_count);
        cache_hex(image->digest, sizeof image->digest, text);
        cJSON_AddStringToObject(one, "digest", text);
        cache_hex(image->build_id, sizeof image->build_id, text);
        cJSON_AddStringToObject(one, "build_id", text);
    }
    cJSON *sections = cJSON_AddObjectToObject(json, "sections");
    for (uint32_t i = 0; i < h->section_count; i++) {
        const char *name = ntc_section_name(h->section[i].kind);
        cJSON_AddNumberToObject(sections, name ? name : "unknown", (double)h->section[i].length);
    }
    return json;
}

int cache_info(const struct cache_options *options) {
    cJSON *all = options->json ? cJSON_CreateArray() : NULL;
    struct ntc_trust trust;
    struct ntc_error error;
    int status = CACHE_OK;
    if (cache_trust(options, &trust, &error)) {
        cJSON_Delete(all);
        return cache_fail(&error);
    }
    for (int i = 0; i < options->arguments && !status; i++) {
        struct ntc_file file;
        if (ntc_file_read(&file, options->argument[i], &error)) {
            status = cache_fail(&error);
            break;
        }
        if (all)
            cJSON_AddItemToArray(all, info_json(&file, &trust));
        else
            info_text(&file, &trust);
        ntc_file_close(&file);
    }
    ntc_trust_destroy(&trust);
    if (!all)
        return status;
    if (!status)
        return cache_json_print(all);
    cJSON_Delete(all);
    return status;
}

/* -- stats -- */

struct totals {
    uint64_t units, llvm, hot, entries, indexed, guest_bytes, host_bytes, slots, consts, sites, links, relocs,
        moving, fields, longest;
};

/* 0, or the number of the bad unit + 1. */
static uint64_t count_units(const struct ntc_view *view, struct totals *t) {
    for (uint64_t i = 0; i < view->count[NTC_SECTION_UNITS]; i++) {
        struct ntc_unit unit;
        if (ntc_unit_open(view, (uint32_t)i, &unit))
            return i + 1;
        t->units++;
        t->llvm += unit.generator == NTC_GENERATOR_LLVM;
        t->hot += unit.heat != 0;
        t->guest_bytes += unit.guest_length;
        t->host_bytes += unit.code_length;
        t->slots += unit.slot_count;
        t->consts += unit.const_count;
        t->sites += unit.site_count;
        t->relocs += unit.reloc_count;
        t->links += unit.link_count;
        t->fields += unit.field_count;
        for (unsigned j = 0; j < unit.reloc_count; j++)
            t->moving += unit.relocs[j].where == NTC_PLACE_CODE;
        if (unit.guest_length > t->longest)
            t->longest = unit.guest_length;
    }
    t->entries = view->count[NTC_SECTION_ENTRIES];
    for (uint64_t i = 0; i < t->entries; i++)
        t->indexed += view->entries[i].digest_length != 0;
    return 0;
}

static int stats_one(const struct ntc_file *file, cJSON *all) {
    struct totals t = {0};
    struct ntc_error error;
    uint64_t bad = count_units(&file->view, &t);
    if (bad) {
        (void)ntc_fail(&error, NTC_FAULT_MALFORMED, "cache '%s': unit %" PRIu64 ": %s", file->path, bad - 1,
                       ntc_unit_complaint(&file->view, (uint32_t)(bad - 1)));
        return cache_fail(&error);
    }
    const struct {
        const char *name, *words;
        uint64_t value;
    } lines[] = {
        {"units", "units", t.units},
        {"units_llvm", "of them made by LLVM", t.llvm},
        {"units_hot", "of them seen by a profile", t.hot},
        {"entries", "entries", t.entries},
        {"entries_indexed", "of them found by content", t.indexed},
        {"guest_bytes", "guest bytes", t.guest_bytes},
        {"guest_bytes_stored", "guest bytes stored", file->view.count[NTC_SECTION_BYTES]},
        {"longest_unit", "guest bytes in the longest unit", t.longest},
        {"host_bytes", "host bytes", t.host_bytes},
        {"slots", "link slots", t.slots},
        {"constants", "constants", t.consts},
        {"sites", "sites", t.sites},
        {"links", "places in code that the writer settled", t.links},
        {"relocations", "relocations", t.relocs},
        {"relocations_in_code", "of them in code", t.moving},
        {"fields", "fields that may differ", t.fields},
        {"index_probes", "probes of the longest search", file->view.header->index_probes},
    };
    cJSON *json = all ? cJSON_CreateObject() : NULL;
    if (json) {
        cJSON_AddItemToArray(all, json);
        cJSON_AddStringToObject(json, "file", file->path);
    } else {
        printf("%s\n", file->path);
    }
    for (size_t i = 0; i < ARRAY_SIZE(lines); i++) {
        if (json)
            cJSON_AddNumberToObject(json, lines[i].name, (double)lines[i].value);
        else
            printf("  %12" PRIu64 " %s\n", lines[i].value, lines[i].words);
    }
    if (!json && t.guest_bytes)
        printf("  %12.2f host bytes for a guest byte\n", (double)t.host_bytes / (double)t.guest_bytes);
    return CACHE_OK;
}

int cache_stats(const struct cache_options *options) {
    cJSON *all = options->json ? cJSON_CreateArray() : NULL;
    int status = CACHE_OK;
    for (int i = 0; i < options->arguments && !status; i++) {
        struct ntc_error error;
        struct ntc_file file;
        if (ntc_file_read(&file, options->argument[i], &error)) {
            status = cache_fail(&error);
            break;
        }
        status = stats_one(&file, all);
        ntc_file_close(&file);
    }
    if (!all)
        return status;
    if (!status)
        return cache_json_print(all);
    cJSON_Delete(all);
    return status;
}
