/* 8259 pair and IOAPIC. */
#include <string.h>

#include "devices/i8259.h"
#include "devices/ioapic.h"
#include "devices_check.h"

static void pic_start(struct i8259 *pic) {
    static const uint8_t words[2][4] = {{0x11, 0x20, 0x04, 0x01}, {0x11, 0x28, 0x02, 0x01}};
    for (unsigned chip = 0; chip < 2; chip++) {
        i8259_write(pic, chip, 0, words[chip][0]);
        for (unsigned i = 1; i < 4; i++)
            i8259_write(pic, chip, 1, words[chip][i]);
        i8259_write(pic, chip, 1, 0);
    }
}

static void test_pic(void) {
    struct check_line intr = {0};
    struct i8259 *pic = i8259_create((struct irq_line){check_line_set, &intr, 0});
    i8259_irq_set(pic, 1, true);
    CHECK(!intr.level); /* masked at reset */
    i8259_irq_set(pic, 1, false);
    pic_start(pic);
    CHECK(!intr.level);
    i8259_irq_set(pic, 4, true);
    i8259_irq_set(pic, 0, true);
    CHECK(intr.level);
    CHECK_EQUAL(i8259_acknowledge(pic), 0x20);
    CHECK(!intr.level);
    i8259_write(pic, 0, 0, 0x0b);
    CHECK_EQUAL(i8259_read(pic, 0, 0), 0x01);
    i8259_write(pic, 0, 0, 0x0a);
    CHECK_EQUAL(i8259_read(pic, 0, 0), 0x10);
    i8259_write(pic, 0, 0, 0x20);
    CHECK_EQUAL(i8259_acknowledge(pic), 0x24);
    i8259_write(pic, 0, 0, 0x64); /* specific EOI */
    CHECK(!intr.level);
    /* Edges: a line that stays high does not interrupt again. */
    i8259_irq_set(pic, 0, true);
    CHECK(!intr.level);
    i8259_irq_set(pic, 0, false);
    i8259_irq_set(pic, 0, true);
    CHECK(intr.level);
    CHECK_EQUAL(i8259_acknowledge(pic), 0x20);
    i8259_write(pic, 0, 0, 0x20);
    /* The slave. */
    i8259_irq_set(pic, 12, true);
    CHECK_EQUAL(i8259_acknowledge(pic), 0x2c);
    i8259_irq_set(pic, 8, true);
    CHECK(!intr.level); /* the master still serves the cascade */
    i8259_write(pic, 1, 0, 0x20);
    i8259_write(pic, 0, 0, 0x20);
    CHECK_EQUAL(i8259_acknowledge(pic), 0x28);
    i8259_write(pic, 1, 0, 0x20);
    i8259_write(pic, 0, 0, 0x20);
    CHECK(!intr.level);
    CHECK_EQUAL(i8259_acknowledge(pic), 0x27); /* spurious */
    /* Levels. */
    i8259_irq_set(pic, 8, false);
    i8259_irq_set(pic, 12, false);
    i8259_elcr_write(pic, 1, 0xff);
    CHECK_EQUAL(i8259_elcr_read(pic, 1), 0xde);
    i8259_irq_set(pic, 10, true);
    CHECK_EQUAL(i8259_acknowledge(pic), 0x2a);
    i8259_write(pic, 1, 0, 0x20);
    i8259_write(pic, 0, 0, 0x20);
    CHECK(intr.level);
    i8259_irq_set(pic, 10, false);
    CHECK(!intr.level);
    /* Special mask: a masked input in service does not hold the lower ones. */
    i8259_irq_set(pic, 3, true);
    CHECK_EQUAL(i8259_acknowledge(pic), 0x23);
    i8259_irq_set(pic, 6, true);
    CHECK(!intr.level);
    i8259_write(pic, 0, 1, 0x08);
    i8259_write(pic, 0, 0, 0x68);
    CHECK(intr.level);
    CHECK_EQUAL(i8259_acknowledge(pic), 0x26);
    i8259_write(pic, 0, 0, 0x66);
    i8259_write(pic, 0, 0, 0x63);
    i8259_write(pic, 0, 0, 0x48);
    i8259_write(pic, 0, 1, 0);
    /* Poll. */
    i8259_irq_set(pic, 6, false);
    i8259_irq_set(pic, 6, true);
    i8259_write(pic, 0, 0, 0x0c);
    CHECK_EQUAL(i8259_read(pic, 0, 0), 0x86);
    CHECK(!intr.level);
    i8259_write(pic, 0, 0, 0x20);
    /* Rotation: after IRQ 4's EOI it is the lowest. */
    i8259_irq_set(pic, 4, false);
    i8259_irq_set(pic, 4, true);
    CHECK_EQUAL(i8259_acknowledge(pic), 0x24);
    i8259_write(pic, 0, 0, 0xa0);
    i8259_irq_set(pic, 4, false);
    i8259_irq_set(pic, 4, true);
    i8259_irq_set(pic, 7, true);
    CHECK_EQUAL(i8259_acknowledge(pic), 0x27);
    i8259_write(pic, 0, 0, 0x20);
    CHECK_EQUAL(i8259_acknowledge(pic), 0x24);
    /* Automatic EOI. */
    i8259_write(pic, 0, 0, 0x11);
    i8259_write(pic, 0, 1, 0x40);
    i8259_write(pic, 0, 1, 0x04);
    i8259_write(pic, 0, 1, 0x03);
    i8259_irq_set(pic, 1, true);
    CHECK_EQUAL(i8259_acknowledge(pic), 0x41);
    i8259_write(pic, 0, 0, 0x0b);
    CHECK_EQUAL(i8259_read(pic, 0, 0), 0);
    i8259_destroy(pic);
}

struct message {
    uint32_t destination;
    bool logical;
    unsigned mode;
    uint8_t vector;
    bool level;
    unsigned count;
};

static void deliver(void *context, uint32_t destination, bool logical, unsigned mode, uint8_t vector,
                    bool level) {
    struct message *message = context;
    *message = (struct message){destination, logical, mode, vector, level, message->count + 1};
}

static void redirect(struct ioapic *ioapic, unsigned pin, uint64_t entry) {
    ioapic_write(ioapic, 0, 4, 0x10 + 2 * pin + 1);
    ioapic_write(ioapic, 0x10, 4, entry >> 32);
    ioapic_write(ioapic, 0, 4, 0x10 + 2 * pin);
    ioapic_write(ioapic, 0x10, 4, entry & UINT32_MAX);
}

static uint32_t reg(struct ioapic *ioapic, unsigned index) {
    ioapic_write(ioapic, 0, 4, index);
    return (uint32_t)ioapic_read(ioapic, 0x10, 4);
}

static void test_ioapic(void) {
    struct message message = {0};
    struct ioapic *ioapic = ioapic_create(deliver, &message);
    CHECK_EQUAL(reg(ioapic, 1), 0x170020);
    ioapic_write(ioapic, 0x10, 4, 0);
    CHECK_EQUAL(reg(ioapic, 1), 0x170020);
    reg(ioapic, 0);
    ioapic_write(ioapic, 0x10, 4, 0xffffffff);
    CHECK_EQUAL(reg(ioapic, 0), 0x0f000000);
    CHECK_EQUAL(reg(ioapic, 2), 0x0f000000);
    CHECK_EQUAL(reg(ioapic, 0x10), 0x10000);
    redirect(ioapic, 4, 0x0200000000000841);
    ioapic_pin_set(ioapic, 4, true);
    ioapic_pin_set(ioapic, 4, true);
    CHECK_EQUAL(message.count, 1);
    CHECK(message.destination == 2 && message.logical && message.vector == 0x41 && !message.level);
    ioapic_pin_set(ioapic, 4, false);
    redirect(ioapic, 4, 0x0200000000010841);
    ioapic_pin_set(ioapic, 4, true);
    CHECK_EQUAL(message.count, 1);
    /* Level, with remote IRR. */
    redirect(ioapic, 17, 0x010000000000a151);
    ioapic_pin_set(ioapic, 17, true);
    CHECK_EQUAL(message.count, 2);
    CHECK(message.level && message.mode == 1 && message.destination == 1 && !message.logical);
    CHECK_EQUAL(reg(ioapic, 0x10 + 34), 0xe151);
    ioapic_pin_set(ioapic, 17, true);
    CHECK_EQUAL(message.count, 2);
    ioapic_eoi(ioapic, 0x50);
    CHECK_EQUAL(message.count, 2);
    ioapic_eoi(ioapic, 0x51);
    CHECK_EQUAL(message.count, 3);
    ioapic_pin_set(ioapic, 17, false);
    ioapic_write(ioapic, 0x40, 4, 0x51);
    CHECK_EQUAL(message.count, 3);
    CHECK_EQUAL(reg(ioapic, 0x10 + 34), 0xa151);
    /* Unmasking a level that is there. */
    redirect(ioapic, 18, 0x18052);
    ioapic_pin_set(ioapic, 18, true);
    CHECK_EQUAL(message.count, 3);
    redirect(ioapic, 18, 0x08052);
    CHECK_EQUAL(message.count, 4);
    ioapic_pin_set(ioapic, 99, true);
    CHECK_EQUAL(reg(ioapic, 0xff), UINT32_MAX);
    ioapic_destroy(ioapic);
}

int main(void) {
    test_pic();
    test_ioapic();
    return check_result();
}
