/* The PC's real-time clock and CMOS memory (Motorola MC146818A data sheet; memory-size bytes as PC firmware
 * keeps them). The clock starts at the host's UTC and may be set by the guest. Runs on while the machine
 * sleeps. Thread-safe. */
#ifndef NESTOR_DEVICES_MC146818_H
#define NESTOR_DEVICES_MC146818_H

#include "devices/irq_line.h"
#include "devices/timer.h"

struct mc146818;

struct mc146818_config {
    struct timer_queue *timers;
    struct irq_line irq8;
    void (*alarm)(void *context); /* the alarm's interrupt begins; with the lock held. Optional */
    void *context;
    uint64_t low_memory;  /* bytes of RAM below 4 GiB */
    uint64_t high_memory; /* and above */
    uint64_t start_time;  /* seconds since 1970, UTC; 0: the host's clock */
};

MUST_CHECK struct mc146818 *mc146818_create(const struct mc146818_config *config);
void mc146818_destroy(struct mc146818 *rtc);
/* Machine reset: interrupts off, time and memory kept. */
void mc146818_reset(struct mc146818 *rtc);

/* Offset 0: index (port 0x70, bit 7 masks NMI on a PC and is ignored), 1: data (port 0x71). */
uint8_t mc146818_read(struct mc146818 *rtc, unsigned offset);
void mc146818_write(struct mc146818 *rtc, unsigned offset, uint8_t value);

#endif
