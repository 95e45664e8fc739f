/* Portable units of several blocks: a function, or a part of one, translated as a whole.
 *
 * Every instruction that the entries lead to inside the range is translated once. Blocks begin at the
 * entries, at targets of direct branches, and behind what leaves for C or another function; inside they are
 * emitted as blocks by themselves are (translate.c), each with scratches of its own. What leads from one to
 * another is a direct jump under the convention that holds between units, except that a block which the code
 * before it runs into is just run into.
 *
 *   bodies, in the order of guest addresses; an entry that nothing runs into has the way in with the flags in
 *           the other place in front
 *   cold parts, block by block
 *   stubs that move the flags to where a block wants them, for jumps that have them elsewhere
 *
 * Interrupts are looked for at entries and at targets of backward branches, so on every cycle.
 */
#include "dbt/portable_private.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

/* Of a byte of the range. */
#define AT_SEEN 1u   /* an instruction begins here */
#define AT_LEADER 2u /* a block begins here */
#define AT_ENTRY 4u
#define AT_HEAD 8u  /* a backward branch leads here */
#define AT_STOP 16u /* not to be translated */

struct leader {
    uint32_t guest;
    bool entry, head, body_saved;
    bool falls, indifferent; /* it goes on in the next block; it leaves the flags alone */
    struct item *item;
    unsigned items;
    uint64_t end_rip;
    int t0, t1, t2, group_reg[GROUPS];
    uint16_t used, spilled;
    uint8_t *body;  /* with the flags where the body wants them */
    uint8_t *other; /* with the flags in the other place; NULL: not made yet */
    uint32_t first_cold, colds;
    uint32_t first_pc, pcs; /* of dbt->pc */
};

/* A rel32 that is to lead to a block. */
struct pending {
    uint8_t *place;
    uint32_t leader;
    bool saved; /* where the flags are */
};

struct function {
    uint32_t length;
    uint8_t at[FUNCTION_GUEST_MAX];
    uint16_t number[FUNCTION_GUEST_MAX]; /* 1 + number of the block that begins there */
    uint32_t stack[FUNCTION_GUEST_MAX];
    struct leader leader[FUNCTION_GUEST_MAX];
    uint32_t leaders, current;
    bool fell; /* the last body runs into the next block */
    struct item *item;
    uint32_t items, item_room;
    struct cold *cold;
    uint32_t colds, cold_room;
    struct pending *pending;
    uint32_t pendings, pending_room;
};

struct function *function_create(void) {
    return calloc(1, sizeof(struct function));
}

void function_destroy(struct function *function) {
    if (!function)
        return;
    free(function->item);
    free(function->cold);
    free(function->pending);
    free(function);
}

static bool make_room(void **array, uint32_t *room, uint32_t needed, size_t element) {
    if (needed <= *room)
        return true;
    uint32_t wanted = needed < 256 ? 256 : needed * 2;
    void *bigger = realloc(*array, wanted * element);
    if (!bigger)
        return false;
    *array = bigger;
    *room = wanted;
    return true;
}

/* -- Where blocks begin -- */

/* Is the branch's displacement a field? Then it leads out of the function. */
static bool target_is_field(const struct unit *unit, uint32_t next) {
    for (unsigned i = 0; i < unit->fields && unit->field[i].offset < next; i++)
        if (unit->field[i].offset + 4u == next)
            return true;
    return false;
}

static bool branch_offset(const struct unit *unit, const struct insn *insn, uint32_t next, uint32_t *target) {
    const struct function *function = unit->function;
    const ZydisDecodedOperand *op = &insn->op[0];
    if (target_is_field(unit, next) || !insn->z.operand_count || op->type != ZYDIS_OPERAND_TYPE_IMMEDIATE ||
        !op->imm.is_relative)
        return false;
    uint64_t to = next + (uint64_t)op->imm.value.s;
    *target = (uint32_t)to;
    return to < function->length;
}

static void push(struct function *function, uint32_t *depth, uint32_t at, uint8_t flags) {
    bool seen = function->at[at] & (AT_SEEN | AT_LEADER);
    function->at[at] |= flags;
    if (!seen)
        function->stack[(*depth)++] = at;
}

/* Go through the code from what is on the stack. */
static void walk(struct unit *unit, uint32_t depth) {
    struct function *function = unit->function;
    const uint8_t *bytes = unit->bytes;
    while (depth) {
        uint32_t at = function->stack[--depth], target;
        while (at < function->length && !(function->at[at] & (AT_SEEN | AT_STOP))) {
            struct insn insn;
            if (insn_decode(&insn, bytes + at, function->length - at, 64) != INSN_OK)
                break;
            function->at[at] |= AT_SEEN;
            uint32_t next = at + insn.length;
            bool on = true;
            switch (insn.z.meta.category) {
            case ZYDIS_CATEGORY_CALL:
                if (next < function->length)
                    function->at[next] |= AT_LEADER | AT_ENTRY;
                if (branch_offset(unit, &insn, next, &target))
                    push(function, &depth, target, AT_LEADER);
                break;
            case ZYDIS_CATEGORY_UNCOND_BR:
                on = false;
                /* fall through */
            case ZYDIS_CATEGORY_COND_BR:
                if (branch_offset(unit, &insn, next, &target))
                    push(function, &depth, target, target <= at ? AT_LEADER | AT_HEAD | AT_ENTRY : AT_LEADER);
                break;
            case ZYDIS_CATEGORY_RET:
            case ZYDIS_CATEGORY_SYSRET:
                on = false;
                break;
            default:
                on = insn.z.mnemonic != ZYDIS_MNEMONIC_INT3;
                break;
            }
            if (!on)
                break;
            at = next;
        }
    }
}

static uint32_t next_stop(const struct function *function, uint32_t at) {
    do
        at++;
    while (at < function->length && !(function->at[at] & (AT_LEADER | AT_STOP)));
    return at;
}

/* The offset behind the first item that leaves for C and is come back from, if it is not the last. */
static uint32_t behind_helper(const struct unit *unit) {
    for (unsigned i = 0; i + 1 < unit->items; i++)
        if (unit->item[i].kind == KIND_HELPER)
            return unit->item[i + 1].guest;
    return 0;
}

static int add_leader(struct unit *unit, uint32_t at) {
    struct function *function = unit->function;
    unit->from = at;
    unit->limit = next_stop(function, at);
    if (!unit_gather(unit)) {
        function->at[at] &= (uint8_t) ~(AT_LEADER | AT_ENTRY);
        return 0;
    }
    uint32_t helper = behind_helper(unit);
    if (helper) {
        unit->limit = helper;
        if (!unit_gather(unit))
            return -EINVAL;
    }
    if (!make_room((void **)&function->item, &function->item_room, function->items + unit->items,
                   sizeof *function->item))
        return -ENOMEM;
    memcpy(function->item + function->items, unit->item, unit->items * sizeof *unit->item);
    enum kind last = unit->item[unit->items - 1].kind;
    enum flags_wanted wanted = unit_flags_wanted(unit);
    struct leader *leader = &function->leader[function->leaders++];
    *leader = (struct leader){.guest = at,
                              .entry = function->at[at] & AT_ENTRY,
                              .head = function->at[at] & AT_HEAD,
                              .body_saved = wanted != FLAGS_WANTED_LIVE,
                              .indifferent = wanted == FLAGS_WANTED_EITHER,
                              .falls = last < KIND_JMP,
                              .items = unit->items,
                              .end_rip = unit->end_rip,
                              .t0 = unit->t0,
                              .t1 = unit->t1,
                              .t2 = unit->t2,
                              .used = unit->used,
                              .spilled = unit->spilled};
    for (unsigned i = 0; i < GROUPS; i++)
        leader->group_reg[i] = unit->group[i].reg;
    function->items += unit->items;
    function->number[at] = (uint16_t)function->leaders;
    uint32_t end = (uint32_t)(unit->end_rip - unit->block->rip);
    bool from_c = last == KIND_HELPER || last == KIND_HELPER_END || last == KIND_INTERPRET;
    if (end < function->length && function->at[end] & AT_SEEN && (from_c || last < KIND_JMP))
        function->at[end] |= from_c ? AT_LEADER | AT_ENTRY : AT_LEADER;
    return 0;
}

static int find_leaders(struct unit *unit, const struct portable_function *request) {
    struct function *function = unit->function;
    uint32_t depth = 0;
    function->leaders = function->items = function->colds = function->pendings = 0;
    function->length = request->code.length;
    memset(function->at, 0, function->length);
    memset(function->number, 0, function->length * sizeof *function->number);
    for (unsigned i = 0; i < request->stops; i++)
        for (uint32_t at = request->stop[i].from; at < request->stop[i].to && at < function->length; at++)
            function->at[at] |= AT_STOP;
    for (unsigned i = 0; i < request->entries; i++)
        if (request->entry[i] < function->length)
            push(function, &depth, request->entry[i], AT_LEADER | AT_ENTRY);
    if (!request->entries)
        push(function, &depth, 0, AT_LEADER | AT_ENTRY);
    walk(unit, depth);
    for (uint32_t at = 0; at < function->length; at++) {
        if (!(function->at[at] & AT_LEADER) || function->at[at] & AT_STOP)
            continue;
        int result = add_leader(unit, at);
        if (result)
            return result;
    }
    for (uint32_t i = function->leaders;
         i-- > 1;) { /* what leaves flags alone hands them on where they are wanted */
        struct leader *before = &function->leader[i - 1];
        if (before->falls && before->indifferent &&
            before->end_rip == unit->block->rip + function->leader[i].guest) {
            before->body_saved = function->leader[i].body_saved;
            before->indifferent = function->leader[i].indifferent;
        }
    }
    struct item *item = function->item;
    for (uint32_t i = 0; i < function->leaders; i++) {
        function->leader[i].item = item;
        item += function->leader[i].items;
    }
    return function->leaders ? 0 : -ENOENT;
}

/* -- Jumps -- */

static struct leader *leader_at(const struct unit *unit, uint64_t target) {
    struct function *function = unit->function;
    uint64_t offset = target - unit->block->rip;
    return offset < function->length && function->number[offset]
               ? &function->leader[function->number[offset] - 1]
               : NULL;
}

static void lead_to(struct unit *unit, uint8_t *place, const struct leader *leader, bool saved) {
    struct function *function = unit->function;
    if (unit->code.overflow)
        return;
    if (leader->body && saved == leader->body_saved) {
        asm_patch_rel32(place, leader->body);
        return;
    }
    if (!make_room((void **)&function->pending, &function->pending_room, function->pendings + 1,
                   sizeof *function->pending)) {
        unit->code.overflow = true;
        return;
    }
    function->pending[function->pendings++] =
        (struct pending){.place = place, .leader = (uint32_t)(leader - function->leader), .saved = saved};
}

/* Put the flags where the body does not want them to where it does. */
static void emit_other_flags(struct unit *unit, bool body_saved) {
    if (body_saved)
        emit_save_flags(unit, BOUNDARY_SCRATCH);
    else
        emit_restore_flags(unit, BOUNDARY_SCRATCH);
}

bool function_jump(struct unit *unit, uint64_t target) {
    struct function *function = unit->function;
    const struct leader *leader = leader_at(unit, target);
    if (!leader)
        return false;
    emit_reload(unit);
    if (unit->flags_saved != leader->body_saved)
        emit_other_flags(unit, leader->body_saved);
    if (leader == &function->leader[function->current] + 1)
        function->fell = true;
    else
        lead_to(unit, asm_jmp(&unit->code), leader, leader->body_saved);
    return true;
}

bool function_branch(struct unit *unit, uint8_t *place, uint64_t target) {
    const struct leader *leader = leader_at(unit, target);
    if (!leader)
        return false;
    if (unit_spilled_here(unit))
        unit_cold(unit, place, SITE_LINK, NO_INDEX)->leader = (int)(leader - unit->function->leader);
    else
        lead_to(unit, place, leader, false);
    return true;
}

void function_cold_jump(struct unit *unit, int leader) {
    emit_reload(unit);
    lead_to(unit, asm_jmp(&unit->code), &unit->function->leader[leader], false);
}

/* -- Emitting -- */

static void take_up(struct unit *unit, const struct leader *leader) {
    unit->item = leader->item;
    unit->items = leader->items;
    unit->end_rip = leader->end_rip;
    unit->t0 = leader->t0;
    unit->t1 = leader->t1;
    unit->t2 = leader->t2;
    unit->used = leader->used;
    unit->spilled = leader->spilled;
    unit->maker = unit->remake = NULL;
    unit->loop = unit->twice = unit->narrow = false;
    group_reset(unit);
    for (unsigned i = 0; i < GROUPS; i++)
        unit->group[i].reg = leader->group_reg[i];
}

/* The points that were noted since hold with these registers in memory. */
static void note_spilled(struct unit *unit, uint16_t *pc_spilled, uint32_t from) {
    for (uint32_t i = from; i < unit->dbt->pcs; i++)
        pc_spilled[i] = unit->spilled;
}

static int emit_bodies(struct unit *unit, uint16_t *pc_spilled) {
    struct function *function = unit->function;
    bool fell = false;
    for (uint32_t i = 0; i < function->leaders; i++) {
        struct leader *leader = &function->leader[i];
        uint32_t pcs = unit->dbt->pcs;
        take_up(unit, leader);
        if (leader->entry && !fell) {
            leader->other = unit->code.at;
            emit_other_flags(unit, leader->body_saved);
        }
        leader->body = unit->code.at;
        unit->flags_saved = unit->body_saved = leader->body_saved;
        unit->colds = 0;
        function->current = i;
        function->fell = false;
        unit_emit_registers(unit);
        unit_emit_body(unit, leader->entry || leader->head);
        fell = function->fell;
        note_spilled(unit, pc_spilled, pcs);
        leader->first_pc = pcs;
        leader->pcs = unit->dbt->pcs - pcs;
        if (!make_room((void **)&function->cold, &function->cold_room, function->colds + unit->colds,
                       sizeof *function->cold))
            return -ENOMEM;
        leader->first_cold = function->colds;
        leader->colds = unit->colds;
        memcpy(function->cold + function->colds, unit->cold, unit->colds * sizeof *unit->cold);
        function->colds += unit->colds;
        if (unit->code.overflow)
            return -E2BIG;
    }
    return 0;
}

static int emit_cold_parts(struct unit *unit, uint16_t *pc_spilled) {
    struct function *function = unit->function;
    for (uint32_t i = 0; i < function->leaders; i++) {
        struct leader *leader = &function->leader[i];
        uint32_t pcs = unit->dbt->pcs;
        if (!leader->colds)
            continue;
        take_up(unit, leader);
        unit->colds = leader->colds;
        memcpy(unit->cold, function->cold + leader->first_cold, leader->colds * sizeof *unit->cold);
        /* An access may be tried again from here (emit_stack.c): its registers are this block's. */
        unit->flags_saved = true;
        unit_note_pc(unit, leader->guest);
        emit_colds(unit);
        emit_remakes(unit, leader->first_pc, leader->pcs);
        note_spilled(unit, pc_spilled, pcs);
        if (unit->code.overflow)
            return -E2BIG;
    }
    return 0;
}

static void make_other(struct unit *unit, struct leader *leader) {
    if (leader->other)
        return;
    leader->other = unit->code.at;
    emit_other_flags(unit, leader->body_saved);
    asm_jmp_to(&unit->code, leader->body);
}

static int settle(struct unit *unit) {
    struct function *function = unit->function;
    for (uint32_t i = 0; i < function->leaders; i++)
        if (function->leader[i].entry)
            make_other(unit, &function->leader[i]);
    for (uint32_t i = 0; i < function->pendings && !unit->code.overflow; i++) {
        const struct pending *pending = &function->pending[i];
        struct leader *leader = &function->leader[pending->leader];
        if (pending->saved != leader->body_saved)
            make_other(unit, leader);
        asm_patch_rel32(pending->place, pending->saved == leader->body_saved ? leader->body : leader->other);
    }
    return unit->code.overflow ? -E2BIG : 0;
}

int function_translate(struct unit *unit, const struct portable_function *request, uint16_t *pc_spilled) {
    int result = find_leaders(unit, request);
    if (!result) {
        portable_begin(unit);
        result = emit_bodies(unit, pc_spilled);
    }
    if (!result)
        result = emit_cold_parts(unit, pc_spilled);
    if (!result)
        result = settle(unit);
    unit->item = unit->block_item;
    return result;
}

int function_entries(const struct unit *unit, struct ntc_unit_entry *entry, unsigned room) {
    const struct function *function = unit->function;
    unsigned count = 0;
    for (uint32_t i = 0; i < function->leaders; i++) {
        const struct leader *leader = &function->leader[i];
        if (!leader->entry)
            continue;
        const uint8_t *saved = leader->body_saved ? leader->body : leader->other,
                      *live = leader->body_saved ? leader->other : leader->body;
        if (count == room || live - saved != (int16_t)(live - saved))
            return -E2BIG;
        entry[count++] = (struct ntc_unit_entry){.guest = (uint16_t)leader->guest,
                                                 .host = (uint32_t)(saved - unit->code.start),
                                                 .abi_data = (uint16_t)(live - saved)};
    }
    return (int)count;
}
