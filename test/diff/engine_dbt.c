/* The dynamic binary translator as an engine under test, with the interpreter for what it leaves to it. */
#include "engine_dbt.h"

#include "dbt/dbt.h"
#include "guest.h"
#include "interp/interp.h"
#include "signals.h"

#include <errno.h>
#include <stdlib.h>

#define CODE_CACHE_SIZE (16 * MIB)
#define STEPS_MAX 2000000u
#define SECONDS_MAX 3u

struct dbt_engine {
    struct guest guest;
    struct vcpu *vcpu;
    bool has_vcpu, has_dbt;
};

static bool on_signal(struct vcpu *vcpu, int signal, siginfo_t *info, void *context) {
    return interp_handle_signal(signal, info, context) || dbt_handle_signal(vcpu, signal, info, context);
}

static void on_alarm(struct vcpu *vcpu) {
    __atomic_fetch_or(&vcpu->requests, REQUEST_STOP, __ATOMIC_SEQ_CST);
    dbt_kick_from_handler(vcpu);
}

/* guest_mem.on_code_written: the tester's own refill of the pages between two cases, and stores of streams.
 */
static void on_code_written(void *context, uint64_t ram_offset, uint64_t length) {
    struct dbt_engine *engine = context;
    struct guest_mem *mem = &engine->guest.mem;
    for (uint64_t page = ram_offset & PAGE_MASK; page < ram_offset + length; page += PAGE_SIZE) {
        uint64_t first = page < ram_offset ? ram_offset : page;
        uint64_t end = page + PAGE_SIZE < ram_offset + length ? page + PAGE_SIZE : ram_offset + length;
        dbt_code_written(engine->vcpu, first, end - first);
        if (!mem->code_holders[page >> PAGE_SHIFT])
            __atomic_fetch_and(&mem->state[page >> PAGE_SHIFT], (uint8_t)~PAGE_HOLDS_CODE, __ATOMIC_SEQ_CST);
    }
}

static void dbt_engine_destroy(void *context) {
    struct dbt_engine *engine = context;
    engine->guest.mem.on_code_written = NULL;
    if (engine->has_dbt)
        dbt_vcpu_destroy(engine->vcpu);
    if (engine->vcpu && engine->vcpu->interp)
        interp_vcpu_destroy(engine->vcpu);
    if (engine->has_vcpu)
        guest_remove_vcpu(engine->vcpu);
    if (engine->vcpu)
        dbt_area_destroy(engine->vcpu);
    guest_destroy(&engine->guest);
    free(engine);
}

static int dbt_engine_create(void **context) {
    struct dbt_options options = {.code_cache_size = CODE_CACHE_SIZE};
    struct dbt_engine *engine = calloc(1, sizeof *engine);
    if (!engine)
        return -ENOMEM;
    int error = guest_create(&engine->guest);
    if (error) {
        free(engine);
        return error;
    }
    engine->vcpu = dbt_area_create();
    error = engine->vcpu ? guest_add_vcpu(&engine->guest, engine->vcpu) : -ENOMEM;
    engine->has_vcpu = !error;
    if (!error)
        error = interp_vcpu_create(engine->vcpu);
    if (!error)
        error = dbt_vcpu_create(engine->vcpu, &options);
    engine->has_dbt = !error;
    if (!error)
        error = signals_install();
    if (error) {
        dbt_engine_destroy(engine);
        return error;
    }
    engine->guest.mem.on_code_written = on_code_written;
    engine->guest.mem.on_code_written_context = engine;
    dbt_thread_enter(engine->vcpu);
    *context = engine;
    return 0;
}

struct vcpu *dbt_engine_vcpu(void *context) {
    return ((struct dbt_engine *)context)->vcpu;
}

bool dbt_engine_load(void *context, const struct diff_case *test) {
    struct dbt_engine *engine = context;
    dbt_thread_enter(engine->vcpu); /* another engine of this kind may have been on the thread since */
    guest_load(&engine->guest, engine->vcpu, test);
    return dbt_can_run(engine->vcpu);
}

void dbt_engine_finish(void *context, const struct diff_case *test, struct diff_state *result) {
    struct dbt_engine *engine = context;
    struct vcpu *vcpu = engine->vcpu;
    unsigned steps = 0;
    bool timeout = false;
    signals_enter(vcpu, on_signal, on_alarm, SECONDS_MAX);
    while (!guest_is_over(vcpu) && vcpu->run_state == RUN_ACTIVE && !timeout) {
        if (!dbt_can_run(vcpu) || dbt_run(vcpu) == DBT_EXIT_MODE)
            (void)interp_step(vcpu);
        timeout = vcpu->requests & REQUEST_STOP || steps++ == STEPS_MAX;
    }
    signals_enter(NULL, NULL, NULL, 0);
    guest_store(&engine->guest, vcpu, test, timeout, result);
}

static int dbt_engine_run(void *context, const struct diff_case *test, struct diff_state *result) {
    (void)dbt_engine_load(context, test);
    dbt_engine_finish(context, test, result);
    return 0;
}

const struct diff_engine dbt_engine = {
    .name = "dbt",
    .summary = "the dynamic binary translator",
    .create = dbt_engine_create,
    .destroy = dbt_engine_destroy,
    .run = dbt_engine_run,
};
