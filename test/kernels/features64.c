/*
 * Instructions that CPUID does not offer are undefined, whatever the host's processor would make of them:
 * those that no guest is given, and those that features64.test takes away. Encodings that are hints, or
 * another instruction, where the feature is missing are that. Source: Intel SDM volume 2 and AMD APM volume
 * 3, the #UD of each.
 */
#include "runtime.h"

#define XCR0_AVX 7

struct code {
    const char *name;
    uint8_t length, bytes[9];
};

static const struct code never[] = {
    {"clzero", 3, {0x0f, 0x01, 0xfc}},
    {"rdpru", 3, {0x0f, 0x01, 0xfd}},
    {"monitor", 3, {0x0f, 0x01, 0xc8}},
    {"mwait", 3, {0x0f, 0x01, 0xc9}},
    {"monitorx", 3, {0x0f, 0x01, 0xfa}},
    {"mwaitx", 3, {0x0f, 0x01, 0xfb}},
    {"mcommit", 4, {0xf3, 0x0f, 0x01, 0xfa}},
    {"femms", 2, {0x0f, 0x0e}},
    {"pfadd", 4, {0x0f, 0x0f, 0xc1, 0x9e}},
    {"xbegin", 6, {0xc7, 0xf8, 0, 0, 0, 0}},
    {"xend", 3, {0x0f, 0x01, 0xd5}},
    {"xtest", 3, {0x0f, 0x01, 0xd6}},
    {"xabort", 3, {0xc6, 0xf8, 0}},
    {"xsusldtrk", 4, {0xf2, 0x0f, 0x01, 0xe8}},
    {"rdpkru", 3, {0x0f, 0x01, 0xee}},
    {"wrpkru", 3, {0x0f, 0x01, 0xef}},
    {"encls", 3, {0x0f, 0x01, 0xcf}},
    {"enclu", 3, {0x0f, 0x01, 0xd7}},
    {"vmlaunch", 3, {0x0f, 0x01, 0xc2}},
    {"vmxoff", 3, {0x0f, 0x01, 0xc4}},
    {"vmfunc", 3, {0x0f, 0x01, 0xd4}},
    {"vmread", 3, {0x0f, 0x78, 0xc0}},
    {"vmptrld", 3, {0x0f, 0xc7, 0x30}},
    {"vmrun", 3, {0x0f, 0x01, 0xd8}},
    {"vmload", 3, {0x0f, 0x01, 0xda}},
    {"stgi", 3, {0x0f, 0x01, 0xdc}},
    {"clgi", 3, {0x0f, 0x01, 0xdd}},
    {"skinit", 3, {0x0f, 0x01, 0xde}},
    {"invlpga", 3, {0x0f, 0x01, 0xdf}},
    {"invlpgb", 3, {0x0f, 0x01, 0xfe}},
    {"tlbsync", 3, {0x0f, 0x01, 0xff}},
    {"pvalidate", 4, {0xf2, 0x0f, 0x01, 0xff}},
    {"tdcall", 4, {0x66, 0x0f, 0x01, 0xcc}},
    {"getsec", 2, {0x0f, 0x37}},
    {"pconfig", 3, {0x0f, 0x01, 0xc5}},
    {"ptwrite", 4, {0xf3, 0x0f, 0xae, 0xe0}},
    {"umonitor", 4, {0xf3, 0x0f, 0xae, 0xf0}},
    {"umwait", 4, {0xf2, 0x0f, 0xae, 0xf0}},
    {"tpause", 4, {0x66, 0x0f, 0xae, 0xf0}},
    {"senduipi", 4, {0xf3, 0x0f, 0xc7, 0xf0}},
    {"uiret", 4, {0xf3, 0x0f, 0x01, 0xec}},
    {"clui", 4, {0xf3, 0x0f, 0x01, 0xee}},
    {"hreset", 6, {0xf3, 0x0f, 0x3a, 0xf0, 0xc0, 0}},
    {"enqcmd", 5, {0xf2, 0x0f, 0x38, 0xf8, 0x00}},
    {"loadiwkey", 5, {0xf3, 0x0f, 0x38, 0xdc, 0xc1}},
    {"encodekey128", 5, {0xf3, 0x0f, 0x38, 0xfa, 0xc0}},
    {"aesenc128kl", 5, {0xf3, 0x0f, 0x38, 0xdc, 0x00}},
    {"setssbsy", 4, {0xf3, 0x0f, 0x01, 0xe8}},
    {"incsspd", 4, {0xf3, 0x0f, 0xae, 0xe8}},
    {"wrssd", 4, {0x0f, 0x38, 0xf6, 0x00}},
    {"xsaves", 3, {0x0f, 0xc7, 0x28}},
    {"xrstors", 3, {0x0f, 0xc7, 0x18}},
    {"tilerelease", 5, {0xc4, 0xe2, 0x78, 0x49, 0xc0}},
    {"llwpcb", 5, {0x8f, 0xe9, 0x78, 0x12, 0xc0}},
    {"blcfill", 5, {0x8f, 0xe9, 0x78, 0x01, 0xc8}},
    {"vfmaddps", 6, {0xc4, 0xe3, 0xf9, 0x68, 0xc0, 0}},
    {"vpcmov", 6, {0x8f, 0xe8, 0x78, 0xa2, 0xc0, 0}},
    {"rsm", 2, {0x0f, 0xaa}},
    {"ud0", 3, {0x0f, 0xff, 0xc0}},
    {"ud1", 3, {0x0f, 0xb9, 0xc0}},
};

static const struct code withheld[] = {
    {"popcnt", 4, {0xf3, 0x0f, 0xb8, 0xc1}},
    {"movbe", 4, {0x0f, 0x38, 0xf0, 0x08}},
    {"crc32", 5, {0xf2, 0x0f, 0x38, 0xf0, 0xc1}},
    {"pcmpgtq", 5, {0x66, 0x0f, 0x38, 0x37, 0xc1}},
    {"adcx", 5, {0x66, 0x0f, 0x38, 0xf6, 0xc1}},
    {"rdrand", 3, {0x0f, 0xc7, 0xf0}},
    {"rdseed", 3, {0x0f, 0xc7, 0xf8}},
    {"aesenc", 5, {0x66, 0x0f, 0x38, 0xdc, 0xc1}},
    {"pclmulqdq", 6, {0x66, 0x0f, 0x3a, 0x44, 0xc1, 0}},
    {"vpclmulqdq", 6, {0xc4, 0xe3, 0x71, 0x44, 0xc1, 0}},
    {"sha1msg1", 4, {0x0f, 0x38, 0xc9, 0xc1}},
    {"rdtscp", 3, {0x0f, 0x01, 0xf9}},
    {"rdpid", 4, {0xf3, 0x0f, 0xc7, 0xf8}},
    {"lahf", 1, {0x9f}},
    {"sahf", 1, {0x9e}},
    {"cmpxchg16b", 4, {0x48, 0x0f, 0xc7, 0x08}},
    {"andn", 5, {0xc4, 0xe2, 0x70, 0xf2, 0xc1}},
    {"andn from memory", 5, {0xc4, 0xe2, 0x70, 0xf2, 0x08}},
    {"shlx", 5, {0xc4, 0xe2, 0x71, 0xf7, 0xc1}},
    {"clflushopt", 4, {0x66, 0x0f, 0xae, 0x38}},
    {"clwb", 4, {0x66, 0x0f, 0xae, 0x30}},
    {"vpaddd ymm", 4, {0xc5, 0xf5, 0xfe, 0xc1}},
    {"vpgatherdd", 6, {0xc4, 0xe2, 0x71, 0x90, 0x04, 0x10}},
    {"vpmaskmovd", 5, {0xc4, 0xe2, 0x71, 0x8c, 0x00}},
    {"vfmadd132ps", 5, {0xc4, 0xe2, 0x71, 0x98, 0xc1}},
    {"vcvtph2ps", 5, {0xc4, 0xe2, 0x79, 0x13, 0xc1}},
    {"invpcid", 5, {0x66, 0x0f, 0x38, 0x82, 0x00}},
};

/* No-operations without CET, MPX, PREFETCHW, CLDEMOTE and WBNOINVD (which is WBINVD, at CPL 0). */
static const struct code harmless[] = {
    {"endbr64", 4, {0xf3, 0x0f, 0x1e, 0xfa}}, {"rdsspq", 5, {0xf3, 0x48, 0x0f, 0x1e, 0xc8}},
    {"bndmk", 4, {0xf3, 0x0f, 0x1b, 0x00}},   {"prefetchw", 3, {0x0f, 0x0d, 0x08}},
    {"prefetchwt1", 3, {0x0f, 0x0d, 0x10}},   {"cldemote", 3, {0x0f, 0x1c, 0x00}},
    {"wbnoinvd", 3, {0xf3, 0x0f, 0x09}},
};

static uint8_t *page, *buffer;

/* Runs the code, then INT VECTOR_DONE. */
static void run(struct context *c, const struct code *code, bool user) {
    for (unsigned i = 0; i < code->length; i++)
        ((volatile uint8_t *)page)[i] = code->bytes[i];
    static const uint8_t end[] = {0xcd, 0x40, 0x0f, 0x0b};
    for (unsigned i = 0; i < sizeof(end); i++)
        ((volatile uint8_t *)page)[code->length + i] = end[i];
    *c = user ? context_user(page) : context_kernel(page);
    c->ax = (unsigned long)(user ? user_pointer(buffer) : buffer);
    c->bx = c->bp = 0;
    c->cx = 0x10;
    c->dx = 0;
    context_run(c);
}

static void check_undefined(const struct code *codes, unsigned count, const char *name) {
    struct tally tally;
    struct context c;
    tally_begin(&tally, name);
    for (unsigned i = 0; i < count; i++) {
        for (unsigned user = 0; user < 2; user++) {
            run(&c, &codes[i], user);
            tally_case(&tally, c.vector, VECTOR_UD, "%s at CPL %u", codes[i].name, user * 3);
            tally_case(&tally, c.ip & 0xfff, 0, "%s at CPL %u: rip", codes[i].name, user * 3);
        }
    }
    tally_end(&tally);
}

static void check_harmless(void) {
    struct tally tally;
    struct context c;
    tally_begin(&tally, "hints of missing features do nothing");
    for (unsigned i = 0; i < ARRAY_SIZE(harmless); i++) {
        run(&c, &harmless[i], false);
        tally_case(&tally, c.vector, VECTOR_DONE, "%s", harmless[i].name);
        tally_case(&tally, c.ax, (unsigned long)buffer, "%s: rax", harmless[i].name);
    }
    tally_end(&tally);
}

static void check_scans(void) {
    static const struct code lzcnt = {"lzcnt", 4, {0xf3, 0x0f, 0xbd, 0xc1}};
    static const struct code tzcnt = {"tzcnt", 4, {0xf3, 0x0f, 0xbc, 0xc2}};
    static const struct code lzcnt_memory = {"lzcnt", 5, {0xf3, 0x48, 0x0f, 0xbd, 0x00}};
    struct context c;
    run(&c, &lzcnt, false);
    check(c.ax, 4, "lzcnt without the feature is bsr");
    run(&c, &tzcnt, false);
    check(c.ax, (unsigned long)buffer, "tzcnt without the feature is bsf: of 0");
    check(c.flags >> 6 & 1, 1, "tzcnt without the feature is bsf: ZF");
    *(volatile unsigned long *)buffer = 1ul << 42;
    run(&c, &lzcnt_memory, true);
    check(c.ax, 42, "lzcnt of memory without the feature is bsr");
}

void kernel_main(void) {
    page = page_alloc();
    buffer = page_alloc();
    write_cr4(read_cr4() | CR4_OSFXSR | CR4_OSXMMEXCPT);
    if (cpuid(1, 0).c & 1u << 26) {
        write_cr4(read_cr4() | CR4_OSXSAVE);
        if (cpuid(1, 0).c & 1u << 28)
            asm volatile("xsetbv" : : "c"(0), "a"(XCR0_AVX), "d"(0));
    }
    check(cpuid(1, 0).c & (1u << 23 | 1u << 22 | 1u << 20 | 1u << 13), 0, "cpuid: features are withheld");
    check_undefined(never, ARRAY_SIZE(never), "instructions that no guest has");
    check_undefined(withheld, ARRAY_SIZE(withheld), "instructions that this guest is not given");
    check_harmless();
    check_scans();
    checks_finish("features64");
}
