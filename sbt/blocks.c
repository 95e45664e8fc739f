/* The units of a piece. All bounded: a piece has PIECE_MAX bytes, a place 255 byte strings. */
#include "sbt/blocks_private.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "isa/insn.h"

/* Most places that may change stand as the stage has them: what is made for when they do not is needed less.
 */
#define ASIDE_DIVISOR 4u

/* The stages in the order in which they are gone through. */
static const enum stage stage_order[STAGES] = {STAGE_READY, STAGE_READY_ONE, STAGE_EARLY, STAGE_TRACED};

struct blocks *blocks_create(const struct discovery *discovery, const struct pieces *pieces,
                             const struct blocks_options *options, const struct cpu_model *model,
                             blocks_sink sink, void *context) {
    struct blocks *b = calloc(1, sizeof *b);
    if (!b)
        return NULL;
    b->discovery = discovery;
    b->patched = discovery->patched;
    b->pieces = pieces;
    b->options = options;
    b->sink = sink;
    b->context = context;
    b->generator = options->codegen->create(model);
    if (!b->generator) {
        free(b);
        return NULL;
    }
    return b;
}

void blocks_destroy(struct blocks *b) {
    if (!b)
        return;
    b->options->codegen->destroy(b->generator);
    free(b);
}

const struct blocks_counts *blocks_counts(const struct blocks *b) {
    return &b->counts;
}

static void name_unit(const struct blocks *b, struct ntc_unit *unit) {
    const struct image_symbol *symbol = image_symbol_at(b->patched->image, unit->link_address);
    if (symbol && symbol->type != 'U' && symbol->address >= b->section->address) {
        unit->name = symbol->name;
        unit->name_offset = (uint32_t)(unit->link_address - symbol->address);
    }
}

static uint32_t heat_of(const struct blocks *b, uint64_t address) {
    uint32_t value = b->options->estimate ? estimate_at(b->options->estimate, address, b->stage) : 0;
    return b->aside ? value / ASIDE_DIVISOR : value;
}

/* Translate bytes that stand at the offset of the piece, with b's entries, stops and holes, and hand the unit
 * on. */
static int make(struct blocks *b, uint32_t offset, const uint8_t *bytes, uint32_t length) {
    uint64_t address = b->address + offset;
    struct ntc_unit unit = {0};
    if (!blocks_collect_fields(b, address, bytes, length))
        b->fields = 0;
    struct codegen_request request = {.address = address,
                                      .mode = b->mode,
                                      .bytes = bytes,
                                      .length = length,
                                      .entry = b->entry,
                                      .entries = b->entries,
                                      .stop = b->stop,
                                      .stops = b->stops,
                                      .field = b->field,
                                      .fields = b->options->fields ? b->fields : 0};
    int result = b->options->codegen->translate(b->generator, &request, &unit);
    if (result)
        return result;
    unit.image = b->options->image;
    unit.heat = heat_of(b, address);
    name_unit(b, &unit);
    b->counts.units++;
    b->counts.fixed += unit.field_count < request.fields;
    b->counts.guest_bytes += unit.guest_length;
    b->counts.host_bytes += unit.code_length;
    return b->sink(b->context, &unit);
}

/* The places inside [offset, offset + length) where execution may come from outside. */
static void find_entries(struct blocks *b, uint32_t offset, uint32_t length) {
    b->entries = 0;
    for (uint32_t at = 0; at < length; at++)
        if (b->map[offset + at] & b->starts &&
            (!at || b->map[offset + at] & CODE_ENTRY || b->crossed[offset + at] ||
             (b->options->entered && b->options->entered(b->context, b->address + offset + at))))
            b->entry[b->entries++] = (uint16_t)at;
}

/* The part is made in two: what branches from one to the other enters it. */
static void mark_crossings(struct blocks *b, uint32_t offset, uint32_t middle, uint32_t length) {
    const uint8_t *bytes = b->section->bytes[b->stage] + b->start + offset;
    for (uint32_t at = 0; at < length; at++) {
        struct insn insn;
        if (!(b->map[offset + at] & b->starts) ||
            insn_decode(&insn, bytes + at, length - at, 64) != INSN_OK || !insn.z.operand_count ||
            insn.op[0].type != ZYDIS_OPERAND_TYPE_IMMEDIATE || !insn.op[0].imm.is_relative)
            continue;
        uint64_t target = at + insn.length + (uint64_t)insn.op[0].imm.value.s;
        if (target < length && (target < middle) != (at < middle))
            b->crossed[offset + target] = true;
    }
}

/* -- Places that hold what cannot be known -- */

struct choices {
    const struct patch_choice *choice[BLOCKS_CHOICES_MAX];
    unsigned count;
};

/* Those inside the piece that hold in this stage. False: more than are looked at. */
static bool find_choices(const struct blocks *b, struct choices *inside) {
    uint64_t from = b->address, to = from + b->length;
    size_t first = patched_choice_from(b->patched, from < PATCH_LENGTH_MAX ? 0 : from - PATCH_LENGTH_MAX);
    inside->count = 0;
    for (size_t i = first; i < b->patched->choices && b->patched->choice[i].address < to; i++) {
        const struct patch_choice *choice = &b->patched->choice[i];
        if (choice->address + choice->length <= from || b->stage < choice->first_stage ||
            choice->address < from || choice->address + choice->length > to)
            continue;
        if (inside->count == BLOCKS_CHOICES_MAX)
            return false;
        inside->choice[inside->count++] = choice;
    }
    return true;
}

static bool is_small(int result) {
    return !result || result == -ENOENT || result == -E2BIG;
}

/* A place by itself, in all it may hold. */
static int make_choice(struct blocks *b, const struct patch_choice *choice) {
    uint32_t offset = (uint32_t)(choice->address - b->address);
    int result = 0;
    for (unsigned k = 0; k <= choice->options && is_small(result); k++) {
        const uint8_t *bytes = k ? b->patched->option_bytes + choice->bytes + (size_t)(k - 1) * choice->length
                                 : b->section->bytes[b->stage] + b->start + offset;
        b->entry[0] = 0;
        b->entries = 1;
        b->stops = b->fields = 0;
        result = make(b, offset, bytes, choice->length);
    }
    return is_small(result) ? 0 : result;
}

/* Does the place lie in one that holds what cannot be known? */
static bool in_choice(const struct blocks *b, const struct choices *inside, uint32_t offset) {
    for (unsigned i = 0; inside && i < inside->count; i++) {
        uint64_t from = inside->choice[i]->address - b->address;
        if (offset > from && offset - from < inside->choice[i]->length)
            return true;
    }
    return false;
}

/* The middle of a part of the piece, where an instruction begins; 0: none does. */
static uint32_t middle_of(const struct blocks *b, uint32_t offset, uint32_t length,
                          const struct choices *without) {
    for (uint32_t away = 0; away < length / 2; away++) {
        uint32_t middle = length / 2 - away;
        if (b->map[offset + middle] & b->starts && !in_choice(b, without, offset + middle))
            return middle;
    }
    return 0;
}

/* Nothing is made of such places inside the part: they are left for whatever stands there, and entered behind
 * it. False: there are too many. */
static bool leave_out(struct blocks *b, const struct choices *without, uint32_t offset, uint32_t length) {
    for (unsigned i = 0; i < without->count; i++) {
        uint64_t at = without->choice[i]->address - b->address;
        if (at < offset || at >= (uint64_t)offset + length)
            continue;
        uint32_t from = (uint32_t)at - offset, end = from + without->choice[i]->length;
        b->stop[b->stops++] = (struct codegen_stop){.from = from, .to = end};
        if (!blocks_add_hole(b, from, without->choice[i]->length))
            return false;
        if (end < length && b->entries < PIECE_MAX)
            b->entry[b->entries++] = (uint16_t)end;
    }
    return true;
}

/* A part of the piece as the stage has it, or without the places whose contents cannot be known; in halves if
 * it is too large for a unit. */
static int make_part(struct blocks *b, uint32_t offset, uint32_t length, unsigned depth,
                     const struct choices *without) {
    find_entries(b, offset, length);
    b->stops = b->fields = 0;
    if (without && !leave_out(b, without, offset, length))
        return 0;
    int result = make(b, offset, b->section->bytes[b->stage] + b->start + offset, length);
    if (result == -ENOENT) {
        b->counts.refused += !without;
        return 0;
    }
    if (result != -E2BIG)
        return result;
    uint32_t middle = depth < 8 ? middle_of(b, offset, length, without) : 0;
    if (!middle) {
        b->counts.too_large += !without;
        return 0;
    }
    mark_crossings(b, offset, middle, length);
    result = make_part(b, offset, middle, depth + 1, without);
    return result ? result : make_part(b, offset + middle, length - middle, depth + 1, without);
}

static int make_stage(struct blocks *b) {
    struct choices inside;
    b->aside = false;
    memset(b->crossed, 0, sizeof b->crossed);
    int result = make_part(b, 0, b->length, 0, NULL);
    if (result)
        return result;
    b->counts.pieces++;
    if (!find_choices(b, &inside)) {
        b->counts.uncombined++;
        return 0;
    }
    if (!inside.count)
        return 0;
    b->aside = true;
    result = make_part(b, 0, b->length, 0, &inside);
    for (unsigned i = 0; i < inside.count && !result; i++)
        result = make_choice(b, inside.choice[i]);
    return result;
}

/* Has the piece the same bytes as in that stage? Then it has the same places that may change, too. */
static bool is_alike(const struct blocks *b, enum stage other) {
    return !memcmp(b->section->bytes[other] + b->start, b->section->bytes[b->stage] + b->start, b->length);
}

static bool made_before(const struct blocks *b, const enum stage *done, unsigned count) {
    for (unsigned i = 0; i < count; i++)
        if (is_alike(b, done[i]))
            return true;
    return false;
}

/* What is entered in one stage only is entered in the unit that serves several. */
static uint8_t find_starts(const struct blocks *b) {
    uint8_t starts = 0;
    for (unsigned i = 0; i < STAGES; i++)
        if (b->options->stages[i] && is_alike(b, i))
            starts |= piece_stage_bit(i);
    return starts;
}

static int make_stages(struct blocks *b) {
    enum stage done[STAGES];
    unsigned count = 0;
    for (unsigned i = 0; i < STAGES; i++) {
        b->stage = stage_order[i];
        if (!b->options->stages[b->stage] || made_before(b, done, count))
            continue;
        b->starts = find_starts(b);
        int result = make_stage(b);
        if (result)
            return result;
        done[count++] = b->stage;
    }
    return 0;
}

int blocks_make_piece(struct blocks *b, size_t number) {
    const struct piece *piece = &b->pieces->piece[number];
    b->section = &b->patched->section[piece->section];
    b->address = piece->address;
    b->start = piece->address - b->section->address;
    b->length = piece->length;
    b->map = b->discovery->map[piece->section] + b->start;
    for (unsigned mode = 0; mode < b->options->mode_count; mode++) {
        b->mode = b->options->modes[mode];
        if (b->options->select && !b->options->select(b->context, b->address, b->length, b->mode)) {
            b->counts.unselected++;
            continue;
        }
        int result = make_stages(b);
        if (result)
            return result;
    }
    return 0;
}
