/* Statistics by address space. Nothing is counted twice while ring 3 runs: what the vCPU's counters have
 * grown by since the last charge belongs to the address space that is charged next. Places are bounded; the
 * least recently used one gives its counters to the first place, which stands for all that had to go.
 * Compiled without vector code, as its caller tier.c is.
 */
#include "direct/private.h"

#include <errno.h>
#include <stdlib.h>

#define SPACES_MAX 256
#define COUNTERS (sizeof(struct direct_stats) / sizeof(uint64_t))

_Static_assert(sizeof(struct direct_stats) % sizeof(uint64_t) == 0, "counters only");

int spaces_create(struct direct_vcpu *direct) {
    if (!direct->options.count_spaces)
        return 0;
    direct->space = calloc(SPACES_MAX, sizeof *direct->space);
    if (!direct->space)
        return -ENOMEM;
    for (unsigned i = 0; i < SPACES_MAX; i++)
        direct->space[i].root = DIRECT_NO_ROOT;
    return 0;
}

void spaces_destroy(struct direct_vcpu *direct) {
    free(direct->space);
    direct->space = direct->charges = NULL;
}

static void add_up(struct direct_stats *to, const struct direct_stats *from) {
    uint64_t *sum = (uint64_t *)to;
    const uint64_t *word = (const uint64_t *)from;
    for (unsigned i = 0; i < COUNTERS; i++)
        sum[i] += word[i];
}

static struct direct_space *find(struct direct_vcpu *direct, uint64_t root) {
    if (direct->charges && direct->charges->root == root)
        return direct->charges;
    struct direct_space *space = direct->space, *oldest = &space[1];
    for (unsigned i = 1; i < SPACES_MAX; i++) {
        if (space[i].root == root)
            return &space[i];
        if (space[i].last_used < oldest->last_used)
            oldest = &space[i];
    }
    if (oldest->root != DIRECT_NO_ROOT)
        add_up(&space->stats, &oldest->stats);
    *oldest = (struct direct_space){.root = root};
    return oldest;
}

void spaces_charge(struct direct_vcpu *direct, uint64_t root) {
    struct direct_stats *now = &direct->stats;
    if (!direct->space)
        return;
    struct direct_space *space = direct->charges = find(direct, root);
    uint64_t *sum = (uint64_t *)&space->stats, *charged = (uint64_t *)&direct->charged;
    for (unsigned i = 0; i < COUNTERS; i++) {
        sum[i] += ((uint64_t *)now)[i] - charged[i];
        charged[i] = ((uint64_t *)now)[i];
    }
    space->last_used = ++direct->clock;
}

const struct direct_space *direct_vcpu_spaces(const struct vcpu *vcpu, unsigned *count) {
    *count = SPACES_MAX;
    return vcpu->direct ? vcpu->direct->space : NULL;
}
