/* Writing a cache file: gather images and units in any order, from one thread, then lay them out and write.
 *
 * The same images and units give the same bytes, whatever the order they came in; only the signature differs.
 * The file appears under its name whole or not at all.
 */
#ifndef NESTOR_CACHE_WRITER_H
#define NESTOR_CACHE_WRITER_H

#include "cache-format/key.h"
#include "cache-format/view.h"

struct ntc_writer;

struct ntc_writer_options {
    uint32_t translator_abi;
    uint64_t translator_layout;
    uint64_t host_features; /* that every unit needs */
    const char *producer;   /* program and version */
    bool with_ir;           /* keep IR text */
    /* Bytes of code of units with heat, the hottest first: those beyond count as if they had none, but keep
     * their places. 0: no bound. */
    uint64_t likely_code;
};

struct ntc_image_input {
    uint64_t link_base, link_length, slide_align; /* as in struct ntc_image_record */
    enum ntc_image_kind kind;
    const char *name, *version; /* NULL: empty */
    const uint8_t *digest;      /* NTC_DIGEST_SIZE bytes, or NULL */
    const uint8_t *build_id;    /* 20 bytes, or NULL */
};

MUST_CHECK int ntc_writer_create(struct ntc_writer **writer, const struct ntc_writer_options *options);
void ntc_writer_destroy(struct ntc_writer *writer);

/* Add an image; its number is for units and relocations. An image with the same name, version, digest and
 * link addresses is the same image. -errno: -EINVAL, -ENOMEM, -E2BIG. */
MUST_CHECK int ntc_writer_add_image(struct ntc_writer *writer, const struct ntc_image_input *image,
                                    uint32_t *number);

/* Copy a unit in. first_slot, first_const and first_site are not looked at; `slots` are offsets in the unit's
 * code + code_offset. Of units for the same place, mode and bytes (fields aside) one is kept: the higher
 * `preference`, then LLVM over template, then the hotter, then the smaller bytes.
 * 0, -EINVAL for what a reader would refuse, -E2BIG past a bound of the format, -ENOMEM. */
MUST_CHECK int ntc_writer_add_unit(struct ntc_writer *writer, const struct ntc_unit *unit,
                                   uint32_t preference);

/* Is a unit of a file to be taken over? It may be changed on the way (its heat, say). */
typedef bool ntc_unit_filter(void *context, const struct ntc_view *view, uint32_t number,
                             struct ntc_unit *unit);
/* Take over a file's images and those of its units that keep() wants (NULL: all). -EBADMSG: one is malformed.
 */
MUST_CHECK int ntc_writer_add_file(struct ntc_writer *writer, const struct ntc_view *view,
                                   uint32_t preference, ntc_unit_filter *keep, void *context);

struct ntc_writer_summary {
    uint32_t images, units, entries, entries_not_indexed, duplicates;
    uint64_t guest_bytes, code_bytes, slots, consts, load_size, file_size;
    uint8_t root[NTC_DIGEST_SIZE];
};

/* Write path, signed with key (NULL: unsigned). The writer can be used again afterwards. */
MUST_CHECK int ntc_writer_write(struct ntc_writer *writer, const char *path, const struct ntc_secret_key *key,
                                struct ntc_writer_summary *summary, struct ntc_error *error);

/* Make path hold these bytes, all of them or none. */
MUST_CHECK int ntc_output_replace(const char *path, const void *bytes, uint64_t length,
                                  struct ntc_error *error);

/* Put a signature on an existing file: read, verify, sign, replace. */
MUST_CHECK int ntc_sign_file(const char *path, const char *output, const struct ntc_secret_key *key,
                             struct ntc_error *error);

#endif
