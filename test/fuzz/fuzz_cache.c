/* Fuzzer of what is read from cache files, key files and profiles: any bytes must be used or refused, without
 * a stray access and in bounded time. Digests are not in the way: a signed file may be as wrong as any other.
 *
 *   fuzz_cache [--runs N] [--seed S] [--write-seeds DIRECTORY] [FILE...]
 *
 * Each FILE is read as it is. Then N (default 20000) mutations of made-up files follow, drawn from the
 * generator that S starts. --write-seeds writes the unmutated ones for libFuzzer, whose driver takes this
 * one's place under NESTOR_FUZZ.
 */
#define _GNU_SOURCE
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "cache-format/key.h"
#include "cache-format/profile.h"
#include "cache_sample.h"

#define UNITS_TO_MERGE 64u

enum what { WHAT_CACHE, WHAT_MERGE, WHAT_KEY, WHAT_PROFILE, WHATS };

static void fuzz_view(const uint8_t *data, size_t size, bool merge) {
    struct ntc_view view;
    struct ntc_error error;
    struct ntc_writer *writer;
    void *copy = malloc(size ? size : 1); /* of its own: a byte past it is noticed */
    if (!copy)
        return;
    memcpy(copy, data, size);
    if (!ntc_view_open(&view, copy, size, &error)) {
        (void)sample_walk(&view);
        for (uint64_t i = 0; i < view.count[NTC_SECTION_UNITS]; i++)
            (void)ntc_unit_complaint(&view, (uint32_t)i);
        if (merge && view.count[NTC_SECTION_UNITS] <= UNITS_TO_MERGE &&
            !ntc_writer_create(&writer, &(struct ntc_writer_options){.with_ir = true})) {
            if (!ntc_writer_add_file(writer, &view, 1, NULL, NULL) &&
                ntc_writer_write(writer, "/dev/null", NULL, NULL, &error) == 0)
                abort(); /* it is no regular file */
            ntc_writer_destroy(writer);
        }
    }
    free(copy);
}

static void fuzz_text(const uint8_t *data, size_t size, bool profile) {
    static int file = -1;
    char path[32];
    struct ntc_error error;
    if (file < 0)
        file = memfd_create("text", MFD_CLOEXEC);
    if (ftruncate(file, 0) || pwrite(file, data, size, 0) != (ssize_t)size || fchmod(file, 0600))
        return;
    snprintf(path, sizeof path, "/proc/self/fd/%d", file);
    if (profile) {
        struct ntc_profile read = {0};
        if (!ntc_profile_read(&read, path, &error))
            (void)ntc_profile_count(&read, "vmlinux", SAMPLE_KERNEL_BASE, GIB, SAMPLE_MODE);
        ntc_profile_destroy(&read);
    } else {
        struct ntc_public_key public_key;
        struct ntc_secret_key secret;
        (void)!ntc_key_read_public(&public_key, path, &error);
        (void)!ntc_key_read_secret(&secret, path, &error);
    }
}

/* The first byte chooses what the rest is. */
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    if (!size)
        return 0;
    switch ((enum what)(data[0] % WHATS)) {
    case WHAT_KEY:
    case WHAT_PROFILE:
        fuzz_text(data + 1, size - 1, data[0] % WHATS == WHAT_PROFILE);
        break;
    default:
        fuzz_view(data + 1, size - 1, data[0] % WHATS == WHAT_MERGE);
        break;
    }
    return 0;
}

#ifndef NESTOR_LIBFUZZER

#define SEEDS 5u
#define SEED_MAX (256 * KIB)

struct seed {
    uint8_t *data; /* with the first byte */
    size_t size;
};

static uint64_t random_state;

static uint64_t next_random(void) {
    random_state ^= random_state << 13;
    random_state ^= random_state >> 7;
    random_state ^= random_state << 17;
    return random_state * 0x2545f4914f6cdd1dull >> 16;
}

static struct seed seed_from_file(const char *path, enum what what) {
    struct seed seed = {.data = malloc(SEED_MAX)};
    FILE *file = fopen(path, "re");
    if (!file || !seed.data)
        exit(2);
    seed.data[0] = (uint8_t)what;
    seed.size = 1 + fread(seed.data + 1, 1, SEED_MAX - 1, file);
    fclose(file);
    return seed;
}

static struct seed seed_from_text(const char *text, enum what what) {
    struct seed seed = {.data = malloc(strlen(text) + 2), .size = strlen(text) + 1};
    if (!seed.data)
        exit(2);
    seed.data[0] = (uint8_t)what;
    memcpy(seed.data + 1, text, strlen(text) + 1);
    return seed;
}

static void make_seeds(struct seed *seeds) {
    char path[] = "/tmp/nestor-fuzz-cache.XXXXXX";
    struct ntc_error error;
    struct ntc_writer *writer = sample_writer(&(struct sample_options){.units = 24, .with_ir = true});
    int fd = mkstemp(path);
    if (fd < 0 || !writer || ntc_writer_write(writer, path, NULL, NULL, &error))
        exit(2);
    seeds[0] = seed_from_file(path, WHAT_CACHE);
    seeds[1] = seed_from_file(path, WHAT_MERGE);
    ntc_writer_destroy(writer);
    close(fd);
    unlink(path);
    seeds[2] = seed_from_text("nestor-cache public key 1\nid bf04ce42e6dcdfbf0b7d3d9d9f6a4a1c\nkey "
                              "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=\n",
                              WHAT_KEY);
    seeds[3] =
        seed_from_text("nestor-cache secret key 1\n# made up\nid 00112233445566778899aabbccddeeff\nseed "
                       "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=\n",
                       WHAT_KEY);
    seeds[4] = seed_from_text("nestor-profile 1\n# a line\nvmlinux ffffffff81000000 48a 700\nvirtio_blk "
                              "ffffffffc0000010 - 18446744073709551615\n",
                              WHAT_PROFILE);
}

/* A number where one may stand: near its limits, near what was there, or any. */
static void change_word(uint8_t *at) {
    static const uint32_t odd[] = {0,      1,       4,          63,         64,        0x7fff,
                                   0xffff, 0x10000, 0x7fffffff, 0x80000000, 0xffffffff};
    uint32_t word;
    memcpy(&word, at, sizeof word);
    switch (next_random() % 4) {
    case 0:
        word = odd[next_random() % ARRAY_SIZE(odd)];
        break;
    case 1:
        word += (uint32_t)(next_random() % 9) - 4;
        break;
    case 2:
        word ^= 1u << next_random() % 32;
        break;
    default:
        word = (uint32_t)next_random();
        break;
    }
    memcpy(at, &word, sizeof word);
}

/* A place to change: of a cache file mostly in a section, all of them equally often however long they are. */
static size_t choose_place(const struct seed *seed) {
    struct ntc_header header;
    size_t any = 1 + next_random() % (seed->size - 1);
    if (seed->size <= sizeof header || next_random() % 8 == 0)
        return any;
    memcpy(&header, seed->data + 1, sizeof header);
    const struct ntc_section *section = &header.section[next_random() % NTC_SECTION_KINDS];
    if (!section->length) /* an unused row: the header itself */
        return 1 + next_random() % 1280;
    return 1 + section->offset + next_random() % section->length;
}

static void mutate(const struct seed *seed, uint8_t *data, size_t *size) {
    *size = seed->size;
    memcpy(data, seed->data, *size);
    for (uint64_t changes = 1 + next_random() % 6; changes; changes--) {
        size_t where = choose_place(seed);
        if (where + 4 <= *size)
            change_word(data + where);
        else
            data[where] ^= (uint8_t)(1 + next_random() % 255);
    }
    if (next_random() % 32 == 0)
        *size = 1 + next_random() % *size;
}

static void write_seeds(const struct seed *seeds, const char *directory) {
    char path[512];
    for (unsigned i = 0; i < SEEDS; i++) {
        snprintf(path, sizeof path, "%s/seed-%u", directory, i);
        FILE *file = fopen(path, "we");
        if (!file || fwrite(seeds[i].data, 1, seeds[i].size, file) != seeds[i].size)
            exit(2);
        fclose(file);
    }
}

static void run_file(const char *path) {
    struct seed seed = {.data = malloc(SEED_MAX)};
    FILE *file = fopen(path, "re");
    if (!file || !seed.data)
        exit(2);
    seed.size = fread(seed.data, 1, SEED_MAX, file);
    fclose(file);
    LLVMFuzzerTestOneInput(seed.data, seed.size);
    free(seed.data);
}

int main(int argc, char **argv) {
    struct seed seeds[SEEDS];
    const char *directory = NULL;
    unsigned long runs = 20000, seed = 1;
    for (int i = 1; i < argc; i++) {
        if (!strcmp(argv[i], "--runs") && i + 1 < argc)
            runs = strtoul(argv[++i], NULL, 0);
        else if (!strcmp(argv[i], "--seed") && i + 1 < argc)
            seed = strtoul(argv[++i], NULL, 0);
        else if (!strcmp(argv[i], "--write-seeds") && i + 1 < argc)
            directory = argv[++i];
        else
            run_file(argv[i]);
    }
    random_state = seed * 0x9e3779b97f4a7c15ull + 1;
    make_seeds(seeds);
    if (directory)
        write_seeds(seeds, directory);
    uint8_t *data = malloc(SEED_MAX);
    if (!data)
        return 2;
    for (unsigned i = 0; i < SEEDS; i++)
        LLVMFuzzerTestOneInput(seeds[i].data, seeds[i].size);
    for (unsigned long run = 0; run < runs; run++) {
        const struct seed *from = &seeds[run % 8 < 6 ? run % 2 : 2 + run / 8 % 3];
        size_t size;
        mutate(from, data, &size);
        LLVMFuzzerTestOneInput(data, size);
    }
    free(data);
    for (unsigned i = 0; i < SEEDS; i++)
        free(seeds[i].data);
    printf("%lu runs from seed %lu\n", runs, seed);
    return 0;
}
#endif
