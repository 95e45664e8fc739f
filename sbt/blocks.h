/* From code to units: every piece of an image's text (pieces.h), with every byte string that it may hold.
 *
 * Each stage of the text is gone through; what has the same bytes as in a stage before is not made again. A
 * piece is made as the stage has it. If it has places whose contents cannot be known (patch.h), it is made
 * once more without them, good whatever stands there; and each such place by itself, for each of its
 * contents.
 */
#ifndef NESTOR_SBT_BLOCKS_H
#define NESTOR_SBT_BLOCKS_H

#include "sbt/codegen.h"
#include "sbt/estimate.h"
#include "sbt/pieces.h"

#define BLOCKS_MODES_MAX 16u

struct blocks_options {
    const struct codegen *codegen;
    uint32_t modes[BLOCKS_MODES_MAX]; /* cpu/mode.h; the code is gone through once for each */
    unsigned mode_count;
    /* Is the piece to be made? NULL: all are. Called with `context` of blocks_create(). */
    bool (*select)(void *context, uint64_t address, uint32_t length, uint32_t mode);
    /* Is the place, where an instruction begins, known to be entered from outside? NULL: none is. */
    bool (*entered)(void *context, uint64_t address);
    const struct estimate *estimate; /* gives units their heat; NULL: they have none */
    uint32_t image;                  /* number in the file */
    bool stages[STAGES];
    bool fields; /* find out which places of the code depend on where the image is loaded */
};

struct blocks_counts {
    size_t pieces;     /* made */
    size_t units;      /* with their byte strings */
    size_t unselected; /* pieces that were not to be made */
    size_t refused;    /* pieces of which the generator makes nothing */
    size_t too_large;  /* instructions for which no unit is large enough */
    size_t uncombined; /* pieces with more patched places than are kept apart */
    size_t fixed;      /* units with fields that the code depends on: good where the image is linked to */
    uint64_t guest_bytes, host_bytes;
};

/* Takes a unit; its pointers hold during the call. A non-zero result ends the work and is its result. */
typedef int (*blocks_sink)(void *context, const struct ntc_unit *unit);

struct blocks;

/* State for one thread; NULL without memory. What it is given must outlive it. */
struct blocks *blocks_create(const struct discovery *discovery, const struct pieces *pieces,
                             const struct blocks_options *options, const struct cpu_model *model,
                             blocks_sink sink, void *context);
void blocks_destroy(struct blocks *blocks);
/* Make the units of one piece. 0, the sink's result, or -ENOMEM. */
MUST_CHECK int blocks_make_piece(struct blocks *blocks, size_t piece);
const struct blocks_counts *blocks_counts(const struct blocks *blocks);

#endif
