/* PCI: functions with configuration space, BARs, capabilities, INTx and MSI-X, and the root they sit on,
 * reached by ports 0xCF8/0xCFC and by ECAM (PCI Local Bus 3.0; PCI Express Base, "Configuration Space").
 *
 * A device fills in a struct pci_device (pci_device_init(), pci_bar_*(), pci_capability_add(),
 * pci_msix_init()) and is then put on a root by pci_root_attach(). Locks: a root's configuration mutex is
 * held around every configuration access and so around the config_* and reset operations; BAR accesses come
 * unlocked, from any vCPU thread. pci_intx_set() and pci_msix_notify() may be called from any thread and
 * under the device's own lock; they take the function's interrupt lock only. Lock order: root -> device's own
 * -> interrupt lock -> irq_line/msi_sink.
 */
#ifndef NESTOR_DEVICES_PCI_H
#define NESTOR_DEVICES_PCI_H

#include "devices/pci_device.h"
#include "devices/pci_root.h"

#endif
