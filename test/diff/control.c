/* Control flow in streams: forward branches, bounded loops, calls and returns, far transfers, stores into the
 * stream's own code. Every transfer goes to a place in the stream, so that it runs on and ends. See
 * generator.h.
 */
#include "generator.h"

#include "cpu/x86.h"
#include "rules.h"

#include <string.h>

/* Where code of this mode is: CS for far transfers. */
static uint16_t own_cs(const struct generator *g) {
    return g->mode == 64 ? DIFF_CS_64 : DIFF_CS_32;
}

void control_body(struct generator *g, unsigned count) {
    for (unsigned i = 0; i < count && gen_has_room(g, 200); i++) {
        struct form *form = generate_choose(g);
        if (form->class != FORM_CONTROL && form->class != FORM_SYSTEM)
            generate_form(g, form);
    }
}

/* JMP rel32 over what follows; returns the offset of its displacement. */
static unsigned jump_over(struct generator *g) {
    static const uint8_t jump[] = {0xe9, 0, 0, 0, 0};
    gen_emit(g, jump, sizeof jump, NULL, false);
    return g->at - 4;
}

static void patch_relative(struct generator *g, unsigned at) {
    int32_t relative = (int32_t)(g->at - at - 4);
    memcpy(g->code + at, &relative, 4);
}

/* Emit the draft, which jumps somewhere by a relative field, and let a label decide where. */
static bool forward_branch(struct generator *g, struct draft *draft) {
    const ZydisDecodedInstruction *instruction = &draft->instruction;
    unsigned size = instruction->raw.imm[0].size;
    enum label_kind kind = size == 8 ? LABEL_REL8 : size == 16 ? LABEL_REL16 : LABEL_REL32;
    if (g->labels == LABELS_MAX)
        return false;
    if (instruction->mnemonic == ZYDIS_MNEMONIC_JCXZ || instruction->mnemonic == ZYDIS_MNEMONIC_JECXZ ||
        instruction->mnemonic == ZYDIS_MNEMONIC_JRCXZ || instruction->mnemonic == ZYDIS_MNEMONIC_LOOP ||
        instruction->mnemonic == ZYDIS_MNEMONIC_LOOPE || instruction->mnemonic == ZYDIS_MNEMONIC_LOOPNE) {
        if (g->reserved & 1 << GPR_RCX)
            return false;
        gen_mov(g, GPR_RCX, rng_below(&g->rng, 3));
    }
    unsigned start = g->at;
    gen_emit(g, draft->bytes, instruction->length, draft->form, false);
    return gen_label_add(g, kind, start + instruction->raw.imm[0].offset, 1 + rng_below(&g->rng, 4));
}

/* CALL to a function that follows at once and returns behind the jump around it. */
static bool call_function(struct generator *g, struct draft *draft) {
    static const uint8_t ret[] = {0xc3};
    const ZydisDecodedInstruction *instruction = &draft->instruction;
    unsigned size = instruction->raw.imm[0].size;
    if (g->keeps_stack || size == 16)
        return forward_branch(g, draft);
    unsigned start = g->at;
    gen_emit(g, draft->bytes, instruction->length, draft->form, false);
    unsigned over = jump_over(g);
    patch_relative(g, start + instruction->raw.imm[0].offset);
    g->keeps_stack = true;
    g->conditional++;
    control_body(g, 1 + rng_below(&g->rng, 3));
    g->keeps_stack = false;
    while (g->labels)
        gen_label_place(g, g->labels - 1);
    gen_emit(g, ret, 1, NULL, false);
    g->conditional--;
    patch_relative(g, over);
    return true;
}

/* A retpoline to what follows it: CALL over a gap, MOV [rSP], reg, RET. */
static bool retpoline(struct generator *g) {
    static const uint8_t call[] = {0xe8, 0, 0, 0, 0}, gap[] = {0xf3, 0x90, 0x0f, 0xae, 0xe8, 0xeb, 0xf9},
                         ret[] = {0xc3};
    unsigned reg = choose_register(g, 1 << GPR_RSP), n = 0, from;
    if (g->labels == LABELS_MAX || g->keeps_stack || (g->pinned | g->reserved) >> reg & 1)
        return false;
    uint8_t mov[6], store[4];
    if (reg >= 8)
        mov[n++] = 0x41;
    mov[n++] = 0xb8 | (reg & 7);
    memset(mov + n, 0, 4);
    gen_emit(g, mov, n + 4, NULL, false);
    unsigned target = g->at - 4;
    gen_emit(g, call, sizeof call, NULL, false);
    from = g->at - 4;
    gen_emit(g, gap, 2 + rng_below(&g->rng, 2) * 5, NULL, false);
    patch_relative(g, from);
    n = 0;
    if (g->mode == 64)
        store[n++] = 0x48 | (reg & 8) >> 1;
    store[n++] = 0x89;
    store[n++] = 0x04 | (reg & 7) << 3;
    store[n++] = 0x24;
    gen_emit(g, store, n, NULL, false);
    gen_emit(g, ret, 1, NULL, false);
    return gen_label_add(g, LABEL_ABS32, target, 1 + rng_below(&g->rng, 3));
}

/* JMP and CALL through a register or memory; far ones through memory. */
static bool indirect_branch(struct generator *g, struct draft *draft) {
    const ZydisDecodedOperand *operand = &draft->operand[0];
    bool is_far = draft->instruction.meta.branch_type == ZYDIS_BRANCH_TYPE_FAR;
    if (g->labels == LABELS_MAX)
        return false;
    if (operand->type == ZYDIS_OPERAND_TYPE_MEMORY) {
        uint64_t target = LAYOUT_DATA + 8 * rng_below(&g->rng, 1500);
        uint32_t at = g->at;
        gen_store(g, target, 4, 0, false);
        at = g->at - 4;
        if (is_far)
            gen_store(g, target + operand->size / 8 - 2, 2, own_cs(g), false);
        if (operand->size == 64 || operand->size == 80)
            if (!(is_far && operand->size == 64))
                gen_store(g, target + 4, 4, 0, false);
        draft->wish.target = target;
        draft->wish.is_fixed = true;
        struct form_fields *fields = &draft->fields;
        bool is_rip;
        fields->segment = 0;
        choose_memory(g, fields, &draft->encoding, &draft->wish, 0, &is_rip);
        unsigned length = form_assemble(g->mode, &draft->encoding, fields, draft->bytes);
        if (is_rip) {
            uint32_t relative = (uint32_t)(target - (g->pc + g->at + length));
            memcpy(draft->bytes + length - 4, &relative, 4);
        }
        gen_emit(g, draft->bytes, length, draft->form, false);
        return gen_label_add(g, LABEL_ABS32, at, 1 + rng_below(&g->rng, 3));
    }
    int reg = register_number(operand->reg.value);
    if (operand->type == ZYDIS_OPERAND_TYPE_REGISTER && !is_far && rng_permille(&g->rng, 400))
        return retpoline(g);
    if (operand->type != ZYDIS_OPERAND_TYPE_REGISTER || reg < 0 || (g->pinned | g->reserved) >> reg & 1)
        return false;
    uint8_t mov[6];
    unsigned n = 0;
    if (reg >= 8)
        mov[n++] = 0x41;
    mov[n++] = 0xb8 | (reg & 7);
    memset(mov + n, 0, 4);
    gen_emit(g, mov, n + 4, NULL, false);
    unsigned at = g->at - 4;
    gen_emit(g, draft->bytes, draft->instruction.length, draft->form, false);
    return gen_label_add(g, LABEL_ABS32, at, 1 + rng_below(&g->rng, 3));
}

/* JMP and CALL ptr16:32. */
static bool far_pointer(struct generator *g, struct draft *draft) {
    unsigned length = draft->instruction.length;
    if (g->labels == LABELS_MAX)
        return false;
    uint16_t cs = own_cs(g);
    memcpy(draft->bytes + length - 2, &cs, 2);
    gen_emit(g, draft->bytes, length, draft->form, false);
    if (draft->instruction.operand_width != 32)
        return true; /* a 16-bit EIP: #PF at its target */
    return gen_label_add(g, LABEL_ABS32, g->at - 6, 1 + rng_below(&g->rng, 3));
}

static void store_stack(struct generator *g, int8_t disp, uint32_t value) {
    /* MOV DWORD [RSP + disp8], imm32 */
    uint8_t bytes[8] = {0xc7, 0x44, 0x24, (uint8_t)disp};
    memcpy(bytes + 4, &value, 4);
    gen_emit(g, bytes, 8, NULL, false);
}

/* RET, RETF, IRET: with a frame that leads to a label. */
static bool return_to(struct generator *g, struct draft *draft) {
    const ZydisDecodedInstruction *instruction = &draft->instruction;
    bool is_iret = instruction->mnemonic == ZYDIS_MNEMONIC_IRET ||
                   instruction->mnemonic == ZYDIS_MNEMONIC_IRETD ||
                   instruction->mnemonic == ZYDIS_MNEMONIC_IRETQ;
    bool is_far = is_iret || instruction->meta.branch_type == ZYDIS_BRANCH_TYPE_FAR;
    unsigned width = instruction->operand_width;
    if (g->labels == LABELS_MAX || g->keeps_stack)
        return false;
    if (instruction->raw.imm[0].size) {
        uint16_t release = (uint16_t)(8 * rng_below(&g->rng, 5));
        memcpy(draft->bytes + instruction->raw.imm[0].offset, &release, 2);
    }
    unsigned at;
    uint32_t flags = ((uint32_t)rng_u64(&g->rng) & (FLAGS_ARITHMETIC | FLAG_DF)) | FLAG_IF | FLAG_FIXED;
    if (is_far && width == 32 && g->mode == 64) {
        if (is_iret) { /* 32-bit slots: EIP, CS, EFLAGS, ESP, SS */
            gen_push(g, DIFF_DS);
            gen_push(g, 0);
            store_stack(g, 0, flags);
            store_stack(g, 4, LAYOUT_STACK + 0xc00);
            gen_push(g, 0);
        } else {
            gen_push(g, 0);
        }
        at = g->at - 4;
        store_stack(g, 4, own_cs(g));
    } else {
        if (is_iret && g->mode == 64) {
            gen_push(g, DIFF_DS);
            gen_push(g, LAYOUT_STACK + 0xc00 + 8 * rng_below(&g->rng, 64));
        }
        if (is_iret)
            gen_push(g, flags);
        if (is_far)
            gen_push(g, own_cs(g));
        gen_push(g, 0);
        at = g->at - 4;
    }
    if (is_iret)
        g->undefined = 0;
    gen_emit(g, draft->bytes, instruction->length, draft->form, false);
    return gen_label_add(g, LABEL_ABS32, at, 1 + rng_below(&g->rng, 3));
}

bool control_emit(struct generator *g, struct form *form) {
    struct draft draft;
    unsigned attempt = 0;
    while (!draft_make(g, form, &draft, attempt))
        if (++attempt == 8)
            return false;
    if (!gen_has_room(g, 80))
        return false;
    draft.fields.segment = 0;
    struct rule_flags flags = rule_flags(&draft.instruction, draft.operand);
    if (flags.read & g->undefined)
        gen_define_flags(g);
    bool is_relative = draft.instruction.raw.imm[0].is_relative;
    switch (form->category) {
    case ZYDIS_CATEGORY_COND_BR:
        return is_relative && forward_branch(g, &draft);
    case ZYDIS_CATEGORY_RET:
        return return_to(g, &draft);
    case ZYDIS_CATEGORY_CALL:
    case ZYDIS_CATEGORY_UNCOND_BR:
        if (is_relative)
            return form->category == ZYDIS_CATEGORY_CALL ? call_function(g, &draft)
                                                         : forward_branch(g, &draft);
        if (draft.operand[0].type == ZYDIS_OPERAND_TYPE_POINTER)
            return far_pointer(g, &draft);
        return indirect_branch(g, &draft);
    default:
        return false;
    }
}

/* SUB counter, 1; JNZ head */
void control_back(struct generator *g, unsigned reg, unsigned head) {
    uint8_t decrement[4], jump[6] = {0x0f, 0x85};
    unsigned n = 0;
    if (reg >= 8)
        decrement[n++] = 0x41;
    decrement[n++] = 0x83;
    decrement[n++] = 0xe8 | (reg & 7);
    decrement[n++] = 1;
    gen_emit(g, decrement, n, NULL, false);
    g->undefined = 0;
    int32_t back = (int32_t)(head - (g->at + 6));
    memcpy(jump + 2, &back, 4);
    gen_emit(g, jump, 6, NULL, false);
}

/* A counted loop: MOV counter; body; SUB counter, 1; JNZ (or LOOP). */
void control_loop(struct generator *g, unsigned depth) {
    bool uses_loop = rng_permille(&g->rng, 400);
    unsigned reg = uses_loop ? (unsigned)GPR_RCX : choose_register(g, 1 << GPR_RSP);
    if ((g->reserved | g->pinned) >> reg & 1 || !gen_has_room(g, 500) || g->loops == 2)
        return;
    unsigned count = 1 + rng_below(&g->rng, depth ? 4 : 8);
    while (g->labels)
        gen_label_place(g, g->labels - 1);
    if (g->undefined)
        gen_define_flags(g);
    gen_mov(g, reg, count);
    unsigned head = g->at;
    g->reserved |= (uint16_t)(1u << reg);
    g->loops++;
    bool keeps_stack = g->keeps_stack;
    control_body(g, 1 + rng_below(&g->rng, 4));
    if (!depth && rng_permille(&g->rng, 200))
        control_loop(g, 1);
    while (g->labels)
        gen_label_place(g, g->labels - 1);
    g->keeps_stack = keeps_stack;
    g->loops--;
    g->reserved &= (uint16_t) ~(1u << reg);
    if (uses_loop) {
        gen_define_flags(g);
        int32_t back = (int32_t)(head - (g->at + 2));
        uint8_t loop[] = {0xe2, (uint8_t)back};
        if (back >= -128) {
            gen_emit(g, loop, 2, NULL, false);
            return;
        }
    }
    control_back(g, reg, head);
}

/* Store into the immediate of a MOV a few instructions on; in a loop, of one that has run before. */
void control_self_modify(struct generator *g) {
    if (!g->test->writable_code || g->labels == LABELS_MAX || !gen_has_room(g, 100))
        return;
    uint8_t size = rng_permille(&g->rng, 500) ? 4 : 1;
    unsigned start = g->at;
    gen_store(g, 0, size, (uint32_t)rng_u64(&g->rng), false);
    gen_label_add(g, LABEL_IMMEDIATE, start + (g->mode == 64 ? 3 : 2), rng_below(&g->rng, 4));
}
