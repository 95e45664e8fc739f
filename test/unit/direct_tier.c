/* The tier's policy: who computes goes up, who calls often stays or comes back, and waits before the next
 * try. */
#define _GNU_SOURCE
#include "cpu_guest.h"

#include "direct/private.h"

#include <string.h>
#include <time.h>
#include <unistd.h>

#define ROUND_TRIP_NS 20000
#define ROOT 0x40000ull

struct fixture {
    struct guest guest;
    struct direct_vcpu direct;
};

static uint64_t now_ns(void) {
    struct timespec now;
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &now);
    return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

static void create(struct fixture *fixture, enum direct_policy policy) {
    guest_create(&fixture->guest, true);
    memset(&fixture->direct, 0, sizeof fixture->direct);
    fixture->direct.options.policy = policy;
    fixture->direct.hold = UINT64_MAX;
    fixture->direct.costs.round_trip_ns = ROUND_TRIP_NS;
    fixture->direct.cycles_per_us = fixture->guest.model.tsc_hz / 1000000;
    fixture->guest.vcpu.direct = &fixture->direct;
    fixture->guest.vcpu.cr3 = ROOT;
    CHECK(fixture->direct.cycles_per_us);
}

/* So much processor time in the DBT, with that much of it between two entries of ring 3. */
static void compute(struct fixture *fixture, uint64_t ns, uint64_t between) {
    struct vcpu *vcpu = &fixture->guest.vcpu;
    uint64_t begin = now_ns(), next = begin + between;
    for (uint64_t now = begin; now < begin + ns; now = now_ns()) {
        for (; next <= now; next += between)
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
        usleep(3000);
        (void)tier_wants_direct(&fixture.guest.vcpu);
    }
    CHECK_EQUAL(fixture.direct.stats.moves_up, 0);
    guest_destroy(&fixture.guest);
}

/* Stops of two stubs by turns: each is judged by its own time. */
static void test_down(void) {
    struct fixture fixture;
    struct direct_stub stub = {.pid = getpid()};
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
    struct direct_stub stub = {.pid = getpid()};
    create(&fixture, DIRECT_AUTO);
    compute(&fixture, 20000000, 100 * ROUND_TRIP_NS);
    for (int i = 0; i < 10; i++) {
        uint64_t until = now_ns() + 1000000;
        while (now_ns() < until)
            continue;
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
