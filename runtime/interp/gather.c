/* Gathers and scatters: one element at a time, lowest first; each completed element clears its mask bit, so
 * that a fault leaves the instruction restartable (SDM vol. 2, VGATHERDPS, VPSCATTERDD). */
#include "interp/memory.h"
#include "interp/xstate.h"

#define VECTOR_BYTES 64

struct vsib {
    unsigned elements;
    unsigned data_size, index_size; /* bytes of one element */
    unsigned data_register, index_register, mask_register;
    unsigned length;        /* bytes that the data register's elements fill, rounded to a vector length */
    unsigned vector_length; /* of the instruction, in bytes */
    bool scatter;
    bool evex;
};

static unsigned register_number(ZydisRegister reg) {
    switch (ZydisRegisterGetClass(reg)) {
    case ZYDIS_REGCLASS_XMM:
        return reg - ZYDIS_REGISTER_XMM0;
    case ZYDIS_REGCLASS_YMM:
        return reg - ZYDIS_REGISTER_YMM0;
    default:
        return reg - ZYDIS_REGISTER_ZMM0;
    }
}

static unsigned register_bytes(ZydisRegister reg) {
    switch (ZydisRegisterGetClass(reg)) {
    case ZYDIS_REGCLASS_XMM:
        return 16;
    case ZYDIS_REGCLASS_YMM:
        return 32;
    default:
        return 64;
    }
}

/* Mnemonics end in <index D|Q><data PS|PD|D|Q>; VPGATHERDD, VGATHERQPS, VPSCATTERQQ, ... */
static bool parse(const struct decoded *d, struct vsib *vsib) {
    const struct insn *insn = &d->insn;
    switch (insn->z.mnemonic) {
    case ZYDIS_MNEMONIC_VPGATHERDD:
    case ZYDIS_MNEMONIC_VGATHERDPS:
    case ZYDIS_MNEMONIC_VPSCATTERDD:
    case ZYDIS_MNEMONIC_VSCATTERDPS:
        vsib->index_size = vsib->data_size = 4;
        break;
    case ZYDIS_MNEMONIC_VPGATHERDQ:
    case ZYDIS_MNEMONIC_VGATHERDPD:
    case ZYDIS_MNEMONIC_VPSCATTERDQ:
    case ZYDIS_MNEMONIC_VSCATTERDPD:
        vsib->index_size = 4;
        vsib->data_size = 8;
        break;
    case ZYDIS_MNEMONIC_VPGATHERQD:
    case ZYDIS_MNEMONIC_VGATHERQPS:
    case ZYDIS_MNEMONIC_VPSCATTERQD:
    case ZYDIS_MNEMONIC_VSCATTERQPS:
        vsib->index_size = 8;
        vsib->data_size = 4;
        break;
    case ZYDIS_MNEMONIC_VPGATHERQQ:
    case ZYDIS_MNEMONIC_VGATHERQPD:
    case ZYDIS_MNEMONIC_VPSCATTERQQ:
    case ZYDIS_MNEMONIC_VSCATTERQPD:
        vsib->index_size = vsib->data_size = 8;
        break;
    default:
        return false;
    }
    vsib->evex = insn->z.encoding == ZYDIS_INSTRUCTION_ENCODING_EVEX;
    vsib->scatter = insn->op[0].type == ZYDIS_OPERAND_TYPE_MEMORY;
    ZydisRegister data = ZYDIS_REGISTER_NONE, selector = ZYDIS_REGISTER_NONE;
    for (unsigned i = 0; i < insn->z.operand_count_visible; i++) {
        if (insn->op[i].type != ZYDIS_OPERAND_TYPE_REGISTER)
            continue;
        ZydisRegister reg = insn->op[i].reg.value;
        if (ZydisRegisterGetClass(reg) == ZYDIS_REGCLASS_MASK)
            continue;
        if (data == ZYDIS_REGISTER_NONE)
            data = reg;
        else
            selector = reg;
    }
    ZydisRegister index = insn->op[insn->memory].mem.index;
    unsigned by_index = register_bytes(index) / vsib->index_size;
    unsigned by_data = register_bytes(data) / vsib->data_size;
    vsib->elements = by_index < by_data ? by_index : by_data;
    vsib->data_register = register_number(data);
    vsib->index_register = register_number(index);
    vsib->length = register_bytes(data);
    vsib->vector_length = insn->z.avx.vector_length / 8u;
    if (vsib->evex) {
        vsib->mask_register = insn->z.avx.mask.reg - ZYDIS_REGISTER_K0;
        /* A gather's target may not be its index; no mask at all has no encoding. */
        return insn->z.avx.mask.reg != ZYDIS_REGISTER_NONE && vsib->mask_register &&
               (vsib->scatter || vsib->data_register != vsib->index_register);
    }
    vsib->mask_register = register_number(selector);
    return vsib->data_register != vsib->index_register && vsib->data_register != vsib->mask_register &&
           vsib->index_register != vsib->mask_register;
}

static int access_element(struct vcpu *vcpu, struct decoded *d, const struct vsib *vsib, uint64_t offset,
                          uint8_t *element) {
    enum vmem_access access = vsib->scatter ? VMEM_WRITE : VMEM_READ;
    uint64_t linear;
    /* Elements are never checked for alignment. */
    int result = memory_linear_wrapping(vcpu, d->segment, offset, vsib->data_size, 1, access, &linear);
    if (result)
        return result;
    return vsib->scatter ? vmem_write(vcpu, linear, element, vsib->data_size, AS_CURRENT)
                         : vmem_read(vcpu, linear, element, vsib->data_size, AS_CURRENT);
}

/* Store what has been done so far: at the end, or at a fault after `done` elements were loaded. With the
 * first of them the target's part above the vector length is gone. */
static void commit(struct vcpu *vcpu, const struct vsib *vsib, const uint8_t *data, const uint8_t *mask_bytes,
                   uint64_t mask, bool complete, unsigned done) {
    if (!vsib->scatter && (complete || done)) {
        uint8_t value[VECTOR_BYTES];
        memcpy(value, data, VECTOR_BYTES);
        if (complete)
            memset(value + vsib->elements * vsib->data_size, 0,
                   VECTOR_BYTES - vsib->elements * vsib->data_size);
        xstate_write_vector(vcpu, vsib->data_register, value, complete ? vsib->length : vsib->vector_length);
    }
    if (vsib->evex)
        xstate_write_mask(vcpu, vsib->mask_register, mask);
    else
        xstate_write_vector(vcpu, vsib->mask_register, mask_bytes, complete ? 16 : vsib->vector_length);
}

int gather_execute(struct vcpu *vcpu, struct decoded *d) {
    struct vsib vsib = {0};
    uint8_t data[VECTOR_BYTES], indices[VECTOR_BYTES], mask_bytes[VECTOR_BYTES] = {0};
    int result = native_check_guard(vcpu, d);
    if (result)
        return result;
    if (d->insn.memory < 0 || !parse(d, &vsib))
        return fault_ud(vcpu);
    const ZydisDecodedOperand *memory = &d->insn.op[d->insn.memory];
    uint64_t base = d->displacement, mask = 0;
    if (d->base >= 0)
        base += vcpu->gpr[d->base];
    xstate_read_vector(vcpu, vsib.data_register, data);
    xstate_read_vector(vcpu, vsib.index_register, indices);
    if (vsib.evex) {
        mask = xstate_read_mask(vcpu, vsib.mask_register);
    } else {
        xstate_read_vector(vcpu, vsib.mask_register, mask_bytes);
        /* The first step makes each mask element all ones or zeros, even those that have no index. */
        for (unsigned i = 0; i < vsib.vector_length / vsib.data_size; i++) {
            uint64_t set = mask_bytes[(i + 1) * vsib.data_size - 1] >> 7;
            mask |= i < vsib.elements ? set << i : 0;
            memset(mask_bytes + i * vsib.data_size, set ? 0xff : 0, vsib.data_size);
        }
    }
    unsigned done = 0;
    for (unsigned i = 0; i < vsib.elements; i++) {
        if (mask >> i & 1) {
            int64_t index = 0;
            if (vsib.index_size == 4) {
                int32_t narrow;
                memcpy(&narrow, indices + 4 * i, 4);
                index = narrow;
            } else {
                memcpy(&index, indices + 8 * i, 8);
            }
            uint64_t offset = (base + (uint64_t)index * memory->mem.scale) & d->address_mask;
            result = access_element(vcpu, d, &vsib, offset, data + i * vsib.data_size);
            if (result) {
                commit(vcpu, &vsib, data, mask_bytes, mask, false, done);
                return result;
            }
            done++;
        }
        mask &= ~(1ull << i);
        memset(mask_bytes + i * vsib.data_size, 0, vsib.data_size);
    }
    memset(mask_bytes, 0, sizeof mask_bytes);
    commit(vcpu, &vsib, data, mask_bytes, 0, true, done);
    return CPU_OK;
}
