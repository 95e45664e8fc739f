/* The few host instructions that the translator itself emits. 64-bit operand size unless the name says
 * otherwise; registers are numbered as in enum gpr. GS-relative operands address struct dbt_area: area.h.
 * Where code_buffer.area says how far from the code that is, as seen from where the code is written, they are
 * relative to RIP instead, which is two bytes shorter; but not the polls, which want to know the present GS.
 */
#ifndef NESTOR_DBT_ASM_H
#define NESTOR_DBT_ASM_H

#include "isa/code_buffer.h"

/* Opcodes of the two-operand ALU family in their "reg, r/m" form. */
enum asm_alu {
    ASM_ADD = 0x03,
    ASM_OR = 0x0b,
    ASM_AND = 0x23,
    ASM_SUB = 0x2b,
    ASM_XOR = 0x33,
    ASM_CMP = 0x3b
};
/* Condition codes of Jcc. */
enum asm_cond { COND_O = 0, COND_B = 2, COND_AE = 3, COND_E = 4, COND_NE = 5, COND_BE = 6, COND_A = 7 };

static inline void asm_rex(struct code_buffer *c, bool w, int reg, int index, int base) {
    uint8_t rex = (uint8_t)(0x40 | w << 3 | (reg >> 3 & 1) << 2 | (index >> 3 & 1) << 1 | (base >> 3 & 1));
    if (rex != 0x40)
        code_u8(c, rex);
}

/* ModRM and displacement of gs:[offset], relative to RIP or not; so many bytes of an immediate follow. */
static inline void asm_modrm_gs(struct code_buffer *c, int reg, uint32_t offset, unsigned immediate) {
    if (c->area) {
        code_u8(c, (uint8_t)((reg & 7) << 3 | 5));
        code_u32(c, (uint32_t)(c->area + offset - (c->at + 4 + immediate)));
        return;
    }
    code_u8(c, (uint8_t)((reg & 7) << 3 | 4));
    code_u8(c, 0x25);
    code_u32(c, offset);
}

/* opcode reg, gs:[offset] */
static inline void asm_gs_imm(struct code_buffer *c, bool w, uint8_t opcode, int reg, uint32_t offset,
                              unsigned immediate) {
    if (!c->area)
        code_u8(c, 0x65);
    asm_rex(c, w, reg, 0, 0);
    code_u8(c, opcode);
    asm_modrm_gs(c, reg, offset, immediate);
}
static inline void asm_gs(struct code_buffer *c, bool w, uint8_t opcode, int reg, uint32_t offset) {
    asm_gs_imm(c, w, opcode, reg, offset, 0);
}

static inline void asm_load_gs(struct code_buffer *c, int reg, uint32_t offset) {
    asm_gs(c, true, 0x8b, reg, offset);
}
static inline void asm_store_gs(struct code_buffer *c, uint32_t offset, int reg) {
    asm_gs(c, true, 0x89, reg, offset);
}
static inline void asm_load32_gs(struct code_buffer *c, int reg, uint32_t offset) {
    asm_gs(c, false, 0x8b, reg, offset);
}
static inline void asm_store32_gs(struct code_buffer *c, uint32_t offset, int reg) {
    asm_gs(c, false, 0x89, reg, offset);
}
static inline void asm_alu_gs(struct code_buffer *c, enum asm_alu op, int reg, uint32_t offset) {
    asm_gs(c, true, (uint8_t)op, reg, offset);
}
/* mov byte gs:[offset], value */
static inline void asm_store8_imm_gs(struct code_buffer *c, uint32_t offset, uint8_t value) {
    asm_gs_imm(c, false, 0xc6, 0, offset, 1);
    code_u8(c, value);
}
static inline void asm_store32_imm_gs(struct code_buffer *c, uint32_t offset, uint32_t value) {
    asm_gs_imm(c, false, 0xc7, 0, offset, 4);
    code_u32(c, value);
}
/* mov qword gs:[offset], value (one or two stores) */
static inline void asm_store64_imm_gs(struct code_buffer *c, uint32_t offset, uint64_t value) {
    if ((uint64_t)(int64_t)(int32_t)value == value) {
        asm_gs_imm(c, true, 0xc7, 0, offset, 4);
        code_u32(c, (uint32_t)value);
    } else {
        asm_store32_imm_gs(c, offset, (uint32_t)value);
        asm_store32_imm_gs(c, offset + 4, (uint32_t)(value >> 32));
    }
}

static inline void asm_mov(struct code_buffer *c, int to, int from) {
    asm_rex(c, true, from, 0, to);
    code_u8(c, 0x89);
    code_u8(c, (uint8_t)(0xc0 | (from & 7) << 3 | (to & 7)));
}
/* op to, from */
static inline void asm_alu(struct code_buffer *c, enum asm_alu op, int to, int from) {
    asm_rex(c, true, to, 0, from);
    code_u8(c, (uint8_t)op);
    code_u8(c, (uint8_t)(0xc0 | (to & 7) << 3 | (from & 7)));
}
static inline void asm_mov32(struct code_buffer *c, int to, int from) {
    asm_rex(c, false, from, 0, to);
    code_u8(c, 0x89);
    code_u8(c, (uint8_t)(0xc0 | (from & 7) << 3 | (to & 7)));
}

static inline void asm_mov_imm(struct code_buffer *c, int reg, uint64_t value) {
    if (value <= UINT32_MAX) {
        asm_rex(c, false, 0, 0, reg);
        code_u8(c, (uint8_t)(0xb8 | (reg & 7)));
        code_u32(c, (uint32_t)value);
    } else if ((uint64_t)(int64_t)(int32_t)value == value) {
        asm_rex(c, true, 0, 0, reg);
        code_u8(c, 0xc7);
        code_u8(c, (uint8_t)(0xc0 | (reg & 7)));
        code_u32(c, (uint32_t)value);
    } else {
        asm_rex(c, true, 0, 0, reg);
        code_u8(c, (uint8_t)(0xb8 | (reg & 7)));
        code_u64(c, value);
    }
}

/* ModRM, SIB and displacement of [base + index * (1 << scale) + disp]; index -1: none; base -1: absolute,
 * disp32. */
static inline void asm_modrm(struct code_buffer *c, int reg, int base, int index, unsigned scale,
                             int32_t disp) {
    unsigned field = (unsigned)(reg & 7) << 3;
    if (base < 0) {
        code_u8(c, (uint8_t)(field | 4));
        code_u8(c, (uint8_t)(scale << 6 | (unsigned)(index < 0 ? 4 : index & 7) << 3 | 5));
        code_u32(c, (uint32_t)disp);
        return;
    }
    unsigned mod = disp == 0 && (base & 7) != 5 ? 0 : disp >= -128 && disp <= 127 ? 1 : 2;
    if (index >= 0 || (base & 7) == 4) {
        code_u8(c, (uint8_t)(mod << 6 | field | 4));
        code_u8(c, (uint8_t)(scale << 6 | (unsigned)(index < 0 ? 4 : index & 7) << 3 | (unsigned)(base & 7)));
    } else {
        code_u8(c, (uint8_t)(mod << 6 | field | (unsigned)(base & 7)));
    }
    if (mod == 1)
        code_u8(c, (uint8_t)disp);
    else if (mod == 2)
        code_u32(c, (uint32_t)disp);
}

/* opcode reg, [base + index << scale + disp] */
static inline void asm_mem(struct code_buffer *c, bool w, uint8_t opcode, int reg, int base, int index,
                           unsigned scale, int32_t disp) {
    asm_rex(c, w, reg, index < 0 ? 0 : index, base < 0 ? 0 : base);
    code_u8(c, opcode);
    asm_modrm(c, reg, base, index, scale, disp);
}
static inline void asm_lea(struct code_buffer *c, bool w, int reg, int base, int index, unsigned scale,
                           int32_t disp) {
    asm_mem(c, w, 0x8d, reg, base, index, scale, disp);
}
static inline void asm_load(struct code_buffer *c, int reg, int base, int32_t disp) {
    asm_mem(c, true, 0x8b, reg, base, -1, 0, disp);
}
static inline void asm_store(struct code_buffer *c, int base, int32_t disp, int reg) {
    asm_mem(c, true, 0x89, reg, base, -1, 0, disp);
}
static inline void asm_alu_mem(struct code_buffer *c, enum asm_alu op, int reg, int base, int32_t disp) {
    asm_mem(c, true, (uint8_t)op, reg, base, -1, 0, disp);
}

/* lea reg, [rip + what is filled in later]: returns the place of its rel32. */
static inline uint8_t *asm_lea_rip(struct code_buffer *c, int reg) {
    asm_rex(c, true, reg, 0, 0);
    code_u8(c, 0x8d);
    code_u8(c, (uint8_t)((reg & 7) << 3 | 5));
    uint8_t *place = c->at;
    code_u32(c, 0);
    return place;
}
/* movzx to32, from8; from: R8 or above */
static inline void asm_movzx8(struct code_buffer *c, int to, int from) {
    asm_rex(c, false, to, 0, from);
    code_u8(c, 0x0f);
    code_u8(c, 0xb6);
    code_u8(c, (uint8_t)(0xc0 | (to & 7) << 3 | (from & 7)));
}

/* movzx to32, word [base + disp] */
static inline void asm_movzx16(struct code_buffer *c, int to, int base, int32_t disp) {
    asm_rex(c, false, to, 0, base);
    code_u8(c, 0x0f);
    code_u8(c, 0xb7);
    asm_modrm(c, to, base, -1, 0, disp);
}

/* movzx reg32, byte gs:[offset]; or, is_word, a word */
static inline void asm_movzx_gs(struct code_buffer *c, bool is_word, int reg, uint32_t offset) {
    if (!c->area)
        code_u8(c, 0x65);
    asm_rex(c, false, reg, 0, 0);
    code_u8(c, 0x0f);
    code_u8(c, 0xb6 | is_word);
    asm_modrm_gs(c, reg, offset, 0);
}

/* shr reg, count */
static inline void asm_shr(struct code_buffer *c, int reg, uint8_t count) {
    asm_rex(c, true, 0, 0, reg);
    code_u8(c, 0xc1);
    code_u8(c, (uint8_t)(0xe8 | (reg & 7)));
    code_u8(c, count);
}
static inline void asm_shr32(struct code_buffer *c, int reg, uint8_t count) {
    asm_rex(c, false, 0, 0, reg);
    code_u8(c, 0xc1);
    code_u8(c, (uint8_t)(0xe8 | (reg & 7)));
    code_u8(c, count);
}
/* to = the top bits of key's low half times the multiplier: an index among 1 << bits */
static inline void asm_hash(struct code_buffer *c, int to, int key, uint32_t multiplier, unsigned bits) {
    asm_rex(c, false, to, 0, key);
    code_u8(c, 0x69); /* imul to, key, multiplier */
    code_u8(c, (uint8_t)(0xc0 | (to & 7) << 3 | (key & 7)));
    code_u32(c, multiplier);
    asm_shr32(c, to, (uint8_t)(32 - bits));
}
static inline void asm_sar(struct code_buffer *c, int reg, uint8_t count) {
    asm_rex(c, true, 0, 0, reg);
    code_u8(c, 0xc1);
    code_u8(c, (uint8_t)(0xf8 | (reg & 7)));
    code_u8(c, count);
}
static inline void asm_bt_imm(struct code_buffer *c, int reg, unsigned bit) {
    asm_rex(c, true, 0, 0, reg);
    code_u8(c, 0x0f);
    code_u8(c, 0xba);
    code_u8(c, (uint8_t)(0xe0 | (reg & 7)));
    code_u8(c, (uint8_t)bit);
}
static inline void asm_shl(struct code_buffer *c, int reg, uint8_t count) {
    asm_rex(c, true, 0, 0, reg);
    code_u8(c, 0xc1);
    code_u8(c, (uint8_t)(0xe0 | (reg & 7)));
    code_u8(c, count);
}
/* and r32, imm32 */
static inline void asm_and32_imm(struct code_buffer *c, int reg, uint32_t value) {
    asm_rex(c, false, 0, 0, reg);
    code_u8(c, 0x81);
    code_u8(c, (uint8_t)(0xe0 | (reg & 7)));
    code_u32(c, value);
}
/* and r64, simm32 */
static inline void asm_and_imm(struct code_buffer *c, int reg, int32_t value) {
    asm_rex(c, true, 0, 0, reg);
    code_u8(c, 0x81);
    code_u8(c, (uint8_t)(0xe0 | (reg & 7)));
    code_u32(c, (uint32_t)value);
}

/* test a, b */
static inline void asm_test(struct code_buffer *c, int a, int b) {
    asm_rex(c, true, b, 0, a);
    code_u8(c, 0x85);
    code_u8(c, (uint8_t)(0xc0 | (b & 7) << 3 | (a & 7)));
}

/* cmp r64, simm32 */
static inline void asm_cmp_imm(struct code_buffer *c, int reg, int32_t value) {
    asm_rex(c, true, 0, 0, reg);
    code_u8(c, 0x81);
    code_u8(c, (uint8_t)(0xf8 | (reg & 7)));
    code_u32(c, (uint32_t)value);
}

/* A forward jump whose target is filled in later: returns the place of its rel32. */
static inline uint8_t *asm_jcc(struct code_buffer *c, enum asm_cond cond) {
    code_u8(c, 0x0f);
    code_u8(c, (uint8_t)(0x80 | cond));
    uint8_t *place = c->at;
    code_u32(c, 0);
    return place;
}

/* The same, taken unless bits 63-47 of reg are alike: it holds no canonical address. Clobbers scratch. */
static inline uint8_t *asm_jump_not_canonical(struct code_buffer *c, int reg, int scratch) {
    asm_mov(c, scratch, reg);
    asm_sar(c, scratch, 47);
    asm_lea(c, true, scratch, scratch, -1, 0, 1);
    asm_cmp_imm(c, scratch, 1);
    return asm_jcc(c, COND_A);
}
static inline uint8_t *asm_jmp(struct code_buffer *c) {
    code_u8(c, 0xe9);
    uint8_t *place = c->at;
    code_u32(c, 0);
    return place;
}
static inline void asm_patch_rel32(uint8_t *place, const uint8_t *target) {
    int32_t delta = (int32_t)(target - (place + 4));
    memcpy(place, &delta, sizeof delta);
}
static inline void asm_jmp_to(struct code_buffer *c, const uint8_t *target) {
    uint8_t *place = asm_jmp(c);
    if (!c->overflow)
        asm_patch_rel32(place, target);
}
static inline void asm_jmp_reg(struct code_buffer *c, int reg) {
    asm_rex(c, false, 0, 0, reg);
    code_u8(c, 0xff);
    code_u8(c, (uint8_t)(0xe0 | (reg & 7)));
}
static inline void asm_jmp_gs(struct code_buffer *c, uint32_t offset) {
    asm_gs(c, false, 0xff, 4, offset);
}

#endif
