/* .altinstructions: a place, a replacement and the feature that chooses it.
 *
 * Up to Linux 6.2 an entry is {s32 place, s32 replacement, u16 feature (bit 15: when absent), u8 length, u8
 * replacement's length}; from 6.3 on {s32, s32, u16 feature, u16 flags (1: when absent, 2: a direct call for
 * the paravirtual one at the place), u8, u8}. Entries for one place follow each other and are applied in
 * turn.
 */
#include <string.h>

#include "sbt/patch_private.h"

#define ENTRY_OLD 12u
#define ENTRY_NEW 14u
#define RUN_MAX 8
#define FLAG_NOT 1u
#define FLAG_DIRECT_CALL 2u

struct alternative {
    uint64_t place, replacement;
    unsigned feature, flags;
    unsigned length, replacement_length;
};

static struct alternative entry_read(const struct image_table *table, size_t at, unsigned size) {
    const uint8_t *data = table->data + at;
    uint64_t address = table->address + at;
    struct alternative entry = {.place = address + (uint64_t)(int64_t)patch_read32(data),
                                .replacement = address + 4 + (uint64_t)(int64_t)patch_read32(data + 4)};
    unsigned word = data[8] | (unsigned)data[9] << 8;
    if (size == ENTRY_OLD) {
        entry.feature = word & 0x7fff;
        entry.flags = word >> 15 ? FLAG_NOT : 0;
    } else {
        entry.feature = word;
        entry.flags = data[10] | (unsigned)data[11] << 8;
    }
    entry.length = data[size - 2];
    entry.replacement_length = data[size - 1];
    return entry;
}

/* Returns and retpolines in replacements were patched before. */
static const uint8_t *replacement_at(const struct patching *p, const struct alternative *entry) {
    return patched_at(p->patched, STAGE_READY, entry->replacement, entry->replacement_length);
}

static bool entry_fits(const struct patching *p, const struct alternative *entry) {
    return entry->replacement_length <= entry->length && entry->length <= PATCH_LENGTH_MAX &&
           patched_at(p->patched, STAGE_READY, entry->place, entry->length) &&
           (!entry->replacement_length || replacement_at(p, entry));
}

/* The size of an entry is not stated: it is the one by which (nearly) all entries make sense. */
static unsigned entry_size(const struct patching *p, const struct image_table *table) {
    size_t good[2] = {0, 0};
    for (unsigned which = 0; which < 2; which++) {
        unsigned size = which ? ENTRY_NEW : ENTRY_OLD;
        if (table->size % size)
            continue;
        for (size_t at = 0; at + size <= table->size; at += size) {
            struct alternative entry = entry_read(table, at, size);
            good[which] += entry_fits(p, &entry) ? size : 0;
        }
    }
    return good[1] > good[0] ? ENTRY_NEW : ENTRY_OLD;
}

/* Up to 6.2: a JMP rel32 takes its short form where that reaches, and NOPs. */
static void old_jump(const struct patching *p, const struct alternative *entry, uint8_t *bytes) {
    if (entry->replacement_length != 5 || bytes[0] != 0xe9)
        return;
    uint64_t target = entry->replacement + 5 + (uint64_t)(int64_t)patch_read32(bytes + 1);
    int64_t distance = (int32_t)(target - entry->place);
    bool near = distance >= 0 ? distance - 2 <= 127 : ((distance - 2) & 0xff) == distance - 2;
    if (near) {
        bytes[0] = 0xeb;
        bytes[1] = (uint8_t)(distance - 2);
        patch_nops(p, bytes + 2, 3);
    } else {
        patch_branch(bytes, 0xe9, entry->place, target);
    }
}

/* A call through pv_ops at the place becomes a direct one, or nothing when that function does nothing. */
static size_t direct_call(const struct patching *p, const struct alternative *entry, uint8_t *bytes) {
    const uint8_t *now = patched_at(p->patched, STAGE_READY, entry->place, 6);
    const struct image_symbol *nothing = image_symbol_named(p->image, "nop_func");
    const struct image_symbol *bug = image_symbol_named(p->image, "BUG_func");
    if (!now || entry->length < 6 || entry->replacement_length != 5 || bytes[0] != 0xe8 || now[0] != 0xff ||
        now[1] != 0x15)
        return SIZE_MAX;
    uint64_t target = patch_paravirt_target(p, entry->place + 6 + (uint64_t)(int64_t)patch_read32(now + 2));
    if (!target && bug)
        target = bug->address;
    if (!target)
        return SIZE_MAX;
    if (nothing && target == nothing->address)
        return 0;
    /* As if it had been assembled with the replacement. */
    patch_branch(bytes, 0xe8, entry->replacement, target);
    return 5;
}

/* What stands at the place when the alternative is taken. False: it cannot be worked out. */
static bool taken(const struct patching *p, const struct alternative *entry, uint8_t *bytes) {
    size_t used = entry->replacement_length;
    if (used)
        memcpy(bytes, replacement_at(p, entry), used);
    if (p->modern) {
        if (entry->flags & FLAG_DIRECT_CALL)
            used = direct_call(p, entry, bytes);
        if (used == SIZE_MAX)
            return false;
        memset(bytes + used, 0x90, entry->length - used);
        patch_relocate(bytes, entry->length, entry->replacement, entry->place, entry->replacement_length);
    } else {
        if (used == 5 && bytes[0] == 0xe8)
            patch_branch(bytes, 0xe8, entry->place,
                         entry->replacement + 5 + (uint64_t)(int64_t)patch_read32(bytes + 1));
        old_jump(p, entry, bytes);
        memset(bytes + used, 0x90, entry->length - used);
    }
    patch_optimize_nops(p, bytes, entry->length);
    return true;
}

/* VERW, against leaks that the CPU model is immune to. The number of its feature is another one's in older
 * kernels, so it is known by what it does. */
static bool clears_buffers(const struct alternative *entry, const uint8_t *bytes) {
    return entry->replacement_length >= 3 && bytes[0] == 0x0f && bytes[1] == 0x00 &&
           (bytes[2] & 0x38) == 0x28;
}

static void apply(struct patching *p, const struct alternative *entry) {
    uint8_t yes[PATCH_LENGTH_MAX], no[PATCH_LENGTH_MAX];
    const uint8_t *now = patched_at(p->patched, STAGE_READY, entry->place, entry->length);
    memcpy(no, now, entry->length);
    patch_optimize_nops(p, no, entry->length);
    bool possible = taken(p, entry, yes);
    bool take = features_has(p->features, entry->feature) != (bool)(entry->flags & FLAG_NOT) && possible &&
                !clears_buffers(entry, yes);
    patch_write(p, PATCH_ALTERNATIVE, STAGE_READY, STAGE_READY_ONE, entry->place, take ? yes : no,
                entry->length);
    if (possible && !features_knows(p->features, entry->feature))
        patch_offer(p, PATCH_ALTERNATIVE, STAGE_READY, entry->place, take ? no : yes, entry->length);
}

/* From 6.3 on, entries for one place share the longest of their lengths. A run is a handful of entries. */
static unsigned shared_length(const struct image_table *table, size_t at, unsigned size,
                              const struct alternative *entry) {
    unsigned longest = entry->length;
    for (int step = -RUN_MAX; step <= RUN_MAX; step++) {
        int64_t other_at = (int64_t)at + step * (int64_t)size;
        if (other_at < 0 || (uint64_t)other_at + size > table->size)
            continue;
        struct alternative other = entry_read(table, (size_t)other_at, size);
        if (other.place == entry->place && other.length > longest)
            longest = other.length;
    }
    return longest;
}

void patch_alternatives(struct patching *p) {
    struct image_table table =
        image_table(p->image, ".altinstructions", "__alt_instructions", "__alt_instructions_end");
    unsigned size = entry_size(p, &table);
    p->modern = table.size ? size == ENTRY_NEW : p->modern;
    for (size_t at = 0; at + size <= table.size; at += size) {
        struct alternative entry = entry_read(&table, at, size);
        p->patched->sites[PATCH_ALTERNATIVE]++;
        if (p->modern)
            entry.length = shared_length(&table, at, size, &entry);
        if (entry_fits(p, &entry))
            apply(p, &entry);
        else
            patch_skip(p, PATCH_ALTERNATIVE);
    }
}
