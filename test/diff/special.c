/* Instructions that need a scene to do anything but fault, or that leave something irreproducible behind.
 * See generator.h. In a few percent of cases the scene is left out: the fault is a test, too. */
#include "generator.h"

#include "cpu/x86.h"
#include "isa/insn.h"
#include "rules.h"

#include <string.h>

/* Selectors worth loading; none whose descriptor differs from processor to processor (TSS, LDT, CPU number).
 */
static uint16_t choose_selector(struct generator *g, bool for_load) {
    static const uint16_t others[] = {0,    1,    3,    0x08, 0x10, 0x13, 0x18, 0x1b, 0x20,  0x23,
                                      0x28, 0x2b, 0x2c, 0x30, 0x33, 0x63, 0x80, 0xff, 0xfff8};
    if (for_load && rng_permille(&g->rng, 800))
        return DIFF_DS;
    uint16_t selector = others[rng_below(&g->rng, ARRAY_SIZE(others))];
    /* A null selector's RPL does not last: the IRET of any interrupt's handler clears it. */
    return for_load && selector < 4 ? 0 : selector;
}

static uint64_t low_target(struct generator *g, unsigned size) {
    return LAYOUT_DATA + 8 * rng_below(&g->rng, (3 * 4096 - size) / 8);
}

static void wish_fixed(struct draft *draft, uint64_t target) {
    draft->wish.target = target;
    draft->wish.is_fixed = true;
}

static void set_pointer(struct generator *g, const struct draft *draft, unsigned reg, unsigned size,
                        bool is_write) {
    struct memory_wish wish = {.size = size, .is_write = is_write, .alignment = 1};
    uint64_t target = choose_target(g, &wish);
    if (draft->fields.address_size || g->mode == 32)
        target = (uint32_t)target;
    gen_mov(g, reg, target);
}

static void before_string(struct generator *g, const struct draft *draft) {
    static const uint8_t cld[] = {0xfc};
    unsigned size = draft->instruction.operand_width / 8;
    uint32_t count = rng_permille(&g->rng, 60) ? rng_below(&g->rng, 900) : rng_below(&g->rng, 24);
    if (rng_permille(&g->rng, 300))
        gen_emit(g, cld, 1, NULL, false);
    set_pointer(g, draft, GPR_RSI, size, false);
    set_pointer(g, draft, GPR_RDI, size, true);
    gen_mov(g, GPR_RCX, count);
}

/* The register operand of BT and its like moves the memory operand. */
static void before_bit_test(struct generator *g, const struct draft *draft) {
    int reg = draft->operand[1].type == ZYDIS_OPERAND_TYPE_REGISTER
                  ? register_number(draft->operand[1].reg.value)
                  : -1;
    if (reg >= 0 && !((g->pinned | g->reserved) >> reg & 1))
        gen_mov(g, (unsigned)reg,
                (uint64_t)(int64_t)((int)rng_below(&g->rng, 512) - 256) &
                    (g->mode == 64 ? UINT64_MAX : UINT32_MAX));
}

static void before_divide(struct generator *g, const struct draft *draft) {
    if (draft->instruction.operand_width == 8)
        gen_mov(g, GPR_RAX, rng_below(&g->rng, 0x300));
    else
        gen_mov(g, GPR_RDX, rng_below(&g->rng, 4));
}

static void before_flags_pop(struct generator *g, const struct draft *draft) {
    uint32_t flags = (uint32_t)rng_u64(&g->rng) & (FLAGS_ARITHMETIC | FLAG_DF);
    static const uint32_t rare[] = {FLAG_TF, FLAG_NT, FLAG_AC, FLAG_ID, FLAG_RF, FLAG_IOPL, FLAG_IF, FLAG_VM};
    for (unsigned i = 0; i < ARRAY_SIZE(rare); i++)
        if (rng_permille(&g->rng, 25))
            flags |= rare[i];
    g->may_trap |= (flags & FLAG_TF) != 0;
    g->may_check |= flags & FLAG_AC && insn_host_is_amd();
    if (draft->instruction.operand_width == 16) {
        uint8_t push[] = {0x66, 0x68, (uint8_t)flags, (uint8_t)(flags >> 8)};
        gen_emit(g, push, sizeof push, NULL, false);
    } else {
        gen_push(g, flags);
    }
}

static bool before_segment_load(struct generator *g, struct draft *draft) {
    const ZydisDecodedOperand *source = &draft->operand[1];
    uint16_t selector = choose_selector(g, true);
    if (draft->instruction.mnemonic == ZYDIS_MNEMONIC_POP) {
        gen_push(g, selector);
    } else if (draft->memory >= 0) {
        wish_fixed(draft, low_target(g, 16));
        unsigned offset = draft->instruction.mnemonic == ZYDIS_MNEMONIC_MOV
                              ? 0
                              : draft->operand[draft->memory].size / 8 - 2;
        gen_store(g, draft->wish.target + offset, 2, selector, false);
    } else if (source->type == ZYDIS_OPERAND_TYPE_REGISTER) {
        int reg = register_number(source->reg.value);
        if (reg < 0 || (g->pinned | g->reserved) >> reg & 1)
            return false;
        gen_mov(g, (unsigned)reg, selector);
    }
    const ZydisDecodedOperand *loaded = &draft->operand[0];
    for (unsigned i = 0; i < draft->instruction.operand_count; i++)
        if (draft->operand[i].type == ZYDIS_OPERAND_TYPE_REGISTER &&
            ZydisRegisterGetClass(draft->operand[i].reg.value) == ZYDIS_REGCLASS_SEGMENT &&
            draft->operand[i].actions & ZYDIS_OPERAND_ACTION_MASK_WRITE)
            loaded = &draft->operand[i];
    if (loaded->type == ZYDIS_OPERAND_TYPE_REGISTER && loaded->reg.value == ZYDIS_REGISTER_FS)
        g->fs_known = false;
    if (loaded->type == ZYDIS_OPERAND_TYPE_REGISTER && loaded->reg.value == ZYDIS_REGISTER_GS)
        g->gs_known = false;
    return true;
}

/* LAR, LSL, VERR, VERW: the selector is the last explicit operand. */
static bool before_selector_test(struct generator *g, struct draft *draft) {
    const ZydisDecodedOperand *source = &draft->operand[draft->instruction.operand_count_visible - 1];
    uint16_t selector = choose_selector(g, false);
    if (draft->memory >= 0) {
        wish_fixed(draft, low_target(g, 16));
        gen_store(g, draft->wish.target, 2, selector, false);
        return true;
    }
    int reg = register_number(source->reg.value);
    if (reg < 0 || (g->pinned | g->reserved) >> reg & 1)
        return false;
    gen_mov(g, (unsigned)reg, selector);
    return true;
}

static void before_state_save(struct generator *g, struct draft *draft, bool restores) {
    gen_data_segments(g);
    gen_mov(g, GPR_RAX, rng_permille(&g->rng, 700) ? 0xffffffff : (uint32_t)rng_u64(&g->rng));
    gen_mov(g, GPR_RDX, rng_permille(&g->rng, 900) ? 0 : (uint32_t)rng_u64(&g->rng));
    if (restores || rng_permille(&g->rng, 300))
        wish_fixed(draft, LAYOUT_XSAVE_IMAGE);
    else
        wish_fixed(draft, LAYOUT_DATA + 64 * rng_below(&g->rng, 16));
}

static void before_x87(struct generator *g, const struct draft *draft) {
    static const uint8_t free_top[] = {0xdd, 0xc7}, emms[] = {0x0f, 0x77}, init[] = {0xdb, 0xe3};
    (void)draft;
    if (rng_permille(&g->rng, 250))
        gen_emit(g, free_top, 2, NULL, false);
    else if (rng_permille(&g->rng, 30))
        gen_emit(g, emms, 2, NULL, false);
    else if (rng_permille(&g->rng, 15))
        gen_emit(g, init, 2, NULL, false);
}

static void before_gather(struct generator *g, struct draft *draft) {
    const char *name = ZydisMnemonicGetString(draft->instruction.mnemonic);
    const char *verb = strstr(name, "gather");
    bool is_qword = verb ? verb[6] == 'q' : (verb = strstr(name, "scatter")) && verb[7] == 'q';
    const ZydisDecodedOperandMem *mem = &draft->operand[draft->memory].mem;
    ZydisRegisterClass class = ZydisRegisterGetClass(mem->index);
    unsigned bits = class == ZYDIS_REGCLASS_ZMM ? 512 : class == ZYDIS_REGCLASS_YMM ? 256 : 128;
    gen_load_indices(g, (unsigned)ZydisRegisterGetId(mem->index), bits, is_qword);
    draft->wish.size = 8;
    draft->wish.alignment = 1;
    wish_fixed(draft, LAYOUT_DATA + 0x800 + rng_below(&g->rng, 0x1000));
    if (g->mode == 64 && rng_permille(&g->rng, 200))
        draft->wish.target = LAYOUT_ABOVE_4G + 0xf80 + rng_below(&g->rng, 128);
    else if (rng_permille(&g->rng, 60))
        draft->wish.target = LAYOUT_ISLAND + rng_below(&g->rng, 4096);
}

static void patch_imm(struct draft *draft, unsigned index, uint32_t value) {
    memcpy(draft->bytes + draft->instruction.raw.imm[index].offset, &value,
           draft->instruction.raw.imm[index].size / 8);
}

static bool before_base_write(struct generator *g, const struct draft *draft) {
    int reg = register_number(draft->operand[0].reg.value);
    if (reg < 0 || (g->pinned | g->reserved) >> reg & 1)
        return false;
    gen_mov(g, (unsigned)reg, LAYOUT_DATA + (uint32_t)rng_below(&g->rng, 0x3000));
    if (draft->instruction.mnemonic == ZYDIS_MNEMONIC_WRFSBASE)
        g->fs_known = false;
    else
        g->gs_known = false;
    return true;
}

static bool before_by_mnemonic(struct generator *g, struct draft *draft) {
    switch (draft->instruction.mnemonic) {
    case ZYDIS_MNEMONIC_XLAT:
        set_pointer(g, draft, GPR_RBX, 256, false);
        return true;
    case ZYDIS_MNEMONIC_MASKMOVQ:
    case ZYDIS_MNEMONIC_MASKMOVDQU:
    case ZYDIS_MNEMONIC_VMASKMOVDQU:
        /* Whether an empty mask may fault is an implementation's own (SDM vol. 2, MASKMOVDQU). */
        gen_mov(g, GPR_RDI, LAYOUT_DATA + rng_below(&g->rng, 0x2ff0));
        return true;
    case ZYDIS_MNEMONIC_BT:
    case ZYDIS_MNEMONIC_BTS:
    case ZYDIS_MNEMONIC_BTR:
    case ZYDIS_MNEMONIC_BTC:
        if (draft->memory >= 0)
            before_bit_test(g, draft);
        return true;
    case ZYDIS_MNEMONIC_DIV:
    case ZYDIS_MNEMONIC_IDIV:
        before_divide(g, draft);
        return true;
    case ZYDIS_MNEMONIC_POPF:
    case ZYDIS_MNEMONIC_POPFD:
    case ZYDIS_MNEMONIC_POPFQ:
        before_flags_pop(g, draft);
        return true;
    case ZYDIS_MNEMONIC_LAR:
    case ZYDIS_MNEMONIC_LSL:
    case ZYDIS_MNEMONIC_VERR:
    case ZYDIS_MNEMONIC_VERW:
        return before_selector_test(g, draft);
    case ZYDIS_MNEMONIC_LEAVE:
        gen_mov(g, GPR_RBP, LAYOUT_STACK + 0x800 + 8 * rng_below(&g->rng, 128));
        return true;
    case ZYDIS_MNEMONIC_ENTER:
        patch_imm(draft, 0, rng_below(&g->rng, 512));
        patch_imm(draft, 1, rng_permille(&g->rng, 500) ? 0 : rng_below(&g->rng, 64));
        gen_mov(g, GPR_RBP, LAYOUT_STACK + 0xe00 + 8 * rng_below(&g->rng, 64));
        return true;
    case ZYDIS_MNEMONIC_XSAVE:
    case ZYDIS_MNEMONIC_XSAVE64:
    case ZYDIS_MNEMONIC_XSAVEC:
    case ZYDIS_MNEMONIC_XSAVEC64:
    case ZYDIS_MNEMONIC_XSAVEOPT:
    case ZYDIS_MNEMONIC_XSAVEOPT64:
    case ZYDIS_MNEMONIC_FXSAVE:
    case ZYDIS_MNEMONIC_FXSAVE64:
    case ZYDIS_MNEMONIC_FNSAVE:
    case ZYDIS_MNEMONIC_FNSTENV:
        before_state_save(g, draft, false);
        return true;
    case ZYDIS_MNEMONIC_XRSTOR:
    case ZYDIS_MNEMONIC_XRSTOR64:
    case ZYDIS_MNEMONIC_FXRSTOR:
    case ZYDIS_MNEMONIC_FXRSTOR64:
        before_state_save(g, draft, true);
        return true;
    case ZYDIS_MNEMONIC_LDMXCSR:
    case ZYDIS_MNEMONIC_VLDMXCSR:
        wish_fixed(draft, LAYOUT_XSAVE_IMAGE + 24);
        return true;
    case ZYDIS_MNEMONIC_WRFSBASE:
    case ZYDIS_MNEMONIC_WRGSBASE:
        return before_base_write(g, draft);
    case ZYDIS_MNEMONIC_MOVDIR64B: {
        int reg = register_number(draft->operand[0].reg.value);
        if (reg < 0 || (g->pinned | g->reserved) >> reg & 1)
            return false;
        gen_mov(g, (unsigned)reg, LAYOUT_DATA + 64 * rng_below(&g->rng, 128));
        return true;
    }
    case ZYDIS_MNEMONIC_XGETBV:
        gen_mov(g, GPR_RCX, rng_permille(&g->rng, 800) ? 0 : rng_below(&g->rng, 3));
        return true;
    default:
        return true;
    }
}

static bool writes_segment(const struct draft *draft) {
    for (unsigned i = 0; i < draft->instruction.operand_count; i++)
        if (draft->operand[i].type == ZYDIS_OPERAND_TYPE_REGISTER &&
            ZydisRegisterGetClass(draft->operand[i].reg.value) == ZYDIS_REGCLASS_SEGMENT &&
            draft->operand[i].actions & ZYDIS_OPERAND_ACTION_MASK_WRITE)
            return true;
    return false;
}

bool special_before(struct generator *g, struct draft *draft) {
    ZydisMnemonic mnemonic = draft->instruction.mnemonic;
    if (mnemonic == ZYDIS_MNEMONIC_INT) {
        /* The native side sees system calls on 0x80 and a random one of Linux's own vectors as #GP. */
        uint8_t *vector = draft->bytes + draft->instruction.raw.imm[0].offset;
        if (*vector == 0x80)
            *vector = 0x21;
        if (*vector >= 0x10 && *vector < 0x20) /* a hypervisor below the host may have made calls of these */
            *vector += 0x20;
        return true;
    }
    if (writes_segment(draft))
        return before_segment_load(g, draft);
    bool must = mnemonic == ZYDIS_MNEMONIC_LAR || mnemonic == ZYDIS_MNEMONIC_LSL ||
                mnemonic == ZYDIS_MNEMONIC_VERR || mnemonic == ZYDIS_MNEMONIC_VERW ||
                rule_is_volatile(mnemonic) || strstr(ZydisMnemonicGetString(mnemonic), "save") ||
                strstr(ZydisMnemonicGetString(mnemonic), "maskmov") || mnemonic == ZYDIS_MNEMONIC_FNSTENV ||
                mnemonic == ZYDIS_MNEMONIC_POPF || mnemonic == ZYDIS_MNEMONIC_POPFD ||
                mnemonic == ZYDIS_MNEMONIC_POPFQ; /* TF: generator.h, may_trap */
    if (!must && rng_permille(&g->rng, 30))
        return true;
    if (draft->form->class == FORM_STRING)
        before_string(g, draft);
    if (draft->form->class == FORM_X87)
        before_x87(g, draft);
    if (draft->memory >= 0 && draft->operand[draft->memory].mem.type == ZYDIS_MEMOP_TYPE_VSIB)
        before_gather(g, draft);
    return before_by_mnemonic(g, draft);
}

/* A MOV that overwrites a register whose value is not reproducible. */
static void wipe(struct generator *g, unsigned reg) {
    gen_mov(g, reg, (uint32_t)rng_u64(&g->rng));
    g->stream->insn[g->stream->count - 1].is_glued = true;
}

static void wipe_x87_environment(struct generator *g, uint64_t target, bool is_16) {
    if (is_16) {
        for (unsigned offset = 6; offset < 14; offset += 2)
            gen_store(g, target + offset, 2, 0x1234, true);
    } else {
        for (unsigned offset = 12; offset < 28; offset += 4)
            gen_store(g, target + offset, 4, 0x12345678, true);
    }
}

static void wipe_fxsave(struct generator *g, uint64_t target) {
    gen_store(g, target + 6, 2, 0, true);
    for (unsigned offset = 8; offset < 24; offset += 4)
        gen_store(g, target + offset, 4, 0, true);
}

void special_after(struct generator *g, const struct draft *draft) {
    uint64_t target = draft->wish.target;
    switch (draft->instruction.mnemonic) {
    case ZYDIS_MNEMONIC_RDTSC:
    case ZYDIS_MNEMONIC_XGETBV:
    case ZYDIS_MNEMONIC_RDPRU:
        wipe(g, GPR_RAX);
        wipe(g, GPR_RDX);
        break;
    case ZYDIS_MNEMONIC_RDTSCP:
        wipe(g, GPR_RAX);
        wipe(g, GPR_RDX);
        wipe(g, GPR_RCX);
        break;
    case ZYDIS_MNEMONIC_CPUID:
        for (unsigned reg = GPR_RAX; reg <= GPR_RBX; reg++)
            wipe(g, reg);
        break;
    case ZYDIS_MNEMONIC_RDPID:
    case ZYDIS_MNEMONIC_RDRAND:
    case ZYDIS_MNEMONIC_RDSEED: {
        int reg = register_number(draft->operand[0].reg.value);
        if (reg >= 0)
            wipe(g, (unsigned)reg);
        if (draft->instruction.mnemonic != ZYDIS_MNEMONIC_RDPID)
            gen_define_flags(g); /* CF: whether there was a number */
        break;
    }
    case ZYDIS_MNEMONIC_FNSAVE:
        wipe_x87_environment(g, target, draft->operand[draft->memory].size == 94 * 8);
        break;
    case ZYDIS_MNEMONIC_FNSTENV:
        wipe_x87_environment(g, target, draft->operand[draft->memory].size == 14 * 8);
        break;
    case ZYDIS_MNEMONIC_FXSAVE:
    case ZYDIS_MNEMONIC_FXSAVE64:
        wipe_fxsave(g, target);
        break;
    case ZYDIS_MNEMONIC_XSAVE:
    case ZYDIS_MNEMONIC_XSAVE64:
        /* XINUSE, and what it lets the processor leave out, is an implementation's own. */
        wipe_fxsave(g, target);
        gen_store(g, target + 512, 4, 3, true);
        gen_store(g, target + 516, 4, 0, true);
        break;
    case ZYDIS_MNEMONIC_XSAVEC:
    case ZYDIS_MNEMONIC_XSAVEC64:
    case ZYDIS_MNEMONIC_XSAVEOPT:
    case ZYDIS_MNEMONIC_XSAVEOPT64:
        gen_zero(g, target, layout_xstate()->size);
        break;
    default:
        break;
    }
}
