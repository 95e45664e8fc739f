/* The options of precompile-cache, and its course from inputs to file. */
#define _GNU_SOURCE
#include "precompile-cache/precompile.h"

#include <getopt.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "base/diag.h"
#include "cache-format/host_features.h"
#include "cpu/mode.h"

/* Without a profile: of the code that is estimated to run, so much is loaded when the file is opened, which
 * takes a first VM about 100 ms. */
#define LIKELY_CODE (64 * MIB)
#define JOBS_MAX 256u

enum option_code {
    OPTION_KERNEL = 256,
    OPTION_MODULES,
    OPTION_INITRD,
    OPTION_PROFILE,
    OPTION_PROFILED_ONLY,
    OPTION_CODEGEN,
    OPTION_CPU,
    OPTION_JOBS,
    OPTION_TEXT,
    OPTION_SIGN_KEY,
    OPTION_DUMP_IR,
    OPTION_DUMP_ASM,
    OPTION_QUIET,
    OPTION_HELP,
};

static const struct {
    struct option option;
    const char *value, *help;
} table[] = {
    {{"kernel", required_argument, NULL, OPTION_KERNEL}, "FILE", "kernel: a bzImage or an ELF vmlinux"},
    {{"modules", required_argument, NULL, OPTION_MODULES},
     "DIR|FILE",
     "modules: a tree such as /lib/modules/VERSION, or a .ko, packed or not (may be repeated)"},
    {{"initrd", required_argument, NULL, OPTION_INITRD}, "FILE", "modules inside an initial RAM disk"},
    {{"profile", required_argument, NULL, OPTION_PROFILE},
     "FILE",
     "counts of what a guest ran (docs/cache-format.md; may be repeated)"},
    {{"profiled-only", no_argument, NULL, OPTION_PROFILED_ONLY},
     NULL,
     "leave out functions that no profile saw"},
    {{"codegen", required_argument, NULL, OPTION_CODEGEN},
     "template|llvm|auto",
     "code generator (default: auto)"},
    {{"cpu", required_argument, NULL, OPTION_CPU},
     "MODEL",
     "processor that the guest will see, as for nestor run (default: host)"},
    {{"text", required_argument, NULL, OPTION_TEXT},
     "LIST",
     "states of the text: early (before the kernel patches itself), one (one processor), many, with commas "
     "(default: all)"},
    {{"jobs", required_argument, NULL, OPTION_JOBS}, "N", "threads (default: as many as processors)"},
    {{"sign-key", required_argument, NULL, OPTION_SIGN_KEY},
     "FILE",
     "secret key (nestor-cache keygen); unsigned files are for looking into only"},
    {{"output", required_argument, NULL, 'o'}, "FILE", "cache file to write"},
    {{"dump-ir", required_argument, NULL, OPTION_DUMP_IR}, "SYMBOL", "list the IR of a function (llvm)"},
    {{"dump-asm", required_argument, NULL, OPTION_DUMP_ASM},
     "SYMBOL",
     "list the guest and host code of a function"},
    {{"quiet", no_argument, NULL, OPTION_QUIET}, NULL, "no progress bar, no summary"},
    {{"help", no_argument, NULL, OPTION_HELP}, NULL, "print this help"},
};

static void print_help(const char *name) {
    printf("Usage: %s --kernel FILE --sign-key FILE -o FILE [OPTION]...\n"
           "Translate a kernel and its modules ahead of time into a cache file for nestor run --cache.\n\n",
           name);
    for (size_t i = 0; i < ARRAY_SIZE(table); i++) {
        char left[64];
        snprintf(left, sizeof left, "%s--%s%s%s", table[i].option.val == 'o' ? "-o, " : "",
                 table[i].option.name, table[i].value ? " " : "", table[i].value ? table[i].value : "");
        if (strlen(left) < 26)
            printf("  %-26s%s\n", left, table[i].help);
        else
            printf("  %s\n%28s%s\n", left, "", table[i].help);
    }
    printf("\nExit status: 0 done; 1 failure; 2 bad option. The manual is precompile-cache(1).\n");
}

void precompile_print_completion(FILE *file, const char *function, unsigned skip) {
    fprintf(file, "%s() {\n    local word=${COMP_WORDS[COMP_CWORD]}\n", function);
    fprintf(file, "    [ \"$COMP_CWORD\" -ge %u ] && COMPREPLY=($(compgen -f -W '", skip);
    for (size_t i = 0; i < ARRAY_SIZE(table); i++)
        fprintf(file, "--%s ", table[i].option.name);
    fprintf(file, "' -- \"$word\"))\n}\n");
}

static bool parse_text(const char *value, struct precompile_options *options, bool *many) {
    options->early = options->one_cpu = *many = false;
    while (*value) {
        size_t length = strcspn(value, ",");
        if (length == 5 && !strncmp(value, "early", 5))
            options->early = true;
        else if (length == 3 && !strncmp(value, "one", 3))
            options->one_cpu = true;
        else if (length == 4 && !strncmp(value, "many", 4))
            *many = true;
        else
            return false;
        value += length + (value[length] == ',');
    }
    return options->early || options->one_cpu || *many;
}

static int usage(const char *name, const char *format, const char *value) {
    char line[512];
    snprintf(line, sizeof line, format, value);
    diag_error("%s: %s; see %s --help", name, line, name);
    return PRECOMPILE_USAGE;
}

/* -1: go on; else the exit status. */
static int take_option(int code, char *value, struct precompile_options *options, const char *name) {
    char *end;
    bool many;
    switch (code) {
    case OPTION_KERNEL:
        options->kernel = value;
        return -1;
    case OPTION_MODULES:
        options->modules[options->module_count++] = value;
        return -1;
    case OPTION_INITRD:
        options->initrd = value;
        return -1;
    case OPTION_PROFILE:
        options->profiles[options->profile_count++] = value;
        return -1;
    case OPTION_PROFILED_ONLY:
        options->profiled_only = true;
        return -1;
    case OPTION_CODEGEN:
        options->all_functions = !strcmp(value, "llvm");
        /* No measurement says yet that LLVM's units win: auto is the template. */
        if (!strcmp(value, "template") || !strcmp(value, "auto"))
            options->functions = NULL;
        else if (!options->all_functions)
            return usage(name, "--codegen %s: give template, llvm or auto", value);
        else if (options->all_functions && !options->functions)
            return usage(name, "--codegen %s: the program precompile-cache has that generator", value);
        return -1;
    case OPTION_CPU:
        options->cpu = value;
        return -1;
    case OPTION_TEXT:
        if (!parse_text(value, options, &many))
            return usage(name, "--text %s: give early, one, many, with commas", value);
        return -1;
    case OPTION_JOBS:
        options->jobs = (unsigned)strtoul(value, &end, 10);
        if (*end || !*value || !options->jobs || options->jobs > JOBS_MAX)
            return usage(name, "--jobs %s: give a number from 1 to 256", value);
        return -1;
    case OPTION_SIGN_KEY:
        options->sign_key = value;
        return -1;
    case 'o':
        options->output = value;
        return -1;
    case OPTION_DUMP_IR:
        options->dump_ir = value;
        return -1;
    case OPTION_DUMP_ASM:
        options->dump_asm = value;
        return -1;
    case OPTION_QUIET:
        options->quiet = true;
        return -1;
    case OPTION_HELP:
        print_help(name);
        return PRECOMPILE_OK;
    default:
        return PRECOMPILE_USAGE;
    }
}

static int parse(int argc, char **argv, struct precompile_options *options, const char *name) {
    struct option long_options[ARRAY_SIZE(table) + 1] = {{0}};
    int code;
    for (size_t i = 0; i < ARRAY_SIZE(table); i++)
        long_options[i] = table[i].option;
    optind = 0;
    opterr = 0;
    while ((code = getopt_long(argc, argv, ":o:", long_options, NULL)) != -1) {
        if (code == '?')
            return usage(name, "option '%s' is not known", argv[optind - 1]);
        if (code == ':')
            return usage(name, "option '%s' needs a value", argv[optind - 1]);
        int status = take_option(code, optarg, options, name);
        if (status >= 0)
            return status;
    }
    if (optind < argc)
        return usage(name, "'%s' is no option", argv[optind]);
    if (!options->kernel)
        return usage(name, "a kernel is needed%s: --kernel FILE", "");
    if (!options->output)
        return usage(name, "an output file is needed%s: -o FILE", "");
    if (!options->all_functions)
        options->functions = NULL;
    if (options->dump_ir && !options->functions)
        return usage(name, "--dump-ir %s: only units of the LLVM generator have IR", options->dump_ir);
    if (options->profiled_only && !options->profile_count)
        return usage(name, "%s needs --profile FILE", "--profiled-only");
    return -1;
}

/* Linux's kernel code in 64-bit mode, as vcpu->mode has it once the processor is set up. */
static uint32_t kernel_mode(const struct cpu_model *model) {
    uint32_t mode = MODE_CODE_64 | MODE_CPL0 | MODE_STACK_32 | MODE_PROTECTED | MODE_LONG | MODE_FLAT |
                    MODE_FS_WIDE | MODE_GS_WIDE | MODE_IO_FREE | MODE_PAGING;
    if (model->has_pge)
        mode |= MODE_GLOBAL_PAGES;
    if (cpu_model_has(model, "fsgsbase"))
        mode |= MODE_FSGSBASE;
    if (!cpu_model_has(model, "avx"))
        mode |= MODE_AVX_UD;
    if (!cpu_model_has(model, "avx512f"))
        mode |= MODE_AVX512_UD;
    return mode;
}

static int open_inputs(struct precompile *p) {
    const struct precompile_options *options = p->options;
    int result = precompile_open_kernel(p, options->kernel);
    for (unsigned i = 0; i < options->module_count && !result; i++)
        result = precompile_add_modules(p, options->modules[i]);
    if (!result && options->initrd)
        result = precompile_add_initrd(p, options->initrd);
    for (unsigned i = 0; i < options->profile_count && !result; i++)
        result = precompile_read_profile(p, options->profiles[i]);
    return result;
}

static double now(void) {
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return (double)time.tv_sec + (double)time.tv_nsec * 1e-9;
}

static int write_file(struct precompile *p, double start) {
    struct ntc_secret_key key;
    struct ntc_writer_summary summary;
    struct ntc_error error = {0};
    const char *key_path = p->options->sign_key;
    int result = key_path ? ntc_key_read_secret(&key, key_path, &error) : 0;
    if (!result)
        result = ntc_writer_write(p->writer, p->options->output, key_path ? &key : NULL, &summary, &error);
    if (key_path)
        ntc_key_wipe(&key);
    if (result)
        diag_error("%s", error.line);
    else if (!p->options->quiet)
        summary_print(p, &summary, now() - start);
    return result;
}

static int run(const struct precompile_options *options) {
    struct precompile p = {
        .options = options, .lock = PTHREAD_MUTEX_INITIALIZER, .changed = PTHREAD_COND_INITIALIZER};
    char error[256];
    double start = now();
    int result = cpu_model_create(&p.model, options->cpu, 1, error, sizeof error);
    if (result) {
        diag_error("--cpu %s: %s", options->cpu, error);
        return PRECOMPILE_USAGE;
    }
    features_create(&p.features, &p.model);
    p.modes[p.mode_count++] = kernel_mode(&p.model);
    const struct ntc_writer_options writer = {.translator_abi = codegen_template.abi(),
                                              .translator_layout = codegen_template.layout(&p.model),
                                              .host_features = ntc_host_features(),
                                              .producer = "precompile-cache " NESTOR_VERSION,
                                              .likely_code = options->profile_count ? 0 : LIKELY_CODE};
    result = ntc_writer_create(&p.writer, &writer);
    if (result)
        diag_error("precompile-cache: out of memory");
    if (!result)
        result = open_inputs(&p);
    if (!result)
        result = precompile_work(&p);
    if (!result)
        result = write_file(&p, start);
    ntc_writer_destroy(p.writer);
    precompile_close_inputs(&p);
    return result ? PRECOMPILE_FAILED : PRECOMPILE_OK;
}

int precompile_command(int argc, char **argv, const char *name, const struct codegen *llvm) {
    long processors = sysconf(_SC_NPROCESSORS_ONLN);
    struct precompile_options options = {.cpu = "host",
                                         .early = true,
                                         .one_cpu = true,
                                         .functions = llvm,
                                         .jobs = processors < 1                ? 1
                                                 : processors > (long)JOBS_MAX ? JOBS_MAX
                                                                               : (unsigned)processors};
    /* getopt_long() wants the command's name in front. */
    char **words = calloc((size_t)argc + 2, sizeof *words);
    options.modules = calloc((size_t)argc + 1, sizeof *options.modules);
    options.profiles = calloc((size_t)argc + 1, sizeof *options.profiles);
    int status = PRECOMPILE_FAILED;
    if (words && options.modules && options.profiles) {
        words[0] = (char *)name;
        memcpy(words + 1, argv, (size_t)argc * sizeof *words);
        status = parse(argc + 1, words, &options, name);
        if (status < 0)
            status = run(&options);
    } else {
        diag_error("%s: out of memory", name);
    }
    free(words);
    free(options.modules);
    free(options.profiles);
    return status;
}
