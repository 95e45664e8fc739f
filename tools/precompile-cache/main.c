/* The program precompile-cache: what `nestor precompile-cache` does, by itself, for an image pipeline without
 * a VM. */
#include "precompile-cache/precompile.h"

#include <signal.h>
#include <stdio.h>
#include <string.h>

#include "base/diag.h"
#include "sbt/llvm.h"

int main(int argc, char **argv) {
    int status = PRECOMPILE_OK;
    /* A file-size limit is an error of the write, told like a full disk. */
    signal(SIGXFSZ, SIG_IGN);
    if (argc == 2 && (!strcmp(argv[1], "--version") || !strcmp(argv[1], "-V"))) {
        puts("precompile-cache " NESTOR_VERSION);
    } else if (argc == 3 && !strcmp(argv[1], "completion") && !strcmp(argv[2], "bash")) {
        puts("# bash completion of precompile-cache: source it, or install it as "
             "completions/precompile-cache.");
        precompile_print_completion(stdout, "_precompile_cache", 1);
        puts("complete -o filenames -F _precompile_cache precompile-cache");
    } else {
        status = precompile_command(argc - 1, argv + 1, "precompile-cache", &codegen_llvm);
    }
    if (!fflush(stdout) && !ferror(stdout))
        return status;
    diag_error("standard output cannot be written");
    return status ? status : PRECOMPILE_FAILED;
}
