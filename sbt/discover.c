/* Recursive descent. Every byte is visited once for each of two texts, so the walk is bounded by the text's
 * size.
 *
 * No jump table has to be resolved: kernels are built without, and what is entered only through a pointer is
 * a function with a symbol or has an unwind entry.
 */
#include "sbt/discover.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/diag.h"
#include "isa/insn.h"

#define EXTABLE_ENTRY 12u
#define ORC_ENTRY 6u
#define CHOICE_ROUNDS 4
#define LOADER_FUNCTION_ALIGN 16u

struct walk {
    struct discovery *discovery;
    const struct patched *patched;
    enum stage stage;
    uint8_t bit;
    uint64_t *stack;
    size_t depth, room;
    bool out_of_memory;
};

static uint8_t *flags_at(const struct discovery *discovery, uint64_t address, unsigned *section) {
    const struct patched *patched = discovery->patched;
    unsigned low = 0, high = patched->sections;
    while (low < high) {
        unsigned middle = low + (high - low) / 2;
        const struct patched_section *s = &patched->section[middle];
        if (address < s->address) {
            high = middle;
        } else if (address - s->address >= s->size) {
            low = middle + 1;
        } else {
            *section = middle;
            return discovery->map[middle] ? discovery->map[middle] + (address - s->address) : NULL;
        }
    }
    return NULL;
}

static void push(struct walk *walk, uint64_t address, uint8_t flags) {
    unsigned section;
    uint8_t *at = flags_at(walk->discovery, address, &section);
    if (!at)
        return;
    *at |= flags;
    if (*at & walk->bit)
        return;
    if (walk->depth == walk->room) {
        size_t room = walk->room ? walk->room * 2 : 4096;
        uint64_t *grown = realloc(walk->stack, room * sizeof *grown);
        if (!grown) {
            walk->out_of_memory = true;
            return;
        }
        walk->stack = grown;
        walk->room = room;
    }
    walk->stack[walk->depth++] = address;
}

static bool relative_target(const struct insn *insn, uint64_t next, uint64_t *target) {
    const ZydisDecodedOperand *op = &insn->op[0];
    if (!insn->z.operand_count || op->type != ZYDIS_OPERAND_TYPE_IMMEDIATE || !op->imm.is_relative)
        return false;
    *target = next + (uint64_t)op->imm.value.s;
    return true;
}

/* In a loader, which has no symbols, functions that are only pointed to are found where their address is
 * taken: relative to the instruction, of a place in the head, where there is no data, or of what is aligned
 * as functions are and stands behind a function's end; or relative to a register that holds where it was
 * copied.
 */
static void follow_address(struct walk *walk, const struct insn *insn, uint64_t next) {
    const ZydisDecodedOperand *op = &insn->op[1];
    unsigned section;
    if (op->type != ZYDIS_OPERAND_TYPE_MEMORY || !op->mem.disp.has_displacement ||
        op->mem.index != ZYDIS_REGISTER_NONE)
        return;
    bool relative = op->mem.base == ZYDIS_REGISTER_RIP;
    uint64_t target = (uint64_t)op->mem.disp.value + (relative ? next : 0);
    if (!flags_at(walk->discovery, target, &section))
        return;
    const struct patched_section *in = &walk->patched->section[section];
    const uint8_t *bytes = in->bytes[walk->stage] + (target - in->address);
    bool behind_end = target > in->address && (bytes[-1] == 0xcc || bytes[-1] == 0x90 || bytes[-1] == 0xc3);
    bool head = section == 0, function = behind_end && target % LOADER_FUNCTION_ALIGN == 0;
    if (relative ? head || function : !head && insn_gpr(op->mem.base) >= 0)
        push(walk, target, CODE_ENTRY | CODE_FUNCTION);
}

/* Follow one instruction. False: execution does not go on behind it. */
static bool follow(struct walk *walk, const struct insn *insn, uint64_t next, uint8_t *behind) {
    uint64_t target;
    switch (insn->z.meta.category) {
    case ZYDIS_CATEGORY_CALL:
        if (relative_target(insn, next, &target))
            push(walk, target, CODE_ENTRY | CODE_FUNCTION);
        return true;
    case ZYDIS_CATEGORY_COND_BR:
        if (relative_target(insn, next, &target))
            push(walk, target, CODE_TARGET);
        return true;
    case ZYDIS_CATEGORY_UNCOND_BR:
        if (relative_target(insn, next, &target))
            push(walk, target, CODE_TARGET);
        return false;
    case ZYDIS_CATEGORY_RET:
    case ZYDIS_CATEGORY_SYSRET:
        return false;
    default:
        break;
    }
    switch (insn->z.mnemonic) {
    case ZYDIS_MNEMONIC_INT3:
    case ZYDIS_MNEMONIC_SYSEXIT:
        return false;
    case ZYDIS_MNEMONIC_LEA:
        if (walk->patched->image->loader)
            follow_address(walk, insn, next);
        return true;
    case ZYDIS_MNEMONIC_UD2: /* a warning is resumed behind it */
    case ZYDIS_MNEMONIC_UD1:
    case ZYDIS_MNEMONIC_UD0:
        *behind = CODE_ENTRY;
        return true;
    default:
        return true;
    }
}

static void run(struct walk *walk) {
    while (walk->depth && !walk->out_of_memory) {
        uint64_t address = walk->stack[--walk->depth];
        unsigned index;
        uint8_t *at = flags_at(walk->discovery, address, &index), behind = 0;
        const struct patched_section *section = at ? &walk->patched->section[index] : NULL;
        uint64_t offset = section ? address - section->address : 0;
        while (section && offset < section->size) {
            struct insn insn;
            at = walk->discovery->map[index] + offset;
            *at |= behind;
            if (*at & walk->bit)
                break;
            if (insn_decode(&insn, section->bytes[walk->stage] + offset, section->size - offset, 64) !=
                INSN_OK) {
                walk->discovery->undecodable++;
                break;
            }
            *at |= walk->bit;
            for (unsigned i = 0; i < insn.length; i++)
                at[i] |= CODE_COVERED;
            offset += insn.length;
            behind = 0;
            if (!follow(walk, &insn, section->address + offset, &behind))
                break;
        }
    }
}

static void push_symbols(struct walk *walk) {
    const struct image *image = walk->patched->image;
    for (size_t i = 0; i < image->symbols; i++) {
        const struct image_symbol *symbol = &image->symbol[i];
        char type = (char)(symbol->type | 32);
        /* Padding in front of functions has symbols of its own. */
        if ((type == 't' || type == 'w') && strncmp(symbol->name, "__pfx_", 6) != 0)
            push(walk, symbol->address, CODE_ENTRY | CODE_FUNCTION);
    }
    push(walk, image->entry, CODE_ENTRY | CODE_FUNCTION);
}

static int32_t signed32(const uint8_t *at) {
    int32_t value;
    memcpy(&value, at, 4);
    return value;
}

static void push_fixups(struct walk *walk) {
    struct image_table table =
        image_table(walk->patched->image, "__ex_table", "__start___ex_table", "__stop___ex_table");
    for (size_t i = 0; i + EXTABLE_ENTRY <= table.size; i += EXTABLE_ENTRY)
        push(walk, table.address + i + 4 + (uint64_t)(int64_t)signed32(table.data + i + 4), CODE_ENTRY);
}

/* What the choices lead to, and what lies behind them. */
static void push_choices(struct walk *walk) {
    const struct patched *patched = walk->patched;
    for (size_t i = 0; i < patched->choices; i++) {
        const struct patch_choice *choice = &patched->choice[i];
        unsigned section;
        const uint8_t *at = flags_at(walk->discovery, choice->address, &section);
        if (!at || !(*at & CODE_COVERED))
            continue;
        push(walk, choice->address + choice->length, 0);
        for (unsigned k = 0; k < choice->options; k++) {
            const uint8_t *bytes = patched->option_bytes + choice->bytes + (size_t)k * choice->length;
            struct insn insn;
            uint64_t target;
            for (unsigned used = 0; used < choice->length; used += insn.length) {
                if (insn_decode(&insn, bytes + used, choice->length - used, 64) != INSN_OK)
                    break;
                if (relative_target(&insn, choice->address + used + insn.length, &target))
                    push(walk, target, CODE_ENTRY);
            }
        }
    }
}

/* ORC entries stand for the code from their address on; without a stack pointer they mark what is none. */
static void push_unwind(struct walk *walk) {
    const struct image *image = walk->patched->image;
    struct image_table places =
        image_table(image, ".orc_unwind_ip", "__start_orc_unwind_ip", "__stop_orc_unwind_ip");
    struct image_table entries = image_table(image, ".orc_unwind", "__start_orc_unwind", "__stop_orc_unwind");
    size_t count = places.size / 4 < entries.size / ORC_ENTRY ? places.size / 4 : entries.size / ORC_ENTRY;
    for (size_t i = 0; i < count; i++) {
        uint64_t address = places.address + i * 4 + (uint64_t)(int64_t)signed32(places.data + i * 4);
        unsigned section;
        const uint8_t *at = flags_at(walk->discovery, address, &section);
        if (at && !(*at & CODE_COVERED) && entries.data[i * ORC_ENTRY + 4] & 15)
            push(walk, address, CODE_ENTRY);
    }
}

static void walk_text(struct walk *walk, enum stage stage, uint8_t bit) {
    walk->stage = stage;
    walk->bit = bit;
    push_symbols(walk);
    push_fixups(walk);
    run(walk);
    for (unsigned round = 0; round < CHOICE_ROUNDS; round++) {
        push_choices(walk);
        run(walk);
    }
    push_unwind(walk);
    run(walk);
}

static void count(struct discovery *discovery) {
    const struct patched *patched = discovery->patched;
    for (unsigned i = 0; i < patched->sections; i++) {
        const struct patched_section *section = &patched->section[i];
        const uint8_t *map = discovery->map[i];
        if (!map)
            continue;
        discovery->text_bytes += section->size;
        for (uint64_t at = 0; at < section->size; at++) {
            bool used = map[at] & (CODE_READY | CODE_EARLY);
            discovery->instructions += map[at] & CODE_READY ? 1 : 0;
            discovery->entries += used && map[at] & (CODE_ENTRY | CODE_TARGET);
            discovery->functions += used && map[at] & CODE_FUNCTION;
            if (map[at] & CODE_COVERED)
                discovery->covered_bytes++;
            else if (section->bytes[STAGE_READY][at] == 0xcc || section->bytes[STAGE_READY][at] == 0x90)
                discovery->padding_bytes++;
        }
    }
}

int discovery_create(struct discovery *discovery, const struct patched *patched) {
    struct walk walk = {.discovery = discovery, .patched = patched};
    *discovery = (struct discovery){.patched = patched};
    discovery->map = calloc(patched->sections ? patched->sections : 1, sizeof *discovery->map);
    walk.out_of_memory = !discovery->map;
    for (unsigned i = 0; i < patched->sections && !walk.out_of_memory; i++) {
        if (!patched->section[i].code)
            continue;
        discovery->map[i] = calloc(1, patched->section[i].size);
        walk.out_of_memory = !discovery->map[i];
    }
    if (!walk.out_of_memory) {
        walk_text(&walk, STAGE_READY, CODE_READY);
        walk_text(&walk, STAGE_EARLY, CODE_EARLY);
        count(discovery);
    }
    free(walk.stack);
    if (!walk.out_of_memory)
        return 0;
    diag_error("image '%s': out of memory", patched->image->path);
    discovery_destroy(discovery);
    return -ENOMEM;
}

void discovery_destroy(struct discovery *discovery) {
    for (unsigned i = 0; discovery->map && i < discovery->patched->sections; i++)
        free(discovery->map[i]);
    free(discovery->map);
    *discovery = (struct discovery){0};
}
