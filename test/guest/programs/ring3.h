/* Checks of what ring 3 sees of a processor and its kernel: each is a function that runs in a process of its
 * own, the same on a host and in a guest, in 64- and in 32-bit code. */
#ifndef NESTOR_TEST_RING3_H
#define NESTOR_TEST_RING3_H

#include <setjmp.h>
#include <signal.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <ucontext.h>

struct ring3_check {
    const char *name;
    void (*run)(void);
};

/* The checks of each file, ended by an empty one. */
extern const struct ring3_check ring3_entries[], ring3_jit[], ring3_memory[], ring3_paging[], ring3_ptrace[],
    ring3_signals[], ring3_threads[], ring3_vectors[];

/* Ends the check as failed. */
_Noreturn void ring3_fail(const char *file, int line, const char *what);
/* Ends the check: this machine lacks what it needs. */
_Noreturn void ring3_skip(const char *why);
#define CHECK(condition)                                                                                     \
    do {                                                                                                     \
        if (!(condition))                                                                                    \
            ring3_fail(__FILE__, __LINE__, #condition);                                                      \
    } while (0)

#define PAGE 4096ul

/* The fault that ring3_try() caught last. */
struct ring3_fault {
    int signo, code;
    uintptr_t address, ip;
    unsigned long error, trap; /* what the kernel says the processor said */
};

/* Runs attempt(argument); true if it came back, false if it took a synchronous signal, which *fault
 * describes. */
bool ring3_try(void (*attempt)(uintptr_t), uintptr_t argument, struct ring3_fault *fault);
/* Does a read or a write of that byte succeed? */
bool ring3_reads(const volatile void *address, struct ring3_fault *fault);
bool ring3_writes(volatile void *address, struct ring3_fault *fault);
/* Install that handler, with SA_SIGINFO and further flags. */
void ring3_handle(int signo, void (*handler)(int, siginfo_t *, void *), int flags);
/* Anonymous private memory, or the end of the check. */
void *ring3_map(size_t length, int protection);
/* A deterministic sequence: same seed, same numbers. */
uint32_t ring3_random(uint64_t *seed);
/* Wait for a child and require that it exited with that status. */
void ring3_reap(int pid, int status);

/* Registers of a signal frame, by the names of the wider of the two sizes. */
#ifdef __x86_64__
#define FRAME_IP(context) ((context)->uc_mcontext.gregs[REG_RIP])
#define FRAME_SP(context) ((context)->uc_mcontext.gregs[REG_RSP])
#define FRAME_AX(context) ((context)->uc_mcontext.gregs[REG_RAX])
#else
#define FRAME_IP(context) ((context)->uc_mcontext.gregs[REG_EIP])
#define FRAME_SP(context) ((context)->uc_mcontext.gregs[REG_ESP])
#define FRAME_AX(context) ((context)->uc_mcontext.gregs[REG_EAX])
#endif
#define FRAME_FLAGS(context) ((context)->uc_mcontext.gregs[REG_EFL])

#endif
