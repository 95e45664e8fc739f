/* Key files and the trust store. A key is a text file of a few lines: docs/cache-format.md, "Keys". */
#define _GNU_SOURCE
#include "cache-format/key.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "cache-format/digest.h"

#define KEY_FILE_MAX 4096
#define SEED_BYTES crypto_sign_ed25519_SEEDBYTES
#define BASE64_BYTES 45 /* of 32 bytes, with the zero */
#define TRUST_MAX 4096

_Static_assert(sizeof((struct ntc_secret_key *)0)->secret == crypto_sign_ed25519_SECRETKEYBYTES, "");
_Static_assert(sizeof((struct ntc_public_key *)0)->key == crypto_sign_ed25519_PUBLICKEYBYTES, "");

static const char secret_title[] = "nestor-cache secret key 1";
static const char public_title[] = "nestor-cache public key 1";

static void set_id(struct ntc_public_key *key) {
    crypto_generichash_blake2b(key->id, sizeof key->id, key->key, sizeof key->key, NULL, 0);
}

void ntc_key_id_print(const uint8_t *id, char *text) {
    sodium_bin2hex(text, 2 * NTC_KEY_ID_SIZE + 1, id, NTC_KEY_ID_SIZE);
}

static int start_sodium(struct ntc_error *error) {
    return sodium_init() < 0 ? ntc_fail(error, NTC_FAULT_MEMORY, "libsodium cannot be used on this host") : 0;
}

static void from_seed(struct ntc_secret_key *key, const uint8_t *seed) {
    crypto_sign_ed25519_seed_keypair(key->public_key.key, key->secret, seed);
    set_id(&key->public_key);
}

int ntc_key_generate(struct ntc_secret_key *key, struct ntc_error *error) {
    uint8_t seed[SEED_BYTES];
    int result = start_sodium(error);
    if (result)
        return result;
    randombytes_buf(seed, sizeof seed);
    from_seed(key, seed);
    sodium_memzero(seed, sizeof seed);
    return 0;
}

void ntc_key_wipe(struct ntc_secret_key *key) {
    sodium_memzero(key, sizeof *key);
}

/* A file that must be new. */
static int write_new(const char *path, mode_t mode, const char *text, struct ntc_error *error) {
    int fd = open(path, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC | O_NOFOLLOW, mode);
    if (fd < 0 && errno == EEXIST)
        return ntc_fail(error, NTC_FAULT_KEY, "key '%s' exists already; remove it or choose another name",
                        path);
    if (fd < 0)
        return ntc_fail(error, NTC_FAULT_IO, "key '%s' cannot be created: %s", path, strerror(errno));
    size_t length = strlen(text);
    ssize_t wrote = write(fd, text, length);
    int bad = wrote == (ssize_t)length && !fsync(fd) ? 0 : errno ? errno : ENOSPC;
    if (close(fd) && !bad)
        bad = errno;
    if (!bad)
        return 0;
    unlink(path);
    return ntc_fail(error, bad == ENOSPC || bad == EDQUOT || bad == EFBIG ? NTC_FAULT_NO_SPACE : NTC_FAULT_IO,
                    "key '%s' cannot be written: %s", path, strerror(bad));
}

static void print_key(char *text, size_t size, const char *title, const uint8_t *id, const char *word,
                      const uint8_t *bytes) {
    char hex[2 * NTC_KEY_ID_SIZE + 1], base64[BASE64_BYTES];
    ntc_key_id_print(id, hex);
    sodium_bin2base64(base64, sizeof base64, bytes, 32, sodium_base64_VARIANT_ORIGINAL);
    snprintf(text, size, "%s\nid %s\n%s %s\n", title, hex, word, base64);
    sodium_memzero(base64, sizeof base64);
}

int ntc_key_write(const struct ntc_secret_key *key, const char *path, struct ntc_error *error) {
    char text[256], public_path[4096];
    uint8_t seed[SEED_BYTES];
    if ((size_t)snprintf(public_path, sizeof public_path, "%s.pub", path) >= sizeof public_path)
        return ntc_fail(error, NTC_FAULT_KEY, "the name of the key is too long");
    if (!access(public_path, F_OK))
        return ntc_fail(error, NTC_FAULT_KEY, "key '%s' exists already; remove it or choose another name",
                        public_path);
    crypto_sign_ed25519_sk_to_seed(seed, key->secret);
    print_key(text, sizeof text, secret_title, key->public_key.id, "seed", seed);
    int result = write_new(path, 0600, text, error);
    sodium_memzero(seed, sizeof seed);
    sodium_memzero(text, sizeof text);
    if (result)
        return result;
    print_key(text, sizeof text, public_title, key->public_key.id, "key", key->public_key.key);
    result = write_new(public_path, 0644, text, error);
    if (result)
        unlink(path);
    return result;
}

static int read_text(const char *path, bool secret, char *text, struct ntc_error *error) {
    struct stat info;
    int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOCTTY);
    if (fd < 0)
        return ntc_fail(error, NTC_FAULT_IO, "key '%s' cannot be opened: %s", path, strerror(errno));
    int result = 0;
    ssize_t got = 0;
    if (fstat(fd, &info) || !S_ISREG(info.st_mode))
        result = ntc_fail(error, NTC_FAULT_KEY, "key '%s' is not a regular file", path);
    else if (secret && info.st_mode & (S_IRWXG | S_IRWXO))
        result = ntc_fail(error, NTC_FAULT_KEY,
                          "secret key '%s' can be read by others; make a new one, and chmod 600 it", path);
    else if ((got = read(fd, text, KEY_FILE_MAX - 1)) < 0)
        result = ntc_fail(error, NTC_FAULT_IO, "key '%s' cannot be read: %s", path, strerror(errno));
    close(fd);
    text[got < 0 ? 0 : got] = 0;
    if (!result && strlen(text) != (size_t)got)
        result =
            ntc_fail(error, NTC_FAULT_KEY, "'%s' is not a key file; nestor-cache keygen makes them", path);
    return result;
}

/* The 32 bytes behind word, when text is a key file with that title; id: what its id line says. */
static bool parse_key(char *text, const char *title, const char *word, uint8_t *id, uint8_t *bytes) {
    char *save = NULL;
    unsigned seen = 0;
    for (char *line = strtok_r(text, "\n", &save); line; line = strtok_r(NULL, "\n", &save)) {
        size_t length, word_length = strlen(word);
        if (*line == '#')
            continue;
        if (!seen && !strcmp(line, title)) {
            seen = 1;
        } else if (seen == 1 && !strncmp(line, "id ", 3)) {
            if (sodium_hex2bin(id, NTC_KEY_ID_SIZE, line + 3, strlen(line + 3), NULL, &length, NULL) ||
                length != NTC_KEY_ID_SIZE)
                return false;
            seen = 2;
        } else if (seen == 2 && !strncmp(line, word, word_length) && line[word_length] == ' ') {
            const char *value = line + word_length + 1;
            if (sodium_base642bin(bytes, 32, value, strlen(value), NULL, &length, NULL,
                                  sodium_base64_VARIANT_ORIGINAL) ||
                length != 32)
                return false;
            seen = 3;
        } else {
            return false;
        }
    }
    return seen == 3;
}

int ntc_key_read_secret(struct ntc_secret_key *key, const char *path, struct ntc_error *error) {
    char text[KEY_FILE_MAX];
    uint8_t id[NTC_KEY_ID_SIZE], seed[SEED_BYTES];
    int result = start_sodium(error);
    if (!result)
        result = read_text(path, true, text, error);
    if (!result && !parse_key(text, secret_title, "seed", id, seed))
        result = ntc_fail(error, NTC_FAULT_KEY,
                          "'%s' is not a secret key; nestor-cache keygen makes them (without .pub)", path);
    if (!result)
        from_seed(key, seed);
    if (!result && memcmp(id, key->public_key.id, sizeof id))
        result = ntc_fail(error, NTC_FAULT_KEY, "secret key '%s' is damaged: its id is not that of its seed",
                          path);
    sodium_memzero(text, sizeof text);
    sodium_memzero(seed, sizeof seed);
    return result;
}

int ntc_key_read_public(struct ntc_public_key *key, const char *path, struct ntc_error *error) {
    char text[KEY_FILE_MAX];
    uint8_t id[NTC_KEY_ID_SIZE];
    int result = start_sodium(error);
    if (!result)
        result = read_text(path, false, text, error);
    if (result)
        return result;
    if (!parse_key(text, public_title, "key", id, key->key))
        return ntc_fail(error, NTC_FAULT_KEY,
                        "'%s' is not a public key; nestor-cache keygen makes them (.pub)", path);
    set_id(key);
    if (memcmp(id, key->id, sizeof id))
        return ntc_fail(error, NTC_FAULT_KEY, "public key '%s' is damaged: its id is not that of its key",
                        path);
    return 0;
}

/* -- Trust -- */

const struct ntc_public_key *ntc_trust_find(const struct ntc_trust *trust, const uint8_t *id) {
    for (uint32_t i = 0; i < trust->count; i++)
        if (!memcmp(trust->key[i].id, id, NTC_KEY_ID_SIZE))
            return &trust->key[i];
    return NULL;
}

static int add_file(struct ntc_trust *trust, const char *path, struct ntc_error *error) {
    struct ntc_public_key key;
    int result = ntc_key_read_public(&key, path, error);
    if (result || ntc_trust_find(trust, key.id))
        return result;
    if (trust->count == TRUST_MAX)
        return ntc_fail(error, NTC_FAULT_LIMIT, "more than %d trusted keys", TRUST_MAX);
    struct ntc_public_key *keys = realloc(trust->key, (trust->count + 1) * sizeof *keys);
    if (!keys)
        return ntc_fail(error, NTC_FAULT_MEMORY, "no memory for trusted keys");
    trust->key = keys;
    keys[trust->count++] = key;
    return 0;
}

static bool is_public(const struct dirent *entry) {
    size_t length = strlen(entry->d_name);
    return length > 4 && entry->d_name[0] != '.' && !strcmp(entry->d_name + length - 4, ".pub");
}

static int add_directory(struct ntc_trust *trust, const char *path, DIR *directory, struct ntc_error *error) {
    const struct dirent *entry;
    int result = 0;
    while (!result && (entry = readdir(directory))) {
        char name[4096];
        if (!is_public(entry))
            continue;
        if ((size_t)snprintf(name, sizeof name, "%s/%s", path, entry->d_name) >= sizeof name)
            continue;
        result = add_file(trust, name, error);
    }
    return result;
}

int ntc_trust_add(struct ntc_trust *trust, const char *path, struct ntc_error *error) {
    struct stat info;
    if (stat(path, &info))
        return ntc_fail(error, NTC_FAULT_IO, "trusted key '%s' cannot be opened: %s", path, strerror(errno));
    if (!S_ISDIR(info.st_mode))
        return add_file(trust, path, error);
    DIR *directory = opendir(path);
    if (!directory)
        return ntc_fail(error, NTC_FAULT_IO, "trust store '%s' cannot be read: %s", path, strerror(errno));
    int result = add_directory(trust, path, directory, error);
    closedir(directory);
    return result;
}

int ntc_trust_add_default(struct ntc_trust *trust, struct ntc_error *error) {
    const char *config = getenv("XDG_CONFIG_HOME"), *home = getenv("HOME");
    char path[4096];
    int length = config && *config ? snprintf(path, sizeof path, "%s/nestor/trust.d", config)
                 : home && *home   ? snprintf(path, sizeof path, "%s/.config/nestor/trust.d", home)
                                   : 0;
    if (length <= 0 || (size_t)length >= sizeof path || access(path, F_OK))
        return 0;
    return ntc_trust_add(trust, path, error);
}

void ntc_trust_destroy(struct ntc_trust *trust) {
    free(trust->key);
    *trust = (struct ntc_trust){0};
}
