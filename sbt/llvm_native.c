/* Instructions that are copied: the guest's own bytes as inline assembly, its registers moved to where it
 * names them, its memory operand replaced as the template emitter does it. Flags go in and out through the
 * stack, which is the C stack here; its red zone is LLVM's. Nothing that could fault on the host is copied.
 */
#include "sbt/llvm_private.h"

#include <stdio.h>
#include <string.h>

static const char *const register_names[16] = {"rax", "rcx", "rdx", "rbx", "rsp", "rbp", "rsi", "rdi",
                                               "r8",  "r9",  "r10", "r11", "r12", "r13", "r14", "r15"};

/* For the memory operand: those first that an instruction with AH to BH can be given. */
static const uint8_t address_registers[] = {GPR_RBX, GPR_RSI, GPR_RDI, GPR_RCX, GPR_RDX, GPR_R10};

/* Only what is known to raise nothing that its operands' addresses do not. */
bool native_may_fault(const struct insn *insn) {
    if (insn->traits & (INSN_VECTOR | INSN_MASKED | INSN_VSIB))
        return true;
    switch (insn->z.mnemonic) {
    case ZYDIS_MNEMONIC_DIV:
    case ZYDIS_MNEMONIC_IDIV:
    case ZYDIS_MNEMONIC_CMPXCHG16B:
        return true;
    case ZYDIS_MNEMONIC_PAUSE:
    case ZYDIS_MNEMONIC_LFENCE:
    case ZYDIS_MNEMONIC_MFENCE:
    case ZYDIS_MNEMONIC_SFENCE:
    case ZYDIS_MNEMONIC_POPCNT:
    case ZYDIS_MNEMONIC_CRC32:
    case ZYDIS_MNEMONIC_MOVNTI:
        return false;
    default:
        break;
    }
    switch (insn->z.meta.category) {
    case ZYDIS_CATEGORY_ADOX_ADCX:
    case ZYDIS_CATEGORY_BINARY:
    case ZYDIS_CATEGORY_BITBYTE:
    case ZYDIS_CATEGORY_BMI1:
    case ZYDIS_CATEGORY_BMI2:
    case ZYDIS_CATEGORY_CMOV:
    case ZYDIS_CATEGORY_CONVERT:
    case ZYDIS_CATEGORY_DATAXFER:
    case ZYDIS_CATEGORY_FLAGOP:
    case ZYDIS_CATEGORY_LOGICAL:
    case ZYDIS_CATEGORY_LZCNT:
    case ZYDIS_CATEGORY_ROTATE:
    case ZYDIS_CATEGORY_SEMAPHORE:
    case ZYDIS_CATEGORY_SETCC:
    case ZYDIS_CATEGORY_SHIFT:
        return false;
    default:
        return true;
    }
}

/* General registers that are operands, not parts of an address. */
static void operand_registers(const struct insn *insn, uint16_t *used, uint16_t *written) {
    *used = *written = 0;
    for (unsigned i = 0; i < insn->z.operand_count; i++) {
        const ZydisDecodedOperand *op = &insn->op[i];
        int reg = op->type == ZYDIS_OPERAND_TYPE_REGISTER ? insn_gpr(op->reg.value) : -1;
        if (reg < 0)
            continue;
        *used |= (uint16_t)(1u << reg);
        if (op->actions & ZYDIS_OPERAND_ACTION_MASK_WRITE)
            *written |= (uint16_t)(1u << reg);
    }
}

static LLVMValueRef flags_to_word(struct lifter *l) {
    LLVMBuilderRef b = l->builder;
    LLVMValueRef packed = lift_resize(l, flags_pack(l, &l->state.flags), 64);
    LLVMValueRef high = LLVMBuildAnd(b, LLVMBuildLShr(b, packed, lift_constant(l, 8), ""),
                                     lift_constant(l, FLAGS_ARITHMETIC & 0xff), "");
    LLVMValueRef overflow =
        LLVMBuildShl(b, LLVMBuildAnd(b, packed, lift_constant(l, 1), ""), lift_constant(l, 11), "");
    return LLVMBuildOr(b, LLVMBuildOr(b, high, overflow, ""), lift_constant(l, FLAG_FIXED), "");
}

static LLVMValueRef word_to_flags(struct lifter *l, LLVMValueRef word) {
    LLVMBuilderRef b = l->builder;
    LLVMValueRef high = LLVMBuildShl(b, LLVMBuildAnd(b, word, lift_constant(l, FLAGS_ARITHMETIC & 0xff), ""),
                                     lift_constant(l, 8), "");
    LLVMValueRef overflow =
        LLVMBuildAnd(b, LLVMBuildLShr(b, word, lift_constant(l, 11), ""), lift_constant(l, 1), "");
    return lift_resize(l, LLVMBuildOr(b, high, overflow, ""), 32);
}

/* The linear address of the operand that a bit test in memory reaches. */
static LLVMValueRef bit_host(struct lifter *l, const struct insn *insn, const ZydisDecodedOperand *op,
                             enum vmem_access access) {
    LLVMBuilderRef b = l->builder;
    struct lift_address address = lift_operand_address(l, op);
    LLVMValueRef offset = lift_read_register(l, insn->op[1].reg.value);
    unsigned bytes = op->size / 8u;
    offset = LLVMBuildAShr(b, offset, LLVMConstInt(LLVMTypeOf(offset), bytes == 8 ? 6 : 5, false), "");
    offset = LLVMBuildIntCast2(b, offset, l->i64, true, "");
    offset = LLVMBuildShl(b, offset, lift_constant(l, bytes == 8 ? 3 : 2), "");
    struct lift_address unit = {.root = LLVMBuildAdd(b, address.root, offset, ""), .offset = address.offset};
    LLVMValueRef host = LLVMBuildPtrToInt(b, lift_check(l, &unit, bytes, access), l->i64, "");
    /* The instruction finds the unit by itself. */
    return LLVMBuildSub(b, host, offset, "");
}

struct native {
    char text[256], constraints[400];
    LLVMValueRef argument[20];
    LLVMTypeRef result[8];
    uint8_t result_register[8];
    unsigned arguments, results;
};

static void add_constraint(struct native *native, const char *format, unsigned number, const char *name) {
    size_t length = strlen(native->constraints);
    if (length)
        native->constraints[length++] = ',';
    snprintf(native->constraints + length, sizeof native->constraints - length, format, name ? name : "",
             number);
}

static void write_text(struct native *native, const uint8_t *bytes, size_t count, bool takes, bool gives,
                       unsigned taken, unsigned given) {
    size_t at = 0, size = sizeof native->text;
    if (takes || gives)
        at += (size_t)snprintf(native->text, size, "leaq -128(%%rsp), %%rsp\n\t");
    if (takes)
        at += (size_t)snprintf(native->text + at, size - at, "pushq $%u\n\tpopfq\n\t", taken);
    for (size_t i = 0; i < count; i++)
        at += (size_t)snprintf(native->text + at, size - at, "%s0x%02x", i ? "," : ".byte ", bytes[i]);
    if (gives)
        at += (size_t)snprintf(native->text + at, size - at, "\n\tpushfq\n\tpopq $%u", given);
    if (takes || gives)
        (void)snprintf(native->text + at, size - at, "\n\tleaq 128(%%rsp), %%rsp");
}

bool lift_native(struct lifter *l, const struct item *item) {
    const struct insn *insn = &item->insn;
    uint16_t used, written;
    struct host_memory memory = {.base = -1, .index = -1};
    LLVMValueRef host = NULL;
    struct native native = {.arguments = 0};
    operand_registers(insn, &used, &written);
    if (native_may_fault(insn) || used >> GPR_RSP & 1)
        return false;
    if (insn->memory >= 0) {
        const ZydisDecodedOperand *op = &insn->op[insn->memory];
        enum vmem_access access = op->actions & ZYDIS_OPERAND_ACTION_MASK_WRITE ? VMEM_WRITE : VMEM_READ;
        for (unsigned i = 0; i < ARRAY_SIZE(address_registers) && memory.base < 0; i++)
            if (!(used >> address_registers[i] & 1))
                memory.base = (int8_t)address_registers[i];
        if (memory.base < 0)
            return false;
        if (item->kind == KIND_BIT_MEMORY) {
            host = bit_host(l, insn, op, access);
        } else {
            struct lift_address address = lift_operand_address(l, op);
            host = LLVMBuildPtrToInt(l->builder, lift_check(l, &address, op->size / 8u, access), l->i64, "");
        }
    }
    uint8_t bytes[32];
    struct code_buffer code = {.start = bytes, .at = bytes, .end = bytes + sizeof bytes};
    if (!insn_encode(&code, insn, insn->memory >= 0 ? &memory : NULL) || code.overflow)
        return false;
    uint32_t flags_read = insn->flags_read & FLAGS_ARITHMETIC;
    uint32_t flags_written = insn->flags_written & FLAGS_ARITHMETIC;
    bool takes = flags_read || (flags_written && flags_written != FLAGS_ARITHMETIC);
    bool gives = flags_written;
    for (unsigned reg = 0; reg < 16; reg++) {
        if (!(written >> reg & 1))
            continue;
        add_constraint(&native, "={%s}", 0, register_names[reg]);
        native.result_register[native.results] = (uint8_t)reg;
        native.result[native.results++] = l->i64;
    }
    unsigned given = native.results;
    if (gives) {
        add_constraint(&native, "=&r%s", 0, NULL);
        native.result[native.results++] = l->i64;
    }
    for (unsigned i = 0; i < given; i++) {
        add_constraint(&native, "%s%u", i, NULL);
        native.argument[native.arguments++] = lift_get(l, &l->state, native.result_register[i]);
    }
    for (unsigned reg = 0; reg < 16; reg++) {
        if (!((used & ~written) >> reg & 1))
            continue;
        add_constraint(&native, "{%s}", 0, register_names[reg]);
        native.argument[native.arguments++] = lift_get(l, &l->state, reg);
    }
    if (host) {
        add_constraint(&native, "{%s}", 0, register_names[memory.base]);
        native.argument[native.arguments++] = host;
    }
    unsigned taken = native.results + native.arguments;
    if (takes) {
        add_constraint(&native, "r%s", 0, NULL);
        native.argument[native.arguments++] = flags_to_word(l);
    }
    add_constraint(&native, "%s~{memory},~{flags},~{dirflag},~{fpsr}", 0, NULL);
    write_text(&native, bytes, (size_t)(code.at - code.start), takes, gives, taken, given);
    LLVMTypeRef type = native.results == 0 ? LLVMVoidTypeInContext(l->context)
                       : native.results == 1
                           ? l->i64
                           : LLVMStructTypeInContext(l->context, native.result, native.results, false);
    LLVMValueRef result =
        lift_asm(l, type, native.text, native.constraints, native.argument, native.arguments, true);
    for (unsigned i = 0; i < native.results; i++) {
        LLVMValueRef value = native.results == 1 ? result : LLVMBuildExtractValue(l->builder, result, i, "");
        if (i == given)
            l->state.flags = flags_packed(word_to_flags(l, value));
        else
            lift_set(l, native.result_register[i], value);
    }
    return true;
}
