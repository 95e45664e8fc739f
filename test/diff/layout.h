/* The address space of a test: the same virtual addresses with the same permissions natively and in the
 * engines' guest. Everything else is unmapped. */
#ifndef NESTOR_TEST_DIFF_LAYOUT_H
#define NESTOR_TEST_DIFF_LAYOUT_H

#include "case.h"

#define LAYOUT_CODE_FIXED 0x10000000ull    /* readable and executable */
#define LAYOUT_CODE_WRITABLE 0x18000000ull /* readable, writable and executable */
#define LAYOUT_DATA 0x20000000ull          /* three writable pages, then a read-only one */
#define LAYOUT_READ_ONLY 0x20003000ull     /* holds the index table in its first LAYOUT_TABLE_SIZE bytes */
#define LAYOUT_ISLAND 0x20005000ull        /* one page between unmapped ones */
#define LAYOUT_STACK 0x30000000ull         /* two pages */
#define LAYOUT_ABOVE_2G 0xf0000000ull      /* two pages that a sign-extended displacement cannot name */
#define LAYOUT_ABOVE_4G 0x123456780000ull  /* two pages; 64-bit streams only */
#define LAYOUT_FILLER 0xcc                 /* INT3: code pages where there is no stream */
/* First address that is not the user's (4-level paging; Linux's TASK_SIZE_MAX). */
#define LAYOUT_USER_END 0x7ffffffff000ull

/* Fixed places: a valid XSAVE image (and so a valid FXSAVE image and MXCSR), and small gather indices. */
#define LAYOUT_XSAVE_IMAGE (LAYOUT_DATA + 0x1000)
#define LAYOUT_INDEX_TABLE LAYOUT_READ_ONLY
#define LAYOUT_TABLE_SIZE 128

enum layout_kind { LAYOUT_KIND_DATA, LAYOUT_KIND_CODE };

struct layout_region {
    const char *name;
    uint64_t base;
    unsigned pages;
    bool writable;
    bool executable;
    enum layout_kind kind;
    uint32_t offset; /* in data[] (LAYOUT_KIND_DATA) */
};

extern const struct layout_region layout_regions[];
extern const unsigned layout_region_count;

/* The region that address lies in, or NULL. */
const struct layout_region *layout_find(uint64_t address);
/* Base of the code region that a case runs in. */
uint64_t layout_code_base(const struct diff_case *test);

/* The extended-state components that tests use, x87 to AVX-512, as far as the host has them. */
#define LAYOUT_XFEATURES 0xe7ull

struct layout_xstate {
    uint64_t mask;                 /* components in use, as in XCR0 */
    uint32_t size;                 /* of the standard-format image */
    uint32_t offset[8], length[8]; /* per component */
};

/* From XCR0 and CPUID leaf 0xD. */
const struct layout_xstate *layout_xstate(void);

#endif
