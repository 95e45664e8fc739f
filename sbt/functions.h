/* From code to units, a function at a time: what a generator for whole functions makes of an image's text
 * beside the blocks of blocks.h, which stay for all that it leaves out.
 *
 * A function is what lies between two symbols of code. Its text is taken as it ends up on several processors
 * and, where that differs, on one; a unit lies on two pages at most, so of a longer function the first part
 * is made.
 */
#ifndef NESTOR_SBT_FUNCTIONS_H
#define NESTOR_SBT_FUNCTIONS_H

#include "sbt/blocks.h"

#define FUNCTIONS_REASONS_MAX 16u

struct functions_options {
    const struct codegen *codegen;
    uint32_t mode;
    /* Is the function at [address, address + length) to be made? NULL: all are. */
    bool (*select)(void *context, uint64_t address, uint64_t length);
    const struct estimate *estimate; /* as of blocks_options */
    uint32_t image;                  /* number in the file */
    bool stages[STAGES];
    const char *dump_ir; /* a symbol whose IR is kept with its unit; NULL: none */
};

struct functions_counts {
    size_t units, functions, unselected;
    uint64_t guest_bytes, host_bytes;
    /* Functions that nothing was made of, by reason. */
    const char *reason[FUNCTIONS_REASONS_MAX];
    size_t refused[FUNCTIONS_REASONS_MAX];
    unsigned reasons;
};

struct functions;

/* As blocks_create() and its kin. */
struct functions *functions_create(const struct discovery *discovery, const struct functions_options *options,
                                   const struct cpu_model *model, blocks_sink sink, void *context);
void functions_destroy(struct functions *functions);
/* How many there are in an image: symbols, of which several may stand at one address. */
size_t functions_count(const struct discovery *discovery);
/* Make the units of one of them. 0, the sink's result, or -ENOMEM. */
MUST_CHECK int functions_make(struct functions *functions, size_t number);
const struct functions_counts *functions_counts(const struct functions *functions);
void functions_add_counts(struct functions_counts *to, const struct functions_counts *from);

#endif
