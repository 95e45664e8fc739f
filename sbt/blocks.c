/* The blocks of a page. All bounded: a page has 4096 places, a place BLOCKS_VARIANTS_MAX byte strings per
 * stage. */
#include "sbt/blocks_private.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "isa/insn.h"

/* The stages in the order in which they are gone through. */
static const enum stage stage_order[STAGES] = {STAGE_READY, STAGE_READY_ONE, STAGE_EARLY, STAGE_TRACED};

struct blocks *blocks_create(const struct discovery *discovery, const struct blocks_options *options,
                             const struct cpu_model *model, blocks_sink sink, void *context) {
    struct blocks *b = calloc(1, sizeof *b);
    if (!b)
        return NULL;
    b->discovery = discovery;
    b->patched = discovery->patched;
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
    free(b->code);
    free(b->map_bytes);
    free(b->consts);
    free(b->slots);
    free(b);
}

const struct blocks_counts *blocks_counts(const struct blocks *b) {
    return &b->counts;
}

static size_t section_pages(const struct patched_section *section) {
    return ((section->address + section->size - 1) >> PAGE_SHIFT) - (section->address >> PAGE_SHIFT) + 1;
}

size_t blocks_page_count(const struct discovery *discovery) {
    size_t count = 0;
    for (unsigned i = 0; i < discovery->patched->sections; i++)
        if (discovery->map[i])
            count += section_pages(&discovery->patched->section[i]);
    return count;
}

static uint8_t stage_bit(enum stage stage) {
    return stage >= STAGE_READY ? CODE_READY : CODE_EARLY;
}

/* Execution may go on at the offset of the page, in this or another stage's text. */
static void want(struct blocks *b, int64_t offset) {
    if (offset >= 0 && offset < (int64_t)b->page_size)
        b->wanted[offset] = true;
}

/* Where a block leads inside its page: by its direct exits, and behind what it leaves to C. */
static void follow(struct blocks *b, uint32_t offset, const struct ntc_unit *unit) {
    want(b, (int64_t)offset + unit->guest_length);
    for (unsigned i = 0; i < unit->site_count; i++) {
        const struct ntc_site *site = &unit->sites[i];
        if (site->kind == NTC_SITE_LINK || site->kind == NTC_SITE_CALL)
            want(b, (int64_t)offset + site->target);
        else if (site->kind == NTC_SITE_HELPER || site->kind == NTC_SITE_INTERPRET)
            want(b, (int64_t)offset + site->guest + site->length);
    }
}

static void name_unit(const struct blocks *b, struct ntc_unit *unit) {
    const struct image_symbol *symbol = image_symbol_at(b->patched->image, unit->link_address);
    if (symbol && symbol->type != 'U' && symbol->address >= b->section->address) {
        unit->name = symbol->name;
        unit->name_offset = (uint32_t)(unit->link_address - symbol->address);
    }
}

/* Translate the bytes that stand in the work page at offset, and hand the unit on. *length: of the block. */
static int make(struct blocks *b, uint32_t offset, uint32_t *length) {
    struct ntc_unit unit = {0};
    struct codegen_request request = {.address = b->page_address + offset,
                                      .mode = b->mode,
                                      .bytes = b->work + offset,
                                      .length = b->page_size - offset};
    *length = 0;
    int result = b->options->codegen->translate(b->generator, &request, &unit);
    if (result == -ENOENT || result == -E2BIG) {
        b->counts.refused += result == -ENOENT;
        b->counts.too_large += result == -E2BIG;
        return 0;
    }
    if (result)
        return result;
    *length = unit.guest_length;
    unit.image = b->options->image;
    name_unit(b, &unit);
    follow(b, offset, &unit);
    if (b->options->fields)
        blocks_find_fields(b, &request, &unit);
    b->counts.units++;
    b->counts.guest_bytes += unit.guest_length;
    b->counts.host_bytes += unit.code_length;
    return b->sink(b->context, &unit);
}

/* If the bytes at offset stand in a stage that was gone through before, as far as the block goes that was
 * made there, that block's length; else 0. */
static uint32_t made_before(const struct blocks *b, uint32_t offset) {
    for (unsigned i = 0; i < STAGES && stage_order[i] != b->stage; i++) {
        uint32_t length = b->made[stage_order[i]][offset];
        if (length &&
            !memcmp(b->section->bytes[stage_order[i]] + b->page_start + offset, b->work + offset, length))
            return length;
    }
    return 0;
}

/* The choices inside [offset, offset + length) that hold in this stage. False: more than are looked at. */
static bool find_choices(const struct blocks *b, uint32_t offset, uint32_t length,
                         const struct patch_choice **inside, unsigned *count) {
    uint64_t from = b->page_address + offset, to = from + length;
    size_t first = patched_choice_from(b->patched, from < PATCH_LENGTH_MAX ? 0 : from - PATCH_LENGTH_MAX);
    *count = 0;
    for (size_t i = first; i < b->patched->choices && b->patched->choice[i].address < to; i++) {
        const struct patch_choice *choice = &b->patched->choice[i];
        if (choice->address + choice->length <= from || b->stage < choice->first_stage ||
            choice->address < b->page_address ||
            choice->address + choice->length > b->page_address + b->page_size)
            continue;
        if (*count == BLOCKS_VARIANTS_MAX)
            return false;
        inside[(*count)++] = choice;
    }
    return true;
}

static void put_option(struct blocks *b, const struct patch_choice *choice, unsigned option) {
    memcpy(b->work + (choice->address - b->page_address),
           b->patched->option_bytes + choice->bytes + (size_t)option * choice->length, choice->length);
}

static void take_back(struct blocks *b, const struct patch_choice *choice) {
    memcpy(b->work + (choice->address - b->page_address),
           b->section->bytes[b->stage] + b->page_start + (choice->address - b->page_address), choice->length);
}

static int make_variants(struct blocks *b, uint32_t offset, uint32_t length) {
    const struct patch_choice *inside[BLOCKS_VARIANTS_MAX];
    unsigned count, product = 1, variants = 1;
    uint32_t ignored;
    int result = 0;
    bool all = find_choices(b, offset, length, inside, &count);
    for (unsigned i = 0; i < count && product <= BLOCKS_VARIANTS_MAX; i++)
        product *= inside[i]->options + 1u;
    if (all && product <= BLOCKS_VARIANTS_MAX) {
        for (unsigned variant = 1; variant < product && !result; variant++) {
            unsigned rest = variant;
            for (unsigned i = 0; i < count; i++) {
                unsigned digit = rest % (inside[i]->options + 1u);
                rest /= inside[i]->options + 1u;
                if (digit)
                    put_option(b, inside[i], digit - 1);
                else
                    take_back(b, inside[i]);
            }
            result = make(b, offset, &ignored);
        }
    } else {
        b->counts.uncombined++;
        for (unsigned i = 0; i < count && !result; i++) {
            for (unsigned k = 0; k < inside[i]->options && variants < BLOCKS_VARIANTS_MAX && !result; k++) {
                put_option(b, inside[i], k);
                result = make(b, offset, &ignored);
                variants++;
            }
            take_back(b, inside[i]);
        }
    }
    for (unsigned i = 0; i < count; i++)
        take_back(b, inside[i]);
    return result;
}

/* What follows an instruction at which nothing can be made. */
static void step_over(struct blocks *b, uint32_t offset) {
    struct insn insn;
    if (insn_decode(&insn, b->work + offset, b->page_size - offset, 64) == INSN_OK)
        want(b, (int64_t)offset + insn.length);
}

static int make_place(struct blocks *b, uint32_t offset) {
    if (b->options->select && !b->options->select(b->context, b->page_address + offset, b->mode)) {
        b->counts.unselected++;
        return 0;
    }
    uint32_t length = made_before(b, offset);
    if (length) {
        b->made[b->stage][offset] = (uint16_t)length;
        return 0;
    }
    int result = make(b, offset, &length);
    if (result)
        return result;
    b->made[b->stage][offset] = (uint16_t)length;
    if (!length) {
        step_over(b, offset);
        return 0;
    }
    b->counts.blocks++;
    return make_variants(b, offset, length);
}

static int make_stage(struct blocks *b) {
    uint8_t bit = stage_bit(b->stage);
    bool first = true;
    memcpy(b->work, b->section->bytes[b->stage] + b->page_start, b->page_size);
    memset(b->done, 0, sizeof b->done);
    for (uint32_t at = 0; at < b->page_size; at++) {
        /* The page's first instruction is where the block before it leads. */
        if (b->map[at] & bit && (first || b->map[at] & CODE_ENTRY))
            b->wanted[at] = true;
        first = first && !(b->map[at] & bit);
    }
    /* Blocks lead backwards, too: go over the page until nothing is wanted any more. */
    for (bool again = true; again;) {
        again = false;
        for (uint32_t at = 0; at < b->page_size; at++) {
            if (!b->wanted[at] || b->done[at] || !(b->map[at] & bit))
                continue;
            b->done[at] = again = true;
            int result = make_place(b, at);
            if (result)
                return result;
        }
    }
    return 0;
}

static int make_stages(struct blocks *b) {
    memset(b->made, 0, sizeof b->made);
    memset(b->wanted, 0, sizeof b->wanted);
    for (unsigned i = 0; i < STAGES; i++) {
        b->stage = stage_order[i];
        int result = b->options->stages[b->stage] ? make_stage(b) : 0;
        if (result)
            return result;
    }
    return 0;
}

int blocks_make_page(struct blocks *b, size_t page) {
    for (unsigned i = 0; i < b->patched->sections; i++) {
        b->section = &b->patched->section[i];
        if (!b->discovery->map[i])
            continue;
        size_t pages = section_pages(b->section);
        if (page >= pages) {
            page -= pages;
            continue;
        }
        uint64_t start = (b->section->address & PAGE_MASK) + page * PAGE_SIZE, end = start + PAGE_SIZE;
        uint64_t section_end = b->section->address + b->section->size;
        b->page_address = start < b->section->address ? b->section->address : start;
        b->page_size = (uint32_t)((end < section_end ? end : section_end) - b->page_address);
        b->page_start = b->page_address - b->section->address;
        b->map = b->discovery->map[i] + b->page_start;
        int result = 0;
        for (unsigned mode = 0; mode < b->options->mode_count && !result; mode++) {
            b->mode = b->options->modes[mode];
            result = make_stages(b);
        }
        return result;
    }
    return -EINVAL;
}
