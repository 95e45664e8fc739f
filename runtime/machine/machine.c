/* Building a machine from its configuration and carrying it through its life: boot, resets, end.
 *
 * Threads: the caller of machine_run() only waits for events; vCPUs, timers, disks and networks have threads
 * of their own. What ends or resets the guest comes from any of them and is handed to the waiting thread,
 * because only it may stop the vCPUs.
 */
#include "machine/machine.h"
#include "base/diag.h"
#include "cpu/mode.h"
#include "cpu/system.h"
#include "devices/net_user.h"
#include "devices/virtio_blk.h"
#include "devices/virtio_console.h"
#include "devices/virtio_net.h"
#include "devices/virtio_rng.h"
#include "machine/board.h"
#include "machine/caches.h"
#include "machine/counters.h"
#include "machine/cpu_link.h"
#include "machine/vcpu_dump.h"

#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <unistd.h>

#define DEFAULT_CODE_CACHE (32 * MIB)
#define DESCRIPTORS_RESERVED 128 /* of the process's limit, for everything but connections of guests */
#define NET_CONNECTIONS_MIN 8

/* Up to the reset, a later one counts more. */
enum event {
    EVENT_NONE,
    EVENT_SLEEP,
    EVENT_WAKE,
    EVENT_RESET,
    EVENT_POWEROFF,
    EVENT_DEBUG_EXIT,
    EVENT_TRIPLE_FAULT,
    EVENT_STOP,
};

struct machine {
    const struct vm_config *config;
    struct machine_host host;
    struct trace trace; /* of --trace and --dump */
    int statm;          /* see counters.h */
    uint64_t started_ns, resets, sleeps;
    struct guest_mem mem;
    bool has_mem;
    struct cpu_model model;
    struct caches caches;
    struct board *board;
    struct vm *vm;
    struct cpu_link link[VM_MAX_CPUS];
    struct virtio_blk *disk[VM_DISKS_MAX];
    struct virtio_net *net[VM_NETS_MAX];
    struct virtio_rng *rng;
    struct virtio_console *console; /* NULL: none was asked for */
    struct boot_source *boot;
    uint64_t rsdp;

    pthread_mutex_t lock; /* of what follows; a leaf */
    pthread_cond_t changed;
    enum event event;
    uint32_t event_value;
    bool running;
};

static void post(struct machine *machine, enum event event, uint32_t value) {
    pthread_mutex_lock(&machine->lock);
    /* The first end counts. */
    if (machine->event <= EVENT_RESET && event > machine->event) {
        machine->event = event;
        machine->event_value = value;
        pthread_cond_signal(&machine->changed);
    }
    pthread_mutex_unlock(&machine->lock);
}

static void on_poweroff(void *context) {
    post(context, EVENT_POWEROFF, 0);
}

static void on_reset(void *context) {
    post(context, EVENT_RESET, 0);
}

static void on_sleep(void *context) {
    vm_sleep();
    post(context, EVENT_SLEEP, 0);
}

static void on_wake(void *context) {
    post(context, EVENT_WAKE, 0);
}

static void on_debug_exit(void *context, uint32_t value) {
    post(context, EVENT_DEBUG_EXIT, value);
}

static void on_serial_write(void *context, unsigned port, const uint8_t *bytes, size_t count) {
    struct machine *machine = context;
    if (port == 0 && machine->host.serial_write)
        machine->host.serial_write(machine->host.context, bytes, count);
}

static void on_debug_write(void *context, const uint8_t *bytes, size_t count) {
    on_serial_write(context, 0, bytes, count);
}

static void on_serial_ready(void *context, unsigned port) {
    struct machine *machine = context;
    if (port == 0 && machine->host.serial_ready)
        machine->host.serial_ready(machine->host.context);
}

static void on_console_write(void *context, const uint8_t *bytes, size_t count) {
    struct machine *machine = context;
    if (machine->host.console_write)
        machine->host.console_write(machine->host.context, bytes, count);
}

static void on_console_room(void *context) {
    struct machine *machine = context;
    if (machine->host.console_ready)
        machine->host.console_ready(machine->host.context);
}

static void on_shutdown(void *context, struct vcpu *vcpu) {
    struct machine *machine = context;
    vcpu_dump(vcpu, "triple fault");
    post(machine, EVENT_TRIPLE_FAULT, vcpu->index);
}

/* What helps against an error of the host's. */
static const char *mend_of(int result, const char *otherwise) {
    return result == -EMFILE || result == -ENFILE ? "raise the limit of open files (ulimit -n)"
           : result == -EFBIG                     ? "raise the limit of file sizes (ulimit -f)"
                                                  : otherwise;
}

static int create_memory(struct machine *machine) {
    const struct vm_config *config = machine->config;
    bool shared = config->engine == VM_ENGINE_DIRECT || config->engine == VM_ENGINE_AUTO;
    int result =
        guest_mem_create(&machine->mem, config->memory,
                         (config->prealloc ? GUEST_MEM_PREALLOC : 0) | (shared ? GUEST_MEM_SHARED : 0));
    if (result) {
        diag_error("--memory %lluM cannot be allocated: %s; %s", (unsigned long long)(config->memory / MIB),
                   strerror(-result), mend_of(result, "give less"));
        return result;
    }
    machine->has_mem = true;
    return 0;
}

static int create_board(struct machine *machine) {
    const struct board_config config = {
        .cpus = machine->config->cpus,
        .mem = &machine->mem,
        .tsc_hz = machine->model.tsc_hz,
        .physical_bits = 40,
        .debug_exit_port =
            machine->config->debug_exit == VM_NO_PORT ? BOARD_NO_PORT : machine->config->debug_exit,
        .events = {.poweroff = on_poweroff,
                   .reset = on_reset,
                   .sleep = on_sleep,
                   .wake = on_wake,
                   .debug_exit = on_debug_exit,
                   .debug_write = on_debug_write,
                   .serial_write = on_serial_write,
                   .serial_ready = on_serial_ready,
                   .context = machine},
    };
    machine->board = board_create(&config);
    return machine->board ? 0 : -ENOMEM;
}

static int attach(struct machine *machine, struct pci_device *device) {
    int slot = board_attach_pci(machine->board, device, 0);
    if (slot < 0)
        diag_error("no PCI slot is left for another device; give fewer disks or networks");
    return slot < 0 ? slot : 0;
}

static int create_disks(struct machine *machine) {
    for (size_t i = 0; i < machine->config->disk_count; i++) {
        const struct vm_disk_config *disk = &machine->config->disk[i];
        const struct virtio_blk_config config = {.path = disk->file,
                                                 .read_only = disk->readonly,
                                                 .serial = disk->serial,
                                                 .trace = &machine->trace,
                                                 .queues = machine->config->cpus < VIRTIO_BLK_QUEUES_MAX
                                                               ? machine->config->cpus
                                                               : VIRTIO_BLK_QUEUES_MAX};
        int result = virtio_blk_create(&machine->disk[i], &config, &machine->mem);
        if (!result)
            result = attach(machine, virtio_blk_pci(machine->disk[i]));
        if (result)
            return result;
    }
    return 0;
}

/* A network's share of the descriptors that this process may have, less what everything else needs. */
static unsigned connections_of(const struct vm_config *config) {
    struct rlimit limit;
    uint64_t most = NET_USER_CONNECTIONS;
    if (!getrlimit(RLIMIT_NOFILE, &limit) && limit.rlim_cur != RLIM_INFINITY) {
        uint64_t share = limit.rlim_cur > DESCRIPTORS_RESERVED ? limit.rlim_cur - DESCRIPTORS_RESERVED : 0;
        share = share * 4 / 5 / config->net_count; /* datagrams may have a quarter more: net_user_bound.h */
        most = share < most ? share : most;
    }
    return most > NET_CONNECTIONS_MIN ? (unsigned)most : NET_CONNECTIONS_MIN;
}

static int create_net(struct machine *machine, size_t index) {
    const struct vm_net_config *net = &machine->config->net[index];
    struct net_forward forwards[VM_FORWARDS_MAX];
    for (size_t i = 0; i < net->forward_count; i++) {
        const struct vm_forward_config *from = &net->forward[i];
        forwards[i] = (struct net_forward){.udp = from->is_udp,
                                           .host.s_addr = htonl(from->host_address),
                                           .host_port = htons(from->host_port),
                                           .guest.s_addr = htonl(from->guest_address),
                                           .guest_port = htons(from->guest_port)};
    }
    const struct net_user_config user = {.forwards = forwards,
                                         .forward_count = (unsigned)net->forward_count,
                                         .connections = connections_of(machine->config)};
    struct virtio_net_config card = {.trace = &machine->trace,
                                     .mac = {0x52, 0x54, 0x00, 0x12, 0x34, (uint8_t)(0x56 + index)}};
    if (net->has_mac)
        memcpy(card.mac, net->mac, sizeof card.mac);
    int result = net_user_create(&card.backend, &user);
    if (!result)
        result = virtio_net_create(&machine->net[index], &card, &machine->mem);
    if (!result)
        result = attach(machine, virtio_net_pci(machine->net[index]));
    return result;
}

static int create_console(struct machine *machine) {
    const struct virtio_console_config config = {
        .output = on_console_write, .input_room = on_console_room, .context = machine};
    int result = virtio_console_create(&machine->console, &config, &machine->mem);
    if (result)
        diag_error("--console: the device cannot be made: %s; free memory or threads", strerror(-result));
    return result ? result : attach(machine, virtio_console_pci(machine->console));
}

static int create_devices(struct machine *machine) {
    int result = create_disks(machine);
    for (size_t i = 0; i < machine->config->net_count && !result; i++)
        if (machine->config->net[i].kind == VM_NET_USER)
            result = create_net(machine, i);
    if (!result)
        result = virtio_rng_create(&machine->rng, &machine->mem);
    if (!result)
        result = attach(machine, virtio_rng_pci(machine->rng));
    if (!result && machine->config->console.kind != VM_SERIAL_NONE)
        result = create_console(machine);
    return result;
}

static int create_cpus(struct machine *machine) {
    const struct vm_config *config = machine->config;
    const struct vm_options options = {
        .cpus = config->cpus,
        .engine = config->engine,
        .direct_max = config->direct_max,
        .count_spaces = config->stats_spaces,
        .code_cache_size = config->code_cache ? config->code_cache : DEFAULT_CODE_CACHE,
        .code_cache_grows = config->code_cache_grows,
        .trace = &machine->trace,
        .on_shutdown = on_shutdown,
        .context = machine,
    };
    int result = vm_create(&machine->vm, &options, &machine->mem, &machine->model);
    if (result) {
        diag_error("%u vCPUs cannot be made: %s; %s", config->cpus, strerror(-result),
                   mend_of(result, "give fewer, or free memory"));
        return result;
    }
    for (unsigned i = 0; i < config->cpus; i++)
        cpu_link_connect(&machine->link[i], machine->vm, machine->board, i);
    result = caches_open(&machine->caches, config, &machine->model);
    return result ? result : caches_attach(&machine->caches, config, machine->vm, &machine->model);
}

static int open_boot(struct machine *machine) {
    const struct vm_config *config = machine->config;
    struct boot_initrd initrds[VM_INITRDS_MAX];
    for (size_t i = 0; i < config->initrd_count; i++)
        initrds[i] = (struct boot_initrd){config->initrd[i].path, config->initrd[i].arguments};
    static const struct boot_range reserved[] = {
        {.base = BOARD_ECAM_BASE, .length = BOARD_ECAM_SIZE, .type = BOOT_RANGE_RESERVED}};
    const struct boot_request request = {
        .kernel = config->kernel,
        .initrds = initrds,
        .initrd_count = config->initrd_count,
        .command_line = config->append,
        .protocol = config->boot,
        .reserved = reserved,
        .reserved_count = ARRAY_SIZE(reserved),
    };
    return boot_source_open(&machine->boot, &request);
}

int machine_create(struct machine **out, const struct vm_config *config, const struct machine_host *host) {
    if (config->cpus > VM_MAX_CPUS) {
        diag_error("--cpus %u: at most %u are supported", config->cpus, VM_MAX_CPUS);
        return -EINVAL;
    }
    struct machine *machine = calloc(1, sizeof *machine);
    if (!machine) {
        diag_error("out of memory");
        return -ENOMEM;
    }
    machine->config = config;
    machine->host = *host;
    pthread_mutex_init(&machine->lock, NULL);
    pthread_cond_init(&machine->changed, NULL);
    machine->statm = open("/proc/self/statm", O_RDONLY | O_CLOEXEC);
    machine->started_ns = counters_now_ns();
    char error[256];
    int result = trace_open(&machine->trace, config->trace | config->dump, config->trace_file);
    if (result) {
        machine_destroy(machine);
        return result;
    }
    result = cpu_model_create(&machine->model, config->cpu ? config->cpu : "host", config->cpus, error,
                              sizeof error);
    if (result)
        diag_error("--cpu %s: %s", config->cpu, error);
    if (!result)
        result = create_memory(machine);
    if (!result)
        result = create_board(machine);
    if (!result)
        result = create_devices(machine);
    if (!result)
        result = create_cpus(machine);
    if (!result) {
        result = board_start(machine->board, &machine->rsdp);
        if (result)
            diag_error("the firmware tables cannot be built: %s", strerror(-result));
    }
    if (!result)
        result = open_boot(machine);
    if (result) {
        machine_destroy(machine);
        return result;
    }
    *out = machine;
    return 0;
}

unsigned machine_processes(const struct machine *machine, pid_t process[VM_MAX_CPUS]) {
    return vm_processes(machine->vm, process);
}

void machine_destroy(struct machine *machine) {
    if (machine->boot)
        boot_source_close(machine->boot);
    /* The board's timers may still raise interrupts, devices still complete requests: the vCPUs go last but
     * RAM. */
    for (size_t i = 0; i < machine->config->net_count; i++)
        if (machine->net[i])
            virtio_net_destroy(machine->net[i]);
    for (size_t i = 0; i < machine->config->disk_count; i++)
        if (machine->disk[i] && virtio_blk_destroy(machine->disk[i]))
            diag_error("--disk '%s': its last writes could not be made durable; check the file system",
                       machine->config->disk[i].file);
    if (machine->rng)
        virtio_rng_destroy(machine->rng);
    if (machine->console)
        virtio_console_destroy(machine->console);
    if (machine->board)
        board_destroy(machine->board);
    if (machine->vm)
        vm_destroy(machine->vm);
    caches_close(&machine->caches);
    if (machine->has_mem)
        guest_mem_destroy(&machine->mem);
    if (machine->statm >= 0)
        close(machine->statm);
    trace_close(&machine->trace);
    pthread_cond_destroy(&machine->changed);
    pthread_mutex_destroy(&machine->lock);
    free(machine);
}

static void apply_boot_state(struct vcpu *vcpu, const struct boot_state *state) {
    vcpu->rip = state->rip;
    vcpu->rflags = state->rflags | FLAG_FIXED;
    memcpy(vcpu->gpr, state->gpr, sizeof vcpu->gpr);
    vcpu->cr0 = state->cr0;
    vcpu->cr3 = state->cr3;
    vcpu->cr4 = state->cr4;
    vcpu->efer = state->efer;
    memcpy(vcpu->segment, state->segment, sizeof vcpu->segment);
    vcpu->ldtr = state->ldtr;
    vcpu->tr = state->tr;
    vcpu->gdtr = state->gdtr;
    vcpu->idtr = state->idtr;
    vcpu->cpl = 0;
    vtlb_flush_all(vcpu);
    cpu_mode_changed(vcpu);
}

static int load_guest(struct machine *machine) {
    struct boot_state state;
    int result = boot_source_load(machine->boot, &machine->mem, machine->rsdp, &state);
    if (result)
        return result;
    apply_boot_state(vm_vcpu(machine->vm, 0), &state);
    if (state.bios_clock)
        board_start_clock(machine->board);
    return 0;
}

static int reboot(struct machine *machine) {
    board_reset(machine->board);
    vm_reset(machine->vm);
    int result = board_start(machine->board, &machine->rsdp);
    return result ? result : load_guest(machine);
}

/* An event that counts more than this one. */
static enum event wait_for_event(struct machine *machine, enum event after, uint32_t *value) {
    pthread_mutex_lock(&machine->lock);
    while (machine->event <= after)
        pthread_cond_wait(&machine->changed, &machine->lock);
    enum event event = machine->event;
    *value = machine->event_value;
    pthread_mutex_unlock(&machine->lock);
    return event;
}

/* From here on nothing is printed that a stopped guest had no time to wait for. */
static void quiet_console(struct machine *machine) {
    if (machine->console)
        virtio_console_quiesce(machine->console);
}

static void forget(struct machine *machine, enum event event) {
    pthread_mutex_lock(&machine->lock);
    if (machine->event == event)
        machine->event = EVENT_NONE;
    pthread_mutex_unlock(&machine->lock);
}

/* The vCPUs are stopped. The processors begin as after power-on, where firmware hands over to the guest. */
static int wake(struct machine *machine) {
    vm_reset(machine->vm);
    struct acpi_waking waking;
    int result = board_wake(machine->board, &waking);
    if (result) {
        diag_error("the guest cannot be woken: %s", strerror(-result));
        return result;
    }
    if (waking.address)
        cpu_wake(vm_vcpu(machine->vm, 0), waking.address, waking.protected_mode);
    else /* a guest that did not say where to go on starts anew */
        post(machine, EVENT_RESET, 0);
    return 0;
}

void machine_run(struct machine *machine, struct machine_outcome *outcome) {
    static const enum machine_end ends[] = {[EVENT_POWEROFF] = MACHINE_POWERED_OFF,
                                            [EVENT_RESET] = MACHINE_RESET,
                                            [EVENT_DEBUG_EXIT] = MACHINE_DEBUG_EXIT,
                                            [EVENT_TRIPLE_FAULT] = MACHINE_TRIPLE_FAULT,
                                            [EVENT_STOP] = MACHINE_STOPPED};
    *outcome = (struct machine_outcome){.end = MACHINE_FAILED};
    machine->started_ns = counters_now_ns();
    int result = load_guest(machine);
    while (!result) {
        result = vm_start(machine->vm);
        if (result) {
            diag_error("vCPU threads cannot be started: %s; raise the limit of processes (ulimit -u), or "
                       "free memory",
                       strerror(-result));
            return;
        }
        uint32_t value;
        enum event event = wait_for_event(machine, EVENT_NONE, &value);
        vm_stop(machine->vm);
        if (event == EVENT_SLEEP || event == EVENT_WAKE) {
            __atomic_store_n(&machine->sleeps, machine->sleeps + 1, __ATOMIC_RELAXED);
            board_sleep(machine->board);
            event = wait_for_event(machine, EVENT_SLEEP, &value);
        }
        if (event == EVENT_WAKE) {
            result = wake(machine);
            forget(machine, EVENT_WAKE);
            continue;
        }
        quiet_console(machine);
        if (machine->config->record_profile && (event != EVENT_RESET || machine->config->no_reboot))
            caches_profile(machine->config, machine->vm);
        if (machine->config->record_cache && (event != EVENT_RESET || machine->config->no_reboot))
            caches_record(&machine->caches, machine->config, machine->vm, &machine->model);
        if (event != EVENT_RESET || machine->config->no_reboot) {
            *outcome = (struct machine_outcome){.end = ends[event], .value = value};
            return;
        }
        __atomic_store_n(&machine->resets, machine->resets + 1, __ATOMIC_RELAXED);
        result = reboot(machine);
        forget(machine, EVENT_RESET);
    }
}

void machine_stop(struct machine *machine) {
    post(machine, EVENT_STOP, 0);
}

enum machine_button machine_power_button(struct machine *machine) {
    static const enum machine_button buttons[] = {[ACPI_BUTTON_UNHEARD] = MACHINE_BUTTON_UNHEARD,
                                                  [ACPI_BUTTON_HEARD] = MACHINE_BUTTON_HEARD,
                                                  [ACPI_BUTTON_WOKE] = MACHINE_BUTTON_WOKE};
    return buttons[board_power_button(machine->board)];
}

size_t machine_serial_receive(struct machine *machine, const uint8_t *bytes, size_t count) {
    return board_serial_receive(machine->board, 0, bytes, count);
}

size_t machine_console_receive(struct machine *machine, const uint8_t *bytes, size_t count) {
    return machine->console ? virtio_console_input(machine->console, bytes, count) : count;
}

void machine_console_resize(struct machine *machine, uint16_t columns, uint16_t rows) {
    if (machine->console)
        virtio_console_resize(machine->console, columns, rows);
}

cJSON *machine_counters(struct machine *machine) {
    const struct counter_sources sources = {
        .caches = &machine->caches,
        .config = machine->config,
        .mem = &machine->mem,
        .vm = machine->vm,
        .disks = machine->disk,
        .nets = machine->net,
        .started_ns = machine->started_ns,
        .resets = __atomic_load_n(&machine->resets, __ATOMIC_RELAXED),
        .sleeps = __atomic_load_n(&machine->sleeps, __ATOMIC_RELAXED),
        .statm = machine->statm,
    };
    return counters_collect(&sources);
}
