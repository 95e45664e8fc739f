/* Control and debug registers, flags, ports, MSRs, the paravirtual clock. */
#include "cpu_guest.h"

#include "cpu/host_clock.h"
#include "cpu/kvm_pv.h"

#include <string.h>
#include <unistd.h>

#define CLOCK_PAGE 0x100000ull

static void test_control_registers(void) {
    struct guest guest;
    struct vcpu *vcpu = &guest.vcpu;
    uint64_t value;
    guest_create(&guest, true);
    CHECK(cpu_write_cr(vcpu, 0, vcpu->cr0 & ~CR0_PG) == CPU_FAULT); /* from 64-bit code */
    CHECK(cpu_write_cr(vcpu, 0, vcpu->cr0 & ~CR0_PE) == CPU_FAULT);
    CHECK(cpu_write_cr(vcpu, 0, vcpu->cr0 | CR0_NW) == CPU_FAULT);
    CHECK(cpu_write_cr(vcpu, 0, vcpu->cr0 | 1ull << 32) == CPU_FAULT);
    CHECK(cpu_write_cr(vcpu, 4, vcpu->cr4 & ~CR4_PAE) == CPU_FAULT);
    CHECK(cpu_write_cr(vcpu, 4, vcpu->cr4 | CR4_LA57) == CPU_FAULT);
    CHECK(cpu_write_cr(vcpu, 4, vcpu->cr4 | 1ull << 13) == CPU_FAULT);   /* VMXE */
    CHECK(cpu_write_cr(vcpu, 3, vcpu->cr3 | CR3_NO_FLUSH) == CPU_FAULT); /* without PCIDE */
    CHECK(cpu_write_cr(vcpu, 3, vcpu->cr3 | 1ull << 45) == CPU_FAULT);
    CHECK(cpu_write_cr(vcpu, 8, 16) == CPU_FAULT);
    CHECK(cpu_write_cr(vcpu, 8, 5) == CPU_OK);
    CHECK(cpu_read_cr(vcpu, 8, &value) == CPU_OK && value == 5);
    CHECK(cpu_read_cr(vcpu, 1, &value) == CPU_FAULT);
    CHECK_EQUAL(vcpu->exception.vector, VECTOR_UD);
    CHECK(cpu_write_cr(vcpu, 4, vcpu->cr4 | CR4_PCIDE) == CPU_OK);
    CHECK(cpu_write_cr(vcpu, 3, vcpu->cr3 | 3) == CPU_OK);
    CHECK_EQUAL(vcpu->space->pcid, 3);
    CHECK(cpu_write_cr(vcpu, 3, vcpu->cr3 | CR3_NO_FLUSH) == CPU_OK);
    CHECK_EQUAL(vcpu->cr3, GUEST_TABLES | 3);
    CHECK(cpu_write_cr(vcpu, 4, vcpu->cr4 & ~CR4_PCIDE) == CPU_OK);
    CHECK_EQUAL(vcpu->space->pcid, 0);
    CHECK(cpu_write_cr(vcpu, 4, vcpu->cr4 | CR4_PCIDE) == CPU_FAULT);   /* CR3 bits 0-11 are not 0 */
    CHECK(cpu_wrmsr(vcpu, MSR_EFER, EFER_SCE | EFER_NXE) == CPU_FAULT); /* LME under paging */
    CHECK(cpu_wrmsr(vcpu, MSR_EFER, EFER_LME | EFER_LMA) == CPU_OK);
    const uint64_t all[2] = {0, 0}, bad[2] = {0, 0x800000000000};
    CHECK(cpu_invpcid(vcpu, 2, all) == CPU_OK);
    CHECK(cpu_invpcid(vcpu, 4, all) == CPU_FAULT);
    CHECK(cpu_invpcid(vcpu, 0, bad) == CPU_FAULT);
    guest_destroy(&guest);
}

/* The way into long mode, as a boot loader takes it. */
static void test_long_mode_transition(void) {
    struct guest guest;
    struct vcpu *vcpu = &guest.vcpu;
    guest_create(&guest, false);
    CHECK(cpu_wrmsr(vcpu, MSR_EFER, EFER_LME) == CPU_OK);
    CHECK(cpu_write_cr(vcpu, 3, GUEST_TABLES) == CPU_OK);
    CHECK(cpu_write_cr(vcpu, 0, vcpu->cr0 | CR0_PG) == CPU_FAULT); /* without PAE */
    CHECK(cpu_write_cr(vcpu, 4, CR4_PAE) == CPU_OK);
    CHECK(cpu_write_cr(vcpu, 0, vcpu->cr0 | CR0_PG) == CPU_OK);
    CHECK(vcpu->efer & EFER_LMA && vcpu->mode & MODE_LONG && !cpu_is_code64(vcpu));
    guest_set_u64(&guest, GUEST_GDT + SEL_GATE, 0x00af9b000000ffff);
    CHECK(cpu_far_jump(vcpu, SEL_GATE, 0x9000, 4, 0x5007) == CPU_OK);
    CHECK(cpu_is_code64(vcpu));
    CHECK(cpu_far_jump(vcpu, SEL_CODE0, 0x9000, 4, 0x5007) == CPU_OK); /* and out */
    CHECK(cpu_write_cr(vcpu, 0, vcpu->cr0 & ~CR0_PG) == CPU_OK);
    CHECK(!(vcpu->efer & EFER_LMA) && vcpu->efer & EFER_LME);
    guest_destroy(&guest);
}

static void test_flags(void) {
    struct guest guest;
    struct vcpu *vcpu = &guest.vcpu;
    guest_create(&guest, true);
    CHECK(cpu_sti(vcpu) == CPU_OK && vcpu->irq_shadow && vcpu->rflags & FLAG_IF);
    vcpu->irq_shadow = 0;
    CHECK(cpu_sti(vcpu) == CPU_OK && !vcpu->irq_shadow);
    CHECK(cpu_popf(vcpu, ~0ull, 8) == CPU_OK);
    CHECK_EQUAL(vcpu->rflags, FLAGS_ARITHMETIC | FLAG_FIXED | FLAG_TF | FLAG_IF | FLAG_DF | FLAG_IOPL |
                                  FLAG_NT | FLAG_AC | FLAG_ID);
    CHECK(vcpu->mode & MODE_STEP);
    CHECK(cpu_popf(vcpu, 0, 8) == CPU_OK);
    CHECK_EQUAL(vcpu->rflags, FLAG_FIXED);
    guest_to_user(&guest, 0x6000);
    CHECK(cpu_popf(vcpu, FLAG_IF | FLAG_IOPL | FLAG_CF, 8) == CPU_OK);
    CHECK_EQUAL(vcpu->rflags, FLAG_FIXED | FLAG_CF);
    CHECK(cpu_cli(vcpu) == CPU_FAULT);
    CHECK(cpu_hlt(vcpu) == CPU_FAULT);
    CHECK_EQUAL(vcpu->run_state, RUN_ACTIVE);
    /* ports through the bitmap */
    guest_set_u32(&guest, GUEST_TSS + 0x64, 0x68u << 16);
    vcpu->tr.limit = 0x68 + 0x80;
    memset(guest.mem.base + GUEST_TSS + 0x68, 0xff, 0x80);
    CHECK(cpu_check_io(vcpu, 0x60, 1) == CPU_FAULT);
    guest.mem.base[GUEST_TSS + 0x68 + 0x60 / 8] = 0xfe;
    CHECK(cpu_check_io(vcpu, 0x60, 1) == CPU_OK);
    CHECK(cpu_check_io(vcpu, 0x60, 2) == CPU_FAULT);
    CHECK(cpu_check_io(vcpu, 0x3ff, 1) == CPU_FAULT);
    CHECK(cpu_check_io(vcpu, 0x400, 1) == CPU_FAULT); /* beyond the limit */
    guest_destroy(&guest);
}

static void test_debug_registers(void) {
    struct guest guest;
    struct vcpu *vcpu = &guest.vcpu;
    uint64_t value;
    guest_create(&guest, true);
    CHECK(cpu_write_dr(vcpu, 0, 0x1000) == CPU_OK);
    CHECK(cpu_write_dr(vcpu, 1, 0x2004) == CPU_OK);
    CHECK(cpu_write_dr(vcpu, 7, 1ull << 32) == CPU_FAULT);
    /* DR0: execution; DR1: 4 bytes, writes */
    CHECK(cpu_write_dr(vcpu, 7, 0x5 | 0xdull << 20) == CPU_OK);
    CHECK(vcpu->mode & MODE_STEP);
    CHECK_EQUAL(cpu_code_breakpoint(vcpu, 0x1000), 1);
    CHECK_EQUAL(cpu_code_breakpoint(vcpu, 0x1001), 0);
    CHECK_EQUAL(cpu_data_breakpoint(vcpu, 0x2000, 8, true), 2);
    CHECK_EQUAL(cpu_data_breakpoint(vcpu, 0x2007, 1, true), 2);
    CHECK_EQUAL(cpu_data_breakpoint(vcpu, 0x2008, 1, true), 0);
    CHECK_EQUAL(cpu_data_breakpoint(vcpu, 0x2004, 4, false), 0);
    CHECK(cpu_write_dr(vcpu, 4, 0xf) == CPU_OK); /* an alias of DR6 */
    CHECK(cpu_read_dr(vcpu, 6, &value) == CPU_OK && value == 0xffff0fff);
    vcpu->cr4 |= CR4_DE;
    CHECK(cpu_read_dr(vcpu, 4, &value) == CPU_FAULT && vcpu->exception.vector == VECTOR_UD);
    CHECK(cpu_write_dr(vcpu, 7, 1u << 13) == CPU_OK);
    CHECK(cpu_read_dr(vcpu, 0, &value) == CPU_FAULT && vcpu->exception.vector == VECTOR_DB);
    guest_gate(&guest, VECTOR_DB, 14, 0, 0);
    cpu_deliver_exception(vcpu);
    CHECK_EQUAL(vcpu->dr[6], 0xffff2fff);
    CHECK_EQUAL(vcpu->dr[7], 0x400);
    guest_destroy(&guest);
}

static void test_model_specific_registers(void) {
    struct guest guest;
    struct vcpu *vcpu = &guest.vcpu;
    uint64_t value;
    guest_create(&guest, true);
    CHECK(cpu_rdmsr(vcpu, 0x12345, &value) == CPU_FAULT);
    CHECK(cpu_rdmsr(vcpu, MSR_PAT, &value) == CPU_OK && value == 0x0007040600070406);
    CHECK(cpu_wrmsr(vcpu, MSR_PAT, 2) == CPU_FAULT);
    CHECK(cpu_wrmsr(vcpu, MSR_PAT, 0x0407050600070106) == CPU_OK);
    CHECK(cpu_wrmsr(vcpu, 0x2ff, 0xc06) == CPU_OK);
    CHECK(cpu_wrmsr(vcpu, 0x2ff, 0x1000) == CPU_FAULT);
    CHECK(cpu_wrmsr(vcpu, 0x250, 0x0606060606060606) == CPU_OK);
    CHECK(cpu_wrmsr(vcpu, 0x250, 0x0206060606060606) == CPU_FAULT);
    CHECK(cpu_wrmsr(vcpu, 0x201, 1ull << 41) == CPU_FAULT);
    CHECK(cpu_wrmsr(vcpu, MSR_TSC_AUX, 1ull << 32) == CPU_FAULT);
    CHECK(cpu_wrmsr(vcpu, MSR_SPEC_CTRL, 1) == CPU_OK);
    CHECK(cpu_wrmsr(vcpu, MSR_TSC, 1000) == CPU_OK);
    CHECK(vcpu->mode & MODE_TSC_OFFSET);
    CHECK(cpu_rdtsc(vcpu, &value) == CPU_OK && value >= 1000 && value < 1000000000);
    CHECK_EQUAL(vcpu->tsc_adjust, vcpu->tsc_offset);
    CHECK(cpu_wrmsr(vcpu, MSR_TSC_ADJUST, 0) == CPU_OK);
    CHECK_EQUAL(vcpu->tsc_offset, 0);
    CHECK(cpu_wrmsr(vcpu, 0x79, 0x1000) == (guest.model.is_amd ? CPU_FAULT : CPU_OK));
    guest_destroy(&guest);
}

static void test_paravirtual_clock(void) {
    struct guest guest;
    struct vcpu *vcpu = &guest.vcpu;
    guest_create(&guest, true);
    CHECK(cpu_wrmsr(vcpu, MSR_KVM_SYSTEM_TIME, CLOCK_PAGE | 1) == CPU_OK);
    uint32_t version = guest_u32(&guest, CLOCK_PAGE), multiplier = guest_u32(&guest, CLOCK_PAGE + 24);
    int8_t shift = (int8_t)guest.mem.base[CLOCK_PAGE + 28];
    CHECK(version && !(version & 1));
    CHECK_EQUAL(guest.mem.base[CLOCK_PAGE + 29], 1);
    uint64_t ticks = guest.model.tsc_hz; /* one second of them */
    ticks = shift < 0 ? ticks >> -shift : ticks << shift;
    uint64_t ns = (uint64_t)((unsigned __int128)ticks * multiplier >> 32);
    CHECK(ns > 999999000 && ns < 1000001000);
    CHECK(cpu_wrmsr(vcpu, MSR_TSC, 0) == CPU_OK);
    CHECK_EQUAL(guest_u64(&guest, CLOCK_PAGE + 8), vcpu->tsc_offset);
    CHECK_EQUAL(guest_u32(&guest, CLOCK_PAGE), version + 2);
    /* wall clock + system time = now */
    CHECK(cpu_wrmsr(vcpu, MSR_KVM_WALL_CLOCK, CLOCK_PAGE + 64) == CPU_OK);
    uint64_t boot = guest_u32(&guest, CLOCK_PAGE + 68) * 1000000000ull + guest_u32(&guest, CLOCK_PAGE + 72);
    uint64_t tsc = host_tsc();
    tsc = shift < 0 ? tsc >> -shift : tsc << shift;
    uint64_t now = boot + (uint64_t)((unsigned __int128)tsc * multiplier >> 32);
    int64_t off = (int64_t)(host_realtime_ns() - now);
    CHECK(off > -50000000 && off < 50000000);
    CHECK(cpu_wrmsr(vcpu, MSR_KVM_STEAL_TIME, (CLOCK_PAGE + 128) | 2) == CPU_FAULT);
    /* 20 ms without processor time: half by its own will, half stolen; more if others want the processor. */
    uint64_t start = host_tsc(), tick = guest.model.tsc_hz / 1000;
    CHECK(cpu_wrmsr(vcpu, MSR_KVM_STEAL_TIME, (CLOCK_PAGE + 128) | 1) == CPU_OK);
    CHECK_EQUAL(guest_u64(&guest, CLOCK_PAGE + 128), 0);
    CHECK(usleep(20000) == 0);
    vcpu->blocked_ticks += 10 * tick;
    kvm_pv_account_steal(vcpu);
    uint64_t stolen = guest_u64(&guest, CLOCK_PAGE + 128), waited = (host_tsc() - start) / tick;
    CHECK(stolen >= 9000000 && stolen <= (waited + 1) * 1000000);
    CHECK(!(guest_u32(&guest, CLOCK_PAGE + 136) & 1));
    kvm_pv_account_steal(vcpu); /* not so soon again */
    CHECK_EQUAL(guest_u64(&guest, CLOCK_PAGE + 128), stolen);
    CHECK(cpu_wrmsr(vcpu, MSR_KVM_SYSTEM_TIME, (GUEST_RAM - 8) | 1) ==
          CPU_OK); /* out of RAM: nothing happens */
    CHECK(cpu_wrmsr(vcpu, MSR_KVM_EOI, CLOCK_PAGE | 2) == CPU_FAULT);
    CHECK(cpu_wrmsr(vcpu, MSR_KVM_EOI, CLOCK_PAGE | 1) == CPU_OK);
    guest_destroy(&guest);
}

int main(void) {
    test_control_registers();
    test_long_mode_transition();
    test_flags();
    test_debug_registers();
    test_model_specific_registers();
    test_paravirtual_clock();
    return check_result();
}
