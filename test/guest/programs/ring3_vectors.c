/* Vector, x87 and base registers are a thread's own: across context switches, signals and calls into the
 * kernel. */
#define _GNU_SOURCE
#include "ring3.h"

#include <errno.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/auxv.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <sys/wait.h>
#include <unistd.h>

#ifdef __x86_64__
#include <asm/prctl.h>
#define VECTORS 16
#else
#define VECTORS 8
#endif
enum { ROUNDS = 2000, WORKERS = 3, FRESH_PAGES = 16 };

/* What one round puts into the registers and reads back; the kernel may run others between the two. */
struct vector_state {
    uint8_t vector[32][64];
    uint64_t mask[8];
    struct {
        long double value;
    } __attribute__((aligned(16))) x87[4];
    uint32_t mxcsr;
};

static void fill(struct vector_state *state, uint64_t seed) {
    memset(state, 0, sizeof *state);
    for (size_t i = 0; i < sizeof state->vector; i++)
        (&state->vector[0][0])[i] = (uint8_t)ring3_random(&seed);
    for (int i = 0; i < 8; i++)
        state->mask[i] = ring3_random(&seed) | (uint64_t)ring3_random(&seed) << 32;
    for (int i = 0; i < 4; i++)
        state->x87[i].value = (long double)ring3_random(&seed) / 3;
    state->mxcsr = 0x1f80 | (ring3_random(&seed) & 3) << 13;
}

/* A call in the middle, by the raw entry: the C library must not run between load and store. */
#ifdef __x86_64__
#define YIELD "movl $24, %%eax\n\tsyscall\n\t"
#define YIELD_CLOBBERS "rax", "rcx", "r11"
#else
#define YIELD "movl $158, %%eax\n\tint $0x80\n\t"
#define YIELD_CLOBBERS "eax"
#endif

#define PASTE(text) #text
#define LOAD(instruction, register, n) instruction " " PASTE(n) "*64(%0), %%" register PASTE(n) "\n\t"
#define STORE(instruction, register, n) instruction " %%" register PASTE(n) ", " PASTE(n) "*64(%1)\n\t"
#define EACH_8(what, instruction, register)                                                                  \
    what(instruction, register, 0) what(instruction, register, 1) what(instruction, register, 2)             \
        what(instruction, register, 3) what(instruction, register, 4) what(instruction, register, 5)         \
            what(instruction, register, 6) what(instruction, register, 7)
#define EACH_16(what, instruction, register)                                                                 \
    EACH_8(what, instruction, register)                                                                      \
    what(instruction, register, 8) what(instruction, register, 9) what(instruction, register, 10)            \
        what(instruction, register, 11) what(instruction, register, 12) what(instruction, register, 13)      \
            what(instruction, register, 14) what(instruction, register, 15)
#define EACH_32(what, instruction, register)                                                                 \
    EACH_16(what, instruction, register)                                                                     \
    what(instruction, register, 16) what(instruction, register, 17) what(instruction, register, 18)          \
        what(instruction, register, 19) what(instruction, register, 20) what(instruction, register, 21)      \
            what(instruction, register, 22) what(instruction, register, 23) what(instruction, register, 24)  \
                what(instruction, register, 25) what(instruction, register, 26)                              \
                    what(instruction, register, 27) what(instruction, register, 28)                          \
                        what(instruction, register, 29) what(instruction, register, 30)                      \
                            what(instruction, register, 31)
#define MASKS_LOAD(n) "kmovq " PASTE(n) "*8(%2), %%k" PASTE(n) "\n\t"
#define MASKS_STORE(n) "kmovq %%k" PASTE(n) ", " PASTE(n) "*8(%3)\n\t"
#define EACH_MASK(what) what(0) what(1) what(2) what(3) what(4) what(5) what(6) what(7)

#ifdef __x86_64__
#define EACH EACH_16
#define EACH_WIDE EACH_32
#else
#define EACH EACH_8
#define EACH_WIDE EACH_8
#endif

static void pass_sse(const struct vector_state *in, struct vector_state *out) {
    __asm__ volatile(EACH(LOAD, "movups", "xmm") "1:\n\t" YIELD EACH(STORE, "movups", "xmm")::"r"(in->vector),
                     "r"(out->vector)
                     : "memory", YIELD_CLOBBERS);
}

__attribute__((target("avx"))) static void pass_avx(const struct vector_state *in, struct vector_state *out) {
    __asm__ volatile(EACH(LOAD, "vmovups", "ymm") "1:\n\t" YIELD EACH(STORE, "vmovups",
                                                                      "ymm") "vzeroupper" ::"r"(in->vector),
                     "r"(out->vector)
                     : "memory", YIELD_CLOBBERS);
}

__attribute__((target("avx512f,avx512bw"))) static void pass_avx512(const struct vector_state *in,
                                                                    struct vector_state *out) {
    __asm__ volatile(EACH_WIDE(LOAD, "vmovups", "zmm")
                         EACH_MASK(MASKS_LOAD) "1:\n\t" YIELD EACH_WIDE(STORE, "vmovups", "zmm")
                             EACH_MASK(MASKS_STORE) "vzeroupper" ::"r"(in->vector),
                     "r"(out->vector), "r"(in->mask), "r"(out->mask)
                     : "memory", YIELD_CLOBBERS);
}

static void pass_x87(const struct vector_state *in, struct vector_state *out) {
    uint32_t usual;
    __asm__ volatile("stmxcsr %0" : "=m"(usual));
    __asm__ volatile(
        "ldmxcsr %2\n\tfldt (%0)\n\tfldt 16(%0)\n\tfldt 32(%0)\n\tfldt 48(%0)\n\t" YIELD
        "fstpt 48(%1)\n\tfstpt 32(%1)\n\tfstpt 16(%1)\n\tfstpt (%1)\n\tstmxcsr %3\n\tldmxcsr %4" ::"r"(
            in->x87),
        "r"(out->x87), "m"(in->mxcsr), "m"(out->mxcsr), "m"(usual)
        : "memory", YIELD_CLOBBERS);
}

struct width {
    const char *name;
    void (*pass)(const struct vector_state *, struct vector_state *);
    size_t bytes, registers;
    bool masks;
};
static const struct width sse = {"sse", pass_sse, 16, VECTORS, false};
static const struct width avx = {"avx", pass_avx, 32, VECTORS, false};
static const struct width avx512 = {"avx512", pass_avx512, 64, VECTORS == 16 ? 32 : 8, true};

static bool passes(const struct width *width, uint64_t seed) {
    static struct vector_state in, out;
    fill(&in, seed);
    memset(&out, 0, sizeof out);
    width->pass(&in, &out);
    for (size_t i = 0; i < width->registers; i++) {
        if (memcmp(in.vector[i], out.vector[i], width->bytes))
            return false;
    }
    if (width->masks && memcmp(in.mask, out.mask, sizeof in.mask))
        return false;
    pass_x87(&in, &out);
    for (int i = 0; i < 4; i++) {
        if (memcmp(&in.x87[i], &out.x87[i], 10))
            return false;
    }
    return (in.mxcsr & 0xffc0) == (out.mxcsr & 0xffc0);
}

static volatile int signals;

/* The handler has its own contents in every register; those of the code below come back with the frame. */
static void scribble(int signo, siginfo_t *info, void *context) {
    struct vector_state state;
    (void)signo;
    (void)info;
    (void)context;
    memset(&state, signals, sizeof state);
    __asm__ volatile(EACH(LOAD, "movups", "xmm")::"r"(state.vector) : "memory");
    signals++;
}

static void switches(const struct width *width) {
    for (uint64_t worker = 0; worker < WORKERS; worker++) {
        pid_t child = fork();
        CHECK(child >= 0);
        if (!child) {
            for (uint64_t round = 0; round < ROUNDS; round++) {
                if (!passes(width, worker << 32 | round))
                    _exit(9);
            }
            _exit(0);
        }
    }
    for (int worker = 0; worker < WORKERS; worker++) {
        int status;
        CHECK(wait(&status) > 0 && !status);
    }
    struct itimerval often = {.it_interval = {.tv_usec = 300}, .it_value = {.tv_usec = 300}}, off = {0};
    ring3_handle(SIGALRM, scribble, SA_RESTART);
    CHECK(!setitimer(ITIMER_REAL, &often, NULL));
    for (uint64_t round = 0; signals < 100 || round < ROUNDS; round++)
        CHECK(passes(width, round));
    CHECK(!setitimer(ITIMER_REAL, &off, NULL));
}

static void vectors_sse(void) {
    switches(&sse);
}

static void vectors_avx(void) {
    if (!__builtin_cpu_supports("avx"))
        ring3_skip("no AVX");
    switches(&avx);
}

static void vectors_avx512(void) {
    if (!__builtin_cpu_supports("avx512f") || !__builtin_cpu_supports("avx512bw"))
        ring3_skip("no AVX-512");
    switches(&avx512);
}

/* A null selector with a privilege level is ring 3's to load, but nothing that a tracer may set: page faults
 * under it, each on a page that nobody has touched. */
static void null_selectors(void) {
    volatile uint8_t *pages = ring3_map(3 * FRESH_PAGES * PAGE, PROT_READ | PROT_WRITE);
    for (unsigned selector = 1; selector <= 3; selector++)
        for (unsigned page = 0; page < FRESH_PAGES; page++) {
            unsigned old;
            __asm__ volatile("movl %%es, %0\n\t"
                             "movl %1, %%es\n\t"
                             "movb %b1, %2\n\t"
                             "movl %0, %%es"
                             : "=&r"(old)
                             : "q"(selector), "m"(pages[((selector - 1) * FRESH_PAGES + page) * PAGE])
                             : "memory");
        }
    for (unsigned page = 0; page < 3 * FRESH_PAGES; page++)
        CHECK(pages[page * PAGE] == 1 + page / FRESH_PAGES);
}

#ifdef __x86_64__
__attribute__((target("fsgsbase"))) static uint64_t gs_base(void) {
    return __builtin_ia32_rdgsbase64();
}

__attribute__((target("fsgsbase"))) static void set_gs_base(uint64_t base) {
    __builtin_ia32_wrgsbase64(base);
}

static void change_base(int signo, siginfo_t *info, void *context) {
    (void)signo;
    (void)info;
    (void)context;
    set_gs_base(0x1000);
    signals++;
}

/* Bases that the program writes itself, without the kernel's knowing, live through switches, calls and
 * signals. */
static void bases(void) {
    static uint64_t target[4] = {11, 22, 33, 44};
    struct itimerval often = {.it_interval = {.tv_usec = 500}, .it_value = {.tv_usec = 500}}, off = {0};
    uint64_t base;
    if (!(getauxval(AT_HWCAP2) & 2))
        ring3_skip("no FSGSBASE in user code");
    for (int worker = 0; worker < WORKERS; worker++) {
        pid_t child = fork();
        CHECK(child >= 0);
        if (!child) {
            for (uint64_t i = 0; i < ROUNDS; i++) {
                set_gs_base((uint64_t)(worker + 1) << 33 | i);
                sched_yield();
                if (gs_base() != ((uint64_t)(worker + 1) << 33 | i))
                    _exit(9);
            }
            _exit(0);
        }
    }
    for (int worker = 0; worker < WORKERS; worker++) {
        int status;
        CHECK(wait(&status) > 0 && !status);
    }
    set_gs_base((uint64_t)target);
    uint64_t value;
    __asm__ volatile("movq %%gs:16, %0" : "=r"(value));
    CHECK(value == 33);
    CHECK(!syscall(SYS_arch_prctl, ARCH_GET_GS, &base) && base == (uint64_t)target);
    CHECK(!syscall(SYS_arch_prctl, ARCH_SET_GS, &target[1]) && gs_base() == (uint64_t)&target[1]);
    __asm__ volatile("movq %%gs:0, %0" : "=r"(value));
    CHECK(value == 22);
    /* A signal's handler inherits the base, and what it sets stays: the frame holds none. */
    ring3_handle(SIGALRM, change_base, SA_RESTART);
    CHECK(!setitimer(ITIMER_REAL, &often, NULL));
    while (signals < 20)
        __asm__ volatile("pause");
    CHECK(!setitimer(ITIMER_REAL, &off, NULL));
    CHECK(gs_base() == 0x1000);
    /* Loading a selector brings its own base. */
    __asm__ volatile("movl %0, %%gs" ::"r"(0));
    CHECK(!gs_base());
}

/* The same with a base in the half that is the kernel's. */
static void high_bases(void) {
    static const uint64_t base[] = {UINT64_MAX, 0xffff800000000000, 0x7ffffffff000, 0};
    volatile uint8_t *pages = ring3_map(4 * FRESH_PAGES * PAGE, PROT_READ | PROT_WRITE);
    if (!(getauxval(AT_HWCAP2) & 2))
        ring3_skip("no FSGSBASE in user code");
    for (unsigned page = 0; page < 4 * FRESH_PAGES; page++) {
        set_gs_base(base[page / FRESH_PAGES]);
        pages[page * PAGE] = 1;
        CHECK(gs_base() == base[page / FRESH_PAGES]);
    }
}
#endif

const struct ring3_check ring3_vectors[] = {
    {"vectors-sse", vectors_sse},
    {"vectors-avx", vectors_avx},
    {"vectors-avx512", vectors_avx512},
    {"vectors-null-selectors", null_selectors},
#ifdef __x86_64__
    {"vectors-bases", bases},
    {"vectors-high-bases", high_bases},
#endif
    {0},
};
