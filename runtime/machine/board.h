/* The board: every fixed device of the PC, wired to one port and one MMIO bus, with its firmware tables.
 *
 * The CPU side sees board_pio_*(), board_mmio_*() and the LAPICs (board_lapic()); it hands in callbacks for
 * what the board tells it. Address map: low RAM below 3 GiB, PCI windows and fixed devices up to 4 GiB, RAM
 * above.
 */
#ifndef NESTOR_MACHINE_BOARD_H
#define NESTOR_MACHINE_BOARD_H

#include "devices/acpi_pm.h"
#include "devices/acpi_tables.h"
#include "devices/lapic.h"
#include "devices/pci.h"
#include "machine/bus.h"
#include "mem/guest_mem.h"

#define BOARD_NO_PORT UINT32_MAX
#define BOARD_SERIAL_PORTS 2
/* The last 64 KiB below 1 MiB, where every search for the RSDP and the MP floating pointer looks. */
#define BOARD_TABLES_BASE 0xf0000ull
#define BOARD_TABLES_SIZE 0x10000ull
#define BOARD_ECAM_BASE 0xe0000000ull
#define BOARD_ECAM_SIZE (256 * MIB)

struct board;

/* What happens to the machine as a whole. Called on the vCPU thread whose access caused it, or any other;
 * without locks of the board. All optional. */
struct board_events {
    void (*poweroff)(void *context); /* S5 */
    void (*reset)(void *context);    /* the caller stops the vCPUs, then board_reset() */
    void (*sleep)(void *context);    /* S3: the caller stops the vCPUs, then board_sleep() */
    void (*wake)(
        void *context); /* the end of S3: then board_wake(). May come before the caller has done that */
    void (*debug_exit)(void *context, uint32_t value);
    void (*debug_write)(void *context, const uint8_t *bytes, size_t count); /* port 0xE9 */
    void (*serial_write)(void *context, unsigned port, const uint8_t *bytes, size_t count);
    void (*serial_ready)(void *context, unsigned port); /* board_serial_receive() takes bytes again */
    void *context;
};

struct board_config {
    unsigned cpus;
    struct guest_mem *mem;
    uint64_t tsc_hz;
    unsigned physical_bits;   /* the CPU model's MAXPHYADDR */
    uint32_t debug_exit_port; /* BOARD_NO_PORT: none */
    bool com2;
    struct timer_queue *timers; /* the VM's; NULL: the board makes one of its own */
    struct board_events events;
};

/* NULL if out of memory, threads or address space, after one diag_error() line. */
MUST_CHECK struct board *board_create(const struct board_config *config);
void board_destroy(struct board *board);

/* LAPIC of vCPU index; connect it with lapic_connect() before the vCPU runs. */
struct lapic *board_lapic(struct board *board, unsigned index);
/* An edge-triggered interrupt message to the local APIC with that ID; how many took it. */
unsigned board_send_ipi(struct board *board, uint32_t apic_id, unsigned delivery_mode, uint8_t vector);
struct timer_queue *board_timers(struct board *board);
struct pci_root *board_pci(struct board *board);
/* Where interrupt messages go, for senders that are not PCI functions. */
struct msi_sink board_msi(struct board *board);

/* Put a PCI function into a slot (0: any free). The slot, or -errno. Before board_start(). */
MUST_CHECK int board_attach_pci(struct board *board, struct pci_device *device, unsigned slot);
/* What firmware does: BARs assigned, interrupt lines routed, tables in guest memory at BOARD_TABLES_BASE,
 * interrupt vectors and BIOS data area at 0. Once all functions are attached, and again after each
 * board_reset(). *rsdp: its guest-physical address. 0 or -errno. */
MUST_CHECK int board_start(struct board *board, uint64_t *rsdp);
/* The timer as a BIOS leaves it: IRQ 0 comes 18.2 times a second, by the interrupt controllers alone. */
void board_start_clock(struct board *board);
/* All devices to their power-on state. No vCPU may run. */
void board_reset(struct board *board);
/* Everything but RAM, the RTC and what wakes the machine loses its power. No vCPU may run. */
void board_sleep(struct board *board);
/* What firmware does when the machine wakes: PCI as in board_start(). *waking: where the guest goes on. 0 or
 * -errno. */
MUST_CHECK int board_wake(struct board *board, struct acpi_waking *waking);

/* Guest ports and MMIO. vcpu: whose LAPIC page may be hit. size 1, 2, 4 (ports), 8. False if nobody answered.
 */
bool board_pio_read(struct board *board, uint16_t port, unsigned size, uint64_t *value);
bool board_pio_write(struct board *board, uint16_t port, unsigned size, uint64_t value);
bool board_mmio_read(struct board *board, unsigned vcpu, uint64_t address, unsigned size, uint64_t *value);
bool board_mmio_write(struct board *board, unsigned vcpu, uint64_t address, unsigned size, uint64_t value);

/* Serial input: bytes taken; the rest when serial_ready says so. */
size_t board_serial_receive(struct board *board, unsigned port, const uint8_t *bytes, size_t count);
size_t board_serial_room(struct board *board, unsigned port);
/* The power button. */
enum acpi_button board_power_button(struct board *board);
/* FERR# of any processor: IRQ 13 rises, and stays until port 0xF0 is written (on = false). Any thread. */
void board_ferr(struct board *board, bool on);
/* NMI button: LINT1 of every LAPIC is pulsed. */
void board_nmi(struct board *board);

#endif
