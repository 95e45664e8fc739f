/* The run time's own emitter as a generator. */
#include "dbt/portable.h"
#include "sbt/codegen.h"

static void *template_create(const struct cpu_model *model) {
    return dbt_translator_create(model);
}

static void template_destroy(void *state) {
    dbt_translator_destroy(state);
}

static int template_translate(void *state, const struct codegen_request *request, struct ntc_unit *unit) {
    const struct portable_request portable = {
        .rip = request->address, .mode = request->mode, .bytes = request->bytes, .length = request->length};
    return dbt_portable_translate(state, &portable, unit);
}

static uint32_t template_abi(void) {
    return DBT_PORTABLE_ABI;
}

const struct codegen codegen_template = {.name = "template",
                                         .create = template_create,
                                         .destroy = template_destroy,
                                         .translate = template_translate,
                                         .abi = template_abi,
                                         .layout = dbt_portable_layout};
