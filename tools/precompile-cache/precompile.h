/* precompile-cache: kernels and modules translated ahead of time into a cache file.
 *
 * command.c reads the options; inputs.c opens the images; work.c translates them in threads; progress.c draws
 * the bar; summary.c tells what became of it. */
#ifndef NESTOR_PRECOMPILE_H
#define NESTOR_PRECOMPILE_H

#include <pthread.h>
#include <stdio.h>

#include "cache-format/profile.h"
#include "cache-format/writer.h"
#include "sbt/blocks.h"
#include "sbt/functions.h"

enum precompile_status { PRECOMPILE_OK = 0, PRECOMPILE_FAILED = 1, PRECOMPILE_USAGE = 2 };

struct precompile_options {
    const char *kernel;
    const char **modules; /* files and directories */
    unsigned module_count;
    const char *initrd;
    const char **profiles;
    unsigned profile_count;
    const char *sign_key; /* NULL: unsigned, which no VM takes */
    const char *output;
    const char *cpu;
    const char *dump_asm;            /* symbol whose units are listed on standard output */
    const char *dump_ir;             /* the same for the IR of those that have one */
    const struct codegen *functions; /* what makes units of whole functions; NULL: none does */
    bool all_functions;              /* not just those that the profile saw */
    unsigned jobs;
    bool early;   /* also the text as it stands before the kernel has patched itself */
    bool one_cpu; /* also the text without LOCK prefixes */
    bool profiled_only;
    bool quiet;
};

/* One image, and what is known of it. */
struct precompile_image {
    struct image image;
    struct patched patched;
    struct discovery discovery;
    struct estimate estimate; /* for want of a profile */
    struct pieces cut;
    uint32_t number; /* in the file */
    size_t pages, next_page, done_pages;
    size_t functions, next_function, done_functions;
    bool analysed, broken;
    /* A module's bytes until it is analysed. */
    uint8_t *bytes;
    size_t size;
    char *name;
    struct blocks_counts counts;
    struct functions_counts function_counts;
};

struct precompile {
    const struct precompile_options *options;
    struct cpu_model model;
    struct features features;
    struct precompile_image *image; /* the kernel first, then its loader if it has one */
    size_t images, image_room;
    struct ntc_profile profile;
    struct ntc_writer *writer;
    uint32_t modes[BLOCKS_MODES_MAX]; /* the first is the one that a kernel settles in */
    unsigned mode_count;
    /* Shared by the workers, under lock. */
    pthread_mutex_t lock;
    pthread_cond_t changed;
    size_t next_image;
    unsigned running;
    int result;
};

/* `nestor precompile-cache` and the program of that name. argv: the arguments alone; llvm: NULL in a program
 * without LLVM. */
int precompile_command(int argc, char **argv, const char *name, const struct codegen *llvm);
void precompile_print_completion(FILE *file, const char *function, unsigned skip);

/* -- inputs.c: all return 0, or -errno after one diag_error() line -- */
MUST_CHECK int precompile_open_kernel(struct precompile *p, const char *path);
/* A .ko, packed or not, or a directory that is searched for them; those that are there twice count once. */
MUST_CHECK int precompile_add_modules(struct precompile *p, const char *path);
MUST_CHECK int precompile_add_initrd(struct precompile *p, const char *path);
MUST_CHECK int precompile_read_profile(struct precompile *p, const char *path);
void precompile_close_inputs(struct precompile *p);

/* -- work.c -- */
MUST_CHECK int precompile_work(struct precompile *p);
/* The name under which an image is in the file and in profiles. */
const char *precompile_image_name(const struct precompile_image *image);

/* -- progress.c: called with the lock held -- */
void progress_draw(const struct precompile *p, bool last);

/* -- summary.c -- */
void summary_print(const struct precompile *p, const struct ntc_writer_summary *written, double seconds);
/* List a unit: guest instructions, then host instructions. */
void listing_print(const struct ntc_unit *unit);

#endif
