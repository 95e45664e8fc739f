/* See functions.h. */
#include "sbt/functions.h"
#include "dbt/portable.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

struct functions {
    const struct discovery *discovery;
    const struct functions_options *options;
    blocks_sink sink;
    void *context;
    void *generator;
    struct functions_counts counts;
};

struct functions *functions_create(const struct discovery *discovery, const struct functions_options *options,
                                   const struct cpu_model *model, blocks_sink sink, void *context) {
    struct functions *f = calloc(1, sizeof *f);
    if (!f)
        return NULL;
    *f = (struct functions){.discovery = discovery, .options = options, .sink = sink, .context = context};
    f->generator = options->codegen->create(model);
    if (!f->generator) {
        free(f);
        return NULL;
    }
    return f;
}

void functions_destroy(struct functions *f) {
    if (!f)
        return;
    f->options->codegen->destroy(f->generator);
    free(f);
}

size_t functions_count(const struct discovery *discovery) {
    return discovery->patched->image->symbols;
}

const struct functions_counts *functions_counts(const struct functions *f) {
    return &f->counts;
}

static void count_refusal(struct functions_counts *counts, const char *reason, size_t times) {
    unsigned i = 0;
    while (i < counts->reasons && strcmp(counts->reason[i], reason) != 0)
        i++;
    if (i == FUNCTIONS_REASONS_MAX)
        return;
    if (i == counts->reasons)
        counts->reason[counts->reasons++] = reason;
    counts->refused[i] += times;
}

void functions_add_counts(struct functions_counts *to, const struct functions_counts *from) {
    to->units += from->units;
    to->functions += from->functions;
    to->unselected += from->unselected;
    to->guest_bytes += from->guest_bytes;
    to->host_bytes += from->host_bytes;
    for (unsigned i = 0; i < from->reasons; i++)
        count_refusal(to, from->reason[i], from->refused[i]);
}

static bool is_code(const struct image_symbol *symbol) {
    return symbol->type == 't' || symbol->type == 'T' || symbol->type == 'w' || symbol->type == 'W';
}

/* The section that holds the function, and whether discovery has met an instruction at its start. */
static const struct patched_section *section_of(const struct functions *f, uint64_t address) {
    const struct patched *patched = f->discovery->patched;
    for (unsigned i = 0; i < patched->sections; i++) {
        const struct patched_section *section = &patched->section[i];
        if (address - section->address < section->size)
            return f->discovery->map[i] && f->discovery->map[i][address - section->address] & CODE_READY
                       ? section
                       : NULL;
    }
    return NULL;
}

/* Up to the next symbol of code, the section's end, or the end of the second page. */
static uint32_t length_of(const struct image *image, size_t number, const struct patched_section *section) {
    uint64_t address = image->symbol[number].address, end = section->address + section->size;
    uint64_t pages = (address & PAGE_MASK) + 2 * PAGE_SIZE;
    for (size_t i = number + 1; i < image->symbols; i++)
        if (is_code(&image->symbol[i]) && image->symbol[i].address > address) {
            if (image->symbol[i].address < end)
                end = image->symbol[i].address;
            break;
        }
    return (uint32_t)((end < pages ? end : pages) - address);
}

static int make(struct functions *f, const struct image_symbol *symbol,
                const struct codegen_request *request) {
    struct ntc_unit unit = {0};
    const struct codegen *codegen = f->options->codegen;
    if (codegen->keep_ir)
        codegen->keep_ir(f->generator, f->options->dump_ir && !strcmp(f->options->dump_ir, symbol->name));
    int result = codegen->translate(f->generator, request, &unit);
    if (result == -ENOENT || result == -E2BIG) {
        const char *reason = codegen->refusal ? codegen->refusal(f->generator) : NULL;
        count_refusal(&f->counts, reason ? reason : "no code", 1);
        return 0;
    }
    if (result)
        return result;
    unit.image = f->options->image;
    unit.heat = f->options->estimate ? estimate_at(f->options->estimate, request->address, STAGE_READY) : 0;
    unit.name = symbol->name;
    /* Whatever it depends on of the mode. */
    unit.mode = dbt_portable_key(request->mode, PORTABLE_VECTOR);
    f->counts.units++;
    f->counts.guest_bytes += unit.guest_length;
    f->counts.host_bytes += unit.code_length;
    return f->sink(f->context, &unit);
}

int functions_make(struct functions *f, size_t number) {
    const struct image *image = f->discovery->patched->image;
    const struct image_symbol *symbol = &image->symbol[number];
    const uint8_t *before = NULL;
    if (!is_code(symbol) || (number && image->symbol[number - 1].address == symbol->address &&
                             is_code(&image->symbol[number - 1])))
        return 0;
    const struct patched_section *section = section_of(f, symbol->address);
    if (!section)
        return 0;
    uint32_t length = length_of(image, number, section);
    if (f->options->select && !f->options->select(f->context, symbol->address, length)) {
        f->counts.unselected++;
        return 0;
    }
    f->counts.functions++;
    for (unsigned stage = STAGE_READY; stage <= STAGE_READY_ONE; stage++) {
        if (!f->options->stages[stage])
            continue;
        const uint8_t *bytes = section->bytes[stage] + (symbol->address - section->address);
        if (before && !memcmp(before, bytes, length))
            continue;
        before = bytes;
        const struct codegen_request request = {
            .address = symbol->address, .mode = f->options->mode, .bytes = bytes, .length = length};
        int result = make(f, symbol, &request);
        if (result)
            return result;
    }
    return 0;
}
