/* Network backend over libslirp, which is one state machine for one thread: all calls into it are made by
 * this backend's thread once that runs. The thread sleeps in one poll(2) over libslirp's sockets and the
 * eventfd that kicks are written to; libslirp has a timeout only while connections exist, so an idle network
 * costs nothing.
 */
#define _GNU_SOURCE
#include "devices/net_user.h"

#include "base/diag.h"
#include "devices/net_user_bound.h"
#include "devices/worker_thread.h"

#include <arpa/inet.h>
#include <errno.h>
#include <libslirp.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#define TIMERS_MAX 4

static const uint8_t guest_network[4] = {10, 0, 2, 0};

struct user_timer {
    bool used;
    bool armed;
    SlirpTimerId id;
    void *context;
    int64_t deadline_ms;
};

struct net_user {
    struct net_backend base;
    Slirp *slirp;
    const struct net_client *client;
    void *client_context;
    int event;
    bool kicked; /* atomic: the eventfd was written since service() last began */
    bool quit;   /* atomic */
    bool started;
    pthread_t thread;
    struct pollfd *polls;
    unsigned poll_count, poll_room;
    unsigned registered; /* sockets that libslirp has */
    struct net_user_bound bound;
    struct user_timer timers[TIMERS_MAX];
};

static struct in_addr network_address(uint8_t host) {
    uint8_t bytes[4] = {guest_network[0], guest_network[1], guest_network[2], host};
    struct in_addr address;
    memcpy(&address, bytes, sizeof bytes);
    return address;
}

static int64_t now_ns(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return now.tv_sec * 1000000000ll + now.tv_nsec;
}

/* libslirp's callbacks. */

static ssize_t user_packet(const void *frame, size_t length, void *context) {
    struct net_user *user = context;
    if (user->client)
        user->client->receive(user->client_context, frame, length);
    return (ssize_t)length;
}

static void user_guest_error(const char *message, void *context) {
    (void)message; /* the guest's own business, and at the guest's rate */
    (void)context;
}

static int64_t user_clock(void *context) {
    (void)context;
    return now_ns();
}

static void *user_timer_new(SlirpTimerId id, void *timer_context, void *context) {
    struct net_user *user = context;
    for (unsigned i = 0; i < TIMERS_MAX; i++) {
        if (!user->timers[i].used) {
            user->timers[i] = (struct user_timer){.used = true, .id = id, .context = timer_context};
            return &user->timers[i];
        }
    }
    return NULL;
}

static void user_timer_free(void *timer, void *context) {
    (void)context;
    if (timer)
        *(struct user_timer *)timer = (struct user_timer){0};
}

static void user_timer_mod(void *timer, int64_t deadline_ms, void *context) {
    struct user_timer *at = timer;
    (void)context;
    if (at) {
        at->armed = true;
        at->deadline_ms = deadline_ms;
    }
}

/* The set is built anew for every poll, but sockets without a wish of their own are not in it. */
static void user_socket_opened(int fd, void *context) {
    (void)fd;
    ((struct net_user *)context)->registered++;
}

static void user_socket_closed(int fd, void *context) {
    struct net_user *user = context;
    (void)fd;
    if (user->registered)
        user->registered--;
}

static void user_notify(void *context) {
    (void)context; /* only ever from the thread itself */
}

static void user_init_completed(Slirp *slirp, void *context) {
    (void)slirp;
    (void)context;
}

static const SlirpCb user_callbacks = {
    .send_packet = user_packet,
    .guest_error = user_guest_error,
    .clock_get_ns = user_clock,
    .timer_free = user_timer_free,
    .timer_mod = user_timer_mod,
    .register_poll_fd = user_socket_opened,
    .unregister_poll_fd = user_socket_closed,
    .notify = user_notify,
    .init_completed = user_init_completed,
    .timer_new_opaque = user_timer_new,
};

static bool is_listening(int fd) {
    int listens = 0;
    socklen_t length = sizeof listens;
    return !getsockopt(fd, SOL_SOCKET, SO_ACCEPTCONN, &listens, &length) && listens;
}

static int user_add_poll(int fd, int events, void *context) {
    struct net_user *user = context;
    if (net_user_bound_reached(&user->bound) && is_listening(fd))
        return -1; /* who wants to come in waits for room */
    if (user->poll_count == user->poll_room) {
        unsigned room = user->poll_room * 2;
        struct pollfd *polls = realloc(user->polls, room * sizeof *polls);
        if (!polls)
            return -1; /* user_revents() knows: that socket waits */
        user->polls = polls;
        user->poll_room = room;
    }
    short wanted = 0;
    wanted |= events & SLIRP_POLL_IN ? POLLIN : 0;
    wanted |= events & SLIRP_POLL_OUT ? POLLOUT : 0;
    wanted |= events & SLIRP_POLL_PRI ? POLLPRI : 0;
    wanted |= events & SLIRP_POLL_ERR ? POLLERR : 0;
    wanted |= events & SLIRP_POLL_HUP ? POLLHUP : 0;
    user->polls[user->poll_count] = (struct pollfd){.fd = fd, .events = wanted};
    return (int)user->poll_count++;
}

static int user_revents(int index, void *context) {
    struct net_user *user = context;
    if (index < 0 || (unsigned)index >= user->poll_count)
        return 0;
    short found = user->polls[index].revents;
    int events = 0;
    events |= found & POLLIN ? SLIRP_POLL_IN : 0;
    events |= found & POLLOUT ? SLIRP_POLL_OUT : 0;
    events |= found & POLLPRI ? SLIRP_POLL_PRI : 0;
    events |= found & POLLERR ? SLIRP_POLL_ERR : 0;
    events |= found & POLLHUP ? SLIRP_POLL_HUP : 0;
    return events;
}

/* Run the timers that are due; milliseconds to the next one, or `timeout` if that is sooner. */
static uint32_t user_run_timers(struct net_user *user, uint32_t timeout) {
    int64_t now_ms = now_ns() / 1000000;
    for (unsigned i = 0; i < TIMERS_MAX; i++) {
        struct user_timer *timer = &user->timers[i];
        if (timer->armed && timer->deadline_ms <= now_ms) {
            timer->armed = false;
            slirp_handle_timer(user->slirp, timer->id, timer->context);
        }
        if (timer->armed && timer->deadline_ms - now_ms < timeout)
            timeout = timer->deadline_ms > now_ms ? (uint32_t)(timer->deadline_ms - now_ms) : 0;
    }
    return timeout;
}

static void *user_run(void *argument) {
    struct net_user *user = argument;
    bool again = false;
    while (!__atomic_load_n(&user->quit, __ATOMIC_ACQUIRE)) {
        uint32_t timeout = UINT32_MAX;
        user->polls[0] = (struct pollfd){.fd = user->event, .events = POLLIN};
        user->poll_count = 1;
        slirp_pollfds_fill(user->slirp, &timeout, user_add_poll, user);
        unsigned polled = user->poll_count - 1;
        net_user_bound_count(&user->bound, polled > user->registered ? polled : user->registered);
        timeout = user_run_timers(user, timeout);
        int wait = again ? 0 : timeout > INT32_MAX ? -1 : (int)timeout;
        int ready = poll(user->polls, user->poll_count, wait);
        bool kicked = again;
        if (ready > 0 && user->polls[0].revents) {
            uint64_t count;
            ssize_t ignored = read(user->event, &count, sizeof count);
            (void)ignored;
            kicked = true;
        }
        slirp_pollfds_poll(user->slirp, ready < 0, user_revents, user);
        again = false;
        if (kicked) {
            __atomic_store_n(&user->kicked, false, __ATOMIC_SEQ_CST);
            again = user->client->service(user->client_context);
        }
        user->client->received(user->client_context);
    }
    return NULL;
}

static void user_wake(struct net_user *user) {
    uint64_t one = 1;
    ssize_t ignored = write(user->event, &one, sizeof one);
    (void)ignored; /* a full counter wakes as well */
}

static int user_start(struct net_backend *backend, const struct net_client *client, void *context) {
    struct net_user *user = (struct net_user *)backend;
    user->client = client;
    user->client_context = context;
    int result = worker_thread_create(&user->thread, "nestor-net", user_run, user);
    if (result)
        diag_error("net: no thread for user networking: %s; raise the limit of processes (ulimit -u)",
                   strerror(-result));
    user->started = !result;
    return result;
}

static void user_kick(struct net_backend *backend) {
    struct net_user *user = (struct net_user *)backend;
    if (!__atomic_exchange_n(&user->kicked, true, __ATOMIC_SEQ_CST))
        user_wake(user);
}

static void user_send(struct net_backend *backend, const uint8_t *frame, size_t length) {
    struct net_user *user = (struct net_user *)backend;
    if (net_user_bound_admits(&user->bound, frame, length))
        slirp_input(user->slirp, frame, (int)length);
}

static void user_destroy(struct net_backend *backend) {
    struct net_user *user = (struct net_user *)backend;
    if (user->started) {
        __atomic_store_n(&user->quit, true, __ATOMIC_RELEASE);
        user_wake(user);
        pthread_join(user->thread, NULL);
    }
    user->client = NULL;
    if (user->slirp)
        slirp_cleanup(user->slirp);
    if (user->event >= 0)
        close(user->event);
    free(user->polls);
    free(user);
}

static const struct net_backend_ops user_ops = {
    .start = user_start,
    .kick = user_kick,
    .send = user_send,
    .destroy = user_destroy,
};

static int user_forward(struct net_user *user, const struct net_forward *forward) {
    char address[INET_ADDRSTRLEN];
    errno = 0;
    if (!slirp_add_hostfwd(user->slirp, forward->udp, forward->host, ntohs(forward->host_port),
                           forward->guest, ntohs(forward->guest_port)))
        return 0;
    int result = errno ? -errno : -EADDRINUSE;
    inet_ntop(AF_INET, &forward->host, address, sizeof address);
    diag_error("net: cannot forward %s port %u of %s to the guest: %s; choose another port",
               forward->udp ? "udp" : "tcp", ntohs(forward->host_port), address, strerror(-result));
    return result;
}

int net_user_create(struct net_backend **backend, const struct net_user_config *config) {
    const SlirpConfig slirp_config = {
        .version = 4,
        .in_enabled = true,
        .vnetwork = network_address(0),
        .vnetmask = {htonl(0xffffff00)},
        .vhost = network_address(2),
        .vhostname = config->hostname,
        .vdhcp_start = network_address(15),
        .vnameserver = network_address(3),
    };
    struct net_user *user = calloc(1, sizeof *user);
    if (!user)
        return -ENOMEM;
    user->base = (struct net_backend){.ops = &user_ops, .frame_max = NET_FRAME_MAX};
    user->bound.connections = config->connections ? config->connections : NET_USER_CONNECTIONS;
    user->poll_room = 16;
    user->polls = calloc(user->poll_room, sizeof *user->polls);
    user->event = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    int result = user->event < 0 ? -errno : -ENOMEM;
    if (!user->polls || user->event < 0) {
        diag_error("net: user networking cannot be set up: %s; free memory, or raise the limit of open files "
                   "(ulimit -n)",
                   strerror(-result));
        goto fail;
    }
    user->slirp = slirp_new(&slirp_config, &user_callbacks, user);
    if (!user->slirp) {
        diag_error("net: libslirp %s does not start; try --net none", slirp_version_string());
        goto fail;
    }
    for (unsigned i = 0; i < config->forward_count; i++) {
        result = user_forward(user, &config->forwards[i]);
        if (result)
            goto fail;
    }
    *backend = &user->base;
    return 0;
fail:
    user_destroy(&user->base);
    return result;
}

/* "[ADDRESS]:PORT" up to the end of a string of this length. */
static bool endpoint_parse(const char *text, size_t length, struct in_addr *address, uint16_t *port) {
    char copy[64];
    if (length >= sizeof copy)
        return false;
    memcpy(copy, text, length);
    copy[length] = 0;
    char *colon = strrchr(copy, ':');
    if (!colon || strspn(colon + 1, "0123456789") != strlen(colon + 1) || !colon[1] || strlen(colon + 1) > 5)
        return false;
    long number = strtol(colon + 1, NULL, 10);
    *colon = 0;
    if (number < 1 || number > 65535)
        return false;
    *port = htons((uint16_t)number);
    return !*copy || inet_pton(AF_INET, copy, address) == 1;
}

int net_forward_parse(struct net_forward *forward, const char *text) {
    *forward = (struct net_forward){.guest = network_address(15), .host = {htonl(INADDR_ANY)}};
    const char *host = strchr(text, ':');
    const char *guest = host ? strchr(host, '-') : NULL;
    bool tcp = !strncmp(text, "tcp:", 4);
    forward->udp = !strncmp(text, "udp:", 4);
    if ((tcp || forward->udp) && guest &&
        endpoint_parse(host + 1, (size_t)(guest - host - 1), &forward->host, &forward->host_port) &&
        endpoint_parse(guest + 1, strlen(guest + 1), &forward->guest, &forward->guest_port))
        return 0;
    diag_error("net: hostfwd=%s is not of the form tcp:127.0.0.1:2222-:22", text);
    return -EINVAL;
}
