/* The `nestor` program: commands and what is common to them. */
#define _GNU_SOURCE
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "base/diag.h"
#include "nestor-cache/command.h"
#include "options.h"
#include "precompile-cache/precompile.h"
#include "run.h"
#include "signals.h"

/* A closed standard stream would let the first file that is opened take its number, and messages go there. */
static void keep_standard_streams(void) {
    int fd;
    do
        fd = open("/dev/null", O_RDWR);
    while (fd >= 0 && fd <= STDERR_FILENO);
    if (fd >= 0)
        close(fd);
}

static int finish_output(void) {
    if (!fflush(stdout) && !ferror(stdout))
        return EXIT_CODE_OK;
    diag_error("standard output cannot be written");
    return EXIT_CODE_FAILURE;
}

/* The program precompile-cache beside this one has the generator through LLVM, which VMs have no use for.
 * Returns where there is none: then this program does what it can. */
static void exec_precompile(char **argv) {
    char path[4096];
    ssize_t length = readlink("/proc/self/exe", path, sizeof path);
    char *slash = length > 0 ? memrchr(path, '/', (size_t)length) : NULL;
    static const char name[] = "precompile-cache";
    if (!slash || (size_t)(slash - path) + 1 + sizeof name > sizeof path)
        return;
    memcpy(slash + 1, name, sizeof name);
    argv[1] = argv[0];
    execv(path, argv + 1);
    argv[1] = (char *)name;
}

int main(int argc, char **argv) {
    const char *command = argc > 1 ? argv[1] : NULL;
    keep_standard_streams();
    if (!command) {
        help_print_program(stderr);
        return EXIT_CODE_USAGE;
    }
    if (!strcmp(command, "run")) {
        signal_watch_block();
        int code = run_command(argc - 2, argv + 2);
        int output = finish_output();
        return code ? code : output;
    }
    if (!strcmp(command, "cache")) {
        /* A file-size limit is an error of the write, told like a full disk. */
        signal(SIGXFSZ, SIG_IGN);
        int code = cache_command(argc - 2, argv + 2, "nestor cache");
        int output = finish_output();
        return code ? code : output;
    }
    if (!strcmp(command, "precompile-cache")) {
        signal(SIGXFSZ, SIG_IGN);
        exec_precompile(argv);
        int code = precompile_command(argc - 2, argv + 2, "nestor precompile-cache", NULL);
        int output = finish_output();
        return code ? code : output;
    }
    if (!strcmp(command, "--help") || !strcmp(command, "-h") || !strcmp(command, "help")) {
        help_print_program(stdout);
        return finish_output();
    }
    if (!strcmp(command, "--version") || !strcmp(command, "-V")) {
        puts("nestor " NESTOR_VERSION);
        return finish_output();
    }
    if (!strcmp(command, "completion")) {
        if (argc != 3 || strcmp(argv[2], "bash")) {
            diag_error("completion: give the shell: nestor completion bash");
            return EXIT_CODE_USAGE;
        }
        help_print_bash_completion(stdout);
        return finish_output();
    }
    diag_error("command '%s' is not known; the commands are run, cache, precompile-cache and completion, see "
               "nestor --help",
               command);
    return EXIT_CODE_USAGE;
}
