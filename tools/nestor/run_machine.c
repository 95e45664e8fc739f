/* Threads: this one waits in machine_run(); the serial port, the signal watch and the machine's own threads
 * call in. Everything they reach is made before they start and goes after they ended. */
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

struct run {
    const struct vm_config *config;
    struct machine *machine;
    struct serial_port *serial;
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
    if (path ? stats_file_write(path, tree) : stats_file_tell(tree))
        diag_warn("the counters were not written");
    cJSON_Delete(tree);
}

/* -- serial port, guest side -- */

static void guest_wrote(void *context, const uint8_t *bytes, size_t count) {
    struct run *run = context;
    serial_port_send(run->serial, bytes, count);
}

static void guest_ready(void *context) {
    struct run *run = context;
    serial_port_resume(run->serial);
}

/* -- serial port, host side -- */

static size_t host_sent(void *context, const uint8_t *bytes, size_t count) {
    struct run *run = context;
    return machine_serial_receive(run->machine, bytes, count);
}

static void end_run(struct run *run, int code) {
    run->stop_code = code;
    serial_port_abandon(run->serial);
    machine_stop(run->machine);
}

static void press_power_button(struct run *run) {
    if (!machine_power_button(run->machine))
        diag_warn("the guest does not listen to its power button; once more stops it hard");
}

static void host_key(void *context, enum serial_key key) {
    struct run *run = context;
    switch (key) {
    case SERIAL_KEY_LEAVE:
        end_run(run, EXIT_CODE_OK);
        break;
    case SERIAL_KEY_COUNTERS:
        write_counters(run, NULL);
        break;
    case SERIAL_KEY_POWER:
        press_power_button(run);
        break;
    }
}

/* -- signals -- */

static void on_power_button(void *context) {
    press_power_button(context);
}

static void on_stop(void *context, int exit_code) {
    end_run(context, exit_code);
}

static void on_counters(void *context) {
    struct run *run = context;
    write_counters(run, run->config->stats ? run->config->stats : "-");
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

static void lock_process(const struct vm_config *config) {
    struct sandbox_needs needs = {.writes_files = config->stats && strcmp(config->stats, "-")};
    for (size_t i = 0; i < config->net_count; i++)
        needs.network |= config->net[i].kind == VM_NET_USER;
    sandbox_lock(&needs);
}

int run_machine(const struct vm_config *config) {
    static const struct serial_client client = {.receive = host_sent, .key = host_key};
    static const struct signal_actions actions = {
        .power_button = on_power_button, .stop = on_stop, .counters = on_counters};
    struct run run = {.config = config, .stop_code = EXIT_CODE_FAILURE};
    const struct machine_host host = {
        .serial_write = guest_wrote, .serial_ready = guest_ready, .context = &run};
    int code = EXIT_CODE_FAILURE;
    vm_set_crash_hook(terminal_restore);
    if (config->sandbox)
        sandbox_shed_privileges();
    if (machine_create(&run.machine, config, &host))
        return code;
    if (serial_port_create(&run.serial, &config->serial))
        goto destroy_machine;
    if (serial_port_start(run.serial, &client, &run))
        goto destroy_serial;
    if (signal_watch_start(&run.watch, &actions, &run))
        goto destroy_serial;

    if (config->sandbox)
        lock_process(config);
    struct machine_outcome outcome;
    machine_run(run.machine, &outcome);
    code = exit_code_of(&run, &outcome);
    signal_watch_stop(run.watch);
    if (config->stats)
        write_counters(&run, config->stats);
destroy_serial:
    serial_port_destroy(run.serial);
    run.serial = NULL;
destroy_machine:
    machine_destroy(run.machine);
    return code;
}
