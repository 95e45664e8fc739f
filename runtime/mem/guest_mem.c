#define _GNU_SOURCE
#include "mem/guest_mem.h"

#include <errno.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

int guest_mem_create(struct guest_mem *mem, uint64_t size, bool prealloc) {
    int result;
    *mem = (struct guest_mem){.size = size, .low_size = size < GUEST_LOW_RAM_END ? size : GUEST_LOW_RAM_END};
    mem->fd = memfd_create("nestor-ram", MFD_CLOEXEC);
    if (mem->fd < 0)
        return -errno;
    if (ftruncate(mem->fd, (off_t)size)) {
        result = -errno;
        goto close_fd;
    }
    int flags = MAP_SHARED | MAP_NORESERVE | (prealloc ? MAP_POPULATE : 0);
    mem->base = mmap(NULL, size, PROT_READ | PROT_WRITE, flags, mem->fd, 0);
    if (mem->base == MAP_FAILED) {
        result = -errno;
        goto close_fd;
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
close_fd:
    close(mem->fd);
    return result;
}

void guest_mem_destroy(struct guest_mem *mem) {
    munmap(mem->code_holders, (mem->size >> PAGE_SHIFT) * sizeof *mem->code_holders);
    munmap(mem->state, mem->size >> PAGE_SHIFT);
    munmap(mem->base, mem->size);
    close(mem->fd);
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
