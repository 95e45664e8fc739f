/* The broker of the host-wide store: one process per user and host that turns cache files into sealed memory
 * and hands out the descriptors. It runs no guest and takes memory from nobody: what it gives out it has
 * read, digested and sealed itself.
 *
 * A small file is copied as a whole. Of a large one a VM gets what is likely to be used; it keeps its
 * connection and asks for more when it needs it (sparse.h). What one VM asked for all others have. The tables
 * that searches go through are loaded while nobody asks; and what VMs wish for without waiting, which they
 * have translated meanwhile. That is for the next VM: so as not to slow this one down it comes at a slow pace
 * as long as there are more wishes.
 *
 * One request at a time: a second VM that asks for a file while it is being copied waits for the copy.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <malloc.h>
#include <poll.h>
#include <sched.h>
#include <stdio.h>
#include <string.h>
#include <sys/file.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "cache-format/file_private.h"
#include "cache-format/sparse.h"
#include "cache-format/store_private.h"

#define MEMORY_MAX (2 * GIB) /* of all memory files that are kept; the least used go first */
#define CLIENTS_MAX 256u
/* No wish came for so long: they are granted at full speed. Until then a tenth of the time goes into them. */
#define QUIET_NS 250000000u
#define WISHES_SHARE 10u

struct held {
    struct ntc_store_entry entry;
    uint64_t last_used; /* in requests */
    int memfd;
    bool in_parts;
    struct ntc_sparse sparse; /* in_parts */
    int file;                 /* what is loaded meanwhile comes from; -1: there is none */
    bool loaded;              /* nothing is left to do but to grant wishes */
    uint64_t wished_ns, next_grant_ns;
};

/* A VM, for as long as it lives, if its file comes in parts; else for a request or two. */
struct client {
    int socket;
    int file;          /* the one that it sent last; -1: none */
    bool wishes, told; /* for parts of `root`; that some of them cannot be had */
    uint8_t root[NTC_DIGEST_SIZE];
};

struct broker {
    int listener;
    struct held held[STORE_FILES_MAX];
    unsigned count;
    struct client client[CLIENTS_MAX];
    unsigned clients;
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
    if (held->file >= 0)
        close(held->file);
    if (held->in_parts)
        ntc_sparse_destroy(&held->sparse);
    else
        close(held->memfd);
    *held = broker->held[--broker->count];
}

static const char name[] = "(as sent)";

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

/* The file as memory, into *made. */
static int copy_in(const struct ntc_header *header, int fd, const char *name, struct held *made,
                   struct ntc_error *error) {
    *made = (struct held){.entry.size = header->load_size, .in_parts = ntc_sparse_fits(header), .file = -1};
    memcpy(made->entry.root, header->root, sizeof header->root);
    if (!made->in_parts)
        return ntc_memfd_fill(fd, name, header, &made->memfd, error);
    int result = ntc_sparse_create(&made->sparse, fd, name, header, error);
    made->memfd = made->sparse.memfd;
    made->entry.size = made->sparse.filled;
    if (!result)
        made->file = fcntl(fd, F_DUPFD_CLOEXEC, 0);
    return result;
}

/* The file of a request, as memory; only a regular file, and only if its root is the one asked for. */
static int take(struct broker *broker, const struct store_request *request, int fd, struct held **held,
                struct ntc_error *error) {
    struct ntc_header header;
    struct held made;
    *held = find(broker, request->root);
    if (*held)
        return 0;
    if (fd < 0)
        return ntc_fail(error, NTC_FAULT_STORE, "not held, and no file was sent");
    int result = ntc_read_header(fd, name, &header, error);
    if (!result && memcmp(header.root, request->root, sizeof header.root))
        result = ntc_fail(error, NTC_FAULT_STORE, "the file that was sent is another one");
    if (!result)
        result = copy_in(&header, fd, name, &made, error);
    if (result)
        return result;
    make_room(broker, made.entry.size);
    *held = &broker->held[broker->count++];
    **held = made;
    return 0;
}

static void refuse(struct store_answer *answer, int result, const struct ntc_error *error) {
    answer->result = (uint32_t)-result;
    answer->detail = error->fault;
    memcpy(answer->line, error->line, sizeof answer->line);
}

static int answer_get(struct broker *broker, struct client *client, const struct store_request *request) {
    struct store_answer answer = {0};
    struct ntc_error error = {0};
    struct held *held;
    int result = take(broker, request, client->file, &held, &error);
    memcpy(answer.root, request->root, sizeof answer.root);
    if (result) {
        refuse(&answer, result, &error);
        return store_send(client->socket, &answer, sizeof answer, -1);
    }
    answer.size = held->in_parts ? held->sparse.size : held->entry.size;
    held->entry.served++;
    held->last_used = ++broker->requests;
    return store_send(client->socket, &answer, sizeof answer, held->memfd);
}

/* More of a file that comes in parts, from the client's own file: what that lost is the client's loss alone.
 * A memory file that was forgotten meanwhile is still what the client has mapped, but nothing reaches it any
 * more. */
static int answer_load(struct broker *broker, struct client *client, const struct store_request *request) {
    struct store_answer answer = {0};
    struct ntc_error error = {0};
    struct held *held = find(broker, request->root);
    int result = 0;
    memcpy(answer.root, request->root, sizeof answer.root);
    if (!held || !held->in_parts || client->file < 0 || request->count > STORE_CHUNKS_MAX) {
        result = ntc_fail(&error, NTC_FAULT_STORE, "the cache store does not hold it any more");
    } else {
        result = ntc_sparse_ask(&held->sparse, client->file, name, request->chunk, request->count, &error);
        held->entry.size = held->sparse.filled;
        held->last_used = ++broker->requests;
    }
    if (result)
        refuse(&answer, result, &error);
    return store_send(client->socket, &answer, sizeof answer, -1);
}

static uint64_t now_ns(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

/* No answer. Who wishes first after another has the parts come from its file: theirs may be no good any more.
 */
static bool take_wish(struct broker *broker, struct client *client, const struct store_request *request) {
    struct held *held = find(broker, request->root);
    if (request->count > STORE_CHUNKS_MAX)
        return false;
    if (!held || !held->in_parts || client->file < 0)
        return true;
    if (held->file < 0 || !client->wishes || memcmp(client->root, request->root, sizeof client->root)) {
        int file = fcntl(client->file, F_DUPFD_CLOEXEC, 0);
        if (file < 0)
            return true;
        if (held->file >= 0)
            close(held->file);
        held->file = file;
        client->wishes = true;
        client->told = false;
        memcpy(client->root, request->root, sizeof client->root);
    }
    ntc_sparse_wish(&held->sparse, request->chunk, request->count);
    held->wished_ns = now_ns();
    held->last_used = ++broker->requests;
    return true;
}

/* Once, to each who may have wished for it. */
static void tell_of_failure(struct broker *broker, const struct held *held, const struct ntc_error *error) {
    struct store_answer answer = {0};
    memcpy(answer.root, held->entry.root, sizeof answer.root);
    refuse(&answer, -EIO, error);
    for (unsigned i = 0; i < broker->clients; i++) {
        struct client *client = &broker->client[i];
        if (!client->wishes || client->told || memcmp(client->root, answer.root, sizeof answer.root))
            continue;
        client->told = true;
        (void)!store_send(client->socket, &answer, sizeof answer, -1);
    }
}

static int answer_list(struct broker *broker, int socket) {
    const struct store_answer answer = {.detail = broker->count};
    int result = store_send(socket, &answer, sizeof answer, -1);
    for (unsigned i = 0; i < broker->count && !result; i++)
        result = store_send(socket, &broker->held[i].entry, sizeof broker->held[i].entry, -1);
    return result;
}

/* One request. False: the connection is over; a client that misbehaves loses it, nothing else. */
static bool serve(struct broker *broker, struct client *client) {
    struct store_request request;
    int fd, result = store_receive(client->socket, &request, sizeof request, &fd);
    if (result)
        return false;
    if (fd >= 0) {
        if (client->file >= 0)
            close(client->file);
        client->file = fd;
    }
    switch (request.what) {
    case STORE_GET:
        return !answer_get(broker, client, &request);
    case STORE_LOAD:
        return !answer_load(broker, client, &request);
    case STORE_WISH:
        return take_wish(broker, client, &request);
    case STORE_LIST:
        return !answer_list(broker, client->socket);
    case STORE_STOP:
        broker->stop = true;
        return !store_send(client->socket, &(struct store_answer){0}, sizeof(struct store_answer), -1);
    default:
        return false;
    }
}

static void admit(struct broker *broker) {
    int socket = accept4(broker->listener, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);
    if (socket < 0)
        return;
    if (broker->clients == CLIENTS_MAX || !store_peer_is_own(socket)) {
        close(socket);
        return;
    }
    broker->client[broker->clients++] = (struct client){.socket = socket, .file = -1};
}

static void dismiss(struct broker *broker, unsigned number) {
    struct client *client = &broker->client[number];
    close(client->socket);
    if (client->file >= 0)
        close(client->file);
    *client = broker->client[--broker->clients];
}

/* Grant a few wishes, if it is time for that; *wait_ns: until it is. False: there is nothing to do now. */
static bool grant(struct broker *broker, struct held *held, uint64_t *wait_ns) {
    struct ntc_error error = {0};
    bool failed = false;
    uint64_t start = now_ns();
    if (!held->sparse.wishes)
        return false;
    if (start < held->next_grant_ns && start - held->wished_ns < QUIET_NS) {
        uint64_t left = held->next_grant_ns - start;
        *wait_ns = left < *wait_ns ? left : *wait_ns;
        return false;
    }
    bool more = ntc_sparse_grant(&held->sparse, held->file, name, &failed, &error);
    held->next_grant_ns = start + (now_ns() - start) * WISHES_SHARE;
    if (failed)
        tell_of_failure(broker, held, &error);
    return more;
}

/* While nobody asks. False: there is nothing to do, or not before *wait_ns. */
static bool go_on(struct broker *broker, struct held *held, uint64_t *wait_ns) {
    if (held->file < 0)
        return false;
    bool more = false;
    if (!held->loaded) {
        more = ntc_sparse_go_on(&held->sparse, held->file);
        held->loaded = !more;
    }
    more = more || grant(broker, held, wait_ns);
    held->entry.size = held->sparse.filled;
    if (held->loaded && !held->sparse.wishes) {
        close(held->file);
        held->file = -1;
    }
    return more;
}

/* Wait for requests, and serve one of each client that has one. False: nothing came in milliseconds. */
static bool serve_all(struct broker *broker, int milliseconds) {
    struct pollfd wait[CLIENTS_MAX + 1];
    unsigned clients = broker->clients;
    uint64_t wait_ns = (uint64_t)milliseconds * 1000000u;
    for (unsigned i = 0; i < clients; i++)
        wait[i] = (struct pollfd){.fd = broker->client[i].socket, .events = POLLIN};
    wait[clients] = (struct pollfd){.fd = broker->listener, .events = POLLIN};
    bool more = false;
    int ready = poll(wait, clients + 1, 0);
    for (unsigned i = 0; i < broker->count && ready <= 0 && !more; i++)
        more = go_on(broker, &broker->held[i], &wait_ns);
    if (ready <= 0 && !more)
        ready = poll(wait, clients + 1, (int)((wait_ns + 999999u) / 1000000u));
    if (ready <= 0)
        return more || wait_ns < (uint64_t)milliseconds * 1000000u;
    for (unsigned i = clients; i && !broker->stop;
         i--) /* backwards: who is dismissed is replaced by the last */
        if (wait[i - 1].revents && !serve(broker, &broker->client[i - 1]))
            dismiss(broker, i - 1);
    if (wait[clients].revents)
        admit(broker);
    return true;
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

/* Each client costs two. */
static void raise_descriptors(void) {
    struct rlimit limit;
    if (getrlimit(RLIMIT_NOFILE, &limit))
        return;
    limit.rlim_cur = limit.rlim_max;
    (void)setrlimit(RLIMIT_NOFILE, &limit);
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
    raise_descriptors();
    /* The buffers of one request serve the next. */
    mallopt(M_MMAP_THRESHOLD, 2 * MIB);
    mallopt(M_TRIM_THRESHOLD, 8 * MIB);
    uint64_t last = seconds();
    while (!result && !broker.stop) {
        uint64_t idle = seconds() - last;
        if (broker.clients)
            idle = 0; /* they may need more of their files */
        if (idle >= idle_seconds)
            break;
        uint64_t left = idle_seconds - idle;
        if (serve_all(&broker, (int)(left < 3600 ? left : 3600) * 1000) || broker.clients)
            last = seconds();
    }
    while (broker.clients)
        dismiss(&broker, 0);
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
