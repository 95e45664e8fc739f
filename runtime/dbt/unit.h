/* One block under translation: what translate.c decides and the emitters (emit_*.c) write down.
 *
 * Conventions inside a block, between two guest instructions:
 *   - guest general registers are in the host's, but for those in `spilled`, which live in vcpu->gpr and
 *     whose host registers are the scratches t0, t1, t2 (chosen among registers the block does not name);
 *   - a register of HOMED that the block names is in both places: loaded at entry, stored after each
 *     instruction that writes it;
 *   - guest arithmetic flags are in the host's or (flags_saved) in hot.flags: never lost, so that a fault
 *     finds them;
 *   - vector and x87 state are in the host's; DF is clear.
 *
 * Between two blocks HOMED is in vcpu->gpr and everything else in the host's; the flags may be in either
 * place: a block has an entry for each. Which of the two leads straight into the body depends on what the
 * body wants first:
 *
 *   live:  save flags                saved: restore flags
 *   saved: body (flags saved)        live:  body (flags live)
 */
#ifndef NESTOR_DBT_UNIT_H
#define NESTOR_DBT_UNIT_H

#include "cache-format/format.h"
#include "cpu/vmem.h"
#include "dbt/asm.h"
#include "dbt/portable.h"
#include "dbt/private.h"
#include "isa/encode.h"

enum kind {
    KIND_COPY,
    KIND_NOP,
    KIND_LEA,
    KIND_MEMORY,
    KIND_BIT_MEMORY,
    KIND_PUSH,
    KIND_POP,
    KIND_LEAVE,
    KIND_RDTSC,
    KIND_RDTSCP,
    KIND_CLI,
    KIND_STI,
    KIND_STAC,
    KIND_CLAC,
    KIND_SWAPGS,
    KIND_CPUID,
    KIND_PUSHF,
    KIND_REP,
    KIND_READ_BASE,
    KIND_READ_CR,
    KIND_READ_SELECTOR,
    KIND_JCC,
    KIND_JCXZ,
    KIND_HELPER,
    /* These end the block. */
    KIND_JMP,
    KIND_CALL,
    KIND_JMP_INDIRECT,
    KIND_CALL_INDIRECT,
    KIND_RET,
    KIND_RETPOLINE,
    KIND_INTERPRET,
    KIND_HELPER_END,
};

struct item {
    struct insn insn;
    enum kind kind;
    enum helper helper;
    int8_t through; /* RETPOLINE: the register that holds the target */
    uint16_t guest; /* offset from the block's rip */
    int16_t disp_field,
        imm_field; /* numbers of the unit's fields that displacement and immediate are; -1: none */
};

/* An access that an item makes off a base register and perhaps an index. */
struct use {
    int base, index; /* index -1: none */
    unsigned scale;  /* log2 */
    int32_t disp;
    unsigned size;
    enum vmem_access access;
};

/* A check by memo (emit_memo.c). */
struct memo_range {
    struct use use;
    uint32_t memo; /* offset in the area */
    int8_t addend; /* register that gets it, and the index */
    bool group;    /* a check for several accesses */
    bool plain;    /* of the site */
};

#define COLDS_MAX (BLOCK_MAX_INSNS * 3)
struct cold {
    uint8_t *place; /* the rel32 that leads here */
    uint32_t site;
    enum site_kind kind;
    uint32_t ungrouped; /* MEMORY of a group: the SITE_UNGROUPED behind it */
    int leader;         /* LINK without a site: the block of the function that it leads to (function.c) */
    bool look_up;       /* JUMP_MISS: a side exit that goes through the jump cache first */
    uint8_t *back;      /* HELPER, MEMO, PERCPU: where the block goes on */
    const struct item *item; /* MEMO, PERCPU */
    struct memo_range range; /* MEMO; PERCPU: memo is the place in the table */
    const struct item
        *remake; /* MEMORY, MEMO, PERCPU: what makes the flags, to be saved first; NULL: they are saved */
    int8_t borrowed[2]; /* MEMORY: registers to be given back, if they differ */
};

/* Accesses off one base register that share a check: see emit_group.c. */
#define GROUPS 2
struct group {
    int reg;        /* scratch that holds the addend; -1: this group cannot be used */
    int base;       /* guest register, -1: not active */
    int index;      /* guest register, or -1 */
    unsigned scale; /* log2 */
    int32_t lo, hi; /* bytes checked, relative to the base register's present value */
    enum vmem_access access;
};

/* What makes a unit portable, gathered while it is emitted. */
#define PORTABLE_MAX 8192u
struct portable {
    struct ntc_reloc reloc[PORTABLE_MAX];
    uint64_t slot[PORTABLE_MAX]; /* offset of the exit that is taken while the slot is not linked */
    uint64_t constant[PORTABLE_MAX];
    struct portable_exit {
        int32_t target;
        bool link, flags_saved; /* link: other exits to the same target may go by this slot */
    } exit[PORTABLE_MAX];       /* by slot */
    unsigned relocs, slots, consts;
    unsigned switch_slot, switch_bit;       /* the next check's: see portable_switch() */
    uint8_t *tail[RUNTIME_SLOTS_USED][256]; /* for a stub; of MEMORY by its scratches */
};

struct function;

struct unit {
    struct vcpu *vcpu;
    struct dbt_vcpu *dbt;
    struct code_buffer code;
    struct block *block;
    uint32_t index;
    struct item *item; /* BLOCK_MAX_INSNS of them */
    unsigned items;
    const uint8_t *bytes;      /* guest code at the block's start */
    uint64_t room;             /* bytes up to the page's end */
    uint32_t from, limit;      /* gather from this offset on, and nothing that begins at or behind that one */
    struct rewrite *rewrite;   /* that keeps the block, or NULL */
    struct function *function; /* that this is a block of; NULL: a unit by itself */
    struct portable *portable; /* NULL: for this vCPU's code cache */
    const struct ntc_field *field; /* of a portable unit: guest bytes that are not to be compiled in */
    unsigned fields;
    bool *field_stuck;                   /* those that could not be kept out */
    enum portable_dependence dependence; /* what its instructions' translations depend on of the mode */
    bool code64;
    uint64_t end_rip; /* of the last item */
    int t0, t1, t2;   /* scratches; -1 when the block needs none */
    bool narrow;      /* t0 is the only one (and t1 the same): see translate.c */
    bool loop;        /* it branches to itself */
    uint16_t used;    /* registers that its instructions name */
    uint16_t spilled;
    bool flags_saved;
    bool body_saved; /* flags_saved at the body's start */
    int32_t rsp_lag; /* what the guest's RSP is beyond the host's: see emit_memory.c */
    struct group group[GROUPS];
    unsigned next_group;       /* the one to replace next */
    const struct item *maker;  /* what made the flags, if it can make them again; NULL */
    const struct item *remake; /* the flags are nowhere: it makes them again (emit_remake.c) */
    bool twice;                /* a loop whose body is emitted twice: see emit_block() */
    uint8_t *loop_place;       /* the first body's branch to the second */
    uint8_t *body;             /* behind what the entries do */
    uint8_t *loop_live;        /* where a side exit to the block itself goes, with the flags live */
    uint8_t *landing; /* the rel32 that leads to the landing of the call at the end; NULL: it has none */
    struct cold cold[COLDS_MAX];
    unsigned colds;
    struct item block_item[BLOCK_MAX_INSNS];
};

/* -- classify.c -- */
/* The item's kind; sets item->helper with it. */
enum kind unit_classify(struct unit *unit, struct item *item);

/* -- translate.c -- */
/* Set up for a block whose guest code stands at `bytes`, with that much up to its page's end. Not portable,
 * of no function; code64 is the caller's. */
void unit_begin(struct unit *unit, struct vcpu *vcpu, struct block *block, const uint8_t *bytes,
                uint64_t room);
/* Fill unit->item and what follows from it, from unit->from on. False: no instruction begins there. */
MUST_CHECK bool unit_gather(struct unit *unit);
/* Where does the body want the flags? */
enum flags_wanted { FLAGS_WANTED_EITHER, FLAGS_WANTED_LIVE, FLAGS_WANTED_SAVED };
enum flags_wanted unit_flags_wanted(const struct unit *unit);
/* Store and load what the convention inside blocks asks for. */
void unit_emit_registers(struct unit *unit);
/* The items, and the exit behind them. poll: look for interrupts first. */
void unit_emit_body(struct unit *unit, bool poll);

/* -- function.c -- */
/* A direct jump to another block of the function: true when it is one. Flags may be in either place. */
bool function_jump(struct unit *unit, uint64_t target);
/* The same for a branch whose rel32 is at place, with the flags live. */
bool function_branch(struct unit *unit, uint8_t *place, uint64_t target);
/* The cold part of one that had to load registers first. */
void function_cold_jump(struct unit *unit, int leader);

/* -- portable_fields.c -- */
/* Which fields the item's immediate and displacement are, as far as they can be kept out of the code. */
void portable_find_fields(struct unit *unit, struct item *item);

#endif
