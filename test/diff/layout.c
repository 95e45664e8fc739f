#include "layout.h"

#include <cpuid.h>

const struct layout_region layout_regions[] = {
    {"code", LAYOUT_CODE_FIXED, 2, false, true, LAYOUT_KIND_CODE, 0},
    {"writable code", LAYOUT_CODE_WRITABLE, 2, true, true, LAYOUT_KIND_CODE, 0},
    {"data", LAYOUT_DATA, 3, true, false, LAYOUT_KIND_DATA, 0},
    {"read-only", LAYOUT_READ_ONLY, 1, false, false, LAYOUT_KIND_DATA, 3 * 4096},
    {"island", LAYOUT_ISLAND, 1, true, false, LAYOUT_KIND_DATA, 4 * 4096},
    {"stack", LAYOUT_STACK, 2, true, false, LAYOUT_KIND_DATA, 5 * 4096},
    {"above 2G", LAYOUT_ABOVE_2G, 2, true, false, LAYOUT_KIND_DATA, 7 * 4096},
    {"above 4G", LAYOUT_ABOVE_4G, 2, true, false, LAYOUT_KIND_DATA, 9 * 4096},
};
const unsigned layout_region_count = ARRAY_SIZE(layout_regions);

const struct layout_region *layout_find(uint64_t address) {
    for (unsigned i = 0; i < layout_region_count; i++)
        if (address - layout_regions[i].base < layout_regions[i].pages * PAGE_SIZE)
            return &layout_regions[i];
    return NULL;
}

uint64_t layout_code_base(const struct diff_case *test) {
    return test->writable_code ? LAYOUT_CODE_WRITABLE : LAYOUT_CODE_FIXED;
}

const struct layout_xstate *layout_xstate(void) {
    static struct layout_xstate xstate;
    if (xstate.mask)
        return &xstate;
    uint32_t low, high;
    __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
    uint64_t mask = low & LAYOUT_XFEATURES;
    xstate.offset[0] = 0;
    xstate.length[0] = 160;
    xstate.offset[1] = 160;
    xstate.length[1] = 256;
    xstate.size = 576;
    for (unsigned i = 2; i < 8; i++) {
        uint32_t size, offset, flags, unused;
        if (!(mask >> i & 1))
            continue;
        __cpuid_count(0xd, i, size, offset, flags, unused);
        xstate.offset[i] = offset;
        xstate.length[i] = size;
        if (offset + size > xstate.size)
            xstate.size = offset + size;
    }
    xstate.mask = mask;
    return &xstate;
}
