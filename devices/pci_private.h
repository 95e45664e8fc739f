/* What the two halves of the PCI core share: the root's inside. */
#ifndef NESTOR_DEVICES_PCI_PRIVATE_H
#define NESTOR_DEVICES_PCI_PRIVATE_H

#include "devices/pci.h"

struct pci_root {
    struct pci_root_config config;
    pthread_mutex_t lock; /* configuration accesses, the address latch, mappings */
    uint32_t address;     /* 0xCF8 */
    struct pci_device *functions[PCI_FUNCTIONS];
    pthread_mutex_t intx_lock; /* the counts below; taken with a function's irq_lock held */
    unsigned intx_count[4];    /* functions that assert each wire */
    struct pci_device host_bridge;
};

/* Recompute a function's INTx output after its command register or MSI-X control changed. */
void pci_interrupts_update(struct pci_device *device);
/* Back to masked and empty. */
void pci_msix_reset(struct pci_device *device);

#endif
