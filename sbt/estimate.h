/* What of a kernel a boot is likely to run, worked out from its text alone: what decides where code stands in
 * a file for which there is no profile.
 *
 * A function that is called by one that runs may run, the likelier the fewer branches lie before the call. Of
 * the text as it ends up the roots are the initcalls and the threads that a kernel begins with, of the text
 * as it is early its entry points. What is only pointed to is not followed (nearly everything is); but who
 * stands among functions that run is likelier to run than who does not, because the linker keeps source files
 * together.
 */
#ifndef NESTOR_SBT_ESTIMATE_H
#define NESTOR_SBT_ESTIMATE_H

#include "sbt/discover.h"

#define ESTIMATE_SURE 65536u

struct estimate {
    uint64_t *start; /* of functions, ascending */
    size_t functions;
    uint32_t *value[2]; /* by function: of STAGE_READY and later, of the stages before; 0 to ESTIMATE_SURE */
};

/* Of an image of which nothing is known to begin with nothing is likely. 0 or -ENOMEM. */
MUST_CHECK int estimate_create(struct estimate *estimate, const struct discovery *discovery);
void estimate_destroy(struct estimate *estimate);
/* Of the function that the address lies in. */
uint32_t estimate_at(const struct estimate *estimate, uint64_t address, enum stage stage);

#endif
