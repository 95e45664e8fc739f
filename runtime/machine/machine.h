/* A whole virtual machine: guest memory, board, virtio devices and vCPUs, made from a vm_config and run to
 * its end.
 *
 *   machine_create(&machine, &config, &host);
 *   machine_run(machine, &outcome);    // returns when the guest powered off, or machine_stop()
 *   machine_destroy(machine);
 */
#ifndef NESTOR_MACHINE_MACHINE_H
#define NESTOR_MACHINE_MACHINE_H

#include "machine/vm_config.h"

#include <cjson/cJSON.h>

struct machine;

/* The host's end of the guest's lines. Called on vCPU or device threads. */
struct machine_host {
    /* Serial output of COM1; takes every byte and may block. */
    void (*serial_write)(void *context, const uint8_t *bytes, size_t count);
    /* machine_serial_receive() takes bytes again. */
    void (*serial_ready)(void *context);
    /* The same two for the virtio console. */
    void (*console_write)(void *context, const uint8_t *bytes, size_t count);
    void (*console_ready)(void *context);
    void *context;
};

enum machine_end {
    MACHINE_POWERED_OFF,
    MACHINE_RESET,        /* with no_reboot */
    MACHINE_DEBUG_EXIT,   /* value: what the guest wrote */
    MACHINE_TRIPLE_FAULT, /* value: the vCPU; its state was told on stderr */
    MACHINE_STOPPED,      /* machine_stop() */
    MACHINE_FAILED,       /* one line was told */
};

enum machine_button {
    MACHINE_BUTTON_UNHEARD, /* the guest does not listen */
    MACHINE_BUTTON_HEARD,
    MACHINE_BUTTON_WOKE, /* the guest slept; that was all that it takes the press for */
};

struct machine_outcome {
    enum machine_end end;
    uint32_t value;
};

/* Open every file, allocate and wire everything. 0, or -errno after one diag_error() line. config outlives
 * the machine. */
MUST_CHECK int machine_create(struct machine **machine, const struct vm_config *config,
                              const struct machine_host *host);
void machine_destroy(struct machine *machine);
/* The processes that the vCPUs' threads will trace: their number. */
unsigned machine_processes(const struct machine *machine, pid_t process[VM_MAX_CPUS]);
/* Load the guest and run it, through its resets, to its end. */
void machine_run(struct machine *machine, struct machine_outcome *outcome);

/* From any thread. */
void machine_stop(struct machine *machine);
enum machine_button machine_power_button(struct machine *machine);
size_t machine_serial_receive(struct machine *machine, const uint8_t *bytes, size_t count);
size_t machine_console_receive(struct machine *machine, const uint8_t *bytes, size_t count);
/* The terminal of the virtio console has this size now. Nothing without that device. */
void machine_console_resize(struct machine *machine, uint16_t columns, uint16_t rows);
/* The counters; the caller deletes the tree. NULL without memory. */
cJSON *machine_counters(struct machine *machine);

#endif
