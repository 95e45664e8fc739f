/* What a stub has mapped: a TLB of the guest's user half, with the host's kernel as its memory. */
#ifndef NESTOR_DIRECT_MAPPING_H
#define NESTOR_DIRECT_MAPPING_H

#include "direct/stub.h"
#include "direct/tables.h"

#define MAPPING_BUCKETS 512

struct region;

struct mapping {
    struct region *bucket[MAPPING_BUCKETS];
    unsigned regions;
    unsigned areas;                /* no fewer than the host's kernel holds for it */
    uint64_t flushes, revocations; /* of the vCPU, as of the last look at the guest's tables */
};

struct direct_stub;

/* Make the stub agree with all flushes and revocations so far; then map the page of linear as mapping_add()
 * does, unless it is NO_ADDRESS. 0; -errno: the stub is of no use any more. */
MUST_CHECK int mapping_sync(struct vcpu *vcpu, struct direct_stub *stub, uint64_t linear);
/* Map the page of linear with all that ring 3 may do with it as it stands, and its neighbours with it. 1: the
 * page can now do more than before; 0: not; -errno: the stub is of no use any more. */
MUST_CHECK int mapping_add(struct vcpu *vcpu, struct direct_stub *stub, uint64_t linear);
/* Does the guest use addresses near to the stub's own pages? Ring 3 would see those. */
bool mapping_collides(const struct vcpu *vcpu);
/* Have CPUID fault in this stub, so that pages need not be kept out for its sake. false: it does already, or
 * cannot. */
bool mapping_admit_cpuid(struct vcpu *vcpu, struct direct_stub *stub);
/* Forget all, without a word to the stub. */
void mapping_clear(struct vcpu *vcpu, struct mapping *mapping);

#endif
