/* Code that must not run on the processor itself, though it would not trap. */
#ifndef NESTOR_DIRECT_SCAN_H
#define NESTOR_DIRECT_SCAN_H

#include "base/types.h"

/* What to look for. */
#define SCAN_CPUID 1u       /* nothing makes CPUID fault */
#define SCAN_COMPAT_CALL 2u /* 32-bit code on AMD: SYSCALL loses the address it came from */

/* Is there, at any byte of code[0..length), the beginning of an instruction that tells ring 3 the host's
 * state for the guest's or that leaves it where its state cannot be recovered (SYSENTER)? Bytes at
 * code[length..length + 3) are looked at as continuations only. */
bool scan_finds(const uint8_t *code, unsigned length, unsigned what);

#endif
