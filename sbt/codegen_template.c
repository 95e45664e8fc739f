/* The run time's own emitter as a generator. */
#include "dbt/portable.h"
#include "sbt/codegen.h"

#include <errno.h>

static void *template_create(const struct cpu_model *model) {
    return dbt_translator_create(model);
}

static void template_destroy(void *state) {
    dbt_translator_destroy(state);
}

static int template_translate(void *state, const struct codegen_request *request, struct ntc_unit *unit) {
    struct portable_function function = {.code = {.rip = request->address,
                                                  .mode = request->mode,
                                                  .bytes = request->bytes,
                                                  .length = request->length},
                                         .entry = request->entry,
                                         .entries = request->entries,
                                         .stop = (const struct portable_stop *)request->stop,
                                         .stops = request->stops,
                                         .field = request->field,
                                         .fields = request->fields};
    int result = dbt_portable_function(state, &function, unit);
    if (result != -EINVAL)
        return result;
    function.fields = 0;
    return dbt_portable_function(state, &function, unit);
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
