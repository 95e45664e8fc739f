/* Writing maps from host PC to guest PC. */
#include "cache-format/map.h"

#include <errno.h>
#include <stdlib.h>

#define POINT_MAX 15 /* bytes: three numbers of 32 bits */

static void put_uleb(struct ntc_map_builder *builder, uint64_t value) {
    do {
        uint8_t byte = value & 0x7f;
        value >>= 7;
        builder->bytes[builder->length++] = (uint8_t)(byte | (value ? 0x80 : 0));
    } while (value);
}

int ntc_map_add(struct ntc_map_builder *builder, const struct ntc_point *point) {
    if (point->host < builder->last.host || point->host > NTC_UNIT_CODE_MAX ||
        point->guest > NTC_UNIT_GUEST_MAX)
        return -EINVAL;
    if (builder->room - builder->length < POINT_MAX) {
        uint32_t room = builder->room ? builder->room * 2 : 256;
        uint8_t *bytes = realloc(builder->bytes, room);
        if (!bytes)
            return -ENOMEM;
        builder->bytes = bytes;
        builder->room = room;
    }
    int64_t delta = (int64_t)point->guest - builder->last.guest;
    uint64_t zigzag = (uint64_t)delta << 1 ^ (uint64_t)(delta >> 63);
    bool changed = point->state != builder->last.state;
    put_uleb(builder, point->host - builder->last.host);
    put_uleb(builder, zigzag << 1 | changed);
    if (changed)
        put_uleb(builder, point->state);
    builder->last = *point;
    return 0;
}

void ntc_map_builder_reset(struct ntc_map_builder *builder) {
    builder->length = 0;
    builder->last = (struct ntc_point){0};
}

void ntc_map_builder_destroy(struct ntc_map_builder *builder) {
    free(builder->bytes);
    *builder = (struct ntc_map_builder){0};
}
