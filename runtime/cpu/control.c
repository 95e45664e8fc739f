/* Control registers and what hangs on them: paging and long mode transitions, TLB invalidation, XCR0
 * (SDM vol. 3, 2.5, 4.1, 4.10, 9.8.5; vol. 2, MOV to CR). */
#include "cpu/cpu_trace.h"
#include "cpu/descriptor.h"
#include "cpu/fpu.h"
#include "cpu/model.h"
#include "cpu/paging.h"

#define CR0_DEFINED                                                                                          \
    (CR0_PE | CR0_MP | CR0_EM | CR0_TS | CR0_ET | CR0_NE | CR0_WP | CR0_AM | CR0_NW | CR0_CD | CR0_PG)
#define CR4_PAE_GROUP (CR4_PSE | CR4_PAE | CR4_PGE | CR4_SMEP) /* changes reload the PDPTEs */
#define CR4_TLB (CR4_PSE | CR4_PAE | CR4_PGE | CR4_SMEP | CR4_SMAP)
#define LMSW_BITS (CR0_PE | CR0_MP | CR0_EM | CR0_TS)

#define XCR0_X87 1ull
#define XCR0_SSE 2ull
#define XCR0_AVX 4ull
#define XCR0_AVX512 0xe0ull

static int general_protection(struct vcpu *vcpu) {
    return cpu_fault(vcpu, VECTOR_GP, 0);
}

static bool uses_pdptes(uint64_t cr0, uint64_t cr4, uint64_t efer) {
    return cr0 & CR0_PG && cr4 & CR4_PAE && !(efer & EFER_LMA);
}

static uint16_t current_pcid(const struct vcpu *vcpu) {
    return vcpu->cr4 & CR4_PCIDE ? vcpu->cr3 & CR3_PCID_MASK : 0;
}

static bool cr0_is_valid(uint64_t cr0) {
    return !(cr0 >> 32) && !(cr0 & CR0_PG && !(cr0 & CR0_PE)) && !(cr0 & CR0_NW && !(cr0 & CR0_CD));
}

static int write_cr0(struct vcpu *vcpu, uint64_t value) {
    uint64_t old = vcpu->cr0, efer = vcpu->efer;
    if (!cr0_is_valid(value))
        return general_protection(vcpu);
    value = (value & CR0_DEFINED) | CR0_ET;
    uint64_t changed = old ^ value;
    if (changed & CR0_PG) {
        if (value & CR0_PG) {
            if (efer & EFER_LME) {
                bool tss16 = (vcpu->tr.attributes & SEG_TYPE & ~TYPE_BUSY) == TYPE_TSS16;
                if (!(vcpu->cr4 & CR4_PAE) || vcpu->segment[SEG_CS].attributes & SEG_L || tss16)
                    return general_protection(vcpu);
                efer |= EFER_LMA;
            }
        } else {
            if (cpu_is_code64(vcpu) || vcpu->cr4 & CR4_PCIDE)
                return general_protection(vcpu);
            efer &= ~EFER_LMA;
        }
    }
    if (changed & (CR0_PG | CR0_CD | CR0_NW) && uses_pdptes(value, vcpu->cr4, efer)) {
        int result = paging_load_pdptes(vcpu, vcpu->cr3);
        if (result)
            return result;
    }
    vcpu->cr0 = value;
    vcpu->efer = efer;
    if (changed & (CR0_PG | CR0_WP | CR0_PE))
        vtlb_flush_all(vcpu);
    cpu_mode_changed(vcpu);
    return CPU_OK;
}

static int write_cr3(struct vcpu *vcpu, uint64_t value) {
    bool keep = false;
    if (LIKELY(cpu_is_long(vcpu))) {
        if (vcpu->cr4 & CR4_PCIDE) {
            keep = value & CR3_NO_FLUSH;
            value &= ~CR3_NO_FLUSH;
        }
        if (value >> GUEST_PHYSICAL_BITS)
            return general_protection(vcpu);
    } else {
        value = (uint32_t)value;
        if (uses_pdptes(vcpu->cr0, vcpu->cr4, vcpu->efer)) {
            int result = paging_load_pdptes(vcpu, value);
            if (result)
                return result;
        }
    }
    vcpu->cr3 = value;
    vtlb_switch_space(vcpu, current_pcid(vcpu), keep);
    return CPU_OK;
}

static int write_cr4(struct vcpu *vcpu, uint64_t value) {
    uint64_t changed = vcpu->cr4 ^ value;
    bool is_long = cpu_is_long(vcpu);
    if (value & ~vcpu->model->cr4_mask || (is_long && !(value & CR4_PAE)))
        return general_protection(vcpu);
    if (changed & value & CR4_PCIDE && (!is_long || vcpu->cr3 & CR3_PCID_MASK))
        return general_protection(vcpu);
    if (changed & CR4_PAE_GROUP && uses_pdptes(vcpu->cr0, value, vcpu->efer)) {
        int result = paging_load_pdptes(vcpu, vcpu->cr3);
        if (result)
            return result;
    }
    vcpu->cr4 = value;
    vcpu->cpuid_changed = 1;
    if (changed & CR4_PCIDE) {
        vtlb_flush_all(vcpu);
        vtlb_switch_space(vcpu, current_pcid(vcpu), false);
    } else if (changed & CR4_TLB) {
        vtlb_flush_all(vcpu);
    }
    cpu_mode_changed(vcpu);
    return CPU_OK;
}

static int write_cr8(struct vcpu *vcpu, uint64_t value) {
    if (value >> 4)
        return general_protection(vcpu);
    vcpu_fpu_park(vcpu);
    vcpu->env->tpr_write(vcpu->env->context, value);
    return CPU_OK;
}

static int read_register(struct vcpu *vcpu, unsigned n, uint64_t *value) {
    if (n > 4 ? n != 8 : n == 1)
        return cpu_fault_plain(vcpu, VECTOR_UD);
    if (vcpu->cpl)
        return general_protection(vcpu);
    switch (n) {
    case 0:
        *value = vcpu->cr0;
        break;
    case 2:
        *value = vcpu->cr2;
        break;
    case 3:
        *value = vcpu->cr3;
        break;
    case 4:
        *value = vcpu->cr4;
        break;
    default:
        vcpu_fpu_park(vcpu);
        *value = vcpu->env->tpr_read(vcpu->env->context);
    }
    return CPU_OK;
}

static int write_register(struct vcpu *vcpu, unsigned n, uint64_t value) {
    if (n > 4 ? n != 8 : n == 1)
        return cpu_fault_plain(vcpu, VECTOR_UD);
    if (vcpu->cpl)
        return general_protection(vcpu);
    switch (n) {
    case 0:
        return write_cr0(vcpu, value);
    case 2:
        vcpu->cr2 = value;
        return CPU_OK;
    case 3:
        return write_cr3(vcpu, value);
    case 4:
        return write_cr4(vcpu, value);
    default:
        return write_cr8(vcpu, value);
    }
}

int cpu_read_cr(struct vcpu *vcpu, unsigned n, uint64_t *value) {
    int result = read_register(vcpu, n, value);
    if (cpu_traces(vcpu, TRACE_CR))
        cpu_trace(vcpu, TRACE_CR, CPU_TRACE_CR_READ, n, result ? 0 : *value, result);
    return result;
}

int cpu_write_cr(struct vcpu *vcpu, unsigned n, uint64_t value) {
    int result = write_register(vcpu, n, value);
    cpu_trace(vcpu, TRACE_CR, CPU_TRACE_CR_WRITE, n, value, result);
    return result;
}

int cpu_clts(struct vcpu *vcpu) {
    if (vcpu->cpl)
        return general_protection(vcpu);
    vcpu->cr0 &= ~CR0_TS;
    cpu_mode_changed(vcpu);
    return CPU_OK;
}

int cpu_lmsw(struct vcpu *vcpu, uint16_t value) {
    if (vcpu->cpl)
        return general_protection(vcpu);
    /* PE can be set this way but not cleared. */
    uint64_t cr0 = (vcpu->cr0 & (~LMSW_BITS | CR0_PE)) | (value & LMSW_BITS);
    return write_cr0(vcpu, cr0);
}

int cpu_invlpg(struct vcpu *vcpu, uint64_t linear) {
    if (vcpu->cpl)
        return general_protection(vcpu);
    if (cpu_is_canonical(linear)) /* any other address: no operation */
        vtlb_invlpg(vcpu, linear);
    return CPU_OK;
}

enum invpcid { INVPCID_ADDRESS, INVPCID_CONTEXT, INVPCID_ALL, INVPCID_ALL_BUT_GLOBAL };

int cpu_invpcid(struct vcpu *vcpu, uint64_t type, const uint64_t descriptor[2]) {
    uint64_t pcid = descriptor[0];
    if (!vcpu->model->has_invpcid)
        return cpu_fault_plain(vcpu, VECTOR_UD);
    if (vcpu->cpl || vcpu->rflags & FLAG_VM)
        return general_protection(vcpu);
    if (type > INVPCID_ALL_BUT_GLOBAL)
        return general_protection(vcpu);
    if (pcid & ~CR3_PCID_MASK)
        return general_protection(vcpu);
    if (type <= INVPCID_CONTEXT && pcid && !(vcpu->cr4 & CR4_PCIDE))
        return general_protection(vcpu);
    switch (type) {
    case INVPCID_ADDRESS:
        if (!cpu_is_canonical(descriptor[1]))
            return general_protection(vcpu);
        vtlb_invpcid_page(vcpu, (uint16_t)pcid, descriptor[1]);
        break;
    case INVPCID_CONTEXT:
        vtlb_flush_space(vcpu, (uint16_t)pcid);
        break;
    default:
        vtlb_flush_all(vcpu);
    }
    return CPU_OK;
}

int cpu_xsetbv(struct vcpu *vcpu, uint32_t index, uint64_t value) {
    if (!(vcpu->cr4 & CR4_OSXSAVE))
        return cpu_fault_plain(vcpu, VECTOR_UD);
    bool avx512_whole =
        !(value & XCR0_AVX512) || (value & (XCR0_AVX512 | XCR0_AVX)) == (XCR0_AVX512 | XCR0_AVX);
    if (vcpu->cpl || index || !(value & XCR0_X87) || value & ~vcpu->model->xcr0_mask ||
        (value & XCR0_AVX && !(value & XCR0_SSE)) || !avx512_whole)
        return general_protection(vcpu);
    vcpu->xcr0 = value;
    vcpu->cpuid_changed = 1;
    cpu_mode_changed(vcpu);
    return CPU_OK;
}
