/* The tables of commands and options, the command line's parser, help and completion. */
#define _GNU_SOURCE
#include "nestor-cache/command.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/diag.h"

static const struct command {
    const char *name, *arguments, *help;
    int (*run)(const struct cache_options *options);
    int least, most; /* arguments */
    unsigned options, required;
    bool hidden;
} commands[] = {
    {"keygen", "--out KEY", "make a signing key KEY and its public half KEY.pub", cache_keygen, 0, 0, OPT_OUT,
     OPT_OUT, false},
    {"info", "FILE...", "what a cache file is: version, signer, images, sections", cache_info, 1, 1000,
     OPT_JSON | OPT_TRUST, 0, false},
    {"ls", "FILE", "list its units", cache_ls, 1, 1, OPT_JSON | OPT_IMAGE, 0, false},
    {"show", "FILE SYMBOL|ADDRESS", "guest code, host code and IR of a unit, side by side", cache_show, 2, 2,
     OPT_JSON | OPT_IMAGE, 0, false},
    {"verify", "FILE...", "check every byte and record, and who signed", cache_verify, 1, 1000,
     OPT_JSON | OPT_TRUST | OPT_NO_SIGNATURE, 0, false},
    {"diff", "FILE FILE", "what differs between two cache files; exit status 1 if anything does", cache_diff,
     2, 2, OPT_JSON, 0, false},
    {"stats", "FILE...", "sizes and counts", cache_stats, 1, 1000, OPT_JSON, 0, false},
    {"merge", "--out FILE FILE...", "fold several files into one; earlier ones win", cache_merge, 1, 1000,
     OPT_JSON | OPT_OUT | OPT_SIGN_KEY | OPT_TRUST | OPT_UNSIGNED, OPT_OUT, false},
    {"gc", "--out FILE --profile FILE FILE", "drop the units that a profile never saw", cache_gc, 1, 1,
     OPT_JSON | OPT_OUT | OPT_SIGN_KEY | OPT_PROFILE | OPT_TRUST | OPT_UNSIGNED, OPT_OUT | OPT_PROFILE,
     false},
    {"sign", "--sign-key KEY [--out FILE] FILE", "sign a file", cache_sign, 1, 1, OPT_OUT | OPT_SIGN_KEY,
     OPT_SIGN_KEY, false},
    {"store", "[stop]", "what this host's store shares between VMs; stop: end it", cache_store, 0, 1,
     OPT_JSON | OPT_DIRECTORY, 0, false},
    {"broker", "", "run the store (VMs start it by themselves)", cache_broker, 0, 0, OPT_DIRECTORY | OPT_IDLE,
     0, true},
};

static const struct option {
    const char *name, *argument, *help;
    unsigned bit;
    const char *complete; /* "file", or NULL */
} options_table[] = {
    {"json", NULL, "print JSON", OPT_JSON, NULL},
    {"out", "FILE", "file to write (also -o); replaced whole or left alone", OPT_OUT, "file"},
    {"sign-key", "KEY", "secret key to sign with", OPT_SIGN_KEY, "file"},
    {"trust", "FILE|DIR", "trusted public keys; may be repeated (default: the user's trust.d)", OPT_TRUST,
     "file"},
    {"image", "NAME", "only units of this image", OPT_IMAGE, NULL},
    {"profile", "FILE", "profile of what was used; may be repeated", OPT_PROFILE, "file"},
    {"no-signature", NULL, "do not ask who signed", OPT_NO_SIGNATURE, NULL},
    {"unsigned", NULL, "write without a signature", OPT_UNSIGNED, NULL},
    {"dir", "DIR", "the store's directory (default: $XDG_RUNTIME_DIR/nestor)", OPT_DIRECTORY, "file"},
    {"idle", "SECONDS", "end when nobody asked for so long (default: 900)", OPT_IDLE, NULL},
};

/* Options of the commands that people type. */
static unsigned shown_options(void) {
    unsigned bits = 0;
    for (size_t i = 0; i < ARRAY_SIZE(commands); i++)
        bits |= commands[i].hidden ? 0 : commands[i].options;
    return bits;
}

static void print_help(FILE *out, const char *program) {
    fprintf(out,
            "Usage: %s COMMAND [OPTION]... [FILE]...\nLook into cache files of translated code (.ntc) and "
            "change them.\n\n",
            program);
    for (size_t i = 0; i < ARRAY_SIZE(commands); i++)
        if (!commands[i].hidden)
            fprintf(out, "  %s %s\n        %s\n", commands[i].name, commands[i].arguments, commands[i].help);
    fputs("\n", out);
    for (size_t i = 0; i < ARRAY_SIZE(options_table); i++) {
        if (!(options_table[i].bit & shown_options()))
            continue;
        int width = fprintf(out, "  --%s%s%s", options_table[i].name, options_table[i].argument ? " " : "",
                            options_table[i].argument ? options_table[i].argument : "");
        fprintf(out, "%*s%s\n", 24 - width, "", options_table[i].help);
    }
    fputs("\nExit status: 0 done; 1 failed, refused or different; 2 bad option. The manual is "
          "nestor-cache(1).\n",
          out);
}

static const struct command *find_command(const char *name) {
    for (size_t i = 0; i < ARRAY_SIZE(commands); i++)
        if (!strcmp(name, commands[i].name))
            return &commands[i];
    return NULL;
}

static int refuse(const char *what, const char *name, const char *why) {
    diag_error("%s '%s' %s", what, name, why);
    return -EINVAL;
}

static int append(const char *option, const char **list, unsigned *count, const char *value) {
    if (*count == CACHE_LIST_MAX)
        return refuse("option", option, "is given too often");
    list[(*count)++] = value;
    return 0;
}

static int set_option(struct cache_options *options, const struct option *option, const char *value) {
    switch (option->bit) {
    case OPT_JSON:
        options->json = true;
        return 0;
    case OPT_NO_SIGNATURE:
        options->no_signature = true;
        return 0;
    case OPT_UNSIGNED:
        options->is_unsigned = true;
        return 0;
    case OPT_OUT:
        options->out = value;
        return 0;
    case OPT_SIGN_KEY:
        options->sign_key = value;
        return 0;
    case OPT_IMAGE:
        options->image = value;
        return 0;
    case OPT_DIRECTORY:
        options->directory = value;
        return 0;
    case OPT_TRUST:
        return append("--trust", options->trust, &options->trusts, value);
    case OPT_PROFILE:
        return append("--profile", options->profile, &options->profiles, value);
    default: {
        char *end;
        unsigned long seconds = strtoul(value, &end, 10);
        if (*end || end == value || *value == '-' || seconds > 1000000)
            return refuse("--idle", value, "is not a number of seconds");
        options->idle_seconds = (unsigned)seconds;
        return 0;
    }
    }
}

static const struct option *find_option(const struct command *command, const char *name, size_t length) {
    for (size_t i = 0; i < ARRAY_SIZE(options_table); i++)
        if (command->options & options_table[i].bit && strlen(options_table[i].name) == length &&
            !strncmp(name, options_table[i].name, length))
            return &options_table[i];
    return NULL;
}

/* Options may stand anywhere; behind "--" there are none. Arguments are moved to the front of argv. */
static int parse(struct cache_options *options, const struct command *command, int argc, char **argv,
                 unsigned *given) {
    bool only_arguments = false;
    options->argument = argv;
    for (int at = 0; at < argc; at++) {
        char *word = argv[at];
        const char *value = NULL, *name = word + 2;
        if (only_arguments || word[0] != '-' || !word[1]) {
            options->argument[options->arguments++] = word;
            continue;
        }
        if (!strcmp(word, "--")) {
            only_arguments = true;
            continue;
        }
        if (!strcmp(word, "-o"))
            name = "out";
        else if (word[1] != '-')
            return refuse("option", word, "is not known");
        const char *equals = strchr(name, '=');
        const struct option *option =
            find_option(command, name, equals ? (size_t)(equals - name) : strlen(name));
        if (!option) {
            diag_error("option '%s' is not one of %s; see --help", word, command->name);
            return -EINVAL;
        }
        if (!option->argument && equals)
            return refuse("option", word, "takes no value");
        if (option->argument) {
            value = equals ? equals + 1 : at + 1 < argc ? argv[++at] : NULL;
            if (!value)
                return refuse("option", word, "needs a value");
        }
        *given |= option->bit;
        int result = set_option(options, option, value);
        if (result)
            return result;
    }
    return 0;
}

static int check_count(const struct command *command, const struct cache_options *options, unsigned given) {
    for (size_t i = 0; i < ARRAY_SIZE(options_table); i++) {
        if (command->required & options_table[i].bit && !(given & options_table[i].bit)) {
            diag_error("%s needs --%s %s", command->name, options_table[i].name, options_table[i].argument);
            return -EINVAL;
        }
    }
    if (options->arguments >= command->least && options->arguments <= command->most)
        return 0;
    diag_error("usage: %s %s %s", options->program, command->name, command->arguments);
    return -EINVAL;
}

int cache_command(int argc, char **argv, const char *program) {
    struct cache_options options = {.program = program, .idle_seconds = 900};
    unsigned given = 0;
    if (!argc) {
        print_help(stderr, program);
        return CACHE_USAGE;
    }
    for (int i = 0; i < argc && strcmp(argv[i], "--"); i++) {
        if (!strcmp(argv[i], "--help") || !strcmp(argv[i], "-h") || (!i && !strcmp(argv[i], "help"))) {
            print_help(stdout, program);
            return CACHE_OK;
        }
    }
    const struct command *command = find_command(argv[0]);
    if (!command) {
        diag_error("command '%s' is not known; see %s --help", argv[0], program);
        return CACHE_USAGE;
    }
    if (parse(&options, command, argc - 1, argv + 1, &given) || check_count(command, &options, given))
        return CACHE_USAGE;
    return command->run(&options);
}

void cache_print_command_names(FILE *out) {
    for (size_t i = 0; i < ARRAY_SIZE(commands); i++)
        if (!commands[i].hidden)
            fprintf(out, "%s ", commands[i].name);
}

void cache_print_completion(FILE *out, const char *function, unsigned first) {
    fprintf(out,
            "%s() {\n"
            "  local cur=${COMP_WORDS[COMP_CWORD]} prev=${COMP_WORDS[COMP_CWORD-1]} options=\n"
            "  if [ \"$COMP_CWORD\" = %u ]; then\n"
            "    COMPREPLY=($(compgen -W '",
            function, first);
    cache_print_command_names(out);
    fprintf(out, "--help' -- \"$cur\"))\n"
                 "    return\n"
                 "  fi\n"
                 "  case $prev in\n");
    for (size_t i = 0; i < ARRAY_SIZE(options_table); i++)
        if (options_table[i].argument)
            fprintf(out, "    --%s%s) COMPREPLY=(%s); return;;\n", options_table[i].name,
                    options_table[i].bit == OPT_OUT ? "|-o" : "",
                    options_table[i].complete ? "$(compgen -f -- \"$cur\")" : "");
    fprintf(out, "  esac\n  case ${COMP_WORDS[%u]} in\n", first);
    for (size_t i = 0; i < ARRAY_SIZE(commands); i++) {
        fprintf(out, "    %s) options='", commands[i].name);
        for (size_t j = 0; j < ARRAY_SIZE(options_table); j++)
            if (commands[i].options & options_table[j].bit)
                fprintf(out, "--%s ", options_table[j].name);
        fputs("';;\n", out);
    }
    fputs("  esac\n"
          "  case $cur in\n"
          "    -*) COMPREPLY=($(compgen -W \"$options\" -- \"$cur\"));;\n"
          "    *) COMPREPLY=($(compgen -f -- \"$cur\"));;\n"
          "  esac\n"
          "}\n",
          out);
}
