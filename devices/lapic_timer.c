/* The LAPIC timer: one-shot and periodic counting at LAPIC_TIMER_HZ over a divider, and the TSC deadline.
 *
 * The count is never stored: it follows from the deadline. A write of the deadline MSR is the hot path of a
 * modern guest's tick, so a deadline that has passed fires at once, without the timer queue. */
#include <x86intrin.h>

#include "devices/lapic_private.h"

/* A shorter period would let one guest keep the timer thread busy; its ticks merge in the IRR anyway. */
#define PERIOD_MIN_NS 20000

static unsigned divider(uint32_t divide) {
    unsigned code = (divide & 3) | (divide >> 1 & 4);
    return code == 7 ? 1 : 2u << code;
}

static uint64_t tick_ns(struct lapic *lapic) {
    return divider(lapic_reg(lapic, REG_TIMER_DIVIDE)) * (NS_PER_SECOND / LAPIC_TIMER_HZ);
}

static uint32_t timer_mode(struct lapic *lapic) {
    return lapic_reg(lapic, LAPIC_LVT_TIMER) & LVT_TIMER_MODE;
}

static uint64_t guest_tsc(struct lapic *lapic) {
    struct timer_queue *queue = lapic->set->config.timers;
    uint64_t host;
    if (timer_queue_is_manual(queue))
        host = timer_scale(timer_now(queue), lapic->set->config.tsc_hz, NS_PER_SECOND);
    else
        host = __rdtsc();
    return host + (uint64_t)lapic->tsc_offset;
}

/* With the lock held: stop counting. */
static void disarm(struct lapic *lapic) {
    lapic->tsc_deadline = 0;
    if (!lapic->timer_running)
        return;
    lapic->timer_running = false;
    timer_cancel(&lapic->timer);
}

/* With the lock held: a periodic timer whose time has come moves on to its next period. */
static void next_period(struct lapic *lapic, uint64_t now) {
    uint64_t period = lapic_reg(lapic, REG_TIMER_INITIAL) * tick_ns(lapic);
    if (period == 0) {
        disarm(lapic);
        return;
    }
    lapic->timer_deadline_ns += ((now - lapic->timer_deadline_ns) / period + 1) * period;
    uint64_t wake = lapic->timer_deadline_ns;
    timer_arm(&lapic->timer, wake < now + PERIOD_MIN_NS ? now + PERIOD_MIN_NS : wake);
}

/* With the lock held: account for a deadline that has come. True if the interrupt is to be raised. */
static bool expire(struct lapic *lapic, uint64_t now) {
    if (!lapic->timer_running || now < lapic->timer_deadline_ns)
        return false;
    switch (timer_mode(lapic)) {
    case LVT_TIMER_DEADLINE: {
        uint64_t tsc = guest_tsc(lapic);
        if (tsc < lapic->tsc_deadline) {
            /* The two clocks drifted apart by a little: never early. */
            uint64_t wait =
                timer_scale_up(lapic->tsc_deadline - tsc, NS_PER_SECOND, lapic->set->config.tsc_hz);
            lapic->timer_deadline_ns = now + wait;
            timer_arm(&lapic->timer, lapic->timer_deadline_ns);
            return false;
        }
        lapic->timer_running = false;
        lapic->tsc_deadline = 0;
        return true;
    }
    case LVT_TIMER_PERIODIC:
        next_period(lapic, now);
        return true;
    default:
        lapic->timer_running = false;
        return true;
    }
}

static void timer_callback(void *context) {
    struct lapic *lapic = context;
    pthread_mutex_lock(&lapic->timer_lock);
    bool fire = expire(lapic, timer_now(lapic->set->config.timers));
    pthread_mutex_unlock(&lapic->timer_lock);
    if (fire)
        lapic_lvt_fire(lapic, LAPIC_LVT_TIMER);
}

void lapic_timer_init(struct lapic *lapic) {
    timer_init(&lapic->timer, lapic->set->config.timers, timer_callback, lapic);
}

void lapic_timer_reset(struct lapic *lapic) {
    pthread_mutex_lock(&lapic->timer_lock);
    disarm(lapic);
    pthread_mutex_unlock(&lapic->timer_lock);
}

void lapic_timer_lvt_write(struct lapic *lapic, uint32_t value) {
    pthread_mutex_lock(&lapic->timer_lock);
    /* What came due under the old mode is settled under it. */
    bool fire = expire(lapic, timer_now(lapic->set->config.timers));
    bool unmasked = !(lapic_reg(lapic, LAPIC_LVT_TIMER) & LVT_MASKED);
    uint8_t vector = (uint8_t)lapic_reg(lapic, LAPIC_LVT_TIMER);
    bool was_deadline = timer_mode(lapic) == LVT_TIMER_DEADLINE;
    bool is_deadline = (value & LVT_TIMER_MODE) == LVT_TIMER_DEADLINE;
    if (was_deadline != is_deadline)
        disarm(lapic);
    lapic_reg_store(lapic, LAPIC_LVT_TIMER, value);
    pthread_mutex_unlock(&lapic->timer_lock);
    if (fire && unmasked)
        lapic_accept(lapic, vector, false);
}

void lapic_timer_initial_write(struct lapic *lapic, uint32_t value) {
    if (timer_mode(lapic) == LVT_TIMER_DEADLINE)
        return;
    pthread_mutex_lock(&lapic->timer_lock);
    disarm(lapic);
    lapic_reg_store(lapic, REG_TIMER_INITIAL, value);
    if (value) {
        lapic->timer_deadline_ns = timer_now(lapic->set->config.timers) + value * tick_ns(lapic);
        lapic->timer_running = true;
        timer_arm(&lapic->timer, lapic->timer_deadline_ns);
    }
    pthread_mutex_unlock(&lapic->timer_lock);
}

void lapic_timer_divide_write(struct lapic *lapic, uint32_t value) {
    pthread_mutex_lock(&lapic->timer_lock);
    uint64_t now = timer_now(lapic->set->config.timers);
    uint64_t old = tick_ns(lapic);
    lapic_reg_store(lapic, REG_TIMER_DIVIDE, value);
    if (lapic->timer_running && timer_mode(lapic) != LVT_TIMER_DEADLINE && lapic->timer_deadline_ns > now) {
        uint64_t ticks = (lapic->timer_deadline_ns - now + old - 1) / old;
        lapic->timer_deadline_ns = now + ticks * tick_ns(lapic);
        timer_arm(&lapic->timer, lapic->timer_deadline_ns);
    }
    pthread_mutex_unlock(&lapic->timer_lock);
}

uint32_t lapic_timer_current(struct lapic *lapic) {
    uint32_t mode = timer_mode(lapic);
    if (mode == LVT_TIMER_DEADLINE)
        return 0;
    pthread_mutex_lock(&lapic->timer_lock);
    uint64_t count = 0;
    if (lapic->timer_running) {
        uint64_t now = timer_now(lapic->set->config.timers);
        uint64_t deadline = lapic->timer_deadline_ns;
        uint64_t period = lapic_reg(lapic, REG_TIMER_INITIAL) * tick_ns(lapic);
        if (now < deadline)
            count = (deadline - now + tick_ns(lapic) - 1) / tick_ns(lapic);
        else if (mode == LVT_TIMER_PERIODIC && period)
            count = (period - (now - deadline) % period) / tick_ns(lapic);
    }
    pthread_mutex_unlock(&lapic->timer_lock);
    return count > UINT32_MAX ? UINT32_MAX : (uint32_t)count;
}

uint64_t lapic_tsc_deadline_get(struct lapic *lapic) {
    pthread_mutex_lock(&lapic->timer_lock);
    uint64_t deadline = lapic->tsc_deadline;
    pthread_mutex_unlock(&lapic->timer_lock);
    return deadline;
}

void lapic_tsc_deadline_set(struct lapic *lapic, uint64_t deadline) {
    if (timer_mode(lapic) != LVT_TIMER_DEADLINE || !lapic_enabled(lapic))
        return;
    bool fire = false;
    pthread_mutex_lock(&lapic->timer_lock);
    uint64_t tsc = guest_tsc(lapic);
    if (deadline == 0 || deadline <= tsc) {
        disarm(lapic);
        fire = deadline != 0;
    } else {
        uint64_t wait = timer_scale_up(deadline - tsc, NS_PER_SECOND, lapic->set->config.tsc_hz);
        uint64_t now = timer_now(lapic->set->config.timers);
        lapic->tsc_deadline = deadline;
        lapic->timer_deadline_ns = wait > INT64_MAX - now ? INT64_MAX : now + wait;
        lapic->timer_running = true;
        timer_arm(&lapic->timer, lapic->timer_deadline_ns);
    }
    pthread_mutex_unlock(&lapic->timer_lock);
    if (fire)
        lapic_lvt_fire(lapic, LAPIC_LVT_TIMER);
}

void lapic_set_tsc_offset(struct lapic *lapic, int64_t offset) {
    pthread_mutex_lock(&lapic->timer_lock);
    lapic->tsc_offset = offset;
    pthread_mutex_unlock(&lapic->timer_lock);
    uint64_t deadline = lapic_tsc_deadline_get(lapic);
    if (deadline)
        lapic_tsc_deadline_set(lapic, deadline);
}
