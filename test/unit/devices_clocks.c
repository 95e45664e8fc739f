/* PIT, RTC, HPET and the ACPI timer, on a manual clock. */
#include <string.h>

#include "devices/acpi_pm.h"
#include "devices/hpet.h"
#include "devices/i8254.h"
#include "devices/mc146818.h"
#include "devices_check.h"

static struct timer_queue *queue;

static uint64_t ticks_ns(uint64_t ticks) {
    return timer_scale_up(ticks, NS_PER_SECOND, PIT_HZ);
}

static void pit_load(struct i8254 *pit, unsigned counter, uint8_t control, uint16_t count) {
    i8254_write(pit, 3, control);
    i8254_write(pit, counter, (uint8_t)count);
    i8254_write(pit, counter, (uint8_t)(count >> 8));
}

static uint16_t pit_latched(struct i8254 *pit, unsigned counter) {
    i8254_write(pit, 3, (uint8_t)(counter << 6));
    uint8_t low = i8254_read(pit, counter);
    return (uint16_t)(low | i8254_read(pit, counter) << 8);
}

static void test_pit(void) {
    struct check_line irq = {0};
    struct i8254 *pit = i8254_create(queue, (struct irq_line){check_line_set, &irq, 0});
    /* Rate generator at 1000 Hz. */
    pit_load(pit, 0, 0x34, 1193);
    irq.rises = 0;
    timer_queue_advance(queue, ticks_ns(1193 * 10) + 1000);
    CHECK_EQUAL(irq.rises, 10);
    CHECK(irq.level);
    /* Square wave; a new count is taken at the end of the period. */
    pit_load(pit, 0, 0x36, 1000);
    timer_queue_advance(queue, ticks_ns(500));
    i8254_write(pit, 0, 0xd0);
    i8254_write(pit, 0, 0x07); /* 2000 */
    irq.rises = 0;
    timer_queue_advance(queue, ticks_ns(510));
    CHECK_EQUAL(irq.rises, 1);
    timer_queue_advance(queue, ticks_ns(1900));
    CHECK_EQUAL(irq.rises, 1);
    timer_queue_advance(queue, ticks_ns(150));
    CHECK_EQUAL(irq.rises, 2);
    /* Interrupt on terminal count. */
    pit_load(pit, 0, 0x30, 5000);
    CHECK(!irq.level);
    irq.rises = 0;
    timer_queue_advance(queue, ticks_ns(1000));
    CHECK_EQUAL(pit_latched(pit, 0), 4000);
    timer_queue_advance(queue, ticks_ns(4001));
    CHECK(irq.level);
    CHECK_EQUAL(irq.rises, 1);
    i8254_write(pit, 3, 0xe2); /* read back status of counter 0 */
    CHECK_EQUAL(i8254_read(pit, 0), 0xb0);
    /* Software strobe. */
    pit_load(pit, 0, 0x38, 100);
    CHECK(irq.level);
    irq.rises = 0;
    timer_queue_advance(queue, ticks_ns(1000));
    CHECK_EQUAL(irq.rises, 1);
    /* Counter 2 behind its gate: what TSC calibrations do. */
    i8254_port61_write(pit, 0);
    pit_load(pit, 2, 0xb0, 11932);
    CHECK_EQUAL(i8254_port61_read(pit) & 0x21, 0);
    timer_queue_advance(queue, ticks_ns(20000));
    CHECK_EQUAL(i8254_port61_read(pit) & 0x21, 0);
    CHECK_EQUAL(pit_latched(pit, 2), 11932);
    i8254_port61_write(pit, 1);
    timer_queue_advance(queue, ticks_ns(11000));
    CHECK_EQUAL(i8254_port61_read(pit) & 0x21, 0x01);
    timer_queue_advance(queue, ticks_ns(1000));
    CHECK_EQUAL(i8254_port61_read(pit) & 0x21, 0x21);
    /* One-shot by the gate, square wave, BCD. */
    i8254_port61_write(pit, 0);
    pit_load(pit, 2, 0xb2, 1000);
    CHECK_EQUAL(i8254_port61_read(pit) & 0x20, 0x20);
    i8254_port61_write(pit, 1);
    CHECK_EQUAL(i8254_port61_read(pit) & 0x20, 0);
    timer_queue_advance(queue, ticks_ns(1001));
    CHECK_EQUAL(i8254_port61_read(pit) & 0x20, 0x20);
    pit_load(pit, 2, 0xb7, 0x1000); /* BCD: 1000 */
    timer_queue_advance(queue, ticks_ns(250));
    CHECK_EQUAL(i8254_port61_read(pit) & 0x20, 0x20);
    timer_queue_advance(queue, ticks_ns(500));
    CHECK_EQUAL(i8254_port61_read(pit) & 0x20, 0);
    pit_load(pit, 2, 0xb1, 0x0000); /* BCD mode 0: 10000 */
    timer_queue_advance(queue, ticks_ns(1) + 10);
    CHECK_EQUAL(pit_latched(pit, 2), 0x9999);
    i8254_destroy(pit);
}

static uint8_t cmos(struct mc146818 *rtc, uint8_t index) {
    mc146818_write(rtc, 0, index);
    return mc146818_read(rtc, 1);
}
static void cmos_set(struct mc146818 *rtc, uint8_t index, uint8_t value) {
    mc146818_write(rtc, 0, index);
    mc146818_write(rtc, 1, value);
}

static void test_rtc(void) {
    struct check_line irq = {0};
    struct mc146818_config config = {.timers = queue,
                                     .irq8 = {check_line_set, &irq, 0},
                                     .low_memory = 512 * MIB,
                                     .high_memory = 3 * GIB,
                                     .start_time = 1709210096}; /* 2024-02-29 12:34:56 */
    struct mc146818 *rtc = mc146818_create(&config);
    CHECK_EQUAL(cmos(rtc, 0), 0x56);
    CHECK_EQUAL(cmos(rtc, 2), 0x34);
    CHECK_EQUAL(cmos(rtc, 4), 0x12);
    CHECK_EQUAL(cmos(rtc, 6), 5); /* Thursday */
    CHECK_EQUAL(cmos(rtc, 7), 0x29);
    CHECK_EQUAL(cmos(rtc, 8), 0x02);
    CHECK_EQUAL(cmos(rtc, 9), 0x24);
    CHECK_EQUAL(cmos(rtc, 0x32), 0x20);
    CHECK_EQUAL(cmos(rtc, 0x0d), 0x80);
    CHECK_EQUAL(cmos(rtc, 0x34) | cmos(rtc, 0x35) << 8, 496 * 16);
    CHECK_EQUAL(cmos(rtc, 0x5b) | cmos(rtc, 0x5c) << 8 | cmos(rtc, 0x5d) << 16, 3 * 16384);
    CHECK_EQUAL(cmos(rtc, 0x15) | cmos(rtc, 0x16) << 8, 640);
    /* Update in progress, for the last 2.2 ms of a second. */
    CHECK_EQUAL(cmos(rtc, 0x0a), 0x26);
    timer_queue_advance(queue, 998000000);
    CHECK_EQUAL(cmos(rtc, 0x0a), 0xa6);
    timer_queue_advance(queue, 2000000);
    CHECK_EQUAL(cmos(rtc, 0x0a), 0x26);
    CHECK_EQUAL(cmos(rtc, 0), 0x57);
    CHECK_EQUAL(cmos(rtc, 0x0c) & 0x10, 0x10);
    CHECK_EQUAL(cmos(rtc, 0x0c), 0);
    /* Periodic at 1024 Hz. */
    cmos_set(rtc, 0x0b, 0x42);
    unsigned interrupts = 0;
    for (unsigned i = 0; i < 1024; i++) {
        timer_queue_advance(queue, NS_PER_SECOND / 1024);
        if (irq.level && cmos(rtc, 0x0c) & 0x40)
            interrupts++;
    }
    CHECK(interrupts >= 1020 && interrupts <= 1024);
    /* Update-ended, alarm. */
    cmos_set(rtc, 0x0b, 0x12);
    cmos(rtc, 0x0c);
    timer_queue_advance(queue, NS_PER_SECOND);
    CHECK(irq.level);
    CHECK_EQUAL(cmos(rtc, 0x0c) & 0xf0, 0xd0);
    CHECK(!irq.level);
    cmos_set(rtc, 0x05, 0xff);
    cmos_set(rtc, 0x03, 0x35);
    cmos_set(rtc, 0x01, 0x10);
    cmos_set(rtc, 0x0b, 0x22);
    cmos(rtc, 0x0c);
    timer_queue_advance(queue, 9 * NS_PER_SECOND);
    CHECK(!irq.level);
    timer_queue_advance(queue, 4 * NS_PER_SECOND);
    CHECK(irq.level);
    CHECK_EQUAL(cmos(rtc, 0x0c) & 0xa0, 0xa0);
    /* The guest sets the clock: binary, 12 hours. */
    cmos_set(rtc, 0x0b, 0x84);
    cmos_set(rtc, 0, 59);
    cmos_set(rtc, 2, 59);
    cmos_set(rtc, 4, 0x80 | 11);
    cmos_set(rtc, 7, 31);
    cmos_set(rtc, 8, 12);
    cmos_set(rtc, 9, 99);
    cmos_set(rtc, 0x32, 20);
    timer_queue_advance(queue, 10 * NS_PER_SECOND);
    CHECK_EQUAL(cmos(rtc, 0), 59);
    cmos_set(rtc, 0x0b, 0x04);
    timer_queue_advance(queue, NS_PER_SECOND);
    CHECK_EQUAL(cmos(rtc, 0), 0);
    CHECK_EQUAL(cmos(rtc, 4), 12);
    CHECK_EQUAL(cmos(rtc, 7), 1);
    CHECK_EQUAL(cmos(rtc, 9), 0);
    CHECK_EQUAL(cmos(rtc, 0x32), 21);
    mc146818_destroy(rtc);
}

struct hpet_pins {
    struct check_line gsi[32], legacy[16];
    bool on;
};

static void hpet_gsi(void *context, unsigned gsi, bool level) {
    check_line_set(((struct hpet_pins *)context)->gsi, gsi, level);
}
static void hpet_legacy(void *context, unsigned irq, bool level) {
    check_line_set(((struct hpet_pins *)context)->legacy, irq, level);
}
static void hpet_mode(void *context, bool on) {
    ((struct hpet_pins *)context)->on = on;
}
static const struct hpet_ops hpet_ops = {hpet_gsi, hpet_legacy, hpet_mode};

static void test_hpet(void) {
    struct hpet_pins pins = {0};
    struct hpet *hpet = hpet_create(queue, &hpet_ops, &pins);
    uint64_t capabilities = hpet_read(hpet, 0, 8);
    CHECK_EQUAL(capabilities >> 32, HPET_PERIOD_FS);
    CHECK_EQUAL(capabilities >> 8 & 31, HPET_COMPARATORS - 1);
    timer_queue_advance(queue, 1000);
    CHECK_EQUAL(hpet_read(hpet, 0xf0, 8), 0);
    hpet_write(hpet, 0xf0, 8, 0xfffffff0);
    hpet_write(hpet, 0x10, 4, 1);
    timer_queue_advance(queue, 1000);
    CHECK_EQUAL(hpet_read(hpet, 0xf0, 8), 0x100000054);
    CHECK_EQUAL(hpet_read(hpet, 0xf4, 4), 1);
    /* One-shot, edge, input 20. */
    hpet_write(hpet, 0x140, 8, 20u << 9 | 4);
    hpet_write(hpet, 0x148, 8, hpet_read(hpet, 0xf0, 8) + 100);
    timer_queue_advance(queue, 990);
    CHECK_EQUAL(pins.gsi[20].rises, 0);
    timer_queue_advance(queue, 10);
    CHECK_EQUAL(pins.gsi[20].rises, 1);
    CHECK(!pins.gsi[20].level);
    /* Periodic, level, legacy interrupt 0. */
    hpet_write(hpet, 0x10, 4, 3);
    CHECK(pins.on);
    hpet_write(hpet, 0x100, 8, 0x4e | 0x100);
    hpet_write(hpet, 0x108, 4, (uint32_t)hpet_read(hpet, 0xf0, 4) + 10000);
    hpet_write(hpet, 0x108, 4, 10000);
    for (unsigned i = 0; i < 5; i++) {
        timer_queue_advance(queue, 100000);
        CHECK(pins.legacy[0].level);
        CHECK_EQUAL(hpet_read(hpet, 0x20, 8), 1);
        hpet_write(hpet, 0x20, 8, 1);
        CHECK(!pins.legacy[0].level);
    }
    /* It goes on while its interrupt is disabled, and catches up when it is looked at. */
    hpet_write(hpet, 0x100, 8, 0x10a);
    timer_queue_advance(queue, 1234567);
    CHECK(!pins.legacy[0].level);
    CHECK_EQUAL(hpet_read(hpet, 0x20, 8), 1);
    uint64_t ahead = (uint32_t)(hpet_read(hpet, 0x108, 4) - hpet_read(hpet, 0xf0, 4));
    CHECK(ahead > 0 && ahead <= 10000);
    hpet_write(hpet, 0x20, 8, 1);
    hpet_write(hpet, 0x100, 8, 0x10e);
    timer_queue_advance(queue, (ahead - 1) * 10);
    CHECK(!pins.legacy[0].level);
    timer_queue_advance(queue, 10);
    CHECK(pins.legacy[0].level);
    hpet_write(hpet, 0x20, 8, 1);
    /* A route that is not offered is not taken. */
    hpet_write(hpet, 0x120, 8, 5u << 9);
    CHECK_EQUAL(hpet_read(hpet, 0x120, 4) >> 9 & 31, 0);
    hpet_write(hpet, 0x10, 4, 0);
    CHECK(!pins.on);
    hpet_destroy(hpet);
}

/* How often a guest powered off, fell asleep and was woken. */
struct power {
    unsigned offs, sleeps, wakes;
};

static void power_off(void *context) {
    ((struct power *)context)->offs++;
}
static void power_sleep(void *context) {
    ((struct power *)context)->sleeps++;
}
static void power_wake(void *context) {
    ((struct power *)context)->wakes++;
}

static const struct acpi_pm_ops power_ops = {.poweroff = power_off, .sleep = power_sleep, .wake = power_wake};

static void alarm_to_pm(void *context) {
    acpi_pm_rtc_alarm(context);
}

/* But for the timer's carry. */
static uint32_t pm_events(struct acpi_pm *pm) {
    return acpi_pm_read(pm, 0, 2) & ~1u;
}

static void test_sleep(void) {
    const unsigned asleep = 1 << 10 | 1 << 13, alarm_bit = 1 << 10, button_bit = 1 << 8, wake_bit = 1 << 15;
    struct power power = {0};
    struct check_line sci = {0}, irq = {0};
    struct acpi_pm *pm =
        acpi_pm_create(queue, (struct irq_line){check_line_set, &sci, 0}, &power_ops, &power);
    struct mc146818_config config = {.timers = queue,
                                     .irq8 = {check_line_set, &irq, 0},
                                     .alarm = alarm_to_pm,
                                     .context = pm,
                                     .start_time = 1709210096}; /* 2024-02-29 12:34:56 */
    struct mc146818 *rtc = mc146818_create(&config);
    /* Any second's alarm; not enabled at first. */
    cmos_set(rtc, 1, 0xff);
    cmos_set(rtc, 3, 0xff);
    cmos_set(rtc, 5, 0xff);
    timer_queue_advance(queue, 2 * NS_PER_SECOND);
    CHECK_EQUAL(pm_events(pm) & alarm_bit, 0);
    CHECK_EQUAL(cmos(rtc, 0x0c) & 0xa0, 0x20);
    cmos_set(rtc, 0x0b, 0x22);
    /* Awake: RTC_STS, and an SCI once that is enabled. */
    timer_queue_advance(queue, NS_PER_SECOND);
    CHECK_EQUAL(pm_events(pm), alarm_bit);
    CHECK(!sci.level);
    acpi_pm_write(pm, 2, 2, alarm_bit);
    CHECK(sci.level);
    acpi_pm_write(pm, 0, 2, alarm_bit);
    CHECK(!sci.level);
    /* The interrupt stands until register C is read, so there is no other alarm. */
    timer_queue_advance(queue, 3 * NS_PER_SECOND);
    CHECK_EQUAL(pm_events(pm), 0);
    cmos(rtc, 0x0c);
    /* Asleep until the alarm. */
    acpi_pm_write(pm, ACPI_PM_CONTROL, 2, asleep);
    CHECK_EQUAL(power.sleeps, 1);
    CHECK_EQUAL(power.wakes, 0);
    timer_queue_advance(queue, NS_PER_SECOND);
    CHECK_EQUAL(power.wakes, 1);
    CHECK_EQUAL(pm_events(pm), wake_bit | alarm_bit);
    CHECK_EQUAL(acpi_pm_read(pm, ACPI_PM_CONTROL, 2), 1 << 10 | 1);
    CHECK_EQUAL(cmos(rtc, 0x0c) & 0xa0, 0xa0);
    /* What waits already ends the next sleep at once. */
    acpi_pm_write(pm, ACPI_PM_CONTROL, 2, asleep);
    CHECK_EQUAL(power.sleeps, 2);
    CHECK_EQUAL(power.wakes, 2);
    /* An alarm that is not enabled wakes nobody, nor does the timer; the button always does. */
    acpi_pm_write(pm, 0, 2, 0xffff);
    acpi_pm_write(pm, 2, 2, 1);
    cmos(rtc, 0x0c);
    acpi_pm_write(pm, ACPI_PM_CONTROL, 2, asleep);
    timer_queue_advance(queue, 10 * NS_PER_SECOND);
    CHECK_EQUAL(power.sleeps, 3);
    CHECK_EQUAL(power.wakes, 2);
    CHECK_EQUAL(acpi_pm_power_button(pm), ACPI_BUTTON_WOKE);
    CHECK_EQUAL(power.wakes, 3);
    CHECK_EQUAL(pm_events(pm), wake_bit | button_bit | alarm_bit);
    acpi_pm_write(pm, 0, 2, 0xffff);
    /* So does an enabled general-purpose event. */
    acpi_pm_write(pm, ACPI_PM_GPE0 + 2, 2, 2);
    acpi_pm_write(pm, ACPI_PM_CONTROL, 2, asleep);
    acpi_pm_gpe(pm, 2);
    CHECK_EQUAL(power.wakes, 3);
    acpi_pm_gpe(pm, 1);
    CHECK_EQUAL(power.sleeps, 4);
    CHECK_EQUAL(power.wakes, 4);
    CHECK_EQUAL(power.offs, 0);
    mc146818_destroy(rtc);
    acpi_pm_destroy(pm);
}

static void test_acpi(void) {
    struct power power = {0};
    struct check_line sci = {0};
    struct acpi_pm *pm =
        acpi_pm_create(queue, (struct irq_line){check_line_set, &sci, 0}, &power_ops, &power);
    uint32_t before = acpi_pm_read(pm, ACPI_PM_TIMER, 4);
    timer_queue_advance(queue, NS_PER_SECOND);
    uint32_t after = acpi_pm_read(pm, ACPI_PM_TIMER, 4);
    uint32_t ticks = (after - before) & 0xffffff;
    CHECK(ticks >= 3579544 && ticks <= 3579546);
    CHECK_EQUAL(acpi_pm_read(pm, ACPI_PM_CONTROL, 2), 1);
    CHECK_EQUAL(acpi_pm_power_button(pm), ACPI_BUTTON_UNHEARD);
    acpi_pm_write(pm, 0, 2, 1 << 8);
    acpi_pm_write(pm, 2, 2, 1 << 8);
    CHECK(!sci.level);
    CHECK_EQUAL(acpi_pm_power_button(pm), ACPI_BUTTON_HEARD);
    CHECK(sci.level);
    CHECK(acpi_pm_read(pm, 0, 2) & 1 << 8);
    acpi_pm_write(pm, 0, 2, 1 << 8);
    CHECK(!sci.level);
    acpi_pm_gpe(pm, 3);
    CHECK(!sci.level);
    acpi_pm_write(pm, ACPI_PM_GPE0 + 2, 2, 8);
    CHECK(sci.level);
    acpi_pm_write(pm, ACPI_PM_GPE0, 2, 8);
    CHECK(!sci.level);
    /* The timer's carry. */
    acpi_pm_write(pm, 0, 2, 1);
    acpi_pm_write(pm, 2, 2, 1);
    timer_queue_advance(queue, 3 * NS_PER_SECOND);
    CHECK(sci.level);
    acpi_pm_write(pm, ACPI_PM_CONTROL, 2, 3 << 10 | 1 << 13);
    CHECK_EQUAL(power.offs, 0);
    acpi_pm_write(pm, ACPI_PM_CONTROL, 2, 5 << 10 | 1 << 13);
    CHECK_EQUAL(power.offs, 1);
    acpi_pm_destroy(pm);
}

int main(void) {
    queue = timer_queue_create_manual();
    test_pit();
    test_rtc();
    test_hpet();
    test_acpi();
    test_sleep();
    timer_queue_destroy(queue);
    return check_result();
}
