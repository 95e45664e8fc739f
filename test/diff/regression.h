/* Cases as text files: what the minimiser writes and --replay reads. */
#ifndef NESTOR_TEST_DIFF_REGRESSION_H
#define NESTOR_TEST_DIFF_REGRESSION_H

#include "case.h"

/* Write a case with a comment that holds its disassembly and a title. 0 or -errno. */
MUST_CHECK int regression_write(const char *path, const struct diff_case *test, const char *title);
/* 0 or -errno; -EINVAL with one line on stderr for what is not such a file. */
MUST_CHECK int regression_read(const char *path, struct diff_case *test);

#endif
