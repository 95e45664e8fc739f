/* The interpreter as an engine under test. */
#include "engine.h"

#include "guest.h"
#include "interp/interp.h"
#include "signals.h"

#include <errno.h>
#include <stdlib.h>

#define STEPS_MAX 20000000u /* five for each of the oracle's ticks */

struct interp_engine {
    struct guest guest;
    struct vcpu vcpu;
};

static bool on_signal(struct vcpu *vcpu, int signal, siginfo_t *info, void *context) {
    (void)vcpu;
    return interp_handle_signal(signal, info, context);
}

/* Steps are counted: nothing to do. */
static void on_alarm(struct vcpu *vcpu) {
    (void)vcpu;
}

static void interp_engine_destroy(void *context) {
    struct interp_engine *engine = context;
    if (engine->vcpu.interp)
        interp_vcpu_destroy(&engine->vcpu);
    guest_remove_vcpu(&engine->vcpu);
    guest_destroy(&engine->guest);
    free(engine);
}

static int interp_engine_create(void **context) {
    struct interp_engine *engine = aligned_alloc(64, align_up(sizeof *engine, 64));
    if (!engine)
        return -ENOMEM;
    *engine = (struct interp_engine){0};
    int error = guest_create(&engine->guest);
    if (error) {
        free(engine);
        return error;
    }
    error = guest_add_vcpu(&engine->guest, &engine->vcpu);
    if (!error)
        error = interp_vcpu_create(&engine->vcpu);
    if (!error)
        error = signals_install();
    if (error) {
        interp_engine_destroy(engine);
        return error;
    }
    *context = engine;
    return 0;
}

static int interp_engine_run(void *context, const struct diff_case *test, struct diff_state *result) {
    struct interp_engine *engine = context;
    struct vcpu *vcpu = &engine->vcpu;
    unsigned steps = 0;
    guest_load(&engine->guest, vcpu, test);
    signals_enter(vcpu, on_signal, on_alarm, 3600);
    while (!guest_is_over(vcpu) && steps++ < STEPS_MAX)
        if (interp_step(vcpu) == INTERP_SHUTDOWN)
            break;
    signals_enter(NULL, NULL, NULL, 0);
    guest_store(&engine->guest, vcpu, test, steps > STEPS_MAX, result);
    return 0;
}

const struct diff_engine interp_engine = {
    .name = "interp",
    .summary = "the interpreter",
    .create = interp_engine_create,
    .destroy = interp_engine_destroy,
    .run = interp_engine_run,
};
