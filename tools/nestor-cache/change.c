/* Making files from files: merge, gc, sign; and keygen. */
#include "nestor-cache/command.h"

#include <cjson/cJSON.h>
#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "base/diag.h"
#include "cache-format/profile.h"
#include "cache-format/writer.h"

int cache_keygen(const struct cache_options *options) {
    struct ntc_secret_key key;
    struct ntc_error error;
    char id[2 * NTC_KEY_ID_SIZE + 1];
    int result = ntc_key_generate(&key, &error);
    if (!result)
        result = ntc_key_write(&key, options->out, &error);
    ntc_key_id_print(key.public_key.id, id);
    ntc_key_wipe(&key);
    if (result)
        return cache_fail(&error);
    printf("%s\n", id);
    return CACHE_OK;
}

int cache_sign(const struct cache_options *options) {
    const char *path = options->argument[0];
    struct ntc_secret_key key;
    struct ntc_error error;
    int result = ntc_key_read_secret(&key, options->sign_key, &error);
    if (!result)
        result = ntc_sign_file(path, options->out ? options->out : path, &key, &error);
    ntc_key_wipe(&key);
    return result ? cache_fail(&error) : CACHE_OK;
}

struct inputs {
    struct ntc_file *file;
    int count;
    uint64_t features; /* that all of them need */
};

static void close_inputs(struct inputs *inputs) {
    for (int i = 0; i < inputs->count; i++)
        ntc_file_close(&inputs->file[i]);
    free(inputs->file);
}

/* --trust restricts the inputs to what those keys signed. */
static int check_input(const struct cache_options *options, const struct ntc_file *file,
                       struct ntc_error *error) {
    struct ntc_trust trust;
    if (!options->trusts)
        return 0;
    int result = cache_trust(options, &trust, error);
    if (result)
        return result;
    result = ntc_signature_check(file->view.header, &trust, file->path, error);
    ntc_trust_destroy(&trust);
    return result;
}

static int open_inputs(const struct cache_options *options, struct inputs *inputs, struct ntc_error *error) {
    *inputs =
        (struct inputs){.file = calloc((size_t)options->arguments, sizeof *inputs->file), .features = ~0ull};
    if (!inputs->file)
        return ntc_fail(error, NTC_FAULT_MEMORY, "no memory");
    for (int i = 0; i < options->arguments; i++) {
        struct ntc_file *file = &inputs->file[i];
        int result = ntc_file_read(file, options->argument[i], error);
        if (result)
            return result;
        inputs->count++;
        const struct ntc_header *header = file->view.header, *first = inputs->file[0].view.header;
        result = check_input(options, file, error);
        if (!result && (header->translator_abi != first->translator_abi ||
                        header->translator_layout != first->translator_layout))
            result = ntc_fail(error, NTC_FAULT_ABI,
                              "caches '%s' and '%s' are for different versions of the translator",
                              options->argument[0], options->argument[i]);
        if (result)
            return result;
        inputs->features &= header->host_features;
    }
    return 0;
}

struct filter {
    uint64_t features; /* of the input's header beyond the output's */
    const struct ntc_profile *profile;
    uint64_t dropped;
};

static bool keep_unit(void *context, const struct ntc_view *view, uint32_t number, struct ntc_unit *unit) {
    struct filter *filter = context;
    (void)number;
    unit->host_features |= filter->features;
    if (!filter->profile)
        return true;
    uint64_t count = ntc_profile_count(filter->profile, cache_image_name(view, unit->image),
                                       unit->link_address, unit->guest_length, unit->mode);
    if (!count) {
        filter->dropped++;
        return false;
    }
    unit->heat = count < UINT32_MAX ? (uint32_t)count : UINT32_MAX;
    return true;
}

static int add_inputs(struct ntc_writer *writer, const struct inputs *inputs,
                      const struct ntc_profile *profile, uint64_t *dropped, struct ntc_error *error) {
    for (int i = 0; i < inputs->count; i++) {
        const struct ntc_view *view = &inputs->file[i].view;
        struct filter filter = {.features = view->header->host_features & ~inputs->features,
                                .profile = profile};
        int result = ntc_writer_add_file(writer, view, (uint32_t)(inputs->count - i), keep_unit, &filter);
        *dropped += filter.dropped;
        if (result == -ENOMEM)
            return ntc_fail(error, NTC_FAULT_MEMORY, "no memory for the units of cache '%s'",
                            inputs->file[i].path);
        if (result)
            return ntc_fail(error, NTC_FAULT_MALFORMED,
                            "cache '%s' has units that are malformed; see nestor-cache verify",
                            inputs->file[i].path);
    }
    return 0;
}

static bool any_ir(const struct inputs *inputs) {
    for (int i = 0; i < inputs->count; i++)
        if (inputs->file[i].view.ir)
            return true;
    return false;
}

static void print_summary(const struct cache_options *options, const struct ntc_writer_summary *summary,
                          uint64_t dropped) {
    if (!options->json) {
        printf("%s: %u units of %u images, %" PRIu64 " bytes; %u duplicates and %" PRIu64
               " unused units left out\n",
               options->out, summary->units, summary->images, summary->file_size, summary->duplicates,
               dropped);
        return;
    }
    char root[2 * NTC_DIGEST_SIZE + 1];
    cJSON *json = cJSON_CreateObject();
    cache_hex(summary->root, sizeof summary->root, root);
    cJSON_AddStringToObject(json, "file", options->out);
    cJSON_AddStringToObject(json, "root", root);
    cJSON_AddNumberToObject(json, "units", summary->units);
    cJSON_AddNumberToObject(json, "images", summary->images);
    cJSON_AddNumberToObject(json, "duplicates", summary->duplicates);
    cJSON_AddNumberToObject(json, "unused", (double)dropped);
    cJSON_AddNumberToObject(json, "file_size", (double)summary->file_size);
    (void)cache_json_print(json);
}

/* Write what the inputs hold and the profile (NULL: anything) saw. */
static int combine(const struct cache_options *options, const struct ntc_profile *profile,
                   struct ntc_error *error) {
    struct ntc_writer_summary summary;
    struct ntc_writer *writer = NULL;
    struct ntc_secret_key key;
    struct inputs inputs = {0};
    uint64_t dropped = 0;
    int result = options->sign_key ? ntc_key_read_secret(&key, options->sign_key, error) : 0;
    if (!result)
        result = open_inputs(options, &inputs, error);
    if (!result) {
        const struct ntc_header *first = inputs.file[0].view.header;
        const struct ntc_writer_options writer_options = {.translator_abi = first->translator_abi,
                                                          .translator_layout = first->translator_layout,
                                                          .host_features = inputs.features,
                                                          .producer = (const char *)first->producer,
                                                          .with_ir = any_ir(&inputs)};
        result = ntc_writer_create(&writer, &writer_options)
                     ? ntc_fail(error, NTC_FAULT_MEMORY, "no memory to write '%s'", options->out)
                     : add_inputs(writer, &inputs, profile, &dropped, error);
    }
    if (!result)
        result = ntc_writer_write(writer, options->out, options->sign_key ? &key : NULL, &summary, error);
    if (!result)
        print_summary(options, &summary, dropped);
    ntc_writer_destroy(writer);
    close_inputs(&inputs);
    ntc_key_wipe(&key);
    return result;
}

/* A signature is not lost by oversight. */
static bool says_how_to_sign(const struct cache_options *options) {
    if (options->sign_key || options->is_unsigned)
        return true;
    diag_error("give --sign-key KEY to sign '%s', or --unsigned", options->out);
    return false;
}

int cache_merge(const struct cache_options *options) {
    struct ntc_error error;
    if (!says_how_to_sign(options))
        return CACHE_USAGE;
    return combine(options, NULL, &error) ? cache_fail(&error) : CACHE_OK;
}

int cache_gc(const struct cache_options *options) {
    struct ntc_profile profile = {0};
    struct ntc_error error;
    int result = 0;
    if (!says_how_to_sign(options))
        return CACHE_USAGE;
    for (unsigned i = 0; i < options->profiles && !result; i++)
        result = ntc_profile_read(&profile, options->profile[i], &error);
    if (!result)
        result = combine(options, &profile, &error);
    ntc_profile_destroy(&profile);
    return result ? cache_fail(&error) : CACHE_OK;
}
