/*
 * The PC's interrupt controllers and the timers that feed them: the PICs through LINT0, the IOAPIC with edge
 * and level entries, the PIT, the RTC and the HPET. Sources: 8259A, 82093AA, 8254 and MC146818 data sheets,
 * IA-PC HPET 1.0a.
 */
#include "apic.h"
#include "runtime.h"

#define PIC_BASE 0x50
#define VECTOR_PIN 0x81
#define LINT_EXTINT 0x700
#define HPET 0xfed00000ul
#define HPET_CAPABILITIES 0x00
#define HPET_CONFIG 0x10
#define HPET_STATUS 0x20
#define HPET_COUNTER 0xf0
#define HPET_TIMER(n) (0x100 + 0x20 * (n))
#define HPET_COMPARATOR(n) (0x108 + 0x20 * (n))
#define HPET_TIMER_LEVEL BIT(1)
#define HPET_TIMER_ENABLE BIT(2)
#define HPET_TIMER_PERIODIC BIT(3)
#define HPET_TIMER_CAN_PERIODIC BIT(4)
#define HPET_TIMER_SET BIT(6)

static volatile unsigned counts[256];
static volatile unsigned in_service;
static volatile bool remote_irr;
static unsigned level_pin;

static inline uint64_t hpet_read(unsigned reg) {
    return *(volatile uint64_t *)(HPET + reg);
}

static inline void hpet_write(unsigned reg, uint64_t value) {
    *(volatile uint64_t *)(HPET + reg) = value;
}

static void handler_pic(struct context *frame) {
    unsigned irq = (unsigned)frame->vector - PIC_BASE;
    counts[frame->vector]++;
    out8(irq < 8 ? 0x20 : 0xa0, 0x0b);
    in_service = in8(irq < 8 ? 0x20 : 0xa0);
    if (irq == 8)
        cmos_read(0xc);
    pic_eoi(irq);
}

static void handler_edge(struct context *frame) {
    counts[frame->vector]++;
    cmos_read(0xc);
    apic_eoi();
}

/* The line stays up through the first EOI and goes down before the second. */
static void handler_level(struct context *frame) {
    unsigned count = ++counts[frame->vector];
    remote_irr = ioapic_read(0x10 + 2 * level_pin) & IOAPIC_REMOTE_IRR;
    if (count > 1)
        hpet_write(HPET_STATUS, 1);
    apic_eoi();
}

static bool wait_count(unsigned vector, unsigned wanted) {
    for (unsigned i = 0; i < 500 && counts[vector] < wanted; i++) {
        interrupts_enable();
        delay_us(1000);
        interrupts_disable();
    }
    return counts[vector] >= wanted;
}

static void interrupts_for(unsigned microseconds) {
    interrupts_enable();
    delay_us(microseconds);
    interrupts_disable();
}

static void pit_periodic(unsigned count) {
    out8(0x43, 0x34);
    out8(0x40, (uint8_t)count);
    out8(0x40, (uint8_t)(count >> 8));
}

static void pit_once(unsigned count) {
    out8(0x43, 0x30);
    out8(0x40, (uint8_t)count);
    out8(0x40, (uint8_t)(count >> 8));
}

static unsigned pit_latch(void) {
    out8(0x43, 0x00);
    unsigned low = in8(0x40);
    return low | (unsigned)in8(0x40) << 8;
}

static void check_pic(void) {
    for (unsigned i = 0; i < 16; i++)
        trap_handle(PIC_BASE + i, handler_pic);
    pic_init(PIC_BASE, PIC_BASE + 8);
    apic_write(APIC_LVT_LINT0, LINT_EXTINT);
    check(in8(0x21) << 8 | in8(0xa1), 0xffff, "PIC: masks can be read");
    pit_periodic(2000);
    interrupts_for(5000);
    check(counts[PIC_BASE], 0, "PIC: a masked IRQ");
    pic_mask(0xfffe);
    check(wait_count(PIC_BASE, 3), true, "PIC: the PIT's periodic IRQ 0");
    check(in_service, 1, "PIC: in-service register");
    pic_mask(0xffff);
    pit_once(20000);
    unsigned first = pit_latch();
    delay_us(200);
    unsigned second = pit_latch();
    check(first <= 20000 && second < first, true, "PIT: the latched count goes down");
    pic_mask(0xfffe);
    interrupts_for(40000); /* takes the end of that count */
    counts[PIC_BASE] = 0;
    pit_once(3000);
    check(wait_count(PIC_BASE, 1), true, "PIC: the PIT's one-shot");
    interrupts_for(6000);
    check(counts[PIC_BASE], 1, "PIC: the PIT's one-shot comes once");
    out8(0x43, 0xe2); /* read back the status of channel 0 */
    check(in8(0x40) & 0xbf, 0xb0, "PIT: status says output high, mode 0");
    out8(0x20, 0x0a);
    check(in8(0x20) & 1, 0, "PIC: the edge that was taken leaves the IRR, though the line stays high");
    pic_mask(0xffff);

    /* RTC through the slave. */
    cmos_read(0xc);
    cmos_write(0xa, 0x26); /* 1024 Hz */
    cmos_write(0xb, cmos_read(0xb) | 0x40);
    pic_mask(0xfefb);
    check(wait_count(PIC_BASE + 8, 3), true, "PIC: the RTC's periodic IRQ 8 through the slave");
    check(in_service, 1, "PIC: the slave's in-service register");
    pic_mask(0xffff);
    delay_us(3000);
    check(cmos_read(0xc) & 0xc0, 0xc0, "RTC: register C shows the interrupt");
    cmos_write(0xb, cmos_read(0xb) & ~0x40);
    cmos_read(0xc);
    check(cmos_read(0xc) & 0x80, 0, "RTC: reading register C clears it");
    /* No edge with LINT0 masked. */
    apic_write(APIC_LVT_LINT0, LVT_MASKED | LINT_EXTINT);
    counts[PIC_BASE] = 0;
    pic_mask(0xfffe);
    pit_periodic(2000);
    interrupts_for(4000);
    check(counts[PIC_BASE], 0, "PIC: LINT0 masked");
    pic_mask(0xffff);
    pit_once(1);
    out8(0x20, 0x20);
}

static void check_ioapic(void) {
    check(ioapic_read(1) >> 16 & 0xff, 23, "IOAPIC: 24 pins");
    ioapic_route(3, IOAPIC_MASKED | IOAPIC_LEVEL | IOAPIC_LOW | 0x31, 5);
    check(ioapic_read(0x16), IOAPIC_MASKED | IOAPIC_LEVEL | IOAPIC_LOW | 0x31, "IOAPIC: entry, low half");
    check(ioapic_read(0x17), 5u << 24, "IOAPIC: entry, high half");
    ioapic_write(0x16, IOAPIC_MASKED | IOAPIC_REMOTE_IRR | 0x1000 | 0x31);
    check(ioapic_read(0x16), IOAPIC_MASKED | 0x31, "IOAPIC: remote IRR and delivery status are read-only");
    trap_handle(VECTOR_PIN, handler_edge);
    pit_periodic(2000);
    ioapic_route(2, VECTOR_PIN, apic_id());
    check(wait_count(VECTOR_PIN, 3), true, "IOAPIC: the PIT on pin 2, edge");
    ioapic_route(2, IOAPIC_MASKED | VECTOR_PIN, apic_id());
    interrupts_for(1000);
    unsigned count = counts[VECTOR_PIN];
    interrupts_for(4000);
    check(counts[VECTOR_PIN], count, "IOAPIC: a masked pin");
    counts[VECTOR_PIN] = 0;
    apic_write(APIC_DFR, 0xffffffff);
    apic_write(APIC_LDR, 1u << 24);
    ioapic_route(2, VECTOR_PIN | 0x800, 1);
    check(wait_count(VECTOR_PIN, 1), true, "IOAPIC: logical destination");
    ioapic_route(2, IOAPIC_MASKED, 0);
    interrupts_for(1000);
    counts[VECTOR_PIN] = 0;
    cmos_write(0xb, cmos_read(0xb) | 0x40);
    ioapic_route(8, VECTOR_PIN, apic_id());
    cmos_read(0xc); /* an edge that came while the pin was masked is lost: lower the line for the next */
    check(wait_count(VECTOR_PIN, 3), true, "IOAPIC: the RTC on pin 8");
    ioapic_route(8, IOAPIC_MASKED, 0);
    cmos_write(0xb, cmos_read(0xb) & ~0x40);
    cmos_read(0xc);
    interrupts_for(1000);
}

static uint64_t hpet_ticks(unsigned microseconds) {
    return microseconds * 1000000000ull / (hpet_read(HPET_CAPABILITIES) >> 32);
}

static void check_hpet(void) {
    uint64_t capabilities = hpet_read(HPET_CAPABILITIES);
    check((capabilities & 0xff) != 0, true, "HPET: revision");
    check(capabilities >> 32 > 0 && capabilities >> 32 <= 100000000, true, "HPET: period");
    check((capabilities >> 8 & 31) >= 2, true, "HPET: at least three timers");
    hpet_write(HPET_CONFIG, 0);
    uint64_t stopped = hpet_read(HPET_COUNTER);
    delay_us(100);
    check(hpet_read(HPET_COUNTER), stopped, "HPET: the counter stands while it is off");
    hpet_write(HPET_COUNTER, 0x12345);
    check(hpet_read(HPET_COUNTER), 0x12345, "HPET: the counter can be set");
    hpet_write(HPET_CONFIG, 1);
    delay_us(100);
    check(hpet_read(HPET_COUNTER) > 0x12345, true, "HPET: the counter runs");

    uint32_t routes = (uint32_t)(hpet_read(HPET_TIMER(0)) >> 32);
    level_pin = 2;
    for (unsigned pin = 23; pin >= 2; pin--)
        if (routes >> pin & 1)
            level_pin = pin;
    if (!check(routes >> level_pin & 1, true, "HPET: timer 0 has a route to the IOAPIC"))
        return;
    out8(0x43, 0x30); /* mode 0 without a count: the PIT's output stays low, should the pin be shared */
    trap_handle(VECTOR_PIN, handler_edge);
    counts[VECTOR_PIN] = 0;
    ioapic_route(level_pin, VECTOR_PIN, apic_id());
    interrupts_for(5000);
    counts[VECTOR_PIN] = 0;
    uint64_t route = (uint64_t)level_pin << 9;
    hpet_write(HPET_TIMER(0), route | HPET_TIMER_ENABLE);
    hpet_write(HPET_COMPARATOR(0), hpet_read(HPET_COUNTER) + hpet_ticks(20000));
    check(wait_count(VECTOR_PIN, 1), true, "HPET: one-shot, edge");
    interrupts_for(5000);
    check(counts[VECTOR_PIN], 1, "HPET: one-shot comes once");
    if (hpet_read(HPET_TIMER(0)) & HPET_TIMER_CAN_PERIODIC) {
        counts[VECTOR_PIN] = 0;
        hpet_write(HPET_CONFIG, 0);
        hpet_write(HPET_COUNTER, 0);
        hpet_write(HPET_TIMER(0), route | HPET_TIMER_ENABLE | HPET_TIMER_PERIODIC | HPET_TIMER_SET);
        hpet_write(HPET_COMPARATOR(0), hpet_ticks(3000));
        hpet_write(HPET_COMPARATOR(0), hpet_ticks(3000));
        hpet_write(HPET_CONFIG, 1);
        check(wait_count(VECTOR_PIN, 3), true, "HPET: periodic");
        hpet_write(HPET_TIMER(0), route);
        interrupts_for(1000);
    }

    /* Level: remote IRR from acceptance to EOI, and again while the line is up. */
    trap_handle(VECTOR_PIN, handler_level);
    counts[VECTOR_PIN] = 0;
    hpet_write(HPET_COMPARATOR(0), 0); /* long past: the last period's end is not to match in between */
    hpet_write(HPET_STATUS, 1);
    ioapic_route(level_pin, IOAPIC_MASKED | IOAPIC_LEVEL | VECTOR_PIN, apic_id());
    hpet_write(HPET_TIMER(0), route | HPET_TIMER_ENABLE | HPET_TIMER_LEVEL);
    hpet_write(HPET_COMPARATOR(0), hpet_read(HPET_COUNTER) + hpet_ticks(20000));
    for (unsigned i = 0; i < 100 && !(hpet_read(HPET_STATUS) & 1); i++)
        delay_us(1000);
    check(hpet_read(HPET_STATUS) & 1, 1, "HPET: a level timer sets its status");
    check(ioapic_read(0x10 + 2 * level_pin) & IOAPIC_REMOTE_IRR, 0,
          "IOAPIC: a masked level entry has no remote IRR");
    ioapic_route(level_pin, IOAPIC_LEVEL | VECTOR_PIN, apic_id());
    check(ioapic_read(0x10 + 2 * level_pin) & IOAPIC_REMOTE_IRR, IOAPIC_REMOTE_IRR,
          "IOAPIC: unmasking a level entry with its line up sends it");
    interrupts_disable();
    check(apic_bit(APIC_IRR, VECTOR_PIN), true, "IOAPIC: the level interrupt waits in the IRR");
    check(apic_bit(APIC_TMR, VECTOR_PIN), true, "IOAPIC: the level interrupt is in the TMR");
    interrupts_for(2000);
    check(remote_irr, true, "IOAPIC: remote IRR until the EOI");
    check(counts[VECTOR_PIN], 2, "IOAPIC: a level interrupt comes again while its line is up, and not after");
    check(ioapic_read(0x10 + 2 * level_pin) & IOAPIC_REMOTE_IRR, 0, "IOAPIC: the EOI clears remote IRR");
    ioapic_route(level_pin, IOAPIC_MASKED, 0);
    hpet_write(HPET_TIMER(0), route);
    hpet_write(HPET_CONFIG, 0);
}

static void check_rtc(void) {
    check(cmos_read(0xd) & 0x80, 0x80, "RTC: the battery is good");
    uint8_t before = cmos_read(0x35);
    cmos_write(0x35, 0x5a);
    check(cmos_read(0x35), 0x5a, "RTC: its RAM keeps a byte");
    cmos_write(0x35, before);
    bool bcd = !(cmos_read(0xb) & 4);
    unsigned month = cmos_read(8), day = cmos_read(7);
    if (bcd) {
        month = (month >> 4) * 10 + (month & 15);
        day = (day >> 4) * 10 + (day & 15);
    }
    check(month >= 1 && month <= 12 && day >= 1 && day <= 31, true, "RTC: a date");
}

void kernel_main(void) {
    apic_enable();
    check_pic();
    check_ioapic();
    check_hpet();
    check_rtc();
    checks_finish("irqchip64");
}
