/* What may differ between two correct processors, and why: the only allowances the comparison makes. */
#ifndef NESTOR_TEST_DIFF_RULES_H
#define NESTOR_TEST_DIFF_RULES_H

#include "case.h"
#include "rng.h"

#include <Zydis/Zydis.h>

/* Why streams never hold this instruction, or NULL. */
const char *rule_exclusion(ZydisMnemonic mnemonic, unsigned mode);

/* How an instruction treats the arithmetic flags. */
struct rule_flags {
    uint32_t read;      /* tested, or stored somewhere */
    uint32_t defined;   /* has a defined value afterwards whatever it was before */
    uint32_t undefined; /* may have any value afterwards */
};
struct rule_flags rule_flags(const ZydisDecodedInstruction *instruction, const ZydisDecodedOperand *operand);

/* True when the instruction reads or writes a state image in parts, in an order of the processor's own: the
 * CR2 of its page fault may be that of any part in the faulting page. */
bool rule_is_state_image(ZydisMnemonic mnemonic);
/* True when the instruction accesses its memory operand under an AVX or AVX-512 mask: the CR2 of its page
 * fault may be that of any byte of it in the faulting page. */
bool rule_is_masked(const ZydisDecodedInstruction *instruction);
/* True for a store that converts: when it faults, the exceptions of the conversion are in MXCSR already or
 * not, as the processor has it. */
/* A far pointer of 64 bits in memory: AMD's processors take 32, guests may use them everywhere
 * (docs/deviations.md). */
bool rule_is_wide_far_pointer(const ZydisDecodedInstruction *instruction);
/* A gather whose mask is a vector: one that faults may have widened the sign of each element over it. */
bool rule_is_vex_gather(const ZydisDecodedInstruction *instruction);
bool rule_is_converting_store(ZydisMnemonic mnemonic);
/* True for a store that the processor makes in two pieces, of 8 and 2 bytes: when the second one faults, the
 * first is in memory already or not, as the processor has it. */
bool rule_is_split_store(const ZydisDecodedInstruction *instruction, const ZydisDecodedOperand *operand);
/* True when a misaligned operand is #GP, or #AC if that is enabled, as the processor has it (SDM vol. 2,
 * FXSAVE). */
bool rule_is_aligned_image(ZydisMnemonic mnemonic);
/* True for a repeated store: when it overwrites itself, the processor decides at which iteration it sees
 * that. */
bool rule_is_repeated_store(const ZydisDecodedInstruction *instruction);
bool rule_is_repeated_load(const ZydisDecodedInstruction *instruction);
/* True for a repeated comparison: a fault shows the flags from when it was last resumed, and an interrupt may
 * have done that at any iteration. */
bool rule_is_repeated_comparison(const ZydisDecodedInstruction *instruction);

/* True for MMX instructions: whether a faulting one has entered MMX state (TOP 0, tags valid) already, wholly
 * or in part, is an implementation's own. */
bool rule_enters_mmx(const ZydisDecodedInstruction *instruction, const ZydisDecodedOperand *operand);

/* True when the instruction's outputs differ from run to run, so the generator overwrites them. */
bool rule_is_volatile(ZydisMnemonic mnemonic);

#endif
