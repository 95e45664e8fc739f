#include "nestor-cache/command.h"

#include <cjson/cJSON.h>
#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "base/diag.h"

int cache_fail(const struct ntc_error *error) {
    diag_error("%s", error->line);
    return CACHE_FAILED;
}

int cache_trust(const struct cache_options *options, struct ntc_trust *trust, struct ntc_error *error) {
    int result = 0;
    *trust = (struct ntc_trust){0};
    for (unsigned i = 0; i < options->trusts && !result; i++)
        result = ntc_trust_add(trust, options->trust[i], error);
    if (!options->trusts)
        result = ntc_trust_add_default(trust, error);
    if (result)
        ntc_trust_destroy(trust);
    return result;
}

const char *cache_signature_word(const struct ntc_header *header, const struct ntc_trust *trust) {
    struct ntc_error error = {0};
    if (!ntc_signature_check(header, trust, "", &error))
        return "trusted";
    return error.fault == NTC_FAULT_UNSIGNED    ? "none"
           : error.fault == NTC_FAULT_UNTRUSTED ? "untrusted"
                                                : "bad";
}

const char *cache_generator_name(unsigned generator) {
    return generator == NTC_GENERATOR_LLVM ? "llvm" : "template";
}

const char *cache_image_name(const struct ntc_view *view, uint32_t number) {
    const struct ntc_image_record *image = ntc_view_image(view, number);
    return image ? ntc_view_string(view, image->name) : "";
}

void cache_hex(const uint8_t *bytes, size_t length, char *text) {
    for (size_t i = 0; i < length; i++)
        sprintf(text + 2 * i, "%02x", bytes[i]);
    text[2 * length] = 0;
}

void cache_json_hex64(cJSON *object, const char *name, uint64_t value) {
    char text[24];
    snprintf(text, sizeof text, "0x%" PRIx64, value);
    cJSON_AddStringToObject(object, name, text);
}

cJSON *cache_json_unit(const struct ntc_view *view, uint32_t number, const struct ntc_unit *unit) {
    cJSON *json = cJSON_CreateObject();
    cJSON_AddNumberToObject(json, "unit", number);
    cJSON_AddStringToObject(json, "image", cache_image_name(view, unit->image));
    cache_json_hex64(json, "address", unit->link_address);
    cJSON_AddStringToObject(json, "symbol", unit->name);
    cJSON_AddNumberToObject(json, "symbol_offset", unit->name_offset);
    cache_json_hex64(json, "mode", unit->mode);
    cJSON_AddStringToObject(json, "generator", cache_generator_name(unit->generator));
    cJSON_AddNumberToObject(json, "heat", unit->heat);
    cJSON_AddNumberToObject(json, "guest_bytes", unit->guest_length);
    cJSON_AddNumberToObject(json, "host_bytes", unit->code_length);
    cJSON_AddNumberToObject(json, "entries", unit->entry_count);
    cJSON_AddNumberToObject(json, "slots", unit->slot_count);
    cJSON_AddNumberToObject(json, "constants", unit->const_count);
    cJSON_AddNumberToObject(json, "sites", unit->site_count);
    cJSON_AddNumberToObject(json, "relocations", unit->reloc_count);
    cJSON_AddNumberToObject(json, "fields", unit->field_count);
    return json;
}

int cache_json_print(cJSON *json) {
    char *text = cJSON_Print(json);
    cJSON_Delete(json);
    if (!text) {
        diag_error("no memory to print JSON");
        return CACHE_FAILED;
    }
    puts(text);
    free(text);
    return CACHE_OK;
}
