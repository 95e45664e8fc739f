/* What the emitters (emit_*.c) write down of the block that unit.h describes, for each other and for who
 * translates. */
#ifndef NESTOR_DBT_EMIT_H
#define NESTOR_DBT_EMIT_H

#include "dbt/unit.h"

/* -- stubs.c, crossing.c, stack.c: what stands in front of the blocks -- */
/* mov gs:[site], r9d: stands before each stub but that for memory, for the vCPU's own blocks. */
#define STUB_SITE_BYTES 9u
void stub_take_site(struct code_buffer *c);
/* Behind stub_exit. */
void dbt_emit_crossings(struct dbt_vcpu *dbt, struct code_buffer *c);
/* Behind stub_memory. */
void stack_emit_stubs(struct dbt_vcpu *dbt, struct code_buffer *c);

/* -- emit_portable.c -- */
void portable_begin(struct unit *unit);
/* hot.site = the site's number; jump to the stub. */
void emit_leave_to(struct unit *unit, const struct site *site, enum runtime_slot stub);
/* A jump to what comes behind it (at *behind), until it is patched. Returns what struct site's `host` and
 * `cold` name it by: the offset of its rel32, or the number of its slot. */
uint32_t emit_patchable_jump(struct unit *unit, uint32_t *behind);
/* In a portable unit, at a check of a group: a jump that is taken once bit site->target of slot site->cold is
 * set. Where its rel32 is; NULL: overflow. */
uint8_t *portable_switch(struct unit *unit, struct site *site);
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
void emit_read_cr(struct unit *unit, const struct item *item);
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
/* In mid-instruction, in raw state: to a stub, NULL: to C. plain: of a group, what goes on without it. */
void emit_leave_memory(struct unit *unit, struct site *site, uint32_t plain, const uint8_t *stub);

/* -- emit_memory.c -- */
/* t0 = linear address of the memory operand. False: not for the DBT. */
bool emit_address(struct unit *unit, const struct item *item, const ZydisDecodedOperand *op);
/* Of a field, from where emit_entry() leads: the view's start plus the entry's index. */
#define TLB_ENTRY(field) ((int32_t)(offsetof(struct vtlb_view, entry) + offsetof(struct vtlb_entry, field)))
static inline uint32_t unit_tlb_mask(const struct unit *unit) {
    return vtlb_mask(unit->block->mode & MODE_CPL3);
}
/* to = the TLB entry for the page of an address in a register, for TLB_ENTRY(). */
void emit_entry(struct code_buffer *c, int to, int address, uint32_t mask);
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
/* The memo of the stack for the unit's ring. */
static inline uint32_t unit_stack_memo(const struct unit *unit) {
    return unit->block->mode & MODE_CPL3 ? AREA_HOT(user_stack) : AREA_HOT(stack);
}
/* Forget a memo: the view is about to change. */
void emit_forget(struct code_buffer *c, uint32_t memo, int scratch);

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
/* The exit to there. */
struct site *group_plain_site(struct unit *unit, const struct item *item);
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
