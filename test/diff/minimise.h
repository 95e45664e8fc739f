/* From a failing case to the least that still fails. */
#ifndef NESTOR_TEST_DIFF_MINIMISE_H
#define NESTOR_TEST_DIFF_MINIMISE_H

#include "engine.h"
#include "generate.h"
#include "oracle.h"

struct diff_pair {
    struct oracle *oracle;
    const struct diff_engine *engine;
    void *context;
};

/* Run a case natively and on the engine. 1: they differ, 0: they agree, -errno. */
MUST_CHECK int pair_differs(const struct diff_pair *pair, const struct diff_case *test,
                            struct diff_state *expected, struct diff_state *actual);
/* Simplify test while pair_differs() holds: instructions become NOPs, the end is cut off, registers and
 * memory become plain. stream tells which instructions stand alone (NULL: each). */
void minimise(const struct diff_pair *pair, struct diff_case *test, const struct stream *stream);

#endif
