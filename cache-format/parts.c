/* Asking for parts of a file: parts.h. Runs with a guest's vector registers live; in a confined process, so
 * with no other calls than sendto(), recvfrom(), write(), madvise() and sched_yield().
 */
#include "cache-format/parts.h"

#include <sys/syscall.h>

#include "base/light.h"
#include "cache-format/store_private.h"

#define EINTR_RESULT (-4)
#define EAGAIN_RESULT (-11)
#define POPULATE_READ 22 /* of madvise(), Linux 5.14 */
#define MAP_AROUND 16u   /* chunks */
#define HEAR_TSC (1ull << 27)

static int64_t call(int64_t number, uint64_t a, uint64_t b, uint64_t c, uint64_t d) {
    int64_t result;
    register uint64_t fourth __asm__("r10") = d;
    register uint64_t fifth __asm__("r8") = 0;
    register uint64_t sixth __asm__("r9") = 0;
    __asm__ volatile("syscall"
                     : "=a"(result)
                     : "a"(number), "D"(a), "S"(b), "d"(c), "r"(fourth), "r"(fifth), "r"(sixth)
                     : "rcx", "r11", "memory");
    return result;
}

static bool is_set(const uint64_t *bits, uint32_t chunk) {
    return __atomic_load_n(&bits[chunk / 64], __ATOMIC_ACQUIRE) >> chunk % 64 & 1;
}

static bool is_present(const struct ntc_parts *parts, uint32_t chunk) {
    return chunk < parts->chunks && is_set(parts->present, chunk);
}

/* What is wanted and is not there. */
struct want {
    struct store_request request;
    bool refused;
};

/* The request itself is made up when the first chunk is missing, which is seldom. */
static void want_nothing(struct want *want) {
    want->request.what = 0;
    want->request.count = 0;
    want->refused = false;
}

static void begin(struct want *want, const struct ntc_parts *parts) {
    light_fill(&want->request, 0, sizeof want->request);
    want->request.what = STORE_LOAD;
    light_copy(want->request.root, parts->root, sizeof want->request.root);
}

static uint32_t put(char *line, uint32_t at, uint32_t size, const char *text) {
    for (; *text && at < size; text++)
        line[at++] = *text;
    return at;
}

/* One line for the first part that cannot be had; the VM goes on without those parts. */
static void tell(struct ntc_parts *parts, const char *why) {
    char line[512];
    const uint32_t size = sizeof line - 1;
    if (parts->told)
        return;
    parts->told = true;
    uint32_t at = put(line, 0, size, "nestor: cache '");
    at = put(line, at, size - 200, parts->path);
    at = put(line, at, size, "': a part cannot be loaded: ");
    at = put(line, at, size, why);
    at = put(line, at, size - 40, "; running on without what is missing");
    line[at++] = '\n';
    (void)call(SYS_write, 2, (uint64_t)(uintptr_t)line, at, 0);
}

/* A late answer would be taken for the next one's. */
static void lose(struct ntc_parts *parts) {
    parts->lost = true;
    tell(parts, "the cache store does not answer");
}

/* What was received: is it a good answer? */
static bool take_answer(struct ntc_parts *parts, int64_t received, struct store_answer *answer) {
    if (received != (int64_t)sizeof *answer) {
        lose(parts);
        return false;
    }
    answer->line[sizeof answer->line - 1] = 0;
    for (char *c = answer->line; *c; c++)
        if (*c < ' ')
            *c = '?';
    if (answer->result)
        tell(parts, answer->line);
    return !answer->result;
}

/* With the lock held. */
static bool ask_store(struct ntc_parts *parts, const struct store_request *request) {
    struct store_answer answer;
    int64_t result;
    if (parts->lost)
        return false;
    light_fill(&answer, 0, sizeof answer);
    do
        result = call(SYS_sendto, (uint64_t)parts->socket, (uint64_t)(uintptr_t)request, sizeof *request,
                      MSG_NOSIGNAL);
    while (result == EINTR_RESULT);
    if (result == (int64_t)sizeof *request) {
        do
            result =
                call(SYS_recvfrom, (uint64_t)parts->socket, (uint64_t)(uintptr_t)&answer, sizeof answer, 0);
        while (result == EINTR_RESULT);
    }
    return take_answer(parts, result, &answer);
}

static void note_asked(struct ntc_parts *parts, uint32_t chunk) {
    __atomic_fetch_or(&parts->asked[chunk / 64], 1ull << chunk % 64, __ATOMIC_RELAXED);
}

/* With the lock held. */
static void wait_for(struct ntc_parts *parts, struct want *want) {
    parts->requests++;
    bool good = ask_store(parts, &want->request);
    for (uint32_t i = 0; i < want->request.count; i++) {
        uint32_t chunk = want->request.chunk[i];
        if (good && is_present(parts, chunk))
            continue;
        want->refused = true;
        note_asked(parts, chunk);
    }
}

/* What was wished for shows by its bits; the store tells only what could not be had. With the lock held. */
static void hear(struct ntc_parts *parts) {
    struct store_answer answer;
    parts->heard_tsc = __builtin_ia32_rdtsc();
    while (!parts->lost) {
        light_fill(&answer, 0, sizeof answer);
        int64_t result = call(SYS_recvfrom, (uint64_t)parts->socket, (uint64_t)(uintptr_t)&answer,
                              sizeof answer, MSG_DONTWAIT);
        if (result == EAGAIN_RESULT || result == EINTR_RESULT)
            return;
        (void)take_answer(parts, result, &answer);
    }
}

/* The same without waiting, at the store's leisure: what is wanted is not there this time. What cannot be
 * sent now is wished for when it is wanted again. With the lock held. */
static void wish_for(struct ntc_parts *parts, struct want *want) {
    want->refused = true;
    if (parts->lost)
        return;
    want->request.what = STORE_WISH;
    int64_t result = call(SYS_sendto, (uint64_t)parts->socket, (uint64_t)(uintptr_t)&want->request,
                          sizeof want->request, MSG_NOSIGNAL | MSG_DONTWAIT);
    if (result == EAGAIN_RESULT || result == EINTR_RESULT)
        return;
    if (result != (int64_t)sizeof want->request) {
        lose(parts);
        return;
    }
    parts->requests++;
    for (uint32_t i = 0; i < want->request.count; i++)
        note_asked(parts, want->request.chunk[i]);
}

static void lock(struct ntc_parts *parts) {
    uint32_t free = 0;
    while (!__atomic_compare_exchange_n(&parts->lock, &free, 1, false, __ATOMIC_ACQUIRE, __ATOMIC_RELAXED)) {
        free = 0;
        (void)call(SYS_sched_yield, 0, 0, 0, 0);
    }
}

static void unlock(struct ntc_parts *parts) {
    __atomic_store_n(&parts->lock, 0, __ATOMIC_RELEASE);
}

static void load(struct ntc_parts *parts, struct want *want) {
    uint64_t start = __builtin_ia32_rdtsc();
    lock(parts);
    if (parts->waits)
        wait_for(parts, want);
    else
        wish_for(parts, want);
    parts->wait_tsc += __builtin_ia32_rdtsc() - start;
    unlock(parts);
    want->request.count = 0;
}

/* Some was not there that was wished for long ago: maybe the store said why. */
static void hear_now_and_then(struct ntc_parts *parts) {
    uint64_t heard = __atomic_load_n(&parts->heard_tsc, __ATOMIC_RELAXED);
    if (parts->waits || __builtin_ia32_rdtsc() - heard < HEAR_TSC)
        return;
    lock(parts);
    hear(parts);
    unlock(parts);
}

/* Is the chunk there, and not mapped? A hole would become a page of zeroes. */
static bool is_to_map(const struct ntc_parts *parts, const uint64_t *mapped, uint32_t chunk) {
    return is_present(parts, chunk) && !is_set(mapped, chunk);
}

void ntc_parts_map(const struct ntc_parts *parts, uint64_t *mapped, const uint8_t *at, uint32_t chunk,
                   uint64_t from, uint64_t to) {
    uint32_t first = chunk, end = chunk + 1;
    if (!is_to_map(parts, mapped, chunk))
        return;
    while (first > chunk / MAP_AROUND * MAP_AROUND && is_to_map(parts, mapped, first - 1))
        first--;
    while (end % MAP_AROUND && is_to_map(parts, mapped, end))
        end++;
    for (uint32_t i = first; i < end; i++)
        __atomic_fetch_or(&mapped[i / 64], 1ull << i % 64, __ATOMIC_RELAXED);
    uint64_t start = NTC_HEADER_SIZE + first * NTC_CHUNK_SIZE, stop = NTC_HEADER_SIZE + end * NTC_CHUNK_SIZE;
    start = start > from ? start : from & PAGE_MASK;
    stop = stop < to ? stop : to;
    if (start < stop)
        (void)call(SYS_madvise, (uint64_t)(uintptr_t)at + start, stop - start, POPULATE_READ, 0);
}

/* Code and constants are read where they are mapped for execution. */
static void map_around(struct ntc_parts *parts, enum ntc_section_kind kind, uint32_t chunk) {
    if (kind != NTC_SECTION_CODE && kind != NTC_SECTION_CONSTS)
        ntc_parts_map(parts, parts->mapped, parts->base, chunk, 0, UINT64_MAX);
}

static void add(struct want *want, struct ntc_parts *parts, enum ntc_section_kind kind, uint64_t first,
                uint64_t count) {
    if (!count)
        return;
    uint64_t start = parts->place[kind] + first * parts->record[kind] - NTC_HEADER_SIZE;
    uint64_t last = start + count * parts->record[kind] - 1;
    for (uint64_t chunk = start / NTC_CHUNK_SIZE; chunk <= last / NTC_CHUNK_SIZE; chunk++) {
        uint32_t number = (uint32_t)chunk;
        if (is_present(parts, number)) {
            map_around(parts, kind, number);
            continue;
        }
        if (chunk >= parts->chunks || is_set(parts->asked, number)) {
            want->refused = true;
            continue;
        }
        if (!want->request.what)
            begin(want, parts);
        bool twice = false;
        for (uint32_t i = 0; i < want->request.count; i++)
            twice |= want->request.chunk[i] == number;
        if (twice)
            continue;
        want->request.chunk[want->request.count++] = number;
        if (want->request.count == STORE_CHUNKS_MAX)
            load(parts, want);
    }
}

static bool have(struct want *want, struct ntc_parts *parts) {
    if (want->request.what && want->request.count)
        load(parts, want);
    if (want->refused)
        hear_now_and_then(parts);
    return !want->refused;
}

bool ntc_parts_ask(const struct ntc_view *view, enum ntc_section_kind kind, uint64_t first, uint64_t count) {
    struct want want;
    want_nothing(&want);
    add(&want, view->parts, kind, first, count);
    return have(&want, view->parts);
}

static void add_unit(struct want *want, struct ntc_parts *parts, const struct ntc_unit_record *unit) {
    add(want, parts, NTC_SECTION_CODE, unit->code, unit->code_length);
    add(want, parts, NTC_SECTION_SLOTS, unit->first_slot, unit->slot_count);
    add(want, parts, NTC_SECTION_CONSTS, unit->first_const, unit->const_count);
    add(want, parts, NTC_SECTION_SITES, unit->first_site, unit->site_count);
    add(want, parts, NTC_SECTION_RELOCS, unit->first_reloc, unit->reloc_count);
    add(want, parts, NTC_SECTION_MAPS, unit->map, unit->map_length);
}

/* Who has not even the guest's bytes asks for all of the unit: it is likely to be the one, and to be wanted
 * once. */
bool ntc_parts_of_guest(const struct ntc_view *view, uint32_t number) {
    const struct ntc_unit_record *unit = &view->units[number];
    struct ntc_parts *parts = view->parts;
    struct want want;
    if (!parts)
        return true;
    want_nothing(&want);
    add(&want, parts, NTC_SECTION_BYTES, unit->bytes, unit->guest_length);
    add(&want, parts, NTC_SECTION_FIELDS, unit->first_field, unit->field_count);
    if (want.request.what && !parts->waits)
        add_unit(&want, parts, unit);
    return have(&want, parts);
}

bool ntc_parts_there(const struct ntc_view *view, enum ntc_section_kind kind, uint64_t record) {
    const struct ntc_parts *parts = view->parts;
    if (!parts)
        return true;
    uint64_t first = parts->place[kind] + record * parts->record[kind] - NTC_HEADER_SIZE;
    return is_present(parts, (uint32_t)(first / NTC_CHUNK_SIZE)) &&
           is_present(parts, (uint32_t)((first + parts->record[kind] - 1) / NTC_CHUNK_SIZE));
}

bool ntc_parts_have(const struct ntc_view *view, uint64_t offset, uint64_t length) {
    const struct ntc_parts *parts = view->parts;
    uint64_t at = offset - NTC_HEADER_SIZE, end = at + length;
    for (uint64_t chunk = at / NTC_CHUNK_SIZE; parts && chunk * NTC_CHUNK_SIZE < end; chunk++)
        if (!is_present(parts, (uint32_t)chunk))
            return false;
    return true;
}

/* The unit's entries in one of the image's two tables, which is there. */
static uint32_t count_entries(const struct ntc_view *view, uint32_t number, uint64_t low, uint64_t high) {
    uint32_t count = 0;
    for (uint64_t i = low; i < high; i++)
        count += view->entries[i].unit == number;
    return count;
}

static bool other_entries_there(const struct ntc_view *view, const struct ntc_image_record *image,
                                uint64_t page, uint64_t last) {
    const uint32_t *word = &view->pages[image->first_page + image->page_count + 1];
    const uint64_t step = NTC_CHUNK_SIZE / sizeof(struct ntc_entry_record);
    for (uint64_t i = word[page]; i < word[last + 1]; i += step)
        if (!ntc_parts_there(view, NTC_SECTION_ENTRIES, i))
            return false;
    return word[page] >= word[last + 1] || ntc_parts_there(view, NTC_SECTION_ENTRIES, word[last + 1] - 1ull);
}

/* The entries on the pages that a unit lies on: all that ntc_unit_entry() and ntc_search_unit() look at. The
 * unit's own are likely ones or others, so where all of them are found among the likely ones, the others need
 * not be there. */
static bool add_entries(struct want *want, const struct ntc_view *view, uint32_t number) {
    const struct ntc_unit_record *unit = &view->units[number];
    const struct ntc_image_record *image = &view->images[unit->image];
    uint64_t first = unit->link_address - image->link_base;
    uint64_t page = first / PAGE_SIZE, last = (first + unit->guest_length - 1) / PAGE_SIZE;
    struct want entries;
    want_nothing(&entries);
    for (unsigned table = 0; table < 2; table++) {
        const uint32_t *word = &view->pages[image->first_page + table * (image->page_count + 1)];
        uint64_t low = word[page], high = word[last + 1];
        if (low > high || high > view->count[NTC_SECTION_ENTRIES])
            return false;
        add(&entries, view->parts, NTC_SECTION_ENTRIES, low, high - low);
        if (!have(&entries, view->parts)) {
            want->refused = true;
            return true;
        }
        if (!table && !other_entries_there(view, image, page, last) &&
            count_entries(view, number, low, high) >= unit->entry_count)
            return true;
    }
    return true;
}

bool ntc_parts_of_unit(const struct ntc_view *view, uint32_t number) {
    const struct ntc_unit_record *unit = &view->units[number];
    struct ntc_parts *parts = view->parts;
    struct want want;
    if (!parts)
        return true;
    want_nothing(&want);
    add_unit(&want, parts, unit);
    return add_entries(&want, view, number) && have(&want, parts);
}
