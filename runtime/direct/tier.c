/* Where ring 3 runs. Compiled without vector code: asked while the guest's extended state is live.
 *
 * An address space begins in the DBT. It moves up when, over a window, its vCPU's thread computed so long for
 * each entry of ring 3 that the ways in and out of a stub would cost little beside it; it moves down when its
 * stub computes for less than that between two stops. Both limits are multiples of the round trip as it was
 * measured on this host. Time is the processor's that the threads had, not the clock's: on a busy host every
 * wait for a stub can cost a time slice of somebody else's, and would look like work. A stop that only mapped
 * pages counts less: it is paid once, and the pages stay. An address space that came back waits before it may
 * go again, longer each time until a window pays.
 */
#include "direct/clocks.h"
#include "direct/private.h"

#define UP_ROUND_TRIPS 12  /* time between entries of ring 3 that is worth a stub */
#define DOWN_ROUND_TRIPS 5 /* time between stops that is not */
#define WINDOW_US 2000
#define BACKOFF_US 8000
#define BACKOFF_STEPS 7
#define WEIGHT_STOP 8 /* in the unit of tier_record.exits */
#define WEIGHT_MAPPED 1
#define EXITS_TO_JUDGE (32 * WEIGHT_STOP)

static struct tier_record *record_of(struct direct_vcpu *direct, uint64_t root) {
    return &direct->tier[(root >> PAGE_SHIFT) * 0x9e3779b97f4a7c15ull >> 56];
}

/* An address space in the DBT: no system call is made for one that enters ring 3 too often anyway. */
static void start_window(struct vcpu *vcpu, struct tier_record *record, bool by_thread) {
    record->window_start = clocks_cycles();
    record->entries = vcpu->user_entries;
    record->by_thread = by_thread;
    if (by_thread)
        record->cpu_ns = clocks_thread_ns();
}

/* In a stub, whose clock stands while others run: the window lasts over those. */
static void start_stub_window(struct tier_record *record, pid_t pid) {
    record->window_start = clocks_cycles();
    record->pid = pid;
    record->cpu_ns = clocks_process_ns(pid);
    record->exits = 0;
}

static struct tier_record *current_record(struct vcpu *vcpu) {
    struct direct_vcpu *direct = vcpu->direct;
    uint64_t root = direct_root(vcpu);
    struct tier_record *record = direct->current;
    if (LIKELY(record && record->root == root))
        return record;
    record = record_of(direct, root);
    if (record->root != root)
        *record = (struct tier_record){.root = root};
    /* Another one ran meanwhile. */
    direct->current = record;
    if (!record->is_direct)
        start_window(vcpu, record, false);
    return record;
}

static void look_up(struct vcpu *vcpu, struct tier_record *record) {
    struct direct_vcpu *direct = vcpu->direct;
    uint64_t now = clocks_cycles(), elapsed = now - record->window_start;
    if (elapsed < WINDOW_US * direct->cycles_per_us)
        return;
    uint64_t needed = (vcpu->user_entries - record->entries) * UP_ROUND_TRIPS * direct->costs.round_trip_ns;
    bool promising = now >= record->not_before && needed < elapsed * 1000 / direct->cycles_per_us;
    /* By the clock on the wall; the next window is judged by the thread's. */
    if (promising && record->by_thread && needed < clocks_thread_ns() - record->cpu_ns) {
        record->is_direct = true;
        record->pid = 0;
        direct->stats.moves_up++;
        spaces_charge(direct, record->root);
        return;
    }
    start_window(vcpu, record, promising);
}

static void move_down(struct vcpu *vcpu, struct tier_record *record, uint64_t now) {
    struct direct_vcpu *direct = vcpu->direct;
    record->is_direct = false;
    record->not_before = now + ((uint64_t)BACKOFF_US * direct->cycles_per_us << record->failures);
    record->failures += record->failures < BACKOFF_STEPS;
    direct->stats.moves_down++;
    start_window(vcpu, record, false);
}

bool tier_goes_on(struct vcpu *vcpu, const struct direct_stub *stub, bool only_mapped) {
    struct direct_vcpu *direct = vcpu->direct;
    if (direct->options.policy == DIRECT_ALWAYS || !stub->pid)
        return true;
    struct tier_record *record = current_record(vcpu);
    if (!record->is_direct)
        return false;
    if (record->pid != stub->pid) {
        start_stub_window(record, stub->pid);
        return true;
    }
    uint64_t now = clocks_cycles(), elapsed = now - record->window_start;
    record->exits += only_mapped ? WEIGHT_MAPPED : WEIGHT_STOP;
    if (record->exits < EXITS_TO_JUDGE && elapsed < WINDOW_US * direct->cycles_per_us)
        return true;
    uint64_t trip = stub->cpuid_faults ? direct->family.cpuid_trip_ns : direct->costs.round_trip_ns;
    uint64_t computed = clocks_process_ns(stub->pid) - record->cpu_ns;
    if (record->exits * DOWN_ROUND_TRIPS * trip > computed * WEIGHT_STOP) {
        move_down(vcpu, record, now);
        return false;
    }
    record->failures = 0;
    start_stub_window(record, stub->pid);
    return true;
}

bool tier_wants_direct(struct vcpu *vcpu) {
    struct direct_vcpu *direct = vcpu->direct;
    vcpu->tier_settled = direct->broken;
    if (direct->hold == vcpu->user_entries || direct->broken)
        return false;
    if (direct->options.policy == DIRECT_AUTO) {
        struct tier_record *record = current_record(vcpu);
        if (!record->is_direct) {
            look_up(vcpu, record);
            vcpu->tier_settled = !record->is_direct; /* windows are long: the next tick of time will do */
            if (!record->is_direct)
                return false;
        }
    }
    return state_fits(vcpu);
}
