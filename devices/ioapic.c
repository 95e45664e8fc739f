/* I/O APIC: redirection table, edges and levels, remote IRR.
 *
 * An edge is sent when it comes, or lost if its pin is masked. A level is sent while it lasts, once per EOI:
 * remote IRR says that a processor has yet to finish. */
#include "devices/ioapic.h"

#include <pthread.h>
#include <stdlib.h>

#define REG_SELECT 0x00
#define REG_WINDOW 0x10
#define REG_EOI 0x40
#define INDEX_ID 0x00
#define INDEX_VERSION 0x01
#define INDEX_ARBITRATION 0x02
#define INDEX_REDIRECTION 0x10
#define VERSION (0x20u | (IOAPIC_PINS - 1) << 16)

#define ENTRY_LOGICAL (1ull << 11)
#define ENTRY_STATUS (1ull << 12)
#define ENTRY_REMOTE_IRR (1ull << 14)
#define ENTRY_LEVEL (1ull << 15)
#define ENTRY_MASKED (1ull << 16)
#define ENTRY_READ_ONLY (ENTRY_STATUS | ENTRY_REMOTE_IRR)
#define ENTRY_WRITABLE 0xff0000000001afffull
#define DELIVERY_EXTINT 7

struct ioapic {
    pthread_mutex_t lock;
    ioapic_deliver_fn *deliver;
    void *context;
    uint8_t select;
    uint8_t id;
    uint32_t asserted; /* pins */
    uint64_t entries[IOAPIC_PINS];
};

struct ioapic *ioapic_create(ioapic_deliver_fn *deliver, void *context) {
    struct ioapic *ioapic = calloc(1, sizeof *ioapic);
    if (!ioapic)
        return NULL;
    pthread_mutex_init(&ioapic->lock, NULL);
    ioapic->deliver = deliver;
    ioapic->context = context;
    ioapic_reset(ioapic);
    return ioapic;
}

void ioapic_destroy(struct ioapic *ioapic) {
    if (!ioapic)
        return;
    pthread_mutex_destroy(&ioapic->lock);
    free(ioapic);
}

void ioapic_reset(struct ioapic *ioapic) {
    pthread_mutex_lock(&ioapic->lock);
    ioapic->select = 0;
    ioapic->id = 0;
    for (unsigned i = 0; i < IOAPIC_PINS; i++)
        ioapic->entries[i] = ENTRY_MASKED;
    pthread_mutex_unlock(&ioapic->lock);
}

/* With the lock held. */
static void send(struct ioapic *ioapic, unsigned pin) {
    uint64_t entry = ioapic->entries[pin];
    unsigned mode = entry >> 8 & 7;
    bool level = entry & ENTRY_LEVEL;
    /* Remote IRR is of fixed and lowest-priority interrupts alone. */
    if (level && mode <= 1)
        ioapic->entries[pin] |= ENTRY_REMOTE_IRR;
    ioapic->deliver(ioapic->context, (uint32_t)(entry >> 56), entry & ENTRY_LOGICAL, mode, (uint8_t)entry,
                    level && mode <= 1);
}

static void send_level(struct ioapic *ioapic, unsigned pin) {
    uint64_t entry = ioapic->entries[pin];
    if (entry & ENTRY_LEVEL && ioapic->asserted & 1u << pin && !(entry & (ENTRY_MASKED | ENTRY_REMOTE_IRR)))
        send(ioapic, pin);
}

void ioapic_pin_set(struct ioapic *ioapic, unsigned pin, bool asserted) {
    if (pin >= IOAPIC_PINS)
        return;
    uint32_t bit = 1u << pin;
    pthread_mutex_lock(&ioapic->lock);
    bool before = ioapic->asserted & bit;
    uint64_t entry = ioapic->entries[pin];
    if (asserted) {
        ioapic->asserted |= bit;
        if (entry & ENTRY_LEVEL)
            send_level(ioapic, pin);
        else if (!before && !(entry & ENTRY_MASKED))
            send(ioapic, pin);
    } else {
        ioapic->asserted &= ~bit;
    }
    pthread_mutex_unlock(&ioapic->lock);
}

static void eoi_locked(struct ioapic *ioapic, uint8_t vector) {
    for (unsigned i = 0; i < IOAPIC_PINS; i++) {
        uint64_t entry = ioapic->entries[i];
        if ((uint8_t)entry != vector || !(entry & ENTRY_REMOTE_IRR))
            continue;
        ioapic->entries[i] = entry & ~ENTRY_REMOTE_IRR;
        send_level(ioapic, i);
    }
}

void ioapic_eoi(struct ioapic *ioapic, uint8_t vector) {
    pthread_mutex_lock(&ioapic->lock);
    eoi_locked(ioapic, vector);
    pthread_mutex_unlock(&ioapic->lock);
}

static uint32_t window_read(const struct ioapic *ioapic) {
    unsigned index = ioapic->select;
    switch (index) {
    case INDEX_ID:
    case INDEX_ARBITRATION:
        return (uint32_t)ioapic->id << 24;
    case INDEX_VERSION:
        return VERSION;
    default:
        if (index < INDEX_REDIRECTION || index >= INDEX_REDIRECTION + 2 * IOAPIC_PINS)
            return UINT32_MAX;
        return (uint32_t)(ioapic->entries[(index - INDEX_REDIRECTION) / 2] >> (index & 1 ? 32 : 0));
    }
}

static void window_write(struct ioapic *ioapic, uint32_t value) {
    unsigned index = ioapic->select;
    if (index == INDEX_ID) {
        ioapic->id = value >> 24 & 15;
        return;
    }
    if (index < INDEX_REDIRECTION || index >= INDEX_REDIRECTION + 2 * IOAPIC_PINS)
        return;
    unsigned pin = (index - INDEX_REDIRECTION) / 2;
    uint64_t old = ioapic->entries[pin];
    uint64_t new =
        index & 1 ? (old & UINT32_MAX) | (uint64_t)value << 32 : (old & ~(uint64_t)UINT32_MAX) | value;
    new = (new &ENTRY_WRITABLE) | (old & ENTRY_READ_ONLY);
    /* Edge mode has no remote IRR; software of before the EOI register clears it by going through edge mode.
     */
    if (!(new &ENTRY_LEVEL))
        new &= ~ENTRY_REMOTE_IRR;
    ioapic->entries[pin] = new;
    send_level(ioapic, pin);
    /* An 8259 behind an ExtINT pin keeps its output high until it is acknowledged. */
    if ((new >> 8 & 7) == DELIVERY_EXTINT && old & ENTRY_MASKED && !(new &(ENTRY_MASKED | ENTRY_LEVEL)) &&
        ioapic->asserted & 1u << pin)
        send(ioapic, pin);
}

uint64_t ioapic_read(struct ioapic *ioapic, uint64_t offset, unsigned size) {
    uint64_t value = 0;
    pthread_mutex_lock(&ioapic->lock);
    if (offset == REG_SELECT)
        value = ioapic->select;
    else if (offset == REG_WINDOW)
        value = window_read(ioapic);
    pthread_mutex_unlock(&ioapic->lock);
    return size < 4 ? value & ((1u << (8 * size)) - 1) : value;
}

void ioapic_write(struct ioapic *ioapic, uint64_t offset, unsigned size, uint64_t value) {
    pthread_mutex_lock(&ioapic->lock);
    if (offset == REG_SELECT)
        ioapic->select = (uint8_t)value;
    else if (offset == REG_WINDOW && size >= 4)
        window_write(ioapic, (uint32_t)value);
    else if (offset == REG_EOI)
        eoi_locked(ioapic, (uint8_t)value);
    pthread_mutex_unlock(&ioapic->lock);
}
