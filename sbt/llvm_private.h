/* A guest function on its way through LLVM. Private to sbt/llvm*.c; docs/decisions/0006-llvm.md says why it
 * is cut the way it is.
 *
 * A function is cut into regions: a head, at which the whole guest state is where it is between two blocks of
 * the template emitter (but that RBX, RBP and RSP travel in other registers), and the blocks that can be
 * reached through the head alone. A region is one LLVM function with the calling convention preserve_none:
 * its twelve arguments are the twelve general registers that live in host registers between blocks. It is
 * left by tail calls: to other regions, or to the exit shims that llvm_unit.c writes by hand.
 *
 * Inside a region registers are SSA values and flags are what computes them (llvm_flags.c). Memory is checked
 * against the software TLB; a check that fails leaves for the template translation of that very instruction,
 * with the guest's state as it was before it (llvm_memory.c). So nothing in LLVM's code can fault on the
 * host, and no map from its addresses to the guest's is needed.
 */
#ifndef NESTOR_SBT_LLVM_PRIVATE_H
#define NESTOR_SBT_LLVM_PRIVATE_H

#include <llvm-c/Core.h>
#include <llvm-c/TargetMachine.h>

#include "dbt/emit.h"
#include "sbt/llvm.h"

#define LLVM_PRESERVE_NONE 21u /* llvm/IR/CallingConv.h: PreserveNone; the C API has no name for it */
/* The guest's vector state stays where it is. */
#define LLVM_FEATURES "-x87,-mmx,-sse,-sse2,-avx"
#define LLVM_GUEST_MAX 16384u /* bytes of a function */
#define LIFT_ARGUMENTS 12u
#define LIFT_INSNS_MAX 1200u
#define LIFT_BLOCKS_MAX 400u
#define LIFT_EXITS_MAX 900u
#define LIFT_LEADER 1u
#define LIFT_HEAD 2u

/* Where metadata tells LLVM that two accesses cannot meet. */
enum lift_memory { LIFT_GUEST, LIFT_AREA, LIFT_TLB, LIFT_MEMORIES };

/* What makes the arithmetic flags. The operands are of the operation's width. */
enum flags_kind {
    FLAGS_PACKED, /* a: as hot.flags has them, 32 bits */
    FLAGS_MERGED, /* a, b, c: 64 bits; kind: which of these it is, encoded */
    FLAGS_LOGIC,  /* a: the result */
    FLAGS_ADD,
    FLAGS_SUB,
    FLAGS_ADC, /* c: carry in, i1 */
    FLAGS_SBB,
    FLAGS_INC, /* c: the carry that stays */
    FLAGS_DEC,
    FLAGS_SHL, /* b: count, not 0 */
    FLAGS_SHR,
    FLAGS_SAR,
    FLAGS_IMUL,
    FLAGS_KINDS,
};

struct lift_flags {
    enum flags_kind kind;
    unsigned width; /* bits */
    bool untouched; /* still those in hot.flags */
    LLVMValueRef a, b, c;
    LLVMValueRef result; /* NULL: ask the packed word for ZF and SF */
    LLVMValueRef which;  /* MERGED */
    LLVMValueRef packed; /* NULL: not made yet */
};

/* root + offset; value is the sum where it has been made. root NULL: in the vCPU (HOMED). */
struct lift_register {
    LLVMValueRef root, value;
    int64_t offset;
    bool dirty; /* HOMED: not what the vCPU has */
};

/* A check that was made: [root + lo, root + hi) lies on one page that may be read (or written). Facts of a
 * path form a list whose tail dominates. */
struct lift_fact {
    struct lift_fact *next;
    LLVMValueRef root;
    bool write;
    int64_t lo, hi;
    LLVMValueRef first, last; /* instructions whose second operand is lo, hi - 1 */
    LLVMValueRef tag;         /* instruction whose second operand is the tag's offset */
    LLVMValueRef addend;
    uint32_t block;
    /* Or: root is base + index << scale. */
    LLVMValueRef sum_base, sum_index;
    unsigned scale;
};

struct lift_state {
    struct lift_register reg[16];
    struct lift_flags flags;
    struct lift_fact *facts;
    LLVMValueRef segment_base[2]; /* FS, GS; NULL: to be loaded */
};

struct lift_edge {
    uint32_t from;
    LLVMBasicBlockRef block; /* that the edge leaves */
    struct lift_state *state;
};

struct lift_block {
    uint32_t first, count; /* instructions */
    uint32_t offset;
    uint32_t next[2]; /* blocks, or NO_INDEX */
    unsigned nexts;
    uint32_t region;       /* block number of the head; NO_INDEX: not known yet */
    LLVMValueRef function; /* of a head */
    bool head;
    bool flags_wanted; /* some path from its start reads flags before it writes them */
    bool lifted, queued;
    unsigned preds; /* edges inside the region */
    LLVMBasicBlockRef block;
    struct lift_edge *edge;
    unsigned edges;
    LLVMValueRef phi[16], phi_kind, phi_a, phi_b, phi_c; /* of a loop's header */
    bool is_header;
};

/* A way out of the unit. */
struct lift_exit {
    struct site site; /* host: block number of the head behind a helper; NO_INDEX: none */
    LLVMValueRef shim;
};

/* A block of LLVM's that is filled in once its region is complete. */
struct lift_cold {
    struct lift_cold *next;
    LLVMBasicBlockRef block;
    struct lift_state state;
    unsigned exit;
    LLVMValueRef region; /* instead of the exit: another region of the unit */
};

struct lifter {
    struct unit *unit; /* for unit_classify() */
    LLVMContextRef context;
    LLVMModuleRef module;
    LLVMBuilderRef builder;
    LLVMTypeRef i1, i8, i16, i32, i64, pointer, area_pointer, region_type;
    LLVMValueRef alias[LIFT_MEMORIES], likely;
    unsigned alias_kind, prof_kind, invariant_kind;
    LLVMValueRef address_word; /* external: the unit's first constant of addresses */

    const struct codegen_request *request;
    struct item *item;
    uint32_t *at;    /* instruction number by offset; NO_INDEX */
    uint8_t *leader; /* by offset: LIFT_LEADER, LIFT_HEAD */
    uint32_t items;
    struct lift_block block[LIFT_BLOCKS_MAX];
    uint32_t blocks;
    uint32_t *order; /* the blocks of the region in progress, in reverse post-order */
    uint32_t ordered;
    struct lift_exit exit[LIFT_EXITS_MAX];
    unsigned exits;

    /* The region in progress. */
    uint32_t head;
    LLVMValueRef function, address;
    bool view_changes;
    bool complete;            /* all its blocks are lifted: what merges stand for is known */
    uint32_t merged_kinds[2]; /* bit: kind * 4 + log2 of its bytes, that a merge may stand for */
    uint16_t written;         /* registers that its instructions write */
    struct lift_state state;
    struct lift_state before; /* at the start of the instruction */
    LLVMBasicBlockRef side;   /* where it goes when a check fails; NULL: nowhere yet */
    uint32_t current;         /* block */
    const struct item *insn;
    struct lift_cold *cold;
    void *chunk; /* memory that is given back at the end, as a list */
    const char *refusal;
};

/* -- llvm_lift.c -- */
/* Lift the function in l->request to l->module. False: l->refusal says why not. */
bool lift_function(struct lifter *l);
void *lift_allocate(struct lifter *l, size_t size);
void lift_release(struct lifter *l);
unsigned lift_new_exit(struct lifter *l, const struct site *site);
/* An exit for C or to other code, with the present state; ends the block. */
void lift_leave(struct lifter *l, unsigned exit);
/* The state before the present instruction, for its template translation. */
LLVMBasicBlockRef lift_side_exit(struct lifter *l);
/* Go on in a fresh block if condition holds, else to the side exit. */
void lift_require(struct lifter *l, LLVMValueRef condition);
LLVMBasicBlockRef lift_new_block(struct lifter *l);
void lift_set_likely(struct lifter *l, LLVMValueRef branch);

/* -- llvm_state.c -- */
LLVMValueRef lift_constant(struct lifter *l, uint64_t value);
LLVMValueRef lift_load_area(struct lifter *l, uint32_t offset, LLVMTypeRef type, bool is_volatile);
void lift_store_area(struct lifter *l, uint32_t offset, LLVMValueRef value, bool is_volatile);
LLVMTypeRef lift_int(struct lifter *l, unsigned bits);
LLVMValueRef lift_resize(struct lifter *l, LLVMValueRef value, unsigned bits);
LLVMValueRef lift_get(struct lifter *l, struct lift_state *state, unsigned reg);
void lift_set(struct lifter *l, unsigned reg, LLVMValueRef value);
/* reg = root + offset, of 64 bits. */
void lift_set_sum(struct lifter *l, unsigned reg, LLVMValueRef root, int64_t offset);
/* By Zydis's register: of its width; writing 32 bits clears the upper half. */
LLVMValueRef lift_read_register(struct lifter *l, ZydisRegister reg);
void lift_write_register(struct lifter *l, ZydisRegister reg, LLVMValueRef value);
void lift_state_enter(struct lifter *l);
void lift_block_enter(struct lifter *l, struct lift_block *block);
/* The present state goes along an edge to a block of the same region. */
void lift_add_edge(struct lifter *l, struct lift_block *to);
/* Put a state where it is between blocks, and give the arguments. */
void lift_canonical(struct lifter *l, struct lift_state *state, LLVMValueRef arguments[LIFT_ARGUMENTS]);
LLVMValueRef lift_guest_address(struct lifter *l);

/* -- llvm_flags.c -- */
struct lift_flags flags_make(enum flags_kind kind, LLVMValueRef a, LLVMValueRef b, LLVMValueRef c,
                             LLVMValueRef result);
struct lift_flags flags_packed(LLVMValueRef packed);
/* As hot.flags has them. */
LLVMValueRef flags_pack(struct lifter *l, struct lift_flags *flags);
/* i1 */
LLVMValueRef flags_condition(struct lifter *l, struct lift_flags *flags, unsigned condition);
LLVMValueRef flags_carry(struct lifter *l, struct lift_flags *flags);
/* For a merge: the encoded kind, and the operands as 64 bits. */
void flags_spread(struct lifter *l, struct lift_flags *flags, LLVMValueRef out[4]);
LLVMValueRef lift_asm(struct lifter *l, LLVMTypeRef type, const char *text, const char *constraints,
                      LLVMValueRef *arguments, unsigned count, bool effects);

/* -- llvm_memory.c -- */
/* A checked guest address: where the host has it. */
struct lift_address {
    LLVMValueRef root;
    int64_t offset;
};
struct lift_address lift_operand_address(struct lifter *l, const ZydisDecodedOperand *op);
struct lift_address lift_register_address(struct lifter *l, unsigned reg, int64_t offset);
LLVMValueRef lift_check(struct lifter *l, const struct lift_address *address, unsigned size,
                        enum vmem_access access);
/* The addend of the one page that first and last are on, checked. */
LLVMValueRef lift_probe(struct lifter *l, LLVMValueRef first, LLVMValueRef last, bool write);
LLVMValueRef lift_load(struct lifter *l, LLVMValueRef host, unsigned bits);
void lift_store(struct lifter *l, LLVMValueRef host, LLVMValueRef value);
void lift_forget_view(struct lifter *l);

/* -- llvm_insn.c -- */
/* Everything but what ends a block. False: leave for the template translation of it. */
bool lift_item(struct lifter *l, const struct item *item);
/* -- llvm_system.c -- */
bool lift_system(struct lifter *l, const struct item *item);
/* i1: does the GS base show this alias of the area? (any kick changes it) */
LLVMValueRef lift_alias_is(struct lifter *l, LLVMIntPredicate predicate, enum area_alias alias);
/* -- llvm_native.c -- */
/* The guest's own instruction as it stands, its operands moved to their registers. */
bool lift_native(struct lifter *l, const struct item *item);
/* Is it one that lift_native() leaves to the template? */
bool native_may_fault(const struct insn *insn);

/* -- llvm_cfg.c -- */
/* Decode the function, find its blocks and regions. False: l->refusal. */
bool lift_discover(struct lifter *l);
/* The block that begins at an offset, or NO_INDEX. */
uint32_t lift_block_at(const struct lifter *l, int64_t offset);
/* A direct branch's target, from the unit's address. */
int64_t lift_target(const struct item *item);

#endif
