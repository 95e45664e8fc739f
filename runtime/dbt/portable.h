/* Portable units: blocks of the template emitter that a cache file can hold (docs/cache-format.md), because
 * nothing in them names a process, a vCPU or an address of the guest's. Made by dbt_portable_translate(), by
 * precompile-cache or from a recorded run; put to use by the translator of any vCPU (cached.c).
 */
#ifndef NESTOR_DBT_PORTABLE_H
#define NESTOR_DBT_PORTABLE_H

#include "cache-format/view.h"
#include "cpu/vcpu.h"

/* What the words in sites and states, the numbers of run-time slots and unit.abi_data mean. */
#define DBT_PORTABLE_ABI 7u

/* The slot that the run time keeps: number of the block's first site in its low half, set when the unit is
 * put to use. From this bit on it has switches, others from the other: see portable_switch(). */
#define PORTABLE_SITE_SLOT 0u
#define PORTABLE_SITE_SWITCHES 56u
#define PORTABLE_SWITCHES 48u

struct portable_request {
    uint64_t rip;         /* link address */
    uint32_t mode;        /* vcpu->mode: 64-bit code at CPL 0 */
    const uint8_t *bytes; /* guest code at rip */
    uint32_t length;      /* bytes that may be read, up to the page's end at most */
};

/* A range of two pages of guest code at most. */
#define FUNCTION_GUEST_MAX (2 * PAGE_SIZE)
struct portable_function {
    struct portable_request code; /* code.length: the range */
    const uint16_t *entry;        /* offsets of places that may be entered from outside; none: 0 is one */
    unsigned entries;
    const struct portable_stop { /* bytes that are left to other units */
        uint32_t from, to;
    } * stop;
    unsigned stops;
    const struct ntc_field *field; /* ascending: bytes that are not to be compiled in if possible */
    unsigned fields;
};

/* Is code of this mode kept in cache files? */
bool dbt_portable_mode(uint32_t mode);

/* What a unit's code depends on of the mode it was made in, beyond ring 0 and 64 bits. */
enum portable_dependence {
    PORTABLE_ANYWHERE, /* nothing: most code */
    PORTABLE_SCALAR,   /* whether the time-stamp counter has an offset and RDFSBASE and its kin are there */
    PORTABLE_VECTOR,   /* all that, and which vector and x87 instructions are */
    PORTABLE_DEPENDENCES,
};
/* The mode that a unit is filed under. */
uint32_t dbt_portable_key(uint32_t mode, enum portable_dependence dependence);
/* The mode with what units depend on as in a key. */
uint32_t dbt_portable_mode_like(uint32_t mode, uint32_t key);

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

/* Translate what the entries lead to inside a range. What is come back to (behind calls and exits to C), and
 * targets of backward branches, become entries, too. The unit has those fields that the code can follow.
 * Results as above; -ENOENT: no entry leads anywhere; -EINVAL: instructions that overlap disagree on a field.
 */
MUST_CHECK int dbt_portable_function(struct vcpu *vcpu, const struct portable_function *request,
                                     struct ntc_unit *unit);

/* Let a vCPU's translator remember what it makes, before it runs. -ENOMEM. */
MUST_CHECK int dbt_portable_log(struct vcpu *vcpu);
/* A place where guest code of ring 0 was entered. image: of a cache; NULL: code that the translator made
 * itself, address is the guest's. hash: ntc_unit_hash() of the cached unit, or 0. */
struct portable_seen {
    const char *image;
    uint64_t address, count, hash;
    uint32_t mode;
};
/* Hand to add() what a stopped vCPU has run: the places in its caches, and what dbt_portable_log() made its
 * translator remember, with the interrupts that were taken there. */
void dbt_portable_profile(const struct vcpu *vcpu,
                          void (*add)(void *context, const struct portable_seen *seen), void *context);

/* Hand every block that a stopped vCPU's translator has made since, also those that are gone, as a portable
 * unit made by `translator` to add(). */
void dbt_portable_record(struct vcpu *vcpu, struct vcpu *translator,
                         void (*add)(void *context, struct ntc_unit *unit), void *context);

#endif
