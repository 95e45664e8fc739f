/* One guest instruction, decoded: Zydis's view and what the engine adds to it. Shared by all tiers. */
#ifndef NESTOR_ISA_INSN_H
#define NESTOR_ISA_INSN_H

#include "base/types.h"

#include <Zydis/Zydis.h>

#define INSN_MAX_LENGTH 15

/* Bits of struct insn.traits. */
#define INSN_LOCKED (1u << 0)
#define INSN_HIGH_BYTE (1u << 1) /* names AH, CH, DH or BH as an operand: no REX prefix may be added */
#define INSN_VECTOR (1u << 2)    /* touches MMX, x87, SSE, AVX or mask state */
#define INSN_MASKED                                                                                          \
    (1u << 3) /* memory operand under an AVX-512 or AVX mask: faults only where the mask is set */
#define INSN_VSIB (1u << 4)       /* gather or scatter */
#define INSN_WRITES_RSP (1u << 5) /* explicitly names RSP/ESP/SP as a written operand */

struct insn {
    ZydisDecodedInstruction z;
    ZydisDecodedOperand op[ZYDIS_MAX_OPERAND_COUNT];
    uint8_t bytes[INSN_MAX_LENGTH];
    uint8_t length;
    uint8_t code_size; /* 16, 32 or 64: what it was decoded as */
    int8_t memory; /* index into op[] of the ModRM/moffs memory operand that is accessed, or -1 (LEA and NOP:
                      -1) */
    uint16_t traits;    /* INSN_* */
    uint16_t gprs_read; /* bit r: general register r is read, implicit and address registers included */
    uint16_t gprs_written;
    uint32_t flags_read;    /* FLAG_* bits tested */
    uint32_t flags_written; /* modified, set, cleared or left undefined */
    uint32_t flags_undefined;
};

enum insn_status {
    INSN_OK,
    INSN_INVALID,  /* #UD */
    INSN_SHORT,    /* more bytes are needed than were given */
    INSN_TOO_LONG, /* over 15 bytes: #GP(0) */
};

/* Decode the instruction at bytes. code_size is 16, 32 or 64. */
enum insn_status insn_decode(struct insn *insn, const uint8_t *bytes, size_t count, unsigned code_size);

/* Is the processor under us one of AMD's (or Hygon's)? Where the makers differ the guest's is like the
 * host's. */
bool insn_host_is_amd(void);
/* Number (0-15) of a general register of any width; high-byte registers give their full register. -1: not a
 * GPR. */
int insn_gpr(ZydisRegister reg);
/* True for AH, CH, DH, BH. */
bool insn_is_high_byte(ZydisRegister reg);
/* Index (enum segment_index order) of the segment that the memory operand uses. */
unsigned insn_segment(const struct insn *insn, const ZydisDecodedOperand *operand);

#endif
