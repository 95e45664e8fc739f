/* A code generator of the offline translator: guest bytes in, one portable unit out. The template emitter
 * that the run time uses too is one (codegen_template.c), LLVM another (llvm.h), which only programs that
 * name it are linked with.
 *
 * A generator's state belongs to one thread; as many as wanted may exist.
 */
#ifndef NESTOR_SBT_CODEGEN_H
#define NESTOR_SBT_CODEGEN_H

#include "cache-format/view.h"
#include "cpu/model.h"

struct codegen_request {
    uint64_t address;      /* link address */
    uint32_t mode;         /* cpu/mode.h */
    const uint8_t *bytes;  /* guest code at address */
    uint32_t length;       /* of the unit: two pages at most */
    const uint16_t *entry; /* offsets of places that may be entered from outside, in any order (none: 0 is
                              one); those behind calls and exits to C need not be named */
    unsigned entries;
    const struct codegen_stop { /* bytes that are left to other units: code that leads there leaves the unit
                                 */
        uint32_t from, to;
    } * stop;
    unsigned stops;
    /* Ascending: bytes that need not be as they are. The unit has those that its code does not depend on, or
     * takes by relocations (docs/cache-format.md). */
    const struct ntc_field *field;
    unsigned fields;
};

struct codegen {
    const char *name;
    void *(*create)(const struct cpu_model *model); /* NULL: no memory */
    void (*destroy)(void *state);
    /* Translate the code that the entries lead to. The unit's pointers hold until the next call with this
     * state; image, name and heat are the caller's. 0; -ENOENT: nothing that could be kept begins there;
     * -E2BIG: ask for less at a time; -ENOMEM. */
    int (*translate)(void *state, const struct codegen_request *request, struct ntc_unit *unit);
    uint32_t (*abi)(void);
    uint64_t (*layout)(const struct cpu_model *model);
    /* These may be NULL. Why the last translate() made nothing: a string that lives for ever. */
    const char *(*refusal)(const void *state);
    /* Shall units have their IR with them? */
    void (*keep_ir)(void *state, bool keep);
};

extern const struct codegen codegen_template;

#endif
