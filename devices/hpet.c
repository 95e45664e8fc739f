/* HPET: the counter is the queue's clock over its period plus an offset; each comparator has a timer.
 *
 * A comparator in 64-bit mode fires when the counter reaches its value; one in 32-bit mode when the low
 * halves meet. All registers are 64 bits wide and may be accessed by halves. */
#include "devices/hpet.h"

#include <pthread.h>
#include <stdlib.h>

#define REG_CAPABILITIES 0x000
#define REG_CONFIG 0x010
#define REG_STATUS 0x020
#define REG_COUNTER 0x0f0
#define REG_TIMERS 0x100
#define TIMER_STRIDE 0x20
#define TIMER_CONFIG 0x00
#define TIMER_COMPARATOR 0x08

#define CONFIG_ENABLE 1u
#define CONFIG_LEGACY 2u

#define TIMER_LEVEL (1u << 1)
#define TIMER_ENABLE (1u << 2)
#define TIMER_PERIODIC (1u << 3)
#define TIMER_PERIODIC_CAPABLE (1u << 4)
#define TIMER_64_CAPABLE (1u << 5)
#define TIMER_SET_VALUE (1u << 6)
#define TIMER_32 (1u << 8)
#define TIMER_ROUTE_SHIFT 9
#define TIMER_ROUTE (31u << TIMER_ROUTE_SHIFT)
#define TIMER_WRITABLE                                                                                       \
    (TIMER_LEVEL | TIMER_ENABLE | TIMER_PERIODIC | TIMER_SET_VALUE | TIMER_32 | TIMER_ROUTE)
/* IOAPIC inputs 20 to 23, which nobody else drives. */
#define ROUTE_CAPABLE 0x00f00000ull

#define TICK_NS (HPET_PERIOD_FS / 1000000u)
#define PERIOD_MIN_NS 20000

struct comparator {
    struct hpet *hpet;
    unsigned index;
    struct timer timer;
    uint64_t wanted; /* deadline in queue time, UINT64_MAX if not armed */
    uint64_t config;
    uint64_t value;
    uint64_t period;
    bool level; /* of its interrupt */
};

struct hpet {
    pthread_mutex_t lock;
    struct timer_queue *timers;
    const struct hpet_ops *ops;
    void *context;
    uint64_t config;
    uint64_t status;
    uint64_t counter;      /* while halted */
    uint64_t counter_zero; /* queue time at which the running counter was 0 (modulo 2^64) */
    struct comparator comparators[HPET_COMPARATORS];
};

static uint64_t capabilities(void) {
    return (uint64_t)HPET_PERIOD_FS << 32 | hpet_block_id();
}

uint32_t hpet_block_id(void) {
    return HPET_VENDOR << 16 | 1u << 15 /* legacy replacement */ | 1u << 13 /* 64-bit counter */ |
           (HPET_COMPARATORS - 1) << 8 | 1;
}

static bool running(const struct hpet *hpet) {
    return hpet->config & CONFIG_ENABLE;
}

static uint64_t counter_at(const struct hpet *hpet, uint64_t now) {
    return running(hpet) ? (now - hpet->counter_zero) / TICK_NS + hpet->counter : hpet->counter;
}

/* Where a comparator's interrupt goes; legacy mode has the first two on the ISA lines. */
static void output_set(struct hpet *hpet, struct comparator *comparator, bool level) {
    if (hpet->config & CONFIG_LEGACY && comparator->index < 2)
        hpet->ops->set_legacy(hpet->context, comparator->index ? 8 : 0, level);
    else
        hpet->ops->set_gsi(hpet->context, (comparator->config & TIMER_ROUTE) >> TIMER_ROUTE_SHIFT, level);
}

static void level_set(struct hpet *hpet, struct comparator *comparator, bool level) {
    if (level == comparator->level)
        return;
    comparator->level = level;
    output_set(hpet, comparator, level);
}

static void interrupt(struct hpet *hpet, struct comparator *comparator) {
    if (comparator->config & TIMER_LEVEL) {
        hpet->status |= 1u << comparator->index;
        if (comparator->config & TIMER_ENABLE)
            level_set(hpet, comparator, true);
    } else if (comparator->config & TIMER_ENABLE) {
        output_set(hpet, comparator, true);
        output_set(hpet, comparator, false);
    }
}

static uint64_t width_mask(const struct comparator *comparator) {
    return comparator->config & TIMER_32 ? UINT32_MAX : UINT64_MAX;
}

/* With the lock held: note when a comparator matches next, and wake for it if that would show. A guest that
 * has left the HPET for a better timer often lets a periodic comparator run with its interrupt disabled;
 * whoever looks at its registers settles it. */
static void schedule(struct hpet *hpet, struct comparator *comparator, uint64_t now) {
    uint64_t when = UINT64_MAX;
    if (running(hpet)) {
        uint64_t ticks = (comparator->value - counter_at(hpet, now)) & width_mask(comparator);
        uint64_t full = width_mask(comparator);
        /* A value just behind a 64-bit counter is centuries away. */
        uint64_t ns = timer_scale(ticks ? ticks : full, TICK_NS, 1);
        uint64_t phase = (now - hpet->counter_zero) % TICK_NS;
        if (ns < INT64_MAX - now)
            when = now + ns - phase;
        if (comparator->config & TIMER_PERIODIC && when < now + PERIOD_MIN_NS)
            when = now + PERIOD_MIN_NS;
    }
    comparator->wanted = when;
    if (when == UINT64_MAX || !(comparator->config & TIMER_ENABLE))
        timer_cancel(&comparator->timer);
    else
        timer_arm(&comparator->timer, when);
}

/* With the lock held: do what the matches up to now do. */
static void settle(struct hpet *hpet, struct comparator *comparator, uint64_t now) {
    if (now < comparator->wanted)
        return;
    uint64_t mask = width_mask(comparator);
    if (comparator->config & TIMER_PERIODIC && comparator->period & mask) {
        /* On to the first multiple that is still to come. */
        uint64_t late = (counter_at(hpet, now) - comparator->value) & mask;
        uint64_t period = comparator->period & mask;
        comparator->value = (comparator->value + (late / period + 1) * period) & mask;
    }
    interrupt(hpet, comparator);
    schedule(hpet, comparator, now);
}

static void settle_all(struct hpet *hpet) {
    uint64_t now = timer_now(hpet->timers);
    for (unsigned i = 0; i < HPET_COMPARATORS; i++)
        settle(hpet, &hpet->comparators[i], now);
}

static void timer_callback(void *context) {
    struct comparator *comparator = context;
    struct hpet *hpet = comparator->hpet;
    pthread_mutex_lock(&hpet->lock);
    settle(hpet, comparator, timer_now(hpet->timers));
    pthread_mutex_unlock(&hpet->lock);
}

static void all_schedule(struct hpet *hpet, uint64_t now) {
    for (unsigned i = 0; i < HPET_COMPARATORS; i++)
        schedule(hpet, &hpet->comparators[i], now);
}

static uint64_t register_read(struct hpet *hpet, uint64_t offset) {
    switch (offset) {
    case REG_CAPABILITIES:
        return capabilities();
    case REG_CONFIG:
        return hpet->config;
    case REG_STATUS:
        return hpet->status;
    case REG_COUNTER:
        return counter_at(hpet, timer_now(hpet->timers));
    default:
        break;
    }
    if (offset < REG_TIMERS || offset >= REG_TIMERS + TIMER_STRIDE * HPET_COMPARATORS)
        return 0;
    const struct comparator *comparator = &hpet->comparators[(offset - REG_TIMERS) / TIMER_STRIDE];
    switch (offset % TIMER_STRIDE) {
    case TIMER_CONFIG:
        return comparator->config | TIMER_PERIODIC_CAPABLE | TIMER_64_CAPABLE | ROUTE_CAPABLE << 32;
    case TIMER_COMPARATOR:
        return comparator->value;
    default:
        return 0;
    }
}

static void config_write(struct hpet *hpet, uint64_t value) {
    uint64_t now = timer_now(hpet->timers);
    uint64_t changed = hpet->config ^ value;
    if (changed & CONFIG_LEGACY) {
        for (unsigned i = 0; i < HPET_COMPARATORS; i++)
            level_set(hpet, &hpet->comparators[i], false);
    }
    if (changed & CONFIG_ENABLE) {
        hpet->counter = counter_at(hpet, now);
        hpet->counter_zero = now;
    }
    hpet->config = value & (CONFIG_ENABLE | CONFIG_LEGACY);
    if (changed & CONFIG_LEGACY)
        hpet->ops->legacy_changed(hpet->context, hpet->config & CONFIG_LEGACY);
    if (!running(hpet)) {
        for (unsigned i = 0; i < HPET_COMPARATORS; i++)
            level_set(hpet, &hpet->comparators[i], false);
    }
    all_schedule(hpet, now);
}

static void comparator_config_write(struct hpet *hpet, struct comparator *comparator, uint64_t value) {
    level_set(hpet, comparator, false);
    comparator->config = value & TIMER_WRITABLE;
    unsigned route = (comparator->config & TIMER_ROUTE) >> TIMER_ROUTE_SHIFT;
    if (!(ROUTE_CAPABLE >> route & 1))
        comparator->config &= ~(uint64_t)TIMER_ROUTE;
    if (comparator->config & TIMER_32) {
        comparator->value &= UINT32_MAX;
        comparator->period &= UINT32_MAX;
    }
    /* A level interrupt that was raised while it was disabled, or in the other mode, shows now. */
    if (comparator->config & TIMER_LEVEL && comparator->config & TIMER_ENABLE &&
        hpet->status & 1u << comparator->index)
        level_set(hpet, comparator, true);
    schedule(hpet, comparator, timer_now(hpet->timers));
}

/* keep: bits that a half-width write leaves alone. */
static void comparator_value_write(struct hpet *hpet, struct comparator *comparator, uint64_t value,
                                   uint64_t keep) {
    uint64_t mask = width_mask(comparator);
    bool is_periodic = comparator->config & TIMER_PERIODIC;
    if (!is_periodic || comparator->config & TIMER_SET_VALUE)
        comparator->value = ((comparator->value & keep) | (value & ~keep)) & mask;
    /* TIMER_SET_VALUE lets one write reach the accumulator; each write of a periodic timer sets its period as
     * well, so that software which writes the comparator once gets that period from there on. */
    if (is_periodic)
        comparator->period = ((comparator->period & keep) | (value & ~keep)) & mask;
    comparator->config &= ~(uint64_t)TIMER_SET_VALUE;
    schedule(hpet, comparator, timer_now(hpet->timers));
}

static void register_write(struct hpet *hpet, uint64_t offset, uint64_t value, uint64_t keep) {
    switch (offset) {
    case REG_CONFIG:
        config_write(hpet, (hpet->config & keep) | value);
        return;
    case REG_STATUS:
        for (unsigned i = 0; i < HPET_COMPARATORS; i++) {
            if (value & hpet->status & 1u << i) {
                hpet->status &= ~(1ull << i);
                level_set(hpet, &hpet->comparators[i], false);
            }
        }
        return;
    case REG_COUNTER:
        if (!running(hpet))
            hpet->counter = (hpet->counter & keep) | value;
        return;
    default:
        break;
    }
    if (offset < REG_TIMERS || offset >= REG_TIMERS + TIMER_STRIDE * HPET_COMPARATORS)
        return;
    struct comparator *comparator = &hpet->comparators[(offset - REG_TIMERS) / TIMER_STRIDE];
    switch (offset % TIMER_STRIDE) {
    case TIMER_CONFIG:
        comparator_config_write(hpet, comparator, (comparator->config & keep) | value);
        break;
    case TIMER_COMPARATOR:
        comparator_value_write(hpet, comparator, value, keep);
        break;
    default:
        break;
    }
}

static bool access_valid(uint64_t offset, unsigned size) {
    return offset < HPET_SIZE && (size == 4 || size == 8) && offset % size == 0;
}

uint64_t hpet_read(struct hpet *hpet, uint64_t offset, unsigned size) {
    if (!access_valid(offset, size))
        return 0;
    pthread_mutex_lock(&hpet->lock);
    if ((offset & ~7ull) != REG_COUNTER)
        settle_all(hpet);
    uint64_t value = register_read(hpet, offset & ~7ull);
    pthread_mutex_unlock(&hpet->lock);
    if (size == 8)
        return value;
    return offset & 4 ? value >> 32 : value & UINT32_MAX;
}

void hpet_write(struct hpet *hpet, uint64_t offset, unsigned size, uint64_t value) {
    if (!access_valid(offset, size))
        return;
    uint64_t keep = 0;
    if (size == 4) {
        value &= UINT32_MAX;
        keep = offset & 4 ? UINT32_MAX : ~(uint64_t)UINT32_MAX;
        if (offset & 4)
            value <<= 32;
    }
    pthread_mutex_lock(&hpet->lock);
    settle_all(hpet);
    register_write(hpet, offset & ~7ull, value, keep);
    pthread_mutex_unlock(&hpet->lock);
}

void hpet_reset(struct hpet *hpet) {
    pthread_mutex_lock(&hpet->lock);
    config_write(hpet, 0);
    hpet->counter = 0;
    hpet->status = 0;
    for (unsigned i = 0; i < HPET_COMPARATORS; i++) {
        struct comparator *comparator = &hpet->comparators[i];
        comparator->config = 0;
        comparator->value = UINT64_MAX;
        comparator->period = 0;
    }
    pthread_mutex_unlock(&hpet->lock);
}

struct hpet *hpet_create(struct timer_queue *timers, const struct hpet_ops *ops, void *context) {
    struct hpet *hpet = calloc(1, sizeof *hpet);
    if (!hpet)
        return NULL;
    pthread_mutex_init(&hpet->lock, NULL);
    hpet->timers = timers;
    hpet->ops = ops;
    hpet->context = context;
    for (unsigned i = 0; i < HPET_COMPARATORS; i++) {
        struct comparator *comparator = &hpet->comparators[i];
        comparator->hpet = hpet;
        comparator->index = i;
        comparator->wanted = UINT64_MAX;
        timer_init(&comparator->timer, timers, timer_callback, comparator);
    }
    hpet_reset(hpet);
    return hpet;
}

void hpet_destroy(struct hpet *hpet) {
    if (!hpet)
        return;
    for (unsigned i = 0; i < HPET_COMPARATORS; i++)
        timer_cancel_sync(&hpet->comparators[i].timer);
    pthread_mutex_destroy(&hpet->lock);
    free(hpet);
}
