/* The process's terminal: raw mode for a serial console, and back on every way out.
 *
 * State of the process, not of a VM: there is one controlling terminal. A small keeper process holds a copy
 * of the settings and puts them back when this process disappears without having done so (SIGKILL, a crash).
 */
#ifndef NESTOR_TOOLS_TERMINAL_H
#define NESTOR_TOOLS_TERMINAL_H

#include "base/types.h"

/* Start the keeper. Call before threads and large allocations exist: it keeps a copy of what this process is
 * then. 0, also when standard input is no terminal; -errno after one line. */
MUST_CHECK int terminal_guard(void);
/* Put the terminal on standard input into raw mode: no echo, no line editing, no signals from keys. 0, also
 * when standard input is no terminal; -errno after one line. */
MUST_CHECK int terminal_enter_raw(void);
bool terminal_is_raw(void);
/* Its size in characters. False when standard input is no terminal. */
bool terminal_size(uint16_t *columns, uint16_t *rows);
/* Raw mode again after a stop and SIGCONT. */
void terminal_reenter_raw(void);
/* Put the settings back and dismiss the keeper. Async-signal-safe and idempotent: call it from crash handlers
 * too. */
void terminal_restore(void);

#endif
