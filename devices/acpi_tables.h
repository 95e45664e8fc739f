/* Firmware tables of the PC: ACPI (RSDP, RSDT, XSDT, FADT, FACS, DSDT, MADT, MCFG, HPET) and, for systems
 * that predate it, the MultiProcessor Specification 1.4 table. */
#ifndef NESTOR_DEVICES_ACPI_TABLES_H
#define NESTOR_DEVICES_ACPI_TABLES_H

#include "base/types.h"

struct firmware_tables_config {
    unsigned cpus; /* APIC IDs 0 to cpus - 1 */
    uint64_t ecam_base;
    uint32_t pci_mem32_first, pci_mem32_last;
    uint64_t pci_mem64_first, pci_mem64_last;
    unsigned pci_gsi;        /* IOAPIC input of the first of four INTx wires */
    uint8_t pci_pic_irqs[4]; /* where they arrive at the 8259s */
    bool com2;
    uint16_t debug_exit_port; /* 0: none */
};

struct firmware_tables {
    uint64_t rsdp, facs; /* addresses */
    size_t used;         /* bytes from the image's start */
};

/* Build all tables for an image that is loaded at base (a multiple of 16). 0, -ENOSPC or -ENOMEM. Bytes that
 * are not used are left alone. */
MUST_CHECK int firmware_tables_build(const struct firmware_tables_config *config, uint64_t base,
                                     uint8_t *image, size_t size, struct firmware_tables *tables);

#define ACPI_FACS_SIZE 64

/* Where a guest that sleeps in S3 wants to go on. */
struct acpi_waking {
    uint32_t address;    /* physical; 0: nowhere */
    bool protected_mode; /* 32-bit flat segments, no paging; else real mode at CS:IP = address / 16:address %
                            16 */
};
/* What the guest wrote into the FACS, whatever that is. */
struct acpi_waking acpi_facs_waking(const uint8_t facs[static ACPI_FACS_SIZE]);

#endif
