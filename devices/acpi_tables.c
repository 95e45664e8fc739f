/* Firmware tables, laid out one after the other in an image: RSDP first, where a scan of the BIOS area finds
 * it, then the tables it leads to, then the MP tables. Structures follow ACPI 6.5 chapter 5.2 and MP 1.4
 * chapter 4; both are little-endian and packed, so each is written as a packed struct. */
#include "devices/acpi_tables.h"

#include <errno.h>
#include <string.h>

#include "devices/acpi_pm.h"
#include "devices/firmware_dsdt.h"
#include "devices/hpet.h"
#include "devices/ioapic.h"
#include "devices/lapic.h"
#include "devices/mp_table.h"

#define PACKED __attribute__((packed))
#define RESET_PORT 0xcf9
#define RESET_VALUE 0x06
#define TABLES_MAX 8
#define FACS_ALIGNMENT 64

enum fadt_flags {
    FADT_WBINVD = 1 << 0,
    FADT_PROC_C1 = 1 << 2,
    FADT_NO_SLEEP_BUTTON = 1 << 5, /* not a fixed one */
    FADT_RESET_REGISTER = 1 << 10,
};

enum fadt_boot_flags {
    BOOT_LEGACY_DEVICES = 1 << 0,
    BOOT_8042 = 1 << 1,
    BOOT_NO_VGA = 1 << 2,
};

struct PACKED acpi_header {
    char signature[4];
    uint32_t length;
    uint8_t revision;
    uint8_t checksum;
    char oem_id[6];
    char oem_table_id[8];
    uint32_t oem_revision;
    char creator_id[4];
    uint32_t creator_revision;
};

struct PACKED acpi_address {
    uint8_t space; /* 0 memory, 1 ports */
    uint8_t width, offset, access;
    uint64_t address;
};

struct PACKED acpi_rsdp {
    char signature[8];
    uint8_t checksum;
    char oem_id[6];
    uint8_t revision;
    uint32_t rsdt;
    uint32_t length;
    uint64_t xsdt;
    uint8_t extended_checksum;
    uint8_t reserved[3];
};

struct PACKED acpi_fadt {
    struct acpi_header header;
    uint32_t facs, dsdt;
    uint8_t reserved1, preferred_profile;
    uint16_t sci_interrupt;
    uint32_t smi_command;
    uint8_t acpi_enable, acpi_disable, s4bios_request, pstate_control;
    uint32_t pm1a_event, pm1b_event, pm1a_control, pm1b_control, pm2_control, pm_timer, gpe0, gpe1;
    uint8_t pm1_event_length, pm1_control_length, pm2_control_length, pm_timer_length;
    uint8_t gpe0_length, gpe1_length, gpe1_base, cstate_control;
    uint16_t c2_latency, c3_latency, flush_size, flush_stride;
    uint8_t duty_offset, duty_width, day_alarm, month_alarm, century;
    uint16_t boot_flags;
    uint8_t reserved2;
    uint32_t flags;
    struct acpi_address reset_register;
    uint8_t reset_value;
    uint16_t arm_boot_flags;
    uint8_t minor_revision;
    uint64_t x_facs, x_dsdt;
    struct acpi_address x_pm1a_event, x_pm1b_event, x_pm1a_control, x_pm1b_control, x_pm2_control, x_pm_timer;
    struct acpi_address x_gpe0, x_gpe1, sleep_control, sleep_status;
    uint64_t hypervisor;
};

struct PACKED acpi_facs {
    char signature[4];
    uint32_t length, hardware_signature, waking_vector, global_lock, flags;
    uint64_t x_waking_vector;
    uint8_t version;
    uint8_t reserved[31];
};

struct PACKED acpi_mcfg {
    struct acpi_header header;
    uint64_t reserved1;
    uint64_t base;
    uint16_t segment;
    uint8_t first_bus, last_bus;
    uint32_t reserved2;
};

struct PACKED acpi_hpet {
    struct acpi_header header;
    uint32_t block_id;
    struct acpi_address address;
    uint8_t number;
    uint16_t minimum_tick;
    uint8_t page_protection;
};

struct PACKED madt_head {
    struct acpi_header header;
    uint32_t lapic_address;
    uint32_t flags; /* bit 0: 8259s present */
};
struct PACKED madt_lapic {
    uint8_t type, length, processor_uid, apic_id;
    uint32_t flags;
};
struct PACKED madt_ioapic {
    uint8_t type, length, id, reserved;
    uint32_t address, gsi_base;
};
struct PACKED madt_override {
    uint8_t type, length, bus, source;
    uint32_t gsi;
    uint16_t flags;
};
struct PACKED madt_nmi {
    uint8_t type, length, processor_uid;
    uint16_t flags;
    uint8_t lint;
};

_Static_assert(sizeof(struct acpi_rsdp) == 36, "ACPI 5.2.5.3");
_Static_assert(sizeof(struct acpi_fadt) == 276, "ACPI 5.2.9");
_Static_assert(sizeof(struct acpi_facs) == ACPI_FACS_SIZE, "ACPI 5.2.10");
_Static_assert(sizeof(struct acpi_hpet) == 56, "HPET 3.2.4");

/* The image being filled. */
struct image {
    uint8_t *bytes;
    uint64_t base;
    size_t size, used;
    uint64_t tables[TABLES_MAX]; /* what RSDT and XSDT list */
    unsigned table_count;
};

static void *image_take(struct image *image, size_t length, size_t alignment) {
    size_t start = align_up(image->base + image->used, alignment) - image->base;
    if (start > image->size || length > image->size - start)
        return NULL;
    image->used = start + length;
    memset(image->bytes + start, 0, length);
    return image->bytes + start;
}

static uint64_t image_address(const struct image *image, const void *at) {
    return image->base + (uint64_t)((const uint8_t *)at - image->bytes);
}

static uint8_t checksum(const void *at, size_t length) {
    const uint8_t *bytes = at;
    uint8_t sum = 0;
    for (size_t i = 0; i < length; i++)
        sum = (uint8_t)(sum + bytes[i]);
    return (uint8_t)-sum;
}

static void header_fill(struct acpi_header *header, const char *signature, size_t length, uint8_t revision) {
    memcpy(header->signature, signature, 4);
    header->length = (uint32_t)length;
    header->revision = revision;
    memcpy(header->oem_id, "NESTOR", 6);
    memcpy(header->oem_table_id, "NESTORPC", 8);
    header->oem_revision = 1;
    memcpy(header->creator_id, "NSTR", 4);
    header->creator_revision = 1;
}

static void table_finish(struct image *image, struct acpi_header *header, bool listed) {
    header->checksum = 0;
    header->checksum = checksum(header, header->length);
    if (listed)
        image->tables[image->table_count++] = image_address(image, header);
}

static struct acpi_address port_address(uint64_t port, uint8_t bits) {
    uint8_t access = bits == 8 ? 1 : bits == 16 ? 2 : 3;
    return (struct acpi_address){.space = 1, .width = bits, .access = access, .address = port};
}

static int dsdt_build(struct image *image, const struct firmware_tables_config *config, uint64_t *address) {
    struct aml aml;
    aml_init(&aml);
    firmware_dsdt_write(&aml, config);
    int result = -ENOMEM;
    if (!aml.failed) {
        struct acpi_header *header = image_take(image, sizeof *header + aml.size, 16);
        result = -ENOSPC;
        if (header) {
            header_fill(header, "DSDT", sizeof *header + aml.size, 2);
            memcpy(header + 1, aml.data, aml.size);
            table_finish(image, header, false);
            *address = image_address(image, header);
            result = 0;
        }
    }
    aml_destroy(&aml);
    return result;
}

static int fadt_build(struct image *image, uint64_t dsdt, uint64_t *facs_address) {
    struct acpi_facs *facs = image_take(image, sizeof *facs, FACS_ALIGNMENT);
    struct acpi_fadt *fadt = image_take(image, sizeof *fadt, 16);
    if (!facs || !fadt)
        return -ENOSPC;
    memcpy(facs->signature, "FACS", 4);
    facs->length = sizeof *facs;
    facs->version = 2;
    *facs_address = image_address(image, facs);
    header_fill(&fadt->header, "FACP", sizeof *fadt, 6);
    fadt->minor_revision = 3;
    fadt->facs = (uint32_t)image_address(image, facs);
    fadt->dsdt = (uint32_t)dsdt;
    fadt->x_dsdt = dsdt;
    fadt->preferred_profile = 4; /* enterprise server */
    fadt->sci_interrupt = ACPI_SCI_IRQ;
    fadt->pm1a_event = ACPI_PM_PORT + ACPI_PM_EVENT;
    fadt->pm1a_control = ACPI_PM_PORT + ACPI_PM_CONTROL;
    fadt->pm_timer = ACPI_PM_PORT + ACPI_PM_TIMER;
    fadt->gpe0 = ACPI_PM_PORT + ACPI_PM_GPE0;
    fadt->pm1_event_length = 4;
    fadt->pm1_control_length = 2;
    fadt->pm_timer_length = 4;
    fadt->gpe0_length = ACPI_PM_GPE0_LENGTH;
    fadt->c2_latency = 0xfff; /* no C2, no C3 */
    fadt->c3_latency = 0xfff;
    fadt->century = 0x32;
    fadt->boot_flags = BOOT_LEGACY_DEVICES | BOOT_8042 | BOOT_NO_VGA;
    fadt->flags = FADT_WBINVD | FADT_PROC_C1 | FADT_NO_SLEEP_BUTTON | FADT_RESET_REGISTER;
    fadt->reset_register = port_address(RESET_PORT, 8);
    fadt->reset_value = RESET_VALUE;
    fadt->x_pm1a_event = port_address(fadt->pm1a_event, 32);
    fadt->x_pm1a_control = port_address(fadt->pm1a_control, 16);
    fadt->x_pm_timer = port_address(fadt->pm_timer, 32);
    fadt->x_gpe0 = port_address(fadt->gpe0, 32);
    memcpy(&fadt->hypervisor, "NESTORPC", 8);
    table_finish(image, &fadt->header, true);
    return 0;
}

static int madt_build(struct image *image, const struct firmware_tables_config *config) {
    size_t length = sizeof(struct madt_head) + config->cpus * sizeof(struct madt_lapic) +
                    sizeof(struct madt_ioapic) + 2 * sizeof(struct madt_override) + sizeof(struct madt_nmi);
    struct madt_head *head = image_take(image, length, 16);
    if (!head)
        return -ENOSPC;
    header_fill(&head->header, "APIC", length, 5);
    head->lapic_address = LAPIC_DEFAULT_BASE;
    head->flags = 1;
    struct madt_lapic *lapic = (struct madt_lapic *)(head + 1);
    for (unsigned i = 0; i < config->cpus; i++)
        *lapic++ = (struct madt_lapic){0, sizeof *lapic, (uint8_t)i, (uint8_t)i, 1};
    struct madt_ioapic *ioapic = (struct madt_ioapic *)lapic;
    *ioapic = (struct madt_ioapic){1, sizeof *ioapic, 0, 0, IOAPIC_BASE, 0};
    struct madt_override *override = (struct madt_override *)(ioapic + 1);
    *override++ = (struct madt_override){2, sizeof *override, 0, 0, 2, 0};
    /* Active high, level. */
    *override++ = (struct madt_override){2, sizeof *override, 0, ACPI_SCI_IRQ, ACPI_SCI_IRQ, 0x0d};
    *(struct madt_nmi *) override = (struct madt_nmi){4, sizeof(struct madt_nmi), 0xff, 0, 1};
    table_finish(image, &head->header, true);
    return 0;
}

static int mcfg_and_hpet_build(struct image *image, const struct firmware_tables_config *config) {
    struct acpi_mcfg *mcfg = image_take(image, sizeof *mcfg, 16);
    struct acpi_hpet *hpet = image_take(image, sizeof *hpet, 16);
    if (!mcfg || !hpet)
        return -ENOSPC;
    header_fill(&mcfg->header, "MCFG", sizeof *mcfg, 1);
    mcfg->base = config->ecam_base;
    mcfg->last_bus = 255;
    table_finish(image, &mcfg->header, true);
    header_fill(&hpet->header, "HPET", sizeof *hpet, 1);
    hpet->block_id = hpet_block_id();
    hpet->address = (struct acpi_address){.space = 0, .address = HPET_BASE};
    hpet->minimum_tick = 0x80;
    table_finish(image, &hpet->header, true);
    return 0;
}

static int roots_build(struct image *image, struct acpi_rsdp *rsdp) {
    size_t rsdt_length = sizeof(struct acpi_header) + 4 * image->table_count;
    size_t xsdt_length = sizeof(struct acpi_header) + 8 * image->table_count;
    struct acpi_header *rsdt = image_take(image, rsdt_length, 16);
    struct acpi_header *xsdt = image_take(image, xsdt_length, 16);
    if (!rsdt || !xsdt)
        return -ENOSPC;
    header_fill(rsdt, "RSDT", rsdt_length, 1);
    header_fill(xsdt, "XSDT", xsdt_length, 1);
    for (unsigned i = 0; i < image->table_count; i++) {
        uint32_t low = (uint32_t)image->tables[i];
        memcpy((uint8_t *)(rsdt + 1) + 4 * i, &low, sizeof low);
        memcpy((uint8_t *)(xsdt + 1) + 8 * i, &image->tables[i], sizeof image->tables[i]);
    }
    table_finish(image, rsdt, false);
    table_finish(image, xsdt, false);
    memcpy(rsdp->signature, "RSD PTR ", 8);
    memcpy(rsdp->oem_id, "NESTOR", 6);
    rsdp->revision = 2;
    rsdp->rsdt = (uint32_t)image_address(image, rsdt);
    rsdp->xsdt = image_address(image, xsdt);
    rsdp->length = sizeof *rsdp;
    rsdp->checksum = checksum(rsdp, 20);
    rsdp->extended_checksum = checksum(rsdp, sizeof *rsdp);
    return 0;
}

int firmware_tables_build(const struct firmware_tables_config *config, uint64_t base, uint8_t *bytes,
                          size_t size, struct firmware_tables *tables) {
    struct image image = {.bytes = bytes, .base = base, .size = size};
    struct acpi_rsdp *rsdp = image_take(&image, sizeof *rsdp, 16);
    if (!rsdp)
        return -ENOSPC;
    uint64_t dsdt;
    int result = dsdt_build(&image, config, &dsdt);
    if (!result)
        result = fadt_build(&image, dsdt, &tables->facs);
    if (!result)
        result = madt_build(&image, config);
    if (!result)
        result = mcfg_and_hpet_build(&image, config);
    if (!result)
        result = roots_build(&image, rsdp);
    if (result)
        return result;
    uint8_t *mp = image_take(&image, mp_table_size(config), 16);
    if (!mp)
        return -ENOSPC;
    mp_table_write(config, image_address(&image, mp), mp);
    tables->used = image.used;
    tables->rsdp = image_address(&image, rsdp);
    return 0;
}

struct acpi_waking acpi_facs_waking(const uint8_t bytes[static ACPI_FACS_SIZE]) {
    struct acpi_facs facs;
    memcpy(&facs, bytes, sizeof facs);
    /* The wide vector has precedence. That it may be a 64-bit one is not offered in the flags. */
    if (facs.x_waking_vector)
        return (struct acpi_waking){.address =
                                        facs.x_waking_vector >> 32 ? 0 : (uint32_t)facs.x_waking_vector,
                                    .protected_mode = true};
    return (struct acpi_waking){.address = facs.waking_vector};
}
