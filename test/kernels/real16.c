/*
 * Real mode: interrupts through the vector table, exceptions and their vectors, segment arithmetic, the 64
 * KiB limit, limits kept from protected mode, 16-bit stacks and prefixes. Source: Intel SDM volume 3,
 * chapter 21.
 */
#include "runtime.h"

#define REAL_BASE 0x5000
#define REAL_STATE 0x4000
#define REAL_CODE 0x9000

struct real_state {
    uint16_t ds, es, ss, vector, ip, cs, flags, reserved;
    uint32_t ax, bx, cx, dx, si, di, bp, sp;
};

extern const uint8_t real_start[], real_end[], real_vectors[];
void real_run(uint32_t segment, uint32_t offset);

static struct real_state real_state_run(const uint8_t *code, unsigned bytes) {
    for (unsigned i = 0; i < bytes; i++)
        ((volatile uint8_t *)REAL_CODE)[i] = code[i];
    real_run(REAL_CODE >> 4, 0);
    return *(volatile struct real_state *)REAL_STATE;
}

struct real_case {
    const char *name;
    const uint8_t *code, *end;
    unsigned vector, ip;
    uint32_t ax, bx;
};

/* Each ends by INT 0x40; ax and bx are the result. */
#define REAL(name, code)                                                                                     \
    extern const uint8_t name[], name##_end[];                                                               \
    asm(".pushsection .text\n\t.code16\n" #name ":\n\t" code "\n\tint $0x40\n" #name                         \
        "_end:\n\t.code32\n\t.popsection")

REAL(real_nop, "mov $0x1234, %ax");
REAL(real_segments, "mov $0xf000, %ax\n\tmov %ax, %ds\n\tmov %cs, %bx");
REAL(real_store,
     "mov $0x0a00, %ax\n\tmov %ax, %ds\n\tmovw $0x55aa, 0x10\n\tmov $0x0a01, %ax\n\tmov %ax, %es\n\t"
     "mov %es:0, %ax\n\tmov $0x9ff, %bx\n\tmov %bx, %es\n\tmov %es:0x20, %bx");
REAL(real_int, "xor %ax, %ax\n\tmov %ax, %ds\n\tmovw $0x2000, 0x84\n\tmovw $0, 0x86\n\tmovb $0xcf, "
               "0x2000\n\tstc\n\tsti\n\t"
               "int $0x21\n\tpushf\n\tpop %ax\n\tcli\n\tmov $7, %bx");
REAL(real_bios_memory, "int $0x12");
REAL(real_bios_clock, "mov $0xfe, %al\n\tout %al, $0x21\n\txor %cx, %cx\n\tmov %cx, %ds\n\tmov 0x46c, "
                      "%ecx\n1:\tsti\n\thlt\n\tcli\n\tmov 0x46c, %eax\n\tsub %ecx, %eax\n\tcmp $2, "
                      "%eax\n\tjb 1b\n\tmov $0xff, %al\n\tout %al, $0x21\n\tmov $2, %ax");
REAL(real_bios_absent, "mov $0xe820, %eax\n\tclc\n\tint $0x15\n\tsetc %bl");
REAL(real_bios_unused, "mov $0x1234, %ax\n\tstc\n\tint $0x65\n\tsetc %bl");
REAL(real_divide, "xor %ax, %ax\n\txor %cx, %cx\n\tdiv %cx");
REAL(real_ud, "ud2");
REAL(real_int3, "int3");
REAL(real_into, "mov $0x7fff, %ax\n\tinc %ax\n\tinto");
REAL(real_bound, "push $5\n\tpush $2\n\tmov %sp, %bp\n\tmov $9, %ax\n\tbound %ax, (%bp)");
REAL(real_word_end, "mov $0xffff, %bx\n\tmov (%bx), %ax");
REAL(real_byte_end, "mov $0xffff, %bx\n\tmov (%bx), %al\n\txor %ax, %ax");
REAL(real_long, "mov $0x10000, %ebx\n\tmov (%ebx), %al");
REAL(real_stack_end, "mov $0xffff, %sp\n\tpop %ax");
REAL(real_bp_end, "mov $0xffff, %bp\n\tmov (%bp), %ax");
REAL(real_wrap, "mov %sp, %cx\n\txor %sp, %sp\n\tpush $0x1122\n\tmov %sp, %ax\n\tpop %bx\n\tmov %cx, %sp");
REAL(real_push_sp, "mov %sp, %bx\n\tpush %sp\n\tpop %ax\n\tsub %bx, %ax");
REAL(real_prefix, "mov $0x12345678, %eax\n\tpushl %eax\n\tpop %ax\n\tpop %bx");
REAL(real_loop, "mov $0x10003, %ecx\n\txor %ax, %ax\n1:\tinc %ax\n\tloop 1b\n\tmov %cx, %bx");
REAL(real_address, "mov $0xffff0004, %esi\n\tlea 2(%si), %eax\n\tlea 2(%esi), %ebx\n\tshr $16, %ebx");
REAL(real_far, "push %cs\n\tpush $(2f-real_far)\n\tljmp *%cs:(1f-real_far)\n1:\t.word 3f-real_far, "
               "0x900\n2:\tmov $2, %ax\n\t"
               "int $0x40\n3:\tmov $3, %bx\n\tlret");
REAL(real_call, "lcall *%cs:(1f-real_call)\n\tmov $4, %ax\n\tjmp 2f\n1:\t.word 3f-real_call, 0x900\n3:\tmov "
                "$5, %bx\n\tlret\n2:");
REAL(real_jump32, "jmpl *%cs:(1f-real_jump32)\n1:\t.long 0x10000");
REAL(real_lldt, "lldt %ax");
REAL(real_str, "str %ax");
REAL(real_arpl, "arpl %ax, %bx");
REAL(real_smsw, "smsw %ax\n\tand $1, %ax");
REAL(real_cr0, "mov %cr0, %eax\n\tand $1, %eax");
REAL(real_string, "cld\n\tmov $0xfffe, %di\n\tmov $3, %cx\n\tmov $0x0a00, %ax\n\tmov %ax, %es\n\trep "
                  "stosb\n\tmov %di, %ax\n\tmov %cx, %bx");
REAL(real_lock, ".byte 0xf0\n\tnop");
REAL(real_popf, "push $0x7000\n\tpopf\n\tpushf\n\tpop %ax\n\tand $0x7000, %ax\n\tpush $0\n\tpopf");

/* Limits loaded in protected mode outlive it ("big real mode"). */
REAL(real_big,
     "cli\n\tpush %ds\n\tlgdtl %cs:(1f-real_big)\n\tmov %cr0, %eax\n\tor $1, %al\n\tmov %eax, %cr0\n\t"
     "jmp 2f\n2:\tmov $8, %bx\n\tmov %bx, %ds\n\tand $0xfe, %al\n\tmov %eax, %cr0\n\tjmp 3f\n3:\t"
     "pop %ds\n\tmov $0xa00000, %ebx\n\tmovl $0x12345678, (%ebx)\n\tmov (%ebx), %eax\n\tjmp 4f\n"
     "1:\t.word 15\n\t.long 0x9000 + 5f - real_big\n5:\t.quad 0, 0x00cf92000000ffff\n4:");
REAL(real_sidt, "sub $8, %sp\n\tmov %sp, %bp\n\tsidt (%bp)\n\tmov (%bp), %ax\n\tadd $8, %sp");
REAL(real_les,
     "push $0x1234\n\tpush $0x5678\n\tmov %sp, %bp\n\tles (%bp), %bx\n\tmov %es, %ax\n\tadd $4, %sp");
REAL(real_pusha, "mov $1, %ax\n\tmov $2, %bx\n\tpusha\n\txor %ax, %ax\n\txor %bx, %bx\n\tpopa");
REAL(real_calll,
     "mov %sp, %cx\n\tcalll 1f\n\tmov $4, %ax\n\tjmp 2f\n1:\tmov %cx, %bx\n\tsub %sp, %bx\n\tretl\n2:");
REAL(real_enter16,
     "mov $0x1111, %bp\n\tmov %sp, %ax\n\tenter $8, $0\n\tsub %sp, %ax\n\tleave\n\tmov %bp, %bx");
REAL(real_jcxz, "mov $0x10000, %ecx\n\tjcxz 1f\n\tud2\n1:\tjecxz 2f\n\tmov $5, %ax\n2:");
REAL(real_cwd, "mov $0x8000, %ax\n\tcwd\n\tmov %dx, %bx\n\tcwde");
REAL(real_xlat, "mov $0x2000, %bx\n\tmovb $0x5a, 3(%bx)\n\tmov $3, %al\n\txlat");
REAL(real_iretl, "pushfl\n\tpushl $0x900\n\tpushl $(1f-real_iretl)\n\tiretl\n\tud2\n1:\tmov $6, %ax");
REAL(real_idt_end, "lidt %cs:(1f-real_idt_end)\n\tint $0x41\n1:\t.word 0xff\n\t.long 0");
REAL(real_bswap, "mov $0x11223344, %eax\n\tbswap %eax\n\tmovzx %al, %ebx");
REAL(real_aad, "mov $0x0205, %ax\n\taad\n\tmov %ax, %bx\n\taam");
REAL(real_salc, "stc\n\t.byte 0xd6\n\tmovzx %al, %ax");
REAL(real_dr7, "mov %dr7, %eax");
REAL(real_fpu, "fninit\n\tmov $0x2000, %bx\n\tfnstcw (%bx)\n\tmov (%bx), %ax");
REAL(real_std,
     "std\n\tmov $0x2000, %si\n\tmov $0x2010, %di\n\tmovw $0x4455, (%si)\n\tmov $1, %cx\n\trep movsw\n\t"
     "cld\n\tmov 0x2010, %ax\n\tmov %si, %bx");
REAL(real_rdmsr, "mov $0x12345, %ecx\n\trdmsr");

#define CASE(name, code, ...)                                                                                \
    { name, code, code##_end, __VA_ARGS__ }
#define DONE 0x40
#define NONE 0xffff

static const struct real_case cases[] = {
    CASE("registers", real_nop, DONE, NONE, 0x1234, 0),
    CASE("segment registers", real_segments, DONE, NONE, 0xf000, 0x900),
    CASE("segments overlap", real_store, DONE, NONE, 0x55aa, 0x55aa),
    CASE("int n and iret", real_int, DONE, NONE, 0x247, 7),
    CASE("divide error", real_divide, 0, 4, 0, 0),
    CASE("invalid opcode", real_ud, 6, 0, 0, 0),
    CASE("int3", real_int3, 3, 1, 0, 0),
    CASE("into", real_into, 4, 5, 0x8000, 0),
    CASE("bound", real_bound, 5, 9, 9, 0),
    CASE("word at 0xffff", real_word_end, 13, 3, 0, 0xffff),
    CASE("byte at 0xffff", real_byte_end, DONE, NONE, 0, 0xffff),
    CASE("offset beyond 64 KiB", real_long, 13, 6, 0, 0x10000),
    CASE("pop at 0xffff", real_stack_end, 12, 3, 0, 0),
    CASE("word by bp at 0xffff", real_bp_end, 12, 3, 0, 0),
    CASE("push at sp 0 wraps", real_wrap, DONE, NONE, 0xfffe, 0x1122),
    CASE("push sp pushes the old value", real_push_sp, DONE, NONE, 0, NONE),
    CASE("operand-size prefix", real_prefix, DONE, NONE, 0x12345678, 0x1234),
    CASE("loop counts cx", real_loop, DONE, NONE, 3, 0),
    CASE("16-bit addresses wrap", real_address, DONE, NONE, 6, 0xffff),
    CASE("far jmp and ret", real_far, DONE, NONE, 2, 3),
    CASE("far call and ret", real_call, DONE, NONE, 4, 5),
    CASE("lldt", real_lldt, 6, 0, 0, 0),
    CASE("str", real_str, 6, 0, 0, 0),
    CASE("arpl", real_arpl, 6, 0, 0, 0),
    CASE("smsw: PE is clear", real_smsw, DONE, NONE, 0, 0),
    CASE("cr0: PE is clear", real_cr0, DONE, NONE, 0, 0),
    CASE("rep stosb wraps at 64 KiB", real_string, DONE, NONE, 1, 0),
    CASE("lock nop", real_lock, 6, 0, 0, 0),
    CASE("popf sets IOPL and NT", real_popf, DONE, NONE, 0x7000, 0),
    CASE("jmp beyond 64 KiB", real_jump32, 13, 0, 0, 0),
    CASE("limits of protected mode stay", real_big, DONE, NONE, 0x12345678, 0xa00000),
    CASE("sidt", real_sidt, DONE, NONE, 0x3ff, 0),
    CASE("les", real_les, DONE, NONE, 0x1234, 0x5678),
    CASE("pusha and popa", real_pusha, DONE, NONE, 1, 2),
    CASE("call and ret of 32 bits", real_calll, DONE, NONE, 4, 4),
    CASE("enter and leave", real_enter16, DONE, NONE, 10, 0x1111),
    CASE("jcxz and jecxz", real_jcxz, DONE, NONE, 5, 0),
    CASE("cwd and cwde", real_cwd, DONE, NONE, 0xffff8000, 0xffff),
    CASE("xlat", real_xlat, DONE, NONE, 0x5a, 0x2000),
    CASE("the BIOS's memory size", real_bios_memory, DONE, NONE, 639, 0),
    CASE("the BIOS's clock", real_bios_clock, DONE, NONE, 2, 0),
    CASE("a BIOS service that there is not", real_bios_absent, DONE, NONE, 0x8620, 1),
    CASE("a vector of the BIOS that nobody took", real_bios_unused, DONE, NONE, 0x1234, 1),
    CASE("iretl", real_iretl, DONE, NONE, 6, 0),
    CASE("int n beyond the vector table", real_idt_end, 13, 6, 0, 0),
    CASE("bswap and movzx", real_bswap, DONE, NONE, 0x44332211, 0x11),
    CASE("aad and aam", real_aad, DONE, NONE, 0x0205, 0x19),
    CASE("salc", real_salc, DONE, NONE, 0xff, 0),
    CASE("dr7", real_dr7, DONE, NONE, 0x400, 0),
    CASE("x87 control word", real_fpu, DONE, NONE, 0x37f, 0x2000),
    CASE("rep movsw downwards", real_std, DONE, NONE, 0x4455, 0x1ffe),
    CASE("rdmsr of an MSR that there is not", real_rdmsr, 13, 6, 0, 0),
};

static void check_cases(void) {
    for (unsigned i = 0; i < ARRAY_SIZE(cases); i++) {
        const struct real_case *want = &cases[i];
        struct real_state got = real_state_run(want->code, (unsigned)(want->end - want->code));
        struct tally tally;
        tally_begin(&tally, want->name);
        tally_case(&tally, got.vector, want->vector, "vector");
        if (want->ip != NONE) {
            tally_case(&tally, got.ip, want->ip, "ip");
            tally_case(&tally, got.cs, REAL_CODE >> 4, "cs");
        }
        if (want->vector == DONE || want->vector == 4 || want->vector == 5) {
            tally_case(&tally, got.ax, want->ax, "eax");
            if (want->bx != NONE)
                tally_case(&tally, got.bx, want->bx, "ebx");
        }
        tally_end(&tally);
    }
}

void kernel_main(void) {
    uint32_t vectors = REAL_BASE + (uint32_t)(real_vectors - real_start);
    for (unsigned i = 0; real_start + i < real_end; i++)
        ((volatile uint8_t *)REAL_BASE)[i] = real_start[i];
    for (unsigned i = 0; i < 256; i++) {
        /* The firmware's own, that the cases of the BIOS call. */
        if (i == 0x08 || i == 0x12 || i == 0x15 || i == 0x1c || i == 0x65)
            continue;
        *(volatile uint32_t *)(unsigned long)(4 * i) = vectors + 8 * i;
    }
    check_cases();
    checks_finish("real16");
}
