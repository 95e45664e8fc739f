/* The guest's registers inside a region: SSA values that are merged where paths meet.
 *
 * A register is a root value and a constant distance from it, so that what addresses memory off one pointer
 * is known to do so however the pointer was moved. R8 to R11 stay in the vCPU until something names them.
 */
#include "sbt/llvm_private.h"

#include <string.h>

/* By argument: the guest's register. preserve_none passes them in R12-R15, RDI, RSI, RDX, RCX, R8, R9, R11,
 * RAX in this order; so RBX, RBP and RSP are in R8, R9 and R11, and all others in their own. */
static const uint8_t argument_register[LIFT_ARGUMENTS] = {GPR_R12, GPR_R13, GPR_R14, GPR_R15,
                                                          GPR_RDI, GPR_RSI, GPR_RDX, GPR_RCX,
                                                          GPR_RBX, GPR_RBP, GPR_RSP, GPR_RAX};

static bool is_homed(unsigned reg) {
    return HOMED >> reg & 1;
}

LLVMValueRef lift_constant(struct lifter *l, uint64_t value) {
    return LLVMConstInt(l->i64, value, false);
}

LLVMTypeRef lift_int(struct lifter *l, unsigned bits) {
    switch (bits) {
    case 1:
        return l->i1;
    case 8:
        return l->i8;
    case 16:
        return l->i16;
    case 32:
        return l->i32;
    default:
        return l->i64;
    }
}

LLVMValueRef lift_resize(struct lifter *l, LLVMValueRef value, unsigned bits) {
    return LLVMBuildIntCast2(l->builder, value, lift_int(l, bits), false, "");
}

static LLVMValueRef area_place(struct lifter *l, uint32_t offset) {
    return LLVMConstIntToPtr(lift_constant(l, offset), l->area_pointer);
}

LLVMValueRef lift_load_area(struct lifter *l, uint32_t offset, LLVMTypeRef type, bool is_volatile) {
    LLVMValueRef load = LLVMBuildLoad2(l->builder, type, area_place(l, offset), "");
    LLVMSetAlignment(load, 1);
    LLVMSetVolatile(load, is_volatile);
    LLVMSetMetadata(load, l->alias_kind, l->alias[LIFT_AREA]);
    return load;
}

void lift_store_area(struct lifter *l, uint32_t offset, LLVMValueRef value, bool is_volatile) {
    LLVMValueRef store = LLVMBuildStore(l->builder, value, area_place(l, offset));
    LLVMSetAlignment(store, 1);
    LLVMSetVolatile(store, is_volatile);
    LLVMSetMetadata(store, l->alias_kind, l->alias[LIFT_AREA]);
}

LLVMValueRef lift_guest_address(struct lifter *l) {
    if (!l->address) {
        /* In the region's entry, so that every block has it. */
        LLVMBasicBlockRef here = LLVMGetInsertBlock(l->builder), entry = LLVMGetEntryBasicBlock(l->function);
        LLVMPositionBuilderBefore(l->builder, LLVMGetBasicBlockTerminator(entry));
        l->address = LLVMBuildLoad2(l->builder, l->i64, l->address_word, "unit");
        LLVMSetMetadata(l->address, l->invariant_kind,
                        LLVMMetadataAsValue(l->context, LLVMMDNodeInContext2(l->context, NULL, 0)));
        LLVMPositionBuilderAtEnd(l->builder, here);
    }
    return l->address;
}

LLVMValueRef lift_get(struct lifter *l, struct lift_state *state, unsigned reg) {
    struct lift_register *r = &state->reg[reg];
    if (!r->root) {
        r->root = r->value = lift_load_area(l, AREA_GPR(reg), l->i64, false);
        r->offset = 0;
    }
    if (!r->value)
        r->value = r->offset ? LLVMBuildAdd(l->builder, r->root, lift_constant(l, (uint64_t)r->offset), "")
                             : r->root;
    return r->value;
}

void lift_set_sum(struct lifter *l, unsigned reg, LLVMValueRef root, int64_t offset) {
    l->state.reg[reg] = (struct lift_register){.root = root, .offset = offset, .dirty = is_homed(reg)};
    if (!offset)
        l->state.reg[reg].value = root;
}

void lift_set(struct lifter *l, unsigned reg, LLVMValueRef value) {
    lift_set_sum(l, reg, value, 0);
}

LLVMValueRef lift_read_register(struct lifter *l, ZydisRegister reg) {
    LLVMValueRef value = lift_get(l, &l->state, (unsigned)insn_gpr(reg));
    if (insn_is_high_byte(reg))
        value = LLVMBuildLShr(l->builder, value, lift_constant(l, 8), "");
    return lift_resize(l, value, ZydisRegisterGetWidth(ZYDIS_MACHINE_MODE_LONG_64, reg));
}

void lift_write_register(struct lifter *l, ZydisRegister reg, LLVMValueRef value) {
    unsigned number = (unsigned)insn_gpr(reg), width = ZydisRegisterGetWidth(ZYDIS_MACHINE_MODE_LONG_64, reg);
    bool high = insn_is_high_byte(reg);
    LLVMValueRef wide = lift_resize(l, value, 64);
    if (width < 32) {
        uint64_t mask = width == 16 ? 0xffff : high ? 0xff00 : 0xff;
        if (high)
            wide = LLVMBuildShl(l->builder, wide, lift_constant(l, 8), "");
        LLVMValueRef rest =
            LLVMBuildAnd(l->builder, lift_get(l, &l->state, number), lift_constant(l, ~mask), "");
        wide = LLVMBuildOr(l->builder, rest, wide, "");
    }
    lift_set(l, number, wide);
}

/* The arguments of a region, at its entry. */
void lift_state_enter(struct lifter *l) {
    struct lift_state *state = &l->state;
    memset(state, 0, sizeof *state);
    for (unsigned i = 0; i < LIFT_ARGUMENTS; i++) {
        LLVMValueRef argument = LLVMGetParam(l->function, i);
        state->reg[argument_register[i]] = (struct lift_register){.root = argument, .value = argument};
    }
    state->flags = flags_packed(lift_load_area(l, AREA_HOT(flags), l->i32, false));
    state->flags.untouched = true;
}

void lift_canonical(struct lifter *l, struct lift_state *state, LLVMValueRef arguments[LIFT_ARGUMENTS]) {
    for (unsigned reg = 0; reg < 16; reg++)
        if (is_homed(reg) && state->reg[reg].root && state->reg[reg].dirty)
            lift_store_area(l, AREA_GPR(reg), lift_get(l, state, reg), false);
    if (!state->flags.untouched)
        lift_store_area(l, AREA_HOT(flags), flags_pack(l, &state->flags), false);
    for (unsigned i = 0; i < LIFT_ARGUMENTS; i++)
        arguments[i] = lift_get(l, state, argument_register[i]);
}

static bool same_flags(const struct lift_flags *a, const struct lift_flags *b) {
    return a->kind == b->kind && a->width == b->width && a->a == b->a && a->b == b->b && a->c == b->c &&
           a->which == b->which && a->untouched == b->untouched;
}

/* Build at the end of an edge, before the jump that it is. */
static void at_edge(struct lifter *l, const struct lift_edge *edge) {
    LLVMValueRef jump = LLVMGetBasicBlockTerminator(edge->block);
    if (jump)
        LLVMPositionBuilderBefore(l->builder, jump);
    else
        LLVMPositionBuilderAtEnd(l->builder, edge->block);
}

static LLVMValueRef new_phi(struct lifter *l, struct lift_block *block, LLVMTypeRef type) {
    LLVMValueRef first = LLVMGetFirstInstruction(block->block);
    if (first)
        LLVMPositionBuilderBefore(l->builder, first);
    else
        LLVMPositionBuilderAtEnd(l->builder, block->block);
    LLVMValueRef phi = LLVMBuildPhi(l->builder, type, "");
    LLVMPositionBuilderAtEnd(l->builder, block->block);
    return phi;
}

static void feed_register(struct lifter *l, LLVMValueRef phi, const struct lift_edge *edge, unsigned reg) {
    at_edge(l, edge);
    LLVMValueRef value = lift_get(l, edge->state, reg);
    LLVMBasicBlockRef from = edge->block;
    LLVMAddIncoming(phi, &value, &from, 1);
}

static void feed_flags(struct lifter *l, const struct lift_block *block, const struct lift_edge *edge) {
    LLVMBasicBlockRef from = edge->block;
    LLVMValueRef value[4];
    at_edge(l, edge);
    if (!block->phi_kind) {
        value[0] = flags_pack(l, &edge->state->flags);
        LLVMAddIncoming(block->phi_a, value, &from, 1);
        return;
    }
    flags_spread(l, &edge->state->flags, value);
    LLVMAddIncoming(block->phi_kind, &value[0], &from, 1);
    LLVMAddIncoming(block->phi_a, &value[1], &from, 1);
    LLVMAddIncoming(block->phi_b, &value[2], &from, 1);
    LLVMAddIncoming(block->phi_c, &value[3], &from, 1);
}

static void merge_register(struct lifter *l, struct lift_block *block, unsigned reg) {
    const struct lift_edge *edge = block->edge;
    struct lift_register *to = &l->state.reg[reg];
    bool same = !block->is_header || !(l->written >> reg & 1), same_value = true, dirty = false;
    for (unsigned i = 0; i < block->edges; i++) {
        const struct lift_register *from = &edge[i].state->reg[reg];
        same &= from->root == edge[0].state->reg[reg].root && from->offset == edge[0].state->reg[reg].offset;
        same_value &= from->value == edge[0].state->reg[reg].value;
        dirty |= from->dirty;
    }
    *to = edge[0].state->reg[reg];
    to->dirty = dirty;
    if (same) {
        if (!same_value)
            to->value = to->offset ? NULL : to->root;
        return;
    }
    LLVMValueRef phi = new_phi(l, block, l->i64);
    block->phi[reg] = phi;
    for (unsigned i = 0; i < block->edges; i++)
        feed_register(l, phi, &edge[i], reg);
    *to = (struct lift_register){
        .root = phi, .value = phi, .dirty = is_homed(reg) && (dirty || block->is_header)};
}

static void merge_flags(struct lifter *l, struct lift_block *block) {
    bool same = !block->is_header;
    for (unsigned i = 0; i < block->edges; i++)
        same &= same_flags(&block->edge[i].state->flags, &block->edge[0].state->flags);
    l->state.flags = block->edge[0].state->flags;
    l->state.flags.packed = l->state.flags.kind == FLAGS_PACKED ? l->state.flags.a : NULL;
    if (same)
        return;
    if (!block->flags_wanted) {
        block->phi_kind = new_phi(l, block, l->i32);
        block->phi_b = new_phi(l, block, l->i64);
        block->phi_c = new_phi(l, block, l->i64);
    }
    block->phi_a = new_phi(l, block, block->flags_wanted ? l->i32 : l->i64);
    for (unsigned i = 0; i < block->edges; i++)
        feed_flags(l, block, &block->edge[i]);
    l->state.flags = block->flags_wanted ? flags_packed(block->phi_a)
                                         : (struct lift_flags){.kind = FLAGS_MERGED,
                                                               .width = 64,
                                                               .which = block->phi_kind,
                                                               .a = block->phi_a,
                                                               .b = block->phi_b,
                                                               .c = block->phi_c};
}

/* What all paths know: the lists' common tail. */
static struct lift_fact *common_facts(const struct lift_block *block) {
    struct lift_fact *common = block->edge[0].state->facts;
    for (unsigned i = 1; i < block->edges; i++) {
        struct lift_fact *candidate = common;
        for (; candidate; candidate = candidate->next) {
            struct lift_fact *other = block->edge[i].state->facts;
            while (other && other != candidate)
                other = other->next;
            if (other)
                break;
        }
        common = candidate;
    }
    return common;
}

void lift_block_enter(struct lifter *l, struct lift_block *block) {
    l->state.facts = common_facts(block);
    block->is_header = block->edges < block->preds;
    if (block->is_header && l->view_changes)
        l->state.facts = NULL;
    for (unsigned i = 0; i < 2; i++) {
        LLVMValueRef base = block->edge[0].state->segment_base[i];
        for (unsigned k = 1; k < block->edges; k++)
            if (block->edge[k].state->segment_base[i] != base)
                base = NULL;
        l->state.segment_base[i] = block->is_header && l->view_changes ? NULL : base;
    }
    for (unsigned reg = 0; reg < 16; reg++)
        merge_register(l, block, reg);
    merge_flags(l, block);
    LLVMPositionBuilderAtEnd(l->builder, block->block);
    block->lifted = true;
}

void lift_add_edge(struct lifter *l, struct lift_block *to) {
    struct lift_state *state = lift_allocate(l, sizeof *state);
    LLVMBasicBlockRef from = LLVMGetInsertBlock(l->builder);
    *state = l->state;
    struct lift_edge edge = {.block = from, .state = state};
    LLVMBuildBr(l->builder, to->block);
    if (!to->lifted) {
        if (to->edges < to->preds)
            to->edge[to->edges++] = edge;
        else
            l->refusal = "an edge that was not foreseen";
        return;
    }
    if (!to->is_header)
        l->refusal = "a loop that was not foreseen";
    for (unsigned reg = 0; reg < 16; reg++)
        if (to->phi[reg])
            feed_register(l, to->phi[reg], &edge, reg);
    if (to->phi_a)
        feed_flags(l, to, &edge);
}
