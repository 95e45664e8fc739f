/*
 * A triple fault: no IDT, so that #UD, then #GP, then #DF cannot be delivered. The machine resets; the test
 * passes when the launcher says so.
 */
#include "runtime.h"

void kernel_main(void) {
    struct table_register none = {0, 0};
    check(1, 1, "before the triple fault");
    asm volatile("lidt %0\n\tud2" : : "m"(none));
    check(0, 1, "after the triple fault");
    checks_finish("triple_fault64");
}
