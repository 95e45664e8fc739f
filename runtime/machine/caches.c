#define _GNU_SOURCE
#include "machine/caches.h"

#include "base/diag.h"
#include "cache-format/host_features.h"
#include "cache-format/profile.h"
#include "cache-format/store.h"
#include "cache-format/writer.h"
#include "dbt/portable.h"
#include "machine/counters.h"
#include "vm/vm.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* Where kernels live, as images of a recorded file: each moves as a whole. Linux maps its image and its
 * modules in the top two GiB (its Documentation/arch/x86/x86_64/mm.rst); early code of every kernel runs in
 * low memory. */
#define KERNEL_BASE 0xffffffff80000000ull
#define KERNEL_END 0xffffffffc0000000ull
static const struct region {
    const char *name;
    uint64_t base, end;
    enum ntc_image_kind kind;
} regions[] = {
    {"low memory", 0, 0x100000000ull, NTC_IMAGE_OTHER},
    {"kernel", KERNEL_BASE, KERNEL_END, NTC_IMAGE_KERNEL},
    {"modules", KERNEL_END, 0xfffffffffffff000ull, NTC_IMAGE_MODULE},
};
#define KERNEL_ALIGN (2 * MIB)

static int load_trust(struct ntc_trust *trust, const struct vm_config *config, struct ntc_error *error) {
    int result = config->trust_count ? 0 : ntc_trust_add_default(trust, error);
    for (size_t i = 0; i < config->trust_count && !result; i++)
        result = ntc_trust_add(trust, config->trust[i], error);
    return result;
}

int caches_open(struct caches *caches, const struct vm_config *config, const struct cpu_model *model) {
    struct ntc_trust trust = {0};
    struct ntc_error error;
    caches->count = 0;
    caches->translator = NULL;
    if (!config->cache_count || config->engine == VM_ENGINE_INTERP)
        return 0;
    int result = load_trust(&trust, config, &error);
    if (result)
        diag_error("--trust: %s", error.line);
    const struct ntc_demand demand = {.translator_abi = DBT_PORTABLE_ABI,
                                      .translator_layout = dbt_portable_layout(model),
                                      .host_features = ntc_host_features(),
                                      .trust = &trust};
    const struct ntc_store_options store = {.broker = config->cache_broker};
    for (size_t i = 0; i < config->cache_count && !result; i++) {
        uint64_t start = counters_now_ns();
        int opened = ntc_store_open(&caches->file[caches->count], config->cache[i], &demand, &store, &error);
        if (!opened) {
            /* What is recorded should lack nothing only because it was late. */
            if (!config->record_cache && !config->record_profile)
                ntc_file_do_not_wait(&caches->file[caches->count]);
            ntc_file_populate(&caches->file[caches->count]);
            caches->path[caches->count] = config->cache[i];
            caches->open_ns[caches->count++] = counters_now_ns() - start;
            continue;
        }
        diag_error("%s%s", error.line, config->cache_required ? "" : "; running without it");
        if (config->cache_required)
            result = opened;
    }
    ntc_trust_destroy(&trust);
    if (result)
        caches_close(caches);
    return result;
}

void caches_close(struct caches *caches) {
    for (unsigned i = 0; i < caches->count; i++)
        ntc_file_close(&caches->file[i]);
    caches->count = 0;
    dbt_translator_destroy(caches->translator);
    caches->translator = NULL;
}

int caches_attach(struct caches *caches, const struct vm_config *config, struct vm *vm,
                  const struct cpu_model *model) {
    struct ntc_error error;
    if (config->record_cache || config->record_profile) {
        caches->translator = dbt_translator_create(model);
        int logs = caches->translator ? 0 : -ENOMEM;
        for (unsigned cpu = 0; cpu < config->cpus && !logs; cpu++)
            logs = dbt_portable_log(vm_vcpu(vm, cpu));
        if (logs) {
            diag_error("--record-%s: out of memory", config->record_cache ? "cache" : "profile");
            return logs;
        }
    }
    for (unsigned i = 0; i < caches->count; i++) {
        uint64_t start = counters_now_ns();
        for (unsigned cpu = 0; cpu < config->cpus; cpu++) {
            int result = dbt_cache_attach(vm_vcpu(vm, cpu), &caches->file[i], &error);
            if (!result)
                continue;
            diag_error("%s%s", error.line, config->cache_required ? "" : "; running without it");
            if (config->cache_required)
                return result;
            break;
        }
        caches->open_ns[i] += counters_now_ns() - start;
    }
    return 0;
}

/* -- Recording -- */

struct recorder {
    struct ntc_writer *writer;
    uint32_t image[ARRAY_SIZE(regions)];
    int result;
};

static void add_recorded(void *context, struct ntc_unit *unit) {
    struct recorder *recorder = context;
    for (unsigned i = 0; i < ARRAY_SIZE(regions) && !recorder->result; i++) {
        if (unit->link_address < regions[i].base || unit->link_address + unit->guest_length > regions[i].end)
            continue;
        unit->image = recorder->image[i];
        recorder->result = ntc_writer_add_unit(recorder->writer, unit, 0);
    }
}

static int record(struct recorder *recorder, const struct caches *caches, const struct vm_config *config,
                  struct vm *vm) {
    for (unsigned i = 0; i < ARRAY_SIZE(regions); i++) {
        const struct ntc_image_input image = {
            .link_base = regions[i].base,
            .link_length = regions[i].end - regions[i].base,
            .slide_align = regions[i].kind == NTC_IMAGE_KERNEL ? KERNEL_ALIGN : PAGE_SIZE,
            .kind = regions[i].kind,
            .name = regions[i].name};
        int result = ntc_writer_add_image(recorder->writer, &image, &recorder->image[i]);
        if (result)
            return result;
    }
    for (unsigned cpu = 0; cpu < config->cpus; cpu++)
        dbt_portable_record(vm_vcpu(vm, cpu), caches->translator, add_recorded, recorder);
    return recorder->result;
}

void caches_record(struct caches *caches, const struct vm_config *config, struct vm *vm,
                   const struct cpu_model *model) {
    struct recorder recorder = {0};
    struct ntc_error error;
    struct ntc_writer_summary summary;
    const struct ntc_writer_options options = {.translator_abi = DBT_PORTABLE_ABI,
                                               .translator_layout = dbt_portable_layout(model),
                                               .host_features = ntc_host_features(),
                                               .producer = "nestor run --record-cache"};
    int result = ntc_writer_create(&recorder.writer, &options);
    if (!result)
        result = record(&recorder, caches, config, vm);
    if (result)
        diag_error("--record-cache %s: %s; nothing was written", config->record_cache, strerror(-result));
    else if (ntc_writer_write(recorder.writer, config->record_cache, NULL, &summary, &error))
        diag_error("--record-cache: %s", error.line);
    if (recorder.writer)
        ntc_writer_destroy(recorder.writer);
}

struct profile_text {
    FILE *file;
};

/* The kernel's name is precompile-cache's; code in no known place is not told of. */
static void add_seen(void *context, const struct portable_seen *seen) {
    struct profile_text *text = context;
    const char *image = seen->image;
    if (!image && seen->address >= KERNEL_BASE && seen->address < KERNEL_END)
        image = "vmlinux";
    if (!image || !*image || strpbrk(image, " \t\n#"))
        return;
    fprintf(text->file, "%s %" PRIx64 " %x %" PRIu64, image, seen->address, seen->mode, seen->count);
    if (seen->hash)
        fprintf(text->file, " %016" PRIx64, seen->hash);
    fputc('\n', text->file);
}

void caches_profile(const struct vm_config *config, struct vm *vm) {
    char *bytes = NULL;
    size_t length = 0;
    struct ntc_error error;
    struct profile_text text = {.file = open_memstream(&bytes, &length)};
    if (!text.file) {
        diag_error("--record-profile %s: out of memory", config->record_profile);
        return;
    }
    fprintf(text.file, "%s\n# image link-address mode count [bytes-hash]\n", NTC_PROFILE_TITLE);
    for (unsigned cpu = 0; cpu < config->cpus; cpu++)
        dbt_portable_profile(vm_vcpu(vm, cpu), add_seen, &text);
    bool whole = !ferror(text.file);
    if (fclose(text.file) || !whole)
        diag_error("--record-profile %s: out of memory; nothing was written", config->record_profile);
    else if (ntc_output_replace(config->record_profile, bytes, length, &error))
        diag_error("--record-profile: %s", error.line);
    free(bytes);
}
