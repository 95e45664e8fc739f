/*
 * Runs every check of ring3.h in a process of its own and prints one line for each:
 *
 *     RING3 name ok | skipped: why | FAILED: where and what
 *
 *     ring3 [NAME...]     only those whose names begin so
 *
 * Exit status 0: none failed.
 */
#define _GNU_SOURCE
#include "ring3.h"

#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#define CHECK_SECONDS 60
enum { STATUS_OK, STATUS_FAILED, STATUS_SKIPPED };

static sigjmp_buf attempt_return;
static struct ring3_fault last_fault;
static const int synchronous[] = {SIGSEGV, SIGBUS, SIGILL, SIGFPE, SIGTRAP};

_Noreturn void ring3_fail(const char *file, int line, const char *what) {
    printf(" FAILED: %s:%d: %s (errno %d)\n", strrchr(file, '/') ? strrchr(file, '/') + 1 : file, line, what,
           errno);
    fflush(stdout);
    _exit(STATUS_FAILED);
}

_Noreturn void ring3_skip(const char *why) {
    printf(" skipped: %s\n", why);
    fflush(stdout);
    _exit(STATUS_SKIPPED);
}

void ring3_handle(int signo, void (*handler)(int, siginfo_t *, void *), int flags) {
    struct sigaction action = {.sa_sigaction = handler, .sa_flags = SA_SIGINFO | flags};
    CHECK(!sigaction(signo, &action, NULL));
}

static void catch_fault(int signo, siginfo_t *info, void *context) {
    ucontext_t *frame = context;
    /* The kernel leaves AC as it was; what follows is not aligned for it. */
#ifdef __x86_64__
    __asm__ volatile("pushfq\n\tandl $0xfffbffff, (%%rsp)\n\tpopfq" ::: "memory", "cc");
#else
    __asm__ volatile("pushfl\n\tandl $0xfffbffff, (%%esp)\n\tpopfl" ::: "memory", "cc");
#endif
    last_fault = (struct ring3_fault){.signo = signo,
                                      .code = info->si_code,
                                      .address = (uintptr_t)info->si_addr,
                                      .ip = (uintptr_t)FRAME_IP(frame),
                                      .error = (unsigned long)frame->uc_mcontext.gregs[REG_ERR],
                                      .trap = (unsigned long)frame->uc_mcontext.gregs[REG_TRAPNO]};
    siglongjmp(attempt_return, 1);
}

bool ring3_try(void (*attempt)(uintptr_t), uintptr_t argument, struct ring3_fault *fault) {
    struct sigaction before[sizeof synchronous / sizeof *synchronous];
    struct sigaction action = {.sa_sigaction = catch_fault, .sa_flags = SA_SIGINFO | SA_ONSTACK};
    volatile bool came_back = false;
    for (size_t i = 0; i < sizeof synchronous / sizeof *synchronous; i++)
        CHECK(!sigaction(synchronous[i], &action, &before[i]));
    if (!sigsetjmp(attempt_return, 1)) {
        attempt(argument);
        came_back = true;
    }
    for (size_t i = 0; i < sizeof synchronous / sizeof *synchronous; i++)
        CHECK(!sigaction(synchronous[i], &before[i], NULL));
    if (fault && !came_back)
        *fault = last_fault;
    return came_back;
}

static void read_byte(uintptr_t address) {
    (void)*(const volatile char *)address;
}

static void write_byte(uintptr_t address) {
    *(volatile char *)address = 1;
}

bool ring3_reads(const volatile void *address, struct ring3_fault *fault) {
    return ring3_try(read_byte, (uintptr_t)address, fault);
}

bool ring3_writes(volatile void *address, struct ring3_fault *fault) {
    return ring3_try(write_byte, (uintptr_t)address, fault);
}

void *ring3_map(size_t length, int protection) {
    void *memory = mmap(NULL, length, protection, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    CHECK(memory != MAP_FAILED);
    return memory;
}

uint32_t ring3_random(uint64_t *seed) {
    *seed = *seed * 6364136223846793005ull + 1442695040888963407ull;
    return (uint32_t)(*seed >> 33);
}

void ring3_reap(int pid, int status) {
    int got;
    CHECK(pid > 0);
    CHECK(waitpid(pid, &got, 0) == pid);
    CHECK(WIFEXITED(got) && WEXITSTATUS(got) == status);
}

/* Returns whether it failed. */
static bool run(const struct ring3_check *check) {
    int status;
    printf("RING3 %s", check->name);
    fflush(stdout);
    pid_t child = fork();
    if (!child) {
        alarm(CHECK_SECONDS);
        check->run();
        printf(" ok\n");
        fflush(stdout);
        _exit(STATUS_OK);
    }
    if (child < 0 || waitpid(child, &status, 0) != child) {
        printf(" FAILED: no process: %s\n", strerror(errno));
        return true;
    }
    if (WIFSIGNALED(status)) {
        printf(" FAILED: killed by signal %d\n", WTERMSIG(status));
        return true;
    }
    return WEXITSTATUS(status) == STATUS_FAILED;
}

static bool wanted(const char *name, char **names) {
    if (!*names)
        return true;
    for (; *names; names++) {
        if (!strncmp(name, *names, strlen(*names)))
            return true;
    }
    return false;
}

int main(int argc, char **argv) {
    const struct ring3_check *const files[] = {ring3_entries, ring3_signals, ring3_vectors, ring3_memory,
                                               ring3_paging,  ring3_ptrace,  ring3_threads, ring3_jit};
    unsigned checks = 0, failures = 0;
    (void)argc;
    for (size_t i = 0; i < sizeof files / sizeof *files; i++) {
        for (const struct ring3_check *check = files[i]; check->name; check++) {
            if (wanted(check->name, argv + 1)) {
                checks++;
                failures += run(check);
            }
        }
    }
    printf("RING3 %zu bits: %u checks, %u failed\n", sizeof(void *) * 8, checks, failures);
    return failures || !checks;
}
