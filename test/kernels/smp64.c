/*
 * Two CPUs: start-up, locked operations, memory order, TLB shootdown, cross-modifying code, IPIs. The second
 * CPU runs what the first puts in its mailbox. Source: Intel SDM volume 3, chapters 8 and 9, 4.10.5, 11.6.
 */
#include "apic.h"
#include "paging.h"
#include "runtime.h"

#define WINDOW 0x0000523440200000ull
#define OPEN (PTE_P | PTE_W | PTE_U)
#define VECTOR_CALL 0x51
#define ROUNDS 5000
#define PATIENCE 20000000000ull /* of the TSC: seconds, so that a busy host fails no test */

static void (*volatile mailbox)(void);
static volatile bool stop;
static volatile unsigned other_count[256], other_started;

static void other_main(unsigned index) {
    other_started = index;
    apic_enable();
    interrupts_enable();
    for (;;) {
        void (*work)(void) = mailbox;
        if (work) {
            work();
            asm volatile("" : : : "memory");
            mailbox = 0;
        }
        cpu_pause();
    }
}

static void work_begin(void (*work)(void)) {
    stop = false;
    mailbox = work;
}

/* Waits up to two seconds. */
static bool wait_until_zero(volatile const void *value, unsigned size) {
    for (unsigned i = 0; i < 2000; i++) {
        for (unsigned j = 0; j < 1000; j++) {
            uint64_t now = size == 8 ? *(volatile const uint64_t *)value : *(volatile const uint32_t *)value;
            if (!now)
                return true;
            cpu_pause();
        }
        delay_us(1000);
    }
    return false;
}

/* Waits up to a second. */
static bool wait_value(volatile unsigned *value, unsigned wanted) {
    for (unsigned i = 0; i < 100 && *value != wanted; i++)
        delay_us(10000);
    return *value == wanted;
}

static bool work_end(void) {
    stop = true;
    return wait_until_zero(&mailbox, 8);
}

static void handler_call(struct context *frame) {
    __atomic_fetch_add(&other_count[frame->vector], 1, __ATOMIC_SEQ_CST);
    apic_eoi();
}

/* Locked operations. */
static volatile uint64_t locked_counters[8] __attribute__((aligned(64)));
static uint8_t split_area[128] __attribute__((aligned(64)));
static volatile uint32_t spin_lock;
static volatile uint32_t spin_counter;
static volatile uint64_t pair[2] __attribute__((aligned(16)));

static void locked_work(void) {
    volatile uint32_t *split = (volatile uint32_t *)(split_area + 62);
    for (unsigned i = 0; i < ROUNDS; i++) {
        uint64_t old;
        asm volatile("lock incq %0" : "+m"(locked_counters[0]));
        asm volatile("lock xaddq %1, %0" : "+m"(locked_counters[1]), "=r"(old) : "1"(3ul));
        old = locked_counters[2];
        bool done; /* written by the assembly, which the linter does not see:
                      NOLINTBEGIN(bugprone-infinite-loop) */
        do
            asm volatile("lock cmpxchgq %3, %0"
                         : "+m"(locked_counters[2]), "+a"(old), "=@ccz"(done)
                         : "r"(old + 1));
        while (!done);
        asm volatile("lock subl $1, %0" : "+m"(locked_counters[3]));
        asm volatile("lock addl $1, %0" : "+m"(*split));
        uint32_t taken;
        do {
            taken = 1;
            asm volatile("xchgl %0, %1" : "+r"(taken), "+m"(spin_lock));
        } while (taken);
        spin_counter++;
        asm volatile("" : : : "memory");
        spin_lock = 0;
        uint64_t low = pair[0], high = pair[1];
        do
            asm volatile("lock cmpxchg16b %0"
                         : "+m"(pair[0]), "+a"(low), "+d"(high), "=@ccz"(done)
                         : "b"(low + 1), "c"(high + 2)
                         : "memory");
        while (!done); /* NOLINTEND(bugprone-infinite-loop) */
    }
}

static void check_locked(void) {
    work_begin(locked_work);
    locked_work();
    check(work_end(), true, "locked operations end");
    check(locked_counters[0], 2 * ROUNDS, "lock inc");
    check(locked_counters[1], 6 * ROUNDS, "lock xadd");
    check(locked_counters[2], 2 * ROUNDS, "lock cmpxchg");
    check((uint32_t)locked_counters[3], (uint32_t)(-2 * ROUNDS), "lock sub");
    check(*(volatile uint32_t *)(split_area + 62), 2 * ROUNDS, "lock add over a cache line's end");
    check(spin_counter, 2 * ROUNDS, "xchg as a lock");
    check(pair[0] << 32 | pair[1], 2ull * ROUNDS << 32 | 4 * ROUNDS, "lock cmpxchg16b");
}

/* Memory order: message passing, and store buffering with locked instructions. */
static volatile uint64_t order_data __attribute__((aligned(64)));
static volatile uint64_t order_flag __attribute__((aligned(64)));
static volatile unsigned order_wrong;

static void order_reader(void) {
    while (!stop) {
        uint64_t flag = order_flag;
        uint64_t data = order_data;
        if (data < flag)
            order_wrong++;
    }
}

static void check_order(void) {
    work_begin(order_reader);
    for (uint64_t i = 1; i < 4 * ROUNDS; i++) {
        order_data = i;
        order_flag = i;
    }
    check(work_end(), true, "message passing ends");
    check(order_wrong, 0, "stores are seen in their order");
}

static volatile uint64_t time_token, time_wrong;

static void time_work(void) {
    while (!stop) {
        uint64_t seen = time_token;
        asm volatile("lfence" : : : "memory");
        uint64_t now = read_tsc();
        if (now < seen)
            time_wrong++;
    }
}

static void check_time(void) {
    work_begin(time_work);
    for (unsigned i = 0; i < ROUNDS; i++)
        time_token = read_tsc();
    work_end();
    check(time_wrong, 0, "the TSC of one CPU is not behind the other's");
}

/* TLB shootdown: what the other CPU reads after it has acknowledged is never the old page. */
static uint8_t *frame_a, *frame_b;
static volatile unsigned shoot_generation, shoot_ack, shoot_wrong, shoot_reads;
static unsigned (*const window_code)(void) = (unsigned (*)(void))(WINDOW + 0x200);

static void handler_shoot(struct context *frame) {
    (void)frame;
    invlpg((void *)WINDOW);
    shoot_ack = shoot_generation;
    apic_eoi();
}

static void shoot_work(void) {
    while (!stop) {
        unsigned before = shoot_ack;
        asm volatile("" : : : "memory");
        unsigned value = *(volatile uint32_t *)(WINDOW + 0x100);
        unsigned code = window_code();
        asm volatile("" : : : "memory");
        unsigned after = shoot_generation;
        if (before == after && (value != 1 + (before & 1) || code != 1 + (before & 1)))
            shoot_wrong++;
        shoot_reads++;
    }
}

static void frame_fill(uint8_t *frame, unsigned value) {
    *(volatile uint32_t *)(frame + 0x100) = value;
    *(volatile uint8_t *)(frame + 0x200) = 0xb8;
    *(volatile uint32_t *)(frame + 0x201) = value;
    *(volatile uint8_t *)(frame + 0x205) = 0xc3;
}

static void check_shootdown(void) {
    frame_a = page_alloc();
    frame_b = page_alloc();
    frame_fill(frame_a, 1);
    frame_fill(frame_b, 2);
    page_map(&boot_space, WINDOW, (unsigned long)frame_a, OPEN, 1);
    trap_handle(VECTOR_CALL, handler_shoot);
    work_begin(shoot_work);
    bool answered = true;
    for (unsigned i = 1; i <= 200 && answered; i++) {
        shoot_generation = i;
        page_map(&boot_space, WINDOW, (unsigned long)(i & 1 ? frame_b : frame_a), OPEN, 1);
        apic_ipi(1, ICR_ASSERT | VECTOR_CALL);
        uint64_t start = read_tsc();
        while (shoot_ack != i && answered)
            answered = read_tsc() - start < PATIENCE;
        unsigned reads = shoot_reads;
        while (shoot_reads < reads + 2 && answered)
            answered = read_tsc() - start < PATIENCE;
    }
    check(answered, true, "each shootdown IPI is answered");
    work_end();
    check(shoot_wrong, 0, "no stale translation after a shootdown");
    trap_handle(VECTOR_CALL, handler_call);
}

/* Cross-modifying code: the other CPU runs what this one wrote, after a serialising instruction. */
static uint8_t *code_page;
static volatile unsigned cross_wanted, cross_got, cross_wrong;

static void cross_work(void) {
    unsigned done = 0;
    while (!stop) {
        unsigned wanted = cross_wanted;
        if (wanted == done)
            continue;
        cpuid(0, 0);
        unsigned value = ((unsigned (*)(void))(void *)code_page)();
        if (value != wanted)
            cross_wrong++;
        done = wanted;
        cross_got = wanted;
    }
}

static void racing_work(void) {
    unsigned last = 0;
    while (!stop) {
        unsigned value = ((unsigned (*)(void))(void *)code_page)();
        if (value < last || value > cross_wanted + 1)
            cross_wrong++;
        last = value;
        cross_got = value;
    }
}

static void check_cross_modifying(void) {
    code_page = page_alloc();
    static const uint8_t code[] = {0x90, 0x90, 0x90, 0xb8, 0, 0, 0, 0, 0xc3}; /* the immediate is aligned */
    for (unsigned i = 0; i < sizeof(code); i++)
        ((volatile uint8_t *)code_page)[i] = code[i];
    volatile uint32_t *immediate = (volatile uint32_t *)(code_page + 4);
    bool answered = true;
    work_begin(cross_work);
    for (unsigned i = 1; i <= 500 && answered; i++) {
        *immediate = i;
        cross_wanted = i;
        uint64_t start = read_tsc();
        while (cross_got != i && answered)
            answered = read_tsc() - start < PATIENCE;
    }
    check(answered, true, "cross-modified code is run");
    work_end();
    check(cross_wrong, 0, "cross-modified code is seen after a serialising instruction");

    /* Without synchronisation: each value is an old or a new one, in order, and the last comes in the end. */
    *immediate = 0;
    cross_wanted = cross_got = cross_wrong = 0;
    cpuid(0, 0);
    work_begin(racing_work);
    for (unsigned i = 1; i <= 500; i++) {
        *immediate = i;
        cross_wanted = i;
        for (unsigned j = 0; j < 50; j++)
            cpu_pause();
    }
    wait_value(&cross_got, 500);
    check(cross_got, 500, "code rewritten under a running CPU takes effect");
    work_end();
    check(cross_wrong, 0, "code rewritten under a running CPU is never torn");
}

/* The other CPU writes code through one of several pages that a TLB with sets has in each other's way, while
 * this one runs it: the right to write it is taken away wherever it is kept. */
#define CONFLICTS 4
#define CONFLICT_ROUNDS 100
#define CONFLICT(i) (WINDOW + 0x10000000ull + (uint64_t)(i)*0x4000000)

static void conflict_work(void) {
    for (unsigned i = 1; !stop && i <= CONFLICT_ROUNDS; i++) {
        *(volatile uint32_t *)(CONFLICT(i % 2) + 4) = i;
        for (unsigned page = 0; page < CONFLICTS; page++) /* not code any more, until the other CPU sees it */
            *(volatile uint32_t *)(CONFLICT(page) + 0x800) = i;
        cross_wanted = i;
        while (cross_got != i && !stop)
            cpu_pause();
    }
}

static void check_cross_conflicts(void) {
    *(volatile uint32_t *)(code_page + 4) = 0;
    for (unsigned i = 0; i < CONFLICTS; i++)
        page_map(&boot_space, CONFLICT(i), (unsigned long)(i < 2 ? code_page : page_alloc()), OPEN, 1);
    cross_wanted = cross_got = cross_wrong = 0;
    work_begin(conflict_work);
    uint64_t start = read_tsc();
    while (cross_got != CONFLICT_ROUNDS && read_tsc() - start < PATIENCE) {
        unsigned wanted = cross_wanted;
        if (wanted == cross_got)
            continue;
        cpuid(0, 0);
        if (((unsigned (*)(void))(void *)code_page)() != wanted)
            cross_wrong++;
        cross_got = wanted;
        start = read_tsc();
    }
    check(cross_got, CONFLICT_ROUNDS, "code rewritten through pages in each other's way is run");
    work_end();
    check(cross_wrong, 0, "code rewritten through pages in each other's way is seen");
}

static volatile unsigned halted;

static void halt_work(void) {
    interrupts_disable();
    halted = 1;
    asm volatile("sti\n\thlt");
    halted = 2;
    interrupts_disable();
    halted = 3;
    asm volatile("hlt"); /* only an NMI wakes it */
    halted = 4;
    interrupts_enable();
}

static void check_ipis(void) {
    static const struct {
        const char *name;
        uint32_t destination, low;
        unsigned other, self;
    } ways[] = {
        {"physical", 1, 0, 1, 0},
        {"others", 0, ICR_OTHERS, 1, 0},
        {"all", 0, ICR_ALL, 1, 1},
        {"broadcast", 0xff, 0, 1, 1},
        {"logical, both", 3, ICR_LOGICAL, 1, 1},
        {"logical, the other", 2, ICR_LOGICAL, 1, 0},
    };
    for (unsigned i = 0; i < ARRAY_SIZE(ways); i++) {
        other_count[VECTOR_CALL] = 0;
        apic_ipi(ways[i].destination, ways[i].low | ICR_ASSERT | VECTOR_CALL);
        delay_us(2000);
        wait_value(&other_count[VECTOR_CALL], ways[i].other);
        check(other_count[VECTOR_CALL], ways[i].other, "%s IPI reaches the other CPU", ways[i].name);
        asm volatile("sti\n\tnop\n\tnop\n\tcli");
        check(other_count[VECTOR_CALL], ways[i].other + ways[i].self, "%s IPI and its sender", ways[i].name);
    }
    other_count[VECTOR_CALL] = 0;
    trap_handle(VECTOR_NMI, handler_call);
    work_begin(halt_work);
    wait_value(&halted, 1);
    delay_us(2000);
    check(halted, 1, "a halted CPU stays halted");
    apic_ipi(1, ICR_ASSERT | VECTOR_CALL);
    check(wait_value(&halted, 3), true, "an IPI wakes a halted CPU");
    delay_us(2000);
    apic_ipi(1, ICR_ASSERT | VECTOR_CALL);
    delay_us(2000);
    check(halted, 3, "an IPI does not wake a CPU halted with interrupts off");
    apic_ipi(1, ICR_NMI | ICR_ASSERT);
    check(wait_value(&halted, 4), true, "an NMI wakes a CPU halted with interrupts off");
    check(work_end(), true, "the CPU goes on after the NMI");
    check(wait_value(&other_count[VECTOR_CALL], 2), true, "the IPI that waited is delivered then");
}

/* Interrupts off, in a loop of one instruction: an NMI gets through. */
extern const char spin_closed[], spin_closed_end[];
extern volatile unsigned spinning;
volatile unsigned spinning;
asm(".pushsection .text\nspin_closed:\n\tcli\n\tmovl $1, spinning(%rip)\n1:\tjmp "
    "1b\nspin_closed_end:\n\tsti\n\tret\n\t.popsection");

static void handler_leave(struct context *frame) {
    if (frame->ip >= (unsigned long)spin_closed && frame->ip < (unsigned long)spin_closed_end)
        frame->ip = (unsigned long)spin_closed_end;
}

static void check_nmi(void) {
    trap_handle(VECTOR_NMI, handler_leave);
    work_begin((void (*)(void))(unsigned long)spin_closed);
    check(wait_value(&spinning, 1), true, "a CPU spins with interrupts off");
    apic_ipi(1, ICR_NMI | ICR_ASSERT);
    check(work_end(), true, "an NMI reaches it");
}

static void logical_setup(void) {
    apic_write(APIC_DFR, 0xffffffff);
    apic_write(APIC_LDR, 1u << (24 + apic_id()));
}

static volatile unsigned restarted;

static void restart_main(unsigned index) {
    restarted = index;
}

void cpu_set_main(unsigned index, void (*main)(unsigned index));

static void check_restart(void) {
    cpu_set_main(2, restart_main);
    apic_ipi(1, ICR_INIT | ICR_ASSERT);
    delay_us(10000);
    unsigned reads = shoot_reads;
    work_begin(shoot_work);
    delay_us(2000);
    check(shoot_reads, reads, "INIT stops a CPU");
    mailbox = 0;
    apic_ipi(1, ICR_STARTUP | ICR_ASSERT | TRAMPOLINE >> 12);
    check(wait_value(&restarted, 2), true, "a start-up IPI after INIT starts it again");
    apic_ipi(1, ICR_STARTUP | ICR_ASSERT | TRAMPOLINE >> 12);
    delay_us(2000);
    check(restarted, 2, "a start-up IPI to a running CPU is ignored");
}

void kernel_main(void) {
    trap_handle(VECTOR_CALL, handler_call);
    if (!check(cpu_start(1, other_main), true, "the second CPU starts"))
        checks_finish("smp64");
    check(wait_value(&other_started, 1), true, "the second CPU runs 64-bit code");
    check_locked();
    check_order();
    check_time();
    check_shootdown();
    check_cross_modifying();
    check_cross_conflicts();
    logical_setup();
    work_begin(logical_setup);
    wait_until_zero(&mailbox, 8);
    check_ipis();
    check_nmi();
    check_restart();
    checks_finish("smp64");
}
