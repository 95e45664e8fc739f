/* See pieces.h. */
#include "sbt/pieces.h"

#include <errno.h>
#include <stdlib.h>

#include "isa/insn.h"

#define CODE_STARTS (CODE_READY | CODE_EARLY)

static bool add(struct pieces *pieces, uint32_t section, uint64_t address, uint64_t length) {
    if (pieces->count == pieces->room) {
        size_t room = pieces->room ? pieces->room * 2 : 4096;
        struct piece *grown = realloc(pieces->piece, room * sizeof *grown);
        if (!grown)
            return false;
        pieces->piece = grown;
        pieces->room = room;
    }
    pieces->piece[pieces->count++] =
        (struct piece){.address = address, .length = (uint32_t)length, .section = section};
    return true;
}

/* Where a piece that begins at `from` ends, in front of `to`: behind the code if it is short enough, else at
 * the last place that execution may enter at, else at the last instruction. */
static uint64_t piece_end(const struct patched_section *section, const uint8_t *map, uint64_t from,
                          uint64_t to) {
    uint64_t pages = ((section->address + from) & PAGE_MASK) + 2 * PAGE_SIZE - section->address;
    uint64_t limit = from + PIECE_MAX < pages ? from + PIECE_MAX : pages;
    if (to <= limit)
        return to;
    uint64_t at = limit;
    while (at > from && !(map[at] & CODE_STARTS && map[at] & (CODE_ENTRY | CODE_TARGET)))
        at--;
    if (at > from)
        return at;
    at = limit;
    while (at > from && !(map[at] & CODE_STARTS))
        at--;
    return at > from ? at : limit;
}

static bool cut_function(struct pieces *pieces, const struct patched_section *section, const uint8_t *map,
                         uint32_t number, uint64_t from, uint64_t to) {
    while (from < to && !(map[from] & CODE_STARTS))
        from++;
    while (to > from && !(map[to - 1] & CODE_COVERED))
        to--;
    while (from < to) {
        uint64_t end = piece_end(section, map, from, to), trimmed = end;
        while (trimmed > from && !(map[trimmed - 1] & CODE_COVERED))
            trimmed--;
        if (trimmed > from && !add(pieces, number, section->address + from, trimmed - from))
            return false;
        from = end;
        while (from < to && !(map[from] & CODE_STARTS))
            from++;
    }
    return true;
}

static bool cut_section(struct pieces *pieces, const struct discovery *discovery, uint32_t number) {
    const struct patched_section *section = &discovery->patched->section[number];
    const uint8_t *map = discovery->map[number];
    uint64_t from = 0;
    for (uint64_t at = 1; at <= section->size; at++) {
        if (at < section->size && !(map[at] & CODE_STARTS && map[at] & CODE_FUNCTION))
            continue;
        if (!cut_function(pieces, section, map, number, from, at))
            return false;
        from = at;
    }
    return true;
}

/* A place in any section, to be marked. */
static uint8_t *byte_at(struct discovery *discovery, uint64_t address) {
    for (unsigned i = 0; i < discovery->patched->sections; i++) {
        const struct patched_section *section = &discovery->patched->section[i];
        if (discovery->map[i] && address - section->address < section->size)
            return discovery->map[i] + (address - section->address);
    }
    return NULL;
}

/* Direct branches that leave the piece enter another. */
static void mark_targets(struct discovery *discovery, const struct piece *piece, enum stage stage) {
    const struct patched_section *section = &discovery->patched->section[piece->section];
    uint64_t start = piece->address - section->address;
    const uint8_t *map = discovery->map[piece->section] + start, *bytes = section->bytes[stage] + start;
    for (uint32_t at = 0; at < piece->length; at++) {
        struct insn insn;
        if (!(map[at] & piece_stage_bit(stage)) ||
            insn_decode(&insn, bytes + at, piece->length - at, 64) != INSN_OK || !insn.z.operand_count ||
            insn.op[0].type != ZYDIS_OPERAND_TYPE_IMMEDIATE || !insn.op[0].imm.is_relative)
            continue;
        uint64_t target = piece->address + at + insn.length + (uint64_t)insn.op[0].imm.value.s;
        if (target - piece->address < piece->length)
            continue;
        uint8_t *place = byte_at(discovery, target);
        if (place)
            *place |= CODE_ENTRY;
    }
}

int pieces_create(struct pieces *pieces, struct discovery *discovery) {
    *pieces = (struct pieces){0};
    for (uint32_t i = 0; i < discovery->patched->sections; i++)
        if (discovery->map[i] && !cut_section(pieces, discovery, i)) {
            pieces_destroy(pieces);
            return -ENOMEM;
        }
    for (size_t i = 0; i < pieces->count; i++) {
        mark_targets(discovery, &pieces->piece[i], STAGE_READY);
        mark_targets(discovery, &pieces->piece[i], STAGE_EARLY);
    }
    return 0;
}

void pieces_destroy(struct pieces *pieces) {
    free(pieces->piece);
    *pieces = (struct pieces){0};
}
