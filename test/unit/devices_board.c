/* The bus, and the board as a whole: a guest's view through ports and MMIO, interrupts from a device to a
 * LAPIC, the firmware tables. With an argument, writes the ACPI tables into that directory for iasl to look
 * at. */
#include <pthread.h>
#include <string.h>

#include "devices_check.h"
#include "machine/board.h"

static uint64_t echo_read(void *context, uint64_t offset, unsigned size) {
    (void)size;
    return (uint64_t)(uintptr_t)context + offset;
}
static void echo_write(void *context, uint64_t offset, unsigned size, uint64_t value) {
    (void)context;
    (void)offset;
    (void)size;
    (void)value;
}
static const struct bus_ops echo_ops = {echo_read, echo_write};

static struct bus bus;
static _Atomic bool stop;

/* Reads a range that stays while its neighbours come and go. */
static void *reader(void *context) {
    unsigned *wrong = context;
    while (!atomic_load(&stop)) {
        uint64_t value;
        if (!bus_read(&bus, 0x5010, 8, &value) || value != 0x510)
            (*wrong)++;
    }
    return NULL;
}

static void test_bus(void) {
    uint64_t value;
    bus_init(&bus);
    CHECK_EQUAL(bus_add(&bus, 0x5000, 0x100, &echo_ops, (void *)0x500), 0);
    CHECK(bus_add(&bus, 0x50ff, 1, &echo_ops, NULL) < 0);
    CHECK(bus_add(&bus, 0x4fff, 2, &echo_ops, NULL) < 0);
    CHECK(bus_add(&bus, 0, 0, &echo_ops, NULL) < 0);
    CHECK(bus_add(&bus, UINT64_MAX, 2, &echo_ops, NULL) < 0);
    CHECK_EQUAL(bus_add(&bus, 0x5100, 0x10, &echo_ops, (void *)0x9900), 0);
    CHECK_EQUAL(bus_add(&bus, UINT64_MAX, 1, &echo_ops, NULL), 0);
    CHECK(bus_read(&bus, 0x5010, 4, &value));
    CHECK_EQUAL(value, 0x510);
    CHECK(bus_read(&bus, 0x50ff, 2, &value)); /* across both */
    CHECK_EQUAL(value, 0xff);
    CHECK(!bus_read(&bus, 0x4fff, 1, &value));
    CHECK_EQUAL(value, 0xff);
    CHECK(!bus_read(&bus, 0x5110, 8, &value));
    CHECK_EQUAL(value, UINT64_MAX);
    CHECK(!bus_write(&bus, 0x6000, 4, 0));
    unsigned wrong[2] = {0};
    pthread_t threads[2];
    for (unsigned i = 0; i < 2; i++)
        pthread_create(&threads[i], NULL, reader, &wrong[i]);
    for (unsigned round = 0; round < 20000; round++) {
        for (unsigned i = 0; i < 4; i++)
            CHECK_EQUAL(bus_add(&bus, 0x1000 + i * 0x100, 0x100, &echo_ops, NULL), 0);
        for (unsigned i = 0; i < 4; i++)
            CHECK_EQUAL(bus_remove(&bus, 0x1000 + i * 0x100), 0);
    }
    atomic_store(&stop, true);
    for (unsigned i = 0; i < 2; i++)
        pthread_join(threads[i], NULL);
    CHECK_EQUAL(wrong[0] + wrong[1], 0);
    CHECK(bus_remove(&bus, 0x1000) < 0);
    for (unsigned i = 0; i < BUS_RANGES_MAX - 3; i++)
        CHECK_EQUAL(bus_add(&bus, 0x100000 + i, 1, &echo_ops, NULL), 0);
    CHECK(bus_add(&bus, 0x200000, 1, &echo_ops, NULL) < 0);
    bus_destroy(&bus);
}

static unsigned kicks, poweroffs, resets, serial_bytes;
static uint32_t exit_value;

static void cpu_kick(void *context) {
    (void)context;
    kicks++;
}
static void cpu_ignore(void *context) {
    (void)context;
}
static void cpu_sipi(void *context, uint8_t vector) {
    (void)context;
    (void)vector;
}
static const struct lapic_cpu_ops cpu_ops = {cpu_kick, cpu_ignore, cpu_ignore, cpu_sipi};

static void on_poweroff(void *context) {
    (void)context;
    poweroffs++;
}
static void on_reset(void *context) {
    (void)context;
    resets++;
}
static void on_exit_value(void *context, uint32_t value) {
    (void)context;
    exit_value = value;
}
static void on_serial(void *context, unsigned port, const uint8_t *bytes, size_t count) {
    (void)context;
    (void)bytes;
    if (port == 0)
        serial_bytes += (unsigned)count;
}

static struct board *board;

static void out(uint16_t port, unsigned size, uint32_t value) {
    CHECK(board_pio_write(board, port, size, value));
}
static uint32_t in(uint16_t port, unsigned size) {
    uint64_t value;
    board_pio_read(board, port, size, &value);
    return (uint32_t)value;
}
static void mmio(uint64_t address, uint32_t value) {
    CHECK(board_mmio_write(board, 0, address, 4, value));
}
static uint32_t mmio_in(uint64_t address) {
    uint64_t value;
    board_mmio_read(board, 0, address, 4, &value);
    return (uint32_t)value;
}

static void redirect(unsigned pin, uint32_t low) {
    mmio(0xfec00000, 0x11 + 2 * pin);
    mmio(0xfec00010, 0);
    mmio(0xfec00000, 0x10 + 2 * pin);
    mmio(0xfec00010, low);
}

static void test_interrupts(struct timer_queue *queue) {
    struct lapic *lapic = board_lapic(board, 0);
    mmio(0xfee000f0, 0x1ff);
    /* PIT through the IOAPIC's input 2. */
    redirect(2, 0x30);
    out(0x43, 1, 0x30);
    out(0x40, 1, 0x10);
    out(0x40, 1, 0);
    timer_queue_advance(queue, 100000);
    CHECK_EQUAL(lapic_interrupt_take(lapic), 0x30);
    mmio(0xfee000b0, 0);
    redirect(2, 0x10030);
    /* The same through the 8259s and LINT0. */
    static const uint8_t words[][2] = {{0x20, 0x11}, {0x21, 0x20}, {0x21, 4}, {0x21, 1}, {0x21, 0xfa},
                                       {0xa0, 0x11}, {0xa1, 0x28}, {0xa1, 2}, {0xa1, 1}, {0xa1, 0xfd}};
    for (unsigned i = 0; i < ARRAY_SIZE(words); i++)
        out(words[i][0], 1, words[i][1]);
    mmio(0xfee00350, 0x700);
    out(0x43, 1, 0x30);
    out(0x40, 1, 0x10);
    out(0x40, 1, 0);
    CHECK(!lapic_interrupt_waits(lapic));
    timer_queue_advance(queue, 100000);
    CHECK(lapic_interrupt_waits(lapic));
    CHECK_EQUAL(lapic_interrupt_take(lapic), 0x20);
    out(0x20, 1, 0x20);
    CHECK(!lapic_interrupt_waits(lapic));
    /* Power button: SCI, a level, through IOAPIC input 9. */
    out(0x21, 1, 0xff);
    redirect(9, 0x8039);
    CHECK_EQUAL(board_power_button(board), ACPI_BUTTON_UNHEARD);
    out(0x602, 2, 1 << 8);
    CHECK_EQUAL(board_power_button(board), ACPI_BUTTON_HEARD);
    CHECK_EQUAL(lapic_interrupt_take(lapic), 0x39);
    out(0x600, 2, 1 << 8);
    mmio(0xfee000b0, 0);
    CHECK(!lapic_interrupt_waits(lapic));
    /* HPET in legacy mode takes line 0 from the PIT. */
    redirect(2, 0x3a);
    mmio(0xfed00010, 3);
    mmio(0xfed00100, 4);
    mmio(0xfed00108, mmio_in(0xfed000f0) + 1000);
    mmio(0xfed0010c, 0);
    timer_queue_advance(queue, 20000);
    CHECK_EQUAL(lapic_interrupt_take(lapic), 0x3a);
    mmio(0xfee000b0, 0);
    out(0x43, 1, 0x30);
    out(0x40, 1, 0x10);
    out(0x40, 1, 0);
    timer_queue_advance(queue, 100000);
    CHECK(!lapic_interrupt_waits(lapic));
    mmio(0xfed00010, 0);
}

static uint8_t sum(const uint8_t *bytes, size_t length) {
    uint8_t total = 0;
    for (size_t i = 0; i < length; i++)
        total = (uint8_t)(total + bytes[i]);
    return total;
}

static void table_save(const char *directory, const char *name, const uint8_t *table, uint32_t length) {
    char path[512];
    if (!directory)
        return;
    snprintf(path, sizeof path, "%s/%.4s.dat", directory, name);
    FILE *file = fopen(path, "wb");
    CHECK(file && fwrite(table, 1, length, file) == length);
    if (file)
        fclose(file);
}

static void test_tables(struct guest_mem *mem, uint64_t rsdp_address, const char *directory) {
    static const char *const names[] = {"FACP", "APIC", "MCFG", "HPET"};
    const uint8_t *rsdp = guest_mem_ptr(mem, rsdp_address, 36);
    CHECK(rsdp && !memcmp(rsdp, "RSD PTR ", 8));
    CHECK_EQUAL(sum(rsdp, 20), 0);
    CHECK_EQUAL(sum(rsdp, 36), 0);
    CHECK(rsdp_address >= 0xf0000 && rsdp_address < 0x100000 && rsdp_address % 16 == 0);
    uint64_t xsdt_address;
    memcpy(&xsdt_address, rsdp + 24, 8);
    const uint8_t *xsdt = guest_mem_ptr(mem, xsdt_address, 36 + 8 * ARRAY_SIZE(names));
    CHECK(xsdt && !memcmp(xsdt, "XSDT", 4));
    for (unsigned i = 0; xsdt && i < ARRAY_SIZE(names); i++) {
        uint64_t address;
        uint32_t length;
        memcpy(&address, xsdt + 36 + 8 * i, 8);
        const uint8_t *table = guest_mem_ptr(mem, address, 36);
        CHECK(table && !memcmp(table, names[i], 4));
        memcpy(&length, table + 4, 4);
        CHECK_EQUAL(sum(table, length), 0);
        table_save(directory, names[i], table, length);
        if (i == 0) {
            uint32_t dsdt_address;
            memcpy(&dsdt_address, table + 40, 4);
            const uint8_t *dsdt = guest_mem_ptr(mem, dsdt_address, 36);
            memcpy(&length, dsdt + 4, 4);
            CHECK_EQUAL(sum(dsdt, length), 0);
            table_save(directory, "DSDT", dsdt, length);
        }
    }
    /* The MP floating pointer is found by a scan. */
    const uint8_t *area = guest_mem_ptr(mem, BOARD_TABLES_BASE, BOARD_TABLES_SIZE);
    bool found = false;
    for (size_t i = 0; i < BOARD_TABLES_SIZE; i += 16)
        found |= !memcmp(area + i, "_MP_", 4) && sum(area + i, 16) == 0;
    CHECK(found);
}

/* The tables of the largest machine fit, too. */
static void test_many_cpus(struct board_config config, struct timer_queue *queue) {
    uint64_t rsdp = 0;
    config.cpus = 255;
    config.timers = queue;
    board = board_create(&config);
    CHECK(board);
    for (unsigned i = 0; board && i < config.cpus; i++)
        lapic_connect(board_lapic(board, i), &cpu_ops, NULL);
    CHECK_EQUAL(board_start(board, &rsdp), 0);
    test_tables(config.mem, rsdp, NULL);
    board_destroy(board);
}

/* Ticks by the 8259s alone, as a BIOS has it; the first edge may come at once. */
static void test_clock(struct timer_queue *queue) {
    struct lapic *lapic = board_lapic(board, 0);
    board_start_clock(board);
    if (lapic_interrupt_waits(lapic))
        CHECK_EQUAL(lapic_interrupt_take(lapic), 8);
    for (unsigned i = 0; i < 3; i++) {
        out(0x20, 1, 0x20);
        CHECK(!lapic_interrupt_waits(lapic));
        timer_queue_advance(queue, 55000000);
        CHECK_EQUAL(lapic_interrupt_take(lapic), 8);
    }
    CHECK_EQUAL(in(0x21, 1), 0xfe);
    CHECK_EQUAL(in(0xa1, 1), 0xff);
}

int main(int argc, char **argv) {
    test_bus();
    struct guest_mem mem;
    CHECK_EQUAL(guest_mem_create(&mem, 64 * MIB, 0), 0);
    struct timer_queue *queue = timer_queue_create_manual();
    struct board_config config = {.cpus = 2,
                                  .mem = &mem,
                                  .tsc_hz = 1000000000,
                                  .physical_bits = 40,
                                  .debug_exit_port = 0xf4,
                                  .timers = queue,
                                  .events = {.poweroff = on_poweroff,
                                             .reset = on_reset,
                                             .debug_exit = on_exit_value,
                                             .serial_write = on_serial}};
    test_many_cpus(config, queue);
    board = board_create(&config);
    CHECK(board);
    for (unsigned i = 0; i < 2; i++)
        lapic_connect(board_lapic(board, i), &cpu_ops, NULL);
    uint64_t rsdp = 0;
    CHECK_EQUAL(board_start(board, &rsdp), 0);
    test_tables(&mem, rsdp, argc > 1 ? argv[1] : NULL);
    CHECK_EQUAL(mmio_in(0xfee00030), 0x50014);
    CHECK_EQUAL(mmio_in(0xe0000000), 0x00081b36);
    CHECK_EQUAL(mmio_in(0xfe000000), UINT32_MAX);
    CHECK_EQUAL(in(0x3fd, 1), 0x60);
    CHECK_EQUAL(in(0x1234, 4), UINT32_MAX);
    out(0x3f8, 1, 'A');
    CHECK_EQUAL(serial_bytes, 1);
    out(0xcf8, 4, 0x80000000);
    CHECK_EQUAL(in(0xcfc, 4), 0x00081b36);
    test_interrupts(queue);
    out(0xf4, 1, 7);
    CHECK_EQUAL(exit_value, 7);
    out(0xcf9, 1, 6);
    CHECK_EQUAL(resets, 1);
    out(0x64, 1, 0xfe);
    CHECK_EQUAL(resets, 2);
    out(0x604, 2, 5 << 10 | 1 << 13);
    CHECK_EQUAL(poweroffs, 1);
    board_reset(board);
    CHECK_EQUAL(board_start(board, &rsdp), 0);
    CHECK_EQUAL(mmio_in(0xfee000f0), 0xff);
    test_clock(queue);
    board_destroy(board);
    timer_queue_destroy(queue);
    guest_mem_destroy(&mem);
    return check_result();
}
