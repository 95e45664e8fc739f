/*
 * The devices that test kernels look for: the configuration port, and with a debug-exit port the test bench.
 * Device memory is worked on with instructions of every kind, which must do there what they do in RAM.
 * Source: QEMU, docs/specs/fw_cfg.rst and pc-testdev.
 */
#include "apic.h"

#include "runtime.h"

#define CONFIG_SELECTOR 0x510
#define CONFIG_DATA 0x511
#define LINES 0x2000
#define MEMORY 0xff000000ul

#define VECTOR_LOW 0x66
#define VECTOR_HIGH 0x78

static volatile unsigned counts[256], high_first;
static volatile bool holds_line;
static volatile unsigned long ips[256];

static void handler(struct context *frame) {
    counts[frame->vector]++;
    ips[frame->vector] = frame->ip;
    if (frame->vector == VECTOR_LOW && counts[VECTOR_HIGH])
        high_first++;
    if (holds_line) {
        holds_line = false;
        out8(LINES + 20, 0);
    }
    apic_eoi();
}

static uint64_t config_item(uint16_t item, unsigned bytes) {
    uint64_t value = 0;
    asm volatile("outw %0, %1" : : "a"(item), "Nd"((uint16_t)CONFIG_SELECTOR));
    for (unsigned i = 0; i < bytes; i++)
        value |= (uint64_t)in8(CONFIG_DATA) << 8 * i;
    return value;
}

static void check_config(void) {
    check(config_item(0, 4), 0x554d4551, "configuration port: signature");
    check(config_item(1, 4), 1, "configuration port: no DMA");
    check(config_item(3, 8), 64 << 20, "configuration port: RAM");
    check(config_item(5, 2), 1, "configuration port: CPUs");
    check(config_item(15, 2), 1, "configuration port: most CPUs");
    check(config_item(5, 4), 1, "configuration port: zeros follow an item");
    check(config_item(0x4000, 4), 0, "configuration port: an item that there is not");
}

static void check_ports(void) {
    static const char text[] = "abcdefghijklmnop";
    out32(0xe0, 0x12345678);
    check(in32(0xe0), 0x12345678, "scratch port");
    out8(0xe1, 0xaa);
    check(in32(0xe0), 0x1234aa78, "scratch port: a byte");
    const char *from = text;
    unsigned long count = sizeof(text) - 1;
    asm volatile("cld\n\trep outsb" : "+S"(from), "+c"(count) : "d"(0xe0));
    check(in8(0xe0), 'p', "rep outsb upwards");
    from = text + sizeof(text) - 2;
    count = sizeof(text) - 1;
    asm volatile("std\n\trep outsb\n\tcld" : "+S"(from), "+c"(count) : "d"(0xe0));
    check(in8(0xe0), 'a', "rep outsb downwards");
}

static void pulse(unsigned line) {
    out8((uint16_t)(LINES + line), 1);
    out8((uint16_t)(LINES + line), 0);
}

static void check_lines(void) {
    trap_handle(VECTOR_LOW, handler);
    trap_handle(VECTOR_HIGH, handler);
    ioapic_route(14, VECTOR_HIGH, apic_id());
    interrupts_enable();
    pulse(14);
    asm volatile("nop");
    check(counts[VECTOR_HIGH], 1, "an edge of line 14 comes at once");
    interrupts_disable();
    counts[VECTOR_HIGH] = 0;
    ioapic_route(15, VECTOR_LOW, apic_id());
    pulse(15);
    pulse(14);
    asm volatile("sti\n\tnop\n\tnop\n\tcli");
    check(counts[VECTOR_HIGH] << 8 | counts[VECTOR_LOW], 0x101, "edges of two lines");
    check(high_first, 1, "the higher priority comes first");
    check(ips[VECTOR_LOW], ips[VECTOR_HIGH], "and the lower at the same instruction");
    counts[VECTOR_HIGH] = 0;
    ioapic_route(20, VECTOR_HIGH | IOAPIC_LEVEL, apic_id());
    holds_line = true;
    out8(LINES + 20, 1);
    asm volatile("sti\n\tnop\n\tnop\n\tcli");
    check(counts[VECTOR_HIGH], 1, "a level of line 20 comes until it is gone");
    ioapic_route(20, IOAPIC_MASKED, 0);
}

static void check_memory(void) {
    volatile uint64_t *words = (volatile uint64_t *)MEMORY;
    volatile uint8_t *bytes = (volatile uint8_t *)MEMORY;
    unsigned long ax, count;
    const volatile uint8_t *from;
    volatile uint8_t *to;
    uint8_t flag, copy[256];

    words[0] = 0x123456789abcdef;
    ax = 0xfedcba9876543210;
    asm volatile("xchg %%al, %1" : "+a"(ax), "+m"(words[0]));
    check(ax == 0xfedcba98765432ef && words[0] == 0x123456789abcd10, true, "device memory: xchg");
    ax = 0x10;
    asm volatile("lock xadd %0, %1" : "+r"(ax), "+m"(words[0]) : : "cc");
    check(ax == 0x123456789abcd10 && words[0] == 0x123456789abcd20, true, "device memory: lock xadd");
    asm volatile("lock notq %0" : "+m"(words[0]));
    check(words[0], ~0x123456789abcd20ul, "device memory: lock not");
    ax = words[0];
    asm volatile("lock cmpxchg %2, %1\n\tsetz %0" : "=q"(flag), "+m"(words[0]) : "r"(7ul), "a"(ax) : "cc");
    check(flag == 1 && words[0] == 7, true, "device memory: cmpxchg that succeeds");
    asm volatile("lock cmpxchg8b %1\n\tsetz %0"
                 : "=q"(flag), "+m"(words[0])
                 : "a"(7), "d"(0), "b"(5), "c"(6)
                 : "cc");
    check(flag == 1 && words[0] == 0x600000005, true, "device memory: cmpxchg8b");
    words[1] = 0;
    asm volatile("btcl %1, %0" : : "m"(words[1]), "r"(66) : "memory", "cc");
    check(words[2] & 4, 4, "device memory: btc of a far bit");
    words[0] = 0x8000;
    asm volatile("bsf %1, %0" : "=r"(ax) : "m"(words[0]) : "cc");
    check(ax, 15, "device memory: bsf");
    asm volatile("movzbl %1, %k0" : "=r"(ax) : "m"(bytes[1]));
    check(ax, 0x80, "device memory: movzx");
    asm volatile("movsbq %1, %0" : "=r"(ax) : "m"(bytes[1]));
    check(ax, -128ul, "device memory: movsx");
    asm volatile("pushq %0\n\tpopq %1" : : "m"(words[0]), "m"(words[5]) : "memory");
    check(words[5], 0x8000, "device memory: push and pop");

    for (unsigned i = 0; i < sizeof(copy); i++)
        bytes[1024 + i] = copy[i] = (uint8_t)i;
    copy[200] = 0;
    from = bytes + 1024, to = copy, count = sizeof(copy);
    asm volatile("repe cmpsb" : "+S"(from), "+D"(to), "+c"(count) : : "memory", "cc");
    check(count == sizeof(copy) - 201 && from == bytes + 1024 + 201, true, "device memory: repe cmpsb");
    from = bytes + 1024, to = bytes + 2048, count = sizeof(copy) / 8;
    asm volatile("rep movsq" : "+S"(from), "+D"(to), "+c"(count) : : "memory");
    check(bytes[2048] == 0 && bytes[2048 + 255] == 255 && !count, true, "device memory: rep movsq");
    to = bytes + 2048, count = sizeof(copy);
    asm volatile("repne scasb" : "+D"(to), "+c"(count) : "a"(100) : "memory", "cc");
    check((unsigned long)to, MEMORY + 2048 + 101, "device memory: repne scasb");
    asm volatile(
        "mov %1, %%rax\n\tmovq %%rax, %%xmm0\n\tmovdqu %%xmm0, %0\n\tmovdqu %0, %%xmm1\n\tmovq %%xmm1, %2"
        : "=m"(*(volatile uint8_t(*)[16])(bytes + 64))
        : "r"(0x1122334455667788ul), "m"(words[12])
        : "rax", "memory");
    check(words[12] == 0x1122334455667788 && words[9] == 0, true, "device memory: movdqu");
    bytes[0xffff] = 0x5a;
    check(bytes[0xffff], 0x5a, "device memory: its last byte");
    /* Code cannot be told from data: it runs from there, too. */
    static const uint8_t code[] = {0xb8, 0x44, 0x33, 0x22, 0x11, 0xc3}; /* mov eax, imm32; ret */
    for (unsigned i = 0; i < sizeof(code); i++)
        bytes[4096 + i] = code[i];
    asm volatile("call *%1" : "=a"(ax) : "r"(bytes + 4096) : "memory");
    check(ax, 0x11223344, "device memory: code");
}

void kernel_main(void) {
    write_cr0(read_cr0() & ~CR0_TS);
    write_cr4(read_cr4() | CR4_OSFXSR);
    apic_enable();
    pic_init(0x20, 0x28);
    pic_mask(0xffff);
    check_config();
    check_ports();
    check_lines();
    check_memory();
    checks_finish("bench64");
}
