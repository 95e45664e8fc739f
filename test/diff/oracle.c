/* The processor itself as an engine.
 *
 * A child process runs the cases of a batch one after the other: it puts code and data into the pages of
 * layout.c (mapped at their fixed addresses from a memfd, so that read-only pages can be refilled through a
 * second mapping), enters the stream with all registers loaded (oracle_entry.S), and comes back by the signal
 * that ends it, whose frame holds the registers, the extended state, and vector, error code and CR2 of a
 * fault. No system call is made per case, and state is never carried from one case to the next.
 *
 * The fence: a seccomp filter lets system calls through from one instruction of the child's own code alone;
 * a system call by a stream is a SIGSYS, which is how it is observed. A stream's stray store can hit nothing
 * but the pages of layout.c and, at addresses it cannot know, the child's own memory; a child that dies of
 * that is replaced.
 *
 * Facts of Linux used here: vector, error code and CR2 in the frame are those of the last fault, so they
 * count only when the signal comes from one (not SIGALRM, SIGSYS); a handler set by a 64-bit process gets the
 * 64-bit frame from compatibility mode, too; AC and NT stay as they were in the handler.
 */
#include "oracle.h"

#include "base/diag.h"
#include "engine.h"
#include "layout.h"

#include <asm/prctl.h>
#include <elf.h>
#include <errno.h>
#include <linux/audit.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <poll.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/auxv.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <ucontext.h>
#include <unistd.h>

#define ALTERNATE_STACK_SIZE (64 * 1024)
#define STREAM_TIMEOUT_MS 1000
/* TSC ticks that a stream may take, one or two milliseconds: the interpreter needs a hundred times as long
 * for a loop, and the engines have limits of their own. */
#define STREAM_TICKS_MAX 4000000u

/* Known to oracle_entry.S by offset. */
struct oracle_io {
    uint64_t gpr[16];
    uint64_t rip, cs, rflags, rsp, ss; /* the frame of IRETQ */
    uint64_t fs_base, gs_base;
    uint16_t ds, es, fs, gs;
    const void *xsave;
    uint64_t xsave_mask;
    uint64_t home_rsp, home_fs_base;
    uint64_t out_fs_base, out_gs_base;
    uint16_t out_ds, out_es, out_fs, out_gs;
    bool uses_calls; /* the bases by arch_prctl(): the kernel does not know WRFSBASE */
};
_Static_assert(offsetof(struct oracle_io, rip) == 128, "IO_FRAME");
_Static_assert(offsetof(struct oracle_io, fs_base) == 168, "IO_FS_BASE");
_Static_assert(offsetof(struct oracle_io, ds) == 184, "IO_DS");
_Static_assert(offsetof(struct oracle_io, xsave) == 192, "IO_XSAVE");
_Static_assert(offsetof(struct oracle_io, home_rsp) == 208, "IO_HOME_RSP");
_Static_assert(offsetof(struct oracle_io, out_ds) == 240, "IO_OUT_DS");
_Static_assert(offsetof(struct oracle_io, uses_calls) == 248, "IO_USES_CALLS");

struct oracle_shared {
    uint32_t first, count;
    volatile uint32_t current; /* the case that runs now */
    struct diff_case cases[ORACLE_BATCH];
    struct diff_state states[ORACLE_BATCH];
};

struct oracle {
    struct oracle_shared *shared;
    pid_t child;
    int command[2], reply[2];         /* pipes, one byte a batch */
    const struct diff_engine *engine; /* what runs the cases instead of a child, or NULL */
    void *context;
};

void oracle_enter(void);
void oracle_on_signal(int, siginfo_t *, void *);
void oracle_record(int signal, const siginfo_t *info, const ucontext_t *context);
long oracle_syscall(long number, long a, long b, long c);
extern const char oracle_syscall_site[];

/* The child's own; one thread, one case at a time. The assembly reaches oracle_io by name. */
__attribute__((visibility("hidden"))) struct oracle_io oracle_io;
static struct diff_state *child_result;
static uint8_t *child_alias[16]; /* writable views of layout_regions[] */

/* -- the child -- */

static void child_exit(int code) {
    for (;;)
        oracle_syscall(SYS_exit_group, code, 0, 0);
}

static void record_registers(struct diff_state *state, const greg_t *gregs) {
    static const uint8_t order[16] = {REG_RAX, REG_RCX, REG_RDX, REG_RBX, REG_RSP, REG_RBP, REG_RSI, REG_RDI,
                                      REG_R8,  REG_R9,  REG_R10, REG_R11, REG_R12, REG_R13, REG_R14, REG_R15};
    for (unsigned i = 0; i < 16; i++)
        state->regs.gpr[i] = (uint64_t)gregs[order[i]];
    uint64_t selectors = (uint64_t)gregs[REG_CSGSFS];
    state->regs.rip = (uint64_t)gregs[REG_RIP];
    state->regs.rflags = (uint64_t)gregs[REG_EFL];
    state->regs.fs_base = oracle_io.out_fs_base;
    state->regs.gs_base = oracle_io.out_gs_base;
    state->regs.selector[0] = oracle_io.out_es;
    state->regs.selector[1] = (uint16_t)selectors;
    state->regs.selector[2] = (uint16_t)(selectors >> 48);
    state->regs.selector[3] = oracle_io.out_ds;
    state->regs.selector[4] = oracle_io.out_fs;
    state->regs.selector[5] = oracle_io.out_gs;
}

/* Called by oracle_on_signal() on the alternate stack. */
void oracle_record(int signal, const siginfo_t *info, const ucontext_t *context) {
    struct diff_state *state = child_result;
    if (!state)
        child_exit(signal == SIGALRM ? 99 : signal);
    child_result = NULL;
    const greg_t *gregs = context->uc_mcontext.gregs;
    record_registers(state, gregs);
    if (signal == SIGALRM) {
        state->end = DIFF_END_TIMEOUT;
    } else if (signal == SIGSYS && info->si_arch == AUDIT_ARCH_X86_64) {
        state->end = DIFF_END_SYSCALL;
    } else if (signal == SIGSYS) {
        state->end = DIFF_END_EXCEPTION;
        state->vector = 0x80;
    } else {
        state->end = DIFF_END_EXCEPTION;
        state->vector = (uint32_t)gregs[REG_TRAPNO];
        state->error = (uint32_t)gregs[REG_ERR];
        state->cr2 = state->vector == 14 ? (uint64_t)gregs[REG_CR2] : 0;
    }
    memcpy(state->xsave, context->uc_mcontext.fpregs, layout_xstate()->size);
}

static void child_load(const struct diff_case *test) {
    for (unsigned i = 0; i < layout_region_count; i++) {
        const struct layout_region *region = &layout_regions[i];
        if (region->kind == LAYOUT_KIND_DATA)
            memcpy(child_alias[i], test->data + region->offset, region->pages * PAGE_SIZE);
        else if (region->writable == !!test->writable_code)
            memcpy(child_alias[i], test->code, DIFF_CODE_SIZE);
        else
            memset(child_alias[i], LAYOUT_FILLER, DIFF_CODE_SIZE); /* what an earlier stream left there */
    }
}

static void child_store(const struct diff_case *test, struct diff_state *state) {
    for (unsigned i = 0; i < layout_region_count; i++) {
        const struct layout_region *region = &layout_regions[i];
        if (region->kind == LAYOUT_KIND_DATA)
            memcpy(state->data + region->offset, child_alias[i], region->pages * PAGE_SIZE);
        else if (region->writable == !!test->writable_code)
            memcpy(state->code, child_alias[i], DIFF_CODE_SIZE);
    }
}

static void child_run(const struct diff_case *test, struct diff_state *state) {
    child_load(test);
    memcpy(oracle_io.gpr, test->regs.gpr, sizeof oracle_io.gpr);
    oracle_io.rip = test->regs.rip;
    oracle_io.cs = test->regs.selector[1];
    oracle_io.rflags = test->regs.rflags;
    oracle_io.rsp = test->regs.gpr[4];
    oracle_io.ss = test->regs.selector[2];
    oracle_io.es = test->regs.selector[0];
    oracle_io.ds = test->regs.selector[3];
    oracle_io.fs = test->regs.selector[4];
    oracle_io.gs = test->regs.selector[5];
    oracle_io.fs_base = test->regs.fs_base;
    oracle_io.gs_base = test->regs.gs_base;
    oracle_io.xsave = test->xsave;
    oracle_io.xsave_mask = layout_xstate()->mask;
    state->vector = state->error = 0;
    state->cr2 = 0;
    state->end = DIFF_END_NONE;
    __atomic_signal_fence(__ATOMIC_SEQ_CST);
    child_result = state;
    uint64_t started = __builtin_ia32_rdtsc();
    oracle_enter();
    __atomic_signal_fence(__ATOMIC_SEQ_CST);
    if (__builtin_ia32_rdtsc() - started > STREAM_TICKS_MAX)
        state->end = DIFF_END_TIMEOUT;
    child_store(test, state);
}

static int child_map(void) {
    int fd = memfd_create("nestor-diff", MFD_CLOEXEC);
    uint64_t offset = 0;
    if (fd < 0)
        return -errno;
    for (unsigned i = 0; i < layout_region_count; i++) {
        const struct layout_region *region = &layout_regions[i];
        size_t size = region->pages * PAGE_SIZE;
        int protection =
            PROT_READ | (region->writable ? PROT_WRITE : 0) | (region->executable ? PROT_EXEC : 0);
        if (ftruncate(fd, (off_t)(offset + size)) < 0)
            return -errno;
        void *fixed = mmap((void *)region->base, size, protection,
                           MAP_SHARED | MAP_FIXED_NOREPLACE | MAP_POPULATE, fd, (off_t)offset);
        if (fixed != (void *)region->base)
            return fixed == MAP_FAILED ? -errno : -EEXIST;
        child_alias[i] =
            mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_POPULATE, fd, (off_t)offset);
        if (child_alias[i] == MAP_FAILED)
            return -errno;
        memset(child_alias[i], LAYOUT_FILLER, size);
        offset += size;
    }
    close(fd);
    return 0;
}

static int child_fence(void) {
    uint64_t site = (uint64_t)(uintptr_t)oracle_syscall_site;
    struct sock_filter filter[] = {
        BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, arch)),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, AUDIT_ARCH_X86_64, 0, 9),
        BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, instruction_pointer)),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, (uint32_t)site, 0, 7),
        BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, instruction_pointer) + 4),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, (uint32_t)(site >> 32), 0, 5),
        BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_arch_prctl, 4, 0),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_read, 3, 0),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_write, 2, 0),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_exit_group, 1, 0),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_TRAP),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
    };
    struct sock_fprog program = {ARRAY_SIZE(filter), filter};
    if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) || prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program))
        return -errno;
    return 0;
}

static int child_signals(void) {
    static const int signals[] = {SIGSEGV, SIGBUS, SIGILL, SIGFPE, SIGTRAP, SIGSYS, SIGALRM};
    stack_t stack = {.ss_size = ALTERNATE_STACK_SIZE};
    stack.ss_sp =
        mmap(NULL, stack.ss_size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_POPULATE, -1, 0);
    if (stack.ss_sp == MAP_FAILED || sigaltstack(&stack, NULL) < 0)
        return -errno;
    for (unsigned i = 0; i < ARRAY_SIZE(signals); i++) {
        struct sigaction action = {.sa_sigaction = oracle_on_signal,
                                   .sa_flags = SA_SIGINFO | SA_ONSTACK | SA_NODEFER};
        if (sigaction(signals[i], &action, NULL) < 0)
            return -errno;
    }
    return 0;
}

static void child_main(struct oracle_shared *shared, int command, int reply) {
    (void)layout_xstate();
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    oracle_io.uses_calls = !oracle_has_fsgsbase();
    oracle_syscall(SYS_arch_prctl, ARCH_GET_FS, (long)&oracle_io.home_fs_base, 0);
    int error = child_map();
    if (!error)
        error = child_signals();
    if (!error)
        error = child_fence();
    if (error) {
        diag_error("nestor-diff: the native child cannot be set up: %s", strerror(-error));
        _exit(100);
    }
    for (;;) {
        char byte;
        if (oracle_syscall(SYS_read, command, (long)&byte, 1) != 1)
            child_exit(0);
        for (uint32_t i = shared->first; i < shared->count; i++) {
            shared->current = i;
            child_run(&shared->cases[i], &shared->states[i]);
        }
        shared->current = shared->count;
        if (oracle_syscall(SYS_write, reply, (long)&byte, 1) != 1)
            child_exit(0);
    }
}

/* -- the parent -- */

static int child_start(struct oracle *oracle) {
    if (pipe(oracle->command) < 0)
        return -errno;
    if (pipe(oracle->reply) < 0) {
        int error = -errno;
        close(oracle->command[0]);
        close(oracle->command[1]);
        return error;
    }
    oracle->child = fork();
    if (oracle->child < 0)
        return -errno;
    if (oracle->child == 0) {
        close(oracle->command[1]);
        close(oracle->reply[0]);
        child_main(oracle->shared, oracle->command[0], oracle->reply[1]);
    }
    close(oracle->command[0]);
    close(oracle->reply[1]);
    return 0;
}

static int child_reap(struct oracle *oracle) {
    int status = 0;
    close(oracle->command[1]);
    close(oracle->reply[0]);
    waitpid(oracle->child, &status, 0);
    oracle->child = 0;
    return status;
}

bool oracle_has_fsgsbase(void) {
    return getauxval(AT_HWCAP2) & 2;
}

static int oracle_allocate(struct oracle **result) {
    struct oracle *oracle = calloc(1, sizeof *oracle);
    if (!oracle)
        return -ENOMEM;
    signal(SIGPIPE, SIG_IGN);
    oracle->shared =
        mmap(NULL, sizeof *oracle->shared, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    if (oracle->shared == MAP_FAILED) {
        free(oracle);
        return -ENOMEM;
    }
    *result = oracle;
    return 0;
}

int oracle_create(struct oracle **oracle) {
    int error = oracle_allocate(oracle);
    if (!error && (error = child_start(*oracle))) {
        oracle_destroy(*oracle);
        *oracle = NULL;
    }
    return error;
}

int oracle_create_engine(struct oracle **oracle, const struct diff_engine *engine) {
    int error = oracle_allocate(oracle);
    if (!error && (error = engine->create(&(*oracle)->context))) {
        oracle_destroy(*oracle);
        *oracle = NULL;
    } else if (!error) {
        (*oracle)->engine = engine;
    }
    return error;
}

void oracle_destroy(struct oracle *oracle) {
    if (!oracle)
        return;
    if (oracle->engine)
        oracle->engine->destroy(oracle->context);
    if (oracle->child > 0) {
        kill(oracle->child, SIGKILL);
        child_reap(oracle);
    }
    munmap(oracle->shared, sizeof *oracle->shared);
    free(oracle);
}

struct diff_case *oracle_cases(struct oracle *oracle) {
    return oracle->shared->cases;
}

const struct diff_state *oracle_states(const struct oracle *oracle) {
    return oracle->shared->states;
}

/* Wait for the batch; a stream that makes no progress is interrupted. 0: done, -EPIPE: the child is dead. */
static int batch_wait(struct oracle *oracle) {
    uint32_t seen = UINT32_MAX;
    for (;;) {
        struct pollfd fd = {.fd = oracle->reply[0], .events = POLLIN};
        int ready = poll(&fd, 1, STREAM_TIMEOUT_MS);
        char byte;
        if (ready > 0)
            return read(oracle->reply[0], &byte, 1) == 1 ? 0 : -EPIPE;
        if (ready < 0 && errno != EINTR)
            return -errno;
        if (ready == 0 && oracle->shared->current == seen)
            kill(oracle->child, SIGALRM);
        seen = oracle->shared->current;
    }
}

static int engine_run(struct oracle *oracle, unsigned count) {
    int error = 0;
    for (unsigned i = 0; i < count && !error; i++)
        error = oracle->engine->run(oracle->context, &oracle->shared->cases[i], &oracle->shared->states[i]);
    return error;
}

int oracle_run(struct oracle *oracle, unsigned count) {
    struct oracle_shared *shared = oracle->shared;
    if (oracle->engine)
        return engine_run(oracle, count);
    shared->first = 0;
    shared->count = count;
    while (shared->first < count) {
        shared->current = shared->first;
        int error = write(oracle->command[1], "r", 1) == 1 ? 0 : -EPIPE;
        if (!error)
            error = batch_wait(oracle);
        if (!error)
            return 0;
        if (error != -EPIPE)
            return error;
        int status = child_reap(oracle);
        if (WIFEXITED(status) && WEXITSTATUS(status) == 100)
            return -ENOTSUP;
        uint32_t lost = shared->current;
        if (lost < count) {
            memset(&shared->states[lost], 0, sizeof shared->states[lost]);
            shared->states[lost].end = DIFF_END_LOST;
            shared->states[lost].error = (uint32_t)status;
        }
        shared->first = lost + 1;
        error = child_start(oracle);
        if (error)
            return error;
    }
    return 0;
}

bool oracle_runs_mode(struct oracle *oracle, unsigned mode) {
    struct diff_case *test = oracle->shared->cases;
    const struct diff_state *state = oracle->shared->states;
    memset(test, 0, sizeof *test);
    memset(test->code, LAYOUT_FILLER, sizeof test->code);
    test->code[0] = 0x90;
    test->mode = mode;
    test->length = 1;
    test->regs = (struct diff_regs){.rip = LAYOUT_CODE_FIXED,
                                    .rflags = 0x202,
                                    .fs_base = LAYOUT_DATA,
                                    .gs_base = LAYOUT_DATA,
                                    .selector = {DIFF_DS, DIFF_CS_32, DIFF_DS, DIFF_DS, DIFF_DS, DIFF_DS}};
    if (mode == 64)
        memcpy(test->regs.selector, (uint16_t[]){0, DIFF_CS_64, DIFF_DS, 0, 0, 0},
               sizeof test->regs.selector);
    test->regs.gpr[4] = LAYOUT_STACK + 0x800;
    test->xsave[1] = 0x03; /* x87 control word and MXCSR as after reset */
    test->xsave[0] = 0x7f;
    test->xsave[24] = 0x80;
    test->xsave[25] = 0x1f;
    return !oracle_run(oracle, 1) && state->end == DIFF_END_EXCEPTION && state->vector == 3 &&
           state->regs.rip == LAYOUT_CODE_FIXED + 2 && state->regs.fs_base == LAYOUT_DATA &&
           !memcmp(state->regs.selector, test->regs.selector, sizeof test->regs.selector);
}
