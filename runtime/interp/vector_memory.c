/* Vector instructions whose memory operand is reached element by element under a mask (SDM vol. 2, 2.7.3:
 * masked-off elements cause no fault), and the stores that choose their own address. The arithmetic still
 * runs natively, on a bounce buffer that holds the elements that the mask lets through. */
#include "interp/flags.h"
#include "interp/memory.h"
#include "interp/thunk.h"
#include "interp/xstate.h"

#define VECTOR_BYTES 64

unsigned vector_register(ZydisRegister reg) {
    if (reg >= ZYDIS_REGISTER_XMM0 && reg <= ZYDIS_REGISTER_XMM31)
        return reg - ZYDIS_REGISTER_XMM0;
    if (reg >= ZYDIS_REGISTER_YMM0 && reg <= ZYDIS_REGISTER_YMM31)
        return reg - ZYDIS_REGISTER_YMM0;
    if (reg >= ZYDIS_REGISTER_ZMM0 && reg <= ZYDIS_REGISTER_ZMM31)
        return reg - ZYDIS_REGISTER_ZMM0;
    return 0;
}

static bool is_compressing(ZydisMnemonic mnemonic) {
    switch (mnemonic) {
    case ZYDIS_MNEMONIC_VCOMPRESSPD:
    case ZYDIS_MNEMONIC_VCOMPRESSPS:
    case ZYDIS_MNEMONIC_VPCOMPRESSB:
    case ZYDIS_MNEMONIC_VPCOMPRESSW:
    case ZYDIS_MNEMONIC_VPCOMPRESSD:
    case ZYDIS_MNEMONIC_VPCOMPRESSQ:
    case ZYDIS_MNEMONIC_VEXPANDPD:
    case ZYDIS_MNEMONIC_VEXPANDPS:
    case ZYDIS_MNEMONIC_VPEXPANDB:
    case ZYDIS_MNEMONIC_VPEXPANDW:
    case ZYDIS_MNEMONIC_VPEXPANDD:
    case ZYDIS_MNEMONIC_VPEXPANDQ:
        return true;
    default:
        return false;
    }
}

static bool is_avx_masked(ZydisMnemonic mnemonic) {
    return mnemonic == ZYDIS_MNEMONIC_VMASKMOVPS || mnemonic == ZYDIS_MNEMONIC_VMASKMOVPD ||
           mnemonic == ZYDIS_MNEMONIC_VPMASKMOVD || mnemonic == ZYDIS_MNEMONIC_VPMASKMOVQ;
}

/* Whether the mask suppresses faults of the memory operand (exception types without "NF"). */
static bool suppresses_faults(const struct insn *insn) {
    switch (insn->z.mnemonic) {
    case ZYDIS_MNEMONIC_VCVTNE2PS2BF16:
    case ZYDIS_MNEMONIC_VDBPSADBW:
    case ZYDIS_MNEMONIC_VGF2P8AFFINEINVQB:
    case ZYDIS_MNEMONIC_VGF2P8AFFINEQB:
        return false;
    default:
        break;
    }
    switch (insn->z.meta.exception_class) {
    case ZYDIS_EXCEPTION_CLASS_E1NF:
    case ZYDIS_EXCEPTION_CLASS_E2NF:
    case ZYDIS_EXCEPTION_CLASS_E3NF:
    case ZYDIS_EXCEPTION_CLASS_E4NF:
    case ZYDIS_EXCEPTION_CLASS_E5NF:
    case ZYDIS_EXCEPTION_CLASS_E6NF:
    case ZYDIS_EXCEPTION_CLASS_E9NF:
    case ZYDIS_EXCEPTION_CLASS_E10NF:
    case ZYDIS_EXCEPTION_CLASS_E11NF:
        return false;
    default:
        return true;
    }
}

static bool is_scalar(const struct insn *insn) {
    const ZydisDecodedOperand *memory = &insn->op[insn->memory];
    if (memory->element_count > 1 || insn->z.avx.broadcast.mode != ZYDIS_BROADCAST_MODE_INVALID)
        return false;
    switch (insn->z.meta.exception_class) {
    case ZYDIS_EXCEPTION_CLASS_E3:
    case ZYDIS_EXCEPTION_CLASS_E10:
        return true;
    default:
        break;
    }
    switch (insn->z.mnemonic) {
    case ZYDIS_MNEMONIC_VMOVSS:
    case ZYDIS_MNEMONIC_VMOVSD:
    case ZYDIS_MNEMONIC_VMOVSH:
    case ZYDIS_MNEMONIC_VFPCLASSSS:
    case ZYDIS_MNEMONIC_VFPCLASSSD:
    case ZYDIS_MNEMONIC_VFPCLASSSH:
        return true;
    default:
        return false;
    }
}

/* Which elements of the memory operand are accessed. */
struct element_plan {
    unsigned size;  /* bytes */
    unsigned count; /* elements */
    uint64_t mask;
};

/* AVX: the sign bits of the mask register's elements. */
static void plan_avx(const struct vcpu *vcpu, const struct decoded *d, struct element_plan *plan) {
    const ZydisDecodedOperand *selector = &d->insn.op[1];
    uint8_t bytes[VECTOR_BYTES];
    plan->size =
        d->insn.z.mnemonic == ZYDIS_MNEMONIC_VMASKMOVPD || d->insn.z.mnemonic == ZYDIS_MNEMONIC_VPMASKMOVQ
            ? 8
            : 4;
    plan->count = d->memory_size / plan->size;
    plan->mask = 0;
    xstate_read_vector(vcpu, vector_register(selector->reg.value), bytes);
    for (unsigned i = 0; i < plan->count; i++)
        plan->mask |= (uint64_t)(bytes[(i + 1) * plan->size - 1] >> 7) << i;
}

static unsigned lowest(unsigned a, unsigned b) {
    return a < b ? a : b;
}

/* AVX-512: one mask bit per element of the destination (or of the source, when the destination is a mask);
 * memory elements are as many, or are repeated to be as many. */
static void plan_avx512(const struct vcpu *vcpu, const struct decoded *d, struct element_plan *plan) {
    const struct insn *insn = &d->insn;
    const ZydisDecodedOperand *memory = &insn->op[insn->memory], *first = &insn->op[0];
    uint64_t mask = xstate_read_mask(vcpu, insn->z.avx.mask.reg - ZYDIS_REGISTER_K0);
    bool to_mask = first->type == ZYDIS_OPERAND_TYPE_REGISTER &&
                   ZydisRegisterGetClass(first->reg.value) == ZYDIS_REGCLASS_MASK;
    unsigned bits = first->element_count;
    if (to_mask || !bits) {
        unsigned element = memory->element_size / 8u;
        bits = element ? insn->z.avx.vector_length / 8u / element : 1;
    }
    /* What narrows its elements fills its target only in part. */
    if (insn->z.meta.category == ZYDIS_CATEGORY_CONVERT && memory->element_size >= 8)
        bits = lowest(bits, insn->z.avx.vector_length / memory->element_size);
    if (is_scalar(insn))
        bits = 1;
    bits = bits ? lowest(bits, 64) : 1;
    uint64_t relevant = bits >= 64 ? mask : mask & ((1ull << bits) - 1);
    if (is_compressing(insn->z.mnemonic)) {
        unsigned n = (unsigned)__builtin_popcountll(relevant);
        plan->size = d->memory_size / bits;
        plan->count = n;
        plan->mask = n >= 64 ? UINT64_MAX : (1ull << n) - 1;
        return;
    }
    unsigned element = memory->element_size / 8u ? memory->element_size / 8u : 1;
    unsigned elements = d->memory_size / element;
    if (elements >= bits) {
        plan->size = d->memory_size / bits;
        plan->count = bits;
        plan->mask = relevant;
        return;
    }
    plan->size = element;
    plan->count = elements ? elements : 1;
    plan->mask = 0;
    for (unsigned i = 0; i < bits; i++)
        plan->mask |= (relevant >> i & 1) << i % plan->count;
}

/* Linear address of one element. */
static int element_linear(struct vcpu *vcpu, struct decoded *d, const struct element_plan *plan,
                          unsigned index, uint64_t offset, enum vmem_access access, uint64_t *linear) {
    uint64_t address = (offset + index * plan->size) & d->address_mask;
    return memory_linear_aligned(vcpu, d->segment, address, plan->size, 1, access, linear);
}

static uint64_t operand_linear(const struct vcpu *vcpu, const struct decoded *d, uint64_t offset) {
    bool has_base = d->insn.code_size != 64 || d->segment >= SEG_FS;
    return has_base ? offset + vcpu->segment[d->segment].base : offset;
}

/* #AC. It is the operand that is checked, not its elements: those of up to 8 bytes are like scalars. */
static int check_alignment(struct vcpu *vcpu, const struct decoded *d, const struct element_plan *plan,
                           uint64_t offset) {
    bool is_checked = vcpu->mode & MODE_AC && plan->mask && d->memory_size <= 8;
    return UNLIKELY(is_checked) && operand_linear(vcpu, d, offset) & (native_checked_alignment(d) - 1)
               ? cpu_fault(vcpu, VECTOR_AC, 0)
               : CPU_OK;
}

/* All of the segmentation before the alignment, and that before any of the paging: a non-canonical part is
 * #GP though an earlier one is not present. */
static int check_elements(struct vcpu *vcpu, struct decoded *d, const struct element_plan *plan,
                          uint64_t offset, enum vmem_access access) {
    uint64_t linear;
    int result = CPU_OK;
    for (unsigned i = 0; i < plan->count && !result; i++)
        if (plan->mask >> i & 1)
            result = element_linear(vcpu, d, plan, i, offset, access, &linear);
    if (!result)
        result = check_alignment(vcpu, d, plan, offset);
    for (unsigned i = 0; i < plan->count && !result; i++) {
        if (!(plan->mask >> i & 1))
            continue;
        result = element_linear(vcpu, d, plan, i, offset, access, &linear);
        if (!result)
            result = vmem_probe(vcpu, linear, plan->size, access, AS_CURRENT);
    }
    return result;
}

static int copy_elements(struct vcpu *vcpu, struct decoded *d, const struct element_plan *plan,
                         uint64_t offset, uint8_t *bytes, bool store) {
    for (unsigned i = 0; i < plan->count; i++) {
        uint64_t linear;
        uint8_t *element = bytes + i * plan->size;
        if (!(plan->mask >> i & 1))
            continue;
        int result = element_linear(vcpu, d, plan, i, offset, store ? VMEM_WRITE : VMEM_READ, &linear);
        if (!result)
            result = store ? vmem_write(vcpu, linear, element, plan->size, AS_CURRENT)
                           : vmem_read(vcpu, linear, element, plan->size, AS_CURRENT);
        if (result)
            return result;
    }
    return CPU_OK;
}

int masked_execute(struct vcpu *vcpu, struct decoded *d) {
    const struct insn *insn = &d->insn;
    int result = native_check_guard(vcpu, d);
    if (result)
        return result;
    bool avx = is_avx_masked(insn->z.mnemonic), store = d->memory_access & 2;
    bool suppresses = avx || suppresses_faults(insn);
    if ((!suppresses && !store) || !d->memory_size || d->memory_size > VECTOR_BYTES)
        return native_execute(vcpu, d);
    struct element_plan plan;
    if (avx)
        plan_avx(vcpu, d, &plan);
    else
        plan_avx512(vcpu, d, &plan);

    uint64_t offset = address_compute(vcpu, d);
    bool aligned_move = insn->z.meta.exception_class == ZYDIS_EXCEPTION_CLASS_E1;
    if (aligned_move && plan.mask && operand_linear(vcpu, d, offset) & (d->memory_size - 1))
        return fault_gp(vcpu);
    uint8_t *bounce = vcpu->interp->frame->bounce;
    memset(bounce, 0, VECTOR_BYTES);
    if (!suppresses) {
        const struct element_plan whole = {.size = d->memory_size, .count = 1, .mask = 1};
        result = check_elements(vcpu, d, &whole, offset, VMEM_WRITE);
        if (result)
            return native_memory_fault(vcpu, d, 0);
    }
    result = check_elements(vcpu, d, &plan, offset, store ? VMEM_WRITE : VMEM_READ);
    if (!result && !store)
        result = copy_elements(vcpu, d, &plan, offset, bounce, false);
    if (result)
        return native_memory_fault(vcpu, d, 0);
    result = native_run(vcpu, d, bounce, offset);
    if (!result && store)
        result = copy_elements(vcpu, d, &plan, offset, bounce, true);
    return result;
}

/* All of the operand of MASKMOVQ and its kin must be writable, whatever the mask (SDM vol. 2, MASKMOVDQU,
 * leaves it open), the upper half first, and aligned to its halves (#AC), as the processor has it. */
static int maskmov_check(struct vcpu *vcpu, struct decoded *d, uint64_t offset, unsigned size) {
    uint64_t linear;
    int result = memory_linear_aligned(vcpu, d->segment, offset, size, 8, VMEM_WRITE, &linear);
    for (unsigned half = size; half && !result; half -= 8)
        result = vmem_probe(vcpu, linear + half - 8, 8, VMEM_WRITE, AS_CURRENT);
    return result;
}

/* MASKMOVQ, MASKMOVDQU, VMASKMOVDQU: bytes of the first operand whose mask byte has its top bit set go to
 * [DS:rDI]. */
int maskmov_execute(struct vcpu *vcpu, struct decoded *d) {
    int result = native_check_guard(vcpu, d);
    if (result)
        return result;
    bool mmx = d->insn.z.mnemonic == ZYDIS_MNEMONIC_MASKMOVQ;
    if (mmx) {
        result = native_check_x87_error(vcpu);
        if (result)
            return result;
    }
    ZydisRegister data_register = ZYDIS_REGISTER_NONE, mask_register = ZYDIS_REGISTER_NONE;
    for (unsigned i = 0; i < d->insn.z.operand_count; i++) {
        if (d->insn.op[i].type != ZYDIS_OPERAND_TYPE_REGISTER)
            continue;
        ZydisRegister reg = d->insn.op[i].reg.value;
        ZydisRegisterClass class = ZydisRegisterGetClass(reg);
        if (class != ZYDIS_REGCLASS_XMM && class != ZYDIS_REGCLASS_MMX)
            continue;
        if (data_register == ZYDIS_REGISTER_NONE)
            data_register = reg;
        else if (mask_register == ZYDIS_REGISTER_NONE)
            mask_register = reg;
    }
    uint8_t data[VECTOR_BYTES] = {0}, mask[VECTOR_BYTES] = {0};
    struct element_plan plan = {.size = 1, .count = mmx ? 8 : 16};
    if (mmx) {
        uint64_t value = xstate_read_mmx(vcpu, data_register - ZYDIS_REGISTER_MM0);
        memcpy(data, &value, 8);
        value = xstate_read_mmx(vcpu, mask_register - ZYDIS_REGISTER_MM0);
        memcpy(mask, &value, 8);
    } else {
        xstate_read_vector(vcpu, vector_register(data_register), data);
        xstate_read_vector(vcpu, vector_register(mask_register), mask);
    }
    for (unsigned i = 0; i < plan.count; i++)
        plan.mask |= (uint64_t)(mask[i] >> 7) << i;
    uint64_t offset = vcpu->gpr[GPR_RDI] & d->address_mask;
    result = maskmov_check(vcpu, d, offset, plan.count);
    if (!result)
        result = copy_elements(vcpu, d, &plan, offset, data, true);
    if (!result && mmx)
        xstate_enter_mmx(vcpu);
    return result;
}

/* MOVDIR64B: 64 bytes from memory to [ES:reg], which must be aligned. */
int movdir64b_execute(struct vcpu *vcpu, struct decoded *d) {
    const ZydisDecodedOperand *target = &d->insn.op[0], *source = &d->insn.op[1];
    int to = insn_gpr(target->type == ZYDIS_OPERAND_TYPE_MEMORY ? target->mem.base : target->reg.value);
    int base = insn_gpr(source->mem.base), index = insn_gpr(source->mem.index);
    uint8_t bytes[64];
    uint64_t from = source->mem.disp.has_displacement ? (uint64_t)source->mem.disp.value : 0, linear;
    if (to < 0 || source->type != ZYDIS_OPERAND_TYPE_MEMORY)
        return fault_ud(vcpu);
    if (base >= 0)
        from += vcpu->gpr[base];
    else if (source->mem.base == ZYDIS_REGISTER_RIP || source->mem.base == ZYDIS_REGISTER_EIP)
        from += vcpu->interp->next;
    if (index >= 0)
        from += vcpu->gpr[index] * source->mem.scale;
    int result = memory_linear(vcpu, insn_segment(&d->insn, source), from & d->address_mask, sizeof bytes,
                               VMEM_READ, &linear);
    if (!result)
        result = vmem_read(vcpu, linear, bytes, sizeof bytes, AS_CURRENT);
    if (!result)
        result =
            memory_linear(vcpu, SEG_ES, vcpu->gpr[to] & d->address_mask, sizeof bytes, VMEM_WRITE, &linear);
    if (result)
        return result;
    if (linear & 63)
        return fault_gp(vcpu);
    return vmem_write(vcpu, linear, bytes, sizeof bytes, AS_CURRENT);
}
