/* From code to units: every block that the run-time translator would make of an image's text, with every byte
 * string that it may be made of.
 *
 * A page at a time, since no block leaves its page: from the places that execution may enter at (discover.h),
 * and on from wherever a block so made leads to. Each stage of the text is gone through; what has the same
 * bytes as in a stage before is not made again. The choices inside a block are tried out in all combinations
 * while they are few, else each by itself.
 */
#ifndef NESTOR_SBT_BLOCKS_H
#define NESTOR_SBT_BLOCKS_H

#include "sbt/codegen.h"
#include "sbt/discover.h"

#define BLOCKS_MODES_MAX 16u
#define BLOCKS_VARIANTS_MAX 16u /* byte strings for one block and stage */

struct blocks_options {
    const struct codegen *codegen;
    uint32_t modes[BLOCKS_MODES_MAX]; /* cpu/mode.h; the code is gone through once for each */
    unsigned mode_count;
    /* Is a block to be made at the address? NULL: all are. Called with `context` of blocks_create(). */
    bool (*select)(void *context, uint64_t address, uint32_t mode);
    uint32_t image; /* number in the file */
    bool stages[STAGES];
    bool fields; /* find out which places of the code depend on where the image is loaded */
};

struct blocks_counts {
    size_t blocks;     /* places */
    size_t units;      /* with their byte strings */
    size_t unselected; /* places that were not to be made */
    size_t refused;    /* places at which the generator makes nothing: the interpreter's instructions */
    size_t too_large;  /* byte strings that no unit can hold */
    size_t uncombined; /* blocks with more choices than are combined */
    size_t
        fixed; /* units with fields that could not be told apart in the code: good at the link address only */
    uint64_t guest_bytes, host_bytes;
};

/* Takes a unit; its pointers hold during the call. A non-zero result ends the work and is its result. */
typedef int (*blocks_sink)(void *context, const struct ntc_unit *unit);

struct blocks;

/* State for one thread; NULL without memory. What it is given must outlive it. */
struct blocks *blocks_create(const struct discovery *discovery, const struct blocks_options *options,
                             const struct cpu_model *model, blocks_sink sink, void *context);
void blocks_destroy(struct blocks *blocks);
/* How many pages of code there are, over all sections. */
size_t blocks_page_count(const struct discovery *discovery);
/* Make the units of one of them. 0, the sink's result, or -ENOMEM. */
MUST_CHECK int blocks_make_page(struct blocks *blocks, size_t page);
const struct blocks_counts *blocks_counts(const struct blocks *blocks);

#endif
