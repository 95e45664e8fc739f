/* One-line diagnostics for people: "nestor: <what>: <why>; <mend>" on stderr. Nothing here exits the process.
 */
#ifndef NESTOR_BASE_DIAG_H
#define NESTOR_BASE_DIAG_H

#include "base/types.h"

/* Print one error line; a newline is added. Thread-safe: a line is one write(2). */
void diag_error(const char *format, ...) PRINTF_LIKE(1, 2);
/* The same for something the VM survives. */
void diag_warn(const char *format, ...) PRINTF_LIKE(1, 2);

#endif
