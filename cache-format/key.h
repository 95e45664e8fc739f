/* Ed25519 keys of cache files, and the public ones that a user trusts. Text files, one key each; the form is
 * in docs/cache-format.md. */
#ifndef NESTOR_CACHE_KEY_H
#define NESTOR_CACHE_KEY_H

#include "cache-format/error.h"
#include "cache-format/format.h"

struct ntc_public_key {
    uint8_t id[NTC_KEY_ID_SIZE]; /* BLAKE2b-128 of key */
    uint8_t key[32];
};

struct ntc_secret_key {
    struct ntc_public_key public_key;
    uint8_t secret[64];
};

/* A fresh pair. */
MUST_CHECK int ntc_key_generate(struct ntc_secret_key *key, struct ntc_error *error);
/* Write path (0600, the secret) and path.pub (0644). Neither may exist. */
MUST_CHECK int ntc_key_write(const struct ntc_secret_key *key, const char *path, struct ntc_error *error);
/* A secret key that others may read is refused. */
MUST_CHECK int ntc_key_read_secret(struct ntc_secret_key *key, const char *path, struct ntc_error *error);
MUST_CHECK int ntc_key_read_public(struct ntc_public_key *key, const char *path, struct ntc_error *error);
/* Forget it, also against the optimiser. */
void ntc_key_wipe(struct ntc_secret_key *key);

/* id in hexadecimal, with a zero: 2 * NTC_KEY_ID_SIZE + 1 bytes. */
void ntc_key_id_print(const uint8_t *id, char *text);

struct ntc_trust {
    struct ntc_public_key *key;
    uint32_t count;
};

/* Add a public key file, or every *.pub of a directory. */
MUST_CHECK int ntc_trust_add(struct ntc_trust *trust, const char *path, struct ntc_error *error);
/* Add $XDG_CONFIG_HOME/nestor/trust.d (~/.config without it); that it does not exist is no error. */
MUST_CHECK int ntc_trust_add_default(struct ntc_trust *trust, struct ntc_error *error);
void ntc_trust_destroy(struct ntc_trust *trust);
/* NULL: not trusted. */
const struct ntc_public_key *ntc_trust_find(const struct ntc_trust *trust, const uint8_t *id);

#endif
