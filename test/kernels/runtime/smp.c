/*
 * Start of further CPUs: the trampoline goes to its page, then INIT and start-up IPIs (SDM 3, 9.4).
 */
#include "apic.h"
#include "runtime.h"

extern const uint8_t trampoline_start[], trampoline_end[];
void cpu_set_main(unsigned index, void (*main)(unsigned index));

static void (*volatile wanted[MAX_CPUS])(unsigned index);
static volatile bool answered[MAX_CPUS];

static void cpu_first(unsigned index) {
    answered[index] = true;
    wanted[index](index);
}

bool cpu_start(unsigned index, void (*main)(unsigned index)) {
    volatile uint8_t *page = (volatile uint8_t *)TRAMPOLINE;
    for (const uint8_t *p = trampoline_start; p < trampoline_end; p++)
        page[p - trampoline_start] = *p;
    wanted[index] = main;
    cpu_set_main(index, cpu_first);
    apic_enable();
    apic_ipi(index, ICR_INIT | ICR_ASSERT);
    delay_us(10000);
    for (unsigned i = 0; i < 2 && !answered[index]; i++) {
        apic_ipi(index, ICR_STARTUP | ICR_ASSERT | TRAMPOLINE >> 12);
        delay_us(200);
    }
    for (unsigned i = 0; i < 100 && !answered[index]; i++)
        delay_us(10000);
    return answered[index];
}
