/* KVM's clocks, steal time, paravirtual EOI, and the hypercall that sends interrupts to many processors.
 *
 * The guest's system time is a pure function of the host's TSC: nanoseconds at model->tsc_hz. Its page
 * therefore changes only when tsc_offset does, and all vCPUs agree by construction (the STABLE bit). Pages
 * are written under the version protocol: odd while they change. */
#include "cpu/kvm_pv.h"
#include "cpu/fpu.h"
#include "cpu/host_clock.h"
#include "cpu/model.h"
#include "cpu/system.h"
#include "mem/guest_mem.h"

#define NS_PER_SECOND 1000000000ull
#define ENABLE 1ull
#define STEAL_RESERVED 0x3eull
#define ASYNC_PF_RESERVED 0x3cull /* also the two ways of delivery that features of their own would bring */
#define FLAG_TSC_STABLE 1u
#define PV_EOI_PENDING 1u

#define CALL_SEND_IPI 10u
#define KVM_NOT_PERMITTED (-1ull)
#define KVM_INVALID (-22ull)
#define KVM_NO_SUCH_CALL (-1000ull)
#define ICR_NOT_PHYSICAL 0xc0800u /* logical, or a shorthand */
#define APIC_ID_BROADCAST 0xffu   /* the bus has no higher IDs */

struct pvclock_page {
    uint32_t version, pad0;
    uint64_t tsc_timestamp, system_time;
    uint32_t multiplier;
    int8_t shift;
    uint8_t flags, pad[2];
};

struct wall_clock_page {
    uint32_t version, seconds, nanoseconds;
};

struct steal_page {
    uint64_t steal;
    uint32_t version, flags;
    uint8_t preempted, pad8[3];
    uint32_t pad[11];
};

_Static_assert(sizeof(struct pvclock_page) == 32, "as the guest maps it");
_Static_assert(sizeof(struct steal_page) == 64, "as the guest maps it");

/* ns = ((ticks << shift) * multiplier) >> 32, a negative shift going right. */
struct scale {
    uint32_t multiplier;
    int8_t shift;
};

static struct scale scale_of(uint64_t tsc_hz) {
    struct scale scale = {0};
    uint64_t hz = tsc_hz;
    for (; hz > 2 * NS_PER_SECOND; scale.shift--)
        hz >>= 1;
    for (; hz <= NS_PER_SECOND; scale.shift++)
        hz <<= 1;
    scale.multiplier = (uint32_t)((NS_PER_SECOND << 32) / hz);
    return scale;
}

static uint64_t scale_ticks(struct scale scale, uint64_t ticks) {
    ticks = scale.shift < 0 ? ticks >> -scale.shift : ticks << scale.shift;
    return (uint64_t)((unsigned __int128)ticks * scale.multiplier >> 32);
}

/* size bytes of RAM at gpa that lie together, or NULL. */
static void *page_at(struct vcpu *vcpu, uint64_t gpa, uint64_t size) {
    uint64_t first = guest_mem_offset(vcpu->mem, gpa), last = guest_mem_offset(vcpu->mem, gpa + size - 1);
    if (first == GUEST_NO_RAM || last != first + size - 1)
        return NULL;
    return vcpu->mem->base + first;
}

static void page_written(struct vcpu *vcpu, void *page, unsigned size) {
    unsigned first = (unsigned)(PAGE_SIZE - ((uint64_t)page & (PAGE_SIZE - 1)));
    vmem_written(vcpu, page, 1);
    if (first < size)
        vmem_written(vcpu, (uint8_t *)page + first, 1);
}

static void version_begin(uint32_t *version) {
    __atomic_store_n(version, (__atomic_load_n(version, __ATOMIC_RELAXED) + 1) | 1, __ATOMIC_SEQ_CST);
}

static void version_end(uint32_t *version) {
    __atomic_store_n(version, __atomic_load_n(version, __ATOMIC_RELAXED) + 1, __ATOMIC_SEQ_CST);
}

static bool offers(const struct vcpu *vcpu, uint32_t feature) {
    for (unsigned i = 0; i < vcpu->model->count; i++)
        if (vcpu->model->entry[i].leaf == LEAF_KVM_FEATURES)
            return vcpu->model->entry[i].eax & feature;
    return false;
}

void kvm_pv_update_clock(struct vcpu *vcpu) {
    if (!(vcpu->kvm_system_time & ENABLE))
        return;
    struct pvclock_page *page = page_at(vcpu, vcpu->kvm_system_time & ~ENABLE, sizeof *page);
    if (!page)
        return;
    struct scale scale = scale_of(vcpu->model->tsc_hz);
    version_begin(&page->version);
    page->tsc_timestamp = vcpu->tsc_offset; /* the guest's TSC at system time 0 */
    page->system_time = 0;
    page->multiplier = scale.multiplier;
    page->shift = scale.shift;
    page->flags = FLAG_TSC_STABLE;
    version_end(&page->version);
    page_written(vcpu, page, sizeof *page);
}

static void write_wall_clock(struct vcpu *vcpu) {
    struct wall_clock_page *page = page_at(vcpu, vcpu->kvm_wall_clock, sizeof *page);
    if (!page)
        return;
    vcpu_fpu_park(vcpu);
    uint64_t boot = host_realtime_ns() - scale_ticks(scale_of(vcpu->model->tsc_hz), host_tsc());
    version_begin(&page->version);
    page->seconds = (uint32_t)(boot / NS_PER_SECOND);
    page->nanoseconds = (uint32_t)(boot % NS_PER_SECOND);
    version_end(&page->version);
    page_written(vcpu, page, sizeof *page);
}

static void steal_clock_start(struct vcpu *vcpu) {
    vcpu_fpu_park(vcpu);
    vcpu->steal_clock = (struct steal_clock){
        .tsc = host_tsc(), .blocked_ticks = vcpu->blocked_ticks, .cpu_ns = host_thread_cpu_ns()};
}

void kvm_pv_account_steal(struct vcpu *vcpu) {
    const struct steal_clock before = vcpu->steal_clock;
    if (LIKELY(!(vcpu->kvm_steal_time & ENABLE)) || host_tsc() - before.tsc < vcpu->model->tsc_hz / 1000)
        return;
    struct steal_page *page = page_at(vcpu, vcpu->kvm_steal_time & ~(ENABLE | STEAL_RESERVED), sizeof *page);
    steal_clock_start(vcpu);
    if (!page)
        return;
    const struct steal_clock *now = &vcpu->steal_clock;
    uint64_t ticks = now->tsc - before.tsc, blocked = now->blocked_ticks - before.blocked_ticks;
    uint64_t wanted = blocked < ticks ? scale_ticks(scale_of(vcpu->model->tsc_hz), ticks - blocked) : 0;
    uint64_t had = now->cpu_ns - before.cpu_ns;
    if (wanted <= had)
        return;
    version_begin(&page->version);
    page->steal += wanted - had;
    version_end(&page->version);
    page_written(vcpu, page, sizeof *page);
}

static uint32_t *eoi_flag(struct vcpu *vcpu) {
    return vcpu->kvm_pv_eoi & ENABLE ? page_at(vcpu, vcpu->kvm_pv_eoi & ~ENABLE, sizeof(uint32_t)) : NULL;
}

void kvm_pv_eoi_arm(struct vcpu *vcpu) {
    uint32_t *flag = eoi_flag(vcpu);
    if (!flag)
        return;
    __atomic_fetch_or(flag, PV_EOI_PENDING, __ATOMIC_SEQ_CST);
    page_written(vcpu, flag, sizeof *flag);
    vcpu->pv_eoi_armed = true;
}

void kvm_pv_eoi_settle_armed(struct vcpu *vcpu) {
    uint32_t *flag = eoi_flag(vcpu);
    vcpu->pv_eoi_armed = false;
    if (!flag)
        return;
    bool is_left = __atomic_fetch_and(flag, ~PV_EOI_PENDING, __ATOMIC_SEQ_CST) & PV_EOI_PENDING;
    page_written(vcpu, flag, sizeof *flag);
    if (!is_left)
        vcpu->env->eoi(vcpu->env->context);
}

/* Interrupts to the processors whose APIC IDs two sets of bits name, from a first ID on. The result is how
 * many took it. */
static uint64_t send_ipis(struct vcpu *vcpu, bool wide) {
    unsigned width = wide ? 64 : 32;
    uint64_t icr = vcpu->gpr[GPR_RSI], id = (uint32_t)vcpu->gpr[GPR_RDX], taken = 0;
    const uint64_t sets[] = {vcpu->gpr[GPR_RBX], vcpu->gpr[GPR_RCX]};
    if (icr & ICR_NOT_PHYSICAL)
        return KVM_INVALID;
    vcpu_fpu_park(vcpu);
    for (unsigned i = 0; i < ARRAY_SIZE(sets); i++, id += width) {
        for (uint64_t set = wide ? sets[i] : (uint32_t)sets[i]; set; set &= set - 1) {
            uint64_t destination = id + (unsigned)__builtin_ctzll(set);
            if (destination < APIC_ID_BROADCAST)
                taken += vcpu->env->send_ipi(vcpu->env->context, (uint32_t)destination, icr >> 8 & 7,
                                             (uint8_t)icr);
        }
    }
    return taken;
}

void kvm_pv_hypercall(struct vcpu *vcpu) {
    bool wide = cpu_is_code64(vcpu);
    uint64_t call = wide ? vcpu->gpr[GPR_RAX] : (uint32_t)vcpu->gpr[GPR_RAX], result = KVM_NO_SUCH_CALL;
    if (vcpu->cpl)
        result = KVM_NOT_PERMITTED;
    else if (call == CALL_SEND_IPI && offers(vcpu, KVM_FEATURE_PV_SEND_IPI) && vcpu->env->send_ipi)
        result = send_ipis(vcpu, wide);
    vcpu->gpr[GPR_RAX] = wide ? result : (uint32_t)result;
}

/* The feature that an MSR comes with; 0: there is no such MSR. */
static uint32_t feature_of(uint32_t index) {
    switch (index) {
    case MSR_KVM_WALL_CLOCK_OLD:
    case MSR_KVM_SYSTEM_TIME_OLD:
        return KVM_FEATURE_CLOCKSOURCE;
    case MSR_KVM_WALL_CLOCK:
    case MSR_KVM_SYSTEM_TIME:
        return KVM_FEATURE_CLOCKSOURCE2;
    case MSR_KVM_ASYNC_PF:
        return KVM_FEATURE_ASYNC_PF;
    case MSR_KVM_STEAL_TIME:
        return KVM_FEATURE_STEAL_TIME;
    case MSR_KVM_EOI:
        return KVM_FEATURE_PV_EOI;
    default:
        return 0;
    }
}

int kvm_pv_read(struct vcpu *vcpu, uint32_t index, uint64_t *value) {
    if (!offers(vcpu, feature_of(index)))
        return cpu_fault(vcpu, VECTOR_GP, 0);
    switch (index) {
    case MSR_KVM_WALL_CLOCK_OLD:
    case MSR_KVM_WALL_CLOCK:
        *value = vcpu->kvm_wall_clock;
        break;
    case MSR_KVM_SYSTEM_TIME_OLD:
    case MSR_KVM_SYSTEM_TIME:
        *value = vcpu->kvm_system_time;
        break;
    case MSR_KVM_ASYNC_PF:
        *value = vcpu->kvm_async_pf;
        break;
    case MSR_KVM_STEAL_TIME:
        *value = vcpu->kvm_steal_time;
        break;
    default:
        *value = vcpu->kvm_pv_eoi;
    }
    return CPU_OK;
}

/* Bits of the value that are not an address or the switch. */
static uint64_t reserved_bits(uint32_t index) {
    switch (index) {
    case MSR_KVM_WALL_CLOCK_OLD:
    case MSR_KVM_WALL_CLOCK:
        return 3;
    case MSR_KVM_ASYNC_PF:
        return ASYNC_PF_RESERVED;
    case MSR_KVM_STEAL_TIME:
        return STEAL_RESERVED;
    default:
        return 2;
    }
}

int kvm_pv_write(struct vcpu *vcpu, uint32_t index, uint64_t value) {
    if (!offers(vcpu, feature_of(index)) || value & reserved_bits(index))
        return cpu_fault(vcpu, VECTOR_GP, 0);
    switch (index) {
    case MSR_KVM_WALL_CLOCK_OLD:
    case MSR_KVM_WALL_CLOCK:
        vcpu->kvm_wall_clock = value;
        write_wall_clock(vcpu);
        break;
    case MSR_KVM_SYSTEM_TIME_OLD:
    case MSR_KVM_SYSTEM_TIME:
        vcpu->kvm_system_time = value;
        kvm_pv_update_clock(vcpu);
        break;
    case MSR_KVM_ASYNC_PF:
        vcpu->kvm_async_pf = value;
        break;
    case MSR_KVM_STEAL_TIME:
        vcpu->kvm_steal_time = value;
        steal_clock_start(vcpu);
        break;
    default:
        kvm_pv_eoi_settle(vcpu);
        vcpu->kvm_pv_eoi = value;
    }
    return CPU_OK;
}
