/* ACPI fixed hardware. The machine is always in ACPI mode (no SMI command port), so SCI_EN reads as one.
 *
 * Asleep lasts from the write of SLP_EN with S3's type to the first event that wakes. An event that is there
 * already ends the sleep at once, so none is lost in between. */
#include "devices/acpi_pm.h"

#include <pthread.h>
#include <stdlib.h>

#define STATUS_TIMER (1u << 0)
#define STATUS_GLOBAL (1u << 5)
#define STATUS_POWER_BUTTON (1u << 8)
#define STATUS_RTC (1u << 10)
#define STATUS_WAKE (1u << 15)
#define ENABLE_ALL (STATUS_TIMER | STATUS_GLOBAL | STATUS_POWER_BUTTON | STATUS_RTC)
#define CONTROL_SCI_ENABLE (1u << 0)
#define CONTROL_SLEEP_TYPE_SHIFT 10
#define CONTROL_SLEEP_ENABLE (1u << 13)
#define CONTROL_WRITABLE 0x1c06u
#define TIMER_BITS 24
/* What stays enabled while the rest of the machine has no power. */
#define ENABLE_ASLEEP (STATUS_POWER_BUTTON | STATUS_RTC)

struct acpi_pm {
    pthread_mutex_t lock;
    struct timer_queue *timers;
    struct timer timer; /* next carry of the PM timer, while it may interrupt */
    uint64_t wanted;
    uint64_t carries; /* halves of the timer's range seen up to now */
    struct irq_line sci;
    bool sci_level;
    const struct acpi_pm_ops *ops;
    void *context;
    bool asleep;
    uint16_t status, enable, control;
    uint16_t gpe_status, gpe_enable;
};

static uint64_t pm_ticks(struct acpi_pm *pm) {
    return timer_scale(timer_now(pm->timers), ACPI_PM_TIMER_HZ, NS_PER_SECOND);
}

/* TMR_STS is set whenever bit 23 of the timer changes. */
static void settle(struct acpi_pm *pm) {
    uint64_t carries = pm_ticks(pm) >> (TIMER_BITS - 1);
    if (carries != pm->carries)
        pm->status |= STATUS_TIMER;
    pm->carries = carries;
}

static void sci_update(struct acpi_pm *pm) {
    bool level = pm->status & pm->enable & ENABLE_ALL || pm->gpe_status & pm->gpe_enable;
    if (level != pm->sci_level) {
        pm->sci_level = level;
        irq_line_set(&pm->sci, level);
    }
    if (pm->enable & STATUS_TIMER && !(pm->status & STATUS_TIMER)) {
        uint64_t next = (pm->carries + 1) << (TIMER_BITS - 1);
        pm->wanted = timer_scale_up(next, NS_PER_SECOND, ACPI_PM_TIMER_HZ);
        timer_arm(&pm->timer, pm->wanted);
    } else if (pm->wanted != UINT64_MAX) {
        pm->wanted = UINT64_MAX;
        timer_cancel(&pm->timer);
    }
}

static void timer_callback(void *context) {
    struct acpi_pm *pm = context;
    pthread_mutex_lock(&pm->lock);
    if (timer_now(pm->timers) >= pm->wanted) {
        settle(pm);
        sci_update(pm);
    }
    pthread_mutex_unlock(&pm->lock);
}

/* With the lock held: an event comes to pass, with its bits of the status. True if that ended the sleep:
 * then ops->wake() is due, without the lock. */
static bool event_take(struct acpi_pm *pm, uint16_t status, bool wakes) {
    bool woken = pm->asleep && wakes;
    pm->status |= status;
    if (woken) {
        pm->asleep = false;
        pm->status |= STATUS_WAKE;
    }
    sci_update(pm);
    return woken;
}

/* With the lock held. */
static bool wake_waits(const struct acpi_pm *pm) {
    return pm->status & pm->enable & ENABLE_ASLEEP || pm->gpe_status & pm->gpe_enable;
}

enum acpi_button acpi_pm_power_button(struct acpi_pm *pm) {
    pthread_mutex_lock(&pm->lock);
    bool woken = event_take(pm, STATUS_POWER_BUTTON, true);
    bool heard = pm->enable & STATUS_POWER_BUTTON;
    pthread_mutex_unlock(&pm->lock);
    if (woken)
        pm->ops->wake(pm->context);
    return woken ? ACPI_BUTTON_WOKE : heard ? ACPI_BUTTON_HEARD : ACPI_BUTTON_UNHEARD;
}

void acpi_pm_rtc_alarm(struct acpi_pm *pm) {
    pthread_mutex_lock(&pm->lock);
    bool woken = event_take(pm, STATUS_RTC, pm->enable & STATUS_RTC);
    pthread_mutex_unlock(&pm->lock);
    if (woken)
        pm->ops->wake(pm->context);
}

void acpi_pm_gpe(struct acpi_pm *pm, unsigned event) {
    if (event >= 16)
        return;
    pthread_mutex_lock(&pm->lock);
    pm->gpe_status |= (uint16_t)(1u << event);
    bool woken = event_take(pm, 0, wake_waits(pm));
    pthread_mutex_unlock(&pm->lock);
    if (woken)
        pm->ops->wake(pm->context);
}

/* The 16-bit register that holds a byte, or NULL. */
static uint16_t *register_of(struct acpi_pm *pm, unsigned offset) {
    switch (offset & ~1u) {
    case ACPI_PM_EVENT:
        return &pm->status;
    case ACPI_PM_EVENT + 2:
        return &pm->enable;
    case ACPI_PM_CONTROL:
        return &pm->control;
    case ACPI_PM_GPE0:
        return &pm->gpe_status;
    case ACPI_PM_GPE0 + 2:
        return &pm->gpe_enable;
    default:
        return NULL;
    }
}

uint32_t acpi_pm_read(struct acpi_pm *pm, unsigned offset, unsigned size) {
    uint32_t value = 0;
    pthread_mutex_lock(&pm->lock);
    settle(pm);
    uint32_t ticks = (uint32_t)(pm_ticks(pm) & ((1u << TIMER_BITS) - 1));
    for (unsigned i = 0; i < size && i < 4; i++) {
        unsigned at = offset + i;
        uint8_t byte = 0;
        uint16_t *reg = register_of(pm, at);
        if (reg)
            byte = (uint8_t)(*reg >> (8 * (at & 1)));
        else if (at >= ACPI_PM_TIMER && at < ACPI_PM_TIMER + 4)
            byte = (uint8_t)(ticks >> (8 * (at - ACPI_PM_TIMER)));
        value |= (uint32_t)byte << (8 * i);
    }
    sci_update(pm);
    pthread_mutex_unlock(&pm->lock);
    return value;
}

/* Returns true if the guest asks for sleep of the type that the control register holds then. */
static bool byte_write(struct acpi_pm *pm, unsigned offset, uint8_t value) {
    uint16_t *reg = register_of(pm, offset);
    if (!reg)
        return false;
    uint16_t shifted = (uint16_t)(value << (8 * (offset & 1)));
    uint16_t mask = (uint16_t)(0xff << (8 * (offset & 1)));
    if (reg == &pm->status || reg == &pm->gpe_status) {
        *reg &= (uint16_t)~shifted;
        return false;
    }
    if (reg == &pm->enable) {
        *reg = (*reg & (uint16_t)~mask) | (shifted & ENABLE_ALL);
        return false;
    }
    if (reg == &pm->gpe_enable) {
        *reg = (*reg & (uint16_t)~mask) | shifted;
        return false;
    }
    *reg = (*reg & (uint16_t) ~(mask & CONTROL_WRITABLE)) | (shifted & CONTROL_WRITABLE);
    return shifted & CONTROL_SLEEP_ENABLE;
}

/* S3, but for an event that is there already. */
static void fall_asleep(struct acpi_pm *pm) {
    pm->ops->sleep(pm->context);
    pthread_mutex_lock(&pm->lock);
    bool woken = event_take(pm, 0, wake_waits(pm));
    pthread_mutex_unlock(&pm->lock);
    if (woken)
        pm->ops->wake(pm->context);
}

void acpi_pm_write(struct acpi_pm *pm, unsigned offset, unsigned size, uint32_t value) {
    bool ask = false;
    pthread_mutex_lock(&pm->lock);
    settle(pm);
    for (unsigned i = 0; i < size && i < 4; i++)
        ask |= byte_write(pm, offset + i, (uint8_t)(value >> (8 * i)));
    unsigned type = pm->control >> CONTROL_SLEEP_TYPE_SHIFT & 7;
    bool sleep = ask && type == ACPI_SLEEP_S3 && !pm->asleep;
    if (sleep) {
        pm->asleep = true;
        pm->enable &= ENABLE_ASLEEP;
    }
    sci_update(pm);
    pthread_mutex_unlock(&pm->lock);
    if (sleep)
        fall_asleep(pm);
    else if (ask && type == ACPI_SLEEP_S5)
        pm->ops->poweroff(pm->context);
}

void acpi_pm_reset(struct acpi_pm *pm) {
    pthread_mutex_lock(&pm->lock);
    pm->status = 0;
    pm->enable = 0;
    pm->gpe_status = 0;
    pm->gpe_enable = 0;
    pm->control = CONTROL_SCI_ENABLE;
    pm->asleep = false;
    pm->carries = pm_ticks(pm) >> (TIMER_BITS - 1);
    sci_update(pm);
    pthread_mutex_unlock(&pm->lock);
}

struct acpi_pm *acpi_pm_create(struct timer_queue *timers, struct irq_line sci, const struct acpi_pm_ops *ops,
                               void *context) {
    struct acpi_pm *pm = calloc(1, sizeof *pm);
    if (!pm)
        return NULL;
    pthread_mutex_init(&pm->lock, NULL);
    pm->timers = timers;
    pm->sci = sci;
    pm->ops = ops;
    pm->context = context;
    pm->wanted = UINT64_MAX;
    timer_init(&pm->timer, timers, timer_callback, pm);
    acpi_pm_reset(pm);
    return pm;
}

void acpi_pm_destroy(struct acpi_pm *pm) {
    if (!pm)
        return;
    timer_cancel_sync(&pm->timer);
    pthread_mutex_destroy(&pm->lock);
    free(pm);
}
