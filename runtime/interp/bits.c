/* Bit tests with their bit strings in memory, and the instructions that 64-bit mode dropped: BCD, BOUND,
 * ARPL, SALC. */
#include "interp/flags.h"
#include "interp/memory.h"

enum bit_operation { BIT_TEST, BIT_SET, BIT_RESET, BIT_COMPLEMENT };

static uint64_t bit_compute(unsigned operation, uint64_t value, uint64_t bit) {
    switch (operation) {
    case BIT_SET:
        return value | bit;
    case BIT_RESET:
        return value & ~bit;
    case BIT_COMPLEMENT:
        return value ^ bit;
    default:
        return value;
    }
}

/* Compare-and-swap of an operand of `size` bytes; *expected is updated when it fails. */
static bool host_swap(void *host, unsigned size, uint64_t *expected, uint64_t desired) {
    uint16_t e16 = (uint16_t)*expected;
    uint32_t e32 = (uint32_t)*expected;
    bool done;
    switch (size) {
    case 2:
        done = __atomic_compare_exchange_n((uint16_t *)host, &e16, (uint16_t)desired, false, __ATOMIC_SEQ_CST,
                                           __ATOMIC_SEQ_CST);
        *expected = e16;
        return done;
    case 4:
        done = __atomic_compare_exchange_n((uint32_t *)host, &e32, (uint32_t)desired, false, __ATOMIC_SEQ_CST,
                                           __ATOMIC_SEQ_CST);
        *expected = e32;
        return done;
    default:
        return __atomic_compare_exchange_n((uint64_t *)host, expected, desired, false, __ATOMIC_SEQ_CST,
                                           __ATOMIC_SEQ_CST);
    }
}

/* LZCNT and TZCNT on a processor without them, which ignores the prefix: BSR (function 1) and BSF. */
int bit_scan_execute(struct vcpu *vcpu, struct decoded *d) {
    uint64_t value;
    int result = operand_read(vcpu, d, 1, &value);
    if (result)
        return result;
    flags_set(vcpu, value ? 0 : FLAG_ZF, FLAG_ZF);
    if (value)
        gpr_set(vcpu, &d->op[0],
                (uint64_t)(d->function ? 63 - __builtin_clzll(value) : __builtin_ctzll(value)));
    return CPU_OK;
}

/* BT, BTS, BTR, BTC on memory: a bit offset in a register reaches beyond the operand (SDM vol. 1, 3.1.1.9).
 */
int bit_test_execute(struct vcpu *vcpu, struct decoded *d) {
    unsigned size = d->op[0].size, bits = 8 * size;
    uint64_t address = address_compute(vcpu, d), offset;
    if (d->op[1].kind == OPERAND_IMMEDIATE) {
        offset = d->op[1].immediate & (bits - 1);
    } else {
        unsigned shift = 64 - bits;
        int64_t signed_offset = (int64_t)(gpr_get(vcpu, &d->op[1]) << shift) >> shift;
        offset = (uint64_t)signed_offset & (bits - 1);
        address += (uint64_t)((signed_offset >> __builtin_ctz(bits)) * (int64_t)size);
        /* Around the end of 32-bit addresses: Intel's processors refuse, AMD's wrap. */
        if (UNLIKELY(address > UINT32_MAX) && d->address_mask == UINT32_MAX && !cpu_is_code64(vcpu) &&
            !insn_host_is_amd())
            return cpu_fault(vcpu, d->segment == SEG_SS ? VECTOR_SS : VECTOR_GP, 0);
        address &= d->address_mask;
    }
    uint64_t bit = 1ull << offset, old;
    int result;
    if (d->function == BIT_TEST) {
        result = memory_read(vcpu, d->segment, address, size, &old);
    } else {
        struct rmw rmw;
        result = rmw_begin(vcpu, d->segment, address, size, &rmw);
        if (result)
            return result;
        old = rmw.value;
        if (d->locked && rmw.host) {
            while (!host_swap(rmw.host, size, &old, bit_compute(d->function, old, bit)))
                continue;
            if (rmw.needs_note)
                vmem_written(vcpu, rmw.host, size);
        } else {
            result = rmw_finish(vcpu, &rmw, size, bit_compute(d->function, old, bit));
        }
    }
    if (!result)
        flags_set(vcpu, old & bit ? FLAG_CF : 0, FLAG_CF);
    return result;
}

static void adjust_packed(struct vcpu *vcpu, bool subtract) {
    uint8_t old = (uint8_t)vcpu->gpr[GPR_RAX], al = old;
    bool old_carry = vcpu->rflags & FLAG_CF, carry = false;
    uint64_t flags = 0;
    if ((al & 15) > 9 || vcpu->rflags & FLAG_AF) {
        carry = old_carry || (subtract ? al < 6 : al > 0xf9);
        al = (uint8_t)(subtract ? al - 6 : al + 6);
        flags |= FLAG_AF;
    }
    if (old > 0x99 || old_carry) {
        al = (uint8_t)(subtract ? al - 0x60 : al + 0x60);
        carry = true;
    }
    flags |= carry ? FLAG_CF : 0;
    gpr_put(vcpu, GPR_RAX, 1, al);
    flags_set(vcpu, flags | flags_result(al, 1), FLAGS_ARITHMETIC);
}

static void adjust_unpacked(struct vcpu *vcpu, bool subtract) {
    uint16_t ax = (uint16_t)vcpu->gpr[GPR_RAX];
    uint64_t flags = 0;
    if ((ax & 15) > 9 || vcpu->rflags & FLAG_AF) {
        ax = (uint16_t)(subtract ? ax - 0x106 : ax + 0x106);
        flags = FLAG_AF | FLAG_CF;
    }
    ax &= 0xff0f;
    gpr_put(vcpu, GPR_RAX, 2, ax);
    flags_set(vcpu, flags | flags_result(ax, 1), FLAGS_ARITHMETIC);
}

int bcd_execute(struct vcpu *vcpu, struct decoded *d) {
    uint8_t al = (uint8_t)vcpu->gpr[GPR_RAX], ah = (uint8_t)(vcpu->gpr[GPR_RAX] >> 8);
    uint8_t base = (uint8_t)d->op[0].immediate;
    switch (d->insn.z.mnemonic) {
    case ZYDIS_MNEMONIC_DAA:
        adjust_packed(vcpu, false);
        break;
    case ZYDIS_MNEMONIC_DAS:
        adjust_packed(vcpu, true);
        break;
    case ZYDIS_MNEMONIC_AAA:
        adjust_unpacked(vcpu, false);
        break;
    case ZYDIS_MNEMONIC_AAS:
        adjust_unpacked(vcpu, true);
        break;
    case ZYDIS_MNEMONIC_AAM:
        if (!base)
            return cpu_fault_plain(vcpu, VECTOR_DE);
        gpr_put(vcpu, GPR_RAX, 2, (uint64_t)(al / base) << 8 | al % base);
        flags_logic(vcpu, al % base, 1);
        break;
    default: /* AAD */
        al = (uint8_t)(al + ah * base);
        gpr_put(vcpu, GPR_RAX, 2, al);
        flags_logic(vcpu, al, 1);
    }
    return CPU_OK;
}

int bound_execute(struct vcpu *vcpu, struct decoded *d) {
    unsigned size = d->operand_size, shift = 64 - 8 * size;
    uint64_t address = address_compute(vcpu, d), low, high;
    int64_t index = (int64_t)(gpr_get(vcpu, &d->op[0]) << shift);
    int result = memory_read(vcpu, d->segment, address, size, &low);
    if (result)
        return result;
    if (index < (int64_t)(low << shift))
        return cpu_fault_plain(vcpu, VECTOR_BR); /* the upper bound is not even read */
    result = memory_read(vcpu, d->segment, (address + size) & d->address_mask, size, &high);
    if (result)
        return result;
    return index > (int64_t)(high << shift) ? cpu_fault_plain(vcpu, VECTOR_BR) : CPU_OK;
}

int arpl_execute(struct vcpu *vcpu, struct decoded *d) {
    if (!(vcpu->mode & MODE_PROTECTED))
        return fault_ud(vcpu);
    uint64_t rpl = gpr_get(vcpu, &d->op[1]) & 3, selector;
    /* The operand is read first and written only if it changes: it need not be writable. */
    int result = operand_read(vcpu, d, 0, &selector);
    if (result)
        return result;
    bool lower = (selector & 3) < rpl;
    if (lower) {
        result = operand_write(vcpu, d, 0, (selector & ~3ull) | rpl);
        if (result)
            return result;
    }
    flags_set(vcpu, lower ? FLAG_ZF : 0, FLAG_ZF);
    return CPU_OK;
}

int salc_execute(struct vcpu *vcpu, struct decoded *d) {
    (void)d;
    gpr_put(vcpu, GPR_RAX, 1, vcpu->rflags & FLAG_CF ? 0xff : 0);
    return CPU_OK;
}
