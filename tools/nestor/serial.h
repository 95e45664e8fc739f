/* Host ends of a character device, which is a serial port or a virtio console: standard input and output, a
 * file, a pseudo-terminal, a Unix socket.
 *
 * Each port has one thread that moves bytes both ways, so no vCPU ever waits for the host. Back-pressure goes
 * both ways too: what the host does not take stays in a bounded buffer, and serial_port_send() then accepts
 * less; what the guest does not take is not read from the host. Output is never dropped while somebody is
 * there to read it; with nobody connected (pty, unix) the newest SERIAL_BUFFER bytes are kept for the next.
 */
#ifndef NESTOR_TOOLS_SERIAL_H
#define NESTOR_TOOLS_SERIAL_H

#include "machine/vm_config.h"

#define SERIAL_BUFFER (64 * KIB)

/* Keys after Ctrl-A on a terminal; serial.c answers Ctrl-A h itself. */
enum serial_key {
    SERIAL_KEY_LEAVE,    /* x: end the VM */
    SERIAL_KEY_COUNTERS, /* c: print the counters */
    SERIAL_KEY_POWER,    /* p: press the power button */
};

/* All are called on the port's thread. */
struct serial_client {
    /* Bytes from the host. Returns how many it took; when fewer, serial_port_resume() asks for the rest. */
    size_t (*receive)(void *context, const uint8_t *bytes, size_t count);
    void (*key)(void *context, enum serial_key key);
};

struct serial_port;

/* Open the host end: files, sockets and the terminal's raw mode. Call before other threads exist and before
 * privileges are dropped. option: the name, without dashes, of the option that asked for it, for messages; it
 * outlives the port. For VM_SERIAL_NONE *port is NULL, which every function below takes. 0, or -errno after
 * one line. */
MUST_CHECK int serial_port_create(struct serial_port **port, const char *option,
                                  const struct vm_serial_config *config);
/* Start moving bytes. context and *client outlive the port. 0 or -errno. */
MUST_CHECK int serial_port_start(struct serial_port *port, const struct serial_client *client, void *context);
/* Queue bytes for the host, from any thread; waits while the buffer is full. */
void serial_port_send(struct serial_port *port, const uint8_t *bytes, size_t count);
/* Release whoever waits in serial_port_send(), now and from now on: what finds no room is lost. For stopping
 * a VM whose output nobody takes. */
void serial_port_abandon(struct serial_port *port);
/* The client takes input again; from any thread. */
void serial_port_resume(struct serial_port *port);
/* Write out what is queued (all of it, unless abandoned and nobody takes it), stop the thread, close, and
 * restore the terminal. */
void serial_port_destroy(struct serial_port *port);

#endif
