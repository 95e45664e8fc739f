/* --config: a JSON object whose keys are the names of options. A value is a string, a number or a boolean;
 * for an option that may be repeated also an array of those; and for one made of KEY=VALUE fields also an
 * object, {"file": "a.img", "readonly": true}. Each value is turned into the text that the command line would
 * have had, so both go through the same parsers. */
#define _GNU_SOURCE
#include <cjson/cJSON.h>
#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "base/diag.h"
#include "boot/boot_file.h"
#include "options.h"

#define CONFIG_SIZE_LIMIT MIB

static int apply_value(struct run_options *options, const struct option *option,
                       const struct option_source *source, const cJSON *value);

/* The text of a scalar, or NULL when value is none. scratch holds 32 bytes. */
static const char *scalar_text(const cJSON *value, char *scratch) {
    if (cJSON_IsString(value))
        return value->valuestring;
    if (cJSON_IsBool(value))
        return cJSON_IsTrue(value) ? "on" : "off";
    if (cJSON_IsNumber(value) && value->valuedouble >= 0 && value->valuedouble < 1e15 &&
        value->valuedouble == floor(value->valuedouble)) {
        snprintf(scratch, 32, "%.0f", value->valuedouble);
        return scratch;
    }
    return NULL;
}

/* {"file": "a,b", "readonly": true} as "file=a,,b,readonly=on". */
static int apply_object(struct run_options *options, const struct option *option,
                        const struct option_source *source, const cJSON *object) {
    char *text = NULL, scratch[32];
    size_t size;
    FILE *stream = open_memstream(&text, &size);
    if (!stream)
        return -ENOMEM;
    const cJSON *field;
    const char *bad = NULL;
    cJSON_ArrayForEach(field, object) {
        const char *value = scalar_text(field, scratch);
        if (!value) {
            bad = field->string;
            break;
        }
        /* "type": "user" is the word that --net starts with. */
        bool is_type = !strcmp(field->string, "type");
        if (field != object->child)
            fputc(',', stream);
        if (!is_type)
            fprintf(stream, "%s=", field->string);
        for (; *value; value++) {
            if (*value == ',')
                fputc(',', stream);
            fputc(*value, stream);
        }
    }
    fclose(stream);
    int result = bad ? option_refuse(source, bad, "give it a string, a number or a boolean")
                     : option->parse(options, source, text);
    free(text);
    return result;
}

static int apply_array(struct run_options *options, const struct option *option,
                       const struct option_source *source, const cJSON *array) {
    const cJSON *element;
    if (!option->is_repeatable)
        return option_refuse(source, "[...]", "takes one value, not an array");
    cJSON_ArrayForEach(element, array) {
        if (cJSON_IsArray(element))
            return option_refuse(source, "[[...]]", "an array inside an array means nothing here");
        int result = apply_value(options, option, source, element);
        if (result)
            return result;
    }
    return 0;
}

static int apply_value(struct run_options *options, const struct option *option,
                       const struct option_source *source, const cJSON *value) {
    char scratch[32];
    if (cJSON_IsArray(value))
        return apply_array(options, option, source, value);
    if (cJSON_IsObject(value))
        return apply_object(options, option, source, value);
    const char *text = scalar_text(value, scratch);
    if (!text)
        return option_refuse(source, cJSON_IsNull(value) ? "null" : "number",
                             "give it a string, a whole number or a boolean");
    if (!option->argument && !cJSON_IsBool(value))
        return option_refuse(source, text, "is a switch; give it true or false");
    if (option->argument && cJSON_IsBool(value))
        return option_refuse(source, cJSON_IsTrue(value) ? "true" : "false",
                             "is no switch; give it a value: %s", option->argument);
    return option->parse(options, source, text);
}

static int apply_root(struct run_options *options, const char *path, const cJSON *root) {
    const cJSON *value;
    if (!cJSON_IsObject(root)) {
        diag_error("config '%s': holds no JSON object; write {\"kernel\": \"vmlinuz\", ...}", path);
        return -EINVAL;
    }
    cJSON_ArrayForEach(value, root) {
        const struct option *option = run_option_find(value->string);
        if (!option) {
            const struct option *like = run_option_suggest(value->string);
            diag_error("config '%s': key '%s' is not known; %s%s%s", path, value->string,
                       like ? "did you mean '" : "keys are the names of options, see nestor run --help",
                       like ? like->name : "", like ? "'?" : "");
            return -EINVAL;
        }
        const struct option_source source = {option->name, path};
        int result = apply_value(options, option, &source, value);
        if (result)
            return result;
    }
    return 0;
}

static unsigned line_of(const char *text, const char *place) {
    unsigned line = 1;
    for (; text < place; text++)
        line += *text == '\n';
    return line;
}

int config_file_apply(struct run_options *options, const char *path) {
    struct boot_file file;
    int result = boot_file_open(&file, path, "config");
    if (result)
        return -EINVAL;
    if (file.size > CONFIG_SIZE_LIMIT) {
        diag_error("config '%s': is larger than 1 MiB; is it a configuration?", path);
        boot_file_close(&file);
        return -EINVAL;
    }
    char *text = calloc(1, file.size + 1);
    if (!text || boot_file_read(&file, 0, text, file.size)) {
        free(text);
        boot_file_close(&file);
        return -EINVAL;
    }
    const char *end = NULL;
    cJSON *root = cJSON_ParseWithLengthOpts(text, file.size + 1, &end, true);
    if (root) {
        result = apply_root(options, path, root);
    } else {
        diag_error("config '%s': line %u is not valid JSON", path, line_of(text, end ? end : text));
        result = -EINVAL;
    }
    cJSON_Delete(root);
    free(text);
    boot_file_close(&file);
    return result;
}
