#include "coverage.h"

#include "cpu/x86.h"
#include "layout.h"
#include "oracle.h"

#include <stdlib.h>
#include <string.h>

#define PROBE_ROUNDS 4

/* Index of the instruction that a stream ended at. */
static unsigned end_index(const struct diff_case *test, const struct stream *stream,
                          const struct diff_state *state) {
    uint64_t at = state->regs.rip - layout_code_base(test) - test->entry;
    unsigned index = 0;
    while (index < stream->count && stream->insn[index].offset < at)
        index++;
    return index;
}

uint64_t coverage_count(const struct diff_case *test, const struct stream *stream,
                        const struct diff_state *state) {
    unsigned end = end_index(test, stream, state);
    if (state->end == DIFF_END_TIMEOUT || state->end == DIFF_END_LOST)
        return 0;
    for (unsigned i = 0; i < end; i++)
        if (stream->insn[i].form && !stream->insn[i].is_conditional)
            stream->insn[i].form->completed++;
    if (end < stream->count && state->end == DIFF_END_EXCEPTION && stream->insn[end].form) {
        stream->insn[end].form->faulted++;
        stream->insn[end].form->last_vector = state->vector;
    }
    return end;
}

int coverage_probe(struct form_table *forms, struct oracle *oracle) {
    struct stream *streams = calloc(ORACLE_BATCH, sizeof *streams);
    struct generate_options options = {.length = 1};
    int error = 0;
    if (!streams)
        return -1;
    for (unsigned round = 0; round < PROBE_ROUNDS && !error; round++) {
        for (unsigned first = 0; first < forms->count && !error; first += ORACLE_BATCH) {
            unsigned count = forms->count - first < ORACLE_BATCH ? forms->count - first : ORACLE_BATCH;
            for (unsigned i = 0; i < count; i++) {
                struct form *form = &forms->form[first + i];
                if (form->excluded)
                    generate_stream(forms, 0, &options, &forms->form[0], &oracle_cases(oracle)[i],
                                    &streams[i]);
                else
                    generate_stream(forms, 0x70726f6265ull + round * FORM_CLASSES * 65536ull + first + i,
                                    &options, form, &oracle_cases(oracle)[i], &streams[i]);
            }
            error = oracle_run(oracle, count);
            for (unsigned i = 0; i < count && !error; i++)
                coverage_count(&oracle_cases(oracle)[i], &streams[i], &oracle_states(oracle)[i]);
        }
    }
    for (unsigned i = 0; i < forms->count; i++) {
        struct form *form = &forms->form[i];
        form->unsupported =
            !form->completed && form->faulted >= PROBE_ROUNDS - 1 && form->last_vector == VECTOR_UD;
    }
    free(streams);
    return error;
}

static const char *reason(const struct form *form) {
    static const char *const vectors[32] = {
        [VECTOR_DE] = "only #DE",   [VECTOR_DB] = "traps: #DB", [VECTOR_BP] = "traps: #BP",
        [VECTOR_OF] = "traps: #OF", [VECTOR_BR] = "only #BR",   [VECTOR_UD] = "#UD: not on this host",
        [VECTOR_NP] = "only #NP",   [VECTOR_SS] = "only #SS",   [VECTOR_GP] = "#GP at CPL 3",
        [VECTOR_PF] = "only #PF",   [VECTOR_MF] = "only #MF",   [VECTOR_AC] = "only #AC",
        [VECTOR_XM] = "only #XM"};
    if (form->excluded)
        return form->excluded;
    if (form->faulted)
        return form->last_vector < 32 && vectors[form->last_vector] ? vectors[form->last_vector]
                                                                    : "only faults";
    return "not tried yet, or only in code that a branch may skip";
}

void coverage_report(FILE *out, const struct form_table *forms) {
    static const char *const classes[FORM_CLASSES] = {"integer", "control", "string", "x87",     "sse",
                                                      "vex",     "evex",    "system", "excluded"};
    unsigned total[FORM_CLASSES] = {0}, completed[FORM_CLASSES] = {0}, absent[FORM_CLASSES] = {0};
    for (unsigned i = 0; i < forms->count; i++) {
        const struct form *form = &forms->form[i];
        total[form->class]++;
        completed[form->class] += form->completed != 0;
        absent[form->class] += !form->completed && form->faulted && form->last_vector == VECTOR_UD;
    }
    fprintf(out, "# mode %u: forms by class: known, completed natively, #UD on this host\n", forms->mode);
    for (unsigned class = 0; class < FORM_CLASSES; class ++)
        fprintf(out, "class %-9s %6u %6u %6u\n", classes[class], total[class], completed[class],
                absent[class]);
    for (unsigned i = 0; i < forms->count; i++) {
        const struct form *form = &forms->form[i];
        char name[160];
        form_name(forms, form, name, sizeof name);
        if (form->completed)
            fprintf(out, "ran %8lu  %s\n", (unsigned long)form->completed, name);
        else
            fprintf(out, "not           %s: %s\n", name, reason(form));
    }
}
