/* The tier's policy: who computes goes up, who calls often stays or comes back, and waits before the next
 * try. */
#define _GNU_SOURCE
#include "cpu_guest.h"

#include "direct/clocks.h"
#include "direct/private.h"

#include <string.h>

#define ROUND_TRIP_NS 20000
#define CYCLES_PER_US 3000
#define STUB_PID 4711
#define ROOT 0x40000ull

struct fixture {
    struct guest guest;
    struct direct_vcpu direct;
};

/* The clocks stand unless a test turns them, so nothing depends on how busy the host is. */
static uint64_t wall_ns, thread_ns, stub_ns;

uint64_t clocks_cycles(void) {
    return wall_ns * CYCLES_PER_US / 1000;
}

uint64_t clocks_thread_ns(void) {
    return thread_ns;
}

uint64_t clocks_process_ns(pid_t pid) {
    CHECK_EQUAL(pid, STUB_PID);
    return stub_ns;
}

static void create(struct fixture *fixture, enum direct_policy policy) {
    guest_create(&fixture->guest, true);
    memset(&fixture->direct, 0, sizeof fixture->direct);
    fixture->direct.options.policy = policy;
    fixture->direct.hold = UINT64_MAX;
    fixture->direct.costs.round_trip_ns = ROUND_TRIP_NS;
    fixture->direct.cycles_per_us = CYCLES_PER_US;
    fixture->guest.vcpu.direct = &fixture->direct;
    fixture->guest.vcpu.cr3 = ROOT;
}

/* So much processor time in the DBT, with that much of it between two entries of ring 3. */
static void compute(struct fixture *fixture, uint64_t ns, uint64_t between) {
    struct vcpu *vcpu = &fixture->guest.vcpu;
    for (uint64_t done = 0; done < ns; done += between) {
        wall_ns += between;
        thread_ns += between;
        vcpu->user_entries++;
        (void)tier_wants_direct(vcpu);
    }
}

static void test_up(void) {
    struct fixture fixture;
    create(&fixture, DIRECT_AUTO);
    compute(&fixture, 20000000, 2 * ROUND_TRIP_NS);
    CHECK_EQUAL(fixture.direct.stats.moves_up, 0);
    compute(&fixture, 20000000, 100 * ROUND_TRIP_NS);
    CHECK_EQUAL(fixture.direct.stats.moves_up, 1);
    CHECK(fixture.direct.current->root == ROOT && fixture.direct.current->is_direct);
    /* Another address space begins anew. */
    fixture.guest.vcpu.cr3 = ROOT + PAGE_SIZE;
    (void)tier_wants_direct(&fixture.guest.vcpu);
    CHECK(!fixture.direct.current->is_direct);
    guest_destroy(&fixture.guest);
}

/* Slices that other processes share are no computing, however long they last on the wall's clock. */
static void test_asleep(void) {
    struct fixture fixture;
    create(&fixture, DIRECT_AUTO);
    (void)tier_wants_direct(&fixture.guest.vcpu);
    for (int i = 0; i < 10; i++) {
        fixture.guest.vcpu.user_entries++;
        wall_ns += 3000000;
        thread_ns += 30000;
        (void)tier_wants_direct(&fixture.guest.vcpu);
    }
    CHECK_EQUAL(fixture.direct.stats.moves_up, 0);
    guest_destroy(&fixture.guest);
}

/* Stops of two stubs by turns: each is judged by its own time. */
static void test_down(void) {
    struct fixture fixture;
    struct direct_stub stub = {.pid = STUB_PID};
    struct vcpu *vcpu = &fixture.guest.vcpu;
    create(&fixture, DIRECT_AUTO);
    compute(&fixture, 20000000, 100 * ROUND_TRIP_NS);
    CHECK_EQUAL(fixture.direct.stats.moves_up, 1);
    for (int i = 0; i < 200; i++) {
        vcpu->cr3 = ROOT;
        (void)tier_goes_on(vcpu, &stub, false);
        vcpu->cr3 = ROOT + PAGE_SIZE;
        (void)tier_wants_direct(vcpu);
    }
    CHECK_EQUAL(fixture.direct.stats.moves_down, 1);
    vcpu->cr3 = ROOT;
    (void)tier_wants_direct(vcpu);
    CHECK(!fixture.direct.current->is_direct && fixture.direct.current->failures == 1);
    fixture.direct.current->not_before = UINT64_MAX;
    compute(&fixture, 20000000, 100 * ROUND_TRIP_NS);
    CHECK_EQUAL(fixture.direct.stats.moves_up, 1);
    guest_destroy(&fixture.guest);
}

/* Stops that map pages are paid once; where all is asked for, nothing is judged. */
static void test_stays(void) {
    struct fixture fixture;
    struct direct_stub stub = {.pid = STUB_PID};
    create(&fixture, DIRECT_AUTO);
    compute(&fixture, 20000000, 100 * ROUND_TRIP_NS);
    for (int i = 0; i < 10; i++) {
        wall_ns += 1000000;
        stub_ns += 1000000;
        (void)tier_goes_on(&fixture.guest.vcpu, &stub, true);
    }
    CHECK_EQUAL(fixture.direct.stats.moves_down, 0);
    guest_destroy(&fixture.guest);
    create(&fixture, DIRECT_ALWAYS);
    for (int i = 0; i < 500; i++)
        (void)tier_goes_on(&fixture.guest.vcpu, &stub, false);
    CHECK_EQUAL(fixture.direct.stats.moves_down, 0);
    guest_destroy(&fixture.guest);
}

int main(void) {
    test_up();
    test_asleep();
    test_down();
    test_stays();
    return check_result();
}
