/* Places whose code was rewritten, and what brings the blocks made for them back: see rewrite.c. */
#ifndef NESTOR_DBT_REWRITE_H
#define NESTOR_DBT_REWRITE_H

#include "dbt/private.h"

struct item;

/* A place whose code was rewritten, and the block made for it since (rewrite.c). */
#define REWRITES 256u
#define REWRITE_BYTES 128u
#define REWRITE_PLACES 16u
struct rewrite {
    uint64_t ram_offset, rip;
    uint32_t mode;
    uint32_t block;         /* NO_INDEX: none is kept */
    uint64_t epoch;         /* when it was made */
    uint64_t changeable[2]; /* by guest byte: it may have another value */
    uint16_t length;        /* of the guest's code */
    uint8_t places, entry_size;
    struct rewrite_place {
        uint16_t host; /* from the block's start */
        uint8_t guest, size;
    } place[REWRITE_PLACES]; /* copies of immediates */
    uint8_t entry[24];       /* what the exit of the dropped block was written over */
    uint8_t bytes[REWRITE_BYTES];
};

/* A block is to be translated that has its place and length yet to come: NULL, or what keeps it, with a copy
 * of the code, to be translated instead, and that one's length for room. */
struct rewrite *rewrite_begin(struct dbt_vcpu *dbt, const struct block *block, const uint8_t *bytes,
                              uint64_t room);
/* The item was just encoded. */
void rewrite_note(struct unit *unit, const struct item *item);
/* The unit's block is done. */
void rewrite_keep(const struct unit *unit);
/* A block is about to be dropped. Not NULL: it may be revived, so nothing of its code may stay linked, and
 * then rewrite_keep_entry() is to be called. */
struct rewrite *rewrite_hit(struct dbt_vcpu *dbt, uint32_t index);
void rewrite_keep_entry(const struct dbt_vcpu *dbt, const struct block *block, struct rewrite *rewrite);
/* The dropped block for vcpu->rip, in use again with the code that is there now; NO_INDEX: there is none. */
uint32_t rewrite_revive(struct vcpu *vcpu, uint64_t ram_offset, uint32_t mode);

#endif
