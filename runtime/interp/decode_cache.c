/* From vcpu->rip to a decoded instruction.
 *
 * The cache is direct-mapped by linear address and believes nothing: an entry counts only when the bytes that
 * are in guest memory now equal the bytes it was made from. Self-modifying code, remapped pages and other
 * address spaces therefore need no invalidation.
 */
#include "interp/memory.h"
#include "interp/offer.h"
#include "interp/thunk.h"

#include <sys/mman.h>

static uint64_t byte_mask(unsigned count) {
    return count >= 8 ? UINT64_MAX : (1ull << 8 * count) - 1;
}

/* Vector extensions by name: an instruction such as CVTTSS2SI r32, m32 names no vector register. */
static bool is_sse(const ZydisDecodedInstruction *z) {
    switch (z->mnemonic) {
    case ZYDIS_MNEMONIC_MOVNTI:
    case ZYDIS_MNEMONIC_CRC32:
    case ZYDIS_MNEMONIC_POPCNT:
        return false;
    default:
        break;
    }
    switch (z->meta.isa_ext) {
    case ZYDIS_ISA_EXT_SSE:
    case ZYDIS_ISA_EXT_SSE2:
    case ZYDIS_ISA_EXT_SSE3:
    case ZYDIS_ISA_EXT_SSE4:
    case ZYDIS_ISA_EXT_SSE4A:
    case ZYDIS_ISA_EXT_SSSE3:
        return true;
    default:
        return false;
    }
}

static bool is_vex_integer(const ZydisDecodedInstruction *z) {
    return z->meta.isa_ext == ZYDIS_ISA_EXT_BMI1 || z->meta.isa_ext == ZYDIS_ISA_EXT_BMI2;
}

static enum insn_guard find_guard(const struct insn *insn) {
    const ZydisDecodedInstruction *z = &insn->z;
    bool has_mask_register = false, has_mmx = false, has_sse = false;
    for (unsigned i = 0; i < z->operand_count; i++) {
        if (insn->op[i].type != ZYDIS_OPERAND_TYPE_REGISTER)
            continue;
        ZydisRegister reg = insn->op[i].reg.value;
        ZydisRegisterClass class = ZydisRegisterGetClass(reg);
        has_mask_register |= class == ZYDIS_REGCLASS_MASK;
        has_mmx |= class == ZYDIS_REGCLASS_MMX;
        has_sse |= class == ZYDIS_REGCLASS_XMM || reg == ZYDIS_REGISTER_MXCSR;
    }
    if (z->mnemonic == ZYDIS_MNEMONIC_FWAIT)
        return GUARD_WAIT;
    if (z->encoding == ZYDIS_INSTRUCTION_ENCODING_EVEX)
        return GUARD_AVX512;
    if (z->encoding == ZYDIS_INSTRUCTION_ENCODING_VEX) {
        if (has_mask_register)
            return GUARD_AVX512;
        return is_vex_integer(z) ? GUARD_VEX_INTEGER : GUARD_AVX;
    }
    if (z->encoding == ZYDIS_INSTRUCTION_ENCODING_LEGACY && z->opcode_map == ZYDIS_OPCODE_MAP_DEFAULT &&
        z->opcode >= 0xd8 && z->opcode <= 0xdf)
        return GUARD_X87;
    if (has_sse)
        return GUARD_SSE;
    if (has_mmx || z->mnemonic == ZYDIS_MNEMONIC_EMMS)
        return GUARD_MMX;
    return is_sse(z) ? GUARD_SSE : GUARD_NONE;
}

static void fill_operand(struct operand *op, const ZydisDecodedOperand *from, unsigned operand_size) {
    *op = (struct operand){.size = (uint16_t)(from->size / 8)};
    switch (from->type) {
    case ZYDIS_OPERAND_TYPE_REGISTER: {
        int gpr = insn_gpr(from->reg.value);
        op->kind = gpr < 0                              ? OPERAND_OTHER
                   : insn_is_high_byte(from->reg.value) ? OPERAND_HIGH_BYTE
                                                        : OPERAND_GPR;
        op->gpr = gpr < 0 ? 0 : (uint8_t)gpr;
        break;
    }
    case ZYDIS_OPERAND_TYPE_MEMORY:
        op->kind = OPERAND_MEMORY;
        break;
    case ZYDIS_OPERAND_TYPE_IMMEDIATE: {
        uint64_t mask = byte_mask(operand_size);
        op->kind = OPERAND_IMMEDIATE;
        op->immediate = from->imm.is_relative ? from->imm.value.u : from->imm.value.u & mask;
        break;
    }
    default:
        op->kind = OPERAND_OTHER;
    }
}

/* The memory operand that addresses: the accessed one, or that of LEA, INVLPG and their like. */
static void fill_address(struct decoded *d) {
    const struct insn *insn = &d->insn;
    const ZydisDecodedOperand *op = NULL;
    if (insn->memory >= 0) {
        op = &insn->op[insn->memory];
    } else {
        for (unsigned i = 0; i < insn->z.operand_count && !op; i++)
            if (insn->op[i].type == ZYDIS_OPERAND_TYPE_MEMORY)
                op = &insn->op[i];
    }
    d->base = d->index = BASE_NONE;
    d->scale_shift = 0;
    d->displacement = 0;
    d->segment = SEG_DS;
    d->memory_size = 0;
    d->memory_access = 0;
    d->address_size = insn->z.address_width / 8;
    d->address_mask = byte_mask(d->address_size);
    if (!op)
        return;
    if (op->mem.base == ZYDIS_REGISTER_RIP || op->mem.base == ZYDIS_REGISTER_EIP)
        d->base = BASE_RIP;
    else if (insn_gpr(op->mem.base) >= 0)
        d->base = (int8_t)insn_gpr(op->mem.base);
    if (op->mem.type != ZYDIS_MEMOP_TYPE_VSIB && insn_gpr(op->mem.index) >= 0) {
        d->index = (int8_t)insn_gpr(op->mem.index);
        d->scale_shift = (uint8_t)(op->mem.scale ? __builtin_ctz(op->mem.scale) : 0);
    }
    d->displacement = op->mem.disp.has_displacement ? (uint64_t)op->mem.disp.value : 0;
    d->segment = (uint8_t)insn_segment(insn, op);
    d->memory_size = (uint16_t)(op->size / 8);
    d->memory_access = (uint8_t)((op->actions & ZYDIS_OPERAND_ACTION_MASK_READ ? 1 : 0) |
                                 (op->actions & ZYDIS_OPERAND_ACTION_MASK_WRITE ? 2 : 0));
}

static void fill_decoded(struct decoded *d, uint64_t linear, const struct insn_offer *offer) {
    const struct insn *insn = &d->insn;
    d->linear = linear;
    d->length = insn->length;
    d->code_size = insn->code_size;
    d->mask[0] = byte_mask(insn->length);
    d->mask[1] = insn->length > 8 ? byte_mask(insn->length - 8u) : 0;
    d->bytes[0] = d->bytes[1] = 0;
    memcpy(d->bytes, insn->bytes, insn->length);
    d->operand_size = insn->z.operand_width / 8;
    d->guard = (uint8_t)find_guard(insn);
    d->function = 0;
    d->thunk = NULL;
    d->thunk_generation = 0;
    fill_address(d);
    for (unsigned i = 0; i < ARRAY_SIZE(d->op); i++) {
        if (i < insn->z.operand_count_visible)
            fill_operand(&d->op[i], &insn->op[i], i ? d->op[0].size ? d->op[0].size : d->operand_size : 8);
        else
            d->op[i] = (struct operand){.kind = OPERAND_NONE};
    }
    d->locked = insn->traits & INSN_LOCKED || (insn->z.mnemonic == ZYDIS_MNEMONIC_XCHG && insn->memory >= 0);
    d->handler = insn_offered(offer, insn) ? interp_find_handler(d) : interp_find_withheld(d);
}

static struct decoded *cache_slot(struct interp_vcpu *interp, uint64_t linear) {
    return &interp->cache[(linear ^ linear >> 12) & interp->cache_mask];
}

/* Decode from bytes; on anything but success the fault is set. short_fault: vcpu->exception already holds
 * what a fetch past the bytes raises. */
static int decode(struct vcpu *vcpu, struct decoded *d, const uint8_t *bytes, unsigned count,
                  unsigned code_size, uint64_t linear, bool short_fault) {
    d->code_size = 0;
    switch (insn_decode(&d->insn, bytes, count, code_size)) {
    case INSN_OK:
        fill_decoded(d, linear, vcpu->interp->offer);
        return CPU_OK;
    case INSN_SHORT:
        return short_fault ? CPU_FAULT : fault_gp(vcpu);
    case INSN_TOO_LONG:
        return fault_gp(vcpu);
    default:
        return fault_ud(vcpu);
    }
}

int interp_fetch(struct vcpu *vcpu, struct decoded **decoded) {
    struct interp_vcpu *interp = vcpu->interp;
    uint64_t linear;
    unsigned available = INSN_MAX_LENGTH, code_size;
    uint32_t mode = vcpu->mode;
    if ((mode & MODE_CODE_MASK) == MODE_CODE_64) {
        code_size = 64;
        linear = vcpu->rip;
        if (UNLIKELY(!cpu_is_canonical(linear)))
            return fault_gp(vcpu);
    } else {
        const struct segment *cs = &vcpu->segment[SEG_CS];
        code_size = (mode & MODE_CODE_MASK) == MODE_CODE_32 ? 32 : 16;
        if (UNLIKELY(vcpu->rip > cs->limit))
            return fault_gp(vcpu);
        linear = (uint32_t)(cs->base + vcpu->rip);
        if (UNLIKELY(cs->limit - vcpu->rip < INSN_MAX_LENGTH - 1))
            available = (unsigned)(cs->limit - vcpu->rip) + 1;
    }

    /* Inside a page with 16 bytes to spare the bytes are looked at where they lie. */
    struct decoded *d = cache_slot(interp, linear);
    uint64_t bytes[2] = {0, 0};
    unsigned count = INSN_MAX_LENGTH;
    const struct vtlb_entry *entry = &vcpu->view->entry[vtlb_index(vcpu->view, linear)];
    if (LIKELY((linear & (PAGE_SIZE - 1)) <= PAGE_SIZE - 16 && available == INSN_MAX_LENGTH &&
               entry->tag_read == (linear & PAGE_MASK) && entry->info & VTLB_INFO_EXECUTABLE)) {
        memcpy(bytes, (const void *)(linear + entry->addend), sizeof bytes);
    } else {
        count = vmem_fetch(vcpu, linear, (uint8_t *)bytes, available);
        if (!count)
            return CPU_FAULT;
    }
    *decoded = d;
    if (LIKELY(d->linear == linear && d->code_size == code_size && d->length <= count &&
               !((bytes[0] ^ d->bytes[0]) & d->mask[0]) && !((bytes[1] ^ d->bytes[1]) & d->mask[1])))
        return CPU_OK;
    return decode(vcpu, d, (const uint8_t *)bytes, count, code_size, linear, count < available);
}
