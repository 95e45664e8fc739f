/* The enumeration of instruction forms. See forms.h.
 *
 * A form is identified by the address of its row in Zydis's definition table, which the decoder leaves in its
 * context, and by what the row leaves open. About ten million short decodings give some ten thousand forms
 * for a mode in under a second or two.
 */
#include "forms.h"

#include "rng.h"
#include "rules.h"

#include <ctype.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define HASH_SIZE (1u << 16)
#define FORMS_MAX (HASH_SIZE / 2)

static const uint8_t legacy_prefixes[] = {
    0,
    FORM_PREFIX_66,
    FORM_PREFIX_F3,
    FORM_PREFIX_F2,
    FORM_PREFIX_66 | FORM_PREFIX_F3,
    FORM_PREFIX_66 | FORM_PREFIX_F2,
    FORM_PREFIX_67,
};

static uint8_t *put_modrm(const struct form_encoding *encoding, const struct form_fields *fields,
                          uint8_t *at) {
    if (!encoding->has_modrm)
        return at;
    *at++ = (uint8_t)(fields->mod << 6 | (fields->reg & 7) << 3 | (fields->rm & 7));
    if (fields->has_sib)
        *at++ = fields->sib;
    memcpy(at, &fields->disp, 4);
    return at + fields->disp_size;
}

static uint8_t *put_legacy(unsigned mode, const struct form_encoding *encoding,
                           const struct form_fields *fields, uint8_t *at) {
    if (encoding->prefixes & FORM_PREFIX_LOCK)
        *at++ = 0xf0;
    if (encoding->prefixes & FORM_PREFIX_66)
        *at++ = 0x66;
    if (encoding->prefixes & FORM_PREFIX_F3)
        *at++ = 0xf3;
    if (encoding->prefixes & FORM_PREFIX_F2)
        *at++ = 0xf2;
    uint8_t rex = (uint8_t)(fields->rex | encoding->w << 3);
    if (mode == 64 && (rex || fields->force_rex))
        *at++ = 0x40 | rex;
    if (encoding->map >= 1)
        *at++ = 0x0f;
    if (encoding->map == 2)
        *at++ = 0x38;
    if (encoding->map == 3)
        *at++ = 0x3a;
    if (encoding->map == 4)
        *at++ = 0x0f;
    else
        *at++ = encoding->opcode;
    at = put_modrm(encoding, fields, at);
    if (encoding->map == 4)
        *at++ = encoding->opcode;
    return at;
}

static uint8_t *put_vex(const struct form_encoding *encoding, const struct form_fields *fields, uint8_t *at) {
    uint8_t inverted = (uint8_t)(~fields->rex & 7);
    uint8_t tail = (uint8_t)((~fields->vvvv & 15) << 3 | encoding->l << 2 | encoding->pp);
    if (encoding->encoding == ZYDIS_INSTRUCTION_ENCODING_VEX && encoding->map == 1 && !encoding->w &&
        !(fields->rex & 3) && !fields->force_rex) {
        *at++ = 0xc5;
        *at++ = (uint8_t)((inverted >> 2 & 1) << 7 | tail);
    } else {
        *at++ = encoding->encoding == ZYDIS_INSTRUCTION_ENCODING_XOP ? 0x8f : 0xc4;
        *at++ = (uint8_t)(inverted << 5 | encoding->map);
        *at++ = (uint8_t)(encoding->w << 7 | tail);
    }
    *at++ = encoding->opcode;
    return put_modrm(encoding, fields, at);
}

static uint8_t *put_evex(const struct form_encoding *encoding, const struct form_fields *fields,
                         uint8_t *at) {
    *at++ = 0x62;
    *at++ = (uint8_t)((~fields->rex & 7) << 5 | (~fields->r2 & 1) << 4 | encoding->map);
    *at++ = (uint8_t)(encoding->w << 7 | (~fields->vvvv & 15) << 3 | 4 | encoding->pp);
    *at++ = (uint8_t)(fields->z << 7 | encoding->l << 5 | encoding->b << 4 | (~fields->vvvv >> 4 & 1) << 3 |
                      fields->aaa);
    *at++ = encoding->opcode;
    return put_modrm(encoding, fields, at);
}

unsigned form_assemble(unsigned mode, const struct form_encoding *encoding, const struct form_fields *fields,
                       uint8_t *bytes) {
    uint8_t *at = bytes;
    if (fields->segment)
        *at++ = fields->segment;
    if (fields->address_size || (encoding->prefixes & FORM_PREFIX_67))
        *at++ = 0x67;
    switch (encoding->encoding) {
    case ZYDIS_INSTRUCTION_ENCODING_VEX:
    case ZYDIS_INSTRUCTION_ENCODING_XOP:
        at = put_vex(encoding, fields, at);
        break;
    case ZYDIS_INSTRUCTION_ENCODING_EVEX:
        at = put_evex(encoding, fields, at);
        break;
    default:
        at = put_legacy(mode, encoding, fields, at);
    }
    return (unsigned)(at - bytes);
}

#define KEY_ATTRIBUTES                                                                                       \
    (ZYDIS_ATTRIB_HAS_LOCK | ZYDIS_ATTRIB_HAS_REP | ZYDIS_ATTRIB_HAS_REPE | ZYDIS_ATTRIB_HAS_REPNE)

static uint64_t form_key(const ZydisDecoderContext *context, const ZydisDecodedInstruction *instruction) {
    const ZydisDecodedInstructionAvx *avx = &instruction->avx;
    uint64_t state = (uint64_t)(uintptr_t)context->definition;
    uint64_t key = rng_mix(&state);
    bool rounds = avx->rounding.mode != ZYDIS_ROUNDING_MODE_INVALID || avx->has_sae;
    state = key ^ (uint64_t)instruction->operand_width << 32 ^ (uint64_t)avx->vector_length << 16 ^
            (uint64_t)avx->broadcast.mode << 8 ^ (uint64_t)rounds << 4;
    key = rng_mix(&state);
    state = key ^ (instruction->attributes & KEY_ATTRIBUTES);
    return rng_mix(&state) | 1;
}

static struct form *table_find(const struct form_table *table, uint64_t key, bool add) {
    struct form_table *mutable = (struct form_table *)table;
    for (uint32_t slot = (uint32_t)key & (HASH_SIZE - 1);; slot = (slot + 1) & (HASH_SIZE - 1)) {
        uint32_t index = table->hash[slot];
        if (index && table->form[index - 1].key == key)
            return &table->form[index - 1];
        if (index)
            continue;
        if (!add || table->count == FORMS_MAX)
            return NULL;
        mutable->hash[slot] = ++mutable->count;
        table->form[table->count - 1].key = key;
        return &table->form[table->count - 1];
    }
}

struct form *form_lookup(const struct form_table *table, const ZydisDecoderContext *context,
                         const ZydisDecodedInstruction *instruction) {
    return table_find(table, form_key(context, instruction), false);
}

static enum form_class form_classify(const struct form *form) {
    const struct form_encoding *encoding = &form->variant[0];
    if (form->excluded)
        return FORM_EXCLUDED;
    switch (form->category) {
    case ZYDIS_CATEGORY_COND_BR:
    case ZYDIS_CATEGORY_UNCOND_BR:
    case ZYDIS_CATEGORY_CALL:
    case ZYDIS_CATEGORY_RET:
        return FORM_CONTROL;
    case ZYDIS_CATEGORY_STRINGOP:
        return FORM_STRING;
    case ZYDIS_CATEGORY_X87_ALU:
        return FORM_X87;
    case ZYDIS_CATEGORY_SYSTEM:
    case ZYDIS_CATEGORY_INTERRUPT:
    case ZYDIS_CATEGORY_IOSTRINGOP:
    case ZYDIS_CATEGORY_IO:
    case ZYDIS_CATEGORY_SYSCALL:
    case ZYDIS_CATEGORY_SYSRET:
    case ZYDIS_CATEGORY_VTX:
    case ZYDIS_CATEGORY_SGX:
        return FORM_SYSTEM;
    default:
        break;
    }
    if (encoding->encoding == ZYDIS_INSTRUCTION_ENCODING_EVEX)
        return FORM_EVEX;
    if (encoding->encoding != ZYDIS_INSTRUCTION_ENCODING_LEGACY &&
        encoding->encoding != ZYDIS_INSTRUCTION_ENCODING_3DNOW)
        return FORM_VEX;
    switch (form->isa_ext) {
    case ZYDIS_ISA_EXT_BASE:
    case ZYDIS_ISA_EXT_LONGMODE:
    case ZYDIS_ISA_EXT_ADOX_ADCX:
    case ZYDIS_ISA_EXT_LZCNT:
    case ZYDIS_ISA_EXT_MOVBE:
        return FORM_INTEGER;
    default:
        return form->category == ZYDIS_CATEGORY_MISC || form->category == ZYDIS_CATEGORY_NOP ? FORM_INTEGER
                                                                                             : FORM_SSE;
    }
}

static void form_add(struct form_table *table, const ZydisDecoderContext *context,
                     const ZydisDecodedInstruction *instruction, const struct form_encoding *encoding,
                     unsigned reg, unsigned rm) {
    struct form *form = table_find(table, form_key(context, instruction), true);
    if (!form)
        return;
    for (unsigned i = 0; i < form->variant_count; i++) {
        struct form_encoding *old = &form->variant[i];
        if (old->map == encoding->map && old->opcode == encoding->opcode &&
            old->prefixes == encoding->prefixes && old->pp == encoding->pp && old->w == encoding->w &&
            old->l == encoding->l && old->b == encoding->b && old->is_register == encoding->is_register) {
            old->reg_mask |= (uint8_t)(1u << reg);
            old->rm_mask |= (uint8_t)(1u << rm);
            return;
        }
    }
    /* The address size makes forms of its own of JCXZ and its like only; elsewhere it is a free choice. */
    if (form->variant_count == FORM_VARIANTS || (form->variant_count && encoding->prefixes & FORM_PREFIX_67))
        return;
    struct form_encoding *new = &form->variant[form->variant_count++];
    *new = *encoding;
    new->reg_mask = (uint8_t)(1u << reg);
    new->rm_mask = (uint8_t)(1u << rm);
    form->mnemonic = instruction->mnemonic;
    form->category = instruction->meta.category;
    form->isa_set = instruction->meta.isa_set;
    form->isa_ext = instruction->meta.isa_ext;
}

/* Try one encoding with every ModRM that may matter. */
static void enumerate_modrm(struct form_table *table, struct form_encoding encoding, bool all_rm) {
    for (unsigned is_register = 0; is_register < 2; is_register++) {
        for (unsigned reg = 0; reg < 8; reg++) {
            for (unsigned rm = 0; rm < (is_register && all_rm ? 8 : 1); rm++) {
                uint8_t bytes[64] = {0};
                ZydisDecoderContext context;
                ZydisDecodedInstruction instruction;
                struct form_fields fields = {.reg = (uint8_t)reg,
                                             .rm = is_register ? (uint8_t)rm : 4,
                                             .mod = is_register ? 3 : 0,
                                             .has_sib = !is_register,
                                             .sib = 0x08};
                encoding.has_modrm = true;
                encoding.is_register = is_register;
                encoding.needs_mask = false;
                unsigned length = form_assemble(table->mode, &encoding, &fields, bytes);
                ZyanStatus status = ZydisDecoderDecodeInstruction(&table->decoder, &context, bytes,
                                                                  sizeof bytes, &instruction);
                if (!ZYAN_SUCCESS(status) && encoding.encoding == ZYDIS_INSTRUCTION_ENCODING_EVEX) {
                    fields.aaa = 1;
                    encoding.needs_mask = true;
                    length = form_assemble(table->mode, &encoding, &fields, bytes);
                    status = ZydisDecoderDecodeInstruction(&table->decoder, &context, bytes, sizeof bytes,
                                                           &instruction);
                }
                (void)length;
                if (!ZYAN_SUCCESS(status) || instruction.encoding != encoding.encoding ||
                    (encoding.map != 4 && instruction.opcode != encoding.opcode))
                    continue;
                if (!(instruction.attributes & ZYDIS_ATTRIB_HAS_MODRM)) {
                    encoding.has_modrm = false;
                    form_add(table, &context, &instruction, &encoding, 0, 0);
                    return;
                }
                form_add(table, &context, &instruction, &encoding, reg, rm);
            }
        }
    }
}

static bool is_prefix_byte(unsigned mode, unsigned opcode) {
    static const uint8_t prefixes[] = {0x0f, 0x26, 0x2e, 0x36, 0x3e, 0x64,
                                       0x65, 0x66, 0x67, 0xf0, 0xf2, 0xf3};
    if (mode == 64 && (opcode & 0xf0) == 0x40)
        return true;
    return memchr(prefixes, (int)opcode, sizeof prefixes) != NULL;
}

static void enumerate_legacy(struct form_table *table) {
    for (unsigned map = 0; map < 5; map++) {
        for (unsigned opcode = 0; opcode < 256; opcode++) {
            if (map == 0 && is_prefix_byte(table->mode, opcode))
                continue;
            for (unsigned i = 0; i < ARRAY_SIZE(legacy_prefixes); i++) {
                for (unsigned w = 0; w < (table->mode == 64 ? 2 : 1); w++) {
                    for (unsigned lock = 0; lock < (map < 2 ? 2 : 1); lock++) {
                        struct form_encoding encoding = {
                            .encoding = map == 4 ? ZYDIS_INSTRUCTION_ENCODING_3DNOW
                                                 : ZYDIS_INSTRUCTION_ENCODING_LEGACY,
                            .map = (uint8_t)map,
                            .opcode = (uint8_t)opcode,
                            .prefixes = legacy_prefixes[i] | (lock ? FORM_PREFIX_LOCK : 0),
                            .w = (uint8_t)w};
                        enumerate_modrm(table, encoding, map < 2);
                    }
                }
            }
        }
    }
}

static void enumerate_vector(struct form_table *table, ZydisInstructionEncoding kind, unsigned first_map,
                             unsigned last_map, unsigned lengths, unsigned bs) {
    for (unsigned map = first_map; map <= last_map; map++)
        for (unsigned opcode = 0; opcode < 256; opcode++)
            for (unsigned pp = 0; pp < 4; pp++)
                for (unsigned w = 0; w < 2; w++)
                    for (unsigned l = 0; l < lengths; l++)
                        for (unsigned b = 0; b < bs; b++) {
                            struct form_encoding encoding = {.encoding = kind,
                                                             .map = (uint8_t)map,
                                                             .opcode = (uint8_t)opcode,
                                                             .pp = (uint8_t)pp,
                                                             .w = (uint8_t)w,
                                                             .l = (uint8_t)l,
                                                             .b = (uint8_t)b};
                            enumerate_modrm(table, encoding, false);
                        }
}

static const char *operand_text(const ZydisDecodedOperand *operand, char *text, size_t size) {
    switch (operand->type) {
    case ZYDIS_OPERAND_TYPE_REGISTER: {
        static const char *const classes[] = {
            [ZYDIS_REGCLASS_GPR8] = "r8",      [ZYDIS_REGCLASS_GPR16] = "r16",
            [ZYDIS_REGCLASS_GPR32] = "r32",    [ZYDIS_REGCLASS_GPR64] = "r64",
            [ZYDIS_REGCLASS_X87] = "st",       [ZYDIS_REGCLASS_MMX] = "mm",
            [ZYDIS_REGCLASS_XMM] = "xmm",      [ZYDIS_REGCLASS_YMM] = "ymm",
            [ZYDIS_REGCLASS_ZMM] = "zmm",      [ZYDIS_REGCLASS_TMM] = "tmm",
            [ZYDIS_REGCLASS_SEGMENT] = "sreg", [ZYDIS_REGCLASS_MASK] = "k",
            [ZYDIS_REGCLASS_CONTROL] = "cr",   [ZYDIS_REGCLASS_DEBUG] = "dr",
            [ZYDIS_REGCLASS_BOUND] = "bnd",
        };
        ZydisRegisterClass class = ZydisRegisterGetClass(operand->reg.value);
        bool fixed = operand->encoding == ZYDIS_OPERAND_ENCODING_NONE;
        if (!fixed && class < ARRAY_SIZE(classes) && classes[class])
            return classes[class];
        const char *name = ZydisRegisterGetString(operand->reg.value);
        return name ? name : "reg";
    }
    case ZYDIS_OPERAND_TYPE_MEMORY:
        snprintf(text, size, "%s%u", operand->mem.type == ZYDIS_MEMOP_TYPE_VSIB ? "vsib" : "m",
                 operand->size);
        return text;
    case ZYDIS_OPERAND_TYPE_POINTER:
        return "ptr";
    default:
        snprintf(text, size, "%s%u", operand->imm.is_relative ? "rel" : "imm", operand->size);
        return text;
    }
}

void form_name(const struct form_table *table, const struct form *form, char *name, size_t size) {
    static const char *const encodings[] = {"", " 3DNOW", " XOP", " VEX", " EVEX", " MVEX"};
    const struct form_encoding *encoding = &form->variant[0];
    ZydisDecodedInstruction instruction;
    ZydisDecodedOperand operand[ZYDIS_MAX_OPERAND_COUNT];
    uint8_t bytes[64] = {0};
    struct form_fields fields = {.reg = (uint8_t)__builtin_ctz(encoding->reg_mask),
                                 .rm = encoding->is_register ? (uint8_t)__builtin_ctz(encoding->rm_mask) : 4,
                                 .mod = encoding->is_register ? 3 : 0,
                                 .has_sib = !encoding->is_register,
                                 .sib = 0x08,
                                 .aaa = encoding->needs_mask};
    form_assemble(table->mode, encoding, &fields, bytes);
    const char *mnemonic = ZydisMnemonicGetString(form->mnemonic);
    size_t at =
        (size_t)snprintf(name, size, "%s%s", mnemonic ? mnemonic : "?", encodings[encoding->encoding]);
    for (char *c = name; *c; c++)
        *c = (char)toupper((unsigned char)*c);
    if (!ZYAN_SUCCESS(ZydisDecoderDecodeFull(&table->decoder, bytes, sizeof bytes, &instruction, operand)))
        return;
    if (instruction.avx.vector_length && at < size)
        at += (size_t)snprintf(name + at, size - at, ".%u", instruction.avx.vector_length);
    for (unsigned i = 0; i < instruction.operand_count_visible && at < size; i++) {
        char text[32];
        at += (size_t)snprintf(name + at, size - at, "%s%s", i ? ", " : " ",
                               operand_text(&operand[i], text, sizeof text));
    }
    if (at < size && instruction.avx.broadcast.mode && !instruction.avx.broadcast.is_static)
        at += (size_t)snprintf(name + at, size - at, " {bcst}");
    if (at < size && (instruction.avx.has_sae || instruction.avx.rounding.mode))
        at += (size_t)snprintf(name + at, size - at, instruction.avx.rounding.mode ? " {er}" : " {sae}");
    if (at < size && instruction.attributes & ZYDIS_ATTRIB_HAS_LOCK)
        at += (size_t)snprintf(name + at, size - at, " lock");
    if (at < size && instruction.attributes & (KEY_ATTRIBUTES & ~ZYDIS_ATTRIB_HAS_LOCK))
        snprintf(name + at, size - at, instruction.attributes & ZYDIS_ATTRIB_HAS_REPNE ? " repne" : " rep");
}

static int table_finish(struct form_table *table, const char *filter) {
    unsigned kept = 0;
    for (unsigned i = 0; i < table->count; i++) {
        char name[128];
        form_name(table, &table->form[i], name, sizeof name);
        if (!filter || strcasestr(name, filter))
            table->form[kept++] = table->form[i];
    }
    table->count = 0;
    memset(table->hash, 0, HASH_SIZE * sizeof *table->hash);
    for (unsigned i = 0; i < kept; i++) {
        struct form copy = table->form[i];
        struct form *form = table_find(table, copy.key, true);
        if (!form)
            return -ENOMEM;
        *form = copy;
        form->excluded = rule_exclusion(form->mnemonic, table->mode);
        form->class = form_classify(form);
        table->class_count[form->class]++;
    }
    for (unsigned class = 0; class < FORM_CLASSES; class ++) {
        unsigned n = 0;
        table->by_class[class] = calloc(table->class_count[class] + 1, sizeof(unsigned));
        if (!table->by_class[class])
            return -ENOMEM;
        for (unsigned i = 0; i < table->count; i++)
            if (table->form[i].class == class)
                table->by_class[class][n++] = i;
    }
    return 0;
}

int form_table_create(struct form_table *table, unsigned mode, const char *filter) {
    memset(table, 0, sizeof *table);
    table->mode = mode;
    table->form = calloc(FORMS_MAX, sizeof *table->form);
    table->hash = calloc(HASH_SIZE, sizeof *table->hash);
    if (!table->form || !table->hash) {
        form_table_destroy(table);
        return -ENOMEM;
    }
    if (mode == 64)
        ZydisDecoderInit(&table->decoder, ZYDIS_MACHINE_MODE_LONG_64, ZYDIS_STACK_WIDTH_64);
    else
        ZydisDecoderInit(&table->decoder, ZYDIS_MACHINE_MODE_LONG_COMPAT_32, ZYDIS_STACK_WIDTH_32);
    enumerate_legacy(table);
    enumerate_vector(table, ZYDIS_INSTRUCTION_ENCODING_VEX, 1, 3, 2, 1);
    enumerate_vector(table, ZYDIS_INSTRUCTION_ENCODING_XOP, 8, 10, 2, 1);
    enumerate_vector(table, ZYDIS_INSTRUCTION_ENCODING_EVEX, 1, 6, 3, 2);
    int error = table_finish(table, filter);
    if (error)
        form_table_destroy(table);
    return error;
}

void form_table_destroy(struct form_table *table) {
    for (unsigned class = 0; class < FORM_CLASSES; class ++)
        free(table->by_class[class]);
    free(table->form);
    free(table->hash);
    memset(table, 0, sizeof *table);
}
