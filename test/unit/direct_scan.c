/* Which bytes keep a page out of a stub, and which only look like it. */
#include "devices_check.h"

#include "direct/scan.h"

#include <string.h>

#define LENGTH (SCAN_BEFORE + PAGE_SIZE + SCAN_AFTER)

/* Does a page of NOPs with these bytes at an offset (from the page's first byte) have to stay out? */
static bool finds(const void *bytes, size_t size, int offset, unsigned code_size, unsigned what) {
    static uint8_t code[LENGTH];
    memset(code, 0x90, sizeof code);
    memcpy(code + SCAN_BEFORE + offset, bytes, size);
    return scan_finds(code, SCAN_BEFORE - 3, SCAN_BEFORE + PAGE_SIZE, sizeof code, code_size, what);
}

#define FINDS(what, ...)                                                                                     \
    finds((const uint8_t[]){__VA_ARGS__}, sizeof((const uint8_t[]){__VA_ARGS__}), 100, 64, what)

static void test_always(void) {
    CHECK(FINDS(0, 0x0f, 0x34));             /* sysenter */
    CHECK(FINDS(0, 0x0f, 0x01, 0xf9));       /* rdtscp */
    CHECK(FINDS(0, 0xf3, 0x0f, 0xc7, 0xf8)); /* rdpid %rax */
    CHECK(FINDS(0, 0x0f, 0x02, 0xc0));       /* lar */
    CHECK(FINDS(0, 0x0f, 0x03, 0xc0));       /* lsl */
    CHECK(FINDS(0, 0x0f, 0x00, 0xe0));       /* verr */
    CHECK(FINDS(0, 0x0f, 0x00, 0xe8));       /* verw */
    CHECK(!FINDS(0, 0x0f, 0x05));            /* syscall */
    CHECK(!FINDS(0, 0x0f, 0x31));            /* rdtsc */
    CHECK(!FINDS(0, 0x0f, 0xc7, 0xf8));      /* rdseed, not rdpid */
    CHECK(!FINDS(0, 0x90));
}

static void test_by_host(void) {
    CHECK(!FINDS(0, 0x0f, 0xa2) && FINDS(SCAN_CPUID, 0x0f, 0xa2));
    CHECK(FINDS(SCAN_COMPAT_CALL, 0x0f, 0x05));
    CHECK(!FINDS(0, 0xf3, 0x0f, 0xae, 0xd8) && FINDS(SCAN_BASES, 0xf3, 0x0f, 0xae, 0xd8)); /* wrgsbase %eax */
    CHECK(FINDS(SCAN_BASES, 0x8e, 0xe8) && FINDS(SCAN_BASES, 0x8e, 0xe0)); /* mov %eax, %gs, %fs */
    CHECK(!FINDS(SCAN_BASES, 0x8e, 0xd8) && !FINDS(0, 0x8e, 0xe8));        /* mov %eax, %ds */
    CHECK(FINDS(SCAN_BASES, 0x0f, 0xa9) && FINDS(SCAN_BASES, 0x0f, 0xa1)); /* pop %gs, %fs */
    CHECK(FINDS(SCAN_BASES, 0x0f, 0xb5, 0x00));                            /* lgs (%rax), %eax */
    CHECK(!FINDS(SCAN_BASES, 0x0f, 0xae, 0x00) && !FINDS(SCAN_BASES, 0x0f, 0xae, 0xe8)); /* fxsave, lfence */
    CHECK(!FINDS(0, 0x9d) && FINDS(SCAN_POPF, 0x9d));
}

/* Bytes inside of other instructions are none of their own. */
static void test_operands(void) {
    static const uint8_t immediate[] = {0xb8, 0x0f, 0x34, 0x0f, 0xa2}; /* mov $0xa20f340f, %eax */
    static const uint8_t gs[] = {0xb8, 0x8e, 0xe8, 0x9d, 0x9d};
    CHECK(!finds(immediate, sizeof immediate, 100, 64, SCAN_CPUID));
    CHECK(!finds(gs, sizeof gs, 100, 64, SCAN_BASES | SCAN_POPF));
}

/* An instruction belongs to both pages that it lies on. */
static void test_edges(void) {
    static const uint8_t sysenter[] = {0x0f, 0x34}, rdpid[] = {0xf3, 0x0f, 0xc7, 0xf8};
    CHECK(finds(sysenter, sizeof sysenter, 0, 64, 0));
    CHECK(finds(sysenter, sizeof sysenter, -1, 64, 0));
    CHECK(finds(sysenter, sizeof sysenter, (int)PAGE_SIZE - 1, 64, 0));
    CHECK(finds(rdpid, sizeof rdpid, (int)PAGE_SIZE - 2, 64, 0));
    CHECK(!finds(sysenter, sizeof sysenter, (int)PAGE_SIZE, 64, 0));
    CHECK(!finds(sysenter, sizeof sysenter, -8, 64, 0));
    CHECK(finds(sysenter, sizeof sysenter, 4000, 32, 0));
}

int main(void) {
    test_always();
    test_by_host();
    test_operands();
    test_edges();
    return check_result();
}
