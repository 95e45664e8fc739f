/* ls: the units of a file. diff: those of two. */
#define _GNU_SOURCE
#include "nestor-cache/command.h"

#include <cjson/cJSON.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "base/diag.h"

static void print_symbol(const struct ntc_unit *unit) {
    if (*unit->name && unit->name_offset)
        printf("%s+%#x", unit->name, unit->name_offset);
    else
        printf("%s", *unit->name ? unit->name : "-");
}

static void print_unit(const struct ntc_view *view, const struct ntc_unit *unit) {
    printf("%016" PRIx64 " %6u %7u %3u %-8s %8u %7x %-12s ", unit->link_address, unit->guest_length,
           unit->code_length, unit->entry_count, cache_generator_name(unit->generator), unit->heat,
           unit->mode, cache_image_name(view, unit->image));
    print_symbol(unit);
    putchar('\n');
}

static int bad_unit(const struct ntc_file *file, uint64_t number) {
    struct ntc_error error;
    (void)ntc_fail(&error, NTC_FAULT_MALFORMED, "cache '%s': unit %" PRIu64 ": %s", file->path, number,
                   ntc_unit_complaint(&file->view, (uint32_t)number));
    return cache_fail(&error);
}

static int order(uint64_t a, uint64_t b) {
    return (a > b) - (a < b);
}

/* Units of one file or two, for people: by what their image is called, address, mode, length, bytes. */
static int compare_places(const struct ntc_view *a, uint64_t i, const struct ntc_view *b, uint64_t j) {
    const struct ntc_unit_record *u = &a->units[i], *v = &b->units[j];
    const struct ntc_image_record *one = ntc_view_image(a, u->image), *other = ntc_view_image(b, v->image);
    int result = order(one->kind != NTC_IMAGE_KERNEL, other->kind != NTC_IMAGE_KERNEL);
    if (!result)
        result = strcmp(ntc_view_string(a, one->name), ntc_view_string(b, other->name));
    if (!result)
        result = strcmp(ntc_view_string(a, one->version), ntc_view_string(b, other->version));
    if (!result)
        result = order(u->link_address, v->link_address);
    if (!result)
        result = order(u->mode, v->mode);
    if (!result)
        result = order(u->guest_length, v->guest_length);
    return result ? result
                  : memcmp(a->notes[i].bytes_hash, b->notes[j].bytes_hash, sizeof a->notes->bytes_hash);
}

static int compare_units(const void *a, const void *b, void *context) {
    const uint32_t *one = a, *other = b;
    return compare_places(context, *one, context, *other);
}

int cache_sort_units(const struct ntc_file *file, uint32_t **sorted) {
    uint64_t count = file->view.count[NTC_SECTION_UNITS];
    uint32_t *number = malloc((count + 1) * sizeof *number);
    *sorted = number;
    if (!number) {
        diag_error("no memory for the units of cache '%s'", file->path);
        return CACHE_FAILED;
    }
    for (uint64_t i = 0; i < count; i++) {
        number[i] = (uint32_t)i;
        if (ntc_unit_complaint(&file->view, (uint32_t)i))
            return bad_unit(file, i);
    }
    qsort_r(number, count, sizeof *number, compare_units, (void *)(uintptr_t)&file->view);
    return CACHE_OK;
}

int cache_ls(const struct cache_options *options) {
    struct ntc_error error;
    struct ntc_file file;
    uint32_t *sorted;
    if (ntc_file_read(&file, options->argument[0], &error))
        return cache_fail(&error);
    int status = cache_sort_units(&file, &sorted);
    cJSON *all = options->json ? cJSON_CreateArray() : NULL;
    if (!all)
        printf("%-16s %6s %7s %3s %-8s %8s %7s %-12s %s\n", "address", "guest", "host", "in", "made by",
               "heat", "mode", "image", "symbol");
    for (uint64_t i = 0; i < file.view.count[NTC_SECTION_UNITS] && !status; i++) {
        struct ntc_unit unit;
        if (ntc_unit_open(&file.view, sorted[i], &unit))
            status = bad_unit(&file, sorted[i]);
        else if (options->image && strcmp(options->image, cache_image_name(&file.view, unit.image)))
            continue;
        else if (all)
            cJSON_AddItemToArray(all, cache_json_unit(&file.view, sorted[i], &unit));
        else
            print_unit(&file.view, &unit);
    }
    free(sorted);
    ntc_file_close(&file);
    if (all && !status)
        return cache_json_print(all);
    cJSON_Delete(all);
    return status;
}

/* -- diff -- */

/* Is the code the same, but for what depends on where it stands? */
static bool same_code(const struct ntc_unit *u, const struct ntc_unit *v) {
    if (u->code_length != v->code_length || u->generator != v->generator ||
        u->reloc_count != v->reloc_count || u->link_count != v->link_count ||
        (u->reloc_count && memcmp(u->relocs, v->relocs, u->reloc_count * sizeof *u->relocs)) ||
        (u->link_count && memcmp(u->links, v->links, u->link_count * sizeof *u->links)))
        return false;
    uint8_t settled[64] = {0};
    for (uint32_t at = 0; at < u->code_length; at += sizeof settled) {
        uint32_t length =
            u->code_length - at < sizeof settled ? u->code_length - at : (uint32_t)sizeof settled;
        memset(settled, 0, sizeof settled);
        for (uint32_t i = 0; i < u->link_count; i++)
            for (uint32_t j = 0; j < sizeof(uint32_t); j++)
                if (u->links[i].place + j - at < length)
                    settled[u->links[i].place + j - at] = 1;
        for (uint32_t j = 0; j < length; j++)
            if (!settled[j] && u->code[at + j] != v->code[at + j])
                return false;
    }
    return true;
}

struct difference {
    cJSON *all; /* NULL: text */
    uint64_t same, changed, added, removed;
};

static void tell(struct difference *difference, const char *what, char sign, const struct ntc_view *view,
                 uint32_t number, const struct ntc_unit *unit) {
    if (difference->all) {
        cJSON *json = cache_json_unit(view, number, unit);
        cJSON_AddStringToObject(json, "change", what);
        cJSON_AddItemToArray(difference->all, json);
    } else {
        printf("%c ", sign);
        print_unit(view, unit);
    }
}

static int diff_units(const struct ntc_file *a, const uint32_t *sorted_a, const struct ntc_file *b,
                      const uint32_t *sorted_b, struct difference *d) {
    uint64_t i = 0, j = 0, units_a = a->view.count[NTC_SECTION_UNITS],
             units_b = b->view.count[NTC_SECTION_UNITS];
    while (i < units_a || j < units_b) {
        struct ntc_unit u, v;
        if (i < units_a && ntc_unit_open(&a->view, sorted_a[i], &u))
            return bad_unit(a, sorted_a[i]);
        if (j < units_b && ntc_unit_open(&b->view, sorted_b[j], &v))
            return bad_unit(b, sorted_b[j]);
        int side = i == units_a   ? 1
                   : j == units_b ? -1
                                  : compare_places(&a->view, sorted_a[i], &b->view, sorted_b[j]);
        if (side < 0) {
            d->removed++;
            tell(d, "removed", '-', &a->view, sorted_a[i], &u);
        } else if (side > 0) {
            d->added++;
            tell(d, "added", '+', &b->view, sorted_b[j], &v);
        } else if (same_code(&u, &v)) {
            d->same++;
        } else {
            d->changed++;
            tell(d, "changed", '!', &b->view, sorted_b[j], &v);
        }
        i += side <= 0;
        j += side >= 0;
    }
    return CACHE_OK;
}

int cache_diff(const struct cache_options *options) {
    struct difference d = {.all = NULL};
    struct ntc_error error;
    struct ntc_file a, b;
    uint32_t *sorted_a = NULL, *sorted_b = NULL;
    if (ntc_file_read(&a, options->argument[0], &error))
        return cache_fail(&error);
    if (ntc_file_read(&b, options->argument[1], &error)) {
        ntc_file_close(&a);
        return cache_fail(&error);
    }
    cJSON *json = options->json ? cJSON_CreateObject() : NULL;
    if (json)
        d.all = cJSON_AddArrayToObject(json, "units");
    int status = cache_sort_units(&a, &sorted_a);
    if (!status)
        status = cache_sort_units(&b, &sorted_b);
    if (!status)
        status = diff_units(&a, sorted_a, &b, sorted_b, &d);
    if (!status && json) {
        cJSON_AddNumberToObject(json, "same", (double)d.same);
        cJSON_AddNumberToObject(json, "changed", (double)d.changed);
        cJSON_AddNumberToObject(json, "added", (double)d.added);
        cJSON_AddNumberToObject(json, "removed", (double)d.removed);
        status = cache_json_print(json);
        json = NULL;
    } else if (!status) {
        printf("%" PRIu64 " the same, %" PRIu64 " changed, %" PRIu64 " added, %" PRIu64 " removed\n", d.same,
               d.changed, d.added, d.removed);
    }
    cJSON_Delete(json);
    free(sorted_a);
    free(sorted_b);
    ntc_file_close(&a);
    ntc_file_close(&b);
    return status ? status : d.changed + d.added + d.removed ? CACHE_FAILED : CACHE_OK;
}
