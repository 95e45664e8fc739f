/*
 * Model-specific registers as software probes them: what is kept, what is refused, the machine-check banks;
 * hypercalls up to the end of the canonical addresses; cache-line instructions that there are or are not.
 * Source: Intel SDM volume 4; volume 3, 15.3; volume 2. Linux, Documentation/virt/kvm/x86/hypercalls.rst.
 */
#include "paging.h"
#include "runtime.h"

#define NON_CANONICAL 0xaaaaaaaaaaaaaaaaull
#define ADDRESS 0x0000123456789abcull
#define MSR_MISC_ENABLE 0x1a0
#define MSR_MCG_CAP 0x179
#define MSR_MC0_CTL 0x400
#define MSR_PRED_CMD 0x49
#define MSR_AMD_COUNTERS 0xc0010000
#define BANKS_MOST 28

static unsigned write_try(uint32_t msr, uint64_t value) {
    return TRY("wrmsr", : : "c"(msr), "a"((uint32_t)value), "d"((uint32_t)(value >> 32)) : "memory");
}

static unsigned read_try(uint32_t msr) {
    return TRY("rdmsr", : : "c"(msr) : "eax", "edx");
}

/* Writes it, reads it back, and puts the old value back. */
static bool keeps(uint32_t msr, uint64_t value, uint64_t read_only) {
    uint64_t old = read_msr(msr);
    value = (value & ~read_only) | (old & read_only);
    if (write_try(msr, value) != NO_TRAP)
        return false;
    bool same = read_msr(msr) == value;
    write_msr(msr, old);
    return same;
}

static void check_plain(void) {
    check(keeps(MSR_SYSENTER_CS, 0x1234, 0), true, "SYSENTER_CS");
    if (cpu_is_intel()) {
        check(keeps(MSR_SYSENTER_ESP, ADDRESS, 0), true, "SYSENTER_ESP");
        check(keeps(MSR_SYSENTER_EIP, ADDRESS, 0), true, "SYSENTER_EIP");
        check(keeps(MSR_MISC_ENABLE, 0x400c50809, 0x1880), true, "MISC_ENABLE");
    }
    check(keeps(MSR_PAT, 0x07070707, 0), true, "PAT");
    check(keeps(MSR_EFER, read_msr(MSR_EFER) | EFER_SCE, 0), true, "EFER.SCE");
    static const struct {
        uint32_t msr;
        const char *name;
    } addresses[] = {
        {MSR_FS_BASE, "FS_BASE"}, {MSR_GS_BASE, "GS_BASE"}, {MSR_KERNEL_GS_BASE, "KERNEL_GS_BASE"},
        {MSR_LSTAR, "LSTAR"},     {MSR_CSTAR, "CSTAR"},
    };
    for (unsigned i = 0; i < ARRAY_SIZE(addresses); i++) {
        check(keeps(addresses[i].msr, ADDRESS, 0), true, "%s", addresses[i].name);
        check(write_try(addresses[i].msr, NON_CANONICAL), VECTOR_GP, "%s: non-canonical", addresses[i].name);
    }
    check(keeps(MSR_SFMASK, 0xffffffff, 0), true, "SFMASK");
    check(read_try(0x12345), VECTOR_GP, "an MSR that there is not");
}

/* AMD's first four counters and their controls have no bit in CPUID: every guest may clear them. */
static void check_counters(void) {
    struct tally tally;
    bool are_there = !cpu_is_intel();
    tally_begin(&tally, "performance counters without a bit in CPUID");
    for (unsigned i = 0; i < 8; i++) {
        tally_case(&tally, write_try(MSR_AMD_COUNTERS + i, 0), are_there ? NO_TRAP : VECTOR_GP, "write %u",
                   i);
        tally_case(&tally, read_try(MSR_AMD_COUNTERS + i), are_there ? NO_TRAP : VECTOR_GP, "read %u", i);
    }
    tally_end(&tally);
    check(write_try(MSR_PRED_CMD, 1), cpuid(7, 0).d >> 26 & 1 ? NO_TRAP : VECTOR_GP,
          "PRED_CMD is there if CPUID says so");
}

static void check_machine_check(void) {
    struct tally tally;
    unsigned banks = read_msr(MSR_MCG_CAP) & 0xff;
    tally_begin(&tally, "machine-check banks");
    for (unsigned i = 0; i < banks; i++) {
        uint32_t control = MSR_MC0_CTL + 4 * i;
        tally_case(&tally, keeps(control, 0, 0), true, "MC%u_CTL 0", i);
        tally_case(&tally, keeps(control, -1ull, 0), true, "MC%u_CTL ones", i);
        tally_case(&tally, write_try(control, NON_CANONICAL), VECTOR_GP, "MC%u_CTL anything else", i);
        tally_case(&tally, keeps(control + 1, 0, 0), true, "MC%u_STATUS 0", i);
        tally_case(&tally, write_try(control + 1, 1), VECTOR_GP, "MC%u_STATUS 1", i);
        for (unsigned j = 2; j < 4; j++) {
            tally_case(&tally, keeps(control + j, 0, 0), true, "MC%u_%s 0", i, j == 2 ? "ADDR" : "MISC");
            tally_case(&tally, keeps(control + j, -1ull, 0), true, "MC%u_%s ones", i,
                       j == 2 ? "ADDR" : "MISC");
            tally_case(&tally, keeps(control + j, NON_CANONICAL, 0), true, "MC%u_%s", i,
                       j == 2 ? "ADDR" : "MISC");
        }
    }
    tally_end(&tally);
    tally_begin(&tally, "machine-check banks that there are not");
    for (unsigned i = banks; i < BANKS_MOST; i++) {
        for (unsigned j = 0; j < 4; j++) {
            tally_case(&tally, read_try(MSR_MC0_CTL + 4 * i + j), VECTOR_GP, "read %x",
                       MSR_MC0_CTL + 4 * i + j);
            tally_case(&tally, write_try(MSR_MC0_CTL + 4 * i + j, 0), VECTOR_GP, "write %x",
                       MSR_MC0_CTL + 4 * i + j);
        }
    }
    tally_end(&tally);
}

SNIPPET(user_vmcall, "mov $-1, %eax\n\tvmcall");

static void check_hypercalls(void) {
    unsigned long result = -1ul;
    check(TRY("vmcall", : "+a"(result)), NO_TRAP, "vmcall");
    check(result, -1000ul, "vmcall: no such call");
    result = -1ul;
    check(TRY("vmmcall", : "+a"(result)), NO_TRAP, "vmmcall");
    check(result, -1000ul, "vmmcall: no such call");
    struct context c = context_user(user_vmcall);
    context_run(&c);
    check(c.vector << 32 | (uint32_t)c.ax, (uint64_t)VECTOR_DONE << 32 | (uint32_t)-1, "vmcall at CPL 3");

    /* Behind the last canonical instruction there is nowhere to go. */
    uint8_t *page = page_alloc();
    page[4093] = 0x0f;
    page[4094] = 0x01;
    page[4095] = 0xc1;
    page_map(&boot_space, 0x7ffffffff000, (uint64_t)page, PTE_P | PTE_W, 1);
    c = context_kernel((void *)0x7ffffffffffd);
    context_run(&c);
    check_end(&c, VECTOR_GP, 0, "vmcall at the end of the canonical addresses");
    check(c.ip, 0x800000000000, "vmcall at the end of the canonical addresses: rip");
}

static void check_cache_lines(void) {
    static uint8_t line[64] __attribute__((aligned(64)));
    struct cpuid one = cpuid(1, 0), seven = cpuid(7, 0);
    struct {
        const char *name;
        unsigned vector;
        bool has;
    } cases[] = {
        {"clflush",
         TRY("clflush %0",
             :
             : "m"(line)),
         one.d >> 19 & 1},
        {"clflushopt",
         TRY(".byte 0x66, 0x0f, 0xae, 0x3b",
             :
             : "b"(line)
             : "memory"),
         seven.b >> 23 & 1},
        {"clwb",
         TRY(".byte 0x66, 0x0f, 0xae, 0x33",
             :
             : "b"(line)
             : "memory"),
         seven.b >> 24 & 1},
        {"pcommit",
         TRY(".byte 0x66, 0x0f, 0xae, 0xf8",
             :),
         seven.b >> 22 & 1},
        {"sfence",
         TRY("sfence",
             :),
         one.d >> 25 & 1},
        {"lfence",
         TRY("lfence",
             :),
         one.d >> 26 & 1},
        {"mfence",
         TRY("mfence",
             :),
         one.d >> 26 & 1},
        {"sfence by another code",
         TRY(".byte 0x0f, 0xae, 0xff",
             :),
         one.d >> 25 & 1},
        {"lfence by another code",
         TRY(".byte 0x0f, 0xae, 0xef",
             :),
         one.d >> 26 & 1},
        {"prefetcht0 of nowhere",
         TRY("prefetcht0 (%%rbx)",
             :
             : "b"(NON_CANONICAL)),
         true},
    };
    for (unsigned i = 0; i < ARRAY_SIZE(cases); i++)
        check(cases[i].vector, cases[i].has ? NO_TRAP : VECTOR_UD, "%s", cases[i].name);
}

void kernel_main(void) {
    check_plain();
    check_counters();
    check_machine_check();
    check_hypercalls();
    check_cache_lines();
    checks_finish("msr64");
}
