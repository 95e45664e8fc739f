/* The bound on a user network's connections. Each one is a socket of this process, and libslirp sets no
 * limit: a guest could take every descriptor that the process may have. At the bound new connections of the
 * guest's are refused by silence, as by a full network; established ones go on, and there is room again when
 * one ends. Datagrams are flows that libslirp forgets after minutes: they have a share of their own above the
 * bound, and beyond that all of them are dropped.
 */
#ifndef NESTOR_DEVICES_NET_USER_BOUND_H
#define NESTOR_DEVICES_NET_USER_BOUND_H

#include "base/types.h"

struct net_user_bound {
    unsigned connections; /* the bound */
    unsigned sockets;     /* open when they were last counted */
    unsigned begun;       /* admitted since then: at most so many more are open */
};

/* Sockets were counted. */
void net_user_bound_count(struct net_user_bound *bound, unsigned sockets);
bool net_user_bound_reached(const struct net_user_bound *bound);
/* May this Ethernet frame of the guest's go on to libslirp? */
bool net_user_bound_admits(struct net_user_bound *bound, const uint8_t *frame, size_t length);

#endif
