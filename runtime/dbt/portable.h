/* Portable units: blocks of the template emitter that a cache file can hold (docs/cache-format.md), because
 * nothing in them names a process, a vCPU or an address of the guest's. Made by dbt_portable_translate(), by
 * precompile-cache or from a recorded run; put to use by the translator of any vCPU (cached.c).
 */
#ifndef NESTOR_DBT_PORTABLE_H
#define NESTOR_DBT_PORTABLE_H

#include "cache-format/view.h"
#include "cpu/vcpu.h"

/* What the words in sites and states, the numbers of run-time slots and unit.abi_data mean. */
#define DBT_PORTABLE_ABI 3u

struct portable_request {
    uint64_t rip;         /* link address */
    uint32_t mode;        /* vcpu->mode: 64-bit code at CPL 0 */
    const uint8_t *bytes; /* guest code at rip */
    uint32_t length;      /* bytes that may be read, up to the page's end at most */
};

/* Is code of this mode kept in cache files? */
bool dbt_portable_mode(uint32_t mode);

/* A digest of what portable code has compiled into it: the layout of what it addresses through GS, and what
 * the CPU model offers to the guest. A unit is good only where this is the same. */
uint64_t dbt_portable_layout(const struct cpu_model *model);

/* A vCPU that only translates: no thread, no memory. NULL without memory. Free with dbt_translator_destroy().
 */
struct vcpu *dbt_translator_create(const struct cpu_model *model);
void dbt_translator_destroy(struct vcpu *vcpu);

/* Translate the block at request->rip into *unit, whose pointers hold until the next call with this vCPU. The
 * image, name and heat are the caller's to fill in. 0; -ENOENT: no block that could be kept begins there (the
 * interpreter's instruction, or one that lies across pages); -E2BIG, -ENOMEM. */
MUST_CHECK int dbt_portable_translate(struct vcpu *vcpu, const struct portable_request *request,
                                      struct ntc_unit *unit);

/* Let a vCPU's translator remember what it makes, before it runs. -ENOMEM. */
MUST_CHECK int dbt_portable_log(struct vcpu *vcpu);
/* Hand every block that a stopped vCPU's translator has made since, also those that are gone, as a portable
 * unit made by `translator` to add(). */
void dbt_portable_record(struct vcpu *vcpu, struct vcpu *translator,
                         void (*add)(void *context, struct ntc_unit *unit), void *context);

#endif
