/* Random register accesses to every device of the board, with time passing, interrupts being taken and lines
 * moving in between. The input is a sequence of operations; what must hold is that nothing crashes, hangs or
 * runs away. */
#include <string.h>

#include "machine/board.h"

#define CPUS 3
#define MEMORY (2 * MIB)

struct input {
    const uint8_t *data;
    size_t left;
};

static uint64_t take(struct input *input, unsigned bytes) {
    uint64_t value = 0;
    if (bytes > input->left)
        bytes = (unsigned)input->left;
    memcpy(&value, input->data, bytes);
    input->data += bytes;
    input->left -= bytes;
    return value;
}

/* Ports and MMIO blocks that lead somewhere, so that random choices mostly hit. */
static const uint16_t ports[][2] = {
    {0x20, 2},   {0x40, 4},      {0x60, 1}, {0x61, 1},  {0x64, 1},  {0x70, 2},  {0x80, 1},  {0x92, 1},
    {0xa0, 2},   {0xe9, 1},      {0xf4, 4}, {0x3f8, 8}, {0x2f8, 8}, {0x4d0, 2}, {0xcf8, 8}, {0x600, 0x28},
    {0, 0xffff}, {0x1000, 0x40}, {0x70, 2}, {0x40, 4},  {0x3f8, 8}, {0xcf8, 8},
};
static const struct {
    uint64_t base;
    uint32_t length;
} blocks[] = {
    {0xfec00000, 0x50},   {0xfed00000, 0x180},   {0xfee00000, 0x400},  {0xe0000000, 0x1000},
    {0xe0008000, 0x1000}, {0xc0000000, 0x4000},  {0xfec00000, 0x1000}, {0xfee00000, 0x1000},
    {0, 0xffffffff},      {0x800000000, 0x4000},
};

static uint64_t bar_read(void *context, unsigned bar, uint64_t offset, unsigned size) {
    (void)context;
    (void)bar;
    (void)size;
    return offset;
}
static void bar_write(void *context, unsigned bar, uint64_t offset, unsigned size, uint64_t value) {
    struct pci_device *device = context;
    (void)bar;
    (void)size;
    if (offset == 0)
        pci_intx_set(device, value & 1);
    else
        pci_msix_notify(device, (unsigned)value & 15);
}
static const struct pci_device_ops device_ops = {.bar_read = bar_read, .bar_write = bar_write};

static void cpu_event(void *context) {
    (void)context;
}
static void cpu_sipi(void *context, uint8_t vector) {
    (void)context;
    (void)vector;
}
static const struct lapic_cpu_ops cpu_ops = {cpu_event, cpu_event, cpu_event, cpu_sipi};

/* What the machine does around the board when it falls asleep and is woken. */
struct power {
    bool asleep, settled, woken;
};

static void power_sleep(void *context) {
    ((struct power *)context)->asleep = true;
}
static void power_wake(void *context) {
    ((struct power *)context)->woken = true;
}

static void power_settle(struct board *board, struct power *power) {
    if (power->asleep && !power->settled)
        board_sleep(board);
    power->settled = power->asleep;
    if (!power->woken)
        return;
    struct acpi_waking waking;
    if (!power->asleep || board_wake(board, &waking))
        __builtin_trap(); /* nobody slept, or the FACS is gone */
    *power = (struct power){0};
}

static void operation(struct board *board, struct timer_queue *queue, struct input *input) {
    uint8_t code = (uint8_t)take(input, 1);
    unsigned cpu = (code >> 4) % CPUS;
    unsigned size = 1u << (code >> 6 & 3);
    struct lapic *lapic = board_lapic(board, cpu);
    uint64_t value = 0;
    switch (code & 15) {
    case 0:
    case 1:
    case 2:
    case 3: {
        const uint16_t *range = ports[take(input, 1) % ARRAY_SIZE(ports)];
        uint16_t port = (uint16_t)(range[0] + take(input, 2) % range[1]);
        if (size == 8)
            size = 1;
        if (code & 1)
            board_pio_write(board, port, size, take(input, size));
        else
            board_pio_read(board, port, size, &value);
        break;
    }
    case 4:
    case 5:
    case 6:
    case 7: {
        unsigned block = take(input, 1) % ARRAY_SIZE(blocks);
        uint64_t address = blocks[block].base + take(input, 4) % blocks[block].length;
        if (code & 1)
            board_mmio_write(board, cpu, address, size, take(input, size));
        else
            board_mmio_read(board, cpu, address, size, &value);
        break;
    }
    case 8:
        if (lapic_msr_write(lapic, 0x800 + take(input, 1) % 0x50, take(input, size)))
            break;
        break;
    case 9:
        if (lapic_msr_read(lapic, 0x800 + take(input, 1) % 0x50, &value))
            break;
        break;
    case 10:
        lapic_interrupt_take(lapic);
        break;
    case 11:
        timer_queue_advance(queue, take(input, 4));
        break;
    case 12:
        lapic_tsc_deadline_set(lapic, take(input, 8));
        break;
    case 13: {
        uint8_t bytes[8];
        value = take(input, 8);
        memcpy(bytes, &value, sizeof bytes);
        board_serial_receive(board, code >> 4 & 1, bytes, 1 + (code >> 5));
        break;
    }
    case 14:
        value = take(input, 1);
        if (value & 1)
            board_power_button(board);
        if (value & 2)
            board_nmi(board);
        if (value & 4)
            lapic_init_reset(lapic);
        lapic_cr8_set(lapic, (unsigned)value >> 4);
        break;
    default:
        value = take(input, 5);
        if (value & 7)
            value = (value & 0xc00) | LAPIC_DEFAULT_BASE;
        if (lapic_base_set(lapic, value))
            break;
        break;
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    struct input input = {data, size};
    struct guest_mem mem;
    if (guest_mem_create(&mem, MEMORY, 0))
        return 0;
    struct timer_queue *queue = timer_queue_create_manual();
    struct power power = {0};
    struct board_config config = {.cpus = CPUS,
                                  .mem = &mem,
                                  .tsc_hz = 2500000000,
                                  .physical_bits = 40,
                                  .debug_exit_port = 0xf4,
                                  .com2 = true,
                                  .timers = queue,
                                  .events = {.sleep = power_sleep, .wake = power_wake, .context = &power}};
    struct board *board = board_create(&config);
    struct pci_device device;
    pci_device_init(&device, "fuzz", &device_ops, &device, 0x1234, 0x5678, 0xff0000, 0);
    pci_set_interrupt_pin(&device, 1);
    pci_bar_declare(&device, 0, PCI_BAR_IO, 0x40, false);
    pci_bar_declare(&device, 1, PCI_BAR_MEM32, 0x1000, false);
    pci_bar_declare(&device, 2, PCI_BAR_MEM64, 0x4000, true);
    bool ready = pci_msix_init(&device, 1, 0x100, 0x800, 12) == 0 && board_attach_pci(board, &device, 1) == 1;
    uint64_t rsdp;
    ready = ready && board_start(board, &rsdp) == 0;
    for (unsigned i = 0; i < CPUS; i++)
        lapic_connect(board_lapic(board, i), &cpu_ops, NULL);
    while (ready && input.left) {
        operation(board, queue, &input);
        power_settle(board, &power);
    }
    if (ready) {
        board_reset(board);
        timer_queue_advance(queue, NS_PER_SECOND);
    }
    board_destroy(board);
    pci_device_destroy(&device);
    timer_queue_destroy(queue);
    guest_mem_destroy(&mem);
    return 0;
}
