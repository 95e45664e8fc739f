/* The description of one VM: what the launcher's options and configuration files fill in and the machine is
 * built from. Plain data without functions; the strings are the launcher's and outlive the VM.
 */
#ifndef NESTOR_MACHINE_VM_CONFIG_H
#define NESTOR_MACHINE_VM_CONFIG_H

#include "base/trace.h"
#include "base/types.h"
#include "boot/boot.h"
#include "vm/vm.h"

#define VM_DISKS_MAX 16
#define VM_NETS_MAX 8
#define VM_FORWARDS_MAX 16
#define VM_INITRDS_MAX 32
#define VM_DISK_SERIAL_MAX 20 /* bytes: virtio 1.2, 5.2.6 VIRTIO_BLK_T_GET_ID */
#define VM_CACHES_MAX 8
#define VM_TRUST_MAX 16
#define VM_NO_PORT UINT32_MAX

struct vm_disk_config {
    const char *file;
    const char *serial; /* NULL: none */
    bool readonly;
};

/* One hostfwd of user networking; addresses and ports in host byte order, address 0: any / the guest's own.
 */
struct vm_forward_config {
    bool is_udp;
    uint32_t host_address, guest_address;
    uint16_t host_port, guest_port;
};

enum vm_net_kind {
    VM_NET_NONE,
    VM_NET_USER,
};

struct vm_net_config {
    enum vm_net_kind kind;
    bool has_mac;
    uint8_t mac[6];
    struct vm_forward_config forward[VM_FORWARDS_MAX];
    size_t forward_count;
};

enum vm_serial_kind {
    VM_SERIAL_STDIO,
    VM_SERIAL_FILE,
    VM_SERIAL_PTY,
    VM_SERIAL_UNIX,
    VM_SERIAL_NONE,
};

/* The host end of a character device. */
struct vm_serial_config {
    enum vm_serial_kind kind;
    const char *path; /* of FILE and UNIX */
};

struct vm_initrd_config {
    const char *path;
    const char *arguments; /* NULL: none */
};

struct vm_config {
    const char *name;
    uint64_t memory; /* bytes, a multiple of 1 MiB */
    unsigned cpus;
    const char *kernel;
    struct vm_initrd_config initrd[VM_INITRDS_MAX];
    size_t initrd_count;
    const char *append;
    enum boot_protocol boot;
    struct vm_disk_config disk[VM_DISKS_MAX];
    size_t disk_count;
    struct vm_net_config net[VM_NETS_MAX];
    size_t net_count;
    struct vm_serial_config serial;  /* of the first serial port */
    struct vm_serial_config console; /* of the virtio console; NONE: the machine has no such device */
    enum vm_engine engine;
    unsigned direct_max; /* 0: the engine's default */
    const char *cpu;     /* for cpu_model_create() */
    uint64_t code_cache; /* bytes; 0: the default */
    bool code_cache_grows;
    const char *cache[VM_CACHES_MAX]; /* cache files */
    size_t cache_count;
    const char *trust[VM_TRUST_MAX]; /* public keys: files or directories; none: the user's configuration */
    size_t trust_count;
    bool cache_required;             /* a cache that cannot be used is an error */
    const char *const *cache_broker; /* argv of the host-wide store's broker; NULL: start none */
    const char *record_cache;        /* write what no cache had to this file at the end; NULL: do not */
    const char *record_profile;      /* write where kernel code was entered to this file; NULL: do not */
    bool prealloc;
    bool no_reboot;
    bool sandbox;           /* confine the process before the guest runs */
    uint32_t debug_exit;    /* I/O port, or VM_NO_PORT */
    const char *stats;      /* a path, "-" for standard output, NULL: none */
    bool stats_spaces;      /* counters of direct execution by address space */
    uint32_t trace;         /* TRACE_* */
    const char *trace_file; /* of both; NULL: standard error */
    uint32_t dump;          /* DUMP_* */
};

#endif
