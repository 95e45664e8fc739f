/* The CPU model: what a guest sees in CPUID, and how --cpu changes it. */
#include "cpu_guest.h"

#include <string.h>

static struct cpu_model model_of(const char *spec, unsigned cpus, int expected) {
    struct cpu_model model;
    char error[160] = "";
    CHECK_EQUAL(cpu_model_create(&model, spec, cpus, error, sizeof error), expected);
    CHECK((error[0] != 0) == (expected != 0));
    CHECK(!strchr(error, '\n'));
    return model;
}

static void test_names(void) {
    struct cpu_model model = model_of("host", 1, 0);
    CHECK(cpu_model_has(&model, "nx") && cpu_model_has(&model, "pcid") && cpu_model_has(&model, "smap"));
    CHECK(cpu_model_has(&model, "x2apic") && cpu_model_has(&model, "tsc_deadline_timer"));
    CHECK(cpu_model_has(&model, "nonstop_tsc") && cpu_model_has(&model, "arat"));
    CHECK(cpu_model_has(&model, "kvm_pv_eoi") && !cpu_model_has(&model, "no-such-thing"));
    model = model_of("host,-avx", 1, 0);
    CHECK(!cpu_model_has(&model, "avx") && !cpu_model_has(&model, "avx2") &&
          !cpu_model_has(&model, "avx512f"));
    CHECK_EQUAL(model.xcr0_mask, 3);
    model = model_of("host,-pcid,-kvm_pv_eoi", 1, 0);
    CHECK(!model.has_pcid && !(model.cr4_mask & CR4_PCIDE) && !cpu_model_has(&model, "kvm_pv_eoi"));
    CHECK(!model.has_invpcid); /* no processor has the one without the other */
    model = model_of("x86-64-v2", 1, 0);
    CHECK(cpu_model_has(&model, "sse4_2") && !cpu_model_has(&model, "avx") && cpu_model_has(&model, "smep"));
    model_of("pentium", 1, -22);
    model_of("host,+", 1, -22);
    model_of("host,avx", 1, -22);
    model_of("host,+vmx", 1, -22);
    model_of("", 1, -22);
    model_of("host,", 1, -22);
    CHECK(!strcmp(cpu_model_names()[0], "host"));
}

static void cpuid(struct guest *guest, uint32_t leaf, uint32_t subleaf, uint32_t out[4]) {
    cpu_cpuid(&guest->vcpu, leaf, subleaf, out);
}

static void test_leaves(void) {
    struct guest guest;
    uint32_t out[4], highest[4];
    guest_create(&guest, true);
    guest.vcpu.index = 1;
    cpuid(&guest, 1, 0, out);
    CHECK_EQUAL(out[1] >> 24, 1);
    CHECK_EQUAL(out[1] >> 16 & 0xff, 2);
    CHECK(out[2] >> 31 && out[2] >> 27 & 1);         /* hypervisor; OSXSAVE follows CR4 */
    CHECK(!(out[2] >> 5 & 1) && !(out[2] >> 3 & 1)); /* VMX, MONITOR */
    guest.vcpu.cr4 &= ~CR4_OSXSAVE;
    cpuid(&guest, 1, 0, out);
    CHECK(!(out[2] >> 27 & 1));
    cpuid(&guest, 7, 0, out);
    CHECK(!(out[1] >> 11 & 1) && !(out[1] >> 4 & 1) && !(out[1] >> 14 & 1)); /* RTM, HLE, MPX */
    CHECK(!(out[2] >> 3 & 1) && !(out[2] >> 16 & 1) && !(out[3] >> 24 & 1)); /* PKU, LA57, AMX */
    CHECK(!(out[3] >> 26 & 1) && out[3] >> 29 & 1); /* no SPEC_CTRL, but ARCH_CAPABILITIES */
    cpuid(&guest, 0xb, 0, out);
    CHECK(out[0] == 0 && out[1] == 1 && out[2] == 0x100 && out[3] == 1);
    cpuid(&guest, 0xb, 1, out);
    CHECK(out[0] == 1 && out[1] == 2 && out[2] == 0x201 && out[3] == 1);
    cpuid(&guest, 0xb, 2, out);
    CHECK(out[0] == 0 && out[1] == 0 && out[2] == 2 && out[3] == 1);
    cpuid(&guest, 0x40000000, 0, out);
    CHECK(!memcmp(out + 1, "KVMKVMKVM\0\0\0", 12));
    cpuid(&guest, 0x40000001, 0, out);
    CHECK_EQUAL(out[0], 1u << 24 | 1u << 11 | 1u << 6 | 1u << 5 | 1u << 4 | 1u << 3 | 1u << 1 | 1u << 0);
    cpuid(&guest, 0x80000008, 0, out);
    CHECK_EQUAL(out[0], 40 | 48 << 8);
    cpuid(&guest, 0, 0, highest);
    cpuid(&guest, 0x1234, 0, out);
    CHECK(guest.model.is_amd ? !out[0] : true);
    cpuid(&guest, 0x90000000, 0, out);
    guest_destroy(&guest);
}

static void test_xsave_sizes(void) {
    struct guest guest;
    uint32_t out[4], avx[4];
    guest_create(&guest, true);
    cpuid(&guest, 0xd, 0, out);
    CHECK_EQUAL(out[1], 576); /* XCR0 is 1 */
    if (cpu_model_has(&guest.model, "avx")) {
        CHECK(cpu_xsetbv(&guest.vcpu, 0, 4 | 1) == CPU_FAULT);
        CHECK(cpu_xsetbv(&guest.vcpu, 0, 7) == CPU_OK);
        cpuid(&guest, 0xd, 2, avx);
        CHECK_EQUAL(avx[0], 256);
        cpuid(&guest, 0xd, 0, out);
        CHECK_EQUAL(out[1], avx[0] + avx[1]);
        CHECK(out[2] >= out[1]);
    }
    CHECK(cpu_xsetbv(&guest.vcpu, 0, 0) == CPU_FAULT);
    CHECK(cpu_xsetbv(&guest.vcpu, 0, 0x20 | 7) == CPU_FAULT); /* a part of AVX-512 */
    CHECK(cpu_xsetbv(&guest.vcpu, 1, 7) == CPU_FAULT);
    guest_destroy(&guest);
}

int main(void) {
    test_names();
    test_leaves();
    test_xsave_sizes();
    return check_result();
}
