/* The PCI root: the bus's functions, its configuration space, its windows. See devices/pci.h for the whole.
 */
#ifndef NESTOR_DEVICES_PCI_ROOT_H
#define NESTOR_DEVICES_PCI_ROOT_H

#include "devices/pci_device.h"

struct pci_root_config {
    /* Tell the bus that a BAR is decoded at address (bar->size bytes, ports if bar->kind is PCI_BAR_IO), or
     * no more at bar->mapped if address is PCI_UNMAPPED. Called with the configuration mutex held. False: no
     * room there. */
    bool (*map)(void *context, struct pci_bar *bar, uint64_t address);
    void *context;
    struct msi_sink msi;
    struct irq_line intx[4]; /* the four wires behind the swizzle: (slot + pin - 1) mod 4 */
};

/* A root with a host bridge at 00.0. NULL if out of memory. */
MUST_CHECK struct pci_root *pci_root_create(const struct pci_root_config *config);
void pci_root_destroy(struct pci_root *root);
/* Put a function in a slot (1 to 31), or in the first free one if slot is 0. Returns the slot, -EBUSY or
 * -ENOSPC. */
MUST_CHECK int pci_root_attach(struct pci_root *root, struct pci_device *device, unsigned slot);
/* All functions back to their power-on state, BARs unmapped. */
void pci_root_reset(struct pci_root *root);

/* Addresses for the BARs of all functions, as firmware assigns them. I/O from io_base up, 32-bit memory from
 * mem32_base, 64-bit memory from mem64_base; *_end are the first byte past the window. Decoding is turned on.
 */
struct pci_windows {
    uint64_t io_base, io_end;
    uint64_t mem32_base, mem32_end;
    uint64_t mem64_base, mem64_end;
    uint8_t intx_irqs[4]; /* 8259 inputs of the INTx wires, for PCI_INTERRUPT_LINE */
};
MUST_CHECK int pci_root_assign(struct pci_root *root, const struct pci_windows *windows);

/* Ports 0xCF8 to 0xCFF: offset 0 to 7, size 1, 2 or 4. */
uint32_t pci_port_read(struct pci_root *root, unsigned offset, unsigned size);
void pci_port_write(struct pci_root *root, unsigned offset, unsigned size, uint32_t value);
/* ECAM of 256 buses; only bus 0 is populated. */
uint64_t pci_ecam_read(struct pci_root *root, uint64_t offset, unsigned size);
void pci_ecam_write(struct pci_root *root, uint64_t offset, unsigned size, uint64_t value);

#endif
