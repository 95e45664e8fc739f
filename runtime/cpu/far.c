/* Far jumps, calls and returns (SDM vol. 2, JMP, CALL, RET; vol. 3, 5.8). */
#include "cpu/task.h"
#include "cpu/transfer.h"

#define GATE_PARAMETERS_MAX 31u

static uint64_t truncate(uint64_t value, unsigned operand_size) {
    return operand_size == 2 ? (uint16_t)value : operand_size == 4 ? (uint32_t)value : value;
}

/* Real and vm86 mode: no descriptors. */
static int far_real(struct vcpu *vcpu, uint16_t selector, uint64_t offset) {
    uint32_t limit = vcpu->rflags & FLAG_VM ? 0xffff : vcpu->segment[SEG_CS].limit;
    if (offset > limit)
        return cpu_fault(vcpu, VECTOR_GP, 0);
    transfer_load_real_cs(vcpu, selector);
    vcpu->rip = offset;
    cpu_mode_changed(vcpu);
    return CPU_OK;
}

static void enter_code(struct vcpu *vcpu, uint16_t selector, uint64_t raw, unsigned cpl, uint64_t rip) {
    segment_set(&vcpu->segment[SEG_CS], selector_with_rpl(selector, cpl), raw);
    vcpu->cpl = (uint8_t)cpl;
    vcpu->rip = rip;
    cpu_mode_changed(vcpu);
}

/* The descriptor that a far jump or call names, with the checks that hold for every kind. */
static int read_target(struct vcpu *vcpu, uint16_t selector, uint64_t *raw) {
    if (selector_is_null(selector))
        return cpu_fault(vcpu, VECTOR_GP, 0);
    return descriptor_read(vcpu, selector, VECTOR_GP, 0, raw);
}

/* A direct jump or call to a code segment stays at the CPL. */
static int check_direct(struct vcpu *vcpu, uint16_t selector, uint64_t *raw, uint64_t offset) {
    unsigned dpl = descriptor_dpl(*raw), cpl = vcpu->cpl;
    bool ok = descriptor_is_conforming(*raw) ? dpl <= cpl : dpl == cpl && (selector & SELECTOR_RPL) <= cpl;
    bool both_sizes =
        vcpu->efer & EFER_LMA && (descriptor_attributes(*raw) & (SEG_L | SEG_DB)) == (SEG_L | SEG_DB);
    if (!ok || both_sizes)
        return cpu_fault(vcpu, VECTOR_GP, selector_error(selector, 0));
    if (!descriptor_present(*raw))
        return cpu_fault(vcpu, VECTOR_NP, selector_error(selector, 0));
    int result = transfer_check_target(vcpu, *raw, offset);
    return result ? result : descriptor_set_accessed(vcpu, selector, raw);
}

/* A system descriptor reached by a far jump or call: DPL against CPL and RPL. */
static int check_system(struct vcpu *vcpu, uint16_t selector, uint64_t raw) {
    unsigned dpl = descriptor_dpl(raw);
    if (dpl < vcpu->cpl || dpl < (selector & SELECTOR_RPL))
        return cpu_fault(vcpu, VECTOR_GP, selector_error(selector, 0));
    return CPU_OK;
}

static int transfer_to_task(struct vcpu *vcpu, uint16_t selector, uint64_t raw, bool is_call, uint64_t next) {
    uint16_t tss = selector;
    if (descriptor_type(raw) == TYPE_TASK_GATE) {
        if (!descriptor_present(raw))
            return cpu_fault(vcpu, VECTOR_NP, selector_error(selector, 0));
        tss = (uint16_t)(raw >> 16);
    }
    return task_switch(vcpu, &(struct task_transfer){.selector = tss,
                                                     .why = is_call ? TASK_CALL : TASK_JUMP,
                                                     .rip = next,
                                                     .flags = vcpu->rflags & ~(uint64_t)FLAG_RF});
}

struct call_gate {
    uint64_t target;
    uint16_t selector;
    unsigned parameters;
    unsigned size; /* of a pushed word: 2, 4 or 8 bytes */
    uint64_t raw;  /* the code segment's descriptor */
};

/* Read a call gate and check the code segment behind it. */
static int read_call_gate(struct vcpu *vcpu, uint16_t gate_selector, uint64_t gate_raw, bool is_call,
                          struct call_gate *gate) {
    uint64_t upper = 0, raw;
    bool is_long = cpu_is_long(vcpu);
    int result;
    if (is_long) {
        result = descriptor_read_upper(vcpu, gate_selector, VECTOR_GP, 0, &upper);
        if (result)
            return result;
        if (upper >> 40 & 0x1f)
            return cpu_fault(vcpu, VECTOR_GP, selector_error(gate_selector, 0));
    }
    if (!descriptor_present(gate_raw))
        return cpu_fault(vcpu, VECTOR_NP, selector_error(gate_selector, 0));
    gate->selector = (uint16_t)(gate_raw >> 16);
    gate->target = (gate_raw & 0xffff) | (gate_raw >> 32 & 0xffff0000) | upper << 32;
    gate->parameters = is_long ? 0 : gate_raw >> 32 & GATE_PARAMETERS_MAX;
    gate->size = is_long ? 8 : descriptor_type(gate_raw) == TYPE_CALL_GATE ? 4 : 2;
    gate->target = truncate(gate->target, gate->size);
    if (selector_is_null(gate->selector))
        return cpu_fault(vcpu, VECTOR_GP, 0);
    result = descriptor_read(vcpu, gate->selector, VECTOR_GP, 0, &raw);
    if (result)
        return result;
    unsigned dpl = descriptor_dpl(raw);
    bool level_ok = is_call || descriptor_is_conforming(raw) ? dpl <= vcpu->cpl : dpl == vcpu->cpl;
    bool size_ok = !is_long || (descriptor_attributes(raw) & (SEG_L | SEG_DB)) == SEG_L;
    if (!descriptor_is_code(raw) || !level_ok || !size_ok)
        return cpu_fault(vcpu, VECTOR_GP, selector_error(gate->selector, 0));
    if (!descriptor_present(raw))
        return cpu_fault(vcpu, VECTOR_NP, selector_error(gate->selector, 0));
    gate->raw = raw;
    return CPU_OK;
}

static void put_word(uint8_t *bytes, unsigned index, unsigned size, uint64_t value) {
    if (size == 2)
        *(uint16_t *)(bytes + index * 2) = (uint16_t)value;
    else if (size == 4)
        *(uint32_t *)(bytes + index * 4) = (uint32_t)value;
    else
        *(uint64_t *)(bytes + index * 8) = value;
}

/* CALL through a gate to the same level. */
static int call_gate_same(struct vcpu *vcpu, struct call_gate *gate, uint64_t next) {
    struct stack stack = stack_current(vcpu);
    uint8_t frame[16];
    put_word(frame, 0, gate->size, next);
    put_word(frame, 1, gate->size, vcpu->segment[SEG_CS].selector);
    int result = transfer_check_target(vcpu, gate->raw, gate->target);
    if (!result)
        result = descriptor_set_accessed(vcpu, gate->selector, &gate->raw);
    if (!result)
        result = stack_store(vcpu, &stack, frame, 2 * gate->size, gate->size);
    if (result)
        return result;
    vcpu->gpr[GPR_RSP] = stack_pointer(&stack, vcpu->gpr[GPR_RSP], stack.sp - 2 * gate->size);
    enter_code(vcpu, gate->selector, gate->raw, vcpu->cpl, gate->target);
    return CPU_OK;
}

/* CALL through a gate to an inner level: a new stack with, from low to high, IP CS parameters SP SS. */
static int call_gate_inner(struct vcpu *vcpu, struct call_gate *gate, uint64_t next) {
    unsigned cpl = descriptor_dpl(gate->raw), size = gate->size, parameters = gate->parameters;
    struct stack old = stack_current(vcpu), inner;
    uint8_t frame[(GATE_PARAMETERS_MAX + 4) * 4];
    int result;
    if (cpu_is_long(vcpu)) {
        inner = (struct stack){.mask = ~0ull, .as = AS_SYSTEM, .flat64 = true};
        segment_set_null_stack(&inner.ss, cpl);
        result = task_inner_rsp(vcpu, cpl, 0, 0, &inner.sp);
    } else {
        result = task_inner_stack(vcpu, cpl, 0, &inner);
    }
    if (result)
        return result;
    put_word(frame, 0, size, next);
    put_word(frame, 1, size, vcpu->segment[SEG_CS].selector);
    if (parameters)
        result = stack_fetch(vcpu, &old, 0, frame + 2 * size, parameters * size, size);
    put_word(frame, 2 + parameters, size, vcpu->gpr[GPR_RSP]);
    put_word(frame, 3 + parameters, size, vcpu->segment[SEG_SS].selector);
    if (!result)
        result = transfer_check_target(vcpu, gate->raw, gate->target);
    if (!result)
        result = descriptor_set_accessed(vcpu, gate->selector, &gate->raw);
    if (!result)
        result = stack_store(vcpu, &inner, frame, (4 + parameters) * size, size);
    if (result)
        return result;
    vcpu->segment[SEG_SS] = inner.ss;
    vcpu->gpr[GPR_RSP] = stack_pointer(&inner, vcpu->gpr[GPR_RSP], inner.sp - (4 + parameters) * size);
    enter_code(vcpu, gate->selector, gate->raw, cpl, gate->target);
    return CPU_OK;
}

static int through_call_gate(struct vcpu *vcpu, uint16_t selector, uint64_t raw, bool is_call,
                             uint64_t next) {
    struct call_gate gate = {0};
    int result = read_call_gate(vcpu, selector, raw, is_call, &gate);
    if (result)
        return result;
    if (is_call)
        return !descriptor_is_conforming(gate.raw) && descriptor_dpl(gate.raw) < vcpu->cpl
                   ? call_gate_inner(vcpu, &gate, next)
                   : call_gate_same(vcpu, &gate, next);
    result = transfer_check_target(vcpu, gate.raw, gate.target);
    if (!result)
        result = descriptor_set_accessed(vcpu, gate.selector, &gate.raw);
    if (!result)
        enter_code(vcpu, gate.selector, gate.raw, vcpu->cpl, gate.target);
    return result;
}

/* What a far jump or call does when its selector names a system descriptor. */
static int through_system(struct vcpu *vcpu, uint16_t selector, uint64_t raw, bool is_call, uint64_t next) {
    unsigned type = descriptor_type(raw);
    bool is_task = type == TYPE_TSS16 || type == TYPE_TSS || type == TYPE_TASK_GATE;
    bool is_gate = type == TYPE_CALL_GATE || (type == TYPE_CALL_GATE16 && !cpu_is_long(vcpu));
    if (!is_gate && (!is_task || cpu_is_long(vcpu)))
        return cpu_fault(vcpu, VECTOR_GP, selector_error(selector, 0));
    int result = check_system(vcpu, selector, raw);
    if (result)
        return result;
    return is_gate ? through_call_gate(vcpu, selector, raw, is_call, next)
                   : transfer_to_task(vcpu, selector, raw, is_call, next);
}

int cpu_far_jump(struct vcpu *vcpu, uint16_t selector, uint64_t offset, unsigned operand_size,
                 uint64_t next) {
    uint64_t raw = 0;
    offset = truncate(offset, operand_size);
    if (!(vcpu->mode & MODE_PROTECTED))
        return far_real(vcpu, selector, offset);
    int result = read_target(vcpu, selector, &raw);
    if (result)
        return result;
    if (!descriptor_is_segment(raw))
        return through_system(vcpu, selector, raw, false, next);
    if (!descriptor_is_code(raw))
        return cpu_fault(vcpu, VECTOR_GP, selector_error(selector, 0));
    result = check_direct(vcpu, selector, &raw, offset);
    if (!result)
        enter_code(vcpu, selector, raw, vcpu->cpl, offset);
    return result;
}

int cpu_far_call(struct vcpu *vcpu, uint16_t selector, uint64_t offset, unsigned operand_size,
                 uint64_t next) {
    uint64_t raw = 0;
    struct stack stack = stack_current(vcpu);
    uint8_t frame[16];
    unsigned size = 2 * operand_size;
    int result;
    offset = truncate(offset, operand_size);
    put_word(frame, 0, operand_size, next);
    put_word(frame, 1, operand_size, vcpu->segment[SEG_CS].selector);
    if (!(vcpu->mode & MODE_PROTECTED)) {
        if (offset > (vcpu->rflags & FLAG_VM ? 0xffff : vcpu->segment[SEG_CS].limit))
            return cpu_fault(vcpu, VECTOR_GP, 0);
        result = stack_store(vcpu, &stack, frame, size, operand_size);
        if (result)
            return result;
        vcpu->gpr[GPR_RSP] = stack_pointer(&stack, vcpu->gpr[GPR_RSP], stack.sp - size);
        return far_real(vcpu, selector, offset);
    }
    result = read_target(vcpu, selector, &raw);
    if (result)
        return result;
    if (!descriptor_is_segment(raw))
        return through_system(vcpu, selector, raw, true, next);
    if (!descriptor_is_code(raw))
        return cpu_fault(vcpu, VECTOR_GP, selector_error(selector, 0));
    result = check_direct(vcpu, selector, &raw, offset);
    if (!result)
        result = stack_store(vcpu, &stack, frame, size, operand_size);
    if (result)
        return result;
    vcpu->gpr[GPR_RSP] = stack_pointer(&stack, vcpu->gpr[GPR_RSP], stack.sp - size);
    enter_code(vcpu, selector, raw, vcpu->cpl, offset);
    return CPU_OK;
}

static int fetch_words(struct vcpu *vcpu, const struct stack *stack, unsigned operand_size, unsigned skip,
                       uint64_t word[2]) {
    uint8_t bytes[16];
    int result = stack_fetch(vcpu, stack, skip, bytes, 2 * operand_size, operand_size);
    if (result)
        return result;
    for (unsigned i = 0; i < 2; i++) {
        const uint8_t *at = bytes + i * operand_size;
        word[i] = operand_size == 2   ? *(const uint16_t *)at
                  : operand_size == 4 ? *(const uint32_t *)at
                                      : *(const uint64_t *)at;
    }
    return CPU_OK;
}

/* RSP of the outer stack, its own width applied. */
static uint64_t outer_rsp(const struct vcpu *vcpu, const struct segment *ss, bool is_code64, uint64_t value,
                          uint16_t release_bytes) {
    value += release_bytes;
    if (is_code64)
        return value;
    if (ss->attributes & SEG_DB)
        return (uint32_t)value;
    return (vcpu->gpr[GPR_RSP] & ~0xffffull) | (value & 0xffff);
}

int cpu_far_return(struct vcpu *vcpu, unsigned operand_size, uint16_t release_bytes) {
    struct stack stack = stack_current(vcpu);
    uint64_t word[2], outer_word[2], raw = 0;
    unsigned size = 2 * operand_size;
    int result = fetch_words(vcpu, &stack, operand_size, 0, word);
    if (result)
        return result;
    uint16_t selector = (uint16_t)word[1];
    if (!(vcpu->mode & MODE_PROTECTED)) {
        result = far_real(vcpu, selector, word[0]);
        if (!result)
            vcpu->gpr[GPR_RSP] = stack_pointer(&stack, vcpu->gpr[GPR_RSP], stack.sp + size + release_bytes);
        return result;
    }
    result = transfer_check_return(vcpu, selector, &raw);
    if (result)
        return result;
    unsigned rpl = selector & SELECTOR_RPL;
    bool is_code64 = transfer_is_code64(vcpu, raw);
    if (rpl == vcpu->cpl) {
        result = transfer_check_target(vcpu, raw, word[0]);
        if (result)
            return result;
        vcpu->gpr[GPR_RSP] = stack_pointer(&stack, vcpu->gpr[GPR_RSP], stack.sp + size + release_bytes);
        enter_code(vcpu, selector, raw, rpl, word[0]);
        return CPU_OK;
    }
    struct segment ss;
    result = fetch_words(vcpu, &stack, operand_size, size + release_bytes, outer_word);
    if (!result)
        result = transfer_check_return_stack(vcpu, (uint16_t)outer_word[1], rpl, is_code64, &ss);
    if (!result)
        result = transfer_check_target(vcpu, raw, word[0]);
    if (result)
        return result;
    vcpu->gpr[GPR_RSP] = outer_rsp(vcpu, &ss, is_code64, outer_word[0], release_bytes);
    vcpu->segment[SEG_SS] = ss;
    segment_drop_inner(vcpu, rpl);
    enter_code(vcpu, selector, raw, rpl, word[0]);
    return CPU_OK;
}
