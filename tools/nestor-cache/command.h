/* `nestor-cache`: looking into cache files and changing them. One table of commands, one of options; the
 * program nestor-cache and `nestor cache` run the same code.
 */
#ifndef NESTOR_TOOLS_CACHE_COMMAND_H
#define NESTOR_TOOLS_CACHE_COMMAND_H

#include "cache-format/file.h"

#include <stdio.h>

enum cache_exit { CACHE_OK = 0, CACHE_FAILED = 1, CACHE_USAGE = 2 };

/* Options, as bits: which ones a command takes. */
enum cache_option_bit {
    OPT_JSON = 1 << 0,
    OPT_OUT = 1 << 1,
    OPT_SIGN_KEY = 1 << 2,
    OPT_TRUST = 1 << 3,
    OPT_IMAGE = 1 << 4,
    OPT_PROFILE = 1 << 5,
    OPT_NO_SIGNATURE = 1 << 6,
    OPT_DIRECTORY = 1 << 7,
    OPT_IDLE = 1 << 8,
    OPT_UNSIGNED = 1 << 9,
};

#define CACHE_LIST_MAX 64u /* values of one repeatable option */

struct cache_options {
    const char *program; /* for messages: "nestor-cache" or "nestor cache" */
    bool json, no_signature, is_unsigned;
    const char *out, *sign_key, *image, *directory;
    unsigned idle_seconds;
    const char *trust[CACHE_LIST_MAX], *profile[CACHE_LIST_MAX];
    unsigned trusts, profiles;
    char **argument; /* what is no option */
    int arguments;
};

/* Run `program ARGUMENT...`; the exit status. Standard output is the caller's to flush and check. */
int cache_command(int argc, char **argv, const char *program);
/* The lines of a bash completion function for words behind the program's name, which stands at word `first`
 * - 1. */
void cache_print_completion(FILE *out, const char *function, unsigned first);
/* Words for the completion of the command itself. */
void cache_print_command_names(FILE *out);

/* Each command: enum cache_exit, after one diag_error() line if it is not CACHE_OK. */
int cache_keygen(const struct cache_options *options);
int cache_info(const struct cache_options *options);
int cache_stats(const struct cache_options *options);
int cache_ls(const struct cache_options *options);
int cache_show(const struct cache_options *options);
int cache_verify(const struct cache_options *options);
int cache_diff(const struct cache_options *options);
int cache_merge(const struct cache_options *options);
int cache_gc(const struct cache_options *options);
int cache_sign(const struct cache_options *options);
int cache_store(const struct cache_options *options);
int cache_broker(const struct cache_options *options);

/* -- common.c -- */
/* One line, and the status for it. */
int cache_fail(const struct ntc_error *error);
/* The keys that the options name, or the user's. 0 or -errno. */
MUST_CHECK int cache_trust(const struct cache_options *options, struct ntc_trust *trust,
                           struct ntc_error *error);
/* What there is to say of a file's signature: "trusted", "untrusted", "bad" or "none". */
const char *cache_signature_word(const struct ntc_header *header, const struct ntc_trust *trust);
const char *cache_generator_name(unsigned generator);
/* The numbers of a file's units by what their image is called and address, once each is known to be
 * well-formed. The caller frees them. CACHE_OK, or a status after a line. */
MUST_CHECK int cache_sort_units(const struct ntc_file *file, uint32_t **sorted);
const char *cache_image_name(const struct ntc_view *view, uint32_t image);
void cache_hex(const uint8_t *bytes, size_t length, char *text);

struct cJSON;
struct cJSON *cache_json_unit(const struct ntc_view *view, uint32_t number, const struct ntc_unit *unit);
/* Print and free it. */
int cache_json_print(struct cJSON *json);
void cache_json_hex64(struct cJSON *object, const char *name, uint64_t value);

#endif
