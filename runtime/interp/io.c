/* Port input and output. Permission first (SDM vol. 1, 19.5), then memory, then the port. */
#include "interp/flags.h"
#include "interp/memory.h"
#include "interp/string.h"

static int check_port(struct vcpu *vcpu, uint16_t port, unsigned size) {
    int result = cpu_check_io(vcpu, port, size);
    if (!result && vcpu->mode & MODE_STEP)
        vcpu->interp->pending_dr6 |= cpu_io_breakpoint(vcpu, port, size);
    return result;
}

static uint16_t operand_port(const struct vcpu *vcpu, const struct operand *op) {
    return op->kind == OPERAND_IMMEDIATE ? (uint8_t)op->immediate : (uint16_t)vcpu->gpr[GPR_RDX];
}

int in_execute(struct vcpu *vcpu, struct decoded *d) {
    uint16_t port = operand_port(vcpu, &d->op[1]);
    unsigned size = d->op[0].size;
    int result = check_port(vcpu, port, size);
    if (!result)
        gpr_put(vcpu, GPR_RAX, size, vcpu->env->pio_read(vcpu->env->context, port, size));
    return result;
}

int out_execute(struct vcpu *vcpu, struct decoded *d) {
    uint16_t port = operand_port(vcpu, &d->op[0]);
    unsigned size = d->op[1].size;
    int result = check_port(vcpu, port, size);
    if (!result)
        vcpu->env->pio_write(vcpu->env->context, port, size,
                             (uint32_t)(vcpu->gpr[GPR_RAX] & size_mask(size)));
    return result;
}

static int ins_iteration(struct vcpu *vcpu, struct decoded *d, uint16_t port, unsigned size) {
    uint64_t linear;
    int result = memory_linear(vcpu, SEG_ES, vcpu->gpr[GPR_RDI] & d->address_mask, size, VMEM_WRITE, &linear);
    if (!result)
        result = vmem_probe(vcpu, linear, size, VMEM_WRITE, AS_CURRENT);
    if (result)
        return result;
    uint32_t value = vcpu->env->pio_read(vcpu->env->context, port, size);
    result = vmem_write(vcpu, linear, &value, size, AS_CURRENT);
    if (!result)
        string_advance(vcpu, d, GPR_RDI, size);
    return result;
}

static int outs_iteration(struct vcpu *vcpu, struct decoded *d, uint16_t port, unsigned size) {
    uint64_t value;
    int result =
        memory_read(vcpu, string_source_segment(d), vcpu->gpr[GPR_RSI] & d->address_mask, size, &value);
    if (result)
        return result;
    vcpu->env->pio_write(vcpu->env->context, port, size, (uint32_t)value);
    string_advance(vcpu, d, GPR_RSI, size);
    return CPU_OK;
}

int io_string_execute(struct vcpu *vcpu, struct decoded *d) {
    bool input = (d->insn.z.opcode & ~1) == 0x6c;
    unsigned size = !(d->insn.z.opcode & 1) ? 1 : d->operand_size == 2 ? 2 : 4;
    uint16_t port = (uint16_t)vcpu->gpr[GPR_RDX];
    bool repeat = string_repeat_prefix(d);
    uint64_t budget = vcpu->interp->repeat_limit;
    /* The right to the port is looked at even when there is nothing to do. */
    int result = check_port(vcpu, port, size);
    if (!result && repeat && !(vcpu->gpr[GPR_RCX] & d->address_mask))
        return CPU_OK;
    if (result || !repeat)
        return result ? result
                      : (input ? ins_iteration(vcpu, d, port, size) : outs_iteration(vcpu, d, port, size));
    while (vcpu->gpr[GPR_RCX] & d->address_mask) {
        if (!budget--)
            return STEP_REPEAT;
        result = input ? ins_iteration(vcpu, d, port, size) : outs_iteration(vcpu, d, port, size);
        if (result)
            return result;
        gpr_put(vcpu, GPR_RCX, d->address_size, (vcpu->gpr[GPR_RCX] & d->address_mask) - 1);
    }
    return CPU_OK;
}
