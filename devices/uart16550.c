/* UART: the transmitter is infinitely fast, the receiver takes what fits into its FIFO.
 *
 * The lock guards the registers. A byte is handed to the sink between two holds of it, under a second mutex
 * that keeps the order of two vCPUs' bytes, so that a sink which blocks stops only those who write. */
#include "devices/uart16550.h"

#include <pthread.h>
#include <stdlib.h>

#define FIFO_SIZE 16

enum uart_register { REG_DATA, REG_IER, REG_IIR_FCR, REG_LCR, REG_MCR, REG_LSR, REG_MSR, REG_SCRATCH };

#define IER_RECEIVE 0x01
#define IER_TRANSMIT 0x02
#define IER_LINE 0x04
#define IER_MODEM 0x08
#define IIR_NONE 0x01
#define IIR_MODEM 0x00
#define IIR_TRANSMIT 0x02
#define IIR_RECEIVE 0x04
#define IIR_LINE 0x06
#define IIR_TIMEOUT 0x0c
#define IIR_FIFO 0xc0
#define FCR_ENABLE 0x01
#define FCR_CLEAR_RECEIVE 0x02
#define FCR_KEPT 0xc9
#define LCR_DLAB 0x80
#define MCR_DTR 0x01
#define MCR_RTS 0x02
#define MCR_OUT1 0x04
#define MCR_OUT2 0x08
#define MCR_LOOP 0x10
#define LSR_DATA 0x01
#define LSR_OVERRUN 0x02
#define LSR_BREAK 0x10
#define LSR_ERRORS 0x1e
#define LSR_EMPTY 0x60
#define MSR_CTS 0x10
#define MSR_DSR 0x20
#define MSR_RI 0x40
#define MSR_DCD 0x80

struct uart {
    pthread_mutex_t lock;
    pthread_mutex_t transmit_lock; /* taken before lock */
    struct uart_config config;
    struct timer timer;  /* receive timeout */
    uint64_t timeout_at; /* UINT64_MAX: not running */
    bool timeout;        /* the interrupt is due */
    bool irq_level;
    bool transmit_pending; /* THRE interrupt */
    uint8_t ier, fcr, lcr, mcr, lsr, msr, scratch;
    uint16_t divisor;
    uint8_t fifo[FIFO_SIZE];
    unsigned head, count;
};

static unsigned capacity(const struct uart *uart) {
    return uart->fcr & FCR_ENABLE ? FIFO_SIZE : 1;
}

static unsigned trigger_level(const struct uart *uart) {
    static const uint8_t levels[4] = {1, 4, 8, 14};
    return uart->fcr & FCR_ENABLE ? levels[uart->fcr >> 6] : 1;
}

/* The highest-priority interrupt that is due, as IIR encodes it. */
static uint8_t interrupt_source(const struct uart *uart) {
    if (uart->ier & IER_LINE && uart->lsr & LSR_ERRORS)
        return IIR_LINE;
    if (uart->ier & IER_RECEIVE && uart->count >= trigger_level(uart))
        return IIR_RECEIVE;
    if (uart->ier & IER_RECEIVE && uart->timeout)
        return IIR_TIMEOUT;
    if (uart->ier & IER_TRANSMIT && uart->transmit_pending)
        return IIR_TRANSMIT;
    if (uart->ier & IER_MODEM && uart->msr & 0x0f)
        return IIR_MODEM;
    return IIR_NONE;
}

static void irq_update(struct uart *uart) {
    /* On a PC, OUT2 opens the gate to the interrupt line; loop mode forces the pin inactive. */
    bool gate = (uart->mcr & (MCR_OUT2 | MCR_LOOP)) == MCR_OUT2;
    bool level = gate && interrupt_source(uart) != IIR_NONE;
    if (level == uart->irq_level)
        return;
    uart->irq_level = level;
    irq_line_set(&uart->config.irq, level);
}

/* Four character times of ten bits. */
static uint64_t timeout_ns(const struct uart *uart) {
    uint64_t divisor = uart->divisor ? uart->divisor : 1;
    return 40 * divisor * NS_PER_SECOND / 115200;
}

/* Something happened to the receive FIFO: the timeout runs anew while bytes wait below the trigger level. */
static void timeout_restart(struct uart *uart) {
    uart->timeout = false;
    if (uart->fcr & FCR_ENABLE && uart->count && uart->count < trigger_level(uart)) {
        uart->timeout_at = timer_now(uart->config.timers) + timeout_ns(uart);
        timer_arm(&uart->timer, uart->timeout_at);
    } else if (uart->timeout_at != UINT64_MAX) {
        uart->timeout_at = UINT64_MAX;
        timer_cancel(&uart->timer);
    }
}

static void timer_callback(void *context) {
    struct uart *uart = context;
    pthread_mutex_lock(&uart->lock);
    if (timer_now(uart->config.timers) >= uart->timeout_at) {
        uart->timeout_at = UINT64_MAX;
        uart->timeout = uart->count > 0;
        irq_update(uart);
    }
    pthread_mutex_unlock(&uart->lock);
}

static void fifo_put(struct uart *uart, uint8_t byte) {
    if (uart->count == capacity(uart)) {
        uart->lsr |= LSR_OVERRUN;
        return;
    }
    uart->fifo[(uart->head + uart->count++) % FIFO_SIZE] = byte;
    uart->lsr |= LSR_DATA;
}

static void fifo_clear(struct uart *uart) {
    uart->count = 0;
    uart->lsr &= (uint8_t) ~(LSR_DATA | LSR_BREAK);
    timeout_restart(uart);
}

size_t uart_rx_room(struct uart *uart) {
    pthread_mutex_lock(&uart->lock);
    size_t room = uart->mcr & MCR_LOOP ? 0 : capacity(uart) - uart->count;
    pthread_mutex_unlock(&uart->lock);
    return room;
}

size_t uart_receive(struct uart *uart, const uint8_t *bytes, size_t count) {
    size_t taken = 0;
    pthread_mutex_lock(&uart->lock);
    if (!(uart->mcr & MCR_LOOP)) {
        while (taken < count && uart->count < capacity(uart))
            fifo_put(uart, bytes[taken++]);
    }
    if (taken) {
        timeout_restart(uart);
        irq_update(uart);
    }
    pthread_mutex_unlock(&uart->lock);
    return taken;
}

void uart_receive_break(struct uart *uart) {
    pthread_mutex_lock(&uart->lock);
    if (!(uart->mcr & MCR_LOOP)) {
        uart->lsr |= LSR_BREAK;
        fifo_put(uart, 0);
        timeout_restart(uart);
        irq_update(uart);
    }
    pthread_mutex_unlock(&uart->lock);
}

/* Recompute the modem status lines; a change leaves its delta bit. */
static void modem_update(struct uart *uart) {
    uint8_t lines = MSR_CTS | MSR_DSR | MSR_DCD;
    if (uart->mcr & MCR_LOOP) {
        lines = (uart->mcr & MCR_RTS ? MSR_CTS : 0) | (uart->mcr & MCR_DTR ? MSR_DSR : 0) |
                (uart->mcr & MCR_OUT1 ? MSR_RI : 0) | (uart->mcr & MCR_OUT2 ? MSR_DCD : 0);
    }
    uint8_t changed = (lines ^ uart->msr) & 0xf0;
    /* The ring indicator counts only when it goes away. */
    if (lines & MSR_RI)
        changed &= (uint8_t)~MSR_RI;
    uart->msr = lines | (uart->msr & 0x0f) | changed >> 4;
}

static void data_write(struct uart *uart, uint8_t value) {
    pthread_mutex_lock(&uart->transmit_lock);
    pthread_mutex_lock(&uart->lock);
    uart->transmit_pending = false;
    bool loop = uart->mcr & MCR_LOOP;
    if (loop) {
        fifo_put(uart, value);
        timeout_restart(uart);
    }
    irq_update(uart);
    pthread_mutex_unlock(&uart->lock);
    if (!loop && uart->config.transmit)
        uart->config.transmit(uart->config.context, &value, 1);
    pthread_mutex_lock(&uart->lock);
    uart->transmit_pending = true;
    irq_update(uart);
    pthread_mutex_unlock(&uart->lock);
    pthread_mutex_unlock(&uart->transmit_lock);
}

static void fcr_write(struct uart *uart, uint8_t value) {
    bool toggled = (value ^ uart->fcr) & FCR_ENABLE;
    uart->fcr = value & FCR_ENABLE ? value & FCR_KEPT : 0;
    if (toggled || (value & FCR_ENABLE && value & FCR_CLEAR_RECEIVE))
        fifo_clear(uart);
    /* The transmit FIFO is always empty, also when it is cleared. */
    else
        timeout_restart(uart);
}

void uart_write(struct uart *uart, unsigned offset, uint8_t value) {
    offset &= 7;
    pthread_mutex_lock(&uart->lock);
    bool latch = uart->lcr & LCR_DLAB;
    bool was_loop = uart->mcr & MCR_LOOP;
    unsigned waiting = uart->count;
    if (offset == REG_DATA && !latch) {
        pthread_mutex_unlock(&uart->lock);
        data_write(uart, value);
        return;
    }
    switch (offset) {
    case REG_DATA:
        uart->divisor = (uart->divisor & 0xff00) | value;
        break;
    case REG_IER:
        if (latch) {
            uart->divisor = (uint16_t)((uart->divisor & 0xff) | value << 8);
            break;
        }
        /* Enabling the transmit interrupt with an empty transmitter raises it. */
        if (value & IER_TRANSMIT && !(uart->ier & IER_TRANSMIT))
            uart->transmit_pending = true;
        uart->ier = value & 0x0f;
        break;
    case REG_IIR_FCR:
        fcr_write(uart, value);
        break;
    case REG_LCR:
        uart->lcr = value;
        break;
    case REG_MCR:
        uart->mcr = value & 0x1f;
        modem_update(uart);
        break;
    case REG_SCRATCH:
        uart->scratch = value;
        break;
    default: /* LSR and MSR: factory test only */
        break;
    }
    irq_update(uart);
    bool ready = (was_loop && !(uart->mcr & MCR_LOOP)) || (waiting && !uart->count);
    pthread_mutex_unlock(&uart->lock);
    if (ready && uart->config.receive_ready)
        uart->config.receive_ready(uart->config.context);
}

static uint8_t data_read(struct uart *uart) {
    if (!uart->count)
        return 0;
    uint8_t value = uart->fifo[uart->head];
    uart->head = (uart->head + 1) % FIFO_SIZE;
    if (--uart->count == 0)
        uart->lsr &= (uint8_t)~LSR_DATA;
    timeout_restart(uart);
    return value;
}

static uint8_t iir_read(struct uart *uart) {
    uint8_t source = interrupt_source(uart);
    if (source == IIR_TRANSMIT)
        uart->transmit_pending = false;
    return source | (uart->fcr & FCR_ENABLE ? IIR_FIFO : 0);
}

uint8_t uart_read(struct uart *uart, unsigned offset) {
    uint8_t value = 0;
    bool ready = false;
    pthread_mutex_lock(&uart->lock);
    bool latch = uart->lcr & LCR_DLAB;
    switch (offset & 7) {
    case REG_DATA:
        if (latch) {
            value = (uint8_t)uart->divisor;
        } else {
            ready = uart->count == 1;
            value = data_read(uart);
        }
        break;
    case REG_IER:
        value = latch ? (uint8_t)(uart->divisor >> 8) : uart->ier;
        break;
    case REG_IIR_FCR:
        value = iir_read(uart);
        break;
    case REG_LCR:
        value = uart->lcr;
        break;
    case REG_MCR:
        value = uart->mcr;
        break;
    case REG_LSR:
        value = uart->lsr;
        uart->lsr &= (uint8_t)~LSR_ERRORS;
        break;
    case REG_MSR:
        value = uart->msr;
        uart->msr &= 0xf0;
        break;
    case REG_SCRATCH:
        value = uart->scratch;
        break;
    }
    irq_update(uart);
    pthread_mutex_unlock(&uart->lock);
    if (ready && uart->config.receive_ready)
        uart->config.receive_ready(uart->config.context);
    return value;
}

void uart_reset(struct uart *uart) {
    pthread_mutex_lock(&uart->lock);
    bool ready = uart->count > 0 || uart->mcr & MCR_LOOP;
    uart->ier = 0;
    uart->fcr = 0;
    uart->lcr = 0;
    uart->mcr = 0;
    uart->lsr = LSR_EMPTY;
    uart->msr = MSR_CTS | MSR_DSR | MSR_DCD;
    uart->scratch = 0;
    uart->divisor = 12;
    uart->transmit_pending = false;
    fifo_clear(uart);
    irq_update(uart);
    pthread_mutex_unlock(&uart->lock);
    if (ready && uart->config.receive_ready)
        uart->config.receive_ready(uart->config.context);
}

struct uart *uart_create(const struct uart_config *config) {
    struct uart *uart = calloc(1, sizeof *uart);
    if (!uart)
        return NULL;
    pthread_mutex_init(&uart->lock, NULL);
    pthread_mutex_init(&uart->transmit_lock, NULL);
    uart->config = *config;
    uart->timeout_at = UINT64_MAX;
    timer_init(&uart->timer, config->timers, timer_callback, uart);
    uart_reset(uart);
    return uart;
}

void uart_destroy(struct uart *uart) {
    if (!uart)
        return;
    timer_cancel_sync(&uart->timer);
    pthread_mutex_destroy(&uart->transmit_lock);
    pthread_mutex_destroy(&uart->lock);
    free(uart);
}
