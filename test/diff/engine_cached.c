/* Units of several blocks from a cache file as an engine under test: a 64-bit stream is translated whole by
 * the template generator, as precompile-cache does it, written to a signed file, loaded into sealed memory,
 * and run where it lies, with the translator for what such units leave to it.
 *
 * The streams are of ring 3, which no cache in use has code of: the translator is told to look nevertheless.
 */
#include "engine.h"

#include "cache-format/host_features.h"
#include "cache-format/writer.h"
#include "dbt/dbt.h"
#include "dbt/portable.h"
#include "dbt/private.h"
#include "engine_dbt.h"
#include "layout.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

struct cached_engine {
    void *dbt; /* the translator's engine */
    struct vcpu *generator;
    struct ntc_secret_key key;
    struct ntc_trust trust;
    char directory[64], path[80];
    uint64_t cached, units, left;
};

static void cached_engine_destroy(void *context) {
    struct cached_engine *engine = context;
    if (getenv("NESTOR_DIFF_VERBOSE"))
        fprintf(stderr,
                "cached: %llu streams from a cache, %llu units put to use, %llu left to the translator\n",
                (unsigned long long)engine->cached, (unsigned long long)engine->units,
                (unsigned long long)engine->left);
    dbt_translator_destroy(engine->generator);
    if (engine->dbt)
        dbt_engine.destroy(engine->dbt);
    (void)unlink(engine->path);
    (void)rmdir(engine->directory);
    free(engine);
}

static int cached_engine_create(void **context) {
    struct cached_engine *engine = calloc(1, sizeof *engine);
    struct ntc_error error = {0};
    if (!engine)
        return -ENOMEM;
    /* Files that live for one stream: in memory, where there is such a directory. */
    const char *parent = access("/dev/shm", W_OK) ? "/tmp" : "/dev/shm";
    snprintf(engine->directory, sizeof engine->directory, "%s/nestor-diff.XXXXXX", parent);
    int result = mkdtemp(engine->directory) ? 0 : -errno;
    snprintf(engine->path, sizeof engine->path, "%s/stream.ntc", engine->directory);
    if (!result)
        result = dbt_engine.create(&engine->dbt);
    if (!result)
        result = ntc_key_generate(&engine->key, &error);
    if (!result) {
        engine->generator = dbt_translator_create(dbt_engine_vcpu(engine->dbt)->model);
        result = engine->generator ? 0 : -ENOMEM;
    }
    if (result) {
        cached_engine_destroy(engine);
        return result;
    }
    engine->trust = (struct ntc_trust){.key = &engine->key.public_key, .count = 1};
    engine->generator->dbt->cached_any_ring = dbt_engine_vcpu(engine->dbt)->dbt->cached_any_ring = true;
    *context = engine;
    return 0;
}

static int write_file(struct cached_engine *engine, const struct vcpu *vcpu, uint64_t base,
                      const struct ntc_unit *unit) {
    const struct ntc_writer_options options = {.translator_abi = DBT_PORTABLE_ABI,
                                               .translator_layout = dbt_portable_layout(vcpu->model),
                                               .host_features = ntc_host_features(),
                                               .producer = "nestor-diff"};
    const struct ntc_image_input image = {
        .link_base = base, .link_length = DIFF_CODE_SIZE, .slide_align = PAGE_SIZE, .name = "stream"};
    struct ntc_unit copy = *unit;
    struct ntc_writer *writer;
    struct ntc_error error;
    int result = ntc_writer_create(&writer, &options);
    if (result)
        return result;
    result = ntc_writer_add_image(writer, &image, &copy.image);
    if (!result)
        result = ntc_writer_add_unit(writer, &copy, 0);
    if (!result)
        result = ntc_writer_write(writer, engine->path, &engine->key, NULL, &error);
    ntc_writer_destroy(writer);
    return result;
}

static bool load(struct cached_engine *engine, struct vcpu *vcpu, const struct diff_case *test,
                 struct ntc_file *file) {
    struct ntc_unit unit;
    struct ntc_error error;
    const uint16_t entry = (uint16_t)test->entry;
    uint64_t base = layout_code_base(test);
    const struct portable_function request = {
        .code = {.rip = base, .mode = vcpu->mode, .bytes = test->code, .length = test->entry + test->length},
        .entry = &entry,
        .entries = 1};
    const struct ntc_demand demand = {.translator_abi = DBT_PORTABLE_ABI,
                                      .translator_layout = dbt_portable_layout(vcpu->model),
                                      .host_features = ntc_host_features(),
                                      .trust = &engine->trust};
    if (test->mode != 64 || vcpu->rip != base + test->entry || request.code.length > DIFF_CODE_SIZE ||
        dbt_portable_function(engine->generator, &request, &unit) || write_file(engine, vcpu, base, &unit) ||
        ntc_file_load(file, engine->path, &demand, &error))
        return false;
    if (!dbt_cache_attach(vcpu, file, &error))
        return true;
    ntc_file_close(file);
    return false;
}

static int cached_engine_run(void *context, const struct diff_case *test, struct diff_state *result) {
    struct cached_engine *engine = context;
    struct vcpu *vcpu = dbt_engine_vcpu(engine->dbt);
    struct ntc_file file;
    uint64_t units = vcpu->dbt->stats.cached_units;
    bool loaded = dbt_engine_load(engine->dbt, test) && load(engine, vcpu, test, &file);
    dbt_engine_finish(engine->dbt, test, result);
    units = vcpu->dbt->stats.cached_units - units;
    engine->units += units;
    engine->cached += units != 0;
    engine->left += !units;
    if (loaded) {
        dbt_drop_all(vcpu);
        cached_destroy(vcpu->dbt);
        ntc_file_close(&file);
    }
    return 0;
}

const struct diff_engine cached_engine = {
    .name = "cached",
    .summary = "whole streams from a cache file, made by the template generator",
    .create = cached_engine_create,
    .destroy = cached_engine_destroy,
    .run = cached_engine_run,
};
