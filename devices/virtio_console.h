/* virtio console (virtio 1.2, clause 5.3) with its single port: hvc0 to Linux. */
#ifndef NESTOR_DEVICES_VIRTIO_CONSOLE_H
#define NESTOR_DEVICES_VIRTIO_CONSOLE_H

#include "base/types.h"
#include "devices/pci.h"
#include "mem/guest_mem.h"

struct virtio_console;

struct virtio_console_config {
    /* What the guest prints. On the console's own thread (emergency output: on a vCPU's); may block. */
    void (*output)(void *context, const uint8_t *data, size_t length);
    /* Optional: there is room for input again after virtio_console_input() took less than it was offered. */
    void (*input_room)(void *context);
    void *context;
    uint16_t columns, rows; /* 0: not known */
};

MUST_CHECK int virtio_console_create(struct virtio_console **console,
                                     const struct virtio_console_config *config, struct guest_mem *mem);
/* No register access may come any more. */
void virtio_console_destroy(struct virtio_console *console);
struct pci_device *virtio_console_pci(struct virtio_console *console);
/* What someone types, from any thread. Returns the bytes taken; the rest is offered again after input_room().
 */
size_t virtio_console_input(struct virtio_console *console, const uint8_t *data, size_t length);
/* The terminal has another size. */
void virtio_console_resize(struct virtio_console *console, uint16_t columns, uint16_t rows);
void virtio_console_quiesce(struct virtio_console *console);
void virtio_console_resume(struct virtio_console *console);

#endif
