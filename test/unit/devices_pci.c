/* PCI: configuration by ports and ECAM, BARs and their mapping, INTx, MSI-X. */
#include <string.h>

#include "devices/pci.h"
#include "devices_check.h"

static uint64_t bar_value;

static uint64_t bar_read(void *context, unsigned bar, uint64_t offset, unsigned size) {
    (void)context;
    (void)size;
    return bar << 16 | offset;
}
static void bar_write(void *context, unsigned bar, uint64_t offset, unsigned size, uint64_t value) {
    (void)context;
    (void)bar;
    (void)offset;
    (void)size;
    bar_value = value;
}
static unsigned resets;
static void reset(void *context) {
    (void)context;
    resets++;
}
static const struct pci_device_ops ops = {.bar_read = bar_read, .bar_write = bar_write, .reset = reset};

static unsigned mapped;
static bool map(void *context, struct pci_bar *bar, uint64_t address) {
    (void)context;
    if (address == PCI_UNMAPPED)
        mapped &= ~(1u << bar->index);
    else
        mapped |= 1u << bar->index;
    return true;
}

static unsigned messages;
static uint64_t message_address;
static uint32_t message_data;
static void send(void *context, uint64_t address, uint32_t data) {
    (void)context;
    messages++;
    message_address = address;
    message_data = data;
}

static struct pci_root *root;

static uint32_t conf(unsigned slot, unsigned offset, unsigned size) {
    pci_port_write(root, 0, 4, 0x80000000 | slot << 11 | (offset & 0xfc));
    return pci_port_read(root, 4 + (offset & 3), size);
}
static void conf_set(unsigned slot, unsigned offset, unsigned size, uint32_t value) {
    pci_ecam_write(root, slot << 15 | offset, size, value);
}

int main(void) {
    struct check_line lines[4] = {{0}};
    struct pci_root_config config = {.map = map, .msi = {.send = send}};
    for (unsigned i = 0; i < 4; i++)
        config.intx[i] = (struct irq_line){check_line_set, lines, i};
    root = pci_root_create(&config);
    struct pci_device device, twin;
    pci_device_init(&device, "test", &ops, NULL, 0x1af4, 0x1042, 0x018000, 1);
    pci_set_subsystem(&device, 0x1af4, 0x1100);
    pci_set_interrupt_pin(&device, 1);
    pci_bar_declare(&device, 0, PCI_BAR_IO, 0x20, false);
    pci_bar_declare(&device, 1, PCI_BAR_MEM32, 0x1000, false);
    pci_bar_declare(&device, 4, PCI_BAR_MEM64, 0x4000, true);
    CHECK_EQUAL(pci_msix_init(&device, 1, 0, 0x800, 4), 0);
    int vendor = pci_capability_add(&device, 9, 16);
    CHECK(vendor > 0);
    CHECK(pci_capability_add(&device, 9, 250) < 0);
    pci_device_init(&twin, "twin", &ops, NULL, 1, 2, 0x020000, 0);
    pci_set_interrupt_pin(&twin, 1);
    CHECK_EQUAL(pci_root_attach(root, &device, 3), 3);
    CHECK(pci_root_attach(root, &twin, 3) < 0);
    CHECK_EQUAL(pci_root_attach(root, &twin, 7), 7);

    CHECK_EQUAL(conf(0, 0, 4), 0x00081b36);
    CHECK_EQUAL(conf(1, 0, 4), UINT32_MAX);
    CHECK_EQUAL(conf(3, 0, 4), 0x10421af4);
    CHECK_EQUAL(conf(3, 2, 2), 0x1042);
    CHECK_EQUAL(conf(3, 0x0b, 1), 0x01);
    CHECK_EQUAL(pci_ecam_read(root, 3 << 15, 8), 0x0010000010421af4);
    CHECK_EQUAL(pci_ecam_read(root, 1 << 20, 4), UINT32_MAX);
    CHECK_EQUAL(conf(3, 0x34, 1), 0x40);
    CHECK_EQUAL(conf(3, 0x41, 1), (unsigned)vendor);
    /* BAR sizing and mapping. */
    conf_set(3, 0x10, 4, UINT32_MAX);
    CHECK_EQUAL(conf(3, 0x10, 4), 0xffffffe1);
    conf_set(3, 0x14, 4, UINT32_MAX);
    CHECK_EQUAL(conf(3, 0x14, 4), 0xfffff000);
    conf_set(3, 0x20, 4, UINT32_MAX);
    conf_set(3, 0x24, 4, UINT32_MAX);
    CHECK_EQUAL(conf(3, 0x20, 4), 0xffffc00c);
    CHECK_EQUAL(conf(3, 0x24, 4), UINT32_MAX);
    CHECK_EQUAL(mapped, 0);
    struct pci_windows windows = {.io_base = 0x1000,
                                  .io_end = 0x10000,
                                  .mem32_base = 0xc0000000,
                                  .mem32_end = 0xe0000000,
                                  .intx_irqs = {10, 11, 10, 11}};
    CHECK_EQUAL(pci_root_assign(root, &windows), 0);
    CHECK_EQUAL(mapped, 0x13);
    CHECK_EQUAL(device.bars[0].mapped, 0x1000);
    CHECK_EQUAL(device.bars[1].mapped, 0xc0000000);
    CHECK_EQUAL(device.bars[4].mapped, 0xc0004000);
    CHECK_EQUAL(conf(3, 0x3c, 1), 11);
    conf_set(3, 4, 2, PCI_COMMAND_IO);
    CHECK_EQUAL(mapped, 1);
    conf_set(3, 4, 2, 7);
    CHECK_EQUAL(mapped, 0x13);
    CHECK(pci_bus_master(&device));
    conf_set(3, 0x14, 4, 0xd0000000);
    CHECK_EQUAL(device.bars[1].mapped, 0xd0000000);
    CHECK_EQUAL(pci_bar_read(&device.bars[4], 0x123, 1), 4 << 16 | 0x123);
    CHECK_EQUAL(pci_bar_read(&device.bars[4], 0x3ffe, 4), UINT32_MAX);
    pci_bar_write(&device.bars[4], 0, 4, 77);
    CHECK_EQUAL(bar_value, 77);
    /* INTx: slots 3 and 7 share wire 3. */
    pci_intx_set(&device, true);
    CHECK(lines[3].level);
    CHECK(conf(3, 6, 2) & 8);
    pci_intx_set(&twin, true);
    pci_intx_set(&device, false);
    CHECK(lines[3].level);
    conf_set(7, 4, 2, PCI_COMMAND_INTX_DISABLE);
    CHECK(!lines[3].level);
    conf_set(7, 4, 2, 0);
    CHECK(lines[3].level);
    pci_intx_set(&twin, false);
    CHECK(!lines[3].level);
    /* MSI-X. */
    pci_msix_notify(&device, 1);
    CHECK_EQUAL(messages, 0);
    struct pci_bar *bar = &device.bars[1];
    CHECK_EQUAL(pci_bar_read(bar, 0x1c, 4), 1);
    pci_bar_write(bar, 0x10, 4, 0xfee01000);
    pci_bar_write(bar, 0x18, 4, 0x4055);
    conf_set(3, 0x42, 2, 0x8000);
    CHECK(pci_msix_enabled(&device));
    CHECK_EQUAL(conf(3, 0x42, 2), 0x8003);
    pci_msix_notify(&device, 1);
    CHECK_EQUAL(messages, 0);
    CHECK_EQUAL(pci_bar_read(bar, 0x800, 8), 2);
    pci_bar_write(bar, 0x1c, 4, 0);
    CHECK_EQUAL(messages, 1);
    CHECK_EQUAL(message_address, 0xfee01000);
    CHECK_EQUAL(message_data, 0x4055);
    CHECK_EQUAL(pci_bar_read(bar, 0x800, 8), 0);
    conf_set(3, 0x42, 2, 0xc000);
    pci_msix_notify(&device, 1);
    CHECK_EQUAL(messages, 1);
    conf_set(3, 0x42, 2, 0x8000);
    CHECK_EQUAL(messages, 2);
    pci_msix_notify(&device, 4);
    pci_intx_set(&device, true);
    CHECK(!lines[3].level);
    pci_root_reset(root);
    CHECK_EQUAL(resets, 2);
    CHECK_EQUAL(mapped, 0);
    CHECK(!pci_msix_enabled(&device));
    CHECK_EQUAL(conf(3, 4, 2), 0);
    pci_root_destroy(root);
    pci_device_destroy(&device);
    pci_device_destroy(&twin);
    return check_result();
}
