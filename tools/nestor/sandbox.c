/* Capabilities are a thread's, not a process's: most go before there is a second thread, the rest on the main
 * thread, whose children the vCPU threads are. The filter is put on all threads at once (TSYNC). What is not
 * on its list fails with ENOSYS, as on a kernel that is too old for it, which libraries have an answer to.
 */
#define _GNU_SOURCE
#include "sandbox.h"

#include <asm/prctl.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/capability.h>
#include <linux/fs.h>
#include <sched.h>
#include <seccomp.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/ptrace.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "base/diag.h"

/* For disks that belong to somebody else, and for --net's hostfwd of low ports. */
#define CAPABILITIES_TO_OPEN (1u << CAP_DAC_OVERRIDE | 1u << CAP_DAC_READ_SEARCH | 1u << CAP_NET_BIND_SERVICE)

static void keep_capabilities(uint32_t keep) {
    struct __user_cap_header_struct header = {.version = _LINUX_CAPABILITY_VERSION_3};
    struct __user_cap_data_struct data[2];
    if (syscall(SYS_capget, &header, data))
        return;
    data[0].effective &= keep;
    data[0].permitted &= keep;
    data[0].inheritable = 0;
    data[1] = (struct __user_cap_data_struct){0};
    (void)syscall(SYS_capset, &header, data);
}

void sandbox_shed_privileges(void) {
    prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0);
    prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0);
    keep_capabilities(CAPABILITIES_TO_OPEN);
}

/* Calls that are allowed whatever their arguments. */
static const int calls_always[] = {
    /* time, scheduling, synchronisation */
    SCMP_SYS(futex),
    SCMP_SYS(clock_gettime),
    SCMP_SYS(gettimeofday),
    SCMP_SYS(sched_yield),
    SCMP_SYS(sched_getaffinity),
    SCMP_SYS(getpid),
    SCMP_SYS(gettid),
    SCMP_SYS(restart_syscall),
    /* memory; mmap and mprotect have rules of their own */
    SCMP_SYS(munmap),
    SCMP_SYS(mremap),
    SCMP_SYS(madvise),
    SCMP_SYS(mincore),
    SCMP_SYS(brk),
    /* descriptors that are open already */
    SCMP_SYS(read),
    SCMP_SYS(write),
    SCMP_SYS(readv),
    SCMP_SYS(writev),
    SCMP_SYS(pread64),
    SCMP_SYS(pwrite64),
    SCMP_SYS(preadv),
    SCMP_SYS(pwritev),
    SCMP_SYS(preadv2),
    SCMP_SYS(pwritev2),
    SCMP_SYS(lseek),
    SCMP_SYS(fallocate),
    SCMP_SYS(fdatasync),
    SCMP_SYS(fsync),
    SCMP_SYS(close),
    SCMP_SYS(fstat),
    SCMP_SYS(poll),
    SCMP_SYS(ppoll),
    SCMP_SYS(io_uring_enter),
    SCMP_SYS(accept4),
    SCMP_SYS(sendto),
    SCMP_SYS(recvfrom),
    /* signals */
    SCMP_SYS(rt_sigreturn),
    SCMP_SYS(rt_sigaction),
    SCMP_SYS(rt_sigprocmask),
    SCMP_SYS(rt_sigtimedwait),
    SCMP_SYS(sigaltstack),
    /* threads: vCPUs are started anew after a reset; clone has a rule of its own */
    SCMP_SYS(set_robust_list),
    SCMP_SYS(rseq),
    SCMP_SYS(exit),
    SCMP_SYS(exit_group),
    SCMP_SYS(wait4),
    SCMP_SYS(getrandom),
};

static const int calls_of_network[] = {
    SCMP_SYS(socket),      SCMP_SYS(connect),     SCMP_SYS(bind),       SCMP_SYS(listen),
    SCMP_SYS(accept),      SCMP_SYS(shutdown),    SCMP_SYS(sendmsg),    SCMP_SYS(recvmsg),
    SCMP_SYS(getsockname), SCMP_SYS(getpeername), SCMP_SYS(getsockopt), SCMP_SYS(setsockopt),
    SCMP_SYS(newfstatat),
};

static const int calls_of_files[] = {
    SCMP_SYS(openat),     SCMP_SYS(rename), SCMP_SYS(unlink),
    SCMP_SYS(newfstatat), SCMP_SYS(fchmod), SCMP_SYS(umask),
};

/* Calls that are allowed when (argument & mask) == value. */
struct condition {
    int call;
    unsigned argument;
    uint64_t mask, value;
};
#define EXACTLY UINT64_MAX
#define OPENS_TO_WRITE (O_WRONLY | O_RDWR | O_CREAT | O_TRUNC | O_APPEND | O_TMPFILE)

static const struct condition conditions_always[] = {
    {SCMP_SYS(ioctl), 1, EXACTLY, TCGETS},
    {SCMP_SYS(ioctl), 1, EXACTLY, TCSETS},
    {SCMP_SYS(ioctl), 1, EXACTLY, TCSETSW},
    {SCMP_SYS(ioctl), 1, EXACTLY, TIOCGWINSZ},
    {SCMP_SYS(ioctl), 1, EXACTLY, FIONBIO},
    {SCMP_SYS(ioctl), 1, EXACTLY, FIONREAD},
    {SCMP_SYS(ioctl), 1, EXACTLY, BLKDISCARD},
    {SCMP_SYS(ioctl), 1, EXACTLY, BLKZEROOUT},
    /* Not F_SETOWN: it has signals sent to other processes. */
    {SCMP_SYS(fcntl), 1, EXACTLY, F_GETFL},
    {SCMP_SYS(fcntl), 1, EXACTLY, F_SETFL},
    {SCMP_SYS(fcntl), 1, EXACTLY, F_GETFD},
    {SCMP_SYS(fcntl), 1, EXACTLY, F_SETFD},
    /* The code cache is mapped by now: nothing becomes executable any more. */
    {SCMP_SYS(mmap), 2, PROT_EXEC, 0},
    {SCMP_SYS(mprotect), 2, PROT_EXEC, 0},
    /* Threads, not processes. clone3 keeps its flags where a filter cannot look; without it the C library
     * uses clone. */
    {SCMP_SYS(clone), 0, CLONE_THREAD | CLONE_VM, CLONE_THREAD | CLONE_VM},
    {SCMP_SYS(prctl), 0, EXACTLY, PR_SET_NAME},
    {SCMP_SYS(arch_prctl), 0, EXACTLY, ARCH_SET_GS},
};
static const struct condition condition_of_network = {SCMP_SYS(openat), 2, OPENS_TO_WRITE, 0};

/* Of a tracer, all but becoming one: they fail for a process that the calling thread does not trace. */
static const struct condition conditions_of_tracer[] = {
    {SCMP_SYS(ptrace), 0, EXACTLY, PTRACE_CONT},
    {SCMP_SYS(ptrace), 0, EXACTLY, PTRACE_SYSEMU},
    {SCMP_SYS(ptrace), 0, EXACTLY, PTRACE_INTERRUPT},
    {SCMP_SYS(ptrace), 0, EXACTLY, PTRACE_DETACH},
    {SCMP_SYS(ptrace), 0, EXACTLY, PTRACE_GETREGS},
    {SCMP_SYS(ptrace), 0, EXACTLY, PTRACE_SETREGS},
    {SCMP_SYS(ptrace), 0, EXACTLY, PTRACE_GETREGSET},
    {SCMP_SYS(ptrace), 0, EXACTLY, PTRACE_SETREGSET},
    {SCMP_SYS(ptrace), 0, EXACTLY, PTRACE_GETSIGINFO},
    {SCMP_SYS(ptrace), 0, EXACTLY, PTRACE_PEEKSIGINFO},
    {SCMP_SYS(ptrace), 0, EXACTLY, PTRACE_SET_THREAD_AREA},
};

static int allow_if(scmp_filter_ctx filter, const struct condition *condition) {
    const struct scmp_arg_cmp compare = {.arg = condition->argument,
                                         .op = SCMP_CMP_MASKED_EQ,
                                         .datum_a = condition->mask,
                                         .datum_b = condition->value};
    return seccomp_rule_add_array(filter, SCMP_ACT_ALLOW, condition->call, 1, &compare);
}

static int allow_all(scmp_filter_ctx filter, const int *calls, size_t count) {
    int result = 0;
    for (size_t i = 0; i < count && !result; i++)
        result = seccomp_rule_add(filter, SCMP_ACT_ALLOW, calls[i], 0);
    return result;
}

static int allow_some(scmp_filter_ctx filter) {
    /* Kicks of vCPUs, and abort(). */
    const struct condition own_threads = {SCMP_SYS(tgkill), 0, EXACTLY, (uint64_t)getpid()};
    int result = allow_if(filter, &own_threads);
    for (size_t i = 0; i < ARRAY_SIZE(conditions_always) && !result; i++)
        result = allow_if(filter, &conditions_always[i]);
    return result;
}

static int allow_tracing(scmp_filter_ctx filter, const struct sandbox_needs *needs) {
    /* Which processor a vCPU and its stubs run on. */
    int result = seccomp_rule_add(filter, SCMP_ACT_ALLOW, SCMP_SYS(sched_setaffinity), 0);
    for (size_t i = 0; i < ARRAY_SIZE(conditions_of_tracer) && !result; i++)
        result = allow_if(filter, &conditions_of_tracer[i]);
    for (size_t i = 0; i < needs->traced_count && !result; i++) {
        const struct scmp_arg_cmp compare[] = {
            {.arg = 0, .op = SCMP_CMP_EQ, .datum_a = PTRACE_SEIZE},
            {.arg = 1, .op = SCMP_CMP_EQ, .datum_a = (scmp_datum_t)needs->traced[i]},
        };
        result =
            seccomp_rule_add_array(filter, SCMP_ACT_ALLOW, SCMP_SYS(ptrace), ARRAY_SIZE(compare), compare);
    }
    return result;
}

static int build(scmp_filter_ctx filter, const struct sandbox_needs *needs) {
    int result = seccomp_attr_set(filter, SCMP_FLTATR_CTL_TSYNC, 1);
    /* A tree instead of a chain: hot calls cost the same wherever they stand in the list. */
    if (!result)
        (void)seccomp_attr_set(filter, SCMP_FLTATR_CTL_OPTIMIZE, 2);
    if (!result)
        result = allow_all(filter, calls_always, ARRAY_SIZE(calls_always));
    if (!result)
        result = allow_some(filter);
    if (!result && needs->traced_count)
        result = allow_tracing(filter, needs);
    if (!result && needs->network)
        result = allow_all(filter, calls_of_network, ARRAY_SIZE(calls_of_network));
    if (!result && needs->writes_files)
        result = allow_all(filter, calls_of_files, ARRAY_SIZE(calls_of_files));
    else if (!result && needs->network)
        result = allow_if(filter, &condition_of_network);
    return result;
}

void sandbox_lock(const struct sandbox_needs *needs) {
    keep_capabilities(0);
    scmp_filter_ctx filter = seccomp_init(SCMP_ACT_ERRNO(ENOSYS));
    int result = filter ? build(filter, needs) : -ENOMEM;
    if (!result)
        result = seccomp_load(filter);
    if (filter)
        seccomp_release(filter);
    if (result)
        diag_warn("the process is not confined: no system call filter on this host (%s); --sandbox off "
                  "accepts that",
                  strerror(-result));
}
