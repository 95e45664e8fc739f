#include "boot/guest_fill.h"

#include <errno.h>
#include <string.h>

int guest_fill_from(struct guest_mem *mem, uint64_t gpa, const struct boot_bytes *bytes, uint64_t offset,
                    uint64_t length) {
    if (!length)
        return 0;
    uint8_t *target = guest_mem_ptr(mem, gpa, length);
    if (!target)
        return -EFAULT;
    guest_mem_touch(mem, (uint64_t)(target - mem->base), length);
    int result = boot_bytes_read(bytes, offset, target, length);
    guest_mem_written(mem, gpa, length);
    return result;
}

int guest_fill_zero(struct guest_mem *mem, uint64_t gpa, uint64_t length) {
    if (!length)
        return 0;
    uint8_t *target = guest_mem_ptr(mem, gpa, length);
    if (!target)
        return -EFAULT;
    uint64_t head = -gpa & (PAGE_SIZE - 1);
    if (head > length)
        head = length;
    uint64_t whole = (length - head) & PAGE_MASK;
    memset(target, 0, head);
    guest_mem_discard(mem, (uint64_t)(target - mem->base) + head, whole);
    memset(target + head + whole, 0, length - head - whole);
    guest_mem_written(mem, gpa, length);
    return 0;
}
