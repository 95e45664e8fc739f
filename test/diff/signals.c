/* The host signals that engines turn into guest faults. Whatever is not a guest's is the tester's own crash.
 * The stack is disarmed while a handler runs: translated code may hold guest values in RSP. */
#include "signals.h"

#include <errno.h>
#include <stdio.h>
#include <sys/mman.h>
#include <sys/time.h>
#include <ucontext.h>
#include <unistd.h>

#ifndef SS_AUTODISARM
#define SS_AUTODISARM (1U << 31)
#endif
#define SIGNAL_STACK_SIZE (128 * KIB)

static struct {
    struct vcpu *volatile vcpu;
    signals_handler *handler;
    void (*on_alarm)(struct vcpu *vcpu);
    bool is_installed;
} running;

static void on_fault(int signal, siginfo_t *info, void *context) {
    if (running.vcpu && running.handler(running.vcpu, signal, info, context))
        return;
    const ucontext_t *user = context;
    dprintf(STDERR_FILENO, "nestor-diff: signal %d of its own at %#llx, stack %#llx, address %p\n", signal,
            (unsigned long long)user->uc_mcontext.gregs[REG_RIP],
            (unsigned long long)user->uc_mcontext.gregs[REG_RSP], info->si_addr);
    struct sigaction action = {.sa_handler = SIG_DFL};
    sigaction(signal, &action, NULL);
}

static void on_alarm(int signal) {
    (void)signal;
    if (running.vcpu)
        running.on_alarm(running.vcpu);
}

int signals_install(void) {
    static const int signals[] = {SIGFPE, SIGSEGV, SIGBUS, SIGILL, SIGTRAP};
    stack_t stack = {.ss_size = SIGNAL_STACK_SIZE, .ss_flags = (int)SS_AUTODISARM};
    if (running.is_installed)
        return 0;
    stack.ss_sp = mmap(NULL, stack.ss_size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (stack.ss_sp == MAP_FAILED || sigaltstack(&stack, NULL) < 0)
        return -errno;
    for (unsigned i = 0; i < ARRAY_SIZE(signals); i++) {
        struct sigaction action = {.sa_sigaction = on_fault, .sa_flags = SA_SIGINFO | SA_ONSTACK};
        if (sigaction(signals[i], &action, NULL) < 0)
            return -errno;
    }
    struct sigaction action = {.sa_handler = on_alarm, .sa_flags = SA_ONSTACK | SA_RESTART};
    if (sigaction(SIGALRM, &action, NULL) < 0)
        return -errno;
    running.is_installed = true;
    return 0;
}

void signals_enter(struct vcpu *vcpu, signals_handler *handler, void (*alarm)(struct vcpu *vcpu),
                   unsigned seconds) {
    struct itimerval timer = {.it_value.tv_sec = vcpu ? seconds : 0, .it_interval.tv_sec = vcpu ? 1 : 0};
    running.handler = handler;
    running.on_alarm = alarm;
    running.vcpu = vcpu;
    setitimer(ITIMER_REAL, &timer, NULL);
}
