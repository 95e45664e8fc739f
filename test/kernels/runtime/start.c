/*
 * From the assembly entry to kernel_main(), and the page allocator.
 */
#include "runtime.h"

static unsigned long next_page = 0x400000;
static void (*volatile cpu_mains[MAX_CPUS])(unsigned index);

void runtime_start(unsigned cpu);
void cpu_set_main(unsigned index, void (*main)(unsigned index));

void *pages_alloc(unsigned count, unsigned long align) {
    next_page = (next_page + align - 1) & ~(align - 1);
    unsigned long *page = (unsigned long *)next_page;
    next_page += count * 4096ul;
    unsigned long words = count * 1024ul;
    unsigned long *target = page;
    asm volatile("cld\n\trep stosl" : "+c"(words), "+D"(target) : "a"(0) : "memory");
    return page;
}

void *page_alloc(void) {
    return pages_alloc(1, 4096);
}

void cpu_set_main(unsigned index, void (*main)(unsigned index)) {
    cpu_mains[index] = main;
}

void runtime_start(unsigned cpu) {
    cpu %= MAX_CPUS;
    if (cpu == 0) {
        out8(0x21, 0xff); /* the PIC stays masked until a test wants it */
        out8(0xa1, 0xff);
    }
    descriptors_load(cpu);
    if (cpu == 0)
        kernel_main();
    else
        cpu_mains[cpu](cpu);
    for (;;)
        asm volatile("cli\n\thlt");
}
