/* Transfers of control. */
#include "interp/flags.h"
#include "interp/memory.h"

/* In 64-bit code an operand-size prefix makes 16 bits on AMD's processors and nothing on Intel's: the decoder
 * knows. */
static unsigned branch_size(const struct decoded *d) {
    return d->code_size == 64 && d->operand_size != 2 ? 8 : d->operand_size;
}

static int check_target(struct vcpu *vcpu, uint64_t target) {
    bool ok = cpu_is_code64(vcpu) ? cpu_is_canonical(target) : target <= vcpu->segment[SEG_CS].limit;
    return LIKELY(ok) ? CPU_OK : fault_gp(vcpu);
}

static int jump_near(struct vcpu *vcpu, uint64_t target) {
    int result = check_target(vcpu, target);
    if (UNLIKELY(result))
        return result;
    vcpu->rip = target;
    return STEP_JUMPED;
}

static uint64_t relative_target(const struct vcpu *vcpu, const struct decoded *d) {
    return (vcpu->interp->next + d->op[0].immediate) & size_mask(branch_size(d));
}

int jcc_execute(struct vcpu *vcpu, struct decoded *d) {
    if (!flags_condition(vcpu->rflags, d->insn.z.opcode & 15))
        return CPU_OK;
    return jump_near(vcpu, relative_target(vcpu, d));
}

int jcxz_execute(struct vcpu *vcpu, struct decoded *d) {
    if (vcpu->gpr[GPR_RCX] & d->address_mask)
        return CPU_OK;
    return jump_near(vcpu, relative_target(vcpu, d));
}

/* LOOP, LOOPE, LOOPNE. */
int loop_execute(struct vcpu *vcpu, struct decoded *d) {
    uint64_t count = (vcpu->gpr[GPR_RCX] - 1) & d->address_mask;
    bool zero = vcpu->rflags & FLAG_ZF, taken = count != 0;
    if (d->insn.z.mnemonic == ZYDIS_MNEMONIC_LOOPE)
        taken = taken && zero;
    else if (d->insn.z.mnemonic == ZYDIS_MNEMONIC_LOOPNE)
        taken = taken && !zero;
    int result = taken ? jump_near(vcpu, relative_target(vcpu, d)) : CPU_OK;
    if (result != CPU_FAULT)
        gpr_put(vcpu, GPR_RCX, d->address_size, count);
    return result;
}

static bool is_far(const struct decoded *d) {
    return d->insn.z.meta.branch_type == ZYDIS_BRANCH_TYPE_FAR || (d->insn.z.opcode & ~1) == 0xca;
}

/* The selector and offset that a far JMP or CALL names. */
static int far_target(struct vcpu *vcpu, struct decoded *d, uint16_t *selector, uint64_t *offset) {
    const ZydisDecodedOperand *op = &d->insn.op[0];
    if (op->type == ZYDIS_OPERAND_TYPE_POINTER) {
        *selector = op->ptr.segment;
        *offset = op->ptr.offset & size_mask(d->operand_size);
        return CPU_OK;
    }
    uint64_t address = address_compute(vcpu, d), value;
    int result = memory_read(vcpu, d->segment, address, d->operand_size, offset);
    if (!result)
        result = memory_read(vcpu, d->segment, (address + d->operand_size) & d->address_mask, 2, &value);
    if (!result)
        *selector = (uint16_t)value;
    return result;
}

static int near_target(struct vcpu *vcpu, struct decoded *d, uint64_t *target) {
    if (d->op[0].kind == OPERAND_IMMEDIATE) {
        *target = relative_target(vcpu, d);
        return CPU_OK;
    }
    int result = operand_read(vcpu, d, 0, target);
    if (!result)
        *target &= size_mask(branch_size(d));
    return result;
}

static int jumped(int result) {
    return result ? result : STEP_JUMPED;
}

int jmp_execute(struct vcpu *vcpu, struct decoded *d) {
    uint64_t target;
    if (is_far(d)) {
        uint16_t selector;
        int result = far_target(vcpu, d, &selector, &target);
        if (result)
            return result;
        return jumped(cpu_far_jump(vcpu, selector, target, d->operand_size, vcpu->interp->next));
    }
    int result = near_target(vcpu, d, &target);
    return result ? result : jump_near(vcpu, target);
}

int call_execute(struct vcpu *vcpu, struct decoded *d) {
    uint64_t target;
    if (is_far(d)) {
        uint16_t selector;
        int result = far_target(vcpu, d, &selector, &target);
        if (result)
            return result;
        return jumped(cpu_far_call(vcpu, selector, target, d->operand_size, vcpu->interp->next));
    }
    int result = near_target(vcpu, d, &target);
    if (!result)
        result = check_target(vcpu, target);
    if (!result)
        result = stack_push(vcpu, vcpu->interp->next, branch_size(d));
    if (result)
        return result;
    vcpu->rip = target;
    return STEP_JUMPED;
}

int ret_execute(struct vcpu *vcpu, struct decoded *d) {
    uint16_t release = d->op[0].kind == OPERAND_IMMEDIATE ? (uint16_t)d->op[0].immediate : 0;
    if (is_far(d))
        return jumped(cpu_far_return(vcpu, d->operand_size, release));
    uint64_t target;
    unsigned size = branch_size(d);
    int result = stack_peek(vcpu, 0, size, &target);
    if (!result)
        result = check_target(vcpu, target);
    if (result)
        return result;
    stack_release(vcpu, size + release);
    vcpu->rip = target;
    return STEP_JUMPED;
}

int int_execute(struct vcpu *vcpu, struct decoded *d) {
    return jumped(cpu_software_interrupt(vcpu, (uint8_t)d->op[0].immediate, vcpu->interp->next, true));
}

int int3_execute(struct vcpu *vcpu, struct decoded *d) {
    (void)d;
    return jumped(cpu_software_interrupt(vcpu, VECTOR_BP, vcpu->interp->next, false));
}

int into_execute(struct vcpu *vcpu, struct decoded *d) {
    (void)d;
    if (!(vcpu->rflags & FLAG_OF)) {
        vcpu->interp->last = NULL; /* it is no software interrupt: a trap may follow */
        return CPU_OK;
    }
    return jumped(cpu_software_interrupt(vcpu, VECTOR_OF, vcpu->interp->next, false));
}

int icebp_execute(struct vcpu *vcpu, struct decoded *d) {
    (void)d;
    return jumped(cpu_icebp(vcpu, vcpu->interp->next));
}

int iret_execute(struct vcpu *vcpu, struct decoded *d) {
    return jumped(cpu_iret(vcpu, d->operand_size));
}

int syscall_execute(struct vcpu *vcpu, struct decoded *d) {
    (void)d;
    return jumped(cpu_syscall(vcpu, vcpu->interp->next));
}

int sysret_execute(struct vcpu *vcpu, struct decoded *d) {
    return jumped(cpu_sysret(vcpu, d->insn.z.raw.rex.W ? 8 : 4));
}

int sysenter_execute(struct vcpu *vcpu, struct decoded *d) {
    (void)d;
    return jumped(cpu_sysenter(vcpu));
}

int sysexit_execute(struct vcpu *vcpu, struct decoded *d) {
    return jumped(cpu_sysexit(vcpu, d->insn.z.raw.rex.W ? 8 : 4));
}
