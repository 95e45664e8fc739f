/* Code that the host's own mode cannot run: 16- and 32-bit snippets with the results that the manual gives.
 */
#include "interp_guest.h"

#include <stdio.h>
#include <string.h>
#include <time.h>

struct expectation {
    const char *name;
    enum test_mode mode;
    const char *code; /* bytes; the last instruction is followed by HLT */
    unsigned length;
    uint64_t rax, rbx, rcx, rdx; /* before */
    uint64_t rax_after, rbx_after, rcx_after, rdx_after;
    uint32_t flags, flags_mask; /* after */
    int vector;                 /* -1: completes */
};

#define CODE(bytes) .code = bytes, .length = sizeof(bytes) - 1

static const struct expectation expectations[] = {
    {"daa", TEST_PROTECTED32, CODE("\x27"), 0x79 + 0x35, 0, 0, 0, 0x14, 0, 0, 0, FLAG_CF | FLAG_AF,
     FLAG_CF | FLAG_AF, -1},
    {"das", TEST_PROTECTED32, CODE("\x2f"), 0x35 - 0x47 + 0x100, 0, 0, 0, 0x88, 0, 0, 0, FLAG_CF | FLAG_AF,
     FLAG_CF | FLAG_AF, -1},
    {"aaa", TEST_PROTECTED32, CODE("\x37"), 0x0f, 0, 0, 0, 0x105, 0, 0, 0, FLAG_CF, FLAG_CF, -1},
    {"aam", TEST_PROTECTED32, CODE("\xd4\x0a"), 97, 0, 0, 0, 0x907, 0, 0, 0, 0, 0, -1},
    {"aam 0", TEST_PROTECTED32, CODE("\xd4\x00"), 97, 0, 0, 0, 97, 0, 0, 0, 0, 0, VECTOR_DE},
    {"aad", TEST_PROTECTED32, CODE("\xd5\x0a"), 0x907, 0, 0, 0, 97, 0, 0, 0, 0, 0, -1},
    {"inc r32", TEST_PROTECTED32, CODE("\x40"), 0xffffffff, 0, 0, 0, 0, 0, 0, 0, FLAG_ZF, FLAG_ZF | FLAG_CF,
     -1},
    {"dec r16", TEST_REAL, CODE("\x4b"), 0, 0x10000, 0, 0, 0, 0x1ffff, 0, 0, FLAG_SF, FLAG_SF | FLAG_ZF, -1},
    {"add ax in 16-bit code", TEST_REAL, CODE("\x01\xd8"), 0x1ffff, 1, 0, 0, 0x10000, 1, 0, 0,
     FLAG_CF | FLAG_ZF, FLAG_CF | FLAG_ZF, -1},
    {"add eax in 16-bit code", TEST_REAL, CODE("\x66\x01\xd8"), 0x1ffff, 1, 0, 0, 0x20000, 1, 0, 0, 0,
     FLAG_CF, -1},
    {"mul", TEST_REAL, CODE("\xf7\xe3"), 0x1234, 0x100, 0, 0xffffff, 0x3400, 0x100, 0, 0xff0012, FLAG_CF,
     FLAG_CF, -1},
    {"div by zero", TEST_REAL, CODE("\xf7\xf3"), 1, 0, 0, 0, 1, 0, 0, 0, 0, 0, VECTOR_DE},
    {"div", TEST_PROTECTED32, CODE("\xf7\xf3"), 100, 7, 0, 0, 14, 7, 0, 2, 0, 0, -1},
    {"push, pop in 16-bit code", TEST_REAL, CODE("\x50\x5b"), 0xabcd1234, 0xffff0000, 0, 0, 0xabcd1234,
     0xffff1234, 0, 0, 0, 0, -1},
    {"call, ret", TEST_REAL, CODE("\xe8\x01\x00\xf4\xb8\x34\x12\xc3"), 0, 0, 0, 0, 0x1234, 0, 0, 0, 0, 0, -1},
    {"loop", TEST_REAL, CODE("\x40\xe2\xfd"), 0, 0, 0x10005, 0, 5, 0, 0x10000, 0, 0, 0, -1},
    {"jcxz", TEST_REAL, CODE("\xe3\x01\x40\x43"), 0, 0, 0x10000, 0, 0, 1, 0x10000, 0, 0, 0, -1},
    {"lea wraps at 64K", TEST_REAL, CODE("\x8d\x80\xff\xff"), 0, 0x200, 0, 0, 0x300 - 1 + 0x200, 0x200, 0, 0,
     0, 0, -1},
    {"mov seg", TEST_REAL, CODE("\x8e\xd8\x8c\xdb"), 0x1234, 0, 0, 0, 0x1234, 0x1234, 0, 0, 0, 0, -1},
    {"xlat", TEST_REAL, CODE("\xc6\x06\x05\x80\x77\xd7"), 5, 0x8000, 0, 0, 0x77, 0x8000, 0, 0, 0, 0, -1},
    {"arpl in real mode", TEST_REAL, CODE("\x63\xd8"), 0, 3, 0, 0, 0, 3, 0, 0, 0, 0, VECTOR_UD},
    {"arpl", TEST_PROTECTED32, CODE("\x63\xd8"), 0x10, 3, 0, 0, 0x13, 3, 0, 0, FLAG_ZF, FLAG_ZF, -1},
    {"vex in real mode", TEST_REAL, CODE("\xc4\xe2\x60\xf2\xc1"), 1, 1, 1, 1, 1, 1, 1, 1, 0, 0, VECTOR_UD},
    {"ud2", TEST_PROTECTED32, CODE("\x0f\x0b"), 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, VECTOR_UD},
    {"lock mov", TEST_PROTECTED32, CODE("\xf0\x89\xc0"), 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, VECTOR_UD},
    {"16 bytes", TEST_PROTECTED32, CODE("\x66\x66\x66\x66\x66\x66\x66\x66\x66\x66\x66\x66\x66\x66\x66\x90"),
     0, 0, 0, 0, 0, 0, 0, 0, 0, 0, VECTOR_GP},
    {"salc", TEST_PROTECTED32, CODE("\xf9\xd6"), 0x1200, 0, 0, 0, 0x12ff, 0, 0, 0, FLAG_CF, FLAG_CF, -1},
    {"bound", TEST_PROTECTED32, CODE("\x62\x05\x00\x00\x00\x02"), 9, 0, 0, 0, 9, 0, 0, 0, 0, 0, VECTOR_BR},
    {"enter, leave", TEST_PROTECTED32, CODE("\xc8\x20\x00\x03\x89\xe8\xc9"), 0, 0, 0, 0, 0x2002000 - 4, 0, 0,
     0, 0, 0, -1},
    {"pusha, popa", TEST_REAL, CODE("\x60\x31\xc0\x31\xdb\x61"), 0x1234, 0x5678, 0, 0, 0x1234, 0x5678, 0, 0,
     0, 0, -1},
};

static void report(const struct expectation *expected, const char *what, uint64_t got, uint64_t wanted) {
    printf("%s: %s is %#llx, expected %#llx\n", expected->name, what, (unsigned long long)got,
           (unsigned long long)wanted);
}

static bool check(const struct expectation *expected) {
    static struct test_guest guest;
    struct vcpu *vcpu = &guest.vcpu;
    uint8_t code[64];
    test_guest_create(&guest, expected->mode);
    memcpy(code, expected->code, expected->length);
    code[expected->length] = 0xf4;
    test_guest_code(&guest, code, expected->length + 1);
    uint64_t start = vcpu->rip;
    vcpu->gpr[GPR_RAX] = expected->rax;
    vcpu->gpr[GPR_RBX] = expected->rbx;
    vcpu->gpr[GPR_RCX] = expected->rcx;
    vcpu->gpr[GPR_RDX] = expected->rdx;
    vcpu->gpr[GPR_RSI] = 0x300;
    vcpu->gpr[GPR_RSP] = expected->mode == TEST_REAL ? 0xaaaa7000 : TEST_DATA + 0x2000;
    vcpu->gpr[GPR_RBP] = expected->mode == TEST_REAL ? 0x100 : TEST_DATA + 0x3000;
    int vector = -1;
    for (unsigned steps = 0; steps < 100 && guest.mem.base[vcpu->rip] != 0xf4; steps++)
        if (interp_execute(vcpu)) {
            vector = vcpu->exception.vector;
            break;
        }
    bool ok = true;
    const uint64_t wanted[4] = {expected->rax_after, expected->rcx_after, expected->rdx_after,
                                expected->rbx_after};
    static const char *const names[4] = {"rax", "rcx", "rdx", "rbx"};
    for (unsigned i = 0; i < 4; i++)
        if (vcpu->gpr[i] != wanted[i]) {
            report(expected, names[i], vcpu->gpr[i], wanted[i]);
            ok = false;
        }
    if (vector != expected->vector) {
        report(expected, "vector", (uint64_t)vector, (uint64_t)expected->vector);
        ok = false;
    }
    if (vector >= 0 && vcpu->rip != start) {
        report(expected, "rip", vcpu->rip, start);
        ok = false;
    }
    if ((vcpu->rflags ^ expected->flags) & expected->flags_mask) {
        report(expected, "flags", vcpu->rflags & expected->flags_mask, expected->flags);
        ok = false;
    }
    test_guest_destroy(&guest);
    return ok;
}

/* REP MOVSB over 64 KiB with an overlap, in pieces, equals the same copy byte by byte. */
static bool check_rep_movs(void) {
    static struct test_guest guest;
    struct vcpu *vcpu = &guest.vcpu;
    test_guest_create(&guest, TEST_USER64);
    test_guest_code(&guest, "\xf3\xa4\xf4", 3);
    uint8_t *data = guest.mem.base + TEST_DATA;
    for (unsigned i = 0; i < 7; i++)
        data[i] = (uint8_t)(i + 1);
    vcpu->gpr[GPR_RSI] = TEST_DATA;
    vcpu->gpr[GPR_RDI] = TEST_DATA + 7;
    vcpu->gpr[GPR_RCX] = 65536;
    unsigned pieces = 0;
    while (vcpu->rip == TEST_CODE && pieces++ < 1000)
        if (interp_execute(vcpu))
            break;
    bool ok = vcpu->gpr[GPR_RCX] == 0 && vcpu->gpr[GPR_RDI] == TEST_DATA + 7 + 65536 && pieces > 1;
    for (unsigned i = 0; i < 65536 + 7; i++)
        ok = ok && data[i] == i % 7 + 1;
    if (!ok)
        printf("rep movsb: wrong result after %u pieces\n", pieces);
    test_guest_destroy(&guest);
    return ok;
}

#define TEST_GDT 0x8000u
#define TEST_IDT 0x9000u
#define TEST_HANDLER 0xa000u
#define TEST_COUNTER 0xb000u

/* A flat 32-bit guest whose #DB handler counts, sets RF in the image as it must, and returns. */
static void prepare_debug_handler(struct test_guest *guest) {
    struct vcpu *vcpu = &guest->vcpu;
    const uint64_t gdt[3] = {0, 0x00cf9b000000ffff, 0x00cf93000000ffff};
    const uint64_t gate = 0x8e00ull << 32 | 0x8ull << 16 | (TEST_HANDLER & 0xffff);
    memcpy(guest->mem.base + TEST_GDT, gdt, sizeof gdt);
    memcpy(guest->mem.base + TEST_IDT + 8 * VECTOR_DB, &gate, sizeof gate);
    memcpy(guest->mem.base + TEST_HANDLER, "\xff\x05\x00\xb0\x00\x00\x81\x4c\x24\x08\x00\x00\x01\x00\xcf",
           15);
    vcpu->gdtr = (struct descriptor_table){.base = TEST_GDT, .limit = sizeof gdt - 1};
    vcpu->idtr = (struct descriptor_table){.base = TEST_IDT, .limit = 0x7ff};
    vcpu->gpr[GPR_RSP] = TEST_DATA + 0x2000;
}

static uint32_t run_to_halt(struct test_guest *guest) {
    uint32_t counter;
    for (unsigned i = 0; i < 1000; i++)
        if (interp_step(&guest->vcpu) == INTERP_HALTED)
            break;
    memcpy(&counter, guest->mem.base + TEST_COUNTER, sizeof counter);
    return counter;
}

/* One trap after each instruction that began with TF, one per REP iteration, none after MOV SS. */
static bool check_single_step(void) {
    static struct test_guest guest;
    static const uint8_t code[] = {
        0x9c, 0x81, 0x0c, 0x24, 0x00, 0x01, 0x00, 0x00, 0x9d, /* pushf; or [esp], TF; popf */
        0x90, 0x90,                                           /* 2 traps */
        0x8e, 0xd0, 0x90,                                     /* mov ss, eax; nop: 1 trap */
        0xb9, 0x03, 0x00, 0x00, 0x00, 0xf3, 0xaa,             /* mov ecx, 3; rep stosb: 4 traps */
        0x9c, 0x81, 0x24, 0x24, 0xff, 0xfe, 0xff, 0xff, 0x9d, /* pushf; and [esp], ~TF; popf: 3 traps */
        0x90, 0xf4};
    test_guest_create(&guest, TEST_PROTECTED32);
    prepare_debug_handler(&guest);
    test_guest_code(&guest, code, sizeof code);
    guest.vcpu.gpr[GPR_RAX] = 0x10;
    guest.vcpu.gpr[GPR_RDI] = TEST_DATA;
    uint32_t traps = run_to_halt(&guest);
    bool ok = traps == 10 && guest.vcpu.run_state == RUN_HALTED && guest.vcpu.dr[6] & 1u << 14;
    if (!ok)
        printf("single step: %u traps, expected 10; dr6 %#llx, rip %#llx\n", traps,
               (unsigned long long)guest.vcpu.dr[6], (unsigned long long)guest.vcpu.rip);
    test_guest_destroy(&guest);
    return ok;
}

/* DR0: write to the data word; DR1: execution of the third instruction, once thanks to the handler's RF. */
static bool check_breakpoints(void) {
    static struct test_guest guest;
    struct vcpu *vcpu = &guest.vcpu;
    static const uint8_t code[] = {0x89, 0x07, 0x8b, 0x07, 0x90, 0x90, 0xf4}; /* store, load, nop, nop, hlt */
    test_guest_create(&guest, TEST_PROTECTED32);
    prepare_debug_handler(&guest);
    test_guest_code(&guest, code, sizeof code);
    vcpu->gpr[GPR_RDI] = TEST_DATA;
    vcpu->dr[0] = TEST_DATA;
    vcpu->dr[1] = TEST_CODE + 4;
    vcpu->dr[7] = 0x400 | 0x2 | 0x8 | 0xdull << 16;
    cpu_mode_changed(vcpu);
    uint32_t traps = run_to_halt(&guest);
    bool ok = traps == 2 && vcpu->run_state == RUN_HALTED;
    if (!ok)
        printf("breakpoints: %u traps, expected 2; dr6 %#llx, rip %#llx\n", traps,
               (unsigned long long)vcpu->dr[6], (unsigned long long)vcpu->rip);
    test_guest_destroy(&guest);
    return ok;
}

/* Speed of ordinary code: a loop of moves, arithmetic, a load, a store and a branch. */
static void measure(void) {
    static struct test_guest guest;
    struct vcpu *vcpu = &guest.vcpu;
    static const uint8_t loop[] = {0x48, 0x8b, 0x07, 0x48, 0x01, 0xd8, 0x48, 0x89, 0x07,
                                   0x48, 0x8d, 0x5b, 0x01, 0x48, 0xff, 0xc9, 0x75, 0xee};
    struct timespec from, to;
    test_guest_create(&guest, TEST_USER64);
    test_guest_code(&guest, loop, sizeof loop);
    /* A page that shares no TLB slot with the code. */
    vcpu->gpr[GPR_RDI] = TEST_DATA + PAGE_SIZE;
    vcpu->gpr[GPR_RCX] = ~0ull;
    clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &from);
    uint64_t count = interp_run(vcpu, 10000000);
    clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &to);
    double seconds = (double)(to.tv_sec - from.tv_sec) + (double)(to.tv_nsec - from.tv_nsec) / 1e9;
    printf("%.1f million instructions per second\n", (double)count / seconds / 1e6);
    test_guest_destroy(&guest);
}

int main(void) {
    unsigned failures = 0;
    test_install_signals(NULL);
    for (unsigned i = 0; i < ARRAY_SIZE(expectations); i++)
        failures += !check(&expectations[i]);
    failures += !check_rep_movs();
    failures += !check_single_step();
    failures += !check_breakpoints();
    measure();
    printf("%u failures\n", failures);
    return failures != 0;
}
