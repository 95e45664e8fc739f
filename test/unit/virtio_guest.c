#include "virtio_guest.h"

#include <errno.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

enum { MSI_ADDRESS = 0xfee00000, STATUS = 20, QUEUE_SELECT = 22 };

static void message_arrived(void *context, uint64_t address, uint32_t data) {
    struct guest *guest = context;
    CHECK(address == MSI_ADDRESS && data < GUEST_VECTORS);
    pthread_mutex_lock(&guest->lock);
    guest->messages[data]++;
    pthread_cond_broadcast(&guest->arrived);
    pthread_mutex_unlock(&guest->lock);
}

static void intx_changed(void *context, unsigned line, bool level) {
    struct guest *guest = context;
    (void)line;
    pthread_mutex_lock(&guest->lock);
    if (level && !guest->intx)
        guest->intx_edges++;
    guest->intx = level;
    pthread_cond_broadcast(&guest->arrived);
    pthread_mutex_unlock(&guest->lock);
}

static bool bar_mapped(void *context, struct pci_bar *bar, uint64_t address) {
    (void)context;
    bar->mapped = address;
    return true;
}

void guest_open(struct guest *guest, uint64_t ram) {
    memset(guest, 0, sizeof *guest);
    pthread_mutex_init(&guest->lock, NULL);
    pthread_cond_init(&guest->arrived, NULL);
    CHECK(!guest_mem_create(&guest->mem, ram, 0));
    guest->brk = 0x10000;
    struct pci_root_config config = {.map = bar_mapped, .context = guest, .msi = {message_arrived, guest}};
    for (unsigned i = 0; i < 4; i++)
        config.intx[i] = (struct irq_line){intx_changed, guest, i};
    guest->root = pci_root_create(&config);
    CHECK(guest->root);
}

void guest_close(struct guest *guest) {
    pci_root_destroy(guest->root);
    guest_mem_destroy(&guest->mem);
    pthread_cond_destroy(&guest->arrived);
    pthread_mutex_destroy(&guest->lock);
}

static uint64_t config_read(struct guest *guest, unsigned offset, unsigned size) {
    return pci_ecam_read(guest->root, guest->ecam + offset, size);
}

static void config_write(struct guest *guest, unsigned offset, unsigned size, uint64_t value) {
    pci_ecam_write(guest->root, guest->ecam + offset, size, value);
}

void guest_attach(struct guest *guest, struct pci_device *pci, unsigned virtio_id) {
    guest->pci = pci;
    int slot = pci_root_attach(guest->root, pci, 0);
    CHECK(slot > 0);
    guest->ecam = (uint64_t)slot << 15;
    struct pci_windows windows = {.mem32_base = 0xc0000000,
                                  .mem32_end = 0xe0000000,
                                  .mem64_base = 0x800000000,
                                  .mem64_end = 0x900000000,
                                  .io_base = 0x1000,
                                  .io_end = 0x10000};
    CHECK(!pci_root_assign(guest->root, &windows));
    CHECK(config_read(guest, PCI_VENDOR_ID, 2) == 0x1af4);
    CHECK(config_read(guest, PCI_DEVICE_ID, 2) == 0x1040 + virtio_id);
    CHECK(config_read(guest, PCI_REVISION, 1) >= 1);
    config_write(guest, PCI_COMMAND, 2,
                 config_read(guest, PCI_COMMAND, 2) | PCI_COMMAND_MEMORY | PCI_COMMAND_MASTER);
    unsigned found = 0;
    for (unsigned at = config_read(guest, PCI_CAPABILITIES, 1); at; at = config_read(guest, at + 1, 1)) {
        if (config_read(guest, at, 1) != 0x09)
            continue;
        uint64_t offset = config_read(guest, at + 8, 4);
        unsigned type = config_read(guest, at + 3, 1);
        found |= 1u << type;
        if (type == 1)
            guest->common = offset;
        else if (type == 2) {
            guest->notify = offset;
            guest->notify_stride = (uint32_t)config_read(guest, at + 16, 4);
        } else if (type == 3)
            guest->isr = offset;
        else if (type == 4)
            guest->config = offset;
        else if (type == 5)
            guest->window = at;
    }
    CHECK(found == 0x3e);
}

uint64_t guest_alloc(struct guest *guest, uint64_t size) {
    uint64_t at = align_up(guest->brk, size >= PAGE_SIZE ? PAGE_SIZE : 64);
    guest->brk = at + size;
    CHECK(guest->brk <= guest->mem.size);
    return at;
}

void *guest_ptr(struct guest *guest, uint64_t gpa) {
    return guest_mem_ptr(&guest->mem, gpa, 1);
}

uint64_t guest_read(struct guest *guest, uint64_t offset, unsigned size) {
    return pci_bar_read(&guest->pci->bars[0], offset, size);
}

void guest_write(struct guest *guest, uint64_t offset, unsigned size, uint64_t value) {
    pci_bar_write(&guest->pci->bars[0], offset, size, value);
}

uint8_t guest_status(struct guest *guest) {
    return (uint8_t)guest_read(guest, guest->common + STATUS, 1);
}

void guest_reset(struct guest *guest) {
    guest_write(guest, guest->common + STATUS, 1, 0);
    for (unsigned i = 0; guest_status(guest); i++) {
        CHECK(i < 10000);
        usleep(1000);
    }
}

static void msix_enable(struct guest *guest) {
    unsigned at = config_read(guest, PCI_CAPABILITIES, 1);
    while (config_read(guest, at, 1) != 0x11) {
        at = config_read(guest, at + 1, 1);
        CHECK(at);
    }
    unsigned vectors = (config_read(guest, at + 2, 2) & 0x7ff) + 1;
    uint64_t table = config_read(guest, at + 4, 4) & ~7ull;
    for (unsigned i = 0; i < vectors; i++) {
        guest_write(guest, table + 16 * i, 4, MSI_ADDRESS);
        guest_write(guest, table + 16 * i + 4, 4, 0);
        guest_write(guest, table + 16 * i + 8, 4, i);
        guest_write(guest, table + 16 * i + 12, 4, 0);
    }
    config_write(guest, at + 2, 2, 0x8000);
}

uint64_t guest_negotiate(struct guest *guest, uint64_t wanted, bool msix) {
    guest_reset(guest);
    guest_write(guest, guest->common + STATUS, 1, 1);
    guest_write(guest, guest->common + STATUS, 1, 3);
    uint64_t offered = 0;
    for (unsigned i = 0; i < 2; i++) {
        guest_write(guest, guest->common, 4, i);
        offered |= guest_read(guest, guest->common + 4, 4) << 32 * i;
    }
    CHECK(offered & GUEST_VERSION_1);
    guest->features = offered & (wanted | GUEST_VERSION_1);
    for (unsigned i = 0; i < 2; i++) {
        guest_write(guest, guest->common + 8, 4, i);
        guest_write(guest, guest->common + 12, 4, (uint32_t)(guest->features >> 32 * i));
    }
    guest_write(guest, guest->common + STATUS, 1, 11);
    CHECK(guest_status(guest) == 11);
    guest->msix = msix;
    if (msix) {
        msix_enable(guest);
        guest_write(guest, guest->common + 16, 2, 0);
        CHECK(guest_read(guest, guest->common + 16, 2) == 0);
    }
    return guest->features;
}

void guest_queue_setup(struct guest *guest, struct guest_queue *queue, unsigned index, unsigned size) {
    *queue = (struct guest_queue){.guest = guest, .index = index, .size = size};
    guest_write(guest, guest->common + QUEUE_SELECT, 2, index);
    CHECK(guest_read(guest, guest->common + 24, 2) >= size);
    guest_write(guest, guest->common + 24, 2, size);
    queue->descriptors_gpa = guest_alloc(guest, 16ull * size);
    queue->available_gpa = guest_alloc(guest, 6 + 2ull * size);
    queue->used_gpa = guest_alloc(guest, 6 + 8ull * size);
    queue->descriptors = guest_ptr(guest, queue->descriptors_gpa);
    queue->available = guest_ptr(guest, queue->available_gpa);
    queue->used = guest_ptr(guest, queue->used_gpa);
    memset(queue->descriptors, 0, 16ull * size);
    memset(queue->available, 0, 6 + 2ull * size);
    memset(queue->used, 0, 6 + 8ull * size);
    guest_write(guest, guest->common + 32, 8, queue->descriptors_gpa);
    guest_write(guest, guest->common + 40, 4, (uint32_t)queue->available_gpa);
    guest_write(guest, guest->common + 44, 4, queue->available_gpa >> 32);
    guest_write(guest, guest->common + 48, 8, queue->used_gpa);
    if (guest->msix) {
        guest_write(guest, guest->common + 26, 2, index + 1);
        CHECK(guest_read(guest, guest->common + 26, 2) == index + 1);
    }
    guest_write(guest, guest->common + 28, 2, 1);
    CHECK(guest_read(guest, guest->common + 28, 2) == 1);
}

void guest_driver_ok(struct guest *guest) {
    guest_write(guest, guest->common + STATUS, 1, 15);
    CHECK(guest_status(guest) == 15);
}

uint16_t guest_add(struct guest_queue *queue, const struct guest_buffer *buffers, unsigned count,
                   bool indirect) {
    struct guest_descriptor *table = queue->descriptors;
    unsigned base = queue->next_descriptor, mask = queue->size - 1;
    uint16_t head = (uint16_t)(base & mask);
    if (indirect) {
        uint64_t at = guest_alloc(queue->guest, 16ull * count);
        table = guest_ptr(queue->guest, at);
        queue->descriptors[head] = (struct guest_descriptor){at, 16 * count, 4, 0};
        queue->next_descriptor++;
        base = 0;
        mask = 0xffff;
    } else {
        CHECK(count <= queue->size);
        queue->next_descriptor += (uint16_t)count;
    }
    for (unsigned i = 0; i < count; i++) {
        table[(base + i) & mask] =
            (struct guest_descriptor){buffers[i].gpa, buffers[i].length,
                                      (uint16_t)((buffers[i].writable ? 2 : 0) | (i + 1 < count ? 1 : 0)),
                                      (uint16_t)((base + i + 1) & mask)};
    }
    guest_expose(queue, head);
    return head;
}

void guest_expose(struct guest_queue *queue, uint16_t head) {
    queue->available[2 + (queue->available_index & (queue->size - 1))] = head;
    __atomic_store_n(&queue->available[1], ++queue->available_index, __ATOMIC_RELEASE);
}

bool guest_kick(struct guest_queue *queue) {
    struct guest *guest = queue->guest;
    __atomic_thread_fence(__ATOMIC_SEQ_CST);
    bool wanted;
    if (guest->features & GUEST_EVENT_IDX) {
        uint16_t event = __atomic_load_n((uint16_t *)(queue->used + 4 + 8 * queue->size), __ATOMIC_ACQUIRE);
        wanted = (uint16_t)(queue->available_index - event - 1) <
                 (uint16_t)(queue->available_index - queue->kicked_index);
    } else {
        wanted = !(__atomic_load_n((uint16_t *)queue->used, __ATOMIC_ACQUIRE) & 1);
    }
    queue->kicked_index = queue->available_index;
    if (wanted) {
        queue->kicks++;
        guest_write(guest, guest->notify + (uint64_t)queue->index * guest->notify_stride, 2, queue->index);
    }
    return wanted;
}

int guest_take(struct guest_queue *queue, uint32_t *length) {
    uint16_t index = __atomic_load_n((uint16_t *)(queue->used + 2), __ATOMIC_ACQUIRE);
    if (index == queue->seen_used)
        return -1;
    uint32_t *element = (uint32_t *)(queue->used + 4 + 8 * (queue->seen_used++ & (queue->size - 1)));
    if (length)
        *length = element[1];
    CHECK(element[0] < queue->size);
    return (int)element[0];
}

void guest_set_used_event(struct guest_queue *queue, uint16_t event) {
    __atomic_store_n(&queue->available[2 + queue->size], event, __ATOMIC_RELEASE);
    __atomic_thread_fence(__ATOMIC_SEQ_CST);
}

static struct timespec in_ms(unsigned ms) {
    struct timespec time;
    clock_gettime(CLOCK_REALTIME, &time);
    time.tv_sec += ms / 1000;
    time.tv_nsec += (long)(ms % 1000) * 1000000;
    if (time.tv_nsec >= 1000000000) {
        time.tv_sec++;
        time.tv_nsec -= 1000000000;
    }
    return time;
}

int guest_wait(struct guest_queue *queue, uint32_t *length) {
    struct guest *guest = queue->guest;
    struct timespec end = in_ms(10000);
    for (;;) {
        pthread_mutex_lock(&guest->lock);
        unsigned before = guest->messages[queue->index + 1];
        pthread_mutex_unlock(&guest->lock);
        guest_set_used_event(queue, queue->seen_used);
        int head = guest_take(queue, length);
        if (head >= 0)
            return head;
        /* Nothing there after asking: an interrupt must come. */
        pthread_mutex_lock(&guest->lock);
        while (guest->msix ? guest->messages[queue->index + 1] == before : !guest->intx)
            CHECK(pthread_cond_timedwait(&guest->arrived, &guest->lock, &end) != ETIMEDOUT);
        pthread_mutex_unlock(&guest->lock);
        if (!guest->msix)
            CHECK(guest_read(guest, guest->isr, 1) & 1);
    }
}

unsigned guest_messages(struct guest *guest, unsigned vector) {
    pthread_mutex_lock(&guest->lock);
    unsigned count = guest->messages[vector];
    pthread_mutex_unlock(&guest->lock);
    return count;
}

bool guest_wait_messages(struct guest *guest, unsigned vector, unsigned count, unsigned ms) {
    struct timespec end = in_ms(ms);
    int result = 0;
    pthread_mutex_lock(&guest->lock);
    while (guest->messages[vector] < count && result != ETIMEDOUT)
        result = pthread_cond_timedwait(&guest->arrived, &guest->lock, &end);
    bool reached = guest->messages[vector] >= count;
    pthread_mutex_unlock(&guest->lock);
    return reached;
}
