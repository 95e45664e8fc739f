/* Events through the 64-bit IDT (SDM vol. 3, 6.14). The frame is built whole and stored in one go after the
 * last check, so a fault on the way leaves every register as it was. This is the path of every page fault and
 * interrupt of a 64-bit kernel: no generic machinery in it. */
#include "cpu/event.h"
#include "cpu/mode_switch.h"
#include "cpu/task.h"

#define GATE_SIZE 16u
#define GATE_IST_MASK 7u

static uint32_t gate_error(const struct event *event) {
    return event->vector * 8u | 2u | event->ext;
}

struct long_gate {
    uint64_t target;
    uint16_t selector;
    unsigned ist;
    bool is_interrupt; /* clears IF */
};

static int gate_read(struct vcpu *vcpu, const struct event *event, struct long_gate *gate) {
    uint64_t words[2];
    uint32_t offset = event->vector * GATE_SIZE;
    if (offset + GATE_SIZE - 1 > vcpu->idtr.limit)
        return cpu_fault(vcpu, VECTOR_GP, gate_error(event));
    int result = table_read_u64(vcpu, vcpu->idtr.base + offset, &words[0]);
    if (!result)
        result = table_read_u64(vcpu, vcpu->idtr.base + offset + 8, &words[1]);
    if (result)
        return result;
    unsigned type = words[0] >> 40 & 0x1f; /* with S, which must be clear */
    if ((type != TYPE_INTERRUPT_GATE && type != TYPE_TRAP_GATE) || words[1] >> 40 & 0x1f ||
        (event->is_software && descriptor_dpl(words[0]) < vcpu->cpl))
        return cpu_fault(vcpu, VECTOR_GP, gate_error(event));
    if (!descriptor_present(words[0]))
        return cpu_fault(vcpu, VECTOR_NP, gate_error(event));
    gate->target = (words[0] & 0xffff) | (words[0] >> 32 & 0xffff0000) | words[1] << 32;
    gate->selector = (uint16_t)(words[0] >> 16);
    gate->ist = words[0] >> 32 & GATE_IST_MASK;
    gate->is_interrupt = type == TYPE_INTERRUPT_GATE;
    return CPU_OK;
}

static int code_segment_read(struct vcpu *vcpu, uint16_t selector, unsigned ext, uint64_t *raw) {
    if (selector_is_null(selector))
        return cpu_fault(vcpu, VECTOR_GP, ext);
    int result = descriptor_read(vcpu, selector, VECTOR_GP, ext, raw);
    if (result)
        return result;
    uint32_t attributes = descriptor_attributes(*raw);
    if (!descriptor_is_code(*raw) || descriptor_dpl(*raw) > vcpu->cpl ||
        (attributes & (SEG_L | SEG_DB)) != SEG_L)
        return cpu_fault(vcpu, VECTOR_GP, selector_error(selector, ext));
    if (!(attributes & SEG_P))
        return cpu_fault(vcpu, VECTOR_NP, selector_error(selector, ext));
    return CPU_OK;
}

int event_deliver_long(struct vcpu *vcpu, const struct event *event) {
    struct long_gate gate = {0};
    uint64_t raw = 0;
    int result = gate_read(vcpu, event, &gate);
    if (!result)
        result = code_segment_read(vcpu, gate.selector, event->ext, &raw);
    if (result)
        return result;
    unsigned cpl = descriptor_is_conforming(raw) ? vcpu->cpl : descriptor_dpl(raw);
    bool inner = cpl < vcpu->cpl;
    uint64_t rsp = vcpu->gpr[GPR_RSP];
    if (inner || gate.ist) {
        result = task_inner_rsp(vcpu, cpl, gate.ist, event->ext, &rsp);
        if (result)
            return result;
    }
    if (!cpu_is_canonical(gate.target))
        return cpu_fault(vcpu, VECTOR_GP, event->ext);
    /* [error] RIP CS RFLAGS RSP SS, lowest first */
    uint64_t frame[6] = {event->error, event->rip,         vcpu->segment[SEG_CS].selector,
                         event->flags, vcpu->gpr[GPR_RSP], vcpu->segment[SEG_SS].selector};
    unsigned skip = event->has_error ? 0 : 1, count = 6 - skip;
    rsp = (rsp & ~15ull) - count * 8;
    if (!cpu_is_canonical(rsp) || !cpu_is_canonical(rsp + count * 8 - 1))
        return cpu_fault(vcpu, VECTOR_SS, event->ext);
    result = descriptor_set_accessed(vcpu, gate.selector, &raw);
    if (!result)
        result = frame_store(vcpu, rsp, frame + skip, count, inner ? AS_SYSTEM : AS_CURRENT);
    if (result)
        return result;

    bool was_code64 = cpu_is_code64(vcpu);
    segment_set(&vcpu->segment[SEG_CS], selector_with_rpl(gate.selector, cpl), raw);
    if (inner)
        segment_set_null_stack(&vcpu->segment[SEG_SS], cpl);
    vcpu->cpl = (uint8_t)cpl;
    vcpu->gpr[GPR_RSP] = rsp;
    vcpu->rip = gate.target;
    vcpu->rflags &= ~(uint64_t)(FLAG_TF | FLAG_NT | FLAG_RF | FLAG_VM | (gate.is_interrupt ? FLAG_IF : 0));
    if (LIKELY(was_code64))
        mode_changed_in_64(vcpu);
    else
        cpu_mode_changed(vcpu);
    return CPU_OK;
}
