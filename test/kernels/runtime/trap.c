/*
 * Where every vector ends up. In order: a TRY() in flight takes the exception; a claimed vector goes to its
 * handler and returns to the interrupted code; a running context ends. Anything else is a failure of the
 * kernel under test or of the machine, and says so.
 */
#include "trap.h"

#include "check.h"
#include "descriptor.h"

volatile struct probe probe;
static trap_handler *volatile handlers[256];
static struct cpu cpus[MAX_CPUS];
static uint8_t context_stacks[MAX_CPUS][2][4096] __attribute__((aligned(16)));

void context_enter(struct context *context, struct cpu *cpu);
__attribute__((noreturn)) void context_leave(struct cpu *cpu);
void trap_entry(struct context *frame);

struct cpu *cpu_current(void) {
#ifdef __x86_64__
    unsigned index = (read_tr() - TSS_SELECTOR) / 16u % MAX_CPUS;
#else
    unsigned index = 0;
#endif
    cpus[index].index = index;
    return &cpus[index];
}

void trap_handle(unsigned vector, trap_handler *handler) {
    handlers[vector] = handler;
}

static void frame_copy(struct context *to, const struct context *from) {
    const unsigned long *source = (const unsigned long *)from;
    unsigned long *target = (unsigned long *)to;
    unsigned words = sizeof(*from) / sizeof(unsigned long) - 1;
#ifndef __x86_64__
    bool outer = (from->cs & 3) || (from->flags & FLAG_VM);
    words -= (from->flags & FLAG_VM) ? 0 : outer ? 4 : 6;
#endif
    for (unsigned i = 0; i < words; i++)
        target[i] = source[i];
#ifndef __x86_64__
    if (!outer) {
        to->sp = (unsigned long)&from->sp;
        asm volatile("mov %%ss, %0" : "=r"(to->ss));
        to->ss &= 0xffff;
    }
#endif
}

static __attribute__((noreturn)) void trap_unexpected(const struct context *frame, unsigned long cr2) {
    console_print(
        "FAIL unexpected trap: vector %lu error 0x%lx ip 0x%lx cs 0x%lx flags 0x%lx sp 0x%lx cr2 0x%lx\n",
        frame->vector, frame->error, frame->ip, frame->cs, frame->flags, frame->sp, cr2);
    machine_exit(2);
}

void trap_entry(struct context *frame) {
    unsigned long cr2 = read_cr2();
    struct cpu *cpu = cpu_current();
    if (probe.recover && cpu->index == 0 && !handlers[frame->vector]) {
        probe.vector = frame->vector;
        probe.error = frame->error;
        probe.cr2 = cr2;
        probe.ip = frame->ip;
        probe.flags = frame->flags;
        frame->ip = probe.recover;
        probe.recover = 0;
        frame->flags &= ~(FLAG_TF | FLAG_IF);
        return;
    }
    if (handlers[frame->vector]) {
        handlers[frame->vector](frame);
        return;
    }
    if (!cpu->context)
        trap_unexpected(frame, cr2);
    struct context *context = cpu->context;
    cpu->context = 0;
    frame_copy(context, frame);
    context->cr2 = cr2;
    context_leave(cpu);
}

unsigned context_run(struct context *context) {
    struct cpu *cpu = cpu_current();
    cpu->context = context;
    context_enter(context, cpu);
    return (unsigned)context->vector;
}

static struct context context_base(const void *code, unsigned stack) {
    unsigned index = cpu_current()->index;
    return (struct context){
        .ip = (unsigned long)code,
        .flags = FLAG_FIXED,
        .sp = (unsigned long)context_stacks[index][stack] + sizeof(context_stacks[0][0]) - 128,
    };
}

struct context context_kernel(const void *code) {
    struct context context = context_base(code, 0);
    context.cs = KERNEL_CS;
    context.ss = KERNEL_DS;
#ifndef __x86_64__
    context.ds = context.es = KERNEL_DS;
#endif
    return context;
}

struct context context_user(const void *code) {
    struct context context = context_base(code, 1);
#ifdef __x86_64__
    context.cs = USER_CS;
    context.ss = USER_DS;
    context.ip += USER_ALIAS;
    context.sp += USER_ALIAS;
#else
    context.cs = USER32_CS;
    context.ss = context.ds = context.es = USER32_DS;
    if (read_cr0() & CR0_PG) {
        context.ip += USER_ALIAS;
        context.sp += USER_ALIAS;
    }
#endif
    return context;
}

bool check_end(const struct context *context, unsigned vector, unsigned long error, const char *name) {
    return check((uint64_t)context->vector << 32 | (uint32_t)context->error,
                 (uint64_t)vector << 32 | (uint32_t)error, "%s (vector:error)", name);
}
