/*
 * Starts a program as a container would: an ordinary user without capabilities, no_new_privs, and a seccomp
 * filter.
 *
 *     confine [--listener] PROFILE COMMAND [ARGUMENT...]
 *
 * PROFILE is a list such as docker-seccomp.txt. With --listener the filter also reports uname(2) to a
 * supervisor, which lets it go on: the place of the one user-notification listener that a process may have is
 * taken. Started as root it becomes nobody. Exit status 125 when something of this cannot be had, else the
 * command's.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <grp.h>
#include <poll.h>
#include <sched.h>
#include <seccomp.h>
#include <signal.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <unistd.h>

#define NOBODY 65534
#define STATUS_UNAVAILABLE 125

_Noreturn static void give_up(const char *what, int error) {
    fprintf(stderr, "confine: %s: %s\n", what, strerror(error));
    exit(STATUS_UNAVAILABLE);
}

/* "name argument operation value" */
static bool add_condition(scmp_filter_ctx filter, char *line) {
    char name[64], operation[16];
    unsigned argument;
    unsigned long long value;
    if (sscanf(line, "%63s %u %15s %llu", name, &argument, operation, &value) != 4)
        return false;
    int number = seccomp_syscall_resolve_name(name), result;
    if (!strcmp(operation, "without"))
        result = seccomp_rule_add(filter, SCMP_ACT_ALLOW, number, 1,
                                  SCMP_CMP(argument, SCMP_CMP_MASKED_EQ, value, 0));
    else
        result = seccomp_rule_add(
            filter, SCMP_ACT_ALLOW, number, 1,
            SCMP_CMP(argument, strcmp(operation, "ne") ? SCMP_CMP_EQ : SCMP_CMP_NE, value, 0));
    if (result)
        give_up(name, -result);
    return true;
}

static void add_names(scmp_filter_ctx filter, char *line, bool listener) {
    char *rest;
    for (char *name = strtok_r(line, " \n", &rest); name; name = strtok_r(NULL, " \n", &rest)) {
        int number = seccomp_syscall_resolve_name(name);
        uint32_t action = listener && !strcmp(name, "uname") ? SCMP_ACT_NOTIFY : SCMP_ACT_ALLOW;
        if (number == __NR_SCMP_ERROR)
            continue;
        int result = seccomp_rule_add(filter, action, number, 0);
        if (result)
            give_up(name, -result);
    }
}

static scmp_filter_ctx read_profile(const char *path, bool listener) {
    char line[1024];
    unsigned lines = 0;
    FILE *file = fopen(path, "r");
    scmp_filter_ctx filter = seccomp_init(SCMP_ACT_ERRNO(EPERM));
    if (!file || !filter)
        give_up(path, file ? ENOMEM : errno);
    while (fgets(line, sizeof line, file)) {
        line[strcspn(line, "#")] = 0;
        if (!add_condition(filter, line))
            add_names(filter, line, listener);
        lines++;
    }
    fclose(file);
    seccomp_rule_add(filter, SCMP_ACT_ERRNO(ENOSYS), SCMP_SYS(clone3), 0);
    if (!lines)
        give_up(path, EINVAL);
    return filter;
}

/* Lets each reported call go on, until nobody is left who could make one. */
_Noreturn static void supervise(volatile int *descriptor) {
    struct seccomp_notif *request = NULL;
    struct seccomp_notif_resp *response = NULL;
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    while (*descriptor < 0)
        usleep(1000);
    struct pollfd ready = {.fd = *descriptor, .events = POLLIN};
    if (seccomp_notify_alloc(&request, &response))
        _exit(1);
    while (poll(&ready, 1, -1) > 0 && ready.revents & POLLIN) {
        memset(request, 0, sizeof *request);
        memset(response, 0, sizeof *response);
        if (seccomp_notify_receive(ready.fd, request))
            continue;
        response->id = request->id;
        response->flags = SECCOMP_USER_NOTIF_FLAG_CONTINUE;
        seccomp_notify_respond(ready.fd, response);
    }
    _exit(0);
}

int main(int argc, char **argv) {
    bool listener = argc > 1 && !strcmp(argv[1], "--listener");
    argv += 1 + listener;
    if (argc < 3 + listener)
        give_up("confine [--listener] PROFILE COMMAND [ARGUMENT...]", EINVAL);
    scmp_filter_ctx filter = read_profile(argv[0], listener);
    if (!geteuid() && (setgroups(0, NULL) || setgid(NOBODY) || setuid(NOBODY)))
        give_up("becoming nobody", errno);
    if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0))
        give_up("no_new_privs", errno);
    volatile int *descriptor =
        mmap(NULL, sizeof *descriptor, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    if (descriptor == MAP_FAILED)
        give_up("shared memory", errno);
    *descriptor = -1;
    if (listener) {
        /* It shares the table of descriptors until the command starts, when the listener, close-on-exec, is
         * its alone. */
        long child = syscall(SYS_clone, CLONE_FILES | SIGCHLD, NULL, NULL, NULL, NULL);
        if (child < 0)
            give_up("the supervisor", errno);
        if (!child)
            supervise(descriptor);
    }
    int result = seccomp_load(filter);
    if (result)
        give_up("the filter", -result);
    if (listener)
        *descriptor = seccomp_notify_fd(filter);
    execv(argv[1], argv + 1);
    give_up(argv[1], errno);
}
