/*
 * Code that is rewritten in place many times, mostly in an immediate: what a just-in-time compiler's inline
 * caches and a kernel's switches do. Each form is run with many values, so that a translation that lives on
 * with another immediate is told from one that should have been made anew. Source: Intel SDM volume 3, 8.1.3.
 */
#include "paging.h"
#include "runtime.h"

#define UNMAPPED 0x0000423440600000ull
#define ROUNDS 40

/* `code` sets name_at to where the immediate is. It is called with a number in edi and an address in rsi. */
#define PATCHED(name, code)                                                                                  \
    extern const uint8_t name[], name##_at[], name##_end[];                                                  \
    asm(".pushsection .text\n" #name ":\n\t" code "\n\tret\n" #name "_end:\n\t.popsection")
#define AT(name, back) ".set " #name "_at, . - " #back "\n\t"

PATCHED(imm_mov, "mov $0x12345678, %eax\n\t" AT(imm_mov, 4));
PATCHED(imm_mov_wide, "movabs $0x123456789abcdef0, %rax\n\t" AT(imm_mov_wide, 8));
PATCHED(imm_mov_signed, "mov $-5, %rax\n\t" AT(imm_mov_signed, 4));
PATCHED(imm_mov_byte, "mov %edi, %eax\n\tmov $0x12, %ah\n\t" AT(imm_mov_byte, 1));
PATCHED(imm_mov_r9, "mov $0x12345678, %r9d\n\t" AT(imm_mov_r9, 4) "mov (%rsi), %eax\n\tmov %r9d, %eax");
PATCHED(imm_store, "movl $0x12345678, (%rsi)\n\t" AT(imm_store, 4) "mov (%rsi), %eax");
PATCHED(imm_store_word, "movw $0x1234, 2(%rsi)\n\t" AT(imm_store_word, 2) "movzwl 2(%rsi), %eax");
PATCHED(imm_cmp, "cmp $0x12345678, %edi\n\t" AT(imm_cmp, 4) "mov (%rsi), %eax\n\tmov $0, %eax\n\tsetb %al");
PATCHED(imm_cmp_memory,
        "mov %edi, (%rsi)\n\tcmpl $0x12345678, (%rsi)\n\t" AT(imm_cmp_memory, 4) "setb %al\n\t"
                                                                                 "movzbl %al, "
                                                                                 "%eax");
PATCHED(imm_cmp_byte,
        "cmp $0x12, %dil\n\t" AT(imm_cmp_byte, 1) "mov (%rsi), %ecx\n\tmov $0, %eax\n\tsetb %al");
PATCHED(imm_test,
        "test $0x12345678, %edi\n\t" AT(imm_test, 4) "mov (%rsi), %eax\n\tmov $0, %eax\n\tsetnz %al");
PATCHED(imm_and, "mov %edi, %eax\n\tand $0x12345678, %eax\n\t" AT(imm_and, 4) "mov (%rsi), %ecx");
PATCHED(imm_or, "mov %edi, %eax\n\tor $0x12345678, %eax\n\t" AT(imm_or, 4) "mov (%rsi), %ecx");
PATCHED(imm_xor_memory,
        "mov %edi, (%rsi)\n\txorl $0x12345678, (%rsi)\n\t" AT(imm_xor_memory, 4) "mov (%rsi), "
                                                                                 "%eax");
PATCHED(imm_add, "lea (%rdi), %eax\n\tadd $0x12345678, %eax\n\t" AT(imm_add, 4) "mov (%rsi), %ecx");
PATCHED(imm_carry,
        "mov %edi, %eax\n\tadd $0x12345678, %eax\n\t" AT(imm_carry,
                                                         4) "mov (%rsi), %ecx\n\tmov $0, %eax\n\tsetb %al");
PATCHED(imm_borrow,
        "mov %edi, %eax\n\tsub $0x12345678, %eax\n\t" AT(imm_borrow,
                                                         4) "mov (%rsi), %ecx\n\tmov $0, %eax\n\tsetb %al");
PATCHED(imm_sub, "lea (%rdi), %eax\n\tsub $0x12345678, %eax\n\t" AT(imm_sub, 4) "mov (%rsi), %ecx");
/* The base of accesses moves by the immediate. */
PATCHED(imm_step, "mov %edi, (%rsi)\n\tmov %rsi, %rcx\n\tmov (%rcx), %eax\n\tsub $-8, %rcx\n\t" AT(
                      imm_step, 1) "mov -8(%rcx), %eax\n\tmov %ecx, %eax\n\tsub %esi, %eax");
PATCHED(imm_push, "push $0x12345678\n\t" AT(imm_push, 4) "pop %rax");
/* Its flags depend on whether the count is 0. */
PATCHED(imm_shift,
        "stc\n\tmov (%rsi), %ecx\n\tshl $2, %edi\n\t" AT(imm_shift, 1) "mov $0, %eax\n\tadc $0, %eax");
PATCHED(imm_displacement, "lea 0x40(%rsi), %rax\n\t" AT(imm_displacement, 1) "sub %rsi, %rax");
/* A loop, whose flags are made again in its second round. */
PATCHED(imm_loop,
        "xor %eax, %eax\n\tmov $6, %ecx\n1:\tadd (%rsi), %eax\n\tlea 1(%rax), %eax\n\tlea -1(%rcx), "
        "%ecx\n\tcmp $3, %ecx\n\t" AT(imm_loop, 1) "jg 1b");
PATCHED(imm_many,
        "mov $1, %eax\n\t" AT(imm_many,
                              4) ".rept 20\n\txor $0x55, %edi\n\tor $0, %edi\n\t.endr\n\tmov (%rsi), %ecx");

static uint64_t is_mov(uint64_t value, uint32_t number) {
    (void)number;
    return value;
}

static uint64_t is_mov32(uint64_t value, uint32_t number) {
    (void)number;
    return (uint32_t)value;
}

static uint64_t is_mov_signed(uint64_t value, uint32_t number) {
    (void)number;
    return (uint64_t)(int64_t)(int32_t)value;
}

static uint64_t is_mov_byte(uint64_t value, uint32_t number) {
    return (number & 0xffff00ffu) | (value & 0xff) << 8;
}

static uint64_t is_mov16(uint64_t value, uint32_t number) {
    (void)number;
    return (uint16_t)value;
}

static uint64_t is_below(uint64_t value, uint32_t number) {
    return number < (uint32_t)value;
}

static uint64_t is_below8(uint64_t value, uint32_t number) {
    return (uint8_t)number < (uint8_t)value;
}

static uint64_t is_test(uint64_t value, uint32_t number) {
    return (number & (uint32_t)value) != 0;
}

static uint64_t is_and(uint64_t value, uint32_t number) {
    return number & (uint32_t)value;
}

static uint64_t is_or(uint64_t value, uint32_t number) {
    return number | (uint32_t)value;
}

static uint64_t is_xor(uint64_t value, uint32_t number) {
    return number ^ (uint32_t)value;
}

static uint64_t is_add(uint64_t value, uint32_t number) {
    return number + (uint32_t)value;
}

static uint64_t is_carry(uint64_t value, uint32_t number) {
    return number + (uint32_t)value < number;
}

static uint64_t is_sub(uint64_t value, uint32_t number) {
    return number - (uint32_t)value;
}

static uint64_t is_step(uint64_t value, uint32_t number) {
    (void)number;
    return (uint32_t) - (int8_t)value;
}

/* Without a count the carry that was set stays. */
static uint64_t is_shift(uint64_t value, uint32_t number) {
    unsigned count = value & 31;
    return count ? number >> (32 - count) & 1 : 1;
}

static uint64_t is_signed8(uint64_t value, uint32_t number) {
    (void)number;
    return (uint64_t)(int64_t)(int8_t)value;
}

/* The cell holds 0: a round adds 1, as long as what is left is greater. */
static uint64_t is_loop(uint64_t value, uint32_t number) {
    (void)number;
    int left = 6, rounds = 0;
    do {
        rounds++;
        left--;
    } while (left > (int8_t)value);
    return (uint64_t)rounds;
}

static const struct {
    const char *name;
    const uint8_t *start, *at, *end;
    unsigned size;
    uint64_t (*expected)(uint64_t value, uint32_t number);
} forms[] = {
#define FORM(name, size, expected)                                                                           \
    { #name, name, name##_at, name##_end, size, expected }
    FORM(imm_mov, 4, is_mov32),
    FORM(imm_mov_wide, 8, is_mov),
    FORM(imm_mov_signed, 4, is_mov_signed),
    FORM(imm_mov_byte, 1, is_mov_byte),
    FORM(imm_mov_r9, 4, is_mov32),
    FORM(imm_store, 4, is_mov32),
    FORM(imm_store_word, 2, is_mov16),
    FORM(imm_cmp, 4, is_below),
    FORM(imm_cmp_memory, 4, is_below),
    FORM(imm_cmp_byte, 1, is_below8),
    FORM(imm_test, 4, is_test),
    FORM(imm_and, 4, is_and),
    FORM(imm_or, 4, is_or),
    FORM(imm_xor_memory, 4, is_xor),
    FORM(imm_add, 4, is_add),
    FORM(imm_sub, 4, is_sub),
    FORM(imm_carry, 4, is_carry),
    FORM(imm_borrow, 4, is_below),
    FORM(imm_step, 1, is_step),
    FORM(imm_push, 4, is_mov_signed),
    FORM(imm_shift, 1, is_shift),
    FORM(imm_displacement, 1, is_signed8),
    FORM(imm_loop, 1, is_loop),
    FORM(imm_many, 4, is_mov32),
};

static uint8_t *page, *cell;

static void put(uint8_t *to, const uint8_t *from, unsigned long count) {
    for (unsigned long i = 0; i < count; i++)
        ((volatile uint8_t *)to)[i] = from[i];
}

static uint64_t call(const void *code, uint32_t number) {
    return ((uint64_t(*)(uint64_t, void *))code)(number, cell);
}

static uint64_t next_value(void) {
    static uint64_t state = 1;
    state = state * 6364136223846793005ull + 1442695040888963407ull;
    return state >> 20 ^ state << 33;
}

/* Only the immediate is written; now and then the same value again, or all of the code. */
static void check_forms(uint8_t *at_most) {
    for (unsigned i = 0; i < ARRAY_SIZE(forms); i++) {
        struct tally tally;
        unsigned long length = (unsigned long)(forms[i].end - forms[i].start);
        uint8_t *at = at_most ? at_most - (forms[i].at - forms[i].start) - (forms[i].size + 1) / 2 : page;
        uint8_t *immediate = at + (forms[i].at - forms[i].start);
        uint64_t value = 0;
        tally_begin(&tally, forms[i].name);
        put(at, forms[i].start, length);
        for (unsigned round = 0; round < ROUNDS; round++) {
            uint32_t number = (uint32_t)next_value();
            if (round % 8 == 7)
                put(at, forms[i].start, length);
            if (round % 5 != 4 || round % 8 == 7)
                value = round % 3 ? next_value() : round % 2 ? 0 : next_value() & 7;
            if (round % 4 == 3)
                number = (uint32_t)value; /* equal is where comparisons change */
            put(immediate, (const uint8_t *)&value, forms[i].size);
            *(volatile uint64_t *)cell = 0;
            tally_case(&tally, call(at, number), forms[i].expected(value, number), "round %u", round);
            *(volatile uint64_t *)cell = 0;
            tally_case(&tally, call(at, number), forms[i].expected(value, number), "again, round %u", round);
        }
        tally_end(&tally);
    }
}

/* The access faults with the flags of the comparison before it. */
PATCHED(imm_fault, "cmp $0x12345678, %edi\n\t" AT(imm_fault, 4) "mov (%rsi), %eax\n\tsetb %al");

static void check_flags_of_faults(void) {
    struct tally tally;
    tally_begin(&tally, "flags at a fault behind a rewritten comparison");
    put(page, imm_fault, (unsigned long)(imm_fault_end - imm_fault));
    for (unsigned round = 0; round < ROUNDS; round++) {
        uint32_t value = (uint32_t)next_value(), number = round % 2 ? value : (uint32_t)next_value();
        put(page + (imm_fault_at - imm_fault), (const uint8_t *)&value, 4);
        for (unsigned fault = 0; fault < 2; fault++) {
            struct context c = context_kernel(page);
            c.di = number;
            c.si = fault ? UNMAPPED : (unsigned long)cell;
            if (!fault) {
                tally_case(&tally, call(page, number) & 1, number < value, "round %u", round);
                continue;
            }
            context_run(&c);
            tally_case(&tally, c.vector, VECTOR_PF, "vector, round %u", round);
            tally_case(&tally, c.flags & (FLAG_CF | FLAG_ZF),
                       (number < value ? FLAG_CF : 0) | (number == value ? FLAG_ZF : 0), "flags, round %u",
                       round);
        }
    }
    tally_end(&tally);
}

/* Two pieces that lead to each other: each is rewritten while the other is not in use, too. */
static void check_links(void) {
    static const uint8_t first[] = {0xb8, 0,    0,    0,   0,
                                    0x85, 0xff, 0xeb, 0x37}; /* mov $n, %eax; test %edi, %edi; jmp 0x40 */
    static const uint8_t second[] = {0x05, 0, 0, 0, 0, 0x75, 0x01, 0xc3,  /* add $n, %eax; jnz 1f; ret; */
                                     0xb9, 0, 0, 0, 0, 0x01, 0xc8, 0xc3}; /* 1f: mov $n, %ecx; add; ret */
    struct tally tally;
    uint32_t n[3] = {0, 0, 0};
    tally_begin(&tally, "rewritten pieces that lead to each other");
    put(page, first, sizeof(first));
    put(page + 0x40, second, 8);
    put(page + 0x48, second + 8, sizeof(second) - 8);
    for (unsigned round = 0; round < 6 * ROUNDS; round++) {
        uint8_t *const at[] = {page + 1, page + 0x41, page + 0x49};
        unsigned mask = round % 7 + 1;
        for (unsigned i = 0; i < 3; i++) {
            if (!(mask >> i & 1))
                continue;
            n[i] = (uint32_t)next_value() & 0xff;
            put(at[i], (const uint8_t *)&n[i], 4);
        }
        uint32_t sum = n[0] + n[1];
        tally_case(&tally, call(page, 0), sum ? sum + n[2] : 0, "round %u", round);
    }
    tally_end(&tally);
}

/* As a kernel patches itself: a breakpoint first, then the rest, then the first byte; and other opcodes. */
static void check_opcodes(void) {
    static const uint8_t opcode[] = {0xb8, 0x05, 0x2d, 0x35,
                                     0xa9, 0x0d, 0x25}; /* mov add sub xor test or and */
    struct tally tally;
    tally_begin(&tally, "another instruction with another immediate");
    put(page, imm_mov, (unsigned long)(imm_mov_end - imm_mov));
    for (unsigned round = 0; round < 4 * ROUNDS; round++) {
        uint32_t value = (uint32_t)next_value(), number = (uint32_t)next_value();
        unsigned which = round / 3 % ARRAY_SIZE(opcode);
        const uint8_t code[] = {0x89, 0xf8, opcode[which]}; /* mov %edi, %eax */
        put(page + 2, (const uint8_t[]){0xcc}, 1);
        put(page, code, 2);
        if (round % 2) {
            struct context c = context_kernel(page);
            context_run(&c);
            tally_case(&tally, c.vector, 3, "breakpoint, round %u", round);
        }
        put(page + 3, (const uint8_t *)&value, 4);
        put(page + 7, (const uint8_t[]){0xc3}, 1);
        put(page + 2, code + 2, 1);
        const uint32_t want[] = {value,  number + value, number - value, number ^ value,
                                 number, number | value, number & value};
        tally_case(&tally, call(page, number), want[which], "round %u", round);
    }
    tally_end(&tally);
}

/* Data beside rewritten code, and more places than anybody would remember. */
static void check_many_places(void) {
    struct tally tally;
    tally_begin(&tally, "rewritten places all over a page");
    for (unsigned i = 0; i < 500; i++)
        put(page + 8 * i, imm_mov, (unsigned long)(imm_mov_end - imm_mov));
    for (unsigned round = 0; round < 4; round++) {
        for (unsigned i = 0; i < 500; i++) {
            uint32_t value = i * 1000 + round;
            put(page + 8 * i + 1, (const uint8_t *)&value, 4);
            if (i % 3 == 0)
                tally_case(&tally, call(page + 8 * i, 0), value, "place %u, round %u", i, round);
        }
        for (unsigned i = 0; i < 500; i++)
            tally_case(&tally, call(page + 8 * i, 0), i * 1000 + round, "place %u behind round %u", i, round);
    }
    tally_end(&tally);
}

void check_immediates(void) {
    page = pages_alloc(2, 4096);
    cell = page_alloc();
    check_forms(NULL);
    check_forms(page + 4096); /* the immediate lies over the page's end */
    check_flags_of_faults();
    check_links();
    check_opcodes();
    check_many_places();
}
