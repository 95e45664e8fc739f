/*
 * IRET and far RET: every CS and SS descriptor on a return to an outer level, data segments that are cleared
 * on the way, and the flags that a return may change.
 */
#include "runtime.h"
#include "segments32.h"

#define SELECTOR SCRATCH_SELECTOR
#define SELECTOR_SS (SCRATCH_SELECTOR + 8)

/* eax = cs, ebx = eip, ecx = ss, edx = esp, esi = flags */
SNIPPET(return_iret, "push %ecx\n\tpush %edx\n\tpush %esi\n\tpush %eax\n\tpush %ebx\n\tiret");
SNIPPET(return_far, "push %ecx\n\tpush %edx\n\tpush %eax\n\tpush %ebx\n\tlret");
SNIPPET(return_far_16, "push %ecx\n\tpush %edx\n\tpush $1\n\tpush $2\n\tpush %eax\n\tpush %ebx\n\tlret $8");
SNIPPET(return_target, "nop");

static struct context return_context(const void *code, unsigned cs, unsigned ss) {
    struct context c = context_kernel(code);
    c.ax = cs;
    c.bx = (unsigned long)return_target;
    c.cx = ss;
    c.dx = c.sp - 1024;
    c.si = FLAG_FIXED;
    return c;
}

static void check_cs(const void *code, const char *name) {
    struct tally tally;
    tally_begin(&tally, name);
    for (unsigned n = 0; n < 32 * 4 * 4 * 2; n++) {
        unsigned type = n & 31, dpl = n >> 5 & 3, rpl = n >> 7 & 3, present = n >> 9 & 1;
        bool is_code = (type & 0x18) == 0x18, conforming = type & 4;
        gdt_set(0, segment_descriptor(0, 0xfffff,
                                      type | DESCRIPTOR_DPL(dpl) | (present ? DESCRIPTOR_PRESENT : 0),
                                      SEGMENT_BIG | SEGMENT_PAGES));
        gdt_set(1, segment_descriptor(0, 0xfffff, SEGMENT_DATA | DESCRIPTOR_PRESENT | DESCRIPTOR_DPL(rpl),
                                      SEGMENT_BIG | SEGMENT_PAGES));
        struct context c = return_context(code, SELECTOR | rpl, SELECTOR_SS | rpl);
        context_run(&c);
        unsigned want = VECTOR_DONE, error = 0;
        if (!is_code || (conforming ? dpl > rpl : dpl != rpl)) {
            want = VECTOR_GP;
            error = SELECTOR;
        } else if (!present) {
            want = VECTOR_NP;
            error = SELECTOR;
        }
        tally_case(&tally, c.vector << 16 | c.error, want << 16 | error, "type %x dpl %u rpl %u present %u",
                   type, dpl, rpl, present);
        if (want == VECTOR_DONE && c.vector == VECTOR_DONE)
            tally_case(&tally, c.cs, SELECTOR | rpl, "cs of type %x rpl %u", type, rpl);
    }
    tally_end(&tally);
}

static void check_ss(const void *code, const char *name) {
    struct tally tally;
    tally_begin(&tally, name);
    for (unsigned n = 0; n < 32 * 4 * 4 * 2; n++) {
        unsigned type = n & 31, dpl = n >> 5 & 3, rpl = n >> 7 & 3, present = n >> 9 & 1;
        gdt_set(1, segment_descriptor(0, 0xfffff,
                                      type | DESCRIPTOR_DPL(dpl) | (present ? DESCRIPTOR_PRESENT : 0),
                                      SEGMENT_BIG | SEGMENT_PAGES));
        struct context c = return_context(code, USER32_CS, SELECTOR_SS | rpl);
        context_run(&c);
        unsigned want = VECTOR_DONE, error = 0;
        if (rpl != 3 || (type & 0x1a) != 0x12 || dpl != 3) {
            want = VECTOR_GP;
            error = SELECTOR_SS;
        } else if (!present) {
            want = VECTOR_SS;
            error = SELECTOR_SS;
        }
        tally_case(&tally, c.vector << 16 | c.error, want << 16 | error, "type %x dpl %u rpl %u present %u",
                   type, dpl, rpl, present);
    }
    tally_end(&tally);
    struct context c = return_context(code, USER32_CS, 3);
    context_run(&c);
    check_end(&c, VECTOR_GP, 0, "return with a null ss");
    c = return_context(code, 3, USER32_DS);
    context_run(&c);
    check_end(&c, VECTOR_GP, 0, "return to a null cs");
    c = return_context(code, USER32_CS, USER32_DS);
    unsigned long sp = c.dx;
    c.ds = KERNEL_DS;
    c.es = USER32_DS;
    c.fs = KERNEL_CS;
    c.gs = gdt_set(2, segment_descriptor(0, 0xfffff, SEGMENT_CONFORMING | DESCRIPTOR_PRESENT,
                                         SEGMENT_BIG | SEGMENT_PAGES));
    context_run(&c);
    check_end(&c, VECTOR_DONE, 0, "return to CPL 3");
    check(c.ds << 16 | c.fs, 0, "return to CPL 3 clears ds and fs of DPL 0");
    check(c.es, USER32_DS, "return to CPL 3 keeps es of DPL 3");
    check(c.gs, SELECTOR + 16, "return to CPL 3 keeps a conforming gs");
    check(c.sp, sp + (code == return_far_16 ? 8 : 0), "return to CPL 3: esp");
}

SNIPPET(return_user_iret, "push %esi\n\tpush %eax\n\tpush %ebx\n\tiret");
SNIPPET(return_user_far, "push %eax\n\tpush %ebx\n\tlret");
SNIPPET(return_popf, "push %esi\n\tpopf");
SNIPPET(return_cli, "cli");
SNIPPET(return_sti, "sti\n\tcli");

static void check_flags(void) {
    const unsigned long every = FLAG_CF | FLAG_PF | FLAG_AF | FLAG_ZF | FLAG_SF | FLAG_OF | FLAG_DF |
                                FLAG_AC | FLAG_ID | FLAG_IF | FLAG_IOPL(3) | FLAG_NT;
    const unsigned long mask = every;
    struct context c;
    for (unsigned iopl = 0; iopl < 4; iopl += 3)
        for (unsigned popf = 0; popf < 2; popf++) {
            const char *name = popf ? "popf" : "iret";
            c = context_user(popf ? return_popf : return_user_iret);
            c.flags = FLAG_FIXED | FLAG_IOPL(iopl);
            c.ax = USER32_CS;
            c.bx = (unsigned long)return_target;
            c.si = every;
            context_run(&c);
            check_end(&c, VECTOR_DONE, 0, name);
            unsigned long want = every & ~(FLAG_IOPL(3) | (iopl < 3 ? FLAG_IF : 0));
            check(c.flags & mask, want | FLAG_IOPL(iopl), "%s at CPL 3, IOPL %u: flags", name, iopl);
        }
    c = context_kernel(return_popf);
    c.si = every;
    context_run(&c);
    check(c.flags & mask, every, "popf at CPL 0 sets IOPL and IF");
    c = return_context(return_iret, USER32_CS, USER32_DS);
    c.si = every & ~FLAG_NT;
    context_run(&c);
    check(c.flags & mask, every & ~FLAG_NT, "iret to CPL 3 sets IOPL and IF");
    for (unsigned iopl = 0; iopl < 4; iopl += 3) {
        c = context_user(return_cli);
        c.flags = FLAG_FIXED | FLAG_IOPL(iopl) | FLAG_IF;
        context_run(&c);
        check_end(&c, iopl == 3 ? VECTOR_DONE : VECTOR_GP, 0, "cli at CPL 3");
        c = context_user(return_sti);
        c.flags = FLAG_FIXED | FLAG_IOPL(iopl);
        context_run(&c);
        check_end(&c, iopl == 3 ? VECTOR_DONE : VECTOR_GP, 0, "sti at CPL 3");
    }
    c = context_user(return_user_iret);
    c.ax = KERNEL_CS;
    c.si = FLAG_FIXED;
    context_run(&c);
    check_end(&c, VECTOR_GP, KERNEL_CS, "iret at CPL 3 to CPL 0");
    c = context_user(return_user_far);
    c.ax = KERNEL_CS;
    context_run(&c);
    check_end(&c, VECTOR_GP, KERNEL_CS, "lret at CPL 3 to CPL 0");
}

void segments_return_check(void) {
    check_cs(return_iret, "iret: cs");
    check_cs(return_far, "lret: cs");
    check_ss(return_iret, "iret: ss");
    check_ss(return_far, "lret: ss");
    check_ss(return_far_16, "lret n: ss");
    check_flags();
}
