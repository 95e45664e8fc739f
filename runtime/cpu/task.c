/* Task state segments. The switch has two halves: up to the commit point every check and every memory access
 * is made with the old task in place and a fault leaves it so; from there on the vCPU is in the new task,
 * whose segment registers hold bare selectors until their descriptors have been checked. */
#include "cpu/task.h"
#include "cpu/paging.h"

#define TSS16_LIMIT_MIN 0x2bu
#define TSS32_LIMIT_MIN 0x67u
#define TSS_IST 0x24u /* IST1 is at 0x24 */
#define DR6_BT (1ull << 15)
#define DR7_LOCAL 0x155ull
#define FLAGS_VALID 0x3f7fd5u

/* The 32-bit TSS (SDM vol. 3, figure 7-2). */
struct tss32 {
    uint16_t link, reserved0;
    uint32_t stack[6]; /* ESP0 SS0 ESP1 SS1 ESP2 SS2 */
    uint32_t cr3, eip, eflags, gpr[8];
    uint32_t segment[6]; /* ES CS SS DS FS GS */
    uint32_t ldt;
    uint16_t trap, io_map;
};

/* The 16-bit TSS (figure 7-10). */
struct tss16 {
    uint16_t link, stack[6], ip, flags, gpr[8], segment[4], ldt;
};

_Static_assert(sizeof(struct tss32) == TSS32_LIMIT_MIN + 1, "as the SDM lays it out");
_Static_assert(sizeof(struct tss16) == TSS16_LIMIT_MIN + 1, "as the SDM lays it out");

#define TSS32_SAVED offsetof(struct tss32, eip)
#define TSS16_SAVED offsetof(struct tss16, ip)

static bool is_tss16(uint32_t attributes) {
    return (attributes & SEG_TYPE & ~TYPE_BUSY) == TYPE_TSS16;
}

int task_inner_stack(struct vcpu *vcpu, unsigned cpl, unsigned ext, struct stack *stack) {
    bool is_16 = is_tss16(vcpu->tr.attributes);
    uint32_t offset = is_16 ? 2 + cpl * 4 : 4 + cpl * 8, size = is_16 ? 4 : 6;
    uint8_t bytes[8] = {0};
    if (offset + size - 1 > vcpu->tr.limit)
        return cpu_fault(vcpu, VECTOR_TS, selector_error(vcpu->tr.selector, ext));
    int result = vmem_read(vcpu, (uint32_t)(vcpu->tr.base + offset), bytes, size, AS_SYSTEM);
    if (result)
        return result;
    uint64_t words = *(const uint64_t *)bytes;
    uint64_t sp = is_16 ? words & 0xffff : (uint32_t)words;
    uint16_t selector = (uint16_t)(words >> (is_16 ? 16 : 32));
    struct segment ss;
    result = descriptor_load_stack(vcpu, selector, cpl, VECTOR_TS, ext, &ss);
    if (result)
        return result;
    uint64_t mask = stack_mask(&ss);
    *stack = (struct stack){
        .ss = ss, .sp = sp & mask, .mask = mask, .as = AS_SYSTEM, .error = selector_error(selector, ext)};
    return CPU_OK;
}

int task_inner_rsp(struct vcpu *vcpu, unsigned cpl, unsigned ist, unsigned ext, uint64_t *rsp) {
    uint32_t offset = ist ? TSS_IST + (ist - 1) * 8 : 4 + cpl * 8;
    if (offset + 7 > vcpu->tr.limit)
        return cpu_fault(vcpu, VECTOR_TS, selector_error(vcpu->tr.selector, ext));
    return table_read_u64(vcpu, vcpu->tr.base + offset, rsp);
}

/* The new task in one shape, and where it comes from. */
struct incoming {
    struct segment tr;
    bool is_16;
    struct tss32 state;
};

static int check_descriptor(struct vcpu *vcpu, const struct task_transfer *transfer,
                            struct incoming *incoming) {
    uint16_t selector = transfer->selector;
    bool is_return = transfer->why == TASK_IRET;
    uint8_t vector = is_return ? VECTOR_TS : VECTOR_GP;
    uint32_t error = selector_error(selector, transfer->ext);
    uint64_t raw;
    if (selector_is_null(selector) || selector & SELECTOR_TI)
        return cpu_fault(vcpu, vector, error);
    int result = descriptor_read(vcpu, selector, vector, transfer->ext, &raw);
    if (result)
        return result;
    unsigned type = descriptor_type(raw), wanted = is_return ? TYPE_BUSY : 0;
    if (descriptor_is_segment(raw) || (type != (TYPE_TSS16 | wanted) && type != (TYPE_TSS | wanted)))
        return cpu_fault(vcpu, vector, error);
    if (!descriptor_present(raw))
        return cpu_fault(vcpu, VECTOR_NP, error);
    incoming->tr = descriptor_segment(selector & ~SELECTOR_RPL, raw);
    incoming->is_16 = is_tss16(incoming->tr.attributes);
    if (incoming->tr.limit < (incoming->is_16 ? TSS16_LIMIT_MIN : TSS32_LIMIT_MIN))
        return cpu_fault(vcpu, VECTOR_TS, error);
    return CPU_OK;
}

static int read_incoming(struct vcpu *vcpu, struct incoming *incoming) {
    struct tss32 *state = &incoming->state;
    if (!incoming->is_16)
        return vmem_read(vcpu, (uint32_t)incoming->tr.base, state, sizeof *state, AS_SYSTEM);
    struct tss16 old;
    int result = vmem_read(vcpu, (uint32_t)incoming->tr.base, &old, sizeof old, AS_SYSTEM);
    if (result)
        return result;
    state->link = old.link;
    state->eip = old.ip;
    state->eflags = old.flags;
    for (unsigned i = 0; i < 8; i++)
        state->gpr[i] = old.gpr[i];
    for (unsigned i = 0; i < 6; i++)
        state->segment[i] = i < 4 ? old.segment[i] : 0;
    state->ldt = old.ldt;
    state->trap = 0;
    return CPU_OK;
}

/* Store the dynamic fields of the outgoing task. */
static int save_outgoing(struct vcpu *vcpu, const struct task_transfer *transfer) {
    uint64_t flags = transfer->why == TASK_IRET ? transfer->flags & ~(uint64_t)FLAG_NT : transfer->flags;
    uint32_t base = (uint32_t)vcpu->tr.base;
    if (is_tss16(vcpu->tr.attributes)) {
        struct tss16 tss;
        tss.ip = (uint16_t)transfer->rip;
        tss.flags = (uint16_t)flags;
        for (unsigned i = 0; i < 8; i++)
            tss.gpr[i] = (uint16_t)vcpu->gpr[i];
        for (unsigned i = 0; i < 4; i++)
            tss.segment[i] = vcpu->segment[i].selector;
        return vmem_write(vcpu, base + TSS16_SAVED, &tss.ip, offsetof(struct tss16, ldt) - TSS16_SAVED,
                          AS_SYSTEM);
    }
    struct tss32 tss;
    tss.eip = (uint32_t)transfer->rip;
    tss.eflags = (uint32_t)flags;
    for (unsigned i = 0; i < 8; i++)
        tss.gpr[i] = (uint32_t)vcpu->gpr[i];
    for (unsigned i = 0; i < 6; i++)
        tss.segment[i] = vcpu->segment[i].selector;
    return vmem_write(vcpu, base + TSS32_SAVED, &tss.eip, offsetof(struct tss32, ldt) - TSS32_SAVED,
                      AS_SYSTEM);
}

/* LDTR of the new task: every defect is #TS. */
static int load_ldt(struct vcpu *vcpu, uint16_t selector, unsigned ext) {
    uint64_t raw;
    vcpu->ldtr = segment_null(selector);
    if (selector_is_null(selector))
        return CPU_OK;
    if (selector & SELECTOR_TI)
        return cpu_fault(vcpu, VECTOR_TS, selector_error(selector, ext));
    int result = descriptor_read(vcpu, selector, VECTOR_TS, ext, &raw);
    if (result)
        return result;
    if (descriptor_is_segment(raw) || descriptor_type(raw) != TYPE_LDT || !descriptor_present(raw))
        return cpu_fault(vcpu, VECTOR_TS, selector_error(selector, ext));
    vcpu->ldtr = descriptor_segment(selector, raw);
    return CPU_OK;
}

static int load_code(struct vcpu *vcpu, uint16_t selector, unsigned ext) {
    uint64_t raw;
    unsigned rpl = selector & SELECTOR_RPL;
    if (selector_is_null(selector))
        return cpu_fault(vcpu, VECTOR_TS, selector_error(selector, ext));
    int result = descriptor_read(vcpu, selector, VECTOR_TS, ext, &raw);
    if (result)
        return result;
    unsigned dpl = descriptor_dpl(raw);
    if (!descriptor_is_code(raw) || (descriptor_is_conforming(raw) ? dpl > rpl : dpl != rpl))
        return cpu_fault(vcpu, VECTOR_TS, selector_error(selector, ext));
    if (!descriptor_present(raw))
        return cpu_fault(vcpu, VECTOR_NP, selector_error(selector, ext));
    result = descriptor_set_accessed(vcpu, selector, &raw);
    if (!result)
        vcpu->segment[SEG_CS] = descriptor_segment(selector, raw);
    return result;
}

static int load_data(struct vcpu *vcpu, enum segment_index index, uint16_t selector, unsigned ext) {
    uint64_t raw;
    if (selector_is_null(selector))
        return CPU_OK;
    int result = descriptor_read(vcpu, selector, VECTOR_TS, ext, &raw);
    if (result)
        return result;
    unsigned type = descriptor_type(raw), dpl = descriptor_dpl(raw);
    if (!descriptor_is_segment(raw) || (type & (TYPE_CODE | TYPE_WRITABLE)) == TYPE_CODE ||
        (!descriptor_is_conforming(raw) && (dpl < vcpu->cpl || dpl < (selector & SELECTOR_RPL))))
        return cpu_fault(vcpu, VECTOR_TS, selector_error(selector, ext));
    if (!descriptor_present(raw))
        return cpu_fault(vcpu, VECTOR_NP, selector_error(selector, ext));
    result = descriptor_set_accessed(vcpu, selector, &raw);
    if (!result)
        vcpu->segment[index] = descriptor_segment(selector, raw);
    return result;
}

/* After the commit point: descriptors of the new task. */
static int load_segments(struct vcpu *vcpu, const struct tss32 *state, unsigned ext) {
    static const uint8_t data_segments[] = {SEG_ES, SEG_DS, SEG_FS, SEG_GS};
    int result = load_ldt(vcpu, (uint16_t)state->ldt, ext);
    if (result)
        return result;
    if (vcpu->rflags & FLAG_VM) {
        for (unsigned i = 0; i < SEG_COUNT; i++)
            vcpu->segment[i] = segment_vm86((uint16_t)state->segment[i]);
        return CPU_OK;
    }
    result = load_code(vcpu, (uint16_t)state->segment[SEG_CS], ext);
    if (!result)
        result = descriptor_load_stack(vcpu, (uint16_t)state->segment[SEG_SS], vcpu->cpl, VECTOR_TS, ext,
                                       &vcpu->segment[SEG_SS]);
    for (unsigned i = 0; i < ARRAY_SIZE(data_segments) && !result; i++)
        result = load_data(vcpu, data_segments[i], (uint16_t)state->segment[data_segments[i]], ext);
    return result;
}

/* The commit: from here on everything is the new task's. */
static void enter(struct vcpu *vcpu, const struct task_transfer *transfer, struct incoming *incoming) {
    const struct tss32 *state = &incoming->state;
    uint32_t flags = (state->eflags & FLAGS_VALID) | FLAG_FIXED;
    if (transfer->why == TASK_CALL || transfer->why == TASK_GATE)
        flags |= FLAG_NT;
    vcpu->tr = incoming->tr;
    vcpu->tr.attributes |= TYPE_BUSY;
    vcpu->cr0 |= CR0_TS;
    vcpu->dr[7] &= ~DR7_LOCAL;
    if (!incoming->is_16 && vcpu->cr0 & CR0_PG) {
        vcpu->cr3 = state->cr3;
        vtlb_switch_space(vcpu, 0, false);
    }
    for (unsigned i = 0; i < 8; i++)
        vcpu->gpr[i] = state->gpr[i];
    for (unsigned i = 0; i < SEG_COUNT; i++)
        vcpu->segment[i] = segment_null((uint16_t)state->segment[i]);
    vcpu->rip = state->eip;
    vcpu->rflags = flags;
    vcpu->cpl = flags & FLAG_VM ? 3 : (uint8_t)(state->segment[SEG_CS] & SELECTOR_RPL);
    vcpu->irq_shadow = 0;
    cpu_mode_changed(vcpu);
}

static int push_error(struct vcpu *vcpu, const struct task_transfer *transfer, bool is_16) {
    struct stack stack = stack_current(vcpu);
    stack.error = transfer->ext;
    uint32_t word = transfer->error;
    unsigned size = is_16 ? 2 : 4;
    int result = stack_store(vcpu, &stack, &word, size, size);
    if (!result)
        vcpu->gpr[GPR_RSP] = stack_pointer(&stack, vcpu->gpr[GPR_RSP], stack.sp - size);
    return result;
}

/* The memory accesses before the commit point, in an order in which a fault undoes nothing: probe, then
 * store. */
static int prepare(struct vcpu *vcpu, const struct task_transfer *transfer, struct incoming *incoming) {
    bool nests = transfer->why == TASK_CALL || transfer->why == TASK_GATE;
    uint16_t link = vcpu->tr.selector;
    int result = read_incoming(vcpu, incoming);
    if (!result && nests)
        result = vmem_probe(vcpu, (uint32_t)incoming->tr.base, 2, VMEM_WRITE, AS_SYSTEM);
    if (!result)
        result = save_outgoing(vcpu, transfer);
    if (!result && !incoming->is_16 && vcpu->cr0 & CR0_PG && vcpu->cr4 & CR4_PAE)
        result = paging_load_pdptes(vcpu, incoming->state.cr3);
    if (!result && !nests)
        result = descriptor_set_busy(vcpu, vcpu->tr.selector, false);
    if (!result && nests)
        result = vmem_write(vcpu, (uint32_t)incoming->tr.base, &link, sizeof link, AS_SYSTEM);
    if (!result && transfer->why != TASK_IRET)
        result = descriptor_set_busy(vcpu, transfer->selector, true);
    return result;
}

int task_switch(struct vcpu *vcpu, const struct task_transfer *transfer) {
    struct incoming incoming;
    int result = check_descriptor(vcpu, transfer, &incoming);
    if (!result)
        result = prepare(vcpu, transfer, &incoming);
    if (result)
        return result;
    enter(vcpu, transfer, &incoming);
    result = load_segments(vcpu, &incoming.state, transfer->ext);
    cpu_mode_changed(vcpu);
    if (!result && transfer->has_error)
        result = push_error(vcpu, transfer, incoming.is_16);
    if (!result && vcpu->rip > vcpu->segment[SEG_CS].limit)
        result = cpu_fault(vcpu, VECTOR_GP, transfer->ext);
    if (!result && incoming.state.trap & 1)
        result = cpu_fault_debug(vcpu, DR6_BT);
    return result;
}
