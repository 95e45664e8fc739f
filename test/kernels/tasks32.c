/*
 * Tasks entered by what is not software: an NMI, an external interrupt, a divide error, a page fault; and by
 * IRET into virtual-8086 mode, out of which an exception's task gate leads. Source: Intel SDM volume
 * 3, 6.12.2, 7.3, 20.3.
 */
#include "apic.h"
#include "paging.h"
#include "runtime.h"

#define PRESENT DESCRIPTOR_PRESENT
#define APIC_MMIO 0xfee00000ul
#define VECTOR_IRQ 0xf0
#define MAIN_SLOT 0
#define V86_SLOT 1
#define CONFORMING_SLOT 2
#define V86_CODE 0x42000ul

static volatile unsigned runs;
static volatile unsigned divisor;
static volatile uint8_t *fault_page;
static struct address_space space;

static void apic_out(unsigned reg, uint32_t value) {
    *(volatile uint32_t *)(APIC_MMIO + reg) = value;
}

/* The body of every task here: count, do what the case wants, IRET; the next entry goes on behind the IRET.
 */
static void (*volatile work)(void);

static void body_run(void) {
    runs++;
    if (work)
        work();
}

extern const char task_body[], task_body_error[];
asm(".pushsection .text\n"
    "task_body:\n\tcall task_body_c\n\tiret\n\tincl task_restarts\n\tjmp task_body\n"
    "task_body_error:\n\tpopl task_error\n\tcall task_body_c\n\tiret\n\tincl task_restarts\n\tjmp "
    "task_body_error\n"
    "\t.popsection\n\t.pushsection .data\n\t.globl task_restarts, task_error\n"
    "task_restarts:\t.long 0\ntask_error:\t.long 0\n\t.popsection");
extern volatile uint32_t task_restarts, task_error;
void task_body_c(void);
void task_body_c(void) {
    body_run();
}

static void task_prepare(const void *code) {
    tss_other = (struct tss32){.ip = (uint32_t)(unsigned long)code,
                               .flags = FLAG_FIXED,
                               .cs = KERNEL_CS,
                               .ss = KERNEL_DS,
                               .ds = KERNEL_DS,
                               .es = KERNEL_DS,
                               .sp = cpu_stack_top(0, 2),
                               .cr3 = read_cr3(),
                               .io_map = 104};
    *(volatile uint64_t *)&gdt[TSS32_OTHER_SELECTOR / 8] = segment_descriptor(
        (uint32_t)(unsigned long)&tss_other, sizeof(tss_other) - 1, SYSTEM_TSS | PRESENT, 0);
    runs = 0;
    task_restarts = 0;
    work = 0;
}

static void task_gate(unsigned vector, const void *code) {
    task_prepare(code);
    gate_set(vector, 0, TSS32_OTHER_SELECTOR, GATE_TASK | PRESENT, 0);
}

static void expect(const char *name, unsigned want) {
    check(runs, want, "%s: the task ran", name);
    check(read_tr(), TSS32_SELECTOR, "%s: and came back", name);
    check(read_flags() & FLAG_NT, 0, "%s: without NT", name);
    asm volatile("clts");
}

static void work_eoi(void) {
    apic_out(APIC_EOI, 0);
}

static void work_divisor(void) {
    divisor = 10;
}

static void work_map(void) {
    page_map(&space, (unsigned long)fault_page, (unsigned long)page_alloc(), PTE_P | PTE_W, 1);
    invlpg(fault_page);
}

static void check_events(void) {
    apic_out(APIC_SVR, 0x100 | SPURIOUS_VECTOR);
    apic_out(APIC_LVT_LINT0, LVT_MASKED);
    task_gate(VECTOR_NMI, task_body);
    asm volatile("int $2");
    expect("int 2", 1);
    task_gate(VECTOR_NMI, task_body);
    apic_out(APIC_ICR, ICR_NMI | ICR_SELF | ICR_ASSERT);
    apic_out(APIC_ICR_HIGH, 0);
    apic_out(APIC_ICR, ICR_NMI | ICR_ASSERT);
    asm volatile("nop");
    check(runs >= 1, true, "NMI: the task ran");
    check(read_tr(), TSS32_SELECTOR, "NMI: and came back");
    gate_reset(VECTOR_NMI);

    task_gate(VECTOR_IRQ, task_body);
    work = work_eoi;
    apic_out(APIC_ICR, ICR_SELF | ICR_ASSERT | VECTOR_IRQ);
    asm volatile("sti\n\tnop\n\tnop\n\tcli");
    expect("external interrupt", 1);
    apic_out(APIC_ICR, ICR_SELF | ICR_ASSERT | VECTOR_IRQ);
    asm volatile("sti\n\tnop\n\tnop\n\tcli");
    expect("external interrupt again", 2);
    check(task_restarts, 1, "external interrupt again: behind the iret of the first time");
    gate_reset(VECTOR_IRQ);

    uint32_t quotient, rest;
    task_gate(VECTOR_DE, task_body);
    work = work_divisor;
    asm volatile("divl %4" : "=a"(quotient), "=d"(rest) : "a"(1500), "d"(0), "m"(divisor));
    expect("divide error", 1);
    check(quotient, 150, "divide error: the instruction was done again");
    task_gate(VECTOR_DE, task_body);
    asm volatile("int $0");
    expect("int 0", 1);
    gate_reset(VECTOR_DE);
    task_gate(VECTOR_OF, task_body);
    asm volatile("addb $127, %b0\n\tinto" : : "a"(127) : "cc");
    expect("into", 1);
    gate_reset(VECTOR_OF);
    task_gate(VECTOR_BP, task_body);
    asm volatile("int3");
    expect("int3", 1);
    gate_reset(VECTOR_BP);
}

static void check_page_fault(void) {
    space = address_space_create(2);
    paging_enable(&space);
    cpu_tss(0)->cr3 = read_cr3(); /* no switch stores it */
    fault_page = (volatile uint8_t *)0x90000000;
    task_gate(VECTOR_PF, task_body_error);
    work = work_map;
    *fault_page = 7;
    expect("page fault", 1);
    check(task_error, PF_W, "page fault: the error code is on the task's stack");
    check(*fault_page, 7, "page fault: the store was done again");
    gate_reset(VECTOR_PF);
    paging_disable();
    cpu_tss(0)->cr3 = 0;
}

/* IRET under NT into a task of virtual-8086 mode, whose #UD leads back by a task gate. */
static void check_v86_task(void) {
    static struct tss32 main_tss, v86_tss;
    ((volatile uint8_t *)V86_CODE)[0] = 0x0f;
    ((volatile uint8_t *)V86_CODE)[1] = 0x0b;
    uint16_t main_selector =
        gdt_set(MAIN_SLOT, segment_descriptor((uint32_t)(unsigned long)&main_tss, sizeof(main_tss) - 1,
                                              SYSTEM_TSS | PRESENT, 0));
    asm volatile("ltr %w0" : : "r"((unsigned)main_selector));
    uint16_t v86_selector =
        gdt_set(V86_SLOT, segment_descriptor((uint32_t)(unsigned long)&v86_tss, sizeof(v86_tss) - 1,
                                             SYSTEM_TSS_BUSY | PRESENT, 0));
    main_tss = (struct tss32){.link = v86_selector, .cr3 = read_cr3(), .io_map = 104};
    v86_tss = (struct tss32){.flags = FLAG_VM | FLAG_FIXED,
                             .cr3 = read_cr3(),
                             .ip = V86_CODE & 15,
                             .cs = V86_CODE >> 4,
                             .ds = 0x1234,
                             .es = 0x2345,
                             .io_map = 104};
    gate_set(VECTOR_UD, 0, main_selector, GATE_TASK | PRESENT, 0);
    asm volatile("pushf\n\torw $0x4000, (%%esp)\n\tpopf\n\tiret" : : : "memory", "cc");
    check(read_tr(), main_selector, "virtual-8086 task: back through a task gate");
    check(v86_tss.ip, V86_CODE & 15, "virtual-8086 task: its saved ip is the instruction's");
    check(v86_tss.flags & FLAG_VM, FLAG_VM, "virtual-8086 task: its saved flags");
    check(v86_tss.ds << 16 | v86_tss.es, 0x12342345, "virtual-8086 task: its saved segments");
    write_flags(FLAG_FIXED);
    gate_reset(VECTOR_UD);
    *(volatile uint64_t *)&gdt[TSS32_SELECTOR / 8] &= ~BIT(41);
    asm volatile("ltr %w0\n\tclts" : : "r"(TSS32_SELECTOR));
}

static void check_calls(void) {
    task_prepare(task_body);
    asm volatile("lcall $0xd0, $0xf4f4f4f4");
    expect("lcall", 1);
    asm volatile("lcall $0xd0, $0xf4f4f4f4");
    expect("lcall again", 2);
    check(task_restarts, 1, "lcall again: behind the iret of the first time");
    /* A conforming code segment takes its privilege from the selector's RPL. */
    task_prepare(task_body);
    tss_other.cs = gdt_set(CONFORMING_SLOT, segment_descriptor(0, 0xfffff, SEGMENT_CONFORMING | PRESENT,
                                                               SEGMENT_BIG | SEGMENT_PAGES)) |
                   3;
    tss_other.ss = tss_other.ds = tss_other.es = USER32_DS;
    tss_other.flags |= FLAG_IOPL(3);
    asm volatile("lcall $0xd0, $0xf4f4f4f4");
    expect("lcall to conforming code at CPL 3", 1);
}

void kernel_main(void) {
    check_calls();
    check_events();
    check_page_fault();
    check_v86_task();
    checks_finish("tasks32");
}
