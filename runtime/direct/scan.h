/* Code that must not run on the processor itself, though it would not trap. */
#ifndef NESTOR_DIRECT_SCAN_H
#define NESTOR_DIRECT_SCAN_H

#include "base/types.h"

/* What to look for besides what is always looked for. */
#define SCAN_CPUID 1u       /* nothing makes CPUID fault */
#define SCAN_COMPAT_CALL 2u /* 32-bit code on AMD: SYSCALL loses the address it came from */
#define SCAN_BASES                                                                                           \
    4u               /* the host's kernel does not keep an FS or GS base that ring 3 has changed by itself   \
                      */
#define SCAN_POPF 8u /* what it sets would not be kept */

#define SCAN_BEFORE 64 /* bytes of the page before that are needed, to find where instructions begin */
#define SCAN_AFTER 16  /* bytes of the page behind */

/* Does code[from..to) hold a byte of an instruction that tells ring 3 the host's state for the guest's, or
 * that leaves it where its state cannot be recovered? Readable is code[0..length). Instructions are found by
 * decoding what stands before the suspicious bytes: code that jumps into the middle of its own instructions
 * may hide one. code_size: 32 or 64. */
bool scan_finds(const uint8_t *code, unsigned from, unsigned to, unsigned length, unsigned code_size,
                unsigned what);

#endif
