/* The stream generator: from a seed to a case. */
#ifndef NESTOR_TEST_DIFF_GENERATE_H
#define NESTOR_TEST_DIFF_GENERATE_H

#include "case.h"
#include "forms.h"

#define STREAM_MAX 256u

/* What the generator knows of one instruction of a stream, for coverage and for the minimiser. */
struct stream_insn {
    uint16_t offset; /* from the entry */
    uint8_t length;
    uint8_t unit;        /* instructions of one unit belong together */
    bool is_conditional; /* a branch may have skipped it */
    bool is_glued;       /* overwrites outputs that differ from run to run: never removed alone */
    struct form *form;   /* NULL: one of the generator's own helpers */
};

struct stream {
    unsigned count;
    struct stream_insn insn[STREAM_MAX];
};

struct generate_options {
    unsigned length;     /* instructions a stream has at most; 0: the default */
    bool self_modifying; /* let some streams write to their own code */
};

/* Make the stream of a seed. single: just this form, once (NULL: a mix). Deterministic in seed and host. */
void generate_stream(const struct form_table *forms, uint64_t seed, const struct generate_options *options,
                     const struct form *single, struct diff_case *test, struct stream *stream);

#endif
