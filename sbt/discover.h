/* Where a kernel's code is: instructions and places that execution may enter at.
 *
 * Found by recursive descent from symbols, the entry point, exception fixups and static-call and jump-label
 * targets, over the text as it is early and as it ends up; what the unwind tables (ORC) know as code and was
 * not reached is entered there.
 */
#ifndef NESTOR_SBT_DISCOVER_H
#define NESTOR_SBT_DISCOVER_H

#include "sbt/patch.h"

/* Of a byte of code. */
#define CODE_READY 1u     /* an instruction starts here in STAGE_READY and STAGE_READY_ONE */
#define CODE_EARLY 2u     /* in STAGE_EARLY and STAGE_TRACED */
#define CODE_ENTRY 4u     /* entered from elsewhere: a function, a fixup, behind what traps */
#define CODE_COVERED 8u   /* part of an instruction */
#define CODE_FUNCTION 16u /* a function starts here */
#define CODE_TARGET 32u   /* of a direct branch */

struct discovery {
    const struct patched *patched;
    uint8_t **map; /* by section of patched: a byte of CODE_* for each of its bytes; NULL: not code */
    uint64_t text_bytes, covered_bytes, padding_bytes;
    size_t functions, entries, instructions;
    size_t undecodable; /* places that were reached but hold no instruction */
};

/* 0 or -ENOMEM after a diag_error() line. */
MUST_CHECK int discovery_create(struct discovery *discovery, const struct patched *patched);
void discovery_destroy(struct discovery *discovery);

#endif
