/* Four vCPU threads on one board with the real timer thread: no interrupt may get lost, whether it is an IPI,
 * a level from a device, or a timer's, while configuration and BARs move underneath. */
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <time.h>

#include "devices_check.h"
#include "machine/board.h"

#define CPUS 4
#define ROUNDS 3000
#define LEVELS 500
#define VECTOR_TOKEN 0x60
#define VECTOR_LEVEL 0x70
#define VECTOR_TIMER 0xe0
#define LIMIT_NS (30 * NS_PER_SECOND)

static struct board *board;
static struct pci_device device;
static _Atomic unsigned tokens[CPUS], ticks[CPUS], levels;
static _Atomic bool asserted, done;
static uint64_t started;

static void cpu_event(void *context) {
    (void)context;
}
static void cpu_sipi(void *context, uint8_t vector) {
    (void)context;
    (void)vector;
}
static const struct lapic_cpu_ops cpu_ops = {cpu_event, cpu_event, cpu_event, cpu_sipi};

static uint64_t bar_read(void *context, unsigned bar, uint64_t offset, unsigned size) {
    (void)context;
    (void)bar;
    (void)size;
    return offset;
}
/* A write is the guest's acknowledgement: the condition goes. */
static void bar_write(void *context, unsigned bar, uint64_t offset, unsigned size, uint64_t value) {
    (void)context;
    (void)bar;
    (void)offset;
    (void)size;
    (void)value;
    pci_intx_set(&device, false);
    atomic_store(&asserted, false);
}
static const struct pci_device_ops device_ops = {.bar_read = bar_read, .bar_write = bar_write};

static bool expired(void) {
    return timer_now(board_timers(board)) - started > LIMIT_NS;
}

static void reg(unsigned cpu, unsigned offset, uint32_t value) {
    board_mmio_write(board, cpu, LAPIC_DEFAULT_BASE + offset, 4, value);
}

static void take_interrupts(unsigned cpu, uint64_t bar) {
    int vector = lapic_interrupt_take(board_lapic(board, cpu));
    if (vector == LAPIC_NONE) {
        sched_yield();
        return;
    }
    if (vector == VECTOR_TOKEN) {
        unsigned count = atomic_fetch_add(&tokens[cpu], 1) + 1;
        reg(cpu, 0xb0, 0);
        if (cpu != 0 || count < ROUNDS) {
            reg(cpu, 0x310, (cpu + 1) % CPUS << 24);
            reg(cpu, 0x300, 0x4000 | VECTOR_TOKEN);
        }
        return;
    }
    if (vector == VECTOR_LEVEL) {
        atomic_fetch_add(&levels, 1);
        board_mmio_write(board, cpu, bar, 4, 0);
    } else if (vector == VECTOR_TIMER) {
        atomic_fetch_add(&ticks[cpu], 1);
    }
    reg(cpu, 0xb0, 0);
}

static void *cpu_thread(void *context) {
    unsigned cpu = (unsigned)(uintptr_t)context;
    uint64_t bar = device.bars[1].mapped;
    reg(cpu, 0xf0, 0x1ff);
    reg(cpu, 0x3e0, 0xb);
    reg(cpu, 0x320, 0x20000 | VECTOR_TIMER);
    reg(cpu, 0x380, 1000000);
    while (!atomic_load(&done))
        take_interrupts(cpu, bar);
    return NULL;
}

/* The device raises its line whenever the guest has dealt with the last one; another BAR of it comes and
 * goes. */
static void *device_thread(void *context) {
    (void)context;
    for (unsigned i = 0; i < LEVELS && !expired(); i++) {
        atomic_store(&asserted, true);
        pci_intx_set(&device, true);
        while (atomic_load(&asserted) && !expired()) {
            board_pio_write(board, 0xcf8, 4, 0x80000810);
            board_pio_write(board, 0xcfc, 4, i & 1 ? 0x2000 : 0x3000);
            sched_yield();
        }
    }
    return NULL;
}

int main(void) {
    struct guest_mem mem;
    CHECK_EQUAL(guest_mem_create(&mem, 2 * MIB, 0), 0);
    struct board_config config = {
        .cpus = CPUS, .mem = &mem, .tsc_hz = 1000000000, .debug_exit_port = BOARD_NO_PORT};
    board = board_create(&config);
    pci_device_init(&device, "level", &device_ops, NULL, 1, 2, 0xff0000, 0);
    pci_set_interrupt_pin(&device, 1);
    pci_bar_declare(&device, 0, PCI_BAR_IO, 0x40, false);
    pci_bar_declare(&device, 1, PCI_BAR_MEM32, 0x1000, false);
    CHECK_EQUAL(board_attach_pci(board, &device, 1), 1);
    uint64_t rsdp;
    CHECK_EQUAL(board_start(board, &rsdp), 0);
    started = timer_now(board_timers(board));
    /* Slot 1, pin A: wire 1, input 17, to CPU 0. */
    board_mmio_write(board, 0, 0xfec00000, 4, 0x10 + 2 * 17);
    board_mmio_write(board, 0, 0xfec00010, 4, 0xa000 | VECTOR_LEVEL);

    pthread_t cpus[CPUS], source;
    for (unsigned i = 0; i < CPUS; i++) {
        lapic_connect(board_lapic(board, i), &cpu_ops, NULL);
        pthread_create(&cpus[i], NULL, cpu_thread, (void *)(uintptr_t)i);
    }
    /* All LAPICs must be enabled before the token starts round. */
    while (!ticks[0] || !ticks[1] || !ticks[2] || !ticks[3]) {
        if (expired())
            break;
        sched_yield();
    }
    /* The token enters as the device's message would. */
    struct msi_sink sink = board_msi(board);
    msi_send(&sink, LAPIC_DEFAULT_BASE | 1 << 12, VECTOR_TOKEN);
    pthread_create(&source, NULL, device_thread, NULL);
    while (tokens[0] < ROUNDS && !expired())
        nanosleep(&(struct timespec){.tv_nsec = 1000000}, NULL);
    pthread_join(source, NULL);
    atomic_store(&done, true);
    for (unsigned i = 0; i < CPUS; i++)
        pthread_join(cpus[i], NULL);
    CHECK_EQUAL(levels, LEVELS);
    for (unsigned i = 0; i < CPUS; i++)
        CHECK_EQUAL(tokens[i], ROUNDS);
    board_destroy(board);
    pci_device_destroy(&device);
    guest_mem_destroy(&mem);
    return check_result();
}
