/* See estimate.h. All in whole numbers, so that a file is the same wherever it is made; all bounded by the
 * text's size.
 */
#include "sbt/estimate.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "isa/insn.h"

#define ROUNDS 12u /* calls that the estimate is carried over */
/* A call behind n conditional branches is made with a probability of 8 / (10 + n). */
#define CALL_OVER 8u
#define CALL_UNDER 10u
#define COLD_DIVISOR 32u /* what the compiler moved away as unlikely */
/* Of the mean of so many functions on either side a part is added. */
#define NEIGHBOURS 32u
#define NEIGHBOURS_OVER 3u
#define NEIGHBOURS_UNDER 10u

struct call {
    uint32_t from, to; /* functions */
    uint32_t weight;   /* of ESTIMATE_SURE */
};

struct work {
    const struct discovery *discovery;
    struct estimate *estimate;
    uint64_t *end; /* of each function */
    bool *cold;
    struct call *call;
    size_t calls, room;
    uint32_t *root, *now, *next;
};

/* -- Functions and calls -- */

static int find_functions(struct work *work) {
    const struct patched *patched = work->discovery->patched;
    struct estimate *estimate = work->estimate;
    size_t count = 0;
    for (unsigned pass = 0; pass < 2; pass++) {
        size_t at_function = 0;
        for (unsigned i = 0; i < patched->sections; i++) {
            const struct patched_section *section = &patched->section[i];
            const uint8_t *map = work->discovery->map[i];
            for (uint64_t at = 0; map && at < section->size; at++) {
                if (at && !(map[at] & CODE_FUNCTION))
                    continue;
                if (pass) {
                    estimate->start[at_function] = section->address + at;
                    work->end[at_function] = section->address + section->size;
                    if (at)
                        work->end[at_function - 1] = section->address + at;
                }
                at_function++;
            }
        }
        count = at_function;
        if (pass)
            break;
        estimate->start = calloc(count + 1, sizeof *estimate->start);
        estimate->value[0] = calloc(count + 1, sizeof *estimate->value[0]);
        estimate->value[1] = calloc(count + 1, sizeof *estimate->value[1]);
        work->end = calloc(count + 1, sizeof *work->end);
        work->cold = calloc(count + 1, sizeof *work->cold);
        work->root = calloc(count + 1, sizeof *work->root);
        work->now = calloc(count + 1, sizeof *work->now);
        work->next = calloc(count + 1, sizeof *work->next);
        if (!estimate->start || !estimate->value[0] || !estimate->value[1] || !work->end || !work->cold ||
            !work->root || !work->now || !work->next)
            return -ENOMEM;
    }
    estimate->functions = count;
    return 0;
}

/* The number of the function that holds the address, or of functions: none does. */
static size_t function_at(const struct estimate *estimate, uint64_t address) {
    size_t low = 0, high = estimate->functions;
    while (low < high) {
        size_t middle = low + (high - low) / 2;
        if (estimate->start[middle] <= address)
            low = middle + 1;
        else
            high = middle;
    }
    return low ? low - 1 : estimate->functions;
}

static size_t function_in(const struct work *work, uint64_t address) {
    size_t number = function_at(work->estimate, address);
    return number < work->estimate->functions && address < work->end[number] ? number
                                                                             : work->estimate->functions;
}

static bool add_call(struct work *work, size_t from, size_t to, unsigned branches) {
    if (work->calls == work->room) {
        size_t room = work->room ? work->room * 2 : 65536;
        struct call *grown = realloc(work->call, room * sizeof *grown);
        if (!grown)
            return false;
        work->call = grown;
        work->room = room;
    }
    work->call[work->calls++] = (struct call){.from = (uint32_t)from,
                                              .to = (uint32_t)to,
                                              .weight = ESTIMATE_SURE / (CALL_UNDER + branches) * CALL_OVER};
    return true;
}

/* Of several calls from one function to another the first is the likeliest: it stands for all. */
static int compare_calls(const void *a, const void *b) {
    const struct call *one = a, *other = b;
    if (one->from != other->from)
        return one->from < other->from ? -1 : 1;
    if (one->to != other->to)
        return one->to < other->to ? -1 : 1;
    return (one->weight < other->weight) - (one->weight > other->weight);
}

/* The text as it ends up stands for all stages: they call the same functions. */
static int find_calls(struct work *work) {
    const struct patched *patched = work->discovery->patched;
    const struct estimate *estimate = work->estimate;
    for (unsigned i = 0; i < patched->sections; i++) {
        const struct patched_section *section = &patched->section[i];
        const uint8_t *map = work->discovery->map[i];
        size_t function = map ? function_in(work, section->address) : 0;
        unsigned branches = 0;
        for (uint64_t at = 0; map && at < section->size; at++) {
            struct insn insn;
            if (function + 1 < estimate->functions &&
                section->address + at >= estimate->start[function + 1]) {
                function++;
                branches = 0;
            }
            if (!(map[at] & CODE_READY) ||
                insn_decode(&insn, section->bytes[STAGE_READY] + at, section->size - at, 64) != INSN_OK)
                continue;
            branches += insn.z.meta.category == ZYDIS_CATEGORY_COND_BR;
            const ZydisDecodedOperand *op = &insn.op[0];
            if (!insn.z.operand_count || op->type != ZYDIS_OPERAND_TYPE_IMMEDIATE || !op->imm.is_relative)
                continue;
            size_t to = function_in(work, section->address + at + insn.length + (uint64_t)op->imm.value.s);
            if (to < estimate->functions && to != function && !add_call(work, function, to, branches))
                return -ENOMEM;
        }
    }
    qsort(work->call, work->calls, sizeof *work->call, compare_calls);
    size_t kept = 0;
    for (size_t i = 0; i < work->calls; i++)
        if (!kept || work->call[i].from != work->call[kept - 1].from ||
            work->call[i].to != work->call[kept - 1].to)
            work->call[kept++] = work->call[i];
    work->calls = kept;
    return 0;
}

/* By the compiler's names for them. */
static void find_cold(struct work *work) {
    const struct image *image = work->discovery->patched->image;
    for (size_t i = 0; i < image->symbols; i++) {
        const struct image_symbol *symbol = &image->symbol[i];
        size_t number = function_at(work->estimate, symbol->address);
        if (number < work->estimate->functions && work->estimate->start[number] == symbol->address &&
            strstr(symbol->name, ".cold"))
            work->cold[number] = true;
    }
}

/* -- Roots -- */

static void add_root(struct work *work, uint64_t address) {
    size_t number = function_in(work, address);
    if (number < work->estimate->functions)
        work->root[number] = ESTIMATE_SURE;
}

static void add_named(struct work *work, const char *const *name, unsigned count) {
    for (unsigned i = 0; i < count; i++) {
        const struct image_symbol *symbol = image_symbol_named(work->discovery->patched->image, name[i]);
        if (symbol)
            add_root(work, symbol->address);
    }
}

static void add_early_roots(struct work *work) {
    static const char *const names[] = {"startup_64", "secondary_startup_64", "x86_64_start_kernel",
                                        "start_kernel"};
    add_root(work, work->discovery->patched->image->entry);
    add_named(work, names, ARRAY_SIZE(names));
}

/* The table of initcalls holds distances from each place to its function. */
static void add_ready_roots(struct work *work) {
    static const char *const names[] = {"rest_init", "kernel_init", "kthreadd"};
    const struct image *image = work->discovery->patched->image;
    struct image_table table = image_table(image, "", "__initcall_start", "__initcall_end");
    for (size_t at = 0; at + 4 <= table.size; at += 4) {
        int32_t distance;
        memcpy(&distance, table.data + at, sizeof distance);
        add_root(work, table.address + at + (uint64_t)(int64_t)distance);
    }
    add_named(work, names, ARRAY_SIZE(names));
}

/* -- Estimating -- */

static uint32_t product(uint64_t a, uint64_t b) {
    return (uint32_t)(a * b / ESTIMATE_SURE);
}

/* A function runs unless none of its callers calls it. */
static void carry(struct work *work) {
    size_t count = work->estimate->functions;
    memcpy(work->now, work->root, count * sizeof *work->now);
    for (unsigned round = 0; round < ROUNDS; round++) {
        for (size_t i = 0; i < count; i++)
            work->next[i] = ESTIMATE_SURE - work->root[i];
        for (size_t i = 0; i < work->calls; i++) {
            const struct call *call = &work->call[i];
            uint32_t likely = product(work->now[call->from], call->weight);
            if (work->cold[call->to])
                likely /= COLD_DIVISOR;
            work->next[call->to] = product(work->next[call->to], ESTIMATE_SURE - likely);
        }
        for (size_t i = 0; i < count; i++)
            work->now[i] = ESTIMATE_SURE - work->next[i];
    }
}

/* By bytes: of a long function more runs, and more of the room is its. */
static void add_neighbours(struct work *work, uint32_t *value) {
    size_t count = work->estimate->functions, from = 0, to = 0;
    uint64_t sum = 0, bytes = 0;
    for (size_t i = 0; i < count; i++) {
        for (; to < count && to <= i + NEIGHBOURS; to++) {
            uint64_t length = work->end[to] - work->estimate->start[to];
            sum += length * work->now[to];
            bytes += length;
        }
        for (; from + NEIGHBOURS < i; from++) {
            uint64_t length = work->end[from] - work->estimate->start[from];
            sum -= length * work->now[from];
            bytes -= length;
        }
        uint64_t mean = bytes ? sum / bytes * NEIGHBOURS_OVER / NEIGHBOURS_UNDER : 0;
        if (work->cold[i])
            mean /= COLD_DIVISOR;
        value[i] =
            work->now[i] + (uint32_t)mean < ESTIMATE_SURE ? work->now[i] + (uint32_t)mean : ESTIMATE_SURE;
    }
}

static int make(struct work *work) {
    int result = find_functions(work);
    if (!result)
        result = find_calls(work);
    if (result)
        return result;
    if (work->discovery->patched->image->loader) { /* it is small, and most of it runs */
        for (size_t i = 0; i < work->estimate->functions; i++)
            work->estimate->value[0][i] = work->estimate->value[1][i] = ESTIMATE_SURE;
        return 0;
    }
    find_cold(work);
    add_early_roots(work);
    carry(work);
    add_neighbours(work, work->estimate->value[1]);
    add_ready_roots(work);
    carry(work);
    add_neighbours(work, work->estimate->value[0]);
    return 0;
}

int estimate_create(struct estimate *estimate, const struct discovery *discovery) {
    struct work work = {.discovery = discovery, .estimate = estimate};
    *estimate = (struct estimate){0};
    int result = make(&work);
    free(work.end);
    free(work.cold);
    free(work.call);
    free(work.root);
    free(work.now);
    free(work.next);
    if (result)
        estimate_destroy(estimate);
    return result;
}

void estimate_destroy(struct estimate *estimate) {
    free(estimate->start);
    free(estimate->value[0]);
    free(estimate->value[1]);
    *estimate = (struct estimate){0};
}

uint32_t estimate_at(const struct estimate *estimate, uint64_t address, enum stage stage) {
    size_t number = function_at(estimate, address);
    return number < estimate->functions ? estimate->value[stage < STAGE_READY][number] : 0;
}
