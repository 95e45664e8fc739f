/* From a module to machine code. Private to sbt/llvm*.c. */
#ifndef NESTOR_SBT_LLVM_COMPILE_H
#define NESTOR_SBT_LLVM_COMPILE_H

#include <llvm-c/Core.h>
#include <llvm-c/TargetMachine.h>

#include "base/types.h"

/* What a relocation's symbol is. */
enum text_symbol { TEXT_REGION, TEXT_EXIT, TEXT_ADDRESS };

struct text_reloc {
    uint32_t place;   /* of 4 bytes, relative to their end + distance */
    uint32_t number;  /* of the region (block number) or the exit */
    int32_t distance; /* from the field's end to the instruction's */
    enum text_symbol symbol;
};

struct text {
    LLVMMemoryBufferRef object;
    const uint8_t *bytes; /* in object */
    size_t size;
    struct text_reloc *reloc;
    size_t relocs;
    uint32_t *region; /* offset by number; UINT32_MAX: none */
    uint32_t regions;
};

LLVMTargetMachineRef compile_target_create(void);
/* Verify, optimise and emit. NULL, or why not: a string that lives for ever. text_destroy() takes *text back
 * in either case. ir: NULL, or where the optimised module's text goes, for LLVMDisposeMessage(). */
MUST_CHECK const char *compile_module(LLVMModuleRef module, LLVMTargetMachineRef target, uint32_t regions,
                                      struct text *text, char **ir);
void text_destroy(struct text *text);

#endif
