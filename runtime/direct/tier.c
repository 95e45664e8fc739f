/* Where ring 3 runs. Compiled without vector code: asked while the guest's extended state is live.
 *
 * An address space begins in the DBT. It moves up when, over a window of time, it entered ring 3 so rarely
 * that the ways in and out of a stub would cost little beside what runs between them; it moves down when its
 * stub stops more often than that. Both limits are multiples of the round trip as it was measured on this
 * host. A stop that only mapped pages counts less: it is paid once, and the pages stay. One that came back
 * waits before it may go again, longer each time until a window pays.
 */
#include "direct/private.h"

#define UP_ROUND_TRIPS 12  /* time between entries of ring 3 that is worth a stub */
#define DOWN_ROUND_TRIPS 5 /* time between stops that is not */
#define WINDOW_US 2000
#define BACKOFF_US 8000
#define BACKOFF_STEPS 4
#define WEIGHT_STOP 8 /* in the unit of tier_record.exits */
#define WEIGHT_MAPPED 1
#define EXITS_TO_JUDGE (32 * WEIGHT_STOP)

void tier_calibrate(struct direct_vcpu *direct) {
    uint64_t trip = direct->stats.round_trip_ns * direct->cycles_per_us / 1000;
    direct->period_up = UP_ROUND_TRIPS * trip;
    direct->period_down = DOWN_ROUND_TRIPS * trip;
    direct->window = WINDOW_US * direct->cycles_per_us;
}

static struct tier_record *record_of(struct direct_vcpu *direct, uint64_t root) {
    return &direct->tier[(root >> PAGE_SHIFT) * 0x9e3779b97f4a7c15ull >> 56];
}

static void start_window(struct vcpu *vcpu, struct tier_record *record, uint64_t now) {
    record->window_start = now;
    record->entries = vcpu->user_entries;
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
    start_window(vcpu, record, __builtin_ia32_rdtsc());
    return record;
}

static void look_up(struct vcpu *vcpu, struct tier_record *record) {
    struct direct_vcpu *direct = vcpu->direct;
    uint64_t now = __builtin_ia32_rdtsc(), elapsed = now - record->window_start;
    if (elapsed < direct->window)
        return;
    uint64_t entries = vcpu->user_entries - record->entries;
    if (entries * direct->period_up < elapsed && now >= record->not_before) {
        record->is_direct = true;
        direct->stats.moves_up++;
    }
    start_window(vcpu, record, now);
}

static void move_down(struct vcpu *vcpu, struct tier_record *record, uint64_t now) {
    struct direct_vcpu *direct = vcpu->direct;
    record->is_direct = false;
    record->not_before = now + ((uint64_t)BACKOFF_US * direct->cycles_per_us << record->failures);
    record->failures += record->failures < BACKOFF_STEPS;
    direct->stats.moves_down++;
}

void tier_count_exit(struct vcpu *vcpu, bool only_mapped) {
    struct direct_vcpu *direct = vcpu->direct;
    if (direct->options.policy == DIRECT_ALWAYS)
        return;
    struct tier_record *record = current_record(vcpu);
    uint64_t now = __builtin_ia32_rdtsc(), elapsed = now - record->window_start;
    record->exits += only_mapped ? WEIGHT_MAPPED : WEIGHT_STOP;
    if (record->exits < EXITS_TO_JUDGE && elapsed < direct->window)
        return;
    if (record->exits * direct->period_down > elapsed * WEIGHT_STOP)
        move_down(vcpu, record, now);
    else if (elapsed >= direct->window)
        record->failures = 0;
    start_window(vcpu, record, now);
}

bool tier_wants_direct(struct vcpu *vcpu) {
    struct direct_vcpu *direct = vcpu->direct;
    if (direct->hold == vcpu->user_entries || direct->broken)
        return false;
    if (direct->options.policy == DIRECT_AUTO) {
        struct tier_record *record = current_record(vcpu);
        if (!record->is_direct) {
            look_up(vcpu, record);
            if (!record->is_direct)
                return false;
        }
    }
    return state_fits(vcpu);
}
