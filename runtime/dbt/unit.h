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
#define PORTABLE_SITE_SLOT                                                                                   \
    0u /* its low half: number of the block's first site, set when the unit is put to use */
struct portable {
    struct ntc_reloc reloc[PORTABLE_MAX];
    uint64_t slot[PORTABLE_MAX]; /* offset of the exit that is taken while the slot is not linked */
    uint64_t constant[PORTABLE_MAX];
    struct portable_exit {
        int32_t target;
        bool link, flags_saved; /* link: other exits to the same target may go by this slot */
    } exit[PORTABLE_MAX];       /* by slot */
    unsigned relocs, slots, consts;
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

/* -- emit_portable.c -- */
void portable_begin(struct unit *unit);
/* hot.site = the site's number; jump to the stub. */
void emit_leave_to(struct unit *unit, const struct site *site, enum runtime_slot stub);
/* A jump to what comes behind it (at *behind), until it is patched. Returns what struct site's `host` and
 * `cold` name it by: the offset of its rel32, or the number of its slot. */
uint32_t emit_patchable_jump(struct unit *unit, uint32_t *behind);
/* In a portable unit: leave by the slot of an exit to the same place, if there is one; true: done. */
bool portable_shared_exit(struct unit *unit, struct site *site);
/* Let later exits do so with this one's. */
void portable_share_exit(struct unit *unit, const struct site *site);
/* reg = a guest address that moves with the block. */
void emit_guest_address(struct unit *unit, int reg, uint64_t address);
/* reg = the value of the field that an immediate or a displacement is; RIP-relative: the address that it
 * leads to. */
void emit_field_value(struct unit *unit, const struct item *item, int reg, int field, bool relative);
/* The guest's instruction with a field for its immediate. */
void emit_with_field(struct unit *unit, const struct item *item, const struct host_memory *memory);
/* Its low half: no portable unit can have that. */
void emit_guest_address32(struct unit *unit, int reg, uint64_t address);

/* -- emit_system.c -- */
/* What C is told of an instruction that it has a helper for. */
void unit_describe_helper(const struct item *item, struct site *site);
void emit_read_base(struct unit *unit, const struct item *item);
void emit_read_selector(struct unit *unit, const struct item *item);
void emit_swapgs(struct unit *unit);
/* STAC or CLAC. */
void emit_set_ac(struct unit *unit, bool set);
/* An exit to C that the block may be resumed behind: kind is SITE_HELPER or SITE_INTERPRET. */
void emit_helper(struct unit *unit, const struct item *item, enum site_kind kind);
/* to = RFLAGS, put together out of where its parts are: AH of hot.flags, OF in its AL, IF, AC, and those of
 * `others` in the vCPU's own word. The flags are saved. */
void emit_flags_image(struct code_buffer *c, int to, int scratch, uint32_t others);
/* PUSHFQ. */
void emit_pushf(struct unit *unit, const struct item *item);
/* REP MOVS, REP STOS: within one page inline, otherwise the helper. */
void emit_rep(struct unit *unit, const struct item *item);
/* CPUID: a known answer inline, otherwise the helper. */
void emit_cpuid(struct unit *unit, const struct item *item);

/* -- emit.c: shared pieces -- */
struct site *unit_site(struct unit *unit, enum site_kind kind, const struct item *item);
uint32_t unit_site_index(const struct unit *unit, const struct site *site);
struct cold *unit_cold(struct unit *unit, uint8_t *place, enum site_kind kind, uint32_t site);
/* Registers that the block spilled itself: at its exits they are loaded again. */
static inline uint16_t unit_spilled_here(const struct unit *unit) {
    return unit->spilled & (uint16_t)~HOMED;
}
/* Homed registers that the block names. */
static inline uint16_t unit_resident(const struct unit *unit) {
    return unit->used & HOMED;
}
void emit_colds(struct unit *unit);
/* Before the block is left. */
void emit_reload(struct unit *unit);
void emit_load_resident(struct unit *unit);
void emit_store_resident(struct unit *unit, const struct item *item);
/* keep: a register that may be overwritten, not RAX. */
void emit_save_flags(struct unit *unit, int keep);
void emit_restore_flags(struct unit *unit, int keep);
void unit_note_pc(struct unit *unit, unsigned guest);
/* The guest's instruction itself, on the host: restores saved flags first unless it has nothing to do with
 * flags or writes them all. */
void emit_native(struct unit *unit, const struct item *item, const struct host_memory *memory);
/* Before anything that clobbers flags. */
void emit_flags_clobber(struct unit *unit);
/* A direct exit: the jump that a link patches, leading for now to the exit behind it. */
void emit_unlinked(struct unit *unit, struct site *site);
/* Before anything that reads flags. */
void emit_flags_live(struct unit *unit);
void emit_exit_to_c(struct unit *unit, const struct site *site);

/* -- emit_memory.c -- */
/* t0 = linear address of the memory operand. False: not for the DBT. */
bool emit_address(struct unit *unit, const struct item *item, const ZydisDecodedOperand *op);
/* Of a field, from where emit_entry() leads: the view's start plus the entry's index. */
#define TLB_ENTRY(field) ((int32_t)(offsetof(struct vtlb_view, entry) + offsetof(struct vtlb_entry, field)))
static inline uint32_t unit_tlb_mask(const struct unit *unit) {
    return vtlb_mask(unit->block->mode & MODE_CPL3);
}
/* t1 = the TLB entry for the page of an address in a register, for TLB_ENTRY(). */
void emit_entry(struct unit *unit, int address);
/* t1 = the TLB entry for t0's page; leaves for C unless it holds for [t0, t0 + size). */
struct site *emit_probe(struct unit *unit, const struct item *item, unsigned size, enum vmem_access access,
                        uint32_t retry);
/* TLB check of the linear address in t0; afterwards t0 is the host address. plain: a fault is this
 * instruction's fault. */
void emit_check(struct unit *unit, const struct item *item, unsigned size, enum vmem_access access,
                bool plain);
/* t0 = what operand 0, in memory, holds: a word of the stack's width. */
void emit_load_operand(struct unit *unit, const struct item *item);
void emit_memory(struct unit *unit, const struct item *item);
void emit_bit_memory(struct unit *unit, const struct item *item);
void emit_lea(struct unit *unit, const struct item *item);
/* The host's way to the stack word at [rsp + delta]: covered by a shared check, or checked now (t0 or t1 is
 * part of it then). */
struct host_memory emit_stack(struct unit *unit, const struct item *item, int32_t delta,
                              enum vmem_access access);
/* RSP moves, by constants that are added up while nothing looks at it; and looked at it is. */
void emit_rsp_move(struct unit *unit, int32_t delta);
void emit_rsp_settle(struct unit *unit);
/* Before an item: settle RSP unless the item can do without. */
void emit_rsp_before(struct unit *unit, const struct item *item);
void emit_push(struct unit *unit, const struct item *item);
void emit_pop(struct unit *unit, const struct item *item);
void emit_leave_insn(struct unit *unit, const struct item *item);

/* -- emit_memo.c -- */
/* Does the access keep to a page long enough for a memo? */
bool memo_suits(const struct unit *unit, const struct item *item, const struct use *use);
/* The memo for one more access, not the stack's. */
uint32_t memo_next(struct unit *unit, enum vmem_access access);
/* Check a range; flags are saved. */
void emit_memo_probe(struct unit *unit, const struct item *item, const struct memo_range *range);
void emit_cold_memo(struct unit *unit, const struct cold *cold);
/* The view is about to change. */
void emit_forget_stack(struct code_buffer *c, int scratch);

/* -- emit_percpu.c -- */
/* Reach an operand by the table of pages that GS leads to; flags are saved. False: it is none for that. */
bool emit_percpu(struct unit *unit, const struct item *item, const ZydisDecodedOperand *op, unsigned size,
                 enum vmem_access access, bool plain, struct host_memory *memory);
void emit_cold_percpu(struct unit *unit, const struct cold *cold);

/* -- emit_remake.c -- */
/* Make the flags again as item did. May use t1. */
void emit_remake(struct unit *unit, const struct item *item);
/* Before a check: flags may be lost that can be made again, others are saved. */
void emit_flags_lose(struct unit *unit, const struct item *item);
/* Before an item, which may change what the flags would be made from. */
void remake_before(struct unit *unit, const struct item *item);
/* What makes the flags again behind an item, if `maker` does before it. */
const struct item *remake_after(const struct unit *unit, const struct item *item, const struct item *maker);
/* Behind the block: what faults at `count` of dbt->pc, from `first` on, go to. */
void emit_remakes(struct unit *unit, uint32_t first, uint32_t count);

/* -- emit_group.c -- */
/* If the access of item is covered by a shared check (made now if that pays), say how the host reaches it. */
bool group_cover(struct unit *unit, const struct item *item, const struct use *use,
                 struct host_memory *memory);
/* The memory operand of a KIND_MEMORY item, when it is one that groups. */
bool group_operand(const struct unit *unit, const struct item *item, struct use *use);
/* Make the last probe's site that of a group: where it cannot be met, the block goes on without groups. */
void group_site(struct unit *unit, const struct item *item, struct site *site);
/* How many groups at a time the unit's items have use for, GROUPS at most. */
unsigned group_count(const struct unit *unit);
/* After an item was emitted: what it did to the base registers. */
void group_after(struct unit *unit, const struct item *item);
/* Does the item add a constant to a general register that it writes, and no more? */
bool item_steps(const struct item *item, int reg, int32_t *delta);
void group_reset(struct unit *unit);
/* No group is active any more. */
void group_forget(struct unit *unit);

/* -- emit_retpoline.c -- */

/* Does the call at offset begin a retpoline? Its length in bytes, to the end of its return; 0: no. */
unsigned retpoline_find(const struct unit *unit, struct item *item, unsigned offset);
void emit_retpoline(struct unit *unit, const struct item *item);

/* -- emit_return.c -- */
/* Behind the push of a call: tell returns where its landing is. */
void return_expect(struct unit *unit);
/* Behind the block. */
void emit_landing(struct unit *unit);
void emit_ret(struct unit *unit, const struct item *item);

/* -- emit_branch.c -- */
/* End the block with a jump to the guest address in t0. */
void emit_jump(struct unit *unit, const struct item *item);
/* A site that may be linked to the block at target. */
struct site *unit_link_site(struct unit *unit, const struct item *item, uint64_t target);
void emit_link(struct unit *unit, const struct item *item, uint64_t target);
void emit_jcc(struct unit *unit, const struct item *item);
void emit_jcxz(struct unit *unit, const struct item *item);
void emit_call(struct unit *unit, const struct item *item);
void emit_jump_indirect(struct unit *unit, const struct item *item);
void emit_call_indirect(struct unit *unit, const struct item *item);
/* A JUMP_MISS cold path's lookup; falls through on a miss, with the key in t0. */
void emit_cold_lookup(struct unit *unit, const struct site *site);
bool branch_needs_lookup(const struct unit *unit, uint64_t target);
uint64_t branch_target(const struct unit *unit, const struct item *item);

#endif
