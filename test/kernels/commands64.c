/*
 * A guest that ends, or misbehaves, as it is told over the serial line. It prints "boot N" (counted in the
 * CMOS, which survives a reset) and then obeys one letter at a time, answering with a line before it acts:
 *   xD  write the digit D to the debug-exit port       r  reset by port 0xCF9
 *   k   reset by the keyboard controller               t  triple fault
 *   h   halt with interrupts off                       s  spin with interrupts off
 *   n   read and write where nothing is                g  write garbage to devices
 *   z   sleep (S3) until the power button is pressed; without a waking vector that boots anew
 */
#include "runtime.h"

#define COM1 0x3f8
#define BOOT_COUNT 0x50 /* a byte of the CMOS that nobody else uses */
#define PCI_ADDRESS 0xcf8
#define PCI_DATA 0xcfc
#define GARBAGE_ROUNDS 20000
#define PM_STATUS 0x600
#define PM_ENABLE 0x602
#define PM_CONTROL 0x604
#define BUTTON 0x0100
#define SLEEP_S3 0x2400

static void out16(uint16_t port, uint16_t value) {
    asm volatile("outw %0, %1" : : "a"(value), "Nd"(port) : "memory");
}

static char serial_read(void) {
    while (!(in8(COM1 + 5) & 1))
        cpu_pause();
    return (char)in8(COM1);
}

static void triple_fault(void) {
    struct table_register none = {0, 0};
    asm volatile("lidt %0\n\tud2" : : "m"(none));
}

/* Behind the end of RAM, in an empty PCI window, on a port that no device has. */
static void touch_nowhere(void) {
    static const uint64_t places[] = {0x10000000, 0x3ffffff8, 0xd0000000, 0xdffffff8, 0xf8000000, 0xfffffff8};
    struct tally tally;
    tally_begin(&tally, "reads of nothing give all ones");
    for (unsigned i = 0; i < ARRAY_SIZE(places); i++) {
        volatile uint64_t *place = (volatile uint64_t *)places[i];
        *place = 0x0123456789abcdef;
        tally_case(&tally, *place, UINT64_MAX, "memory at 0x%llx", (unsigned long long)places[i]);
        *(volatile uint8_t *)place = 0;
        tally_case(&tally, *(volatile uint8_t *)place, 0xff, "byte at 0x%llx", (unsigned long long)places[i]);
    }
    out32(0x7770, 0x12345678);
    tally_case(&tally, in32(0x7770), UINT32_MAX, "port 0x7770");
    tally_end(&tally);
}

static uint32_t random_next(uint32_t *state) {
    *state ^= *state << 13;
    *state ^= *state >> 17;
    *state ^= *state << 5;
    return *state;
}

static uint32_t pci_address(unsigned device, unsigned offset) {
    return 0x80000000u | device << 11 | (offset & 0xfc);
}

/* Whatever comes into the registers of every PCI function, of their BARs, of HPET and I/O APIC. Interrupts
 * are off, and the ports that reset or end the machine are left out. */
static void write_garbage(void) {
    uint32_t state = 0x2545f491;
    for (unsigned round = 0; round < GARBAGE_ROUNDS; round++) {
        unsigned device = random_next(&state) & 7;
        uint32_t value = random_next(&state);
        out32(PCI_ADDRESS, pci_address(device, random_next(&state)));
        out32(PCI_DATA, value);
        (void)in32(PCI_DATA);
        volatile uint32_t *mmio = (volatile uint32_t *)(0xc0000000ul + (random_next(&state) & 0x00fffffc));
        *mmio = value;
        (void)*mmio;
        *(volatile uint32_t *)(0xfed00000ul + (value & 0x3fc)) = random_next(&state);
        *(volatile uint32_t *)(0xfec00000ul + (value & 0x10)) = random_next(&state);
    }
    check(1, 1, "garbage written");
}

static void obey(char command) {
    switch (command) {
    case 'x': {
        char digit = serial_read();
        console_print("exit %c\n", digit);
        machine_exit((uint8_t)(digit - '0'));
        break;
    }
    case 'r':
        console_print("reset\n");
        out8(0xcf9, 0x02);
        out8(0xcf9, 0x06);
        break;
    case 'k':
        console_print("reset by the keyboard controller\n");
        out8(0x64, 0xfe);
        break;
    case 't':
        console_print("triple fault\n");
        triple_fault();
        break;
    case 'h':
        console_print("halted\n");
        for (;;)
            asm volatile("cli\n\thlt");
    case 's':
        console_print("spinning\n");
        for (;;)
            asm volatile("");
    case 'z':
        /* Enabled, a press that comes before the sleep ends it, too. */
        out16(PM_STATUS, BUTTON);
        out16(PM_ENABLE, BUTTON);
        console_print("asleep\n");
        out16(PM_CONTROL, SLEEP_S3);
        console_print("awake in its sleep\n");
        break;
    case 'n':
        touch_nowhere();
        return;
    case 'g':
        write_garbage();
        return;
    default:
        return;
    }
    for (;;) /* the machine resets soon */
        cpu_pause();
}

void kernel_main(void) {
    uint8_t boots = (uint8_t)(cmos_read(BOOT_COUNT) + 1);
    cmos_write(BOOT_COUNT, boots);
    console_print("boot %u\n", boots);
    for (;;)
        obey(serial_read());
}
