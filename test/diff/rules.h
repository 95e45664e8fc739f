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

/* True when the instruction's outputs differ from run to run, so the generator overwrites them. */
bool rule_is_volatile(ZydisMnemonic mnemonic);

#endif
