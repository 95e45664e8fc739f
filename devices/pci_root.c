/* The PCI root: configuration mechanism 1, ECAM, the mapping of BARs and the assignment that firmware would
 * do.
 *
 * Every configuration access runs under the root's mutex, and with it each change of what a BAR decodes; the
 * board's map callback is thus never entered twice at once. */
#include "devices/pci_private.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

/* The generic PCI Express host bridge: no system has quirks for it. */
#define HOST_BRIDGE_VENDOR 0x1b36
#define HOST_BRIDGE_DEVICE 0x0008
#define CONFIG_ENABLE 0x80000000u

static const struct pci_device_ops host_bridge_ops = {0};

struct pci_root *pci_root_create(const struct pci_root_config *config) {
    struct pci_root *root = calloc(1, sizeof *root);
    if (!root)
        return NULL;
    root->config = *config;
    pthread_mutex_init(&root->lock, NULL);
    pthread_mutex_init(&root->intx_lock, NULL);
    pci_device_init(&root->host_bridge, "host bridge", &host_bridge_ops, root, HOST_BRIDGE_VENDOR,
                    HOST_BRIDGE_DEVICE, 0x060000, 0);
    root->host_bridge.root = root;
    memcpy(root->host_bridge.power_on, root->host_bridge.config, sizeof root->host_bridge.power_on);
    root->functions[0] = &root->host_bridge;
    return root;
}

void pci_root_destroy(struct pci_root *root) {
    if (!root)
        return;
    pci_device_destroy(&root->host_bridge);
    pthread_mutex_destroy(&root->intx_lock);
    pthread_mutex_destroy(&root->lock);
    free(root);
}

int pci_root_attach(struct pci_root *root, struct pci_device *device, unsigned slot) {
    int result = -ENOSPC;
    pthread_mutex_lock(&root->lock);
    if (slot >= PCI_SLOTS)
        goto out;
    if (slot && root->functions[slot << 3]) {
        result = -EBUSY;
        goto out;
    }
    for (unsigned i = 1; i < PCI_SLOTS && !slot; i++) {
        if (!root->functions[i << 3])
            slot = i;
    }
    if (!slot)
        goto out;
    device->root = root;
    device->devfn = slot << 3;
    memcpy(device->power_on, device->config, sizeof device->power_on);
    root->functions[device->devfn] = device;
    result = (int)slot;
out:
    pthread_mutex_unlock(&root->lock);
    return result;
}

/* Where the BAR's register says that it lies, or PCI_UNMAPPED while decoding is off. */
static uint64_t bar_address(const struct pci_device *device, const struct pci_bar *bar) {
    unsigned offset = PCI_BAR0 + 4 * bar->index;
    uint16_t command = pci_config_get16(device, PCI_COMMAND);
    if (!(command & (bar->kind == PCI_BAR_IO ? PCI_COMMAND_IO : PCI_COMMAND_MEMORY)))
        return PCI_UNMAPPED;
    uint64_t address = pci_config_get32(device, offset);
    if (bar->kind == PCI_BAR_MEM64)
        address |= (uint64_t)pci_config_get32(device, offset + 4) << 32;
    address &= ~(bar->size - 1);
    if (bar->kind == PCI_BAR_IO)
        return address > 0xffff || bar->size > 0x10000 - address ? PCI_UNMAPPED : address;
    /* The end must not wrap; sizing writes all ones. */
    if (address + bar->size - 1 < address || (bar->kind == PCI_BAR_MEM32 && address + bar->size > 1ull << 32))
        return PCI_UNMAPPED;
    return address;
}

static void bar_map(struct pci_root *root, struct pci_bar *bar, uint64_t address) {
    if (address == bar->mapped)
        return;
    if (bar->mapped != PCI_UNMAPPED && root->config.map) {
        bool ignored = root->config.map(root->config.context, bar, PCI_UNMAPPED);
        (void)ignored;
    }
    bar->mapped = PCI_UNMAPPED;
    if (address != PCI_UNMAPPED && root->config.map && root->config.map(root->config.context, bar, address))
        bar->mapped = address;
}

static void bars_update(struct pci_root *root, struct pci_device *device) {
    for (unsigned i = 0; i < PCI_BAR_COUNT; i++) {
        struct pci_bar *bar = &device->bars[i];
        if (bar->kind != PCI_BAR_NONE)
            bar_map(root, bar, bar_address(device, bar));
    }
}

/* The device and offset of an access that lies within one function, or NULL. */
static struct pci_device *function_at(struct pci_root *root, uint32_t bdf, unsigned offset, unsigned size) {
    if (bdf >= PCI_FUNCTIONS || offset > PCI_CONFIG_SIZE - size)
        return NULL;
    return root->functions[bdf];
}

static uint32_t config_read(struct pci_root *root, uint32_t bdf, unsigned offset, unsigned size) {
    struct pci_device *device = function_at(root, bdf, offset, size);
    if (!device)
        return UINT32_MAX >> (32 - 8 * size);
    if (device->ops->config_read)
        device->ops->config_read(device->context, offset, size);
    uint32_t value = 0;
    pthread_mutex_lock(&device->irq_lock);
    memcpy(&value, device->config + offset, size);
    pthread_mutex_unlock(&device->irq_lock);
    return value;
}

static void config_write(struct pci_root *root, uint32_t bdf, unsigned offset, unsigned size,
                         uint32_t value) {
    struct pci_device *device = function_at(root, bdf, offset, size);
    if (!device)
        return;
    pthread_mutex_lock(&device->irq_lock);
    for (unsigned i = 0; i < size; i++) {
        uint8_t byte = (uint8_t)(value >> (8 * i));
        uint8_t mask = device->write_mask[offset + i];
        uint8_t old = device->config[offset + i];
        uint8_t new = (uint8_t)((old & ~mask) | (byte & mask));
        new &= (uint8_t) ~(byte & device->w1c_mask[offset + i]);
        __atomic_store_n(&device->config[offset + i], new, __ATOMIC_RELEASE);
    }
    pthread_mutex_unlock(&device->irq_lock);
    if (offset < PCI_STATUS || (offset < PCI_BAR0 + 4 * PCI_BAR_COUNT && offset + size > PCI_BAR0))
        bars_update(root, device);
    unsigned msix = device->msix.capability;
    if (offset < PCI_STATUS || (msix && offset < msix + 4 && offset + size > msix + 2))
        pci_interrupts_update(device);
    if (device->ops->config_written)
        device->ops->config_written(device->context, offset, size);
}

static bool config_size_valid(unsigned size) {
    return size == 1 || size == 2 || size == 4;
}

uint32_t pci_port_read(struct pci_root *root, unsigned offset, unsigned size) {
    if (!config_size_valid(size) || offset > 8 - size)
        return UINT32_MAX;
    uint32_t value = UINT32_MAX >> (32 - 8 * size);
    pthread_mutex_lock(&root->lock);
    if (offset == 0 && size == 4)
        value = root->address;
    else if (offset >= 4 && root->address & CONFIG_ENABLE)
        value = config_read(root, root->address >> 8 & 0xffff, (root->address & 0xfc) + (offset & 3), size);
    pthread_mutex_unlock(&root->lock);
    return value;
}

void pci_port_write(struct pci_root *root, unsigned offset, unsigned size, uint32_t value) {
    if (!config_size_valid(size) || offset > 8 - size)
        return;
    pthread_mutex_lock(&root->lock);
    if (offset == 0 && size == 4)
        root->address = value & (CONFIG_ENABLE | 0x00fffffc);
    else if (offset >= 4 && root->address & CONFIG_ENABLE)
        config_write(root, root->address >> 8 & 0xffff, (root->address & 0xfc) + (offset & 3), size, value);
    pthread_mutex_unlock(&root->lock);
}

uint64_t pci_ecam_read(struct pci_root *root, uint64_t offset, unsigned size) {
    if (size == 8)
        return pci_ecam_read(root, offset, 4) | pci_ecam_read(root, offset + 4, 4) << 32;
    if (!config_size_valid(size))
        return UINT64_MAX;
    pthread_mutex_lock(&root->lock);
    uint32_t value = config_read(root, (uint32_t)(offset >> 12), offset & 0xfff, size);
    pthread_mutex_unlock(&root->lock);
    return value;
}

void pci_ecam_write(struct pci_root *root, uint64_t offset, unsigned size, uint64_t value) {
    if (size == 8) {
        pci_ecam_write(root, offset, 4, value);
        pci_ecam_write(root, offset + 4, 4, value >> 32);
        return;
    }
    if (!config_size_valid(size))
        return;
    pthread_mutex_lock(&root->lock);
    config_write(root, (uint32_t)(offset >> 12), offset & 0xfff, size, (uint32_t)value);
    pthread_mutex_unlock(&root->lock);
}

void pci_root_reset(struct pci_root *root) {
    pthread_mutex_lock(&root->lock);
    root->address = 0;
    for (unsigned i = 0; i < PCI_FUNCTIONS; i++) {
        struct pci_device *device = root->functions[i];
        if (!device)
            continue;
        if (device->ops->reset)
            device->ops->reset(device->context);
        pci_intx_set(device, false);
        pthread_mutex_lock(&device->irq_lock);
        memcpy(device->config, device->power_on, sizeof device->power_on);
        pthread_mutex_unlock(&device->irq_lock);
        pci_msix_reset(device);
        bars_update(root, device);
    }
    pthread_mutex_unlock(&root->lock);
}

struct window {
    uint64_t next, end;
};

static int window_take(struct window *window, uint64_t size, uint64_t *address) {
    uint64_t start = align_up(window->next, size);
    if (start < window->next || start >= window->end || window->end - start < size)
        return -ENOSPC;
    *address = start;
    window->next = start + size;
    return 0;
}

static int bar_assign(struct pci_device *device, struct pci_bar *bar, struct window *io, struct window *mem32,
                      struct window *mem64) {
    unsigned offset = PCI_BAR0 + 4 * bar->index;
    uint64_t address = 0;
    int result;
    if (bar->kind == PCI_BAR_IO) {
        result = window_take(io, bar->size, &address);
    } else {
        /* Small BARs go below 4 GiB even if they could go higher: 32-bit guests without PAE reach them there.
         */
        bool high = bar->kind == PCI_BAR_MEM64 && bar->size > 64 * MIB;
        result = high ? -ENOSPC : window_take(mem32, bar->size, &address);
        if (result && bar->kind == PCI_BAR_MEM64)
            result = window_take(mem64, bar->size, &address);
    }
    if (result)
        return result;
    uint32_t type = pci_config_get32(device, offset) & (bar->kind == PCI_BAR_IO ? 3 : 15);
    pci_config_set32(device, offset, (uint32_t)address | type);
    if (bar->kind == PCI_BAR_MEM64)
        pci_config_set32(device, offset + 4, (uint32_t)(address >> 32));
    return 0;
}

int pci_root_assign(struct pci_root *root, const struct pci_windows *windows) {
    struct window io = {windows->io_base, windows->io_end};
    struct window mem32 = {windows->mem32_base, windows->mem32_end};
    struct window mem64 = {windows->mem64_base, windows->mem64_end};
    int result = 0;
    pthread_mutex_lock(&root->lock);
    for (unsigned i = 0; i < PCI_FUNCTIONS && !result; i++) {
        struct pci_device *device = root->functions[i];
        if (!device)
            continue;
        uint8_t command = 0;
        for (unsigned j = 0; j < PCI_BAR_COUNT && !result; j++) {
            struct pci_bar *bar = &device->bars[j];
            if (bar->kind == PCI_BAR_NONE)
                continue;
            result = bar_assign(device, bar, &io, &mem32, &mem64);
            command |= bar->kind == PCI_BAR_IO ? PCI_COMMAND_IO : PCI_COMMAND_MEMORY;
        }
        unsigned pin = device->config[PCI_INTERRUPT_PIN];
        if (pin)
            device->config[PCI_INTERRUPT_LINE] = windows->intx_irqs[((i >> 3) + pin - 1) & 3];
        device->config[PCI_COMMAND] |= command;
        bars_update(root, device);
    }
    pthread_mutex_unlock(&root->lock);
    return result;
}
