/* Private to the interpreter: a decoded instruction, the per-vCPU state and what the files share.
 *
 * A handler executes one decoded instruction. It returns CPU_OK (the caller advances rip), CPU_FAULT
 * (vcpu->exception set, nothing changed), STEP_JUMPED (the handler has set rip) or STEP_REPEAT (iterations of
 * a string instruction remain: rip stays).
 */
#ifndef NESTOR_INTERP_INTERNAL_H
#define NESTOR_INTERP_INTERNAL_H

#include "cpu/fpu.h"
#include "cpu/system.h"
#include "interp/interp.h"
#include "isa/encode.h"
#include "isa/insn.h"

#include <string.h>

enum step_result { STEP_JUMPED = 2, STEP_REPEAT = 3 };

/* Values of vcpu->irq_shadow. */
#define SHADOW_MOV_SS 2

#define BASE_NONE (-1)
#define BASE_RIP (-2)

/* Which mode bits guard an instruction, decided once at decoding. */
enum insn_guard {
    GUARD_NONE,
    GUARD_X87,
    GUARD_WAIT,
    GUARD_MMX,
    GUARD_SSE,
    GUARD_VEX_INTEGER, /* BMI and its like: protected mode only */
    GUARD_AVX,
    GUARD_AVX512,
};

enum operand_kind {
    OPERAND_NONE,
    OPERAND_GPR,
    OPERAND_HIGH_BYTE,
    OPERAND_MEMORY,
    OPERAND_IMMEDIATE,
    OPERAND_OTHER
};

struct operand {
    uint8_t kind;
    uint8_t gpr;
    uint16_t size; /* bytes */
    uint64_t immediate;
};

struct decoded;
typedef int interp_handler(struct vcpu *vcpu, struct decoded *d);

struct decoded {
    /* Identity: the linear address and code size it was met at, and its bytes under a mask of its length. */
    uint64_t linear;
    uint64_t bytes[2];
    uint64_t mask[2];
    interp_handler *handler;
    uint8_t code_size; /* 0: the entry is empty */
    uint8_t length;
    uint8_t operand_size; /* bytes */
    uint8_t address_size; /* bytes */
    uint8_t guard;        /* enum insn_guard */
    uint8_t segment;      /* of the memory operand */
    int8_t base, index;   /* of the memory operand: GPR number or BASE_* */
    uint8_t scale_shift;
    uint8_t function;      /* handler's own: ALU operation, condition code, ... */
    uint8_t memory_access; /* bit 0: read, bit 1: written */
    bool locked;           /* LOCK, or XCHG with memory */
    uint16_t memory_size;
    uint64_t displacement;
    uint64_t address_mask;
    struct operand op[3];
    struct thunk *thunk; /* NULL: not made yet */
    uint32_t thunk_generation;
    struct insn insn;
};

#define DECODE_CACHE_ENTRIES 4096u
#define DECODE_CACHE_FEW 1024u /* beside a translator */

struct thunk_arena;
struct thunk_frame;
struct xstate_layout;
struct insn_offer;

struct interp_vcpu {
    struct decoded *cache; /* cache_mask + 1 of them, a power of two */
    uint32_t cache_mask;
    struct thunk_arena *thunks;
    struct thunk_frame *frame;
    struct xstate_layout *xstate;
    struct insn_offer *offer;
    uint64_t next;         /* rip of the following instruction */
    uint64_t pending_dr6;  /* data breakpoints hit so far by this instruction (and those a MOV SS held off) */
    uint64_t repeat_limit; /* iterations that a string instruction may do now */
    interp_handler *last;  /* handler of the instruction executed last */
};

/* -- decode_cache.c -- */
/* The instruction at vcpu->rip; CPU_FAULT: #PF, #GP or #UD of the fetch. */
MUST_CHECK int interp_fetch(struct vcpu *vcpu, struct decoded **decoded);

/* -- dispatch.c -- */
/* The handler of an instruction, with d->function set for it. */
interp_handler *interp_find_handler(struct decoded *d);
/* The same for one that the guest's processor does not have: undefined, or what it means there instead. */
interp_handler *interp_find_withheld(struct decoded *d);

/* -- native.c -- */
/* Execute on the processor, its memory operand fetched and stored by C. */
int native_execute(struct vcpu *vcpu, struct decoded *d);
/* What the memory operand of a natively executed instruction is aligned to for #AC. */
unsigned native_checked_alignment(const struct decoded *d);
/* #NM or #UD by the mode (SDM vol. 3, 2.5, 13.1). */
MUST_CHECK int native_check_guard(struct vcpu *vcpu, const struct decoded *d);
/* Run d's thunk with its memory operand at host memory (NULL: none); guest_offset: what FDP should say. */
MUST_CHECK int native_run(struct vcpu *vcpu, struct decoded *d, void *memory, uint64_t guest_offset);

/* The pending x87 exception that an instruction of the x87 unit or MMX takes first, if there is one. */
MUST_CHECK int native_check_x87_error(struct vcpu *vcpu);

/* The fault that a vector instruction shows whose memory operand at linear has just faulted: CPU_FAULT. */
int native_memory_fault(struct vcpu *vcpu, struct decoded *d, uint64_t linear);

static inline int fault_ud(struct vcpu *vcpu) {
    return cpu_fault_plain(vcpu, VECTOR_UD);
}
static inline int fault_gp(struct vcpu *vcpu) {
    return cpu_fault(vcpu, VECTOR_GP, 0);
}

/* -- handlers -- */
interp_handler undefined_execute;
/* integer.c */
interp_handler mov_execute, movzx_execute, movsx_execute, lea_execute, alu_execute, test_execute,
    incdec_execute;
interp_handler setcc_execute, cmov_execute, xchg_execute, nop_execute, flag_execute, xlat_execute;
/* bits.c */
interp_handler bit_test_execute, bit_scan_execute, bcd_execute, bound_execute, arpl_execute, salc_execute;
/* branch.c */
interp_handler jcc_execute, jcxz_execute, loop_execute, jmp_execute, call_execute, ret_execute, int_execute;
interp_handler int3_execute, into_execute, icebp_execute, iret_execute, syscall_execute, sysret_execute;
interp_handler sysenter_execute, sysexit_execute;
/* stack.c */
interp_handler push_execute, pop_execute, pushf_execute, popf_execute, pusha_execute, popa_execute;
interp_handler enter_execute, leave_execute, load_far_pointer_execute;
/* string.c */
interp_handler string_execute;
/* io.c */
interp_handler in_execute, out_execute, io_string_execute;
/* system.c */
interp_handler hlt_execute, descriptor_table_load_execute, descriptor_table_store_execute;
interp_handler selector_store_execute, smsw_execute, lmsw_execute, lldt_execute, ltr_execute, lar_execute;
interp_handler verify_execute, clts_execute, invlpg_execute, invpcid_execute, cache_flush_execute;
interp_handler mov_control_execute, mov_debug_execute, cli_execute, sti_execute, ac_execute, swapgs_execute;
interp_handler cache_line_execute, serialize_execute, hypercall_execute;
/* counter.c */
interp_handler rdmsr_execute, wrmsr_execute, cpuid_execute, rdtsc_execute, rdpmc_execute, rdpid_execute;
interp_handler xgetbv_execute, xsetbv_execute, segment_base_execute;
/* xstate.c */
interp_handler fxsave_execute, fxrstor_execute, xsave_execute, xrstor_execute;
/* vector_memory.c, gather.c */
interp_handler masked_execute, gather_execute, maskmov_execute, movdir64b_execute;

#endif
