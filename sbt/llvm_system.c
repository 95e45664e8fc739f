/* System instructions that need no C: their effect on the vCPU's own words, as emit_system.c writes it. */
#include "sbt/llvm_private.h"

#include <stdio.h>

static LLVMValueRef byte(struct lifter *l, unsigned value) {
    return LLVMConstInt(l->i8, value, false);
}

static bool lift_rdtsc(struct lifter *l, bool with_processor) {
    LLVMTypeRef members[2] = {l->i64, l->i64};
    LLVMValueRef both = lift_asm(l, LLVMStructTypeInContext(l->context, members, 2, false), "rdtsc",
                                 "={rax},={rdx},~{flags},~{dirflag},~{fpsr}", NULL, 0, true);
    lift_set(l, GPR_RAX, LLVMBuildExtractValue(l->builder, both, 0, ""));
    lift_set(l, GPR_RDX, LLVMBuildExtractValue(l->builder, both, 1, ""));
    if (with_processor)
        lift_set(l, GPR_RCX, lift_resize(l, lift_load_area(l, AREA_VCPU(tsc_aux), l->i32, false), 64));
    return true;
}

LLVMValueRef lift_alias_is(struct lifter *l, LLVMIntPredicate predicate, enum area_alias alias) {
    LLVMValueRef now = lift_load_area(l, AREA_HOT(alias), l->i8, true);
    return LLVMBuildICmp(l->builder, predicate, now, byte(l, alias), "");
}

/* An interrupt that waits is met by the template's STI. IF is set before that is asked, and taken back then:
 * a kick that comes in between stops the vCPU at the next poll. */
static bool lift_sti(struct lifter *l) {
    LLVMValueRef before = lift_load_area(l, AREA_HOT(iflag), l->i8, true);
    lift_store_area(l, AREA_HOT(iflag), byte(l, 2), true);
    LLVMBasicBlockRef back = lift_new_block(l), on = lift_new_block(l);
    LLVMValueRef branch = LLVMBuildCondBr(l->builder, lift_alias_is(l, LLVMIntEQ, AREA_RUN), on, back);
    lift_set_likely(l, branch);
    LLVMPositionBuilderAtEnd(l->builder, back);
    lift_store_area(l, AREA_HOT(iflag), before, true);
    LLVMBuildBr(l->builder, lift_side_exit(l));
    LLVMPositionBuilderAtEnd(l->builder, on);
    return true;
}

static bool lift_set_ac(struct lifter *l, bool set) {
    lift_store_area(l, AREA_HOT(acflag), byte(l, set ? 4 : 0), true);
    lift_store_area(l, AREA_VCPU(view),
                    lift_load_area(l, set ? AREA_HOT(view_kernel_ac) : AREA_HOT(view_kernel), l->i64, false),
                    false);
    lift_store_area(l, AREA_HOT(stack_view), lift_load_area(l, AREA_VCPU(view), l->i64, false), false);
    lift_store_area(l, AREA_HOT(stack.page), lift_constant(l, VTLB_INVALID), false);
    lift_store_area(l, AREA_HOT(stack.addend), lift_constant(l, 0), false);
    lift_forget_view(l);
    return true;
}

static void lift_exchange(struct lifter *l, uint32_t one, uint32_t other) {
    LLVMValueRef first = lift_load_area(l, one, l->i64, false);
    lift_store_area(l, one, lift_load_area(l, other, l->i64, false), false);
    lift_store_area(l, other, first, false);
}

static bool lift_swapgs(struct lifter *l) {
    lift_exchange(l, AREA_VCPU(segment[SEG_GS].base), AREA_VCPU(kernel_gs_base));
    lift_exchange(l, AREA_HOT(percpu), AREA_HOT(percpu_swapped));
    l->state.segment_base[1] = NULL;
    return true;
}

static LLVMValueRef gather(struct lifter *l, LLVMValueRef image, uint32_t offset, unsigned shift) {
    LLVMValueRef flag = lift_resize(l, lift_load_area(l, offset, l->i8, true), 64);
    return LLVMBuildOr(l->builder, image, LLVMBuildShl(l->builder, flag, lift_constant(l, shift), ""), "");
}

static bool lift_pushf(struct lifter *l) {
    const uint32_t elsewhere = FLAGS_ARITHMETIC | FLAG_IF | FLAG_AC, others = 0x00fcffffu & ~elsewhere;
    LLVMBuilderRef b = l->builder;
    struct lift_address stack = lift_register_address(l, GPR_RSP, -8);
    LLVMValueRef host = lift_check(l, &stack, 8, VMEM_WRITE);
    LLVMValueRef image =
        LLVMBuildAnd(b, lift_load_area(l, AREA_VCPU(rflags), l->i64, false), lift_constant(l, others), "");
    LLVMValueRef packed = lift_resize(l, flags_pack(l, &l->state.flags), 64);
    LLVMValueRef low = LLVMBuildAnd(b, LLVMBuildLShr(b, packed, lift_constant(l, 8), ""),
                                    lift_constant(l, (FLAGS_ARITHMETIC & 0xff) | FLAG_FIXED), "");
    LLVMValueRef overflow =
        LLVMBuildShl(b, LLVMBuildAnd(b, packed, lift_constant(l, 1), ""), lift_constant(l, 11), "");
    image = LLVMBuildOr(b, LLVMBuildOr(b, image, low, ""), overflow, "");
    image = LLVMBuildOr(b, image, lift_constant(l, FLAG_FIXED), "");
    image = gather(l, image, AREA_HOT(iflag), 8);
    image = gather(l, image, AREA_HOT(acflag), 16);
    lift_store(l, host, image);
    lift_set_sum(l, GPR_RSP, stack.root, stack.offset);
    return true;
}

static bool lift_read_base(struct lifter *l) {
    const struct insn *insn = &l->insn->insn;
    bool is_fs = insn->z.mnemonic == ZYDIS_MNEMONIC_RDFSBASE;
    LLVMValueRef base = lift_load_area(
        l, is_fs ? AREA_VCPU(segment[SEG_FS].base) : AREA_VCPU(segment[SEG_GS].base), l->i64, false);
    lift_write_register(l, insn->op[0].reg.value, lift_resize(l, base, insn->op[0].size));
    return true;
}

static bool lift_read_selector(struct lifter *l) {
    const struct insn *insn = &l->insn->insn;
    unsigned segment = (unsigned)(insn->op[1].reg.value - ZYDIS_REGISTER_ES);
    LLVMValueRef selector =
        lift_load_area(l, AREA_VCPU(segment) + (uint32_t)(segment * sizeof(struct segment)), l->i16, false);
    lift_write_register(l, insn->op[0].reg.value, lift_resize(l, selector, insn->op[0].size));
    return true;
}

/* REP MOVS and STOS inside one page on either side; anything else is the template's, and the helper's there.
 */
static bool lift_rep(struct lifter *l) {
    const struct insn *insn = &l->insn->insn;
    LLVMBuilderRef b = l->builder;
    unsigned bytes = insn->op[0].size / 8u, scale = (unsigned)__builtin_ctz(bytes);
    bool stores =
        insn->z.meta.category == ZYDIS_CATEGORY_STRINGOP && insn->op[1].type == ZYDIS_OPERAND_TYPE_REGISTER;
    static const char suffix[4] = {'b', 'w', 'l', 'q'};
    LLVMValueRef count = lift_get(l, &l->state, GPR_RCX), to = lift_get(l, &l->state, GPR_RDI), from;
    LLVMValueRef some = LLVMBuildSub(b, count, lift_constant(l, 1), "");
    lift_require(l, LLVMBuildICmp(b, LLVMIntULT, some, lift_constant(l, PAGE_SIZE >> scale), ""));
    LLVMValueRef length = LLVMBuildShl(b, count, lift_constant(l, scale), "");
    LLVMValueRef less = LLVMBuildSub(b, length, lift_constant(l, 1), "");
    LLVMValueRef to_addend = lift_probe(l, to, LLVMBuildAdd(b, to, less, ""), true);
    LLVMValueRef argument[3] = {LLVMBuildAdd(b, to, to_addend, ""), NULL, count};
    char text[16] = "rep ";
    snprintf(text + 4, sizeof text - 4, "%s%c", stores ? "stos" : "movs", suffix[scale]);
    LLVMTypeRef members[3] = {l->i64, l->i64, l->i64};
    if (stores) {
        argument[1] = lift_get(l, &l->state, GPR_RAX);
        (void)lift_asm(l, LLVMStructTypeInContext(l->context, members, 2, false), text,
                       "={rdi},={rcx},0,{rax},1,~{memory},~{dirflag},~{flags},~{fpsr}", argument, 3, true);
    } else {
        from = lift_get(l, &l->state, GPR_RSI);
        LLVMValueRef from_addend = lift_probe(l, from, LLVMBuildAdd(b, from, less, ""), false);
        argument[1] = LLVMBuildAdd(b, from, from_addend, "");
        (void)lift_asm(l, LLVMStructTypeInContext(l->context, members, 3, false), text,
                       "={rdi},={rsi},={rcx},0,1,2,~{memory},~{dirflag},~{flags},~{fpsr}", argument, 3, true);
        lift_set(l, GPR_RSI, LLVMBuildAdd(b, from, length, ""));
    }
    lift_set(l, GPR_RDI, LLVMBuildAdd(b, to, length, ""));
    lift_set(l, GPR_RCX, lift_constant(l, 0));
    return true;
}

bool lift_system(struct lifter *l, const struct item *item) {
    switch (item->kind) {
    case KIND_RDTSC:
        return lift_rdtsc(l, false);
    case KIND_RDTSCP:
        return lift_rdtsc(l, true);
    case KIND_CLI:
        lift_store_area(l, AREA_HOT(iflag), byte(l, 0), true);
        return true;
    case KIND_STI:
        return lift_sti(l);
    case KIND_STAC:
    case KIND_CLAC:
        return lift_set_ac(l, item->kind == KIND_STAC);
    case KIND_SWAPGS:
        return lift_swapgs(l);
    case KIND_PUSHF:
        return lift_pushf(l);
    case KIND_REP:
        return lift_rep(l);
    case KIND_READ_BASE:
        return lift_read_base(l);
    case KIND_READ_SELECTOR:
        return lift_read_selector(l);
    default:
        return false;
    }
}
