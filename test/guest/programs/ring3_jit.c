/* Code that programs write as they run: rewritten in place, through another mapping, by another thread. */
#define _GNU_SOURCE
#include "ring3.h"

#include <pthread.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#define READ_WRITE (PROT_READ | PROT_WRITE)

/* MOV EAX, value; RET */
static void emit(uint8_t *at, uint32_t value) {
    at[0] = 0xb8;
    memcpy(at + 1, &value, sizeof value);
    at[5] = 0xc3;
}

static uint32_t call(const void *code) {
    return ((uint32_t(*)(void))(uintptr_t)code)();
}

static void in_place(void) {
    uint8_t *code = ring3_map(4 * PAGE, READ_WRITE | PROT_EXEC);
    for (uint32_t i = 0; i < 20000; i++) {
        uint8_t *at = code + i * 61 % (3 * PAGE);
        emit(at, i);
        CHECK(call(at) == i);
        if (i % 64 == 0) {
            emit(at, ~i);
            CHECK(call(at) == ~i);
        }
    }
}

/* A store into the instruction that comes next. */
static void next_instruction(void) {
    uint8_t *code = ring3_map(PAGE, READ_WRITE | PROT_EXEC);
    /* MOV [EDX+1], ECX; MOV EAX, 0; RET, the first writing the second's immediate */
    static const uint8_t bytes[] = {0x89, 0x4a, 0x01, 0xb8, 0, 0, 0, 0, 0xc3};
    for (uint32_t i = 1; i < 5000; i++) {
        uint32_t result;
        uint8_t *at = code + i % 64;
        memcpy(at, bytes, sizeof bytes);
        __asm__ volatile("call *%[at]"
                         : "=a"(result)
                         : [at] "S"(at), "c"(i * 77), "d"(at + 3)
                         : "memory", "cc");
        CHECK(result == i * 77);
    }
}

static void write_xor_execute(void) {
    struct ring3_fault f;
    uint8_t *code = ring3_map(PAGE, READ_WRITE);
    for (uint32_t i = 0; i < 1000; i++) {
        emit(code, i);
        CHECK(!mprotect(code, PAGE, PROT_READ | PROT_EXEC));
        CHECK(call(code) == i);
        if (i % 100 == 0)
            CHECK(!ring3_writes(code, &f) && f.code == SEGV_ACCERR);
        CHECK(!mprotect(code, PAGE, READ_WRITE));
    }
}

static void two_mappings(void) {
    int file = (int)syscall(SYS_memfd_create, "code", 0);
    CHECK(file >= 0 && !ftruncate(file, 2 * PAGE));
    uint8_t *writable = mmap(NULL, 2 * PAGE, READ_WRITE, MAP_SHARED, file, 0);
    uint8_t *code = mmap(NULL, 2 * PAGE, PROT_READ | PROT_EXEC, MAP_SHARED, file, 0);
    CHECK(writable != MAP_FAILED && code != MAP_FAILED);
    for (uint32_t i = 0; i < 5000; i++) {
        size_t offset = i * 13 % (PAGE + 100);
        emit(writable + offset, i);
        CHECK(call(code + offset) == i);
    }
    /* Written by the kernel: read(2) and pwrite(2) into it. */
    for (uint32_t i = 0; i < 200; i++) {
        uint8_t bytes[6];
        emit(bytes, i + 9);
        CHECK(pwrite(file, bytes, sizeof bytes, 5) == sizeof bytes);
        CHECK(call(code + 5) == i + 9);
    }
}

/* Another process, then another thread, rewrites the code; what is called afterwards is the new one. */
static struct {
    uint8_t *code;
    volatile uint32_t wanted, ready;
} shared;

static void *writer(void *argument) {
    (void)argument;
    for (uint32_t i = 1; i <= 2000; i++) {
        while (__atomic_load_n(&shared.wanted, __ATOMIC_ACQUIRE) != i)
            __asm__ volatile("pause");
        emit(shared.code, i);
        __atomic_store_n(&shared.ready, i, __ATOMIC_RELEASE);
    }
    return NULL;
}

static void another_thread(void) {
    pthread_t thread;
    shared.code = ring3_map(PAGE, READ_WRITE | PROT_EXEC);
    CHECK(!pthread_create(&thread, NULL, writer, NULL));
    for (uint32_t i = 1; i <= 2000; i++) {
        uint32_t leaf = 0, unused;
        __atomic_store_n(&shared.wanted, i, __ATOMIC_RELEASE);
        while (__atomic_load_n(&shared.ready, __ATOMIC_ACQUIRE) != i) {
            if (leaf++ % 64 == 63)
                usleep(0);
        }
        /* What the manuals ask of the one who runs code that another processor wrote. */
        __asm__ volatile("cpuid" : "=a"(unused) : "a"(0), "c"(0) : "ebx", "edx", "memory");
        CHECK(call(shared.code) == i);
    }
    CHECK(!pthread_join(thread, NULL));
}

static void another_process(void) {
    uint8_t *code = mmap(NULL, PAGE, READ_WRITE | PROT_EXEC, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    CHECK(code != MAP_FAILED);
    emit(code, 1);
    CHECK(call(code) == 1);
    for (uint32_t i = 0; i < 40; i++) {
        pid_t child = fork();
        if (!child) {
            if (call(code) != (i ? i + 100 : 1))
                _exit(9);
            emit(code, i + 101);
            _exit(call(code) == i + 101 ? 0 : 9);
        }
        ring3_reap(child, 0);
        CHECK(call(code) == i + 101);
    }
}

/* The same virtual address, other code: after munmap and mmap, and in a fork's private copy. */
static void replaced(void) {
    uint8_t *code = ring3_map(PAGE, READ_WRITE | PROT_EXEC);
    for (uint32_t i = 0; i < 500; i++) {
        CHECK(mmap(code, PAGE, READ_WRITE | PROT_EXEC, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0) ==
              code);
        emit(code + 8, i);
        CHECK(call(code + 8) == i);
        if (i % 50 == 0) {
            pid_t child = fork();
            if (!child) {
                emit(code + 8, i ^ 0xffff);
                _exit(call(code + 8) == (i ^ 0xffff) ? 3 : 9);
            }
            ring3_reap(child, 3);
            CHECK(call(code + 8) == i);
        }
    }
}

const struct ring3_check ring3_jit[] = {
    {"jit-in-place", in_place},
    {"jit-next-instruction", next_instruction},
    {"jit-write-xor-execute", write_xor_execute},
    {"jit-two-mappings", two_mappings},
    {"jit-another-thread", another_thread},
    {"jit-another-process", another_process},
    {"jit-replaced", replaced},
    {0},
};
