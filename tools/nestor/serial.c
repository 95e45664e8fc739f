/* The thread of a serial port.
 *
 * It sleeps in poll() on: an eventfd (output was queued, the client takes input again, stop), the listening
 * socket, the host's input unless the client is behind, and the host's output while something is queued.
 * A guest sends one byte at a time, and to be woken for each costs more than the guest's own work: what
 * follows something that was written waits LINGER_MS for more, or until half the buffer is full. Only the
 * ring buffer and the flags behind it are shared with other threads, under port->lock, which is held for
 * memory copies only. */
#define _GNU_SOURCE
#include <errno.h>
#include <poll.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <unistd.h>

#include "base/diag.h"
#include "serial_private.h"
#include "terminal.h"

#define ESCAPE_KEY 0x01  /* Ctrl-A */
#define PTY_PROBE_MS 200 /* how soon a reader of an unattended pty is noticed: no event tells of it */
#define ABANDON_MS 100   /* how long the last output of an abandoned port may take, per piece */
#define LINGER_MS 2
#define LINGER_BYTES (SERIAL_BUFFER / 2)
#define WRITE_PIECE 4096 /* a pipe that poll() calls writable takes this much without blocking */

static const char key_help[] = "\r\nCtrl-A x  end the virtual machine\r\n"
                               "Ctrl-A p  press its power button\r\n"
                               "Ctrl-A c  print its counters\r\n"
                               "Ctrl-A a  send Ctrl-A to it\r\n"
                               "Ctrl-A h  this help\r\n";

static void wake(struct serial_port *port) {
    const uint64_t one = 1;
    ssize_t ignored = write(port->wake, &one, sizeof one);
    (void)ignored; /* EAGAIN: it is about to wake already */
}

int serial_port_create(struct serial_port **result_port, const char *option,
                       const struct vm_serial_config *config) {
    int result = -EINVAL;
    *result_port = NULL;
    if (config->kind == VM_SERIAL_NONE)
        return 0;
    struct serial_port *port = calloc(1, sizeof *port);
    if (!port)
        return -ENOMEM;
    port->option = option;
    port->kind = config->kind;
    port->in = port->out = port->listener = port->pty = SERIAL_NO_FD;
    pthread_mutex_init(&port->lock, NULL);
    pthread_cond_init(&port->room, NULL);
    port->wake = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    if (port->wake < 0) {
        result = -errno;
        diag_error("--%s: cannot be served: %s; raise the limit of open files (ulimit -n)", option,
                   strerror(-result));
        serial_port_destroy(port);
        return result;
    }
    switch (config->kind) {
    case VM_SERIAL_STDIO:
        result = serial_open_stdio(port);
        break;
    case VM_SERIAL_FILE:
        result = serial_open_file(port, config->path);
        break;
    case VM_SERIAL_PTY:
        result = serial_open_pty(port);
        break;
    case VM_SERIAL_UNIX:
        result = serial_open_unix(port, config->path);
        break;
    case VM_SERIAL_NONE:
        break;
    }
    if (result) {
        serial_port_destroy(port);
        return result;
    }
    *result_port = port;
    return 0;
}

/* Append what there is room for; with nobody connected, at the cost of the oldest bytes. Returns the count.
 */
static size_t enqueue(struct serial_port *port, const uint8_t *bytes, size_t count) {
    if (count > SERIAL_BUFFER)
        count = SERIAL_BUFFER;
    if (!port->is_connected && port->tail - port->head > SERIAL_BUFFER - count)
        port->head = port->tail - (SERIAL_BUFFER - count);
    size_t room = SERIAL_BUFFER - (size_t)(port->tail - port->head);
    if (count > room)
        count = room;
    size_t at = port->tail % SERIAL_BUFFER;
    size_t piece = count < SERIAL_BUFFER - at ? count : SERIAL_BUFFER - at;
    memcpy(port->buffer + at, bytes, piece);
    memcpy(port->buffer, bytes + piece, count - piece);
    port->tail += count;
    return count;
}

void serial_port_send(struct serial_port *port, const uint8_t *bytes, size_t count) {
    if (!port)
        return;
    pthread_mutex_lock(&port->lock);
    while (count) {
        size_t accepted = enqueue(port, bytes, count);
        bytes += accepted;
        count -= accepted;
        bool in_time = port->is_lingering && port->tail - port->head < LINGER_BYTES;
        if (accepted && port->is_waiting && !in_time) {
            port->is_waiting = false;
            wake(port);
        }
        if (count && port->is_abandoned)
            break;
        if (count)
            pthread_cond_wait(&port->room, &port->lock);
    }
    pthread_mutex_unlock(&port->lock);
}

void serial_port_abandon(struct serial_port *port) {
    if (!port)
        return;
    pthread_mutex_lock(&port->lock);
    port->is_abandoned = true;
    pthread_cond_broadcast(&port->room);
    pthread_mutex_unlock(&port->lock);
}

void serial_port_resume(struct serial_port *port) {
    if (!port)
        return;
    pthread_mutex_lock(&port->lock);
    port->is_resumed = true;
    bool must_wake = port->is_waiting;
    port->is_waiting = false;
    pthread_mutex_unlock(&port->lock);
    if (must_wake)
        wake(port);
}

static void set_connected(struct serial_port *port, bool connected) {
    pthread_mutex_lock(&port->lock);
    port->is_connected = connected;
    pthread_cond_broadcast(&port->room); /* who waited for the reader waits for nobody now */
    pthread_mutex_unlock(&port->lock);
}

/* Nobody reads standard output any more. Input goes on: it may hold the keys that end the VM. */
static void end_output(struct serial_port *port) {
    port->out = SERIAL_NO_FD;
    set_connected(port, false);
}

/* The host end is gone: for good (file), or until the next client. */
static void disconnect(struct serial_port *port) {
    if ((port->kind == VM_SERIAL_UNIX || port->kind == VM_SERIAL_FILE) && port->out >= 0)
        close(port->out);
    port->in = port->out = SERIAL_NO_FD;
    port->input_at = port->input_end = 0;
    set_connected(port, false);
}

static void accept_client(struct serial_port *port) {
    int client = accept4(port->listener, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);
    if (client < 0)
        return;
    if (port->in >= 0) {
        static const char busy[] = "nestor: this line is in use\r\n";
        ssize_t ignored = send(client, busy, sizeof busy - 1, MSG_NOSIGNAL);
        (void)ignored;
        close(client);
        return;
    }
    port->in = port->out = client;
    set_connected(port, true);
}

static void probe_pty(struct serial_port *port, short events) {
    if (port->in < 0 && !(events & POLLHUP)) {
        port->in = port->out = port->pty;
        set_connected(port, true);
    } else if (port->in >= 0 && (events & POLLHUP)) {
        disconnect(port);
    }
}

/* Take the escape sequences out of freshly read input. Returns the bytes that remain. */
static size_t filter_keys(struct serial_port *port, uint8_t *bytes, size_t count) {
    size_t kept = 0;
    for (size_t i = 0; i < count; i++) {
        if (!port->escaped) {
            port->escaped = bytes[i] == ESCAPE_KEY;
            if (!port->escaped)
                bytes[kept++] = bytes[i];
            continue;
        }
        port->escaped = false;
        switch (bytes[i]) {
        case 'x':
        case 'X':
            port->client->key(port->context, SERIAL_KEY_LEAVE);
            break;
        case 'p':
            port->client->key(port->context, SERIAL_KEY_POWER);
            break;
        case 'c':
            port->client->key(port->context, SERIAL_KEY_COUNTERS);
            break;
        case 'a':
        case ESCAPE_KEY:
            bytes[kept++] = ESCAPE_KEY;
            break;
        default: {
            ssize_t ignored = write(STDERR_FILENO, key_help, sizeof key_help - 1);
            (void)ignored;
        }
        }
    }
    return kept;
}

static void read_input(struct serial_port *port) {
    ssize_t count = read(port->in, port->input, sizeof port->input);
    if (count < 0 && (errno == EAGAIN || errno == EINTR))
        return;
    if (count <= 0) {
        if (port->kind == VM_SERIAL_UNIX)
            disconnect(port);
        else if (port->kind == VM_SERIAL_STDIO)
            port->in = SERIAL_NO_FD; /* end of input; output goes on */
        return;
    }
    port->input_at = 0;
    port->input_end = port->has_escape ? filter_keys(port, port->input, (size_t)count) : (size_t)count;
}

/* Offer the client what it has not taken. True when nothing is left. */
static bool deliver_input(struct serial_port *port) {
    if (port->input_at < port->input_end)
        port->input_at += port->client->receive(port->context, port->input + port->input_at,
                                                port->input_end - port->input_at);
    return port->input_at >= port->input_end;
}

static void write_output(struct serial_port *port) {
    uint8_t piece[WRITE_PIECE];
    pthread_mutex_lock(&port->lock);
    size_t at = port->head % SERIAL_BUFFER, count = (size_t)(port->tail - port->head);
    if (count > sizeof piece)
        count = sizeof piece;
    if (count > SERIAL_BUFFER - at)
        count = SERIAL_BUFFER - at;
    memcpy(piece, port->buffer + at, count);
    uint64_t head = port->head;
    pthread_mutex_unlock(&port->lock);
    if (!count)
        return;

    ssize_t written = port->kind == VM_SERIAL_UNIX ? send(port->out, piece, count, MSG_NOSIGNAL)
                                                   : write(port->out, piece, count);
    if (written < 0) {
        if (errno == EAGAIN || errno == EINTR)
            return;
        if (port->kind == VM_SERIAL_STDIO || port->kind == VM_SERIAL_FILE)
            diag_warn("--%s: output can no longer be written: %s; it is discarded from now on", port->option,
                      strerror(errno));
        if (port->kind == VM_SERIAL_STDIO)
            end_output(port);
        else
            disconnect(port);
        return;
    }
    pthread_mutex_lock(&port->lock);
    if (port->head == head) /* connected: only this thread takes bytes out */
        port->head += (uint64_t)written;
    pthread_cond_broadcast(&port->room);
    pthread_mutex_unlock(&port->lock);
}

/* What to wait for; returns whether output is queued, in *stop whether to end, and leaves in *linger whether
 * output may still wait. */
static bool take_state(struct serial_port *port, bool *stop, bool *resumed, bool *abandoned, bool *linger) {
    pthread_mutex_lock(&port->lock);
    bool queued = port->tail != port->head;
    *stop = port->stop;
    *abandoned = port->is_abandoned;
    *resumed = port->is_resumed;
    port->is_resumed = false;
    port->is_waiting = true;
    *linger &= !port->stop && port->tail - port->head < LINGER_BYTES;
    port->is_lingering = *linger;
    pthread_mutex_unlock(&port->lock);
    return queued;
}

static void *serial_thread(void *argument) {
    struct serial_port *port = argument;
    enum { POLL_WAKE, POLL_LISTEN, POLL_PTY, POLL_IN, POLL_OUT, POLL_COUNT };
    bool linger = false;
    for (;;) {
        bool stop, resumed, abandoned;
        bool queued = take_state(port, &stop, &resumed, &abandoned, &linger);
        if (stop && (!queued || port->out < 0))
            return NULL;
        bool behind = port->input_at < port->input_end;
        if (behind && resumed)
            behind = !deliver_input(port);
        struct pollfd fds[POLL_COUNT] = {
            [POLL_WAKE] = {port->wake, POLLIN, 0},
            [POLL_LISTEN] = {port->listener, POLLIN, 0},
            [POLL_PTY] = {port->in >= 0 ? port->pty : SERIAL_NO_FD, 0, 0}, /* POLLHUP comes unasked */
            [POLL_IN] = {behind || stop ? SERIAL_NO_FD : port->in, POLLIN, 0},
            [POLL_OUT] = {queued && !linger ? port->out : SERIAL_NO_FD, POLLOUT, 0},
        };
        bool unattended = port->pty >= 0 && port->in < 0;
        int timeout = linger ? LINGER_MS : stop && abandoned ? ABANDON_MS : unattended ? PTY_PROBE_MS : -1;
        if (poll(fds, POLL_COUNT, timeout) < 0 && errno != EINTR)
            return NULL;
        if (stop && abandoned && !fds[POLL_OUT].revents && !fds[POLL_WAKE].revents)
            return NULL;
        if (fds[POLL_WAKE].revents) {
            uint64_t count;
            ssize_t ignored = read(port->wake, &count, sizeof count);
            (void)ignored;
        }
        if (fds[POLL_LISTEN].revents)
            accept_client(port);
        if (port->pty >= 0) {
            struct pollfd pty = {port->pty, POLLIN, 0};
            poll(&pty, 1, 0);
            probe_pty(port, pty.revents);
        }
        linger = fds[POLL_OUT].revents && port->out >= 0;
        if (linger)
            write_output(port);
        if (fds[POLL_IN].revents && port->in >= 0) {
            read_input(port);
            deliver_input(port);
        }
    }
}

int serial_port_start(struct serial_port *port, const struct serial_client *client, void *context) {
    if (!port)
        return 0;
    port->client = client;
    port->context = context;
    sigset_t all, old;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &old); /* signals are for the threads that wait for them */
    int result = -pthread_create(&port->thread, NULL, serial_thread, port);
    pthread_sigmask(SIG_SETMASK, &old, NULL);
    if (result) {
        diag_error(
            "--%s: no thread to serve it: %s; raise the limit of processes (ulimit -u), or free memory",
            port->option, strerror(-result));
        return result;
    }
    port->is_started = true;
    pthread_setname_np(port->thread, port->option);
    return 0;
}

void serial_port_destroy(struct serial_port *port) {
    if (!port)
        return;
    if (port->is_started) {
        pthread_mutex_lock(&port->lock);
        port->stop = true;
        pthread_mutex_unlock(&port->lock);
        wake(port);
        pthread_join(port->thread, NULL);
    }
    if (port->kind == VM_SERIAL_STDIO) {
        terminal_restore();
    } else {
        if (port->kind == VM_SERIAL_UNIX && port->in >= 0)
            close(port->in);
        if (port->kind == VM_SERIAL_FILE && port->out >= 0)
            close(port->out);
    }
    if (port->listener >= 0)
        close(port->listener);
    if (port->pty >= 0)
        close(port->pty);
    if (port->wake >= 0)
        close(port->wake);
    if (port->unlink_at)
        unlink(port->unlink_at);
    free(port->unlink_at);
    pthread_cond_destroy(&port->room);
    pthread_mutex_destroy(&port->lock);
    free(port);
}
