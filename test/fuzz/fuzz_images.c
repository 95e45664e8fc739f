/* Fuzzer of the offline translator's readers: any bytes as a module, a kernel's ELF file or an initrd must be
 * taken apart or refused, without a stray access.
 *
 *   fuzz_images [--runs N] [--seed S] [FILE...]
 *
 * The first byte of a FILE chooses what the rest is. Then N (default 3000) mutations of the samples in the
 * build directory are taken apart; the same S gives the same runs. Under NESTOR_FUZZ libFuzzer's driver takes
 * this one's place. */
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "sbt/cpio.h"
#include "sbt/estimate.h"
#include "sbt/pieces.h"

#define INPUT_MAX (1 * MIB)

static void take_apart(struct image *image) {
    struct features features;
    struct patched patched;
    struct discovery discovery;
    struct estimate estimate;
    struct pieces pieces;
    memset(&features, 0x5a, sizeof features);
    if (!patched_create(&patched, image, &features)) {
        if (!discovery_create(&discovery, &patched)) {
            if (!estimate_create(&estimate, &discovery))
                estimate_destroy(&estimate);
            if (!pieces_create(&pieces, &discovery))
                pieces_destroy(&pieces);
            discovery_destroy(&discovery);
        }
        patched_destroy(&patched);
    }
    image_close(image);
}

static int take_member(void *context, const char *name, const uint8_t *data, size_t size) {
    struct image image;
    (void)context;
    if (strstr(name, ".ko") && !image_open_module(&image, name, data, size))
        image_close(&image);
    return 0;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    static int file = -1;
    struct image image;
    char path[32];
    if (size < 2)
        return 0;
    switch (data[0] % 3) {
    case 0:
        if (!image_open_module(&image, "module", data + 1, size - 1))
            take_apart(&image);
        break;
    case 1:
        if (file < 0)
            file = memfd_create("kernel", MFD_CLOEXEC);
        if (ftruncate(file, 0) || pwrite(file, data + 1, size - 1, 0) != (ssize_t)size - 1)
            abort();
        snprintf(path, sizeof path, "/proc/self/fd/%d", file);
        if (!image_open_kernel(&image, path))
            take_apart(&image);
        break;
    default:
        if (cpio_walk("initrd", data + 1, size - 1, take_member, NULL))
            break;
    }
    return 0;
}

#ifndef NESTOR_LIBFUZZER
static uint64_t next_random(uint64_t *state) {
    uint64_t x = *state;
    x ^= x << 13;
    x ^= x >> 7;
    x ^= x << 17;
    return *state = x;
}

static size_t read_file(const char *path, uint8_t *bytes) {
    FILE *file = fopen(path, "rb");
    size_t size = 0;
    if (!file) {
        perror(path);
        exit(EXIT_FAILURE);
    }
    size = fread(bytes, 1, INPUT_MAX, file);
    fclose(file);
    return size;
}

/* A few bytes, words or a tail of the sample change; half of the time inside its headers and tables. */
static size_t mutate(uint8_t *bytes, size_t size, uint64_t *state) {
    static const uint32_t odd[] = {0,          1,           0x7f,        0xff,       0xffff,
                                   0x7fffffff, 0x80000000u, 0xffffffffu, 0xfffffff0u};
    unsigned changes = 1 + next_random(state) % 8;
    for (unsigned i = 0; i < changes; i++) {
        uint64_t draw = next_random(state);
        size_t at = 1 + draw % (size - 9);
        switch (draw >> 60) {
        case 0:
            size = 1 + at;
            if (size < 16)
                return size;
            break;
        case 1:
        case 2:
        case 3:
        case 4:
            memcpy(bytes + at, &odd[(draw >> 40) % ARRAY_SIZE(odd)], 4);
            break;
        default:
            bytes[at] = (uint8_t)(draw >> 48);
            break;
        }
    }
    return size;
}

int main(int argc, char **argv) {
    static const char *const samples[] = {"sample-old.o", "sample-new.o", "sample-old.elf", "sample-new.elf"};
    static uint8_t bytes[INPUT_MAX + 1], work[INPUT_MAX + 1];
    uint64_t runs = 3000, state = 1;
    for (int i = 1; i < argc; i++) {
        if (!strcmp(argv[i], "--runs") && i + 1 < argc)
            runs = strtoull(argv[++i], NULL, 0);
        else if (!strcmp(argv[i], "--seed") && i + 1 < argc)
            state = strtoull(argv[++i], NULL, 0) | 1;
        else
            LLVMFuzzerTestOneInput(bytes, read_file(argv[i], bytes));
    }
    printf("%llu mutations from seed %llu\n", (unsigned long long)runs, (unsigned long long)state);
    /* What is refused says so, thousands of times. */
    if (!freopen("/dev/null", "w", stderr))
        return EXIT_FAILURE;
    for (uint64_t run = 0; run < runs; run++) {
        unsigned which = (unsigned)(run % ARRAY_SIZE(samples));
        char path[4096];
        snprintf(path, sizeof path, "%s/%s", SAMPLE_DIRECTORY, samples[which]);
        size_t size = read_file(path, bytes + 1) + 1;
        bytes[0] = which >= 2;
        memcpy(work, bytes, size);
        LLVMFuzzerTestOneInput(work, mutate(work, size, &state));
    }
    return EXIT_SUCCESS;
}
#endif
