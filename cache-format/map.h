/* From host PC to guest PC inside a unit: points in ascending order of host offsets, delta-coded.
 *
 * A point is: ULEB128 host delta; ULEB128 of (zigzag(guest delta) << 1 | changed); if changed, ULEB128 state
 * number. Deltas count from (0, 0), the first point's state is 0 unless it says otherwise. A point holds up
 * to the next one.
 */
#ifndef NESTOR_CACHE_MAP_H
#define NESTOR_CACHE_MAP_H

#include "cache-format/view.h"

struct ntc_point {
    uint32_t host;  /* offset in the unit's code */
    uint32_t guest; /* offset from the unit's first byte */
    uint32_t state; /* number in unit->states */
};

struct ntc_map_reader {
    const uint8_t *at, *end;
    struct ntc_point point;
};

/* (light) */
void ntc_map_read(struct ntc_map_reader *reader, const struct ntc_unit *unit);
/* (light) 1: *point is the next one; 0: no more; -EBADMSG. */
MUST_CHECK int ntc_map_next(struct ntc_map_reader *reader, struct ntc_point *point);
/* (light) The point that holds for host offset `host`. False: none before it. */
bool ntc_map_find(const struct ntc_unit *unit, uint32_t host, struct ntc_point *point);

/* Writing: bytes grow; ntc_map_builder_reset() starts anew with the same memory. */
struct ntc_map_builder {
    uint8_t *bytes;
    uint32_t length, room;
    struct ntc_point last;
};
/* host must not fall. 0 or -errno (-EINVAL, -ENOMEM). */
MUST_CHECK int ntc_map_add(struct ntc_map_builder *builder, const struct ntc_point *point);
void ntc_map_builder_reset(struct ntc_map_builder *builder);
void ntc_map_builder_destroy(struct ntc_map_builder *builder);

#endif
