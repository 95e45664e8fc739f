/* A page under translation. Private to sbt/. */
#ifndef NESTOR_SBT_BLOCKS_PRIVATE_H
#define NESTOR_SBT_BLOCKS_PRIVATE_H

#include "sbt/blocks.h"

#define BLOCKS_FIELDS_MAX 32u
#define BLOCKS_SITES_MAX 512u
#define BLOCKS_RELOCS_MAX 1024u

struct blocks {
    const struct discovery *discovery;
    const struct patched *patched;
    const struct blocks_options *options;
    blocks_sink sink;
    void *context;
    void *generator;
    struct blocks_counts counts;

    /* The page: a part of a section. */
    const struct patched_section *section;
    const uint8_t *map;
    uint64_t page_address, page_start; /* link address; offset in the section */
    uint32_t page_size;
    enum stage stage;
    uint32_t mode;
    uint8_t work[PAGE_SIZE];          /* its text, with a choice's option in it now and then */
    bool wanted[PAGE_SIZE];           /* a block may begin here */
    bool done[PAGE_SIZE];             /* in this stage */
    uint16_t made[STAGES][PAGE_SIZE]; /* guest length of the block that was made */

    /* The unit that blocks_find_fields() takes apart; first_*: as the generator made it. */
    struct ntc_field field[BLOCKS_FIELDS_MAX];
    struct ntc_site site[BLOCKS_SITES_MAX], first_site[BLOCKS_SITES_MAX];
    struct ntc_reloc reloc[BLOCKS_RELOCS_MAX], first_reloc[BLOCKS_RELOCS_MAX];
    struct ntc_unit_entry entry[BLOCKS_SITES_MAX];
    struct ntc_state state[16];
    uint8_t *code, *map_bytes;
    uint64_t *consts, *slots;
};

/* Give a fresh unit the fields of its guest bytes and the relocations that follow from them. Where that
 * cannot be done the unit stays as it is: right at its link address. */
void blocks_find_fields(struct blocks *blocks, const struct codegen_request *request, struct ntc_unit *unit);

#endif
