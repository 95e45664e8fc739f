/* store: what the host-wide store holds. broker: the store itself. */
#include "nestor-cache/command.h"

#include <cjson/cJSON.h>
#include <errno.h>
#include <inttypes.h>
#include <string.h>

#include "base/diag.h"
#include "cache-format/store.h"

int cache_broker(const struct cache_options *options) {
    struct ntc_error error;
    return ntc_broker_run(options->directory, options->idle_seconds, &error) ? cache_fail(&error) : CACHE_OK;
}

static int list(const struct cache_options *options, const struct ntc_store_entry *entry, int count) {
    cJSON *all = options->json ? cJSON_CreateArray() : NULL;
    for (int i = 0; i < count; i++) {
        char root[2 * NTC_DIGEST_SIZE + 1];
        cache_hex(entry[i].root, sizeof entry[i].root, root);
        if (!all) {
            printf("%s %12" PRIu64 " bytes, given out %" PRIu64 " times\n", root, entry[i].size,
                   entry[i].served);
            continue;
        }
        cJSON *one = cJSON_CreateObject();
        cJSON_AddItemToArray(all, one);
        cJSON_AddStringToObject(one, "root", root);
        cJSON_AddNumberToObject(one, "size", (double)entry[i].size);
        cJSON_AddNumberToObject(one, "served", (double)entry[i].served);
    }
    return all ? cache_json_print(all) : CACHE_OK;
}

int cache_store(const struct cache_options *options) {
    const struct ntc_store_options store = {.directory = options->directory};
    struct ntc_store_entry entry[64];
    struct ntc_error error;
    bool stop = options->arguments == 1;
    if (stop && strcmp(options->argument[0], "stop")) {
        diag_error("'%s' is not known; the store can be told to stop", options->argument[0]);
        return CACHE_USAGE;
    }
    int result =
        stop ? ntc_store_stop(&store, &error) : ntc_store_list(&store, entry, ARRAY_SIZE(entry), &error);
    if (result == -ENOENT) {
        if (!stop && options->json)
            return list(options, entry, 0);
        puts("no store runs");
        return CACHE_OK;
    }
    if (result < 0)
        return cache_fail(&error);
    if (stop)
        return CACHE_OK;
    return list(options, entry, result < (int)ARRAY_SIZE(entry) ? result : (int)ARRAY_SIZE(entry));
}
