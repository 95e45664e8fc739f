/* Generated user-mode instructions, executed by the interpreter and by the processor itself from the same
 * state at the same addresses; registers, flags, memory, extended state and exception are compared.
 *
 * usage: interp_native_test [count [seed]]
 */
#define _GNU_SOURCE
#include "interp_guest.h"
#include "isa/encode.h"
#include "isa/insn.h"

#include <setjmp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#define XSAVE_MAX 4096
/* The last pages of what is mapped in the guest: beyond them both sides fault. */
#define DATA_SIZE TEST_DATA_SIZE
#define DATA (TEST_DATA + TEST_MAPPED_SIZE - DATA_SIZE)

struct state {
    uint64_t gpr[16], rip, rflags;
    unsigned fault; /* 0, or vector + 1 */
    _Alignas(64) uint8_t xsave[XSAVE_MAX];
    uint8_t data[DATA_SIZE];
};

static uint64_t random_state;

static uint64_t random_u64(void) {
    random_state ^= random_state << 13;
    random_state ^= random_state >> 7;
    random_state ^= random_state << 17;
    return random_state * 0x2545f4914f6cdd1dull;
}

/* -- the native side -- */

static struct state *native_out;
static ucontext_t native_return;
static volatile sig_atomic_t native_running;
static uint64_t native_xfeatures;
#define ATTEMPTS 4 /* at running an instruction natively that ended otherwise than in the interpreter */

/* Every way out of the guest's code is a signal: the int3 after it, or its fault. */
static void native_trap(int sig, siginfo_t *info, void *opaque) {
    ucontext_t *context = opaque;
    greg_t *regs = context->uc_mcontext.gregs;
    static const uint8_t order[16] = {REG_RAX, REG_RCX, REG_RDX, REG_RBX, REG_RSP, REG_RBP, REG_RSI, REG_RDI,
                                      REG_R8,  REG_R9,  REG_R10, REG_R11, REG_R12, REG_R13, REG_R14, REG_R15};
    (void)info;
    if (!native_running) {
        signal(sig, SIG_DFL);
        return;
    }
    native_running = 0;
    for (unsigned i = 0; i < 16; i++)
        native_out->gpr[i] = (uint64_t)regs[order[i]];
    native_out->rip = (uint64_t)regs[REG_RIP];
    native_out->rflags = (uint64_t)regs[REG_EFL];
    unsigned vector = (unsigned)regs[REG_TRAPNO];
    native_out->fault = vector + 1;
    if (vector == 3) {
        native_out->fault = 0;
        native_out->rip--;
    }
    /* How much the kernel saved stands in the software-reserved bytes (struct _fpx_sw_bytes, xstate_size). */
    const uint8_t *saved = (const uint8_t *)context->uc_mcontext.fpregs;
    uint32_t size;
    memcpy(&size, saved + 464 + 16, sizeof size);
    memset(native_out->xsave, 0, XSAVE_MAX);
    memcpy(native_out->xsave, saved, size < XSAVE_MAX ? size : XSAVE_MAX);
    regs[REG_RIP] = native_return.uc_mcontext.gregs[REG_RIP];
    regs[REG_RSP] = native_return.uc_mcontext.gregs[REG_RSP];
    regs[REG_EFL] = 0x202;
}

/* Load everything and jump; comes back through native_trap() at `back`. */
static __attribute__((noinline)) void native_enter(const struct state *in) {
    static uint64_t target;
    static const struct state *volatile source;
    target = in->rip;
    source = in;
    uint32_t low = (uint32_t)native_xfeatures, high = 0;
    __asm__ volatile(
        "lea 1f(%%rip), %%rcx\n\t"
        "mov %%rcx, %[rip]\n\t"
        "push %%rbx\n\tpush %%rbp\n\tpush %%r12\n\tpush %%r13\n\tpush %%r14\n\tpush %%r15\n\t"
        "mov %%rsp, %[rsp]\n\t"
        "mov %[source], %%rdi\n\t"
        "xrstor64 %c[xsave](%%rdi)\n\t"
        "pushq %c[flags](%%rdi)\n\tpopfq\n\t"
        "mov 0(%%rdi), %%rax\n\tmov 8(%%rdi), %%rcx\n\tmov 16(%%rdi), %%rdx\n\t"
        "mov 24(%%rdi), %%rbx\n\tmov 40(%%rdi), %%rbp\n\tmov 48(%%rdi), %%rsi\n\t"
        "mov 64(%%rdi), %%r8\n\tmov 72(%%rdi), %%r9\n\tmov 80(%%rdi), %%r10\n\t"
        "mov 88(%%rdi), %%r11\n\tmov 96(%%rdi), %%r12\n\tmov 104(%%rdi), %%r13\n\t"
        "mov 112(%%rdi), %%r14\n\tmov 120(%%rdi), %%r15\n\tmov 32(%%rdi), %%rsp\n\t"
        "mov 56(%%rdi), %%rdi\n\t"
        "jmp *%[target]\n"
        "1:\n\t"
        "pop %%r15\n\tpop %%r14\n\tpop %%r13\n\tpop %%r12\n\tpop %%rbp\n\tpop %%rbx\n\t"
        "cld\n\tfninit\n\tldmxcsr %[mxcsr]\n\tvzeroupper"
        : [rip] "=m"(native_return.uc_mcontext.gregs[REG_RIP]), [rsp] "=m"(
                                                                    native_return.uc_mcontext.gregs[REG_RSP])
        : [source] "m"(source), [target] "m"(target), [xsave] "i"(offsetof(struct state, xsave)),
          [flags] "i"(offsetof(struct state, rflags)), "a"(low),
          "d"(high), [mxcsr] "m"((const uint32_t){0x1f80})
        : "memory", "cc", "rcx", "rsi", "rdi", "r8", "r9", "r10", "r11");
}

static void native_run(const struct state *in, struct state *out, const uint8_t *code, size_t length) {
    memset((void *)TEST_CODE, 0xcc, PAGE_SIZE);
    memcpy((void *)TEST_CODE, code, length);
    memcpy((void *)DATA, in->data, DATA_SIZE);
    native_out = out;
    native_running = 1;
    native_enter(in);
    memcpy(out->data, (void *)DATA, DATA_SIZE);
}

/* -- the interpreter's side -- */

static void interp_run_one(struct test_guest *guest, const struct state *in, struct state *out,
                           const uint8_t *code, size_t length) {
    struct vcpu *vcpu = &guest->vcpu;
    memset(guest->mem.base + TEST_CODE, 0xcc, 64);
    memcpy(guest->mem.base + TEST_CODE, code, length);
    memcpy(guest->mem.base + DATA, in->data, DATA_SIZE);
    memcpy(vcpu->gpr, in->gpr, sizeof vcpu->gpr);
    memcpy(vcpu->xsave, in->xsave, XSAVE_MAX);
    vcpu->rip = in->rip;
    vcpu->rflags = in->rflags | FLAG_IF;
    unsigned limit = 16;
    int result;
    do
        result = interp_execute(vcpu);
    while (!result && vcpu->rip == in->rip && vcpu->rflags & FLAG_RF && limit--);
    memcpy(out->gpr, vcpu->gpr, sizeof out->gpr);
    out->rip = vcpu->rip;
    out->rflags = vcpu->rflags;
    out->fault = result ? vcpu->exception.vector + 1u : 0;
    memcpy(out->xsave, vcpu->xsave, XSAVE_MAX);
    memcpy(out->data, guest->mem.base + DATA, DATA_SIZE);
}

/* -- generation -- */

static unsigned generate(uint8_t *code) {
    unsigned n = 0, kind = random_u64() % 8;
    if (kind < 5) {
        static const uint8_t prefixes[] = {0x66, 0xf2, 0xf3, 0x67, 0xf0, 0x66, 0xf3, 0xf2};
        while (random_u64() % 3 == 0 && n < 3)
            code[n++] = prefixes[random_u64() % sizeof prefixes];
        if (random_u64() % 2)
            code[n++] = (uint8_t)(0x40 | (random_u64() & 15));
        if (kind != 0) {
            code[n++] = 0x0f;
            if (kind >= 3)
                code[n++] = random_u64() & 1 ? 0x38 : 0x3a;
        }
    } else if (kind == 5) {
        code[n++] = 0xc5;
        code[n++] = (uint8_t)random_u64();
    } else if (kind == 6) {
        code[n++] = 0xc4;
        code[n++] = (uint8_t)((random_u64() & 0xe0) | (1 + random_u64() % 3));
        code[n++] = (uint8_t)random_u64();
    } else {
        code[n++] = 0x62;
        code[n++] = (uint8_t)((random_u64() & 0xf0) | (1 + random_u64() % 3));
        code[n++] = (uint8_t)(random_u64() | 4);
        code[n++] = (uint8_t)random_u64();
    }
    while (n < INSN_MAX_LENGTH)
        code[n++] = (uint8_t)random_u64();
    return n;
}

/* Implemented by the interpreter's own C, and harmless natively. */
static bool is_own(const struct insn *insn) {
    switch (insn->z.meta.category) {
    case ZYDIS_CATEGORY_STRINGOP:
    case ZYDIS_CATEGORY_PUSH:
    case ZYDIS_CATEGORY_POP:
    case ZYDIS_CATEGORY_GATHER:
    case ZYDIS_CATEGORY_AVX2GATHER:
    case ZYDIS_CATEGORY_SCATTER:
        break;
    case ZYDIS_CATEGORY_COND_BR:
        return insn->z.mnemonic != ZYDIS_MNEMONIC_XBEGIN && insn->op[0].imm.value.s > 16 &&
               insn->op[0].imm.value.s < 4000;
    default:
        switch (insn->z.mnemonic) {
        case ZYDIS_MNEMONIC_LEA:
        case ZYDIS_MNEMONIC_LEAVE:
        case ZYDIS_MNEMONIC_ENTER:
        case ZYDIS_MNEMONIC_XLAT:
        case ZYDIS_MNEMONIC_FNSTENV:
        case ZYDIS_MNEMONIC_FNSAVE:
        case ZYDIS_MNEMONIC_FLDENV:
        case ZYDIS_MNEMONIC_FRSTOR:
        case ZYDIS_MNEMONIC_FXSAVE:
        case ZYDIS_MNEMONIC_FXSAVE64:
        case ZYDIS_MNEMONIC_FXRSTOR:
        case ZYDIS_MNEMONIC_FXRSTOR64:
        case ZYDIS_MNEMONIC_XSAVE:
        case ZYDIS_MNEMONIC_XSAVE64:
        case ZYDIS_MNEMONIC_XSAVEC:
        case ZYDIS_MNEMONIC_XSAVEC64:
        case ZYDIS_MNEMONIC_XRSTOR:
        case ZYDIS_MNEMONIC_XRSTOR64:
        case ZYDIS_MNEMONIC_MASKMOVQ:
        case ZYDIS_MNEMONIC_MASKMOVDQU:
        case ZYDIS_MNEMONIC_VMASKMOVDQU:
        case ZYDIS_MNEMONIC_MOVDIR64B:
            break;
        default:
            return false;
        }
    }
    for (unsigned i = 0; i < insn->z.operand_count_visible; i++)
        if (insn->op[i].type == ZYDIS_OPERAND_TYPE_REGISTER &&
            ZydisRegisterGetClass(insn->op[i].reg.value) == ZYDIS_REGCLASS_SEGMENT)
            return false;
    return insn->z.mnemonic != ZYDIS_MNEMONIC_POPF && insn->z.mnemonic != ZYDIS_MNEMONIC_POPFQ &&
           insn->z.mnemonic != ZYDIS_MNEMONIC_PUSHF && insn->z.mnemonic != ZYDIS_MNEMONIC_PUSHFQ;
}

/* What answers differently each time, or differs between the two on purpose. */
static bool is_excluded(const struct insn *insn) {
    /* A near branch of 16 bits (AMD) leaves for the first 64 KiB, where nothing can be. */
    if (insn->z.meta.branch_type != ZYDIS_BRANCH_TYPE_NONE && insn->z.operand_width == 16)
        return true;
    switch (insn->z.mnemonic) {
    case ZYDIS_MNEMONIC_RDRAND:
    case ZYDIS_MNEMONIC_RDSEED:
    case ZYDIS_MNEMONIC_XABORT:
    case ZYDIS_MNEMONIC_INT3:
    case ZYDIS_MNEMONIC_INVPCID:
    case ZYDIS_MNEMONIC_VMCALL:
    case ZYDIS_MNEMONIC_VMMCALL:
        return true;
    default:
        return false;
    }
}

/* Point the address registers of every memory operand into the data region. False: not possible. */
static bool place_memory(const struct insn *insn, struct state *in, unsigned slack) {
    uint16_t placed = 0;
    for (unsigned i = 0; i < insn->z.operand_count; i++) {
        const ZydisDecodedOperand *op = &insn->op[i];
        if (op->type != ZYDIS_OPERAND_TYPE_MEMORY || op->mem.type == ZYDIS_MEMOP_TYPE_AGEN)
            continue;
        int base = insn_gpr(op->mem.base), index = insn_gpr(op->mem.index);
        uint64_t at = DATA + DATA_SIZE / 2 + (random_u64() & 0xfff & ~(uint64_t)slack);
        if (random_u64() % 8 == 0)
            at = DATA + DATA_SIZE - (random_u64() & 0x7f);
        int64_t disp = op->mem.disp.has_displacement ? op->mem.disp.value : 0;
        if (op->mem.segment == ZYDIS_REGISTER_FS || op->mem.segment == ZYDIS_REGISTER_GS)
            return false;
        if (base < 0 || insn->z.address_width != 64 || placed & 1u << base)
            return base >= 0 && placed & 1u << base && index < 0 && !disp && insn->z.address_width == 64;
        if (op->mem.type != ZYDIS_MEMOP_TYPE_VSIB && index >= 0) {
            if (index == base)
                return false;
            in->gpr[index] = random_u64() & 0xff;
            at -= in->gpr[index] * op->mem.scale;
            placed |= (uint16_t)(1u << index);
        }
        in->gpr[base] = at - (uint64_t)disp;
        placed |= (uint16_t)(1u << base);
    }
    return true;
}

/* Bit offsets and frame sizes stay inside the data region. */
static void limit_offsets(struct insn *insn, struct state *in) {
    switch (insn->z.mnemonic) {
    case ZYDIS_MNEMONIC_BT:
    case ZYDIS_MNEMONIC_BTS:
    case ZYDIS_MNEMONIC_BTR:
    case ZYDIS_MNEMONIC_BTC:
        if (insn->memory >= 0 && insn->op[1].type == ZYDIS_OPERAND_TYPE_REGISTER &&
            insn_gpr(insn->op[1].reg.value) != insn_gpr(insn->op[0].mem.base) &&
            insn_gpr(insn->op[1].reg.value) != insn_gpr(insn->op[0].mem.index))
            in->gpr[insn_gpr(insn->op[1].reg.value)] = random_u64() % 0x2000 - 0x1000;
        break;
    case ZYDIS_MNEMONIC_ENTER:
        in->gpr[GPR_RBP] = DATA + DATA_SIZE / 2 + (random_u64() & 0x3f8);
        break;
    default:
        break;
    }
}

/* Operands that would reach beyond the data region. */
static bool is_out_of_bounds(const struct insn *insn) {
    switch (insn->z.mnemonic) {
    case ZYDIS_MNEMONIC_BT:
    case ZYDIS_MNEMONIC_BTS:
    case ZYDIS_MNEMONIC_BTR:
    case ZYDIS_MNEMONIC_BTC:
        return insn->memory >= 0 && insn->op[1].type == ZYDIS_OPERAND_TYPE_REGISTER &&
               (insn_gpr(insn->op[1].reg.value) == insn_gpr(insn->op[0].mem.base) ||
                insn_gpr(insn->op[1].reg.value) == insn_gpr(insn->op[0].mem.index));
    case ZYDIS_MNEMONIC_ENTER:
        return insn->op[0].imm.value.u > 0x1000;
    default:
        return false;
    }
}

static void random_inputs(struct state *in, uint64_t xfeatures) {
    static const uint64_t interesting[] = {0,
                                           1,
                                           0x7f,
                                           0x80,
                                           0xff,
                                           0x7fff,
                                           0x8000,
                                           0xffff,
                                           0x7fffffff,
                                           0x80000000,
                                           0xffffffff,
                                           0x7fffffffffffffff,
                                           0x8000000000000000,
                                           ~0ull};
    for (unsigned i = 0; i < 16; i++)
        in->gpr[i] = random_u64() & 1 ? random_u64() : interesting[random_u64() % ARRAY_SIZE(interesting)];
    in->gpr[GPR_RSP] = DATA + DATA_SIZE / 2 + (random_u64() & 0x7f8);
    in->rip = TEST_CODE;
    in->rflags = FLAG_FIXED | (random_u64() & FLAGS_ARITHMETIC) | (random_u64() % 8 ? 0 : FLAG_DF);
    memset(in->xsave, 0, sizeof in->xsave);
    for (unsigned i = 160; i < XSAVE_MAX; i += 8) {
        uint64_t value = random_u64();
        if (i >= 416 && i < 576)
            continue;
        if (random_u64() % 4 == 0)
            value = random_u64() & 1 ? 0 : 0x3ff0000000000000ull >> (random_u64() & 1 ? 0 : 32);
        memcpy(in->xsave + i, &value, 8);
    }
    for (unsigned i = 0; i < 8; i++) {
        double number = (double)(int64_t)random_u64() / (double)(1ull << (random_u64() & 63));
        long double wide = number;
        memcpy(in->xsave + 32 + 16 * i, &wide, 10);
    }
    uint16_t control = 0x37f;
    memcpy(in->xsave, &control, 2);
    in->xsave[3] = (uint8_t)((random_u64() & 7) << 3);
    in->xsave[4] = random_u64() & 1 ? 0xff : (uint8_t)random_u64();
    uint32_t mxcsr = 0x1f80 & (random_u64() % 8 ? 0x1f80 : (uint32_t)random_u64());
    memcpy(in->xsave + 24, &mxcsr, 4);
    memcpy(in->xsave + 512, &xfeatures, 8);
    for (unsigned i = 0; i < DATA_SIZE; i += 8) {
        uint64_t value = random_u64();
        memcpy(in->data + i, &value, 8);
    }
}

/* -- comparison -- */

static struct { uint32_t offset, size; } component[8];

static void read_components(void) {
    for (unsigned i = 2; i < 8; i++) {
        uint32_t a = 0xd, b, c = i, d;
        __asm__("cpuid" : "+a"(a), "=b"(b), "+c"(c), "=d"(d));
        component[i].offset = b;
        component[i].size = a;
    }
}

/* Make both images say the same where the manual leaves a choice: initial components, reserved bytes,
 * pointers of the x87 unit. */
static void normalise(uint8_t *image, uint64_t xfeatures) {
    uint64_t bits;
    memcpy(&bits, image + 512, 8);
    if (!(bits & 1)) {
        memset(image, 0, 24);
        image[0] = 0x7f;
        image[1] = 3;
        memset(image + 32, 0, 128);
    }
    memset(image + 6, 0, 18);
    memset(image + 28, 0, 4);
    for (unsigned i = 0; i < 8; i++)
        memset(image + 32 + 16 * i + 10, 0, 6);
    if (!(bits & 2))
        memset(image + 160, 0, 256);
    memset(image + 416, 0, 160);
    uint8_t packed[XSAVE_MAX] = {0};
    memcpy(packed, image, 416);
    for (unsigned i = 2; i < 8; i++)
        if (xfeatures >> i & 1 && bits >> i & 1)
            memcpy(packed + component[i].offset, image + component[i].offset, component[i].size);
    memcpy(image, packed, XSAVE_MAX);
}

static bool image_equal(uint8_t *a, uint8_t *b, uint64_t xfeatures, unsigned *where) {
    normalise(a, xfeatures);
    normalise(b, xfeatures);
    for (unsigned i = 0; i < XSAVE_MAX; i++)
        if (a[i] != b[i]) {
            *where = i;
            return false;
        }
    return true;
}

/* An environment or image in memory holds the x87 pointers of whoever ran it. */
static bool stores_pointers(const struct insn *insn) {
    switch (insn->z.mnemonic) {
    case ZYDIS_MNEMONIC_FNSTENV:
    case ZYDIS_MNEMONIC_FNSAVE:
    case ZYDIS_MNEMONIC_FXSAVE:
    case ZYDIS_MNEMONIC_FXSAVE64:
    case ZYDIS_MNEMONIC_XSAVE:
    case ZYDIS_MNEMONIC_XSAVE64:
    case ZYDIS_MNEMONIC_XSAVEC:
    case ZYDIS_MNEMONIC_XSAVEC64:
        return true;
    default:
        return false;
    }
}

static const char *difference(const struct insn *insn, struct state *native, struct state *interp,
                              uint64_t xfeatures) {
    static char text[128];
    unsigned where;
    if (native->fault != interp->fault) {
        snprintf(text, sizeof text, "fault: native %d, interp %d", (int)native->fault - 1,
                 (int)interp->fault - 1);
        return text;
    }
    if (native->rip != interp->rip) {
        snprintf(text, sizeof text, "rip: native %#llx, interp %#llx", (unsigned long long)native->rip,
                 (unsigned long long)interp->rip);
        return text;
    }
    for (unsigned i = 0; i < 16; i++)
        if (native->gpr[i] != interp->gpr[i]) {
            snprintf(text, sizeof text, "gpr %u: native %#llx, interp %#llx", i,
                     (unsigned long long)native->gpr[i], (unsigned long long)interp->gpr[i]);
            return text;
        }
    uint64_t mask = (FLAGS_ARITHMETIC | FLAG_DF) & ~(uint64_t)(insn->flags_undefined);
    if (!native->fault && (native->rflags ^ interp->rflags) & mask) {
        snprintf(text, sizeof text, "flags: native %#llx, interp %#llx",
                 (unsigned long long)(native->rflags & mask), (unsigned long long)(interp->rflags & mask));
        return text;
    }
    /* A ten-byte store that faults on its second page may or may not have written its first eight bytes. */
    bool torn = native->fault && insn->z.meta.isa_ext == ZYDIS_ISA_EXT_X87;
    if (!stores_pointers(insn) && !torn) {
        for (unsigned i = 0; i < DATA_SIZE; i++)
            if (native->data[i] != interp->data[i]) {
                snprintf(text, sizeof text, "data at +%#x: native %02x, interp %02x", i, native->data[i],
                         interp->data[i]);
                return text;
            }
    }
    if (native->fault && insn->z.meta.isa_ext != ZYDIS_ISA_EXT_X87) {
        /* Whether a faulting MMX store has entered MMX state is the processor's own affair. */
        memcpy(native->xsave + 3, interp->xsave + 3, 2);
        memcpy(native->xsave + 32, interp->xsave + 32, 128);
    }
    if (!image_equal(native->xsave, interp->xsave, xfeatures, &where)) {
        snprintf(text, sizeof text, "xsave byte %u: native %02x, interp %02x", where, native->xsave[where],
                 interp->xsave[where]);
        return text;
    }
    return NULL;
}

static void report(const struct insn *insn, const char *text) {
    ZydisFormatter formatter;
    char line[256] = "";
    ZydisFormatterInit(&formatter, ZYDIS_FORMATTER_STYLE_INTEL);
    ZydisFormatterFormatInstruction(&formatter, &insn->z, insn->op, insn->z.operand_count_visible, line,
                                    sizeof line, TEST_CODE, NULL);
    for (unsigned i = 0; i < insn->length; i++)
        printf("%02x", insn->bytes[i]);
    printf("  %s: %s\n", line, text);
}

int main(int argc, char **argv) {
    unsigned long count = argc > 1 ? strtoul(argv[1], NULL, 0) : 100000;
    random_state = argc > 2 ? strtoull(argv[2], NULL, 0) : 1;
    random_state = random_state * 0x9e3779b97f4a7c15ull | 1;
    static struct test_guest guest;
    static struct state in, native, interp;
    uint64_t xfeatures = native_xfeatures = test_host_xcr0();
    unsigned failures = 0, tested = 0, faults = 0;
    setvbuf(stdout, NULL, _IOLBF, 0);
    test_guest_create(&guest, TEST_USER64);
    test_install_signals(native_trap);
    if (mmap((void *)TEST_CODE, PAGE_SIZE, PROT_READ | PROT_WRITE | PROT_EXEC,
             MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE, -1, 0) == MAP_FAILED ||
        mmap((void *)DATA, DATA_SIZE, PROT_READ | PROT_WRITE,
             MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE, -1, 0) == MAP_FAILED) {
        perror("interp_native_test: cannot map the test's addresses");
        return 1;
    }
    read_components();
    while (tested < count && failures < 40) {
        struct insn insn;
        uint8_t code[INSN_MAX_LENGTH];
        generate(code);
        if (insn_decode(&insn, code, sizeof code, 64) != INSN_OK)
            continue;
        if (is_excluded(&insn) || (!insn_can_encode(&insn) && !is_own(&insn)))
            continue;
        if (is_out_of_bounds(&insn))
            continue;
        random_inputs(&in, xfeatures);
        if (insn.z.meta.category == ZYDIS_CATEGORY_STRINGOP)
            in.gpr[GPR_RCX] = random_u64() & 0x3f;
        if (insn.traits & INSN_VSIB)
            for (unsigned i = 160; i < XSAVE_MAX; i += 4) {
                uint32_t value = (uint32_t)random_u64() & 0xff;
                if ((i < 416 || i >= 576) && (i < 1088 || i >= 1152))
                    memcpy(in.xsave + i, &value, 4);
            }
        if (!place_memory(&insn, &in, random_u64() & 3 ? 63 : 0))
            continue;
        limit_offsets(&insn, &in);
        if (insn.gprs_read & 1u << GPR_RCX && insn.z.meta.category == ZYDIS_CATEGORY_STRINGOP)
            in.gpr[GPR_RCX] = random_u64() & 0x3f;
        if (insn.z.mnemonic == ZYDIS_MNEMONIC_XLAT)
            in.gpr[GPR_RBX] = DATA + (random_u64() & 0xff);
        /* A virtual machine without a processor's help may fault when it is interrupted while RSP is not
         * canonical. What the interpreter does wrong it does each time. */
        const char *text = "";
        for (unsigned i = 0; text && i < ATTEMPTS; i++) {
            native_run(&in, &native, code, insn.length);
            interp_run_one(&guest, &in, &interp, code, insn.length);
            text = difference(&insn, &native, &interp, xfeatures);
        }
        tested++;
        faults += native.fault != 0;
        if (text) {
            failures++;
            report(&insn, text);
        }
    }
    printf("%u instructions, %u faults, %u failures\n", tested, faults, failures);
    test_guest_destroy(&guest);
    return failures != 0;
}
