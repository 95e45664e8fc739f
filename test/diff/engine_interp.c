/* The interpreter as an engine under test. */
#include "engine.h"

#include "guest.h"
#include "interp/interp.h"

#include <errno.h>
#include <signal.h>
#include <stdlib.h>
#include <sys/mman.h>

#define STEPS_MAX 2000000u
#define SIGNAL_STACK_SIZE (64 * 1024)

struct interp_engine {
    struct guest guest;
    struct vcpu vcpu;
    void *signal_stack;
};

/* Faults of guest instructions in thunks; anything else is the tester's own crash. */
static void on_signal(int signal, siginfo_t *info, void *context) {
    if (!interp_handle_signal(signal, info, context)) {
        struct sigaction action = {.sa_handler = SIG_DFL};
        sigaction(signal, &action, NULL);
    }
}

static int install_handlers(struct interp_engine *engine) {
    static const int signals[] = {SIGFPE, SIGSEGV, SIGBUS, SIGILL, SIGTRAP};
    stack_t stack = {.ss_size = SIGNAL_STACK_SIZE};
    stack.ss_sp = engine->signal_stack =
        mmap(NULL, stack.ss_size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (stack.ss_sp == MAP_FAILED || sigaltstack(&stack, NULL) < 0)
        return -errno;
    for (unsigned i = 0; i < ARRAY_SIZE(signals); i++) {
        struct sigaction action = {.sa_sigaction = on_signal, .sa_flags = SA_SIGINFO | SA_ONSTACK};
        if (sigaction(signals[i], &action, NULL) < 0)
            return -errno;
    }
    return 0;
}

static int interp_engine_create(void **context) {
    struct interp_engine *engine = aligned_alloc(64, align_up(sizeof *engine, 64));
    if (!engine)
        return -ENOMEM;
    *engine = (struct interp_engine){0};
    int error = guest_create(&engine->guest);
    if (!error)
        error = guest_add_vcpu(&engine->guest, &engine->vcpu);
    if (!error)
        error = interp_vcpu_create(&engine->vcpu);
    if (!error)
        error = install_handlers(engine);
    *context = engine;
    return error;
}

static void interp_engine_destroy(void *context) {
    struct interp_engine *engine = context;
    interp_vcpu_destroy(&engine->vcpu);
    guest_remove_vcpu(&engine->vcpu);
    guest_destroy(&engine->guest);
    free(engine);
}

static int interp_engine_run(void *context, const struct diff_case *test, struct diff_state *result) {
    struct interp_engine *engine = context;
    struct vcpu *vcpu = &engine->vcpu;
    unsigned steps = 0;
    guest_load(&engine->guest, vcpu, test);
    while (!guest_is_over(vcpu) && steps++ < STEPS_MAX)
        if (interp_step(vcpu) == INTERP_SHUTDOWN)
            break;
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
