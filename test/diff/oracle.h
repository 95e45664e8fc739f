/* The oracle: the processor itself, which runs cases in a fenced child process. Where it cannot run a mode's
 * code, an engine stands in. */
#ifndef NESTOR_TEST_DIFF_ORACLE_H
#define NESTOR_TEST_DIFF_ORACLE_H

#include "case.h"

#define ORACLE_BATCH 64u

struct oracle;

/* Does the kernel of this host know WRFSBASE and WRGSBASE? */
bool oracle_has_fsgsbase(void);

/* Start the child. -ENOTSUP, with a line of its own on stderr, on a host that cannot run it. */
MUST_CHECK int oracle_create(struct oracle **oracle);
/* The same interface before an engine, created and destroyed with it. */
struct diff_engine;
MUST_CHECK int oracle_create_engine(struct oracle **oracle, const struct diff_engine *engine);
void oracle_destroy(struct oracle *oracle);

/* Does code of that mode (64, 32) run here as the tests need it? Found out by trying. */
bool oracle_runs_mode(struct oracle *oracle, unsigned mode);

/* Where to put the cases of the next batch, and where its results are. */
struct diff_case *oracle_cases(struct oracle *oracle);
const struct diff_state *oracle_states(const struct oracle *oracle);

/* Run the first count cases, count <= ORACLE_BATCH. A case that loops ends as DIFF_END_TIMEOUT, one that
 * kills the child as DIFF_END_LOST (the child is started anew). 0 or -errno. */
MUST_CHECK int oracle_run(struct oracle *oracle, unsigned count);

#endif
