/* virtio-blk against real files, with both I/O engines: data, flush, discard, zeroes, odd sizes, read-only,
 * locking, many requests at once, interrupts by every scheme, malformed chains, resets under load. */
#define _GNU_SOURCE
#include "devices/virtio_blk.h"
#include "virtio_guest.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

enum { T_IN = 0, T_OUT = 1, T_FLUSH = 4, T_GET_ID = 8, T_DISCARD = 11, T_WRITE_ZEROES = 13, T_UNKNOWN = 99 };
enum { S_OK = 0, S_IOERR = 1, S_UNSUPP = 2 };
#define ALL_FEATURES (~0ull)

static char image_path[4096];

struct disk {
    struct guest guest;
    struct virtio_blk *blk;
    struct guest_queue queue[2];
    uint64_t header, status, data; /* buffers of guest RAM */
};

static void image_make(off_t size) {
    const char *directory = getenv("TMPDIR");
    snprintf(image_path, sizeof image_path, "%s/nestor-virtio-blk-%d.raw", directory ? directory : "/tmp",
             (int)getpid());
    int fd = open(image_path, O_CREAT | O_TRUNC | O_RDWR, 0600);
    CHECK(fd >= 0 && !ftruncate(fd, size));
    close(fd);
}

static void image_remove(void) {
    unlink(image_path);
}

static void image_check(uint64_t offset, const void *expected, size_t length) {
    uint8_t *found = malloc(length);
    int fd = open(image_path, O_RDONLY);
    CHECK(fd >= 0 && pread(fd, found, length, (off_t)offset) == (ssize_t)length);
    CHECK(!memcmp(found, expected, length));
    close(fd);
    free(found);
}

static void disk_open(struct disk *disk, struct virtio_blk_config config, uint64_t features, bool msix) {
    memset(disk, 0, sizeof *disk);
    guest_open(&disk->guest, 64 * MIB);
    config.path = image_path;
    CHECK(!virtio_blk_create(&disk->blk, &config, &disk->guest.mem));
    guest_attach(&disk->guest, virtio_blk_pci(disk->blk), 2);
    guest_negotiate(&disk->guest, features, msix);
    guest_queue_setup(&disk->guest, &disk->queue[0], 0, 128);
    if (config.queues > 1)
        guest_queue_setup(&disk->guest, &disk->queue[1], 1, 16);
    guest_driver_ok(&disk->guest);
    disk->header = guest_alloc(&disk->guest, 16 * 256);
    disk->status = guest_alloc(&disk->guest, 256);
    disk->data = guest_alloc(&disk->guest, 8 * MIB);
}

static void disk_close(struct disk *disk) {
    CHECK(!virtio_blk_destroy(disk->blk));
    guest_close(&disk->guest);
}

static void add_request(struct disk *disk, struct guest_queue *queue, unsigned slot, uint32_t type,
                        uint64_t sector, uint64_t data, uint32_t length, bool indirect) {
    uint64_t header = disk->header + 16 * slot;
    *(uint32_t *)guest_ptr(&disk->guest, header) = type;
    *(uint64_t *)guest_ptr(&disk->guest, header + 8) = sector;
    *(uint8_t *)guest_ptr(&disk->guest, disk->status + slot) = 0xee;
    bool in = type == T_IN || type == T_GET_ID;
    /* Data in two pieces, the first an odd one. */
    uint32_t first = length > 7 ? 7 : length;
    struct guest_buffer buffers[] = {{header, 16, false},
                                     {data, first, in},
                                     {data + first, length - first, in},
                                     {disk->status + slot, 1, true}};
    if (!length)
        buffers[1] = buffers[3];
    guest_add(queue, buffers, length ? 4 : 2, indirect);
}

static uint8_t request_status(struct disk *disk, unsigned slot) {
    return *(uint8_t *)guest_ptr(&disk->guest, disk->status + slot);
}

static uint8_t request(struct disk *disk, uint32_t type, uint64_t sector, uint64_t data, uint32_t length) {
    uint32_t written = 0;
    add_request(disk, &disk->queue[0], 0, type, sector, data, length, disk->guest.features & GUEST_INDIRECT);
    guest_kick(&disk->queue[0]);
    guest_wait(&disk->queue[0], &written);
    uint8_t status = request_status(disk, 0);
    if (status == S_OK && type == T_IN)
        CHECK(written == length + 1);
    return status;
}

static void fill(void *at, size_t length, unsigned seed) {
    uint8_t *bytes = at;
    for (size_t i = 0; i < length; i++)
        bytes[i] = (uint8_t)((seed = seed * 1103515245 + 12345) >> 16);
}

struct range {
    uint64_t sector;
    uint32_t sectors, flags;
};

static uint8_t ranges_request(struct disk *disk, uint32_t type, const struct range *ranges, unsigned count) {
    memcpy(guest_ptr(&disk->guest, disk->data), ranges, count * sizeof *ranges);
    return request(disk, type, 0, disk->data, (uint32_t)(count * sizeof *ranges));
}

static void test_data(enum disk_engine_kind engine, uint64_t features, bool msix) {
    struct disk disk;
    static uint8_t zeroes[1 * MIB];
    image_make(8 * MIB);
    disk_open(&disk, (struct virtio_blk_config){.engine = engine, .serial = "SERIAL-0123456789"}, features,
              msix);
    void *data = guest_ptr(&disk.guest, disk.data);
    CHECK(guest_read(&disk.guest, disk.guest.config, 8) == 8 * MIB / 512);
    CHECK(guest_read(&disk.guest, disk.guest.config + 20, 4) == 512);

    fill(data, 1 * MIB, 1);
    CHECK(request(&disk, T_OUT, 16, disk.data, 1 * MIB) == S_OK);
    CHECK(request(&disk, T_FLUSH, 0, 0, 0) == S_OK);
    image_check(16 * 512, data, 1 * MIB);
    CHECK(request(&disk, T_IN, 16, disk.data + 1 * MIB, 1 * MIB) == S_OK);
    CHECK(!memcmp(data, (uint8_t *)data + 1 * MIB, 1 * MIB));

    CHECK(request(&disk, T_GET_ID, 0, disk.data, 20) == S_OK);
    CHECK(!memcmp(data, "SERIAL-0123456789\0\0\0", 20));
    CHECK(request(&disk, T_UNKNOWN, 0, disk.data, 512) == S_UNSUPP);
    /* The last sector, behind it, and wrapping around. */
    CHECK(request(&disk, T_IN, 8 * MIB / 512 - 1, disk.data, 512) == S_OK);
    CHECK(request(&disk, T_IN, 8 * MIB / 512 - 1, disk.data, 1024) == S_IOERR);
    CHECK(request(&disk, T_OUT, UINT64_MAX, disk.data, 512) == S_IOERR);
    CHECK(request(&disk, T_OUT, UINT64_MAX / 512, disk.data, 1024) == S_IOERR);
    CHECK(request(&disk, T_IN, 0, disk.data, 513) == S_IOERR);

    struct range ranges[] = {{16, 8, 0}, {32, 16, 0}};
    CHECK(ranges_request(&disk, T_DISCARD, ranges, 2) == S_OK);
    image_check(16 * 512, zeroes, 8 * 512);
    image_check(32 * 512, zeroes, 16 * 512);
    ranges[0] = (struct range){24, 8, 0};
    ranges[1] = (struct range){48, 1000, 1};
    CHECK(ranges_request(&disk, T_WRITE_ZEROES, ranges, 2) == S_OK);
    image_check(16 * 512, zeroes, 1032 * 512);
    fill(guest_ptr(&disk.guest, disk.data + 2 * MIB), 512, 7);
    ranges[0].flags = 1;
    CHECK(ranges_request(&disk, T_DISCARD, ranges, 1) == S_UNSUPP);
    ranges[0] = (struct range){8 * MIB / 512 - 1, 2, 0};
    CHECK(ranges_request(&disk, T_DISCARD, ranges, 1) == S_IOERR);
    CHECK(ranges_request(&disk, T_WRITE_ZEROES, ranges, 1) == S_IOERR);
    ranges[0] = (struct range){0, UINT32_MAX, 0};
    CHECK(ranges_request(&disk, T_WRITE_ZEROES, ranges, 1) == S_IOERR);
    CHECK(request(&disk, T_DISCARD, 0, disk.data, 15) == S_IOERR);
    CHECK(request(&disk, T_DISCARD, 0, 0, 0) == S_IOERR);
    struct stat stat_now;
    CHECK(!stat(image_path, &stat_now) && stat_now.st_size == 8 * MIB);
    printf("data: %s, features %llx, %s: ok\n", virtio_blk_engine(disk.blk),
           (unsigned long long)disk.guest.features, msix ? "MSI-X" : "INTx");
    disk_close(&disk);
}

static void test_odd_size(enum disk_engine_kind engine) {
    struct disk disk;
    struct stat stat_now;
    image_make(1000);
    int fd = open(image_path, O_RDWR);
    CHECK(pwrite(fd, "tail", 4, 996) == 4);
    close(fd);
    disk_open(&disk, (struct virtio_blk_config){.engine = engine}, ALL_FEATURES, true);
    uint8_t *data = guest_ptr(&disk.guest, disk.data);
    CHECK(guest_read(&disk.guest, disk.guest.config, 8) == 2);
    memset(data, 0xff, 1024);
    CHECK(request(&disk, T_IN, 0, disk.data, 1024) == S_OK);
    CHECK(!memcmp(data + 996, "tail", 4));
    for (unsigned i = 1000; i < 1024; i++)
        CHECK(!data[i]);
    fill(data, 512, 3);
    CHECK(request(&disk, T_OUT, 1, disk.data, 512) == S_OK);
    CHECK(!stat(image_path, &stat_now) && stat_now.st_size == 1024);
    image_check(512, data, 512);
    disk_close(&disk);
}

static void test_read_only(enum disk_engine_kind engine) {
    struct disk disk;
    image_make(1 * MIB);
    disk_open(&disk, (struct virtio_blk_config){.engine = engine, .read_only = true}, ALL_FEATURES, true);
    CHECK(disk.guest.features & (1 << 5));
    CHECK(request(&disk, T_IN, 0, disk.data, 512) == S_OK);
    CHECK(request(&disk, T_OUT, 0, disk.data, 512) == S_IOERR);
    CHECK(request(&disk, T_FLUSH, 0, 0, 0) == S_OK);
    struct range range = {0, 8, 0};
    CHECK(ranges_request(&disk, T_DISCARD, &range, 1) != S_OK);
    CHECK(ranges_request(&disk, T_WRITE_ZEROES, &range, 1) == S_IOERR);
    disk_close(&disk);
}

static void test_locking(void) {
    struct disk_image writer, reader, other;
    image_make(1 * MIB);
    CHECK(!disk_raw_open(&writer, image_path, false));
    CHECK(disk_raw_open(&other, image_path, false) == -EBUSY);
    CHECK(disk_raw_open(&other, image_path, true) == -EBUSY);
    CHECK(!disk_raw_close(&writer));
    CHECK(!disk_raw_open(&reader, image_path, true));
    CHECK(!disk_raw_open(&other, image_path, true));
    CHECK(disk_raw_open(&writer, image_path, false) == -EBUSY);
    CHECK(!disk_raw_close(&reader) && !disk_raw_close(&other));
    CHECK(disk_raw_open(&other, "/nonexistent/disk.raw", true) == -ENOENT);
    CHECK(disk_raw_open(&other, "/tmp", true) == -EINVAL);
    image_make(0);
    CHECK(disk_raw_open(&other, image_path, true) == -EINVAL);
}

/* Many requests in flight on two queues, checked against a copy; batches need fewer interrupts than requests.
 */
static void test_load(enum disk_engine_kind engine, uint64_t features) {
    struct disk disk;
    enum { ROUNDS = 200, BATCH = 24, BLOCK = 4096 };
    image_make(8 * MIB);
    disk_open(&disk, (struct virtio_blk_config){.engine = engine, .queues = 2}, features, true);
    uint8_t *data = guest_ptr(&disk.guest, disk.data);
    bool indirect = disk.guest.features & GUEST_INDIRECT;
    uint64_t brk = disk.guest.brk;
    for (unsigned round = 0; round < ROUNDS; round++) {
        disk.guest.brk = brk;
        for (unsigned i = 0; i < BATCH; i++) {
            fill(data + i * BLOCK, BLOCK, round * BATCH + i);
            add_request(&disk, &disk.queue[0], i, T_OUT, (uint64_t)((round * 7 + i * 13) % 2000) * 8,
                        disk.data + i * BLOCK, BLOCK, indirect);
        }
        guest_kick(&disk.queue[0]);
        /* Meanwhile the other queue reads. */
        for (unsigned i = 0; i < 3; i++)
            add_request(&disk, &disk.queue[1], 100 + i, T_IN, 0, disk.data + 4 * MIB + i * BLOCK, BLOCK,
                        indirect);
        guest_kick(&disk.queue[1]);
        guest_set_used_event(&disk.queue[0], (uint16_t)(disk.queue[0].seen_used + BATCH - 1));
        for (unsigned i = 0; i < BATCH; i++)
            guest_wait(&disk.queue[0], NULL);
        for (unsigned i = 0; i < 3; i++)
            guest_wait(&disk.queue[1], NULL);
        for (unsigned i = 0; i < BATCH; i++) {
            CHECK(request_status(&disk, i) == S_OK);
            add_request(&disk, &disk.queue[0], i, T_IN, (uint64_t)((round * 7 + i * 13) % 2000) * 8,
                        disk.data + 2 * MIB + i * BLOCK, BLOCK, indirect);
        }
        guest_kick(&disk.queue[0]);
        for (unsigned i = 0; i < BATCH; i++)
            guest_wait(&disk.queue[0], NULL);
        CHECK(!memcmp(data, data + 2 * MIB, BATCH * BLOCK));
    }
    printf("load: %s: %u requests, %u kicks, %u interrupts\n", virtio_blk_engine(disk.blk),
           ROUNDS * BATCH * 2, disk.queue[0].kicks, guest_messages(&disk.guest, 1));
    disk_close(&disk);
}

/* No interrupt before the event asked for, exactly one at it, and no doorbell wanted while busy. */
static void test_event_idx(enum disk_engine_kind engine) {
    struct disk disk;
    image_make(1 * MIB);
    disk_open(&disk, (struct virtio_blk_config){.engine = engine}, GUEST_EVENT_IDX, true);
    guest_set_used_event(&disk.queue[0], 9);
    for (unsigned i = 0; i < 9; i++) {
        add_request(&disk, &disk.queue[0], i, T_IN, 0, disk.data, 512, false);
        guest_kick(&disk.queue[0]);
        while (guest_take(&disk.queue[0], NULL) < 0)
            usleep(100);
    }
    usleep(20000);
    CHECK(guest_messages(&disk.guest, 1) == 0);
    add_request(&disk, &disk.queue[0], 9, T_IN, 0, disk.data, 512, false);
    guest_kick(&disk.queue[0]);
    CHECK(guest_wait_messages(&disk.guest, 1, 1, 5000));
    disk_close(&disk);
}

/* Chains that no driver builds: the device asks for a reset, and works again after it. */
static void test_hostile(enum disk_engine_kind engine) {
    struct disk disk;
    for (unsigned kind = 0; kind < 14; kind++) {
        image_make(1 * MIB);
        disk_open(&disk, (struct virtio_blk_config){.engine = engine}, kind == 8 ? 0 : ALL_FEATURES, true);
        struct guest_queue *queue = &disk.queue[0];
        struct guest_descriptor *table = queue->descriptors;
        uint64_t header = disk.header, status = disk.status;
        *(uint32_t *)guest_ptr(&disk.guest, header) = T_IN;
        *(uint64_t *)guest_ptr(&disk.guest, header + 8) = 0;
        uint16_t head = 0;
        table[0] = (struct guest_descriptor){header, 16, 1, 1};
        table[1] = (struct guest_descriptor){disk.data, 512, 3, 2};
        table[2] = (struct guest_descriptor){status, 1, 2, 0};
        switch (kind) {
        case 0: /* a loop */
            table[2] = (struct guest_descriptor){status, 1, 3, 1};
            break;
        case 1: /* next outside */
            table[0].next = 128;
            break;
        case 2: /* head outside */
            head = 500;
            break;
        case 3: /* no RAM there */
            table[1].address = 0xfee00000;
            break;
        case 4: /* over the end of RAM */
            table[1].address = 64 * MIB - 511;
            break;
        case 5: /* wrapping address */
            table[1].address = UINT64_MAX - 100;
            break;
        case 6: /* readable after writable */
            table[2].flags = 0;
            break;
        case 7: /* indirect table in an indirect table */
            table[0] = (struct guest_descriptor){queue->descriptors_gpa + 16, 32, 4, 0};
            table[1] = (struct guest_descriptor){header, 16, 4, 0};
            break;
        case 8: /* indirect but not negotiated */
            table[0] = (struct guest_descriptor){queue->descriptors_gpa + 16, 32, 4, 0};
            break;
        case 9: /* indirect table of odd length */
            table[0] = (struct guest_descriptor){queue->descriptors_gpa + 16, 33, 4, 0};
            break;
        case 10: /* indirect table that is huge and loops */
            table[0] = (struct guest_descriptor){disk.data, 4 * MIB, 4, 0};
            *(struct guest_descriptor *)guest_ptr(&disk.guest, disk.data) =
                (struct guest_descriptor){header, 0, 1, 0};
            break;
        case 11: /* too many made available */
            queue->available_index += 1000;
            break;
        case 12: /* nowhere to write the status */
            table[0].flags = 0;
            break;
        case 13: /* lengths that overflow 32 bits */
            for (unsigned i = 0; i < 127; i++)
                table[i] = (struct guest_descriptor){0, 63 * MIB, 1, (uint16_t)(i + 1)};
            break;
        }
        guest_expose(queue, head);
        guest_write(&disk.guest, disk.guest.notify, 2, 0);
        CHECK(guest_wait_messages(&disk.guest, 0, 1, 5000));
        CHECK(guest_status(&disk.guest) & 64);
        guest_reset(&disk.guest);
        guest_negotiate(&disk.guest, ALL_FEATURES, true);
        guest_queue_setup(&disk.guest, queue, 0, 128);
        guest_driver_ok(&disk.guest);
        CHECK(request(&disk, T_IN, 0, disk.data, 512) == S_OK);
        disk_close(&disk);
    }
    /* Rings outside RAM. */
    image_make(1 * MIB);
    disk_open(&disk, (struct virtio_blk_config){.engine = engine}, ALL_FEATURES, true);
    guest_negotiate(&disk.guest, ALL_FEATURES, true);
    guest_write(&disk.guest, disk.guest.common + 22, 2, 0);
    guest_write(&disk.guest, disk.guest.common + 32, 8, 0xfffffffffffffff0);
    guest_write(&disk.guest, disk.guest.common + 28, 2, 1);
    CHECK(guest_status(&disk.guest) & 64);
    guest_write(&disk.guest, disk.guest.notify, 2, 0);
    /* Data too short for a header, yet with a status byte: refused, not broken. */
    guest_negotiate(&disk.guest, ALL_FEATURES, true);
    guest_queue_setup(&disk.guest, &disk.queue[0], 0, 128);
    guest_driver_ok(&disk.guest);
    struct guest_buffer buffers[] = {{disk.header, 15, false}, {disk.status, 1, true}};
    guest_add(&disk.queue[0], buffers, 2, false);
    guest_kick(&disk.queue[0]);
    guest_wait(&disk.queue[0], NULL);
    CHECK(request_status(&disk, 0) == S_IOERR);
    disk_close(&disk);
}

/* Reset and quiesce with requests in flight: nothing is written after either has been reported done. */
static void test_reset(enum disk_engine_kind engine) {
    struct disk disk;
    image_make(8 * MIB);
    disk_open(&disk, (struct virtio_blk_config){.engine = engine, .queues = 2}, ALL_FEATURES, true);
    uint64_t brk = disk.guest.brk;
    for (unsigned round = 0; round < 100; round++) {
        disk.guest.brk = brk;
        guest_negotiate(&disk.guest, ALL_FEATURES, true);
        guest_queue_setup(&disk.guest, &disk.queue[0], 0, 128);
        guest_queue_setup(&disk.guest, &disk.queue[1], 1, 16);
        guest_driver_ok(&disk.guest);
        for (unsigned i = 0; i < 30; i++)
            add_request(&disk, &disk.queue[0], i, i & 1 ? T_OUT : T_IN, 0, disk.data + i * 128 * KIB,
                        128 * KIB, false);
        guest_kick(&disk.queue[0]);
        if (round & 1)
            usleep(round * 3);
        if (round % 3 == 0) {
            virtio_blk_quiesce(disk.blk);
            uint16_t used = *(uint16_t *)(disk.queue[0].used + 2);
            usleep(500);
            CHECK(used == *(uint16_t *)(disk.queue[0].used + 2));
            virtio_blk_resume(disk.blk);
            for (unsigned i = 0; i < 30; i++)
                guest_wait(&disk.queue[0], NULL);
        }
        guest_reset(&disk.guest);
        memset(guest_ptr(&disk.guest, disk.data), 0x5a, 30 * 128 * KIB);
        usleep(200);
        uint8_t *data = guest_ptr(&disk.guest, disk.data);
        for (unsigned i = 0; i < 30 * 128 * KIB; i += 4096)
            CHECK(data[i] == 0x5a);
    }
    disk_close(&disk);
}

/* The host takes no more data: the guest sees an error and goes on. */
static void test_full(enum disk_engine_kind engine) {
    struct disk disk;
    struct rlimit before, limit;
    image_make(8 * MIB);
    disk_open(&disk, (struct virtio_blk_config){.engine = engine}, ALL_FEATURES, true);
    CHECK(!getrlimit(RLIMIT_FSIZE, &before));
    limit = (struct rlimit){4 * MIB, before.rlim_max};
    CHECK(!setrlimit(RLIMIT_FSIZE, &limit));
    uint8_t below = request(&disk, T_OUT, 0, disk.data, 64 * KIB);
    uint8_t above = request(&disk, T_OUT, 6 * MIB / 512, disk.data, 64 * KIB);
    uint8_t across = request(&disk, T_OUT, 4 * MIB / 512 - 1, disk.data, 64 * KIB);
    CHECK(!setrlimit(RLIMIT_FSIZE, &before));
    CHECK(below == S_OK && above == S_IOERR && across == S_IOERR);
    CHECK(request(&disk, T_OUT, 6 * MIB / 512, disk.data, 64 * KIB) == S_OK);
    disk_close(&disk);
}

/* A file system that cannot zero ranges (tmpfs): zeros are written. */
static void test_zeroes_by_hand(enum disk_engine_kind engine) {
    static uint8_t pattern[5 * MIB], expected[5 * MIB];
    struct disk disk;
    char kept[sizeof image_path];
    int fd = memfd_create("nestor-test-disk", MFD_CLOEXEC);
    memset(pattern, 0xa5, sizeof pattern);
    memset(expected, 0xa5, sizeof expected);
    CHECK(fd >= 0 && write(fd, pattern, sizeof pattern) == sizeof pattern);
    memcpy(kept, image_path, sizeof kept);
    snprintf(image_path, sizeof image_path, "/proc/self/fd/%d", fd);
    disk_open(&disk, (struct virtio_blk_config){.engine = engine}, ALL_FEATURES, true);
    struct range ranges[] = {{3, 1, 0}, {8, 5000, 0}, {6000, 129, 0}, {7000, 100, 1}};
    CHECK(ranges_request(&disk, T_WRITE_ZEROES, ranges, ARRAY_SIZE(ranges)) == S_OK);
    for (unsigned i = 0; i < ARRAY_SIZE(ranges); i++)
        memset(expected + ranges[i].sector * 512, 0, ranges[i].sectors * 512);
    image_check(0, expected, sizeof expected);
    disk_close(&disk);
    close(fd);
    memcpy(image_path, kept, sizeof kept);
}

static void test_window(void) {
    struct disk disk;
    image_make(3 * MIB);
    disk_open(&disk, (struct virtio_blk_config){0}, ALL_FEATURES, true);
    struct guest *guest = &disk.guest;
    uint64_t window = guest->ecam + guest->window;
    pci_ecam_write(guest->root, window + 4, 1, 0);
    pci_ecam_write(guest->root, window + 8, 4, guest->config);
    pci_ecam_write(guest->root, window + 12, 4, 4);
    CHECK(pci_ecam_read(guest->root, window + 16, 4) == 3 * MIB / 512);
    pci_ecam_write(guest->root, window + 8, 4, guest->common + 22);
    pci_ecam_write(guest->root, window + 12, 4, 2);
    pci_ecam_write(guest->root, window + 16, 2, 7);
    CHECK(guest_read(guest, guest->common + 22, 2) == 7);
    /* Nonsense is ignored. */
    pci_ecam_write(guest->root, window + 8, 4, 0xfffffffc);
    pci_ecam_write(guest->root, window + 16, 4, 7);
    pci_ecam_read(guest->root, window + 16, 4);
    pci_ecam_write(guest->root, window + 4, 1, 5);
    pci_ecam_read(guest->root, window + 16, 4);
    /* The machine's reset takes everything back. */
    pci_root_reset(guest->root);
    CHECK(guest_read(guest, guest->common + 22, 2) == 0);
    disk_close(&disk);
}

static uint64_t cpu_ns(void) {
    struct timespec time;
    clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &time);
    return (uint64_t)time.tv_sec * 1000000000 + (uint64_t)time.tv_nsec;
}

static void test_idle(enum disk_engine_kind engine) {
    struct disk disk;
    image_make(1 * MIB);
    disk_open(&disk, (struct virtio_blk_config){.engine = engine, .queues = 2}, ALL_FEATURES, true);
    CHECK(request(&disk, T_IN, 0, disk.data, 512) == S_OK);
    uint64_t before = cpu_ns();
    usleep(300000);
    CHECK(cpu_ns() - before < 3000000);
    disk_close(&disk);
}

int main(void) {
    setvbuf(stdout, NULL, _IOLBF, 0);
    signal(SIGXFSZ, SIG_IGN);
    image_make(1 * MIB);
    atexit(image_remove);
    struct virtio_blk *blk;
    struct guest guest;
    guest_open(&guest, 1 * MIB);
    struct virtio_blk_config forced = {.path = image_path, .engine = DISK_ENGINE_IO_URING};
    bool uring = !virtio_blk_create(&blk, &forced, &guest.mem);
    if (uring)
        CHECK(!virtio_blk_destroy(blk));
    guest_close(&guest);
    for (enum disk_engine_kind engine = uring ? DISK_ENGINE_IO_URING : DISK_ENGINE_THREADS;
         engine <= DISK_ENGINE_THREADS; engine++) {
        test_data(engine, ALL_FEATURES, true);
        test_data(engine, ALL_FEATURES, false);
        test_data(engine, GUEST_EVENT_IDX, true);
        test_data(engine, 0, true);
        test_data(engine, 0, false);
        test_odd_size(engine);
        test_read_only(engine);
        test_load(engine, ALL_FEATURES);
        test_load(engine, 1 << 9);
        test_event_idx(engine);
        test_hostile(engine);
        test_reset(engine);
        test_full(engine);
        test_zeroes_by_hand(engine);
        test_idle(engine);
    }
    test_locking();
    test_window();
    return 0;
}
