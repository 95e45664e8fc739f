/*
 * With CR0.NE clear an x87 error does not come as #MF but as the PC's IRQ 13, whose handler clears it by port
 * 0xf0 and goes on. Source: Intel SDM volume 3, 9.2.2; volume 1, 8.7 and appendix D.
 */
#include "apic.h"
#include "runtime.h"

#define PIC_BASE 0x50
#define LINT_EXTINT 0x700

static volatile unsigned count;

static void handler_x87(struct context *frame) {
    (void)frame;
    count++;
    out8(0xf0, 0);
    asm volatile("fnclex");
    pic_eoi(13);
}

void kernel_main(void) {
    uint16_t control = 0x37b; /* zero-divide unmasked */
    apic_enable();
    pic_init(PIC_BASE, PIC_BASE + 8);
    trap_handle(PIC_BASE + 13, handler_x87);
    apic_write(APIC_LVT_LINT0, LINT_EXTINT);
    pic_mask(0xdffb);
    write_cr0(read_cr0() & ~CR0_NE);
    interrupts_enable();
    asm volatile("fninit\n\tfldcw %0" : : "m"(control));
    unsigned vector = TRY("fld1\n\tfldz\n\tfdivrp\n\tfwait\n\tnop\n\tnop", :);
    interrupts_disable();
    write_cr0(read_cr0() | CR0_NE);
    check(vector, NO_TRAP, "x87 error with CR0.NE clear: no #MF");
    check(count, 1, "x87 error with CR0.NE clear: IRQ 13");
    checks_finish("ferr64");
}
