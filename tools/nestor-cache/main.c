/* The program nestor-cache: what `nestor cache` does, by itself, for an image pipeline that has no VM. */
#include "nestor-cache/command.h"

#include <signal.h>
#include <string.h>

#include "base/diag.h"

int main(int argc, char **argv) {
    int status;
    /* A file-size limit is an error of the write, told like a full disk. */
    signal(SIGXFSZ, SIG_IGN);
    if (argc > 1 && (!strcmp(argv[1], "--version") || !strcmp(argv[1], "-V"))) {
        puts("nestor-cache " NESTOR_VERSION);
        status = CACHE_OK;
    } else if (argc == 3 && !strcmp(argv[1], "completion") && !strcmp(argv[2], "bash")) {
        puts("# bash completion of nestor-cache: source it, or install it as completions/nestor-cache.");
        cache_print_completion(stdout, "_nestor_cache", 1);
        puts("complete -o filenames -F _nestor_cache nestor-cache");
        status = CACHE_OK;
    } else {
        status = cache_command(argc - 1, argv + 1, "nestor-cache");
    }
    if (!fflush(stdout) && !ferror(stdout))
        return status;
    diag_error("standard output cannot be written");
    return status ? status : CACHE_FAILED;
}
