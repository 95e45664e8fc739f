/* `nestor run`: from options to a running machine.
 *
 * Order matters. main() has blocked the signals to watch; the terminal's keeper starts while this process is
 * small; the machine opens its files; the terminal turns raw last. */
#include "run.h"

#include <errno.h>
#include <limits.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/diag.h"
#include "host_memory.h"
#include "options.h"
#include "run_machine.h"
#include "terminal.h"

/* Two names of one file? A file that is not there is somebody else's to complain of. */
static bool is_same_file(const char *one, const char *other) {
    struct stat a, b;
    return !strcmp(one, other) ||
           (!stat(one, &a) && !stat(other, &b) && a.st_dev == b.st_dev && a.st_ino == b.st_ino);
}

/* Mistakes that no single option shows. */
static int check_config(const struct vm_config *vm) {
    if (!vm->kernel) {
        diag_error("nothing to boot; give --kernel FILE");
        return -EINVAL;
    }
    for (size_t i = 0; i < vm->disk_count; i++) {
        for (size_t j = 0; j < i; j++) {
            const char *first = vm->disk[j].file, *second = vm->disk[i].file;
            if (!is_same_file(first, second) || (vm->disk[i].readonly && vm->disk[j].readonly))
                continue;
            if (strcmp(first, second))
                diag_error(
                    "--disk '%s' and --disk '%s' are one file; give it once, or readonly=on both times",
                    first, second);
            else
                diag_error("--disk '%s' is given twice; give it once, or readonly=on both times", first);
            return -EINVAL;
        }
    }
    return 0;
}

/* What is written at the end is looked at before the start: a day's counters shall not be lost to a typing
 * mistake. A regular file is replaced by a new one beside it; `into` says that other kinds are written into.
 */
static int check_output(const char *option, const char *path, bool into) {
    char directory[PATH_MAX];
    struct stat status;
    const char *slash = strrchr(path, '/');
    bool there = !stat(path, &status);
    int error = there && S_ISDIR(status.st_mode) ? EISDIR : 0;
    if (!error && there && !S_ISREG(status.st_mode)) {
        if (into && !access(path, W_OK))
            return 0;
        error = into ? errno : EINVAL;
    }
    int length = slash ? snprintf(directory, sizeof directory, "%.*s", (int)(slash - path) + 1, path)
                       : snprintf(directory, sizeof directory, ".");
    if (!error && (size_t)length >= sizeof directory)
        error = ENAMETOOLONG;
    if (!error && access(directory, W_OK | X_OK))
        error = errno;
    if (!error)
        return 0;
    diag_error("--%s: '%s' cannot be written: %s; give a path in a writable directory", option, path,
               error == EINVAL ? "it is not a regular file" : strerror(error));
    return -error;
}

static int check_outputs(const struct vm_config *vm) {
    if (vm->stats && strcmp(vm->stats, "-") && check_output("stats", vm->stats, true))
        return -EINVAL;
    if (vm->record_cache && check_output("record-cache", vm->record_cache, false))
        return -EINVAL;
    return vm->record_profile ? check_output("record-profile", vm->record_profile, false) : 0;
}

/* Standard input and output have one user: the console if it was asked for, else the serial port. */
static int share_stdio(struct run_options *options) {
    struct vm_config *vm = &options->vm;
    if (vm->console.kind != VM_SERIAL_STDIO || vm->serial.kind != VM_SERIAL_STDIO)
        return 0;
    if (options->serial_given) {
        diag_error("--serial stdio and --console stdio share one terminal; send one of them elsewhere");
        return -EINVAL;
    }
    vm->serial.kind = VM_SERIAL_NONE;
    return 0;
}

/* The store of cache files is served by a process of this same program. */
static void name_broker(struct vm_config *vm) {
    static char self[PATH_MAX];
    static const char *const broker[] = {self, "cache", "broker", NULL};
    ssize_t length = readlink("/proc/self/exe", self, sizeof self - 1);
    if (length <= 0)
        return; /* no /proc: a store that runs is used, none is started */
    self[length] = 0;
    vm->cache_broker = broker;
}

static bool uses_stdio(const struct vm_config *vm) {
    return vm->serial.kind == VM_SERIAL_STDIO || vm->console.kind == VM_SERIAL_STDIO;
}

int run_command(int argc, char **argv) {
    struct run_options options;
    int code = EXIT_CODE_USAGE;
    if (run_options_parse(&options, argc, argv))
        goto out;
    if (options.help) {
        help_print_run(stdout);
        code = EXIT_CODE_OK;
        goto out;
    }
    if (check_config(&options.vm) || share_stdio(&options))
        goto out;
    name_broker(&options.vm);
    code = EXIT_CODE_FAILURE;
    if (check_outputs(&options.vm) || host_memory_check(options.vm.memory, options.vm.prealloc))
        goto out;
    if (uses_stdio(&options.vm) && terminal_guard())
        goto out;
    code = run_machine(&options.vm);
    terminal_restore();
out:
    run_options_destroy(&options);
    return code;
}
