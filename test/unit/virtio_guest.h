/* A guest driver for the unit tests of virtio devices: it finds the structures through PCI capabilities,
 * negotiates, builds split rings in guest RAM, rings doorbells only where the device asks for them and waits
 * for real MSI-X messages (or INTx) to come from the device's threads. */
#ifndef NESTOR_TEST_VIRTIO_GUEST_H
#define NESTOR_TEST_VIRTIO_GUEST_H

#include "base/types.h"
#include "devices/pci.h"
#include "mem/guest_mem.h"

#include <stdio.h>
#include <stdlib.h>

#define CHECK(condition)                                                                                     \
    do {                                                                                                     \
        if (!(condition)) {                                                                                  \
            fprintf(stderr, "%s:%d: failed: %s\n", __FILE__, __LINE__, #condition);                          \
            exit(1);                                                                                         \
        }                                                                                                    \
    } while (0)

#define GUEST_VECTORS 64
#define GUEST_EVENT_IDX (1ull << 29)
#define GUEST_INDIRECT (1ull << 28)
#define GUEST_VERSION_1 (1ull << 32)

struct guest {
    struct guest_mem mem;
    struct pci_root *root;
    struct pci_device *pci;
    uint64_t ecam;                                /* of the function */
    uint64_t common, isr, config, notify, window; /* offsets in BAR 0; of the window: in config space */
    uint32_t notify_stride;
    uint64_t features;
    bool msix;
    uint64_t brk; /* guest-physical bump allocator */
    pthread_mutex_t lock;
    pthread_cond_t arrived;
    unsigned messages[GUEST_VECTORS];
    bool intx;
    unsigned intx_edges;
};

struct guest_buffer {
    uint64_t gpa;
    uint32_t length;
    bool writable;
};

struct guest_queue {
    struct guest *guest;
    unsigned index;
    unsigned size;
    uint64_t descriptors_gpa, available_gpa, used_gpa;
    struct guest_descriptor *descriptors;
    uint16_t *available;
    uint8_t *used;
    uint16_t next_descriptor;
    uint16_t available_index, kicked_index, seen_used;
    unsigned outstanding; /* descriptors; all are free again when it falls to 0 */
    unsigned kicks;
};

struct guest_descriptor {
    uint64_t address;
    uint32_t length;
    uint16_t flags;
    uint16_t next;
};

/* RAM and a PCI root with MSI and INTx captured. */
void guest_open(struct guest *guest, uint64_t ram);
void guest_close(struct guest *guest);
/* Plug a function in, assign its BARs, find its structures. */
void guest_attach(struct guest *guest, struct pci_device *pci, unsigned virtio_id);
uint64_t guest_alloc(struct guest *guest, uint64_t size);
void *guest_ptr(struct guest *guest, uint64_t gpa);

uint64_t guest_read(struct guest *guest, uint64_t offset, unsigned size);
void guest_write(struct guest *guest, uint64_t offset, unsigned size, uint64_t value);
uint8_t guest_status(struct guest *guest);
/* Reset, and wait for it to be done. */
void guest_reset(struct guest *guest);
/* Up to FEATURES_OK: accept what is both offered and wanted. MSI-X is enabled if asked for. */
uint64_t guest_negotiate(struct guest *guest, uint64_t wanted, bool msix);
/* Vector of queue i is i + 1, that of the configuration 0. */
void guest_queue_setup(struct guest *guest, struct guest_queue *queue, unsigned index, unsigned size);
void guest_driver_ok(struct guest *guest);

/* Make a chain available. Returns its head. */
uint16_t guest_add(struct guest_queue *queue, const struct guest_buffer *buffers, unsigned count,
                   bool indirect);
/* Expose a raw descriptor index. */
void guest_expose(struct guest_queue *queue, uint16_t head);
/* Ring the doorbell if the device wants it; true if it was rung. */
bool guest_kick(struct guest_queue *queue);
/* Take a used element: its head, or -1. */
int guest_take(struct guest_queue *queue, uint32_t *length);
/* Ask to be interrupted at the next used element, and wait for one; fails the test after ten seconds. */
int guest_wait(struct guest_queue *queue, uint32_t *length);
unsigned guest_messages(struct guest *guest, unsigned vector);
/* Wait until a vector has had this many messages in all; false after that many milliseconds. */
bool guest_wait_messages(struct guest *guest, unsigned vector, unsigned count, unsigned ms);
void guest_set_used_event(struct guest_queue *queue, uint16_t event);

#endif
