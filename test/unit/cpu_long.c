/* 64-bit mode: delivery, IRET, IST, double and triple faults, SYSCALL, SYSENTER, call gates, null selectors.
 */
#include "cpu_guest.h"

#define GATE_INTERRUPT 14u
#define GATE_TRAP 15u
#define NON_CANONICAL 0x0000800000000000ull

static void check_exception(const struct vcpu *vcpu, unsigned vector, uint32_t error) {
    CHECK_EQUAL(vcpu->exception.vector, vector);
    CHECK_EQUAL(vcpu->exception.error, error);
}

static void test_page_fault_from_user(void) {
    struct guest guest;
    struct vcpu *vcpu = &guest.vcpu;
    guest_create(&guest, true);
    guest_gate(&guest, VECTOR_PF, GATE_INTERRUPT, 0, 0);
    guest_to_user(&guest, 0x6000);
    vcpu->rflags = FLAG_FIXED | FLAG_IF | FLAG_TF | FLAG_CF;
    vcpu->exception =
        (struct exception){.vector = VECTOR_PF, .has_error = true, .error = 7, .cr2 = 0x123456789000};
    cpu_deliver_exception(vcpu);
    CHECK_EQUAL(vcpu->rip, GUEST_HANDLER + VECTOR_PF * 16);
    CHECK_EQUAL(vcpu->cpl, 0);
    CHECK_EQUAL(vcpu->cr2, 0x123456789000);
    CHECK_EQUAL(vcpu->gpr[GPR_RSP], GUEST_STACK0 - 48);
    CHECK_EQUAL(vcpu->segment[SEG_SS].selector, 0);
    CHECK_EQUAL(vcpu->rflags, FLAG_FIXED | FLAG_CF);
    CHECK(vcpu->mode & MODE_CPL0 && !(vcpu->mode & (MODE_CPL3 | MODE_STEP)));
    CHECK(vcpu->view == vcpu->space->view[VIEW_KERNEL]);
    uint64_t rsp = vcpu->gpr[GPR_RSP];
    CHECK_EQUAL(guest_u64(&guest, rsp), 7);
    CHECK_EQUAL(guest_u64(&guest, rsp + 8), 0x6000);
    CHECK_EQUAL(guest_u64(&guest, rsp + 16), SEL_CODE3);
    CHECK_EQUAL(guest_u64(&guest, rsp + 24), FLAG_FIXED | FLAG_IF | FLAG_TF | FLAG_CF | FLAG_RF);
    CHECK_EQUAL(guest_u64(&guest, rsp + 32), GUEST_STACK3);
    CHECK_EQUAL(guest_u64(&guest, rsp + 40), SEL_DATA3);
    /* and back */
    vcpu->gpr[GPR_RSP] += 8;
    CHECK(cpu_iret(vcpu, 8) == CPU_OK);
    CHECK_EQUAL(vcpu->rip, 0x6000);
    CHECK_EQUAL(vcpu->cpl, 3);
    CHECK_EQUAL(vcpu->gpr[GPR_RSP], GUEST_STACK3);
    CHECK_EQUAL(vcpu->rflags, FLAG_FIXED | FLAG_IF | FLAG_TF | FLAG_CF | FLAG_RF);
    CHECK_EQUAL(vcpu->segment[SEG_SS].selector, SEL_DATA3);
    uint32_t incremental = vcpu->mode;
    cpu_mode_changed(vcpu);
    CHECK_EQUAL(incremental, vcpu->mode);
    CHECK(vcpu->mode & MODE_STEP);
    guest_destroy(&guest);
}

static void test_ist_and_alignment(void) {
    struct guest guest;
    struct vcpu *vcpu = &guest.vcpu;
    guest_create(&guest, true);
    guest_gate(&guest, VECTOR_NMI, GATE_INTERRUPT, 0, 1);
    guest_gate(&guest, 0x40, GATE_TRAP, 0, 0);
    vcpu->rflags |= FLAG_IF;
    vcpu->run_state = RUN_HALTED;
    cpu_deliver_nmi(vcpu);
    CHECK_EQUAL(vcpu->gpr[GPR_RSP], GUEST_STACK0 - 0x4000 - 40);
    CHECK_EQUAL(vcpu->nmi_blocked, 1);
    CHECK_EQUAL(vcpu->run_state, RUN_ACTIVE);
    CHECK_EQUAL(vcpu->segment[SEG_SS].selector, SEL_DATA0); /* same level: SS stays */
    CHECK(!(vcpu->rflags & FLAG_IF));
    CHECK(cpu_iret(vcpu, 8) == CPU_OK);
    CHECK_EQUAL(vcpu->nmi_blocked, 0);
    CHECK(vcpu->rflags & FLAG_IF);
    vcpu->gpr[GPR_RSP] = GUEST_STACK0 - 0x103;
    cpu_deliver_interrupt(vcpu, 0x40);
    CHECK_EQUAL(vcpu->gpr[GPR_RSP], ((GUEST_STACK0 - 0x103) & ~15ull) - 40);
    CHECK(vcpu->rflags & FLAG_IF); /* a trap gate */
    CHECK(cpu_iret(vcpu, 8) == CPU_OK);
    CHECK_EQUAL(vcpu->gpr[GPR_RSP], GUEST_STACK0 - 0x103);
    guest_destroy(&guest);
}

static void test_double_and_triple_fault(void) {
    struct guest guest;
    struct vcpu *vcpu = &guest.vcpu;
    guest_create(&guest, true);
    guest_gate(&guest, VECTOR_DF, GATE_INTERRUPT, 0, 1);
    /* no gate for #PF: #NP or #GP in its delivery, so #DF */
    vcpu->exception = (struct exception){.vector = VECTOR_PF, .has_error = true, .error = 2, .cr2 = 0x99000};
    cpu_deliver_exception(vcpu);
    CHECK_EQUAL(vcpu->rip, GUEST_HANDLER + VECTOR_DF * 16);
    CHECK_EQUAL(guest_u64(&guest, vcpu->gpr[GPR_RSP]), 0);
    CHECK_EQUAL(vcpu->cr2, 0x99000);
    CHECK_EQUAL(vcpu->run_state, RUN_ACTIVE);
    /* #UD is benign: what fails in its delivery is delivered itself */
    guest_gate(&guest, VECTOR_GP, GATE_INTERRUPT, 0, 0);
    vcpu->rip = 0x7000;
    vcpu->gpr[GPR_RSP] = GUEST_STACK0 - 0x200;
    vcpu->exception = (struct exception){.vector = VECTOR_UD};
    cpu_deliver_exception(vcpu);
    CHECK_EQUAL(vcpu->rip, GUEST_HANDLER + VECTOR_GP * 16);
    CHECK_EQUAL(guest_u64(&guest, vcpu->gpr[GPR_RSP]), VECTOR_UD * 8 + 3);
    /* no IDT at all */
    vcpu->idtr.limit = 0;
    vcpu->exception = (struct exception){.vector = VECTOR_UD};
    cpu_deliver_exception(vcpu);
    CHECK_EQUAL(vcpu->run_state, RUN_SHUTDOWN);
    guest_destroy(&guest);
}

static void test_software_interrupt(void) {
    struct guest guest;
    struct vcpu *vcpu = &guest.vcpu;
    guest_create(&guest, true);
    guest_gate(&guest, 0x80, GATE_INTERRUPT, 3, 0);
    guest_gate(&guest, 0x81, GATE_INTERRUPT, 0, 0);
    guest_to_user(&guest, 0x6000);
    struct segment ss = vcpu->segment[SEG_SS];
    CHECK(cpu_software_interrupt(vcpu, 0x81, 0x6002, true) == CPU_FAULT);
    check_exception(vcpu, VECTOR_GP, 0x81 * 8 + 2);
    CHECK(cpu_software_interrupt(vcpu, 0x90, 0x6002, true) == CPU_FAULT);
    check_exception(vcpu, VECTOR_GP, 0x90 * 8 + 2);
    CHECK_EQUAL(vcpu->cpl, 3);
    CHECK_EQUAL(vcpu->rip, 0x6000);
    CHECK_EQUAL(vcpu->segment[SEG_SS].selector, ss.selector);
    CHECK(cpu_software_interrupt(vcpu, 0x80, 0x6002, true) == CPU_OK);
    CHECK_EQUAL(guest_u64(&guest, vcpu->gpr[GPR_RSP]), 0x6002);
    guest_destroy(&guest);
}

static void test_delivery_faults_change_nothing(void) {
    struct guest guest;
    struct vcpu *vcpu = &guest.vcpu;
    guest_create(&guest, true);
    guest_gate(&guest, 0x80, GATE_INTERRUPT, 3, 0);
    guest_to_user(&guest, 0x6000);
    guest_set_u64(&guest, GUEST_TSS + 4, NON_CANONICAL + PAGE_SIZE);
    CHECK(cpu_software_interrupt(vcpu, 0x80, 0x6002, true) == CPU_FAULT);
    check_exception(vcpu, VECTOR_SS, 0);
    guest_set_u64(&guest, GUEST_TSS + 4, 0x40000000); /* not mapped */
    CHECK(cpu_software_interrupt(vcpu, 0x80, 0x6002, true) == CPU_FAULT);
    check_exception(vcpu, VECTOR_PF, PF_WRITE);
    CHECK_EQUAL(vcpu->exception.cr2, 0x40000000 - 8); /* SS is pushed first */
    CHECK_EQUAL(vcpu->cpl, 3);
    CHECK_EQUAL(vcpu->gpr[GPR_RSP], GUEST_STACK3);
    CHECK_EQUAL(vcpu->segment[SEG_CS].selector, SEL_CODE3);
    vcpu->tr.limit = 10;
    CHECK(cpu_software_interrupt(vcpu, 0x80, 0x6002, true) == CPU_FAULT);
    check_exception(vcpu, VECTOR_TS, SEL_TSS);
    guest_destroy(&guest);
}

static void push_frame(struct guest *guest, uint64_t rip, uint64_t cs, uint64_t flags, uint64_t rsp,
                       uint64_t ss) {
    uint64_t at = guest->vcpu.gpr[GPR_RSP];
    const uint64_t words[] = {rip, cs, flags, rsp, ss};
    for (unsigned i = 0; i < 5; i++)
        guest_set_u64(guest, at + i * 8, words[i]);
}

static void test_iret_checks(void) {
    struct guest guest;
    struct vcpu *vcpu = &guest.vcpu;
    guest_create(&guest, true);
    static const struct {
        uint64_t rip, cs, ss;
        unsigned vector, error;
    } cases[] = {
        {0x6000, 0, SEL_DATA3, VECTOR_GP, 0},
        {0x6000, SEL_DATA3, SEL_DATA3, VECTOR_GP, SEL_DATA3 & ~3u},
        {0x6000, 0xff8 | 3, SEL_DATA3, VECTOR_GP, 0xff8},
        {0x6000, SEL_CODE3, 0, VECTOR_GP, 0},
        {0x6000, SEL_CODE3, SEL_DATA0, VECTOR_GP, SEL_DATA0},
        {0x6000, SEL_CODE3, SEL_CODE3, VECTOR_GP, SEL_CODE3 & ~3u},
        {NON_CANONICAL, SEL_CODE3, SEL_DATA3, VECTOR_GP, 0},
        {0x100000000, SEL_CODE3_32, SEL_DATA3, VECTOR_GP, 0},
    };
    for (unsigned i = 0; i < ARRAY_SIZE(cases); i++) {
        uint64_t rsp = vcpu->gpr[GPR_RSP];
        push_frame(&guest, cases[i].rip, cases[i].cs, FLAG_FIXED, GUEST_STACK3, cases[i].ss);
        CHECK(cpu_iret(vcpu, 8) == CPU_FAULT);
        check_exception(vcpu, cases[i].vector, cases[i].error);
        CHECK_EQUAL(vcpu->gpr[GPR_RSP], rsp);
        CHECK_EQUAL(vcpu->cpl, 0);
        CHECK_EQUAL(vcpu->rip, 0x5000);
    }
    vcpu->rflags |= FLAG_NT;
    CHECK(cpu_iret(vcpu, 8) == CPU_FAULT);
    check_exception(vcpu, VECTOR_GP, 0);
    vcpu->rflags &= ~(uint64_t)FLAG_NT;
    /* to compatibility mode, with a DS that ring 3 may not keep */
    vcpu->segment[SEG_FS].base = 0x1234;
    vcpu->segment[SEG_FS].attributes = SEG_UNUSABLE;
    push_frame(&guest, 0x6000, SEL_CODE3_32, FLAG_FIXED | FLAG_IOPL | FLAG_IF, GUEST_STACK3, SEL_DATA3);
    CHECK(cpu_iret(vcpu, 8) == CPU_OK);
    CHECK_EQUAL(vcpu->mode & MODE_CODE_MASK, MODE_CODE_32);
    CHECK_EQUAL(vcpu->segment[SEG_DS].selector, 0);
    CHECK(vcpu->segment[SEG_DS].attributes & SEG_UNUSABLE);
    CHECK_EQUAL(vcpu->segment[SEG_FS].base, 0x1234);
    CHECK(vcpu->mode & MODE_IO_FREE);
    guest_destroy(&guest);
}

static void test_fast_system_calls(void) {
    struct guest guest;
    struct vcpu *vcpu = &guest.vcpu;
    guest_create(&guest, true);
    /* user base: CS32 SS CS64 in a row, as SYSRET wants them */
    CHECK(cpu_wrmsr(vcpu, MSR_STAR, (uint64_t)(SEL_CODE3_32 & ~3u) << 48 | (uint64_t)SEL_CODE0 << 32) ==
          CPU_OK);
    CHECK(cpu_wrmsr(vcpu, MSR_LSTAR, GUEST_HANDLER) == CPU_OK);
    CHECK(cpu_wrmsr(vcpu, MSR_LSTAR, NON_CANONICAL) == CPU_FAULT);
    CHECK(cpu_wrmsr(vcpu, MSR_SFMASK, FLAG_IF | FLAG_TF | FLAG_AC) == CPU_OK);
    CHECK(cpu_wrmsr(vcpu, MSR_KERNEL_GS_BASE, 0xffff888000000000) == CPU_OK);
    guest_to_user(&guest, 0x6000);
    CHECK(cpu_rdmsr(vcpu, MSR_LSTAR, &(uint64_t){0}) == CPU_FAULT);
    CHECK(cpu_swapgs(vcpu) == CPU_FAULT);
    CHECK(cpu_sysret(vcpu, 8) == CPU_FAULT);
    check_exception(vcpu, VECTOR_GP, 0);
    vcpu->rflags = FLAG_FIXED | FLAG_IF | FLAG_ZF | FLAG_RF;
    CHECK(cpu_syscall(vcpu, 0x6002) == CPU_OK);
    CHECK_EQUAL(vcpu->rip, GUEST_HANDLER);
    CHECK_EQUAL(vcpu->gpr[GPR_RCX], 0x6002);
    CHECK_EQUAL(vcpu->gpr[GPR_R11], FLAG_FIXED | FLAG_IF | FLAG_ZF);
    CHECK_EQUAL(vcpu->rflags, FLAG_FIXED | FLAG_ZF);
    CHECK_EQUAL(vcpu->segment[SEG_CS].selector, SEL_CODE0);
    CHECK_EQUAL(vcpu->segment[SEG_SS].selector, SEL_DATA0);
    CHECK_EQUAL(vcpu->gpr[GPR_RSP], GUEST_STACK3);
    uint32_t incremental = vcpu->mode;
    cpu_mode_changed(vcpu);
    CHECK_EQUAL(incremental, vcpu->mode);
    CHECK(cpu_swapgs(vcpu) == CPU_OK);
    CHECK_EQUAL(vcpu->segment[SEG_GS].base, 0xffff888000000000);
    CHECK(cpu_swapgs(vcpu) == CPU_OK);
    vcpu->gpr[GPR_RCX] = NON_CANONICAL;
    CHECK(guest.model.is_amd || cpu_sysret(vcpu, 8) == CPU_FAULT);
    vcpu->gpr[GPR_RCX] = 0x6002;
    CHECK(cpu_sysret(vcpu, 8) == CPU_OK);
    CHECK_EQUAL(vcpu->rip, 0x6002);
    CHECK_EQUAL(vcpu->cpl, 3);
    CHECK_EQUAL(vcpu->segment[SEG_CS].selector, SEL_CODE3);
    CHECK_EQUAL(vcpu->segment[SEG_SS].selector, SEL_DATA3);
    CHECK_EQUAL(vcpu->rflags, FLAG_FIXED | FLAG_IF | FLAG_ZF);
    guest_destroy(&guest);
}

static void test_call_gate(void) {
    struct guest guest;
    struct vcpu *vcpu = &guest.vcpu;
    guest_create(&guest, true);
    uint64_t target = GUEST_HANDLER;
    guest_set_u64(&guest, GUEST_GDT + SEL_GATE,
                  (target & 0xffff) | (uint64_t)SEL_CODE0 << 16 | 0xecull << 40 |
                      (target & 0xffff0000) << 32);
    guest_set_u64(&guest, GUEST_GDT + SEL_GATE + 8, 0);
    guest_to_user(&guest, 0x6000);
    CHECK(cpu_far_jump(vcpu, SEL_GATE | 3, 0, 8, 0x6008) == CPU_FAULT); /* a jump cannot gain privilege */
    check_exception(vcpu, VECTOR_GP, SEL_CODE0);
    CHECK(cpu_far_call(vcpu, SEL_GATE | 3, 0, 8, 0x6008) == CPU_OK);
    CHECK_EQUAL(vcpu->cpl, 0);
    CHECK_EQUAL(vcpu->rip, target);
    CHECK_EQUAL(vcpu->gpr[GPR_RSP], GUEST_STACK0 - 32);
    CHECK_EQUAL(guest_u64(&guest, GUEST_STACK0 - 32), 0x6008);
    CHECK_EQUAL(guest_u64(&guest, GUEST_STACK0 - 8), SEL_DATA3);
    CHECK(cpu_far_return(vcpu, 8, 0) == CPU_OK);
    CHECK_EQUAL(vcpu->cpl, 3);
    CHECK_EQUAL(vcpu->gpr[GPR_RSP], GUEST_STACK3);
    CHECK_EQUAL(vcpu->rip, 0x6008);
    guest_set_u64(&guest, GUEST_GDT + SEL_GATE + 8, 1ull << 40); /* the upper half's type must be 0 */
    CHECK(cpu_far_call(vcpu, SEL_GATE | 3, 0, 8, 0x6008) == CPU_FAULT);
    check_exception(vcpu, VECTOR_GP, SEL_GATE);
    guest_destroy(&guest);
}

static void test_segments(void) {
    struct guest guest;
    struct vcpu *vcpu = &guest.vcpu;
    uint64_t linear;
    guest_create(&guest, true);
    CHECK(cpu_load_segment(vcpu, SEG_SS, 0) == CPU_OK);
    CHECK(cpu_load_segment(vcpu, SEG_SS, 3) == CPU_FAULT);
    vcpu->segment[SEG_FS].base = 0x1000;
    CHECK(cpu_load_segment(vcpu, SEG_FS, 0) == CPU_OK);
    CHECK_EQUAL(vcpu->segment[SEG_FS].base, 0);
    CHECK(cpu_linear(vcpu, SEG_DS, NON_CANONICAL, 1, VMEM_READ, &linear) == CPU_FAULT);
    check_exception(vcpu, VECTOR_GP, 0);
    CHECK(cpu_linear(vcpu, SEG_SS, NON_CANONICAL - 4, 8, VMEM_READ, &linear) == CPU_FAULT);
    check_exception(vcpu, VECTOR_SS, 0);
    vcpu->segment[SEG_GS].base = 0xffff800000000000;
    CHECK(cpu_linear(vcpu, SEG_GS, 0x10, 8, VMEM_WRITE, &linear) == CPU_OK);
    CHECK_EQUAL(linear, 0xffff800000000010);
    /* the accessed bit is set in memory */
    guest_set_u64(&guest, GUEST_GDT + SEL_GATE, 0x00cff2000000ffff);
    CHECK(cpu_load_segment(vcpu, SEG_DS, SEL_GATE | 3) == CPU_OK);
    CHECK_EQUAL(guest_u64(&guest, GUEST_GDT + SEL_GATE), 0x00cff3000000ffff);
    guest_set_u64(&guest, GUEST_GDT + SEL_GATE, 0x00cf72000000ffff);
    CHECK(cpu_load_segment(vcpu, SEG_DS, SEL_GATE) == CPU_FAULT);
    check_exception(vcpu, VECTOR_NP, SEL_GATE);
    CHECK(cpu_ltr(vcpu, SEL_TSS) == CPU_FAULT); /* busy */
    check_exception(vcpu, VECTOR_GP, SEL_TSS);
    uint32_t value;
    bool ok;
    CHECK(cpu_lsl(vcpu, SEL_CODE0, &value, &ok) == CPU_OK && ok && value == 0xffffffff);
    CHECK(cpu_lar(vcpu, SEL_TSS, &value, &ok) == CPU_OK && ok && (value & 0xff00) == 0x8b00);
    CHECK(cpu_lar(vcpu, 0xff8, &value, &ok) == CPU_OK && !ok);
    guest_destroy(&guest);
}

int main(void) {
    test_page_fault_from_user();
    test_ist_and_alignment();
    test_double_and_triple_fault();
    test_software_interrupt();
    test_delivery_faults_change_nothing();
    test_iret_checks();
    test_fast_system_calls();
    test_call_gate();
    test_segments();
    return check_result();
}
