/* Fuzzer of the kernel loaders: any bytes as a kernel file must load or be refused, without a stray access.
 *
 *   fuzz_loaders [--runs N] [--seed S] [--write-seeds DIRECTORY] [FILE...]
 *
 * Each FILE is loaded as it is. Then N (default 20000) mutations of built-in images, one of each kind, are
 * loaded, drawn from the generator that S starts: the same S gives the same runs. --write-seeds writes those
 * images out for libFuzzer, whose coverage-guided driver takes this one's place under NESTOR_FUZZ. */
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "boot/boot.h"
#include "boot_images.h"
#include "mem/guest_mem.h"

#define GUEST_MEMORY (8 * MIB)

/* The first byte chooses the protocol and whether there is an initrd; the rest is the kernel file. */
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    static const struct boot_range reserved[] = {{0x600000, 0x10000, BOOT_RANGE_ACPI}};
    static int file = -1;
    struct boot_source *source;
    struct boot_state state;
    struct guest_mem mem;
    char path[32];

    if (file < 0)
        file = memfd_create("kernel", MFD_CLOEXEC);
    if (size < 2 || ftruncate(file, 0) || pwrite(file, data + 1, size - 1, 0) != (ssize_t)size - 1)
        return 0;
    snprintf(path, sizeof path, "/proc/self/fd/%d", file);
    const struct boot_initrd initrd = {path, data[0] & 16 ? "arguments" : NULL};
    const struct boot_request request = {.kernel = path,
                                         .initrds = &initrd,
                                         .initrd_count = data[0] >> 3 & 1,
                                         .command_line = "console=ttyS0",
                                         .protocol = (enum boot_protocol)((data[0] & 7) % 5),
                                         .reserved = reserved,
                                         .reserved_count = ARRAY_SIZE(reserved)};
    if (boot_source_open(&source, &request))
        return 0;
    if (guest_mem_create(&mem, GUEST_MEMORY, 0))
        abort();
    int result = boot_source_load(source, &mem, 0xe0000, &state);
    /* What loaded must start inside guest memory, and the reserved range must be untouched. */
    if (!result && (!guest_mem_ptr(&mem, state.rip, 1) || !guest_mem_ptr(&mem, state.gdtr.base, 32)))
        abort();
    for (size_t i = 0; i < reserved[0].length; i++)
        if (mem.base[reserved[0].base + i])
            abort();
    guest_mem_destroy(&mem);
    boot_source_close(source);
    return 0;
}

#ifndef NESTOR_LIBFUZZER

/* Of the sanitizers' runtime, in builds that have it. */
__attribute__((weak)) void __sanitizer_set_report_fd(void *fd);

static uint64_t random_state;

/* xorshift64*: enough to spread mutations, and the same everywhere. */
static uint32_t next_random(void) {
    random_state ^= random_state >> 12;
    random_state ^= random_state << 25;
    random_state ^= random_state >> 27;
    return (uint32_t)(random_state * 0x2545f4914f6cdd1dull >> 32);
}

static void mutate(uint8_t *data, size_t *size) {
    static const uint32_t interesting[] = {0,      1,          0x7f,       0x80,       0xff,
                                           0xffff, 0x7fffffff, 0x80000000, 0xffffffff, 0x1000};
    for (uint32_t count = 1 + next_random() % 4; count && *size > 8; count--) {
        /* Headers are where decisions are made: half of all hits go to the first 1 KiB. */
        size_t range = next_random() & 1 && *size > 1024 ? 1024 : *size;
        size_t at = next_random() % (range - 4);
        uint32_t value = interesting[next_random() % ARRAY_SIZE(interesting)];
        switch (next_random() % 6) {
        case 0:
            data[at] ^= (uint8_t)(1u << next_random() % 8);
            break;
        case 1:
            data[at] = (uint8_t)next_random();
            break;
        case 2:
            memcpy(data + at, &value, 4);
            break;
        case 3:
            memcpy(data + at, &value, 2);
            break;
        case 4:
            memcpy(&value, data + at, 4);
            value += next_random() % 33 - 16;
            memcpy(data + at, &value, 4);
            break;
        case 5:
            *size = 1 + next_random() % *size;
            break;
        }
    }
}

static void run_mutations(const struct boot_image *images, size_t count, unsigned long runs) {
    for (unsigned long run = 0; run < runs; run++) {
        const struct boot_image *image = &images[next_random() % count];
        size_t size = image->size + 1;
        uint8_t *data = malloc(size);
        if (!data)
            abort();
        data[0] = (uint8_t)(next_random() & 1 ? 0 : next_random());
        memcpy(data + 1, image->data, image->size);
        mutate(data, &size);
        LLVMFuzzerTestOneInput(data, size);
        free(data);
    }
}

static void run_file(const char *path) {
    FILE *file = fopen(path, "re");
    if (!file || fseek(file, 0, SEEK_END))
        exit(2);
    size_t size = (size_t)ftell(file);
    rewind(file);
    uint8_t *data = malloc(size + 1);
    if (!data || fread(data, 1, size, file) != size)
        exit(2);
    fclose(file);
    LLVMFuzzerTestOneInput(data, size);
    free(data);
}

static void write_seeds(const struct boot_image *images, size_t count, const char *directory) {
    char path[512];
    for (size_t i = 0; i < count; i++) {
        snprintf(path, sizeof path, "%s/image-%02zu", directory, i);
        FILE *file = fopen(path, "we");
        if (!file || fputc(0, file) || fwrite(images[i].data, 1, images[i].size, file) != images[i].size)
            exit(2);
        fclose(file);
    }
}

int main(int argc, char **argv) {
    const char *seeds = NULL;
    unsigned long runs = 20000, seed = 1;
    /* Refusals are the normal case here, and their lines would be millions. */
    int report = fcntl(STDERR_FILENO, F_DUPFD_CLOEXEC, 10);
    if (__sanitizer_set_report_fd)
        __sanitizer_set_report_fd((void *)(intptr_t)report);
    if (!freopen("/dev/null", "w", stderr))
        return 2;
    for (int i = 1; i < argc; i++) {
        if (!strcmp(argv[i], "--runs") && i + 1 < argc)
            runs = strtoul(argv[++i], NULL, 0);
        else if (!strcmp(argv[i], "--seed") && i + 1 < argc)
            seed = strtoul(argv[++i], NULL, 0);
        else if (!strcmp(argv[i], "--write-seeds") && i + 1 < argc)
            seeds = argv[++i];
        else
            run_file(argv[i]);
    }
    random_state = seed * 0x9e3779b97f4a7c15ull + 1;
    struct boot_image elf64 = boot_image_elf(true, true), elf32 = boot_image_elf(false, true);
    struct boot_image images[BOOT_IMAGE_CODECS + 6] = {elf64,
                                                       elf32,
                                                       boot_image_multiboot_elf(),
                                                       boot_image_multiboot_flat(),
                                                       boot_image_bzimage(elf32, 0),
                                                       boot_image_bzimage(elf64, -1)};
    for (int codec = 0; codec < BOOT_IMAGE_CODECS; codec++)
        images[6 + codec] = boot_image_bzimage(elf64, codec);
    if (seeds)
        write_seeds(images, ARRAY_SIZE(images), seeds);
    run_mutations(images, ARRAY_SIZE(images), runs);
    for (size_t i = 0; i < ARRAY_SIZE(images); i++)
        boot_image_free(&images[i]);
    printf("%lu runs from seed %lu\n", runs, seed);
    return 0;
}
#endif
