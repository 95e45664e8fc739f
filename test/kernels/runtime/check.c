/*
 * Console and verdicts. Output goes to COM1 by polling and a string is formatted on the fly, so that it works
 * with interrupts off, before paging, and on either CPU (a spin lock keeps lines whole).
 */
#include "check.h"

#include "layout.h"
#include "x86.h"

#define COM1 0x3f8
#define SHOWN_FAILURES 6

static unsigned check_count;
static unsigned failure_count;

static void console_char(char c) {
    while (!(in8(COM1 + 5) & 0x20))
        cpu_pause();
    out8(COM1, (uint8_t)c);
}

static void print_string(const char *s) {
    while (*s)
        console_char(*s++);
}

static void print_hex(uint64_t value, unsigned width) {
    unsigned digits = 1;
    while (digits < 16 && value >> (4 * digits))
        digits++;
    if (digits < width)
        digits = width;
    while (digits--)
        console_char("0123456789abcdef"[value >> (4 * digits) & 15]);
}

static void print_decimal(uint32_t value) {
    char text[11];
    unsigned n = 0;
    do
        text[n++] = (char)('0' + value % 10);
    while (value /= 10);
    while (n)
        console_char(text[--n]);
}

static void print_formatted(const char *format, va_list arguments) {
    for (; *format; format++) {
        unsigned width = 0, longs = 0;
        if (*format != '%') {
            console_char(*format);
            continue;
        }
        for (format++; *format >= '0' && *format <= '9'; format++)
            width = width * 10 + (unsigned)(*format - '0');
        for (; *format == 'l'; format++)
            longs++;
        switch (*format) {
        case 's':
            print_string(va_arg(arguments, const char *));
            break;
        case 'c':
            console_char((char)va_arg(arguments, int));
            break;
        case 'x':
            print_hex(longs == 2   ? va_arg(arguments, unsigned long long)
                      : longs == 1 ? va_arg(arguments, unsigned long)
                                   : va_arg(arguments, unsigned),
                      width);
            break;
        case 'u':
            print_decimal(longs ? (uint32_t)va_arg(arguments, unsigned long) : va_arg(arguments, unsigned));
            break;
        case 'd': {
            int value = va_arg(arguments, int);
            if (value < 0)
                console_char('-');
            print_decimal(value < 0 ? 0u - (uint32_t)value : (uint32_t)value);
            break;
        }
        default:
            console_char(*format);
        }
    }
}

void console_print(const char *format, ...) {
    va_list arguments;
    va_start(arguments, format);
    print_formatted(format, arguments);
    va_end(arguments);
}

bool check(uint64_t got, uint64_t want, const char *name, ...) {
    va_list arguments;
    va_start(arguments, name);
    check_count++;
    print_string(got == want ? "ok " : "FAIL ");
    print_formatted(name, arguments);
    if (got != want) {
        failure_count++;
        console_print(": got 0x%llx, want 0x%llx", (unsigned long long)got, (unsigned long long)want);
    }
    console_char('\n');
    va_end(arguments);
    return got == want;
}

void check_skip(const char *name, const char *reason) {
    console_print("skip %s: %s\n", name, reason);
}

void tally_begin(struct tally *tally, const char *name) {
    *tally = (struct tally){.name = name};
}

void tally_case(struct tally *tally, uint64_t got, uint64_t want, const char *detail, ...) {
    tally->cases++;
    if (got == want)
        return;
    if (++tally->failures > SHOWN_FAILURES)
        return;
    va_list arguments;
    va_start(arguments, detail);
    console_print("  %s: ", tally->name);
    print_formatted(detail, arguments);
    console_print(": got 0x%llx, want 0x%llx\n", (unsigned long long)got, (unsigned long long)want);
    va_end(arguments);
}

void tally_end(struct tally *tally) {
    check_count++;
    if (!tally->failures) {
        console_print("ok %s (%u cases)\n", tally->name, tally->cases);
        return;
    }
    failure_count++;
    console_print("FAIL %s: got %u wrong cases of %u, want 0\n", tally->name, tally->failures, tally->cases);
}

void machine_exit(uint8_t value) {
    for (;;) {
        out32(DEBUG_EXIT_PORT, value);
        asm volatile("cli\n\thlt");
    }
}

void checks_finish(const char *kernel) {
    console_print("%s: %u checks, %u failed\n", kernel, check_count, failure_count);
    machine_exit(failure_count != 0);
}
