/* vcpu->mode: everything about the vCPU that the meaning of an instruction depends on, in one word. It is
 * part of the key of a translated block: a bit that is here need not be tested in the code, a change of it
 * leaves the block. */
#ifndef NESTOR_CPU_MODE_H
#define NESTOR_CPU_MODE_H

#include "cpu/vcpu.h"

#define MODE_CODE_16 0u
#define MODE_CODE_32 1u
#define MODE_CODE_64 2u
#define MODE_CODE_MASK 3u
#define MODE_CPL3 (1u << 2)      /* CPL is 3 */
#define MODE_CPL0 (1u << 3)      /* CPL is 0 */
#define MODE_STACK_32 (1u << 4)  /* SS.B (outside 64-bit mode) */
#define MODE_PROTECTED (1u << 5) /* CR0.PE and not VM86 */
#define MODE_VM86 (1u << 6)
#define MODE_LONG (1u << 7) /* EFER.LMA */
#define MODE_FLAT                                                                                            \
    (1u << 8) /* CS, DS, ES and SS have base 0 and limit 4 GiB, are present, DS/ES/SS writable (always in    \
                 64-bit mode) */
#define MODE_FS_WIDE                                                                                         \
    (1u << 9) /* FS usable, writable, limit 4 GiB: only its base matters (always in 64-bit mode) */
#define MODE_GS_WIDE (1u << 10)
#define MODE_NO_X87 (1u << 11)  /* CR0.EM or CR0.TS: x87 raises #NM */
#define MODE_NO_WAIT (1u << 12) /* CR0.MP and CR0.TS: WAIT raises #NM */
#define MODE_SSE_NM (1u << 13)  /* CR0.TS: SSE/AVX raise #NM */
#define MODE_SSE_UD (1u << 14)  /* CR0.EM or not CR4.OSFXSR */
#define MODE_AVX_UD (1u << 15)  /* not CR4.OSXSAVE or XCR0 lacks SSE|AVX, or not protected mode */
#define MODE_AVX512_UD (1u << 16)
#define MODE_AC (1u << 17)           /* alignment checking is on: CR0.AM, EFLAGS.AC, CPL 3 */
#define MODE_TSD (1u << 18)          /* RDTSC raises #GP here: CR4.TSD and CPL > 0 */
#define MODE_UMIP (1u << 19)         /* CR4.UMIP and CPL > 0 */
#define MODE_FSGSBASE (1u << 20)     /* CR4.FSGSBASE */
#define MODE_IO_FREE (1u << 21)      /* CPL <= IOPL, not VM86: IN/OUT/CLI/STI need no bitmap */
#define MODE_TSC_OFFSET (1u << 22)   /* tsc_offset is not 0 */
#define MODE_GLOBAL_PAGES (1u << 23) /* CR4.PGE and paging */
#define MODE_STEP (1u << 24)         /* TF or an enabled breakpoint: only the interpreter runs this */
#define MODE_PAGING (1u << 25)

/* Recompute vcpu->mode and the view after any change of CPL, segments, CR0, CR4, EFER, XCR0, DR7 or the
 * system flags (TF, IOPL, VM, AC). Cheap; call it once at the end of such an instruction. */
void cpu_mode_changed(struct vcpu *vcpu);

static inline bool cpu_is_code64(const struct vcpu *vcpu) {
    return (vcpu->mode & MODE_CODE_MASK) == MODE_CODE_64;
}

static inline bool cpu_is_long(const struct vcpu *vcpu) {
    return vcpu->mode & MODE_LONG;
}

static inline bool cpu_is_canonical(uint64_t linear) {
    return (uint64_t)((int64_t)(linear << 16) >> 16) == linear;
}

#endif
