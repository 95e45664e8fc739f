/* One PCI function: its header, its capabilities and its interrupts.
 *
 * The interrupt lock guards the MSI-X table, the pending bits and the INTx level; the sinks are called with
 * it held, so that a message can never overtake the masking of its vector. */
#include "devices/pci_private.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#define CAPABILITY_MSIX 0x11
#define FIRST_CAPABILITY 0x40
#define LEGACY_CONFIG_SIZE 256
#define STATUS_INTERRUPT (1 << 3)
#define STATUS_CAPABILITIES (1 << 4)
#define MSIX_ENABLE (1 << 15)
#define MSIX_FUNCTION_MASK (1 << 14)
#define MSIX_ENTRY_SIZE 16
#define MSIX_ENTRY_CONTROL 12
#define MSIX_ENTRY_MASKED 1

void pci_device_init(struct pci_device *device, const char *name, const struct pci_device_ops *ops,
                     void *context, uint16_t vendor, uint16_t id, uint32_t class_code, uint8_t revision) {
    memset(device, 0, sizeof *device);
    device->name = name;
    device->ops = ops;
    device->context = context;
    device->capability_end = FIRST_CAPABILITY;
    pthread_mutex_init(&device->irq_lock, NULL);
    pci_config_set16(device, PCI_VENDOR_ID, vendor);
    pci_config_set16(device, PCI_DEVICE_ID, id);
    device->config[PCI_REVISION] = revision;
    device->config[PCI_CLASS] = (uint8_t)class_code;
    pci_config_set16(device, PCI_CLASS + 1, (uint16_t)(class_code >> 8));
    device->write_mask[PCI_COMMAND] = PCI_COMMAND_MASTER | 0x40 /* parity error response */;
    device->write_mask[PCI_COMMAND + 1] = (PCI_COMMAND_INTX_DISABLE >> 8) | 0x01 /* SERR# enable */;
    device->w1c_mask[PCI_STATUS + 1] = 0xf9;
    device->write_mask[PCI_CACHE_LINE] = 0xff;
    device->write_mask[PCI_INTERRUPT_LINE] = 0xff;
    for (unsigned i = 0; i < PCI_BAR_COUNT; i++)
        device->bars[i] = (struct pci_bar){.device = device, .index = i, .mapped = PCI_UNMAPPED};
}

void pci_set_subsystem(struct pci_device *device, uint16_t vendor, uint16_t id) {
    pci_config_set16(device, PCI_SUBSYSTEM_VENDOR, vendor);
    pci_config_set16(device, PCI_SUBSYSTEM_ID, id);
}

void pci_set_interrupt_pin(struct pci_device *device, uint8_t pin) {
    device->config[PCI_INTERRUPT_PIN] = pin;
}

void pci_device_destroy(struct pci_device *device) {
    free(device->msix.table);
    free(device->msix.pending);
    device->msix = (struct pci_msix){0};
    pthread_mutex_destroy(&device->irq_lock);
}

void pci_bar_declare(struct pci_device *device, unsigned index, enum pci_bar_kind kind, uint64_t size,
                     bool prefetchable) {
    uint64_t rounded = kind == PCI_BAR_IO ? 4 : PAGE_SIZE;
    while (rounded < size)
        rounded <<= 1;
    struct pci_bar *bar = &device->bars[index];
    bar->kind = kind;
    bar->size = rounded;
    bar->prefetchable = prefetchable;
    unsigned offset = PCI_BAR0 + 4 * index;
    uint64_t mask = ~(rounded - 1);
    uint32_t type = kind == PCI_BAR_IO ? 1 : (kind == PCI_BAR_MEM64 ? 4 : 0) | (prefetchable ? 8 : 0);
    pci_config_set32(device, offset, type);
    for (unsigned i = 0; i < (kind == PCI_BAR_MEM64 ? 8 : 4); i++)
        device->write_mask[offset + i] = (uint8_t)(mask >> (8 * i));
    device->write_mask[PCI_COMMAND] |= kind == PCI_BAR_IO ? PCI_COMMAND_IO : PCI_COMMAND_MEMORY;
}

int pci_capability_add(struct pci_device *device, uint8_t id, unsigned length) {
    unsigned offset = device->capability_end;
    if (length < 2 || length > LEGACY_CONFIG_SIZE - offset)
        return -ENOSPC;
    device->capability_end = (offset + length + 3) & ~3u;
    /* To the end of the list, so that it reads in the order of declaration. */
    unsigned link = PCI_CAPABILITIES;
    while (device->config[link])
        link = device->config[link] + 1u;
    device->config[link] = (uint8_t)offset;
    device->config[offset] = id;
    device->config[offset + 1] = 0;
    device->config[PCI_STATUS] |= STATUS_CAPABILITIES;
    return (int)offset;
}

int pci_msix_init(struct pci_device *device, unsigned bar, uint64_t table_offset, uint64_t pba_offset,
                  unsigned vectors) {
    if (bar >= PCI_BAR_COUNT || vectors == 0 || vectors > PCI_MSIX_MAX_VECTORS ||
        (table_offset | pba_offset) & 7)
        return -EINVAL;
    uint64_t pba_size = (vectors + 63) / 64 * 8;
    if (table_offset + (uint64_t)vectors * MSIX_ENTRY_SIZE > device->bars[bar].size ||
        pba_offset + pba_size > device->bars[bar].size)
        return -EINVAL;
    uint8_t *table = calloc(vectors, MSIX_ENTRY_SIZE);
    uint64_t *pending = calloc((vectors + 63) / 64, sizeof *pending);
    int offset = table && pending ? pci_capability_add(device, CAPABILITY_MSIX, 12) : -ENOMEM;
    if (offset < 0) {
        free(table);
        free(pending);
        return offset;
    }
    pci_config_set16(device, (unsigned)offset + 2, (uint16_t)(vectors - 1));
    device->write_mask[offset + 3] = (MSIX_ENABLE | MSIX_FUNCTION_MASK) >> 8;
    pci_config_set32(device, (unsigned)offset + 4, (uint32_t)table_offset | bar);
    pci_config_set32(device, (unsigned)offset + 8, (uint32_t)pba_offset | bar);
    device->msix = (struct pci_msix){.capability = (unsigned)offset,
                                     .vectors = vectors,
                                     .bar = bar,
                                     .table_offset = table_offset,
                                     .pba_offset = pba_offset,
                                     .table = table,
                                     .pending = pending};
    pci_msix_reset(device);
    return 0;
}

void pci_msix_reset(struct pci_device *device) {
    struct pci_msix *msix = &device->msix;
    if (!msix->capability)
        return;
    pthread_mutex_lock(&device->irq_lock);
    memset(msix->table, 0, (size_t)msix->vectors * MSIX_ENTRY_SIZE);
    for (unsigned i = 0; i < msix->vectors; i++)
        msix->table[i * MSIX_ENTRY_SIZE + MSIX_ENTRY_CONTROL] = MSIX_ENTRY_MASKED;
    memset(msix->pending, 0, (msix->vectors + 63) / 64 * sizeof *msix->pending);
    pthread_mutex_unlock(&device->irq_lock);
}

static uint16_t msix_control(const struct pci_device *device) {
    if (!device->msix.capability)
        return 0;
    return (uint16_t)(__atomic_load_n(&device->config[device->msix.capability + 3], __ATOMIC_ACQUIRE) << 8);
}

bool pci_msix_enabled(struct pci_device *device) {
    return msix_control(device) & MSIX_ENABLE;
}

/* With irq_lock held: send what is pending and no longer masked. */
static void msix_flush_vector(struct pci_device *device, unsigned vector, uint16_t control) {
    struct pci_msix *msix = &device->msix;
    uint64_t bit = 1ull << (vector & 63);
    const uint8_t *entry = msix->table + vector * MSIX_ENTRY_SIZE;
    if (!(msix->pending[vector / 64] & bit) || !(control & MSIX_ENABLE) || control & MSIX_FUNCTION_MASK ||
        entry[MSIX_ENTRY_CONTROL] & MSIX_ENTRY_MASKED)
        return;
    msix->pending[vector / 64] &= ~bit;
    uint64_t address;
    uint32_t data;
    memcpy(&address, entry, sizeof address);
    memcpy(&data, entry + 8, sizeof data);
    if (device->root)
        msi_send(&device->root->config.msi, address & ~3ull, data);
}

void pci_msix_notify(struct pci_device *device, unsigned vector) {
    if (vector >= device->msix.vectors)
        return;
    pthread_mutex_lock(&device->irq_lock);
    uint16_t control = msix_control(device);
    if (control & MSIX_ENABLE) {
        device->msix.pending[vector / 64] |= 1ull << (vector & 63);
        msix_flush_vector(device, vector, control);
    }
    pthread_mutex_unlock(&device->irq_lock);
}

/* With irq_lock held. */
static void intx_drive(struct pci_device *device) {
    struct pci_root *root = device->root;
    unsigned pin = device->config[PCI_INTERRUPT_PIN];
    if (!root || pin < 1 || pin > 4)
        return;
    bool disabled = device->config[PCI_COMMAND + 1] & (PCI_COMMAND_INTX_DISABLE >> 8);
    bool level = device->intx_asserted && !disabled && !(msix_control(device) & MSIX_ENABLE);
    if (level == device->intx_driven)
        return;
    device->intx_driven = level;
    unsigned wire = ((device->devfn >> 3) + pin - 1) & 3;
    pthread_mutex_lock(&root->intx_lock);
    unsigned before = root->intx_count[wire];
    root->intx_count[wire] = level ? before + 1 : before - 1;
    if ((before == 0) != (root->intx_count[wire] == 0))
        irq_line_set(&root->config.intx[wire], level);
    pthread_mutex_unlock(&root->intx_lock);
}

void pci_intx_set(struct pci_device *device, bool level) {
    pthread_mutex_lock(&device->irq_lock);
    device->intx_asserted = level;
    if (level)
        device->config[PCI_STATUS] |= STATUS_INTERRUPT;
    else
        device->config[PCI_STATUS] &= (uint8_t)~STATUS_INTERRUPT;
    intx_drive(device);
    pthread_mutex_unlock(&device->irq_lock);
}

void pci_interrupts_update(struct pci_device *device) {
    pthread_mutex_lock(&device->irq_lock);
    intx_drive(device);
    uint16_t control = msix_control(device);
    if (control & MSIX_ENABLE && !(control & MSIX_FUNCTION_MASK)) {
        for (unsigned i = 0; i < device->msix.vectors; i++)
            msix_flush_vector(device, i, control);
    }
    pthread_mutex_unlock(&device->irq_lock);
}

bool pci_bus_master(const struct pci_device *device) {
    return __atomic_load_n(&device->config[PCI_COMMAND], __ATOMIC_RELAXED) & PCI_COMMAND_MASTER;
}

/* True if [offset, offset + size) lies in the piece of length bytes at start. */
static bool within(uint64_t offset, unsigned size, uint64_t start, uint64_t length) {
    return offset >= start && offset - start < length && size <= length - (offset - start);
}

static bool msix_access(struct pci_bar *bar, uint64_t offset, unsigned size, bool write, uint64_t *value) {
    struct pci_device *device = bar->device;
    struct pci_msix *msix = &device->msix;
    if (!msix->capability || msix->bar != bar->index)
        return false;
    uint64_t pba_size = (msix->vectors + 63) / 64 * 8;
    if (within(offset, size, msix->table_offset, (uint64_t)msix->vectors * MSIX_ENTRY_SIZE)) {
        uint64_t at = offset - msix->table_offset;
        pthread_mutex_lock(&device->irq_lock);
        if (write) {
            memcpy(msix->table + at, value, size);
            uint64_t last = (at + size - 1) / MSIX_ENTRY_SIZE;
            for (uint64_t i = at / MSIX_ENTRY_SIZE; i <= last; i++)
                msix_flush_vector(device, (unsigned)i, msix_control(device));
        } else {
            memcpy(value, msix->table + at, size);
        }
        pthread_mutex_unlock(&device->irq_lock);
        return true;
    }
    if (within(offset, size, msix->pba_offset, pba_size)) {
        if (!write) {
            pthread_mutex_lock(&device->irq_lock);
            memcpy(value, (uint8_t *)msix->pending + (offset - msix->pba_offset), size);
            pthread_mutex_unlock(&device->irq_lock);
        }
        return true;
    }
    return false;
}

static bool access_size_valid(unsigned size) {
    return size == 1 || size == 2 || size == 4 || size == 8;
}

uint64_t pci_bar_read(struct pci_bar *bar, uint64_t offset, unsigned size) {
    if (!access_size_valid(size))
        return UINT64_MAX;
    uint64_t value = 0;
    if (!within(offset, size, 0, bar->size))
        return UINT64_MAX >> (64 - 8 * size);
    if (msix_access(bar, offset, size, false, &value))
        return value;
    const struct pci_device *device = bar->device;
    if (!device->ops || !device->ops->bar_read)
        return UINT64_MAX >> (64 - 8 * size);
    return device->ops->bar_read(device->context, bar->index, offset, size);
}

void pci_bar_write(struct pci_bar *bar, uint64_t offset, unsigned size, uint64_t value) {
    if (!access_size_valid(size) || !within(offset, size, 0, bar->size))
        return;
    if (msix_access(bar, offset, size, true, &value))
        return;
    const struct pci_device *device = bar->device;
    if (device->ops && device->ops->bar_write)
        device->ops->bar_write(device->context, bar->index, offset, size, value);
}
