/*
 * The functions that compilers call on their own, even in freestanding code.
 */
#include <stddef.h>

void *memset(void *target, int value, size_t size);
void *memcpy(void *target, const void *source, size_t size);

void *memset(void *target, int value, size_t size) {
    void *end = target;
    asm volatile("cld\n\trep stosb" : "+c"(size), "+D"(end) : "a"(value) : "memory");
    return target;
}

void *memcpy(void *target, const void *source, size_t size) {
    void *end = target;
    asm volatile("cld\n\trep movsb" : "+c"(size), "+D"(end), "+S"(source) : : "memory");
    return target;
}
