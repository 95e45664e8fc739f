/* The board: creation, interrupt wiring, reset and the firmware's work.
 *
 * Interrupts: ISA line n goes to the 8259s and to IOAPIC input n, but for line 0, which goes to input 2. The
 * four INTx wires go to inputs 16 to 19 and, for systems without an IOAPIC driver, to two ISA lines that are
 * programmed as levels. In the HPET's legacy mode lines 0 and 8 are cut off from PIT and RTC. The 8259s' INTR
 * is LINT0 of the bootstrap processor.
 */
#include "machine/board.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/diag.h"
#include "devices/acpi_tables.h"
#include "devices/firmware_bios.h"
#include "machine/board_private.h"

#define FERR_IRQ 13
#define TIMER_IRQ 0
#define PIT_SQUARE_WAVE 0x36 /* counter 0, both bytes, mode 3 */

static const uint8_t pci_pic_irqs[BOARD_PCI_WIRES] = {10, 11, 10, 11};

static void gsi_of_isa_set(struct board *board, unsigned irq, bool level) {
    i8259_irq_set(board->pic, irq, level);
    ioapic_pin_set(board->ioapic, irq == 0 ? 2 : irq, level);
}

/* With irq_lock held: one driver of an ISA line changes. */
static void isa_drive(struct board *board, unsigned irq, unsigned driver, bool level) {
    uint8_t before = board->isa_drivers[irq];
    uint8_t after = level ? before | (uint8_t)(1u << driver) : before & (uint8_t) ~(1u << driver);
    board->isa_drivers[irq] = after;
    if (!before != !after)
        gsi_of_isa_set(board, irq, after);
}

static void isa_set(void *context, unsigned irq, bool level) {
    struct board *board = context;
    pthread_mutex_lock(&board->irq_lock);
    if (!(board->hpet_legacy && (irq == 0 || irq == 8)))
        isa_drive(board, irq, IRQ_DEVICE, level);
    pthread_mutex_unlock(&board->irq_lock);
}

static void hpet_set_legacy(void *context, unsigned irq, bool level) {
    struct board *board = context;
    pthread_mutex_lock(&board->irq_lock);
    isa_drive(board, irq, IRQ_HPET, level);
    pthread_mutex_unlock(&board->irq_lock);
}

static void hpet_set_gsi(void *context, unsigned gsi, bool level) {
    struct board *board = context;
    ioapic_pin_set(board->ioapic, gsi, level);
}

static void hpet_legacy_changed(void *context, bool on) {
    struct board *board = context;
    pthread_mutex_lock(&board->irq_lock);
    board->hpet_legacy = on;
    isa_drive(board, 0, IRQ_DEVICE, false);
    isa_drive(board, 8, IRQ_DEVICE, false);
    pthread_mutex_unlock(&board->irq_lock);
}

static const struct hpet_ops hpet_ops = {
    .set_gsi = hpet_set_gsi,
    .set_legacy = hpet_set_legacy,
    .legacy_changed = hpet_legacy_changed,
};

/* A PCI wire: its IOAPIC input, and the ISA line that it shares with another wire. */
static void pci_wire_set(void *context, unsigned wire, bool level) {
    struct board *board = context;
    pthread_mutex_lock(&board->irq_lock);
    uint8_t bit = (uint8_t)(1u << wire);
    board->pci_wires = level ? board->pci_wires | bit : board->pci_wires & (uint8_t)~bit;
    unsigned irq = pci_pic_irqs[wire];
    bool any = false;
    for (unsigned i = 0; i < BOARD_PCI_WIRES; i++)
        any |= pci_pic_irqs[i] == irq && board->pci_wires & 1u << i;
    i8259_irq_set(board->pic, irq, any);
    ioapic_pin_set(board->ioapic, BOARD_PCI_GSI + wire, level);
    pthread_mutex_unlock(&board->irq_lock);
}

static void intr_set(void *context, unsigned line, bool level) {
    struct board *board = context;
    (void)line;
    lapic_lint_set(lapic_set_get(board->lapics, 0), 0, level);
}

static void ioapic_message(void *context, uint32_t destination, bool logical, unsigned delivery_mode,
                           uint8_t vector, bool level_triggered) {
    struct board *board = context;
    lapic_set_deliver(board->lapics, destination, logical, (enum lapic_delivery)delivery_mode, vector,
                      level_triggered);
}

unsigned board_send_ipi(struct board *board, uint32_t apic_id, unsigned delivery_mode, uint8_t vector) {
    return lapic_set_deliver(board->lapics, apic_id, false, (enum lapic_delivery)delivery_mode, vector,
                             false);
}

static void msi_message(void *context, uint64_t address, uint32_t data) {
    struct board *board = context;
    lapic_set_msi(board->lapics, address, data);
}

static void lapic_eoi_broadcast(void *context, uint8_t vector) {
    struct board *board = context;
    ioapic_eoi(board->ioapic, vector);
}

static uint8_t extint_acknowledge(void *context) {
    struct board *board = context;
    return i8259_acknowledge(board->pic);
}

static void machine_poweroff(void *context) {
    struct board *board = context;
    if (board->config.events.poweroff)
        board->config.events.poweroff(board->config.events.context);
}

static void machine_sleep(void *context) {
    struct board *board = context;
    if (board->config.events.sleep)
        board->config.events.sleep(board->config.events.context);
}

static void machine_wake(void *context) {
    struct board *board = context;
    if (board->config.events.wake)
        board->config.events.wake(board->config.events.context);
}

static const struct acpi_pm_ops pm_ops = {
    .poweroff = machine_poweroff, .sleep = machine_sleep, .wake = machine_wake};

static void rtc_alarm(void *context) {
    struct board *board = context;
    acpi_pm_rtc_alarm(board->pm);
}

static void machine_reset(void *context) {
    struct board *board = context;
    if (board->config.events.reset)
        board->config.events.reset(board->config.events.context);
}

static void machine_debug_exit(void *context, uint32_t value) {
    struct board *board = context;
    if (board->config.events.debug_exit)
        board->config.events.debug_exit(board->config.events.context, value);
}

static void machine_debug_write(void *context, const uint8_t *bytes, size_t count) {
    struct board *board = context;
    if (board->config.events.debug_write)
        board->config.events.debug_write(board->config.events.context, bytes, count);
}

static void serial_transmit(void *context, const uint8_t *bytes, size_t count) {
    struct board_serial *serial = context;
    const struct board_events *events = &serial->board->config.events;
    if (events->serial_write)
        events->serial_write(events->context, serial->port, bytes, count);
}

static void serial_receive_ready(void *context) {
    struct board_serial *serial = context;
    const struct board_events *events = &serial->board->config.events;
    if (events->serial_ready)
        events->serial_ready(events->context, serial->port);
}

static struct irq_line isa_line(struct board *board, unsigned irq) {
    return (struct irq_line){.set = isa_set, .context = board, .line = irq};
}

static void bench_line_set(void *context, unsigned line, bool level) {
    struct board *board = context;
    if (line < BOARD_ISA_IRQS)
        isa_set(board, line, level);
    else
        ioapic_pin_set(board->ioapic, line, level);
}

static bool create_interrupts(struct board *board) {
    struct lapic_set_config lapics = {
        .count = board->config.cpus,
        .timers = board->timers,
        .tsc_hz = board->config.tsc_hz,
        .physical_bits = board->config.physical_bits,
        .eoi_broadcast = lapic_eoi_broadcast,
        .extint_acknowledge = extint_acknowledge,
        .context = board,
    };
    board->lapics = lapic_set_create(&lapics);
    if (!board->lapics)
        return false;
    board->ioapic = ioapic_create(ioapic_message, board);
    board->pic = i8259_create((struct irq_line){.set = intr_set, .context = board});
    return board->ioapic && board->pic;
}

static bool create_clocks(struct board *board) {
    const struct guest_mem *mem = board->config.mem;
    struct mc146818_config rtc = {
        .timers = board->timers,
        .irq8 = isa_line(board, 8),
        .alarm = rtc_alarm,
        .context = board,
        .low_memory = mem->low_size,
        .high_memory = mem->size - mem->low_size,
    };
    board->pit = i8254_create(board->timers, isa_line(board, 0));
    board->hpet = hpet_create(board->timers, &hpet_ops, board);
    board->pm = acpi_pm_create(board->timers, isa_line(board, ACPI_SCI_IRQ), &pm_ops, board);
    board->rtc = board->pm ? mc146818_create(&rtc) : NULL; /* its alarm goes there */
    return board->pit && board->rtc && board->hpet && board->pm;
}

static bool create_ports(struct board *board) {
    static const unsigned serial_irqs[BOARD_SERIAL_PORTS] = {4, 3};
    board->kbc = i8042_create(isa_line(board, 1), isa_line(board, 12), machine_reset, board);
    if (!board->kbc)
        return false;
    for (unsigned i = 0; i < (board->config.com2 ? 2 : 1); i++) {
        struct board_serial *serial = &board->serial[i];
        serial->board = board;
        serial->port = i;
        struct uart_config uart = {
            .timers = board->timers,
            .irq = isa_line(board, serial_irqs[i]),
            .transmit = serial_transmit,
            .receive_ready = serial_receive_ready,
            .context = serial,
        };
        serial->uart = uart_create(&uart);
        if (!serial->uart)
            return false;
    }
    board->ports.reset = machine_reset;
    board->ports.debug_exit = machine_debug_exit;
    board->ports.debug_write = machine_debug_write;
    board->ports.context = board;
    system_ports_reset(&board->ports);
    fw_cfg_init(&board->fw_cfg, board->config.mem->size, (uint16_t)board->config.cpus);
    if (board->config.debug_exit_port == BOARD_NO_PORT)
        return true;
    board->bench = test_bench_create((struct irq_line){.set = bench_line_set, .context = board});
    return board->bench;
}

static bool create_pci(struct board *board) {
    struct pci_root_config pci = {
        .map = board_map_bar,
        .context = board,
        .msi = {.send = msi_message, .context = board},
    };
    for (unsigned i = 0; i < BOARD_PCI_WIRES; i++)
        pci.intx[i] = (struct irq_line){.set = pci_wire_set, .context = board, .line = i};
    board->pci = pci_root_create(&pci);
    return board->pci;
}

/* The 64-bit PCI window: above RAM, on a boundary that any BAR in it is aligned to, if the CPU model reaches
 * it. */
static void place_pci_window(struct board *board) {
    const struct guest_mem *mem = board->config.mem;
    uint64_t top = GUEST_HIGH_RAM_START + (mem->size - mem->low_size);
    uint64_t base = align_up(top, PCI_MEM64_SIZE);
    unsigned bits = board->config.physical_bits ? board->config.physical_bits : 36;
    board->pci_mem64_base = bits < 64 && base + PCI_MEM64_SIZE > 1ull << bits ? 0 : base;
}

struct board *board_create(const struct board_config *config) {
    struct board *board = calloc(1, sizeof *board);
    if (!board) {
        diag_error("board: out of memory; free some and start again");
        return NULL;
    }
    board->config = *config;
    bus_init(&board->pio);
    bus_init(&board->mmio);
    pthread_mutex_init(&board->irq_lock, NULL);
    board->timers = config->timers;
    if (!board->timers) {
        board->timers = timer_queue_create();
        board->owns_timers = true;
    }
    place_pci_window(board);
    if (!board->timers || !create_interrupts(board) || !create_clocks(board) || !create_ports(board) ||
        !create_pci(board)) {
        diag_error("board: out of memory or threads for %u CPUs and their devices; free some and start again",
                   config->cpus);
        goto failed;
    }
    int result = board_map_devices(board);
    if (result) {
        diag_error(
            "board: port or address conflict among the fixed devices (%s); choose another --debug-exit port",
            strerror(-result));
        goto failed;
    }
    board_reset(board);
    return board;
failed:
    board_destroy(board);
    return NULL;
}

void board_destroy(struct board *board) {
    if (!board)
        return;
    for (unsigned i = 0; i < BOARD_SERIAL_PORTS; i++)
        uart_destroy(board->serial[i].uart);
    pci_root_destroy(board->pci);
    test_bench_destroy(board->bench);
    fw_cfg_destroy(&board->fw_cfg);
    i8042_destroy(board->kbc);
    hpet_destroy(board->hpet);
    mc146818_destroy(board->rtc);
    acpi_pm_destroy(board->pm);
    i8254_destroy(board->pit);
    i8259_destroy(board->pic);
    ioapic_destroy(board->ioapic);
    lapic_set_destroy(board->lapics);
    if (board->owns_timers)
        timer_queue_destroy(board->timers);
    pthread_mutex_destroy(&board->irq_lock);
    bus_destroy(&board->mmio);
    bus_destroy(&board->pio);
    free(board);
}

struct lapic *board_lapic(struct board *board, unsigned index) {
    return lapic_set_get(board->lapics, index);
}

struct timer_queue *board_timers(struct board *board) {
    return board->timers;
}

struct pci_root *board_pci(struct board *board) {
    return board->pci;
}

struct msi_sink board_msi(struct board *board) {
    return (struct msi_sink){.send = msi_message, .context = board};
}

int board_attach_pci(struct board *board, struct pci_device *device, unsigned slot) {
    return pci_root_attach(board->pci, device, slot);
}

static int tables_write(struct board *board, uint64_t *rsdp) {
    struct firmware_tables_config tables = {
        .cpus = board->config.cpus,
        .ecam_base = BOARD_ECAM_BASE,
        .pci_mem32_first = (uint32_t)PCI_MEM32_BASE,
        .pci_mem32_last = (uint32_t)(PCI_MEM32_END - 1),
        .pci_gsi = BOARD_PCI_GSI,
        .com2 = board->config.com2,
    };
    memcpy(tables.pci_pic_irqs, pci_pic_irqs, sizeof tables.pci_pic_irqs);
    if (board->pci_mem64_base) {
        tables.pci_mem64_first = board->pci_mem64_base;
        tables.pci_mem64_last = board->pci_mem64_base + PCI_MEM64_SIZE - 1;
    }
    if (board->config.debug_exit_port != BOARD_NO_PORT)
        tables.debug_exit_port = (uint16_t)board->config.debug_exit_port;
    uint8_t *image = calloc(1, BOARD_TABLES_SIZE);
    if (!image)
        return -ENOMEM;
    struct firmware_tables built;
    int result = firmware_tables_build(&tables, BOARD_TABLES_BASE, image, BOARD_TABLES_SIZE, &built);
    if (!result && built.used > FIRMWARE_BIOS_CODE)
        result = -ENOSPC;
    if (!result) {
        firmware_bios_code(image, GUEST_LOW_END);
        result = guest_mem_write(board->config.mem, BOARD_TABLES_BASE, image, BOARD_TABLES_SIZE);
    }
    if (!result) {
        uint8_t data[FIRMWARE_BIOS_DATA_SIZE];
        firmware_bios_data(data, GUEST_LOW_END);
        result = guest_mem_write(board->config.mem, 0, data, sizeof data);
    }
    if (!result) {
        *rsdp = built.rsdp;
        board->facs = built.facs;
    }
    free(image);
    return result;
}

static int pci_assign(struct board *board) {
    struct pci_windows windows = {
        .io_base = PCI_IO_BASE,
        .io_end = PCI_IO_END,
        .mem32_base = PCI_MEM32_BASE,
        .mem32_end = PCI_MEM32_END,
    };
    memcpy(windows.intx_irqs, pci_pic_irqs, sizeof windows.intx_irqs);
    if (board->pci_mem64_base) {
        windows.mem64_base = board->pci_mem64_base;
        windows.mem64_end = board->pci_mem64_base + PCI_MEM64_SIZE;
    }
    return pci_root_assign(board->pci, &windows);
}

int board_start(struct board *board, uint64_t *rsdp) {
    int result = pci_assign(board);
    return result ? result : tables_write(board, rsdp);
}

void board_start_clock(struct board *board) {
    i8254_write(board->pit, 3, PIT_SQUARE_WAVE);
    i8254_write(board->pit, 0, 0); /* 65536 ticks */
    i8254_write(board->pit, 0, 0);
    i8259_write(board->pic, 0, 1, (uint8_t) ~(1u << TIMER_IRQ));
}

void board_sleep(struct board *board) {
    pci_root_reset(board->pci);
    for (unsigned i = 0; i < BOARD_SERIAL_PORTS; i++) {
        if (board->serial[i].uart)
            uart_reset(board->serial[i].uart);
    }
    i8042_reset(board->kbc);
    hpet_reset(board->hpet);
    i8254_reset(board->pit);
    system_ports_reset(&board->ports);
    fw_cfg_reset(&board->fw_cfg);
    if (board->bench)
        test_bench_reset(board->bench);
    board_ferr(board, false);
    ioapic_reset(board->ioapic);
    i8259_reset(board->pic);
    /* Firmware's part: PCI interrupts are levels. */
    i8259_elcr_write(board->pic, 1, 1u << (10 - 8) | 1u << (11 - 8) | 1u << (ACPI_SCI_IRQ - 8));
    for (unsigned i = 0; i < board->config.cpus; i++)
        lapic_power_on(lapic_set_get(board->lapics, i));
}

int board_wake(struct board *board, struct acpi_waking *waking) {
    uint8_t facs[ACPI_FACS_SIZE];
    int result = guest_mem_read(board->config.mem, board->facs, facs, sizeof facs);
    if (result)
        return result;
    *waking = acpi_facs_waking(facs);
    return pci_assign(board);
}

void board_reset(struct board *board) {
    acpi_pm_reset(board->pm);
    mc146818_reset(board->rtc);
    board_sleep(board);
}

size_t board_serial_receive(struct board *board, unsigned port, const uint8_t *bytes, size_t count) {
    if (port >= BOARD_SERIAL_PORTS || !board->serial[port].uart)
        return 0;
    return uart_receive(board->serial[port].uart, bytes, count);
}

size_t board_serial_room(struct board *board, unsigned port) {
    if (port >= BOARD_SERIAL_PORTS || !board->serial[port].uart)
        return 0;
    return uart_rx_room(board->serial[port].uart);
}

enum acpi_button board_power_button(struct board *board) {
    return acpi_pm_power_button(board->pm);
}

void board_ferr(struct board *board, bool on) {
    isa_set(board, FERR_IRQ, on);
}

void board_nmi(struct board *board) {
    for (unsigned i = 0; i < board->config.cpus; i++) {
        lapic_lint_set(lapic_set_get(board->lapics, i), 1, true);
        lapic_lint_set(lapic_set_get(board->lapics, i), 1, false);
    }
}
