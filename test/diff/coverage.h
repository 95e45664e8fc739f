/* Which forms were executed, and why the others were not. */
#ifndef NESTOR_TEST_DIFF_COVERAGE_H
#define NESTOR_TEST_DIFF_COVERAGE_H

#include "case.h"
#include "generate.h"

#include <stdio.h>

/* Run each form alone a few times natively and mark those that are always #UD as unsupported by the host. */
struct oracle;
MUST_CHECK int coverage_probe(struct form_table *forms, struct oracle *oracle);
/* Count what a stream did, from its native end state. Returns the number of its instructions that ran. */
uint64_t coverage_count(const struct diff_case *test, const struct stream *stream,
                        const struct diff_state *state);
/* Totals by class, then every form that never completed, with the reason. */
void coverage_report(FILE *out, const struct form_table *forms);

#endif
