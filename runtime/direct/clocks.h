/* The clocks the tiers are judged by, apart from what is judged so that a test can turn their hands. */
#ifndef NESTOR_DIRECT_CLOCKS_H
#define NESTOR_DIRECT_CLOCKS_H

#include <stdint.h>
#include <sys/types.h>

/* The host's time stamp counter, in cycles (SDM vol. 2B, RDTSC). */
uint64_t clocks_cycles(void);

/* Nanoseconds of processor time that the calling thread has had. 0 if the host does not tell. */
uint64_t clocks_thread_ns(void);

/* Nanoseconds of processor time that all threads of another process of this user have had. 0 if the host does
 * not tell. */
uint64_t clocks_process_ns(pid_t pid);

#endif
