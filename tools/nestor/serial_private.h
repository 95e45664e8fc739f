/* Inside of serial ports: what serial.c (the thread) and serial_open.c (the kinds of host end) share. */
#ifndef NESTOR_TOOLS_SERIAL_PRIVATE_H
#define NESTOR_TOOLS_SERIAL_PRIVATE_H

#include <pthread.h>

#include "serial.h"

#define SERIAL_NO_FD (-1)

struct serial_port {
    const char *option;
    enum vm_serial_kind kind;
    /* The thread's own, after start. */
    int in, out;     /* SERIAL_NO_FD: nobody there */
    int listener;    /* unix: the listening socket */
    int pty;         /* pty: the master side; in and out are it while the other side is open */
    char *unlink_at; /* unix: the path to remove at the end */
    bool has_escape; /* Ctrl-A commands */
    bool escaped;    /* the last key was Ctrl-A */
    uint8_t input[4096];
    size_t input_at, input_end; /* input that the client has not taken yet */

    const struct serial_client *client;
    void *context;
    pthread_t thread;
    bool is_started;
    int wake; /* eventfd */

    pthread_mutex_t lock; /* the rest */
    uint8_t buffer[SERIAL_BUFFER];
    uint64_t head, tail; /* bytes ever taken out of and put into buffer */
    pthread_cond_t room; /* bytes were taken out, or is_connected or is_abandoned changed */
    bool is_abandoned;
    bool is_connected;
    bool is_waiting;   /* the thread may be asleep: wake it */
    bool is_lingering; /* but not for a little output: it looks again in a moment */
    bool is_resumed;   /* the client takes input again */
    bool stop;
};

/* serial_open.c. Each fills in the descriptors; 0 or -errno after one line. */
MUST_CHECK int serial_open_stdio(struct serial_port *port);
MUST_CHECK int serial_open_file(struct serial_port *port, const char *path);
MUST_CHECK int serial_open_pty(struct serial_port *port);
MUST_CHECK int serial_open_unix(struct serial_port *port, const char *path);

#endif
