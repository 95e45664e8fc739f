/* The processor states that the boot protocols start a kernel in. */
#ifndef NESTOR_BOOT_ENTRY_STATE_H
#define NESTOR_BOOT_ENTRY_STATE_H

#include "boot/layout.h"

/* 32-bit protected mode, flat 4 GiB segments, no paging, interrupts off. Puts a GDT into low memory: code is
 * selector 0x10 and data 0x18, as the Linux boot protocol demands. 0 or -errno after one line. */
MUST_CHECK int entry_state_flat32(struct boot_layout *layout, uint64_t rip, struct boot_state *state);
/* 64-bit mode, the same selectors, paging on with the first 4 GiB mapped to themselves in 2 MiB pages. */
MUST_CHECK int entry_state_long64(struct boot_layout *layout, uint64_t rip, struct boot_state *state);

#endif
