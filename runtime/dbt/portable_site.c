/* See portable_site.h. Runs with the guest's vector state live. */
#include "dbt/portable_site.h"

#include "dbt/portable.h"

static const uint8_t kinds[] = {
    [SITE_LINK] = NTC_SITE_LINK,        [SITE_JUMP_MISS] = NTC_SITE_INDIRECT,
    [SITE_HELPER] = NTC_SITE_HELPER,    [SITE_INTERPRET] = NTC_SITE_INTERPRET,
    [SITE_DEAD] = NTC_SITE_PRIVATE,     [SITE_MEMORY] = NTC_SITE_MEMORY,
    [SITE_MEMO] = NTC_SITE_PRIVATE + 1, [SITE_UNGROUPED] = NTC_SITE_PRIVATE + 2,
};

static bool has_link(unsigned kind) {
    return kind == SITE_LINK || kind == SITE_UNGROUPED;
}

void portable_site_write(struct ntc_site *to, const struct site *from, uint32_t base) {
    *to = (struct ntc_site){.guest = from->guest,
                            .length = from->length,
                            .kind = kinds[from->kind],
                            .reg = from->reg,
                            .access = from->access,
                            .size = from->size,
                            .flags = (uint16_t)((from->flags_saved ? PORTABLE_SITE_FLAGS_SAVED : 0) |
                                                (from->plain ? PORTABLE_SITE_PLAIN : 0) |
                                                (from->group ? PORTABLE_SITE_GROUP : 0)),
                            .slot = NTC_NO_SLOT};
    if (has_link(from->kind)) {
        to->slot = (uint16_t)from->host;
        to->target = from->target;
        if (from->kind == SITE_LINK && from->state) {
            to->flags |= NTC_SITE_TARGET_FIELD;
            to->target = from->state - 1;
        }
        return;
    }
    to->host = from->host ? from->host - base : 0;
    if (from->group) {
        to->slot = (uint16_t)from->cold;
        to->target = from->target;
    }
}

bool portable_site_read(struct site *to, const struct ntc_site *from, uint32_t base, uint32_t first_slot,
                        const uint64_t *slots, uint32_t code_offset) {
    unsigned kind = 0;
    while (kind < ARRAY_SIZE(kinds) && kinds[kind] != from->kind)
        kind++;
    if (kind == ARRAY_SIZE(kinds))
        return false;
    *to = (struct site){.linked_to = NO_INDEX,
                        .host = base + from->host,
                        .guest = from->guest,
                        .length = from->length,
                        .kind = (uint8_t)kind,
                        .reg = from->reg & 15,
                        .access = from->access,
                        .size = from->size,
                        .flags_saved = !!(from->flags & PORTABLE_SITE_FLAGS_SAVED),
                        .plain = !!(from->flags & PORTABLE_SITE_PLAIN),
                        .group = !!(from->flags & PORTABLE_SITE_GROUP)};
    if (kind == SITE_HELPER) {
        to->reg = from->reg; /* two operands */
        if (!from->host)
            to->host = NO_INDEX; /* the unit ends there */
    }
    if (has_link(kind)) {
        if (from->slot == NTC_NO_SLOT || from->target != (int32_t)from->target)
            return false;
        to->host = first_slot + from->slot;
        to->cold = base + (uint32_t)(slots[from->slot] - code_offset);
        to->target = (int32_t)from->target;
    } else if (to->group) {
        unsigned first = from->slot == PORTABLE_SITE_SLOT ? PORTABLE_SITE_SWITCHES : PORTABLE_SWITCHES;
        if (from->slot == NTC_NO_SLOT || (uint64_t)from->target - first >= 64 - first)
            return false;
        to->cold = first_slot + from->slot;
        to->target = (int32_t)from->target;
    }
    return true;
}
