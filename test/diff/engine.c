#include "engine.h"

#include "oracle.h"

#include <stdlib.h>
#include <string.h>

static int native_engine_create(void **context) {
    return oracle_create((struct oracle **)context);
}

static void native_engine_destroy(void *context) {
    oracle_destroy(context);
}

static int native_engine_run(void *context, const struct diff_case *test, struct diff_state *result) {
    *oracle_cases(context) = *test;
    int error = oracle_run(context, 1);
    *result = *oracle_states(context);
    return error;
}

static const struct diff_engine native_engine = {
    .name = "native",
    .summary = "the processor itself: a check of the tester",
    .create = native_engine_create,
    .destroy = native_engine_destroy,
    .run = native_engine_run,
};

#ifdef HAVE_INTERP
extern const struct diff_engine interp_engine;
#endif
#ifdef HAVE_DBT
extern const struct diff_engine dbt_engine, cached_engine;
#endif
#ifdef HAVE_LLVM
extern const struct diff_engine llvm_engine;
#endif

const struct diff_engine *const diff_engines[] = {
    &native_engine,
#ifdef HAVE_INTERP
    &interp_engine,
#endif
#ifdef HAVE_DBT
    &dbt_engine,    &cached_engine,
#endif
#ifdef HAVE_LLVM
    &llvm_engine,
#endif
    NULL,
};

const struct diff_engine *engine_find(const char *name) {
    for (unsigned i = 0; diff_engines[i]; i++)
        if (!strcmp(diff_engines[i]->name, name))
            return diff_engines[i];
    return NULL;
}
