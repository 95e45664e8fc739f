/* Message-signalled interrupts: where a device's interrupt write goes (Intel SDM volume 3, "Message Signalled
 * Interrupts": address 0xFEExxxxx, data with vector, delivery and trigger mode). */
#ifndef NESTOR_DEVICES_MSI_H
#define NESTOR_DEVICES_MSI_H

#include "base/types.h"

/* Receiver of interrupt messages. Called from any thread, possibly with the sender's lock held. */
struct msi_sink {
    void (*send)(void *context, uint64_t address, uint32_t data);
    void *context;
};

static inline void msi_send(const struct msi_sink *sink, uint64_t address, uint32_t data) {
    if (sink->send)
        sink->send(sink->context, address, data);
}

#endif
