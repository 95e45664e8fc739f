/* From guest code to LLVM IR: regions one after the other, their blocks in reverse post-order. What ends a
 * block is here; what stands inside one in llvm_insn.c.
 *
 * A vCPU that shall stop is noticed at every branch backwards, by a look at which alias of the area GS shows
 * (dbt/area.h): so no path runs for long without one, and what is left there has the whole state at hand.
 */
#include "sbt/llvm_private.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

struct chunk {
    struct chunk *next;
    _Alignas(16) uint8_t bytes[];
};

void *lift_allocate(struct lifter *l, size_t size) {
    struct chunk *chunk = calloc(1, sizeof *chunk + size);
    if (!chunk)
        abort(); /* as LLVM itself does */
    chunk->next = l->chunk;
    l->chunk = chunk;
    return chunk->bytes;
}

void lift_release(struct lifter *l) {
    for (struct chunk *chunk = l->chunk, *next; chunk; chunk = next) {
        next = chunk->next;
        free(chunk);
    }
    l->chunk = NULL;
}

LLVMBasicBlockRef lift_new_block(struct lifter *l) {
    return LLVMAppendBasicBlockInContext(l->context, l->function, "");
}

void lift_set_likely(struct lifter *l, LLVMValueRef branch) {
    LLVMSetMetadata(branch, l->prof_kind, l->likely);
}

static LLVMValueRef new_function(struct lifter *l, char kind, unsigned number) {
    char name[16];
    snprintf(name, sizeof name, "%c%u", kind, number);
    LLVMValueRef function = LLVMAddFunction(l->module, name, l->region_type);
    LLVMSetFunctionCallConv(function, LLVM_PRESERVE_NONE);
    LLVMSetVisibility(function, LLVMHiddenVisibility);
    return function;
}

static bool same_exit(const struct site *a, const struct site *b) {
    return a->kind == b->kind && (a->kind == SITE_LINK || a->kind == SITE_UNGROUPED) &&
           a->target == b->target && (a->kind == SITE_LINK || a->guest == b->guest);
}

unsigned lift_new_exit(struct lifter *l, const struct site *site) {
    for (unsigned i = 0; i < l->exits; i++)
        if (same_exit(&l->exit[i].site, site))
            return i;
    if (l->exits == LIFT_EXITS_MAX) {
        l->refusal = "too many exits";
        l->exits--;
    }
    struct lift_exit *exit = &l->exit[l->exits];
    exit->site = *site;
    exit->site.flags_saved = true;
    exit->shim = new_function(l, 'x', l->exits);
    return l->exits++;
}

static struct lift_cold *new_cold(struct lifter *l, const struct lift_state *state, unsigned exit) {
    struct lift_cold *cold = lift_allocate(l, sizeof *cold);
    cold->block = lift_new_block(l);
    cold->state = *state;
    cold->exit = exit;
    cold->next = l->cold;
    l->cold = cold;
    return cold;
}

/* The state's flags may be merged ones, whose kinds are known when the region is complete: fill it in then.
 */
void lift_leave(struct lifter *l, unsigned exit) {
    LLVMBuildBr(l->builder, new_cold(l, &l->state, exit)->block);
}

static LLVMBasicBlockRef template_at(struct lifter *l, const struct lift_state *state, uint16_t guest) {
    const struct site site = {.kind = SITE_UNGROUPED, .guest = guest};
    return new_cold(l, state, lift_new_exit(l, &site))->block;
}

LLVMBasicBlockRef lift_side_exit(struct lifter *l) {
    if (!l->side)
        l->side = template_at(l, &l->before, l->insn->guest);
    return l->side;
}

void lift_require(struct lifter *l, LLVMValueRef condition) {
    LLVMBasicBlockRef on = lift_new_block(l);
    lift_set_likely(l, LLVMBuildCondBr(l->builder, condition, on, lift_side_exit(l)));
    LLVMPositionBuilderAtEnd(l->builder, on);
}

static void call_region(struct lifter *l, LLVMValueRef function, struct lift_state *state) {
    LLVMValueRef arguments[LIFT_ARGUMENTS];
    lift_canonical(l, state, arguments);
    LLVMValueRef call = LLVMBuildCall2(l->builder, l->region_type, function, arguments, LIFT_ARGUMENTS, "");
    LLVMSetInstructionCallConv(call, LLVM_PRESERVE_NONE);
    LLVMSetTailCallKind(call, LLVMTailCallKindMustTail);
    LLVMBuildRetVoid(l->builder);
}

static struct site link_site(int64_t target) {
    return (struct site){.kind = SITE_LINK, .target = (int32_t)target};
}

/* To guest code at an offset from the unit's address. Ends the LLVM block. */
static void go_to(struct lifter *l, int64_t offset) {
    uint32_t number = lift_block_at(l, offset);
    if (number == NO_INDEX) {
        if (offset != (int32_t)offset)
            l->refusal = "a branch out of reach";
        const struct site site = link_site(offset);
        lift_leave(l, lift_new_exit(l, &site));
        return;
    }
    struct lift_block *to = &l->block[number];
    if (offset <= l->insn->guest) {
        LLVMBasicBlockRef on = lift_new_block(l);
        LLVMBasicBlockRef stop = template_at(l, &l->state, (uint16_t)offset);
        lift_set_likely(l, LLVMBuildCondBr(l->builder, lift_alias_is(l, LLVMIntNE, AREA_STOP), on, stop));
        LLVMPositionBuilderAtEnd(l->builder, on);
    }
    if (to->region == l->head) {
        lift_add_edge(l, to);
        return;
    }
    struct lift_cold *cold = new_cold(l, &l->state, 0);
    cold->region = to->function;
    LLVMBuildBr(l->builder, cold->block);
}

static void branch(struct lifter *l, LLVMValueRef condition, int64_t taken, int64_t behind) {
    if (taken == behind) { /* one edge, as llvm_cfg.c counts them */
        go_to(l, behind);
        return;
    }
    LLVMBasicBlockRef yes = lift_new_block(l), no = lift_new_block(l);
    struct lift_state *state = lift_allocate(l, sizeof *state);
    LLVMBuildCondBr(l->builder, condition, yes, no);
    *state = l->state;
    LLVMPositionBuilderAtEnd(l->builder, yes);
    go_to(l, taken);
    l->state = *state;
    LLVMPositionBuilderAtEnd(l->builder, no);
    go_to(l, behind);
}

static void lift_jcxz(struct lifter *l, const struct item *item, int64_t behind) {
    bool loop = item->insn.z.mnemonic == ZYDIS_MNEMONIC_LOOP;
    if (loop) {
        struct lift_address less = lift_register_address(l, GPR_RCX, -1);
        lift_set_sum(l, GPR_RCX, less.root, less.offset);
    }
    LLVMValueRef rcx = lift_get(l, &l->state, GPR_RCX);
    LLVMValueRef condition =
        LLVMBuildICmp(l->builder, loop ? LLVMIntNE : LLVMIntEQ, rcx, lift_constant(l, 0), "");
    branch(l, condition, lift_target(item), behind);
}

static void push_return(struct lifter *l, int64_t behind) {
    struct lift_address stack = lift_register_address(l, GPR_RSP, -8);
    LLVMValueRef host = lift_check(l, &stack, 8, VMEM_WRITE);
    LLVMValueRef back =
        LLVMBuildAdd(l->builder, lift_guest_address(l), lift_constant(l, (uint64_t)behind), "");
    lift_store(l, host, back);
    lift_set_sum(l, GPR_RSP, stack.root, stack.offset);
}

static LLVMValueRef indirect_target(struct lifter *l, const struct item *item) {
    const ZydisDecodedOperand *op = &item->insn.op[0];
    if (op->type == ZYDIS_OPERAND_TYPE_REGISTER)
        return lift_get(l, &l->state, (unsigned)insn_gpr(op->reg.value));
    struct lift_address address = lift_operand_address(l, op);
    return lift_load(l, lift_check(l, &address, 8, VMEM_READ), 64);
}

static void leave_indirect(struct lifter *l, const struct item *item, LLVMValueRef target) {
    const struct site site = {.kind = SITE_JUMP_MISS, .guest = item->guest, .length = item->insn.length};
    lift_store_area(l, AREA_HOT(target), target, false);
    lift_leave(l, lift_new_exit(l, &site));
}

static void lift_ret(struct lifter *l, const struct item *item) {
    int64_t release =
        item->insn.z.operand_count_visible ? (int64_t)(item->insn.op[0].imm.value.u & 0xffff) : 0;
    struct lift_address stack = lift_register_address(l, GPR_RSP, 0);
    LLVMValueRef target = lift_load(l, lift_check(l, &stack, 8, VMEM_READ), 64);
    lift_set_sum(l, GPR_RSP, stack.root, stack.offset + 8 + release);
    leave_indirect(l, item, target);
}

/* To C, which goes on in the region behind it if it may. */
static void leave_for_c(struct lifter *l, const struct item *item, enum site_kind kind) {
    struct site site = {
        .kind = (uint8_t)kind, .guest = item->guest, .length = item->insn.length, .host = NO_INDEX};
    if (kind == SITE_HELPER) {
        unit_describe_helper(item, &site);
        if (item->helper == HELPER_INVLPG || item->helper == HELPER_XSTATE) {
            struct lift_address address = lift_operand_address(l, &item->insn.op[0]);
            LLVMValueRef sum =
                LLVMBuildAdd(l->builder, address.root, lift_constant(l, (uint64_t)address.offset), "");
            lift_store_area(l, AREA_HOT(value), sum, false);
        }
        site.host = lift_block_at(l, (int64_t)item->guest + item->insn.length);
    }
    lift_leave(l, lift_new_exit(l, &site));
}

static void lift_end(struct lifter *l, const struct item *item) {
    int64_t behind = (int64_t)item->guest + item->insn.length;
    LLVMValueRef target;
    switch (item->kind) {
    case KIND_JCC:
        branch(l, flags_condition(l, &l->state.flags, item->insn.z.opcode & 15), lift_target(item), behind);
        break;
    case KIND_JCXZ:
        lift_jcxz(l, item, behind);
        break;
    case KIND_JMP:
        go_to(l, lift_target(item));
        break;
    case KIND_CALL:
        push_return(l, behind);
        go_to(l, lift_target(item));
        break;
    case KIND_JMP_INDIRECT:
        leave_indirect(l, item, indirect_target(l, item));
        break;
    case KIND_CALL_INDIRECT:
        target = indirect_target(l, item);
        push_return(l, behind);
        leave_indirect(l, item, target);
        break;
    case KIND_RET:
        lift_ret(l, item);
        break;
    case KIND_HELPER:
    case KIND_HELPER_END:
        leave_for_c(l, item, SITE_HELPER);
        break;
    default:
        leave_for_c(l, item, SITE_INTERPRET);
        break;
    }
}

static void lift_block(struct lifter *l, uint32_t number) {
    struct lift_block *block = &l->block[number];
    const struct item *item = &l->item[block->first];
    l->current = number;
    lift_block_enter(l, block);
    for (uint32_t i = 0; i < block->count; i++) {
        l->insn = item;
        l->before = l->state;
        l->side = NULL;
        if (item->kind >= KIND_JCC && !(item->kind == KIND_JCXZ && item->insn.z.address_width != 64)) {
            lift_end(l, item);
            return;
        }
        if (!lift_item(l, item)) {
            LLVMBuildBr(l->builder, lift_side_exit(l));
            return;
        }
        if (i + 1 < block->count)
            item = &l->item[l->at[item->guest + item->insn.length]];
    }
    go_to(l, (int64_t)item->guest + item->insn.length);
}

static void order_region(struct lifter *l, uint32_t number) {
    struct lift_block *block = &l->block[number];
    block->queued = true;
    for (unsigned k = block->nexts; k-- > 0;) {
        const struct lift_block *next = &l->block[block->next[k]];
        if (!next->queued && next->region == l->head)
            order_region(l, block->next[k]);
    }
    l->order[--l->ordered] = number;
}

static void look_at_region(struct lifter *l) {
    l->written = 0;
    l->view_changes = false;
    for (uint32_t i = l->ordered; i < l->blocks; i++) {
        const struct lift_block *block = &l->block[l->order[i]];
        const struct item *item = &l->item[block->first];
        for (uint32_t k = 0; k < block->count; k++) {
            l->written |= item->insn.gprs_written;
            if (item->kind == KIND_PUSH || item->kind == KIND_POP || item->kind == KIND_PUSHF ||
                item->kind == KIND_CALL || item->kind == KIND_CALL_INDIRECT || item->kind == KIND_RET)
                l->written |= 1u << GPR_RSP;
            if (item->kind == KIND_LEAVE)
                l->written |= 1u << GPR_RSP | 1u << GPR_RBP;
            l->view_changes |=
                item->kind == KIND_STAC || item->kind == KIND_CLAC || item->kind == KIND_SWAPGS;
            if (k + 1 < block->count)
                item = &l->item[l->at[item->guest + item->insn.length]];
        }
    }
}

static void fill_cold(struct lifter *l) {
    l->complete = true;
    for (struct lift_cold *cold = l->cold; cold; cold = cold->next) {
        LLVMPositionBuilderAtEnd(l->builder, cold->block);
        call_region(l, cold->region ? cold->region : l->exit[cold->exit].shim, &cold->state);
    }
    l->cold = NULL;
}

static void lift_region(struct lifter *l, uint32_t head) {
    l->head = head;
    l->function = l->block[head].function;
    l->address = NULL;
    l->cold = NULL;
    l->complete = false;
    memset(l->merged_kinds, 0, sizeof l->merged_kinds);
    l->ordered = l->blocks;
    order_region(l, head);
    look_at_region(l);
    LLVMBasicBlockRef entry = lift_new_block(l);
    for (uint32_t i = l->ordered; i < l->blocks; i++) {
        struct lift_block *block = &l->block[l->order[i]];
        block->block = lift_new_block(l);
        block->edge = lift_allocate(l, block->preds * sizeof *block->edge);
    }
    LLVMPositionBuilderAtEnd(l->builder, entry);
    lift_state_enter(l);
    lift_add_edge(l, &l->block[head]);
    for (uint32_t i = l->ordered; i < l->blocks; i++) {
        if (l->block[l->order[i]].edges)
            lift_block(l, l->order[i]);
        else
            LLVMDeleteBasicBlock(l->block[l->order[i]].block);
    }
    fill_cold(l);
}

static void set_attributes(struct lifter *l, LLVMValueRef function) {
    static const char *const names[] = {"nounwind", "noimplicitfloat", "noinline", "null_pointer_is_valid"};
    for (unsigned i = 0; i < ARRAY_SIZE(names); i++) {
        unsigned kind = LLVMGetEnumAttributeKindForName(names[i], strlen(names[i]));
        LLVMAddAttributeAtIndex(function, LLVMAttributeFunctionIndex,
                                LLVMCreateEnumAttribute(l->context, kind, 0));
    }
    static const char *const words[][2] = {
        {"target-features", LLVM_FEATURES}, {"no-jump-tables", "true"}, {"frame-pointer", "none"}};
    for (unsigned i = 0; i < ARRAY_SIZE(words); i++)
        LLVMAddAttributeAtIndex(function, LLVMAttributeFunctionIndex,
                                LLVMCreateStringAttribute(l->context, words[i][0],
                                                          (unsigned)strlen(words[i][0]), words[i][1],
                                                          (unsigned)strlen(words[i][1])));
}

static LLVMValueRef alias_class(struct lifter *l, LLVMMetadataRef root, const char *name) {
    LLVMMetadataRef zero = LLVMValueAsMetadata(LLVMConstInt(l->i64, 0, false));
    LLVMMetadataRef type[3] = {LLVMMDStringInContext2(l->context, name, strlen(name)), root, zero};
    LLVMMetadataRef node = LLVMMDNodeInContext2(l->context, type, 3);
    LLVMMetadataRef access[3] = {node, node, zero};
    return LLVMMetadataAsValue(l->context, LLVMMDNodeInContext2(l->context, access, 3));
}

static void make_metadata(struct lifter *l) {
    LLVMMetadataRef name = LLVMMDStringInContext2(l->context, "nestor", 6);
    LLVMMetadataRef root = LLVMMDNodeInContext2(l->context, &name, 1);
    l->alias[LIFT_GUEST] = alias_class(l, root, "guest");
    l->alias[LIFT_AREA] = alias_class(l, root, "area");
    l->alias[LIFT_TLB] = alias_class(l, root, "tlb");
    LLVMMetadataRef weights[3] = {LLVMMDStringInContext2(l->context, "branch_weights", 14),
                                  LLVMValueAsMetadata(LLVMConstInt(l->i32, 100000, false)),
                                  LLVMValueAsMetadata(LLVMConstInt(l->i32, 1, false))};
    l->likely = LLVMMetadataAsValue(l->context, LLVMMDNodeInContext2(l->context, weights, 3));
    l->alias_kind = LLVMGetMDKindIDInContext(l->context, "tbaa", 4);
    l->prof_kind = LLVMGetMDKindIDInContext(l->context, "prof", 4);
    l->invariant_kind = LLVMGetMDKindIDInContext(l->context, "invariant.load", 14);
}

static void make_types(struct lifter *l) {
    LLVMTypeRef arguments[LIFT_ARGUMENTS];
    l->i1 = LLVMInt1TypeInContext(l->context);
    l->i8 = LLVMInt8TypeInContext(l->context);
    l->i16 = LLVMInt16TypeInContext(l->context);
    l->i32 = LLVMInt32TypeInContext(l->context);
    l->i64 = LLVMInt64TypeInContext(l->context);
    l->pointer = LLVMPointerTypeInContext(l->context, 0);
    l->area_pointer = LLVMPointerTypeInContext(l->context, 256); /* GS, in LLVM's x86 backend */
    for (unsigned i = 0; i < LIFT_ARGUMENTS; i++)
        arguments[i] = l->i64;
    l->region_type = LLVMFunctionType(LLVMVoidTypeInContext(l->context), arguments, LIFT_ARGUMENTS, false);
}

bool lift_function(struct lifter *l) {
    l->exits = 0;
    if (!lift_discover(l))
        return false;
    make_types(l);
    make_metadata(l);
    l->address_word = LLVMAddGlobal(l->module, l->i64, "address");
    LLVMSetVisibility(l->address_word, LLVMHiddenVisibility);
    l->order = lift_allocate(l, l->blocks * sizeof *l->order);
    for (uint32_t i = 0; i < l->blocks; i++) {
        if (!l->block[i].head)
            continue;
        l->block[i].function = new_function(l, 'r', i);
        set_attributes(l, l->block[i].function);
    }
    for (uint32_t i = 0; i < l->blocks && !l->refusal; i++)
        if (l->block[i].head)
            lift_region(l, i);
    return !l->refusal;
}
