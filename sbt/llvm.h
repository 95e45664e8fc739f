/* The code generator through LLVM: whole functions, or what can be lifted of them, as units of the same shape
 * as the template emitter's (dbt/portable.h). */
#ifndef NESTOR_SBT_LLVM_H
#define NESTOR_SBT_LLVM_H

#include "sbt/codegen.h"

extern const struct codegen codegen_llvm;

#endif
