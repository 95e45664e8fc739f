/* XSAVE and XRSTOR of 64-bit code with the guest's extended state in the host's registers: the host's own
 * instruction does the work, on the area itself where it lies in RAM without a gap, else on a copy of which
 * those parts are written back that the instruction writes. Everything odd (an area that is not plain RAM or
 * may fault, a header that would) is left to the interpreter.
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
#define XSTATE_LEGACY (XSTATE_X87 | XSTATE_SSE)
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

/* An area on the host: its first bytes, up to the end of a page, and the rest. */
struct area {
    uint8_t *host[2];
    uint32_t first, size;
};

/* Find [linear, linear + size). False: not without a fault. */
static bool area_find(struct vcpu *vcpu, uint64_t linear, uint32_t size, enum vmem_access access,
                      struct area *area) {
    void *host = NULL, *rest = NULL;
    uint32_t first = on_first_page(linear, size);
    if (linear & 63 || size > XSTATE_AREA_MAX || !cpu_is_canonical(linear) ||
        !cpu_is_canonical(linear + size - 1) || vmem_host(vcpu, linear, first, access, AS_CURRENT, &host) ||
        !host)
        return false;
    if (first < size && (vmem_host(vcpu, linear + first, size - first, access, AS_CURRENT, &rest) || !rest))
        return false;
    *area = (struct area){.host = {host, rest}, .first = first, .size = size};
    return true;
}

static bool in_one_piece(const struct area *area) {
    return area->first == area->size || area->host[1] == area->host[0] + area->first;
}

/* Copy bytes from `from` on up to `to` between an area and its copy. */
static void area_move(const struct area *area, uint8_t *copy, uint32_t from, uint32_t to, bool write) {
    for (unsigned piece = 0; piece < ARRAY_SIZE(area->host); piece++) {
        uint32_t begin = piece ? area->first : 0, end = piece ? area->size : area->first;
        uint32_t low = from > begin ? from : begin, high = to < end ? to : end;
        if (low >= high)
            continue;
        uint8_t *there = area->host[piece] + (low - begin);
        light_copy(write ? there : copy + low, write ? copy + low : there, high - low);
    }
}

/* What an instruction that stores these components writes (SDM vol. 1, 13.4 and 13.7 to 13.10). */
static void write_back(const struct vcpu *vcpu, const struct area *area, uint8_t *copy, uint64_t requested,
                       uint64_t stored, bool compacted) {
    const struct xstate_component *table = vcpu->interp->xstate->component;
    if ((stored & XSTATE_LEGACY) == XSTATE_LEGACY) { /* as a rule, and in one go */
        area_move(area, copy, 0, 416, true);
    } else {
        if (stored & XSTATE_X87) {
            area_move(area, copy, 0, 24, true);
            area_move(area, copy, 32, 160, true);
        }
        if (requested & (XSTATE_SSE | XSTATE_AVX))
            area_move(area, copy, 24, 32, true);
        if (stored & XSTATE_SSE)
            area_move(area, copy, 160, 416, true);
    }
    area_move(area, copy, XSTATE_HEADER, XSTATE_HEADER + (compacted ? 16 : 8), true);
    for (unsigned i = 2; i < XSTATE_COMPONENTS; i++)
        if (stored >> i & 1) {
            uint32_t end = area_size(vcpu, 1ull << i, compacted ? requested : 0);
            area_move(area, copy, end - table[i].size, end, true);
        }
}

static void store(enum xstate_insn insn, uint8_t *area, uint64_t requested) {
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
        struct light_qword *pointers = (struct light_qword *)(area + X87_POINTERS);
        pointers[0].value = pointers[1].value = 0;
    }
}

static bool save(struct vcpu *vcpu, enum xstate_insn insn, uint64_t linear, uint64_t requested) {
    struct area area;
    uint64_t stored = requested;
    bool compacted = insn == XSTATE_SAVE_COMPACTED;
    if (insn != XSTATE_SAVE) {
        if (!vcpu->dbt->xgetbv_in_use)
            return false;
        stored &= host_in_use() | XSTATE_SSE;
    }
    if (!area_find(vcpu, linear, area_size(vcpu, stored, compacted ? requested : 0), VMEM_WRITE, &area))
        return false;
    vcpu_fpu_unpark(vcpu);
    if (in_one_piece(&area)) {
        store(insn, area.host[0], requested);
    } else {
        /* Not by XSAVEOPT: the copy's address says nothing of what is there. XSAVE
         * writes what is in its initial state, too, which stays in the copy. */
        uint8_t *copy = vcpu->dbt->xstate_copy;
        const struct light_qword *in_use = (const struct light_qword *)(copy + XSTATE_HEADER);
        area_move(&area, copy, 0, area.size, false);
        store(compacted ? insn : XSTATE_SAVE, copy, requested);
        if (insn == XSTATE_SAVE_OPTIMISED)
            stored &= in_use->value;
        write_back(vcpu, &area, copy, requested, stored, compacted);
    }
    vmem_written(vcpu, area.host[0], area.first);
    if (area.first < area.size)
        vmem_written(vcpu, area.host[1], area.size - area.first);
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
    struct area area;
    if (!area_find(vcpu, linear, AREA_LEGACY, VMEM_READ, &area))
        return false;
    area_move(&area, copy, 0, AREA_LEGACY, false);
    if (!header_is_valid(vcpu, header))
        return false;
    bool compacted = header[1] & COMPACTED;
    uint64_t format = header[1] & ~COMPACTED, loaded = requested & header[0];
    /* In the standard format all that is requested must be there, in use or not.
     * (x87 takes no room behind the header, but keeps the format apart from the standard one) */
    uint32_t size = area_size(vcpu, compacted ? loaded : requested, compacted ? format | XSTATE_X87 : 0);
    if (size > AREA_LEGACY) {
        if (!area_find(vcpu, linear, size, VMEM_READ, &area))
            return false;
        area_move(&area, copy, AREA_LEGACY, size, false);
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
