/* From guest code to a block: decode a run of instructions, find out which registers are free,
 * emit, publish.
 *
 * A block has one entry and several exits: it goes on behind conditional branches not taken, and ends at an
 * unconditional one, at an instruction for the interpreter, at the end of the page, or when scratch registers
 * would run out. Loops of ring 3 may have a single scratch (unit->narrow).
 */
#define _GNU_SOURCE
#include "cpu/vmem.h"
#include "dbt/emit.h"
#include "dbt/rewrite.h"
#include "mem/guest_mem.h"

#define SCRATCHES 3
#define NARROW_SCRATCHES 1
#define FLAGS_DIE_ITEMS 4 /* that are worth being emitted twice */

static bool ends_block(enum kind kind) {
    return kind >= KIND_JMP;
}

static bool needs_scratch(const struct unit *unit, const struct item *item) {
    switch (item->kind) {
    case KIND_LEA:
        return item->disp_field >= 0;
    case KIND_COPY:
    case KIND_NOP:
    case KIND_CLI:
    case KIND_STI:
    case KIND_RDTSC:
    case KIND_RDTSCP:
    case KIND_READ_BASE:
    case KIND_READ_CR:
    case KIND_READ_SELECTOR:
    case KIND_HELPER_END:
    case KIND_INTERPRET:
        return false;
    case KIND_JCC:
    case KIND_JCXZ:
    case KIND_JMP:
        return branch_needs_lookup(unit, branch_target(unit, item));
    default:
        return true;
    }
}

/* Registers in the order in which they are taken as scratches: first those of HOMED, which cost nothing.
 * Never RAX, which the flags go through. */
static const int8_t scratch_order[] = {GPR_R11, GPR_R10, GPR_R9,  GPR_R8,  GPR_R15, GPR_R14, GPR_R13,
                                       GPR_R12, GPR_RBP, GPR_RBX, GPR_RCX, GPR_RDX, GPR_RSI, GPR_RDI};
/* The same with those first that an instruction naming AH, BH, CH or DH can be given as an address. */
static const int8_t low_order[] = {GPR_RBP, GPR_RBX, GPR_RCX, GPR_RDX, GPR_RSI, GPR_RDI};

static unsigned free_registers(uint16_t used) {
    return 16 - (unsigned)__builtin_popcount((unsigned)used | 1u << GPR_RSP | 1u << GPR_RAX);
}

/* The first register of order that is not in *taken, which gains it; -1: none. */
static int take_register(uint16_t *taken, const int8_t *order, unsigned count) {
    for (unsigned i = 0; i < count; i++)
        if (!(*taken >> order[i] & 1)) {
            *taken |= (uint16_t)(1u << order[i]);
            return order[i];
        }
    return -1;
}

static bool is_high_byte(const struct item *item) {
    return (item->kind == KIND_MEMORY || item->kind == KIND_BIT_MEMORY) && item->insn.traits & INSN_HIGH_BYTE;
}

static void choose_scratches(struct unit *unit) {
    uint16_t taken = unit->used;
    bool high_byte = false;
    for (unsigned i = 0; i < unit->items; i++)
        high_byte |= is_high_byte(&unit->item[i]);
    unit->t0 = high_byte ? take_register(&taken, low_order, ARRAY_SIZE(low_order)) : -1;
    if (unit->t0 < 0)
        unit->t0 = take_register(&taken, scratch_order, ARRAY_SIZE(scratch_order));
    if (unit->narrow) {
        unit->t1 = unit->t0;
        unit->spilled |= taken & (uint16_t)~unit->used;
        return;
    }
    unit->t1 = take_register(&taken, scratch_order, ARRAY_SIZE(scratch_order));
    unit->t2 = take_register(&taken, scratch_order, ARRAY_SIZE(scratch_order));
    if (!(unit->block->mode & MODE_UNGROUPED) && unit->code64) {
        unsigned wanted = group_count(unit);
        for (unsigned i = 0; i < wanted; i++)
            unit->group[i].reg = take_register(&taken, scratch_order, ARRAY_SIZE(scratch_order));
    }
    unit->spilled |= taken & (uint16_t)~unit->used;
}

/* Decode one instruction at offset from the block's start. 0 when the block must end before it. */
static unsigned decode_at(struct unit *unit, struct item *item, unsigned offset) {
    struct vcpu *vcpu = unit->vcpu;
    struct block *block = unit->block;
    uint64_t room = unit->room;
    const uint8_t *bytes = unit->bytes + offset;
    unsigned code_size = unit->code64 ? 64 : 32;
    if (offset >= room)
        return 0;
    enum insn_status status = insn_decode(&item->insn, bytes, room - offset, code_size);
    if (status == INSN_OK)
        return item->insn.length;
    if (offset || status != INSN_SHORT || unit->portable)
        return 0;
    /* The first instruction crosses into the next page. */
    uint8_t both[INSN_MAX_LENGTH];
    void *host;
    uint64_t second = (block->rip & PAGE_MASK) + PAGE_SIZE;
    if (vmem_host(vcpu, unit->code64 ? second : (uint32_t)second, 1, VMEM_FETCH, AS_CURRENT, &host) || !host)
        return 0;
    uint64_t ram_page2 = (uint64_t)((uint8_t *)host - vcpu->mem->base) & PAGE_MASK;
    block_hold_page(vcpu, ram_page2);
    unsigned got = vmem_fetch(vcpu, block->rip, both, sizeof both);
    if (got <= room || insn_decode(&item->insn, both, got, code_size) != INSN_OK)
        return 0;
    block->ram_page2 = ram_page2;
    return item->insn.length;
}

static bool is_loop_end(const struct unit *unit, const struct item *item) {
    return (item->kind == KIND_JCC || item->kind == KIND_JCXZ) &&
           branch_target(unit, item) == unit->block->rip;
}

/* May the item be part of a block with a single scratch? */
static bool is_narrow(const struct unit *unit, const struct item *item) {
    struct use use;
    uint32_t written = item->insn.flags_written & FLAGS_ARITHMETIC;
    switch (item->kind) {
    case KIND_COPY:
    case KIND_NOP:
    case KIND_LEA:
        return true;
    case KIND_JCC:
    case KIND_JCXZ:
        return !branch_needs_lookup(unit, branch_target(unit, item));
    case KIND_MEMORY:
        /* No saved flags have to be given back while the scratch is part of the address. */
        return group_operand(unit, item, &use) && !(item->insn.flags_read & FLAGS_ARITHMETIC) &&
               (!written || written == FLAGS_ARITHMETIC);
    default:
        return false;
    }
}

/* Decode and classify the next item, at offset; its length, 0: the block must end before it. */
static unsigned next_item(struct unit *unit, unsigned offset) {
    struct item *item = &unit->item[unit->items];
    unsigned length = decode_at(unit, item, offset);
    if (!length)
        return 0;
    item->guest = (uint16_t)offset;
    item->helper = HELPER_NONE;
    item->disp_field = item->imm_field = -1;
    item->kind = unit_classify(unit, item);
    if (item->kind == KIND_CALL) {
        unsigned whole = retpoline_find(unit, item, offset);
        if (whole) {
            item->kind = KIND_RETPOLINE;
            return whole;
        }
    }
    if (UNLIKELY(unit->fields))
        portable_find_fields(unit, item);
    return length;
}

/* A block that ran out of scratches or grew too long: does it become a loop of ring 3 that can do with one
 * scratch, if it goes on? Half of the instructions of a loop that computes name all registers there are, and
 * such a loop cut in pieces carries its registers through memory at each seam. False: nothing has changed. */
static bool gather_loop(struct unit *unit, unsigned offset, unsigned exits, uint16_t used) {
    unsigned items = unit->items;
    if (!unit->code64 || unit->portable || !(unit->block->mode & MODE_CPL3) ||
        unit->block->ram_page2 != GUEST_NO_RAM)
        return false;
    for (unsigned i = 0; i < items; i++)
        if (!is_narrow(unit, &unit->item[i]))
            return false;
    while (unit->items < BLOCK_MAX_INSNS && exits < BLOCK_MAX_EXITS) {
        const struct item *item = &unit->item[unit->items];
        unsigned length = next_item(unit, offset);
        used |= item->insn.gprs_read | item->insn.gprs_written;
        if (!length || !is_narrow(unit, item) || free_registers(used) < NARROW_SCRATCHES)
            break;
        exits += item->kind == KIND_JCC || item->kind == KIND_JCXZ;
        unit->items++;
        offset += length;
        if (!is_loop_end(unit, item))
            continue;
        unit->end_rip = unit->block->rip + offset;
        unit->used = used;
        unit->narrow = free_registers(used) < SCRATCHES;
        if (!branch_needs_lookup(unit, unit->end_rip))
            return true;
        break;
    }
    unit->items = items;
    unit->narrow = false;
    return false;
}

static enum portable_dependence dependence_of(const struct insn *insn) {
    if (insn->traits & INSN_VECTOR || insn->z.mnemonic == ZYDIS_MNEMONIC_FWAIT)
        return PORTABLE_VECTOR;
    switch (insn->z.mnemonic) {
    case ZYDIS_MNEMONIC_RDTSC:
    case ZYDIS_MNEMONIC_RDTSCP:
    case ZYDIS_MNEMONIC_RDFSBASE:
    case ZYDIS_MNEMONIC_RDGSBASE:
    case ZYDIS_MNEMONIC_WRFSBASE:
    case ZYDIS_MNEMONIC_WRGSBASE:
        return PORTABLE_SCALAR;
    default:
        return PORTABLE_ANYWHERE;
    }
}

bool unit_gather(struct unit *unit) {
    uint16_t used = 0;
    unsigned offset = unit->from, exits = 0, repeats = 0;
    bool scratch = false, loop = false;
    unit->items = 0;
    unit->narrow = unit->loop = false;
    while (exits < (unit->function ? BLOCK_INSNS : BLOCK_MAX_EXITS) && offset < unit->limit) {
        const struct item *item = &unit->item[unit->items];
        if (unit->items == BLOCK_INSNS) {
            loop = gather_loop(unit, offset, exits, used);
            break;
        }
        unsigned length = next_item(unit, offset);
        if (!length || (item->kind == KIND_REP && repeats++ == BLOCK_MAX_REPEATS))
            break;
        uint16_t now = used | item->insn.gprs_read | item->insn.gprs_written;
        if (free_registers(now) < SCRATCHES && unit->items) {
            loop = gather_loop(unit, offset, exits, used);
            break;
        }
        used = now;
        scratch |= needs_scratch(unit, item);
        if (unit->portable && dependence_of(&item->insn) > unit->dependence)
            unit->dependence = dependence_of(&item->insn);
        if (item->kind == KIND_JCC || item->kind == KIND_JCXZ)
            exits++;
        unit->items++;
        offset += length;
        if (ends_block(item->kind) || unit->block->ram_page2 != GUEST_NO_RAM ||
            (is_loop_end(unit, item) && !unit->portable))
            break;
    }
    if (!unit->items)
        return false;
    if (loop) {
        used = unit->used;
        scratch = true;
    } else {
        unit->end_rip = unit->block->rip + offset;
    }
    if (!ends_block(unit->item[unit->items - 1].kind))
        scratch |= branch_needs_lookup(unit, unit->code64 ? unit->end_rip : (uint32_t)unit->end_rip);
    for (unsigned i = 0; i < unit->items; i++)
        unit->loop |= !unit->function && is_loop_end(unit, &unit->item[i]);
    unit->t0 = unit->t1 = unit->t2 = -1;
    unit->used = used;
    unit->spilled = HOMED & (uint16_t)~used;
    group_reset(unit);
    if (scratch)
        choose_scratches(unit);
    for (unsigned i = 0; i < unit->items; i++) {
        struct item *item = &unit->item[i];
        if (is_high_byte(item) && unit->t0 >= 8) {
            item->kind = KIND_INTERPRET;
            unit->items = i + 1;
            unit->end_rip = unit->block->rip + item->guest + item->insn.length;
        }
    }
    return true;
}

static void emit_item(struct unit *unit, const struct item *item) {
    struct code_buffer *c = &unit->code;
    switch (item->kind) {
    case KIND_NOP:
        break;
    case KIND_COPY:
        emit_native(unit, item, NULL);
        break;
    case KIND_LEA:
        emit_lea(unit, item);
        break;
    case KIND_MEMORY:
        emit_memory(unit, item);
        break;
    case KIND_BIT_MEMORY:
        emit_bit_memory(unit, item);
        break;
    case KIND_PUSH:
        emit_push(unit, item);
        break;
    case KIND_POP:
        emit_pop(unit, item);
        break;
    case KIND_LEAVE:
        emit_leave_insn(unit, item);
        break;
    case KIND_RDTSC:
    case KIND_RDTSCP:
        code_u8(c, 0x0f);
        code_u8(c, 0x31);
        if (item->kind == KIND_RDTSCP)
            asm_load32_gs(c, GPR_RCX, AREA_VCPU(tsc_aux));
        break;
    case KIND_CLI:
        asm_store8_imm_gs(c, AREA_HOT(iflag), 0);
        break;
    case KIND_STI:
        asm_store8_imm_gs(c, AREA_HOT(iflag), 2);
        break;
    case KIND_STAC:
    case KIND_CLAC:
        emit_set_ac(unit, item->kind == KIND_STAC);
        break;
    case KIND_SWAPGS:
        emit_swapgs(unit);
        break;
    case KIND_CPUID:
        emit_cpuid(unit, item);
        break;
    case KIND_PUSHF:
        emit_pushf(unit, item);
        break;
    case KIND_REP:
        emit_rep(unit, item);
        break;
    case KIND_READ_BASE:
        emit_read_base(unit, item);
        break;
    case KIND_READ_CR:
        emit_read_cr(unit, item);
        break;
    case KIND_READ_SELECTOR:
        emit_read_selector(unit, item);
        break;
    case KIND_JCC:
        emit_jcc(unit, item);
        break;
    case KIND_JCXZ:
        emit_jcxz(unit, item);
        break;
    case KIND_HELPER:
    case KIND_HELPER_END:
        emit_helper(unit, item, SITE_HELPER);
        break;
    case KIND_INTERPRET:
        emit_helper(unit, item, SITE_INTERPRET);
        break;
    case KIND_JMP:
        emit_link(unit, item, branch_target(unit, item));
        break;
    case KIND_CALL:
        emit_call(unit, item);
        break;
    case KIND_JMP_INDIRECT:
        emit_jump_indirect(unit, item);
        break;
    case KIND_CALL_INDIRECT:
        emit_call_indirect(unit, item);
        break;
    case KIND_RET:
        emit_ret(unit, item);
        break;
    case KIND_RETPOLINE:
        emit_retpoline(unit, item);
        break;
    }
}

/* Saved: the first thing that happens to the flags is a check that clobbers them. */
enum flags_wanted unit_flags_wanted(const struct unit *unit) {
    for (unsigned i = 0; i < unit->items; i++) {
        const struct item *item = &unit->item[i];
        switch (item->kind) {
        case KIND_COPY:
            if ((item->insn.flags_read | item->insn.flags_written) & FLAGS_ARITHMETIC)
                return FLAGS_WANTED_LIVE;
            break;
        case KIND_JCC:
        case KIND_JCXZ:
            return FLAGS_WANTED_LIVE;
        case KIND_MEMORY:
        case KIND_BIT_MEMORY:
        case KIND_PUSH:
        case KIND_POP:
        case KIND_LEAVE:
        case KIND_CPUID:
        case KIND_PUSHF:
        case KIND_REP:
            return FLAGS_WANTED_SAVED;
        default:
            break;
        }
    }
    return FLAGS_WANTED_EITHER;
}

void unit_emit_registers(struct unit *unit) {
    for (int reg = 0; reg < 16; reg++)
        if (unit_spilled_here(unit) >> reg & 1)
            asm_store_gs(&unit->code, AREA_GPR(reg), reg);
    emit_load_resident(unit);
}

/* The two entries: see unit.h. */
static void emit_entries(struct unit *unit) {
    struct code_buffer *c = &unit->code;
    uint8_t *entry[2];
    unit->body_saved = unit_flags_wanted(unit) != FLAGS_WANTED_LIVE;
    if (!unit->body_saved) {
        entry[true] = c->at;
        emit_restore_flags(unit, BOUNDARY_SCRATCH);
        entry[false] = c->at;
        unit_emit_registers(unit);
        unit->loop_live = c->at;
    } else if (!unit->loop || unit->twice || !(unit_spilled_here(unit) | unit_resident(unit))) {
        unit->loop_live = entry[false] = c->at;
        emit_save_flags(unit, BOUNDARY_SCRATCH);
        entry[true] = c->at;
        unit_emit_registers(unit);
    } else {
        /* Iterations save the flags but pass the registers by. */
        entry[true] = c->at;
        unit_emit_registers(unit);
        uint8_t *over = asm_jmp(c);
        entry[false] = c->at;
        unit_emit_registers(unit);
        unit->loop_live = c->at;
        emit_save_flags(unit, unit->t1);
        if (!c->overflow)
            asm_patch_rel32(over, c->at);
    }
    unit->flags_saved = unit->body_saved;
    unit->body = c->at;
    for (unsigned saved = 0; saved < 2; saved++)
        unit->block->entry[saved] = (uint32_t)(entry[saved] - unit->dbt->rw);
}

/* Through GS, whose present base is what is asked for: a load into idle, or, -1, a store. */
static void emit_poll(struct unit *unit, size_t page, int idle) {
    const uint8_t *area = unit->code.area;
    unit->code.area = NULL;
    if (idle >= 0)
        asm_load32_gs(&unit->code, idle, (uint32_t)page);
    else
        asm_store8_imm_gs(&unit->code, (uint32_t)page, 0);
    unit->code.area = area;
}

/* Does the host stay out of trouble with it, whatever the registers hold? */
static bool never_faults(const struct item *item) {
    const struct insn *insn = &item->insn;
    if (item->kind == KIND_NOP || item->kind == KIND_LEA)
        return true;
    if (item->kind != KIND_COPY || insn->traits & INSN_VECTOR || insn->z.mnemonic == ZYDIS_MNEMONIC_DIV ||
        insn->z.mnemonic == ZYDIS_MNEMONIC_IDIV)
        return false;
    switch (insn->z.meta.category) {
    case ZYDIS_CATEGORY_BINARY:
    case ZYDIS_CATEGORY_BITBYTE:
    case ZYDIS_CATEGORY_CMOV:
    case ZYDIS_CATEGORY_CONVERT:
    case ZYDIS_CATEGORY_DATAXFER:
    case ZYDIS_CATEGORY_LOGICAL:
    case ZYDIS_CATEGORY_ROTATE:
    case ZYDIS_CATEGORY_SETCC:
    case ZYDIS_CATEGORY_SHIFT:
        return true;
    default:
        return false;
    }
}

/* The places of instructions that nothing is ever asked about would be half of all; who reads the code wants
 * them, and so do the maps of portable units. */
static bool place_matters(const struct unit *unit, unsigned i) {
    return unit->portable || unit->vcpu->trace_subjects & DUMP_BLOCKS || !never_faults(&unit->item[i]) ||
           unit->item[i - 1].kind == KIND_STI;
}

static void emit_items(struct unit *unit, unsigned from, unsigned to) {
    for (unsigned i = from; i < to; i++) {
        const struct item *item = &unit->item[i];
        if (i && place_matters(unit, i))
            unit_note_pc(unit, item->guest);
        /* STI holds interrupts off for one instruction: C, met here, lets the interpreter run that one. */
        if (i && unit->item[i - 1].kind == KIND_STI)
            emit_poll(unit, offsetof(struct dbt_area, sti_poll), -1);
        emit_rsp_before(unit, item);
        remake_before(unit, item);
        emit_item(unit, item);
        unit->maker = remake_after(unit, item, unit->maker);
        if (item->kind < KIND_HELPER)
            emit_store_resident(unit, item);
        group_after(unit, item);
    }
}

/* A register that holds nothing when the block begins; -1: there is none. */
static int idle_register(const struct unit *unit) {
    for (int reg = GPR_R8; reg <= GPR_R11; reg++)
        if (!(unit->used >> reg & 1))
            return reg;
    return unit->t0;
}

/* A load, where a register is free for it: no locked instruction waits until it is done. */
static void emit_first_poll(struct unit *unit) {
    unit_note_pc(unit, unit->item[0].guest);
    emit_poll(unit, offsetof(struct dbt_area, poll), idle_register(unit));
}

/* What goes on behind the last item, if anything does. */
static void emit_fall_through(struct unit *unit) {
    if (ends_block(unit->item[unit->items - 1].kind))
        return;
    unit_note_pc(unit, (unsigned)(unit->end_rip - unit->block->rip));
    emit_rsp_settle(unit);
    if (unit->item[unit->items - 1].kind == KIND_STI)
        emit_poll(unit, offsetof(struct dbt_area, sti_poll), -1);
    emit_link(unit, NULL, unit->code64 ? unit->end_rip : (uint32_t)unit->end_rip);
}

/* From the poll to the last exit. */
void unit_emit_body(struct unit *unit, bool poll) {
    if (poll)
        emit_first_poll(unit);
    else
        unit_note_pc(unit, unit->item[0].guest);
    emit_items(unit, 0, unit->items);
    emit_fall_through(unit);
}

/* Many blocks begin with a comparison or a sum: the flags that they are entered with are wanted by nothing
 * but a stop at the poll. The number of items up to the one that overwrites them all; 0: it does not begin
 * so. */
static unsigned flags_die_after(const struct unit *unit) {
    if (unit->loop || unit->portable || unit->function)
        return 0;
    for (unsigned i = 0; i < unit->items && i < FLAGS_DIE_ITEMS; i++) {
        const struct item *item = &unit->item[i];
        uint32_t written = item->insn.flags_written & FLAGS_ARITHMETIC;
        if (item->kind != KIND_COPY && item->kind != KIND_LEA && item->kind != KIND_NOP)
            return 0;
        if (item->insn.flags_read & FLAGS_ARITHMETIC || (written && written != FLAGS_ARITHMETIC))
            return 0;
        if (written)
            return i + 1;
    }
    return 0;
}

/* Such a block's first items stand twice, once for each place that the flags may be in: neither entry saves
 * them or gives them back.
 *   saved:  registers; poll; items; jmp rest
 *   live:   registers; poll; items
 *   rest:
 */
static void emit_entries_apart(struct unit *unit, unsigned items) {
    struct code_buffer *c = &unit->code;
    uint8_t *rest = NULL;
    for (int saved = 1; saved >= 0; saved--) {
        unit->block->entry[saved] = (uint32_t)(c->at - unit->dbt->rw);
        unit_emit_registers(unit);
        unit->body = c->at;
        unit->body_saved = unit->flags_saved = saved;
        unit->maker = NULL;
        emit_first_poll(unit);
        emit_items(unit, 0, items);
        if (saved)
            rest = asm_jmp(c);
    }
    if (!c->overflow)
        asm_patch_rel32(rest, c->at);
    emit_items(unit, items, unit->items);
    emit_fall_through(unit);
}

/* What makes the flags again with which a loop begins its next round; NULL: nothing does. */
static const struct item *loop_maker(const struct unit *unit) {
    const struct item *maker = NULL;
    if (!unit->loop || unit->portable || unit->items > BLOCK_MAX_INSNS / 2 - 2 ||
        !is_loop_end(unit, &unit->item[unit->items - 1]) || unit_flags_wanted(unit) == FLAGS_WANTED_LIVE)
        return NULL;
    for (unsigned i = 0; i < unit->items; i++) {
        if (i + 1 < unit->items && is_loop_end(unit, &unit->item[i]))
            return NULL;
        maker = remake_after(unit, &unit->item[i], maker);
    }
    return maker;
}

/* The exit at the entry of a block that is killed. One that never lives again has its first one for that. */
static void entry_site(struct unit *unit) {
    unit_site(unit, SITE_DEAD, NULL)->flags_saved = true;
}

/* A loop's body stands twice if the flags of a further round can be made again, while those of the first,
 * whoever left them, must be saved: the first round's branch leads to the second body, which goes round by
 * itself. */
static void emit_block(struct unit *unit) {
    struct code_buffer *c = &unit->code;
    const struct item *maker = loop_maker(unit);
    unsigned prefix = flags_die_after(unit);
    unit->colds = 0;
    unit->landing = NULL;
    unit->rsp_lag = 0;
    unit->maker = unit->remake = NULL;
    unit->twice = maker;
    if (unit->portable)
        portable_begin(unit);
    if (unit->portable || unit->rewrite)
        entry_site(unit);
    if (prefix) {
        emit_entries_apart(unit, prefix);
    } else {
        emit_entries(unit);
        if (unit->twice)
            unit->loop_live = NULL;
        unit_emit_body(unit, true);
    }
    if (unit->twice && !c->overflow) {
        asm_patch_rel32(unit->loop_place, c->at);
        unit->loop_live = c->at;
        unit->flags_saved = false;
        unit->remake = NULL;
        unit->maker = maker;
        group_forget(unit);
        unit_emit_body(unit, true);
    }
    emit_colds(unit);
    emit_landing(unit);
    emit_remakes(unit, unit->block->first_pc, unit->block->pcs);
    if (!unit->block->sites)
        entry_site(unit);
    /* A killed block's entry is overwritten with an exit: keep room for it. */
    while (c->at - c->start < 40)
        code_u8(c, 0x90);
}

static bool make_room(struct dbt_vcpu *dbt) {
    if (!code_make_room(dbt, BLOCK_MAX_HOST, 1, BLOCK_MAX_INSNS * 4, BLOCK_MAX_INSNS * 6 + 2))
        return false;
    code_populate_ahead(dbt);
    return true;
}

void unit_begin(struct unit *unit, struct vcpu *vcpu, struct block *block, const uint8_t *bytes,
                uint64_t room) {
    unit->vcpu = vcpu;
    unit->dbt = vcpu->dbt;
    unit->block = block;
    unit->index = 0;
    unit->portable = NULL;
    unit->bytes = bytes;
    unit->room = room;
    unit->item = unit->block_item;
    unit->rewrite = NULL;
    unit->from = 0;
    unit->limit = UINT32_MAX;
    unit->function = NULL;
    unit->fields = 0;
    unit->dependence = PORTABLE_ANYWHERE;
}

/* Nothing was translated after all. */
static void take_back(struct dbt_vcpu *dbt, const struct block *block) {
    for (uint32_t i = block->first_site; i < dbt->sites; i++)
        dbt->site[i].ready = false;
    dbt->sites = block->first_site;
    dbt->pcs = block->first_pc;
}

bool unit_translate(struct unit *unit) {
    struct dbt_vcpu *dbt = unit->dbt;
    struct block *block = unit->block;
    uint64_t flushes = dbt->stats.flushes;
    uint8_t *start = dbt->rw + dbt->used;
    unit->code = (struct code_buffer){.start = start,
                                      .at = start,
                                      .end = start + BLOCK_MAX_HOST,
                                      .area = unit->portable ? NULL : dbt->area_seen};
    if (!unit_gather(unit) || dbt->stats.flushes != flushes)
        return false;
    emit_block(unit);
    if (unit->code.overflow) {
        take_back(dbt, block);
        return false;
    }
    block->host_size = (uint32_t)(unit->code.at - unit->code.start);
    block->spilled = unit->spilled;
    block->guest_length = (uint16_t)(unit->end_rip - block->rip);
    return true;
}

/* Translate dbt->block[index] by code that rewrite.c has a copy of. False: nothing is done. */
static bool translate_copy(struct vcpu *vcpu, uint32_t index, const uint8_t *bytes, uint64_t room) {
    struct dbt_vcpu *dbt = vcpu->dbt;
    struct unit *unit = dbt->unit;
    struct block *block = &dbt->block[index];
    const struct block blank = *block;
    struct rewrite *rewrite = rewrite_begin(dbt, block, bytes, room);
    if (!rewrite)
        return false;
    unit_begin(unit, vcpu, block, rewrite->bytes, rewrite->length);
    unit->index = index;
    unit->code64 = cpu_is_code64(vcpu);
    unit->rewrite = rewrite;
    uint64_t flushes = dbt->stats.flushes;
    if (!unit_translate(unit)) {
        if (dbt->stats.flushes == flushes)
            *block = blank;
        return false;
    }
    if (room > REWRITE_BYTES && block->guest_length > REWRITE_BYTES - INSN_MAX_LENGTH) { /* it may go on */
        take_back(dbt, block);
        *block = blank;
        return false;
    }
    rewrite_keep(unit);
    return true;
}

uint32_t dbt_translate(struct vcpu *vcpu, uint64_t ram_offset, uint32_t mode) {
    struct dbt_vcpu *dbt = vcpu->dbt;
    if (!make_room(dbt))
        return NO_INDEX;
    /* The page must be known to hold code before its bytes are read: a store that comes later is then
     * noticed. Before the tables are looked at, too: it may serve requests, which change them. */
    block_hold_page(vcpu, ram_offset & PAGE_MASK);
    struct unit *unit = dbt->unit;
    uint32_t index = dbt->blocks;
    struct block *block = &dbt->block[index];
    *block = (struct block){.rip = vcpu->rip,
                            .ram_offset = ram_offset,
                            .ram_page2 = GUEST_NO_RAM,
                            .mode = mode,
                            .host = (uint32_t)dbt->used,
                            .incoming = NO_INDEX,
                            .first_site = dbt->sites,
                            .first_pc = dbt->pcs};
    const uint8_t *bytes = vcpu->mem->base + ram_offset;
    uint64_t room = PAGE_SIZE - (ram_offset & (PAGE_SIZE - 1)), flushes = dbt->stats.flushes;
    if (!translate_copy(vcpu, index, bytes, room)) {
        if (dbt->stats.flushes != flushes)
            return NO_INDEX;
        unit_begin(unit, vcpu, block, bytes, room);
        unit->index = index;
        unit->code64 = cpu_is_code64(vcpu);
        if (!unit_translate(unit))
            return NO_INDEX;
    }
    dbt->used = align_up(dbt->used + block->host_size, 16);
    dbt->blocks++;
    dbt->stats.blocks++;
    dbt->stats.guest_instructions += unit->items;
    dbt->stats.guest_bytes += block->guest_length;
    dbt->stats.host_bytes += block->host_size;
    code_release_written(dbt);
    if (UNLIKELY(dbt->log))
        portable_log_add(vcpu, block);
    block_publish(vcpu, index);
    code_note_made(dbt, block);
    return index;
}
