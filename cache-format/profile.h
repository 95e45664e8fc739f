/* A profile: how often the guest code at each address ran. Text, one line for an address:
 *
 *   nestor-profile 1
 *   # image link-address mode count
 *   vmlinux ffffffff81000140 48a 5120
 *
 * The address is the one that the image is linked at (hexadecimal), the mode is a unit's (hexadecimal, or "-"
 * for any). Lines may come in any order; those for one address add up. The image's name has no blanks.
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
/* The sum of the counts in [address, address + length) of an image, for a mode; saturates. */
uint64_t ntc_profile_count(const struct ntc_profile *profile, const char *image, uint64_t address,
                           uint64_t length, uint32_t mode);

#endif
