/* What --dump is told: the stages of a translation, and the ways to C. */
#ifndef NESTOR_DBT_DUMP_H
#define NESTOR_DBT_DUMP_H

#include "dbt/private.h"

/* dbt_translate() with its time counted and its result told to --dump. */
uint32_t dbt_translate_watched(struct vcpu *vcpu, uint64_t ram_offset, uint32_t mode);
/* Tell of an exit for C, with the extended state parked; what: of enum dump_exit. */
enum dump_exit { DUMP_EXIT_GUEST, DUMP_EXIT_RAW, DUMP_EXIT_FAULT };
void dump_exit_write(struct vcpu *vcpu, enum dump_exit what);
static inline void dump_exit(struct vcpu *vcpu, enum dump_exit what) {
    if (LIKELY(!(vcpu->trace_subjects & DUMP_EXITS)))
        return;
    bool live = vcpu->fpu_live;
    vcpu_fpu_park(vcpu);
    dump_exit_write(vcpu, what);
    if (live)
        vcpu_fpu_unpark(vcpu);
}

#endif
