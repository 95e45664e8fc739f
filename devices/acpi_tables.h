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

/* Build all tables for an image that is loaded at base (a multiple of 16). Returns the RSDP's address, or
 * -ENOSPC, -ENOMEM. Bytes that are not used are left alone; *used is the number of bytes from the image's
 * start that are. */
MUST_CHECK int64_t firmware_tables_build(const struct firmware_tables_config *config, uint64_t base,
                                         uint8_t *image, size_t size, size_t *used);

#endif
