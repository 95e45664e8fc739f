/* A stub process: started, stopped, ordered to make system calls. Knows nothing of guests. */
#ifndef NESTOR_DIRECT_STUB_H
#define NESTOR_DIRECT_STUB_H

#include "base/types.h"
#include "direct/stub/layout.h"

#include <signal.h>
#include <sys/types.h>
#include <sys/user.h>

#define STUB_RAM_FD 3
#define STUB_ORDERS_MAX (PAGE_SIZE / STUB_ORDER_SIZE)
#define STUB_PAGES 2
#define STUB_USER_END 0x7ffffffff000ull /* of what user mode can have mapped on x86-64 Linux */
#define STUB_OCCUPIED_MAX 8

struct stub_order {
    uint64_t number, argument[6];
};

/* What a vCPU's stubs share. */
struct stub_family {
    pid_t template; /* never runs guest code; its children are the stubs */
    int orders_fd;
    struct stub_order *orders; /* the monitor's writable view of the page at `base` */
    /* Where the stubs have two pages of their own: the orders, read-only, and the text behind them. Chosen at
     * random for each vCPU, far from where Linux puts anything by itself. */
    uint64_t base;
    /* Addresses at which the stubs have pages that are not the guest's: base, and what the host's kernel
     * kept. */
    uint64_t occupied[STUB_OCCUPIED_MAX];
    unsigned occupied_count;
    unsigned order_count;
    uint64_t trips;         /* to stubs with orders */
    uint64_t xstate_size;   /* of the kernel's register set */
    bool keeps_nt;          /* RFLAGS.NT outlives a SYSCALL */
    bool loads_tls;         /* selectors of thread-local storage can be loaded in them */
    bool runs_32bit;        /* 32-bit code can run in them */
    bool cpuid_can_fault;   /* a stub can be had in which CPUID traps */
    bool cpuid_faults;      /* it does in all of them, since it costs little */
    uint64_t cpuid_trip_ns; /* a round trip where it does */
    volatile pid_t running; /* the stub that a kick must interrupt */
};

/* Start the template, by the thread that then prepares it, with ram_fd as its STUB_RAM_FD. 0 or -errno. */
MUST_CHECK int stub_family_create(struct stub_family *family, int ram_fd, const char **failed_at);
void stub_family_destroy(struct stub_family *family);
/* Become the template's tracer; give it up again. */
MUST_CHECK int stub_family_attach(struct stub_family *family);
void stub_family_detach(struct stub_family *family);

/* Fork a stub off the template. A pid, or -errno. */
MUST_CHECK pid_t stub_fork(struct stub_family *family);
void stub_kill(struct stub_family *family, pid_t pid);
/* Is it one of the stubs' own two pages? */
static inline bool stub_owns(const struct stub_family *family, uint64_t address) {
    return address - family->base < STUB_PAGES * PAGE_SIZE;
}

/* Wait for the next stop. 0: the process is gone. Else the wait status. */
int stub_wait(pid_t pid);
/* Is a fault or trap of the processor waiting in a stub that is stopped for another reason? */
bool stub_has_trapped(pid_t pid);
/* The time from the stopped template's registers and back to them, over a system call. 0 or -errno. */
MUST_CHECK int stub_measure_trip(const struct stub_family *family, uint64_t *ns);
/* Have a stopped stub make the calls in family->orders; empties the list. 0, -ESRCH when the stub died, or
 * what the first call that failed returned; *done is how many succeeded. Registers are lost. */
MUST_CHECK int stub_apply(struct stub_family *family, pid_t pid, unsigned *done);

#endif
