/* One PCI function: see devices/pci.h for the whole and its locks. */
#ifndef NESTOR_DEVICES_PCI_DEVICE_H
#define NESTOR_DEVICES_PCI_DEVICE_H

#include <pthread.h>

#include "base/types.h"
#include "devices/irq_line.h"
#include "devices/msi.h"

#define PCI_CONFIG_SIZE 4096
#define PCI_SLOTS 32
#define PCI_FUNCTIONS 256 /* of one bus */
#define PCI_BAR_COUNT 6
#define PCI_UNMAPPED UINT64_MAX
#define PCI_MSIX_MAX_VECTORS 2048

enum pci_register {
    PCI_VENDOR_ID = 0x00,
    PCI_DEVICE_ID = 0x02,
    PCI_COMMAND = 0x04,
    PCI_STATUS = 0x06,
    PCI_REVISION = 0x08,
    PCI_CLASS = 0x09,
    PCI_CACHE_LINE = 0x0c,
    PCI_LATENCY = 0x0d,
    PCI_HEADER_TYPE = 0x0e,
    PCI_BAR0 = 0x10,
    PCI_SUBSYSTEM_VENDOR = 0x2c,
    PCI_SUBSYSTEM_ID = 0x2e,
    PCI_ROM_BAR = 0x30,
    PCI_CAPABILITIES = 0x34,
    PCI_INTERRUPT_LINE = 0x3c,
    PCI_INTERRUPT_PIN = 0x3d,
};

enum pci_command_bits {
    PCI_COMMAND_IO = 1 << 0,
    PCI_COMMAND_MEMORY = 1 << 1,
    PCI_COMMAND_MASTER = 1 << 2,
    PCI_COMMAND_INTX_DISABLE = 1 << 10,
};

enum pci_bar_kind { PCI_BAR_NONE, PCI_BAR_IO, PCI_BAR_MEM32, PCI_BAR_MEM64 };

struct pci_device;
struct pci_root;

struct pci_device_ops {
    /* An access to a BAR, size 1, 2, 4 or 8, wholly inside it. The MSI-X table and PBA are served before
     * this. */
    uint64_t (*bar_read)(void *context, unsigned bar, uint64_t offset, unsigned size);
    void (*bar_write)(void *context, unsigned bar, uint64_t offset, unsigned size, uint64_t value);
    /* Optional. Before the bytes [offset, offset + size) of config are read: bring them up to date. */
    void (*config_read)(void *context, unsigned offset, unsigned size);
    /* Optional. After a write to them was applied under the write mask. */
    void (*config_written)(void *context, unsigned offset, unsigned size);
    /* Optional. The machine resets: back to the power-on state (config space is reset by the caller). */
    void (*reset)(void *context);
};

struct pci_bar {
    struct pci_device *device;
    unsigned index;
    enum pci_bar_kind kind;
    bool prefetchable;
    uint64_t size;   /* a power of two */
    uint64_t mapped; /* where the board decodes it now, or PCI_UNMAPPED */
};

struct pci_msix {
    unsigned capability; /* offset of the capability, 0: the function has no MSI-X */
    unsigned vectors;
    unsigned bar;
    uint64_t table_offset;
    uint64_t pba_offset;
    uint8_t *table;    /* 16 bytes a vector */
    uint64_t *pending; /* the PBA */
};

struct pci_device {
    const char *name;
    const struct pci_device_ops *ops;
    void *context;
    struct pci_root *root;
    unsigned devfn; /* slot << 3 | function */
    struct pci_bar bars[PCI_BAR_COUNT];
    struct pci_msix msix;
    unsigned capability_end; /* first free byte for another capability */
    pthread_mutex_t irq_lock;
    bool intx_asserted;
    bool intx_driven; /* level that the root has been told */
    uint8_t config[PCI_CONFIG_SIZE];
    uint8_t write_mask[PCI_CONFIG_SIZE]; /* bits that the guest may change */
    uint8_t w1c_mask[PCI_CONFIG_SIZE];   /* bits that a written 1 clears */
    uint8_t power_on[256];               /* config as pci_root_attach() found it */
};

/* Fill in a type-0 header. class_code: base class << 16 | subclass << 8 | interface. ops and name stay the
 * caller's and must outlive the device. */
void pci_device_init(struct pci_device *device, const char *name, const struct pci_device_ops *ops,
                     void *context, uint16_t vendor, uint16_t id, uint32_t class_code, uint8_t revision);
void pci_set_subsystem(struct pci_device *device, uint16_t vendor, uint16_t id);
/* Use pin INTA (1) to INTD (4). */
void pci_set_interrupt_pin(struct pci_device *device, uint8_t pin);
/* Release what pci_msix_init() allocated. The device must be off its root or the root no longer used. */
void pci_device_destroy(struct pci_device *device);

/* Declare a BAR of size bytes (rounded up to a power of two, at least 4 KiB for memory and 4 bytes for I/O).
 * A 64-bit one takes index and index + 1. */
void pci_bar_declare(struct pci_device *device, unsigned index, enum pci_bar_kind kind, uint64_t size,
                     bool prefetchable);

/* Append a capability of length bytes (ID and next pointer included); the rest is zero and read-only until
 * the caller fills config[] and write_mask[]. Returns its offset, or -ENOSPC. */
MUST_CHECK int pci_capability_add(struct pci_device *device, uint8_t id, unsigned length);

/* Give the function MSI-X with a table and a PBA at these offsets of a BAR that has been declared. 0 or
 * -errno. */
MUST_CHECK int pci_msix_init(struct pci_device *device, unsigned bar, uint64_t table_offset,
                             uint64_t pba_offset, unsigned vectors);
/* True while the guest has MSI-X enabled: INTx is then silent. */
bool pci_msix_enabled(struct pci_device *device);
/* Send a vector's message, or note it as pending while masked. Ignored unless MSI-X is enabled. */
void pci_msix_notify(struct pci_device *device, unsigned vector);
/* Level of the function's INTx condition; honours the disable bit and keeps the status bit. */
void pci_intx_set(struct pci_device *device, bool level);
/* True if the guest lets the function do DMA. */
bool pci_bus_master(const struct pci_device *device);

/* An access to a mapped BAR, as the board's bus delivers it. Safe for any offset and size. */
uint64_t pci_bar_read(struct pci_bar *bar, uint64_t offset, unsigned size);
void pci_bar_write(struct pci_bar *bar, uint64_t offset, unsigned size, uint64_t value);

/* Little-endian fields of config space, for devices that fill it in. */
static inline uint16_t pci_config_get16(const struct pci_device *device, unsigned offset) {
    return (uint16_t)(device->config[offset] | device->config[offset + 1] << 8);
}
static inline uint32_t pci_config_get32(const struct pci_device *device, unsigned offset) {
    return pci_config_get16(device, offset) | (uint32_t)pci_config_get16(device, offset + 2) << 16;
}
static inline void pci_config_set16(struct pci_device *device, unsigned offset, uint16_t value) {
    device->config[offset] = (uint8_t)value;
    device->config[offset + 1] = (uint8_t)(value >> 8);
}
static inline void pci_config_set32(struct pci_device *device, unsigned offset, uint32_t value) {
    pci_config_set16(device, offset, (uint16_t)value);
    pci_config_set16(device, offset + 2, (uint16_t)(value >> 16));
}

#endif
