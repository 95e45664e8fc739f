/* The symbol table that a kernel carries for itself (CONFIG_KALLSYMS), found by its shape.
 *
 * Its pieces stand one behind another in read-only data, each at a multiple of 4 or 8 bytes:
 *   names        per symbol a length (one byte, or two when bit 7 of the first is set) and that many token
 *                numbers; the expanded string starts with the type letter
 *   markers      u32 for every 256th symbol: its offset in names
 *   (seqs        three bytes for each symbol, in some versions)
 *   token_table  256 NUL-terminated strings
 *   token_index  u16[256]: their offsets in token_table
 * with num_syms (u32) in front of names. The addresses are s32 offsets and a 64-bit base: up to Linux 6.3
 * both stand in front of num_syms (offsets, base), from 6.4 on behind token_index (offsets, base). An offset
 * is unsigned and relative to the base, or, where per-CPU symbols are absolute, negative ones are -1 - x
 * relative to the base and others absolute.
 *
 * token_index is looked for first: 256 growing numbers that start at zero, which fit the 256 strings in
 * front.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "sbt/image_private.h"

#define TOKENS 256
#define MARKER_STEP 256
#define TOKEN_LENGTH_MAX 64
#define NAME_LENGTH_MAX 1024
#define MARKERS_MIN 8
#define SYMBOLS_MAX (4u << 20)

struct kallsyms {
    const uint8_t *data; /* the section */
    size_t size;
    size_t token_index, token_table, markers, marker_count, names, names_end, number;
    uint32_t symbols;
    size_t offsets;
    uint64_t base;
    bool absolute_percpu;
};

static uint16_t read16(const uint8_t *at) {
    return (uint16_t)(at[0] | at[1] << 8);
}

static uint32_t read32(const uint8_t *at) {
    uint32_t value;
    memcpy(&value, at, 4);
    return value;
}

static size_t round8(size_t value) {
    return (value + 7) & ~(size_t)7;
}

static bool strings_fit(const uint8_t *table, const uint8_t *index, size_t total) {
    if (table[total - 1])
        return false;
    for (unsigned i = 1; i < TOKENS; i++)
        if (table[read16(index + 2 * i) - 1u])
            return false;
    /* One string each: no NUL elsewhere. */
    size_t nuls = 0;
    for (size_t i = 0; i < total; i++)
        nuls += !table[i];
    return nuls == TOKENS;
}

static bool find_tokens(struct kallsyms *k, size_t index) {
    const uint8_t *at = k->data + index;
    unsigned before = 0;
    if (read16(at))
        return false;
    for (unsigned i = 1; i < TOKENS; i++) {
        unsigned value = read16(at + 2 * i);
        if (value < before + 2 || value > before + TOKEN_LENGTH_MAX)
            return false;
        before = value;
    }
    for (size_t total = before + 2; total < before + TOKEN_LENGTH_MAX; total++) {
        size_t span = round8(total);
        if (span > index)
            return false;
        if (strings_fit(k->data + index - span, at, total)) {
            k->token_index = index;
            k->token_table = index - span;
            return true;
        }
    }
    return false;
}

/* The length of the name at *at, which is moved behind the length. */
static bool name_length(const struct kallsyms *k, size_t *at, size_t end, size_t *length) {
    if (*at >= end)
        return false;
    size_t first = k->data[(*at)++];
    if (first & 0x80) {
        if (*at >= end)
            return false;
        first = (first & 0x7f) | (size_t)k->data[(*at)++] << 7;
    }
    *length = first;
    return first && first <= end - *at;
}

/* Do `symbols` names start at `names` and end right in front of the markers, which agree with them? */
static bool names_fit(struct kallsyms *k, size_t names, uint32_t symbols) {
    size_t at = names;
    for (uint32_t i = 0; i < symbols; i++) {
        size_t length;
        if (i % MARKER_STEP == 0 && read32(k->data + k->markers + i / MARKER_STEP * 4u) != at - names)
            return false;
        if (!name_length(k, &at, k->markers, &length))
            return false;
        at += length;
    }
    k->names_end = at;
    return k->markers - at < 8;
}

/* Look for num_syms and the names in front of the markers, of which there are k->marker_count. */
static bool find_names(struct kallsyms *k) {
    uint32_t tail = read32(k->data + k->markers + 4 * (k->marker_count - 1));
    if (tail > k->markers)
        return false;
    /* At most one step of names follows the last marker. */
    size_t highest = k->markers - tail, room = MARKER_STEP * 256u;
    size_t lowest = highest > room ? highest - room : 0;
    for (size_t names = highest & ~(size_t)3; names >= 8 && names > lowest; names -= 4) {
        uint32_t symbols = read32(k->data + names - 8);
        if (symbols > SYMBOLS_MAX || (symbols + MARKER_STEP - 1) / MARKER_STEP != k->marker_count)
            continue;
        if (names_fit(k, names, symbols)) {
            k->names = names;
            k->number = names - 8;
            k->symbols = symbols;
            return true;
        }
    }
    return false;
}

/* How many words from `at` on look like markers: the first is zero, each is larger than the one before by
 * what 256 names take. */
static size_t count_markers(const struct kallsyms *k, size_t at, size_t end) {
    size_t count = 1;
    uint32_t before = 0;
    if (read32(k->data + at))
        return 0;
    for (at += 4; at + 4 <= end; at += 4, count++) {
        uint32_t value = read32(k->data + at);
        if (value < before + MARKER_STEP * 2 || value > before + MARKER_STEP * 512)
            break;
        before = value;
    }
    return count;
}

/* Markers stand in front of the tokens, from Linux 6.2 (and 6.1's later releases) to 6.3 with three bytes for
 * each symbol in between. What follows them may look like one more. */
static bool find_markers(struct kallsyms *k) {
    size_t at = k->token_table & ~(size_t)3;
    while (at >= 4) {
        at -= 4;
        size_t count = count_markers(k, at, k->token_table);
        for (size_t less = 0; less < 2 && count >= MARKERS_MIN + less; less++) {
            k->markers = at;
            k->marker_count = count - less;
            if (find_names(k))
                return true;
        }
    }
    return false;
}

static uint64_t symbol_address(const struct kallsyms *k, uint32_t index) {
    int32_t offset = (int32_t)read32(k->data + k->offsets + (size_t)index * 4);
    if (!k->absolute_percpu)
        return k->base + (uint32_t)offset;
    return offset >= 0 ? (uint64_t)offset : k->base - 1 - (uint64_t)(int64_t)offset;
}

/* Addresses grow in kallsyms: that tells the right reading from the wrong ones. */
static bool addresses_fit(struct kallsyms *k, size_t offsets, size_t base) {
    if (base + 8 > k->size || offsets > k->size || (size_t)k->symbols * 4 > k->size - offsets)
        return false;
    memcpy(&k->base, k->data + base, 8);
    k->offsets = offsets;
    if (k->base < 0xffffffff80000000ull)
        return false;
    for (unsigned reading = 0; reading < 2; reading++) {
        k->absolute_percpu = !reading;
        uint32_t falls = 0;
        for (uint32_t i = 1; i < k->symbols; i++)
            falls += symbol_address(k, i) < symbol_address(k, i - 1);
        if (!falls)
            return true;
    }
    return false;
}

static bool find_addresses(struct kallsyms *k) {
    size_t span = (size_t)k->symbols * 4;
    for (size_t pad = 0; pad <= 8; pad += 4) {
        if (k->number >= 8 + span + pad && addresses_fit(k, k->number - 8 - span - pad, k->number - 8))
            return true;
        size_t behind = k->token_index + 2 * TOKENS;
        if (addresses_fit(k, behind, behind + span + pad))
            return true;
    }
    return false;
}

static size_t expand(const struct kallsyms *k, size_t at, size_t length, char *out) {
    size_t used = 0;
    for (size_t i = 0; i < length; i++) {
        const uint8_t *token =
            k->data + k->token_table + read16(k->data + k->token_index + 2u * k->data[at + i]);
        while (*token && used < NAME_LENGTH_MAX - 1)
            out[used++] = (char)*token++;
    }
    out[used] = 0;
    return used;
}

static int unpack(const struct kallsyms *k, struct image *image) {
    size_t capacity = (size_t)k->symbols * 32 + NAME_LENGTH_MAX, used = 0, at = k->names;
    size_t *place = calloc(k->symbols, sizeof *place);
    image->strings = malloc(capacity);
    image->symbol = calloc(k->symbols, sizeof *image->symbol);
    if (!place || !image->strings || !image->symbol)
        goto no_memory;
    for (uint32_t i = 0; i < k->symbols; i++) {
        size_t length;
        if (capacity - used < NAME_LENGTH_MAX) {
            char *grown = realloc(image->strings, capacity * 2);
            if (!grown)
                goto no_memory;
            image->strings = grown;
            capacity *= 2;
        }
        if (!name_length(k, &at, k->markers, &length))
            break;
        place[i] = used;
        used += expand(k, at, length, image->strings + used) + 1;
        at += length;
        image->symbols = i + 1;
    }
    for (size_t i = 0; i < image->symbols; i++) {
        const char *name = image->strings + place[i];
        image->symbol[i] = (struct image_symbol){
            .name = *name ? name + 1 : name, .address = symbol_address(k, (uint32_t)i), .type = *name};
    }
    free(place);
    return 0;
no_memory:
    free(place);
    return -ENOMEM;
}

int kallsyms_read(struct image *image) {
    for (unsigned i = 0; i < image->sections; i++) {
        const struct image_section *section = &image->section[i];
        if (!section->data || section->exec || section->size < 4096)
            continue;
        struct kallsyms k = {.data = section->data, .size = section->size};
        for (size_t at = 0; at + 2 * TOKENS <= k.size; at += 4) {
            if (read16(k.data + at) || !find_tokens(&k, at))
                continue;
            /* Between markers and tokens, Linux 6.2 and 6.3 have three bytes for each symbol, which no
             * address search here knows how to skip; padding of one marker is all that may stand there. */
            if (find_markers(&k) && find_addresses(&k))
                return unpack(&k, image);
        }
    }
    return 0;
}
