/* Shared checks: several accesses off one base register, one TLB probe.
 *
 * The first access of a group probes for the whole range [lo, hi) that the group's accesses touch off the
 * base register, within one page, and keeps the entry's addend in a scratch; every further access is the
 * guest's own instruction with that scratch as its index register: [base + addend + disp]. The base may be
 * moved by constants meanwhile (PUSH, POP, ADD).
 *
 * Exactness: the probe asks for what the first access does, on the page that the first access is on, so it
 * sets A or D only where that access does so itself. Writes join only groups that a write began. If the probe
 * cannot be met (the range crosses a page, some fault waits in it), the block is left at that instruction for
 * a translation of the rest without groups.
 */
#include "dbt/emit.h"

#define GROUP_MAX_BYTES 1024

void group_reset(struct unit *unit) {
    for (unsigned i = 0; i < GROUPS; i++)
        unit->group[i] = (struct group){.reg = -1, .base = -1, .index = -1};
    unit->next_group = 0;
}

void group_forget(struct unit *unit) {
    for (unsigned i = 0; i < GROUPS; i++)
        unit->group[i].base = -1;
}

bool group_operand(const struct unit *unit, const struct item *item, struct use *use) {
    const struct insn *insn = &item->insn;
    const ZydisDecodedOperand *op = &insn->op[insn->memory];
    unsigned segment = insn_segment(insn, op);
    if (!unit->code64 || item->disp_field >= 0 || insn->z.address_width != 64 || segment == SEG_FS ||
        segment == SEG_GS || insn->traits & (INSN_MASKED | INSN_HIGH_BYTE))
        return false;
    *use = (struct use){.base = insn_gpr(op->mem.base),
                        .index = insn_gpr(op->mem.index),
                        .scale = op->mem.scale == 8   ? 3
                                 : op->mem.scale == 4 ? 2
                                 : op->mem.scale == 2 ? 1
                                                      : 0,
                        .disp = op->mem.disp.has_displacement ? (int32_t)op->mem.disp.value : 0,
                        .size = op->size / 8u,
                        .access = op->actions & ZYDIS_OPERAND_ACTION_MASK_WRITE ? VMEM_WRITE : VMEM_READ};
    return use->base >= 0;
}

static bool item_use(const struct unit *unit, const struct item *item, struct use *use) {
    switch (item->kind) {
    case KIND_MEMORY:
        return group_operand(unit, item, use);
    case KIND_PUSH:
    case KIND_PUSHF:
    case KIND_CALL:
    case KIND_RETPOLINE:
        *use = (struct use){.base = GPR_RSP, .index = -1, .disp = -8, .size = 8, .access = VMEM_WRITE};
        return item->insn.memory < 0;
    case KIND_POP:
    case KIND_RET:
        *use = (struct use){.base = GPR_RSP, .index = -1, .disp = 0, .size = 8, .access = VMEM_READ};
        return true;
    default:
        return false;
    }
}

static bool same_place(const struct use *one, const struct use *other) {
    return one->base == other->base && one->index == other->index &&
           (one->index < 0 || one->scale == other->scale);
}

bool item_steps(const struct item *item, int reg, int32_t *delta) {
    const struct insn *insn = &item->insn;
    int64_t amount;
    if ((item->kind != KIND_COPY && item->kind != KIND_LEA) || insn->z.operand_width != 64 ||
        insn->op[0].type != ZYDIS_OPERAND_TYPE_REGISTER || insn_gpr(insn->op[0].reg.value) != reg)
        return false;
    const ZydisDecodedOperand *from = &insn->op[1];
    switch (insn->z.mnemonic) {
    case ZYDIS_MNEMONIC_ADD:
    case ZYDIS_MNEMONIC_SUB:
        if (from->type != ZYDIS_OPERAND_TYPE_IMMEDIATE)
            return false;
        amount = insn->z.mnemonic == ZYDIS_MNEMONIC_ADD ? from->imm.value.s : -from->imm.value.s;
        break;
    case ZYDIS_MNEMONIC_INC:
        amount = 1;
        break;
    case ZYDIS_MNEMONIC_DEC:
        amount = -1;
        break;
    case ZYDIS_MNEMONIC_LEA:
        if (insn->z.address_width != 64 || insn_gpr(from->mem.base) != reg ||
            from->mem.index != ZYDIS_REGISTER_NONE)
            return false;
        amount = from->mem.disp.has_displacement ? from->mem.disp.value : 0;
        break;
    default:
        return false;
    }
    *delta = (int32_t)amount;
    return amount >= -GROUP_MAX_BYTES && amount <= GROUP_MAX_BYTES;
}

/* Do the scratches that hold addends keep them over an item, and do these go on to hold? C, which does the
 * rare cases of some, leaves R8 to R11 as it likes; behind CLAC the pages of ring 3 are shut. */
static bool keeps_addends(enum kind kind) {
    return kind < KIND_HELPER && kind != KIND_CPUID && kind != KIND_REP && kind != KIND_CLAC;
}

/* What an item does to a base register: true when it only adds *delta (perhaps 0). */
static bool register_moves(const struct item *item, int base, int32_t *delta) {
    const struct insn *insn = &item->insn;
    *delta = 0;
    if (base == GPR_RSP) {
        if (item->kind == KIND_PUSH || item->kind == KIND_PUSHF || item->kind == KIND_CALL) {
            *delta = -8;
            return true;
        }
        if (item->kind == KIND_POP) {
            *delta = 8;
            return insn_gpr(insn->op[0].reg.value) != GPR_RSP;
        }
        if (item->kind == KIND_LEAVE)
            return false;
    }
    if (!(insn->gprs_written >> base & 1))
        return keeps_addends(item->kind);
    return item_steps(item, base, delta);
}

/* The same for base and index together; the index must stay. */
static bool item_moves(const struct item *item, int base, int index, int32_t *delta) {
    int32_t ignored;
    if (index >= 0 && (item->insn.gprs_written >> index & 1 || !register_moves(item, index, &ignored)))
        return false;
    if (index >= 0 && item->insn.gprs_written >> base & 1)
        return false;
    return register_moves(item, base, delta);
}

/* May a read at item be checked as the write that a later item makes to the same place? Only when that write
 * is sure to happen: nothing between them leaves the block or touches other memory. */
static bool write_follows(const struct unit *unit, const struct item *item, const struct use *read) {
    for (const struct item *later = item + 1; later < unit->item + unit->items; later++) {
        struct use use;
        int32_t delta;
        if (item_use(unit, later, &use)) {
            if (later->kind == KIND_MEMORY && same_place(read, &use) && use.access == VMEM_WRITE &&
                use.disp == read->disp && use.size <= read->size)
                return true;
            return false;
        }
        if ((later->kind != KIND_COPY && later->kind != KIND_LEA && later->kind != KIND_NOP) ||
            later->insn.z.mnemonic == ZYDIS_MNEMONIC_DIV || later->insn.z.mnemonic == ZYDIS_MNEMONIC_IDIV ||
            !item_moves(later, read->base, read->index, &delta) || delta)
            return false;
    }
    return false;
}

/* How far would a group begun by item reach? The number of its accesses. */
static unsigned measure(const struct unit *unit, const struct item *item, const struct use *first,
                        int32_t *lo, int32_t *hi) {
    unsigned members = 0;
    int32_t moved = 0, delta;
    *lo = first->disp;
    *hi = first->disp + (int32_t)first->size;
    for (; item < unit->item + unit->items; item++) {
        struct use use;
        if (item_use(unit, item, &use) && same_place(&use, first) &&
            (first->access == VMEM_WRITE || use.access == VMEM_READ)) {
            int32_t from = use.disp + moved, to = from + (int32_t)use.size;
            int32_t new_lo = from < *lo ? from : *lo, new_hi = to > *hi ? to : *hi;
            if (new_hi - new_lo <= GROUP_MAX_BYTES) {
                *lo = new_lo;
                *hi = new_hi;
                members++;
            }
        }
        if (!item_moves(item, first->base, first->index, &delta))
            break;
        moved += delta;
    }
    return members;
}

unsigned group_count(const struct unit *unit) {
    unsigned count = 0;
    uint16_t bases = 0;
    for (unsigned i = 0; i < unit->items && count < GROUPS; i++) {
        struct use use;
        int32_t lo, hi;
        if (!item_use(unit, &unit->item[i], &use) || bases >> use.base & 1)
            continue;
        if (use.access == VMEM_READ && write_follows(unit, &unit->item[i], &use))
            use.access = VMEM_WRITE;
        if (measure(unit, &unit->item[i], &use, &lo, &hi) < 2)
            continue;
        bases |= (uint16_t)(1u << use.base);
        count++;
    }
    return count;
}

static struct group *find(struct unit *unit, const struct use *use) {
    for (unsigned i = 0; i < GROUPS; i++) {
        struct group *group = &unit->group[i];
        if (group->reg >= 0 && group->base == use->base && group->index == use->index &&
            (use->index < 0 || group->scale == use->scale) && use->disp >= group->lo &&
            use->disp + (int32_t)use->size <= group->hi &&
            (group->access == VMEM_WRITE || use->access == VMEM_READ))
            return group;
    }
    return NULL;
}

/* The slot to begin a group in: an idle one, else in turn. NULL: no scratch for one. */
static struct group *slot(struct unit *unit, int base) {
    for (unsigned i = 0; i < GROUPS; i++)
        if (unit->group[i].reg >= 0 && unit->group[i].base == base && unit->group[i].base >= 0)
            return &unit->group[i];
    for (unsigned i = 0; i < GROUPS; i++)
        if (unit->group[i].reg >= 0 && unit->group[i].base < 0)
            return &unit->group[i];
    struct group *group = &unit->group[unit->next_group++ % GROUPS];
    if (group->reg < 0)
        group = &unit->group[0];
    return group->reg < 0 ? NULL : group;
}

struct site *group_plain_site(struct unit *unit, const struct item *item) {
    struct site *plain = unit_site(unit, SITE_UNGROUPED, item);
    plain->flags_saved = true;
    return plain;
}

void group_site(struct unit *unit, const struct item *item, struct site *site) {
    site->group = true;
    if (unit->colds)
        unit->cold[unit->colds - 1].ungrouped = unit_site_index(unit, group_plain_site(unit, item));
}

static struct group *begin(struct unit *unit, const struct item *item, const struct use *wanted) {
    int32_t lo, hi;
    struct use checked = *wanted, *use = &checked;
    if (use->access == VMEM_READ && item->kind == KIND_MEMORY && write_follows(unit, item, use))
        use->access = VMEM_WRITE;
    if (measure(unit, item, use, &lo, &hi) < 2)
        return NULL;
    struct group *group = slot(unit, use->base);
    if (!group)
        return NULL;
    struct code_buffer *c = &unit->code;
    emit_flags_lose(unit, item);
    bool stack = use->base == GPR_RSP && use->index < 0;
    if (stack || memo_suits(unit, item, use)) {
        struct memo_range range = {.use = *use,
                                   .memo = stack ? unit_stack_memo(unit) : memo_next(unit, use->access),
                                   .addend = (int8_t)group->reg,
                                   .group = true};
        range.use.disp = lo;
        range.use.size = (unsigned)(hi - lo);
        emit_memo_probe(unit, item, &range);
    } else {
        asm_lea(c, true, unit->t0, use->base, use->index, use->scale, lo);
        group_site(
            unit, item,
            emit_probe(unit, item, (unsigned)(hi - lo), use->access, (uint32_t)(c->at - unit->dbt->rw)));
        if (use->index < 0) {
            asm_load(c, group->reg, unit->t1, TLB_ENTRY(addend));
        } else {
            /* Two registers address the guest's operand already: fold its index into the addend. */
            asm_lea(c, true, group->reg, -1, use->index, use->scale, 0);
            asm_alu_mem(c, ASM_ADD, group->reg, unit->t1, TLB_ENTRY(addend));
        }
    }
    group->base = use->base;
    group->index = use->index;
    group->scale = use->scale;
    group->lo = lo;
    group->hi = hi;
    group->access = use->access;
    return group;
}

bool group_cover(struct unit *unit, const struct item *item, const struct use *use,
                 struct host_memory *memory) {
    if (!unit->code64)
        return false;
    struct group *group = find(unit, use);
    if (!group) {
        emit_rsp_settle(unit);
        group = begin(unit, item, use);
    }
    if (!group)
        return false;
    *memory = (struct host_memory){.base = (int8_t)use->base,
                                   .index = (int8_t)group->reg,
                                   .disp = use->disp + (use->base == GPR_RSP ? unit->rsp_lag : 0)};
    return true;
}

void group_after(struct unit *unit, const struct item *item) {
    for (unsigned i = 0; i < GROUPS; i++) {
        struct group *group = &unit->group[i];
        int32_t delta;
        if (group->base < 0)
            continue;
        if (!item_moves(item, group->base, group->index, &delta)) {
            group->base = -1;
            continue;
        }
        group->lo -= delta;
        group->hi -= delta;
    }
}
