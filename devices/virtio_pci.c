/* virtio's PCI transport (virtio 1.2, clause 4.1).
 *
 * BAR 0, 32 KiB of memory:
 *     0x0000 common configuration      0x1000 ISR status       0x2000 device configuration
 *     0x3000 notifications, 4 bytes a queue                    0x4000 MSI-X table, 0x6000 PBA
 */
#include "devices/virtio_pci.h"

#include <string.h>

enum {
    VIRTIO_PCI_VENDOR = 0x1af4,
    VIRTIO_PCI_DEVICE_BASE = 0x1040,
    VIRTIO_PCI_REVISION = 1,

    BAR_INDEX = 0,
    BAR_COMMON = 0x0000,
    BAR_ISR = 0x1000,
    BAR_DEVICE = 0x2000,
    BAR_NOTIFY = 0x3000,
    BAR_MSIX_TABLE = 0x4000,
    BAR_MSIX_PBA = 0x6000,
    BAR_SIZE = 0x8000,
    REGION_SIZE = 0x1000,
    NOTIFY_STRIDE = 4,

    COMMON_CONFIG_VECTOR = 16,
    COMMON_QUEUE_VECTOR = 26,
};

enum capability {
    CAPABILITY_VENDOR = 0x09, /* PCI capability ID */
    CAPABILITY_COMMON = 1,
    CAPABILITY_NOTIFY = 2,
    CAPABILITY_ISR = 3,
    CAPABILITY_DEVICE = 4,
    CAPABILITY_WINDOW = 5,
    /* Fields of struct virtio_pci_cap. */
    FIELD_LENGTH = 2,
    FIELD_TYPE = 3,
    FIELD_BAR = 4,
    FIELD_OFFSET = 8,
    FIELD_SIZE = 12,
    FIELD_EXTRA = 16, /* the notification multiplier, or the window's data */
    CAPABILITY_BASIC = 16,
    CAPABILITY_EXTENDED = 20,
};

static void transport_interrupt(void *context, uint16_t vector, uint8_t isr) {
    struct virtio_pci *transport = context;
    if (pci_msix_enabled(&transport->pci)) {
        if (vector != VIRTIO_NO_VECTOR)
            pci_msix_notify(&transport->pci, vector);
        return;
    }
    pthread_mutex_lock(&transport->isr_lock);
    transport->isr |= isr;
    pci_intx_set(&transport->pci, true);
    pthread_mutex_unlock(&transport->isr_lock);
}

static void isr_clear(struct virtio_pci *transport, uint8_t *before) {
    pthread_mutex_lock(&transport->isr_lock);
    *before = transport->isr;
    transport->isr = 0;
    pci_intx_set(&transport->pci, false);
    pthread_mutex_unlock(&transport->isr_lock);
}

static uint64_t transport_read(void *context, unsigned bar, uint64_t offset, unsigned size) {
    struct virtio_pci *transport = context;
    uint64_t in_region = offset & (REGION_SIZE - 1);
    uint8_t isr;
    (void)bar;
    switch (offset & ~(uint64_t)(REGION_SIZE - 1)) {
    case BAR_COMMON:
        return virtio_device_read(transport->device, in_region, size);
    case BAR_ISR:
        if (in_region)
            return 0;
        isr_clear(transport, &isr);
        return isr;
    case BAR_DEVICE:
        return virtio_device_config_read(transport->device, in_region, size);
    default:
        return 0;
    }
}

static void transport_write(void *context, unsigned bar, uint64_t offset, unsigned size, uint64_t value) {
    struct virtio_pci *transport = context;
    uint64_t in_region = offset & (REGION_SIZE - 1);
    (void)bar;
    switch (offset & ~(uint64_t)(REGION_SIZE - 1)) {
    case BAR_COMMON:
        /* A vector that the function does not have reads back as none (clause 4.1.5.1.2). */
        if (size == 2 && (in_region == COMMON_CONFIG_VECTOR || in_region == COMMON_QUEUE_VECTOR) &&
            (uint16_t)value >= transport->pci.msix.vectors)
            value = VIRTIO_NO_VECTOR;
        virtio_device_write(transport->device, in_region, size, value);
        break;
    case BAR_DEVICE:
        virtio_device_config_write(transport->device, in_region, size, value);
        break;
    case BAR_NOTIFY:
        virtio_device_notify(transport->device, (unsigned)(in_region / NOTIFY_STRIDE));
        break;
    default:
        break;
    }
}

static bool touches_window_data(const struct virtio_pci *transport, unsigned offset, unsigned size) {
    unsigned data = transport->window + FIELD_EXTRA;
    return offset < data + 4 && offset + size > data;
}

/* The BAR access that the window describes now, if it is a valid one (clause 4.1.4.9). */
static bool window_target(const struct virtio_pci *transport, uint64_t *offset, unsigned *size) {
    const struct pci_device *pci = &transport->pci;
    *offset = pci_config_get32(pci, transport->window + FIELD_OFFSET);
    uint32_t length = pci_config_get32(pci, transport->window + FIELD_SIZE);
    *size = length;
    return pci->config[transport->window + FIELD_BAR] == BAR_INDEX &&
           (length == 1 || length == 2 || length == 4) && !(*offset & (length - 1)) && *offset < BAR_SIZE;
}

static void transport_config_read(void *context, unsigned offset, unsigned size) {
    struct virtio_pci *transport = context;
    uint64_t target;
    unsigned length;
    if (touches_window_data(transport, offset, size) && window_target(transport, &target, &length))
        pci_config_set32(&transport->pci, transport->window + FIELD_EXTRA,
                         (uint32_t)pci_bar_read(&transport->pci.bars[BAR_INDEX], target, length));
}

static void transport_config_written(void *context, unsigned offset, unsigned size) {
    struct virtio_pci *transport = context;
    uint64_t target;
    unsigned length;
    if (touches_window_data(transport, offset, size) && window_target(transport, &target, &length))
        pci_bar_write(&transport->pci.bars[BAR_INDEX], target, length,
                      pci_config_get32(&transport->pci, transport->window + FIELD_EXTRA));
}

static void transport_reset(void *context) {
    struct virtio_pci *transport = context;
    uint8_t ignored;
    virtio_device_reset(transport->device);
    isr_clear(transport, &ignored);
}

static const struct pci_device_ops transport_ops = {
    .bar_read = transport_read,
    .bar_write = transport_write,
    .config_read = transport_config_read,
    .config_written = transport_config_written,
    .reset = transport_reset,
};

static int add_capability(struct pci_device *pci, uint8_t type, uint32_t offset, uint32_t size) {
    unsigned length =
        type == CAPABILITY_NOTIFY || type == CAPABILITY_WINDOW ? CAPABILITY_EXTENDED : CAPABILITY_BASIC;
    int at = pci_capability_add(pci, CAPABILITY_VENDOR, length);
    if (at < 0)
        return at;
    pci->config[at + FIELD_LENGTH] = (uint8_t)length;
    pci->config[at + FIELD_TYPE] = type;
    pci->config[at + FIELD_BAR] = BAR_INDEX;
    pci_config_set32(pci, (unsigned)at + FIELD_OFFSET, offset);
    pci_config_set32(pci, (unsigned)at + FIELD_SIZE, size);
    if (type == CAPABILITY_NOTIFY)
        pci_config_set32(pci, (unsigned)at + FIELD_EXTRA, NOTIFY_STRIDE);
    return at;
}

int virtio_pci_init(struct virtio_pci *transport, const char *name, struct virtio_device *device,
                    uint32_t class_code) {
    static const struct {
        uint8_t type;
        uint32_t offset, size;
    } structures[] = {
        {CAPABILITY_COMMON, BAR_COMMON, 64},
        {CAPABILITY_ISR, BAR_ISR, 1},
        {CAPABILITY_DEVICE, BAR_DEVICE, REGION_SIZE},
        {CAPABILITY_NOTIFY, BAR_NOTIFY, REGION_SIZE},
        {CAPABILITY_WINDOW, 0, 0},
    };
    struct pci_device *pci = &transport->pci;
    int at = 0;
    memset(transport, 0, sizeof *transport);
    transport->device = device;
    pci_device_init(pci, name, &transport_ops, transport, VIRTIO_PCI_VENDOR,
                    (uint16_t)(VIRTIO_PCI_DEVICE_BASE + device->id), class_code, VIRTIO_PCI_REVISION);
    pci_set_subsystem(pci, VIRTIO_PCI_VENDOR, (uint16_t)(VIRTIO_PCI_DEVICE_BASE + device->id));
    pci_set_interrupt_pin(pci, 1);
    pci_bar_declare(pci, BAR_INDEX, PCI_BAR_MEM32, BAR_SIZE, false);
    for (unsigned i = 0; i < ARRAY_SIZE(structures); i++) {
        at = add_capability(pci, structures[i].type, structures[i].offset, structures[i].size);
        if (at < 0)
            goto fail;
    }
    transport->window = (unsigned)at;
    pci->write_mask[at + FIELD_BAR] = 0xff;
    memset(pci->write_mask + at + FIELD_OFFSET, 0xff, 12);
    at = pci_msix_init(pci, BAR_INDEX, BAR_MSIX_TABLE, BAR_MSIX_PBA, device->queue_count + 1);
    if (at)
        goto fail;
    pthread_mutex_init(&transport->isr_lock, NULL);
    device->transport = (struct virtio_transport){transport_interrupt, transport};
    return 0;
fail:
    pci_device_destroy(pci);
    return at;
}

void virtio_pci_destroy(struct virtio_pci *transport) {
    pthread_mutex_destroy(&transport->isr_lock);
    pci_device_destroy(&transport->pci);
}
