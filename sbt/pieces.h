/* An image's text cut into what becomes units: functions, and parts of those that are too long for one.
 *
 * A piece lies on two pages of guest addresses at most. Direct branches that lead from one into the middle of
 * another are found here, so that each piece knows where it is entered.
 */
#ifndef NESTOR_SBT_PIECES_H
#define NESTOR_SBT_PIECES_H

#include "sbt/discover.h"

#define PIECE_MAX 4096u

struct piece {
    uint64_t address; /* link address */
    uint32_t length;
    uint32_t section; /* of discovery->patched */
};

struct pieces {
    struct piece *piece; /* by address */
    size_t count, room;
};

/* Marks more of the discovery's bytes as CODE_ENTRY. 0 or -ENOMEM. */
MUST_CHECK int pieces_create(struct pieces *pieces, struct discovery *discovery);
void pieces_destroy(struct pieces *pieces);
/* CODE_* of the stage's instructions. */
static inline uint8_t piece_stage_bit(enum stage stage) {
    return stage >= STAGE_READY ? CODE_READY : CODE_EARLY;
}

#endif
