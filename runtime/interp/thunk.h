/* Running one guest instruction on the processor itself.
 *
 * A thunk is a function made for one instruction: it loads the guest registers that the instruction names and
 * the arithmetic flags from a frame, executes the re-encoded instruction (its memory operand now addressed
 * through a register that the instruction does not name) and stores them back. Host RSP holds the guest's
 * value only in the thunks of instructions that name RSP, for that one instruction. Thunks live in memory
 * that is written through one mapping and executed through another.
 */
#ifndef NESTOR_INTERP_THUNK_H
#define NESTOR_INTERP_THUNK_H

#include "interp/internal.h"

#define THUNK_BOUNCE_SIZE 1024
#define THUNK_RSP_SAVE_LENGTH 7 /* behind the instruction, if it names RSP: mov [F + gpr rsp], rsp */

/* Offsets of the first fields are known to the generator. */
struct thunk_frame {
    uint64_t gpr[16];
    uint64_t flags;
    uint64_t host_rsp;
    void *memory;
    const uint8_t *exit; /* of the running thunk: where the signal handler resumes */
    uint64_t fault;      /* 0, or vector + 1 */
    /* What the signal handler compares a faulting pc with. */
    const uint8_t *insn_start, *insn_end;
    _Alignas(64) uint8_t bounce[THUNK_BOUNCE_SIZE];
};

struct thunk {
    const uint8_t *entry;
    const uint8_t *insn_start, *insn_end; /* the guest's instruction */
    const uint8_t *exit;                  /* restores the host's registers, stores nothing */
    uint8_t bytes[INSN_MAX_LENGTH];
    uint8_t length, code_size;
};

struct thunk_arena;

struct thunk_arena *thunk_arena_create(void); /* NULL, with errno: no memory or descriptors */
void thunk_arena_destroy(struct thunk_arena *arena);

/* The thunk of a decoded instruction, made when it is new. NULL: it cannot be expressed. The pointer is good
 * until the next call. */
const struct thunk *thunk_get(struct thunk_arena *arena, struct decoded *d);

/* Call the thunk on frame; vector: with the guest's extended state loaded around it. Returns 0 or, when the
 * instruction faulted, the vector + 1; the frame's registers are then as before. */
unsigned thunk_run(struct vcpu *vcpu, const struct thunk *thunk, struct thunk_frame *frame, bool vector);

#endif
