/* `nestor run`: from options to a running machine.
 *
 * Order matters. main() has blocked the signals to watch; the terminal's keeper starts while this process is
 * small; the machine opens its files; the terminal turns raw last. */
#include "run.h"

#include <errno.h>
#include <limits.h>
#include <string.h>
#include <unistd.h>

#include "base/diag.h"
#include "host_memory.h"
#include "options.h"
#include "run_machine.h"
#include "terminal.h"

/* Mistakes that no single option shows. */
static int check_config(const struct vm_config *vm) {
    if (!vm->kernel) {
        diag_error("nothing to boot; give --kernel FILE");
        return -EINVAL;
    }
    for (size_t i = 0; i < vm->disk_count; i++) {
        for (size_t j = 0; j < i; j++) {
            if (!strcmp(vm->disk[i].file, vm->disk[j].file) &&
                !(vm->disk[i].readonly && vm->disk[j].readonly)) {
                diag_error("--disk '%s' is given twice; give it once, or readonly=on both times",
                           vm->disk[i].file);
                return -EINVAL;
            }
        }
    }
    return 0;
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
    if (host_memory_check(options.vm.memory, options.vm.prealloc))
        goto out;
    if (uses_stdio(&options.vm) && terminal_guard())
        goto out;
    code = run_machine(&options.vm);
    terminal_restore();
out:
    run_options_destroy(&options);
    return code;
}
