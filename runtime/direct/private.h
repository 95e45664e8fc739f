/* Shared inside runtime/direct. */
#ifndef NESTOR_DIRECT_PRIVATE_H
#define NESTOR_DIRECT_PRIVATE_H

#include "direct/direct.h"
#include "direct/mapping.h"
#include "direct/stub.h"

#include <sched.h>

#define STUBS_DEFAULT 32
#define STUBS_MAX 1024
#define TIER_RECORDS 256

/* Entries of the GDT that Linux gives to user mode for thread-local storage, 32-bit code's mostly. */
#define TLS_FIRST 12
#define TLS_ENTRIES 3

/* A stub and the guest address space that it stands for. */
struct direct_stub {
    pid_t pid;          /* 0: a free slot */
    uint64_t root;      /* of its page tables: CR3 without PCID */
    uint64_t last_used; /* direct_vcpu.clock */
    struct mapping mapping;
    uint64_t touched;          /* an address that the guest's kernel has just been asked for, or NO_ADDRESS */
    unsigned scan;             /* SCAN_*: what pages are kept out for */
    bool cpuid_faults;         /* CPUID traps in it */
    uint64_t emulated_turn;    /* TSC: see is_emulating_often() */
    uint32_t flags;            /* RFLAGS as the stub last had them: some bits cannot be set from outside */
    uint64_t tls[TLS_ENTRIES]; /* descriptors as the guest's GDT has them */
    int cpu;                   /* where it is bound to, or -1 */
    uint8_t *xstate;           /* what its extended registers hold, as the host's kernel tells */
    bool xstate_valid;         /* that is so */
};

#define NO_ADDRESS UINT64_MAX

/* What is known of an address space's behaviour: see tier.c. */
struct tier_record {
    uint64_t root;
    bool is_direct;
    uint8_t failures;      /* times that it came back */
    uint64_t not_before;   /* TSC: no way up earlier */
    uint64_t window_start; /* TSC */
    bool by_thread;        /* in the DBT: cpu_ns is the thread's time, not only the wall's */
    uint64_t entries;      /* vcpu->user_entries at the window's start */
    pid_t pid;             /* the stub whose time the window is judged by; 0: none yet */
    uint64_t exits;        /* its stops in the window, weighted */
    uint64_t cpu_ns;       /* processor time at the window's start */
};

struct direct_vcpu {
    struct direct_options options;
    struct stub_family family;
    bool attached;
    struct direct_stub *stub; /* options.max_stubs of them */
    uint64_t clock;
    uint64_t hold;    /* vcpu->user_entries for as long as ring 3 is not to run here */
    uint64_t xcr0;    /* what the guest must have enabled: the host's */
    uint64_t low_end; /* below it nothing can be mapped */
    unsigned max_areas;
    bool host_fsgsbase;
    bool is_amd;
    unsigned regions;  /* of all stubs */
    bool broken;       /* stubs cannot be made any more */
    cpu_set_t allowed; /* where the launcher may run */
    int bound_cpu;     /* of the vCPU's thread, or -1 */
    uint64_t bound_until;
    struct direct_stats stats;
    struct direct_costs costs;
    uint64_t cycles_per_us;
    /* spaces.c */
    struct direct_space *space;   /* SPACES_MAX of them, or NULL */
    struct direct_stats charged;  /* as much of stats as is in space[] */
    struct direct_space *charges; /* whom the last was charged to */
    /* tier.c */
    struct tier_record tier[TIER_RECORDS];
    struct tier_record *current;
};

/* -- state.c -- */

/* Can a stub hold the vCPU's state? Compiled without vector code. */
bool state_fits(const struct vcpu *vcpu);
/* The vCPU's registers for a stub, and back. */
void state_to_stub(const struct vcpu *vcpu, struct user_regs_struct *regs);
/* false: the guest cannot be in that state; vcpu->exception tells what it gets instead. */
bool state_from_stub(struct vcpu *vcpu, const struct user_regs_struct *regs);
/* Extended state: 0 or -errno of ptrace. */
MUST_CHECK int state_load_vectors(struct vcpu *vcpu, struct direct_stub *stub);
MUST_CHECK int state_fetch_vectors(struct vcpu *vcpu, struct direct_stub *stub);

/* -- tls.c -- */

/* Bring the stub's descriptors for thread-local storage up to date with the guest's: 0 or -errno of ptrace.
 */
MUST_CHECK int tls_sync(struct vcpu *vcpu, struct direct_stub *stub);
/* Are the bases of FS and GS those that their selectors stand for in the stub? */
bool tls_agrees(const struct vcpu *vcpu, const struct direct_stub *stub);

/* -- pool.c -- */

/* The stub of the current address space, made if need be; NULL: there can be none now. */
struct direct_stub *pool_get(struct vcpu *vcpu);
void pool_drop(struct vcpu *vcpu, struct direct_stub *stub);
void pool_drop_all(struct vcpu *vcpu);
void pool_drop_others(struct vcpu *vcpu, const struct direct_stub *stub);
/* Bind the calling thread to the processor that it is on. */
void pool_stay_here(struct direct_vcpu *direct);
/* Bring the stub to the vCPU thread's processor. */
void pool_place(struct direct_vcpu *direct, struct direct_stub *stub);

/* -- spaces.c -- */

MUST_CHECK int spaces_create(struct direct_vcpu *direct);
void spaces_destroy(struct direct_vcpu *direct);
/* All that was counted since the last time is this address space's. */
void spaces_charge(struct direct_vcpu *direct, uint64_t root);

/* -- tier.c -- */

bool tier_wants_direct(struct vcpu *vcpu);
/* A stub stopped. only_mapped: its page was mapped and it could go on. false: the address space has moved to
 * the other tiers. */
bool tier_goes_on(struct vcpu *vcpu, const struct direct_stub *stub, bool only_mapped);

static inline uint64_t direct_root(const struct vcpu *vcpu) {
    return vcpu->cr3 & ~0xfffull;
}

/* Leave the current stretch of ring 3 to the other tiers. */
static inline void direct_hold(struct vcpu *vcpu) {
    vcpu->direct->hold = vcpu->user_entries;
}

#endif
