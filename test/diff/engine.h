/* What can run a case: the interface between the tester and the tiers under test. */
#ifndef NESTOR_TEST_DIFF_ENGINE_H
#define NESTOR_TEST_DIFF_ENGINE_H

#include "case.h"

struct diff_engine {
    const char *name;
    const char *summary;
    /* 0 and the engine's own state, or -errno with one line on stderr. */
    int (*create)(void **context);
    void (*destroy)(void *context);
    /* Run test from its state to its end. Nothing may carry over from one case to the next. 0 or -errno. */
    int (*run)(void *context, const struct diff_case *test, struct diff_state *result);
};

/* All engines that were built; the list ends with NULL. "native" runs a case on the processor once more: the
 * tester's check of itself. */
extern const struct diff_engine *const diff_engines[];
const struct diff_engine *engine_find(const char *name);

#endif
