/* Finding entries: through the hash table of entry bytes, or by the image's page words. Both look at a
 * bounded number of records whatever the file holds. Runs with a guest's vector registers live.
 */
#include "cache-format/view.h"

/* The hash's short forms only: they are scalar code, and the long ones never apply. */
#define XXH_INLINE_ALL
#define XXH_VECTOR 0
#define XXH_FORCE_MEMORY_ACCESS 1
#include <xxhash.h>

#define ADDRESS_CANDIDATES 256u /* entries of one address that a search looks at */

uint64_t ntc_entry_digest(const uint8_t *bytes, uint32_t length) {
    uint64_t seed = (uint64_t)length << 32;
    if (length <= 16)
        return XXH3_len_0to16_64b(bytes, length, XXH3_kSecret, seed);
    return XXH3_len_17to128_64b(bytes, length, XXH3_kSecret, sizeof XXH3_kSecret, seed);
}

/* Describe entry number `entry`. False: its records contradict each other, or it is for another mode. */
static bool take(const struct ntc_search *search, uint32_t number, struct ntc_hit *hit) {
    const struct ntc_view *view = search->view;
    const struct ntc_entry_record *entry = &view->entries[number];
    if (entry->unit >= view->count[NTC_SECTION_UNITS])
        return false;
    const struct ntc_unit_record *unit = &view->units[entry->unit];
    if ((unit->mode != search->mode && unit->mode != search->also[0] && unit->mode != search->also[1]) ||
        unit->image >= view->count[NTC_SECTION_IMAGES] || entry->host >= unit->code_length)
        return false;
    uint64_t address = view->images[unit->image].link_base + entry->address;
    uint64_t guest = address - unit->link_address;
    if (guest >= unit->guest_length)
        return false;
    *hit = (struct ntc_hit){.unit = entry->unit,
                            .entry = number,
                            .address = address,
                            .image = unit->image,
                            .guest = (uint32_t)guest,
                            .host = entry->host,
                            .abi_data = entry->abi_data};
    return true;
}

void ntc_search_content(struct ntc_search *search, const struct ntc_view *view, const uint8_t *bytes,
                        uint32_t available, uint32_t mode) {
    *search = (struct ntc_search){
        .view = view, .bytes = bytes, .available = available, .mode = mode, .also = {mode, mode}};
}

/* Begin the next digest length for which there are bytes. */
static bool next_class(struct ntc_search *search) {
    while (search->length_class < NTC_DIGEST_CLASSES &&
           ntc_digest_lengths[search->length_class] > search->available)
        search->length_class++;
    if (search->length_class == NTC_DIGEST_CLASSES)
        return false;
    uint64_t digest = ntc_entry_digest(search->bytes, ntc_digest_lengths[search->length_class]);
    search->at = (uint32_t)digest;
    search->tag = (uint32_t)(digest >> 32);
    search->probes = search->view->header->index_probes;
    search->started = true;
    return true;
}

static bool next_by_content(struct ntc_search *search, struct ntc_hit *hit) {
    const struct ntc_view *view = search->view;
    uint32_t mask = (uint32_t)view->count[NTC_SECTION_INDEX] - 1;
    while (search->started || next_class(search)) {
        uint8_t length = ntc_digest_lengths[search->length_class];
        while (search->probes) {
            const struct ntc_index_record *slot = &view->index[search->at & mask];
            if (!slot->entry)
                break;
            search->at++;
            search->probes--;
            if (slot->tag != search->tag || slot->entry > view->count[NTC_SECTION_ENTRIES])
                continue;
            if (view->entries[slot->entry - 1].digest_length == length && take(search, slot->entry - 1, hit))
                return true;
        }
        search->started = false;
        search->length_class++;
    }
    return false;
}

/* Entries of one address that `search` is to yield. */
static void find_address(struct ntc_search *search, uint32_t number, uint64_t link_address) {
    const struct ntc_view *view = search->view;
    const struct ntc_image_record *image = ntc_view_image(view, number);
    if (!image || link_address - image->link_base >= image->link_length)
        return;
    search->image = number;
    search->offset = (uint32_t)(link_address - image->link_base);
    const uint32_t *word = &view->pages[image->first_page + search->offset / PAGE_SIZE];
    uint32_t low = word[0], high = word[1];
    if (low < image->first_entry || high < low || high - image->first_entry > image->entry_count)
        return;
    search->end = high;
    while (low < high) {
        uint32_t middle = low + (high - low) / 2;
        if (view->entries[middle].address < search->offset)
            low = middle + 1;
        else
            high = middle;
    }
    search->at = low;
    if (!search->unbounded && search->end - low > ADDRESS_CANDIDATES)
        search->end = low + ADDRESS_CANDIDATES;
}

void ntc_search_address(struct ntc_search *search, const struct ntc_view *view, uint32_t number,
                        uint64_t link_address, uint32_t mode) {
    *search = (struct ntc_search){.view = view, .mode = mode, .also = {mode, mode}, .by_address = true};
    find_address(search, number, link_address);
}

bool ntc_search_unit(const struct ntc_view *view, uint32_t number, uint64_t guest, struct ntc_hit *hit) {
    const struct ntc_unit_record *unit = &view->units[number];
    struct ntc_search search = {.view = view,
                                .mode = unit->mode,
                                .also = {unit->mode, unit->mode},
                                .by_address = true,
                                .unbounded = true};
    if (guest >= unit->guest_length)
        return false;
    find_address(&search, unit->image, unit->link_address + guest);
    while (ntc_search_next(&search, hit))
        if (hit->unit == number)
            return true;
    return false;
}

static bool next_by_address(struct ntc_search *search, struct ntc_hit *hit) {
    while (search->at < search->end && search->view->entries[search->at].address == search->offset) {
        if (take(search, search->at++, hit) && hit->image == search->image)
            return true;
    }
    return false;
}

bool ntc_search_next(struct ntc_search *search, struct ntc_hit *hit) {
    return search->by_address ? next_by_address(search, hit) : next_by_content(search, hit);
}
