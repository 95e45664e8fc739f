/* A host that cannot return to a program with a non-canonical RSP faults at whatever instruction a tick of
 * its timer met. In the translator's stubs, where the guest's RSP may be such a one, that is no end. */
#define _GNU_SOURCE
#include "devices_check.h"

#include "cpu/model.h"
#include "dbt/private.h"
#include "mem/guest_mem.h"

#include <signal.h>
#include <string.h>
#include <ucontext.h>

#define HOST_RSP 0x7000000000ull
#define GUEST_RSP 0x8123456789abcdefull

static struct vcpu *vcpu;

/* Where a fault at pc with that RSP goes on; 0: it is nobody's. */
static uint64_t fault_at(const uint8_t *pc, uint64_t *rsp) {
    ucontext_t context;
    siginfo_t info = {.si_signo = SIGSEGV, .si_code = SI_KERNEL};
    memset(&context, 0, sizeof context);
    context.uc_mcontext.gregs[REG_RIP] = (greg_t)pc;
    context.uc_mcontext.gregs[REG_RSP] = (greg_t)*rsp;
    bool served = dbt_handle_signal(vcpu, SIGSEGV, &info, &context);
    *rsp = (uint64_t)context.uc_mcontext.gregs[REG_RSP];
    return served ? (uint64_t)context.uc_mcontext.gregs[REG_RIP] : 0;
}

int main(void) {
    const struct dbt_options options = {.code_cache_size = MIB};
    vcpu = dbt_area_create();
    CHECK(vcpu && !dbt_vcpu_create(vcpu, &options));
    struct dbt_vcpu *dbt = vcpu->dbt;
    struct dbt_hot *hot = &dbt->area->hot;
    hot->host_rsp = HOST_RSP;
    const uint8_t *stubs[] = {dbt->stub_memory, dbt->stub_exit,
                              dbt->rx + dbt->stub_stack[1][VMEM_READ][GPR_RCX].miss};
    for (unsigned i = 0; i < ARRAY_SIZE(stubs); i++) {
        uint64_t rsp = GUEST_RSP;
        CHECK_EQUAL(fault_at(stubs[i], &rsp), (uint64_t)dbt->stub_carry_on);
        CHECK_EQUAL(rsp, HOST_RSP);
        CHECK_EQUAL(hot->kept_rsp, GUEST_RSP);
        CHECK_EQUAL(hot->kept_pc, (uint64_t)stubs[i]);
        /* Once more, before the detour has led there. */
        rsp = GUEST_RSP;
        CHECK_EQUAL(fault_at(dbt->stub_carried, &rsp), (uint64_t)dbt->stub_carry_on);
        CHECK_EQUAL(hot->kept_pc, (uint64_t)stubs[i]);
        /* With the host's own stack it would be a fault of the stub. */
        rsp = HOST_RSP;
        CHECK_EQUAL(fault_at(stubs[i], &rsp), 0);
    }
    uint64_t rsp = GUEST_RSP;
    CHECK_EQUAL(fault_at(dbt->rx + dbt->size, &rsp), 0);
    dbt_vcpu_destroy(vcpu);
    dbt_area_destroy(vcpu);
    return check_result();
}
