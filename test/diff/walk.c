/* Loops that walk: a pointer moves with every round, so that what the code before the loop or an earlier
 * round has learned of a page (a translation, that it is writable, that it holds no code) has to be learned
 * again. The walk may cross pages, end in a read-only or unmapped one, go backwards, or store beside the
 * stream's own code; its rounds call a function from several places, which may return elsewhere than behind
 * the call. See generator.h.
 */
#include "generator.h"

#include "cpu/x86.h"

#include <string.h>

#define ROUNDS_MAX 40u

/* Where a walk may go: from its start by rounds * stride. */
static uint64_t choose_start(struct generator *g, int64_t stride, unsigned rounds) {
    static const struct {
        uint64_t base;
        unsigned pages;
    } places[] = {{LAYOUT_DATA, 4},   {LAYOUT_DATA, 4},     {LAYOUT_DATA, 3},
                  {LAYOUT_ISLAND, 1}, {LAYOUT_ABOVE_2G, 2}, {LAYOUT_ABOVE_4G, 2}};
    struct rng *rng = &g->rng;
    unsigned i = rng_below(rng, g->mode == 64 ? 6 : 5);
    uint64_t base = places[i].base, size = places[i].pages * PAGE_SIZE;
    if (g->test->writable_code && rng_permille(rng, 300)) { /* behind the longest stream */
        base = LAYOUT_CODE_WRITABLE + 7400;
        size = DIFF_CODE_SIZE - 7400;
    }
    uint64_t length = (uint64_t)(stride < 0 ? -stride : stride) * rounds;
    uint64_t room = length < size ? size - length : 0;
    /* Mostly inside, sometimes over an edge in the middle. */
    uint64_t low = base + rng_below(rng, (uint32_t)room + 1);
    if (rng_permille(rng, 250))
        low = base + size - rng_below(rng, (uint32_t)(length < size ? length : size) + 1);
    if (rng_permille(rng, 700))
        low &= ~63ull;
    return stride < 0 ? low + length : low;
}

/* ADD reg, imm32 or LEA reg, [reg + disp32] */
static void step(struct generator *g, unsigned reg, int32_t stride) {
    uint8_t bytes[8];
    unsigned n = 0;
    bool uses_lea = rng_permille(&g->rng, 300) && (reg & 7) != GPR_RSP;
    if (g->mode == 64)
        bytes[n++] = (uint8_t)(0x48 | (uses_lea ? (reg >> 3) * 5 : reg >> 3));
    bytes[n++] = uses_lea ? 0x8d : 0x81;
    bytes[n++] = (uint8_t)(uses_lea ? 0x80 | (reg & 7) << 3 | (reg & 7) : 0xc0 | (reg & 7));
    memcpy(bytes + n, &stride, 4);
    gen_emit(g, bytes, n + 4, NULL, false);
    if (!uses_lea)
        g->undefined = 0;
}

static void patch_rel32(struct generator *g, unsigned at, unsigned target) {
    int32_t relative = (int32_t)(target - at - 4);
    memcpy(g->code + at, &relative, 4);
}

struct function {
    unsigned begin;
    uint32_t undefined; /* flags, at its end */
};

/* JMP over a function. It may skip the five bytes behind the call, bending its return. Its instructions read
 * flags as if all of them were defined at its start: calls see to that. */
static struct function emit_function(struct generator *g) {
    static const uint8_t jump[] = {0xe9, 0, 0, 0, 0}, ret[] = {0xc3};
    static const uint8_t bend[] = {0x48, 0x83, 0x04, 0x24, 5}; /* ADD QWORD [RSP], 5 */
    bool kept = g->keeps_stack;
    gen_emit(g, jump, sizeof jump, NULL, false);
    unsigned over = g->at - 4;
    struct function function = {.begin = g->at};
    g->keeps_stack = true;
    g->conditional++;
    control_body(g, 1 + rng_below(&g->rng, 2));
    while (g->labels)
        gen_label_place(g, g->labels - 1);
    if (rng_permille(&g->rng, 250)) {
        gen_emit(g, g->mode == 64 ? bend : bend + 1, g->mode == 64 ? 5 : 4, NULL, false);
        g->undefined = 0;
    }
    gen_emit(g, ret, 1, NULL, false);
    function.undefined = g->undefined;
    g->conditional--;
    g->keeps_stack = kept;
    patch_rel32(g, over, g->at);
    return function;
}

static void emit_call(struct generator *g, const struct function *function) {
    uint8_t call[] = {0xe8, 0, 0, 0, 0}, mov[] = {0xb8, 0, 0, 0, 0};
    if (g->undefined)
        gen_define_flags(g);
    gen_emit(g, call, sizeof call, NULL, false);
    patch_rel32(g, g->at - 4, function->begin);
    uint32_t value = (uint32_t)rng_u64(&g->rng);
    memcpy(mov + 1, &value, 4);
    gen_emit(g, mov, sizeof mov, NULL, false);
    g->undefined = function->undefined;
}

void walk_loop(struct generator *g) {
    struct rng *rng = &g->rng;
    unsigned walker = choose_register(g, 1 << GPR_RSP | 1 << GPR_RAX | 1 << GPR_RCX);
    unsigned counter = choose_register(g, (uint16_t)(1u << walker | 1 << GPR_RSP | 1 << GPR_RAX));
    uint16_t mine = (uint16_t)(1u << walker | 1u << counter);
    if (walker == counter || mine & (g->reserved | g->pinned | 1 << GPR_RAX) || g->loops ||
        !gen_has_room(g, 900))
        return;
    while (g->labels)
        gen_label_place(g, g->labels - 1);
    bool calls = !((g->reserved | g->pinned) >> GPR_RAX & 1) && rng_permille(rng, 400);
    struct function function = {0};
    gen_define_flags(g);
    g->reserved |= mine;
    if (calls)
        function = emit_function(g);
    g->reserved &= (uint16_t)~mine;
    gen_define_flags(g);
    unsigned rounds = 2 + rng_below(rng, ROUNDS_MAX - 1);
    static const int16_t strides[] = {8, 16, 64, 72, 128, 256, 511, 1024, -8, -64, -200, 1, 4};
    int32_t stride = strides[rng_below(rng, ARRAY_SIZE(strides))];
    gen_mov(g, walker, choose_start(g, stride, rounds));
    gen_mov(g, counter, rounds);
    unsigned head = g->at;
    g->reserved |= mine;
    g->loops++;
    g->walks = true;
    g->walker = (uint8_t)walker;
    g->walker_steps = rng_permille(rng, 500);
    control_body(g, 1 + rng_below(rng, 3));
    if (calls)
        emit_call(g, &function);
    if (rng_permille(rng, 300)) { /* half a stride here, half below */
        step(g, walker, stride / 2);
        stride -= stride / 2;
        control_body(g, 1);
    }
    if (calls && rng_permille(rng, 500))
        emit_call(g, &function);
    while (g->labels)
        gen_label_place(g, g->labels - 1);
    g->walks = false;
    g->loops--;
    g->reserved &= (uint16_t)~mine;
    step(g, walker, stride);
    control_back(g, counter, head);
}
