/* Inside of the board, shared by its wiring and its address maps. */
#ifndef NESTOR_MACHINE_BOARD_PRIVATE_H
#define NESTOR_MACHINE_BOARD_PRIVATE_H

#include "devices/acpi_pm.h"
#include "devices/fw_cfg.h"
#include "devices/hpet.h"
#include "devices/i8042.h"
#include "devices/i8254.h"
#include "devices/i8259.h"
#include "devices/ioapic.h"
#include "devices/mc146818.h"
#include "devices/system_ports.h"
#include "devices/test_bench.h"
#include "devices/uart16550.h"
#include "machine/board.h"

#define BOARD_ISA_IRQS 16
#define BOARD_PCI_WIRES 4
#define BOARD_BYTE_PORTS_MAX 16
#define BOARD_PCI_GSI 16
#define PCI_MEM32_BASE 0xc0000000ull
#define PCI_MEM32_END 0xe0000000ull
#define PCI_IO_BASE 0x1000ull
#define PCI_IO_END 0x10000ull
#define PCI_MEM64_SIZE (32 * GIB)

struct board;

struct board_serial {
    struct board *board;
    unsigned port;
    struct uart *uart;
};

/* A byte-wide device on the port bus. */
struct board_byte_device {
    uint16_t port, count;
    uint8_t (*read)(struct board *board, unsigned offset);
    void (*write)(struct board *board, unsigned offset, uint8_t value);
};

struct board_byte_port {
    struct board *board;
    const struct board_byte_device *device;
};

/* Who else drives an interrupt line than its usual owner. */
enum irq_source { IRQ_DEVICE, IRQ_HPET };

struct board {
    struct board_config config;
    struct bus pio, mmio;
    struct timer_queue *timers;
    bool owns_timers;
    struct lapic_set *lapics;
    struct ioapic *ioapic;
    struct i8259 *pic;
    struct i8254 *pit;
    struct mc146818 *rtc;
    struct hpet *hpet;
    struct acpi_pm *pm;
    struct i8042 *kbc;
    struct system_ports ports;
    struct fw_cfg fw_cfg;
    struct test_bench *bench; /* with a debug-exit port; else NULL */
    struct board_byte_port byte_ports[BOARD_BYTE_PORTS_MAX];
    struct board_serial serial[BOARD_SERIAL_PORTS];
    struct pci_root *pci;
    uint64_t pci_mem64_base;
    /* Lines with more than one driver: a bit per enum irq_source, or per PCI wire. */
    pthread_mutex_t irq_lock; /* after devices' locks, before those of the IOAPIC and the 8259s */
    uint8_t isa_drivers[BOARD_ISA_IRQS];
    bool hpet_legacy;  /* IRQ 0 and 8 are the HPET's */
    uint8_t pci_wires; /* levels */
    uint64_t facs;     /* its address, once the tables are written */
};

/* board_map.c: claim the ports and MMIO ranges of all fixed devices. 0 or -errno. */
MUST_CHECK int board_map_devices(struct board *board);
/* The PCI root's map callback. */
bool board_map_bar(void *context, struct pci_bar *bar, uint64_t address);

#endif
