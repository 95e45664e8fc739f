/* The processor itself as an engine: the oracle. Runs cases in a fenced child process. */
#ifndef NESTOR_TEST_DIFF_ORACLE_H
#define NESTOR_TEST_DIFF_ORACLE_H

#include "case.h"

#define ORACLE_BATCH 64u

struct oracle;

/* Start the child. -ENOTSUP, with a line of its own on stderr, on a host that cannot run it. */
MUST_CHECK int oracle_create(struct oracle **oracle);
void oracle_destroy(struct oracle *oracle);

/* Where to put the cases of the next batch, and where its results are. */
struct diff_case *oracle_cases(struct oracle *oracle);
const struct diff_state *oracle_states(const struct oracle *oracle);

/* Run the first count cases, count <= ORACLE_BATCH. A case that loops ends as DIFF_END_TIMEOUT, one that
 * kills the child as DIFF_END_LOST (the child is started anew). 0 or -errno. */
MUST_CHECK int oracle_run(struct oracle *oracle, unsigned count);

#endif
