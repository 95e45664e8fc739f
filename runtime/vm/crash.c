/* The end after a fault that nobody expected: one line that says where, and the way out for the launcher.
 *
 * Only async-signal-safe calls: the thread may hold any lock. The line is built by hand and is one write(2).
 */
#define _GNU_SOURCE
#include "vm/crash.h"
#include "dbt/dbt.h"
#include "vm/vm.h"

#include <string.h>
#include <ucontext.h>
#include <unistd.h>

/* The process's, as its signal handlers are. Atomic. */
static void (*crash_hook)(void);

struct line {
    char text[512];
    size_t used;
};

static void put(struct line *line, const char *text) {
    while (*text && line->used < sizeof line->text)
        line->text[line->used++] = *text++;
}

static void put_hex(struct line *line, uint64_t value) {
    char digits[19] = "0x";
    unsigned at = 2;
    int shift = 60;
    while (shift && !(value >> shift))
        shift -= 4;
    for (; shift >= 0; shift -= 4)
        digits[at++] = "0123456789abcdef"[value >> shift & 15];
    digits[at] = 0;
    put(line, digits);
}

static const char *name_of(int signal) {
    switch (signal) {
    case SIGSEGV:
        return "SIGSEGV";
    case SIGBUS:
        return "SIGBUS";
    case SIGFPE:
        return "SIGFPE";
    case SIGILL:
        return "SIGILL";
    default:
        return "SIGTRAP";
    }
}

void vm_set_crash_hook(void (*hook)(void)) {
    __atomic_store_n(&crash_hook, hook, __ATOMIC_RELEASE);
}

void crash_tell(int signal, const siginfo_t *info, const void *context, const struct vcpu *vcpu) {
    const ucontext_t *user = context;
    uint64_t pc = (uint64_t)user->uc_mcontext.gregs[REG_RIP];
    void (*hook)(void) = __atomic_load_n(&crash_hook, __ATOMIC_ACQUIRE);
    bool sent = info->si_code <= 0; /* by a process, not by the processor */
    struct line line = {.used = 0};
    if (hook)
        hook();
    put(&line, sent ? "nestor: ended by " : "nestor: internal error: ");
    put(&line, name_of(signal));
    put(&line, " at host pc ");
    put_hex(&line, pc);
    if (vcpu && dbt_is_translated(vcpu, pc))
        put(&line, " (in translated code)");
    if (!sent) {
        put(&line, ", address ");
        put_hex(&line, (uint64_t)info->si_addr);
    }
    if (vcpu) {
        put(&line, ", vCPU ");
        put_hex(&line, vcpu->index);
        put(&line, " last known at guest rip ");
        put_hex(&line, vcpu->rip);
    } else {
        put(&line, ", on no vCPU's thread");
    }
    put(&line, sent ? "\n" : "; please report it with this line\n");
    ssize_t ignored = write(STDERR_FILENO, line.text, line.used);
    (void)ignored;
    struct sigaction action = {.sa_handler = SIG_DFL};
    sigaction(signal, &action, NULL);
    if (sent)
        raise(signal); /* pending until the handler returns; a fault comes again by itself */
}
