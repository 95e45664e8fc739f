#ifndef KERNELS_CHECK_H
#define KERNELS_CHECK_H
/*
 * Console output and the verdicts. Each check prints one line, `ok NAME` or `FAIL NAME: ...`; checks_finish()
 * prints the summary and ends the machine through the debug-exit port: 0 when all held, else 1.
 */
#include <stdarg.h>
#include <stdbool.h>
#include <stdint.h>

/* Formats %s %c %d %u %x (with l or ll, and 0 and a width before x) onto COM1. */
__attribute__((format(printf, 1, 2))) void console_print(const char *format, ...);

/* One check: got must equal want. */
__attribute__((format(printf, 3, 4))) bool check(uint64_t got, uint64_t want, const char *name, ...);

/* Says that a check does not apply to this machine. */
void check_skip(const char *name, const char *reason);

/*
 * Many cases under one line: tally_case() counts one and prints the first failures; tally_end() prints the
 * verdict of the whole.
 */
struct tally {
    const char *name;
    unsigned cases;
    unsigned failures;
};
void tally_begin(struct tally *tally, const char *name);
__attribute__((format(printf, 4, 5))) void tally_case(struct tally *tally, uint64_t got, uint64_t want,
                                                      const char *detail, ...);
void tally_end(struct tally *tally);

__attribute__((noreturn)) void checks_finish(const char *kernel);
__attribute__((noreturn)) void machine_exit(uint8_t value);

#endif
