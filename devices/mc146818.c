/* RTC: the time is the timer queue's clock plus an offset, so a guest that sets it moves the offset.
 *
 * Flags of register C are brought up to date when somebody looks (settle()), from what has passed since the
 * last look; the timer only runs while an interrupt is enabled that could come. */
#include "devices/mc146818.h"

#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#define CMOS_SIZE 128
#define SECONDS_PER_DAY 86400
/* From the rise of "update in progress" to the end of the update: 244 us and 1984 us. */
#define UPDATE_NS 2228000
/* Nanoseconds since 1970 stay well within 64 bits. */
#define LAST_YEAR 2199

enum cmos_byte {
    CMOS_SECONDS = 0x00,
    CMOS_SECONDS_ALARM = 0x01,
    CMOS_MINUTES = 0x02,
    CMOS_MINUTES_ALARM = 0x03,
    CMOS_HOURS = 0x04,
    CMOS_HOURS_ALARM = 0x05,
    CMOS_WEEKDAY = 0x06,
    CMOS_DAY = 0x07,
    CMOS_MONTH = 0x08,
    CMOS_YEAR = 0x09,
    CMOS_A = 0x0a,
    CMOS_B = 0x0b,
    CMOS_C = 0x0c,
    CMOS_D = 0x0d,
    CMOS_EQUIPMENT = 0x14,
    CMOS_BASE_MEMORY = 0x15,
    CMOS_EXTENDED_MEMORY = 0x17,
    CMOS_EXTENDED_MEMORY_2 = 0x30,
    CMOS_CENTURY = 0x32,
    CMOS_MEMORY_ABOVE_16M = 0x34,
    CMOS_MEMORY_ABOVE_4G = 0x5b,
};

#define A_UPDATING 0x80
#define B_SET 0x80
#define B_PERIODIC 0x40
#define B_ALARM 0x20
#define B_UPDATE 0x10
#define B_BINARY 0x04
#define B_24_HOURS 0x02
#define C_IRQ 0x80
#define D_VALID 0x80

struct mc146818 {
    pthread_mutex_t lock;
    struct timer_queue *timers;
    struct timer timer;
    uint64_t wanted;
    struct irq_line irq;
    void (*alarm)(void *context);
    void *context;
    bool alarm_level; /* the alarm is among what interrupts */
    uint8_t index;
    uint8_t ram[CMOS_SIZE];
    int64_t offset_ns;    /* RTC time in ns since 1970 = timer_now() + this */
    int64_t settled_ns;   /* RTC time up to which the flags are accounted */
    int64_t set_fraction; /* ns within the second at which the clock stands while SET is 1 */
};

static int64_t rtc_now(struct mc146818 *rtc) {
    return (int64_t)timer_now(rtc->timers) + rtc->offset_ns;
}

static uint8_t encode(const struct mc146818 *rtc, unsigned value) {
    return (uint8_t)(rtc->ram[CMOS_B] & B_BINARY ? value : (value / 10 % 10 << 4 | value % 10));
}

static unsigned decode(const struct mc146818 *rtc, uint8_t value) {
    return rtc->ram[CMOS_B] & B_BINARY ? value : (value >> 4) * 10u + (value & 15);
}

static uint8_t encode_hour(const struct mc146818 *rtc, unsigned hour) {
    if (rtc->ram[CMOS_B] & B_24_HOURS)
        return encode(rtc, hour);
    return encode(rtc, hour % 12 ? hour % 12 : 12) | (hour >= 12 ? 0x80 : 0);
}

static unsigned decode_hour(const struct mc146818 *rtc, uint8_t value) {
    if (rtc->ram[CMOS_B] & B_24_HOURS)
        return decode(rtc, value);
    return decode(rtc, value & 0x7f) % 12 + (value & 0x80 ? 12 : 0);
}

/* Put the date of an instant into the time bytes. */
static void time_to_ram(struct mc146818 *rtc, int64_t ns) {
    time_t seconds = (time_t)(ns / (int64_t)NS_PER_SECOND);
    struct tm tm;
    if (!gmtime_r(&seconds, &tm))
        return;
    rtc->ram[CMOS_SECONDS] = encode(rtc, (unsigned)tm.tm_sec);
    rtc->ram[CMOS_MINUTES] = encode(rtc, (unsigned)tm.tm_min);
    rtc->ram[CMOS_HOURS] = encode_hour(rtc, (unsigned)tm.tm_hour);
    rtc->ram[CMOS_WEEKDAY] = encode(rtc, (unsigned)tm.tm_wday + 1);
    rtc->ram[CMOS_DAY] = encode(rtc, (unsigned)tm.tm_mday);
    rtc->ram[CMOS_MONTH] = encode(rtc, (unsigned)tm.tm_mon + 1);
    rtc->ram[CMOS_YEAR] = encode(rtc, (unsigned)(tm.tm_year % 100));
    rtc->ram[CMOS_CENTURY] = encode(rtc, (unsigned)(tm.tm_year + 1900) / 100);
}

/* The instant that the time bytes name. Out-of-range bytes give some instant, never an error. */
static int64_t time_from_ram(const struct mc146818 *rtc) {
    unsigned year = decode(rtc, rtc->ram[CMOS_CENTURY]) * 100 + decode(rtc, rtc->ram[CMOS_YEAR]);
    if (year < 1970)
        year = 1970;
    if (year > LAST_YEAR)
        year = LAST_YEAR;
    struct tm tm = {
        .tm_sec = (int)decode(rtc, rtc->ram[CMOS_SECONDS]),
        .tm_min = (int)decode(rtc, rtc->ram[CMOS_MINUTES]),
        .tm_hour = (int)decode_hour(rtc, rtc->ram[CMOS_HOURS]),
        .tm_mday = (int)decode(rtc, rtc->ram[CMOS_DAY]),
        .tm_mon = (int)decode(rtc, rtc->ram[CMOS_MONTH]) - 1,
        .tm_year = (int)year - 1900,
    };
    int64_t seconds = (int64_t)timegm(&tm);
    return (seconds > 0 ? seconds : 0) * (int64_t)NS_PER_SECOND;
}

/* Period of the periodic flag; 0 if off (data sheet, table 5 for a 32.768 kHz time base). */
static int64_t period_ns(const struct mc146818 *rtc) {
    unsigned rate = rtc->ram[CMOS_A] & 15;
    if (rate == 0)
        return 0;
    if (rate <= 2)
        rate += 7;
    return (int64_t)(NS_PER_SECOND << (rate - 1)) / 32768;
}

/* True if the second that ends with the instant `seconds` matches the alarm. */
static bool alarm_matches(const struct mc146818 *rtc, int64_t seconds) {
    int64_t day = seconds % SECONDS_PER_DAY;
    const uint8_t *ram = rtc->ram;
    /* The two top bits mean "any". */
    return (ram[CMOS_SECONDS_ALARM] >= 0xc0 || decode(rtc, ram[CMOS_SECONDS_ALARM]) == day % 60) &&
           (ram[CMOS_MINUTES_ALARM] >= 0xc0 || decode(rtc, ram[CMOS_MINUTES_ALARM]) == day / 60 % 60) &&
           (ram[CMOS_HOURS_ALARM] >= 0xc0 || decode_hour(rtc, ram[CMOS_HOURS_ALARM]) == day / 3600);
}

static void irq_update(struct mc146818 *rtc) {
    bool level = rtc->ram[CMOS_C] & rtc->ram[CMOS_B] & (B_PERIODIC | B_ALARM | B_UPDATE);
    rtc->ram[CMOS_C] = (rtc->ram[CMOS_C] & (uint8_t)~C_IRQ) | (level ? C_IRQ : 0);
    irq_line_set(&rtc->irq, level);
    bool alarm = rtc->ram[CMOS_C] & rtc->ram[CMOS_B] & B_ALARM;
    if (alarm && !rtc->alarm_level && rtc->alarm)
        rtc->alarm(rtc->context);
    rtc->alarm_level = alarm;
}

/* With the lock held: flags for what has passed. */
static void settle(struct mc146818 *rtc) {
    int64_t now = rtc_now(rtc), from = rtc->settled_ns;
    int64_t period = period_ns(rtc);
    if (now <= from)
        return;
    if (period && now / period != from / period)
        rtc->ram[CMOS_C] |= B_PERIODIC;
    int64_t second = now / (int64_t)NS_PER_SECOND, last = from / (int64_t)NS_PER_SECOND;
    if (second != last && !(rtc->ram[CMOS_B] & B_SET)) {
        rtc->ram[CMOS_C] |= B_UPDATE;
        if (second - last > SECONDS_PER_DAY)
            last = second - SECONDS_PER_DAY;
        while (last < second && !(rtc->ram[CMOS_C] & B_ALARM)) {
            if (alarm_matches(rtc, ++last))
                rtc->ram[CMOS_C] |= B_ALARM;
        }
    }
    rtc->settled_ns = now;
    irq_update(rtc);
}

/* With the lock held: arm the timer for the next thing that can interrupt. */
static void schedule(struct mc146818 *rtc) {
    int64_t now = rtc_now(rtc), next = INT64_MAX;
    uint8_t enabled = rtc->ram[CMOS_B];
    int64_t period = period_ns(rtc);
    /* A flag that is already up needs no timer to be raised again. */
    uint8_t pending = rtc->ram[CMOS_C];
    if (enabled & B_PERIODIC && period && !(pending & B_PERIODIC))
        next = (now / period + 1) * period;
    if (enabled & (B_ALARM | B_UPDATE) & (uint8_t)~pending && !(enabled & B_SET)) {
        int64_t second = (now / (int64_t)NS_PER_SECOND + 1) * (int64_t)NS_PER_SECOND;
        if (second < next)
            next = second;
    }
    if (next == INT64_MAX) {
        rtc->wanted = UINT64_MAX;
        timer_cancel(&rtc->timer);
        return;
    }
    rtc->wanted = (uint64_t)(next - rtc->offset_ns);
    timer_arm(&rtc->timer, rtc->wanted);
}

static void timer_callback(void *context) {
    struct mc146818 *rtc = context;
    pthread_mutex_lock(&rtc->lock);
    if (timer_now(rtc->timers) >= rtc->wanted) {
        settle(rtc);
        schedule(rtc);
    }
    pthread_mutex_unlock(&rtc->lock);
}

static bool is_time_byte(unsigned index) {
    return index == CMOS_SECONDS || index == CMOS_MINUTES || index == CMOS_HOURS ||
           (index >= CMOS_WEEKDAY && index <= CMOS_YEAR) || index == CMOS_CENTURY;
}

static uint8_t cmos_read(struct mc146818 *rtc, unsigned index) {
    int64_t now = rtc_now(rtc);
    bool standing = rtc->ram[CMOS_B] & B_SET;
    if (is_time_byte(index)) {
        if (!standing)
            time_to_ram(rtc, now);
        return rtc->ram[index];
    }
    switch (index) {
    case CMOS_A: {
        bool updating = !standing && now % (int64_t)NS_PER_SECOND >= (int64_t)NS_PER_SECOND - UPDATE_NS;
        return (rtc->ram[CMOS_A] & (uint8_t)~A_UPDATING) | (updating ? A_UPDATING : 0);
    }
    case CMOS_C: {
        settle(rtc);
        uint8_t value = rtc->ram[CMOS_C];
        rtc->ram[CMOS_C] = 0;
        irq_update(rtc);
        schedule(rtc);
        return value;
    }
    default:
        return rtc->ram[index];
    }
}

/* Let the clock stand at, or run on from, what the bytes say. */
static void clock_set(struct mc146818 *rtc) {
    rtc->offset_ns = time_from_ram(rtc) + rtc->set_fraction - (int64_t)timer_now(rtc->timers);
    rtc->settled_ns = rtc_now(rtc);
}

static void register_b_write(struct mc146818 *rtc, uint8_t value) {
    bool was_set = rtc->ram[CMOS_B] & B_SET, set = value & B_SET;
    if (set)
        value &= (uint8_t)~B_UPDATE;
    if (!was_set && set) {
        time_to_ram(rtc, rtc_now(rtc));
        rtc->set_fraction = rtc_now(rtc) % (int64_t)NS_PER_SECOND;
    }
    rtc->ram[CMOS_B] = value;
    if (was_set && !set)
        clock_set(rtc);
    irq_update(rtc);
}

static void cmos_write(struct mc146818 *rtc, unsigned index, uint8_t value) {
    settle(rtc);
    if (is_time_byte(index)) {
        bool standing = rtc->ram[CMOS_B] & B_SET;
        if (!standing) {
            time_to_ram(rtc, rtc_now(rtc));
            rtc->set_fraction = rtc_now(rtc) % (int64_t)NS_PER_SECOND;
        }
        rtc->ram[index] = value;
        if (!standing)
            clock_set(rtc);
    } else if (index == CMOS_A) {
        rtc->ram[CMOS_A] = value & (uint8_t)~A_UPDATING;
    } else if (index == CMOS_B) {
        register_b_write(rtc, value);
    } else if (index != CMOS_C && index != CMOS_D) {
        rtc->ram[index] = value;
    }
    schedule(rtc);
}

uint8_t mc146818_read(struct mc146818 *rtc, unsigned offset) {
    uint8_t value = 0xff; /* the index cannot be read back */
    pthread_mutex_lock(&rtc->lock);
    if (offset & 1)
        value = cmos_read(rtc, rtc->index);
    pthread_mutex_unlock(&rtc->lock);
    return value;
}

void mc146818_write(struct mc146818 *rtc, unsigned offset, uint8_t value) {
    pthread_mutex_lock(&rtc->lock);
    if (offset & 1)
        cmos_write(rtc, rtc->index, value);
    else
        rtc->index = value & (CMOS_SIZE - 1);
    pthread_mutex_unlock(&rtc->lock);
}

void mc146818_reset(struct mc146818 *rtc) {
    pthread_mutex_lock(&rtc->lock);
    if (rtc->ram[CMOS_B] & B_SET)
        clock_set(rtc);
    rtc->ram[CMOS_A] = 0x26;
    rtc->ram[CMOS_B] = B_24_HOURS;
    rtc->ram[CMOS_C] = 0;
    rtc->index = 0;
    irq_update(rtc);
    schedule(rtc);
    pthread_mutex_unlock(&rtc->lock);
}

static void memory_size_set(struct mc146818 *rtc, unsigned index, uint64_t value, unsigned bytes,
                            uint64_t limit) {
    if (value > limit)
        value = limit;
    for (unsigned i = 0; i < bytes; i++)
        rtc->ram[index + i] = (uint8_t)(value >> (8 * i));
}

struct mc146818 *mc146818_create(const struct mc146818_config *config) {
    struct mc146818 *rtc = calloc(1, sizeof *rtc);
    if (!rtc)
        return NULL;
    pthread_mutex_init(&rtc->lock, NULL);
    rtc->timers = config->timers;
    rtc->irq = config->irq8;
    rtc->alarm = config->alarm;
    rtc->context = config->context;
    rtc->wanted = UINT64_MAX;
    timer_init(&rtc->timer, rtc->timers, timer_callback, rtc);
    struct timespec host = {.tv_sec = (time_t)config->start_time};
    if (!config->start_time)
        clock_gettime(CLOCK_REALTIME, &host);
    rtc->offset_ns =
        (int64_t)host.tv_sec * (int64_t)NS_PER_SECOND + host.tv_nsec - (int64_t)timer_now(rtc->timers);
    rtc->settled_ns = rtc_now(rtc);
    uint64_t low = config->low_memory;
    uint64_t extended = low > MIB ? (low - MIB) / KIB : 0;
    memory_size_set(rtc, CMOS_BASE_MEMORY, 640, 2, 640);
    memory_size_set(rtc, CMOS_EXTENDED_MEMORY, extended, 2, 0xffff);
    memory_size_set(rtc, CMOS_EXTENDED_MEMORY_2, extended, 2, 0xffff);
    memory_size_set(rtc, CMOS_MEMORY_ABOVE_16M, low > 16 * MIB ? (low - 16 * MIB) / (64 * KIB) : 0, 2,
                    0xffff);
    memory_size_set(rtc, CMOS_MEMORY_ABOVE_4G, config->high_memory / (64 * KIB), 3, 0xffffff);
    rtc->ram[CMOS_EQUIPMENT] = 0x06; /* FPU, PS/2 mouse port */
    rtc->ram[CMOS_D] = D_VALID;
    mc146818_reset(rtc);
    return rtc;
}

void mc146818_destroy(struct mc146818 *rtc) {
    if (!rtc)
        return;
    timer_cancel_sync(&rtc->timer);
    pthread_mutex_destroy(&rtc->lock);
    free(rtc);
}
