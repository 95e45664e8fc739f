/* The stream generator: mixes forms by class, keeps some registers pointing into the data so that memory
 * operands hit, and sees to it that no instruction reads what the manual leaves undefined. See generate.h.
 */
#include "generate.h"

#include "cpu/x86.h"
#include "generator.h"
#include "isa/insn.h"
#include "rules.h"

#include <string.h>

/* Parts per thousand of each class in a mix. */
static const unsigned class_weight[FORM_CLASSES] = {
    [FORM_INTEGER] = 390, [FORM_CONTROL] = 60, [FORM_STRING] = 40, [FORM_X87] = 90,
    [FORM_SSE] = 140,     [FORM_VEX] = 130,    [FORM_EVEX] = 145,  [FORM_SYSTEM] = 5,
};

struct form *generate_choose(struct generator *g) {
    const struct form_table *forms = g->forms;
    for (unsigned i = 0; i < 400; i++) {
        unsigned pick = rng_below(&g->rng, 1000), class = 0;
        while (class < FORM_SYSTEM && pick >= class_weight[class])
            pick -= class_weight[class ++];
        if (!forms->class_count[class])
            continue;
        struct form *form =
            &forms->form[forms->by_class[class][rng_below(&g->rng, forms->class_count[class])]];
        if (form->unsupported && !rng_permille(&g->rng, 15))
            continue;
        return form;
    }
    for (unsigned i = 0; i < forms->count; i++)
        if (!forms->form[i].excluded)
            return &forms->form[i];
    return &forms->form[0];
}

static uint8_t choose_bit(struct rng *rng, uint8_t mask) {
    for (unsigned i = 0; i < 32; i++) {
        unsigned bit = rng_below(rng, 8);
        if (mask >> bit & 1)
            return (uint8_t)bit;
    }
    return (uint8_t)__builtin_ctz(mask);
}

static void choose_fields(struct generator *g, struct draft *draft, unsigned attempt) {
    struct rng *rng = &g->rng;
    struct form_encoding *encoding = &draft->encoding;
    struct form_fields *fields = &draft->fields;
    bool is_evex = encoding->encoding == ZYDIS_INSTRUCTION_ENCODING_EVEX;
    memset(fields, 0, sizeof *fields);
    fields->reg = choose_bit(rng, encoding->reg_mask);
    fields->mod = encoding->is_register ? 3 : 0;
    if (encoding->is_register)
        fields->rm = encoding->encoding == ZYDIS_INSTRUCTION_ENCODING_LEGACY
                         ? choose_bit(rng, encoding->rm_mask)
                         : (uint8_t)rng_below(rng, 8);
    else
        fields->rm = 4;
    fields->has_sib = !encoding->is_register;
    fields->sib = (uint8_t)(0x08 | (rng_below(rng, 8) << 3 & 0x38));
    if ((fields->sib & 0x38) == 0x20)
        fields->sib = 0x08;
    if (g->mode == 64 && attempt < 6 && rng_permille(rng, 500)) {
        fields->rex = (uint8_t)rng_below(rng, 8);
        fields->r2 = is_evex && rng_permille(rng, 400);
    }
    fields->force_rex = rng_permille(rng, 30);
    if (attempt < 4)
        fields->vvvv = (uint8_t)rng_below(rng, g->mode == 64 ? (is_evex ? 32 : 16) : 8);
    if (is_evex) {
        if (encoding->needs_mask || (attempt < 5 && rng_permille(rng, 450)))
            fields->aaa = (uint8_t)(1 + rng_below(rng, 7));
        fields->z = fields->aaa && attempt < 3 && rng_permille(rng, 300);
        if (encoding->b && encoding->is_register)
            encoding->l = (uint8_t)rng_below(rng, 4);
    }
}

static bool draft_decode(struct generator *g, struct draft *draft) {
    ZydisDecoderContext context;
    if (!ZYAN_SUCCESS(ZydisDecoderDecodeInstruction(&g->forms->decoder, &context, draft->bytes,
                                                    sizeof draft->bytes, &draft->instruction)) ||
        form_lookup(g->forms, &context, &draft->instruction) != draft->form)
        return false;
    return ZYAN_SUCCESS(ZydisDecoderDecodeOperands(&g->forms->decoder, &context, &draft->instruction,
                                                   draft->operand, draft->instruction.operand_count));
}

/* Bytes for immediates, behind the addressing bytes. */
static void fill_tail(struct generator *g, struct draft *draft, unsigned length) {
    for (unsigned i = length; i < sizeof draft->bytes; i += 8) {
        uint64_t value = value_u64(&g->rng);
        unsigned part = sizeof draft->bytes - i < 8 ? sizeof draft->bytes - i : 8;
        memcpy(draft->bytes + i, &value, part);
    }
}

static unsigned operand_alignment(const struct draft *draft, unsigned size) {
    switch (draft->form->class) {
    case FORM_SSE:
        return size == 16 ? 16 : 1;
    case FORM_VEX:
    case FORM_EVEX:
        switch (draft->instruction.mnemonic) {
        case ZYDIS_MNEMONIC_VMOVAPS:
        case ZYDIS_MNEMONIC_VMOVAPD:
        case ZYDIS_MNEMONIC_VMOVDQA:
        case ZYDIS_MNEMONIC_VMOVDQA32:
        case ZYDIS_MNEMONIC_VMOVDQA64:
        case ZYDIS_MNEMONIC_VMOVNTDQ:
        case ZYDIS_MNEMONIC_VMOVNTDQA:
        case ZYDIS_MNEMONIC_VMOVNTPD:
        case ZYDIS_MNEMONIC_VMOVNTPS:
            return size;
        default:
            return 1;
        }
    default:
        return draft->instruction.mnemonic == ZYDIS_MNEMONIC_CMPXCHG16B ? 16 : 1;
    }
}

bool draft_make(struct generator *g, struct form *form, struct draft *draft, unsigned attempt) {
    draft->form = form;
    draft->encoding = form->variant[rng_below(&g->rng, form->variant_count)];
    choose_fields(g, draft, attempt);
    unsigned length = form_assemble(g->mode, &draft->encoding, &draft->fields, draft->bytes);
    fill_tail(g, draft, length);
    if (!draft_decode(g, draft))
        return false;
    if (rule_is_wide_far_pointer(&draft->instruction) && insn_host_is_amd())
        return false;
    memset(&draft->wish, 0, sizeof draft->wish);
    draft->memory = -1;
    for (unsigned i = 0; i < draft->instruction.operand_count; i++) {
        const ZydisDecodedOperand *operand = &draft->operand[i];
        bool is_explicit = operand->visibility == ZYDIS_OPERAND_VISIBILITY_EXPLICIT;
        if (operand->type != ZYDIS_OPERAND_TYPE_MEMORY || !is_explicit ||
            operand->encoding == ZYDIS_OPERAND_ENCODING_NONE)
            continue;
        draft->memory = (int)i;
        draft->wish.size = operand->size / 8;
        draft->wish.alignment = operand_alignment(draft, draft->wish.size);
        draft->wish.is_write = operand->actions & ZYDIS_OPERAND_ACTION_MASK_WRITE;
        break;
    }
    return true;
}

static uint16_t registers_written(const struct draft *draft) {
    uint16_t mask = 0;
    for (unsigned i = 0; i < draft->instruction.operand_count; i++) {
        const ZydisDecodedOperand *operand = &draft->operand[i];
        if (operand->type != ZYDIS_OPERAND_TYPE_REGISTER ||
            !(operand->actions & ZYDIS_OPERAND_ACTION_MASK_WRITE))
            continue;
        int reg = register_number(operand->reg.value);
        if (reg >= 0)
            mask |= (uint16_t)(1u << reg);
    }
    switch (draft->instruction.mnemonic) {
    case ZYDIS_MNEMONIC_POPA:
    case ZYDIS_MNEMONIC_POPAD:
        mask |= 0xef;
        break;
    case ZYDIS_MNEMONIC_XSAVEC:
    case ZYDIS_MNEMONIC_XSAVEC64:
    case ZYDIS_MNEMONIC_XSAVEOPT:
    case ZYDIS_MNEMONIC_XSAVEOPT64:
        mask |= 1 << GPR_RAX | 1 << GPR_RCX | 1 << GPR_RDI; /* by what special_after() does */
        break;
    default:
        break;
    }
    if (draft->form->class == FORM_STRING)
        mask |= 1 << GPR_RCX | 1 << GPR_RSI | 1 << GPR_RDI;
    return mask;
}

static uint16_t registers_used(const struct draft *draft) {
    uint16_t mask = 0;
    for (unsigned i = 0; i < draft->instruction.operand_count; i++)
        if (draft->operand[i].type == ZYDIS_OPERAND_TYPE_REGISTER) {
            int reg = register_number(draft->operand[i].reg.value);
            if (reg >= 0)
                mask |= (uint16_t)(1u << reg);
        }
    return mask;
}

static bool moves_stack(const struct draft *draft) {
    for (unsigned i = 0; i < draft->instruction.operand_count; i++)
        if (draft->operand[i].type == ZYDIS_OPERAND_TYPE_REGISTER &&
            draft->operand[i].actions & ZYDIS_OPERAND_ACTION_MASK_WRITE &&
            register_number(draft->operand[i].reg.value) == GPR_RSP)
            return true;
    return false;
}

/* Is this draft one that we want here? */
static bool draft_fits(struct generator *g, const struct draft *draft, uint16_t written) {
    uint16_t special =
        1 << GPR_RAX | 1 << GPR_RCX | 1 << GPR_RDX | 1 << GPR_RBX | 1 << GPR_RSI | 1 << GPR_RDI;
    if (written & g->reserved)
        return false;
    if (g->reserved & special &&
        (draft->form->class == FORM_STRING || rule_is_volatile(draft->instruction.mnemonic)))
        return false;
    if (g->keeps_stack && moves_stack(draft))
        return false;
    if (g->may_trap &&
        (rule_is_volatile(draft->instruction.mnemonic) || rule_is_state_image(draft->instruction.mnemonic)))
        return false;
    /* Which parts of a masked operand are checked for alignment is a maker's own. */
    if (g->may_check &&
        (rule_is_masked(&draft->instruction) || draft->instruction.mnemonic == ZYDIS_MNEMONIC_MOVDIR64B))
        return false;
    uint16_t explicit_write = 0;
    for (unsigned i = 0; i < draft->instruction.operand_count_visible; i++)
        if (draft->operand[i].type == ZYDIS_OPERAND_TYPE_REGISTER &&
            draft->operand[i].actions & ZYDIS_OPERAND_ACTION_MASK_WRITE) {
            int reg = register_number(draft->operand[i].reg.value);
            if (reg >= 0)
                explicit_write |= (uint16_t)(1u << reg);
        }
    return !(explicit_write & g->pinned) || rng_permille(&g->rng, 150);
}

/* The address field of MOV AL, moffs and its like. */
static void patch_moffs(const struct generator *g, struct draft *draft) {
    uint64_t target = draft->wish.target;
    switch (draft->operand[draft->memory].mem.segment) {
    case ZYDIS_REGISTER_FS:
        target -= g->test->regs.fs_base;
        break;
    case ZYDIS_REGISTER_GS:
        target -= g->test->regs.gs_base;
        break;
    default:
        break;
    }
    memcpy(draft->bytes + draft->instruction.raw.disp.offset, &target, draft->instruction.raw.disp.size / 8);
}

static bool place_memory(struct generator *g, struct draft *draft) {
    bool is_rip = false;
    if (!draft->wish.is_fixed)
        draft->wish.target = choose_target(g, &draft->wish);
    if (!draft->encoding.has_modrm) {
        if (draft->instruction.raw.disp.size)
            patch_moffs(g, draft);
        return true;
    }
    uint8_t tail[8];
    unsigned old_tail = draft->instruction.length;
    for (unsigned i = 2; i-- > 0;)
        if (draft->instruction.raw.imm[i].size)
            old_tail = draft->instruction.raw.imm[i].offset;
    memcpy(tail, draft->bytes + old_tail, 8);
    const ZydisDecodedOperand *memory = &draft->operand[draft->memory];
    struct form_fields saved = draft->fields;
    choose_memory(g, &draft->fields, &draft->encoding, &draft->wish, registers_used(draft), &is_rip);
    if (memory->mem.type == ZYDIS_MEMOP_TYPE_VSIB) {
        /* Keep the vector index; a base of its own. */
        bool address_size = draft->fields.address_size;
        draft->fields = saved;
        unsigned base = choose_register(g, 1 << GPR_RSP | 1 << GPR_RBP | 1 << GPR_R13);
        gen_mov(g, base, draft->wish.target);
        draft->fields.address_size = address_size && draft->wish.target <= UINT32_MAX;
        draft->fields.sib = (uint8_t)((saved.sib & 0x38) | rng_below(&g->rng, 4) << 6 | (base & 7));
        draft->fields.rex = (uint8_t)((saved.rex & 6) | base >> 3);
        is_rip = false;
    }
    unsigned length = form_assemble(g->mode, &draft->encoding, &draft->fields, draft->bytes);
    /* 3DNow!'s opcode suffix stands where an immediate would. */
    memcpy(draft->bytes + length, tail, 8);
    if (!draft_decode(g, draft))
        return false;
    if (is_rip) {
        uint32_t relative = (uint32_t)(draft->fields.disp - (g->pc + g->at + draft->instruction.length));
        memcpy(draft->bytes + draft->instruction.raw.disp.offset, &relative, 4);
    }
    return true;
}

/* Whether parts of a state image may wrap around in a segment of 4 GiB is an implementation's own (SDM vol.
 * 3, 5.3). */
static bool image_wraps(const struct generator *g, const struct draft *draft) {
    if (g->mode != 32 || draft->memory < 0 || !rule_is_state_image(draft->instruction.mnemonic))
        return false;
    uint64_t base = 0;
    if (draft->operand[draft->memory].mem.segment == ZYDIS_REGISTER_FS)
        base = g->test->regs.fs_base;
    else if (draft->operand[draft->memory].mem.segment == ZYDIS_REGISTER_GS)
        base = g->test->regs.gs_base;
    return (uint32_t)(draft->wish.target - base) > UINT32_MAX - DIFF_XSAVE_SIZE;
}

bool generate_form(struct generator *g, struct form *form) {
    struct draft draft;
    uint16_t written = 0;
    if (form->class == FORM_CONTROL)
        return control_emit(g, form);
    if (!gen_has_room(g, 300))
        return false;
    unsigned attempt = 0;
    for (;; attempt++) {
        if (attempt == 14)
            return false;
        if (!draft_make(g, form, &draft, attempt))
            continue;
        written = registers_written(&draft);
        if (draft_fits(g, &draft, written))
            break;
    }
    struct rule_flags flags = rule_flags(&draft.instruction, draft.operand);
    g->refused = false;
    if (!special_before(g, &draft) || (draft.memory >= 0 && !place_memory(g, &draft)) || g->refused ||
        image_wraps(g, &draft))
        return false;
    if (flags.read & g->undefined) {
        /* The helper changes nothing that the instruction's address depends on, but RIP. */
        unsigned before = g->at;
        gen_define_flags(g);
        if (draft.memory >= 0 && draft.operand[draft.memory].mem.base == ZYDIS_REGISTER_RIP) {
            int32_t relative;
            uint8_t *field = draft.bytes + draft.instruction.raw.disp.offset;
            memcpy(&relative, field, 4);
            relative -= (int32_t)(g->at - before);
            memcpy(field, &relative, 4);
        }
    }
    gen_emit(g, draft.bytes, draft.instruction.length, form, false);
    g->undefined = (g->undefined & ~flags.defined) | flags.undefined;
    special_after(g, &draft);
    uint16_t restore = written & g->pinned & (uint16_t) ~(1u << GPR_RSP);
    if (written >> GPR_RSP & 1 && (form->category != ZYDIS_CATEGORY_PUSH || rng_permille(&g->rng, 50)) &&
        (form->category != ZYDIS_CATEGORY_POP || rng_permille(&g->rng, 50)) && rng_permille(&g->rng, 950))
        restore |= 1 << GPR_RSP;
    for (unsigned reg = 0; reg < 16; reg++)
        if (restore >> reg & 1)
            gen_mov(g, reg, g->pinned_value[reg]);
    return true;
}

static void pin(struct generator *g, unsigned reg, uint64_t value) {
    if (g->mode == 32)
        value = (uint32_t)value;
    g->pinned |= (uint16_t)(1u << reg);
    g->pinned_value[reg] = value;
    g->test->regs.gpr[reg] = value;
}

static void choose_registers(struct generator *g) {
    struct rng *rng = &g->rng;
    struct diff_regs *regs = &g->test->regs;
    for (unsigned i = 0; i < (g->mode == 64 ? 16 : 8); i++)
        regs->gpr[i] = g->mode == 64 ? value_u64(rng) : (uint32_t)value_u64(rng);
    pin(g, GPR_RSP, LAYOUT_STACK + 0x1000 + 8 * rng_below(rng, 64) - 8 * rng_below(rng, 64));
    unsigned pointers = g->mode == 64 ? 4 : 2;
    for (unsigned i = 0; i < pointers; i++) {
        struct memory_wish wish = {.size = 64, .is_write = true};
        uint64_t value = i == 3   ? LAYOUT_ABOVE_4G + rng_below(rng, 0x1f00)
                         : i == 2 ? LAYOUT_ABOVE_2G + rng_below(rng, 0x1f00)
                                  : choose_target(g, &wish);
        pin(g, choose_register(g, 1 << GPR_RSP), value);
    }
    pin(g, choose_register(g, 1 << GPR_RSP), (uint64_t)(int64_t)((int)rng_below(rng, 512) - 256));
    regs->fs_base = LAYOUT_DATA + 16 * rng_below(rng, 256) - (rng_permille(rng, 300) ? 0x8000 : 0);
    regs->gs_base =
        (g->mode == 64 && rng_permille(rng, 300) ? LAYOUT_ABOVE_4G : LAYOUT_DATA) + 16 * rng_below(rng, 256);
    g->fs_known = g->gs_known = true;
    regs->rflags = FLAG_FIXED | FLAG_IF | (rng_u64(rng) & FLAGS_ARITHMETIC);
    if (rng_permille(rng, 50))
        regs->rflags |= FLAG_DF;
    if (rng_permille(rng, 20))
        regs->rflags |= FLAG_AC;
    if (rng_permille(rng, 20))
        regs->rflags |= FLAG_ID;
    if (rng_permille(rng, 10))
        regs->rflags |= FLAG_NT;
    if (rng_permille(rng, 5))
        regs->rflags |= FLAG_TF;
    g->may_trap = regs->rflags & FLAG_TF;
    g->may_check = regs->rflags & FLAG_AC && insn_host_is_amd();
    for (unsigned i = 0; i < 6; i++)
        regs->selector[i] = g->mode == 64 ? 0 : DIFF_DS;
    regs->selector[1] = g->mode == 64 ? DIFF_CS_64 : DIFF_CS_32;
    regs->selector[2] = DIFF_DS;
}

static void fill_data(struct generator *g) {
    struct diff_case *test = g->test;
    value_fill(&g->rng, test->data, DIFF_DATA_SIZE);
    const struct layout_region *data = layout_find(LAYOUT_XSAVE_IMAGE);
    uint8_t image[DIFF_XSAVE_SIZE];
    value_xsave(&g->rng, image);
    memcpy(test->data + data->offset + (LAYOUT_XSAVE_IMAGE - data->base), image, layout_xstate()->size);
    const struct layout_region *table = layout_find(LAYOUT_INDEX_TABLE);
    for (unsigned i = 0; i < 16; i++) {
        int32_t index = (int)rng_below(&g->rng, 256) - 128;
        memcpy(test->data + table->offset + 4 * i, &index, 4);
    }
    for (unsigned i = 0; i < 8; i++) {
        int64_t index = (int)rng_below(&g->rng, 256) - 128;
        memcpy(test->data + table->offset + 64 + 8 * i, &index, 8);
    }
}

void generate_stream(const struct form_table *forms, uint64_t seed, const struct generate_options *options,
                     const struct form *single, struct diff_case *test, struct stream *stream) {
    struct generator generator = {.forms = forms, .test = test, .stream = stream, .mode = forms->mode};
    struct generator *g = &generator;
    rng_init(&g->rng, seed);
    test->seed = seed;
    test->mode = forms->mode;
    test->writable_code = options->self_modifying && rng_permille(&g->rng, 150);
    stream->count = 0;
    memset(&test->regs, 0, sizeof test->regs);
    memset(test->code, LAYOUT_FILLER, DIFF_CODE_SIZE);
    fill_data(g);
    value_xsave(&g->rng, test->xsave);
    /* Across the page boundary, or anywhere in the first page. */
    test->entry = rng_permille(&g->rng, 300) ? 4096 - rng_below(&g->rng, 200) : rng_below(&g->rng, 2048);
    g->code = test->code + test->entry;
    g->pc = layout_code_base(test) + test->entry;
    g->limit = 3000;
    choose_registers(g);
    test->regs.rip = g->pc;
    unsigned length = options->length ? options->length : 32;
    unsigned wanted = single ? 1 : 1 + rng_below(&g->rng, length);
    for (unsigned i = 0; i < wanted && gen_has_room(g, 400); i++) {
        g->unit++;
        if (single)
            generate_form(g, (struct form *)single);
        else if (rng_permille(&g->rng, 25))
            control_loop(g, 0);
        else if (rng_permille(&g->rng, 40))
            walk_loop(g);
        else if (test->writable_code && rng_permille(&g->rng, 150))
            control_self_modify(g);
        else
            generate_form(g, generate_choose(g));
        gen_label_tick(g);
    }
    g->unit++;
    while (g->labels)
        gen_label_place(g, g->labels - 1);
    test->length = g->at;
}
