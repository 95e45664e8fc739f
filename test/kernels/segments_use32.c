/*
 * Segments in use, and the registers of the tables: stack limits, code limits, null segments, LLDT, LTR, and
 * the instructions that store table registers, with UMIP.
 */
#include "runtime.h"
#include "segments32.h"

#define SELECTOR SCRATCH_SELECTOR

SNIPPET(seg_nop, "nop");
SNIPPET(seg_read_es, "mov %es:(%eax), %ecx");
SNIPPET(seg_write_cs, "mov %ecx, %cs:(%eax)");
SNIPPET(seg_push, "push %eax");
SNIPPET(seg_push_high, "mov $0x12340000, %esp\n\tpush %eax");
SNIPPET(seg_read_cs, "mov %cs:(%eax), %ecx");
SNIPPET(seg_pop, "pop %eax");
SNIPPET(seg_bp, "mov (%ebp), %eax");
SNIPPET(seg_bp_ds, "mov %ds:(%ebp), %eax");
SNIPPET(seg_jump, "jmp *%eax");
SNIPPET(seg_string, "movsl");

static void check_stack(void) {
    static uint8_t area[512] __attribute__((aligned(16)));
    unsigned long base = (unsigned long)area;
    /* An expand-up stack of 256 bytes at `area`; the handlers run on it too, so its faults go to tasks or end
     * as they should from CPL 3, where the handler's stack is the TSS's. */
    uint16_t up =
        gdt_set(0, segment_descriptor((uint32_t)base, 0xff,
                                      SEGMENT_DATA | DESCRIPTOR_PRESENT | DESCRIPTOR_DPL(3), SEGMENT_BIG)) |
        3;
    uint16_t down = gdt_set(1, segment_descriptor((uint32_t)base, 0x7f,
                                                  SEGMENT_DATA_DOWN | DESCRIPTOR_PRESENT | DESCRIPTOR_DPL(3),
                                                  SEGMENT_BIG)) |
                    3;
    static const struct {
        const char *name;
        const void *code;
        bool down;
        uint32_t sp, bp;
        unsigned vector;
    } cases[] = {
        {"push within the limit", seg_push, false, 0x100, 0, VECTOR_DONE},
        {"push at 0 wraps to beyond the limit", seg_push, false, 0, 0, VECTOR_SS},
        {"push beyond the limit", seg_push, false, 0x104, 0, VECTOR_SS},
        {"push over the limit", seg_push, false, 0x101, 0, VECTOR_SS},
        {"pop at the limit", seg_pop, false, 0xfc, 0, VECTOR_DONE},
        {"pop over the limit", seg_pop, false, 0xfd, 0, VECTOR_SS},
        {"load by ebp within the limit", seg_bp, false, 0x80, 0xfc, VECTOR_DONE},
        {"load by ebp over the limit", seg_bp, false, 0x80, 0xfd, VECTOR_SS},
        {"expand-down push above the limit", seg_push, true, 0x84, 0, VECTOR_DONE},
        {"expand-down push to the limit", seg_push, true, 0x83, 0, VECTOR_SS},
        {"expand-down pop at the limit", seg_pop, true, 0x7f, 0, VECTOR_SS},
    };
    for (unsigned i = 0; i < ARRAY_SIZE(cases); i++) {
        struct context c = context_user(cases[i].code);
        c.ss = cases[i].down ? down : up;
        c.sp = cases[i].sp;
        c.bp = cases[i].bp;
        context_run(&c);
        check_end(&c, cases[i].vector, 0, cases[i].name);
        check(c.ss, cases[i].down ? down : up, "%s: ss", cases[i].name);
        if (cases[i].vector != VECTOR_DONE)
            check(c.sp, cases[i].sp, "%s: esp", cases[i].name);
    }
    struct context c = context_user(seg_bp_ds);
    c.ds = up;
    c.bp = 0xfd;
    context_run(&c);
    check_end(&c, VECTOR_GP, 0, "load by ebp with a ds prefix over the limit");
    /* B clear: pushes use SP and wrap at 64 KiB. */
    uint16_t small =
        gdt_set(2, segment_descriptor((uint32_t)base + 256 - 0x10000, 0xffff,
                                      SEGMENT_DATA | DESCRIPTOR_PRESENT | DESCRIPTOR_DPL(3), 0)) |
        3;
    c = context_user(seg_push_high);
    c.ss = small;
    c.ax = 0xcafe;
    context_run(&c);
    check_end(&c, VECTOR_DONE, 0, "push on a 16-bit stack at sp 0");
    check(c.sp, 0x1234fffc, "push on a 16-bit stack changes sp alone");
    check(*(volatile uint32_t *)(area + 252), 0xcafe, "push on a 16-bit stack wraps");
    c = context_user(seg_push);
    c.ss = small;
    c.sp = 2;
    context_run(&c);
    check_end(&c, VECTOR_SS, 0, "push of 4 bytes at sp 2 of a 16-bit stack");
}

static void check_code(void) {
    uint32_t base = (uint32_t)(unsigned long)seg_jump;
    struct context c;
    /* jmp *%eax is 2 bytes, the int 2 bytes: a limit of 3 holds both. */
    static const struct {
        const char *name;
        uint32_t limit, target;
        unsigned vector, ip;
    } cases[] = {
        {"near jmp inside the limit", 3, 2, VECTOR_DONE, 4},
        {"near jmp beyond the limit", 3, 4, VECTOR_GP, 0},
        {"fetch over the limit", 2, 2, VECTOR_GP, 2},
        {"near jmp far beyond the limit", 3, 0xffffffff, VECTOR_GP, 0},
    };
    for (unsigned i = 0; i < ARRAY_SIZE(cases); i++) {
        uint16_t code = gdt_set(
            0, segment_descriptor(base, cases[i].limit, SEGMENT_CODE | DESCRIPTOR_PRESENT, SEGMENT_BIG));
        c = context_kernel(0);
        c.cs = code;
        c.ax = cases[i].target;
        context_run(&c);
        check_end(&c, cases[i].vector, 0, cases[i].name);
        check(c.ip, cases[i].ip, "%s: eip", cases[i].name);
    }
    c = context_kernel(seg_write_cs);
    c.ax = base;
    context_run(&c);
    check_end(&c, VECTOR_GP, 0, "write through cs");
    c = context_kernel(seg_read_es);
    c.es = 0;
    c.ax = base;
    context_run(&c);
    check_end(&c, VECTOR_GP, 0, "use of a null segment");
    c = context_kernel(seg_string);
    c.es = 0;
    c.si = c.di = base;
    context_run(&c);
    check_end(&c, VECTOR_GP, 0, "movsl into a null es");
    check(c.si, base, "movsl into a null es: esi");
    gdt_set(
        0, segment_descriptor(0, 0xfffff, SEGMENT_CODE_XO | DESCRIPTOR_PRESENT, SEGMENT_BIG | SEGMENT_PAGES));
    c = context_kernel(seg_nop);
    c.cs = SELECTOR;
    context_run(&c);
    check_end(&c, VECTOR_DONE, 0, "execution in an execute-only segment");
    c = context_kernel(seg_read_cs);
    c.cs = SELECTOR;
    c.ax = base;
    context_run(&c);
    check_end(&c, VECTOR_GP, 0, "read from an execute-only segment");
}

static void check_ldt(void) {
    static uint64_t ldt[4];
    uint16_t value;
    const unsigned present = DESCRIPTOR_PRESENT;
    struct tally tally;
    tally_begin(&tally, "lldt types");
    for (unsigned type = 0; type < 32; type++)
        for (unsigned p = 0; p < 2; p++) {
            gdt_set(0, segment_descriptor((uint32_t)(unsigned long)ldt, sizeof(ldt) - 1,
                                          type | (p ? present : 0), 0));
            unsigned vector = TRY("lldt %w0", : : "r"(SELECTOR));
            unsigned want = type != SYSTEM_LDT ? VECTOR_GP : p ? NO_TRAP : VECTOR_NP;
            tally_case(&tally, vector, want, "type %x present %u", type, p);
            if (vector != NO_TRAP)
                tally_case(&tally, probe.error, SELECTOR, "error code of type %x", type);
        }
    tally_end(&tally);
    asm volatile("sldt %0" : "=r"(value));
    check(value, SELECTOR, "sldt");
    ldt[1] = segment_descriptor(0, 0xfffff, SEGMENT_DATA | present, SEGMENT_BIG | SEGMENT_PAGES);
    ldt[2] = segment_descriptor(0, 0xfffff, SEGMENT_DATA, SEGMENT_BIG | SEGMENT_PAGES);
    check(TRY("mov %w0, %%fs", : : "r"(0x0c) : "memory"), NO_TRAP, "load from the LDT");
    asm volatile("mov %w0, %%fs" : : "r"(0)); /* the handlers reload what they find */
    check(((volatile uint64_t *)ldt)[1] >> 40 & 1, 1, "load from the LDT sets accessed");
    check(TRY("mov %w0, %%fs",
              :
              : "r"(0x14))
                  << 16 |
              probe.error,
          VECTOR_NP << 16 | 0x14, "LDT segment not present");
    check(TRY("mov %w0, %%fs", : : "r"(0x24)) << 16 | probe.error, VECTOR_GP << 16 | 0x24, "beyond the LDT");
    check(TRY("mov %w0, %%fs",
              :
              : "r"(0x04))
                  << 16 |
              probe.error,
          VECTOR_GP << 16 | 0x04, "LDT entry 0 is not null but empty");
    check(TRY("lldt %w0",
              :
              : "r"(0x0c))
                  << 16 |
              probe.error,
          VECTOR_GP << 16 | 0x0c, "lldt with a selector of the LDT");
    check(TRY("lldt %w0",
              :
              : "r"(GDT_BYTES))
                  << 16 |
              probe.error,
          VECTOR_GP << 16 | GDT_BYTES, "lldt beyond the GDT");
    check(TRY("lldt %w0", : : "r"(0)), NO_TRAP, "lldt null");
    check(TRY("mov %w0, %%fs",
              :
              : "r"(0x0c))
                  << 16 |
              probe.error,
          VECTOR_GP << 16 | 0x0c, "LDT selector after lldt null");

    tally_begin(&tally, "ltr types");
    for (unsigned type = 0; type < 32; type++)
        for (unsigned p = 0; p < 2; p++) {
            if (type == SYSTEM_TSS16 && p)
                continue;
            gdt_set(
                0, segment_descriptor((uint32_t)(unsigned long)&tss_other, 103, type | (p ? present : 0), 0));
            unsigned vector = TRY("ltr %w0", : : "r"(SELECTOR));
            unsigned want = type != SYSTEM_TSS && type != SYSTEM_TSS16 ? VECTOR_GP : p ? NO_TRAP : VECTOR_NP;
            tally_case(&tally, vector, want, "type %x present %u", type, p);
            if (vector == NO_TRAP)
                tally_case(&tally, *(volatile uint64_t *)&gdt[SELECTOR / 8] >> 40 & 0x1f, SYSTEM_TSS_BUSY,
                           "busy");
        }
    tally_end(&tally);
    check(TRY("ltr %w0", : : "r"(0)) << 16 | probe.error, VECTOR_GP << 16, "ltr null");
    check(TRY("ltr %w0",
              :
              : "r"(0x0c))
                  << 16 |
              probe.error,
          VECTOR_GP << 16 | 0x0c, "ltr with a selector of the LDT");
    check(TRY("ltr %w0",
              :
              : "r"(TSS32_SELECTOR))
                  << 16 |
              probe.error,
          VECTOR_GP << 16 | TSS32_SELECTOR, "ltr busy");
    *(volatile uint64_t *)&gdt[TSS32_SELECTOR / 8] &= ~BIT(41);
    check(TRY("ltr %w0", : : "r"(TSS32_SELECTOR)), NO_TRAP, "ltr of the runtime's TSS");
    check(read_tr(), TSS32_SELECTOR, "str");
}

SNIPPET(store_sgdt, "sub $8, %esp\n\tsgdt (%esp)\n\tadd $8, %esp");
SNIPPET(store_sidt, "sub $8, %esp\n\tsidt (%esp)\n\tadd $8, %esp");
SNIPPET(store_sldt, "sldt %eax");
SNIPPET(store_str, "str %eax");
SNIPPET(store_smsw, "smsw %eax");
SNIPPET(store_lgdt, "lgdt (%eax)");
SNIPPET(store_lidt, "lidt (%eax)");
SNIPPET(store_lldt, "lldt %ax");
SNIPPET(store_ltr, "ltr %ax");
SNIPPET(store_lmsw, "lmsw %ax");
SNIPPET(store_clts, "clts");

static void check_stores(void) {
    static const struct {
        const char *name;
        const void *code;
        bool always; /* privileged without UMIP too */
    } stores[] = {{"sgdt", store_sgdt, false}, {"sidt", store_sidt, false}, {"sldt", store_sldt, false},
                  {"str", store_str, false},   {"smsw", store_smsw, false}, {"lgdt", store_lgdt, true},
                  {"lidt", store_lidt, true},  {"lldt", store_lldt, true},  {"ltr", store_ltr, true},
                  {"lmsw", store_lmsw, true},  {"clts", store_clts, true}};
    bool has_umip = cpuid(7, 0).c & BIT(2);
    struct __attribute__((packed)) {
        struct table_register table;
        uint16_t beyond;
    } gdtr = {.beyond = 0xbeef};
    for (unsigned umip = 0; umip <= has_umip; umip++) {
        if (has_umip)
            write_cr4((read_cr4() & ~CR4_UMIP) | (umip ? CR4_UMIP : 0));
        for (unsigned i = 0; i < ARRAY_SIZE(stores); i++) {
            struct context c = context_user(stores[i].code);
            c.ax = (unsigned long)gdt;
            context_run(&c);
            check(c.vector << 16 | c.error, stores[i].always || umip ? VECTOR_GP << 16 : VECTOR_DONE << 16,
                  "%s at CPL 3, UMIP %u", stores[i].name, umip);
        }
        check(TRY("sgdt %0", : "=m"(gdtr.table)), NO_TRAP, "sgdt at CPL 0, UMIP %u", umip);
    }
    if (has_umip)
        write_cr4(read_cr4() & ~CR4_UMIP);
    check(gdtr.table.limit, GDT_BYTES - 1, "sgdt: limit");
    check(gdtr.table.base, (unsigned long)gdt, "sgdt: base");
    check(gdtr.beyond, 0xbeef, "sgdt stores six bytes");
    struct context c = context_kernel(store_str);
    c.ax = 0xffffffff;
    context_run(&c);
    check(c.ax, TSS32_SELECTOR, "str to a 32-bit register clears its upper half");
    c = context_kernel(store_smsw);
    context_run(&c);
    check(c.ax & 0xffff, read_cr0() & 0xffff, "smsw");
    write_cr0(read_cr0() | CR0_TS);
    asm volatile("clts");
    check(read_cr0() & CR0_TS, 0, "clts");
    asm volatile("lmsw %w0" : : "r"(8));
    check(read_cr0() & 0xf, CR0_PE | CR0_TS, "lmsw sets TS, clears MP, cannot clear PE");
    write_cr0((read_cr0() & ~CR0_TS) | CR0_MP);
}

void segments_use_check(void) {
    check_stack();
    check_code();
    check_ldt();
    check_stores();
}
