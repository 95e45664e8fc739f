/* Stub processes by ptrace(2).
 *
 * The template is executed from a memory file, so that nothing of the launcher is in it, and emptied of all
 * that the kernel maps into a new process. Stubs are its forks: the kernel attaches them to the template's
 * tracer, so a vCPU's thread needs the right to attach to one process only.
 *
 * A stub runs in one of two ways. With PTRACE_SYSEMU it runs guest code: the kernel stops it at every system
 * call and makes none. With PTRACE_CONT it runs the text page's loop over the orders, and no guest code: the
 * monitor set all of its registers, and the page and the orders are not writable in it. A filter allows the
 * calls that orders make and hands anything else to the tracer: the second wall, and what stops the emulation
 * of vsyscalls.
 */
#define _GNU_SOURCE
#include "direct/stub.h"

#include <asm/ldt.h>
#include <asm/prctl.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/audit.h>
#include <linux/capability.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <pthread.h>
#include <sched.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/ptrace.h>
#include <sys/random.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include <elf.h>

#ifndef MFD_EXEC
#define MFD_EXEC 0x10u
#endif

#define ORDERS_FD 4
#define TRIAL_ADDRESS GIB /* for a page of code below 4 GiB */
/* The stubs' own pages are among these, above programs and below the kernel's choices for mmap. */
#define BASE_FIRST 0x100000000000ull
#define BASE_COUNT (0x400000000000ull / PAGE_SIZE)
#define TRIALS 64
#define SIGNALS_WAITING 8
#define XSTATE_MAX (16 * KIB)
#define SELECTOR_USER_CODE 0x33
#define SELECTOR_USER_CODE_32 0x23
#define SELECTOR_USER_DATA 0x2b
#define FLAGS_START 0x202
#define FLAGS_NT 0x4000
#define OPTIONS                                                                                              \
    (PTRACE_O_EXITKILL | PTRACE_O_TRACESYSGOOD | PTRACE_O_TRACESECCOMP | PTRACE_O_TRACEFORK |                \
     PTRACE_O_TRACECLONE)

extern const uint8_t direct_stub_image[], direct_stub_image_end[];

static uint64_t now_ns(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

/* The kernel reports an interruption before a fault or trap that came at the same moment: that one waits
 * until the stub is let run again, and would then be taken for one of other registers. */
bool stub_has_trapped(pid_t pid) {
    struct __ptrace_peeksiginfo_args which = {.nr = SIGNALS_WAITING};
    siginfo_t found[SIGNALS_WAITING];
    long count = ptrace(PTRACE_PEEKSIGINFO, pid, &which, found);
    for (long i = 0; i < count; i++) {
        int signo = found[i].si_signo;
        if (found[i].si_code > 0 &&
            (signo == SIGSEGV || signo == SIGBUS || signo == SIGILL || signo == SIGFPE || signo == SIGTRAP))
            return true;
    }
    return false;
}

int stub_wait(pid_t pid) {
    int status;
    pid_t result;
    do
        result = wait4(pid, &status, __WALL, NULL);
    while (result < 0 && errno == EINTR);
    return result != pid || WIFEXITED(status) || WIFSIGNALED(status) ? 0 : status;
}

/* Let a stopped stub run with these registers until it traps or faults. */
static int run_until_trap(pid_t pid, struct user_regs_struct *regs) {
    regs->orig_rax = UINT64_MAX;
    regs->eflags = FLAGS_START;
    regs->ss = SELECTOR_USER_DATA;
    if (ptrace(PTRACE_SETREGS, pid, NULL, regs))
        return -errno;
    for (;;) {
        if (ptrace(PTRACE_CONT, pid, NULL, NULL))
            return -errno;
        int status = stub_wait(pid);
        if (!status)
            return -ESRCH;
        int signal = WSTOPSIG(status);
        if (!(status >> 16) && (signal == SIGTRAP || signal == SIGSEGV || signal == SIGBUS))
            break; /* anything else is no end: a kick's interruption, a signal from outside */
    }
    return ptrace(PTRACE_GETREGS, pid, NULL, regs) ? -errno : 0;
}

/* The text page from a place on, until it traps at STUB_AT_STOP. */
static int run_orders(pid_t pid, struct user_regs_struct *regs) {
    regs->cs = SELECTOR_USER_CODE;
    return run_until_trap(pid, regs);
}

int stub_apply(struct stub_family *family, pid_t pid, unsigned *done) {
    unsigned count = family->order_count;
    struct user_regs_struct regs = {
        .rip = family->base + PAGE_SIZE + STUB_AT_APPLY, .rbx = family->base, .r12 = count};
    family->order_count = 0;
    *done = 0;
    if (!count)
        return 0;
    family->trips++;
    int result = run_orders(pid, &regs);
    /* Ring 3 can read that page: leave nothing in it. */
    memset(family->orders, 0, count * sizeof *family->orders);
    if (result)
        return result;
    if (regs.rip != family->base + PAGE_SIZE + STUB_AT_STOP || regs.r12 > count)
        return -EIO;
    *done = count - (unsigned)regs.r12;
    return regs.r12 ? (int)regs.rax : 0;
}

/* One call with its arguments in registers, by the text page at text. The call's result or -errno. */
static int64_t call(pid_t pid, uint64_t text, uint64_t number, const uint64_t argument[6]) {
    struct user_regs_struct regs = {.rip = text + STUB_AT_CALL,
                                    .rax = number,
                                    .rdi = argument[0],
                                    .rsi = argument[1],
                                    .rdx = argument[2],
                                    .r10 = argument[3],
                                    .r8 = argument[4],
                                    .r9 = argument[5],
                                    .r12 = 1};
    int result = run_orders(pid, &regs);
    return result ? result : (int64_t)regs.rax;
}

static uint64_t text_of(const struct stub_family *family) {
    return family->base + PAGE_SIZE;
}

#define CALL(family, number, ...)                                                                            \
    call((family)->template, text_of(family), number, (const uint64_t[6]){__VA_ARGS__})

/* -- the template -- */

/* In the forked child: only calls that are safe beside other threads. */
static void become_template(int image, int ram_fd, int orders_fd, int report) {
    static char *const arguments[] = {"nestor-stub", NULL}, *const environment[] = {NULL};
    struct __user_cap_header_struct header = {.version = _LINUX_CAPABILITY_VERSION_3};
    struct __user_cap_data_struct none[2] = {0};
    sigset_t set;
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0);
    syscall(SYS_capset, &header, none);
    /* Above the numbers that they shall have, whatever those were. */
    image = fcntl(image, F_DUPFD_CLOEXEC, 16);
    ram_fd = fcntl(ram_fd, F_DUPFD_CLOEXEC, 16);
    orders_fd = fcntl(orders_fd, F_DUPFD_CLOEXEC, 16);
    report = fcntl(report, F_DUPFD_CLOEXEC, 16);
    dup2(ram_fd, STUB_RAM_FD);
    dup2(orders_fd, ORDERS_FD);
    for (int fd = 0; fd < 3; fd++)
        close(fd);
    close_range(ORDERS_FD + 1, ~0u, CLOSE_RANGE_CLOEXEC);
    sigfillset(&set);
    sigdelset(&set, SIGSEGV);
    sigprocmask(SIG_SETMASK, &set, NULL);
    syscall(SYS_execveat, image, "", arguments, environment, AT_EMPTY_PATH);
    int error = errno;
    ssize_t ignored = write(report, &error, sizeof error);
    (void)ignored;
    _exit(127);
}

static int image_file(void) {
    size_t size = (size_t)(direct_stub_image_end - direct_stub_image);
    int fd = memfd_create("nestor-stub", MFD_CLOEXEC | MFD_EXEC);
    if (fd < 0)
        fd = memfd_create("nestor-stub", MFD_CLOEXEC);
    if (fd >= 0 && write(fd, direct_stub_image, size) != (ssize_t)size) {
        close(fd);
        errno = EIO;
        return -1;
    }
    return fd;
}

/* Unmap all but what is ours; what the kernel will not let go (sealed mappings) stays. */
static int empty_space(struct stub_family *family) {
    char path[64], line[256];
    snprintf(path, sizeof path, "/proc/%d/maps", (int)family->template);
    FILE *maps = fopen(path, "re");
    if (!maps)
        return -errno;
    while (fgets(line, sizeof line, maps)) {
        unsigned long long start, end;
        if (sscanf(line, "%llx-%llx", &start, &end) != 2 || start >= STUB_USER_END ||
            stub_owns(family, start))
            continue;
        if (CALL(family, SYS_munmap, start, end - start) && family->occupied_count + 1 < STUB_OCCUPIED_MAX) {
            family->occupied[family->occupied_count++] = start;
            family->occupied[family->occupied_count++] = end - 1;
        }
    }
    fclose(maps);
    return 0;
}

/* The calls that orders may make. */
static int confine(struct stub_family *family) {
    static const uint32_t allowed[] = {SYS_mmap,       SYS_munmap,     SYS_mprotect, SYS_clone,
                                       SYS_arch_prctl, SYS_exit_group, SYS_pause};
    struct {
        struct sock_fprog program;
        struct sock_filter filter[3 + ARRAY_SIZE(allowed) + 2];
    } *page = (void *)family->orders;
    struct sock_filter *at = page->filter;
    enum { CALLS = ARRAY_SIZE(allowed) };
    *at++ = (struct sock_filter)BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, arch));
    *at++ = (struct sock_filter)BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, AUDIT_ARCH_X86_64, 0, CALLS + 1);
    *at++ = (struct sock_filter)BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr));
    for (unsigned i = 0; i < CALLS; i++)
        *at++ = (struct sock_filter)BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, allowed[i], (uint8_t)(CALLS - i), 0);
    *at++ = (struct sock_filter)BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_TRACE);
    *at++ = (struct sock_filter)BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW);
    page->program.len = (unsigned short)(at - page->filter);
    page->program.filter = (struct sock_filter *)(family->base + ((uint8_t *)page->filter - (uint8_t *)page));
    int64_t result = CALL(family, SYS_seccomp, SECCOMP_SET_MODE_FILTER, 0, family->base);
    memset(page, 0, sizeof *page);
    return (int)result;
}

int stub_measure_trip(const struct stub_family *family, uint64_t *ns) {
    pid_t pid = family->template;
    uint64_t best = UINT64_MAX;
    for (unsigned i = 0; i < TRIALS; i++) {
        struct user_regs_struct regs = {.rip = text_of(family) + STUB_AT_WAIT,
                                        .cs = SELECTOR_USER_CODE,
                                        .ss = SELECTOR_USER_DATA,
                                        .eflags = FLAGS_START,
                                        .orig_rax = UINT64_MAX};
        uint8_t xstate[XSTATE_MAX];
        struct iovec vector = {xstate, sizeof xstate};
        uint64_t start = now_ns();
        if (ptrace(PTRACE_SETREGS, pid, NULL, &regs) || ptrace(PTRACE_SYSEMU, pid, NULL, NULL))
            return -errno;
        if (!stub_wait(pid))
            return -ESRCH;
        if (ptrace(PTRACE_GETREGS, pid, NULL, &regs) || ptrace(PTRACE_GETREGSET, pid, NT_X86_XSTATE, &vector))
            return -errno;
        uint64_t took = now_ns() - start;
        best = took < best ? took : best;
    }
    *ns = best;
    return 0;
}

/* Make CPUID fault in the stubs, if that does not cost much: the control is a model-specific register, which
 * is written whenever a stub comes or goes, and in a virtual machine that may be an exit to the hypervisor.
 */
static int choose_cpuid(struct stub_family *family) {
    uint64_t without, with = 0;
    int result = stub_measure_trip(family, &without);
    if (result || CALL(family, SYS_arch_prctl, ARCH_SET_CPUID, 0))
        return result;
    family->cpuid_can_fault = true;
    result = stub_measure_trip(family, &with);
    family->cpuid_trip_ns = with;
    family->cpuid_faults = !result && with < without + without / 4;
    return result || family->cpuid_faults ? result : (int)CALL(family, SYS_arch_prctl, ARCH_SET_CPUID, 1);
}

/* Does 32-bit code run here? A kernel may be built without, and there are virtual machines that cannot,
 * whatever the descriptors say. */
static int try_32bit(struct stub_family *family) {
    /* mov $0x12345678, %eax; inc %eax, which 64-bit code takes for a prefix; int3 */
    static const uint8_t code[] = {0xb8, 0x78, 0x56, 0x34, 0x12, 0x40, 0xcc};
    uint8_t *page = (uint8_t *)family->orders;
    struct user_regs_struct regs = {.rip = TRIAL_ADDRESS, .cs = SELECTOR_USER_CODE_32};
    int64_t at = CALL(family, SYS_mmap, TRIAL_ADDRESS, PAGE_SIZE, PROT_READ | PROT_EXEC,
                      MAP_SHARED | MAP_FIXED, ORDERS_FD, 0);
    if (at != (int64_t)TRIAL_ADDRESS)
        return at < 0 ? (int)at : -EIO;
    memcpy(page, code, sizeof code);
    int result = run_until_trap(family->template, &regs);
    family->runs_32bit =
        !result && regs.rip == TRIAL_ADDRESS + sizeof code && (uint32_t)regs.rax == 0x12345679;
    memset(page, 0, sizeof code);
    /* A selector that is refused or faults is an answer. */
    return result == -ESRCH ? result : (int)CALL(family, SYS_munmap, TRIAL_ADDRESS, PAGE_SIZE);
}

/* Is the GDT's part that is a thread's own there for ring 3, too? */
static int try_tls(struct stub_family *family) {
    enum { ENTRY = 12, SELECTOR = ENTRY << 3 | 3 };
    struct user_desc flat = {
        .entry_number = ENTRY, .limit = 0xfffff, .seg_32bit = 1, .limit_in_pages = 1, .useable = 1};
    struct user_desc empty = {.entry_number = ENTRY, .read_exec_only = 1, .seg_not_present = 1};
    struct user_regs_struct regs = {.rip = text_of(family) + STUB_AT_DONE, .gs = SELECTOR};
    if (ptrace(PTRACE_SET_THREAD_AREA, family->template, (void *)ENTRY, &flat))
        return 0;
    int result = run_orders(family->template, &regs);
    family->loads_tls = !result && (uint16_t)regs.gs == SELECTOR;
    if (result || ptrace(PTRACE_SET_THREAD_AREA, family->template, (void *)ENTRY, &empty))
        return result ? result : -errno;
    regs = (struct user_regs_struct){.rip = text_of(family) + STUB_AT_DONE};
    return run_orders(family->template, &regs);
}

/* There are virtual machines in which SYSCALL clears NT in R11, too. */
static int try_nt(struct stub_family *family) {
    struct user_regs_struct regs = {.rip = text_of(family) + STUB_AT_CALL,
                                    .cs = SELECTOR_USER_CODE,
                                    .ss = SELECTOR_USER_DATA,
                                    .eflags = FLAGS_START | FLAGS_NT,
                                    .orig_rax = UINT64_MAX};
    pid_t pid = family->template;
    if (ptrace(PTRACE_SETREGS, pid, NULL, &regs) || ptrace(PTRACE_SYSEMU, pid, NULL, NULL))
        return -errno;
    if (!stub_wait(pid))
        return -ESRCH;
    if (ptrace(PTRACE_GETREGS, pid, NULL, &regs))
        return -errno;
    family->keeps_nt = regs.eflags & FLAGS_NT;
    return 0;
}

static int prepare(struct stub_family *family, const char **failed_at) {
    pid_t pid = family->template;
    struct user_regs_struct regs;
    *failed_at = "reading a process's registers";
    if (ptrace(PTRACE_GETREGS, pid, NULL, &regs))
        return -errno;
    /* The page moves away under its own feet: what follows its call faults. */
    uint64_t text = regs.rip & PAGE_MASK;
    *failed_at = "laying out a process";
    (void)call(
        pid, text, SYS_mremap,
        (const uint64_t[6]){text, PAGE_SIZE, PAGE_SIZE, MREMAP_MAYMOVE | MREMAP_FIXED, text_of(family)});
    int64_t result =
        CALL(family, SYS_mmap, family->base, PAGE_SIZE, PROT_READ, MAP_SHARED | MAP_FIXED, ORDERS_FD, 0);
    if (result != (int64_t)family->base)
        return result < 0 ? (int)result : -EIO;
    *failed_at = "emptying a process";
    result = empty_space(family);
    if (result)
        return (int)result;
    *failed_at = "a trial run";
    result = try_32bit(family);
    if (!result)
        result = try_tls(family);
    if (!result)
        result = try_nt(family);
    if (result)
        return (int)result;
    (void)CALL(family, SYS_close, ORDERS_FD);
    result = choose_cpuid(family);
    if (result)
        return (int)result;
    *failed_at = "a system call filter for it";
    result = confine(family);
    if (result)
        return (int)result;
    uint8_t scratch[XSTATE_MAX];
    struct iovec vector = {scratch, sizeof scratch};
    *failed_at = "reading a process's vector registers";
    if (ptrace(PTRACE_GETREGSET, pid, NT_X86_XSTATE, &vector))
        return -errno;
    family->xstate_size = vector.iov_len;
    return 0;
}

static int start(struct stub_family *family, int ram_fd, const char **failed_at) {
    int image = image_file(), report[2], error = 0;
    *failed_at = "a memory file";
    if (image < 0)
        return -errno;
    *failed_at = "a pipe";
    if (pipe2(report, O_CLOEXEC)) {
        error = errno;
        close(image);
        return -error;
    }
    *failed_at = "fork";
    sigset_t all, old;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &old);
    pid_t pid = fork();
    error = pid < 0 ? errno : 0;
    if (!pid)
        become_template(image, ram_fd, family->orders_fd, report[1]);
    pthread_sigmask(SIG_SETMASK, &old, NULL);
    close(image);
    close(report[1]);
    if (pid > 0) {
        /* The end of the file: it is executing the stub. */
        *failed_at = "executing a memory file";
        if (read(report[0], &error, sizeof error) == sizeof error)
            waitpid(pid, NULL, 0);
        else
            family->template = pid;
    }
    close(report[0]);
    return -error;
}

static int choose_base(struct stub_family *family) {
    uint64_t random;
    if (getrandom(&random, sizeof random, 0) != sizeof random)
        return -EIO;
    family->base = BASE_FIRST + random % (BASE_COUNT / STUB_PAGES) * (STUB_PAGES * PAGE_SIZE);
    family->occupied[family->occupied_count++] = family->base;
    return 0;
}

int stub_family_create(struct stub_family *family, int ram_fd, const char **failed_at) {
    *family = (struct stub_family){.orders_fd = memfd_create("nestor-orders", MFD_CLOEXEC)};
    *failed_at = "a memory file";
    if (family->orders_fd < 0 || ftruncate(family->orders_fd, PAGE_SIZE))
        return -errno;
    family->orders = mmap(NULL, PAGE_SIZE, PROT_READ | PROT_WRITE, MAP_SHARED, family->orders_fd, 0);
    if (family->orders == MAP_FAILED) {
        family->orders = NULL;
        return -errno;
    }
    *failed_at = "random numbers";
    int result = choose_base(family);
    if (!result)
        result = start(family, ram_fd, failed_at);
    if (result)
        return result;
    *failed_at = "ptrace";
    result = stub_family_attach(family);
    return result ? result : prepare(family, failed_at);
}

void stub_family_destroy(struct stub_family *family) {
    /* A confined process cannot send signals, but attach; one that is attached already can still send them.
     */
    if (family->template && !stub_family_attach(family))
        stub_kill(family, family->template);
    else if (family->template && !kill(family->template, SIGKILL))
        stub_wait(family->template);
    if (family->orders)
        munmap(family->orders, PAGE_SIZE);
    if (family->orders_fd >= 0)
        close(family->orders_fd);
    *family = (struct stub_family){.orders_fd = -1};
}

int stub_family_attach(struct stub_family *family) {
    if (ptrace(PTRACE_SEIZE, family->template, NULL, OPTIONS) ||
        ptrace(PTRACE_INTERRUPT, family->template, NULL, NULL))
        return -errno;
    return stub_wait(family->template) ? 0 : -ESRCH;
}

/* It waits for its next tracer in its own code. */
void stub_family_detach(struct stub_family *family) {
    struct user_regs_struct regs = {.rip = text_of(family) + STUB_AT_WAIT,
                                    .cs = SELECTOR_USER_CODE,
                                    .ss = SELECTOR_USER_DATA,
                                    .eflags = FLAGS_START,
                                    .orig_rax = UINT64_MAX};
    ptrace(PTRACE_SETREGS, family->template, NULL, &regs);
    ptrace(PTRACE_DETACH, family->template, NULL, NULL);
}

/* -- stubs -- */

pid_t stub_fork(struct stub_family *family) {
    pid_t template = family->template;
    struct user_regs_struct regs = {
        .rip = text_of(family) + STUB_AT_CALL, .rax = SYS_clone, .rdi = CLONE_PARENT | SIGCHLD, .r12 = 1};
    /* The fork's own stop comes first, then the end of the call. */
    int result = run_orders(template, &regs);
    if (result)
        return result;
    if ((int64_t)regs.rax <= 0)
        return regs.rax ? (pid_t)regs.rax : -EAGAIN;
    pid_t pid = (pid_t)regs.rax;
    return stub_wait(pid) ? pid : -ESRCH;
}

void stub_kill(struct stub_family *family, pid_t pid) {
    struct user_regs_struct regs = {.rip = text_of(family) + STUB_AT_CALL, .rax = SYS_exit_group, .r12 = 1};
    (void)family;
    (void)run_orders(pid, &regs);
}
