/* The dynamic binary translator: runs a vCPU in 32- and 64-bit code of every privilege level.
 *
 *   struct vcpu *vcpu = dbt_area_create();      // then the owner fills in mem, model, env, ...
 *   dbt_vcpu_create(vcpu, &options);
 *   dbt_thread_enter(vcpu);                     // on the vCPU's own thread: GS base, signal stack
 *   reason = dbt_run(vcpu);                     // until a reason in enum dbt_exit
 */
#ifndef NESTOR_DBT_DBT_H
#define NESTOR_DBT_DBT_H

#include "cache-format/file.h"
#include "cpu/vcpu.h"

#include <signal.h>

#define DBT_CODE_CACHE_GROWTH 4u

struct dbt_options {
    uint64_t code_cache_size; /* bytes */
    bool code_cache_grows;    /* to DBT_CODE_CACHE_GROWTH times that, when it is too small for what runs */
    unsigned parts;           /* that it is evicted by, 16 at most; 0: the translator's choice */
};

struct dbt_stats {
    uint64_t blocks, guest_instructions, guest_bytes, host_bytes; /* translated */
    uint64_t flushes, evictions,
        invalidations; /* of the whole code cache; of a part of it; of single blocks */
    uint64_t revived;  /* single blocks that came back into use (rewrite.c) */
    uint64_t exits, tlb_recalls, tlb_slow, tlb_fills, interpreted, polls, links, jump_misses, interrupts,
        exceptions;
    uint64_t translate_ns, translate_ring0_ns; /* the second is part of the first */
    uint64_t
        cached_blocks; /* places, each counted once, that were asked for and entered in a persistent cache */
    uint64_t cached_units;  /* put to use */
    uint64_t cache_misses;  /* ring-0 blocks that no cache had */
    uint64_t cache_differs; /* found by their first bytes, but not the same */
    uint64_t cache_tsc;     /* TSC ticks of looking up, comparing and putting to use */
    uint64_t code_bytes;    /* in use now */
    uint64_t code_limit;    /* may be in use */
};

enum dbt_exit {
    DBT_EXIT_REQUEST, /* vcpu->requests has a bit that the run loop must serve */
    DBT_EXIT_STATE,   /* run_state is no longer RUN_ACTIVE */
    DBT_EXIT_MODE,    /* the next instruction is not for the DBT: interpret */
    DBT_EXIT_TIER,    /* ring 3 shall go on in direct execution */
};

/* Allocate the area around a vCPU (zeroed); NULL, with errno, without memory or descriptors. */
struct vcpu *dbt_area_create(void);
void dbt_area_destroy(struct vcpu *vcpu);

MUST_CHECK int dbt_vcpu_create(struct vcpu *vcpu, const struct dbt_options *options);
void dbt_vcpu_destroy(struct vcpu *vcpu);
/* Let the vCPU run code of a cache file, which must outlive it: before it runs. */
#define DBT_CACHES_MAX 8u
MUST_CHECK int dbt_cache_attach(struct vcpu *vcpu, const struct ntc_file *file, struct ntc_error *error);
/* Bind the calling thread to the vCPU. The signal stack and handlers are the caller's (runtime/vm). */
void dbt_thread_enter(struct vcpu *vcpu);
enum dbt_exit dbt_run(struct vcpu *vcpu);
/* Can dbt_run() make progress at the current mode? */
bool dbt_can_run(const struct vcpu *vcpu);

/* From the signal handlers, on the vCPU thread. True: handled, return from the handler. */
bool dbt_handle_signal(struct vcpu *vcpu, int signal, siginfo_t *info, void *ucontext);
/* Is the host address in the code cache or the stubs? Async-signal-safe. */
bool dbt_is_translated(const struct vcpu *vcpu, uint64_t host_pc);
/* From the kick signal's handler: make translated code leave at the next boundary. */
void dbt_kick_from_handler(struct vcpu *vcpu);

/* Drop what was translated from guest RAM [ram_offset, ram_offset + length), within one page. On the vCPU's
 * thread, outside translated code. */
void dbt_code_written(struct vcpu *vcpu, uint64_t ram_offset, uint64_t length);
void dbt_drop_all(struct vcpu *vcpu);

const struct dbt_stats *dbt_vcpu_stats(const struct vcpu *vcpu);

#endif
