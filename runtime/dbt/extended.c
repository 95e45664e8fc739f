/* XSAVE and XRSTOR of 64-bit code with the guest's extended state in the host's registers: the host's own
 * instruction does the work, on an area that lies in RAM without a gap. Everything odd (an area that is not
 * plain RAM or may fault, a header that would) is left to the interpreter.
 *
 * A restore goes through a copy, because another vCPU may write to the area between the check of the header
 * and its use (SDM vol. 1, 13.8.1: a bad header is a #GP, here of the host's).
 */
#include "base/light.h"
#include "cpu/fpu.h"
#include "cpu/vmem.h"
#include "dbt/private.h"
#include "interp/xstate.h"
#include "mem/guest_mem.h"

#define AREA_LEGACY 576u /* legacy region and header */
#define COMPACTED (1ull << 63)
#define X87_POINTERS 8
#define XGETBV_IN_USE 1u

/* The state components that are not in their initial configuration, as the host tracks them. */
static uint64_t host_in_use(void) {
    uint32_t low, high;
    __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(XGETBV_IN_USE));
    return (uint64_t)high << 32 | low;
}

/* Bytes of an area with these components; format: what the compacted format counts, or 0 for the standard
 * one. */
static uint32_t area_size(const struct vcpu *vcpu, uint64_t stored, uint64_t format) {
    const struct xstate_component *table = vcpu->interp->xstate->component;
    uint32_t size = AREA_LEGACY, offset = AREA_LEGACY;
    for (unsigned i = 2; i < XSTATE_COMPONENTS; i++) {
        if (!format) {
            offset = table[i].offset;
        } else if (format >> i & 1) {
            if (table[i].align64)
                offset = (uint32_t)align_up(offset, 64);
        } else {
            continue;
        }
        if (stored >> i & 1 && offset + table[i].size > size)
            size = offset + table[i].size;
        if (format)
            offset += table[i].size;
    }
    return size;
}

static uint32_t on_first_page(uint64_t linear, uint32_t size) {
    uint32_t room = PAGE_SIZE - (uint32_t)(linear & (PAGE_SIZE - 1));
    return size < room ? size : room;
}

/* Host address of [linear, linear + size), or NULL: not without a fault or not in one piece. */
static uint8_t *area_host(struct vcpu *vcpu, uint64_t linear, uint32_t size, enum vmem_access access) {
    uint32_t first = on_first_page(linear, size);
    void *host, *rest;
    if (linear & 63 || size > XSTATE_AREA_MAX || !cpu_is_canonical(linear) ||
        !cpu_is_canonical(linear + size - 1) || vmem_host(vcpu, linear, first, access, AS_CURRENT, &host) ||
        !host)
        return NULL;
    if (first < size && (vmem_host(vcpu, linear + first, size - first, access, AS_CURRENT, &rest) ||
                         rest != (uint8_t *)host + first))
        return NULL;
    return host;
}

static bool save(struct vcpu *vcpu, enum xstate_insn insn, uint64_t linear, uint64_t requested) {
    uint64_t stored = requested;
    if (insn != XSTATE_SAVE) {
        if (!vcpu->dbt->xgetbv_in_use)
            return false;
        stored &= host_in_use() | XSTATE_SSE;
    }
    uint32_t size = area_size(vcpu, stored, insn == XSTATE_SAVE_COMPACTED ? requested : 0);
    uint8_t *area = area_host(vcpu, linear, size, VMEM_WRITE);
    if (!area)
        return false;
    vcpu_fpu_unpark(vcpu);
    uint32_t low = (uint32_t)requested, high = (uint32_t)(requested >> 32);
    switch (insn) {
    case XSTATE_SAVE:
        __asm__ volatile("xsave64 (%0)" ::"r"(area), "a"(low), "d"(high) : "memory");
        break;
    case XSTATE_SAVE_OPTIMISED:
        __asm__ volatile("xsaveopt64 (%0)" ::"r"(area), "a"(low), "d"(high) : "memory");
        break;
    default:
        __asm__ volatile("xsavec64 (%0)" ::"r"(area), "a"(low), "d"(high) : "memory");
    }
    if (requested & XSTATE_X87) {
        /* The host's addresses of the last x87 instruction and its operand. */
        const uint64_t none[2] = {0, 0};
        light_copy(area + X87_POINTERS, none, sizeof none);
    }
    uint32_t first = on_first_page(linear, size);
    vmem_written(vcpu, area, first);
    if (first < size)
        vmem_written(vcpu, area + first, size - first);
    return true;
}

static bool header_is_valid(const struct vcpu *vcpu, const uint64_t header[8]) {
    unsigned zero_from = header[1] & COMPACTED ? 2 : 1, zero_to = header[1] & COMPACTED ? 8 : 3;
    for (unsigned i = zero_from; i < zero_to; i++)
        if (header[i])
            return false;
    uint64_t allowed = header[1] & COMPACTED ? header[1] & ~COMPACTED : vcpu->xcr0;
    return !(allowed & ~vcpu->xcr0) && !(header[0] & ~allowed);
}

static bool restore(struct vcpu *vcpu, uint64_t linear, uint64_t requested) {
    uint8_t *copy = vcpu->dbt->xstate_copy;
    const uint64_t *header = (const uint64_t *)(copy + XSTATE_HEADER);
    const uint8_t *area = area_host(vcpu, linear, AREA_LEGACY, VMEM_READ);
    if (!area)
        return false;
    light_copy(copy, area, AREA_LEGACY);
    if (!header_is_valid(vcpu, header))
        return false;
    uint64_t format = header[1] & ~COMPACTED, loaded = requested & header[0];
    /* (x87 takes no room behind the header, but keeps the format apart from the standard one) */
    uint32_t size = area_size(vcpu, loaded, header[1] & COMPACTED ? format | XSTATE_X87 : 0);
    if (size > AREA_LEGACY) {
        area = area_host(vcpu, linear, size, VMEM_READ);
        if (!area)
            return false;
        light_copy(copy + AREA_LEGACY, area + AREA_LEGACY, size - AREA_LEGACY);
    }
    uint32_t mxcsr;
    light_copy(&mxcsr, copy + 24, sizeof mxcsr);
    if (mxcsr & ~vcpu->interp->xstate->mxcsr_mask)
        return false;
    vcpu_fpu_unpark(vcpu); /* components that are not requested stay as they are */
    __asm__ volatile("xrstor64 (%0)" ::"r"(copy), "a"((uint32_t)requested), "d"((uint32_t)(requested >> 32))
                     : "memory");
    return true;
}

bool dbt_xstate(struct vcpu *vcpu, enum xstate_insn insn, uint64_t linear) {
    if (!(vcpu->cr4 & CR4_OSXSAVE) || vcpu->cr0 & CR0_TS)
        return false;
    uint64_t requested = (vcpu->gpr[GPR_RDX] << 32 | (uint32_t)vcpu->gpr[GPR_RAX]) & vcpu->xcr0;
    if (requested >> XSTATE_COMPONENTS)
        return false;
    return insn == XSTATE_RESTORE ? restore(vcpu, linear, requested) : save(vcpu, insn, linear, requested);
}
