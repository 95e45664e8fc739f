#include "devices/test_bench.h"

#include <stdlib.h>
#include <string.h>

#define SCRATCH_BYTES 4u

struct test_bench {
    struct irq_line line;
    pthread_mutex_t lock; /* of what follows; a leaf */
    uint8_t scratch[SCRATCH_BYTES];
    uint8_t memory[TEST_BENCH_MEMORY_SIZE];
};

struct test_bench *test_bench_create(struct irq_line line) {
    struct test_bench *bench = calloc(1, sizeof *bench);
    if (!bench)
        return NULL;
    bench->line = line;
    pthread_mutex_init(&bench->lock, NULL);
    return bench;
}

void test_bench_destroy(struct test_bench *bench) {
    if (!bench)
        return;
    pthread_mutex_destroy(&bench->lock);
    free(bench);
}

void test_bench_reset(struct test_bench *bench) {
    pthread_mutex_lock(&bench->lock);
    memset(bench->scratch, 0, sizeof bench->scratch);
    memset(bench->memory, 0, sizeof bench->memory);
    pthread_mutex_unlock(&bench->lock);
}

static uint64_t load(struct test_bench *bench, const uint8_t *bytes, uint64_t limit, uint64_t offset,
                     unsigned size) {
    uint64_t value = 0;
    if (size > sizeof value || offset > limit || size > limit - offset)
        return UINT64_MAX;
    pthread_mutex_lock(&bench->lock);
    memcpy(&value, bytes + offset, size);
    pthread_mutex_unlock(&bench->lock);
    return value;
}

static void store(struct test_bench *bench, uint8_t *bytes, uint64_t limit, uint64_t offset, unsigned size,
                  uint64_t value) {
    if (size > sizeof value || offset > limit || size > limit - offset)
        return;
    pthread_mutex_lock(&bench->lock);
    memcpy(bytes + offset, &value, size);
    pthread_mutex_unlock(&bench->lock);
}

uint64_t test_bench_scratch_read(struct test_bench *bench, unsigned offset, unsigned size) {
    return load(bench, bench->scratch, SCRATCH_BYTES, offset, size);
}

void test_bench_scratch_write(struct test_bench *bench, unsigned offset, unsigned size, uint64_t value) {
    store(bench, bench->scratch, SCRATCH_BYTES, offset, size, value);
}

void test_bench_line_write(struct test_bench *bench, unsigned line, uint64_t value) {
    if (line < TEST_BENCH_LINES)
        bench->line.set(bench->line.context, line, value & 1);
}

uint64_t test_bench_memory_read(struct test_bench *bench, uint64_t offset, unsigned size) {
    return load(bench, bench->memory, TEST_BENCH_MEMORY_SIZE, offset, size);
}

void test_bench_memory_write(struct test_bench *bench, uint64_t offset, unsigned size, uint64_t value) {
    store(bench, bench->memory, TEST_BENCH_MEMORY_SIZE, offset, size, value);
}
