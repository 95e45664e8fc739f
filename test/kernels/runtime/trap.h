#ifndef KERNELS_TRAP_H
#define KERNELS_TRAP_H
/*
 * Running code and seeing how it ends.
 *
 * A context is a full register state. context_run() enters it with IRET at any privilege level and comes back
 * at the first exception or interrupt that no handler has claimed; the context then holds the state that was
 * interrupted, with vector, error code and CR2. Code ends a context by `int $VECTOR_DONE`.
 *
 * TRY() runs a short piece of assembly at CPL 0 in place and gives the vector of its exception, or NO_TRAP;
 * `probe` holds the rest; operands and clobbers follow the code from their first colon on. The assembly must
 * leave the stack pointer as it was.
 */
#include "layout.h"
#include "x86.h"

#define NO_TRAP 0x1ff

#ifdef __x86_64__
struct context {
    unsigned long r15, r14, r13, r12, r11, r10, r9, r8, di, si, bp, bx, dx, cx, ax;
    unsigned long vector, error;
    unsigned long ip, cs, flags, sp, ss; /* the frame on the stack ends here */
    unsigned long cr2;
};
#define PROBE_MOV "movq"
#else
struct context {
    unsigned long gs, fs, es, ds;
    unsigned long di, si, bp, kernel_sp, bx, dx, cx, ax;
    unsigned long vector, error;
    unsigned long ip, cs, flags;
    unsigned long sp, ss;                                 /* on the stack only from another level */
    unsigned long v8086_es, v8086_ds, v8086_fs, v8086_gs; /* and these only from virtual-8086 mode */
    unsigned long cr2;
};
#define PROBE_MOV "movl"
#endif

struct cpu {
    unsigned long saved_sp;
#ifndef __x86_64__
    unsigned long padding;
#endif
    struct context *context; /* at CPU_CONTEXT */
    unsigned index;
};
_Static_assert(offsetof(struct cpu, context) == CPU_CONTEXT, "layout.h");

/* What the last TRY() saw. */
struct probe {
    unsigned long recover; /* where to go on after an exception, 0 outside TRY() */
    unsigned long vector, error, cr2, ip, flags, sp, dr6;
};
extern volatile struct probe probe;

#define TRY(code, ...)                                                                                       \
    ({                                                                                                       \
        probe.vector = NO_TRAP;                                                                              \
        asm volatile(PROBE_MOV " $771f, probe\n\t" code "\n771:\t" PROBE_MOV " $0, probe" __VA_ARGS__);      \
        (unsigned)probe.vector;                                                                              \
    })

/* A handler that returns to the interrupted code; it may change the frame. */
typedef void trap_handler(struct context *frame);
void trap_handle(unsigned vector, trap_handler *handler);

/* A fresh context at CPL 0 (or 3), on a stack of its own, with interrupts off. */
struct context context_kernel(const void *code);
#ifdef __x86_64__
struct context context_user(const void *code);
#else
struct context context_user(const void *code); /* flat segments; with paging on, code is seen at USER_ALIAS */
#endif
/* Runs it; gives the vector that ended it. */
unsigned context_run(struct context *context);

struct cpu *cpu_current(void);

/* One line for how a context ended: vector and error code. */
bool check_end(const struct context *context, unsigned vector, unsigned long error, const char *name);

/* Address at which CPL 3 sees an object of the image or of the page allocator. */
static inline void *user_pointer(const volatile void *p) {
    return (void *)((unsigned long)p + USER_ALIAS);
}

/*
 * A piece of code at top level, ended by INT VECTOR_DONE. It runs at CPL 0 at `name`, and at CPL 3 at
 * user_pointer(name): it must be position-independent.
 */
#define SNIPPET(name, code)                                                                                  \
    extern const char name[];                                                                                \
    asm(".pushsection .text\n\t.globl " #name "\n" #name ":\n\t" code "\n\tint $0x40\n\tud2\n\t.popsection")

#endif
