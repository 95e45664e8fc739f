/* Help texts and shell completion, made from the option table. */
#include <string.h>

#include "nestor-cache/command.h"
#include "options.h"
#include "precompile-cache/precompile.h"

#define HELP_COLUMN 28

void help_print_run(FILE *out) {
    fputs("Usage: nestor run --kernel FILE [OPTION]...\n"
          "Run a virtual machine. It ends when the guest powers off.\n\n",
          out);
    for (size_t i = 0; i < run_option_count; i++) {
        const struct option *option = &run_option_table[i];
        int width = fprintf(out, "  --%s%s%s", option->name, option->argument ? " " : "",
                            option->argument ? option->argument : "");
        if (width > HELP_COLUMN - 2) {
            fputc('\n', out);
            width = 0;
        }
        fprintf(out, "%*s%s%s\n", HELP_COLUMN - width, "", option->help,
                option->is_repeatable ? " (may be repeated)" : "");
    }
    fputs("\nWith --serial or --console stdio on a terminal, Ctrl-A x leaves and Ctrl-A h lists the keys.\n"
          "Exit status: 0 power-off; 1 failure; 2 bad option; 3 triple fault; (V << 1) | 1 debug exit;\n"
          "128 + N ended by signal N. The manual is nestor-run(1).\n",
          out);
}

void help_print_program(FILE *out) {
    fputs("Usage: nestor COMMAND [OPTION]...\n"
          "Virtual machines without virtualisation hardware.\n\n"
          "  nestor run --kernel FILE ...  run a virtual machine; see nestor run --help\n"
          "  nestor cache COMMAND ...      look into cache files of translated code and change them\n"
          "  nestor precompile-cache ...   translate a kernel ahead of time into a cache file\n"
          "  nestor completion bash        print completions for bash to source\n"
          "  nestor --help                 print this help\n"
          "  nestor --version              print the version\n\n"
          "The manual is nestor(1).\n",
          out);
}

static void print_cases(FILE *out) {
    for (size_t i = 0; i < run_option_count; i++) {
        const struct option *option = &run_option_table[i];
        if (!option->argument)
            continue;
        fprintf(out, "    --%s) ", option->name);
        if (option->choices && !strcmp(option->choices, "file:")) {
            fputs("COMPREPLY=($(compgen -f -- \"$cur\"));;\n", out);
        } else if (option->choices) {
            fputs("COMPREPLY=($(compgen -W '", out);
            for (const char *c = option->choices; *c; c++)
                fputc(*c == ',' ? ' ' : *c, out);
            fputs("' -- \"$cur\"));;\n", out);
        } else {
            fputs("COMPREPLY=();;\n", out);
        }
    }
}

void help_print_bash_completion(FILE *out) {
    fputs("# bash completion of nestor: source it, or install it as completions/nestor.\n", out);
    cache_print_completion(out, "_nestor_cache_words", 2);
    precompile_print_completion(out, "_nestor_precompile_words", 2);
    fputs(
        "_nestor() {\n"
        "  local cur=${COMP_WORDS[COMP_CWORD]} prev=${COMP_WORDS[COMP_CWORD-1]}\n"
        "  if [ \"$COMP_CWORD\" = 1 ]; then\n"
        "    COMPREPLY=($(compgen -W 'run cache precompile-cache completion --help --version' -- \"$cur\"))\n"
        "    return\n"
        "  fi\n"
        "  if [ \"${COMP_WORDS[1]}\" = cache ]; then\n"
        "    _nestor_cache_words\n"
        "    return\n"
        "  fi\n"
        "  if [ \"${COMP_WORDS[1]}\" = precompile-cache ]; then\n"
        "    _nestor_precompile_words\n"
        "    return\n"
        "  fi\n"
        "  if [ \"${COMP_WORDS[1]}\" = completion ]; then\n"
        "    COMPREPLY=($(compgen -W 'bash' -- \"$cur\"))\n"
        "    return\n"
        "  fi\n"
        "  case $prev in\n",
        out);
    print_cases(out);
    fputs("    *) COMPREPLY=($(compgen -W '", out);
    for (size_t i = 0; i < run_option_count; i++)
        fprintf(out, "%s--%s", i ? " " : "", run_option_table[i].name);
    fputs("' -- \"$cur\"));;\n"
          "  esac\n"
          "}\n"
          "complete -o filenames -F _nestor nestor\n",
          out);
}
