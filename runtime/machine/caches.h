/* The persistent caches of a VM: opened and verified before the guest runs, lent to every vCPU, and written
 * anew from what the translator had to add (docs/cache-format.md). */
#ifndef NESTOR_MACHINE_CACHES_H
#define NESTOR_MACHINE_CACHES_H

#include "cache-format/file.h"
#include "cpu/model.h"
#include "dbt/dbt.h"
#include "machine/vm_config.h"

struct vm;

struct caches {
    struct ntc_file file[DBT_CACHES_MAX];
    const char *path[DBT_CACHES_MAX];
    uint64_t open_ns[DBT_CACHES_MAX];
    unsigned count;
    struct vcpu *translator; /* for caches_record(): made before the process is confined */
};

/* Open what config->cache names. A file that cannot be used is told of in one line and left out, unless
 * config->cache_required: then -errno. */
MUST_CHECK int caches_open(struct caches *caches, const struct vm_config *config,
                           const struct cpu_model *model);
void caches_close(struct caches *caches);
/* Lend them to a VM's vCPUs. Told and left out, or refused, as above. */
MUST_CHECK int caches_attach(struct caches *caches, const struct vm_config *config, struct vm *vm,
                             const struct cpu_model *model);
/* Write the ring-0 code that the vCPUs' translators hold and that came from no cache to config->record_cache,
 * unsigned. The vCPUs are stopped. Tells what went wrong. */
void caches_record(struct caches *caches, const struct vm_config *config, struct vm *vm,
                   const struct cpu_model *model);

/* Write where kernel code was entered to config->record_profile, in the same way. */
void caches_profile(const struct vm_config *config, struct vm *vm);

#endif
