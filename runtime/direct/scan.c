#include "direct/scan.h"

#include <string.h>

/* after: the bytes behind 0F. */
static bool is_forbidden(const uint8_t *after, const uint8_t *before, unsigned what) {
    unsigned reg = after[1] >> 3 & 7;
    switch (after[0]) {
    case 0x34: /* SYSENTER: the host answers it with a fixed return address and a register from the stack */
        return true;
    case 0x05:
        return what & SCAN_COMPAT_CALL;
    case 0xa2:
        return what & SCAN_CPUID;
    case 0x01: /* RDTSCP: the host's TSC_AUX */
        return after[1] == 0xf9;
    case 0xc7: /* RDPID */
        return reg == 7 && after[1] >= 0xc0 && (!before || *before == 0xf3);
    case 0x02: /* LAR, LSL: the host's descriptors */
    case 0x03:
        return true;
    case 0x00: /* VERR, VERW */
        return reg == 4 || reg == 5;
    default:
        return false;
    }
}

bool scan_finds(const uint8_t *code, unsigned length, unsigned what) {
    const uint8_t *end = code + length;
    for (const uint8_t *at = code; (at = memchr(at, 0x0f, (size_t)(end - at))); at++) {
        /* A prefix that is needed stands right before the 0F or before its REX byte. */
        const uint8_t *before = at > code ? at - 1 : NULL;
        if (before && (*before & 0xf0) == 0x40)
            before = before > code ? before - 1 : NULL;
        if (is_forbidden(at + 1, before, what))
            return true;
    }
    return false;
}
