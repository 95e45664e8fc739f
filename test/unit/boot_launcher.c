/* The launcher's parts that need no guest: serial ports over real files, sockets and pseudo-terminals, the
 * terminal's restoration after a kill, the counters' file, and option values. */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <termios.h>
#include <unistd.h>

#include "host_memory.h"
#include "option_values.h"
#include "serial.h"
#include "stats_file.h"
#include "terminal.h"

static int failures;
static char directory[] = "/tmp/nestor-launcher-XXXXXX";

#define EXPECT(condition)                                                                                    \
    do {                                                                                                     \
        if (!(condition)) {                                                                                  \
            fprintf(stderr, "%s:%d: not so: %s\n", __FILE__, __LINE__, #condition);                          \
            failures++;                                                                                      \
        }                                                                                                    \
    } while (0)

/* A guest that takes at most `room` bytes until asked again. */
struct guest {
    pthread_mutex_t lock;
    char text[256];
    size_t length, room;
    int keys;
};

static size_t guest_receive(void *context, const uint8_t *bytes, size_t count) {
    struct guest *guest = context;
    pthread_mutex_lock(&guest->lock);
    if (count > guest->room)
        count = guest->room;
    if (count > sizeof guest->text - guest->length - 1)
        count = sizeof guest->text - guest->length - 1;
    memcpy(guest->text + guest->length, bytes, count);
    guest->length += count;
    guest->room -= count;
    pthread_mutex_unlock(&guest->lock);
    return count;
}

static void guest_key(void *context, enum serial_key key) {
    struct guest *guest = context;
    __atomic_fetch_or(&guest->keys, 1 << key, __ATOMIC_RELAXED);
}

static const struct serial_client client = {.receive = guest_receive, .key = guest_key};

/* Wait up to 5 s until the guest has got exactly text. */
static bool guest_has(struct guest *guest, const char *text) {
    for (int i = 0; i < 500; i++) {
        pthread_mutex_lock(&guest->lock);
        bool same = !strcmp(guest->text, text);
        pthread_mutex_unlock(&guest->lock);
        if (same)
            return true;
        usleep(10000);
    }
    return false;
}

/* Read exactly count bytes within 5 s. */
static bool read_all(int fd, void *buffer, size_t count) {
    uint8_t *target = buffer;
    while (count) {
        struct pollfd ready = {fd, POLLIN, 0};
        if (poll(&ready, 1, 5000) <= 0)
            return false;
        ssize_t got = read(fd, target, count);
        if (got <= 0)
            return false;
        target += got;
        count -= (size_t)got;
    }
    return true;
}

static void send_text(struct serial_port *port, const char *text) {
    serial_port_send(port, (const uint8_t *)text, strlen(text));
}

static void path_in_directory(char path[static 108], const char *name) {
    snprintf(path, 108, "%s/%s", directory, name);
}

static void test_file(void) {
    char path[108], text[64] = "";
    struct guest guest = {.lock = PTHREAD_MUTEX_INITIALIZER};
    struct serial_port *port;
    path_in_directory(path, "serial.log");
    const struct vm_serial_config config = {VM_SERIAL_FILE, path};
    if (serial_port_create(&port, "serial", &config) || serial_port_start(port, &client, &guest)) {
        EXPECT(!"port");
        return;
    }
    send_text(port, "to a file\n");
    serial_port_destroy(port);
    FILE *file = fopen(path, "r");
    EXPECT(file && fgets(text, sizeof text, file) && !strcmp(text, "to a file\n"));
    if (file)
        fclose(file);
    const struct vm_serial_config bad = {VM_SERIAL_FILE, "/nonexistent/serial.log"};
    EXPECT(serial_port_create(&port, "serial", &bad) < 0 && !port);
}

static int connect_to(const char *path) {
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    strcpy(address.sun_path, path);
    if (fd >= 0 && connect(fd, (struct sockaddr *)&address, sizeof address)) {
        close(fd);
        fd = -1;
    }
    return fd;
}

static void *send_much(void *argument) {
    struct serial_port *port = argument;
    uint8_t block[1000];
    for (unsigned i = 0; i < 1000; i++) {
        memset(block, (int)(i & 0xff), sizeof block);
        serial_port_send(port, block, sizeof block);
    }
    return NULL;
}

static void test_unix(void) {
    char path[108], text[64];
    struct guest guest = {.lock = PTHREAD_MUTEX_INITIALIZER, .room = 3};
    struct serial_port *port, *second;
    path_in_directory(path, "serial.sock");
    const struct vm_serial_config config = {VM_SERIAL_UNIX, path};
    if (serial_port_create(&port, "serial", &config) || serial_port_start(port, &client, &guest)) {
        EXPECT(!"port");
        return;
    }
    EXPECT(serial_port_create(&second, "serial", &config) < 0); /* in use */
    send_text(port, "kept for you");
    int fd = connect_to(path);
    EXPECT(read_all(fd, text, 12) && !memcmp(text, "kept for you", 12));

    /* One client at a time. */
    int late = connect_to(path);
    EXPECT(read_all(late, text, 7) && !memcmp(text, "nestor:", 7));
    close(late);

    /* Input waits until the guest takes it. */
    EXPECT(write(fd, "abcdef", 6) == 6);
    EXPECT(guest_has(&guest, "abc"));
    pthread_mutex_lock(&guest.lock);
    guest.room = 100;
    pthread_mutex_unlock(&guest.lock);
    serial_port_resume(port);
    EXPECT(guest_has(&guest, "abcdef"));

    /* A megabyte through a 64 KiB buffer, to a reader that starts late: nothing is lost. */
    pthread_t sender;
    pthread_create(&sender, NULL, send_much, port);
    usleep(200000);
    bool same = true;
    for (unsigned i = 0; i < 1000; i++) {
        uint8_t block[1000];
        same =
            same && read_all(fd, block, sizeof block) && block[0] == (i & 0xff) && block[999] == (i & 0xff);
    }
    EXPECT(same);
    pthread_join(sender, NULL);

    /* Reconnecting; a sender without a reader does not wait. */
    close(fd);
    usleep(100000);
    send_much(port);
    fd = connect_to(path);
    uint8_t block[1000];
    EXPECT(read_all(fd, block, sizeof block));
    serial_port_abandon(port);
    send_much(port);
    serial_port_destroy(port); /* ends although the reader reads no more */
    close(fd);
    EXPECT(access(path, F_OK)); /* the socket file is gone */

    /* A stale socket file is replaced, another file is not. */
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    strcpy(address.sun_path, path);
    fd = socket(AF_UNIX, SOCK_STREAM, 0);
    EXPECT(!bind(fd, (struct sockaddr *)&address, sizeof address));
    close(fd);
    EXPECT(!serial_port_create(&port, "serial", &config));
    serial_port_destroy(port);
    fd = open(path, O_CREAT | O_WRONLY, 0600);
    close(fd);
    EXPECT(serial_port_create(&port, "serial", &config) < 0);
}

static void test_pty(void) {
    char line[256] = "", text[64];
    struct guest guest = {.lock = PTHREAD_MUTEX_INITIALIZER, .room = 100};
    struct serial_port *port;
    const struct vm_serial_config config = {VM_SERIAL_PTY, NULL};
    /* The path is told on standard error. */
    int ends[2], saved = dup(STDERR_FILENO);
    if (pipe(ends) || dup2(ends[1], STDERR_FILENO) < 0)
        abort();
    int result = serial_port_create(&port, "serial", &config);
    dup2(saved, STDERR_FILENO);
    close(saved);
    close(ends[1]);
    EXPECT(!result && read(ends[0], line, sizeof line - 1) > 0);
    close(ends[0]);
    char *path = strstr(line, "/dev/pts/");
    if (result || !path || serial_port_start(port, &client, &guest)) {
        EXPECT(!"port");
        return;
    }
    path[strcspn(path, "\n")] = 0;
    send_text(port, "before");
    for (int round = 0; round < 2; round++) {
        int fd = open(path, O_RDWR | O_NOCTTY);
        if (!round)
            EXPECT(read_all(fd, text, 6) && !memcmp(text, "before", 6));
        EXPECT(write(fd, "in", 2) == 2);
        EXPECT(guest_has(&guest, round ? "inin" : "in"));
        send_text(port, "out\n");
        EXPECT(read_all(fd, text, 4) && !memcmp(text, "out\n", 4)); /* raw: no \r added */
        close(fd);
        usleep(500000);
    }
    serial_port_destroy(port);
}

static int open_terminal_pair(int *master) {
    *master = posix_openpt(O_RDWR | O_NOCTTY | O_CLOEXEC);
    if (*master < 0 || grantpt(*master) || unlockpt(*master))
        abort();
    return open(ptsname(*master), O_RDWR | O_NOCTTY | O_CLOEXEC);
}

/* A process with the terminal as its standard input opens a stdio port, then ends in the given way. */
static pid_t start_on_terminal(int slave, int death) {
    pid_t child = fork();
    if (child)
        return child;
    struct guest guest = {.lock = PTHREAD_MUTEX_INITIALIZER, .room = 100};
    struct serial_port *port;
    const struct vm_serial_config config = {VM_SERIAL_STDIO, NULL};
    setsid();
    ioctl(slave, TIOCSCTTY, 0);
    dup2(slave, STDIN_FILENO);
    dup2(slave, STDOUT_FILENO);
    if (serial_port_create(&port, "serial", &config) || serial_port_start(port, &client, &guest))
        _exit(1);
    send_text(port, "ready");
    for (int i = 0; i < 500 && !(__atomic_load_n(&guest.keys, __ATOMIC_RELAXED) & 1 << SERIAL_KEY_LEAVE); i++)
        usleep(10000);
    /* What stood before and after Ctrl-A keys is the guest's; Ctrl-A a is a Ctrl-A. */
    if (!guest_has(&guest, "hi\003\001"))
        _exit(2);
    if (death)
        raise(death);
    serial_port_destroy(port);
    _exit(0);
}

static void test_terminal(int death) {
    int master, slave = open_terminal_pair(&master), status = -1;
    struct termios before, during, after;
    char text[8];
    EXPECT(!tcgetattr(slave, &before) && (before.c_lflag & ECHO));
    pid_t child = start_on_terminal(slave, death);
    EXPECT(read_all(master, text, 5) && !memcmp(text, "ready", 5));
    EXPECT(!tcgetattr(slave, &during) && !(during.c_lflag & (ECHO | ICANON | ISIG)));
    EXPECT(write(master, "hi\003\001a\001x", 7) == 7);
    EXPECT(waitpid(child, &status, 0) == child);
    EXPECT(death ? WIFSIGNALED(status) : WIFEXITED(status) && !WEXITSTATUS(status));
    /* After a kill it is the keeper that restores, a moment later. */
    bool restored = false;
    for (int i = 0; i < 300 && !restored; i++) {
        restored =
            !tcgetattr(slave, &after) && after.c_lflag == before.c_lflag && after.c_iflag == before.c_iflag;
        usleep(10000);
    }
    if (!restored)
        fprintf(stderr, "death %d: lflag 0x%x, was 0x%x; iflag 0x%x, was 0x%x\n", death, after.c_lflag,
                before.c_lflag, after.c_iflag, before.c_iflag);
    EXPECT(restored);
    close(slave);
    close(master);
}

static void test_stats(void) {
    char path[108], text[256];
    cJSON *tree = cJSON_CreateObject();
    cJSON_AddNumberToObject(tree, "exits", 12345678901.0);
    path_in_directory(path, "stats.json");
    EXPECT(!stats_file_write(path, tree) && !stats_file_write(path, tree));
    FILE *file = fopen(path, "r");
    size_t length = file ? fread(text, 1, sizeof text - 1, file) : 0;
    text[length] = 0;
    EXPECT(strstr(text, "12345678901") && text[length - 1] == '\n');
    if (file)
        fclose(file);
    EXPECT(!stats_file_write("/dev/null", tree)); /* written into, not replaced */
    struct stat status;
    EXPECT(!stat("/dev/null", &status) && S_ISCHR(status.st_mode));
    EXPECT(stats_file_write("/nonexistent/stats.json", tree) < 0);
    cJSON_Delete(tree);
}

static void test_values(void) {
    static const struct {
        const char *text;
        int result;
        uint64_t size;
    } sizes[] = {{"512M", 0, 512 * MIB}, {"1G", 0, GIB},      {"2g", 0, 2 * GIB},   {"4096", 0, 4096},
                 {"0x10k", 0, 16384},    {"1MiB", 0, MIB},    {"1MB", 0, MIB},      {"", -EINVAL, 0},
                 {"M", -EINVAL, 0},      {"-1G", -EINVAL, 0}, {"1.5G", -EINVAL, 0}, {"99999999T", -ERANGE, 0},
                 {"1GG", -EINVAL, 0},    {" 1G", -EINVAL, 0}};
    for (size_t i = 0; i < ARRAY_SIZE(sizes); i++) {
        uint64_t size = 0;
        bool has_unit;
        EXPECT(value_parse_size(sizes[i].text, &size, &has_unit) == sizes[i].result && size == sizes[i].size);
    }
    char text[] = "file=a,,b,readonly=on,flag,x==";
    struct value_fields fields = {text};
    char *key, *value;
    EXPECT(value_fields_next(&fields, &key, &value) && !strcmp(key, "file") && !strcmp(value, "a,b"));
    EXPECT(value_fields_next(&fields, &key, &value) && !strcmp(key, "readonly") && !strcmp(value, "on"));
    EXPECT(value_fields_next(&fields, &key, &value) && !strcmp(key, "flag") && !value);
    EXPECT(value_fields_next(&fields, &key, &value) && !strcmp(key, "x") && !strcmp(value, "="));
    EXPECT(!value_fields_next(&fields, &key, &value));
}

static void test_options(void) {
    struct run_options options;
    char *arguments[] = {
        "--memory=256M",
        "--net",
        "user,hostfwd=tcp:127.0.0.1:2222-:22,hostfwd=udp::53-10.0.2.15:5353,mac=52:54:00:12:34:56",
        "--disk",
        "file=a.img,readonly=on,serial=abc",
        "--initrd",
        "one x=1,two",
        "--dump",
        "guest,exits",
        "--debug-exit",
        "0xf4"};
    EXPECT(!run_options_parse(&options, ARRAY_SIZE(arguments), arguments));
    const struct vm_config *vm = &options.vm;
    EXPECT(vm->memory == 256 * MIB && vm->cpus == 1 && !strcmp(vm->cpu, "host") && vm->debug_exit == 0xf4);
    EXPECT(vm->net_count == 1 && vm->net[0].kind == VM_NET_USER && vm->net[0].mac[5] == 0x56);
    const struct vm_forward_config *forward = vm->net[0].forward;
    EXPECT(vm->net[0].forward_count == 2 && forward[0].host_address == 0x7f000001 &&
           forward[0].host_port == 2222);
    EXPECT(!forward[0].is_udp && forward[0].guest_port == 22 && !forward[0].guest_address);
    EXPECT(forward[1].is_udp && forward[1].guest_address == 0x0a00020f && !forward[1].host_address);
    EXPECT(vm->disk_count == 1 && vm->disk[0].readonly && !strcmp(vm->disk[0].serial, "abc"));
    EXPECT(vm->initrd_count == 2 && !strcmp(vm->initrd[0].path, "one") &&
           !strcmp(vm->initrd[0].arguments, "x=1"));
    EXPECT(!strcmp(vm->initrd[1].path, "two") && !vm->initrd[1].arguments);
    EXPECT(vm->dump == (DUMP_GUEST | DUMP_EXITS));
    run_options_destroy(&options);
}

static void test_host_memory(void) {
    struct host_memory host;
    host_memory_read(&host);
    EXPECT(host.total != UINT64_MAX && host.available <= host.total && host.available);
    EXPECT(!host_memory_check(2 * MIB, true));
    EXPECT(host_memory_check(host.total + MIB, false) < 0);
}

int main(void) {
    if (!mkdtemp(directory))
        abort();
    signal(SIGPIPE, SIG_IGN);
    test_values();
    test_options();
    test_host_memory();
    test_stats();
    test_file();
    test_unix();
    test_pty();
    test_terminal(0);
    test_terminal(SIGKILL);
    test_terminal(SIGTERM);
    char command[64];
    snprintf(command, sizeof command, "rm -rf %s", directory);
    EXPECT(!system(command));
    printf("%d failures\n", failures);
    return failures != 0;
}
