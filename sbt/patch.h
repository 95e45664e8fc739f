/* What a Linux kernel makes of its own code while it boots, worked out beforehand.
 *
 * The kernel's text is produced for several times of its life (enum stage). Where a place may hold one of
 * several byte strings whose choice cannot be known (a jump label's state, the target of a static call, an
 * alternative for a feature that features.c does not know), the stage holds the likeliest and a choice lists
 * the others; of a static call one call stands for all.
 *
 * Linux's tables, by their linker sections: __jump_table, .static_call_sites, __mcount_loc, .altinstructions
 * (entries of 12 bytes up to 6.2, of 14 from 6.3 on, with other rules for relocation and NOPs),
 * .parainstructions (up to 6.7), .retpoline_sites, .return_sites, .ibt_endbr_seal, .smp_locks, runtime_ptr_*.
 * All of them are foreign bytes: an entry that points outside code is counted and left alone.
 */
#ifndef NESTOR_SBT_PATCH_H
#define NESTOR_SBT_PATCH_H

#include "sbt/features.h"
#include "sbt/image.h"

enum stage {
    STAGE_EARLY,     /* from the start on: static calls set, nothing else */
    STAGE_TRACED,    /* calls for function tracing have become NOPs */
    STAGE_READY,     /* alternatives applied, several processors */
    STAGE_READY_ONE, /* the same for one processor: no LOCK prefixes */
    STAGES,
};

enum patch_kind {
    PATCH_JUMP_LABEL,
    PATCH_STATIC_CALL,
    PATCH_TRACE,
    PATCH_ALTERNATIVE,
    PATCH_PARAVIRT,
    PATCH_RETPOLINE,
    PATCH_RETURN,
    PATCH_ENDBR,
    PATCH_LOCK,
    PATCH_CONSTANT,
    PATCH_KINDS,
};

#define PATCH_LENGTH_MAX 255

/* Other contents than the stages' of a place. */
struct patch_choice {
    uint64_t address;
    uint32_t bytes; /* offset in patched.option_bytes: options * length bytes */
    uint8_t length;
    uint8_t options;
    uint8_t kind; /* enum patch_kind */
    uint8_t first_stage;
};

struct patched_section {
    uint64_t address, size;
    bool init;
    bool code; /* false: replacements, which are never run where they stand */
    const char *name;
    uint8_t *bytes[STAGES];
};

struct patched {
    const struct image *image;
    struct patched_section *section; /* the executable ones, sorted by address */
    unsigned sections;
    struct patch_choice *choice; /* sorted by address */
    size_t choices, choice_room;
    uint64_t *call; /* static calls, sorted: CALL or JMP rel32 there may lead anywhere */
    size_t calls;
    uint8_t *option_bytes;
    size_t option_used, option_room;
    unsigned sites[PATCH_KINDS];   /* entries read */
    unsigned skipped[PATCH_KINDS]; /* entries that make no sense */
    bool out_of_memory;
};

/* Work out all stages of the image. 0 or -ENOMEM after a diag_error() line. */
MUST_CHECK int patched_create(struct patched *patched, const struct image *image,
                              const struct features *features);
void patched_destroy(struct patched *patched);
/* Length bytes of code at the address in that stage, or NULL when they are not all in one section. */
uint8_t *patched_at(const struct patched *patched, enum stage stage, uint64_t address, size_t length);
/* The first choice at or above the address. */
size_t patched_choice_from(const struct patched *patched, uint64_t address);
/* The first static call at or above the address. */
size_t patched_call_from(const struct patched *patched, uint64_t address);
const char *patch_kind_name(enum patch_kind kind);

#endif
