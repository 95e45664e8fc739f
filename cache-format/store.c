/* Asking the host-wide store. The protocol and why a receiver may trust what it gets are in
 * docs/cache-format.md.
 */
#define _GNU_SOURCE
#include "cache-format/store.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "cache-format/digest.h"
#include "cache-format/file_private.h"
#include "cache-format/header.h"
#include "cache-format/parts.h"
#include "cache-format/store_private.h"

#define ANSWER_SECONDS 4 /* a broker that takes longer is given up: the file is loaded privately */
#define START_POLL_MS 2
#define START_MS 3000

/* -- The directory -- */

static int directory_name(const char *given, char *path, size_t size) {
    const char *run = getenv("XDG_RUNTIME_DIR");
    int length = given         ? snprintf(path, size, "%s", given)
                 : run && *run ? snprintf(path, size, "%s/nestor", run)
                               : snprintf(path, size, "/tmp/nestor-%u", (unsigned)geteuid());
    return length > 0 && (size_t)length < size ? 0 : -ENAMETOOLONG;
}

int store_directory(const char *given, bool create, int *fd, struct ntc_error *error) {
    char path[512];
    struct stat info;
    if (directory_name(given, path, sizeof path))
        return ntc_fail(error, NTC_FAULT_STORE, "the name of the cache store's directory is too long");
    if (create && mkdir(path, 0700) && errno != EEXIST)
        return ntc_fail(error, NTC_FAULT_STORE, "cache store '%s' cannot be created: %s", path,
                        strerror(errno));
    *fd = open(path, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
    if (*fd < 0) {
        if (errno == ENOENT)
            return -ENOENT;
        return ntc_fail(error, NTC_FAULT_STORE, "cache store '%s' cannot be opened: %s", path,
                        strerror(errno));
    }
    if (!fstat(*fd, &info) && info.st_uid == geteuid() && !(info.st_mode & (S_IRWXG | S_IRWXO)))
        return 0;
    close(*fd);
    return ntc_fail(error, NTC_FAULT_STORE,
                    "cache store '%s' is not a directory of yours alone; remove it or chmod 700 it", path);
}

void store_address(int directory, struct sockaddr_un *address) {
    *address = (struct sockaddr_un){.sun_family = AF_UNIX};
    snprintf(address->sun_path, sizeof address->sun_path, "/proc/self/fd/%d/" STORE_SOCKET, directory);
}

bool store_peer_is_own(int socket) {
    struct ucred peer;
    socklen_t length = sizeof peer;
    return !getsockopt(socket, SOL_SOCKET, SO_PEERCRED, &peer, &length) && peer.uid == geteuid();
}

void store_close_descriptors(struct msghdr *message) {
    for (struct cmsghdr *c = CMSG_FIRSTHDR(message); c; c = CMSG_NXTHDR(message, c)) {
        if (c->cmsg_level != SOL_SOCKET || c->cmsg_type != SCM_RIGHTS)
            continue;
        for (size_t at = 0; at + sizeof(int) <= c->cmsg_len - CMSG_LEN(0); at += sizeof(int)) {
            int fd;
            memcpy(&fd, CMSG_DATA(c) + at, sizeof fd);
            close(fd);
        }
    }
}

int store_send(int socket, const void *bytes, size_t length, int fd) {
    union store_control control = {{0}};
    struct iovec part = {.iov_base = (void *)(uintptr_t)bytes, .iov_len = length};
    struct msghdr message = {.msg_iov = &part, .msg_iovlen = 1};
    if (fd >= 0) {
        message.msg_control = control.bytes;
        message.msg_controllen = CMSG_SPACE(sizeof fd);
        struct cmsghdr *c = CMSG_FIRSTHDR(&message);
        c->cmsg_level = SOL_SOCKET;
        c->cmsg_type = SCM_RIGHTS;
        c->cmsg_len = CMSG_LEN(sizeof fd);
        memcpy(CMSG_DATA(c), &fd, sizeof fd);
    }
    ssize_t sent;
    do
        sent = sendmsg(socket, &message, MSG_NOSIGNAL);
    while (sent < 0 && errno == EINTR);
    return sent == (ssize_t)length ? 0 : sent < 0 ? -errno : -EPROTO;
}

int store_receive(int socket, void *bytes, size_t length, int *fd) {
    union store_control control;
    struct iovec part = {.iov_base = bytes, .iov_len = length};
    struct msghdr message = {.msg_iov = &part,
                             .msg_iovlen = 1,
                             .msg_control = control.bytes,
                             .msg_controllen = sizeof control.bytes};
    ssize_t got;
    if (fd)
        *fd = -1;
    do
        got = recvmsg(socket, &message, MSG_CMSG_CLOEXEC);
    while (got < 0 && errno == EINTR);
    if (got < 0)
        return -errno;
    struct cmsghdr *c = CMSG_FIRSTHDR(&message);
    bool one = c && c->cmsg_level == SOL_SOCKET && c->cmsg_type == SCM_RIGHTS &&
               c->cmsg_len == CMSG_LEN(sizeof(int)) && !CMSG_NXTHDR(&message, c);
    if (got != (ssize_t)length || message.msg_flags & (MSG_TRUNC | MSG_CTRUNC) || (c && !(one && fd))) {
        store_close_descriptors(&message);
        return got ? -EPROTO : -ECONNRESET;
    }
    if (one)
        memcpy(fd, CMSG_DATA(c), sizeof *fd);
    return 0;
}

/* -- Reaching the broker -- */

static int connect_running(int directory) {
    struct sockaddr_un address;
    const struct timeval limit = {.tv_sec = ANSWER_SECONDS};
    int fd = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);
    if (fd < 0)
        return -errno;
    store_address(directory, &address);
    setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof limit);
    setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &limit, sizeof limit);
    if (connect(fd, (struct sockaddr *)&address, sizeof address)) {
        int result = -errno;
        close(fd);
        return result;
    }
    if (store_peer_is_own(fd))
        return fd;
    close(fd);
    return -EPERM;
}

/* Run the broker's program, which goes into the background by itself: twice forked, so that it is nobody's
 * child, with no descriptor of ours. */
static bool start_broker(const char *const *argv) {
    int status;
    pid_t child = fork();
    if (child < 0)
        return false;
    if (!child) {
        if (fork())
            _exit(0);
        int null = open("/dev/null", O_RDWR);
        setsid();
        if (null < 0 || chdir("/") || dup2(null, 0) < 0 || dup2(null, 1) < 0 || dup2(null, 2) < 0 ||
            close_range(3, ~0u, 0))
            _exit(1);
        sigset_t none;
        sigemptyset(&none);
        sigprocmask(SIG_SETMASK, &none, NULL);
        execv(argv[0], (char *const *)(uintptr_t)argv);
        _exit(1);
    }
    while (waitpid(child, &status, 0) < 0 && errno == EINTR)
        ;
    return true;
}

static int connect_started(int directory, const char *const *argv) {
    int fd = connect_running(directory);
    if (fd >= 0 || fd == -EPERM || !argv || !start_broker(argv))
        return fd;
    for (unsigned waited = 0; waited < START_MS; waited += START_POLL_MS) {
        fd = connect_running(directory);
        if (fd >= 0 || (fd != -ENOENT && fd != -ECONNREFUSED))
            break;
        nanosleep(&(struct timespec){.tv_nsec = START_POLL_MS * 1000000}, NULL);
    }
    return fd;
}

/* -- Requests -- */

/* Does the sealed memory hold what was asked for? */
static int check_received(const struct ntc_file *file, const struct ntc_header *wanted, const char *path,
                          struct ntc_error *error) {
    uint8_t root[NTC_DIGEST_SIZE];
    const struct ntc_view *view = &file->view;
    static const enum ntc_section_kind always[] = {NTC_SECTION_IMAGES, NTC_SECTION_PAGES, NTC_SECTION_STATES,
                                                   NTC_SECTION_STRINGS, NTC_SECTION_PLACES};
    bool there = ntc_parts_need(view, NTC_SECTION_SLOTS, 0, NTC_RUNTIME_SLOTS);
    for (unsigned i = 0; i < ARRAY_SIZE(always); i++)
        there &= ntc_parts_need(view, always[i], 0, view->count[always[i]]);
    if (!there)
        return ntc_fail(error, NTC_FAULT_STORE, "the cache store gave too little of '%s'", path);
    ntc_root_digest(file->view.header, file->view.leaves, root);
    /* The signature may be another key's: ours was checked with the header that was read from the file. */
    if (memcmp(file->view.header, wanted, NTC_HEADER_SIGNED) || memcmp(root, wanted->root, sizeof root))
        return ntc_fail(error, NTC_FAULT_STORE, "the cache store gave another file than '%s'", path);
    return 0;
}

/* The socket is ours: it is the file's to ask for more at, or closed. */
static int get(struct ntc_file *file, int socket, int fd, const char *path, const struct ntc_header *header,
               struct ntc_error *error) {
    struct store_request request = {.what = STORE_GET};
    struct store_answer answer;
    int memfd;
    memcpy(request.root, header->root, sizeof request.root);
    int result = store_send(socket, &request, sizeof request, fd);
    if (!result)
        result = store_receive(socket, &answer, sizeof answer, &memfd);
    if (result) {
        close(socket);
        return ntc_fail(error, NTC_FAULT_STORE, "the cache store does not answer: %s", strerror(-result));
    }
    if (answer.result || memfd < 0) {
        if (memfd >= 0)
            close(memfd);
        close(socket);
        answer.line[sizeof answer.line - 1] = 0;
        return ntc_fail(error, answer.result ? NTC_FAULT_IO : NTC_FAULT_STORE,
                        "the cache store cannot provide '%s': %s", path, answer.line);
    }
    if (answer.size == header->load_size) {
        close(socket);
        result = ntc_file_adopt(file, path, memfd, header->load_size, "shared", error);
    } else {
        result = ntc_file_adopt_parts(file, path, memfd, header, socket, error);
    }
    if (result)
        return result;
    result = check_received(file, header, path, error);
    if (result)
        ntc_file_close(file);
    return result;
}

int ntc_store_open(struct ntc_file *file, const char *path, const struct ntc_demand *demand,
                   const struct ntc_store_options *options, struct ntc_error *error) {
    struct ntc_header header;
    struct ntc_error ignored;
    int fd, directory, socket = -1, memfd, result = ntc_open_path(path, &fd, error);
    if (result)
        return result;
    result = ntc_read_header(fd, path, &header, error);
    if (!result)
        result = ntc_demand_check(demand, &header, path, error);
    if (!result)
        result = ntc_signature_check(&header, demand->trust, path, error);
    if (result)
        goto out;
    if (!store_directory(options->directory, options->broker != NULL, &directory, &ignored)) {
        socket = connect_started(directory, options->broker);
        close(directory);
    }
    if (socket >= 0) {
        result = get(file, socket, fd, path, &header, &ignored); /* the socket is its */
        if (!result)
            goto out;
    }
    /* No store, or one that failed: do its work here, which also finds out what is wrong with the file. */
    result = ntc_memfd_fill(fd, path, &header, &memfd, error);
    if (!result)
        result = ntc_file_adopt(file, path, memfd, header.load_size, "copied", error);
out:
    close(fd);
    return result;
}

static int open_store(const struct ntc_store_options *options, struct ntc_error *error) {
    int directory, result = store_directory(options->directory, false, &directory, error);
    if (result)
        return result;
    int socket = connect_running(directory);
    close(directory);
    if (socket == -ECONNREFUSED)
        return -ENOENT;
    if (socket < 0 && socket != -ENOENT)
        return ntc_fail(error, NTC_FAULT_STORE, "the cache store cannot be reached: %s", strerror(-socket));
    return socket;
}

static int ask(int socket, uint32_t what, struct store_answer *answer, struct ntc_error *error) {
    struct store_request request = {.what = what};
    int result = store_send(socket, &request, sizeof request, -1);
    if (!result)
        result = store_receive(socket, answer, sizeof *answer, NULL);
    if (!result && answer->result)
        result = -EPROTO;
    return result ? ntc_fail(error, NTC_FAULT_STORE, "the cache store does not answer: %s", strerror(-result))
                  : 0;
}

int ntc_store_list(const struct ntc_store_options *options, struct ntc_store_entry *entry, unsigned max,
                   struct ntc_error *error) {
    struct store_answer answer;
    int socket = open_store(options, error);
    if (socket < 0)
        return socket;
    int result = ask(socket, STORE_LIST, &answer, error);
    for (uint32_t i = 0; !result && i < answer.detail && i < STORE_FILES_MAX; i++) {
        struct ntc_store_entry one;
        result = store_receive(socket, &one, sizeof one, NULL);
        if (result)
            result =
                ntc_fail(error, NTC_FAULT_STORE, "the cache store does not answer: %s", strerror(-result));
        else if (i < max)
            entry[i] = one;
    }
    close(socket);
    return result ? result : (int)answer.detail;
}

int ntc_store_stop(const struct ntc_store_options *options, struct ntc_error *error) {
    struct store_answer answer;
    int socket = open_store(options, error);
    if (socket < 0)
        return socket;
    int result = ask(socket, STORE_STOP, &answer, error);
    close(socket);
    return result;
}
