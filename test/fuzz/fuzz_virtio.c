/* Fuzzer of the virtio devices: the input is a guest that writes what it likes into ring memory and
 * registers.
 *
 * Input: one byte chooses the device and whether it is started, then operations: an opcode byte and its
 * little-endian operands. To get deep quickly, some operations do what a driver does: negotiate, set up a
 * queue, make a chain available. All memory that addresses can usefully name is the 64 KiB from RING_AREA on,
 * RAM is 1 MiB, and addresses outside are drawn as well. What the devices must hold to: no access outside RAM
 * (the sanitizers see to it: RAM ends at a guard page), no endless loop, and a destroy that comes
 * back.
 */
#define _GNU_SOURCE
#include "devices/net_backend.h"
#include "devices/virtio_blk.h"
#include "devices/virtio_console.h"
#include "devices/virtio_net.h"
#include "devices/virtio_rng.h"

#include <fcntl.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#define RAM (1 * MIB)
#define RING_AREA 0x10000
#define RING_BYTES 0x10000
#define OPERATIONS_MAX 400
#define IMAGE_BYTES (256 * KIB + 100)

struct input {
    const uint8_t *at;
    size_t left;
};

static uint64_t take(struct input *input, unsigned bytes) {
    uint64_t value = 0;
    if (bytes > input->left)
        bytes = (unsigned)input->left;
    memcpy(&value, input->at, bytes);
    input->at += bytes;
    input->left -= bytes;
    return value;
}

/* A network that hands every frame back, on its own thread. */
struct echo {
    struct net_backend base;
    const struct net_client *client;
    void *context;
    pthread_mutex_t lock;
    pthread_cond_t wake;
    bool kicked, quit, started;
    pthread_t thread;
};

static void *echo_run(void *argument) {
    struct echo *echo = argument;
    pthread_mutex_lock(&echo->lock);
    while (!echo->quit) {
        if (!echo->kicked) {
            pthread_cond_wait(&echo->wake, &echo->lock);
            continue;
        }
        echo->kicked = false;
        pthread_mutex_unlock(&echo->lock);
        bool again = echo->client->service(echo->context);
        echo->client->received(echo->context);
        pthread_mutex_lock(&echo->lock);
        echo->kicked |= again;
    }
    pthread_mutex_unlock(&echo->lock);
    return NULL;
}

static int echo_start(struct net_backend *backend, const struct net_client *client, void *context) {
    struct echo *echo = (struct echo *)backend;
    echo->client = client;
    echo->context = context;
    echo->started = !pthread_create(&echo->thread, NULL, echo_run, echo);
    return echo->started ? 0 : -1;
}

static void echo_wake(struct echo *echo, bool *flag) {
    pthread_mutex_lock(&echo->lock);
    *flag = true;
    pthread_cond_signal(&echo->wake);
    pthread_mutex_unlock(&echo->lock);
}

static void echo_kick(struct net_backend *backend) {
    echo_wake((struct echo *)backend, &((struct echo *)backend)->kicked);
}

static void echo_send(struct net_backend *backend, const uint8_t *frame, size_t length) {
    struct echo *echo = (struct echo *)backend;
    uint8_t *copy = malloc(length); /* of exactly that length */
    memcpy(copy, frame, length);
    echo->client->receive(echo->context, copy, length);
    free(copy);
}

static void echo_destroy(struct net_backend *backend) {
    struct echo *echo = (struct echo *)backend;
    if (echo->started) {
        echo_wake(echo, &echo->quit);
        pthread_join(echo->thread, NULL);
    }
    pthread_cond_destroy(&echo->wake);
    pthread_mutex_destroy(&echo->lock);
    free(echo);
}

static struct net_backend *echo_create(bool large) {
    static const struct net_backend_ops ops = {
        .start = echo_start, .kick = echo_kick, .send = echo_send, .destroy = echo_destroy};
    struct echo *echo = calloc(1, sizeof *echo);
    echo->base = (struct net_backend){.ops = &ops, .frame_max = large ? NET_FRAME_MAX : 1518};
    pthread_mutex_init(&echo->lock, NULL);
    pthread_cond_init(&echo->wake, NULL);
    return &echo->base;
}

static void ignore_output(void *context, const uint8_t *data, size_t length) {
    (void)context;
    uint8_t sum = 0;
    for (size_t i = 0; i < length; i++)
        sum ^= data[i];
    __asm__ volatile("" : : "r"(sum)); /* it has been read */
}

static void ignore_message(void *context, uint64_t address, uint32_t data) {
    (void)context;
    (void)address;
    (void)data;
}

static bool map_bar(void *context, struct pci_bar *bar, uint64_t address) {
    (void)context;
    bar->mapped = address;
    return true;
}

struct fuzz {
    struct guest_mem mem;
    struct pci_root *root;
    struct pci_device *pci;
    struct virtio_console *console;
    uint16_t exposed[2];
};

static void write_reg(struct fuzz *fuzz, uint64_t offset, unsigned size, uint64_t value) {
    pci_bar_write(&fuzz->pci->bars[0], offset, size, value);
}

/* Mostly addresses in the ring area, now and then any. */
static uint64_t take_address(struct input *input) {
    uint64_t address = take(input, 2);
    if ((address & 0xf) == 0xf)
        return take(input, 8);
    return RING_AREA + address;
}

static void set_up_queue(struct fuzz *fuzz, struct input *input) {
    write_reg(fuzz, 22, 2, take(input, 1) & 3);
    write_reg(fuzz, 24, 2, 1u << (take(input, 1) & 7));
    write_reg(fuzz, 32, 8, RING_AREA + (take(input, 2) & 0x3ff0));
    write_reg(fuzz, 40, 8, RING_AREA + (take(input, 2) & 0x3ffe));
    write_reg(fuzz, 48, 8, RING_AREA + (take(input, 2) & 0x3ffc));
    write_reg(fuzz, 28, 2, 1);
}

static void negotiate(struct fuzz *fuzz, struct input *input) {
    write_reg(fuzz, 20, 1, 0);
    write_reg(fuzz, 20, 1, 3);
    write_reg(fuzz, 0, 4, 0);
    uint64_t offered = pci_bar_read(&fuzz->pci->bars[0], 4, 4);
    write_reg(fuzz, 8, 4, 0);
    write_reg(fuzz, 12, 4, offered & ~take(input, 4));
    write_reg(fuzz, 8, 4, 1);
    write_reg(fuzz, 12, 4, 1);
    write_reg(fuzz, 20, 1, 11);
}

static void write_memory(struct fuzz *fuzz, struct input *input) {
    uint64_t at = RING_AREA + take(input, 2);
    size_t length = take(input, 1);
    if (length > input->left)
        length = input->left;
    if (length)
        (void)!guest_mem_write(&fuzz->mem, at, input->at, length);
    input->at += length;
    input->left -= length;
}

static void write_descriptor(struct fuzz *fuzz, struct input *input) {
    uint64_t at = RING_AREA + (take(input, 2) & 0x3ff0);
    struct {
        uint64_t address;
        uint32_t length;
        uint16_t flags, next;
    } descriptor;
    descriptor.address = take_address(input);
    descriptor.length = (uint32_t)take(input, 2);
    uint8_t flags = (uint8_t)take(input, 1);
    descriptor.flags = flags & 7;
    if (flags & 0x80)
        descriptor.length <<= 16;
    descriptor.next = (uint16_t)take(input, 1);
    (void)!guest_mem_write(&fuzz->mem, at, &descriptor, sizeof descriptor);
}

/* Make a chain available where driver_start puts the rings of queues 0 and 1, 16 entries each.
 */
static void expose(struct fuzz *fuzz, struct input *input) {
    unsigned queue = take(input, 1) & 1;
    uint64_t available = RING_AREA + 0x1000 + 0x100 * queue;
    uint16_t head = take(input, 1) & 15;
    uint64_t slot = available + 4 + 2 * (fuzz->exposed[queue]++ & 15);
    if (guest_mem_write(&fuzz->mem, slot, &head, 2) ||
        guest_mem_write(&fuzz->mem, available + 2, &fuzz->exposed[queue], 2))
        return;
    write_reg(fuzz, 0x3000 + 4 * queue, 2, queue);
}

/* A whole chain that makes sense, but for its content. */
static void expose_chain(struct fuzz *fuzz, struct input *input) {
    struct {
        uint64_t address;
        uint32_t length;
        uint16_t flags, next;
    } chain[3];
    unsigned queue = take(input, 1) & 1, head = take(input, 1) & 12, kinds = (unsigned)take(input, 1);
    for (unsigned i = 0; i < 3; i++) {
        chain[i].address = RING_AREA + 0x4000 + (take(input, 2) & 0x7fff);
        chain[i].length = (uint32_t)take(input, 2) & 0x3fff;
        chain[i].flags = (uint16_t)((i < 2) | (kinds >> i & 1) << 1);
        chain[i].next = (uint16_t)(head + i + 1);
    }
    if (kinds & 8) {
        uint8_t header[16] = {(uint8_t)(kinds >> 4), 0, 0, 0, 0, 0, 0, 0, (uint8_t)kinds};
        chain[0].length = 16;
        (void)!guest_mem_write(&fuzz->mem, chain[0].address, header, sizeof header);
    }
    (void)!guest_mem_write(&fuzz->mem, RING_AREA + 0x400 * queue + 16 * head, chain, sizeof chain);
    uint8_t rest[] = {(uint8_t)queue, (uint8_t)head};
    struct input again = {rest, sizeof rest};
    expose(fuzz, &again);
}

static void operate(struct fuzz *fuzz, struct input *input) {
    switch (take(input, 1) % 18) {
    case 0:
    case 1:
        write_memory(fuzz, input);
        break;
    case 2:
    case 3:
        write_descriptor(fuzz, input);
        break;
    case 4:
        negotiate(fuzz, input);
        break;
    case 5:
        set_up_queue(fuzz, input);
        break;
    case 6:
        write_reg(fuzz, 20, 1, 15);
        break;
    case 7:
    case 8:
        write_reg(fuzz, 0x3000 + (take(input, 1) & 3) * 4, 2, 0);
        break;
    case 9: {
        uint64_t offset = take(input, 2) & 0x7fff;
        unsigned size = 1u << (take(input, 1) & 3);
        if (offset + size <= 0x8000)
            write_reg(fuzz, offset, size, take(input, size));
        break;
    }
    case 10: {
        uint64_t offset = take(input, 2) & 0x7fff;
        unsigned size = 1u << (take(input, 1) & 3);
        if (offset + size <= 0x8000)
            pci_bar_read(&fuzz->pci->bars[0], offset, size);
        break;
    }
    case 11: {
        uint64_t offset = 1 << 15 | (take(input, 1) & 0xfc);
        pci_ecam_write(fuzz->root, offset, 4, take(input, 4));
        pci_ecam_read(fuzz->root, offset, 4);
        break;
    }
    case 12:
        if (fuzz->console)
            virtio_console_input(fuzz->console, input->at, input->left < 50 ? input->left : 50);
        break;
    case 13:
        pci_root_reset(fuzz->root);
        fuzz->exposed[0] = fuzz->exposed[1] = 0;
        break;
    case 14:
        expose(fuzz, input);
        break;
    default:
        expose_chain(fuzz, input);
        break;
    }
}

/* The operations of a driver that takes all features and sets up two queues. */
static const uint8_t driver_start[] = {
    4, 0, 0, 0,    0,                            /* negotiate */
    5, 0, 4, 0x00, 0x00, 0x00, 0x10, 0x00, 0x18, /* queue 0 */
    5, 1, 4, 0x00, 0x04, 0x00, 0x11, 0x00, 0x19, /* queue 1 */
    6,                                           /* DRIVER_OK */
};

static const char *image_path(void) {
    static char path[64];
    if (!path[0]) {
        int fd = memfd_create("fuzz-disk", 0);
        if (fd < 0 || ftruncate(fd, IMAGE_BYTES))
            abort();
        snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
    }
    return path;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    struct input input = {data, size};
    struct fuzz fuzz = {0};
    struct virtio_blk *blk = NULL;
    struct virtio_net *net = NULL;
    struct virtio_rng *rng = NULL;
    struct pci_root_config root_config = {.map = map_bar, .msi = {ignore_message, NULL}};
    uint8_t kind = (uint8_t)take(&input, 1);
    if (guest_mem_create(&fuzz.mem, RAM, 0))
        abort();
    /* A guard behind RAM, where nothing else happens to be. */
    void *guard = mmap(fuzz.mem.base + RAM, PAGE_SIZE, PROT_NONE,
                       MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE, -1, 0);
    fuzz.root = pci_root_create(&root_config);
    if (!fuzz.root)
        abort();
    int result = 0;
    if (kind % 8 < 3) {
        struct virtio_blk_config config = {.path = image_path(),
                                           .read_only = kind & 8,
                                           .queues = 1 + (kind >> 6),
                                           .serial = "fuzz",
                                           .engine = kind & 16 ? DISK_ENGINE_THREADS : DISK_ENGINE_AUTO};
        result = virtio_blk_create(&blk, &config, &fuzz.mem);
    } else if (kind % 8 < 6) {
        struct virtio_net_config config = {.backend = echo_create(kind & 8)};
        result = virtio_net_create(&net, &config, &fuzz.mem);
    } else if (kind % 8 == 6) {
        result = virtio_rng_create(&rng, &fuzz.mem);
    } else {
        struct virtio_console_config config = {.output = ignore_output};
        result = virtio_console_create(&fuzz.console, &config, &fuzz.mem);
    }
    if (result)
        abort();
    fuzz.pci = blk   ? virtio_blk_pci(blk)
               : net ? virtio_net_pci(net)
               : rng ? virtio_rng_pci(rng)
                     : virtio_console_pci(fuzz.console);
    struct pci_windows windows = {.mem32_base = 0xc0000000,
                                  .mem32_end = 0xe0000000,
                                  .mem64_base = 0x800000000,
                                  .mem64_end = 0x900000000,
                                  .io_base = 0x1000,
                                  .io_end = 0x10000};
    if (pci_root_attach(fuzz.root, fuzz.pci, 1) != 1 || pci_root_assign(fuzz.root, &windows))
        abort();
    if (kind & 32) {
        struct input started = {driver_start, sizeof driver_start};
        while (started.left)
            operate(&fuzz, &started);
    }
    for (unsigned i = 0; i < OPERATIONS_MAX && input.left; i++)
        operate(&fuzz, &input);
    if (blk && virtio_blk_destroy(blk))
        abort();
    if (net)
        virtio_net_destroy(net);
    if (rng)
        virtio_rng_destroy(rng);
    if (fuzz.console)
        virtio_console_destroy(fuzz.console);
    pci_root_destroy(fuzz.root);
    if (guard != MAP_FAILED)
        munmap(guard, PAGE_SIZE);
    guest_mem_destroy(&fuzz.mem);
    return 0;
}
