/* String instructions. One call does a bounded number of iterations, each of which leaves RSI, RDI and RCX
 * exact, so that faults, interrupts and single-steps find the state that the manual describes. Runs inside
 * one page of RAM are done by the host's own REP instruction, whose element-wise order is the guest's. */
#include "interp/string.h"
#include "interp/flags.h"
#include "interp/memory.h"

unsigned string_repeat_prefix(const struct decoded *d) {
    unsigned repeat = 0;
    for (unsigned i = 0; i < d->insn.z.raw.prefix_count; i++)
        if (d->insn.bytes[i] == 0xf2 || d->insn.bytes[i] == 0xf3)
            repeat = d->insn.bytes[i];
    return repeat;
}

/* DS unless overridden; 64-bit code knows only FS and GS. */
unsigned string_source_segment(const struct decoded *d) {
    static const uint8_t prefixes[] = {0x26, 0x2e, 0x36, 0x3e, 0x64, 0x65};
    unsigned segment = SEG_DS;
    for (unsigned i = 0; i < d->insn.z.raw.prefix_count; i++)
        for (unsigned s = d->code_size == 64 ? SEG_FS : 0; s < ARRAY_SIZE(prefixes); s++)
            if (d->insn.bytes[i] == prefixes[s])
                segment = s;
    return segment;
}

void string_advance(struct vcpu *vcpu, const struct decoded *d, unsigned gpr, uint64_t bytes) {
    uint64_t value = vcpu->gpr[gpr];
    gpr_put(vcpu, gpr, d->address_size, vcpu->rflags & FLAG_DF ? value - bytes : value + bytes);
}

enum string_operation { STRING_MOVS, STRING_STOS, STRING_LODS, STRING_CMPS, STRING_SCAS };

static enum string_operation find_operation(uint8_t opcode) {
    switch (opcode & ~1) {
    case 0xa4:
        return STRING_MOVS;
    case 0xa6:
        return STRING_CMPS;
    case 0xaa:
        return STRING_STOS;
    case 0xac:
        return STRING_LODS;
    default:
        return STRING_SCAS;
    }
}

static void host_move(void *target, const void *source, uint64_t count, unsigned size) {
    switch (size) {
    case 1:
        __asm__ volatile("rep movsb" : "+D"(target), "+S"(source), "+c"(count)::"memory");
        break;
    case 2:
        __asm__ volatile("rep movsw" : "+D"(target), "+S"(source), "+c"(count)::"memory");
        break;
    case 4:
        __asm__ volatile("rep movsl" : "+D"(target), "+S"(source), "+c"(count)::"memory");
        break;
    default:
        __asm__ volatile("rep movsq" : "+D"(target), "+S"(source), "+c"(count)::"memory");
    }
}

static void host_fill(void *target, uint64_t value, uint64_t count, unsigned size) {
    switch (size) {
    case 1:
        __asm__ volatile("rep stosb" : "+D"(target), "+c"(count) : "a"(value) : "memory");
        break;
    case 2:
        __asm__ volatile("rep stosw" : "+D"(target), "+c"(count) : "a"(value) : "memory");
        break;
    case 4:
        __asm__ volatile("rep stosl" : "+D"(target), "+c"(count) : "a"(value) : "memory");
        break;
    default:
        __asm__ volatile("rep stosq" : "+D"(target), "+c"(count) : "a"(value) : "memory");
    }
}

/* How many elements from offset on lie in one page and below the wrap of the address size. */
static uint64_t run_length(const struct decoded *d, uint64_t offset, uint64_t linear, unsigned size) {
    uint64_t bytes = PAGE_SIZE - (linear & (PAGE_SIZE - 1));
    uint64_t wrap = d->address_mask - offset;
    if (wrap < bytes - 1)
        bytes = wrap + 1;
    return bytes / size;
}

/* Try a run of MOVS or STOS upwards; the number of elements done, 0: use the slow path. */
static uint64_t fast_run(struct vcpu *vcpu, struct decoded *d, enum string_operation operation,
                         unsigned source, unsigned size, uint64_t count) {
    uint64_t to = vcpu->gpr[GPR_RDI] & d->address_mask, from = vcpu->gpr[GPR_RSI] & d->address_mask;
    uint64_t to_linear, from_linear;
    void *to_host, *from_host = NULL;
    if (vcpu->rflags & FLAG_DF || vcpu->mode & (MODE_STEP | MODE_AC))
        return 0;
    if (cpu_linear(vcpu, SEG_ES, to, size, VMEM_WRITE, &to_linear))
        return 0;
    uint64_t run = run_length(d, to, to_linear, size);
    if (operation == STRING_MOVS) {
        if (cpu_linear(vcpu, source, from, size, VMEM_READ, &from_linear))
            return 0;
        uint64_t readable = run_length(d, from, from_linear, size);
        run = readable < run ? readable : run;
    }
    run = count < run ? count : run;
    if (run < 2)
        return 0;
    unsigned bytes = (unsigned)run * size;
    if (cpu_linear(vcpu, SEG_ES, to, bytes, VMEM_WRITE, &to_linear))
        return 0;
    if (operation == STRING_MOVS) {
        if (cpu_linear(vcpu, source, from, bytes, VMEM_READ, &from_linear) ||
            vmem_host(vcpu, from_linear, bytes, VMEM_READ, AS_CURRENT, &from_host) || !from_host)
            return 0;
    }
    if (vmem_host(vcpu, to_linear, bytes, VMEM_WRITE, AS_CURRENT, &to_host) || !to_host)
        return 0;
    if (operation == STRING_MOVS)
        host_move(to_host, from_host, run, size);
    else
        host_fill(to_host, vcpu->gpr[GPR_RAX], run, size);
    vmem_written(vcpu, to_host, bytes);
    string_advance(vcpu, d, GPR_RDI, bytes);
    if (operation == STRING_MOVS)
        string_advance(vcpu, d, GPR_RSI, bytes);
    return run;
}

static bool wraps(const struct vcpu *vcpu, uint64_t offset, unsigned size) {
    return UNLIKELY(offset + size - 1 > UINT32_MAX) && !cpu_is_code64(vcpu);
}

static int string_read(struct vcpu *vcpu, unsigned segment, uint64_t offset, unsigned size, uint64_t *value) {
    if (LIKELY(!wraps(vcpu, offset, size)))
        return memory_read(vcpu, segment, offset, size, value);
    uint64_t linear;
    *value = 0;
    int result = memory_linear_wrapping(vcpu, segment, offset, size, size, VMEM_READ, &linear);
    return result ? result : vmem_read(vcpu, linear, value, size, AS_CURRENT);
}

static int string_write(struct vcpu *vcpu, unsigned segment, uint64_t offset, unsigned size, uint64_t value) {
    if (LIKELY(!wraps(vcpu, offset, size)))
        return memory_write(vcpu, segment, offset, size, value);
    uint64_t linear;
    int result = memory_linear_wrapping(vcpu, segment, offset, size, size, VMEM_WRITE, &linear);
    return result ? result : vmem_write(vcpu, linear, &value, size, AS_CURRENT);
}

static int one_iteration(struct vcpu *vcpu, struct decoded *d, enum string_operation operation,
                         unsigned source, unsigned size) {
    uint64_t to = vcpu->gpr[GPR_RDI] & d->address_mask, from = vcpu->gpr[GPR_RSI] & d->address_mask;
    uint64_t a, b;
    int result = CPU_OK;
    switch (operation) {
    case STRING_MOVS:
        result = string_read(vcpu, source, from, size, &a);
        if (!result)
            result = string_write(vcpu, SEG_ES, to, size, a);
        break;
    case STRING_STOS:
        result = string_write(vcpu, SEG_ES, to, size, vcpu->gpr[GPR_RAX]);
        break;
    case STRING_LODS:
        result = string_read(vcpu, source, from, size, &a);
        if (!result)
            gpr_put(vcpu, GPR_RAX, size, a);
        break;
    case STRING_CMPS:
        /* In the order of the processor: it shows when both fault. */
        if (insn_host_is_amd()) {
            result = string_read(vcpu, source, from, size, &a);
            if (!result)
                result = string_read(vcpu, SEG_ES, to, size, &b);
        } else {
            result = string_read(vcpu, SEG_ES, to, size, &b);
            if (!result)
                result = string_read(vcpu, source, from, size, &a);
        }
        if (!result)
            flags_sub(vcpu, a, b, 0, size);
        break;
    case STRING_SCAS:
        result = string_read(vcpu, SEG_ES, to, size, &b);
        if (!result)
            flags_sub(vcpu, vcpu->gpr[GPR_RAX] & size_mask(size), b, 0, size);
        break;
    }
    if (result)
        return result;
    if (operation != STRING_STOS && operation != STRING_SCAS)
        string_advance(vcpu, d, GPR_RSI, size);
    if (operation != STRING_LODS)
        string_advance(vcpu, d, GPR_RDI, size);
    return CPU_OK;
}

int string_execute(struct vcpu *vcpu, struct decoded *d) {
    enum string_operation operation = find_operation(d->insn.z.opcode);
    unsigned size = d->insn.z.opcode & 1 ? d->operand_size : 1;
    unsigned repeat = string_repeat_prefix(d), source = string_source_segment(d);
    if (!repeat)
        return one_iteration(vcpu, d, operation, source, size);

    bool compares = operation == STRING_CMPS || operation == STRING_SCAS;
    uint64_t flags = vcpu->rflags, budget = vcpu->interp->repeat_limit;
    while (vcpu->gpr[GPR_RCX] & d->address_mask) {
        uint64_t count = vcpu->gpr[GPR_RCX] & d->address_mask, done = 0;
        if (!budget) {
            vcpu->rflags = flags; /* a comparison sets them when it ends, not between its iterations */
            return STEP_REPEAT;
        }
        if (operation == STRING_MOVS || operation == STRING_STOS)
            done = fast_run(vcpu, d, operation, source, size, count < budget ? count : budget);
        if (!done) {
            int result = one_iteration(vcpu, d, operation, source, size);
            if (result) {
                /* A faulting comparison shows the flags from before the instruction. */
                vcpu->rflags = flags;
                return result;
            }
            done = 1;
        }
        gpr_put(vcpu, GPR_RCX, d->address_size, count - done);
        budget -= done;
        if (compares && !(vcpu->rflags & FLAG_ZF) != (repeat == 0xf2))
            break;
    }
    return CPU_OK;
}
