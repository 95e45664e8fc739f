/* vCPU threads: the run loop, sleeping and waking, and the signals that translated code lives with.
 *
 * A vCPU thread blocks every signal but the engine's own. Its signal stack is used with SS_AUTODISARM because
 * RSP holds guest values in translated code: the kernel must not take one that points into that stack for
 * nesting.
 */
#define _GNU_SOURCE
#include "vm/vm.h"
#include "base/diag.h"
#include "cpu/cpu_trace.h"
#include "cpu/host_clock.h"
#include "cpu/pending.h"
#include "cpu/system.h"
#include "dbt/dbt.h"
#include "direct/direct.h"
#include "interp/interp.h"
#include "mem/guest_mem.h"
#include "vm/code_sync.h"
#include "vm/crash.h"
#include "vm/private.h"

#include <cpuid.h>
#include <errno.h>
#include <limits.h>
#include <linux/futex.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#ifndef SS_AUTODISARM
#define SS_AUTODISARM (1U << 31)
#endif

#define KICK_SIGNAL SIGRTMIN
#define SIGNAL_STACK_SIZE (128 * KIB)
/* x87, SSE, AVX and AVX-512: what a guest may be given. */
#define XFEATURES_GUEST 0xe7u

static __thread struct vcpu *current;

static void on_fault(int signal, siginfo_t *info, void *context) {
    if (current &&
        (interp_handle_signal(signal, info, context) || dbt_handle_signal(current, signal, info, context)))
        return;
    crash_tell(signal, info, context, current);
}

static void on_kick(int signal, siginfo_t *info, void *context) {
    (void)signal;
    (void)info;
    (void)context;
    if (current) {
        dbt_kick_from_handler(current);
        direct_kick_from_handler(current);
    }
}

static void install_handlers(void) {
    static const int faults[] = {SIGSEGV, SIGBUS, SIGFPE, SIGILL, SIGTRAP};
    struct sigaction action = {.sa_sigaction = on_fault, .sa_flags = SA_SIGINFO | SA_ONSTACK};
    sigfillset(&action.sa_mask);
    for (unsigned i = 0; i < ARRAY_SIZE(faults); i++) {
        sigdelset(&action.sa_mask, faults[i]);
        sigaction(faults[i], &action, NULL);
    }
    action.sa_sigaction = on_kick;
    action.sa_flags |= SA_RESTART;
    sigfillset(&action.sa_mask);
    sigaction(KICK_SIGNAL, &action, NULL);
}

static void block_signals(void) {
    sigset_t set;
    sigfillset(&set);
    static const int ours[] = {SIGSEGV, SIGBUS, SIGFPE, SIGILL, SIGTRAP};
    for (unsigned i = 0; i < ARRAY_SIZE(ours); i++)
        sigdelset(&set, ours[i]);
    sigdelset(&set, KICK_SIGNAL);
    pthread_sigmask(SIG_SETMASK, &set, NULL);
}

static long futex(uint32_t *word, int operation, uint32_t value) {
    return syscall(SYS_futex, word, operation, value, NULL, NULL, 0);
}

void vcpu_request(struct vcpu *vcpu, uint32_t bits) {
    struct vm_cpu *cpu = vcpu->vm;
    uint32_t before = __atomic_fetch_or(&vcpu->requests, bits, __ATOMIC_SEQ_CST);
    if ((before & bits) == bits || current == vcpu)
        return;
    if (__atomic_load_n(&cpu->sleeping, __ATOMIC_SEQ_CST))
        futex(&vcpu->requests, FUTEX_WAKE_PRIVATE, 1);
    else if (__atomic_load_n(&cpu->running, __ATOMIC_SEQ_CST))
        syscall(SYS_tgkill, getpid(), cpu->tid, KICK_SIGNAL);
}

void vcpu_send_nmi(struct vcpu *vcpu) {
    uint32_t before = __atomic_load_n(&vcpu->nmis, __ATOMIC_SEQ_CST);
    while ((before & NMIS_WAITING) < (before & NMI_IN_SERVICE ? 1 : 2) &&
           !__atomic_compare_exchange_n(&vcpu->nmis, &before, before + 1, false, __ATOMIC_SEQ_CST,
                                        __ATOMIC_SEQ_CST))
        ;
    vcpu_request(vcpu, REQUEST_NMI);
}

/* Sleep until there is any request. */
static void sleep_for_request(struct vm_cpu *cpu) {
    struct vcpu *vcpu = cpu->vcpu;
    uint64_t since = host_tsc();
    __atomic_store_n(&cpu->sleeping, true, __ATOMIC_SEQ_CST);
    for (;;) {
        uint32_t requests = __atomic_load_n(&vcpu->requests, __ATOMIC_SEQ_CST);
        if (vcpu_must_serve(vcpu, requests))
            break;
        futex(&vcpu->requests, FUTEX_WAIT_PRIVATE, requests);
    }
    __atomic_store_n(&cpu->sleeping, false, __ATOMIC_SEQ_CST);
    vcpu->blocked_ticks += host_tsc() - since;
}

static void serve_init_and_sipi(struct vcpu *vcpu) {
    uint32_t requests = __atomic_load_n(&vcpu->requests, __ATOMIC_ACQUIRE);
    if (requests & REQUEST_INIT) {
        /* A SIPI that is there by now came after the INIT: vm_send_init() has cleared any earlier one. */
        __atomic_fetch_and(&vcpu->requests, ~REQUEST_INIT, __ATOMIC_SEQ_CST);
        cpu_trace(vcpu, TRACE_INTERRUPTS, CPU_TRACE_INIT, 0, 0, false);
        vcpu->env->init_taken(vcpu->env->context);
        cpu_reset(vcpu, true);
        requests = __atomic_load_n(&vcpu->requests, __ATOMIC_ACQUIRE);
    }
    if (requests & REQUEST_SIPI) {
        __atomic_fetch_and(&vcpu->requests, ~REQUEST_SIPI, __ATOMIC_SEQ_CST);
        cpu_trace(vcpu, TRACE_INTERRUPTS, CPU_TRACE_SIPI, vcpu->sipi_vector, 0, false);
        if (vcpu->run_state == RUN_WAIT_FOR_SIPI)
            cpu_sipi(vcpu, vcpu->sipi_vector);
    }
}

static void run_interpreter(struct vcpu *vcpu, bool until_dbt) {
    while (vcpu->run_state == RUN_ACTIVE && !(until_dbt && dbt_can_run(vcpu))) {
        if (until_dbt)
            (void)interp_step(vcpu);
        else
            (void)interp_run(vcpu, 10000);
        if (vcpu_must_serve(vcpu, __atomic_load_n(&vcpu->requests, __ATOMIC_RELAXED)))
            return;
    }
}

static void run_active(struct vm_cpu *cpu) {
    struct vcpu *vcpu = cpu->vcpu;
    vcpu_deliver_pending(vcpu);
    if (vcpu->run_state != RUN_ACTIVE)
        return;
    if (cpu->vm->options.engine == VM_ENGINE_INTERP || !dbt_can_run(vcpu)) {
        run_interpreter(vcpu, cpu->vm->options.engine != VM_ENGINE_INTERP);
        return;
    }
    if (direct_wanted(vcpu))
        direct_run(vcpu);
    else if (dbt_run(vcpu) == DBT_EXIT_MODE)
        run_interpreter(vcpu, true);
}

/* HLT ends with an interrupt that is delivered; a vCPU waiting for SIPI takes nothing else. */
static void run_halted(struct vm_cpu *cpu) {
    struct vcpu *vcpu = cpu->vcpu;
    if (vcpu->run_state == RUN_WAIT_FOR_SIPI) {
        __atomic_fetch_and(&vcpu->requests, ~(REQUEST_IRQ | REQUEST_NMI), __ATOMIC_SEQ_CST);
        __atomic_store_n(&vcpu->nmis, 0, __ATOMIC_SEQ_CST);
    }
    vcpu_deliver_pending(vcpu);
    if (vcpu->run_state != RUN_ACTIVE) {
        direct_idle(vcpu);
        sleep_for_request(cpu);
    }
}

/* By the thread itself: naming another one takes a file to be opened. */
static void name_thread(unsigned index) {
    char name[16] = "vcpu";
    name[4] = (char)('0' + index / 10);
    name[5] = (char)('0' + index % 10);
    pthread_setname_np(pthread_self(), name);
}

static void *vcpu_thread(void *argument) {
    struct vm_cpu *cpu = argument;
    struct vcpu *vcpu = cpu->vcpu;
    cpu->tid = (pid_t)syscall(SYS_gettid);
    current = vcpu;
    name_thread(vcpu->index);
    block_signals();
    stack_t stack = {
        .ss_sp = cpu->signal_stack, .ss_size = SIGNAL_STACK_SIZE, .ss_flags = (int)SS_AUTODISARM};
    if (sigaltstack(&stack, NULL)) {
        diag_error("vCPU %u: cannot set up its signal stack: %s", vcpu->index, strerror(errno));
        abort();
    }
    dbt_thread_enter(vcpu);
    direct_thread_enter(vcpu);
    __atomic_store_n(&cpu->running, true, __ATOMIC_SEQ_CST);
    while (!(__atomic_load_n(&vcpu->requests, __ATOMIC_ACQUIRE) & REQUEST_STOP)) {
        serve_init_and_sipi(vcpu);
        if (vcpu->run_state == RUN_ACTIVE) {
            run_active(cpu);
        } else if (vcpu->run_state == RUN_SHUTDOWN) {
            cpu->vm->options.on_shutdown(cpu->vm->options.context, vcpu);
            break;
        } else if (vcpu->run_state == RUN_ASLEEP) {
            break;
        } else {
            run_halted(cpu);
        }
    }
    __atomic_store_n(&cpu->running, false, __ATOMIC_SEQ_CST);
    code_sync_leave(cpu);
    direct_thread_leave(vcpu);
    stack.ss_flags = SS_DISABLE;
    sigaltstack(&stack, NULL);
    current = NULL;
    return NULL;
}

static int create_xsave(struct vcpu *vcpu) {
    unsigned eax, ebx, ecx, edx;
    uint32_t low, high;
    __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
    vcpu->host_xfeatures = (low | (uint64_t)high << 32) & XFEATURES_GUEST;
    vcpu->xsave_size = 576;
    for (unsigned i = 2; i < 63; i++) {
        if (!(vcpu->host_xfeatures >> i & 1))
            continue;
        __cpuid_count(0xd, i, eax, ebx, ecx, edx);
        if (ebx + eax > vcpu->xsave_size)
            vcpu->xsave_size = ebx + eax;
    }
    vcpu->xsave = aligned_alloc(64, align_up(vcpu->xsave_size, 4096));
    if (!vcpu->xsave)
        return -ENOMEM;
    memset(vcpu->xsave, 0, align_up(vcpu->xsave_size, 4096));
    return 0;
}

static int create_direct(struct vcpu *vcpu, const struct vm_options *options) {
    const struct direct_options direct = {.policy = options->engine == VM_ENGINE_DIRECT ? DIRECT_ALWAYS
                                                                                        : DIRECT_AUTO,
                                          .max_stubs = options->direct_max,
                                          .count_spaces = options->count_spaces};
    bool wanted = options->engine == VM_ENGINE_DIRECT || options->engine == VM_ENGINE_AUTO;
    return wanted ? direct_create(vcpu, &direct) : 0;
}

static int create_cpu(struct vm *vm, unsigned index) {
    struct vm_cpu *cpu = &vm->cpu[index];
    struct vcpu *vcpu = dbt_area_create();
    if (!vcpu)
        return -errno;
    cpu->vcpu = vcpu;
    cpu->vm = vm;
    vcpu->vm = cpu;
    vcpu->index = index;
    vcpu->is_bsp = index == 0;
    vcpu->mem = vm->mem;
    vcpu->model = vm->model;
    vcpu->model_1g_pages = vm->model->has_1g_pages;
    vcpu->env = &cpu->env;
    vcpu->trace = vm->options.trace;
    vcpu->trace_subjects = vcpu->trace ? vcpu->trace->subjects : 0;
    int result = create_xsave(vcpu);
    if (!result)
        result = vtlb_create(vcpu);
    if (!result)
        result = interp_vcpu_create(vcpu);
    const struct dbt_options dbt = {.code_cache_size = vm->options.code_cache_size,
                                    .code_cache_grows = vm->options.code_cache_grows};
    if (!result)
        result = dbt_vcpu_create(vcpu, &dbt);
    if (!result && vm->options.engine != VM_ENGINE_INTERP)
        interp_vcpu_assist(vcpu);
    if (!result)
        result = create_direct(vcpu, &vm->options);
    if (result)
        return result;
    cpu->signal_stack =
        mmap(NULL, SIGNAL_STACK_SIZE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (cpu->signal_stack == MAP_FAILED)
        return -ENOMEM;
    cpu_reset(vcpu, false);
    return 0;
}

int vm_create(struct vm **out, const struct vm_options *options, struct guest_mem *mem,
              const struct cpu_model *model) {
    if (options->cpus == 0 || options->cpus > VM_MAX_CPUS)
        return -EINVAL;
    struct vm *vm = calloc(1, sizeof *vm);
    if (!vm)
        return -ENOMEM;
    vm->options = *options;
    vm->mem = mem;
    vm->model = model;
    pthread_mutex_init(&vm->code_lock, NULL);
    for (unsigned i = 0; i < options->cpus; i++) {
        int result = create_cpu(vm, i);
        if (result) {
            vm_destroy(vm);
            return result;
        }
    }
    mem->on_code_written = code_sync_written;
    mem->on_code_written_context = vm;
    install_handlers();
    *out = vm;
    return 0;
}

void vm_destroy(struct vm *vm) {
    for (unsigned i = 0; i < vm->options.cpus; i++) {
        struct vcpu *vcpu = vm->cpu[i].vcpu;
        if (!vcpu)
            continue;
        if (vm->cpu[i].signal_stack)
            munmap(vm->cpu[i].signal_stack, SIGNAL_STACK_SIZE);
        if (vcpu->interp)
            interp_vcpu_destroy(vcpu);
        direct_destroy(vcpu);
        dbt_vcpu_destroy(vcpu);
        if (vcpu->spaces)
            vtlb_destroy(vcpu);
        free(vcpu->xsave);
        dbt_area_destroy(vcpu);
    }
    vm->mem->on_code_written = NULL;
    pthread_mutex_destroy(&vm->code_lock);
    free(vm);
}

struct vcpu *vm_vcpu(struct vm *vm, unsigned index) {
    return vm->cpu[index].vcpu;
}

struct vcpu *vm_current_vcpu(void) {
    return current;
}

unsigned vm_processes(const struct vm *vm, pid_t process[VM_MAX_CPUS]) {
    unsigned count = 0;
    for (unsigned i = 0; i < vm->options.cpus; i++) {
        process[count] = direct_template(vm->cpu[i].vcpu);
        count += process[count] != 0;
    }
    return count;
}

void vm_connect(struct vm *vm, unsigned index, const struct vcpu_env *env) {
    struct vcpu_env *own = &vm->cpu[index].env;
    *own = *env;
    own->hold_code = vm->options.cpus > 1 ? code_sync_hold : NULL;
    own->serve_code_requests = code_sync_serve;
}

int vm_start(struct vm *vm) {
    for (unsigned i = 0; i < vm->options.cpus; i++) {
        struct vm_cpu *cpu = &vm->cpu[i];
        __atomic_fetch_and(&cpu->vcpu->requests, ~REQUEST_STOP, __ATOMIC_SEQ_CST);
        int result = pthread_create(&cpu->thread, NULL, vcpu_thread, cpu);
        if (result) {
            vm_stop(vm);
            return -result;
        }
        cpu->has_thread = true;
    }
    return 0;
}

void vm_stop(struct vm *vm) {
    for (unsigned i = 0; i < vm->options.cpus; i++)
        if (vm->cpu[i].has_thread)
            vcpu_request(vm->cpu[i].vcpu, REQUEST_STOP);
    for (unsigned i = 0; i < vm->options.cpus; i++) {
        if (!vm->cpu[i].has_thread)
            continue;
        pthread_join(vm->cpu[i].thread, NULL);
        vm->cpu[i].has_thread = false;
    }
}

void vm_sleep(void) {
    if (current)
        __atomic_store_n(&current->run_state, RUN_ASLEEP, __ATOMIC_RELEASE);
}

void vm_reset(struct vm *vm) {
    for (unsigned i = 0; i < vm->options.cpus; i++) {
        struct vcpu *vcpu = vm->cpu[i].vcpu;
        vcpu->requests = 0;
        cpu_reset(vcpu, false);
        vtlb_flush_all(vcpu);
    }
}

void vm_send_init(struct vm *vm, unsigned index) {
    struct vcpu *vcpu = vm->cpu[index].vcpu;
    /* INIT cancels a SIPI before it. One that follows must stay, however late this vCPU gets to either. */
    __atomic_fetch_and(&vcpu->requests, ~REQUEST_SIPI, __ATOMIC_SEQ_CST);
    vcpu_request(vcpu, REQUEST_INIT);
}

void vm_send_sipi(struct vm *vm, unsigned index, uint8_t vector) {
    vm->cpu[index].vcpu->sipi_vector = vector;
    vcpu_request(vm->cpu[index].vcpu, REQUEST_SIPI);
}
