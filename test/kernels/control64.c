/*
 * Control registers, EFER, XCR0 and MSRs: what may be written, what faults, and which instructions they
 * switch on and off at which privilege level. Source: Intel SDM volume 3, 2.5, 2.6, 13.5; volume 4; volume 2.
 */
#include "control64.h"

#include "runtime.h"

SNIPPET(user_hlt, "hlt");
SNIPPET(user_cli, "cli");
SNIPPET(user_sti, "sti");
SNIPPET(user_in, "in $0x80, %al");
SNIPPET(user_out, "out %al, $0x80");
SNIPPET(user_ins, "mov $0x80, %dx\n\tinsb");
SNIPPET(user_lgdt, "lgdt (%rdi)");
SNIPPET(user_lidt, "lidt (%rdi)");
SNIPPET(user_lldt, "lldt %ax");
SNIPPET(user_ltr, "ltr %ax");
SNIPPET(user_lmsw, "lmsw %ax");
SNIPPET(user_clts, "clts");
SNIPPET(user_read_cr0, "mov %cr0, %rax");
SNIPPET(user_write_cr3, "mov %rax, %cr3");
SNIPPET(user_read_cr8, "mov %cr8, %rax");
SNIPPET(user_invlpg, "invlpg (%rdi)");
SNIPPET(user_invd, "invd");
SNIPPET(user_wbinvd, "wbinvd");
SNIPPET(user_rdmsr, "mov $0x10, %ecx\n\trdmsr");
SNIPPET(user_wrmsr, "mov $0x10, %ecx\n\twrmsr");
SNIPPET(user_rdtsc, "rdtsc");
SNIPPET(user_rdtscp, "rdtscp");
SNIPPET(user_rdpmc, "xor %ecx, %ecx\n\trdpmc");
SNIPPET(user_sgdt, "sgdt -64(%rsp)");
SNIPPET(user_sidt, "sidt -64(%rsp)");
SNIPPET(user_sldt, "sldt %eax");
SNIPPET(user_str, "str %eax");
SNIPPET(user_smsw, "smsw %eax");
SNIPPET(user_cpuid, "xor %eax, %eax\n\tcpuid");

static unsigned user_vector(const void *code) {
    struct context c = context_user(code);
    c.di = (unsigned long)user_pointer(gdt);
    context_run(&c);
    return (unsigned)c.vector;
}

static void check_privileged(void) {
    static const struct {
        const char *name;
        const void *code;
    } privileged[] = {
        {"hlt", user_hlt},
        {"cli", user_cli},
        {"sti", user_sti},
        {"in", user_in},
        {"out", user_out},
        {"ins", user_ins},
        {"lgdt", user_lgdt},
        {"lidt", user_lidt},
        {"lldt", user_lldt},
        {"ltr", user_ltr},
        {"lmsw", user_lmsw},
        {"clts", user_clts},
        {"mov from cr0", user_read_cr0},
        {"mov to cr3", user_write_cr3},
        {"mov from cr8", user_read_cr8},
        {"invlpg", user_invlpg},
        {"invd", user_invd},
        {"wbinvd", user_wbinvd},
        {"rdmsr", user_rdmsr},
        {"wrmsr", user_wrmsr},
    };
    struct tally tally;
    tally_begin(&tally, "privileged at CPL 3");
    for (unsigned i = 0; i < ARRAY_SIZE(privileged); i++)
        tally_case(&tally, user_vector(privileged[i].code), VECTOR_GP, "%s", privileged[i].name);
    tally_end(&tally);
    check(user_vector(user_cpuid), VECTOR_DONE, "cpuid at CPL 3");

    static const struct {
        const char *name;
        const void *code;
    } stores[] = {{"sgdt", user_sgdt},
                  {"sidt", user_sidt},
                  {"sldt", user_sldt},
                  {"str", user_str},
                  {"smsw", user_smsw}};
    bool has_umip = cpuid(7, 0).c & BIT(2);
    for (unsigned umip = 0; umip <= has_umip; umip++) {
        if (has_umip)
            write_cr4((read_cr4() & ~CR4_UMIP) | (umip ? CR4_UMIP : 0));
        for (unsigned i = 0; i < ARRAY_SIZE(stores); i++)
            check(user_vector(stores[i].code), umip ? VECTOR_GP : VECTOR_DONE, "%s at CPL 3, UMIP %u",
                  stores[i].name, umip);
    }
    if (has_umip)
        write_cr4(read_cr4() & ~CR4_UMIP);

    for (unsigned tsd = 0; tsd < 2; tsd++) {
        write_cr4((read_cr4() & ~CR4_TSD) | (tsd ? CR4_TSD : 0));
        check(user_vector(user_rdtsc), tsd ? VECTOR_GP : VECTOR_DONE, "rdtsc at CPL 3, TSD %u", tsd);
        if (cpuid(0x80000001, 0).d & BIT(27))
            check(user_vector(user_rdtscp), tsd ? VECTOR_GP : VECTOR_DONE, "rdtscp at CPL 3, TSD %u", tsd);
        check(TRY("rdtsc", : : : "rax", "rdx"), NO_TRAP, "rdtsc at CPL 0, TSD %u", tsd);
    }
    write_cr4(read_cr4() & ~CR4_TSD);
    check(user_vector(user_rdpmc), VECTOR_GP, "rdpmc at CPL 3 without PCE");
}

static unsigned cr0_try(unsigned long value) {
    unsigned long saved = read_cr0();
    unsigned vector = TRY("mov %0, %%cr0", : : "r"(value) : "memory");
    write_cr0(saved);
    return vector;
}

static unsigned cr4_try(unsigned long value) {
    unsigned long saved = read_cr4();
    unsigned vector = TRY("mov %0, %%cr4", : : "r"(value) : "memory");
    write_cr4(saved);
    return vector;
}

static unsigned msr_try(uint32_t index, uint64_t value) {
    return TRY("wrmsr", : : "c"(index), "a"((uint32_t)value), "d"((uint32_t)(value >> 32)) : "memory");
}

static void check_control(void) {
    unsigned long cr0 = read_cr0(), cr3 = read_cr3(), cr4 = read_cr4();
    unsigned long value;
    check(cr0_try((cr0 & ~CR0_CD) | CR0_NW), VECTOR_GP, "cr0: NW without CD");
    check(cr0_try(cr0 | BIT(32)), VECTOR_GP, "cr0: an upper bit");
    check(cr0_try(cr0 | CR0_AM), NO_TRAP, "cr0: AM");
    write_cr0(cr0 & ~CR0_ET);
    check(read_cr0() & CR0_ET, CR0_ET, "cr0: ET is fixed");
    write_cr0(cr0);
    if (!(cpuid(7, 0).c & BIT(2)))
        check(cr4_try(cr4 | CR4_UMIP), VECTOR_GP, "cr4: UMIP without the feature");
    if (!(cpuid(7, 0).b & BIT(20)))
        check(cr4_try(cr4 | CR4_SMAP), VECTOR_GP, "cr4: SMAP without the feature");
    if (!(cpuid(7, 0).c & BIT(3)))
        check(cr4_try(cr4 | CR4_PKE), VECTOR_GP, "cr4: PKE without the feature");
    if (!(cpuid(1, 0).c & BIT(26)))
        check(cr4_try(cr4 | CR4_OSXSAVE), VECTOR_GP, "cr4: OSXSAVE without the feature");
    check(TRY("mov %0, %%cr3", : : "r"(cr3 | 0x18) : "memory"), NO_TRAP, "cr3: PWT and PCD");
    write_cr3(cr3);
    check(TRY(".byte 0x0f, 0x20, 0xc8", : : : "rax"), VECTOR_UD, "mov from cr1");
    check(TRY(".byte 0x0f, 0x22, 0xe8", : : : "rax"), VECTOR_UD, "mov to cr5");
    check(TRY("mov %0, %%cr8", : : "r"(16ul)), VECTOR_GP, "cr8: a reserved bit");
    check(TRY("mov %1, %%cr8\n\tmov %%cr8, %0", : "=r"(value) : "r"(5ul)), NO_TRAP, "cr8");
    check(value, 5, "cr8: value");
    asm volatile("mov %0, %%cr8" : : "r"(0ul));

    uint64_t efer = read_msr(MSR_EFER);
    check(efer & (EFER_LME | EFER_LMA), EFER_LME | EFER_LMA, "EFER in long mode");
    check(msr_try(MSR_EFER, efer | BIT(20)), VECTOR_GP, "EFER: a reserved bit");
    check(msr_try(MSR_EFER, efer & ~EFER_LME), VECTOR_GP, "EFER: LME cleared under paging");
    check(msr_try(MSR_EFER, efer & ~EFER_LMA), NO_TRAP, "EFER: LMA is read-only and ignored");
    check(read_msr(MSR_EFER), efer, "EFER: unchanged");
}

static void check_msrs(void) {
    check(TRY("rdmsr", : : "c"(0x12345678) : "rax", "rdx"), VECTOR_GP, "rdmsr of an unknown MSR");
    check(probe.error, 0, "rdmsr of an unknown MSR: error code");
    check(TRY("wrmsr", : : "c"(0x12345678), "a"(0), "d"(0)), VECTOR_GP, "wrmsr of an unknown MSR");
    check(TRY("wrmsr", : : "c"(0xc0010999), "a"(0), "d"(0)), VECTOR_GP, "wrmsr of another unknown MSR");
    write_msr(MSR_KERNEL_GS_BASE, 0xffff800012345678);
    check(read_msr(MSR_KERNEL_GS_BASE), 0xffff800012345678, "KERNEL_GS_BASE keeps an address");
    check(msr_try(MSR_KERNEL_GS_BASE, 0x0000800000000000), VECTOR_GP, "KERNEL_GS_BASE: non-canonical");
    write_msr(MSR_STAR, 0x0023001012345678);
    check(read_msr(MSR_STAR), 0x0023001012345678, "STAR keeps its bits");
    check(msr_try(MSR_SYSENTER_ESP, 0x0000800000000000), VECTOR_GP, "SYSENTER_ESP: non-canonical");
    uint64_t pat = read_msr(MSR_PAT);
    check(msr_try(MSR_PAT, (pat & ~0xffull) | 2), VECTOR_GP, "PAT: reserved type");
    check(msr_try(MSR_PAT, pat | 8), VECTOR_GP, "PAT: reserved bit");
    check(msr_try(MSR_PAT, pat), NO_TRAP, "PAT");
    check(msr_try(MSR_APIC_BASE, read_msr(MSR_APIC_BASE) | 1), VECTOR_GP, "APIC_BASE: reserved bit");
    uint64_t tsc = read_tsc();
    check(read_tsc() > tsc, true, "the TSC goes on");
    uint32_t low, high, aux;
    if (cpuid(0x80000001, 0).d & BIT(27)) {
        write_msr(MSR_TSC_AUX, 0x1234);
        asm volatile("rdtscp" : "=a"(low), "=d"(high), "=c"(aux));
        check(aux, 0x1234, "rdtscp: TSC_AUX");
        if (cpuid(7, 0).c & BIT(22)) {
            unsigned long id;
            asm volatile("rdpid %0" : "=r"(id));
            check(id, 0x1234, "rdpid");
        } else {
            check_skip("rdpid", "no feature");
        }
        check(msr_try(MSR_TSC_AUX, BIT(32)), VECTOR_GP, "TSC_AUX: upper half");
    } else {
        check(TRY("rdtscp", : : : "rax", "rcx", "rdx"), VECTOR_UD, "rdtscp without the feature");
    }
    check(cpuid(1, 0).a != 0, true, "cpuid leaf 1");
    struct cpuid top = cpuid(0, 0);
    check(top.a >= 0xd && top.a < 0x100, true, "cpuid: highest basic leaf");
    check(cpuid(0x80000008, 0).a >> 8 & 0xff, cpuid(7, 0).c & BIT(16) ? 57 : 48,
          "cpuid: linear address bits");
    check(cpuid(1, 0).c >> 27 & 1, read_cr4() & CR4_OSXSAVE ? 1 : 0, "cpuid: OSXSAVE follows cr4");
    /* The low and the high half come from eax and edx alone. */
    asm volatile("wrmsr"
                 :
                 : "c"(0xffffffff00000000ul | MSR_KERNEL_GS_BASE), "a"(0x1111111111112222),
                   "d"(0x3333333300007fff));
    check(read_msr(MSR_KERNEL_GS_BASE), 0x7fff11112222, "wrmsr ignores the upper halves of its registers");
    unsigned long a = ~0ul, d = ~0ul;
    asm volatile("rdmsr" : "+a"(a), "+d"(d) : "c"(MSR_KERNEL_GS_BASE));
    check(a, 0x11112222, "rdmsr clears the upper half of rax");
    check(d, 0x7fff, "rdmsr clears the upper half of rdx");
    write_msr(MSR_KERNEL_GS_BASE, 0);
}

/* Ports at CPL 3: IOPL, and the I/O map of the TSS. */
SNIPPET(port_in8, "in %dx, %al");
SNIPPET(port_out16, "out %ax, %dx");
SNIPPET(port_in32, "in %dx, %eax");
SNIPPET(port_outs, "mov %rsp, %rsi\n\tsub $64, %rsi\n\toutsb");

static void check_ports(void) {
    uint8_t *map = cpu_io_map(0);
    struct context c;
    static const void *const codes[] = {port_in8, port_out16, port_in32, port_outs};
    static const unsigned sizes[] = {1, 2, 4, 1};
    struct tally tally;
    for (unsigned iopl = 0; iopl < 4; iopl++) {
        c = context_user(port_in8);
        c.flags |= FLAG_IOPL(iopl);
        c.dx = 0x80;
        context_run(&c);
        check_end(&c, iopl == 3 ? VECTOR_DONE : VECTOR_GP, 0, "in at CPL 3 by IOPL");
        c = context_user(user_sti);
        c.flags |= FLAG_IOPL(iopl);
        context_run(&c);
        check_end(&c, iopl == 3 ? VECTOR_DONE : VECTOR_GP, 0, "sti at CPL 3 by IOPL");
    }
    cpu_tss(0)->io_map = IO_MAP_OFFSET;
    tally_begin(&tally, "ports by the I/O map");
    for (unsigned denied = 0x7c; denied < 0x90; denied++) {
        for (unsigned i = 0; i < 32; i++)
            map[i] = 0;
        map[denied / 8] |= (uint8_t)(1 << denied % 8);
        for (unsigned i = 0; i < ARRAY_SIZE(codes); i++) {
            c = context_user(codes[i]);
            c.dx = 0x84;
            context_run(&c);
            unsigned want = denied >= 0x84 && denied < 0x84 + sizes[i] ? VECTOR_GP : VECTOR_DONE;
            tally_case(&tally, c.vector, want, "port 0x%x denied, access of %u", denied, sizes[i]);
        }
        map[denied / 8] = 0;
    }
    tally_end(&tally);
    /* Bits that lie beyond the limit of the TSS are ones. */
    uint64_t *descriptor = &gdt[TSS_SELECTOR / 8];
    uint64_t saved = *descriptor;
    *(volatile uint64_t *)descriptor = (saved & ~0x000f02000000ffffull) | (IO_MAP_OFFSET + 0x84 / 8);
    asm volatile("ltr %w0" : : "r"(TSS_SELECTOR));
    c = context_user(port_in8);
    c.dx = 0x84;
    context_run(&c);
    check_end(&c, VECTOR_GP, 0, "a port whose second byte lies beyond the TSS");
    c = context_user(port_in8);
    c.dx = 0x7c;
    context_run(&c);
    check_end(&c, VECTOR_DONE, 0, "a port whose bytes lie in the TSS");
    *(volatile uint64_t *)descriptor = saved & ~BIT(41);
    asm volatile("ltr %w0" : : "r"(TSS_SELECTOR));
    cpu_tss(0)->io_map = sizeof(struct tss64) + IO_MAP_BYTES;
}

void kernel_main(void) {
    check_privileged();
    check_control();
    check_msrs();
    check_ports();
    fpu_check();
    /* Last, since a machine that lets it pass does not get further. */
    check(TRY("mov %0, %%cr3", : : "r"(read_cr3() | BIT(62)) : "memory"), VECTOR_GP, "cr3: bit 62");
    check(cr4_try(read_cr4() | BIT(63)), VECTOR_GP, "cr4: an upper bit");
    check(cr4_try(read_cr4() | BIT(15)), VECTOR_GP, "cr4: bit 15");
    check(cr0_try(read_cr0() & ~CR0_PE), VECTOR_GP, "cr0: PG without PE");
    check(cr0_try(read_cr0() & ~CR0_PG), VECTOR_GP, "cr0: PG cleared in 64-bit mode");
    check(cr4_try(read_cr4() ^ CR4_LA57), VECTOR_GP, "cr4: LA57 toggled in long mode");
    check(cr4_try(read_cr4() & ~CR4_PAE), VECTOR_GP, "cr4: PAE cleared in long mode");
    checks_finish("control64");
}
