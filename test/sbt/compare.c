/* Holds the predicted text of a kernel against what a booted guest has in memory.
 *
 *   sbt-compare KERNEL MEMORY CPUS [-v]    MEMORY: guest RAM from address 0 on, the kernel at its link
 * address
 *
 * Prints how many functions stand exactly as predicted, how many as one of the choices, and (-v) where others
 * differ. Exit status 0 when at least 98 of 100 are as predicted or chosen.
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "sbt/patch.h"

#define KERNEL_MAP 0xffffffff80000000ull

struct comparison {
    const struct patched *patched;
    const uint8_t *memory;
    size_t size;
    bool verbose;
    enum stage stage;
    unsigned functions, exact, chosen;
    unsigned by_kind[PATCH_KINDS];
};

/* A static call may lead to any function. */
static bool is_free_call(const struct comparison *c, uint64_t at, uint64_t from, uint64_t to,
                         uint64_t *site) {
    const uint8_t *predicted = patched_at(c->patched, c->stage, from, to - from);
    const uint8_t *found = c->memory + (from - KERNEL_MAP);
    size_t i = patched_call_from(c->patched, at < from + 4 ? from : at - 4);
    if (i == c->patched->calls || c->patched->call[i] > at || c->patched->call[i] + 5 > to)
        return false;
    *site = c->patched->call[i];
    uint8_t opcode = found[*site - from];
    bool tail = predicted[*site - from] == 0xe9 || predicted[*site - from] == 0xc3;
    return opcode == (tail ? 0xe9 : 0xe8);
}

/* Does memory agree with [from, to) when every choice may be taken? */
static bool agrees_by_choice(struct comparison *c, uint64_t from, uint64_t to, uint64_t *where) {
    const struct patched *p = c->patched;
    const uint8_t *predicted = patched_at(p, c->stage, from, to - from),
                  *found = c->memory + (from - KERNEL_MAP);
    for (uint64_t at = from; at < to;) {
        if (predicted[at - from] == found[at - from]) {
            at++;
            continue;
        }
        uint64_t site;
        if (is_free_call(c, at, from, to, &site)) {
            c->by_kind[PATCH_STATIC_CALL]++;
            at = site + 5;
            continue;
        }
        bool met = false;
        size_t first = patched_choice_from(p, at < from + 255 ? from : at - 255);
        for (size_t i = first; i < p->choices && p->choice[i].address <= at && !met; i++) {
            const struct patch_choice *choice = &p->choice[i];
            if (choice->address + choice->length <= at || choice->address < from ||
                choice->address + choice->length > to)
                continue;
            for (unsigned k = 0; k < choice->options && !met; k++)
                met = !memcmp(p->option_bytes + choice->bytes + (size_t)k * choice->length,
                              found + (choice->address - from), choice->length);
            if (met) {
                c->by_kind[choice->kind]++;
                at = choice->address + choice->length;
            }
        }
        if (!met) {
            *where = at;
            return false;
        }
    }
    return true;
}

static void print_bytes(const char *label, const uint8_t *bytes, size_t count) {
    printf("    %s", label);
    for (size_t i = 0; i < count; i++)
        printf(" %02x", bytes[i]);
    printf("\n");
}

static void compare_function(struct comparison *c, const char *name, uint64_t from, uint64_t to) {
    const uint8_t *predicted = patched_at(c->patched, c->stage, from, to - from);
    if (!predicted || from < KERNEL_MAP || to - KERNEL_MAP > c->size)
        return;
    const uint8_t *found = c->memory + (from - KERNEL_MAP);
    uint64_t where;
    c->functions++;
    if (!memcmp(predicted, found, to - from)) {
        c->exact++;
    } else if (agrees_by_choice(c, from, to, &where)) {
        c->chosen++;
        if (c->verbose)
            printf("chosen %s\n", name);
    } else if (c->verbose) {
        size_t count = to - where < 16 ? to - where : 16;
        printf("other %s+0x%llx (%llx)\n", name, (unsigned long long)(where - from),
               (unsigned long long)where);
        print_bytes("linked   ", patched_at(c->patched, STAGE_EARLY, where, count), count);
        print_bytes("predicted", predicted + (where - from), count);
        print_bytes("found    ", found + (where - from), count);
    }
}

static void compare_all(struct comparison *c, const struct image *image) {
    for (unsigned s = 0; s < c->patched->sections; s++) {
        const struct patched_section *section = &c->patched->section[s];
        if (section->init)
            continue; /* its memory was given back */
        const struct image_symbol *before = NULL;
        for (size_t i = 0; i < image->symbols; i++) {
            const struct image_symbol *symbol = &image->symbol[i];
            if (symbol->address < section->address || symbol->address - section->address >= section->size ||
                (symbol->type | 32) != 't' || !strncmp(symbol->name, "__pfx_", 6) ||
                (before && before->address == symbol->address))
                continue;
            if (before)
                compare_function(c, before->name, before->address, symbol->address);
            before = symbol;
        }
        if (before)
            compare_function(c, before->name, before->address, section->address + section->size);
    }
}

int main(int argc, char **argv) {
    if (argc < 4) {
        fprintf(stderr, "usage: sbt-compare KERNEL MEMORY CPUS [-v]\n");
        return 2;
    }
    struct image image;
    struct patched patched;
    struct cpu_model model;
    struct features features;
    char error[256];
    struct stat status;
    unsigned cpus = (unsigned)atoi(argv[3]);
    int fd = open(argv[2], O_RDONLY | O_CLOEXEC);
    if (fd < 0 || fstat(fd, &status)) {
        perror(argv[2]);
        return 2;
    }
    void *memory = mmap(NULL, (size_t)status.st_size, PROT_READ, MAP_SHARED, fd, 0);
    if (memory == MAP_FAILED || cpu_model_create(&model, "host", cpus, error, sizeof error) ||
        image_open_kernel(&image, argv[1]))
        return 2;
    features_create(&features, &model);
    if (patched_create(&patched, &image, &features))
        return 2;
    struct comparison c = {.patched = &patched,
                           .memory = memory,
                           .size = (size_t)status.st_size,
                           .verbose = argc > 4,
                           .stage = cpus > 1 ? STAGE_READY : STAGE_READY_ONE};
    compare_all(&c, &image);
    for (unsigned kind = 0; kind < PATCH_KINDS; kind++)
        printf("%-17s %6u places, %u left alone, %u found in another state\n",
               patch_kind_name((enum patch_kind)kind), patched.sites[kind], patched.skipped[kind],
               c.by_kind[kind]);
    double share = c.functions ? 100.0 * (c.exact + c.chosen) / c.functions : 0;
    printf("functions %u exact %u (%.2f %%) chosen %u other %u: %.2f %% foreseen\n", c.functions, c.exact,
           c.functions ? 100.0 * c.exact / c.functions : 0, c.chosen, c.functions - c.exact - c.chosen,
           share);
    return share >= 98 ? 0 : 1;
}
