/* What the device tests share: a check that says what failed and goes on, and the exit status. */
#ifndef NESTOR_TEST_DEVICES_CHECK_H
#define NESTOR_TEST_DEVICES_CHECK_H

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>

#include "base/types.h"

static int check_failures;

#define CHECK(condition)                                                                                     \
    do {                                                                                                     \
        if (!(condition)) {                                                                                  \
            fprintf(stderr, "%s:%d: failed: %s\n", __FILE__, __LINE__, #condition);                          \
            check_failures++;                                                                                \
        }                                                                                                    \
    } while (0)

#define CHECK_EQUAL(actual, expected)                                                                        \
    do {                                                                                                     \
        uint64_t check_actual = (uint64_t)(actual), check_expected = (uint64_t)(expected);                   \
        if (check_actual != check_expected) {                                                                \
            fprintf(stderr, "%s:%d: %s is 0x%" PRIx64 ", not 0x%" PRIx64 "\n", __FILE__, __LINE__, #actual,  \
                    check_actual, check_expected);                                                           \
            check_failures++;                                                                                \
        }                                                                                                    \
    } while (0)

static inline int check_result(void) {
    if (check_failures)
        fprintf(stderr, "%d checks failed\n", check_failures);
    return check_failures ? EXIT_FAILURE : EXIT_SUCCESS;
}

/* An interrupt line that remembers: level and rising edges. */
struct check_line {
    bool level;
    unsigned rises;
};

static inline void check_line_set(void *context, unsigned line, bool level) {
    struct check_line *lines = context;
    if (level && !lines[line].level)
        lines[line].rises++;
    lines[line].level = level;
}

#endif
