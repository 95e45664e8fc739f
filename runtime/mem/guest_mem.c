#define _GNU_SOURCE
#include "mem/guest_mem.h"
#include "base/pages.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

/* What mincore() is asked for at a time. */
#define RESIDENT_STEP (64 * MIB)

static int map_shared(struct guest_mem *mem) {
    mem->fd = memfd_create("nestor-ram", MFD_CLOEXEC);
    if (mem->fd < 0)
        return -errno;
    /* Placed where large pages can be: the private mapping goes. */
    void *place = pages_map_large(mem->size);
    mem->base = MAP_FAILED;
    if (place && !ftruncate(mem->fd, (off_t)mem->size))
        mem->base = mmap(place, mem->size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_NORESERVE | MAP_FIXED,
                         mem->fd, 0);
    if (mem->base == MAP_FAILED) {
        int result = -errno;
        if (place)
            munmap(place, mem->size);
        close(mem->fd);
        return result;
    }
    (void)madvise(mem->base, mem->size, MADV_HUGEPAGE); /* where the host has them for memory files */
    mem->makes_large = true;                            /* until it is tried */
    mem->touched = calloc(align_up(mem->size, GUEST_TOUCH_BYTES) / GUEST_TOUCH_BYTES, 1);
    return 0;
}

static int map_private(struct guest_mem *mem) {
    mem->fd = -1;
    mem->base = pages_map_large(mem->size);
    return mem->base ? 0 : -ENOMEM;
}

int guest_mem_create(struct guest_mem *mem, uint64_t size, unsigned flags) {
    *mem = (struct guest_mem){.size = size, .low_size = size < GUEST_LOW_RAM_END ? size : GUEST_LOW_RAM_END};
    int result = flags & GUEST_MEM_SHARED ? map_shared(mem) : map_private(mem);
    if (result)
        return result;
    if (flags & GUEST_MEM_PREALLOC) {
        if (mem->touched)
            guest_mem_touch(mem, 0, size);
        else
            pages_populate(mem->base, size);
        for (uint64_t at = 0; at < size; at += PAGE_SIZE) /* what an older host did not do: it is all zero */
            *(volatile uint8_t *)(mem->base + at) = 0;
    }
    mem->state = mmap(NULL, size >> PAGE_SHIFT, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (mem->state == MAP_FAILED) {
        result = -errno;
        goto unmap_base;
    }
    mem->code_holders = mmap(NULL, (size >> PAGE_SHIFT) * sizeof *mem->code_holders, PROT_READ | PROT_WRITE,
                             MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (mem->code_holders == MAP_FAILED) {
        result = -errno;
        goto unmap_state;
    }
    return 0;
unmap_state:
    munmap(mem->state, size >> PAGE_SHIFT);
unmap_base:
    munmap(mem->base, size);
    free(mem->touched);
    if (mem->fd >= 0)
        close(mem->fd);
    return result;
}

void guest_mem_destroy(struct guest_mem *mem) {
    munmap(mem->code_holders, (mem->size >> PAGE_SHIFT) * sizeof *mem->code_holders);
    munmap(mem->state, mem->size >> PAGE_SHIFT);
    munmap(mem->base, mem->size);
    free(mem->touched);
    if (mem->fd >= 0)
        close(mem->fd);
}

uint64_t guest_mem_resident(const struct guest_mem *mem) {
    struct stat status;
    if (mem->fd >= 0) /* the C library's would ask by path, which a confined launcher may not */
        return syscall(SYS_fstat, mem->fd, &status) ? 0 : (uint64_t)status.st_blocks * 512;
    unsigned char resident[RESIDENT_STEP / PAGE_SIZE];
    uint64_t pages = 0;
    for (uint64_t at = 0; at < mem->size; at += RESIDENT_STEP) {
        uint64_t length = mem->size - at < RESIDENT_STEP ? mem->size - at : RESIDENT_STEP;
        if (mincore(mem->base + at, length, resident))
            return 0;
        for (uint64_t page = 0; page < length >> PAGE_SHIFT; page++)
            pages += resident[page] & 1;
    }
    return pages << PAGE_SHIFT;
}

void guest_mem_discard(struct guest_mem *mem, uint64_t offset, uint64_t length) {
    if (length && madvise(mem->base + offset, length, mem->fd < 0 ? MADV_DONTNEED : MADV_REMOVE))
        memset(mem->base + offset, 0, length);
    uint64_t first = align_up(offset, GUEST_TOUCH_BYTES), end = (offset + length) & ~(GUEST_TOUCH_BYTES - 1);
    for (uint64_t at = first; mem->touched && at < end; at += GUEST_TOUCH_BYTES)
        __atomic_store_n(&mem->touched[at / GUEST_TOUCH_BYTES], 0, __ATOMIC_RELAXED);
}

void *guest_mem_ptr(const struct guest_mem *mem, uint64_t gpa, uint64_t length) {
    uint64_t offset = guest_mem_offset(mem, gpa);
    if (offset == GUEST_NO_RAM)
        return NULL;
    uint64_t end = offset < mem->low_size ? mem->low_size : mem->size;
    return length <= end - offset ? mem->base + offset : NULL;
}

void guest_mem_written(struct guest_mem *mem, uint64_t gpa, uint64_t length) {
    uint64_t offset = guest_mem_offset(mem, gpa);
    if (offset == GUEST_NO_RAM || !length || !mem->on_code_written)
        return;
    /* The stores before the states: who makes a page hold code sets its state first and then reads its bytes.
     */
    __atomic_thread_fence(__ATOMIC_SEQ_CST);
    uint64_t end = offset + length < mem->size ? offset + length : mem->size;
    while (offset < end) {
        uint64_t piece = PAGE_SIZE - (offset & (PAGE_SIZE - 1));
        if (piece > end - offset)
            piece = end - offset;
        if (__atomic_load_n(&mem->state[offset >> PAGE_SHIFT], __ATOMIC_ACQUIRE) & PAGE_HOLDS_CODE)
            mem->on_code_written(mem->on_code_written_context, offset, piece);
        offset += piece;
    }
}

int guest_mem_read(const struct guest_mem *mem, uint64_t gpa, void *buffer, uint64_t length) {
    const void *source = guest_mem_ptr(mem, gpa, length);
    if (!source)
        return -EFAULT;
    memcpy(buffer, source, length);
    return 0;
}

int guest_mem_write(struct guest_mem *mem, uint64_t gpa, const void *buffer, uint64_t length) {
    void *target = guest_mem_ptr(mem, gpa, length);
    if (!target)
        return -EFAULT;
    memcpy(target, buffer, length);
    guest_mem_written(mem, gpa, length);
    return 0;
}
