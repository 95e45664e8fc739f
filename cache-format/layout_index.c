/* The tables by which code is found: entries by address, the page words over them, and the hash table of
 * their first bytes.
 */
#include "cache-format/writer_private.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#define SAME_DIGEST_MAX 64u /* entries that a search by content may yield for one digest */

struct sorted_entry {
    const struct kept_unit *unit;
    uint32_t address, host;
    uint16_t guest, abi_data;
};

/* By image, likely or not, address; the hottest unit first, of those LLVM's; then in the units' order. */
static int compare_entries(const void *a, const void *b) {
    const struct sorted_entry *one = a, *other = b;
    if (one->unit->image != other->unit->image)
        return one->unit->image < other->unit->image ? -1 : 1;
    if (!one->unit->unit.heat != !other->unit->unit.heat)
        return one->unit->unit.heat ? -1 : 1;
    if (one->address != other->address)
        return one->address < other->address ? -1 : 1;
    if (one->unit->unit.heat != other->unit->unit.heat)
        return one->unit->unit.heat > other->unit->unit.heat ? -1 : 1;
    if (one->unit->unit.generator != other->unit->unit.generator)
        return one->unit->unit.generator > other->unit->unit.generator ? -1 : 1;
    return (one->unit->number > other->unit->number) - (one->unit->number < other->unit->number);
}

/* Bytes between an entry and its unit's end or next field, as a digest length. */
static uint8_t digest_length(const struct ntc_unit *unit, uint32_t guest) {
    uint32_t end = unit->guest_length;
    for (unsigned i = 0; i < unit->field_count; i++) {
        const struct ntc_field *field = &unit->fields[i];
        if (field->offset + (uint32_t)field->size > guest) {
            end = field->offset > guest ? field->offset : guest;
            break;
        }
    }
    for (unsigned i = 0; i < NTC_DIGEST_CLASSES; i++)
        if (ntc_digest_lengths[i] <= end - guest)
            return ntc_digest_lengths[i];
    return 0;
}

static int add_pages(struct layout *layout, const struct sorted_entry *entry, uint32_t entries,
                     struct ntc_image_record *image, uint32_t number, uint32_t *at) {
    struct pool *pages = &layout->section[NTC_SECTION_PAGES];
    image->first_page = (uint32_t)(pages->length / sizeof(uint32_t));
    image->first_entry = *at;
    for (unsigned table = 0; table < 2; table++) { /* the likely entries, the others */
        for (uint32_t page = 0; page <= image->page_count; page++) {
            while (*at < entries && entry[*at].unit->image == number &&
                   (entry[*at].unit->unit.heat ? 0u : 1u) == table && entry[*at].address / PAGE_SIZE < page)
                ++*at;
            if (!pool_add(pages, at, sizeof *at))
                return -ENOMEM;
        }
        if (!table)
            image->likely_count = *at - image->first_entry;
    }
    image->entry_count = *at - image->first_entry;
    return 0;
}

/* The hottest entries first, so that what a run of equal digests leaves out is cold. */
struct heat_order {
    uint32_t heat, entry;
};

static int compare_heat(const void *a, const void *b) {
    const struct heat_order *one = a, *other = b;
    if (one->heat != other->heat)
        return one->heat > other->heat ? -1 : 1;
    return (one->entry > other->entry) - (one->entry < other->entry);
}

/* Put an entry into the table. False: there are too many like it. */
static bool insert(struct ntc_index_record *index, uint32_t mask, uint64_t digest, uint32_t entry,
                   const struct ntc_entry_record *records, uint32_t *longest) {
    uint32_t at = (uint32_t)digest, tag = (uint32_t)(digest >> 32), probes = 1, same = 0;
    for (; index[at & mask].entry; at++, probes++) {
        const struct ntc_index_record *slot = &index[at & mask];
        same += slot->tag == tag && records[slot->entry - 1].digest_length == records[entry].digest_length;
        if (same == SAME_DIGEST_MAX || probes == NTC_PROBES_MAX)
            return false;
    }
    index[at & mask] = (struct ntc_index_record){.tag = tag, .entry = entry + 1};
    if (probes > *longest)
        *longest = probes;
    return true;
}

/* One hash table more, of some entries. */
static int build_table(struct layout *layout, const struct sorted_entry *sorted,
                       const struct heat_order *order, uint32_t count, uint32_t *buckets) {
    struct ntc_entry_record *records =
        (struct ntc_entry_record *)(void *)layout->section[NTC_SECTION_ENTRIES].bytes;
    for (*buckets = 1; *buckets * 3ull < count * 4ull;)
        *buckets *= 2;
    struct ntc_index_record *index = calloc(*buckets, sizeof *index);
    if (!index)
        return -ENOMEM;
    for (uint32_t i = 0; i < count; i++) {
        uint32_t number = order[i].entry;
        const struct ntc_unit *unit = &sorted[number].unit->unit;
        uint64_t digest = ntc_entry_digest(unit->bytes + sorted[number].guest, records[number].digest_length);
        if (!insert(index, *buckets - 1, digest, number, records, &layout->probes)) {
            records[number].digest_length = 0;
            continue;
        }
        records[number].check = (uint8_t)digest;
    }
    int result = pool_add(&layout->section[NTC_SECTION_INDEX], index, *buckets * sizeof *index) ? 0 : -ENOMEM;
    free(index);
    return result;
}

/* The likely entries have a table of their own, which is small and is there when the file is opened. */
static int build_index(struct layout *layout, const struct sorted_entry *sorted, uint32_t entries) {
    const struct ntc_entry_record *records =
        (struct ntc_entry_record *)(void *)layout->section[NTC_SECTION_ENTRIES].bytes;
    uint32_t indexed = 0, likely = 0, buckets;
    struct heat_order *order = malloc((entries + 1ull) * sizeof *order);
    if (!order)
        return -ENOMEM;
    for (uint32_t i = 0; i < entries; i++)
        if (records[i].digest_length)
            order[indexed++] = (struct heat_order){.heat = sorted[i].unit->unit.heat, .entry = i};
    qsort(order, indexed, sizeof *order, compare_heat);
    while (likely < indexed && order[likely].heat)
        likely++;
    if (likely == indexed)
        likely = 0; /* one table of all */
    int result = likely ? build_table(layout, sorted, order, likely, &layout->index_likely) : 0;
    layout->likely[NTC_SECTION_INDEX] = layout->section[NTC_SECTION_INDEX].length;
    if (!result)
        result = build_table(layout, sorted, order + likely, indexed - likely, &buckets);
    for (uint32_t i = 0; i < entries; i++)
        layout->summary.entries_not_indexed += !records[i].digest_length;
    free(order);
    return result;
}

int layout_entries(struct layout *layout, const struct ntc_writer *writer) {
    uint64_t entries = 0;
    for (uint32_t i = 0; i < layout->units; i++)
        entries += layout->unit[i]->unit.entry_count;
    if (entries > NTC_LOAD_MAX / sizeof(struct ntc_entry_record))
        return -E2BIG;
    struct sorted_entry *sorted = malloc((entries + 1) * sizeof *sorted);
    if (!sorted)
        return -ENOMEM;
    uint32_t count = 0;
    for (uint32_t i = 0; i < layout->units; i++) {
        const struct kept_unit *kept = layout->unit[i];
        uint64_t base = layout->image[kept->image]->record.link_base;
        for (unsigned j = 0; j < kept->unit.entry_count; j++) {
            const struct ntc_unit_entry *entry = &kept->unit.entries[j];
            sorted[count++] =
                (struct sorted_entry){.unit = kept,
                                      .address = (uint32_t)(kept->unit.link_address - base + entry->guest),
                                      .host = entry->host,
                                      .guest = entry->guest,
                                      .abi_data = entry->abi_data};
        }
    }
    qsort(sorted, count, sizeof *sorted, compare_entries);
    int result = 0;
    for (uint32_t i = 0; i < count && !result; i++) {
        struct ntc_entry_record record = {.address = sorted[i].address,
                                          .unit = sorted[i].unit->number,
                                          .host = sorted[i].host,
                                          .abi_data = sorted[i].abi_data,
                                          .digest_length =
                                              digest_length(&sorted[i].unit->unit, sorted[i].guest)};
        result = pool_add(&layout->section[NTC_SECTION_ENTRIES], &record, sizeof record) ? 0 : -ENOMEM;
    }
    uint32_t at = 0;
    for (uint32_t i = 0; i < writer->images && !result; i++)
        result = add_pages(layout, sorted, count, &layout->image[i]->laid, i, &at);
    if (!result)
        result = build_index(layout, sorted, count);
    layout->summary.entries = count;
    free(sorted);
    return result;
}
