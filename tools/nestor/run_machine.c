/* Threads: this one waits in machine_run(); the lines of characters, the signal watch and the machine's own
 * threads call in. Everything they reach is made before they start and goes after they ended. */
#include "run_machine.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "base/diag.h"
#include "machine/machine.h"
#include "options.h"
#include "sandbox.h"
#include "serial.h"
#include "signals.h"
#include "stats_file.h"
#include "terminal.h"

struct run;

/* A character device: its host end, and the way into its guest end. */
struct line {
    struct run *run;
    struct serial_port *port;
    size_t (*receive)(struct machine *machine, const uint8_t *bytes, size_t count);
};

struct run {
    const struct vm_config *config;
    struct machine *machine;
    struct line serial, console;
    struct signal_watch *watch;
    int stop_code; /* set before machine_stop() */
};

/* path NULL: standard error. */
static void write_counters(struct run *run, const char *path) {
    cJSON *tree = machine_counters(run->machine);
    if (!tree) {
        diag_error("--stats: out of memory");
        return;
    }
    if (path)
        (void)stats_file_write(path, tree); /* it has told */
    else
        stats_file_tell(tree);
    cJSON_Delete(tree);
}

/* -- lines, guest side -- */

static void serial_wrote(void *context, const uint8_t *bytes, size_t count) {
    struct run *run = context;
    serial_port_send(run->serial.port, bytes, count);
}

static void serial_ready(void *context) {
    struct run *run = context;
    serial_port_resume(run->serial.port);
}

static void console_wrote(void *context, const uint8_t *bytes, size_t count) {
    struct run *run = context;
    serial_port_send(run->console.port, bytes, count);
}

static void console_ready(void *context) {
    struct run *run = context;
    serial_port_resume(run->console.port);
}

/* -- lines, host side -- */

static size_t host_sent(void *context, const uint8_t *bytes, size_t count) {
    struct line *line = context;
    return line->receive(line->run->machine, bytes, count);
}

static void end_run(struct run *run, int code) {
    run->stop_code = code;
    serial_port_abandon(run->serial.port);
    serial_port_abandon(run->console.port);
    machine_stop(run->machine);
}

/* False if that only woke the guest. */
static bool press_power_button(struct run *run) {
    switch (machine_power_button(run->machine)) {
    case MACHINE_BUTTON_UNHEARD:
        diag_warn("the guest does not listen to its power button; once more stops it hard");
        break;
    case MACHINE_BUTTON_HEARD:
        break;
    case MACHINE_BUTTON_WOKE:
        diag_warn("the guest slept and is woken; once more asks it to power off");
        return false;
    }
    return true;
}

static void host_key(void *context, enum serial_key key) {
    struct run *run = ((struct line *)context)->run;
    switch (key) {
    case SERIAL_KEY_LEAVE:
        end_run(run, EXIT_CODE_OK);
        break;
    case SERIAL_KEY_COUNTERS:
        write_counters(run, NULL);
        break;
    case SERIAL_KEY_POWER:
        (void)press_power_button(run);
        break;
    }
}

/* -- signals -- */

static bool on_power_button(void *context) {
    return press_power_button(context);
}

static void on_stop(void *context, int exit_code) {
    end_run(context, exit_code);
}

static void on_counters(void *context) {
    struct run *run = context;
    write_counters(run, run->config->stats ? run->config->stats : "-");
}

static void on_resized(void *context) {
    struct run *run = context;
    uint16_t columns, rows;
    if (run->config->console.kind == VM_SERIAL_STDIO && terminal_size(&columns, &rows))
        machine_console_resize(run->machine, columns, rows);
}

static int exit_code_of(const struct run *run, const struct machine_outcome *outcome) {
    switch (outcome->end) {
    case MACHINE_POWERED_OFF:
    case MACHINE_RESET:
        return EXIT_CODE_OK;
    case MACHINE_DEBUG_EXIT:
        return (int)((outcome->value << 1 | 1) & 0xff);
    case MACHINE_TRIPLE_FAULT:
        return EXIT_CODE_TRIPLE_FAULT;
    case MACHINE_STOPPED:
        return run->stop_code;
    case MACHINE_FAILED:
        break;
    }
    return EXIT_CODE_FAILURE;
}

static void lock_process(const struct run *run) {
    const struct vm_config *config = run->config;
    pid_t traced[VM_MAX_CPUS];
    struct sandbox_needs needs = {.writes_files = config->record_cache || config->record_profile ||
                                                  (config->stats && strcmp(config->stats, "-")),
                                  .traced = traced,
                                  .traced_count = machine_processes(run->machine, traced)};
    for (size_t i = 0; i < config->net_count; i++)
        needs.network |= config->net[i].kind == VM_NET_USER;
    sandbox_lock(&needs);
}

static int start_line(struct line *line, const char *option, const struct vm_serial_config *config) {
    static const struct serial_client client = {.receive = host_sent, .key = host_key};
    int result = serial_port_create(&line->port, option, config);
    return result ? result : serial_port_start(line->port, &client, line);
}

static void end_line(struct line *line) {
    serial_port_destroy(line->port);
    line->port = NULL;
}

int run_machine(const struct vm_config *config) {
    static const struct signal_actions actions = {
        .power_button = on_power_button, .stop = on_stop, .counters = on_counters, .resized = on_resized};
    struct run run = {.config = config, .stop_code = EXIT_CODE_FAILURE};
    run.serial = (struct line){.run = &run, .receive = machine_serial_receive};
    run.console = (struct line){.run = &run, .receive = machine_console_receive};
    const struct machine_host host = {.serial_write = serial_wrote,
                                      .serial_ready = serial_ready,
                                      .console_write = console_wrote,
                                      .console_ready = console_ready,
                                      .context = &run};
    int code = EXIT_CODE_FAILURE;
    vm_set_crash_hook(terminal_restore);
    if (config->sandbox)
        sandbox_shed_privileges();
    if (machine_create(&run.machine, config, &host))
        return code;
    if (start_line(&run.serial, "serial", &config->serial) ||
        start_line(&run.console, "console", &config->console) ||
        signal_watch_start(&run.watch, &actions, &run))
        goto end_lines;
    on_resized(&run);

    if (config->sandbox)
        lock_process(&run);
    struct machine_outcome outcome;
    machine_run(run.machine, &outcome);
    code = exit_code_of(&run, &outcome);
    signal_watch_stop(run.watch);
    if (config->stats)
        write_counters(&run, config->stats);
end_lines:
    end_line(&run.console);
    end_line(&run.serial);
    machine_destroy(run.machine);
    return code;
}
