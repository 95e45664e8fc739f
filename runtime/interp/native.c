/* Executing an instruction on the processor: the guards of its mode, its memory operand, its faults. */
#include "interp/memory.h"
#include "interp/thunk.h"
#include "interp/xstate.h"

/* Larger than any XSAVE image without AMX. */
#define NATIVE_IMAGE_MAX 4096

int native_check_guard(struct vcpu *vcpu, const struct decoded *d) {
    uint32_t mode = vcpu->mode;
    switch ((enum insn_guard)d->guard) {
    case GUARD_NONE:
        return CPU_OK;
    case GUARD_X87:
        return mode & MODE_NO_X87 ? cpu_fault_plain(vcpu, VECTOR_NM) : CPU_OK;
    case GUARD_WAIT:
        return mode & MODE_NO_WAIT ? cpu_fault_plain(vcpu, VECTOR_NM) : CPU_OK;
    case GUARD_MMX:
        if (vcpu->cr0 & CR0_EM)
            return fault_ud(vcpu);
        return vcpu->cr0 & CR0_TS ? cpu_fault_plain(vcpu, VECTOR_NM) : CPU_OK;
    case GUARD_SSE:
        if (mode & MODE_SSE_UD)
            return fault_ud(vcpu);
        return mode & MODE_SSE_NM ? cpu_fault_plain(vcpu, VECTOR_NM) : CPU_OK;
    case GUARD_VEX_INTEGER:
        return mode & MODE_PROTECTED ? CPU_OK : fault_ud(vcpu);
    case GUARD_AVX:
        if (mode & MODE_AVX_UD)
            return fault_ud(vcpu);
        return mode & MODE_SSE_NM ? cpu_fault_plain(vcpu, VECTOR_NM) : CPU_OK;
    case GUARD_AVX512:
        if (mode & MODE_AVX512_UD)
            return fault_ud(vcpu);
        return mode & MODE_SSE_NM ? cpu_fault_plain(vcpu, VECTOR_NM) : CPU_OK;
    }
    return CPU_OK;
}

/* An x87 error is pending before an instruction that looks for it. With CR0.NE clear it goes out as FERR#,
 * and the processor stands before that instruction until an interrupt (SDM vol. 1, 8.7.2): it is tried again
 * and again. */
static int x87_error(struct vcpu *vcpu) {
    if (vcpu->cr0 & CR0_NE || !vcpu->env->ferr)
        return cpu_fault_plain(vcpu, VECTOR_MF);
    vcpu->env->ferr(vcpu->env->context);
    return STEP_JUMPED;
}

/* What the host raised for the guest's instruction becomes the guest's exception. */
static int native_fault(struct vcpu *vcpu, unsigned vector) {
    switch (vector) {
    case VECTOR_XM:
        return vcpu->cr4 & CR4_OSXMMEXCPT ? cpu_fault_plain(vcpu, VECTOR_XM) : fault_ud(vcpu);
    case VECTOR_MF:
        return x87_error(vcpu);
    case VECTOR_DE:
    case VECTOR_UD:
        return cpu_fault_plain(vcpu, (uint8_t)vector);
    default:
        return cpu_fault(vcpu, VECTOR_GP, 0);
    }
}

int native_run(struct vcpu *vcpu, struct decoded *d, void *memory, uint64_t guest_offset) {
    struct interp_vcpu *interp = vcpu->interp;
    struct thunk_frame *frame = interp->frame;
    const struct thunk *thunk = thunk_get(interp->thunks, d);
    bool vector = d->insn.traits & INSN_VECTOR || d->guard >= GUARD_X87;
    if (UNLIKELY(!thunk))
        return fault_ud(vcpu);
    if (d->guard == GUARD_VEX_INTEGER)
        vector = false;
    memcpy(frame->gpr, vcpu->gpr, sizeof frame->gpr);
    frame->flags = (vcpu->rflags & FLAGS_ARITHMETIC) | FLAG_FIXED | FLAG_IF;
    frame->memory = memory;
    unsigned fault = thunk_run(vcpu, thunk, frame, vector);
    if (d->guard == GUARD_X87)
        xstate_hide_host_pointers(vcpu, (uintptr_t)thunk->insn_start, (uintptr_t)thunk->insn_end,
                                  (uintptr_t)memory, guest_offset);
    if (UNLIKELY(fault))
        return native_fault(vcpu, fault - 1);
    memcpy(vcpu->gpr, frame->gpr, sizeof frame->gpr);
    vcpu->rflags = (vcpu->rflags & ~(uint64_t)FLAGS_ARITHMETIC) | (frame->flags & FLAGS_ARITHMETIC);
    return CPU_OK;
}

/* A memory operand of a vector instruction has faulted, in paging or before. #UD (the processor lacks the
 * instruction) and #GP (its alignment rule) come first, and the processor itself knows them best: try it on
 * scratch state. */
int native_memory_fault(struct vcpu *vcpu, struct decoded *d, uint64_t linear) {
    if (d->guard < GUARD_X87 || d->guard == GUARD_VEX_INTEGER || vcpu->xsave_size > NATIVE_IMAGE_MAX)
        return CPU_FAULT;
    struct exception exception = vcpu->exception;
    uint8_t image[NATIVE_IMAGE_MAX];
    uint64_t gpr[16], rflags = vcpu->rflags;
    memcpy(image, vcpu->xsave, vcpu->xsave_size);
    memcpy(gpr, vcpu->gpr, sizeof gpr);
    memset(vcpu->interp->frame->bounce, 0, THUNK_BOUNCE_SIZE);
    int result = native_run(vcpu, d, vcpu->interp->frame->bounce + (linear & 63), 0);
    /* A conversion's own exception comes before the store, and what it had in MXCSR stays; not on AMD's
     * processors, where the fault is first. */
    bool is_numeric =
        result && vcpu->exception.vector == VECTOR_XM && d->memory_access == 2 && !insn_host_is_amd();
    if (!is_numeric)
        memcpy(vcpu->xsave, image, vcpu->xsave_size);
    memcpy(vcpu->gpr, gpr, sizeof gpr);
    vcpu->rflags = rflags;
    if (!result ||
        (vcpu->exception.vector != VECTOR_UD && vcpu->exception.vector != VECTOR_GP && !is_numeric))
        vcpu->exception = exception;
    return CPU_FAULT;
}

/* Legacy SSE operands of 16 bytes are aligned, but for the moves made for those that are not (SDM vol.
 * 2, 2.4, exception types 1, 2 and 4); aligned moves of every encoding are aligned to their size. */
static unsigned required_alignment(const struct decoded *d) {
    if (d->insn.z.mnemonic == ZYDIS_MNEMONIC_CMPXCHG16B)
        return 16;
    if (d->insn.z.meta.isa_ext == ZYDIS_ISA_EXT_SHA && insn_host_is_amd())
        return 1; /* AMD's processors take any */
    switch (d->insn.z.meta.exception_class) {
    case ZYDIS_EXCEPTION_CLASS_SSE1:
    case ZYDIS_EXCEPTION_CLASS_AVX1:
    case ZYDIS_EXCEPTION_CLASS_E1:
    case ZYDIS_EXCEPTION_CLASS_E1NF:
        return d->memory_size;
    case ZYDIS_EXCEPTION_CLASS_SSE2:
    case ZYDIS_EXCEPTION_CLASS_SSE4:
        break;
    default:
        return 1;
    }
    switch (d->insn.z.mnemonic) {
    case ZYDIS_MNEMONIC_MOVUPS:
    case ZYDIS_MNEMONIC_MOVUPD:
    case ZYDIS_MNEMONIC_MOVDQU:
    case ZYDIS_MNEMONIC_LDDQU:
    case ZYDIS_MNEMONIC_PCMPESTRI:
    case ZYDIS_MNEMONIC_PCMPESTRM:
    case ZYDIS_MNEMONIC_PCMPISTRI:
    case ZYDIS_MNEMONIC_PCMPISTRM:
        return 1;
    default:
        return d->memory_size == 16 ? 16 : 1;
    }
}

/* FNSTENV, FNSAVE and their loads, whose images are fields of 2 or 4 bytes. */
static bool is_x87_image(const struct decoded *d) {
    switch (d->insn.z.mnemonic) {
    case ZYDIS_MNEMONIC_FNSAVE:
    case ZYDIS_MNEMONIC_FNSTENV:
    case ZYDIS_MNEMONIC_FRSTOR:
    case ZYDIS_MNEMONIC_FLDENV:
        return true;
    default:
        return false;
    }
}

/* What the operand is aligned to for #AC. AMD's processors check vectors, too, in parts of 16 bytes. */
unsigned native_checked_alignment(const struct decoded *d) {
    if (insn_host_is_amd() && d->memory_size >= 16 && !is_x87_image(d))
        return 16;
    switch (d->insn.z.meta.exception_class) {
    case ZYDIS_EXCEPTION_CLASS_AVX11: /* conversions of half precision: unchecked */
    case ZYDIS_EXCEPTION_CLASS_E11:
    case ZYDIS_EXCEPTION_CLASS_E11NF:
        return insn_host_is_amd() ? memory_alignment(d->memory_size) : 1;
    default:
        return is_x87_image(d) ? (d->operand_size == 2 ? 2 : 4) : memory_alignment(d->memory_size);
    }
}

/* LOCKed instructions and XCHG work on guest RAM itself, so that they are atomic to other vCPUs. */
static int execute_locked(struct vcpu *vcpu, struct decoded *d, uint64_t offset, uint64_t linear,
                          bool *done) {
    void *host;
    int result = vmem_host(vcpu, linear, d->memory_size, VMEM_WRITE, AS_CURRENT, &host);
    *done = result || host;
    if (result || !host)
        return result;
    result = native_run(vcpu, d, host, offset);
    if (!result)
        vmem_written(vcpu, host, d->memory_size);
    return result;
}

/* Does the instruction take a pending x87 exception (#MF) before it looks at its memory operand? All but the
 * no-wait control instructions do (SDM vol. 1, 8.7). */
static bool waits_for_x87(const struct decoded *d) {
    if (d->guard == GUARD_MMX)
        return true;
    if (d->guard != GUARD_X87)
        return false;
    switch (d->insn.z.mnemonic) {
    case ZYDIS_MNEMONIC_FNSAVE:
    case ZYDIS_MNEMONIC_FNSTENV:
    case ZYDIS_MNEMONIC_FNSTCW:
    case ZYDIS_MNEMONIC_FNSTSW:
    case ZYDIS_MNEMONIC_FXSAVE:
    case ZYDIS_MNEMONIC_FXSAVE64:
    case ZYDIS_MNEMONIC_FXRSTOR:
    case ZYDIS_MNEMONIC_FXRSTOR64:
        return false;
    default:
        return true;
    }
}

/* FSW.ES of the parked state; x87 in its initial configuration has none. */
static bool x87_exception_pending(const struct vcpu *vcpu) {
    return vcpu->xsave[512] & 1 && vcpu->xsave[2] & 0x80;
}

/* An x87 store to memory that faults. One that raises an unmasked exception before it stores (stack
 * underflow, invalid operation, overflow) does not get as far as the fault: the instruction is done, without
 * a store. */
static int x87_store_fault(struct vcpu *vcpu, struct decoded *d, uint64_t offset) {
    struct exception exception = vcpu->exception;
    uint8_t image[NATIVE_IMAGE_MAX], *bounce = vcpu->interp->frame->bounce;
    if (vcpu->xsave_size > NATIVE_IMAGE_MAX)
        return CPU_FAULT;
    memcpy(image, vcpu->xsave, vcpu->xsave_size);
    bool stores = false;
    for (unsigned pass = 0; pass < 2; pass++) {
        uint8_t fill = pass ? 0xff : 0;
        memcpy(vcpu->xsave, image, vcpu->xsave_size);
        memset(bounce, fill, d->memory_size);
        stores |= native_run(vcpu, d, bounce, offset) != CPU_OK;
        for (unsigned i = 0; i < d->memory_size; i++)
            stores |= bounce[i] != fill;
    }
    if (!stores)
        return CPU_OK;
    memcpy(vcpu->xsave, image, vcpu->xsave_size);
    vcpu->exception = exception;
    return CPU_FAULT;
}

/* The first access of an x87 operand that the unit takes in several: 8 bytes of a number of 10, a word or
 * doubleword of an environment or state image; 0 for all others. */
static unsigned x87_first_piece(const struct decoded *d) {
    if (is_x87_image(d))
        return d->operand_size == 2 ? 2 : 4;
    return d->guard == GUARD_X87 && d->memory_size == 10 ? 8 : 0;
}

/* Such an operand, which does not lie within the segment or the canonical addresses as a whole. Its pieces
 * are accessed from the bottom up: a page fault of the first comes before the violation of a later one. */
static int x87_piece_fault(struct vcpu *vcpu, struct decoded *d, uint64_t offset, enum vmem_access access) {
    struct exception exception = vcpu->exception;
    unsigned size = x87_first_piece(d);
    uint64_t linear;
    if (!memory_linear_aligned(vcpu, d->segment, offset, size, 1, access, &linear) &&
        vmem_probe(vcpu, linear, size, access, AS_CURRENT))
        return CPU_FAULT;
    vcpu->exception = exception;
    return CPU_FAULT;
}

int native_check_x87_error(struct vcpu *vcpu) {
    return x87_exception_pending(vcpu) ? x87_error(vcpu) : CPU_OK;
}

/* An x87 store whose own unmasked exception comes before a fault of its operand: on AMD the fault is first.
 */
static bool is_x87_store(const struct decoded *d) {
    return d->guard == GUARD_X87 && d->memory_access == 2 && !is_x87_image(d) && !insn_host_is_amd();
}

int native_execute(struct vcpu *vcpu, struct decoded *d) {
    int result = native_check_guard(vcpu, d);
    if (result)
        return result;
    if (d->insn.memory < 0)
        return native_run(vcpu, d, NULL, 0);

    if (waits_for_x87(d)) {
        result = native_check_x87_error(vcpu);
        if (result)
            return result;
    }

    unsigned size = d->memory_size;
    bool writes = d->memory_access & 2;
    uint64_t offset = address_compute(vcpu, d), linear;
    if (UNLIKELY(!size || size > THUNK_BOUNCE_SIZE - 64))
        return fault_ud(vcpu);
    enum vmem_access access = writes ? VMEM_WRITE : VMEM_READ;
    result =
        memory_linear_aligned(vcpu, d->segment, offset, size, native_checked_alignment(d), access, &linear);
    bool failed = result;
    if (failed) {
        if (d->insn.z.mnemonic == ZYDIS_MNEMONIC_CMPXCHG16B && offset & 15)
            return fault_gp(vcpu); /* before the #SS of a stack address */
        bool is_piecewise = x87_first_piece(d) && vcpu->exception.vector != VECTOR_AC;
        if (!is_piecewise || !is_x87_image(d))
            result =
                is_x87_store(d) ? x87_store_fault(vcpu, d, offset) : native_memory_fault(vcpu, d, offset);
        return result && is_piecewise ? x87_piece_fault(vcpu, d, offset, access) : result;
    }
    unsigned alignment = required_alignment(d);
    if (linear & (alignment - 1))
        return fault_gp(vcpu);
    if (d->locked) {
        bool done;
        result = execute_locked(vcpu, d, offset, linear, &done);
        if (done)
            return result;
    }
    uint8_t *bounce = vcpu->interp->frame->bounce + (linear & 63);
    if (writes) {
        result = vmem_probe(vcpu, linear, size, VMEM_WRITE, AS_CURRENT);
        if (result)
            return is_x87_store(d) ? x87_store_fault(vcpu, d, offset) : native_memory_fault(vcpu, d, linear);
    }
    /* A narrow store may leave part of the bounce buffer alone (FXSAVE's reserved bytes, failed CMPXCHG), an
     * x87 one all of it (an unmasked stack fault or invalid operation stores nothing). */
    if (d->memory_access != 2 || size > 64 || d->guard == GUARD_X87) {
        result = vmem_read(vcpu, linear, bounce, size, AS_CURRENT);
        if (result)
            return native_memory_fault(vcpu, d, linear);
    }
    result = native_run(vcpu, d, bounce, offset);
    if (result || !writes)
        return result;
    return vmem_write(vcpu, linear, bounce, size, AS_CURRENT);
}
