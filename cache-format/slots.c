/* Link slots become addresses page by page, when a unit that owns some is put to use; and the way back from a
 * host PC to a unit. Runs with a guest's vector registers live.
 */
#include "cache-format/mapping.h"

#include "base/pages.h"
#include "cache-format/parts.h"

#define SLOTS_PER_PAGE (PAGE_SIZE / sizeof(uint64_t))

void ntc_mapping_prepare(struct ntc_mapping *mapping, uint32_t first, uint32_t count) {
    if (!count || first >= mapping->slot_count || count > mapping->slot_count - first)
        return;
    for (uint64_t page = first / SLOTS_PER_PAGE; page <= (first + (uint64_t)count - 1) / SLOTS_PER_PAGE;
         page++) {
        if (mapping->prepared[page / 8] >> page % 8 & 1)
            continue;
        mapping->prepared[page / 8] |= (uint8_t)(1u << page % 8);
        mapping->private_pages++;
        uint64_t at = page * SLOTS_PER_PAGE, end = at + SLOTS_PER_PAGE;
        if (end > mapping->slot_count)
            end = mapping->slot_count;
        if (at < NTC_RUNTIME_SLOTS)
            at = NTC_RUNTIME_SLOTS;
        for (; at < end; at++)
            mapping->slots[at] += (uint64_t)(uintptr_t)mapping->code;
    }
}

void ntc_mapping_write_consts(struct ntc_mapping *mapping) {
    if (mapping->likely_consts)
        pages_populate(mapping->consts, mapping->likely_consts);
    mapping->likely_consts = 0;
}

/* Code, slots and constants lie behind each other, in the file and where they are mapped. */
static void reach(struct ntc_mapping *mapping, enum ntc_section_kind kind, uint64_t first, uint64_t length) {
    const struct ntc_parts *parts = mapping->view->parts;
    uint64_t code = parts->place[NTC_SECTION_CODE], consts = parts->place[NTC_SECTION_CONSTS];
    uint64_t section = parts->place[kind], at = section + first - NTC_HEADER_SIZE;
    uint64_t end = kind == NTC_SECTION_CODE ? code + mapping->code_size
                                            : consts + mapping->const_count * sizeof *mapping->consts;
    for (uint64_t chunk = at / NTC_CHUNK_SIZE; length && chunk <= (at + length - 1) / NTC_CHUNK_SIZE; chunk++)
        ntc_parts_map(parts, mapping->reached, mapping->code - code, (uint32_t)chunk, section, end);
}

void ntc_mapping_reach(struct ntc_mapping *mapping, const struct ntc_unit *unit) {
    if (!mapping->view->parts)
        return;
    reach(mapping, NTC_SECTION_CODE, unit->code_offset, unit->code_length);
    reach(mapping, NTC_SECTION_CONSTS, unit->first_const * sizeof *mapping->consts,
          unit->const_count * sizeof *mapping->consts);
}

bool ntc_mapping_find(const struct ntc_mapping *mapping, uint64_t host_pc, uint32_t *number,
                      uint32_t *offset) {
    const struct ntc_view *view = mapping->view;
    uint64_t at = host_pc - (uint64_t)(uintptr_t)mapping->code;
    uint32_t low = 0, high = (uint32_t)view->count[NTC_SECTION_PLACES];
    if (at >= mapping->code_size)
        return false;
    while (low < high) { /* the last one that starts at or before `at` */
        uint32_t middle = low + (high - low) / 2;
        if (view->places[middle] <= at)
            low = middle + 1;
        else
            high = middle;
    }
    if (!low)
        return false;
    /* A unit whose code runs is there, with its record. */
    const struct ntc_unit_record *unit = &view->units[low - 1];
    if (at < unit->code || at - unit->code >= unit->code_length)
        return false;
    *number = low - 1;
    *offset = (uint32_t)(at - unit->code);
    return true;
}
