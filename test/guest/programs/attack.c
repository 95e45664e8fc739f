/*
 * The attack suite: what a hostile program in a guest may try against the engine that runs it. Prints a line
 * for each phase; the last one says that the attacker's own machine still stands.
 *
 *     attack [PHASE...]
 *
 * Run as root of a guest, from which the doomed children drop to nobody. On a host it proves that the suite
 * itself is harmless; run it there as an ordinary user.
 */
#define _GNU_SOURCE
#include "attack.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define NOBODY 65534
#define PHASE_SECONDS 200
#define JAIL "/tmp/attack-jail"

_Noreturn void attack_fail(const char *file, int line, const char *what) {
    printf(" FAILED: %s:%d: %s (errno %d)\n", strrchr(file, '/') ? strrchr(file, '/') + 1 : file, line, what,
           errno);
    fflush(stdout);
    _exit(1);
}

uint64_t attack_random(uint64_t *seed) {
    *seed ^= *seed << 13;
    *seed ^= *seed >> 7;
    *seed ^= *seed << 17;
    return *seed;
}

void *attack_shared(size_t length) {
    void *memory = mmap(NULL, length, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    CHECK(memory != MAP_FAILED);
    return memory;
}

static void limit(int resource, rlim_t value) {
    struct rlimit both = {value, value};
    setrlimit((__rlimit_resource_t)resource, &both);
}

static void drop_everything(void) {
    setsid();
    for (int signo = 1; signo < 32; signo++)
        signal(signo, SIG_DFL);
    limit(RLIMIT_NPROC, 40);
    limit(RLIMIT_FSIZE, 0);
    limit(RLIMIT_CORE, 0);
    limit(RLIMIT_NOFILE, 20);
    limit(RLIMIT_AS, 1ul << 30);
    limit(RLIMIT_CPU, 5);
    if (!geteuid()) {
        if (chroot(JAIL) || chdir("/") || setgid(NOBODY) || setuid(NOBODY))
            _exit(99);
    }
    for (int i = 0; i < 20; i++)
        close(i);
}

static void sleep_ms(unsigned milliseconds) {
    struct timespec time = {.tv_sec = milliseconds / 1000, .tv_nsec = milliseconds % 1000 * 1000000l};
    nanosleep(&time, NULL);
}

/* Everything that nobody runs dies; only for root, since an ordinary user would die of it himself. */
static void sweep(void) {
    if (geteuid())
        return;
    pid_t child = fork();
    if (!child) {
        if (!setuid(NOBODY))
            kill(-1, SIGKILL);
        _exit(0);
    }
    waitpid(child, NULL, 0);
}

int attack_doomed(void (*body)(void *), void *argument, unsigned milliseconds) {
    int status = 0;
    pid_t child = fork();
    CHECK(child >= 0);
    if (!child) {
        drop_everything();
        body(argument);
        _exit(0);
    }
    for (unsigned waited = 0, step = 1; waited <= milliseconds; waited += step, step = waited < 8 ? 1 : 4) {
        pid_t done = waitpid(child, &status, WNOHANG);
        if (done == child)
            return status;
        CHECK(!done);
        sleep_ms(step);
    }
    kill(child, SIGKILL);
    sweep();
    while (waitpid(child, &status, 0) < 0 && errno == EINTR)
        ;
    return 0;
}

struct phase {
    const char *name;
    void (*run)(void);
};

static const struct phase phases[] = {
    {"search", attack_search},           {"remap", attack_remap},
    {"registers", attack_registers},     {"frames", attack_frames},
    {"random-code", attack_random_code}, {"calls", attack_calls},
    {"exhaust", attack_exhaust},
};

static bool wanted(const char *name, char **names) {
    if (!*names)
        return true;
    for (; *names; names++) {
        if (!strcmp(name, *names))
            return true;
    }
    return false;
}

int main(int argc, char **argv) {
    unsigned failures = 0;
    (void)argc;
    mkdir(JAIL, 0755);
    for (size_t i = 0; i < sizeof phases / sizeof *phases; i++) {
        int status = 0;
        if (!wanted(phases[i].name, argv + 1))
            continue;
        printf("ATTACK %s:", phases[i].name);
        fflush(stdout);
        pid_t child = fork();
        if (!child) {
            alarm(PHASE_SECONDS);
            phases[i].run();
            printf(" - stands\n");
            fflush(stdout);
            _exit(0);
        }
        if (child < 0 || waitpid(child, &status, 0) != child || status) {
            printf(" FAILED with status %#x\n", (unsigned)status);
            failures++;
        }
        sweep();
    }
    printf("ATTACK %zu bits: %u failed\n", sizeof(void *) * 8, failures);
    return failures != 0;
}
