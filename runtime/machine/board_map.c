/* The board's address maps: one small adapter per device between a bus and its registers, and a table of who
 * sits where. Wide accesses to byte-wide devices are split into bytes, as the ISA bus does. */
#include <errno.h>
#include <string.h>

#include "machine/board_private.h"

static uint64_t byte_device_read(void *context, uint64_t offset, unsigned size) {
    const struct board_byte_port *port = context;
    uint64_t value = 0;
    for (unsigned i = 0; i < size; i++)
        value |= (uint64_t)port->device->read(port->board, (unsigned)offset + i) << (8 * i);
    return value;
}

static void byte_device_write(void *context, uint64_t offset, unsigned size, uint64_t value) {
    const struct board_byte_port *port = context;
    for (unsigned i = 0; i < size; i++)
        port->device->write(port->board, (unsigned)offset + i, (uint8_t)(value >> (8 * i)));
}

static const struct bus_ops byte_device_ops = {byte_device_read, byte_device_write};

static uint8_t pic_read(struct board *board, unsigned offset) {
    return i8259_read(board->pic, 0, offset);
}
static void pic_write(struct board *board, unsigned offset, uint8_t value) {
    i8259_write(board->pic, 0, offset, value);
}
static uint8_t slave_pic_read(struct board *board, unsigned offset) {
    return i8259_read(board->pic, 1, offset);
}
static void slave_pic_write(struct board *board, unsigned offset, uint8_t value) {
    i8259_write(board->pic, 1, offset, value);
}
static uint8_t elcr_read(struct board *board, unsigned offset) {
    return i8259_elcr_read(board->pic, offset);
}
static void elcr_write(struct board *board, unsigned offset, uint8_t value) {
    i8259_elcr_write(board->pic, offset, value);
}
static uint8_t pit_read(struct board *board, unsigned offset) {
    return i8254_read(board->pit, offset);
}
static void pit_write(struct board *board, unsigned offset, uint8_t value) {
    i8254_write(board->pit, offset, value);
}
static uint8_t port61_read(struct board *board, unsigned offset) {
    (void)offset;
    return i8254_port61_read(board->pit);
}
static void port61_write(struct board *board, unsigned offset, uint8_t value) {
    (void)offset;
    i8254_port61_write(board->pit, value);
}
static uint8_t kbc_data_read(struct board *board, unsigned offset) {
    (void)offset;
    return i8042_read(board->kbc, 0);
}
static void kbc_data_write(struct board *board, unsigned offset, uint8_t value) {
    (void)offset;
    i8042_write(board->kbc, 0, value);
}
static uint8_t kbc_command_read(struct board *board, unsigned offset) {
    (void)offset;
    return i8042_read(board->kbc, 1);
}
static void kbc_command_write(struct board *board, unsigned offset, uint8_t value) {
    (void)offset;
    i8042_write(board->kbc, 1, value);
}
static uint8_t rtc_read(struct board *board, unsigned offset) {
    return mc146818_read(board->rtc, offset);
}
static void rtc_write(struct board *board, unsigned offset, uint8_t value) {
    mc146818_write(board->rtc, offset, value);
}
static uint8_t post_read(struct board *board, unsigned offset) {
    (void)offset;
    return post_code_read(&board->ports);
}
static void post_write(struct board *board, unsigned offset, uint8_t value) {
    (void)offset;
    post_code_write(&board->ports, value);
}
static uint8_t port92_read(struct board *board, unsigned offset) {
    (void)offset;
    return control_a_read(&board->ports);
}
static void port92_write(struct board *board, unsigned offset, uint8_t value) {
    (void)offset;
    control_a_write(&board->ports, value);
}
static uint8_t debug_read(struct board *board, unsigned offset) {
    (void)offset;
    return debug_console_read(&board->ports);
}
static void debug_write(struct board *board, unsigned offset, uint8_t value) {
    (void)offset;
    debug_console_write(&board->ports, value);
}
static uint8_t ferr_read(struct board *board, unsigned offset) {
    (void)board;
    (void)offset;
    return 0xff;
}
/* Both of 0xF0 and 0xF1 (the coprocessor's reset) clear the latch. */
static void ferr_write(struct board *board, unsigned offset, uint8_t value) {
    (void)offset;
    (void)value;
    board_ferr(board, false);
}
static uint8_t com1_read(struct board *board, unsigned offset) {
    return uart_read(board->serial[0].uart, offset);
}
static void com1_write(struct board *board, unsigned offset, uint8_t value) {
    uart_write(board->serial[0].uart, offset, value);
}
static uint8_t com2_read(struct board *board, unsigned offset) {
    return uart_read(board->serial[1].uart, offset);
}
static void com2_write(struct board *board, unsigned offset, uint8_t value) {
    uart_write(board->serial[1].uart, offset, value);
}

static const struct board_byte_device byte_devices[] = {
    {0x20, 2, pic_read, pic_write},
    {0x40, 4, pit_read, pit_write},
    {0x60, 1, kbc_data_read, kbc_data_write},
    {0x61, 1, port61_read, port61_write},
    {0x64, 1, kbc_command_read, kbc_command_write},
    {0x70, 2, rtc_read, rtc_write},
    {0x80, 1, post_read, post_write},
    {0x92, 1, port92_read, port92_write},
    {0xa0, 2, slave_pic_read, slave_pic_write},
    {0xe9, 1, debug_read, debug_write},
    {0xf0, 2, ferr_read, ferr_write},
    {0x3f8, 8, com1_read, com1_write},
    {0x4d0, 2, elcr_read, elcr_write},
    {0x2f8, 8, com2_read, com2_write}, /* last: optional */
};
_Static_assert(ARRAY_SIZE(byte_devices) <= BOARD_BYTE_PORTS_MAX, "room for every byte-wide device");

/* Ports 0xCF8 to 0xCFF: PCI configuration, with the reset control register in its midst. */
static uint64_t pci_ports_read(void *context, uint64_t offset, unsigned size) {
    struct board *board = context;
    if (offset == 1 && size == 1)
        return reset_control_read(&board->ports);
    return pci_port_read(board->pci, (unsigned)offset, size);
}
static void pci_ports_write(void *context, uint64_t offset, unsigned size, uint64_t value) {
    struct board *board = context;
    if (offset == 1 && size == 1)
        reset_control_write(&board->ports, (uint8_t)value);
    else
        pci_port_write(board->pci, (unsigned)offset, size, (uint32_t)value);
}
static const struct bus_ops pci_ports_ops = {pci_ports_read, pci_ports_write};

static uint64_t pm_read(void *context, uint64_t offset, unsigned size) {
    struct board *board = context;
    return acpi_pm_read(board->pm, (unsigned)offset, size);
}
static void pm_write(void *context, uint64_t offset, unsigned size, uint64_t value) {
    struct board *board = context;
    acpi_pm_write(board->pm, (unsigned)offset, size, (uint32_t)value);
}
static const struct bus_ops pm_ops = {pm_read, pm_write};

static uint64_t exit_read(void *context, uint64_t offset, unsigned size) {
    (void)context;
    (void)offset;
    (void)size;
    return 0;
}
static void exit_write(void *context, uint64_t offset, unsigned size, uint64_t value) {
    struct board *board = context;
    (void)offset;
    (void)size;
    debug_exit_write(&board->ports, (uint32_t)value);
}
static uint64_t fw_cfg_bus_read(void *context, uint64_t offset, unsigned size) {
    return fw_cfg_read(context, (unsigned)offset, size);
}
static void fw_cfg_bus_write(void *context, uint64_t offset, unsigned size, uint64_t value) {
    fw_cfg_write(context, (unsigned)offset, size, value);
}
static const struct bus_ops fw_cfg_ops = {fw_cfg_bus_read, fw_cfg_bus_write};

static uint64_t scratch_read(void *context, uint64_t offset, unsigned size) {
    return test_bench_scratch_read(context, (unsigned)offset, size);
}
static void scratch_write(void *context, uint64_t offset, unsigned size, uint64_t value) {
    test_bench_scratch_write(context, (unsigned)offset, size, value);
}
static uint64_t line_read(void *context, uint64_t offset, unsigned size) {
    (void)context;
    (void)offset;
    (void)size;
    return UINT64_MAX;
}
static void line_write(void *context, uint64_t offset, unsigned size, uint64_t value) {
    (void)size;
    test_bench_line_write(context, (unsigned)offset, value);
}
static uint64_t bench_memory_read(void *context, uint64_t offset, unsigned size) {
    return test_bench_memory_read(context, offset, size);
}
static void bench_memory_write(void *context, uint64_t offset, unsigned size, uint64_t value) {
    test_bench_memory_write(context, offset, size, value);
}
static const struct bus_ops scratch_ops = {scratch_read, scratch_write};
static const struct bus_ops line_ops = {line_read, line_write};
static const struct bus_ops bench_memory_ops = {bench_memory_read, bench_memory_write};

static const struct bus_ops exit_ops = {exit_read, exit_write};

static int map_test_bench(struct board *board) {
    struct test_bench *bench = board->bench;
    uint64_t exit_port = board->config.debug_exit_port;
    if (exit_port > 0xfffc)
        return -ERANGE;
    int result = bus_add(&board->pio, exit_port, 4, &exit_ops, board);
    /* The debug-exit port may be anywhere, here too; then it has precedence. */
    bool apart = exit_port + 4 <= TEST_BENCH_SCRATCH_PORT ||
                 exit_port >= TEST_BENCH_SCRATCH_PORT + TEST_BENCH_SCRATCH_PORTS;
    if (!result && apart)
        result = bus_add(&board->pio, TEST_BENCH_SCRATCH_PORT, TEST_BENCH_SCRATCH_PORTS, &scratch_ops, bench);
    if (!result)
        result = bus_add(&board->pio, TEST_BENCH_LINE_PORT, TEST_BENCH_LINES, &line_ops, bench);
    if (!result)
        result = bus_add(&board->mmio, TEST_BENCH_MEMORY, TEST_BENCH_MEMORY_SIZE, &bench_memory_ops, bench);
    return result;
}

static uint64_t ioapic_bus_read(void *context, uint64_t offset, unsigned size) {
    struct board *board = context;
    return ioapic_read(board->ioapic, offset, size);
}
static void ioapic_bus_write(void *context, uint64_t offset, unsigned size, uint64_t value) {
    struct board *board = context;
    ioapic_write(board->ioapic, offset, size, value);
}
static const struct bus_ops ioapic_ops = {ioapic_bus_read, ioapic_bus_write};

static uint64_t hpet_bus_read(void *context, uint64_t offset, unsigned size) {
    struct board *board = context;
    return hpet_read(board->hpet, offset, size);
}
static void hpet_bus_write(void *context, uint64_t offset, unsigned size, uint64_t value) {
    struct board *board = context;
    hpet_write(board->hpet, offset, size, value);
}
static const struct bus_ops hpet_bus_ops = {hpet_bus_read, hpet_bus_write};

static uint64_t ecam_read(void *context, uint64_t offset, unsigned size) {
    struct board *board = context;
    return pci_ecam_read(board->pci, offset, size);
}
static void ecam_write(void *context, uint64_t offset, unsigned size, uint64_t value) {
    struct board *board = context;
    pci_ecam_write(board->pci, offset, size, value);
}
static const struct bus_ops ecam_ops = {ecam_read, ecam_write};

static uint64_t bar_bus_read(void *context, uint64_t offset, unsigned size) {
    return pci_bar_read(context, offset, size);
}
static void bar_bus_write(void *context, uint64_t offset, unsigned size, uint64_t value) {
    pci_bar_write(context, offset, size, value);
}
static const struct bus_ops bar_ops = {bar_bus_read, bar_bus_write};

bool board_map_bar(void *context, struct pci_bar *bar, uint64_t address) {
    struct board *board = context;
    struct bus *bus = bar->kind == PCI_BAR_IO ? &board->pio : &board->mmio;
    if (address == PCI_UNMAPPED)
        return bus_remove(bus, bar->mapped) == 0;
    uint64_t end = address + bar->size;
    bool in_window;
    if (bar->kind == PCI_BAR_IO)
        in_window = address >= PCI_IO_BASE && end <= PCI_IO_END;
    else
        in_window = (address >= PCI_MEM32_BASE && end <= PCI_MEM32_END) ||
                    (board->pci_mem64_base && address >= board->pci_mem64_base &&
                     end <= board->pci_mem64_base + PCI_MEM64_SIZE);
    /* Outside of the bridge's windows, or on top of another function, nothing is decoded. */
    return in_window && bus_add(bus, address, bar->size, &bar_ops, bar) == 0;
}

int board_map_devices(struct board *board) {
    unsigned count = ARRAY_SIZE(byte_devices) - (board->config.com2 ? 0 : 1);
    int result = 0;
    for (unsigned i = 0; i < count && !result; i++) {
        const struct board_byte_device *device = &byte_devices[i];
        board->byte_ports[i] = (struct board_byte_port){.board = board, .device = device};
        result = bus_add(&board->pio, device->port, device->count, &byte_device_ops, &board->byte_ports[i]);
    }
    if (!result)
        result = bus_add(&board->pio, 0xcf8, 8, &pci_ports_ops, board);
    if (!result)
        result = bus_add(&board->pio, ACPI_PM_PORT, ACPI_PM_LENGTH, &pm_ops, board);
    if (!result)
        result = bus_add(&board->pio, FW_CFG_PORT, FW_CFG_PORTS, &fw_cfg_ops, &board->fw_cfg);
    if (!result && board->bench)
        result = map_test_bench(board);
    if (!result)
        result = bus_add(&board->mmio, IOAPIC_BASE, PAGE_SIZE, &ioapic_ops, board);
    if (!result)
        result = bus_add(&board->mmio, HPET_BASE, PAGE_SIZE, &hpet_bus_ops, board);
    if (!result)
        result = bus_add(&board->mmio, BOARD_ECAM_BASE, BOARD_ECAM_SIZE, &ecam_ops, board);
    return result;
}

bool board_pio_read(struct board *board, uint16_t port, unsigned size, uint64_t *value) {
    return bus_read(&board->pio, port, size, value);
}

bool board_pio_write(struct board *board, uint16_t port, unsigned size, uint64_t value) {
    return bus_write(&board->pio, port, size, value);
}

/* The LAPIC whose register page holds an address, or NULL. */
static struct lapic *lapic_at(struct board *board, unsigned vcpu, uint64_t address) {
    struct lapic *lapic = lapic_set_get(board->lapics, vcpu);
    return lapic && (address & PAGE_MASK) == lapic_mmio_base(lapic) ? lapic : NULL;
}

bool board_mmio_read(struct board *board, unsigned vcpu, uint64_t address, unsigned size, uint64_t *value) {
    struct lapic *lapic = lapic_at(board, vcpu, address);
    if (!lapic)
        return bus_read(&board->mmio, address, size, value);
    *value = lapic_mmio_read(lapic, address & ~PAGE_MASK, size);
    return true;
}

bool board_mmio_write(struct board *board, unsigned vcpu, uint64_t address, unsigned size, uint64_t value) {
    struct lapic *lapic = lapic_at(board, vcpu, address);
    if (!lapic)
        return bus_write(&board->mmio, address, size, value);
    lapic_mmio_write(lapic, address & ~PAGE_MASK, size, value);
    return true;
}
