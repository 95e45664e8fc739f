/*
 * Segmentation in 32-bit protected mode, paging off: loads of every segment register from every descriptor
 * type against a model, far transfers, limits and types on use. Source: Intel SDM volume 3, chapter 5, and
 * the pseudo-code of MOV, JMP, LAR, LSL, VERR, VERW in volume 2.
 */
#include "segments32.h"

#include "runtime.h"

#define SLOT 0
#define SELECTOR (SCRATCH_SELECTOR + 8 * SLOT)

struct outcome {
    unsigned vector;
    unsigned error;
};

static struct outcome data_load_model(unsigned type, unsigned dpl, unsigned rpl, bool present, unsigned cpl) {
    bool segment = type & 0x10, code = type & 8, conforming = code && (type & 4),
         readable = !code || (type & 2);
    if (!segment || !readable)
        return (struct outcome){VECTOR_GP, SELECTOR};
    if (!conforming && (rpl > dpl || cpl > dpl))
        return (struct outcome){VECTOR_GP, SELECTOR};
    return present ? (struct outcome){NO_TRAP, 0} : (struct outcome){VECTOR_NP, SELECTOR};
}

static struct outcome stack_load_model(unsigned type, unsigned dpl, unsigned rpl, bool present,
                                       unsigned cpl) {
    bool writable = (type & 0x1a) == 0x12;
    if (rpl != cpl || !writable || dpl != cpl)
        return (struct outcome){VECTOR_GP, SELECTOR};
    return present ? (struct outcome){NO_TRAP, 0} : (struct outcome){VECTOR_SS, SELECTOR};
}

static struct outcome far_jump_model(unsigned type, unsigned dpl, unsigned rpl, bool present, unsigned cpl) {
    bool code = (type & 0x18) == 0x18, conforming = type & 4;
    if (!code || (conforming ? dpl > cpl : rpl > cpl || dpl != cpl))
        return (struct outcome){VECTOR_GP, SELECTOR};
    return present ? (struct outcome){NO_TRAP, 0} : (struct outcome){VECTOR_NP, SELECTOR};
}

SNIPPET(load_es, "mov %ax, %es");
SNIPPET(load_fs, "mov %ax, %fs");
SNIPPET(load_ss, "mov %ss, %ecx\n\tmov %ax, %ss\n\tmov %cx, %ss");
SNIPPET(pop_ds, "push %eax\n\tpop %ds");
SNIPPET(load_lgs, "push %eax\n\tpush $5\n\tlgs (%esp), %ebx\n\tadd $8, %esp");
SNIPPET(far_jump, "push %eax\n\tpush %ebx\n\tljmp *(%esp)");
SNIPPET(far_call, "push %eax\n\tpush %ebx\n\tlcall *(%esp)");
SNIPPET(far_target, "nop");

struct load_kind {
    const char *name;
    const void *code;
    struct outcome (*model)(unsigned type, unsigned dpl, unsigned rpl, bool present, unsigned cpl);
    bool code_wanted;
};

static const struct load_kind load_kinds[] = {
    {"mov es", load_es, data_load_model, false},  {"mov fs", load_fs, data_load_model, false},
    {"pop ds", pop_ds, data_load_model, false},   {"lgs", load_lgs, data_load_model, false},
    {"mov ss", load_ss, stack_load_model, false}, {"far jmp", far_jump, far_jump_model, true},
    {"far call", far_call, far_jump_model, true},
};

/* System types that a far transfer takes for a gate or a task. */
static bool is_gate(unsigned type) {
    return type == 1 || type == 3 || type == 4 || type == 5 || type == 9 || type == 0xb || type == 0xc;
}

static void check_loads(const struct load_kind *kind) {
    struct tally tally;
    tally_begin(&tally, kind->name);
    for (unsigned n = 0; n < 32 * 4 * 4 * 2 * 2; n++) {
        unsigned type = n & 31, dpl = n >> 5 & 3, rpl = n >> 7 & 3, present = n >> 9 & 1,
                 cpl = n >> 10 ? 3 : 0;
        if (kind->code_wanted && type < 0x10 && is_gate(type))
            continue;
        uint64_t descriptor =
            segment_descriptor(0, 0xfffff, type | DESCRIPTOR_DPL(dpl) | (present ? DESCRIPTOR_PRESENT : 0),
                               SEGMENT_BIG | SEGMENT_PAGES);
        gdt_set(SLOT, descriptor);
        struct context c = cpl ? context_user(kind->code) : context_kernel(kind->code);
        c.ax = SELECTOR | rpl;
        c.bx = (unsigned long)far_target;
        context_run(&c);
        struct outcome want = kind->model(type, dpl, rpl, present, cpl);
        if (want.vector == NO_TRAP)
            want = (struct outcome){VECTOR_DONE, 0};
        tally_case(&tally, c.vector << 16 | c.error, want.vector << 16 | want.error,
                   "type %x dpl %u rpl %u present %u cpl %u", type, dpl, rpl, present, cpl);
        uint64_t after = *(volatile uint64_t *)&gdt[SELECTOR / 8];
        tally_case(&tally, after, descriptor | (want.vector == VECTOR_DONE ? BIT(40) : 0),
                   "descriptor of type %x dpl %u rpl %u present %u cpl %u", type, dpl, rpl, present, cpl);
    }
    tally_end(&tally);
}

static void check_null_and_limit(void) {
    struct context c;
    for (unsigned i = 0; i < ARRAY_SIZE(load_kinds); i++) {
        bool strict = load_kinds[i].model != data_load_model;
        for (unsigned rpl = 0; rpl < 4; rpl++) {
            c = context_kernel(load_kinds[i].code);
            c.ax = rpl;
            context_run(&c);
            check_end(&c, strict ? VECTOR_GP : VECTOR_DONE, 0, "null selector");
        }
        c = context_kernel(load_kinds[i].code);
        c.ax = GDT_BYTES;
        context_run(&c);
        check_end(&c, VECTOR_GP, GDT_BYTES, "selector beyond the GDT");
        c.ax = 0x0c; /* the LDT register is null */
        c.ip = (unsigned long)load_kinds[i].code;
        context_run(&c);
        check_end(&c, VECTOR_GP, 0x0c, "selector of no LDT");
    }
    c = context_kernel(far_target);
    c.es = 3;
    context_run(&c);
    check(c.es, 3, "a null selector keeps its RPL");
}

/* Use of a segment: each offset and size against the limit. */
struct use {
    const char *name;
    unsigned type, flags;
    uint32_t limit;
};

SNIPPET(use_read1, "mov %fs:(%eax), %cl");
SNIPPET(use_read2, "mov %fs:(%eax), %cx");
SNIPPET(use_read4, "mov %fs:(%eax), %ecx");
SNIPPET(use_read8, "movq %fs:(%eax), %mm0\n\temms");
SNIPPET(use_read16, "movups %fs:(%eax), %xmm0");
SNIPPET(use_write1, "mov %cl, %fs:(%eax)");
SNIPPET(use_write4, "mov %ecx, %fs:(%eax)");
SNIPPET(use_rmw4, "add %ecx, %fs:(%eax)");

static const struct {
    const void *code;
    unsigned size;
    bool write;
} accesses[] = {{use_read1, 1, false},   {use_read2, 2, false}, {use_read4, 4, false}, {use_read8, 8, false},
                {use_read16, 16, false}, {use_write1, 1, true}, {use_write4, 4, true}, {use_rmw4, 4, true}};

static const struct use uses[] = {
    {"expand-up, byte limit", SEGMENT_DATA, SEGMENT_BIG, 0x1fff},
    {"expand-up, odd limit", SEGMENT_DATA, SEGMENT_BIG, 0x12345},
    {"expand-up, page limit", SEGMENT_DATA, SEGMENT_BIG | SEGMENT_PAGES, 3},
    {"expand-up, limit 0", SEGMENT_DATA, SEGMENT_BIG, 0},
    {"expand-up, 16-bit segment", SEGMENT_DATA, 0, 0x2fff},
    {"expand-up, whole", SEGMENT_DATA, SEGMENT_BIG | SEGMENT_PAGES, 0xfffff},
    {"read-only", SEGMENT_DATA_RO, SEGMENT_BIG, 0x1fff},
    {"expand-down, big", SEGMENT_DATA_DOWN, SEGMENT_BIG, 0x1fff},
    {"expand-down, big, page limit", SEGMENT_DATA_DOWN, SEGMENT_BIG | SEGMENT_PAGES, 1},
    {"expand-down, 16-bit", SEGMENT_DATA_DOWN, 0, 0x1fff},
    {"expand-down, 16-bit, limit 0xffff", SEGMENT_DATA_DOWN, 0, 0xffff},
    {"expand-down, read-only", SEGMENT_DATA_DOWN & ~2, SEGMENT_BIG, 0x1fff},
    {"code, readable", SEGMENT_CODE, SEGMENT_BIG, 0x1fff},
    {"code, conforming", SEGMENT_CONFORMING, SEGMENT_BIG, 0x1fff},
};

static void check_uses(void) {
    static uint8_t buffer[64];
    for (unsigned i = 0; i < ARRAY_SIZE(uses); i++) {
        const struct use *use = &uses[i];
        struct tally tally;
        uint32_t limit = use->flags & SEGMENT_PAGES ? use->limit << 12 | 0xfff : use->limit;
        bool code = use->type & 8, down = !code && (use->type & 4);
        uint32_t top = down ? (use->flags & SEGMENT_BIG ? 0xffffffff : 0xffff) : limit;
        uint32_t bottom = down ? limit + 1 : 0;
        bool empty = down && limit >= top;
        const uint32_t centres[] = {0, limit, 0xffff, 0xffffffff};
        tally_begin(&tally, use->name);
        for (unsigned j = 0; j < ARRAY_SIZE(centres); j++)
            for (int step = -17; step <= 3; step++) {
                if (step < -4 && step > -15)
                    continue;
                uint32_t offset = centres[j] + (uint32_t)step;
                gdt_set(SLOT,
                        segment_descriptor((uint32_t)(unsigned long)buffer - offset, use->limit,
                                           use->type | DESCRIPTOR_PRESENT | DESCRIPTOR_DPL(3), use->flags));
                for (unsigned k = 0; k < ARRAY_SIZE(accesses); k++) {
                    uint32_t last = offset + accesses[k].size - 1;
                    bool inside = !empty && last >= offset && offset >= bottom && last <= top;
                    bool right = !accesses[k].write || (!code && (use->type & 2));
                    /* What an access that wraps at the end of the largest segment does is not defined (SDM
                     * 3, 5.3). */
                    if (last < offset && top == 0xffffffff)
                        continue;
                    struct context c = context_kernel(accesses[k].code);
                    c.fs = SELECTOR;
                    c.ax = offset;
                    context_run(&c);
                    tally_case(&tally, c.vector << 16 | c.error,
                               inside && right ? VECTOR_DONE << 16 : VECTOR_GP << 16,
                               "offset %x size %u write %u", offset, accesses[k].size, accesses[k].write);
                }
            }
        tally_end(&tally);
    }
}

/* LAR, LSL, VERR, VERW over every type and level: ZF and value. */
SNIPPET(query,
        "mov $0x55555555, %ebx\n\tmov %ebx, %ecx\n\tlar %eax, %ebx\n\tpushf\n\tlsl %eax, %ecx\n\tpushf\n\t"
        "verr %ax\n\tpushf\n\tverw %ax\n\tpushf\n\tpop %edi\n\tpop %esi\n\tpop %edx\n\tpop %ebp");

static void check_queries(void) {
    struct tally lar, lsl, verr, verw;
    tally_begin(&lar, "lar");
    tally_begin(&lsl, "lsl");
    tally_begin(&verr, "verr");
    tally_begin(&verw, "verw");
    for (unsigned n = 0; n < 32 * 4 * 4 * 2 * 2; n++) {
        unsigned type = n & 31, dpl = n >> 5 & 3, rpl = n >> 7 & 3, present = n >> 9 & 1,
                 cpl = n >> 10 ? 3 : 0;
        bool segment = type & 0x10, code = segment && (type & 8), conforming = code && (type & 4);
        bool visible = conforming || (rpl <= dpl && cpl <= dpl);
        uint64_t descriptor = segment_descriptor(
            0x12345678, 0xabcde, type | DESCRIPTOR_DPL(dpl) | (present ? DESCRIPTOR_PRESENT : 0),
            SEGMENT_BIG | SEGMENT_AVL | (n & 1 ? SEGMENT_PAGES : 0));
        gdt_set(SLOT, descriptor);
        struct context c = cpl ? context_user(query) : context_kernel(query);
        c.ax = SELECTOR | rpl;
        context_run(&c);
        /* SDM 2, LAR and LSL: the system types that each of them knows. */
        const unsigned lar_types = BIT(1) | BIT(2) | BIT(3) | BIT(4) | BIT(5) | BIT(9) | BIT(11) | BIT(12);
        const unsigned lsl_types = BIT(1) | BIT(2) | BIT(3) | BIT(9) | BIT(11);
        bool lar_ok = visible && (segment || (lar_types >> type & 1));
        bool lsl_ok = visible && (segment || (lsl_types >> type & 1));
        bool verr_ok = visible && segment && (!code || (type & 2));
        bool verw_ok = visible && segment && !code && (type & 2);
        uint32_t rights = (uint32_t)(descriptor >> 32) & 0x00ffff00;
        uint32_t limit = n & 1 ? 0xabcdefff : 0xabcde;
        /* Bits 19:16 of what LAR gives are not defined. */
        tally_case(&lar, (c.bx & 0xfff0ffff) << 1 | (c.bp >> 6 & 1),
                   (lar_ok ? rights & 0xfff0ffff : 0x55505555) << 1 | lar_ok, "type %x dpl %u rpl %u cpl %u",
                   type, dpl, rpl, cpl);
        tally_case(&lsl, (uint64_t)(c.cx) << 1 | (c.dx >> 6 & 1),
                   (uint64_t)(lsl_ok ? limit : 0x55555555) << 1 | lsl_ok, "type %x dpl %u rpl %u cpl %u",
                   type, dpl, rpl, cpl);
        tally_case(&verr, c.si >> 6 & 1, verr_ok, "type %x dpl %u rpl %u cpl %u", type, dpl, rpl, cpl);
        tally_case(&verw, c.di >> 6 & 1, verw_ok, "type %x dpl %u rpl %u cpl %u", type, dpl, rpl, cpl);
    }
    tally_end(&lar);
    tally_end(&lsl);
    tally_end(&verr);
    tally_end(&verw);
    static const uint16_t bad[] = {0, 3, GDT_BYTES, 0x0c};
    for (unsigned i = 0; i < ARRAY_SIZE(bad); i++) {
        struct context c = context_kernel(query);
        c.ax = bad[i];
        context_run(&c);
        check((c.bp | c.dx | c.si | c.di) & FLAG_ZF, 0, "lar, lsl, verr, verw of selector 0x%x", bad[i]);
        check(c.bx, 0x55555555, "lar of selector 0x%x leaves its register", bad[i]);
    }
}

void kernel_main(void) {
    for (unsigned i = 0; i < ARRAY_SIZE(load_kinds); i++)
        check_loads(&load_kinds[i]);
    check_null_and_limit();
    check_uses();
    check_queries();
    segments_use_check();
    segments_return_check();
    checks_finish("segments32");
}
