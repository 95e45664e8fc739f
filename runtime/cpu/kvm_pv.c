/* KVM's clocks and steal time.
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
#define FLAG_TSC_STABLE 1u

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

void kvm_pv_add_steal(struct vcpu *vcpu, uint64_t ns) {
    if (!(vcpu->kvm_steal_time & ENABLE))
        return;
    struct steal_page *page = page_at(vcpu, vcpu->kvm_steal_time & ~(ENABLE | STEAL_RESERVED), sizeof *page);
    if (!page)
        return;
    version_begin(&page->version);
    page->steal += ns;
    page->preempted = 0;
    version_end(&page->version);
    page_written(vcpu, page, sizeof *page);
}

int kvm_pv_read(struct vcpu *vcpu, uint32_t index, uint64_t *value) {
    switch (index) {
    case MSR_KVM_WALL_CLOCK:
        *value = vcpu->kvm_wall_clock;
        return offers(vcpu, KVM_FEATURE_CLOCKSOURCE2) ? CPU_OK : cpu_fault(vcpu, VECTOR_GP, 0);
    case MSR_KVM_SYSTEM_TIME:
        *value = vcpu->kvm_system_time;
        return offers(vcpu, KVM_FEATURE_CLOCKSOURCE2) ? CPU_OK : cpu_fault(vcpu, VECTOR_GP, 0);
    case MSR_KVM_STEAL_TIME:
        *value = vcpu->kvm_steal_time;
        return offers(vcpu, KVM_FEATURE_STEAL_TIME) ? CPU_OK : cpu_fault(vcpu, VECTOR_GP, 0);
    case MSR_KVM_EOI:
        *value = vcpu->kvm_pv_eoi;
        return offers(vcpu, KVM_FEATURE_PV_EOI) ? CPU_OK : cpu_fault(vcpu, VECTOR_GP, 0);
    default:
        return cpu_fault(vcpu, VECTOR_GP, 0);
    }
}

int kvm_pv_write(struct vcpu *vcpu, uint32_t index, uint64_t value) {
    switch (index) {
    case MSR_KVM_WALL_CLOCK:
        if (!offers(vcpu, KVM_FEATURE_CLOCKSOURCE2) || value & 3)
            return cpu_fault(vcpu, VECTOR_GP, 0);
        vcpu->kvm_wall_clock = value;
        write_wall_clock(vcpu);
        return CPU_OK;
    case MSR_KVM_SYSTEM_TIME:
        if (!offers(vcpu, KVM_FEATURE_CLOCKSOURCE2) || value & 2)
            return cpu_fault(vcpu, VECTOR_GP, 0);
        vcpu->kvm_system_time = value;
        kvm_pv_update_clock(vcpu);
        return CPU_OK;
    case MSR_KVM_STEAL_TIME:
        if (!offers(vcpu, KVM_FEATURE_STEAL_TIME) || value & STEAL_RESERVED)
            return cpu_fault(vcpu, VECTOR_GP, 0);
        vcpu->kvm_steal_time = value;
        kvm_pv_add_steal(vcpu, 0);
        return CPU_OK;
    case MSR_KVM_EOI:
        if (!offers(vcpu, KVM_FEATURE_PV_EOI) || value & 2)
            return cpu_fault(vcpu, VECTOR_GP, 0);
        vcpu->kvm_pv_eoi = value;
        return CPU_OK;
    default:
        return cpu_fault(vcpu, VECTOR_GP, 0);
    }
}
