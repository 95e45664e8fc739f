/* Filling guest RAM at boot: from a file or image, with bytes, with zeros. Each announces what it wrote. */
#ifndef NESTOR_BOOT_GUEST_FILL_H
#define NESTOR_BOOT_GUEST_FILL_H

#include "boot/boot_file.h"
#include "mem/guest_mem.h"

/* All take a range that boot_layout_claim() granted; -EFAULT if it is not RAM after all. */
MUST_CHECK int guest_fill_from(struct guest_mem *mem, uint64_t gpa, const struct boot_bytes *bytes,
                               uint64_t offset, uint64_t length);
/* Whole pages become holes in the memfd: they cost no memory and no time until the guest touches them. */
MUST_CHECK int guest_fill_zero(struct guest_mem *mem, uint64_t gpa, uint64_t length);

#endif
