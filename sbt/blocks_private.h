/* A piece under translation. Private to sbt/. */
#ifndef NESTOR_SBT_BLOCKS_PRIVATE_H
#define NESTOR_SBT_BLOCKS_PRIVATE_H

#include "sbt/blocks.h"

#define BLOCKS_FIELDS_MAX 2048u
#define BLOCKS_CHOICES_MAX 512u

struct blocks {
    const struct discovery *discovery;
    const struct patched *patched;
    const struct pieces *pieces;
    const struct blocks_options *options;
    blocks_sink sink;
    void *context;
    void *generator;
    struct blocks_counts counts;

    /* The piece. */
    const struct patched_section *section;
    const uint8_t *map;
    uint64_t address, start; /* link address; offset in the section */
    uint32_t length;
    enum stage stage;
    uint8_t starts; /* bits of the map for where instructions begin: of all stages with the piece's bytes */
    bool crossed[PIECE_MAX]; /* a branch from another unit of the piece leads there */
    bool aside;              /* what is made of it is for when it does not stand as the stage has it */
    uint32_t mode;

    /* Of the request that is made. */
    uint16_t entry[PIECE_MAX];
    unsigned entries;
    struct codegen_stop stop[BLOCKS_CHOICES_MAX];
    unsigned stops;
    struct ntc_field field[BLOCKS_FIELDS_MAX];
    unsigned fields;
};

/* Set b->field to the fields of bytes that stand at [address, address + length). False: more than are kept.
 */
bool blocks_collect_fields(struct blocks *b, uint64_t address, const uint8_t *bytes, uint32_t length);
/* Bytes [offset, offset + size) may hold anything. False as above. */
bool blocks_add_hole(struct blocks *b, uint32_t offset, uint32_t size);

#endif
