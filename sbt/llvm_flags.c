/* Arithmetic flags inside a region: kept as the operation that made them, and made only where something asks.
 *
 * Conditions are comparisons of the operands. The packed word of hot.flags (AH: SF ZF AF PF CF, AL: OF) is
 * made by repeating the operation on copies and taking LAHF and SETO of it, so that what the manuals leave
 * undefined is what the processor does. Where paths meet and no one reads the flags before they are written
 * again, only the number of the operation and its operands are merged: an exit works the word out.
 */
#include "sbt/llvm_private.h"

#include <stdio.h>
#include <string.h>

#define PACKED_OF 0
#define PACKED_CF 8
#define PACKED_PF 10
#define PACKED_ZF 14
#define PACKED_SF 15

struct lift_flags flags_make(enum flags_kind kind, LLVMValueRef a, LLVMValueRef b, LLVMValueRef c,
                             LLVMValueRef result) {
    return (struct lift_flags){
        .kind = kind, .width = LLVMGetIntTypeWidth(LLVMTypeOf(a)), .a = a, .b = b, .c = c, .result = result};
}

struct lift_flags flags_packed(LLVMValueRef packed) {
    return (struct lift_flags){.kind = FLAGS_PACKED, .width = 32, .a = packed, .packed = packed};
}

LLVMValueRef lift_asm(struct lifter *l, LLVMTypeRef type, const char *text, const char *constraints,
                      LLVMValueRef *arguments, unsigned count, bool effects) {
    LLVMTypeRef types[24];
    for (unsigned i = 0; i < count; i++)
        types[i] = LLVMTypeOf(arguments[i]);
    LLVMTypeRef function = LLVMFunctionType(type, types, count, false);
    LLVMValueRef code = LLVMGetInlineAsm(function, text, strlen(text), constraints, strlen(constraints),
                                         effects, false, LLVMInlineAsmDialectATT, false);
    return LLVMBuildCall2(l->builder, function, code, arguments, count, "");
}

#define CLOBBERS "~{flags},~{dirflag},~{fpsr}"

/* $0: AX, $1: a scratch that starts as a, $3: b; with a carry, $2: one that starts as c, $4: b. M: the
 * operand's modifier. */
static const char *const operation[FLAGS_KINDS] = {
    [FLAGS_LOGIC] = "test ${1:M}, ${1:M}",
    [FLAGS_ADD] = "add ${3:M}, ${1:M}",
    [FLAGS_SUB] = "cmp ${3:M}, ${1:M}",
    [FLAGS_ADC] = "addb $$-1, ${2:b}\n\tadc ${4:M}, ${1:M}",
    [FLAGS_SBB] = "addb $$-1, ${2:b}\n\tsbb ${4:M}, ${1:M}",
    [FLAGS_INC] = "addb $$-1, ${2:b}\n\tinc ${1:M}",
    [FLAGS_DEC] = "addb $$-1, ${2:b}\n\tdec ${1:M}",
    [FLAGS_SHL] = "shl %cl, ${1:M}",
    [FLAGS_SHR] = "shr %cl, ${1:M}",
    [FLAGS_SAR] = "sar %cl, ${1:M}",
    [FLAGS_IMUL] = "imul ${3:M}, ${1:M}",
};

static LLVMValueRef pack_operation(struct lifter *l, enum flags_kind kind, unsigned width, LLVMValueRef a,
                                   LLVMValueRef b, LLVMValueRef c) {
    char text[128], *to = text;
    char modifier = width == 8 ? 'b' : width == 16 ? 'w' : width == 32 ? 'k' : 'q';
    bool shift = kind >= FLAGS_SHL && kind <= FLAGS_SAR;
    for (const char *from = operation[kind]; *from; from++)
        *to++ = *from == 'M' ? modifier : *from;
    strcpy(to, "\n\tlahf\n\tseto %al");
    if (!b)
        b = a;
    if (!c)
        c = LLVMConstInt(l->i64, 0, false);
    LLVMValueRef arguments[3] = {lift_resize(l, a, 64), lift_resize(l, b, 64), lift_resize(l, c, 64)};
    LLVMTypeRef members[3] = {l->i64, l->i64, l->i64};
    bool carry = kind == FLAGS_ADC || kind == FLAGS_SBB || kind == FLAGS_INC || kind == FLAGS_DEC;
    LLVMTypeRef type = LLVMStructTypeInContext(l->context, members, carry ? 3 : 2, false);
    /* Early-clobber where an operand is read after the first one was written. */
    LLVMValueRef both =
        carry ? lift_asm(l, type, text, /* outputs 0 AX, 1 a, 2 c; inputs a (1), b, c (2): b is $4 */
                         "={ax},=&r,=&r,1,r,2," CLOBBERS, arguments, 3, false)
              : lift_asm(l, type, text, shift ? "={ax},=r,1,{cx}," CLOBBERS : "={ax},=r,1,r," CLOBBERS,
                         arguments, 2, false);
    return LLVMBuildTrunc(l->builder, LLVMBuildExtractValue(l->builder, both, 0, ""), l->i32, "");
}

/* Numbers for FLAGS_MERGED. */
static unsigned encode(enum flags_kind kind, unsigned width) {
    unsigned log = width == 8 ? 0 : width == 16 ? 1 : width == 32 ? 2 : 3;
    return (unsigned)kind * 4 + (kind == FLAGS_PACKED ? 0 : log);
}

/* One of the kinds that the region's merges may stand for: all are known when its cold blocks are filled in.
 */
static LLVMValueRef pack_merged(struct lifter *l, const struct lift_flags *flags) {
    if (!l->complete)
        l->refusal = "merged flags are read";
    LLVMValueRef packed = LLVMBuildTrunc(l->builder, flags->a, l->i32, "");
    for (unsigned number = 4; number < FLAGS_KINDS * 4; number++) {
        if (!(l->merged_kinds[number / 32] >> number % 32 & 1))
            continue;
        enum flags_kind kind = (enum flags_kind)(number / 4);
        LLVMValueRef is =
            LLVMBuildICmp(l->builder, LLVMIntEQ, flags->which, LLVMConstInt(l->i32, number, false), "");
        LLVMValueRef word = pack_operation(l, kind, 8u << number % 4, flags->a, flags->b, flags->c);
        packed = LLVMBuildSelect(l->builder, is, word, packed, "");
    }
    return packed;
}

LLVMValueRef flags_pack(struct lifter *l, struct lift_flags *flags) {
    if (flags->packed)
        return flags->packed;
    LLVMValueRef packed = flags->kind == FLAGS_MERGED
                              ? pack_merged(l, flags)
                              : pack_operation(l, flags->kind, flags->width, flags->a, flags->b, flags->c);
    flags->packed = packed;
    return packed;
}

static LLVMValueRef packed_bit(struct lifter *l, struct lift_flags *flags, unsigned bit) {
    LLVMValueRef word = flags_pack(l, flags);
    return LLVMBuildTrunc(l->builder, LLVMBuildLShr(l->builder, word, LLVMConstInt(l->i32, bit, false), ""),
                          l->i1, "");
}

static LLVMValueRef zero_of(LLVMValueRef value) {
    return LLVMConstNull(LLVMTypeOf(value));
}

static LLVMValueRef is_zero(struct lifter *l, struct lift_flags *flags) {
    if (flags->kind == FLAGS_SUB)
        return LLVMBuildICmp(l->builder, LLVMIntEQ, flags->a, flags->b, "");
    if (flags->result)
        return LLVMBuildICmp(l->builder, LLVMIntEQ, flags->result, zero_of(flags->result), "");
    return packed_bit(l, flags, PACKED_ZF);
}

static LLVMValueRef is_negative(struct lifter *l, struct lift_flags *flags) {
    if (flags->result)
        return LLVMBuildICmp(l->builder, LLVMIntSLT, flags->result, zero_of(flags->result), "");
    return packed_bit(l, flags, PACKED_SF);
}

LLVMValueRef flags_carry(struct lifter *l, struct lift_flags *flags) {
    switch (flags->kind) {
    case FLAGS_SUB:
        return LLVMBuildICmp(l->builder, LLVMIntULT, flags->a, flags->b, "");
    case FLAGS_ADD:
        return LLVMBuildICmp(l->builder, LLVMIntULT, flags->result, flags->a, "");
    case FLAGS_LOGIC:
        return LLVMConstNull(l->i1);
    case FLAGS_INC:
    case FLAGS_DEC:
        return flags->c;
    default:
        return packed_bit(l, flags, PACKED_CF);
    }
}

static LLVMValueRef is_overflow(struct lifter *l, struct lift_flags *flags) {
    LLVMBuilderRef b = l->builder;
    LLVMValueRef mixed;
    switch (flags->kind) {
    case FLAGS_LOGIC:
        return LLVMConstNull(l->i1);
    case FLAGS_SUB:
        mixed = LLVMBuildAnd(b, LLVMBuildXor(b, flags->a, flags->b, ""),
                             LLVMBuildXor(b, flags->a, flags->result, ""), "");
        break;
    case FLAGS_ADD:
        mixed = LLVMBuildAnd(b, LLVMBuildXor(b, flags->a, flags->result, ""),
                             LLVMBuildXor(b, flags->b, flags->result, ""), "");
        break;
    default:
        return packed_bit(l, flags, PACKED_OF);
    }
    return LLVMBuildICmp(b, LLVMIntSLT, mixed, zero_of(mixed), "");
}

static LLVMValueRef is_less(struct lifter *l, struct lift_flags *flags) {
    if (flags->kind == FLAGS_SUB)
        return LLVMBuildICmp(l->builder, LLVMIntSLT, flags->a, flags->b, "");
    return LLVMBuildXor(l->builder, is_negative(l, flags), is_overflow(l, flags), "");
}

static LLVMValueRef is_less_or_equal(struct lifter *l, struct lift_flags *flags) {
    if (flags->kind == FLAGS_SUB)
        return LLVMBuildICmp(l->builder, LLVMIntSLE, flags->a, flags->b, "");
    return LLVMBuildOr(l->builder, is_less(l, flags), is_zero(l, flags), "");
}

static LLVMValueRef is_below_or_equal(struct lifter *l, struct lift_flags *flags) {
    if (flags->kind == FLAGS_SUB)
        return LLVMBuildICmp(l->builder, LLVMIntULE, flags->a, flags->b, "");
    return LLVMBuildOr(l->builder, flags_carry(l, flags), is_zero(l, flags), "");
}

LLVMValueRef flags_condition(struct lifter *l, struct lift_flags *flags, unsigned condition) {
    LLVMValueRef value;
    switch (condition >> 1 & 7) {
    case 0:
        value = is_overflow(l, flags);
        break;
    case 1:
        value = flags_carry(l, flags);
        break;
    case 2:
        value = is_zero(l, flags);
        break;
    case 3:
        value = is_below_or_equal(l, flags);
        break;
    case 4:
        value = is_negative(l, flags);
        break;
    case 5:
        value = packed_bit(l, flags, PACKED_PF);
        break;
    case 6:
        value = is_less(l, flags);
        break;
    default:
        value = is_less_or_equal(l, flags);
        break;
    }
    return condition & 1 ? LLVMBuildNot(l->builder, value, "") : value;
}

void flags_spread(struct lifter *l, struct lift_flags *flags, LLVMValueRef out[4]) {
    LLVMValueRef zero = lift_constant(l, 0);
    if (flags->kind == FLAGS_MERGED) {
        out[0] = flags->which;
        out[1] = flags->a;
        out[2] = flags->b;
        out[3] = flags->c;
        return;
    }
    unsigned number = encode(flags->kind, flags->width);
    l->merged_kinds[number / 32] |= 1u << number % 32;
    out[0] = LLVMConstInt(l->i32, number, false);
    out[1] = lift_resize(l, flags->a, 64);
    out[2] = flags->b ? lift_resize(l, flags->b, 64) : zero;
    out[3] = flags->c ? lift_resize(l, flags->c, 64) : zero;
}
