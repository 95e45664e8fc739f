/* The option table of `nestor run` and the command line's parser. */
#define _GNU_SOURCE
#include "options.h"

#include <errno.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include "base/diag.h"
#include "option_values.h"

static int parse_config(struct run_options *options, const struct option_source *source, const char *value);
static int parse_help(struct run_options *options, const struct option_source *source, const char *value);

/* The sanitizers' runtime makes calls of its own. */
#ifdef __SANITIZE_ADDRESS__
#define SANDBOX_DEFAULT false
#else
#define SANDBOX_DEFAULT true
#endif

const struct option run_option_table[] = {
    {.name = "name",
     .argument = "NAME",
     .help = "name of the VM in messages and in the process list (default: vm)",
     .parse = option_parse_name},
    {.name = "memory",
     .argument = "SIZE",
     .help = "guest RAM, such as 512M or 4G (default: 1G)",
     .parse = option_parse_memory},
    {.name = "cpus",
     .argument = "N",
     .help = "number of virtual processors, 1 to 32 (default: 1)",
     .parse = option_parse_cpus},
    {.name = "kernel",
     .argument = "FILE",
     .help = "kernel to boot: a Linux bzImage, an ELF vmlinux, or a Multiboot kernel",
     .choices = "file:",
     .parse = option_parse_kernel},
    {.name = "initrd",
     .argument = "FILE",
     .help = "initial RAM disk; for a Multiboot kernel a module: FILE[ ARGUMENTS][,FILE...]",
     .choices = "file:",
     .parse = option_parse_initrd,
     .is_repeatable = true},
    {.name = "append",
     .argument = "STRING",
     .help = "the kernel's command line",
     .parse = option_parse_append},
    {.name = "boot",
     .argument = "HOW",
     .help = "enter the kernel by auto, pvh, linux, setup or setup32 (default: auto)",
     .choices = "auto,pvh,linux,setup,setup32",
     .parse = option_parse_boot},
    {.name = "disk",
     .argument = "file=FILE[,format=raw][,bus=virtio][,readonly=on][,serial=ID]",
     .help = "attach a disk image",
     .choices = "file=",
     .parse = option_parse_disk,
     .is_repeatable = true},
    {.name = "net",
     .argument = "none|user[,hostfwd=tcp:[ADDR]:PORT-[ADDR]:PORT][,mac=MAC]",
     .help = "attach a network card; user: NAT through this host (default: none)",
     .choices = "none,user",
     .parse = option_parse_net,
     .is_repeatable = true},
    {.name = "serial",
     .argument = "stdio|file=FILE|pty|unix=PATH|none",
     .help = "where the first serial port goes (default: stdio)",
     .choices = "stdio,file=,pty,unix=,none",
     .parse = option_parse_serial},
    {.name = "console",
     .argument = "stdio|file=FILE|pty|unix=PATH|none",
     .help = "attach a virtio console (hvc0), and where it goes (default: none)",
     .choices = "stdio,file=,pty,unix=,none",
     .parse = option_parse_console},
    {.name = "engine",
     .argument = "auto|direct|dbt|interp",
     .help = "how guest code is run (default: auto)",
     .choices = "auto,direct,dbt,interp",
     .parse = option_parse_engine},
    {.name = "direct-max",
     .argument = "N",
     .help = "processes for direct execution that each virtual processor keeps (default: 32)",
     .parse = option_parse_direct_max},
    {.name = "cpu",
     .argument = "host|MODEL[,+FEATURE][,-FEATURE]",
     .help = "processor that the guest sees (default: host)",
     .choices = "host",
     .parse = option_parse_cpu,
     .invalidates_code = true},
    {.name = "code-cache",
     .argument = "SIZE[,grow=on|off]",
     .help = "translated code kept for each virtual processor, 1M to 1024M; grow: up to four times that when "
             "it is too small (default: 32M,grow=off)",
     .parse = option_parse_code_cache},
    {.name = "cache",
     .argument = "FILE",
     .help = "run translated code from this signed cache file (precompile-cache(1))",
     .choices = "file:",
     .parse = option_parse_cache,
     .is_repeatable = true},
    {.name = "trust",
     .argument = "FILE|DIR",
     .help = "public keys that may have signed a cache (default: nestor/trust.d of the user's configuration)",
     .choices = "file:",
     .parse = option_parse_trust,
     .is_repeatable = true},
    {.name = "cache-required",
     .help = "refuse to run when a cache cannot be used",
     .parse = option_parse_cache_required},
    {.name = "record-cache",
     .argument = "FILE",
     .help = "at exit, write the kernel code that no cache had to FILE, for nestor-cache merge",
     .choices = "file:",
     .parse = option_parse_record_cache},
    {.name = "record-profile",
     .argument = "FILE",
     .help = "at exit, write where kernel code was entered to FILE, for precompile-cache --profile",
     .choices = "file:",
     .parse = option_parse_record_profile},
    {.name = "prealloc",
     .help = "touch all guest RAM before the guest starts",
     .parse = option_parse_prealloc},
    {.name = "no-reboot",
     .help = "exit when the guest resets instead of booting again",
     .parse = option_parse_no_reboot},
    {.name = "debug-exit",
     .argument = "PORT",
     .help = "I/O port on which a guest's write of V exits with (V << 1) | 1 (default: none)",
     .parse = option_parse_debug_exit},
    {.name = "stats",
     .argument = "FILE|-",
     .help = "write counters as JSON at exit and on SIGUSR1",
     .choices = "file:",
     .parse = option_parse_stats},
    {.name = "stats-spaces",
     .help = "count direct execution for each address space of the guest, too",
     .parse = option_parse_stats_spaces},
    {.name = "trace",
     .argument = "LIST[,file=FILE]",
     .help = "log events: exceptions, interrupts, pio, mmio, msr, cr, disk, net, all",
     .choices = "exceptions,interrupts,pio,mmio,msr,cr,disk,net,all",
     .parse = option_parse_trace},
    {.name = "dump",
     .argument = "LIST",
     .help = "log stages of the translation: guest, decoded, emitted, exits, all",
     .choices = "guest,decoded,emitted,exits,all",
     .parse = option_parse_dump},
    {.name = "sandbox",
     .argument = "on|off",
     .help = "confine this process before the guest runs (default: on)",
     .choices = "on,off",
     .parse = option_parse_sandbox},
    {.name = "config",
     .argument = "FILE",
     .help = "read options from a JSON file first; its keys are the names of options",
     .choices = "file:",
     .parse = parse_config,
     .is_repeatable = true},
    {.name = "help", .help = "print this help", .parse = parse_help},
};
const size_t run_option_count = ARRAY_SIZE(run_option_table);

/* Configuration files were applied before the rest of the command line: see run_options_parse(). */
static int parse_config(struct run_options *options, const struct option_source *source, const char *value) {
    (void)options;
    if (source->config_path)
        return option_refuse(source, value, "a configuration cannot name another; merge the two files");
    return 0;
}

static int parse_help(struct run_options *options, const struct option_source *source, const char *value) {
    if (source->config_path)
        return option_refuse(source, value, "belongs on the command line");
    options->help = true;
    return 0;
}

int option_refuse(const struct option_source *source, const char *value, const char *format, ...) {
    char why[512];
    va_list args;
    va_start(args, format);
    vsnprintf(why, sizeof why, format, args);
    va_end(args);
    if (source->config_path)
        diag_error("config '%s': %s '%.200s': %s", source->config_path, source->option, value, why);
    else
        diag_error("--%s '%.200s': %s", source->option, value, why);
    return -EINVAL;
}

char *run_options_keep(struct run_options *options, const char *text, size_t length) {
    char **strings = realloc(options->strings, (options->string_count + 1) * sizeof *strings);
    char *copy = strndup(text, length);
    if (!strings || !copy) {
        diag_error("no memory for the options");
        exit(EXIT_CODE_FAILURE);
    }
    options->strings = strings;
    strings[options->string_count++] = copy;
    return copy;
}

void run_options_destroy(struct run_options *options) {
    for (size_t i = 0; i < options->string_count; i++)
        free(options->strings[i]);
    free(options->strings);
    *options = (struct run_options){0};
}

const struct option *run_option_find(const char *name) {
    for (size_t i = 0; i < run_option_count; i++)
        if (!strcmp(name, run_option_table[i].name))
            return &run_option_table[i];
    return NULL;
}

/* Levenshtein distance of two short words. */
static unsigned edit_distance(const char *a, const char *b) {
    unsigned row[32];
    size_t a_length = strlen(a), b_length = strlen(b);
    if (a_length >= ARRAY_SIZE(row) || b_length >= ARRAY_SIZE(row))
        return UINT32_MAX;
    for (unsigned j = 0; j <= b_length; j++)
        row[j] = j;
    for (unsigned i = 1; i <= a_length; i++) {
        unsigned diagonal = row[0];
        row[0] = i;
        for (unsigned j = 1; j <= b_length; j++) {
            unsigned substituted = diagonal + (a[i - 1] != b[j - 1]);
            unsigned inserted = (row[j] < row[j - 1] ? row[j] : row[j - 1]) + 1;
            diagonal = row[j];
            row[j] = substituted < inserted ? substituted : inserted;
        }
    }
    return row[b_length];
}

const struct option *run_option_suggest(const char *name) {
    const struct option *best = NULL;
    unsigned best_distance = 3; /* farther ones are other words */
    for (size_t i = 0; i < run_option_count; i++) {
        unsigned distance = edit_distance(name, run_option_table[i].name);
        if (distance < best_distance) {
            best = &run_option_table[i];
            best_distance = distance;
        }
    }
    return best;
}

static int refuse_unknown(const char *argument, const char *name) {
    const struct option *like = run_option_suggest(name);
    if (like)
        diag_error("option '%s' is not known; did you mean --%s?", argument, like->name);
    else
        diag_error("option '%s' is not known; see nestor run --help", argument);
    return -EINVAL;
}

/* Split argv[*at] into an option and its value, moving *at past both. */
static int next_option(int argc, char **argv, int *at, const struct option **option, const char **value) {
    const char *argument = argv[(*at)++];
    char name[64];
    if (!strcmp(argument, "-h"))
        argument = "--help";
    if (strncmp(argument, "--", 2) || !argument[2]) {
        diag_error("'%s' is not an option; nestor run takes options only, such as --kernel FILE", argument);
        return -EINVAL;
    }
    const char *equals = strchr(argument, '=');
    size_t length = equals ? (size_t)(equals - argument - 2) : strlen(argument + 2);
    if (length >= sizeof name)
        length = sizeof name - 1;
    memcpy(name, argument + 2, length);
    name[length] = 0;
    *option = run_option_find(name);
    if (!*option)
        return refuse_unknown(argument, name);
    if (!(*option)->argument) {
        if (equals) {
            diag_error("--%s takes no value; leave out '%s'", name, equals);
            return -EINVAL;
        }
        *value = "on";
    } else if (equals) {
        *value = equals + 1;
    } else if (*at < argc) {
        *value = argv[(*at)++];
    } else {
        diag_error("--%s needs a value: --%s %s", name, name, (*option)->argument);
        return -EINVAL;
    }
    return 0;
}

int run_options_parse(struct run_options *options, int argc, char **argv) {
    const struct option *option;
    const char *value;
    int result;

    *options = (struct run_options){.vm = {.name = "vm",
                                           .memory = GIB,
                                           .cpus = 1,
                                           .append = "",
                                           .boot = BOOT_AUTO,
                                           .serial = {.kind = VM_SERIAL_STDIO},
                                           .console = {.kind = VM_SERIAL_NONE},
                                           .cpu = "host",
                                           .engine = VM_ENGINE_AUTO,
                                           .sandbox = SANDBOX_DEFAULT,
                                           .debug_exit = VM_NO_PORT}};
    /* Two passes: configurations, wherever they stand, come before what overrides them. */
    for (int pass = 0; pass < 2; pass++) {
        for (int at = 0; at < argc;) {
            result = next_option(argc, argv, &at, &option, &value);
            if (result)
                return result;
            if (pass == 0) {
                result = option->parse == parse_config ? config_file_apply(options, value) : 0;
            } else {
                const struct option_source source = {option->name, NULL};
                result = option->parse(options, &source, value);
            }
            if (result)
                return result;
        }
    }
    return 0;
}
