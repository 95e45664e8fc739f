/* Every instruction form that Zydis knows: a row of its definition tables together with operand width, vector
 * length, broadcast, rounding and lock/repeat prefixes. Found by walking the whole opcode space (maps x
 * mandatory prefixes x W x L x ModRM) with Zydis's decoder, so no list of instructions is kept here. */
#ifndef NESTOR_TEST_DIFF_FORMS_H
#define NESTOR_TEST_DIFF_FORMS_H

#include "base/types.h"

#include <Zydis/Zydis.h>

#define FORM_PREFIX_66 1u
#define FORM_PREFIX_F3 2u
#define FORM_PREFIX_F2 4u
#define FORM_PREFIX_LOCK 8u
#define FORM_PREFIX_67 16u

/* The bits of an encoding that decide which form it is. */
struct form_encoding {
    uint8_t encoding; /* ZydisInstructionEncoding */
    uint8_t map;      /* legacy: 0 one-byte, 1 0F, 2 0F38, 3 0F3A, 4 3DNow!; else the encoding's own number */
    uint8_t opcode;
    uint8_t prefixes; /* legacy: FORM_PREFIX_* */
    uint8_t pp;       /* VEX, XOP, EVEX */
    uint8_t w, l, b;
    bool has_modrm;
    bool is_register; /* ModRM.mod is 3 */
    bool needs_mask;  /* EVEX.aaa must not be 0 */
    uint8_t reg_mask; /* values of ModRM.reg that give the form */
    uint8_t rm_mask;  /* values of ModRM.rm that do (register forms) */
};

/* The rest of the bits, chosen freely. */
struct form_fields {
    uint8_t reg, rm, mod;
    bool has_sib;
    uint8_t sib;
    uint8_t rex; /* R, X, B as in a REX prefix; VEX and EVEX take them inverted */
    bool force_rex;
    uint8_t r2, vvvv, z, aaa; /* vvvv: 5 bits, V' included; none of them inverted */
    uint8_t disp_size;
    uint32_t disp;
    uint8_t segment; /* prefix byte or 0 */
    bool address_size;
};

#define FORM_VARIANTS 6u

enum form_class {
    FORM_INTEGER,
    FORM_CONTROL, /* branches, calls, returns */
    FORM_STRING,
    FORM_X87,
    FORM_SSE, /* legacy-encoded vector instructions, MMX included */
    FORM_VEX, /* and XOP */
    FORM_EVEX,
    FORM_SYSTEM,   /* raise #GP or read system state at CPL 3 */
    FORM_EXCLUDED, /* never generated: rules.c says why */
    FORM_CLASSES,
};

struct form {
    uint64_t key;
    ZydisMnemonic mnemonic;
    ZydisInstructionCategory category;
    ZydisISASet isa_set;
    ZydisISAExt isa_ext;
    enum form_class class;
    const char *excluded; /* reason; NULL unless class is FORM_EXCLUDED */
    uint8_t variant_count;
    struct form_encoding variant[FORM_VARIANTS];
    /* What the native runs told. */
    bool unsupported;   /* always #UD on this host */
    uint64_t completed; /* executed without a fault */
    uint64_t faulted;
    uint32_t last_vector;
};

struct form_table {
    unsigned mode; /* 64 or 32 */
    ZydisDecoder decoder;
    struct form *form;
    unsigned count;
    unsigned *by_class[FORM_CLASSES];
    unsigned class_count[FORM_CLASSES];
    uint32_t *hash; /* open addressing: index + 1 */
};

/* Enumerate all forms of one mode; filter (NULL: all) keeps those whose name holds it. -ENOMEM. */
MUST_CHECK int form_table_create(struct form_table *table, unsigned mode, const char *filter);
void form_table_destroy(struct form_table *table);

/* Append prefixes, opcode, ModRM, SIB and displacement to bytes (room for 15 and more); no immediates, but
 * for the opcode suffix of 3DNow!. Returns the length. */
unsigned form_assemble(unsigned mode, const struct form_encoding *encoding, const struct form_fields *fields,
                       uint8_t *bytes);
/* The form of a decoded instruction, or NULL (filtered out or unknown). */
struct form *form_lookup(const struct form_table *table, const ZydisDecoderContext *context,
                         const ZydisDecodedInstruction *instruction);
/* "VADDPS EVEX.512 zmm, zmm, m512 {bcst}" */
void form_name(const struct form_table *table, const struct form *form, char *name, size_t size);

#endif
