/*
 * x87, SSE and XSAVE under CR0, CR4 and XCR0: #NM, #UD, #MF, #XM, #GP of bad images, and #AC. Source: Intel
 * SDM volume 1, chapters 8, 11 and 13; volume 3, 2.5 and 6.15.
 */
#include "control64.h"
#include "paging.h"
#include "runtime.h"

#define SPLIT 0x0000523440200000ull /* two pages whose frames lie the other way round */

#define MXCSR_DEFAULT 0x1f80

static uint8_t area[4096] __attribute__((aligned(64)));
static bool has_xsave;

static const unsigned long cr0_base = CR0_PE | CR0_MP | CR0_ET | CR0_NE | CR0_WP | CR0_PG;

static unsigned under(unsigned long cr0, unsigned kind) {
    unsigned vector;
    write_cr0(cr0);
    switch (kind) {
    case 0:
        vector = TRY("fnop", :);
        break;
    case 1:
        vector = TRY("fwait", :);
        break;
    case 2:
        vector = TRY("movaps %%xmm0, %%xmm0", :);
        break;
    case 3:
        vector = TRY("movq %%mm0, %%mm0", :);
        break;
    case 4:
        vector = TRY("fxsave %0", : "=m"(area));
        break;
    case 5:
        vector = TRY("ldmxcsr %0", : : "m"((uint32_t){MXCSR_DEFAULT}));
        break;
    case 6:
        vector = TRY("xsave %0", : "=m"(area) : "a"(3), "d"(0));
        break;
    case 7:
        vector = TRY("pause\n\tsfence\n\tprefetcht0 %0\n\tmovnti %%eax, %0", : "=m"(area));
        break;
    default:
        vector = TRY("vmovaps %%ymm0, %%ymm0", :);
        break;
    }
    write_cr0(cr0_base);
    return vector;
}

static void check_switches(void) {
    static const char *const names[] = {"x87",     "fwait", "sse",      "mmx", "fxsave",
                                        "ldmxcsr", "xsave", "no state", "avx"};
    struct tally tally;
    bool avx = has_xsave && (cpuid(1, 0).c & BIT(28));
    tally_begin(&tally, "CR0.EM, MP and TS");
    for (unsigned bits = 0; bits < 8; bits++) {
        bool em = bits & 1, mp = bits & 2, ts = bits & 4;
        unsigned long cr0 = (cr0_base & ~CR0_MP) | (em ? CR0_EM : 0) | (mp ? CR0_MP : 0) | (ts ? CR0_TS : 0);
        for (unsigned kind = 0; kind < ARRAY_SIZE(names); kind++) {
            if ((kind == 6 && !has_xsave) || (kind == 8 && !avx))
                continue;
            unsigned want = ts ? VECTOR_NM : NO_TRAP;
            if (kind == 0)
                want = em || ts ? VECTOR_NM : NO_TRAP;
            else if (kind == 1)
                want = mp && ts ? VECTOR_NM : NO_TRAP;
            else if (kind == 2 || kind == 3 || kind == 5)
                want = em ? VECTOR_UD : want;
            else if (kind == 4)
                want = em || ts ? VECTOR_NM : NO_TRAP;
            else if (kind == 7)
                want = NO_TRAP;
            tally_case(&tally, under(cr0, kind), want, "%s, EM %u MP %u TS %u", names[kind], em, mp, ts);
        }
    }
    tally_end(&tally);
    write_cr4(read_cr4() & ~CR4_OSFXSR);
    check(under(cr0_base, 2), VECTOR_UD, "sse without OSFXSR");
    check(under(cr0_base, 5), VECTOR_UD, "ldmxcsr without OSFXSR");
    check(under(cr0_base, 3), NO_TRAP, "mmx without OSFXSR");
    check(under(cr0_base, 4), NO_TRAP, "fxsave without OSFXSR");
    check(under(cr0_base, 7), NO_TRAP, "movnti without OSFXSR");
    write_cr4(read_cr4() | CR4_OSFXSR);
    if (has_xsave) {
        write_cr4(read_cr4() & ~CR4_OSXSAVE);
        check(under(cr0_base, 6), VECTOR_UD, "xsave without OSXSAVE");
        check(TRY("xgetbv", : : "c"(0) : "rax", "rdx"), VECTOR_UD, "xgetbv without OSXSAVE");
        if (avx)
            check(under(cr0_base, 8), VECTOR_UD, "avx without OSXSAVE");
        check(cpuid(1, 0).c >> 27 & 1, 0, "cpuid: OSXSAVE is clear");
        write_cr4(read_cr4() | CR4_OSXSAVE);
        check(cpuid(1, 0).c >> 27 & 1, 1, "cpuid: OSXSAVE is set");
    }
}

SNIPPET(user_misaligned, "mov -31(%rsp), %eax");
SNIPPET(user_misaligned_byte, "mov -31(%rsp), %al");
SNIPPET(user_misaligned_push, "sub $3, %rsp\n\tpush %rax\n\tadd $11, %rsp");
SNIPPET(user_misaligned_lock, "lock addl $1, -30(%rsp)");
SNIPPET(user_xsetbv, "xor %ecx, %ecx\n\txgetbv\n\txsetbv");

static void check_numeric(void) {
    uint16_t control = 0x37b; /* zero-divide unmasked */
    uint16_t status;
    asm volatile("fninit\n\tfldcw %0" : : "m"(control));
    check(TRY("fld1\n\tfldz\n\tfdivrp", :), NO_TRAP, "an unmasked x87 exception waits");
    asm volatile("fnstsw %0" : "=a"(status));
    check(status & 0x84, 0x84, "status word: ZE and ES");
    check(TRY("fnop", :), VECTOR_MF, "#MF at the next x87 instruction");
    check(TRY("fwait", :), VECTOR_MF, "#MF at fwait");
    check(TRY("fnclex", :), NO_TRAP, "fnclex does not wait");
    check(TRY("fwait", :), NO_TRAP, "no #MF after fnclex");
    asm volatile("fninit");
    uint32_t mxcsr = MXCSR_DEFAULT & ~BIT(9); /* zero-divide unmasked */
    asm volatile("ldmxcsr %0" : : "m"(mxcsr));
    check(TRY("xorps %%xmm1, %%xmm1\n\tmov $0x3f800000, %%eax\n\tmovd %%eax, %%xmm0\n\tdivss %%xmm1, %%xmm0",
              :
              :
              : "rax"),
          VECTOR_XM, "#XM of an unmasked zero-divide");
    write_cr4(read_cr4() & ~CR4_OSXMMEXCPT);
    check(TRY("divss %%xmm1, %%xmm0", :), VECTOR_UD, "#UD in place of #XM without OSXMMEXCPT");
    write_cr4(read_cr4() | CR4_OSXMMEXCPT);
    asm volatile("stmxcsr %0" : "=m"(mxcsr));
    check(mxcsr & 4, 4, "mxcsr: ZE");
    mxcsr = 0x10000 | MXCSR_DEFAULT;
    check(TRY("ldmxcsr %0", : : "m"(mxcsr)), VECTOR_GP, "ldmxcsr of a reserved bit");
    mxcsr = MXCSR_DEFAULT;
    asm volatile("ldmxcsr %0\n\tfxsave %1" : : "m"(mxcsr), "m"(area));
    check(*(volatile uint32_t *)(area + 24), MXCSR_DEFAULT, "fxsave: mxcsr");
    uint32_t mask = *(volatile uint32_t *)(area + 28);
    check(mask == 0xffff || mask == 0xffbf || mask == 0x2ffff, true, "fxsave: mxcsr mask");
    *(volatile uint32_t *)(area + 24) = 0x80000000;
    check(TRY("fxrstor %0", : : "m"(area)), VECTOR_GP, "fxrstor of a reserved mxcsr bit");
    *(volatile uint32_t *)(area + 24) = MXCSR_DEFAULT;
    check(TRY("fxrstor %0", : : "m"(area)), NO_TRAP, "fxrstor");
    check(TRY("fxsave %0", : "=m"(area[8])), VECTOR_GP, "fxsave at an unaligned address");

    /* #AC: CPL 3, CR0.AM and AC all together. */
    struct tally tally;
    tally_begin(&tally, "alignment checks");
    for (unsigned bits = 0; bits < 8; bits++) {
        bool am = bits & 1, ac = bits & 2, user = bits & 4;
        static const struct {
            const void *code;
            bool misaligned;
        } cases[] = {{user_misaligned, true},
                     {user_misaligned_byte, false},
                     {user_misaligned_push, true},
                     {user_misaligned_lock, true}};
        write_cr0(cr0_base | (am ? CR0_AM : 0));
        for (unsigned i = 0; i < ARRAY_SIZE(cases); i++) {
            struct context c = user ? context_user(cases[i].code) : context_kernel(cases[i].code);
            c.flags |= ac ? FLAG_AC : 0;
            context_run(&c);
            unsigned want = am && ac && user && cases[i].misaligned ? VECTOR_AC : VECTOR_DONE;
            tally_case(&tally, c.vector, want, "case %u, AM %u AC %u user %u", i, am, ac, user);
            if (c.vector == VECTOR_AC)
                tally_case(&tally, c.error, 0, "error code");
        }
    }
    write_cr0(cr0_base);
    tally_end(&tally);
}

static unsigned xcr0_try(unsigned index, uint64_t value) {
    return TRY("xsetbv", : : "c"(index), "a"((uint32_t)value), "d"((uint32_t)(value >> 32)));
}

static void check_xsave(void) {
    uint64_t offered = cpuid(0xd, 0).a | (uint64_t)cpuid(0xd, 0).d << 32;
    check(xcr0_try(0, 0), VECTOR_GP, "xcr0 without x87");
    check(xcr0_try(0, 2), VECTOR_GP, "xcr0 with sse alone");
    check(xcr0_try(0, 5), VECTOR_GP, "xcr0 with avx without sse");
    check(xcr0_try(0, BIT(62) | 3), VECTOR_GP, "xcr0 with a reserved bit");
    check(xcr0_try(1, 3), VECTOR_GP, "xcr1");
    check(xcr0_try(0, 3), NO_TRAP, "xcr0 with x87 and sse");
    check(cpuid(0xd, 0).b, 576, "cpuid: size of the area for x87 and sse");
    if (offered & 4) {
        check(under(cr0_base, 8), VECTOR_UD, "avx without its bit of xcr0");
        check(xcr0_try(0, 7), NO_TRAP, "xcr0 with avx");
        check(cpuid(0xd, 0).b, 832, "cpuid: size of the area for avx");
        check(under(cr0_base, 8), NO_TRAP, "avx with its bit of xcr0");
    }
    struct context c = context_user(user_xsetbv);
    context_run(&c);
    check_end(&c, VECTOR_GP, 0, "xsetbv at CPL 3");
    for (unsigned i = 0; i < sizeof(area); i++)
        ((volatile uint8_t *)area)[i] = 0;
    unsigned long value = 0x1122334455667788;
    asm volatile("fninit\n\tmovq %0, %%xmm3\n\txsave %1"
                 :
                 : "r"(value), "m"(area), "a"(3), "d"(0)
                 : "memory");
    check(*(volatile uint64_t *)(area + 512) & 2, 2, "xsave: XSTATE_BV");
    check(*(volatile uint64_t *)(area + 160 + 48), value, "xsave: xmm3");
    *(volatile uint64_t *)(area + 512) = 1; /* sse to its initial state */
    asm volatile("xrstor %1\n\tmovq %%xmm3, %0" : "=r"(value) : "m"(area), "a"(3), "d"(0) : "memory");
    check(value, 0, "xrstor puts a component to its initial state");
    *(volatile uint64_t *)(area + 512) = 2;
    asm volatile("xrstor %1\n\tmovq %%xmm3, %0" : "=r"(value) : "m"(area), "a"(3), "d"(0) : "memory");
    check(value, 0x1122334455667788, "xrstor loads a component");
    *(volatile uint64_t *)(area + 512) = BIT(62);
    check(TRY("xrstor %0", : : "m"(area), "a"(3), "d"(0)), VECTOR_GP, "xrstor with a bit that xcr0 has not");
    *(volatile uint64_t *)(area + 512) = 3;
    *(volatile uint64_t *)(area + 528) = 1;
    check(TRY("xrstor %0", : : "m"(area), "a"(3), "d"(0)), VECTOR_GP, "xrstor with a reserved header byte");
    *(volatile uint64_t *)(area + 528) = 0;
    *(volatile uint32_t *)(area + 24) = 0x80000000;
    check(TRY("xrstor %0", : : "m"(area), "a"(2), "d"(0)), VECTOR_GP, "xrstor of a reserved mxcsr bit");
    *(volatile uint32_t *)(area + 24) = MXCSR_DEFAULT;
    check(TRY("xsave %0", : "=m"(area[16]) : "a"(3), "d"(0)), VECTOR_GP, "xsave at an unaligned address");
    xcr0_try(0, 3);
}

static void state_make(bool vectors) {
    static const double number = 2.5;
    unsigned long value = 0x99aabbccddeeff00;
    asm volatile("fninit\n\tfldl %0" : : "m"(number));
    if (vectors)
        asm volatile("movq %0, %%xmm3\n\tmovq %0, %%xmm14" : : "r"(value));
    else
        asm volatile("pxor %xmm3, %xmm3\n\tpxor %xmm14, %xmm14");
}

static void state_save(unsigned form, volatile uint8_t *at, uint32_t components) {
    switch (form) {
    case 0:
        asm volatile("xsave64 (%0)" : : "r"(at), "a"(components), "d"(0) : "memory");
        break;
    case 1:
        asm volatile("xsaveopt64 (%0)" : : "r"(at), "a"(components), "d"(0) : "memory");
        break;
    default:
        asm volatile("xsavec64 (%0)" : : "r"(at), "a"(components), "d"(0) : "memory");
    }
}

/* What was there before: zeroes in the header, something else around it. */
static void area_fill(volatile uint8_t *at, unsigned size) {
    for (unsigned i = 0; i < size; i++)
        at[i] = i < 512 || i >= 576 ? (uint8_t)(i * 7 + 1) : 0;
}

/* An area over two pages that do not follow each other is filled as one in a single piece is, and read. */
static void check_split(void) {
    static const char *const names[] = {"xsave", "xsaveopt", "xsavec"};
    const unsigned features = cpuid(0xd, 1).a, size = cpuid(0xd, 0).b;
    const uint32_t all = cpuid(1, 0).c & BIT(28) ? 7 : 3;
    uint8_t *frame = pages_alloc(2, 4096);
    volatile uint8_t *whole = area;
    struct tally tally;
    tally_begin(&tally, "area over two pages");
    page_map(&boot_space, SPLIT, (unsigned long)frame + 4096, PTE_P | PTE_W, 1);
    page_map(&boot_space, SPLIT + 4096, (unsigned long)frame, PTE_P | PTE_W, 1);
    for (unsigned form = 0; form < ARRAY_SIZE(names); form++) {
        if (form && !(features >> (form - 1) & 1))
            continue;
        for (unsigned before = 64; before < size; before += 64) {
            volatile uint8_t *split = (volatile uint8_t *)(SPLIT + 4096 - before);
            uint32_t components = before & 64 ? all : before & 128 ? 2 : 5 & all;
            unsigned differ = 0;
            unsigned long value = 0;
            area_fill(whole, size);
            area_fill(split, size);
            state_make(before & 256);
            state_save(form, whole, components);
            state_save(form, split, components);
            for (unsigned i = 0; i < size; i++)
                differ += (i < 8 || i >= 24) && whole[i] != split[i];
            tally_case(&tally, differ, 0, "%s, components %u, %u bytes before the end", names[form],
                       components, before);
            if (components != all)
                continue;
            asm volatile("fninit\n\tmovq %0, %%xmm3\n\tmovq %0, %%xmm14" : : "r"(0x5555ul));
            asm volatile("xrstor64 (%1)\n\tmovq %%xmm14, %0"
                         : "=r"(value)
                         : "r"(split), "a"(all), "d"(0)
                         : "memory");
            tally_case(&tally, value, before & 256 ? 0x99aabbccddeeff00 : 0, "xrstor of %s, %u bytes",
                       names[form], before);
        }
    }
    asm volatile("fninit");
    tally_end(&tally);
}

/* The last instruction's and operand's addresses may be kept or be zero; they are never anything else. */
static bool is_own_pointer(uint64_t pointer) {
    return !pointer || (pointer < 0x80000000 && pointer >= 0x1000);
}

static void check_pointers(void) {
    struct environment {
        uint32_t control, status, tag, ip, cs, dp, ds;
    } environment;
    static double number = 1.5;
    asm volatile("fninit\n\tfldl %0\n\tmov $100, %%ecx\n1:\tfmull %0\n\tdec %%ecx\n\tjnz 1b"
                 :
                 : "m"(number)
                 : "ecx", "memory");
    asm volatile("fxsave64 %0" : "=m"(area));
    check(is_own_pointer(*(volatile uint64_t *)(area + 8)) &&
              is_own_pointer(*(volatile uint64_t *)(area + 16)),
          true, "fxsave: the x87 pointers are the guest's own");
    asm volatile("fmull %0" : : "m"(number) : "memory");
    asm volatile("fnstenv %0" : "=m"(environment));
    check(is_own_pointer(environment.ip) && is_own_pointer(environment.dp), true,
          "fnstenv: the x87 pointers are the guest's own");
    if (has_xsave) {
        asm volatile("fmull %0" : : "m"(number) : "memory");
        asm volatile("xsave64 %0" : "=m"(area) : "a"(1), "d"(0));
        check(is_own_pointer(*(volatile uint64_t *)(area + 8)) &&
                  is_own_pointer(*(volatile uint64_t *)(area + 16)),
              true, "xsave: the x87 pointers are the guest's own");
    }
    asm volatile("fninit");
}

void fpu_check(void) {
    has_xsave = cpuid(1, 0).c & BIT(26);
    if (has_xsave) {
        write_cr4(read_cr4() | CR4_OSXSAVE);
        xcr0_try(0, cpuid(1, 0).c & BIT(28) ? 7 : 3);
    }
    check_switches();
    check_numeric();
    check_pointers();
    if (has_xsave) {
        check_split();
        check_xsave();
    } else {
        check_skip("XSAVE", "no feature");
    }
}
