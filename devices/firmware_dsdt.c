/* What the DSDT says: \_PIC, \_S3 and \_S5, the host bridge with its windows and its interrupt routing for
 * either interrupt model, the fixed devices of a PC, and the processors. The power button is fixed hardware
 * (FADT), so not here. */
#include "devices/firmware_dsdt.h"

#include <stdio.h>

#include "devices/acpi_pm.h"
#include "devices/hpet.h"
#include "devices/ioapic.h"
#include "devices/lapic.h"

#define SLOTS 32
#define PINS 4
#define ECAM_LENGTH (256 * MIB)

/* Name (name, Package () { Package () { slot << 16 | any function, pin, 0, interrupt }, ... }) */
static void routing(struct aml *aml, const char *name, const struct firmware_tables_config *config,
                    bool apic) {
    aml_name(aml, name);
    aml_begin_package(aml, (SLOTS - 1) * PINS);
    for (unsigned slot = 1; slot < SLOTS; slot++) {
        for (unsigned pin = 0; pin < PINS; pin++) {
            unsigned wire = (slot + pin) % PINS;
            aml_begin_package(aml, 4);
            aml_integer(aml, slot << 16 | 0xffff);
            aml_integer(aml, pin);
            aml_integer(aml, 0);
            aml_integer(aml, apic ? config->pci_gsi + wire : config->pci_pic_irqs[wire]);
            aml_end(aml);
        }
    }
    aml_end(aml);
}

static void legacy_device(struct aml *aml, const char *name, const char *id) {
    aml_begin_device(aml, name);
    aml_name_eisa_id(aml, "_HID", id);
    aml_begin_resources(aml);
}

static void legacy_device_end(struct aml *aml) {
    aml_end_resources(aml);
    aml_end(aml);
}

static void serial_port(struct aml *aml, const char *name, unsigned uid, uint16_t port, unsigned irq) {
    aml_begin_device(aml, name);
    aml_name_eisa_id(aml, "_HID", "PNP0501");
    aml_name_integer(aml, "_UID", uid);
    aml_begin_resources(aml);
    aml_io(aml, port, 8);
    aml_irq(aml, irq);
    legacy_device_end(aml);
}

static void legacy_devices(struct aml *aml, const struct firmware_tables_config *config) {
    legacy_device(aml, "PIC_", "PNP0000");
    aml_io(aml, 0x20, 2);
    aml_io(aml, 0xa0, 2);
    aml_io(aml, 0x4d0, 2);
    aml_irq(aml, 2);
    legacy_device_end(aml);

    legacy_device(aml, "TIMR", "PNP0100");
    aml_io(aml, 0x40, 4);
    aml_irq(aml, 0);
    legacy_device_end(aml);

    legacy_device(aml, "RTC_", "PNP0B00");
    aml_io(aml, 0x70, 2);
    aml_irq(aml, 8);
    legacy_device_end(aml);

    legacy_device(aml, "SPKR", "PNP0800");
    aml_io(aml, 0x61, 1);
    legacy_device_end(aml);

    legacy_device(aml, "PS2K", "PNP0303");
    aml_io(aml, 0x60, 1);
    aml_io(aml, 0x64, 1);
    aml_irq(aml, 1);
    legacy_device_end(aml);

    serial_port(aml, "COM1", 1, 0x3f8, 4);
    if (config->com2)
        serial_port(aml, "COM2", 2, 0x2f8, 3);
}

/* What no other device owns but nobody may use. */
static void motherboard(struct aml *aml, const struct firmware_tables_config *config) {
    legacy_device(aml, "MBRD", "PNP0C02");
    aml_io(aml, 0x80, 1);
    aml_io(aml, 0x92, 1);
    aml_io(aml, 0xe9, 1);
    aml_io(aml, ACPI_PM_PORT, 0x40);
    if (config->debug_exit_port)
        aml_io(aml, config->debug_exit_port, 4);
    aml_memory32(aml, (uint32_t)config->ecam_base, ECAM_LENGTH, true);
    aml_memory32(aml, IOAPIC_BASE, 0x1000, true);
    aml_memory32(aml, LAPIC_DEFAULT_BASE, 0x1000, true);
    legacy_device_end(aml);

    legacy_device(aml, "HPET", "PNP0103");
    aml_memory32(aml, HPET_BASE, HPET_SIZE, false);
    legacy_device_end(aml);
}

static void host_bridge(struct aml *aml, const struct firmware_tables_config *config) {
    aml_begin_device(aml, "PCI0");
    aml_name_eisa_id(aml, "_HID", "PNP0A08");
    aml_name_eisa_id(aml, "_CID", "PNP0A03");
    aml_name_integer(aml, "_UID", 0);
    aml_name_integer(aml, "_SEG", 0);
    aml_name_integer(aml, "_BBN", 0);
    aml_begin_resources(aml);
    aml_bus_range(aml, 0, 255);
    aml_io(aml, 0xcf8, 8);
    aml_io_range(aml, 0x0000, 0x0cf7);
    aml_io_range(aml, 0x0d00, 0xffff);
    aml_memory_range32(aml, config->pci_mem32_first, config->pci_mem32_last);
    if (config->pci_mem64_last > config->pci_mem64_first)
        aml_memory_range64(aml, config->pci_mem64_first, config->pci_mem64_last);
    aml_end_resources(aml);
    routing(aml, "PRTA", config, true);
    routing(aml, "PRTP", config, false);
    aml_begin_method(aml, "_PRT", 0);
    aml_begin_if(aml, "\\PICF");
    aml_return_name(aml, "PRTA");
    aml_end(aml);
    aml_return_name(aml, "PRTP");
    aml_end(aml);
    legacy_devices(aml, config);
    aml_end(aml);
}

static void processors(struct aml *aml, unsigned count) {
    for (unsigned i = 0; i < count; i++) {
        char name[5];
        snprintf(name, sizeof name, "C%03X", i & 0xfff);
        aml_begin_device(aml, name);
        aml_name(aml, "_HID");
        aml_string(aml, "ACPI0007");
        aml_name_integer(aml, "_UID", i);
        aml_end(aml);
    }
}

/* Name (name, Package () { SLP_TYPa, SLP_TYPb, 0, 0 }) */
static void sleep_state(struct aml *aml, const char *name, unsigned type) {
    aml_name(aml, name);
    aml_begin_package(aml, 4);
    aml_integer(aml, type);
    aml_integer(aml, type);
    aml_integer(aml, 0);
    aml_integer(aml, 0);
    aml_end(aml);
}

void firmware_dsdt_write(struct aml *aml, const struct firmware_tables_config *config) {
    aml_name_integer(aml, "\\PICF", 0);
    aml_begin_method(aml, "\\_PIC", 1);
    aml_store_arg0(aml, "\\PICF");
    aml_end(aml);

    sleep_state(aml, "\\_S3_", ACPI_SLEEP_S3);
    sleep_state(aml, "\\_S5_", ACPI_SLEEP_S5);

    aml_begin_scope(aml, "\\_SB_");
    processors(aml, config->cpus);
    host_bridge(aml, config);
    motherboard(aml, config);
    aml_end(aml);
}
