/* Comparison of two end states under the rules, and reports for people. */
#ifndef NESTOR_TEST_DIFF_COMPARE_H
#define NESTOR_TEST_DIFF_COMPARE_H

#include "case.h"

#include <stdio.h>

/* True when actual is what expected (native) allows. */
bool compare_states(const struct diff_case *test, const struct diff_state *expected,
                    const struct diff_state *actual);
/* Print every difference, a line each. */
void compare_report(FILE *out, const struct diff_case *test, const struct diff_state *expected,
                    const struct diff_state *actual);
/* Print the stream's instructions; the one at rip is marked. */
void compare_disassemble(FILE *out, const struct diff_case *test, uint64_t rip);

/* Arithmetic flags that the manual leaves undefined when the stream has come to rip. */
uint32_t compare_undefined_flags(const struct diff_case *test, uint64_t rip);
/* True when some instruction reads a flag that is undefined there: not a valid test. */
bool compare_reads_undefined(const struct diff_case *test);

#endif
