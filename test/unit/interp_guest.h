/* A vCPU without a machine around it, for tests of the engine: RAM, page tables, flat segments. */
#ifndef NESTOR_TEST_INTERP_GUEST_H
#define NESTOR_TEST_INTERP_GUEST_H

#include "cpu/mode.h"
#include "cpu/model.h"
#include "interp/interp.h"
#include "mem/guest_mem.h"

/* Everything lies in RAM at the same linear and physical address. */
#define TEST_RAM_SIZE (64 * MIB)
#define TEST_CODE 0x1000000ull
#define TEST_DATA 0x2000000ull
#define TEST_DATA_SIZE 0x4000ull
/* How much is mapped from TEST_DATA on in 64-bit guests. */
#define TEST_MAPPED_SIZE 0x20000ull

struct test_guest {
    struct vcpu vcpu;
    struct guest_mem mem;
    struct cpu_model model;
};

enum test_mode { TEST_REAL, TEST_PROTECTED32, TEST_USER64 };

/* Exits the process when the host has no memory. */
void test_guest_create(struct test_guest *guest, enum test_mode mode);
void test_guest_destroy(struct test_guest *guest);
/* Put code at TEST_CODE (real mode: 0x1000) and point rip at it. */
void test_guest_code(struct test_guest *guest, const void *code, size_t size);
/* Features that tests may switch on: the host's XCR0 without AMX, PKRU. */
uint64_t test_host_xcr0(void);
/* SIGFPE, SIGSEGV, SIGBUS, SIGILL, SIGTRAP on an alternate stack, offered to interp_handle_signal() first,
 * then to other (which may be NULL). */
void test_install_signals(void (*other)(int sig, siginfo_t *info, void *context));

#endif
