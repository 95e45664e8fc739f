/* The options of `nestor run`, all in one table: command line, configuration file, help and shell completion
 * are made from it. */
#ifndef NESTOR_TOOLS_OPTIONS_H
#define NESTOR_TOOLS_OPTIONS_H

#include "machine/vm_config.h"

#include <stdio.h>

/* Process exit codes; nestor(1) documents them. A guest's debug-exit write of V exits with (V << 1) | 1, the
 * end by signal N with 128 + N. */
enum exit_code {
    EXIT_CODE_OK = 0,      /* the guest powered off, or asked-for output was printed */
    EXIT_CODE_FAILURE = 1, /* the host, a file or the guest's start failed */
    EXIT_CODE_USAGE = 2,   /* a bad option or configuration key */
    EXIT_CODE_TRIPLE_FAULT = 3,
    EXIT_CODE_SIGNAL = 128,
};

struct run_options {
    struct vm_config vm;
    bool help;
    bool serial_given; /* vm.serial is not the default */
    /* Every string that vm points at. */
    char **strings;
    size_t string_count;
};

/* Where a value comes from, for messages. */
struct option_source {
    const char *option;      /* the name without dashes */
    const char *config_path; /* NULL: the command line */
};

typedef int option_parser(struct run_options *options, const struct option_source *source, const char *value);

struct option {
    const char *name;     /* without dashes; also the configuration key */
    const char *argument; /* for help; NULL: a switch (true or false in a configuration) */
    const char *help;
    const char
        *choices; /* comma-separated, for completion; "file:" completes files; NULL: nothing to offer */
    option_parser *parse;  /* -EINVAL after one line; a switch is parsed from "on" or "off" */
    bool is_repeatable;    /* an array in a configuration */
    bool invalidates_code; /* translated code made under another value must not be used */
};

extern const struct option run_option_table[];
extern const size_t run_option_count;

/* Fill options from `nestor run`'s arguments (argv[0] is the first of them); --config files first, so that
 * the command line overrides them. 0, or -EINVAL after one line. The caller destroys options in either case.
 */
MUST_CHECK int run_options_parse(struct run_options *options, int argc, char **argv);
void run_options_destroy(struct run_options *options);

const struct option *run_option_find(const char *name);
/* The known option that looks most like name, or NULL. */
const struct option *run_option_suggest(const char *name);

/* A copy of text (length bytes) that lives as long as options; exits the process when memory is out. */
char *run_options_keep(struct run_options *options, const char *text, size_t length);

/* One diag_error() line about a value: "--memory '7': ..." or "config 'f.json': memory '7': ...". -EINVAL. */
int option_refuse(const struct option_source *source, const char *value, const char *format, ...)
    PRINTF_LIKE(3, 4);

/* config_file.c: apply a JSON configuration. 0 or -EINVAL after one line. */
MUST_CHECK int config_file_apply(struct run_options *options, const char *path);

/* help.c */
void help_print_run(FILE *out);
void help_print_program(FILE *out);
void help_print_bash_completion(FILE *out);

#endif
