/* The broker of the host-wide store: one process per user and host that turns cache files into sealed memory
 * and hands out the descriptors. It runs no guest and takes memory from nobody: what it gives out it has
 * read, digested and sealed itself.
 *
 * One request at a time: a second VM that asks for a file while it is being copied waits for the copy.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <sched.h>
#include <stdio.h>
#include <string.h>
#include <sys/file.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "cache-format/file_private.h"
#include "cache-format/store_private.h"

#define MEMORY_MAX (2 * GIB) /* of all memory files that are kept; the least used go first */
#define REQUEST_SECONDS 1    /* a client that says nothing for so long is dropped */

struct held {
    struct ntc_store_entry entry;
    uint64_t last_used; /* in requests */
    int memfd;
};

struct broker {
    int listener;
    struct held held[STORE_FILES_MAX];
    unsigned count;
    uint64_t requests;
    bool stop;
};

static struct held *find(struct broker *broker, const uint8_t *root) {
    for (unsigned i = 0; i < broker->count; i++)
        if (!memcmp(broker->held[i].entry.root, root, NTC_DIGEST_SIZE))
            return &broker->held[i];
    return NULL;
}

static void drop(struct broker *broker, struct held *held) {
    close(held->memfd);
    *held = broker->held[--broker->count];
}

/* VMs that have a file mapped keep it; the broker only forgets it. */
static void make_room(struct broker *broker, uint64_t size) {
    for (;;) {
        uint64_t total = size;
        struct held *oldest = NULL;
        for (unsigned i = 0; i < broker->count; i++) {
            total += broker->held[i].entry.size;
            if (!oldest || broker->held[i].last_used < oldest->last_used)
                oldest = &broker->held[i];
        }
        if (!oldest || (total <= MEMORY_MAX && broker->count < STORE_FILES_MAX))
            return;
        drop(broker, oldest);
    }
}

/* The file of a request, as memory; only a regular file, and only if its root is the one asked for. */
static int take(struct broker *broker, const struct store_request *request, int fd, struct held **held,
                struct ntc_error *error) {
    struct ntc_header header;
    static const char name[] = "(as sent)";
    int memfd;
    *held = find(broker, request->root);
    if (*held)
        return 0;
    if (fd < 0)
        return ntc_fail(error, NTC_FAULT_STORE, "not held, and no file was sent");
    int result = ntc_read_header(fd, name, &header, error);
    if (!result && memcmp(header.root, request->root, sizeof header.root))
        result = ntc_fail(error, NTC_FAULT_STORE, "the file that was sent is another one");
    if (!result)
        result = ntc_memfd_fill(fd, name, &header, &memfd, error);
    if (result)
        return result;
    make_room(broker, header.load_size);
    *held = &broker->held[broker->count++];
    **held = (struct held){.entry = {.size = header.load_size}, .memfd = memfd};
    memcpy((*held)->entry.root, header.root, sizeof header.root);
    return 0;
}

static int answer_get(struct broker *broker, int socket, const struct store_request *request, int fd) {
    struct store_answer answer = {0};
    struct ntc_error error = {0};
    struct held *held;
    int result = take(broker, request, fd, &held, &error);
    memcpy(answer.root, request->root, sizeof answer.root);
    if (result) {
        answer.result = (uint32_t)-result;
        answer.detail = error.fault;
        memcpy(answer.line, error.line, sizeof answer.line);
        return store_send(socket, &answer, sizeof answer, -1);
    }
    answer.size = held->entry.size;
    held->entry.served++;
    held->last_used = ++broker->requests;
    return store_send(socket, &answer, sizeof answer, held->memfd);
}

static int answer_list(struct broker *broker, int socket) {
    const struct store_answer answer = {.detail = broker->count};
    int result = store_send(socket, &answer, sizeof answer, -1);
    for (unsigned i = 0; i < broker->count && !result; i++)
        result = store_send(socket, &broker->held[i].entry, sizeof broker->held[i].entry, -1);
    return result;
}

/* A client that misbehaves loses its connection, nothing else. */
static void serve(struct broker *broker, int socket) {
    const struct timeval limit = {.tv_sec = REQUEST_SECONDS};
    struct store_request request;
    int fd = -1, result = -EPERM;
    setsockopt(socket, SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof limit);
    setsockopt(socket, SOL_SOCKET, SO_SNDTIMEO, &limit, sizeof limit);
    if (store_peer_is_own(socket))
        result = store_receive(socket, &request, sizeof request, &fd);
    if (!result) {
        switch (request.what) {
        case STORE_GET:
            result = answer_get(broker, socket, &request, fd);
            break;
        case STORE_LIST:
            result = answer_list(broker, socket);
            break;
        case STORE_STOP:
            broker->stop = true;
            result = store_send(socket, &(struct store_answer){0}, sizeof(struct store_answer), -1);
            break;
        default:
            break;
        }
    }
    (void)result;
    if (fd >= 0)
        close(fd);
}

/* The lock says who serves; who has it may replace a socket that was left behind. */
static int start(int directory, int *lock, int *listener, struct ntc_error *error) {
    struct sockaddr_un address;
    *lock = openat(directory, STORE_LOCK, O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0600);
    if (*lock < 0)
        return ntc_fail(error, NTC_FAULT_STORE, "the cache store's lock cannot be opened: %s",
                        strerror(errno));
    if (flock(*lock, LOCK_EX | LOCK_NB))
        return -EBUSY;
    *listener = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    store_address(directory, &address);
    mode_t mask = umask(0177);
    int result = *listener < 0 || (unlinkat(directory, STORE_SOCKET, 0) && errno != ENOENT) ||
                         bind(*listener, (struct sockaddr *)&address, sizeof address) || listen(*listener, 64)
                     ? -errno
                     : 0;
    umask(mask);
    return result ? ntc_fail(error, NTC_FAULT_STORE, "the cache store's socket cannot be made: %s",
                             strerror(-result))
                  : 0;
}

/* The VM that started the broker may be pinned to a processor; files are verified for all of the user's. */
static void use_all_processors(void) {
    cpu_set_t all;
    memset(&all, 0xff, sizeof all);
    (void)sched_setaffinity(0, sizeof all, &all); /* as many as the host lets this process have */
}

static uint64_t seconds(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec;
}

int ntc_broker_run(const char *directory_name, unsigned idle_seconds, struct ntc_error *error) {
    struct broker broker = {.listener = -1};
    int directory, lock = -1, result = store_directory(directory_name, true, &directory, error);
    if (result)
        return result;
    prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0);
    prctl(PR_SET_NAME, "nestor-cache");
    use_all_processors();
    result = start(directory, &lock, &broker.listener, error);
    uint64_t last = seconds();
    while (!result && !broker.stop) {
        struct pollfd wait = {.fd = broker.listener, .events = POLLIN};
        uint64_t idle = seconds() - last;
        if (idle >= idle_seconds)
            break;
        uint64_t left = idle_seconds - idle;
        if (poll(&wait, 1, (int)(left < 3600 ? left : 3600) * 1000) <= 0)
            continue;
        int client = accept4(broker.listener, NULL, NULL, SOCK_CLOEXEC);
        if (client < 0)
            continue;
        serve(&broker, client);
        close(client);
        last = seconds();
    }
    if (broker.listener >= 0) {
        if (!result)
            unlinkat(directory, STORE_SOCKET, 0);
        close(broker.listener);
    }
    while (broker.count)
        drop(&broker, &broker.held[0]);
    if (lock >= 0)
        close(lock);
    close(directory);
    return result == -EBUSY ? 0 : result;
}
