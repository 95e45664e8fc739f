/* Making thunks, and the memory they live in. What is emitted for one instruction (F: the register that holds
 * the frame, M: the one that addresses memory; neither is named by the instruction):
 *
 *     push rbx, rbp, r12-r15
 *     mov  [rdi + host_rsp], rsp
 *     push qword [rdi + flags] ; popfq
 *     mov  F, rdi
 *     mov  r, [F + gpr r]            for each register named, but RSP
 *     mov  M, [F + memory]           if it has a memory operand
 *     mov  rsp, [F + gpr rsp]        if it names RSP
 *     <the instruction>
 *     mov  [F + gpr rsp], rsp ; mov rsp, [F + host_rsp]
 *     mov  [F + gpr r], r
 *     pushfq ; pop qword [F + flags]
 * exit:
 *     mov  rsp, [F + host_rsp]
 *     pop  r15-r12, rbp, rbx ; cld ; ret
 *
 * A fault leaves all registers as they were, F included: the signal handler only moves the pc to `exit`, with
 * the host's RSP.
 */
#define _GNU_SOURCE
#include "interp/thunk.h"

#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>

#ifndef MFD_EXEC
#define MFD_EXEC 0x10u
#endif

#define ARENA_CODE_SIZE (512 * KIB)
#define ARENA_SLOTS 4096u
#define THUNK_MAX_SIZE 512u

struct thunk_arena {
    uint8_t *writable;
    uint8_t *executable;
    uint32_t used;
    uint32_t count;
    uint32_t generation;
    struct thunk slot[ARENA_SLOTS];
};

struct thunk_arena *thunk_arena_create(void) {
    struct thunk_arena *arena =
        mmap(NULL, sizeof *arena, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (arena == MAP_FAILED)
        return NULL;
    arena->generation = 1;
    int fd = memfd_create("nestor-thunks", MFD_CLOEXEC | MFD_EXEC);
    if (fd < 0)
        fd = memfd_create("nestor-thunks", MFD_CLOEXEC);
    if (fd < 0)
        goto fail_arena;
    if (ftruncate(fd, ARENA_CODE_SIZE) < 0)
        goto fail_fd;
    arena->writable = mmap(NULL, ARENA_CODE_SIZE, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    if (arena->writable == MAP_FAILED)
        goto fail_fd;
    arena->executable = mmap(NULL, ARENA_CODE_SIZE, PROT_READ | PROT_EXEC, MAP_SHARED, fd, 0);
    if (arena->executable == MAP_FAILED)
        goto fail_writable;
    close(fd);
    return arena;

fail_writable:
    munmap(arena->writable, ARENA_CODE_SIZE);
fail_fd:
    close(fd);
fail_arena:
    munmap(arena, sizeof *arena);
    return NULL;
}

void thunk_arena_destroy(struct thunk_arena *arena) {
    if (!arena)
        return;
    munmap(arena->executable, ARENA_CODE_SIZE);
    munmap(arena->writable, ARENA_CODE_SIZE);
    munmap(arena, sizeof *arena);
}

/* Forget every thunk. Their memory is written again through another mapping than it ran from, so the
 * processor is serialised (SDM vol. 3, 8.1.3). */
static void arena_reset(struct thunk_arena *arena) {
    arena->used = arena->count = 0;
    arena->generation++;
    memset(arena->slot, 0, sizeof arena->slot);
    uint32_t a = 0, b, c = 0, d;
    __asm__ volatile("cpuid" : "+a"(a), "=b"(b), "+c"(c), "=d"(d)::"memory");
}

/* MOV between a register and [frame + offset]. */
static void emit_frame_move(struct code_buffer *code, unsigned reg, unsigned frame, size_t offset,
                            bool store) {
    code_u8(code, (uint8_t)(0x48 | (reg >> 3) << 2 | frame >> 3));
    code_u8(code, store ? 0x89 : 0x8b);
    code_u8(code, (uint8_t)(0x80 | (reg & 7) << 3 | (frame & 7)));
    code_u32(code, (uint32_t)offset);
}

/* PUSH or POP of [frame + offset]. */
static void emit_frame_stack(struct code_buffer *code, unsigned frame, size_t offset, bool pop) {
    if (frame >= 8)
        code_u8(code, 0x41);
    code_u8(code, pop ? 0x8f : 0xff);
    code_u8(code, (uint8_t)(0x80 | (pop ? 0 : 6) << 3 | (frame & 7)));
    code_u32(code, (uint32_t)offset);
}

static const uint8_t push_saved[] = {0x53, 0x55, 0x41, 0x54, 0x41, 0x55, 0x41, 0x56, 0x41, 0x57};
static const uint8_t pop_saved[] = {0x41, 0x5f, 0x41, 0x5e, 0x41, 0x5d, 0x41, 0x5c, 0x5d, 0x5b, 0xfc, 0xc3};

/* A register that is not in `taken`; RSP and those that cannot be a plain base are never given. */
static unsigned free_register(uint16_t taken, bool low_only) {
    static const uint8_t order[] = {GPR_RDI, GPR_RSI, GPR_RDX, GPR_RCX, GPR_RAX, GPR_RBX,
                                    GPR_R8,  GPR_R9,  GPR_R10, GPR_R11, GPR_R14, GPR_R15};
    for (unsigned i = 0; i < (low_only ? 6 : ARRAY_SIZE(order)); i++)
        if (!(taken & 1u << order[i]))
            return order[i];
    return 16;
}

/* FNSTENV, FNSAVE, FLDENV and FRSTOR, whose image has the size of the guest's operand size. */
static bool emit_x87_environment(struct code_buffer *code, const struct insn *insn, unsigned memory) {
    switch (insn->z.mnemonic) {
    case ZYDIS_MNEMONIC_FNSTENV:
    case ZYDIS_MNEMONIC_FNSAVE:
    case ZYDIS_MNEMONIC_FLDENV:
    case ZYDIS_MNEMONIC_FRSTOR:
        break;
    default:
        return false;
    }
    if (insn->z.operand_width == 16)
        code_u8(code, 0x66);
    if (memory >= 8)
        code_u8(code, 0x41);
    code_u8(code, insn->z.opcode);
    code_u8(code, (uint8_t)((insn->z.raw.modrm.reg & 7) << 3 | (memory & 7)));
    return true;
}

static bool emit_instruction(struct code_buffer *code, const struct insn *insn, unsigned memory) {
    const struct host_memory host = {.base = (int8_t)memory, .index = -1};
    if (emit_x87_environment(code, insn, memory))
        return true;
    if (!insn_can_encode(insn))
        return false;
    return insn_encode(code, insn, insn->memory >= 0 ? &host : NULL);
}

static bool make_thunk(struct thunk_arena *arena, struct thunk *thunk, const struct insn *insn) {
    uint8_t *start = arena->writable + arena->used;
    const uint8_t *runs_at = arena->executable + arena->used;
    struct code_buffer code = {.start = start, .at = start, .end = start + THUNK_MAX_SIZE};
    uint16_t named = insn->gprs_read | insn->gprs_written;
    unsigned memory = 0;
    uint16_t taken = named;
    if (insn->memory >= 0) {
        memory = free_register(taken, insn->traits & INSN_HIGH_BYTE);
        if (memory > 15)
            return false;
        taken |= (uint16_t)(1u << memory);
    }
    unsigned frame = free_register(taken, false);
    if (frame > 15)
        return false;

    code_bytes(&code, push_saved, sizeof push_saved);
    emit_frame_move(&code, GPR_RSP, GPR_RDI, offsetof(struct thunk_frame, host_rsp), true);
    emit_frame_stack(&code, GPR_RDI, offsetof(struct thunk_frame, flags), false);
    code_u8(&code, 0x9d);
    if (frame != GPR_RDI) {
        const uint8_t move[] = {(uint8_t)(0x48 | frame >> 3), 0x89, (uint8_t)(0xf8 | (frame & 7))};
        code_bytes(&code, move, sizeof move);
    }
    for (unsigned r = 0; r < 16; r++)
        if (named & 1u << r && r != GPR_RSP)
            emit_frame_move(&code, r, frame, 8 * r, false);
    if (insn->memory >= 0)
        emit_frame_move(&code, memory, frame, offsetof(struct thunk_frame, memory), false);
    if (named & 1u << GPR_RSP)
        emit_frame_move(&code, GPR_RSP, frame, 8 * GPR_RSP, false);

    thunk->insn_start = runs_at + (code.at - start);
    if (!emit_instruction(&code, insn, memory))
        return false;
    thunk->insn_end = runs_at + (code.at - start);

    if (named & 1u << GPR_RSP) {
        emit_frame_move(&code, GPR_RSP, frame, 8 * GPR_RSP, true);
        emit_frame_move(&code, GPR_RSP, frame, offsetof(struct thunk_frame, host_rsp), false);
    }
    for (unsigned r = 0; r < 16; r++)
        if (named & 1u << r && r != GPR_RSP)
            emit_frame_move(&code, r, frame, 8 * r, true);
    code_u8(&code, 0x9c);
    emit_frame_stack(&code, frame, offsetof(struct thunk_frame, flags), true);
    thunk->exit = runs_at + (code.at - start);
    emit_frame_move(&code, GPR_RSP, frame, offsetof(struct thunk_frame, host_rsp), false);
    code_bytes(&code, pop_saved, sizeof pop_saved);
    if (code.overflow)
        return false;
    thunk->entry = runs_at;
    thunk->length = insn->length;
    thunk->code_size = insn->code_size;
    memcpy(thunk->bytes, insn->bytes, insn->length);
    arena->used += (uint32_t)align_up((uint64_t)(code.at - start), 16);
    arena->count++;
    return true;
}

static uint32_t hash_bytes(const struct decoded *d) {
    uint64_t hash = (d->bytes[0] ^ (uint64_t)d->code_size << 57) * 0x9e3779b97f4a7c15ull;
    hash = (hash ^ d->bytes[1]) * 0xff51afd7ed558ccdull;
    return (uint32_t)(hash >> 40);
}

const struct thunk *thunk_get(struct thunk_arena *arena, struct decoded *d) {
    if (LIKELY(d->thunk && d->thunk_generation == arena->generation))
        return d->thunk;
    if (arena->used + THUNK_MAX_SIZE > ARENA_CODE_SIZE || arena->count >= ARENA_SLOTS / 4 * 3)
        arena_reset(arena);
    uint32_t index = hash_bytes(d) & (ARENA_SLOTS - 1);
    struct thunk *thunk = &arena->slot[index];
    while (thunk->entry && !(thunk->length == d->length && thunk->code_size == d->code_size &&
                             !memcmp(thunk->bytes, d->insn.bytes, d->length))) {
        index = (index + 1) & (ARENA_SLOTS - 1);
        thunk = &arena->slot[index];
    }
    if (!thunk->entry && !make_thunk(arena, thunk, &d->insn))
        return NULL;
    d->thunk = thunk;
    d->thunk_generation = arena->generation;
    return thunk;
}
