/* virtio console (virtio 1.2, clause 5.3): queue 0 to the guest, queue 1 from it. Input waits in a small
 * buffer until the guest has given room for it. */
#include "devices/virtio_console.h"

#include "devices/virtio_pci.h"
#include "devices/virtio_worker.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#define QUEUE_SIZE 128
#define CHAIN_PIECES 128
#define INPUT_BYTES 4096
#define PCI_CLASS_COMMUNICATION_OTHER 0x078000

enum { QUEUE_RECEIVE, QUEUE_TRANSMIT, QUEUE_COUNT };
enum { CONSOLE_F_SIZE = 0, CONSOLE_F_EMERG_WRITE = 2 };

struct __attribute__((packed)) console_layout {
    uint16_t columns;
    uint16_t rows;
    uint32_t max_ports;
    uint32_t emergency;
};

struct virtio_console {
    struct virtio_device device; /* first */
    struct virtio_pci transport;
    struct virtio_worker worker;
    struct virtio_console_config config;
    struct iovec pieces[CHAIN_PIECES]; /* the worker's */
    pthread_mutex_t lock; /* guards what follows; taken under nothing but the worker's or a caller's */
    uint8_t input[INPUT_BYTES];
    size_t input_first, input_count;
    bool input_refused;
};

/* Move input into one chain; 0 if there is none. */
static uint32_t input_take(struct virtio_console *console, const struct virtqueue_chain *chain) {
    uint8_t bytes[INPUT_BYTES];
    pthread_mutex_lock(&console->lock);
    size_t count =
        console->input_count < chain->writable_bytes ? console->input_count : chain->writable_bytes;
    for (size_t i = 0; i < count; i++)
        bytes[i] = console->input[(console->input_first + i) % INPUT_BYTES];
    console->input_first = (console->input_first + count) % INPUT_BYTES;
    console->input_count -= count;
    pthread_mutex_unlock(&console->lock);
    return (uint32_t)virtqueue_chain_write(console->device.mem, chain, 0, bytes, count);
}

static bool input_waits(struct virtio_console *console) {
    pthread_mutex_lock(&console->lock);
    bool waits = console->input_count;
    pthread_mutex_unlock(&console->lock);
    return waits;
}

static void input_tell_room(struct virtio_console *console) {
    pthread_mutex_lock(&console->lock);
    bool tell = console->input_refused && console->input_count < INPUT_BYTES;
    console->input_refused &= !tell;
    pthread_mutex_unlock(&console->lock);
    if (tell && console->config.input_room)
        console->config.input_room(console->config.context);
}

static void serve_input(struct virtio_console *console) {
    struct virtqueue *ring = &console->device.queues[QUEUE_RECEIVE];
    struct virtqueue_chain chain = {.iov = console->pieces, .capacity = CHAIN_PIECES};
    int result = 1;
    if (!virtio_device_queue_live(&console->device, QUEUE_RECEIVE))
        return;
    virtqueue_disable_kick(ring);
    while (input_waits(console)) {
        result = virtio_device_pop(&console->device, QUEUE_RECEIVE, &chain);
        if (result > 0)
            virtqueue_push(ring, chain.head, input_take(console, &chain));
        else if (result < 0 || !virtqueue_enable_kick(ring))
            break;
    }
    virtio_device_publish(&console->device, QUEUE_RECEIVE);
    if (result < 0)
        virtio_device_broken(&console->device);
    input_tell_room(console);
}

static void serve_output(struct virtio_console *console) {
    struct virtqueue *ring = &console->device.queues[QUEUE_TRANSMIT];
    struct virtqueue_chain chain = {.iov = console->pieces, .capacity = CHAIN_PIECES};
    uint8_t bytes[4096];
    int result;
    if (!virtio_device_queue_live(&console->device, QUEUE_TRANSMIT))
        return;
    do {
        virtqueue_disable_kick(ring);
        while ((result = virtio_device_pop(&console->device, QUEUE_TRANSMIT, &chain)) > 0) {
            size_t count;
            for (size_t done = 0; (count = virtqueue_chain_read(&chain, done, bytes, sizeof bytes));
                 done += count)
                console->config.output(console->config.context, bytes, count);
            virtqueue_push(ring, chain.head, 0);
            virtqueue_publish(ring); /* Linux waits for each one in turn, spinning */
        }
    } while (!result && virtqueue_enable_kick(ring));
    virtio_device_publish(&console->device, QUEUE_TRANSMIT);
    if (result < 0)
        virtio_device_broken(&console->device);
}

static void console_service(struct virtio_device *device) {
    serve_output((struct virtio_console *)device);
    serve_input((struct virtio_console *)device);
}

static void console_start(struct virtio_device *device) {
    virtio_worker_want(&((struct virtio_console *)device)->worker, true);
}

static void console_stop(struct virtio_device *device) {
    virtio_worker_want(&((struct virtio_console *)device)->worker, false);
}

static void console_notify(struct virtio_device *device, unsigned queue) {
    (void)queue;
    virtio_worker_kick(&((struct virtio_console *)device)->worker);
}

static void console_config_write(struct virtio_device *device, uint32_t offset, const uint8_t *data,
                                 uint32_t size) {
    struct virtio_console *console = (struct virtio_console *)device;
    if (offset == offsetof(struct console_layout, emergency) && size)
        console->config.output(console->config.context, data, 1);
}

static const struct virtio_device_ops console_ops = {
    .config_write = console_config_write,
    .start = console_start,
    .notify = console_notify,
    .stop = console_stop,
};

int virtio_console_create(struct virtio_console **result_console, const struct virtio_console_config *config,
                          struct guest_mem *mem) {
    static const uint16_t sizes[QUEUE_COUNT] = {QUEUE_SIZE, QUEUE_SIZE};
    const struct console_layout layout = {.columns = config->columns, .rows = config->rows, .max_ports = 1};
    struct virtio_console *console = calloc(1, sizeof *console);
    if (!console)
        return -ENOMEM;
    console->config = *config;
    pthread_mutex_init(&console->lock, NULL);
    uint64_t features = 1ull << CONSOLE_F_SIZE | 1ull << CONSOLE_F_EMERG_WRITE;
    int result = virtio_device_init(&console->device, &console_ops, VIRTIO_ID_CONSOLE, mem, features,
                                    QUEUE_COUNT, sizes);
    if (result)
        goto free_console;
    memcpy(console->device.config, &layout, sizeof layout);
    console->device.config_size = sizeof layout;
    result = virtio_pci_init(&console->transport, "virtio-console", &console->device,
                             PCI_CLASS_COMMUNICATION_OTHER);
    if (result)
        goto destroy_device;
    result = virtio_worker_start(&console->worker, "nestor-console", &console->device, console_service);
    if (result)
        goto destroy_pci;
    *result_console = console;
    return 0;
destroy_pci:
    virtio_pci_destroy(&console->transport);
destroy_device:
    virtio_device_destroy(&console->device);
free_console:
    pthread_mutex_destroy(&console->lock);
    free(console);
    return result;
}

void virtio_console_destroy(struct virtio_console *console) {
    virtio_device_quiesce(&console->device);
    virtio_worker_end(&console->worker);
    virtio_pci_destroy(&console->transport);
    virtio_device_destroy(&console->device);
    pthread_mutex_destroy(&console->lock);
    free(console);
}

struct pci_device *virtio_console_pci(struct virtio_console *console) {
    return &console->transport.pci;
}

size_t virtio_console_input(struct virtio_console *console, const uint8_t *data, size_t length) {
    pthread_mutex_lock(&console->lock);
    size_t count = INPUT_BYTES - console->input_count < length ? INPUT_BYTES - console->input_count : length;
    for (size_t i = 0; i < count; i++)
        console->input[(console->input_first + console->input_count + i) % INPUT_BYTES] = data[i];
    console->input_count += count;
    console->input_refused |= count < length;
    pthread_mutex_unlock(&console->lock);
    virtio_worker_kick(&console->worker);
    return count;
}

void virtio_console_resize(struct virtio_console *console, uint16_t columns, uint16_t rows) {
    uint16_t size[2] = {columns, rows};
    virtio_device_config_update(&console->device, offsetof(struct console_layout, columns), size,
                                sizeof size);
}

void virtio_console_quiesce(struct virtio_console *console) {
    virtio_device_quiesce(&console->device);
}

void virtio_console_resume(struct virtio_console *console) {
    virtio_device_resume(&console->device);
}
