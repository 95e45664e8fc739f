/* virtio-rng and virtio-console, and the parts of the transport that every device shares: feature
 * negotiation, odd register accesses, vectors that do not exist, the interrupt status register. */
#include "devices/virtio_console.h"
#include "devices/virtio_rng.h"
#include "virtio_guest.h"

#include <string.h>
#include <unistd.h>

#define ALL_FEATURES (~0ull)

static void test_rng(bool msix) {
    struct guest guest;
    struct guest_queue queue;
    struct virtio_rng *rng;
    guest_open(&guest, 4 * MIB);
    CHECK(!virtio_rng_create(&rng, &guest.mem));
    guest_attach(&guest, virtio_rng_pci(rng), 4);
    guest_negotiate(&guest, ALL_FEATURES, msix);
    guest_queue_setup(&guest, &queue, 0, 8);
    guest_driver_ok(&guest);
    uint64_t data = guest_alloc(&guest, 1 * MIB);
    uint8_t *bytes = guest_ptr(&guest, data);
    for (unsigned i = 0; i < 100; i++) {
        uint32_t length;
        memset(bytes, 0, 256);
        struct guest_buffer buffers[] = {{data, 100, true}, {data + 128, 28, true}};
        guest_add(&queue, buffers, 2, false);
        guest_kick(&queue);
        guest_wait(&queue, &length);
        CHECK(length == 128);
        unsigned zeroes = 0;
        for (unsigned j = 0; j < 100; j++)
            zeroes += !bytes[j];
        CHECK(zeroes < 20 && !bytes[100] && !bytes[127] && !bytes[156]);
    }
    uint32_t length;
    struct guest_buffer large = {data, 1 * MIB, true};
    guest_add(&queue, &large, 1, false);
    guest_kick(&queue);
    guest_wait(&queue, &length);
    CHECK(length && length <= 1 * MIB);
    if (!msix) {
        CHECK(!guest.intx);
        CHECK(guest_read(&guest, guest.isr, 1) == 0);
    }
    virtio_rng_quiesce(rng);
    virtio_rng_resume(rng);
    virtio_rng_destroy(rng);
    guest_close(&guest);
}

static void test_registers(void) {
    struct guest guest;
    struct virtio_rng *rng;
    guest_open(&guest, 4 * MIB);
    CHECK(!virtio_rng_create(&rng, &guest.mem));
    guest_attach(&guest, virtio_rng_pci(rng), 4);
    uint64_t common = guest.common;
    CHECK(guest_read(&guest, common + 18, 2) == 1);
    /* Without VERSION_1, or with what was not offered, FEATURES_OK does not stick. */
    guest_write(&guest, common + 20, 1, 3);
    guest_write(&guest, common + 20, 1, 11);
    CHECK(guest_status(&guest) == 3);
    guest_write(&guest, common + 8, 4, 1);
    guest_write(&guest, common + 12, 4, 0x80000001);
    guest_write(&guest, common + 20, 1, 11);
    CHECK(guest_status(&guest) == 3);
    /* DRIVER_OK without FEATURES_OK starts nothing. */
    guest_write(&guest, common + 20, 1, 7);
    CHECK(guest_status(&guest) == 3);
    guest_write(&guest, common + 12, 4, 1);
    guest_write(&guest, common + 20, 1, 11);
    CHECK(guest_status(&guest) == 11);
    /* Frozen now. */
    guest_write(&guest, common + 12, 4, 0);
    CHECK(guest_read(&guest, common + 12, 4) == 1);
    guest_write(&guest, common, 4, 77);
    CHECK(guest_read(&guest, common + 4, 4) == 0);
    /* A vector that does not exist reads back as none. */
    guest_write(&guest, common + 26, 2, 2);
    CHECK(guest_read(&guest, common + 26, 2) == 0xffff);
    guest_write(&guest, common + 26, 2, 1);
    CHECK(guest_read(&guest, common + 26, 2) == 1);
    /* A queue that does not exist has size 0 and swallows writes. */
    guest_write(&guest, common + 22, 2, 1);
    CHECK(guest_read(&guest, common + 24, 2) == 0);
    guest_write(&guest, common + 28, 2, 1);
    guest_write(&guest, common + 32, 8, 0x1000);
    CHECK(guest_read(&guest, common + 28, 2) == 0 && guest_read(&guest, common + 32, 8) == 0);
    guest_write(&guest, common + 22, 2, 0);
    for (unsigned offset = 0; offset < 0x8000; offset++)
        for (unsigned size = 1; size <= 8; size *= 2)
            if (offset + size <= 0x8000)
                guest_read(&guest, offset, size);
    /* Sizes that are no power of two, or too large, break the queue. */
    guest_write(&guest, common + 24, 2, 48);
    guest_write(&guest, common + 28, 2, 1);
    CHECK(guest_status(&guest) & 64);
    guest_reset(&guest);
    CHECK(guest_read(&guest, common + 24, 2) == 64);
    virtio_rng_destroy(rng);
    guest_close(&guest);
}

struct output {
    pthread_mutex_t lock;
    size_t length;
    char text[65536];
    unsigned rooms;
};

static void output_add(void *context, const uint8_t *data, size_t length) {
    struct output *output = context;
    pthread_mutex_lock(&output->lock);
    CHECK(output->length + length < sizeof output->text);
    memcpy(output->text + output->length, data, length);
    output->length += length;
    pthread_mutex_unlock(&output->lock);
}

static void output_room(void *context) {
    struct output *output = context;
    __atomic_add_fetch(&output->rooms, 1, __ATOMIC_SEQ_CST);
}

static void test_console(void) {
    static struct output output = {.lock = PTHREAD_MUTEX_INITIALIZER};
    static uint8_t typed[10000], seen[10000];
    struct guest guest;
    struct guest_queue receive, transmit;
    struct virtio_console *console;
    guest_open(&guest, 4 * MIB);
    struct virtio_console_config config = {
        .output = output_add, .input_room = output_room, .context = &output, .columns = 80, .rows = 25};
    CHECK(!virtio_console_create(&console, &config, &guest.mem));
    /* Typed before anyone listens. */
    for (unsigned i = 0; i < sizeof typed; i++)
        typed[i] = (uint8_t)(i * 7 + i / 300);
    CHECK(virtio_console_input(console, typed, 100) == 100);
    guest_attach(&guest, virtio_console_pci(console), 3);
    guest_negotiate(&guest, ALL_FEATURES, true);
    guest_queue_setup(&guest, &receive, 0, 16);
    guest_queue_setup(&guest, &transmit, 1, 16);
    guest_driver_ok(&guest);
    CHECK(guest_read(&guest, guest.config, 4) == (80 | 25 << 16));
    uint64_t data = guest_alloc(&guest, 65536);
    uint8_t *bytes = guest_ptr(&guest, data);
    memcpy(bytes, "hello, console\n", 15);
    struct guest_buffer buffers[] = {{data, 5, false}, {data + 5, 10, false}};
    guest_add(&transmit, buffers, 2, false);
    guest_kick(&transmit);
    guest_wait(&transmit, NULL);
    CHECK(output.length == 15 && !memcmp(output.text, "hello, console\n", 15));
    guest_write(&guest, guest.config + 8, 4, '!');
    CHECK(output.length == 16 && output.text[15] == '!');

    size_t offered = 100, taken = 0;
    while (taken < sizeof typed) {
        struct guest_buffer buffer = {data, 64, true};
        uint32_t length;
        guest_add(&receive, &buffer, 1, false);
        guest_kick(&receive);
        offered += virtio_console_input(console, typed + offered, sizeof typed - offered);
        guest_wait(&receive, &length);
        CHECK(length && length <= 64 && taken + length <= sizeof typed);
        memcpy(seen + taken, bytes, length);
        taken += length;
    }
    CHECK(!memcmp(typed, seen, sizeof typed));
    CHECK(__atomic_load_n(&output.rooms, __ATOMIC_SEQ_CST) > 0);
    unsigned before = guest_messages(&guest, 0);
    virtio_console_resize(console, 132, 50);
    CHECK(guest_wait_messages(&guest, 0, before + 1, 1000));
    CHECK(guest_read(&guest, guest.config, 4) == (132 | 50 << 16));
    virtio_console_destroy(console);
    guest_close(&guest);
}

int main(void) {
    test_rng(true);
    test_rng(false);
    test_registers();
    test_console();
    return 0;
}
