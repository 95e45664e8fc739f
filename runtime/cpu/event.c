/* Events through the IVT of real mode, through the 16- and 32-bit IDT, and software interrupts of vm86 mode
 * (SDM vol. 3, 6.12, 20.1.4, 20.3; vol. 2, INT n). Registers change only after the last thing that can fault.
 */
#include "cpu/event.h"
#include "cpu/task.h"
#include "cpu/transfer.h"

static uint32_t gate_error(const struct event *event) {
    return event->vector * 8u | 2u | event->ext;
}

/* The 16-bit interrupt of real mode, and of vm86 mode where VME redirects it. */
static int deliver_by_vector(struct vcpu *vcpu, const struct event *event, uint64_t table, uint32_t limit,
                             uint64_t flags) {
    uint32_t entry;
    uint32_t offset = event->vector * 4u;
    if (offset + 3 > limit)
        return cpu_fault(vcpu, VECTOR_GP, gate_error(event));
    int result = vmem_read_u32(vcpu, (uint32_t)(table + offset), &entry, AS_SYSTEM);
    if (result)
        return result;
    struct stack stack = stack_current(vcpu);
    uint16_t selector = (uint16_t)(entry >> 16), target = (uint16_t)entry;
    uint16_t frame[3] = {(uint16_t)event->rip, vcpu->segment[SEG_CS].selector, (uint16_t)flags};
    if (target > vcpu->segment[SEG_CS].limit)
        return cpu_fault(vcpu, VECTOR_GP, 0);
    result = stack_store(vcpu, &stack, frame, sizeof frame, 2);
    if (result)
        return result;
    vcpu->gpr[GPR_RSP] = stack_pointer(&stack, vcpu->gpr[GPR_RSP], stack.sp - sizeof frame);
    transfer_load_real_cs(vcpu, selector);
    vcpu->rip = target;
    return CPU_OK;
}

static int deliver_real(struct vcpu *vcpu, const struct event *event) {
    int result = deliver_by_vector(vcpu, event, vcpu->idtr.base, vcpu->idtr.limit, event->flags);
    if (result)
        return result;
    vcpu->rflags &= ~(uint64_t)(FLAG_IF | FLAG_TF | FLAG_AC | FLAG_RF);
    cpu_mode_changed(vcpu);
    return CPU_OK;
}

/* CR4.VME: the redirection bit of INT n in the TSS; set also where the map is not there. */
static int redirection_bit(struct vcpu *vcpu, uint8_t vector, bool *set) {
    uint16_t map;
    uint8_t byte;
    *set = true;
    if (vcpu->tr.limit < 103)
        return CPU_OK;
    int result = vmem_read_u16(vcpu, (uint32_t)(vcpu->tr.base + 102), &map, AS_SYSTEM);
    if (result)
        return result;
    uint32_t offset = map - 32u + vector / 8;
    if (map < 32 || offset > vcpu->tr.limit)
        return CPU_OK;
    result = vmem_read(vcpu, (uint32_t)(vcpu->tr.base + offset), &byte, 1, AS_SYSTEM);
    if (!result)
        *set = byte >> (vector & 7) & 1;
    return result;
}

/* INT n of vm86 mode: SDM vol. 3, table 20-2. *handled: nothing is left for the IDT to do. */
static int deliver_vm86(struct vcpu *vcpu, const struct event *event, bool *handled) {
    bool iopl3 = (vcpu->rflags & FLAG_IOPL) == FLAG_IOPL, to_idt = true;
    *handled = false;
    if (vcpu->cr4 & CR4_VME) {
        int result = redirection_bit(vcpu, event->vector, &to_idt);
        if (result)
            return result;
    }
    if (to_idt)
        return iopl3 ? CPU_OK : cpu_fault(vcpu, VECTOR_GP, 0);
    uint64_t flags = event->flags;
    if (!iopl3)
        flags = (flags & ~(uint64_t)FLAG_IF) | FLAG_IOPL | (flags & FLAG_VIF ? FLAG_IF : 0);
    int result = deliver_by_vector(vcpu, event, 0, 0xffff, flags);
    if (result)
        return result;
    vcpu->rflags &= ~(uint64_t)(FLAG_TF | FLAG_NT | FLAG_RF | (iopl3 ? FLAG_IF : FLAG_VIF));
    cpu_mode_changed(vcpu);
    *handled = true;
    return CPU_OK;
}

struct gate {
    uint32_t target;
    uint16_t selector;
    bool is_32, is_interrupt;
};

/* Push the frame in words of the gate's size. From high to low: GS FS DS ES (vm86 only), SS SP (inner only),
 * FLAGS CS IP, error code. */
static int frame_push(struct vcpu *vcpu, struct stack *stack, const struct event *event, bool is_32,
                      bool with_stack) {
    uint32_t word[10];
    uint16_t half[10];
    unsigned count = 0;
    if (event->has_error)
        word[count++] = event->error;
    word[count++] = (uint32_t)event->rip;
    word[count++] = vcpu->segment[SEG_CS].selector;
    word[count++] = (uint32_t)event->flags;
    if (with_stack) {
        word[count++] = (uint32_t)vcpu->gpr[GPR_RSP];
        word[count++] = vcpu->segment[SEG_SS].selector;
    }
    if (vcpu->rflags & FLAG_VM) {
        word[count++] = vcpu->segment[SEG_ES].selector;
        word[count++] = vcpu->segment[SEG_DS].selector;
        word[count++] = vcpu->segment[SEG_FS].selector;
        word[count++] = vcpu->segment[SEG_GS].selector;
    }
    unsigned size = count * 4;
    const void *frame = word;
    if (!is_32) {
        for (unsigned i = 0; i < count; i++)
            half[i] = (uint16_t)word[i];
        size = count * 2;
        frame = half;
    }
    int result = stack_store(vcpu, stack, frame, size, is_32 ? 4 : 2);
    stack->sp = (stack->sp - size) & stack->mask;
    return result;
}

static int pass_gate(struct vcpu *vcpu, const struct event *event, const struct gate *gate) {
    uint64_t raw = 0;
    bool from_vm86 = vcpu->rflags & FLAG_VM;
    if (selector_is_null(gate->selector))
        return cpu_fault(vcpu, VECTOR_GP, event->ext);
    int result = descriptor_read(vcpu, gate->selector, VECTOR_GP, event->ext, &raw);
    if (result)
        return result;
    unsigned cpl = descriptor_is_conforming(raw) ? vcpu->cpl : descriptor_dpl(raw);
    bool inner = cpl < vcpu->cpl;
    if (!descriptor_is_code(raw) || descriptor_dpl(raw) > vcpu->cpl || (from_vm86 && cpl != 0))
        return cpu_fault(vcpu, VECTOR_GP, selector_error(gate->selector, event->ext));
    if (!descriptor_present(raw))
        return cpu_fault(vcpu, VECTOR_NP, selector_error(gate->selector, event->ext));
    struct stack stack = stack_current(vcpu);
    stack.error = event->ext;
    if (inner) {
        result = task_inner_stack(vcpu, cpl, event->ext, &stack);
        if (result)
            return result;
    }
    if (gate->target > descriptor_limit(raw))
        return cpu_fault(vcpu, VECTOR_GP, event->ext);
    result = descriptor_set_accessed(vcpu, gate->selector, &raw);
    if (!result)
        result = frame_push(vcpu, &stack, event, gate->is_32, inner);
    if (result)
        return result;

    if (inner)
        vcpu->segment[SEG_SS] = stack.ss;
    vcpu->gpr[GPR_RSP] = stack_pointer(&stack, vcpu->gpr[GPR_RSP], stack.sp);
    if (from_vm86)
        vcpu->segment[SEG_ES] = vcpu->segment[SEG_DS] = vcpu->segment[SEG_FS] = vcpu->segment[SEG_GS] =
            segment_null(0);
    segment_set(&vcpu->segment[SEG_CS], selector_with_rpl(gate->selector, cpl), raw);
    vcpu->cpl = (uint8_t)cpl;
    vcpu->rip = gate->target;
    vcpu->rflags &= ~(uint64_t)(FLAG_TF | FLAG_NT | FLAG_RF | FLAG_VM | (gate->is_interrupt ? FLAG_IF : 0));
    cpu_mode_changed(vcpu);
    return CPU_OK;
}

static int deliver_protected(struct vcpu *vcpu, const struct event *event) {
    uint64_t raw;
    uint32_t offset = event->vector * 8u;
    if (offset + 7 > vcpu->idtr.limit)
        return cpu_fault(vcpu, VECTOR_GP, gate_error(event));
    int result = vmem_read_u64(vcpu, (uint32_t)(vcpu->idtr.base + offset), &raw, AS_SYSTEM);
    if (result)
        return result;
    unsigned type = raw >> 40 & 0x1f;
    struct gate gate = {.target = (uint32_t)((raw & 0xffff) | (raw >> 32 & 0xffff0000)),
                        .selector = (uint16_t)(raw >> 16),
                        .is_32 = true};
    switch (type) {
    case TYPE_TASK_GATE:
        break;
    case TYPE_INTERRUPT_GATE16:
    case TYPE_TRAP_GATE16:
        gate.is_32 = false;
        gate.target &= 0xffff;
        break;
    case TYPE_INTERRUPT_GATE:
    case TYPE_TRAP_GATE:
        break;
    default:
        return cpu_fault(vcpu, VECTOR_GP, gate_error(event));
    }
    if (event->is_software && descriptor_dpl(raw) < vcpu->cpl)
        return cpu_fault(vcpu, VECTOR_GP, gate_error(event));
    if (!descriptor_present(raw))
        return cpu_fault(vcpu, VECTOR_NP, gate_error(event));
    if (type == TYPE_TASK_GATE)
        return task_switch(vcpu, &(struct task_transfer){.selector = gate.selector,
                                                         .why = TASK_GATE,
                                                         .ext = event->ext,
                                                         .has_error = event->has_error,
                                                         .error = event->error,
                                                         .rip = event->rip,
                                                         .flags = event->flags});
    gate.is_interrupt = type == TYPE_INTERRUPT_GATE || type == TYPE_INTERRUPT_GATE16;
    return pass_gate(vcpu, event, &gate);
}

int event_deliver(struct vcpu *vcpu, const struct event *event) {
    if (LIKELY(cpu_is_long(vcpu)))
        return event_deliver_long(vcpu, event);
    if (!(vcpu->cr0 & CR0_PE))
        return deliver_real(vcpu, event);
    if (vcpu->rflags & FLAG_VM && event->is_int_n) {
        bool handled;
        int result = deliver_vm86(vcpu, event, &handled);
        if (result || handled)
            return result;
    }
    return deliver_protected(vcpu, event);
}
