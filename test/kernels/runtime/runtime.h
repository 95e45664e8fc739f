#ifndef KERNELS_RUNTIME_H
#define KERNELS_RUNTIME_H
/*
 * All of the runtime. A kernel defines kernel_main(), which runs on the first CPU in its mode with
 * descriptor tables loaded and interrupts off, and calls checks_finish() at its end.
 */
#include "check.h"
#include "descriptor.h"
#include "layout.h"
#include "trap.h"
#include "x86.h"

#define ARRAY_SIZE(a) (sizeof(a) / sizeof((a)[0]))

void kernel_main(void);

/* Zeroed pages from 4 MiB up; never freed. */
void *page_alloc(void);
/* Pages that follow one another, the first aligned to `align` bytes. */
void *pages_alloc(unsigned count, unsigned long align);

#ifdef __x86_64__
/* Starts CPU `index` (1..) at `main`; false when none answers within a second. Needs the APIC. */
bool cpu_start(unsigned index, void (*main)(unsigned index));
#endif

#endif
