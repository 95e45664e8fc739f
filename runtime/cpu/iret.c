/* IRET, and what far returns share with it (SDM vol. 2, IRET and RET). */
#include "cpu/mode_switch.h"
#include "cpu/task.h"
#include "cpu/transfer.h"

#define OPCODE_IRET 0xcfu
#define INSTRUCTION_MAX 15u
#define FLAGS_ALWAYS (FLAGS_ARITHMETIC | FLAG_TF | FLAG_DF | FLAG_NT)
#define FLAGS_WIDE (FLAG_RF | FLAG_AC | FLAG_ID) /* only from a 32- or 64-bit image */

void transfer_load_real_cs(struct vcpu *vcpu, uint16_t selector) {
    struct segment *cs = &vcpu->segment[SEG_CS];
    if (vcpu->rflags & FLAG_VM) {
        *cs = segment_vm86(selector);
    } else {
        cs->selector = selector;
        cs->base = (uint64_t)selector << 4;
    }
}

int transfer_check_return(struct vcpu *vcpu, uint16_t selector, uint64_t *raw) {
    unsigned rpl = selector & SELECTOR_RPL;
    if (selector_is_null(selector))
        return cpu_fault(vcpu, VECTOR_GP, 0);
    int result = descriptor_read(vcpu, selector, VECTOR_GP, 0, raw);
    if (result)
        return result;
    unsigned dpl = descriptor_dpl(*raw);
    bool both_sizes =
        vcpu->efer & EFER_LMA && (descriptor_attributes(*raw) & (SEG_L | SEG_DB)) == (SEG_L | SEG_DB);
    if (!descriptor_is_code(*raw) || rpl < vcpu->cpl || both_sizes ||
        (descriptor_is_conforming(*raw) ? dpl > rpl : dpl != rpl))
        return cpu_fault(vcpu, VECTOR_GP, selector_error(selector, 0));
    if (!descriptor_present(*raw))
        return cpu_fault(vcpu, VECTOR_NP, selector_error(selector, 0));
    return descriptor_set_accessed(vcpu, selector, raw);
}

int transfer_check_return_stack(struct vcpu *vcpu, uint16_t selector, unsigned cpl, bool is_code64,
                                struct segment *ss) {
    if (selector_is_null(selector) && is_code64 && cpl != 3 && (selector & SELECTOR_RPL) == cpl) {
        segment_set_null_stack(ss, cpl);
        return CPU_OK;
    }
    return descriptor_load_stack(vcpu, selector, cpl, VECTOR_GP, 0, ss);
}

int transfer_check_target(struct vcpu *vcpu, uint64_t raw, uint64_t rip) {
    bool ok = transfer_is_code64(vcpu, raw) ? cpu_is_canonical(rip) : rip <= descriptor_limit(raw);
    return LIKELY(ok) ? CPU_OK : cpu_fault(vcpu, VECTOR_GP, 0);
}

/* Read count words of operand_size at the stack's top. */
static int pop_words(struct vcpu *vcpu, const struct stack *stack, unsigned operand_size, unsigned first,
                     unsigned count, uint64_t *words) {
    uint8_t bytes[80];
    int result = stack_fetch(vcpu, stack, first * operand_size, bytes, count * operand_size, operand_size);
    if (result)
        return result;
    for (unsigned i = 0; i < count; i++) {
        const uint8_t *at = bytes + i * operand_size;
        words[i] = operand_size == 2   ? *(const uint16_t *)at
                   : operand_size == 4 ? *(const uint32_t *)at
                                       : *(const uint64_t *)at;
    }
    return CPU_OK;
}

/* The flags after an IRET at the present CPL outside vm86 mode. */
static uint64_t flags_after(const struct vcpu *vcpu, uint64_t image, unsigned operand_size) {
    uint64_t mask = FLAGS_ALWAYS;
    if (operand_size > 2)
        mask |= FLAGS_WIDE;
    if (vcpu->cpl <= (vcpu->rflags >> FLAG_IOPL_SHIFT & 3))
        mask |= FLAG_IF;
    if (vcpu->cpl == 0) {
        mask |= FLAG_IOPL;
        if (operand_size > 2)
            mask |= FLAG_VIF | FLAG_VIP;
    }
    return (vcpu->rflags & ~mask) | (image & mask);
}

static int iret_real(struct vcpu *vcpu, unsigned operand_size) {
    struct stack stack = stack_current(vcpu);
    uint64_t word[3];
    int result = pop_words(vcpu, &stack, operand_size, 0, 3, word);
    if (result)
        return result;
    if (word[0] > vcpu->segment[SEG_CS].limit)
        return cpu_fault(vcpu, VECTOR_GP, 0);
    uint64_t mask = FLAGS_ALWAYS | FLAG_IF | FLAG_IOPL | (operand_size > 2 ? FLAGS_WIDE : 0);
    transfer_load_real_cs(vcpu, (uint16_t)word[1]);
    vcpu->rip = word[0];
    vcpu->rflags = (vcpu->rflags & ~mask) | (word[2] & mask);
    vcpu->gpr[GPR_RSP] = stack_pointer(&stack, vcpu->gpr[GPR_RSP], stack.sp + 3 * operand_size);
    cpu_mode_changed(vcpu);
    return CPU_OK;
}

static int iret_vm86(struct vcpu *vcpu, unsigned operand_size) {
    struct stack stack = stack_current(vcpu);
    uint64_t word[3];
    bool iopl3 = (vcpu->rflags & FLAG_IOPL) == FLAG_IOPL;
    if (!iopl3 && (!(vcpu->cr4 & CR4_VME) || operand_size != 2))
        return cpu_fault(vcpu, VECTOR_GP, 0);
    int result = pop_words(vcpu, &stack, operand_size, 0, 3, word);
    if (result)
        return result;
    if (word[0] > 0xffff)
        return cpu_fault(vcpu, VECTOR_GP, 0);
    uint64_t image = word[2], mask = FLAGS_ALWAYS | (operand_size > 2 ? FLAGS_WIDE : 0);
    if (iopl3) {
        mask |= FLAG_IF;
    } else { /* SDM vol. 3, 20.3: IF of the image is VIF */
        if (image & FLAG_TF || (image & FLAG_IF && vcpu->rflags & FLAG_VIP))
            return cpu_fault(vcpu, VECTOR_GP, 0);
        mask |= FLAG_VIF;
        image = (image & ~(uint64_t)FLAG_VIF) | (image & FLAG_IF ? FLAG_VIF : 0);
    }
    transfer_load_real_cs(vcpu, (uint16_t)word[1]);
    vcpu->rip = word[0];
    vcpu->rflags = (vcpu->rflags & ~mask) | (image & mask);
    vcpu->gpr[GPR_RSP] = stack_pointer(&stack, vcpu->gpr[GPR_RSP], stack.sp + 3 * operand_size);
    cpu_mode_changed(vcpu);
    return CPU_OK;
}

/* Back into vm86 mode: EIP CS EFLAGS ESP SS ES DS FS GS. */
static int iret_to_vm86(struct vcpu *vcpu, const struct stack *stack) {
    static const uint8_t order[] = {SEG_SS, SEG_ES, SEG_DS, SEG_FS, SEG_GS};
    uint64_t word[9];
    int result = pop_words(vcpu, stack, 4, 0, 9, word);
    if (result)
        return result;
    if (word[0] > 0xffff)
        return cpu_fault(vcpu, VECTOR_GP, 0);
    uint64_t mask = FLAGS_ALWAYS | FLAGS_WIDE | FLAG_IF | FLAG_IOPL | FLAG_VM | FLAG_VIF | FLAG_VIP;
    vcpu->segment[SEG_CS] = segment_vm86((uint16_t)word[1]);
    for (unsigned i = 0; i < ARRAY_SIZE(order); i++)
        vcpu->segment[order[i]] = segment_vm86((uint16_t)word[4 + i]);
    vcpu->rip = word[0];
    vcpu->rflags = (vcpu->rflags & ~mask) | (word[2] & mask);
    vcpu->gpr[GPR_RSP] = word[3];
    vcpu->cpl = 3;
    cpu_mode_changed(vcpu);
    return CPU_OK;
}

/* The instruction after an IRET at rip: only a task switch needs to know. */
static uint64_t iret_end(struct vcpu *vcpu) {
    uint8_t bytes[INSTRUCTION_MAX];
    struct exception before = vcpu->exception;
    unsigned length =
        vmem_fetch(vcpu, (uint32_t)(vcpu->segment[SEG_CS].base + vcpu->rip), bytes, sizeof bytes);
    vcpu->exception = before;
    for (unsigned i = 0; i < length; i++)
        if (bytes[i] == OPCODE_IRET)
            return vcpu->rip + i + 1;
    return vcpu->rip + 1;
}

static int iret_task(struct vcpu *vcpu) {
    uint16_t link;
    int result = vmem_read_u16(vcpu, (uint32_t)vcpu->tr.base, &link, AS_SYSTEM);
    if (result)
        return result;
    return task_switch(vcpu,
                       &(struct task_transfer){
                           .selector = link, .why = TASK_IRET, .rip = iret_end(vcpu), .flags = vcpu->rflags});
}

/* Protected mode: from any code to code of the same or an outer level. */
static int iret_protected(struct vcpu *vcpu, unsigned operand_size) {
    struct stack stack = stack_current(vcpu);
    uint64_t word[5], raw = 0;
    bool was_code64 = cpu_is_code64(vcpu);
    int result = LIKELY(operand_size == 8 && !(vcpu->mode & MODE_AC) && cpu_is_canonical(stack.sp) &&
                        cpu_is_canonical(stack.sp + 39))
                     ? frame_fetch(vcpu, stack.sp, word, 5, AS_CURRENT)
                     : pop_words(vcpu, &stack, operand_size, 0, was_code64 ? 5 : 3, word);
    if (result)
        return result;
    if (word[2] & FLAG_VM && operand_size == 4 && vcpu->cpl == 0 && !cpu_is_long(vcpu))
        return iret_to_vm86(vcpu, &stack);
    uint16_t selector = (uint16_t)word[1];
    unsigned rpl = selector & SELECTOR_RPL;
    result = transfer_check_return(vcpu, selector, &raw);
    if (result)
        return result;
    bool outer = rpl > vcpu->cpl, is_code64 = transfer_is_code64(vcpu, raw), with_stack = outer || was_code64;
    struct segment ss;
    if (with_stack) {
        if (!was_code64)
            result = pop_words(vcpu, &stack, operand_size, 3, 2, word + 3);
        if (!result)
            result = transfer_check_return_stack(vcpu, (uint16_t)word[4], rpl, is_code64, &ss);
    }
    if (!result)
        result = transfer_check_target(vcpu, raw, word[0]);
    if (result)
        return result;

    vcpu->rflags = flags_after(vcpu, word[2], operand_size);
    vcpu->rip = word[0];
    segment_set(&vcpu->segment[SEG_CS], selector, raw);
    if (with_stack) {
        segment_copy(&vcpu->segment[SEG_SS], &ss);
        if (is_code64)
            vcpu->gpr[GPR_RSP] = word[3];
        else if (!(ss.attributes & SEG_DB)) /* the upper half stays: Linux knows it as espfix */
            vcpu->gpr[GPR_RSP] = (vcpu->gpr[GPR_RSP] & ~0xffffull) | (word[3] & 0xffff);
        else
            vcpu->gpr[GPR_RSP] = (uint32_t)word[3];
    } else {
        vcpu->gpr[GPR_RSP] = stack_pointer(&stack, vcpu->gpr[GPR_RSP], stack.sp + 3 * operand_size);
    }
    if (outer) {
        vcpu->cpl = (uint8_t)rpl;
        segment_drop_inner(vcpu, rpl);
    }
    if (LIKELY(was_code64 && is_code64))
        mode_changed_in_64(vcpu);
    else
        cpu_mode_changed(vcpu);
    return CPU_OK;
}

int cpu_iret(struct vcpu *vcpu, unsigned operand_size) {
    int result;
    if (UNLIKELY(vcpu->nmi_blocked)) { /* even when it faults: SDM vol. 3, 6.7.1 */
        vcpu->nmi_blocked = 0;
        __atomic_fetch_and(&vcpu->nmis, ~NMI_IN_SERVICE, __ATOMIC_SEQ_CST);
    }
    if (UNLIKELY(!(vcpu->cr0 & CR0_PE)))
        result = iret_real(vcpu, operand_size);
    else if (UNLIKELY(vcpu->rflags & FLAG_VM))
        result = iret_vm86(vcpu, operand_size);
    else if (UNLIKELY(vcpu->rflags & FLAG_NT))
        result = cpu_is_long(vcpu) ? cpu_fault(vcpu, VECTOR_GP, 0) : iret_task(vcpu);
    else
        result = iret_protected(vcpu, operand_size);
    if (!result)
        vcpu->irq_shadow = 0;
    return result;
}
