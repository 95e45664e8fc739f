/* A guest function's shape: its instructions, its blocks, and the regions that they are cut into.
 *
 * A block is the head of a region if it may be entered from outside (the function's start, behind a call,
 * behind what C does), or if blocks of different regions lead to it. All others belong to the one region that
 * leads to them.
 */
#include "sbt/llvm_private.h"

#include <stdlib.h>
#include <string.h>

int64_t lift_target(const struct item *item) {
    return (int64_t)item->guest + item->insn.length + item->insn.op[0].imm.value.s;
}

static bool in_range(const struct lifter *l, int64_t offset) {
    return offset >= 0 && offset < (int64_t)l->request->length;
}

static bool ends_block(const struct item *item) {
    return item->kind >= KIND_JCC;
}

/* Does the template do this one, and LLVM goes on behind it? */
static bool is_left_out(const struct item *item) {
    switch (item->kind) {
    case KIND_CPUID:
        return true;
    case KIND_JCXZ:
        return item->insn.z.address_width != 64;
    case KIND_COPY:
    case KIND_MEMORY:
        return native_may_fault(&item->insn);
    default:
        return false;
    }
}

struct work {
    uint32_t *offset;
    uint32_t count;
};

static void reach(struct lifter *l, struct work *work, int64_t offset, uint8_t as) {
    if (!in_range(l, offset))
        return;
    if (!l->leader[offset])
        work->offset[work->count++] = (uint32_t)offset;
    l->leader[offset] |= as;
}

static void reach_from(struct lifter *l, struct work *work, const struct item *item) {
    int64_t next = (int64_t)item->guest + item->insn.length;
    switch (item->kind) {
    case KIND_JCC:
    case KIND_JCXZ:
        reach(l, work, lift_target(item), LIFT_LEADER);
        reach(l, work, next, LIFT_LEADER);
        break;
    case KIND_JMP:
        reach(l, work, lift_target(item), LIFT_LEADER);
        break;
    case KIND_CALL:
        if (in_range(l, lift_target(item)))
            reach(l, work, lift_target(item), LIFT_LEADER | LIFT_HEAD);
        reach(l, work, next, LIFT_LEADER | LIFT_HEAD);
        break;
    case KIND_CALL_INDIRECT:
    case KIND_HELPER:
        reach(l, work, next, LIFT_LEADER | LIFT_HEAD);
        break;
    case KIND_INTERPRET:
        if (item->insn.z.mnemonic != ZYDIS_MNEMONIC_UD2 && item->insn.z.mnemonic != ZYDIS_MNEMONIC_INT3)
            reach(l, work, next, LIFT_LEADER | LIFT_HEAD);
        break;
    default:
        break;
    }
}

static bool decode_from(struct lifter *l, struct work *work, uint32_t offset) {
    struct unit *unit = l->unit;
    while (offset < l->request->length && l->at[offset] == NO_INDEX) {
        if (l->items == LIFT_INSNS_MAX) {
            l->refusal = "too many instructions";
            return false;
        }
        struct item *item = &l->item[l->items];
        if (insn_decode(&item->insn, l->request->bytes + offset, l->request->length - offset, 64) != INSN_OK)
            return true; /* execution does not get here, or leaves for what is here */
        item->guest = (uint16_t)offset;
        item->helper = HELPER_NONE;
        item->kind = unit_classify(unit, item);
        l->at[offset] = l->items++;
        offset += item->insn.length;
        if (is_left_out(item)) {
            reach(l, work, offset, LIFT_LEADER | LIFT_HEAD);
            return true;
        }
        if (ends_block(item)) {
            reach_from(l, work, item);
            return true;
        }
    }
    return true;
}

static bool decode_all(struct lifter *l) {
    struct work work = {.offset = lift_allocate(l, (l->request->length + 1) * sizeof *work.offset)};
    reach(l, &work, 0, LIFT_LEADER | LIFT_HEAD);
    while (work.count)
        if (!decode_from(l, &work, work.offset[--work.count]))
            return false;
    if (!l->items)
        l->refusal = "no instruction";
    return l->items > 0;
}

/* Blocks from leader to leader, in the order of their addresses. A leader that holds no instruction is none.
 */
static bool make_blocks(struct lifter *l) {
    for (uint32_t offset = 0; offset < l->request->length; offset++) {
        if (!l->leader[offset] || l->at[offset] == NO_INDEX)
            continue;
        if (l->blocks == LIFT_BLOCKS_MAX) {
            l->refusal = "too many blocks";
            return false;
        }
        struct lift_block *block = &l->block[l->blocks++];
        *block = (struct lift_block){.offset = offset,
                                     .first = l->at[offset],
                                     .region = NO_INDEX,
                                     .head = l->leader[offset] & LIFT_HEAD};
        for (uint32_t at = offset; at < l->request->length && l->at[at] != NO_INDEX;) {
            const struct item *item = &l->item[l->at[at]];
            if (at != offset && l->leader[at])
                break;
            block->count++;
            at += item->insn.length;
            if (ends_block(item) || is_left_out(item))
                break;
        }
    }
    return true;
}

uint32_t lift_block_at(const struct lifter *l, int64_t offset) {
    uint32_t low = 0, high = l->blocks;
    while (low < high) {
        uint32_t middle = low + (high - low) / 2;
        if (l->block[middle].offset < offset)
            low = middle + 1;
        else
            high = middle;
    }
    return low < l->blocks && l->block[low].offset == offset ? low : NO_INDEX;
}

/* The instructions of a block follow each other in memory, but not always in l->item. */
static const struct item *last_item(const struct lifter *l, const struct lift_block *block) {
    const struct item *item = &l->item[block->first];
    for (uint32_t i = 1; i < block->count; i++)
        item = &l->item[l->at[item->guest + item->insn.length]];
    return item;
}

static void add_next(const struct lifter *l, struct lift_block *block, int64_t offset) {
    uint32_t to = lift_block_at(l, offset);
    if (to == NO_INDEX || (block->nexts && block->next[0] == to))
        return;
    block->next[block->nexts++] = to;
}

static void find_edges(struct lifter *l) {
    for (uint32_t i = 0; i < l->blocks; i++) {
        struct lift_block *block = &l->block[i];
        const struct item *last = last_item(l, block);
        int64_t behind = (int64_t)last->guest + last->insn.length;
        if (is_left_out(last))
            continue;
        switch (last->kind) {
        case KIND_JCC:
        case KIND_JCXZ:
            add_next(l, block, lift_target(last));
            add_next(l, block, behind);
            break;
        case KIND_JMP:
            add_next(l, block, lift_target(last));
            break;
        default:
            if (!ends_block(last))
                add_next(l, block, behind);
            break;
        }
    }
}

/* Spread regions over edges until nothing changes: a block that two of them reach becomes a head. */
static void find_regions(struct lifter *l) {
    for (uint32_t i = 0; i < l->blocks; i++)
        if (l->block[i].head)
            l->block[i].region = i;
    for (bool again = true; again;) {
        again = false;
        for (uint32_t i = 0; i < l->blocks; i++) {
            const struct lift_block *block = &l->block[i];
            if (block->region == NO_INDEX)
                continue;
            for (unsigned k = 0; k < block->nexts; k++) {
                struct lift_block *next = &l->block[block->next[k]];
                if (next->head || next->region == block->region)
                    continue;
                again = true;
                if (next->region == NO_INDEX) {
                    next->region = block->region;
                    continue;
                }
                next->head = true;
                next->region = block->next[k];
                /* What it had handed on is found anew. */
                for (uint32_t n = 0; n < l->blocks; n++)
                    l->block[n].region = l->block[n].head ? n : NO_INDEX;
            }
        }
    }
    for (uint32_t i = 0; i < l->blocks; i++)
        for (unsigned k = 0; k < l->block[i].nexts; k++) {
            struct lift_block *next = &l->block[l->block[i].next[k]];
            next->preds += next->region == l->block[i].region;
        }
    for (uint32_t i = 0; i < l->blocks; i++)
        l->block[i].preds += l->block[i].head; /* from the function's entry */
}

/* Whether a block reads the flags that it starts with; *through: they reach its end. */
static bool reads_flags(const struct lifter *l, const struct lift_block *block, bool *through) {
    const struct item *item = &l->item[block->first];
    *through = false;
    for (uint32_t i = 0; i < block->count; i++) {
        uint32_t read = item->insn.flags_read & FLAGS_ARITHMETIC;
        uint32_t written = item->insn.flags_written & FLAGS_ARITHMETIC;
        if (read || item->kind == KIND_PUSHF || (written && written != FLAGS_ARITHMETIC))
            return true;
        if (written)
            return false;
        if (i + 1 < block->count)
            item = &l->item[l->at[item->guest + item->insn.length]];
    }
    *through = true;
    return false;
}

static void find_wanted_flags(struct lifter *l) {
    for (bool again = true; again;) {
        again = false;
        for (uint32_t i = l->blocks; i-- > 0;) {
            struct lift_block *block = &l->block[i];
            bool through, wanted = reads_flags(l, block, &through);
            for (unsigned k = 0; through && k < block->nexts; k++)
                wanted |= l->block[block->next[k]].flags_wanted;
            again |= wanted != block->flags_wanted;
            block->flags_wanted = wanted;
        }
    }
}

bool lift_discover(struct lifter *l) {
    memset(l->at, 0xff, l->request->length * sizeof *l->at);
    memset(l->leader, 0, l->request->length);
    l->items = l->blocks = 0;
    if (!decode_all(l) || !make_blocks(l))
        return false;
    find_edges(l);
    find_regions(l);
    find_wanted_flags(l);
    return true;
}
