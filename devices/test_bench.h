/* What bare-metal test suites expect beside the debug-exit port, as QEMU's pc-testdev has it: a port that
 * reads back what was written, ports that drive interrupt lines, and device memory that behaves like RAM.
 * Thread-safe. */
#ifndef NESTOR_DEVICES_TEST_BENCH_H
#define NESTOR_DEVICES_TEST_BENCH_H

#include <pthread.h>

#include "devices/irq_line.h"

#define TEST_BENCH_SCRATCH_PORT 0xe0u /* 4 bytes; 4 more, which take writes of addresses and do nothing */
#define TEST_BENCH_SCRATCH_PORTS 8u
#define TEST_BENCH_LINE_PORT 0x2000u /* + line: its level */
#define TEST_BENCH_LINES 24u
#define TEST_BENCH_MEMORY 0xff000000ull
#define TEST_BENCH_MEMORY_SIZE 0x10000ull

struct test_bench;

/* line.set is called with the line's number. NULL if out of memory. */
MUST_CHECK struct test_bench *test_bench_create(struct irq_line line);
void test_bench_destroy(struct test_bench *bench);
void test_bench_reset(struct test_bench *bench);

/* offset: from TEST_BENCH_SCRATCH_PORT, TEST_BENCH_LINE_PORT, TEST_BENCH_MEMORY. */
uint64_t test_bench_scratch_read(struct test_bench *bench, unsigned offset, unsigned size);
void test_bench_scratch_write(struct test_bench *bench, unsigned offset, unsigned size, uint64_t value);
void test_bench_line_write(struct test_bench *bench, unsigned line, uint64_t value);
uint64_t test_bench_memory_read(struct test_bench *bench, uint64_t offset, unsigned size);
void test_bench_memory_write(struct test_bench *bench, uint64_t offset, unsigned size, uint64_t value);

#endif
