/* A main for a fuzz target without libFuzzer: runs every file named on the command line, then random inputs.
 * NESTOR_FUZZ_RUNS sets their number, NESTOR_FUZZ_SEED the generator's start; both are printed on a failure's
 * way. */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>

#define INPUT_MAX 4096
#define DEFAULT_RUNS 300
#define DEFAULT_SEED 1

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static int run_file(const char *path) {
    FILE *file = fopen(path, "rb");
    if (!file) {
        perror(path);
        return -1;
    }
    static uint8_t bytes[1 << 20];
    size_t size = fread(bytes, 1, sizeof bytes, file);
    fclose(file);
    LLVMFuzzerTestOneInput(bytes, size);
    return 0;
}

static uint64_t next_random(uint64_t *state) {
    uint64_t x = *state;
    x ^= x << 13;
    x ^= x >> 7;
    x ^= x << 17;
    return *state = x;
}

static uint64_t number_from(const char *variable, uint64_t otherwise) {
    const char *text = getenv(variable);
    return text ? strtoull(text, NULL, 0) : otherwise;
}

int main(int argc, char **argv) {
    for (int i = 1; i < argc; i++) {
        if (run_file(argv[i]))
            return EXIT_FAILURE;
    }
    uint64_t runs = number_from("NESTOR_FUZZ_RUNS", DEFAULT_RUNS);
    uint64_t state = number_from("NESTOR_FUZZ_SEED", DEFAULT_SEED) | 1;
    printf("%d seeds, %llu random inputs from seed %llu\n", argc - 1, (unsigned long long)runs,
           (unsigned long long)state);
    fflush(stdout);
    for (uint64_t run = 0; run < runs; run++) {
        static uint8_t bytes[INPUT_MAX];
        size_t size = next_random(&state) % INPUT_MAX;
        for (size_t i = 0; i < size; i++)
            bytes[i] = (uint8_t)(next_random(&state) >> 32);
        LLVMFuzzerTestOneInput(bytes, size);
    }
    return EXIT_SUCCESS;
}
