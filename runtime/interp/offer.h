/* Which instructions the guest's processor has: those of its CPU model, which may be fewer than the host's.
 */
#ifndef NESTOR_INTERP_OFFER_H
#define NESTOR_INTERP_OFFER_H

#include "isa/insn.h"

struct cpu_model;

/* One lookup per decoded instruction; made once per vCPU. */
struct insn_offer {
    bool isa_set[ZYDIS_ISA_SET_MAX_VALUE + 1];
    bool cx8, lahf_lm, movdir64b, movdiri, msr, pclmulqdq, sep, tsc;
};

void insn_offer_read(struct insn_offer *offer, const struct cpu_model *model);

/* False: the guest's processor has no such instruction. What it does with the bytes then is not always #UD
 * (LZCNT and TZCNT become BSR and BSF): the interpreter knows. */
bool insn_offered(const struct insn_offer *offer, const struct insn *insn);

#endif
