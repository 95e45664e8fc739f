/* Private to cache-format: what the writer keeps (writer.c), and how it lays it out (layout.c). */
#ifndef NESTOR_CACHE_WRITER_PRIVATE_H
#define NESTOR_CACHE_WRITER_PRIVATE_H

#include "cache-format/pool.h"
#include "cache-format/writer.h"

struct kept_image {
    struct ntc_image_record record; /* without strings and tables */
    char *name, *version;
    /* Of the layout. */
    uint32_t number; /* in the file */
    struct ntc_image_record laid;
};

/* A unit's copy: pointers go into one block behind the structure. Places that the writer settles are zero in
 * its code; its slots count from its code. */
struct kept_unit {
    struct ntc_unit unit;
    uint64_t hash[2];
    uint32_t preference;
    uint32_t rank; /* the heat it was given */
    /* Of the layout. */
    uint32_t image;  /* in the file */
    uint32_t number; /* in the file */
    struct ntc_unit_record record;
};

struct ntc_writer {
    struct ntc_writer_options options;
    char producer[128];
    struct kept_image *image;
    uint32_t images;
    struct kept_unit **unit;
    uint32_t units, room;
};

/* A file under construction. */
struct layout {
    struct pool section[NTC_SECTION_KINDS];
    struct kept_image **image; /* by number */
    struct kept_unit **unit;   /* by number, which is their order in CODE */
    uint32_t units, likely_units;
    uint32_t index_likely;              /* header.index_likely */
    uint64_t likely[NTC_SECTION_KINDS]; /* so much of a section is theirs */
    uint32_t probes;
    struct ntc_writer_summary summary;
    uint8_t *file; /* all bytes */
    uint64_t file_size;
};

/* layout.c: everything but the signature. */
MUST_CHECK int layout_build(struct layout *layout, const struct ntc_writer *writer, struct ntc_error *error);
void layout_destroy(struct layout *layout);
/* layout_index.c: entries, page words and index, from units that have their numbers. 0 or -errno. */
MUST_CHECK int layout_entries(struct layout *layout, const struct ntc_writer *writer);

#endif
