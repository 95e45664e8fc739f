/* 32-bit protected, vm86 and real mode: inner stacks, call gates with parameters, task switches, limits. */
#include "cpu_guest.h"

#include <string.h>

#define GATE_INTERRUPT 14u
#define GATE_TASK 5u

static void check_exception(const struct vcpu *vcpu, unsigned vector, uint32_t error) {
    CHECK_EQUAL(vcpu->exception.vector, vector);
    CHECK_EQUAL(vcpu->exception.error, error);
}

static void test_interrupt_to_inner_level(void) {
    struct guest guest;
    struct vcpu *vcpu = &guest.vcpu;
    guest_create(&guest, false);
    guest_gate(&guest, 0x80, GATE_INTERRUPT, 3, 0);
    guest_to_user(&guest, 0x6000);
    vcpu->rflags |= FLAG_IF;
    CHECK(cpu_software_interrupt(vcpu, 0x80, 0x6002, true) == CPU_OK);
    CHECK_EQUAL(vcpu->cpl, 0);
    CHECK_EQUAL(vcpu->gpr[GPR_RSP], GUEST_STACK0 - 20);
    CHECK_EQUAL(vcpu->segment[SEG_SS].selector, SEL_DATA0);
    CHECK_EQUAL(guest_u32(&guest, GUEST_STACK0 - 20), 0x6002);
    CHECK_EQUAL(guest_u32(&guest, GUEST_STACK0 - 8), GUEST_STACK3);
    CHECK_EQUAL(guest_u32(&guest, GUEST_STACK0 - 4), SEL_DATA3);
    CHECK(cpu_iret(vcpu, 4) == CPU_OK);
    CHECK_EQUAL(vcpu->cpl, 3);
    CHECK_EQUAL(vcpu->gpr[GPR_RSP], GUEST_STACK3);
    CHECK(vcpu->rflags & FLAG_IF && vcpu->mode & MODE_FLAT);
    /* SS0 with the wrong DPL */
    guest_set_u32(&guest, GUEST_TSS + 8, SEL_DATA3);
    CHECK(cpu_software_interrupt(vcpu, 0x80, 0x6002, true) == CPU_FAULT);
    check_exception(vcpu, VECTOR_TS, SEL_DATA3 & ~3u);
    CHECK_EQUAL(vcpu->cpl, 3);
    guest_destroy(&guest);
}

static void test_call_gate_with_parameters(void) {
    struct guest guest;
    struct vcpu *vcpu = &guest.vcpu;
    guest_create(&guest, false);
    uint64_t target = GUEST_HANDLER;
    guest_set_u64(&guest, GUEST_GDT + SEL_GATE,
                  (target & 0xffff) | (uint64_t)SEL_CODE0 << 16 | 2ull << 32 | 0xecull << 40 |
                      (target & 0xffff0000) << 32);
    guest_to_user(&guest, 0x6000);
    vcpu->gpr[GPR_RSP] -= 8;
    guest_set_u32(&guest, GUEST_STACK3 - 8, 0x11111111);
    guest_set_u32(&guest, GUEST_STACK3 - 4, 0x22222222);
    CHECK(cpu_far_call(vcpu, SEL_GATE | 3, 0, 4, 0x6007) == CPU_OK);
    static const uint32_t expected[] = {0x6007,     SEL_CODE3_32,     0x11111111,
                                        0x22222222, GUEST_STACK3 - 8, SEL_DATA3};
    CHECK_EQUAL(vcpu->gpr[GPR_RSP], GUEST_STACK0 - sizeof expected);
    CHECK(!memcmp(guest.mem.base + vcpu->gpr[GPR_RSP], expected, sizeof expected));
    CHECK(cpu_far_return(vcpu, 4, 8) == CPU_OK);
    CHECK_EQUAL(vcpu->cpl, 3);
    CHECK_EQUAL(vcpu->rip, 0x6007);
    CHECK_EQUAL(vcpu->gpr[GPR_RSP], GUEST_STACK3);
    guest_destroy(&guest);
}

/* The second task: 32-bit, at CPL 0. */
static void make_task(struct guest *guest) {
    uint64_t tss = GUEST_TSS2;
    guest_set_u32(guest, tss + 0x20, 0x7000); /* EIP */
    guest_set_u32(guest, tss + 0x24, FLAG_FIXED);
    guest_set_u32(guest, tss + 0x28, 0xaaaa);  /* EAX */
    guest_set_u32(guest, tss + 0x38, 0x88000); /* ESP */
    for (unsigned i = 0; i < 6; i++)
        guest_set_u32(guest, tss + 0x48 + i * 4, i == SEG_CS ? SEL_CODE0 : SEL_DATA0);
}

static void test_double_fault_task(void) {
    struct guest guest;
    struct vcpu *vcpu = &guest.vcpu;
    guest_create(&guest, false);
    make_task(&guest);
    guest_set_u64(&guest, GUEST_IDT + VECTOR_DF * 8, (uint64_t)SEL_TSS2 << 16 | 0x85ull << 40);
    vcpu->gpr[GPR_RBX] = 0xb0b;
    vcpu->rip = 0x5000;
    vcpu->exception = (struct exception){.vector = VECTOR_PF, .has_error = true, .cr2 = 0x99000};
    cpu_deliver_exception(vcpu); /* no #PF gate: #DF through the task gate */
    CHECK_EQUAL(vcpu->tr.selector, SEL_TSS2);
    CHECK_EQUAL(vcpu->rip, 0x7000);
    CHECK_EQUAL(vcpu->gpr[GPR_RAX], 0xaaaa);
    CHECK_EQUAL(vcpu->gpr[GPR_RSP], 0x88000 - 4);
    CHECK_EQUAL(guest_u32(&guest, 0x88000 - 4), 0);
    CHECK(vcpu->rflags & FLAG_NT && vcpu->cr0 & CR0_TS && vcpu->mode & MODE_NO_X87);
    CHECK_EQUAL(guest_u32(&guest, GUEST_TSS2) & 0xffff, SEL_TSS);
    CHECK_EQUAL(guest_u32(&guest, GUEST_TSS + 0x20), 0x5000);
    CHECK_EQUAL(guest_u32(&guest, GUEST_TSS + 0x34), 0xb0b);
    CHECK_EQUAL(guest_u64(&guest, GUEST_GDT + SEL_TSS) >> 40 & 0xf, 11); /* both busy */
    CHECK_EQUAL(guest_u64(&guest, GUEST_GDT + SEL_TSS2) >> 40 & 0xf, 11);
    /* and back by IRET: an IRET with a prefix lies at rip */
    guest_set_u32(&guest, 0x7000, 0xcf66);
    CHECK(cpu_iret(vcpu, 4) == CPU_OK);
    CHECK_EQUAL(vcpu->tr.selector, SEL_TSS);
    CHECK_EQUAL(vcpu->rip, 0x5000);
    CHECK_EQUAL(vcpu->gpr[GPR_RBX], 0xb0b);
    CHECK(!(vcpu->rflags & FLAG_NT));
    CHECK_EQUAL(guest_u32(&guest, GUEST_TSS2 + 0x20), 0x7002);
    CHECK_EQUAL(guest_u64(&guest, GUEST_GDT + SEL_TSS2) >> 40 & 0xf, 9);
    guest_destroy(&guest);
}

static void test_task_jump_faults(void) {
    struct guest guest;
    struct vcpu *vcpu = &guest.vcpu;
    guest_create(&guest, false);
    make_task(&guest);
    CHECK(cpu_far_jump(vcpu, SEL_TSS, 0, 4, 0x5007) == CPU_FAULT); /* busy */
    check_exception(vcpu, VECTOR_GP, SEL_TSS);
    /* a bad CS of the new task: #TS inside it */
    guest_set_u32(&guest, GUEST_TSS2 + 0x4c, SEL_DATA0);
    CHECK(cpu_far_jump(vcpu, SEL_TSS2, 0, 4, 0x5007) == CPU_FAULT);
    check_exception(vcpu, VECTOR_TS, SEL_DATA0);
    CHECK_EQUAL(vcpu->tr.selector, SEL_TSS2);
    CHECK_EQUAL(vcpu->rip, 0x7000);
    CHECK_EQUAL(guest_u32(&guest, GUEST_TSS + 0x20), 0x5007);
    guest_destroy(&guest);
}

static void test_limits(void) {
    struct guest guest;
    struct vcpu *vcpu = &guest.vcpu;
    uint64_t linear;
    guest_create(&guest, false);
    vcpu->segment[SEG_DS].limit = 0xfff;
    CHECK(cpu_linear(vcpu, SEG_DS, 0xffc, 4, VMEM_READ, &linear) == CPU_OK && linear == 0xffc);
    CHECK(cpu_linear(vcpu, SEG_DS, 0xffd, 4, VMEM_READ, &linear) == CPU_FAULT);
    check_exception(vcpu, VECTOR_GP, 0);
    vcpu->segment[SEG_SS].attributes |= 4; /* expand-down: above the limit only */
    vcpu->segment[SEG_SS].limit = 0xfff;
    CHECK(cpu_linear(vcpu, SEG_SS, 0x1000, 4, VMEM_WRITE, &linear) == CPU_OK);
    CHECK(cpu_linear(vcpu, SEG_SS, 0xfff, 4, VMEM_WRITE, &linear) == CPU_FAULT);
    check_exception(vcpu, VECTOR_SS, 0);
    CHECK(cpu_linear(vcpu, SEG_SS, 0xffffffff, 4, VMEM_WRITE, &linear) == CPU_FAULT);
    CHECK(cpu_linear(vcpu, SEG_CS, 0, 1, VMEM_WRITE, &linear) == CPU_FAULT);
    vcpu->segment[SEG_ES].base = 0xfffff000;
    CHECK(cpu_linear(vcpu, SEG_ES, 0x2000, 4, VMEM_READ, &linear) == CPU_OK && linear == 0x1000);
    CHECK(cpu_load_segment(vcpu, SEG_ES, 0) == CPU_OK);
    CHECK(cpu_linear(vcpu, SEG_ES, 0, 1, VMEM_READ, &linear) == CPU_FAULT);
    CHECK(!(vcpu->mode & MODE_FLAT));
    CHECK(cpu_load_segment(vcpu, SEG_SS, 0) == CPU_FAULT);
    check_exception(vcpu, VECTOR_GP, 0);
    guest_destroy(&guest);
}

static void test_vm86(void) {
    struct guest guest;
    struct vcpu *vcpu = &guest.vcpu;
    uint64_t value;
    guest_create(&guest, false);
    guest_gate(&guest, VECTOR_GP, GATE_INTERRUPT, 0, 0);
    /* IRET into vm86 mode */
    static const uint32_t frame[] = {0x100, 0x2000, FLAG_FIXED | FLAG_VM | FLAG_IF, 0x800, 0x3000, 1, 2,
                                     3,     4};
    memcpy(guest.mem.base + vcpu->gpr[GPR_RSP], frame, sizeof frame);
    CHECK(cpu_iret(vcpu, 4) == CPU_OK);
    CHECK(vcpu->mode & MODE_VM86 && vcpu->cpl == 3 && !(vcpu->mode & MODE_PROTECTED));
    CHECK_EQUAL(vcpu->segment[SEG_CS].base, 0x20000);
    CHECK_EQUAL(vcpu->segment[SEG_GS].base, 0x40);
    CHECK(cpu_cli(vcpu) == CPU_FAULT);
    check_exception(vcpu, VECTOR_GP, 0);
    CHECK(cpu_pushf_value(vcpu, 2, &value) == CPU_FAULT);
    CHECK(cpu_software_interrupt(vcpu, 0x10, 0x102, true) == CPU_FAULT);
    check_exception(vcpu, VECTOR_GP, 0);
    cpu_deliver_exception(vcpu);
    CHECK_EQUAL(vcpu->rip, GUEST_HANDLER + VECTOR_GP * 16);
    CHECK_EQUAL(vcpu->gpr[GPR_RSP], GUEST_STACK0 - 40);
    CHECK_EQUAL(guest_u32(&guest, GUEST_STACK0 - 4), 4);       /* GS */
    CHECK_EQUAL(guest_u32(&guest, GUEST_STACK0 - 20), 0x3000); /* SS */
    CHECK(vcpu->segment[SEG_DS].attributes & SEG_UNUSABLE && !(vcpu->rflags & FLAG_VM));
    /* with VME the interrupt is redirected, IF taken from VIF */
    vcpu->gpr[GPR_RSP] += 4;
    CHECK(cpu_iret(vcpu, 4) == CPU_OK);
    vcpu->cr4 |= CR4_VME;
    CHECK(cpu_cli(vcpu) == CPU_OK);
    guest_set_u32(&guest, GUEST_TSS + 0x64, 0x88u << 16);
    vcpu->tr.limit = 0xff;
    guest_set_u32(&guest, 0x10 * 4, 0x4000u << 16 | 0x55);
    CHECK(cpu_software_interrupt(vcpu, 0x10, 0x102, true) == CPU_OK);
    CHECK_EQUAL(vcpu->segment[SEG_CS].base, 0x40000);
    CHECK_EQUAL(vcpu->rip, 0x55);
    CHECK_EQUAL(vcpu->gpr[GPR_RSP], 0x800 - 6);
    CHECK_EQUAL(guest_u32(&guest, 0x30000 + 0x7fa), 0x2000u << 16 | 0x102);
    guest_destroy(&guest);
}

static void test_real_mode(void) {
    struct guest guest;
    struct vcpu *vcpu = &guest.vcpu;
    guest_create(&guest, false);
    cpu_reset(vcpu, false);
    CHECK_EQUAL(vcpu->segment[SEG_CS].base + vcpu->rip, 0xfffffff0);
    CHECK_EQUAL(vcpu->run_state, RUN_ACTIVE);
    guest_set_u32(&guest, VECTOR_UD * 4, 0x1234u << 16 | 0x20);
    CHECK(cpu_far_jump(vcpu, 0x100, 0x30, 2, 0) == CPU_OK);
    CHECK_EQUAL(vcpu->segment[SEG_CS].base, 0x1000);
    CHECK(cpu_load_segment(vcpu, SEG_SS, 0x200) == CPU_OK);
    vcpu->gpr[GPR_RSP] = 0xdead0000; /* SP wraps, the upper half stays */
    vcpu->rflags |= FLAG_IF;
    vcpu->exception = (struct exception){.vector = VECTOR_UD};
    cpu_deliver_exception(vcpu);
    CHECK_EQUAL(vcpu->segment[SEG_CS].base, 0x12340);
    CHECK_EQUAL(vcpu->rip, 0x20);
    CHECK_EQUAL(vcpu->gpr[GPR_RSP], 0xdeadfffa);
    CHECK_EQUAL(guest_u32(&guest, 0x2000 + 0xfffa), 0x100u << 16 | 0x30);
    CHECK(!(vcpu->rflags & FLAG_IF));
    CHECK(cpu_iret(vcpu, 2) == CPU_OK);
    CHECK_EQUAL(vcpu->rip, 0x30);
    CHECK(vcpu->rflags & FLAG_IF);
    uint16_t zero = 0;
    bool ok;
    CHECK(cpu_lldt(vcpu, zero) == CPU_FAULT);
    CHECK_EQUAL(vcpu->exception.vector, VECTOR_UD);
    CHECK(cpu_verify(vcpu, zero, false, &ok) == CPU_FAULT);
    guest_destroy(&guest);
}

int main(void) {
    test_interrupt_to_inner_level();
    test_call_gate_with_parameters();
    test_double_fault_task();
    test_task_jump_faults();
    test_limits();
    test_vm86();
    test_real_mode();
    return check_result();
}
