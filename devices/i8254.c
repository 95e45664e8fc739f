/* Three counters, computed from the time that has passed since each was loaded.
 *
 * A counter's state is what was programmed plus the instant at which it (re)started; count and output follow.
 * Only counter 0 has a timer, for the edges that its interrupt line must show; in the periodic modes one
 * event a period pulls the line low and high again, since nothing but the rising edge is visible there. */
#include "devices/i8254.h"

#include <pthread.h>
#include <stdlib.h>

#define COUNTERS 3
/* A guest may ask for a rate that no host can serve; its ticks then merge. */
#define PERIOD_MIN_NS 20000
#define REFRESH_HALF_NS 15085

enum access { ACCESS_LATCH, ACCESS_LOW, ACCESS_HIGH, ACCESS_BOTH };

struct counter {
    uint8_t mode; /* 0 to 5 */
    bool bcd;
    enum access access;
    bool gate;
    bool loaded; /* a count was written since the control word, and a trigger came if the mode wants one */
    bool null_count;            /* status: a count is awaited */
    uint32_t count;             /* the one in use: 1 to 65536 (BCD: 10000) */
    uint32_t next;              /* modes 1, 2, 3, 5: taken at the next period or trigger; 0 if none */
    uint64_t start;             /* when counting began */
    uint64_t paused;            /* ticks that had passed when the gate went low (modes 0 and 4) */
    bool write_high, read_high; /* the second byte comes next */
    uint8_t write_low;
    uint16_t latch;
    unsigned latched_bytes; /* that remain to be read */
    uint8_t status;
    bool status_latched;
};

struct i8254 {
    pthread_mutex_t lock;
    struct timer_queue *timers;
    struct timer timer;
    uint64_t wanted; /* what the timer is armed for; UINT64_MAX if not */
    struct irq_line irq;
    bool line;
    uint8_t port61;
    struct counter counters[COUNTERS];
};

static bool periodic(const struct counter *counter) {
    return counter->mode == 2 || counter->mode == 3;
}

static uint64_t ticks_of(uint64_t ns) {
    return timer_scale(ns, PIT_HZ, NS_PER_SECOND);
}

static uint64_t ns_of(uint64_t ticks) {
    return timer_scale_up(ticks, NS_PER_SECOND, PIT_HZ);
}

/* Ticks since the counter started; a gate that is low holds modes 0 and 4. */
static uint64_t elapsed(const struct counter *counter, uint64_t now) {
    if (!counter->gate && (counter->mode == 0 || counter->mode == 4))
        return counter->paused;
    return now > counter->start ? ticks_of(now - counter->start) : 0;
}

/* Take a count that was written while a period ran. */
static void settle(struct counter *counter, uint64_t now) {
    if (!periodic(counter) || !counter->loaded || !counter->next || !counter->gate)
        return;
    uint64_t ticks = elapsed(counter, now);
    if (ticks < counter->count)
        return;
    counter->start += ns_of(counter->count);
    counter->count = counter->next;
    counter->next = 0;
}

static bool output(const struct counter *counter, uint64_t now) {
    if (!counter->loaded)
        return counter->mode != 0;
    uint64_t ticks = elapsed(counter, now);
    switch (counter->mode) {
    case 0:
    case 1:
        return ticks >= counter->count;
    case 2:
        return !counter->gate || ticks % counter->count != counter->count - 1;
    case 3:
        return !counter->gate || ticks % counter->count < (counter->count + 1) / 2;
    default: /* a strobe of one tick */
        return ticks != counter->count;
    }
}

static uint16_t to_bcd(uint32_t value) {
    return (uint16_t)(value % 10 | value / 10 % 10 << 4 | value / 100 % 10 << 8 | value / 1000 % 10 << 12);
}

static uint16_t current_count(const struct counter *counter, uint64_t now) {
    uint32_t modulus = counter->bcd ? 10000 : 65536;
    uint64_t ticks = elapsed(counter, now);
    uint32_t value = counter->count;
    if (counter->loaded) {
        switch (counter->mode) {
        case 2:
            value = counter->gate ? counter->count - (uint32_t)(ticks % counter->count) : counter->count;
            break;
        case 3: {
            /* Counts down by two, twice a period. */
            uint32_t even = counter->count & ~1u;
            uint32_t half = counter->count / 2 ? counter->count / 2 : 1;
            value = counter->gate ? even - 2 * (uint32_t)(ticks % half) : even;
            break;
        }
        default:
            value = (uint32_t)((counter->count + modulus - ticks % modulus) % modulus);
            break;
        }
    }
    value %= modulus;
    return counter->bcd ? to_bcd(value) : (uint16_t)value;
}

static void line_set(struct i8254 *pit, bool level) {
    if (level == pit->line)
        return;
    pit->line = level;
    irq_line_set(&pit->irq, level);
}

/* With the lock held: when must counter 0's line be looked at again? */
static void schedule(struct i8254 *pit, uint64_t now) {
    struct counter *counter = &pit->counters[0];
    uint64_t when = UINT64_MAX;
    if (counter->loaded) {
        uint64_t ticks = elapsed(counter, now);
        switch (counter->mode) {
        case 0:
        case 1:
            if (ticks < counter->count)
                when = counter->start + ns_of(counter->count);
            break;
        case 2:
        case 3:
            when = counter->start + ns_of((ticks / counter->count + 1) * counter->count);
            if (when < now + PERIOD_MIN_NS)
                when = now + PERIOD_MIN_NS;
            break;
        default:
            if (ticks <= counter->count)
                when = counter->start + ns_of(counter->count + 1);
            break;
        }
    }
    if (when == pit->wanted)
        return;
    pit->wanted = when;
    if (when == UINT64_MAX)
        timer_cancel(&pit->timer);
    else
        timer_arm(&pit->timer, when);
}

static void timer_callback(void *context) {
    struct i8254 *pit = context;
    pthread_mutex_lock(&pit->lock);
    uint64_t now = timer_now(pit->timers);
    if (now >= pit->wanted) {
        struct counter *counter = &pit->counters[0];
        pit->wanted = UINT64_MAX;
        settle(counter, now);
        if (periodic(counter) || counter->mode >= 4) {
            line_set(pit, false);
            line_set(pit, true);
        } else {
            line_set(pit, output(counter, now));
        }
        schedule(pit, now);
    }
    pthread_mutex_unlock(&pit->lock);
}

static uint32_t count_value(const struct counter *counter, uint16_t raw) {
    if (!counter->bcd)
        return raw ? raw : 65536;
    uint32_t value = (raw & 15) + (raw >> 4 & 15) * 10 + (raw >> 8 & 15) * 100 + (raw >> 12 & 15) * 1000u;
    return value ? value : 10000;
}

static void count_written(struct i8254 *pit, unsigned index, uint16_t raw) {
    struct counter *counter = &pit->counters[index];
    uint64_t now = timer_now(pit->timers);
    uint32_t count = count_value(counter, raw);
    counter->null_count = false;
    if (periodic(counter)) {
        /* A count of 1 is not allowed there; take what keeps the period defined. */
        if (count < 2)
            count = 2;
        if (counter->loaded) {
            settle(counter, now);
            counter->next = count;
            return;
        }
    } else if (counter->mode == 1 || counter->mode == 5) {
        counter->next = count; /* until the gate rises */
        return;
    }
    counter->count = count;
    counter->next = 0;
    counter->start = now;
    counter->paused = 0;
    counter->loaded = true;
    if (index == 0) {
        line_set(pit, output(counter, now));
        schedule(pit, now);
    }
}

static void latch_count(struct counter *counter, uint64_t now) {
    if (counter->latched_bytes)
        return;
    counter->latch = current_count(counter, now);
    counter->latched_bytes = counter->access == ACCESS_BOTH ? 2 : 1;
}

static void latch_status(struct counter *counter, uint64_t now) {
    if (counter->status_latched)
        return;
    counter->status = (uint8_t)(output(counter, now) << 7 | counter->null_count << 6 | counter->access << 4 |
                                counter->mode << 1 | counter->bcd);
    counter->status_latched = true;
}

static void control_write(struct i8254 *pit, uint8_t value) {
    uint64_t now = timer_now(pit->timers);
    unsigned select = value >> 6;
    if (select == 3) { /* read-back */
        for (unsigned i = 0; i < COUNTERS; i++) {
            if (!(value & 2u << i))
                continue;
            settle(&pit->counters[i], now);
            if (!(value & 0x20))
                latch_count(&pit->counters[i], now);
            if (!(value & 0x10))
                latch_status(&pit->counters[i], now);
        }
        return;
    }
    struct counter *counter = &pit->counters[select];
    enum access access = (enum access)(value >> 4 & 3);
    if (access == ACCESS_LATCH) {
        settle(counter, now);
        latch_count(counter, now);
        return;
    }
    unsigned mode = value >> 1 & 7;
    bool gate = counter->gate;
    *counter = (struct counter){.mode = (uint8_t)(mode > 5 ? mode - 4 : mode),
                                .bcd = value & 1,
                                .access = access,
                                .gate = gate,
                                .null_count = true,
                                .count = counter->count};
    if (select == 0) {
        line_set(pit, counter->mode != 0);
        schedule(pit, now);
    }
}

void i8254_write(struct i8254 *pit, unsigned offset, uint8_t value) {
    pthread_mutex_lock(&pit->lock);
    if ((offset & 3) == 3) {
        control_write(pit, value);
    } else {
        unsigned index = offset & 3;
        struct counter *counter = &pit->counters[index];
        switch (counter->access) {
        case ACCESS_LOW:
            count_written(pit, index, value);
            break;
        case ACCESS_HIGH:
            count_written(pit, index, (uint16_t)(value << 8));
            break;
        default:
            if (counter->write_high) {
                count_written(pit, index, (uint16_t)(value << 8 | counter->write_low));
            } else {
                counter->write_low = value;
                /* In mode 0 the first byte stops the count. */
                if (counter->mode == 0 && counter->loaded) {
                    counter->loaded = false;
                    counter->null_count = true;
                    if (index == 0) {
                        line_set(pit, false);
                        schedule(pit, timer_now(pit->timers));
                    }
                }
            }
            counter->write_high = !counter->write_high;
            break;
        }
    }
    pthread_mutex_unlock(&pit->lock);
}

static uint8_t counter_read(struct counter *counter, uint64_t now) {
    if (counter->status_latched) {
        counter->status_latched = false;
        return counter->status;
    }
    bool latched = counter->latched_bytes;
    settle(counter, now);
    uint16_t count = latched ? counter->latch : current_count(counter, now);
    bool high = counter->access == ACCESS_HIGH || (counter->access == ACCESS_BOTH && counter->read_high);
    if (counter->access == ACCESS_BOTH)
        counter->read_high = !counter->read_high;
    if (latched)
        counter->latched_bytes--;
    return (uint8_t)(high ? count >> 8 : count);
}

uint8_t i8254_read(struct i8254 *pit, unsigned offset) {
    uint8_t value = 0xff; /* the control word cannot be read */
    pthread_mutex_lock(&pit->lock);
    if ((offset & 3) != 3)
        value = counter_read(&pit->counters[offset & 3], timer_now(pit->timers));
    pthread_mutex_unlock(&pit->lock);
    return value;
}

static void gate_set(struct i8254 *pit, struct counter *counter, bool gate) {
    if (gate == counter->gate)
        return;
    uint64_t now = timer_now(pit->timers);
    if (!gate) {
        counter->paused = elapsed(counter, now);
        counter->gate = false;
        return;
    }
    counter->gate = true;
    switch (counter->mode) {
    case 0:
    case 4:
        counter->start = now - ns_of(counter->paused);
        break;
    case 1:
    case 5:
        if (counter->next)
            counter->count = counter->next;
        counter->start = now;
        counter->loaded = !counter->null_count;
        break;
    default:
        if (counter->next)
            counter->count = counter->next;
        counter->next = 0;
        counter->start = now;
        break;
    }
}

uint8_t i8254_port61_read(struct i8254 *pit) {
    pthread_mutex_lock(&pit->lock);
    uint64_t now = timer_now(pit->timers);
    settle(&pit->counters[2], now);
    uint8_t value = pit->port61;
    value |= (uint8_t)((now / REFRESH_HALF_NS & 1) << 4);
    value |= (uint8_t)(output(&pit->counters[2], now) << 5);
    pthread_mutex_unlock(&pit->lock);
    return value;
}

void i8254_port61_write(struct i8254 *pit, uint8_t value) {
    pthread_mutex_lock(&pit->lock);
    /* Gate, speaker data, and the enables of parity and channel checks, which never happen. */
    pit->port61 = value & 0x0f;
    gate_set(pit, &pit->counters[2], value & 1);
    pthread_mutex_unlock(&pit->lock);
}

void i8254_reset(struct i8254 *pit) {
    pthread_mutex_lock(&pit->lock);
    for (unsigned i = 0; i < COUNTERS; i++)
        pit->counters[i] = (struct counter){.mode = 3, .access = ACCESS_BOTH, .gate = i != 2, .count = 65536};
    pit->port61 = 0;
    line_set(pit, false);
    schedule(pit, timer_now(pit->timers));
    pthread_mutex_unlock(&pit->lock);
}

struct i8254 *i8254_create(struct timer_queue *timers, struct irq_line irq0) {
    struct i8254 *pit = calloc(1, sizeof *pit);
    if (!pit)
        return NULL;
    pthread_mutex_init(&pit->lock, NULL);
    pit->timers = timers;
    pit->irq = irq0;
    pit->wanted = UINT64_MAX;
    timer_init(&pit->timer, timers, timer_callback, pit);
    i8254_reset(pit);
    return pit;
}

void i8254_destroy(struct i8254 *pit) {
    if (!pit)
        return;
    timer_cancel_sync(&pit->timer);
    pthread_mutex_destroy(&pit->lock);
    free(pit);
}
