/* UART, keyboard controller and the single system ports. */
#include <string.h>

#include "devices/i8042.h"
#include "devices/system_ports.h"
#include "devices/uart16550.h"
#include "devices_check.h"

static struct timer_queue *queue;
static uint8_t sent[256];
static size_t sent_count;
static unsigned ready_calls;

static void transmit(void *context, const uint8_t *bytes, size_t count) {
    (void)context;
    for (size_t i = 0; i < count && sent_count < sizeof sent; i++)
        sent[sent_count++] = bytes[i];
}
static void ready(void *context) {
    (void)context;
    ready_calls++;
}

enum { DATA, IER, IIR, LCR, MCR, LSR, MSR, SCR };

static void test_uart(void) {
    struct check_line irq = {0};
    struct uart_config config = {
        .timers = queue, .irq = {check_line_set, &irq, 0}, .transmit = transmit, .receive_ready = ready};
    struct uart *uart = uart_create(&config);
    ready_calls = 0;
    CHECK_EQUAL(uart_read(uart, LSR), 0x60);
    CHECK_EQUAL(uart_read(uart, IIR), 0x01);
    CHECK_EQUAL(uart_read(uart, MSR), 0xb0);
    uart_write(uart, SCR, 0x5a);
    CHECK_EQUAL(uart_read(uart, SCR), 0x5a);
    uart_write(uart, LCR, 0x83);
    uart_write(uart, DATA, 1);
    uart_write(uart, IER, 0);
    CHECK_EQUAL(uart_read(uart, DATA), 1);
    uart_write(uart, LCR, 3);
    /* Transmit with interrupts. */
    uart_write(uart, MCR, 0x0b);
    uart_write(uart, IER, 2);
    CHECK(irq.level);
    CHECK_EQUAL(uart_read(uart, IIR), 0x02);
    CHECK(!irq.level);
    uart_write(uart, DATA, 'x');
    CHECK(irq.level);
    CHECK_EQUAL(uart_read(uart, IIR), 0x02);
    CHECK_EQUAL(sent_count, 1);
    CHECK_EQUAL(sent[0], 'x');
    /* Receive without FIFO: one byte of room. */
    uart_write(uart, IER, 1);
    CHECK_EQUAL(uart_rx_room(uart), 1);
    CHECK_EQUAL(uart_receive(uart, (const uint8_t *)"ab", 2), 1);
    CHECK(irq.level);
    CHECK_EQUAL(uart_read(uart, IIR), 0x04);
    CHECK_EQUAL(uart_read(uart, LSR), 0x61);
    CHECK_EQUAL(uart_read(uart, DATA), 'a');
    CHECK_EQUAL(ready_calls, 1);
    CHECK(!irq.level);
    /* FIFO with a trigger level of 14, then the timeout. */
    uart_write(uart, IIR, 0xc7);
    CHECK_EQUAL(uart_read(uart, IIR), 0xc1);
    CHECK_EQUAL(uart_receive(uart, (const uint8_t *)"0123456789abcdefgh", 18), 16);
    CHECK_EQUAL(uart_rx_room(uart), 0);
    CHECK_EQUAL(uart_read(uart, IIR), 0xc4);
    for (unsigned i = 0; i < 3; i++)
        CHECK_EQUAL(uart_read(uart, DATA), '0' + i);
    CHECK(!irq.level);
    timer_queue_advance(queue, 10000000);
    CHECK(irq.level);
    CHECK_EQUAL(uart_read(uart, IIR), 0xcc);
    CHECK_EQUAL(uart_read(uart, DATA), '3');
    CHECK(!irq.level);
    ready_calls = 0;
    uart_write(uart, IIR, 0x03);
    CHECK_EQUAL(ready_calls, 1); /* clearing the FIFO makes room as reading does */
    CHECK_EQUAL(uart_read(uart, LSR), 0x60);
    /* OUT2 is the interrupt's gate; loop mode ties MCR to MSR. */
    uart_receive(uart, (const uint8_t *)"z", 1);
    CHECK(irq.level);
    uart_write(uart, MCR, 0x03);
    CHECK(!irq.level);
    uart_read(uart, DATA);
    uart_read(uart, MSR);
    uart_write(uart, MCR, 0x1a);
    CHECK_EQUAL(uart_read(uart, MSR) & 0xf0, 0x90);
    CHECK_EQUAL(uart_receive(uart, (const uint8_t *)"z", 1), 0);
    uart_write(uart, DATA, 0xa5);
    CHECK_EQUAL(uart_read(uart, DATA), 0xa5);
    CHECK_EQUAL(sent_count, 1);
    /* Line status: overrun and break. */
    uart_write(uart, MCR, 0x0b);
    uart_write(uart, IER, 4);
    uart_receive_break(uart);
    CHECK(irq.level);
    CHECK_EQUAL(uart_read(uart, IIR) & 0x0f, 0x06);
    CHECK_EQUAL(uart_read(uart, LSR) & 0x11, 0x11);
    CHECK(!irq.level);
    uart_destroy(uart);
}

static void count_reset(void *context) {
    (*(unsigned *)context)++;
}

static void test_keyboard(void) {
    struct check_line irqs[2] = {{0}};
    unsigned resets = 0;
    struct i8042 *kbc = i8042_create((struct irq_line){check_line_set, irqs, 0},
                                     (struct irq_line){check_line_set, irqs, 1}, count_reset, &resets);
    CHECK_EQUAL(i8042_read(kbc, 1) & 3, 0);
    i8042_write(kbc, 1, 0xaa);
    CHECK_EQUAL(i8042_read(kbc, 1) & 1, 1);
    CHECK_EQUAL(i8042_read(kbc, 0), 0x55);
    i8042_write(kbc, 1, 0xab);
    CHECK_EQUAL(i8042_read(kbc, 0), 0);
    i8042_write(kbc, 1, 0x60);
    i8042_write(kbc, 0, 0x47);
    i8042_write(kbc, 1, 0x20);
    CHECK_EQUAL(i8042_read(kbc, 0), 0x47);
    /* The keyboard: reset answers two bytes, two interrupts. */
    irqs[0].rises = 0;
    i8042_write(kbc, 0, 0xff);
    CHECK_EQUAL(i8042_read(kbc, 0), 0xfa);
    CHECK_EQUAL(i8042_read(kbc, 0), 0xaa);
    CHECK_EQUAL(irqs[0].rises, 2);
    CHECK(!irqs[0].level);
    i8042_write(kbc, 0, 0xf2);
    CHECK_EQUAL(i8042_read(kbc, 0), 0xfa);
    CHECK_EQUAL(i8042_read(kbc, 0), 0xab);
    CHECK_EQUAL(i8042_read(kbc, 0), 0x41);
    i8042_write(kbc, 0, 0xed);
    i8042_write(kbc, 0, 0x07);
    CHECK_EQUAL(i8042_read(kbc, 0), 0xfa);
    CHECK_EQUAL(i8042_read(kbc, 0), 0xfa);
    CHECK_EQUAL(i8042_read(kbc, 1) & 1, 0);
    /* The mouse loop-back. */
    i8042_write(kbc, 1, 0xd3);
    i8042_write(kbc, 0, 0x5a);
    CHECK_EQUAL(i8042_read(kbc, 1) & 0x21, 0x21);
    CHECK(irqs[1].level);
    CHECK_EQUAL(i8042_read(kbc, 0), 0x5a);
    for (unsigned i = 0; i < 100; i++)
        i8042_write(kbc, 0, 0xf4);
    for (unsigned i = 0; i < 200; i++)
        i8042_read(kbc, 0);
    CHECK_EQUAL(resets, 0);
    i8042_write(kbc, 1, 0xfe);
    CHECK_EQUAL(resets, 1);
    i8042_write(kbc, 1, 0xd1);
    i8042_write(kbc, 0, 0x02);
    CHECK_EQUAL(resets, 2);
    i8042_destroy(kbc);
}

static uint32_t exit_value;

static void debug_exit(void *context, uint32_t value) {
    (void)context;
    exit_value = value;
}

static void test_ports(void) {
    unsigned resets = 0;
    struct system_ports ports = {
        .reset = count_reset, .debug_exit = debug_exit, .debug_write = transmit, .context = &resets};
    system_ports_reset(&ports);
    reset_control_write(&ports, 0x02);
    CHECK_EQUAL(resets, 0);
    reset_control_write(&ports, 0x06);
    CHECK_EQUAL(resets, 1);
    CHECK_EQUAL(control_a_read(&ports), 2);
    control_a_write(&ports, 3);
    CHECK_EQUAL(resets, 2);
    debug_exit_write(&ports, 42);
    CHECK_EQUAL(exit_value, 42);
    sent_count = 0;
    debug_console_write(&ports, '!');
    CHECK_EQUAL(sent_count, 1);
    CHECK_EQUAL(debug_console_read(&ports), 0xe9);
}

int main(void) {
    queue = timer_queue_create_manual();
    test_uart();
    test_keyboard();
    test_ports();
    timer_queue_destroy(queue);
    return check_result();
}
