#include "cpu/pending.h"
#include "cpu/fpu.h"
#include "cpu/kvm_pv.h"
#include "cpu/system.h"

static void deliver_irq(struct vcpu *vcpu) {
    const struct vcpu_env *env = vcpu->env;
    __atomic_fetch_and(&vcpu->requests, ~REQUEST_IRQ, __ATOMIC_SEQ_CST);
    if (env->irq_pending(env->context) < 0)
        return;
    vcpu_fpu_park(vcpu);
    kvm_pv_account_steal(vcpu);
    int vector = env->irq_ack(env->context);
    if (vector >= 0)
        cpu_deliver_interrupt(vcpu, (uint8_t)vector);
    if (env->irq_pending(env->context) >= 0)
        __atomic_fetch_or(&vcpu->requests, REQUEST_IRQ, __ATOMIC_SEQ_CST);
}

/* One NMI goes from waiting to being in service, in one step: a sender in between would count wrongly. The
 * request may come after what it was made for was taken, so it does not say that one waits. */
static void deliver_nmi(struct vcpu *vcpu) {
    __atomic_fetch_and(&vcpu->requests, ~REQUEST_NMI, __ATOMIC_SEQ_CST);
    uint32_t nmis = __atomic_load_n(&vcpu->nmis, __ATOMIC_SEQ_CST);
    do {
        if (!(nmis & NMIS_WAITING))
            return;
    } while (!__atomic_compare_exchange_n(&vcpu->nmis, &nmis, (nmis - 1) | NMI_IN_SERVICE, false,
                                          __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST));
    cpu_deliver_nmi(vcpu);
    if ((nmis & NMIS_WAITING) > 1)
        __atomic_fetch_or(&vcpu->requests, REQUEST_NMI, __ATOMIC_SEQ_CST);
}

void vcpu_deliver_pending(struct vcpu *vcpu) {
    uint32_t requests = __atomic_load_n(&vcpu->requests, __ATOMIC_ACQUIRE);
    if (requests & REQUEST_CODE) {
        __atomic_fetch_and(&vcpu->requests, ~REQUEST_CODE, __ATOMIC_SEQ_CST);
        vcpu->env->serve_code_requests(vcpu->env->context, vcpu);
    }
    if (vcpu->irq_shadow)
        return;
    if (requests & REQUEST_NMI && !vcpu->nmi_blocked) {
        deliver_nmi(vcpu);
    } else if (requests & REQUEST_IRQ && vcpu->rflags & FLAG_IF) {
        deliver_irq(vcpu);
    }
}
