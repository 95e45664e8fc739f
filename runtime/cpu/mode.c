/* vcpu->mode from the registers it summarises. */
#include "cpu/descriptor.h"
#include "cpu/mode_switch.h"

#define XCR0_AVX 0x6ull
#define XCR0_AVX512 0xe6ull
#define DR7_ENABLES 0xffull

static bool is_flat_data(const struct segment *segment) {
    return segment->limit == UINT32_MAX &&
           (segment->attributes & (SEG_UNUSABLE | SEG_P | SEG_S | TYPE_CODE | TYPE_EXPAND_DOWN |
                                   TYPE_WRITABLE)) == (SEG_P | SEG_S | TYPE_WRITABLE);
}

static bool is_flat_code(const struct segment *segment) {
    return segment->limit == UINT32_MAX && segment->base == 0 &&
           (segment->attributes & (SEG_UNUSABLE | SEG_P | SEG_S | TYPE_CODE | TYPE_WRITABLE)) ==
               (SEG_P | SEG_S | TYPE_CODE | TYPE_WRITABLE);
}

static uint32_t mode_of_segments(const struct vcpu *vcpu) {
    const struct segment *segment = vcpu->segment;
    uint32_t mode = 0;
    if (!(vcpu->rflags & FLAG_VM)) {
        if (vcpu->efer & EFER_LMA && segment[SEG_CS].attributes & SEG_L)
            return MODE_CODE_64 | MODE_STACK_32 | MODE_FLAT | MODE_FS_WIDE | MODE_GS_WIDE;
        mode |= segment[SEG_CS].attributes & SEG_DB ? MODE_CODE_32 : MODE_CODE_16;
    }
    if (segment[SEG_SS].attributes & SEG_DB)
        mode |= MODE_STACK_32;
    if (is_flat_code(&segment[SEG_CS]) && is_flat_data(&segment[SEG_SS]) && segment[SEG_SS].base == 0 &&
        is_flat_data(&segment[SEG_DS]) && segment[SEG_DS].base == 0 && is_flat_data(&segment[SEG_ES]) &&
        segment[SEG_ES].base == 0)
        mode |= MODE_FLAT;
    if (is_flat_data(&segment[SEG_FS]))
        mode |= MODE_FS_WIDE;
    if (is_flat_data(&segment[SEG_GS]))
        mode |= MODE_GS_WIDE;
    return mode;
}

/* What depends on control registers only. */
static uint32_t mode_of_controls(const struct vcpu *vcpu) {
    uint64_t cr0 = vcpu->cr0, cr4 = vcpu->cr4;
    uint32_t mode = 0;
    bool is_protected = cr0 & CR0_PE && !(vcpu->rflags & FLAG_VM);
    if (is_protected)
        mode |= MODE_PROTECTED;
    if (vcpu->rflags & FLAG_VM)
        mode |= MODE_VM86;
    if (vcpu->efer & EFER_LMA)
        mode |= MODE_LONG;
    if (cr0 & (CR0_EM | CR0_TS))
        mode |= MODE_NO_X87;
    if ((cr0 & (CR0_MP | CR0_TS)) == (CR0_MP | CR0_TS))
        mode |= MODE_NO_WAIT;
    if (cr0 & CR0_TS)
        mode |= MODE_SSE_NM;
    if (cr0 & CR0_EM || !(cr4 & CR4_OSFXSR))
        mode |= MODE_SSE_UD;
    bool avx = is_protected && cr4 & CR4_OSXSAVE;
    if (!avx || (vcpu->xcr0 & XCR0_AVX) != XCR0_AVX)
        mode |= MODE_AVX_UD;
    if (!avx || (vcpu->xcr0 & XCR0_AVX512) != XCR0_AVX512)
        mode |= MODE_AVX512_UD;
    if (cr4 & CR4_FSGSBASE)
        mode |= MODE_FSGSBASE;
    if (vcpu->tsc_offset)
        mode |= MODE_TSC_OFFSET;
    if (cr0 & CR0_PG) {
        mode |= MODE_PAGING;
        if (cr4 & CR4_PGE)
            mode |= MODE_GLOBAL_PAGES;
    }
    if (vcpu->dr[7] & DR7_ENABLES)
        mode |= MODE_STEP;
    return mode;
}

void cpu_mode_changed(struct vcpu *vcpu) {
    vcpu->mode = mode_of_segments(vcpu) | mode_of_controls(vcpu) | mode_of_privilege(vcpu);
    vcpu->crossing_changed = 1;
    vtlb_select_view(vcpu);
}
