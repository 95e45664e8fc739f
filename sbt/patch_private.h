/* The pieces of patched_create(). Private to sbt/. */
#ifndef NESTOR_SBT_PATCH_PRIVATE_H
#define NESTOR_SBT_PATCH_PRIVATE_H

#include "isa/insn.h"
#include "sbt/patch.h"

struct patching {
    struct patched *patched;
    const struct image *image;
    const struct features *features;
    bool modern; /* the rules of Linux 6.3 and later */
    unsigned longest_nop;
    uint8_t nop[12][11];    /* by length */
    uint8_t return_zero[5]; /* what stands for a call of a function that returns 0 */
};

/* Write bytes to stages first to last. False (and counted as skipped) when the place is not code. */
bool patch_write(struct patching *p, enum patch_kind kind, enum stage first, enum stage last,
                 uint64_t address, const uint8_t *bytes, size_t length);
/* Add a choice of one option more than what stands there; equal bytes add nothing. */
void patch_offer(struct patching *p, enum patch_kind kind, enum stage first, uint64_t address,
                 const uint8_t *bytes, size_t length);
void patch_skip(struct patching *p, enum patch_kind kind);

/* -- patch_bytes.c -- */
/* The kernel's recommended NOPs, as few as cover length bytes. */
void patch_nops(const struct patching *p, uint8_t *bytes, size_t length);
/* CALL or JMP rel32 (opcode 0xe8, 0xe9) from address to target. */
void patch_branch(uint8_t bytes[5], uint8_t opcode, uint64_t address, uint64_t target);
/* Runs of NOPs become as few as possible, by the rules of the kernel's version. */
void patch_optimize_nops(const struct patching *p, uint8_t *bytes, size_t length);
/* A replacement that was assembled at `from` now stands at `to`: adjust what is relative (6.3 and later). */
void patch_relocate(uint8_t *bytes, size_t length, uint64_t from, uint64_t to, size_t from_length);
int32_t patch_read32(const uint8_t *bytes);

/* -- patch_calls.c: jump labels, static calls, tracing -- */
void patch_jump_labels(struct patching *p);
void patch_static_calls(struct patching *p);
void patch_tracing(struct patching *p);

/* -- patch_sites.c: paravirtual calls, retpolines, returns, ENDBR, LOCK -- */
void patch_paravirt(struct patching *p);
void patch_retpolines(struct patching *p);
void patch_returns(struct patching *p);
void patch_endbrs(struct patching *p);
void patch_locks(struct patching *p);
void patch_runtime_constants(struct patching *p);
/* What a pv_ops entry holds once the guest knows what it runs on. */
uint64_t patch_paravirt_target(const struct patching *p, uint64_t entry);

/* -- patch_alternatives.c -- */
void patch_alternatives(struct patching *p);

#endif
