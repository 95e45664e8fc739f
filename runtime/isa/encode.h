/* Re-encoding a guest instruction of any code size for the host's 64-bit mode ("same ISA: use that"). */
#ifndef NESTOR_ISA_ENCODE_H
#define NESTOR_ISA_ENCODE_H

#include "isa/code_buffer.h"
#include "isa/insn.h"

/* What takes the place of the guest's memory operand. Host registers; index -1: none; scale 1. GS-relative
 * when in_vcpu (base and index -1 then mean an absolute displacement from the GS base). */
struct host_memory {
    int8_t base;  /* -1: none */
    int8_t index; /* -1: none */
    bool in_vcpu;
    int32_t disp;
};

/* True when insn_encode() can express it: everything but control transfer, stack, string and system
 * instructions, and the opcodes that 64-bit mode dropped (BCD, BOUND, ...), whose meaning the tiers
 * implement. */
bool insn_can_encode(const struct insn *insn);

/* Append insn with its memory operand (if any) replaced. Prefixes for segments and address size are dropped,
 * operand size is made explicit, INC/DEC short forms and moffs forms become ModRM forms. An instruction with
 * INSN_HIGH_BYTE needs base and index below 8. Returns false, with nothing appended, when it cannot be
 * expressed. */
bool insn_encode(struct code_buffer *code, const struct insn *insn, const struct host_memory *memory);

#endif
