/* Memory operands: where they point and how they are spelt. See generator.h. */
#include "generator.h"

#include "cpu/x86.h"

#include <string.h>

int register_number(ZydisRegister reg) {
    switch (ZydisRegisterGetClass(reg)) {
    case ZYDIS_REGCLASS_GPR8:
        if (reg >= ZYDIS_REGISTER_AH && reg <= ZYDIS_REGISTER_BH)
            return reg - ZYDIS_REGISTER_AH;
        return reg < ZYDIS_REGISTER_AH ? reg - ZYDIS_REGISTER_AL : reg - ZYDIS_REGISTER_SPL + 4;
    case ZYDIS_REGCLASS_GPR16:
        return reg - ZYDIS_REGISTER_AX;
    case ZYDIS_REGCLASS_GPR32:
        return reg - ZYDIS_REGISTER_EAX;
    case ZYDIS_REGCLASS_GPR64:
        return reg - ZYDIS_REGISTER_RAX;
    default:
        return -1;
    }
}

unsigned choose_register(struct generator *g, uint16_t avoid) {
    for (unsigned i = 0; i < 64; i++) {
        unsigned reg = rng_below(&g->rng, g->mode == 64 ? 16 : 8);
        if (!((avoid | g->pinned | g->reserved) >> reg & 1))
            return reg;
    }
    return GPR_RAX;
}

/* An address whose access faults: unmapped, crossing into unmapped, read-only, non-canonical, kernel's. */
static uint64_t fault_target(struct generator *g, const struct memory_wish *wish) {
    struct rng *rng = &g->rng;
    switch (rng_below(rng, g->mode == 64 ? 8 : 5)) {
    case 0:
        return LAYOUT_ISLAND + PAGE_SIZE - rng_below(rng, wish->size + 1);
    case 1:
        return LAYOUT_ISLAND - rng_below(rng, wish->size + 1);
    case 2:
        return LAYOUT_READ_ONLY - rng_below(rng, 2 * wish->size + 1) + wish->size;
    case 3:
        return LAYOUT_READ_ONLY + PAGE_SIZE - rng_below(rng, wish->size + 1);
    case 4:
        return rng_below(rng, 1 << 16);
    case 5:
        return 0x800000000000ull - rng_below(rng, wish->size + 1) + rng_below(rng, 16);
    case 6:
        return 0xffff800000000000ull + (rng_u64(rng) & 0x7fffffffffff);
    default:
        return rng_u64(rng);
    }
}

uint64_t choose_target(struct generator *g, const struct memory_wish *wish) {
    struct rng *rng = &g->rng;
    static const struct {
        uint64_t base;
        unsigned pages;
    } places[] = {{LAYOUT_DATA, 3},   {LAYOUT_DATA, 3},     {LAYOUT_DATA, 3},  {LAYOUT_DATA, 3},
                  {LAYOUT_ISLAND, 1}, {LAYOUT_ABOVE_2G, 2}, {LAYOUT_STACK, 1}, {LAYOUT_ABOVE_4G, 2}};
    if (rng_permille(rng, 12))
        return fault_target(g, wish);
    unsigned i = rng_below(rng, g->mode == 64 ? ARRAY_SIZE(places) : 7);
    uint64_t base = places[i].base, size = places[i].pages * PAGE_SIZE;
    if (!wish->is_write && rng_permille(rng, 60)) {
        base = LAYOUT_READ_ONLY;
        size = PAGE_SIZE;
    }
    /* Not over a return address: a loop without an end costs a second. */
    if (g->pinned >> GPR_RSP & 1 && !(wish->is_write && g->keeps_stack) && rng_permille(rng, 60))
        return g->pinned_value[GPR_RSP] + rng_below(rng, 256) - 128;
    uint64_t room = wish->size && wish->size < size ? size - wish->size : size - 8;
    uint64_t offset = rng_below(rng, (uint32_t)room + 1);
    if (size > PAGE_SIZE && wish->size > 1 && rng_permille(rng, 70))
        offset = PAGE_SIZE - 1 - rng_below(rng, wish->size - 1);
    uint64_t target = base + offset;
    if (wish->alignment > 1 && rng_permille(rng, 985))
        target &= ~(uint64_t)(wish->alignment - 1);
    else if (wish->size > 1 && rng_permille(rng, 700))
        target &= ~(uint64_t)((wish->size & -wish->size) - 1);
    return target;
}

static void set_disp(struct generator *g, struct form_fields *fields, const struct form_encoding *encoding,
                     int64_t disp, bool base_needs_disp) {
    bool is_evex = encoding->encoding == ZYDIS_INSTRUCTION_ENCODING_EVEX;
    fields->disp = (uint32_t)disp;
    if (disp == 0 && !base_needs_disp && rng_permille(&g->rng, 900)) {
        fields->mod = 0;
        fields->disp_size = 0;
    } else if (disp == (int8_t)disp && (!is_evex || disp == 0) && rng_permille(&g->rng, 900)) {
        fields->mod = 1;
        fields->disp_size = 1;
    } else {
        fields->mod = 2;
        fields->disp_size = 4;
    }
}

/* base (-1: none) + index (-1: none) * 2^scale + disp */
static void spell(struct generator *g, struct form_fields *fields, const struct form_encoding *encoding,
                  int base, int index, unsigned scale, int64_t disp) {
    fields->rex &= 4;
    if (base < 0) {
        fields->mod = 0;
        fields->disp_size = 4;
        fields->disp = (uint32_t)disp;
        fields->rm = 4;
        fields->has_sib = true;
        fields->sib = (uint8_t)(scale << 6 | (index < 0 ? 4 : index & 7) << 3 | 5);
    } else {
        bool needs_sib = index >= 0 || (base & 7) == 4 || rng_permille(&g->rng, 100);
        set_disp(g, fields, encoding, disp, (base & 7) == 5);
        fields->has_sib = needs_sib;
        fields->rm = needs_sib ? 4 : (uint8_t)(base & 7);
        fields->sib = (uint8_t)(scale << 6 | (index < 0 ? 4 : index & 7) << 3 | (base & 7));
        fields->rex |= (uint8_t)(base >> 3);
    }
    if (index >= 0)
        fields->rex |= (uint8_t)(index >> 3 << 1);
}

/* 16-bit addressing reaches the first 64 KiB of a segment: FS and GS have bases near the data. */
static bool spell_16(struct generator *g, struct form_fields *fields, uint64_t offset) {
    static const uint8_t registers[8] = {1 << 3 | 1 << 6, 1 << 3 | 1 << 7, 1 << 5 | 1 << 6, 1 << 5 | 1 << 7,
                                         1 << 6,          1 << 7,          1 << 5,          1 << 3};
    if (offset > 0xffff)
        return false;
    unsigned rm = rng_below(&g->rng, 8);
    uint16_t sum = 0;
    fields->address_size = true;
    fields->has_sib = false;
    fields->rex = 0;
    if ((g->pinned & registers[rm]) != registers[rm]) {
        fields->mod = 0;
        fields->rm = 6;
        sum = 0;
    } else {
        fields->mod = 2;
        fields->rm = (uint8_t)rm;
        for (unsigned reg = 0; reg < 8; reg++)
            if (registers[rm] >> reg & 1)
                sum = (uint16_t)(sum + g->pinned_value[reg]);
    }
    fields->disp = (uint16_t)(offset - sum);
    fields->disp_size = 2;
    return true;
}

static uint64_t choose_segment(struct generator *g, struct form_fields *fields) {
    static const uint8_t prefixes[] = {0x26, 0x2e, 0x36, 0x3e};
    struct rng *rng = &g->rng;
    fields->segment = 0;
    if (rng_permille(rng, 100)) {
        bool is_gs = rng_permille(rng, 500);
        if (is_gs ? g->gs_known : g->fs_known) {
            fields->segment = is_gs ? 0x65 : 0x64;
            return is_gs ? g->test->regs.gs_base : g->test->regs.fs_base;
        }
    }
    if (rng_permille(rng, 20))
        fields->segment = prefixes[rng_below(rng, 4)];
    return 0;
}

static int choose_pinned(struct generator *g, bool small) {
    for (unsigned i = 0; i < 24; i++) {
        unsigned reg = rng_below(&g->rng, g->mode == 64 ? 16 : 8);
        uint64_t value = g->pinned_value[reg];
        if (g->mode == 32)
            value = (uint64_t)(int32_t)value;
        if (g->pinned >> reg & 1 && (value + 0x10000 < 0x20000) == small)
            return (int)reg;
    }
    return -1;
}

/* RSP or RBP's kind of operand: [RSP + index * scale + any displacement], which compilers make for arrays on
 * the stack. The index has whatever value a register has, pinned or not: what is missing goes into RSP's own
 * displacement. */
static bool spell_stack(struct generator *g, struct form_fields *fields, const struct form_encoding *encoding,
                        const struct memory_wish *wish, uint64_t offset, uint64_t width) {
    struct rng *rng = &g->rng;
    if (wish->is_fixed || !(g->pinned >> GPR_RSP & 1) || !rng_permille(rng, 120))
        return false;
    int index = rng_permille(rng, 700) ? choose_pinned(g, true) : -1;
    if (index == GPR_RSP)
        index = -1;
    unsigned scale = index >= 0 ? rng_below(rng, 4) : 0;
    int64_t disp =
        (int64_t)(offset - g->pinned_value[GPR_RSP] - (index >= 0 ? g->pinned_value[index] << scale : 0));
    if (width == UINT32_MAX)
        disp = (int32_t)disp;
    if (disp != (int32_t)disp)
        return false;
    spell(g, fields, encoding, GPR_RSP, index, scale, disp);
    return true;
}

/* Off the register that moves: where it points is known when it runs. */
static bool spell_walker(struct generator *g, struct form_fields *fields,
                         const struct form_encoding *encoding, const struct memory_wish *wish) {
    struct rng *rng = &g->rng;
    if (!g->walks || wish->is_fixed || !rng_permille(rng, 700))
        return false;
    int index = rng_permille(rng, 150) ? choose_pinned(g, true) : -1;
    if (index == GPR_RSP)
        index = -1;
    int64_t disp = rng_permille(rng, 600) ? 0 : (int8_t)rng_u64(rng);
    if (!g->walker_steps && wish->size)
        disp &= ~(int64_t)((wish->size & -wish->size) - 1);
    fields->segment = 0;
    spell(g, fields, encoding, g->walker, index, index >= 0 ? rng_below(rng, 4) : 0, disp);
    return true;
}

void choose_memory(struct generator *g, struct form_fields *fields, const struct form_encoding *encoding,
                   const struct memory_wish *wish, uint16_t avoid, bool *is_rip) {
    struct rng *rng = &g->rng;
    uint64_t width = g->mode == 64 ? UINT64_MAX : UINT32_MAX;
    uint64_t offset = wish->target - choose_segment(g, fields);
    *is_rip = false;
    /* Whether the offset must be canonical when the sum is, is a maker's own. */
    if (fields->segment && g->mode == 64 && (uint64_t)((int64_t)(offset << 16) >> 16) != offset) {
        fields->segment = 0;
        offset = wish->target;
    }
    fields->address_size = false;
    if (g->mode == 32 && fields->segment >= 0x64 && rng_permille(rng, 300) &&
        spell_16(g, fields, offset & UINT32_MAX))
        return;
    if (g->mode == 64 && offset <= UINT32_MAX && rng_permille(rng, 40)) {
        fields->address_size = true;
        width = UINT32_MAX;
    }
    if (spell_walker(g, fields, encoding, wish))
        return;
    if (spell_stack(g, fields, encoding, wish, offset, width))
        return;
    /* What is overwritten afterwards at a fixed place must not depend on other units' registers. */
    int index = !wish->is_fixed && rng_permille(rng, 350) ? choose_pinned(g, true) : -1;
    if (index == GPR_RSP)
        index = -1;
    unsigned scale = index >= 0 ? rng_below(rng, 4) : 0;
    uint64_t rest = offset - (index >= 0 ? g->pinned_value[index] << scale : 0);
    unsigned way = rng_below(rng, 10);
    if (way == 0 && g->mode == 64 && offset < 0x80000000 && !fields->segment) {
        fields->mod = 0;
        fields->rm = 5;
        fields->rex &= 4;
        fields->has_sib = false;
        fields->disp_size = 4;
        fields->disp = (uint32_t)offset;
        fields->address_size = false;
        *is_rip = true;
        return;
    }
    if (way == 1 && (g->mode == 32 || width == UINT32_MAX || (int64_t)rest == (int32_t)rest)) {
        spell(g, fields, encoding, -1, index, scale, (int64_t)rest);
        if (g->mode == 32 && index < 0 && rng_permille(rng, 700)) {
            fields->has_sib = false;
            fields->rm = 5;
        }
        return;
    }
    int base = way < 7 && !wish->is_fixed ? choose_pinned(g, false) : -1;
    if (base >= 0) {
        int64_t disp = (int64_t)(rest - g->pinned_value[base]);
        if (width == UINT32_MAX)
            disp = (int32_t)disp;
        if (disp == (int32_t)disp) {
            spell(g, fields, encoding, base, index, scale, disp);
            return;
        }
    }
    /* A base of its own, loaded just before. */
    base = (int)choose_register(g, avoid | 1 << GPR_RSP);
    int64_t disp = 0;
    if (rng_permille(rng, 400))
        disp = (int8_t)rng_u64(rng);
    else if (rng_permille(rng, 200))
        disp = (int32_t)rng_u64(rng);
    uint64_t value = (rest - (uint64_t)disp) & width;
    if (width == UINT32_MAX && g->mode == 64 && rng_permille(rng, 500))
        value |= rng_u64(rng) << 32; /* the address size cuts it off */
    gen_mov(g, (unsigned)base, value);
    spell(g, fields, encoding, base, index, scale, disp);
}
