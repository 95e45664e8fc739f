/* The log of --trace and --dump: lines of text on standard error or in a file, one log per VM.
 *
 *   if (UNLIKELY(log && log->subjects & TRACE_PIO))
 *       trace_line(log, "cpu0 pio read  0x3f8/1 = 0x60");
 *
 * Any thread may write: a line (or a struct trace_text) is one write(2) to a descriptor in append mode, so
 * lines never mix and a crash loses none. What is off costs the test of one word. A log of a VM is its own;
 * nothing is shared between two.
 */
#ifndef NESTOR_BASE_TRACE_H
#define NESTOR_BASE_TRACE_H

#include "base/types.h"

/* Bits of struct trace.subjects. */
enum trace_subject {
    TRACE_EXCEPTIONS = 1 << 0, /* delivered through the IDT, triple faults included */
    TRACE_INTERRUPTS = 1 << 1, /* external interrupts, NMI, INIT and SIPI as a vCPU takes them */
    TRACE_PIO = 1 << 2,
    TRACE_MMIO = 1 << 3,
    TRACE_MSR = 1 << 4,
    TRACE_CR = 1 << 5,
    TRACE_DISK = 1 << 6, /* requests of the guest and how they ended */
    TRACE_NET = 1 << 7,  /* frames to and from the guest */
    TRACE_ALL = 0xff,
    /* The stages of the translator. */
    DUMP_GUEST = 1 << 8,    /* guest code of each new block */
    DUMP_DECODED = 1 << 9,  /* what was made of it */
    DUMP_EMITTED = 1 << 10, /* host code and its exits */
    DUMP_EXITS = 1 << 11,   /* exits from translated code as they happen */
    DUMP_BLOCKS = DUMP_GUEST | DUMP_DECODED | DUMP_EMITTED,
    DUMP_ALL = DUMP_BLOCKS | DUMP_EXITS,
};

struct trace {
    uint32_t subjects; /* constant while the VM runs */
    int fd;
    bool owns_fd;
    uint64_t start_ns; /* CLOCK_MONOTONIC: lines carry the time since then */
    const char *path;  /* the caller's; NULL: standard error */
    bool told;         /* that the log cannot be written: the one word that changes */
};

/* Open a log of subjects; path (which must outlive the log) NULL: standard error. An existing file is
 * emptied. 0, or -errno after one diag_error() line. */
MUST_CHECK int trace_open(struct trace *trace, uint32_t subjects, const char *path);
void trace_close(struct trace *trace);

/* One line; the time in front and the newline are added. */
void trace_line(const struct trace *trace, const char *format, ...) PRINTF_LIKE(2, 3);

/* Several lines that belong together. What does not fit is written early. */
struct trace_text {
    const struct trace *trace;
    size_t used;
    char bytes[16384];
};
void trace_text_begin(struct trace_text *text, const struct trace *trace);
void trace_text_add(struct trace_text *text, const char *format, ...) PRINTF_LIKE(2, 3);
void trace_text_end(struct trace_text *text);

#endif
