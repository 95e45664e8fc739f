/* System instructions: privilege, operands, and the call into runtime/cpu that does them. */
#include "cpu/kvm_pv.h"
#include "cpu/model.h"
#include "interp/flags.h"
#include "interp/memory.h"

static bool not_kernel(const struct vcpu *vcpu) {
    return vcpu->cpl != 0;
}

int hlt_execute(struct vcpu *vcpu, struct decoded *d) {
    (void)d;
    return not_kernel(vcpu) ? fault_gp(vcpu) : cpu_hlt(vcpu);
}

/* LGDT, LIDT. */
int descriptor_table_load_execute(struct vcpu *vcpu, struct decoded *d) {
    bool wide = cpu_is_code64(vcpu);
    uint64_t address = address_compute(vcpu, d), limit, base;
    if (not_kernel(vcpu))
        return fault_gp(vcpu);
    int result = memory_read(vcpu, d->segment, address, 2, &limit);
    if (!result)
        result = memory_read(vcpu, d->segment, (address + 2) & d->address_mask, wide ? 8 : 4, &base);
    if (result)
        return result;
    if (wide && !cpu_is_canonical(base))
        return fault_gp(vcpu);
    if (!wide && d->operand_size == 2)
        base &= 0xffffff;
    struct descriptor_table *table = d->insn.z.mnemonic == ZYDIS_MNEMONIC_LGDT ? &vcpu->gdtr : &vcpu->idtr;
    *table = (struct descriptor_table){.base = base, .limit = (uint16_t)limit};
    vcpu->crossing_changed = 1;
    return CPU_OK;
}

/* SGDT, SIDT. */
int descriptor_table_store_execute(struct vcpu *vcpu, struct decoded *d) {
    bool wide = cpu_is_code64(vcpu);
    const struct descriptor_table *table =
        d->insn.z.mnemonic == ZYDIS_MNEMONIC_SGDT ? &vcpu->gdtr : &vcpu->idtr;
    uint64_t address = address_compute(vcpu, d), linear;
    if (vcpu->mode & MODE_UMIP)
        return fault_gp(vcpu);
    uint8_t image[10];
    memcpy(image, &table->limit, 2);
    memcpy(image + 2, &table->base, 8);
    unsigned size = wide ? 10 : 6;
    int result = memory_linear_aligned(vcpu, d->segment, address, size, 4, VMEM_WRITE, &linear);
    return result ? result : vmem_write(vcpu, linear, image, size, AS_CURRENT);
}

/* Store a word-sized system value: 16 bits to memory, the operand size to a register. */
static int store_word(struct vcpu *vcpu, struct decoded *d, uint64_t value) {
    if (d->op[0].kind == OPERAND_MEMORY)
        return memory_write(vcpu, d->segment, address_compute(vcpu, d), 2, value);
    gpr_set(vcpu, &d->op[0], value);
    return CPU_OK;
}

/* SLDT, STR. */
int selector_store_execute(struct vcpu *vcpu, struct decoded *d) {
    if (!(vcpu->mode & MODE_PROTECTED))
        return fault_ud(vcpu);
    if (vcpu->mode & MODE_UMIP)
        return fault_gp(vcpu);
    return store_word(vcpu, d,
                      d->insn.z.mnemonic == ZYDIS_MNEMONIC_STR ? vcpu->tr.selector : vcpu->ldtr.selector);
}

int smsw_execute(struct vcpu *vcpu, struct decoded *d) {
    return vcpu->mode & MODE_UMIP ? fault_gp(vcpu) : store_word(vcpu, d, vcpu->cr0);
}

static int read_word(struct vcpu *vcpu, struct decoded *d, uint16_t *value) {
    uint64_t word;
    int result;
    if (d->op[0].kind == OPERAND_MEMORY) {
        result = memory_read(vcpu, d->segment, address_compute(vcpu, d), 2, &word);
    } else {
        word = vcpu->gpr[d->op[0].gpr];
        result = CPU_OK;
    }
    *value = (uint16_t)word;
    return result;
}

int lmsw_execute(struct vcpu *vcpu, struct decoded *d) {
    uint16_t value;
    if (not_kernel(vcpu))
        return fault_gp(vcpu);
    int result = read_word(vcpu, d, &value);
    return result ? result : cpu_lmsw(vcpu, value);
}

static int load_system_segment(struct vcpu *vcpu, struct decoded *d, bool task) {
    uint16_t selector;
    if (!(vcpu->mode & MODE_PROTECTED))
        return fault_ud(vcpu);
    if (not_kernel(vcpu))
        return fault_gp(vcpu);
    int result = read_word(vcpu, d, &selector);
    if (result)
        return result;
    return task ? cpu_ltr(vcpu, selector) : cpu_lldt(vcpu, selector);
}

int lldt_execute(struct vcpu *vcpu, struct decoded *d) {
    return load_system_segment(vcpu, d, false);
}

int ltr_execute(struct vcpu *vcpu, struct decoded *d) {
    return load_system_segment(vcpu, d, true);
}

/* LAR, LSL. */
int lar_execute(struct vcpu *vcpu, struct decoded *d) {
    uint64_t selector;
    uint32_t value = 0;
    bool ok = false;
    if (!(vcpu->mode & MODE_PROTECTED))
        return fault_ud(vcpu);
    int result = CPU_OK;
    if (d->op[1].kind == OPERAND_MEMORY)
        result = memory_read(vcpu, d->segment, address_compute(vcpu, d), 2, &selector);
    else
        selector = vcpu->gpr[d->op[1].gpr];
    if (!result)
        result = d->insn.z.mnemonic == ZYDIS_MNEMONIC_LAR ? cpu_lar(vcpu, (uint16_t)selector, &value, &ok)
                                                          : cpu_lsl(vcpu, (uint16_t)selector, &value, &ok);
    if (result)
        return result;
    if (ok)
        gpr_set(vcpu, &d->op[0], value);
    flags_set(vcpu, ok ? FLAG_ZF : 0, FLAG_ZF);
    return CPU_OK;
}

/* VERR, VERW. */
int verify_execute(struct vcpu *vcpu, struct decoded *d) {
    uint16_t selector;
    bool ok = false;
    if (!(vcpu->mode & MODE_PROTECTED))
        return fault_ud(vcpu);
    int result = read_word(vcpu, d, &selector);
    if (!result)
        result = cpu_verify(vcpu, selector, d->insn.z.mnemonic == ZYDIS_MNEMONIC_VERW, &ok);
    if (!result)
        flags_set(vcpu, ok ? FLAG_ZF : 0, FLAG_ZF);
    return result;
}

int clts_execute(struct vcpu *vcpu, struct decoded *d) {
    (void)d;
    return not_kernel(vcpu) ? fault_gp(vcpu) : cpu_clts(vcpu);
}

/* INVLPG takes an address without checking it: one that is not canonical does nothing. */
int invlpg_execute(struct vcpu *vcpu, struct decoded *d) {
    if (not_kernel(vcpu))
        return fault_gp(vcpu);
    uint64_t linear = address_compute(vcpu, d);
    if (cpu_is_code64(vcpu)) {
        if (d->segment >= SEG_FS)
            linear += vcpu->segment[d->segment].base;
        if (!cpu_is_canonical(linear))
            return CPU_OK;
    } else {
        linear = (uint32_t)(linear + vcpu->segment[d->segment].base);
    }
    return cpu_invlpg(vcpu, linear);
}

int invpcid_execute(struct vcpu *vcpu, struct decoded *d) {
    uint64_t descriptor[2], linear;
    if (!(vcpu->model && vcpu->model->has_invpcid))
        return fault_ud(vcpu);
    if (not_kernel(vcpu))
        return fault_gp(vcpu);
    int result = memory_linear(vcpu, d->segment, address_compute(vcpu, d), 16, VMEM_READ, &linear);
    if (!result)
        result = vmem_read(vcpu, linear, descriptor, sizeof descriptor, AS_CURRENT);
    return result ? result : cpu_invpcid(vcpu, gpr_get(vcpu, &d->op[0]), descriptor);
}

/* INVD, WBINVD: guest memory is coherent already. */
int cache_flush_execute(struct vcpu *vcpu, struct decoded *d) {
    (void)d;
    return not_kernel(vcpu) ? fault_gp(vcpu) : CPU_OK;
}

/* CLFLUSH, CLFLUSHOPT, CLWB: the checks of a byte read (SDM vol. 2, CLFLUSH). */
int cache_line_execute(struct vcpu *vcpu, struct decoded *d) {
    uint64_t linear;
    int result = memory_linear(vcpu, d->segment, address_compute(vcpu, d), 1, VMEM_READ, &linear);
    return result ? result : vmem_probe(vcpu, linear, 1, VMEM_READ, AS_CURRENT);
}

int serialize_execute(struct vcpu *vcpu, struct decoded *d) {
    (void)vcpu;
    (void)d;
    __atomic_thread_fence(__ATOMIC_SEQ_CST);
    return CPU_OK;
}

/* VMCALL and VMMCALL under KVM's signature. */
int hypercall_execute(struct vcpu *vcpu, struct decoded *d) {
    (void)d;
    kvm_pv_hypercall(vcpu);
    return CPU_OK;
}

static unsigned control_size(const struct vcpu *vcpu) {
    return cpu_is_code64(vcpu) ? 8 : 4;
}

int mov_control_execute(struct vcpu *vcpu, struct decoded *d) {
    bool load = d->op[1].kind == OPERAND_GPR;
    unsigned n = d->insn.op[load ? 0 : 1].reg.value - ZYDIS_REGISTER_CR0, size = control_size(vcpu);
    unsigned gpr = d->op[load ? 1 : 0].gpr;
    if (n == 1 || (n > 4 && n != 8))
        return fault_ud(vcpu);
    if (not_kernel(vcpu))
        return fault_gp(vcpu);
    if (load)
        return cpu_write_cr(vcpu, n, vcpu->gpr[gpr] & size_mask(size));
    uint64_t value;
    int result = cpu_read_cr(vcpu, n, &value);
    if (!result)
        gpr_put(vcpu, gpr, size, value);
    return result;
}

int mov_debug_execute(struct vcpu *vcpu, struct decoded *d) {
    bool load = d->op[1].kind == OPERAND_GPR;
    unsigned n = d->insn.op[load ? 0 : 1].reg.value - ZYDIS_REGISTER_DR0, size = control_size(vcpu);
    unsigned gpr = d->op[load ? 1 : 0].gpr;
    if (n > 7)
        return fault_ud(vcpu);
    if (not_kernel(vcpu))
        return fault_gp(vcpu);
    if (load)
        return cpu_write_dr(vcpu, n, vcpu->gpr[gpr] & size_mask(size));
    uint64_t value;
    int result = cpu_read_dr(vcpu, n, &value);
    if (!result)
        gpr_put(vcpu, gpr, size, value);
    return result;
}

int cli_execute(struct vcpu *vcpu, struct decoded *d) {
    (void)d;
    return cpu_cli(vcpu);
}

int sti_execute(struct vcpu *vcpu, struct decoded *d) {
    (void)d;
    return cpu_sti(vcpu);
}

/* CLAC, STAC. */
int ac_execute(struct vcpu *vcpu, struct decoded *d) {
    if (not_kernel(vcpu))
        return fault_ud(vcpu);
    if (d->insn.z.mnemonic == ZYDIS_MNEMONIC_STAC)
        vcpu->rflags |= FLAG_AC;
    else
        vcpu->rflags &= ~(uint64_t)FLAG_AC;
    cpu_mode_changed(vcpu);
    return CPU_OK;
}

int swapgs_execute(struct vcpu *vcpu, struct decoded *d) {
    (void)d;
    return not_kernel(vcpu) ? fault_gp(vcpu) : cpu_swapgs(vcpu);
}
