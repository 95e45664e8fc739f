/* A block's sites in a cache file: the translator's words in the format's. Private to runtime/dbt. */
#ifndef NESTOR_DBT_PORTABLE_SITE_H
#define NESTOR_DBT_PORTABLE_SITE_H

#include "dbt/private.h"

/* ntc_site.flags, the translator's part. */
#define PORTABLE_SITE_FLAGS_SAVED 0x100u
#define PORTABLE_SITE_PLAIN 0x200u
#define PORTABLE_SITE_GROUP 0x400u

/* ntc_state.flags, the translator's part. The flags are nowhere: the code at the unit's point that
 * REMAKES them for the same instruction makes them and faults again (emit_remake.c). */
#define PORTABLE_STATE_REMADE 0x100u
#define PORTABLE_STATE_REMAKES 0x200u

/* base: where the block's code starts, as the offsets in the site count. */
void portable_site_write(struct ntc_site *to, const struct site *from, uint32_t base);
/* Of a unit whose code starts at base and whose first link slot is first_slot; false: not what write makes.
 * A group's `cold` and `target` are the slot and bit of its switch. */
MUST_CHECK bool portable_site_read(struct site *to, const struct ntc_site *from, uint32_t base,
                                   uint32_t first_slot, const uint64_t *slots, uint32_t code_offset);

#endif
