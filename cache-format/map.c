/* Reading maps from host PC to guest PC. Runs with a guest's vector registers live. */
#include "cache-format/map.h"

#include <errno.h>

/* At most 32 bits. */
static bool read_uleb(struct ntc_map_reader *reader, uint64_t *value) {
    *value = 0;
    for (unsigned shift = 0; shift < 35; shift += 7) {
        if (reader->at == reader->end)
            return false;
        uint8_t byte = *reader->at++;
        *value |= (uint64_t)(byte & 0x7f) << shift;
        if (!(byte & 0x80))
            return true;
    }
    return false;
}

void ntc_map_read(struct ntc_map_reader *reader, const struct ntc_unit *unit) {
    *reader = (struct ntc_map_reader){.at = unit->map};
    reader->end = unit->map_length ? unit->map + unit->map_length : unit->map; /* a unit may have no map */
}

int ntc_map_next(struct ntc_map_reader *reader, struct ntc_point *point) {
    uint64_t host, guest, state = reader->point.state;
    if (reader->at == reader->end)
        return 0;
    if (!read_uleb(reader, &host) || !read_uleb(reader, &guest) || (guest & 1 && !read_uleb(reader, &state)))
        return -EBADMSG;
    guest >>= 1;
    int64_t delta = (int64_t)(guest >> 1) ^ -(int64_t)(guest & 1);
    int64_t at = (int64_t)reader->point.guest + delta;
    host += reader->point.host;
    if (host > NTC_UNIT_CODE_MAX || at < 0 || at > NTC_UNIT_GUEST_MAX || state > UINT32_MAX)
        return -EBADMSG;
    reader->point =
        (struct ntc_point){.host = (uint32_t)host, .guest = (uint32_t)at, .state = (uint32_t)state};
    *point = reader->point;
    return 1;
}

bool ntc_map_find(const struct ntc_unit *unit, uint32_t host, struct ntc_point *point) {
    struct ntc_map_reader reader;
    struct ntc_point next;
    bool found = false;
    ntc_map_read(&reader, unit);
    while (ntc_map_next(&reader, &next) > 0 && next.host <= host) {
        *point = next;
        found = true;
    }
    return found && point->guest <= unit->guest_length &&
           (!point->state ||
            (point->state < unit->state_count && ntc_state_check(&unit->states[point->state])));
}
