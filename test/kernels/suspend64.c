/*
 * Suspend to RAM: the ACPI tables say how, the RTC's alarm wakes, and the machine goes on at the FACS's
 * waking vector with its memory as it was and everything else as after power-on. Ends with a sleep that has
 * no waking vector, which starts the guest anew; the CMOS counts its boots. Source:
 * ACPI 6.5, 4.8.3.1, 5.2.10, 16.3; MC146818 data sheet.
 */
#include "apic.h"
#include "runtime.h"
#include "waking.h"

#define BOOT_COUNT 0x50 /* a byte of the CMOS that nobody else uses */
#define RTC_BIT BIT(10)
#define WAKE_BIT BIT(15)
#define SLEEP_ENABLE BIT(13)
#define PATTERN_WORDS 0x40000u
#define PATIENCE 60000000000ull /* of the TSC: many seconds, so that a busy host fails no test */

/* See waking.S. */
struct waking_state {
    uint32_t cs, flags, cr0, efer, escaped;
};

extern const uint8_t waking_start[], waking_end[], waking_protected[];
extern const uint8_t trampoline_start[], trampoline_end[];
void suspend_run(uint16_t port, uint16_t value);
void cpu_set_main(unsigned index, void (*main)(unsigned index));

static volatile struct waking_state *const state = (volatile struct waking_state *)WAKING_STATE;
static const uint8_t *rsdt, *fadt;
static uint8_t *facs;
static uint16_t pm_status, pm_enable, pm_control;
static unsigned sleep_type;
static volatile uint64_t other_rounds;
static volatile bool other_restarted;

static uint16_t in16(uint16_t port) {
    uint16_t value;
    asm volatile("inw %1, %0" : "=a"(value) : "Nd"(port) : "memory");
    return value;
}

/* But for the PM timer's carry, which comes when it comes. */
static uint16_t pm_events(void) {
    return in16(pm_status) & (uint16_t)~1u;
}

static void out16(uint16_t port, uint16_t value) {
    asm volatile("outw %0, %1" : : "a"(value), "Nd"(port) : "memory");
}

static uint32_t read32(const uint8_t *bytes) {
    return bytes[0] | (uint32_t)bytes[1] << 8 | (uint32_t)bytes[2] << 16 | (uint32_t)bytes[3] << 24;
}

static void write32(uint8_t *bytes, uint32_t value) {
    for (unsigned i = 0; i < 4; i++)
        ((volatile uint8_t *)bytes)[i] = (uint8_t)(value >> 8 * i);
}

static bool has_text(const uint8_t *bytes, const char *text) {
    for (; *text; text++, bytes++)
        if (*bytes != (uint8_t)*text)
            return false;
    return true;
}

static const uint8_t *address_of(uint32_t address) {
    return (const uint8_t *)(uintptr_t)address;
}

static bool tables_find(void) {
    for (const uint8_t *at = address_of(0xe0000); at < address_of(0x100000) && !rsdt; at += 16)
        if (has_text(at, "RSD PTR "))
            rsdt = address_of(read32(at + 16));
    for (unsigned i = 36; rsdt && i < read32(rsdt + 4); i += 4)
        if (has_text(address_of(read32(rsdt + i)), "FACP"))
            fadt = address_of(read32(rsdt + i));
    if (!check(fadt != 0, true, "there is a FADT"))
        return false;
    facs = (uint8_t *)(uintptr_t)read32(fadt + 36);
    pm_status = (uint16_t)read32(fadt + 56);
    pm_enable = (uint16_t)(pm_status + fadt[88] / 2);
    pm_control = (uint16_t)read32(fadt + 64);
    check(has_text(facs, "FACS"), true, "and a FACS");
    check(read32(fadt + 112) & BIT(6), 0, "the RTC's wake status is in the fixed registers");
    /* \_S3 in the DSDT: its name, a package, and the first of its elements as a byte or One. */
    const uint8_t *dsdt = address_of(read32(fadt + 40));
    for (unsigned i = 36; i + 10 < read32(dsdt + 4) && !sleep_type; i++)
        if (has_text(dsdt + i, "_S3_") && dsdt[i + 4] == 0x12)
            sleep_type = dsdt[i + 7] == 0x0a ? dsdt[i + 8] : dsdt[i + 7];
    return check(sleep_type > 0 && sleep_type < 8, true, "the DSDT has \\_S3");
}

/* The alarm of the next second, whichever that is. */
static void alarm_start(void) {
    for (unsigned i = 1; i <= 5; i += 2)
        cmos_write(i, 0xff);
    cmos_write(0xb, (cmos_read(0xb) & 0x0f) | 0x20);
    cmos_read(0xc);
    out16(pm_status, RTC_BIT | WAKE_BIT);
}

static void check_alarm_awake(void) {
    out16(pm_enable, 0);
    alarm_start();
    uint64_t begin = read_tsc();
    while (!(in16(pm_status) & RTC_BIT) && read_tsc() - begin < PATIENCE)
        cpu_pause();
    check(pm_events(), RTC_BIT, "awake: the alarm sets RTC_STS, and not WAK_STS");
    check(cmos_read(0xc) & 0xa0, 0xa0, "awake: the RTC shows its alarm");
    out16(pm_status, RTC_BIT);
    check(pm_events(), 0, "RTC_STS is cleared by a one");
}

static void other_main(unsigned index) {
    (void)index;
    for (;;)
        other_rounds++;
}

static void other_again(unsigned index) {
    (void)index;
    other_restarted = true;
}

static uint32_t pci_read(unsigned device, unsigned offset) {
    out32(0xcf8, 0x80000000u | device << 11 | offset);
    return in32(0xcfc);
}

static void fall_asleep(void) {
    state->cs = state->flags = state->cr0 = state->efer = 0x5555;
    state->escaped = 0;
    suspend_run(pm_control, (uint16_t)(sleep_type << 10 | SLEEP_ENABLE));
    descriptors_load(0);
    check(state->escaped, 0, "no instruction ran after the one that went to sleep");
    check(state->flags & FLAG_IF, 0, "interrupts are off");
    check(state->efer, 0, "EFER is zero");
}

static void check_sleep(bool has_other) {
    uint32_t *pattern = pages_alloc(PATTERN_WORDS / 1024, 4096);
    for (uint32_t i = 0; i < PATTERN_WORDS; i++)
        pattern[i] = i * 2654435761u;
    uint32_t command = pci_read(1, 4), bar = pci_read(1, 0x20);
    apic_enable();
    ioapic_route(4, 0x99, 0);
    uint64_t tsc = read_tsc();
    write32(facs + 12, WAKING_ADDRESS);
    write32(facs + 24, 0);
    write32(facs + 28, 0);
    alarm_start();
    out16(pm_enable, RTC_BIT);
    fall_asleep();
    check(state->cs, WAKING_ADDRESS >> 4, "the machine wakes at CS = vector / 16");
    check(state->cr0 & (CR0_PE | CR0_PG), 0, "in real mode");
    check(pm_events(), RTC_BIT | WAKE_BIT, "WAK_STS, and RTC_STS says why");
    check(in16(pm_control) & SLEEP_ENABLE, 0, "SLP_EN reads as zero");
    check(cmos_read(0xc) & 0xa0, 0xa0, "the RTC shows its alarm");
    struct tally tally;
    tally_begin(&tally, "memory is as it was");
    for (uint32_t i = 0; i < PATTERN_WORDS; i++)
        tally_case(&tally, pattern[i], i * 2654435761u, "word %u", i);
    tally_end(&tally);
    check(read_tsc() > tsc, true, "the TSC did not go back");
    check(apic_read(APIC_SVR), 0xff, "the local APIC is as after power-on");
    check(ioapic_read(0x10 + 2 * 4) & IOAPIC_MASKED, IOAPIC_MASKED, "so is the IOAPIC");
    check(pci_read(1, 4) & 7, command & 7, "firmware has turned PCI decoding on again");
    check(pci_read(1, 0x20), bar, "at the same address");
    if (!has_other)
        return;
    uint64_t rounds = other_rounds;
    delay_us(20000);
    check(other_rounds, rounds, "the other CPU stands");
    volatile uint8_t *page = (volatile uint8_t *)TRAMPOLINE;
    for (const uint8_t *p = trampoline_start; p < trampoline_end; p++)
        page[p - trampoline_start] = *p;
    cpu_set_main(2, other_again);
    apic_enable();
    apic_ipi(1, ICR_INIT | ICR_ASSERT);
    delay_us(10000);
    apic_ipi(1, ICR_STARTUP | ICR_ASSERT | TRAMPOLINE >> 12);
    uint64_t begin = read_tsc();
    while (!other_restarted && read_tsc() - begin < PATIENCE)
        cpu_pause();
    check(other_restarted, true, "and starts again");
}

static void check_waiting_event(void) {
    out16(pm_status, 0xffff);
    alarm_start();
    out16(pm_enable, RTC_BIT);
    uint64_t begin = read_tsc();
    while (!(in16(pm_status) & RTC_BIT) && read_tsc() - begin < PATIENCE)
        cpu_pause();
    fall_asleep();
    check(pm_events(), RTC_BIT | WAKE_BIT, "an event that waits already ends the sleep");
}

static void check_protected(void) {
    write32(facs + 24, (uint32_t)(uintptr_t)waking_protected);
    alarm_start();
    out16(pm_enable, RTC_BIT);
    fall_asleep();
    check(state->cs, UINT32_MAX, "the wide vector has precedence");
    check(state->cr0 & (CR0_PE | CR0_PG), CR0_PE, "and is entered in protected mode");
}

static void second_boot(void) {
    check(cmos_read(BOOT_COUNT), 1, "a sleep without a waking vector starts the guest anew");
    check(in16(pm_status) & WAKE_BIT, 0, "which is no waking");
    checks_finish("suspend64");
}

void kernel_main(void) {
    if (!tables_find())
        checks_finish("suspend64");
    if (cmos_read(BOOT_COUNT))
        second_boot();
    for (const uint8_t *p = waking_start; p < waking_end; p++)
        ((volatile uint8_t *)WAKING_ADDRESS)[p - waking_start] = *p;
    check_alarm_awake();
    bool has_other = cpu_start(1, other_main);
    check_sleep(has_other);
    check_waiting_event();
    check_protected();
    cmos_write(BOOT_COUNT, 1);
    write32(facs + 12, 0);
    write32(facs + 24, 0);
    alarm_start();
    out16(pm_enable, RTC_BIT);
    suspend_run(pm_control, (uint16_t)(sleep_type << 10 | SLEEP_ENABLE));
}
