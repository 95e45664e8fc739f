/* ACPI fixed hardware (ACPI 6.x, "ACPI Hardware Specification"): PM1 event and control blocks, the 3.579545
 * MHz PM timer, one GPE block, the power button, and sleep (S3) with what wakes from it. Port blocks relative
 * to ACPI_PM_PORT. Thread-safe. */
#ifndef NESTOR_DEVICES_ACPI_PM_H
#define NESTOR_DEVICES_ACPI_PM_H

#include "devices/irq_line.h"
#include "devices/timer.h"

#define ACPI_PM_PORT 0x600
#define ACPI_PM_EVENT 0x00   /* PM1a_EVT_BLK: status, enable */
#define ACPI_PM_CONTROL 0x04 /* PM1a_CNT_BLK */
#define ACPI_PM_TIMER 0x08
#define ACPI_PM_GPE0 0x20 /* status, enable: 2 + 2 bytes */
#define ACPI_PM_GPE0_LENGTH 4
#define ACPI_PM_LENGTH 0x28
#define ACPI_PM_TIMER_HZ 3579545ull
#define ACPI_SLEEP_S3 1 /* SLP_TYP value of \_S3 */
#define ACPI_SLEEP_S5 5 /* and of \_S5 */
#define ACPI_SCI_IRQ 9

struct acpi_pm;

/* What becomes of the machine. Called without the lock, on whichever thread the cause came. */
struct acpi_pm_ops {
    void (*poweroff)(void *context); /* the guest entered S5 */
    void (*sleep)(void *context);    /* the guest entered S3: its processors execute nothing more */
    void (*wake)(void *context);     /* an event ended S3; follows sleep, but may overtake it */
};

/* sci: level-triggered. */
MUST_CHECK struct acpi_pm *acpi_pm_create(struct timer_queue *timers, struct irq_line sci,
                                          const struct acpi_pm_ops *ops, void *context);
void acpi_pm_destroy(struct acpi_pm *pm);
void acpi_pm_reset(struct acpi_pm *pm);
enum acpi_button {
    ACPI_BUTTON_UNHEARD, /* the guest has not enabled it: only the status bit shows the press */
    ACPI_BUTTON_HEARD,
    ACPI_BUTTON_WOKE, /* the guest slept */
};
/* The power button is pressed: PWRBTN_STS, and an SCI if the guest enabled it. Always wakes. */
enum acpi_button acpi_pm_power_button(struct acpi_pm *pm);
/* The RTC's alarm interrupt begins: RTC_STS, an SCI if enabled, and it wakes if enabled. */
void acpi_pm_rtc_alarm(struct acpi_pm *pm);
/* General-purpose event (0 to 15): its status bit, and if enabled an SCI, or the end of sleep. */
void acpi_pm_gpe(struct acpi_pm *pm, unsigned event);

/* Offset below ACPI_PM_LENGTH, size 1, 2 or 4. */
uint32_t acpi_pm_read(struct acpi_pm *pm, unsigned offset, unsigned size);
void acpi_pm_write(struct acpi_pm *pm, unsigned offset, unsigned size, uint32_t value);

#endif
