/* Private to cache-format: the steps that loading a file and the store share. */
#ifndef NESTOR_CACHE_FILE_PRIVATE_H
#define NESTOR_CACHE_FILE_PRIVATE_H

#include "cache-format/file.h"

MUST_CHECK int ntc_open_path(const char *path, int *fd, struct ntc_error *error);
/* The header of an open regular file, checked. */
MUST_CHECK int ntc_read_header(int fd, const char *path, struct ntc_header *header, struct ntc_error *error);
/* -errno of a read, or -ENODATA for a file that ended early, told. */
int ntc_read_error(int result, const char *path, struct ntc_error *error);

/* Copy and verify what a VM needs of an open file into a new memory file, and seal it. */
MUST_CHECK int ntc_memfd_fill(int from, const char *path, const struct ntc_header *header, int *memfd,
                              struct ntc_error *error);
/* Is it a memory file of this user's that can no longer change? */
MUST_CHECK int ntc_memfd_check(int memfd, uint64_t size, bool in_parts, struct ntc_error *error);
/* Make *file of a sealed memory file, which it owns from now on (also when it fails). */
MUST_CHECK int ntc_file_adopt(struct ntc_file *file, const char *path, int memfd, uint64_t size,
                              const char *origin, struct ntc_error *error);

/* The same of one that comes in parts, which are asked for at the socket; it owns both (also when it fails).
 */
MUST_CHECK int ntc_file_adopt_parts(struct ntc_file *file, const char *path, int memfd,
                                    const struct ntc_header *header, int socket, struct ntc_error *error);

void ntc_sign_root(struct ntc_header *header, const struct ntc_secret_key *key);

#endif
