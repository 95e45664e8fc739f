/* virtio over PCI, modern only (virtio 1.2, clause 4.1): a non-transitional function with the common,
 * notification, ISR, device and PCI configuration access structures, one MSI-X vector per queue and one for
 * the configuration, INTx where the driver leaves MSI-X off. */
#ifndef NESTOR_DEVICES_VIRTIO_PCI_H
#define NESTOR_DEVICES_VIRTIO_PCI_H

#include "devices/pci.h"
#include "devices/virtio_device.h"

struct virtio_pci {
    struct pci_device pci;
    struct virtio_device *device;
    pthread_mutex_t
        isr_lock; /* isr and the INTx level that follows from it; under it: pci's interrupt lock */
    uint8_t isr;
    unsigned window; /* offset of the PCI configuration access capability */
};

/* Put a device behind a PCI function and become its transport. class_code as pci_device_init() wants it. The
 * function is ready for pci_root_attach(). 0, or -ENOMEM or -ENOSPC. */
MUST_CHECK int virtio_pci_init(struct virtio_pci *transport, const char *name, struct virtio_device *device,
                               uint32_t class_code);
void virtio_pci_destroy(struct virtio_pci *transport);

#endif
