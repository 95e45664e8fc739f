/* A suite of attacks from ring 3 on whatever runs it: each is a phase that must leave the kernel, other
 * processes and this program as they were. */
#ifndef NESTOR_TEST_ATTACK_H
#define NESTOR_TEST_ATTACK_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

#define PAGE 4096ul
#ifdef __x86_64__
#define USER_END 0x7ffffffff000ul /* TASK_SIZE */
#else
#define USER_END 0xffffe000ul
#endif

/* Each prints what it did and ends the process by attack_fail() when something is not as it should be. */
void attack_search(void);
void attack_remap(void);
void attack_exhaust(void);
void attack_calls(void);
void attack_registers(void);
void attack_frames(void);
void attack_random_code(void);

_Noreturn void attack_fail(const char *file, int line, const char *what);
#define CHECK(condition)                                                                                     \
    do {                                                                                                     \
        if (!(condition))                                                                                    \
            attack_fail(__FILE__, __LINE__, #condition);                                                     \
    } while (0)

uint64_t attack_random(uint64_t *seed);

/* Memory that children share with their parent. */
void *attack_shared(size_t length);

/* A child that has nothing to lose: another user, an empty root, no descriptor, few processes, small files.
 * body() runs in it; it is killed after that time if it still runs, with whatever it started. Returns the
 * wait status; 0 for one that was killed for its time. */
int attack_doomed(void (*body)(void *), void *argument, unsigned milliseconds);

#endif
