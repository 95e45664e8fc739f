/* Comparison of end states. Exact, but for:
 *  - arithmetic flags that the manual leaves undefined at the place where the stream ended (rules.c);
 *  - arithmetic flags, after a fault inside a repeated comparison (rules.h);
 *  - within the page, the CR2 of a fault on a state image or a masked operand (rules.h);
 *  - whether a misaligned state image is #GP or #AC (rules.h);
 *  - everything after a repeated store that overwrote itself (rules.h);
 *  - everything after an access around the end of a segment of 4 GiB that is #GP natively: the SDM (vol.
 * 3, 5.3) lets processors go either way, and translated code does not check the limit of such a segment;
 *  - the first page's part of an 80-bit store whose second page faults (rules.h);
 *  - the exception flags in MXCSR after a faulting store that converts (rules.h);
 *  - TOP and tags after a faulting MMX instruction (rules.h);
 *  - bit P of a page fault's error code in the kernel's half: Linux sets it there, so as not to tell what
 *    the kernel has mapped;
 *  - the x87 instruction and data pointers and opcode, which an engine may keep for the guest or not: the
 *    host's processor records its own addresses (docs/deviations.md);
 *  - XSTATE_BV: a component in its initial configuration and one that is not in use are the same state.
 */
#include "compare.h"

#include "cpu/x86.h"
#include "isa/insn.h"
#include "layout.h"
#include "rules.h"

#include <inttypes.h>
#include <string.h>
#include <sys/syscall.h>

#define PASSES 8
#define MXCSR_EXCEPTIONS 0x3f

static void decoder_for(ZydisDecoder *decoder, const struct diff_case *test) {
    if (test->mode == 64)
        ZydisDecoderInit(decoder, ZYDIS_MACHINE_MODE_LONG_64, ZYDIS_STACK_WIDTH_64);
    else
        ZydisDecoderInit(decoder, ZYDIS_MACHINE_MODE_LONG_COMPAT_32, ZYDIS_STACK_WIDTH_32);
}

/* Which flags are undefined before each byte of the stream: a fixed point over fall-through and direct
 * branches. UINT32_MAX: not an instruction boundary. *adrift: those undefined at an indirect branch, which
 * may lead anywhere. Returns whether an undefined flag is read. */
static bool undefined_flow(const struct diff_case *test, uint32_t *before, uint32_t *adrift) {
    ZydisDecoder decoder;
    bool reads = false, changed = true;
    decoder_for(&decoder, test);
    *adrift = 0;
    memset(before, 0xff, (test->length + 1) * sizeof *before);
    for (unsigned pass = 0; pass < PASSES && changed; pass++) {
        uint32_t undefined = 0;
        changed = false;
        for (uint32_t at = 0; at < test->length;) {
            ZydisDecodedInstruction instruction;
            ZydisDecodedOperand operand[ZYDIS_MAX_OPERAND_COUNT];
            uint32_t old = before[at];
            before[at] = undefined | (old == UINT32_MAX ? 0 : old);
            changed |= before[at] != old;
            undefined = before[at];
            if (!ZYAN_SUCCESS(ZydisDecoderDecodeFull(&decoder, test->code + test->entry + at,
                                                     test->length - at, &instruction, operand)))
                break;
            struct rule_flags flags = rule_flags(&instruction, operand);
            reads |= flags.read & undefined;
            undefined = (undefined & ~flags.defined) | flags.undefined;
            if (instruction.meta.branch_type != ZYDIS_BRANCH_TYPE_NONE && !instruction.raw.imm[0].is_relative)
                *adrift |= undefined;
            if (instruction.raw.imm[0].is_relative) {
                uint64_t target = at + instruction.length + (uint64_t)instruction.raw.imm[0].value.s;
                if (target <= test->length) {
                    if (before[target] != UINT32_MAX && (undefined & ~before[target]))
                        changed = true;
                    before[target] = undefined | (before[target] == UINT32_MAX ? 0 : before[target]);
                }
            }
            at += instruction.length;
        }
        before[test->length] = undefined | (before[test->length] == UINT32_MAX ? 0 : before[test->length]);
    }
    return reads;
}

uint32_t compare_undefined_flags(const struct diff_case *test, uint64_t rip) {
    uint32_t before[DIFF_CODE_SIZE + 1], all, adrift;
    uint64_t at = rip - layout_code_base(test) - test->entry;
    undefined_flow(test, before, &adrift);
    if (at <= test->length && before[at] != UINT32_MAX)
        return before[at] | adrift;
    if (at - 1 <= test->length && before[at - 1] != UINT32_MAX)
        return before[at - 1] | adrift;
    all = adrift;
    for (uint32_t i = 0; i <= test->length; i++)
        if (before[i] != UINT32_MAX)
            all |= before[i];
    return all;
}

bool compare_reads_undefined(const struct diff_case *test) {
    uint32_t before[DIFF_CODE_SIZE + 1], adrift;
    return undefined_flow(test, before, &adrift);
}

/* The instruction at rip; false when there is none that can be decoded. */
static bool instruction_at(const struct diff_case *test, uint64_t rip, ZydisDecodedInstruction *instruction,
                           ZydisDecodedOperand *operand) {
    ZydisDecoder decoder;
    uint64_t at = rip - layout_code_base(test);
    decoder_for(&decoder, test);
    return at < DIFF_CODE_SIZE && ZYAN_SUCCESS(ZydisDecoderDecodeFull(
                                      &decoder, test->code + at, DIFF_CODE_SIZE - at, instruction, operand));
}

static bool same_cr2(const struct diff_case *test, const struct diff_state *expected,
                     const struct diff_state *actual) {
    ZydisDecodedInstruction instruction;
    ZydisDecodedOperand operand[ZYDIS_MAX_OPERAND_COUNT];
    if (expected->cr2 == actual->cr2)
        return true;
    return (expected->cr2 ^ actual->cr2) < PAGE_SIZE &&
           instruction_at(test, expected->regs.rip, &instruction, operand) &&
           (rule_is_state_image(instruction.mnemonic) || rule_is_masked(&instruction));
}

static bool has_error_code(uint32_t vector) {
    return vector == VECTOR_DF || (vector >= VECTOR_TS && vector <= VECTOR_PF) || vector == VECTOR_AC;
}

static uint32_t comparable_error(const struct diff_state *state) {
    if (state->end != DIFF_END_EXCEPTION || !has_error_code(state->vector))
        return 0;
    if (state->vector == VECTOR_PF && state->cr2 >= LAYOUT_USER_END)
        return state->error & ~PF_PRESENT;
    return state->error;
}

/* Bring an XSAVE image to the one form that equal states share. */
static void normalise(uint8_t *image) {
    const struct layout_xstate *xstate = layout_xstate();
    uint64_t in_use;
    memcpy(&in_use, image + 512, 8);
    if (!(in_use & 1)) {
        static const uint8_t initial[4] = {0x7f, 0x03, 0, 0};
        memcpy(image, initial, 4);
        image[4] = 0;
        memset(image + 32, 0, 128);
    }
    image[5] = 0;
    memset(image + 6, 0, 18); /* FOP, FIP, FDP */
    memset(image + 28, 0, 4); /* MXCSR_MASK */
    for (unsigned i = 0; i < 8; i++)
        memset(image + 32 + 16 * i + 10, 0, 6);
    if (!(in_use & 2))
        memset(image + 160, 0, 256);
    memset(image + 416, 0, 160);
    for (unsigned i = 2; i < 8; i++)
        if (!(in_use >> i & 1) && xstate->mask >> i & 1)
            memset(image + xstate->offset[i], 0, xstate->length[i]);
}

/* Some hypervisors below the host lose NT whenever the kernel is entered. */
static bool host_keeps_nt(void) {
    static int answer; /* 1: yes, 2: no */
    if (!answer) {
        uint64_t flags, call = SYS_getpid;
        __asm__ volatile(
            "subq $128, %%rsp\n\tpushfq\n\torq $0x4000, (%%rsp)\n\tpopfq\n\tsyscall\n\tpushfq\n\tpopq %0\n\t"
            "pushfq\n\tandq $~0x4000, (%%rsp)\n\tpopfq\n\taddq $128, %%rsp"
            : "=&r"(flags), "+a"(call)
            :
            : "rcx", "r11", "cc", "memory");
        answer = flags & FLAG_NT ? 1 : 2;
    }
    return answer == 1;
}

static uint64_t comparable_rflags(const struct diff_case *test, const struct diff_state *expected,
                                  const struct diff_state *actual, uint64_t *undefined) {
    *undefined = 0;
    if ((expected->regs.rflags ^ actual->regs.rflags) & FLAGS_ARITHMETIC)
        *undefined = compare_undefined_flags(test, expected->regs.rip);
    ZydisDecodedInstruction instruction;
    ZydisDecodedOperand operand[ZYDIS_MAX_OPERAND_COUNT];
    /* Is RF set in the image of a single step between two rounds? Intel: yes, AMD: no. */
    if (expected->vector == VECTOR_DB && insn_host_is_amd() &&
        instruction_at(test, expected->regs.rip, &instruction, operand) &&
        (rule_is_repeated_store(&instruction) || rule_is_repeated_load(&instruction)))
        *undefined |= FLAG_RF;
    if (expected->vector == VECTOR_PF && instruction_at(test, expected->regs.rip, &instruction, operand) &&
        rule_is_repeated_comparison(&instruction))
        *undefined = FLAGS_ARITHMETIC;
    if (!host_keeps_nt())
        *undefined |= FLAG_NT;
    return (expected->regs.rflags ^ actual->regs.rflags) & ~*undefined;
}

/* Turn ST(i) into the physical registers, and forget TOP and the tags. */
static void forget_stack(uint8_t *image) {
    uint8_t physical[128];
    unsigned top = image[3] >> 3 & 7;
    for (unsigned i = 0; i < 8; i++)
        memcpy(physical + 16 * ((top + i) & 7), image + 32 + 16 * i, 16);
    memcpy(image + 32, physical, 128);
    image[3] &= 0xc7;
    image[4] = 0;
}

static bool ends_in_mmx(const struct diff_case *test, const struct diff_state *expected) {
    ZydisDecodedInstruction instruction;
    ZydisDecodedOperand operand[ZYDIS_MAX_OPERAND_COUNT];
    return expected->end == DIFF_END_EXCEPTION && expected->vector >= VECTOR_SS &&
           instruction_at(test, expected->regs.rip, &instruction, operand) &&
           rule_enters_mmx(&instruction, operand);
}

static bool ends_in_converting_store(const struct diff_case *test, const struct diff_state *expected) {
    ZydisDecodedInstruction instruction;
    ZydisDecodedOperand operand[ZYDIS_MAX_OPERAND_COUNT];
    return expected->end == DIFF_END_EXCEPTION && expected->vector >= VECTOR_SS &&
           expected->vector <= VECTOR_AC && instruction_at(test, expected->regs.rip, &instruction, operand) &&
           rule_is_converting_store(instruction.mnemonic);
}

/* Of a faulting VEX gather's mask only the sign of each element counts; what lies above its vector goes when
 * it is done, or sooner. */
static void widen_mask(const ZydisDecodedOperand *operand, uint8_t *image) {
    const struct layout_xstate *xstate = layout_xstate();
    unsigned mask = (unsigned)ZydisRegisterGetId(operand[2].reg.value), size = operand[0].element_size / 8;
    unsigned loaded = (unsigned)ZydisRegisterGetId(operand[0].reg.value);
    uint8_t *half[2] = {image + 160 + 16 * mask, image + xstate->offset[2] + 16 * mask};
    for (unsigned i = 0; i < 32; i += size) {
        uint8_t *element = half[i / 16] + i % 16;
        memset(element, element[size - 1] & 0x80 && i < operand[2].size / 8 ? 0xff : 0, size);
    }
    if (operand[0].size < 256)
        memset(image + xstate->offset[2] + 16 * loaded, 0, 16);
    if (xstate->offset[6]) {
        memset(image + xstate->offset[6] + 32 * mask, 0, 32);
        memset(image + xstate->offset[6] + 32 * loaded, 0, 32);
    }
}

static bool same_fpu(const struct diff_case *test, const struct diff_state *expected,
                     const struct diff_state *actual) {
    uint8_t left[DIFF_XSAVE_SIZE], right[DIFF_XSAVE_SIZE];
    unsigned size = layout_xstate()->size;
    memcpy(left, expected->xsave, size);
    memcpy(right, actual->xsave, size);
    normalise(left);
    normalise(right);
    if (!memcmp(left, right, size))
        return true;
    if (ends_in_converting_store(test, expected)) {
        left[24] &= (uint8_t)~MXCSR_EXCEPTIONS;
        right[24] &= (uint8_t)~MXCSR_EXCEPTIONS;
        return !memcmp(left, right, size);
    }
    ZydisDecodedInstruction instruction;
    ZydisDecodedOperand operand[ZYDIS_MAX_OPERAND_COUNT];
    if (expected->end == DIFF_END_EXCEPTION &&
        instruction_at(test, expected->regs.rip, &instruction, operand) && rule_is_vex_gather(&instruction)) {
        widen_mask(operand, left);
        widen_mask(operand, right);
        return !memcmp(left, right, size);
    }
    if (!ends_in_mmx(test, expected))
        return false;
    forget_stack(left);
    forget_stack(right);
    return !memcmp(left, right, size);
}

/* The data that an instruction which faults at CR2 may have stored before: a split store in front of it, a
 * far call the selector above it. False if there is none. */
static bool stored_before_fault(const struct diff_case *test, const struct diff_state *state, uint64_t *from,
                                uint64_t *to) {
    ZydisDecodedInstruction instruction;
    ZydisDecodedOperand operand[ZYDIS_MAX_OPERAND_COUNT];
    if (state->end != DIFF_END_EXCEPTION || state->vector != VECTOR_PF ||
        !instruction_at(test, state->regs.rip, &instruction, operand))
        return false;
    bool is_far_call =
        instruction.mnemonic == ZYDIS_MNEMONIC_CALL && instruction.meta.branch_type == ZYDIS_BRANCH_TYPE_FAR;
    unsigned word = instruction.operand_width / 8;
    if (is_far_call) {
        *from = state->cr2 + word;
        *to = *from + word;
        return true;
    }
    *from = state->cr2 - operand[0].size / 8;
    *to = state->cr2;
    return state->cr2 % PAGE_SIZE == 0 && rule_is_split_store(&instruction, operand);
}

static bool same_data(const struct diff_case *test, const struct diff_state *expected,
                      const struct diff_state *actual) {
    uint64_t from, to;
    if (!memcmp(expected->data, actual->data, DIFF_DATA_SIZE))
        return true;
    if (!stored_before_fault(test, expected, &from, &to))
        return false;
    const struct layout_region *region = layout_find(to - 1);
    if (!region || region->kind != LAYOUT_KIND_DATA || layout_find(from) != region)
        return false;
    uint64_t end = region->offset + (to - region->base), start = end - (to - from);
    return !memcmp(expected->data, actual->data, start) &&
           !memcmp(expected->data + end, actual->data + end, DIFF_DATA_SIZE - end);
}

static bool same_vector(const struct diff_case *test, const struct diff_state *expected,
                        const struct diff_state *actual) {
    ZydisDecodedInstruction instruction;
    ZydisDecodedOperand operand[ZYDIS_MAX_OPERAND_COUNT];
    uint32_t left = expected->vector, right = actual->vector;
    if (left == right)
        return true;
    /* Masked operands across the end of the canonical addresses: which half faults first is a maker's own. */
    if ((left == VECTOR_PF && expected->cr2 >= LAYOUT_USER_END &&
         (right == VECTOR_GP || right == VECTOR_SS)) &&
        instruction_at(test, expected->regs.rip, &instruction, operand) && rule_is_masked(&instruction))
        return true;
    bool crosses =
        expected->regs.rflags & FLAG_AC && (left == VECTOR_GP || left == VECTOR_SS) && right == VECTOR_AC;
    if (crosses && insn_host_is_amd())
        return true; /* a misaligned operand whose end is not canonical */
    return ((left == VECTOR_AC && right == VECTOR_GP) || (left == VECTOR_GP && right == VECTOR_AC)) &&
           expected->regs.rflags & FLAG_AC &&
           instruction_at(test, expected->regs.rip, &instruction, operand) &&
           rule_is_aligned_image(instruction.mnemonic);
}

/* Is a repeated store of the stream no longer there? */
static bool overwrote_repeated_store(const struct diff_case *test, const struct diff_state *expected,
                                     const struct diff_state *actual) {
    if (!test->writable_code)
        return false;
    for (uint32_t at = test->entry; at < test->entry + test->length;) {
        ZydisDecodedInstruction instruction;
        ZydisDecodedOperand operand[ZYDIS_MAX_OPERAND_COUNT];
        if (!instruction_at(test, layout_code_base(test) + at, &instruction, operand))
            return false;
        if (rule_is_repeated_store(&instruction) && at + instruction.length <= DIFF_CODE_SIZE &&
            (memcmp(test->code + at, expected->code + at, instruction.length) ||
             memcmp(test->code + at, actual->code + at, instruction.length)))
            return true;
        at += instruction.length;
    }
    return false;
}

/* Does the instruction at RIP access memory around the end of a segment of 4 GiB? */
static bool ends_in_wrap(const struct diff_case *test, const struct diff_state *state) {
    const struct diff_regs *regs = &state->regs;
    ZydisDecodedInstruction instruction;
    ZydisDecodedOperand operand[ZYDIS_MAX_OPERAND_COUNT];
    if (test->mode != 32 || state->end != DIFF_END_EXCEPTION ||
        (state->vector != VECTOR_GP && state->vector != VECTOR_SS) ||
        !instruction_at(test, regs->rip, &instruction, operand) || instruction.address_width != 32)
        return false;
    for (unsigned i = 0; i < instruction.operand_count_visible; i++) {
        const ZydisDecodedOperandMem *mem = &operand[i].mem;
        if (operand[i].type != ZYDIS_OPERAND_TYPE_MEMORY || mem->type != ZYDIS_MEMOP_TYPE_MEM)
            continue;
        uint32_t offset = mem->disp.has_displacement ? (uint32_t)mem->disp.value : 0;
        if (mem->base != ZYDIS_REGISTER_NONE)
            offset += (uint32_t)regs->gpr[(unsigned)ZydisRegisterGetId(mem->base) & 7];
        if (mem->index != ZYDIS_REGISTER_NONE)
            offset += (uint32_t)regs->gpr[(unsigned)ZydisRegisterGetId(mem->index) & 7] * mem->scale;
        if ((uint64_t)offset + operand[i].size / 8 > UINT32_MAX + 1ull)
            return true;
    }
    return false;
}

/* A null selector with an RPL loses it whenever an interrupt's IRET returns to user mode (SDM vol. 2, IRET),
 * which comes to the host's process when it comes. */
static bool same_selectors(const struct diff_regs *left, const struct diff_regs *right) {
    for (unsigned i = 0; i < ARRAY_SIZE(left->selector); i++)
        if (left->selector[i] != right->selector[i] && (left->selector[i] > 3 || right->selector[i] > 3))
            return false;
    return true;
}

static bool are_equal(const struct diff_case *test, const struct diff_state *expected,
                      const struct diff_state *actual) {
    const struct diff_regs *left = &expected->regs, *right = &actual->regs;
    uint64_t undefined;
    return expected->end == actual->end &&
           (expected->end != DIFF_END_EXCEPTION ||
            (same_vector(test, expected, actual) &&
             (expected->vector != actual->vector ||
              (same_cr2(test, expected, actual) &&
               comparable_error(expected) == comparable_error(actual))))) &&
           !memcmp(left->gpr, right->gpr, sizeof left->gpr) && left->rip == right->rip &&
           !comparable_rflags(test, expected, actual, &undefined) && left->fs_base == right->fs_base &&
           left->gs_base == right->gs_base && same_selectors(left, right) &&
           same_data(test, expected, actual) && !memcmp(expected->code, actual->code, DIFF_CODE_SIZE) &&
           same_fpu(test, expected, actual);
}

/* The other way round: a push or the like whose last bytes would be beyond the end, and whose page faults. */
static bool faults_at_end(const struct diff_case *test, const struct diff_state *expected,
                          const struct diff_state *actual) {
    return test->mode == 32 && expected->end == DIFF_END_EXCEPTION && expected->vector == VECTOR_PF &&
           expected->cr2 > UINT32_MAX - 8 && actual->end == DIFF_END_EXCEPTION &&
           (actual->vector == VECTOR_SS || actual->vector == VECTOR_GP) &&
           expected->regs.rip == actual->regs.rip;
}

bool compare_states(const struct diff_case *test, const struct diff_state *expected,
                    const struct diff_state *actual) {
    return are_equal(test, expected, actual) || overwrote_repeated_store(test, expected, actual) ||
           faults_at_end(test, expected, actual) || ends_in_wrap(test, expected) ||
           ends_in_wrap(test, actual);
}

/* -- reports -- */

static const char *end_name(uint32_t end) {
    static const char *const names[] = {"did not run", "exception", "system call", "timeout", "lost"};
    return end < ARRAY_SIZE(names) ? names[end] : "?";
}

static void print_end(FILE *out, const char *who, const struct diff_state *state) {
    fprintf(out, "  %-8s ends: %s", who, end_name(state->end));
    if (state->end == DIFF_END_EXCEPTION)
        fprintf(out, ", vector %u error 0x%x cr2 0x%" PRIx64, state->vector, state->error, state->cr2);
    fprintf(out, ", rip 0x%" PRIx64 "\n", state->regs.rip);
}

static void report_u64(FILE *out, const char *name, uint64_t expected, uint64_t actual) {
    if (expected != actual)
        fprintf(out, "  %-10s native 0x%016" PRIx64 "  engine 0x%016" PRIx64 "\n", name, expected, actual);
}

static void report_bytes(FILE *out, const char *name, uint64_t address, const uint8_t *expected,
                         const uint8_t *actual, size_t size) {
    unsigned lines = 0;
    for (size_t i = 0; i < size; i += 16) {
        size_t part = size - i < 16 ? size - i : 16;
        if (!memcmp(expected + i, actual + i, part))
            continue;
        if (++lines > 12) {
            fprintf(out, "  %s: more differences\n", name);
            return;
        }
        fprintf(out, "  %s 0x%" PRIx64 ":\n    native ", name, address + i);
        for (size_t j = 0; j < part; j++)
            fprintf(out, "%02x", expected[i + j]);
        fprintf(out, "\n    engine ");
        for (size_t j = 0; j < part; j++)
            fprintf(out, "%02x", actual[i + j]);
        fputc('\n', out);
    }
}

static void report_fpu(FILE *out, const struct diff_state *expected, const struct diff_state *actual) {
    uint8_t left[DIFF_XSAVE_SIZE], right[DIFF_XSAVE_SIZE];
    const struct layout_xstate *xstate = layout_xstate();
    static const char *const names[8] = {NULL, NULL, "ymm-high", "", "", "opmask", "zmm-high", "zmm16-31"};
    memcpy(left, expected->xsave, xstate->size);
    memcpy(right, actual->xsave, xstate->size);
    normalise(left);
    normalise(right);
    report_bytes(out, "x87 control", 0, left, right, 24);
    report_bytes(out, "mxcsr", 24, left + 24, right + 24, 4);
    report_bytes(out, "st/mm", 0, left + 32, right + 32, 128);
    report_bytes(out, "xmm", 0, left + 160, right + 160, 256);
    for (unsigned i = 2; i < 8; i++)
        if (xstate->mask >> i & 1)
            report_bytes(out, names[i], 0, left + xstate->offset[i], right + xstate->offset[i],
                         xstate->length[i]);
}

void compare_report(FILE *out, const struct diff_case *test, const struct diff_state *expected,
                    const struct diff_state *actual) {
    static const char *const gprs[16] = {"rax", "rcx", "rdx", "rbx", "rsp", "rbp", "rsi", "rdi",
                                         "r8",  "r9",  "r10", "r11", "r12", "r13", "r14", "r15"};
    static const char *const selectors[6] = {"es", "cs", "ss", "ds", "fs", "gs"};
    uint64_t undefined;
    fprintf(out, "  started with rflags 0x%" PRIx64, test->regs.rflags);
    for (unsigned i = 0; i < 16; i++)
        if (test->regs.gpr[i])
            fprintf(out, " %s=0x%" PRIx64, gprs[i], test->regs.gpr[i]);
    fputc('\n', out);
    print_end(out, "native", expected);
    print_end(out, "engine", actual);
    for (unsigned i = 0; i < 16; i++)
        report_u64(out, gprs[i], expected->regs.gpr[i], actual->regs.gpr[i]);
    report_u64(out, "rip", expected->regs.rip, actual->regs.rip);
    uint64_t flags = comparable_rflags(test, expected, actual, &undefined);
    if (flags) {
        report_u64(out, "rflags", expected->regs.rflags, actual->regs.rflags);
        fprintf(out, "  %-10s differing 0x%" PRIx64 ", undefined 0x%" PRIx64 "\n", "", flags, undefined);
    }
    report_u64(out, "fs_base", expected->regs.fs_base, actual->regs.fs_base);
    report_u64(out, "gs_base", expected->regs.gs_base, actual->regs.gs_base);
    for (unsigned i = 0; i < 6; i++)
        report_u64(out, selectors[i], expected->regs.selector[i], actual->regs.selector[i]);
    report_fpu(out, expected, actual);
    for (unsigned i = 0; i < layout_region_count; i++) {
        const struct layout_region *region = &layout_regions[i];
        if (region->kind == LAYOUT_KIND_DATA)
            report_bytes(out, region->name, region->base, expected->data + region->offset,
                         actual->data + region->offset, region->pages * PAGE_SIZE);
    }
    report_bytes(out, "code", layout_code_base(test), expected->code, actual->code, DIFF_CODE_SIZE);
}

void compare_disassemble(FILE *out, const struct diff_case *test, uint64_t rip) {
    ZydisDecoder decoder;
    ZydisFormatter formatter;
    uint64_t base = layout_code_base(test) + test->entry;
    unsigned nops = 0;
    decoder_for(&decoder, test);
    ZydisFormatterInit(&formatter, ZYDIS_FORMATTER_STYLE_INTEL);
    for (uint32_t at = 0; at < test->length;) {
        ZydisDecodedInstruction instruction;
        ZydisDecodedOperand operand[ZYDIS_MAX_OPERAND_COUNT];
        const uint8_t *bytes = test->code + test->entry + at;
        char text[160] = "(bad)";
        if (ZYAN_SUCCESS(ZydisDecoderDecodeFull(&decoder, bytes, test->length - at, &instruction, operand)))
            ZydisFormatterFormatInstruction(&formatter, &instruction, operand,
                                            instruction.operand_count_visible, text, sizeof text, base + at,
                                            NULL);
        else
            instruction.length = 1;
        if (*bytes == 0x90 && base + at != rip) {
            nops++;
            at++;
            continue;
        }
        if (nops)
            fprintf(out, "    (%u bytes of NOP)\n", nops);
        nops = 0;
        fprintf(out, "%s %" PRIx64 ": ", base + at == rip ? "=>" : "  ", base + at);
        for (unsigned i = 0; i < instruction.length; i++)
            fprintf(out, "%02x", bytes[i]);
        fprintf(out, "%*s %s\n", 32 - 2 * instruction.length, "", text);
        at += instruction.length;
    }
}
