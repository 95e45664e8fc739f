/* What one differential test is: a stream of instructions with the whole user-visible state it starts from,
 * and the state in which it ended. Plain data without pointers: cases are copied, batched in memory shared
 * with the native child, and written to regression files. */
#ifndef NESTOR_TEST_DIFF_CASE_H
#define NESTOR_TEST_DIFF_CASE_H

#include "base/types.h"

#define DIFF_CODE_SIZE 8192u        /* two pages, so that code crosses a page boundary */
#define DIFF_DATA_SIZE (11 * 4096u) /* all data regions of layout.c, one after the other */
#define DIFF_XSAVE_SIZE 4096u       /* room for x87, SSE, AVX and AVX-512 in the standard format */

/* The selectors that Linux gives user code; the engines' guest has the same GDT. */
#define DIFF_CS_32 0x23u
#define DIFF_DS 0x2bu
#define DIFF_CS_64 0x33u

struct diff_regs {
    uint64_t gpr[16]; /* in encoding order */
    uint64_t rip;
    uint64_t rflags;
    uint64_t fs_base, gs_base;
    uint16_t selector[6]; /* in encoding order: ES CS SS DS FS GS */
    uint16_t reserved[2];
};

struct diff_case {
    uint64_t seed;          /* names the stream in reports */
    uint32_t mode;          /* 64 or 32 */
    uint32_t writable_code; /* the code lies in the writable code region: it may modify itself */
    uint32_t entry;         /* offset of the first instruction in code[] */
    uint32_t length;        /* bytes of the stream; all other code bytes are INT3 */
    struct diff_regs regs;
    _Alignas(64) uint8_t xsave[DIFF_XSAVE_SIZE];
    uint8_t code[DIFF_CODE_SIZE];
    uint8_t data[DIFF_DATA_SIZE];
};

enum diff_end {
    DIFF_END_NONE,      /* did not run */
    DIFF_END_EXCEPTION, /* vector, error and cr2 say which; INT3 at the end of a stream among them */
    DIFF_END_SYSCALL,   /* SYSCALL, with RIP after it */
    DIFF_END_TIMEOUT,   /* still running when time was up */
    DIFF_END_LOST,      /* the process that ran it died */
};

struct diff_state {
    uint32_t end; /* enum diff_end */
    uint32_t vector;
    uint32_t error;
    uint32_t reserved;
    uint64_t cr2; /* valid for vector 14 */
    struct diff_regs regs;
    _Alignas(64) uint8_t xsave[DIFF_XSAVE_SIZE];
    uint8_t code[DIFF_CODE_SIZE];
    uint8_t data[DIFF_DATA_SIZE];
};

#endif
