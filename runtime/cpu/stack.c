/* Frames on guest stacks. Every piece is checked before the first byte is stored. */
#include "cpu/stack.h"
#include "cpu/mode.h"

struct stack stack_current(const struct vcpu *vcpu) {
    bool flat64 = cpu_is_code64(vcpu);
    const struct segment *ss = &vcpu->segment[SEG_SS];
    uint64_t mask = flat64 ? ~0ull : stack_mask(ss);
    return (struct stack){
        .ss = *ss, .sp = vcpu->gpr[GPR_RSP] & mask, .mask = mask, .as = AS_CURRENT, .flat64 = flat64};
}

/* The one or two linear pieces of [offset, offset + size): two where a 16- or 32-bit stack pointer wraps. */
struct stack_piece {
    uint64_t linear;
    unsigned size;
};

static int stack_pieces(struct vcpu *vcpu, const struct stack *stack, uint64_t offset, unsigned size,
                        struct stack_piece piece[2], unsigned *count) {
    offset &= stack->mask;
    if (LIKELY(stack->flat64)) {
        if (!cpu_is_canonical(offset) || !cpu_is_canonical(offset + size - 1))
            return cpu_fault(vcpu, VECTOR_SS, stack->error);
        piece[0] = (struct stack_piece){offset, size};
        *count = 1;
        return CPU_OK;
    }
    *count = 0;
    while (size) {
        uint64_t room = stack->mask - offset + 1;
        unsigned part = size < room ? size : (unsigned)room;
        if (!segment_contains(&stack->ss, offset, part) || *count == 2)
            return cpu_fault(vcpu, VECTOR_SS, stack->error);
        piece[(*count)++] = (struct stack_piece){(uint32_t)(stack->ss.base + offset), part};
        offset = 0;
        size -= part;
    }
    return CPU_OK;
}

/* A store of a frame has faulted: the fault is that of the highest word which cannot be pushed. */
static int push_fault(struct vcpu *vcpu, const struct stack *stack, unsigned size, unsigned word) {
    struct exception exception = vcpu->exception;
    for (unsigned done = word; done <= size; done += word) {
        struct stack_piece piece[2];
        unsigned count;
        int result = stack_pieces(vcpu, stack, stack->sp - done, word, piece, &count);
        for (unsigned i = 0; i < count && !result; i++)
            result = vmem_probe(vcpu, piece[i].linear, piece[i].size, VMEM_WRITE, stack->as);
        if (result)
            return result;
    }
    vcpu->exception = exception;
    return CPU_FAULT;
}

/* #AC of frames on the stack in use (SDM vol. 3, 6.15, interrupt 17). */
static int check_alignment(struct vcpu *vcpu, const struct stack *stack, uint64_t linear, unsigned word) {
    return UNLIKELY(vcpu->mode & MODE_AC) && stack->as == AS_CURRENT && linear & (word - 1)
               ? cpu_fault(vcpu, VECTOR_AC, 0)
               : CPU_OK;
}

int stack_store(struct vcpu *vcpu, const struct stack *stack, const void *buffer, unsigned size,
                unsigned word) {
    struct stack_piece piece[2];
    unsigned count;
    int result = stack_pieces(vcpu, stack, stack->sp - size, size, piece, &count);
    if (!result)
        result = check_alignment(vcpu, stack, piece[0].linear, word);
    if (result)
        return result;
    if (count == 2)
        result = vmem_probe(vcpu, piece[1].linear, piece[1].size, VMEM_WRITE, stack->as);
    if (!result)
        result = vmem_write(vcpu, piece[0].linear, buffer, piece[0].size, stack->as);
    if (!result && count == 2)
        result = vmem_write(vcpu, piece[1].linear, (const uint8_t *)buffer + piece[0].size, piece[1].size,
                            stack->as);
    return UNLIKELY(result) ? push_fault(vcpu, stack, size, word) : CPU_OK;
}

int stack_fetch(struct vcpu *vcpu, const struct stack *stack, unsigned skip, void *buffer, unsigned size,
                unsigned word) {
    struct stack_piece piece[2];
    unsigned count;
    int result = stack_pieces(vcpu, stack, stack->sp + skip, size, piece, &count);
    if (!result)
        result = check_alignment(vcpu, stack, piece[0].linear, word);
    if (!result)
        result = vmem_read(vcpu, piece[0].linear, buffer, piece[0].size, stack->as);
    if (!result && count == 2)
        result =
            vmem_read(vcpu, piece[1].linear, (uint8_t *)buffer + piece[0].size, piece[1].size, stack->as);
    return result;
}

int frame_store(struct vcpu *vcpu, uint64_t linear, const uint64_t *words, unsigned count, enum vmem_as as) {
    void *host;
    int result = vmem_host(vcpu, linear, count * 8, VMEM_WRITE, as, &host);
    if (LIKELY(!result) && UNLIKELY(!host)) {
        result = vmem_write(vcpu, linear, words, count * 8, as);
        if (!result)
            return CPU_OK;
    }
    if (UNLIKELY(result)) {
        struct stack stack = {.sp = linear + count * 8, .mask = ~0ull, .as = as, .flat64 = true};
        return push_fault(vcpu, &stack, count * 8, 8);
    }
    volatile struct guest_u64 *target = host;
    for (unsigned i = 0; i < count; i++)
        target[i].value = words[i];
    vmem_written(vcpu, host, count * 8);
    return CPU_OK;
}

int frame_fetch(struct vcpu *vcpu, uint64_t linear, uint64_t *words, unsigned count, enum vmem_as as) {
    void *host;
    int result = vmem_host(vcpu, linear, count * 8, VMEM_READ, as, &host);
    if (result)
        return result;
    if (UNLIKELY(!host))
        return vmem_read(vcpu, linear, words, count * 8, as);
    const volatile struct guest_u64 *source = host;
    for (unsigned i = 0; i < count; i++)
        words[i] = source[i].value;
    return CPU_OK;
}
