/* Greedy minimisation: try a simplification, keep it when native and engine still differ.
 *
 * Instructions are replaced by NOPs of the same length, so that branches and RIP-relative operands keep their
 * meaning. A simplification that makes an instruction read undefined flags, or takes away what overwrites an
 * irreproducible output, would show differences that are none; those are not tried.
 */
#include "minimise.h"

#include "compare.h"
#include "cpu/x86.h"
#include "layout.h"

#include <stdlib.h>
#include <string.h>

/* In what two end states differ. */
#define DIFFERS_END 1u
#define DIFFERS_REGISTERS 2u
#define DIFFERS_MEMORY 4u
#define DIFFERS_EXTENDED 8u

struct minimiser {
    const struct diff_pair *pair;
    struct diff_case *best, *trial;
    struct diff_state *expected, *actual;
    unsigned differs; /* how the case that is minimised differs */
};

static unsigned difference(const struct diff_state *expected, const struct diff_state *actual) {
    bool end = expected->end != actual->end || expected->vector != actual->vector ||
               expected->cr2 != actual->cr2 || expected->regs.rip != actual->regs.rip;
    bool registers = memcmp(expected->regs.gpr, actual->regs.gpr, sizeof expected->regs.gpr) != 0;
    bool memory = memcmp(expected->data, actual->data, DIFF_DATA_SIZE) != 0;
    unsigned differs =
        (end ? DIFFERS_END : 0) | (registers ? DIFFERS_REGISTERS : 0) | (memory ? DIFFERS_MEMORY : 0);
    return differs ? differs : DIFFERS_EXTENDED;
}

int pair_differs(const struct diff_pair *pair, const struct diff_case *test, struct diff_state *expected,
                 struct diff_state *actual) {
    *oracle_cases(pair->oracle) = *test;
    int error = oracle_run(pair->oracle, 1);
    if (error)
        return error;
    *expected = *oracle_states(pair->oracle);
    if (expected->end == DIFF_END_TIMEOUT || expected->end == DIFF_END_LOST)
        return 0;
    error = pair->engine->run(pair->context, test, actual);
    return error ? error : !compare_states(test, expected, actual);
}

/* Keep the trial when it still fails, and in a like way: not by an end where there was none before. */
static bool try_it(struct minimiser *m) {
    if (compare_reads_undefined(m->trial) || pair_differs(m->pair, m->trial, m->expected, m->actual) != 1)
        return false;
    unsigned differs = difference(m->expected, m->actual);
    if (!(differs & m->differs) || (differs & DIFFERS_END & ~m->differs))
        return false;
    *m->best = *m->trial;
    return true;
}

/* Units with an irreproducible output go as a whole or not at all. */
static bool unit_is_glued(const struct stream *stream, unsigned unit) {
    for (unsigned i = 0; i < stream->count; i++)
        if (stream->insn[i].unit == unit && stream->insn[i].is_glued)
            return true;
    return false;
}

static void drop_instructions(struct minimiser *m, const struct stream *stream) {
    for (unsigned i = stream->count; i-- > 0;) {
        const struct stream_insn *insn = &stream->insn[i];
        /* First the whole unit, once, from its last instruction. */
        if (i + 1 == stream->count || stream->insn[i + 1].unit != insn->unit) {
            *m->trial = *m->best;
            for (unsigned j = 0; j < stream->count; j++)
                if (stream->insn[j].unit == insn->unit)
                    memset(m->trial->code + m->trial->entry + stream->insn[j].offset, 0x90,
                           stream->insn[j].length);
            if (try_it(m))
                continue;
        }
        if (unit_is_glued(stream, insn->unit))
            continue;
        *m->trial = *m->best;
        memset(m->trial->code + m->trial->entry + insn->offset, 0x90, insn->length);
        try_it(m);
    }
}

/* End the stream right after its last instruction that is not a NOP, start it at its first. */
static void trim(struct minimiser *m) {
    *m->trial = *m->best;
    struct diff_case *trial = m->trial;
    while (trial->length && trial->code[trial->entry + trial->length - 1] == 0x90) {
        trial->code[trial->entry + trial->length - 1] = 0xcc;
        trial->length--;
    }
    try_it(m);
    *m->trial = *m->best;
    while (trial->length && trial->code[trial->entry] == 0x90) {
        trial->code[trial->entry++] = 0xcc;
        trial->length--;
        trial->regs.rip++;
    }
    try_it(m);
}

static void simplify_bytes(struct minimiser *m, size_t offset, size_t size, size_t step) {
    static const uint8_t zero[4096];
    for (size_t at = 0; at < size; at += step) {
        size_t part = size - at < step ? size - at : step;
        uint8_t *bytes = (uint8_t *)m->trial + offset + at;
        *m->trial = *m->best;
        if (!memcmp(bytes, zero, part))
            continue;
        memset(bytes, 0, part);
        if (!try_it(m) && step > 64)
            simplify_bytes(m, offset + at, part, step / 8);
    }
}

static void simplify_state(struct minimiser *m) {
    for (unsigned i = 0; i < 16; i++) {
        static const uint64_t plain[] = {0, 1, LAYOUT_DATA};
        for (unsigned j = 0; j < ARRAY_SIZE(plain) && m->best->regs.gpr[i] > 1; j++) {
            *m->trial = *m->best;
            m->trial->regs.gpr[i] = plain[j];
            if (try_it(m))
                break;
        }
    }
    *m->trial = *m->best;
    m->trial->regs.rflags = FLAG_FIXED | FLAG_IF;
    try_it(m);
    *m->trial = *m->best;
    memset(m->trial->xsave, 0, DIFF_XSAVE_SIZE);
    m->trial->xsave[0] = 0x7f;
    m->trial->xsave[1] = 0x03;
    m->trial->xsave[24] = 0x80;
    m->trial->xsave[25] = 0x1f;
    if (!try_it(m))
        simplify_bytes(m, offsetof(struct diff_case, xsave) + 32, layout_xstate()->size - 32, 512);
    simplify_bytes(m, offsetof(struct diff_case, data), DIFF_DATA_SIZE, 4096);
}

void minimise(const struct diff_pair *pair, struct diff_case *test, const struct stream *stream) {
    struct minimiser m = {.pair = pair, .best = test};
    m.trial = aligned_alloc(64, align_up(sizeof *m.trial, 64));
    m.expected = aligned_alloc(64, align_up(sizeof *m.expected, 64));
    m.actual = aligned_alloc(64, align_up(sizeof *m.actual, 64));
    if (m.trial && m.expected && m.actual && pair_differs(pair, test, m.expected, m.actual) == 1) {
        m.differs = difference(m.expected, m.actual);
        for (unsigned round = 0; round < 2; round++)
            drop_instructions(&m, stream);
        trim(&m);
        simplify_state(&m);
    }
    free(m.trial);
    free(m.expected);
    free(m.actual);
}
