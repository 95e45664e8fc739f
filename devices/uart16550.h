/* 16550A UART with its FIFOs (National PC16550D data sheet). It knows no file descriptor: bytes go out
 * through a sink that takes every one of them (it may block, no UART lock is held), and come in through
 * uart_receive(). Thread-safe. */
#ifndef NESTOR_DEVICES_UART16550_H
#define NESTOR_DEVICES_UART16550_H

#include "devices/irq_line.h"
#include "devices/timer.h"

struct uart;

struct uart_config {
    struct timer_queue *timers; /* for the receive timeout interrupt */
    struct irq_line irq;
    void (*transmit)(void *context, const uint8_t *bytes, size_t count); /* NULL: to nowhere */
    /* Optional: the receive FIFO has become empty, or loop mode has ended: uart_receive() takes bytes again.
     * Called without a lock. */
    void (*receive_ready)(void *context);
    void *context;
};

MUST_CHECK struct uart *uart_create(const struct uart_config *config);
void uart_destroy(struct uart *uart);
void uart_reset(struct uart *uart);

/* Bytes that uart_receive() would take now. */
size_t uart_rx_room(struct uart *uart);
/* Bytes from the line. Returns how many were taken; keep the others until receive_ready. */
size_t uart_receive(struct uart *uart, const uint8_t *bytes, size_t count);
/* A break condition on the line. */
void uart_receive_break(struct uart *uart);

/* Offset 0 to 7. */
uint8_t uart_read(struct uart *uart, unsigned offset);
void uart_write(struct uart *uart, unsigned offset, uint8_t value);

#endif
