/*
 * Non-maskable interrupts that meet: from two CPUs at once, behind STI, and from within their handler. None
 * is lost and none comes twice. Source: Intel SDM volume 3, 6.7 and 6.8.3; Linux delivers two that are sent
 * before the first is taken, as a processor does that takes the first at once.
 */
#include "apic.h"
#include "runtime.h"

#define VECTOR_LAST 0x51
#define ROUNDS 300
#define FAR_TOO_MANY 1000
#define PATIENCE 20000000000ull /* of the TSC: seconds, so that a busy host fails no test */

static volatile unsigned round_wanted, round_sent, taken, last_seen, in_shadow, other_taken;
static volatile bool over, other_ready, other_loops;

static bool wait_for(const volatile unsigned *value, unsigned wanted) {
    uint64_t start = read_tsc();
    while (*value != wanted)
        if (read_tsc() - start > PATIENCE)
            return false;
    return true;
}

/* A storm would leave the code under test no instruction to end it. */
static void count(volatile unsigned *counter) {
    if (++*counter > FAR_TOO_MANY) {
        check(*counter, 2, "NMIs that nobody sent");
        checks_finish("nmi64");
    }
}

extern const char behind_sti[];

static void handler_count(struct context *frame) {
    (void)frame;
    count(&taken);
}

static void handler_other(struct context *frame) {
    in_shadow += frame->ip == (unsigned long)behind_sti;
    other_taken++;
}

static void handler_both(struct context *frame) {
    if (cpu_current()->index)
        handler_other(frame);
    else
        handler_count(frame);
}

static void handler_last(struct context *frame) {
    (void)frame;
    last_seen++;
    apic_eoi();
}

static void other_main(unsigned index) {
    (void)index;
    apic_enable();
    other_ready = true;
    while (other_loops)
        asm volatile("sti\n\t.globl behind_sti\nbehind_sti:\n\tnop\n\tnop\n\tcli" : : : "memory");
    while (!over) {
        if (round_wanted == round_sent) {
            cpu_pause();
            continue;
        }
        apic_ipi(0, ICR_NMI | ICR_ASSERT);
        apic_ipi(0, ICR_ASSERT | VECTOR_LAST); /* when this one has come, that one has */
        round_sent++;
    }
    for (;;)
        asm volatile("cli\n\thlt");
}

static void check_shadow(void) {
    struct tally tally;
    tally_begin(&tally, "NMIs to a CPU that runs STI again and again");
    for (unsigned i = 0; i < ROUNDS; i++) {
        unsigned before = other_taken;
        apic_ipi(1, ICR_NMI | ICR_ASSERT);
        tally_case(&tally, wait_for(&other_taken, before + 1), true, "round %u", i);
    }
    tally_end(&tally);
    check(in_shadow, 0, "none comes right behind STI");
}

static void check_two(void) {
    struct tally tally;
    trap_handle(VECTOR_LAST, handler_last);
    tally_begin(&tally, "NMIs of two CPUs at once");
    interrupts_enable();
    for (unsigned i = 1; i <= ROUNDS; i++) {
        taken = 0;
        round_wanted = i;
        apic_ipi(0, ICR_NMI | ICR_ASSERT);
        tally_case(&tally, wait_for(&last_seen, i), true, "round %u: the interrupt behind", i);
        tally_case(&tally, taken, 2, "round %u", i);
        tally_case(&tally, wait_for(&round_sent, i), true, "round %u: its end", i);
    }
    interrupts_disable();
    tally_end(&tally);
}

extern const char behind_inner[];
static volatile unsigned nested;
static volatile unsigned long nested_ip;

/* An IRET within the handler ends the block: the NMI that waits comes at the instruction that it leads to. */
static void handler_inner(struct context *frame) {
    if (nested++) {
        nested_ip = frame->ip;
        return;
    }
    apic_ipi(0, ICR_NMI | ICR_ASSERT);
    asm volatile("nop\n\tnop" : : : "memory");
    check(nested, 1, "an NMI waits for the end of another");
    asm volatile(
        "mov %%rsp, %%rax\n\tpush %0\n\tpush %%rax\n\tpushf\n\tpush %1\n\tlea behind_inner(%%rip), %%rax\n\t"
        "push %%rax\n\tiretq\n\t.globl behind_inner\nbehind_inner:\n\tnop"
        :
        : "i"(KERNEL_DS), "i"(KERNEL_CS)
        : "rax", "memory");
    check(nested, 2, "the first IRET lets it come");
    check(nested_ip, (unsigned long)behind_inner, "right there");
}

void kernel_main(void) {
    apic_enable();
    pic_init(0x20, 0x28);
    pic_mask(0xffff);
    other_loops = true;
    trap_handle(VECTOR_NMI, handler_both);
    if (!check(cpu_start(1, other_main), true, "the second CPU starts"))
        checks_finish("nmi64");
    while (!other_ready)
        cpu_pause();
    check_shadow();
    other_loops = false;
    check_two();
    over = true;
    trap_handle(VECTOR_NMI, handler_inner);
    apic_ipi(0, ICR_NMI | ICR_ASSERT);
    asm volatile("nop\n\tnop" : : : "memory");
    check(nested, 2, "NMIs in each other");
    checks_finish("nmi64");
}
