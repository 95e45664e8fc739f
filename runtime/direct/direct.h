/* Direct execution: guest ring 3 on the processor itself, in a process of its own per guest address space.
 *
 *   direct_create(vcpu, &options);          // early: makes a process; vcpu->direct, or none and one line why
 *   direct_thread_enter(vcpu);              // on the vCPU's own thread
 *   while (direct_wanted(vcpu))             // at CPL 3
 *       direct_run(vcpu);                   // until ring 0 or a request must be served
 *   direct_thread_leave(vcpu);
 *   direct_destroy(vcpu);
 *
 * The guest's code runs in a stub: a process traced (ptrace(2)) by the vCPU's thread, which has nothing
 * mapped but guest pages and one page of code for the tracer's orders. Every way out of it is a stop by the
 * host's kernel, and the state that is read then is the kernel's, never the stub's word. See
 * docs/decisions/0003-direct.md.
 */
#ifndef NESTOR_DIRECT_DIRECT_H
#define NESTOR_DIRECT_DIRECT_H

#include "cpu/vcpu.h"

#include <sys/types.h>

enum direct_policy {
    DIRECT_ALWAYS, /* wherever it is possible */
    DIRECT_AUTO,   /* where it pays, by measurement */
};

struct direct_options {
    enum direct_policy policy;
    unsigned max_stubs; /* processes kept for each vCPU; 0: the default */
    bool count_spaces;  /* keep statistics for each address space, too */
};

/* Counters only, all of them uint64_t: they are subtracted and added up word by word. */
struct direct_stats {
    uint64_t stays;        /* times that ring 3 went on in a stub, until it left it */
    uint64_t runs;         /* times that a stub was let run */
    uint64_t native_ns;    /* time in stubs, with the way in and out */
    uint64_t syscalls;     /* ends of runs: SYSCALL, INT 0x80, SYSENTER */
    uint64_t faults;       /* ... a fault or trap, mapped and gone on or not */
    uint64_t guest_faults; /* of these: exceptions of the guest */
    uint64_t emulated;     /* of these: instructions that only the interpreter can do here */
    uint64_t kicks;        /* ... a request from outside */
    uint64_t lost;         /* ... the stub died */
    uint64_t pages_mapped, map_calls, pages_unmapped;
    uint64_t revalidations, full_flushes;
    uint64_t stubs_made, stubs_evicted;
    uint64_t moves_up, moves_down; /* of address spaces between the tiers, DIRECT_AUTO */
};

/* Measured at the start. */
struct direct_costs {
    uint64_t round_trip_ns; /* into a stub and back */
    uint64_t map_ns;        /* one order to map a page */
};

/* What one address space had of a vCPU's counters. */
struct direct_space {
    uint64_t root;      /* of its page tables: CR3 without PCID; DIRECT_NO_ROOT: a free place */
    uint64_t last_used; /* later is more */
    struct direct_stats stats;
};

#define DIRECT_NO_ROOT UINT64_MAX

/* Make what direct execution needs for a vCPU whose mem is set. Without the host's help vcpu->direct stays
 * NULL, one line says why, and the result is 0. -ENOMEM. Before the process is confined. */
MUST_CHECK int direct_create(struct vcpu *vcpu, const struct direct_options *options);
void direct_destroy(struct vcpu *vcpu);
/* The process from which the vCPU's stubs are forked: all that its thread needs to attach to. 0: none. */
pid_t direct_template(const struct vcpu *vcpu);

void direct_thread_enter(struct vcpu *vcpu);
void direct_thread_leave(struct vcpu *vcpu);
/* Should ring 3 go on in a stub? Asked at CPL 3, with the guest's extended state live or not. */
bool direct_wanted(struct vcpu *vcpu);
/* Run ring 3 until it is left, a request must be served or another tier is to go on. The extended state is
 * parked before and after. */
void direct_run(struct vcpu *vcpu);
/* From the kick signal's handler, on the vCPU's thread. */
void direct_kick_from_handler(struct vcpu *vcpu);
/* The vCPU will sleep: let the scheduler place it anew when it wakes. */
void direct_idle(struct vcpu *vcpu);

/* NULL without direct execution. */
const struct direct_stats *direct_vcpu_stats(const struct vcpu *vcpu);
const struct direct_costs *direct_vcpu_costs(const struct vcpu *vcpu);
/* The address spaces that are counted for themselves, *count places, some of them free; the first stands for
 * all that had to make room. NULL when nobody asked for them. */
const struct direct_space *direct_vcpu_spaces(const struct vcpu *vcpu, unsigned *count);

#endif
