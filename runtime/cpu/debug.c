/* Debug registers and breakpoint matching (SDM vol. 3, chapter 17). */
#include "cpu/system.h"

#define DR6_FIXED 0xffff0ff0ull
#define DR6_WRITABLE 0xe00full
#define DR6_BD (1ull << 13)
#define DR7_FIXED 0x400ull
#define DR7_WRITABLE 0xffff23ffull
#define DR7_GD (1ull << 13)

enum breakpoint_kind { BREAK_CODE = 0, BREAK_WRITE = 1, BREAK_IO = 2, BREAK_ACCESS = 3 };

/* What every MOV to or from a debug register checks first. n: with DR4 and DR5 resolved. */
static int check_access(struct vcpu *vcpu, unsigned *n) {
    if (*n > 7)
        return cpu_fault_plain(vcpu, VECTOR_UD);
    if (*n == 4 || *n == 5) {
        if (vcpu->cr4 & CR4_DE)
            return cpu_fault_plain(vcpu, VECTOR_UD);
        *n += 2;
    }
    if (vcpu->cpl)
        return cpu_fault(vcpu, VECTOR_GP, 0);
    if (vcpu->dr[7] & DR7_GD)
        return cpu_fault_debug(vcpu, DR6_BD);
    return CPU_OK;
}

int cpu_read_dr(struct vcpu *vcpu, unsigned n, uint64_t *value) {
    int result = check_access(vcpu, &n);
    if (!result)
        *value = vcpu->dr[n];
    return result;
}

int cpu_write_dr(struct vcpu *vcpu, unsigned n, uint64_t value) {
    int result = check_access(vcpu, &n);
    if (result)
        return result;
    if (n >= 6) {
        if (value >> 32)
            return cpu_fault(vcpu, VECTOR_GP, 0);
        value = n == 6 ? (value & DR6_WRITABLE) | DR6_FIXED : (value & DR7_WRITABLE) | DR7_FIXED;
    }
    vcpu->dr[n] = value;
    if (n == 7)
        cpu_mode_changed(vcpu);
    return CPU_OK;
}

static enum breakpoint_kind kind_of(uint64_t dr7, unsigned i) {
    return dr7 >> (16 + i * 4) & 3;
}

/* Bytes: LEN 0, 1, 3 are 1, 2, 4; 2 is 8. */
static uint64_t length_of(uint64_t dr7, unsigned i) {
    static const uint8_t lengths[] = {1, 2, 8, 4};
    return lengths[dr7 >> (18 + i * 4) & 3];
}

static bool is_enabled(uint64_t dr7, unsigned i) {
    return dr7 >> (i * 2) & 3;
}

static bool overlaps(const struct vcpu *vcpu, unsigned i, uint64_t address, uint64_t size) {
    uint64_t length = length_of(vcpu->dr[7], i), start = vcpu->dr[i] & ~(length - 1);
    return address - start < length || start - address < size;
}

/* SDM vol. 3, 17.2.4: once some breakpoint hits, the bits of others that match are set, too, enabled or not.
 */
static uint64_t matches(const struct vcpu *vcpu, uint64_t address, unsigned size, unsigned kinds) {
    uint64_t hit = 0, dr7 = vcpu->dr[7];
    bool any = false;
    if (LIKELY(!(dr7 & 0xff)))
        return 0;
    for (unsigned i = 0; i < 4; i++) {
        if (!(kinds >> kind_of(dr7, i) & 1) || !overlaps(vcpu, i, address, size))
            continue;
        hit |= 1ull << i;
        any |= is_enabled(dr7, i);
    }
    return any ? hit : 0;
}

uint64_t cpu_data_breakpoint(const struct vcpu *vcpu, uint64_t linear, unsigned size, bool is_write) {
    return matches(vcpu, linear, size, 1u << BREAK_ACCESS | (is_write ? 1u << BREAK_WRITE : 0));
}

uint64_t cpu_io_breakpoint(const struct vcpu *vcpu, uint16_t port, unsigned size) {
    return vcpu->cr4 & CR4_DE ? matches(vcpu, port, size, 1u << BREAK_IO) : 0;
}

uint64_t cpu_code_breakpoint(const struct vcpu *vcpu, uint64_t linear) {
    uint64_t hit = 0, dr7 = vcpu->dr[7];
    bool any = false;
    if (LIKELY(!(dr7 & 0xff)))
        return 0;
    for (unsigned i = 0; i < 4; i++) {
        if (kind_of(dr7, i) != BREAK_CODE || vcpu->dr[i] != linear)
            continue;
        hit |= 1ull << i;
        any |= is_enabled(dr7, i);
    }
    return any ? hit : 0;
}
