/* MP tables (MP 1.4, chapter 4): processors, one PCI and one ISA bus, the IOAPIC, and who is wired where. */
#include "devices/mp_table.h"

#include <string.h>

#include "devices/acpi_pm.h"
#include "devices/ioapic.h"
#include "devices/lapic.h"

#define PACKED __attribute__((packed))
#define BUS_PCI 0
#define BUS_ISA 1
#define ISA_IRQS 16
#define CASCADE 2
#define SLOTS 32
#define PINS 4
#define LEVEL_ACTIVE_LOW 0x0f
#define LEVEL_ACTIVE_HIGH 0x0d

enum mp_entry_type { MP_PROCESSOR, MP_BUS, MP_IOAPIC, MP_IO_INTERRUPT, MP_LOCAL_INTERRUPT };
enum mp_interrupt_type { MP_INT, MP_NMI, MP_SMI, MP_EXTINT };

struct PACKED mp_floating {
    char signature[4];
    uint32_t table;
    uint8_t length, revision, checksum, features[5];
};
struct PACKED mp_head {
    char signature[4];
    uint16_t length;
    uint8_t revision, checksum;
    char oem[8], product[12];
    uint32_t oem_table;
    uint16_t oem_length, entries;
    uint32_t lapic;
    uint16_t extended_length;
    uint8_t extended_checksum, reserved;
};
struct PACKED mp_processor {
    uint8_t type, apic_id, apic_version, flags;
    uint32_t signature, features, reserved[2];
};
struct PACKED mp_bus {
    uint8_t type, id;
    char name[6];
};
struct PACKED mp_ioapic {
    uint8_t type, id, version, flags;
    uint32_t address;
};
struct PACKED mp_interrupt {
    uint8_t type, kind;
    uint16_t flags;
    uint8_t bus, irq, apic, pin;
};

_Static_assert(sizeof(struct mp_floating) == 16 && sizeof(struct mp_head) == 44, "MP 4.1, 4.2");
_Static_assert(sizeof(struct mp_processor) == 20 && sizeof(struct mp_interrupt) == 8, "MP 4.3");

#define IO_INTERRUPTS (ISA_IRQS - 1 + (SLOTS - 1) * PINS)
#define LOCAL_INTERRUPTS 2

size_t mp_table_size(const struct firmware_tables_config *config) {
    return sizeof(struct mp_floating) + sizeof(struct mp_head) + config->cpus * sizeof(struct mp_processor) +
           2 * sizeof(struct mp_bus) + sizeof(struct mp_ioapic) +
           (IO_INTERRUPTS + LOCAL_INTERRUPTS) * sizeof(struct mp_interrupt);
}

static uint8_t checksum(const uint8_t *bytes, size_t length) {
    uint8_t sum = 0;
    for (size_t i = 0; i < length; i++)
        sum = (uint8_t)(sum + bytes[i]);
    return (uint8_t)-sum;
}

static uint8_t *put(uint8_t *at, const void *entry, size_t length) {
    memcpy(at, entry, length);
    return at + length;
}

static uint8_t *io_interrupts(const struct firmware_tables_config *config, uint8_t *at) {
    for (uint8_t irq = 0; irq < ISA_IRQS; irq++) {
        if (irq == CASCADE)
            continue;
        struct mp_interrupt entry = {.type = MP_IO_INTERRUPT,
                                     .kind = MP_INT,
                                     .flags = irq == ACPI_SCI_IRQ ? LEVEL_ACTIVE_HIGH : 0,
                                     .bus = BUS_ISA,
                                     .irq = irq,
                                     .pin = irq == 0 ? 2 : irq};
        at = put(at, &entry, sizeof entry);
    }
    for (unsigned slot = 1; slot < SLOTS; slot++) {
        for (unsigned pin = 0; pin < PINS; pin++) {
            struct mp_interrupt entry = {.type = MP_IO_INTERRUPT,
                                         .kind = MP_INT,
                                         .flags = LEVEL_ACTIVE_LOW,
                                         .bus = BUS_PCI,
                                         .irq = (uint8_t)(slot << 2 | pin),
                                         .pin = (uint8_t)(config->pci_gsi + (slot + pin) % PINS)};
            at = put(at, &entry, sizeof entry);
        }
    }
    return at;
}

void mp_table_write(const struct firmware_tables_config *config, uint64_t address, uint8_t *bytes) {
    struct mp_floating floating = {.signature = {'_', 'M', 'P', '_'},
                                   .table = (uint32_t)(address + sizeof floating),
                                   .length = 1,
                                   .revision = 4};
    uint8_t *table = bytes + sizeof floating;
    uint8_t *at = table + sizeof(struct mp_head);
    for (unsigned i = 0; i < config->cpus; i++) {
        struct mp_processor processor = {.type = MP_PROCESSOR,
                                         .apic_id = (uint8_t)i,
                                         .apic_version = 0x14,
                                         .flags = i == 0 ? 3 : 1, /* enabled, bootstrap */
                                         .signature = 0x600,
                                         .features = 0x201}; /* APIC, FPU */
        at = put(at, &processor, sizeof processor);
    }
    struct mp_bus pci = {.type = MP_BUS, .id = BUS_PCI, .name = {'P', 'C', 'I', ' ', ' ', ' '}};
    struct mp_bus isa = {.type = MP_BUS, .id = BUS_ISA, .name = {'I', 'S', 'A', ' ', ' ', ' '}};
    struct mp_ioapic ioapic = {.type = MP_IOAPIC, .version = 0x20, .flags = 1, .address = IOAPIC_BASE};
    at = put(at, &pci, sizeof pci);
    at = put(at, &isa, sizeof isa);
    at = put(at, &ioapic, sizeof ioapic);
    at = io_interrupts(config, at);
    /* LINT0 of the bootstrap processor carries the 8259s, LINT1 of all of them NMI. */
    struct mp_interrupt extint = {.type = MP_LOCAL_INTERRUPT, .kind = MP_EXTINT, .bus = BUS_ISA};
    struct mp_interrupt nmi = {
        .type = MP_LOCAL_INTERRUPT, .kind = MP_NMI, .bus = BUS_ISA, .apic = 0xff, .pin = 1};
    at = put(at, &extint, sizeof extint);
    at = put(at, &nmi, sizeof nmi);

    struct mp_head head = {.signature = {'P', 'C', 'M', 'P'},
                           .length = (uint16_t)(at - table),
                           .revision = 4,
                           .entries = (uint16_t)(config->cpus + 3 + IO_INTERRUPTS + LOCAL_INTERRUPTS),
                           .lapic = LAPIC_DEFAULT_BASE};
    memcpy(head.oem, "NESTOR  ", sizeof head.oem);
    memcpy(head.product, "PC          ", sizeof head.product);
    put(table, &head, sizeof head);
    head.checksum = checksum(table, head.length);
    put(table, &head, sizeof head);
    put(bytes, &floating, sizeof floating);
    floating.checksum = checksum(bytes, sizeof floating);
    put(bytes, &floating, sizeof floating);
}
