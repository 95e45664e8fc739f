/* Private to cache-format: what the store's clients (store.c) and its broker (broker.c) share. */
#ifndef NESTOR_CACHE_STORE_PRIVATE_H
#define NESTOR_CACHE_STORE_PRIVATE_H

#include "cache-format/store.h"

#include <sys/socket.h>
#include <sys/un.h>

#define STORE_SOCKET "cache-3.sock" /* with the protocol's version */
#define STORE_LOCK "cache-3.lock"
#define STORE_FILES_MAX 64u

#define STORE_CHUNKS_MAX 64u

enum store_what { STORE_GET = 0, STORE_LIST = 1, STORE_STOP = 2, STORE_LOAD = 3, STORE_WISH = 4 };

struct store_request {
    uint32_t what;
    uint32_t count; /* of a load or a wish: chunks */
    uint8_t root[NTC_DIGEST_SIZE];
    uint64_t reserved2;
    uint32_t chunk[STORE_CHUNKS_MAX];
};

struct store_answer {
    uint32_t result; /* 0 or an errno */
    uint32_t detail; /* of a failed get: enum ntc_fault; of a list: entries that follow */
    uint8_t root[NTC_DIGEST_SIZE];
    uint64_t size;
    char line[400];
};

_Static_assert(sizeof(struct store_request) == 304, "see docs/cache-format.md");
_Static_assert(sizeof(struct store_answer) == 448, "see docs/cache-format.md");
_Static_assert(sizeof(struct ntc_store_entry) == 48, "see docs/cache-format.md");

/* Room for more than one descriptor, so that too many are seen and closed. */
union store_control {
    char bytes[CMSG_SPACE(4 * sizeof(int))];
    struct cmsghdr align;
};

/* The store's directory: the user's own, nobody else's to enter. -ENOENT: there is none (create false). */
MUST_CHECK int store_directory(const char *given, bool create, int *fd, struct ntc_error *error);
void store_address(int directory, struct sockaddr_un *address);
bool store_peer_is_own(int socket);

/* One message, with a descriptor if fd >= 0. 0 or -errno. */
MUST_CHECK int store_send(int socket, const void *bytes, size_t length, int fd);
/* One message of exactly this length; fd NULL: none may come with it; *fd -1: none did. 0 or -errno. */
MUST_CHECK int store_receive(int socket, void *bytes, size_t length, int *fd);
void store_close_descriptors(struct msghdr *message);

#endif
