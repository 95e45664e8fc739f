/* The generator's inside: the stream under construction, and the little instructions it sets scenes with. */
#ifndef NESTOR_TEST_DIFF_GENERATOR_H
#define NESTOR_TEST_DIFF_GENERATOR_H

#include "generate.h"
#include "layout.h"
#include "rng.h"
#include "values.h"

/* A place that code yet to come decides about. */
enum label_kind {
    LABEL_REL8,
    LABEL_REL16,
    LABEL_REL32,
    LABEL_ABS32,
    LABEL_IMMEDIATE, /* of a MOV emitted at the label: what self-modifying stores aim at */
};

struct label {
    enum label_kind kind;
    uint16_t at;        /* offset of the field in code, from the entry */
    uint16_t countdown; /* units until it is placed */
    uint32_t undefined; /* flags that are undefined on the way in */
};

#define LABELS_MAX 6u

struct generator {
    struct rng rng;
    const struct form_table *forms;
    struct diff_case *test;
    struct stream *stream;
    unsigned mode;
    uint8_t *code;      /* at the entry */
    unsigned at;        /* bytes so far */
    unsigned limit;     /* bytes there may be */
    uint64_t pc;        /* address of the entry */
    uint32_t undefined; /* arithmetic flags that have no defined value here */
    uint16_t pinned;    /* registers with a known value: pinned_value[] */
    uint16_t reserved;  /* registers that nothing may write (loop counters) */
    uint64_t pinned_value[16];
    bool refused;     /* a reserved register was to be written: the instruction is dropped */
    bool keeps_stack; /* nothing may move RSP here (inside a called function) */
    bool fs_known, gs_known;
    bool may_trap;     /* TF may be set here: what is not reproducible could not be overwritten in time */
    bool may_check;    /* AC may be set here, on a processor whose rule for vectors is not modelled in full */
    bool walks;        /* memory operands go off the walker (walk.c), which moves */
    bool walker_steps; /* with small displacements of any kind, not aligned ones */
    uint8_t walker;
    unsigned unit;
    unsigned conditional; /* depth of code that may be skipped */
    unsigned loops;
    struct label label[LABELS_MAX];
    unsigned labels;
};

/* Append an instruction of the generator's own. */
void gen_emit(struct generator *g, const uint8_t *bytes, unsigned length, struct form *form, bool is_glued);
bool gen_has_room(const struct generator *g, unsigned bytes);
void gen_mov(struct generator *g, unsigned reg, uint64_t value);
void gen_push(struct generator *g, uint32_t value);
/* Store an immediate of 1, 2 or 4 bytes at an absolute address below 2 GiB. */
void gen_store(struct generator *g, uint64_t address, unsigned size, uint32_t value, bool is_glued);
/* Make DS and ES usable again in 32-bit code: the stream may have loaded null. EAX is lost. */
void gen_data_segments(struct generator *g);
void gen_zero(struct generator *g, uint64_t address, uint32_t size);
/* Give all arithmetic flags a defined value. */
void gen_define_flags(struct generator *g);
/* Load an index vector (register number 0-31) with small values from the table in the read-only page. */
void gen_load_indices(struct generator *g, unsigned vector, unsigned bits, bool is_qword);
/* Remember that the field at the given offset is to be filled in later. False: no room for a label. */
bool gen_label_add(struct generator *g, enum label_kind kind, unsigned at, unsigned countdown);
void gen_label_place(struct generator *g, unsigned index);
/* A unit is done: place the labels that are due. */
void gen_label_tick(struct generator *g);

/* -- operands.c -- */

/* Where a memory operand shall point, and how it is reached. */
struct memory_wish {
    uint64_t target;
    bool is_fixed; /* target is given; else it is chosen */
    unsigned size; /* bytes */
    unsigned alignment;
    bool is_write;
};

uint64_t choose_target(struct generator *g, const struct memory_wish *wish);
/* Fill in ModRM, SIB, displacement and prefixes so that the operand points to wish->target; may emit a MOV to
 * a base register. avoid: registers that must not be used for that. is_rip: the displacement is yet to be
 * made relative to the end of the instruction (set as the absolute target). */
void choose_memory(struct generator *g, struct form_fields *fields, const struct form_encoding *encoding,
                   const struct memory_wish *wish, uint16_t avoid, bool *is_rip);
unsigned choose_register(struct generator *g, uint16_t avoid);
int register_number(ZydisRegister reg); /* of a general register of any width, or -1 */

/* -- special.c -- */

struct draft {
    struct form *form;
    struct form_encoding encoding;
    struct form_fields fields;
    uint8_t bytes[40];
    ZydisDecodedInstruction instruction;
    ZydisDecodedOperand operand[ZYDIS_MAX_OPERAND_COUNT];
    int memory; /* index of the memory operand, or -1 */
    struct memory_wish wish;
};

/* Before the memory operand is chosen: where it must point, and what must be in which register or cell.
 * False: not here. */
bool special_before(struct generator *g, struct draft *draft);
/* After the instruction: overwrite what is not reproducible. */
void special_after(struct generator *g, const struct draft *draft);

/* -- control.c -- */

/* Emit a control transfer of the given form. False: not here. */
bool control_emit(struct generator *g, struct form *form);
void control_loop(struct generator *g, unsigned depth);
void control_self_modify(struct generator *g);
/* Some instructions, none of which transfers control. */
void control_body(struct generator *g, unsigned count);
void control_back(struct generator *g, unsigned reg, unsigned head);

/* -- walk.c -- */

void walk_loop(struct generator *g);

/* -- generate.c -- */

/* Emit one instruction of a form with what it needs around it. False: it did not work out. */
bool generate_form(struct generator *g, struct form *form);
struct form *generate_choose(struct generator *g);
/* Draft an instruction: encoding and fields chosen, decoded, memory operand still a placeholder. */
bool draft_make(struct generator *g, struct form *form, struct draft *draft, unsigned attempt);

#endif
