/* A profile: how often the guest code at each address ran. Text, one line for an address:
 *
 *   nestor-profile 1
 *   # image link-address mode count [bytes-hash]
 *   vmlinux ffffffff81000140 48a 5120
 *   vmlinux ffffffff81000140 a 3 0f3cd0a9e5b1c277
 *
 * A line with a hash is about units of just these guest bytes (ntc_unit_hash()), of which there may be
 * several for one address. The address is the one that the image is linked at (hexadecimal), the mode is a
 * unit's (hexadecimal, or "-" for any). Lines may come in any order; those for one address add up. The
 * image's name has no blanks.
 */
#ifndef NESTOR_CACHE_PROFILE_H
#define NESTOR_CACHE_PROFILE_H

#include "cache-format/error.h"

#define NTC_PROFILE_TITLE "nestor-profile 1"
#define NTC_PROFILE_ANY_MODE UINT32_MAX

struct ntc_profile_line {
    uint64_t address, count;
    uint32_t image; /* in profile->image */
    uint32_t mode;
    uint64_t hash; /* 0: whatever the bytes */
};

struct ntc_profile {
    struct ntc_profile_line *line; /* by image, address */
    uint64_t lines, room;
    char **image;
    uint32_t images;
};

/* Add a file's lines. 0 or -errno; a line that is none is told with its number. */
MUST_CHECK int ntc_profile_read(struct ntc_profile *profile, const char *path, struct ntc_error *error);
void ntc_profile_destroy(struct ntc_profile *profile);
/* The sum of the counts in [address, address + length) of an image, for a mode or NTC_PROFILE_ANY_MODE;
 * saturates. */
/* How hot a unit of an image is that has such bytes: the sum over its lines with its hash; if there are none
 * with any, over all. Whatever the mode. */
uint64_t ntc_profile_heat(const struct ntc_profile *profile, const char *image, uint64_t address,
                          uint64_t length, uint64_t hash);
uint64_t ntc_profile_count(const struct ntc_profile *profile, const char *image, uint64_t address,
                           uint64_t length, uint32_t mode);

#endif
