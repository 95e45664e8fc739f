/* User-mode networking: a NAT inside the process by libslirp, without privileges. The guest is 10.0.2.15
 * (DHCP), the host 10.0.2.2, the name server 10.0.2.3, which asks the host's. */
#ifndef NESTOR_DEVICES_NET_USER_H
#define NESTOR_DEVICES_NET_USER_H

#include "base/types.h"
#include "devices/net_backend.h"

#include <netinet/in.h>

#define NET_USER_CONNECTIONS 1024u

/* A port of the host that leads to one of the guest's. Addresses and ports in network byte order. */
struct net_forward {
    bool udp;
    struct in_addr host;
    uint16_t host_port;
    struct in_addr guest;
    uint16_t guest_port;
};

struct net_user_config {
    const struct net_forward *forwards;
    unsigned forward_count;
    const char *hostname; /* told by DHCP; NULL: none */
    unsigned connections; /* at most so many at a time (net_user_bound.h); 0: NET_USER_CONNECTIONS */
};

/* Parse "tcp:127.0.0.1:2222-:22" or "udp::5353-10.0.2.15:53": no host address means any, no guest
 * address 10.0.2.15. -EINVAL with one line told. */
MUST_CHECK int net_forward_parse(struct net_forward *forward, const char *text);

/* 0 or -errno with one line told, for instance where a forwarded port is taken. */
MUST_CHECK int net_user_create(struct net_backend **backend, const struct net_user_config *config);

#endif
