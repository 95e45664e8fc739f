/* Finding entries: through the hash table of entry bytes, or by the image's page words. Both look at a
 * bounded number of records whatever the file holds. Runs with a guest's vector registers live.
 */
#include "cache-format/parts.h"

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
    if (entry->unit >= view->count[NTC_SECTION_UNITS] ||
        !ntc_parts_need(view, NTC_SECTION_UNITS, entry->unit, 1))
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

/* The table of likely entries, or that of all others. */
static void choose_table(struct ntc_search *search, bool likely) {
    uint32_t count = search->view->header->index_likely;
    search->first = likely ? 0 : count;
    search->mask = (likely ? count : (uint32_t)search->view->count[NTC_SECTION_INDEX] - count) - 1;
    search->length_class = 0;
}

void ntc_search_content(struct ntc_search *search, const struct ntc_view *view, const uint8_t *bytes,
                        uint32_t available, uint32_t mode) {
    *search = (struct ntc_search){
        .view = view, .bytes = bytes, .available = available, .mode = mode, .also = {mode, mode}};
    choose_table(search, view->header->index_likely != 0);
}

/* Begin the next digest length for which there are bytes, or the next table. */
static bool next_class(struct ntc_search *search) {
    while (search->length_class == NTC_DIGEST_CLASSES ||
           ntc_digest_lengths[search->length_class] > search->available) {
        if (search->length_class != NTC_DIGEST_CLASSES) {
            search->length_class++;
            continue;
        }
        if (search->first == search->view->header->index_likely)
            return false;
        choose_table(search, false);
    }
    uint64_t digest = ntc_entry_digest(search->bytes, ntc_digest_lengths[search->length_class]);
    search->at = (uint32_t)digest;
    search->tag = (uint32_t)(digest >> 32);
    search->probes = search->view->header->index_probes;
    search->started = true;
    return true;
}

static bool next_by_content(struct ntc_search *search, struct ntc_hit *hit) {
    const struct ntc_view *view = search->view;
    while (search->started || next_class(search)) {
        uint8_t length = ntc_digest_lengths[search->length_class];
        while (search->probes) {
            uint32_t number = search->first + (search->at & search->mask);
            const struct ntc_index_record *slot = &view->index[number];
            if (!ntc_parts_need(view, NTC_SECTION_INDEX, number, 1) || !slot->entry)
                break;
            search->at++;
            search->probes--;
            if (slot->tag != search->tag || slot->entry > view->count[NTC_SECTION_ENTRIES])
                continue;
            if (ntc_parts_need(view, NTC_SECTION_ENTRIES, slot->entry - 1, 1) &&
                view->entries[slot->entry - 1].digest_length == length && take(search, slot->entry - 1, hit))
                return true;
        }
        search->started = false;
        search->length_class++;
    }
    return false;
}

/* The first entry of [low, high), which are those of one page, that is not before the offset. They lie about
 * evenly, and none is in the host's caches: look where it should be, then around there in growing steps. */
static uint32_t first_at(const struct ntc_entry_record *entries, uint32_t low, uint32_t high,
                         uint32_t offset) {
    uint64_t part = offset % PAGE_SIZE;
    uint32_t guess = low + (uint32_t)((high - low) * part / PAGE_SIZE), step = 2;
    if (guess < high && entries[guess].address < offset) {
        for (low = guess + 1; high - low > step && entries[low + step].address < offset; step *= 2)
            low += step + 1;
        if (high - low > step)
            high = low + step;
    } else {
        for (high = guess; high - low > step && entries[high - step].address >= offset; step *= 2)
            high -= step;
        if (high - low > step)
            low = high - step + 1;
    }
    while (low < high) {
        uint32_t middle = low + (high - low) / 2;
        if (entries[middle].address < offset)
            low = middle + 1;
        else
            high = middle;
    }
    return low;
}

/* Entries of one address that `search` is to yield, of one of the image's two tables. */
static void find_address(struct ntc_search *search, bool unlikely) {
    const struct ntc_view *view = search->view;
    const struct ntc_image_record *image = &view->images[search->image];
    uint32_t from = image->first_entry + (unlikely ? image->likely_count : 0);
    uint32_t count = unlikely ? image->entry_count - image->likely_count : image->likely_count;
    const uint32_t *word =
        &view->pages[image->first_page + (unlikely ? image->page_count + 1 : 0) + search->offset / PAGE_SIZE];
    uint32_t low = word[0], high = word[1];
    search->unlikely = unlikely;
    search->at = search->end = 0;
    if (low < from || high < low || high - from > count ||
        !ntc_parts_need(view, NTC_SECTION_ENTRIES, low, high - low))
        return;
    search->end = high;
    low = first_at(view->entries, low, high, search->offset);
    search->at = low;
    if (!search->unbounded && search->end - low > ADDRESS_CANDIDATES)
        search->end = low + ADDRESS_CANDIDATES;
}

static void begin_address(struct ntc_search *search, uint32_t number, uint64_t link_address, bool unlikely) {
    const struct ntc_image_record *image = ntc_view_image(search->view, number);
    search->by_address = true;
    search->unlikely = true; /* nothing more */
    if (!image || link_address - image->link_base >= image->link_length)
        return;
    search->image = number;
    search->offset = (uint32_t)(link_address - image->link_base);
    find_address(search, unlikely);
}

void ntc_search_bytes_at(struct ntc_search *search, const struct ntc_view *view, uint32_t number,
                         uint64_t link_address, bool unlikely, const uint8_t *bytes, uint32_t available,
                         uint32_t mode) {
    *search = (struct ntc_search){
        .view = view, .bytes = bytes, .available = available, .mode = mode, .also = {mode, mode}};
    begin_address(search, number, link_address, unlikely);
    search->unlikely = true;
}

void ntc_search_address(struct ntc_search *search, const struct ntc_view *view, uint32_t number,
                        uint64_t link_address, uint32_t mode) {
    *search = (struct ntc_search){.view = view, .mode = mode, .also = {mode, mode}};
    begin_address(search, number, link_address, false);
}

/* Do the guest's bytes begin as the entry's did, as far as that can be seen without its unit? */
static bool begins_alike(struct ntc_search *search, const struct ntc_entry_record *entry) {
    for (unsigned i = 0; search->bytes && i < NTC_DIGEST_CLASSES; i++) {
        if (ntc_digest_lengths[i] != entry->digest_length || entry->digest_length > search->available)
            continue;
        if (!(search->checked >> i & 1))
            search->checks[i] = (uint8_t)ntc_entry_digest(search->bytes, entry->digest_length);
        search->checked |= (uint8_t)(1u << i);
        return search->checks[i] == entry->check;
    }
    return true;
}

static bool next_by_address(struct ntc_search *search, struct ntc_hit *hit) {
    const struct ntc_view *view = search->view;
    for (;;) {
        while (search->at < search->end && view->entries[search->at].address == search->offset) {
            uint32_t number = search->at++;
            if (begins_alike(search, &view->entries[number]) && take(search, number, hit) &&
                hit->image == search->image)
                return true;
        }
        if (search->unlikely)
            return false;
        find_address(search, true);
    }
}

bool ntc_search_unit(const struct ntc_view *view, uint32_t number, uint64_t guest, struct ntc_hit *hit) {
    const struct ntc_unit_record *unit = &view->units[number];
    struct ntc_search search = {
        .view = view, .mode = unit->mode, .also = {unit->mode, unit->mode}, .unbounded = true};
    if (guest >= unit->guest_length)
        return false;
    begin_address(&search, unit->image, unit->link_address + guest, false);
    for (;;) {
        for (; search.at < search.end && view->entries[search.at].address == search.offset; search.at++)
            if (view->entries[search.at].unit == number)
                return take(&search, search.at, hit) && hit->image == search.image;
        if (search.unlikely)
            return false;
        find_address(&search, true);
    }
}

bool ntc_search_next(struct ntc_search *search, struct ntc_hit *hit) {
    return search->by_address ? next_by_address(search, hit) : next_by_content(search, hit);
}
