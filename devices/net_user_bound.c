#include "devices/net_user_bound.h"

#include "devices/net_backend.h"

#define ETHERTYPE_IPV4 0x0800u
#define IPV4_HEADER_MIN 20u
#define TCP_HEADER_MIN 20u
#define PROTOCOL_ICMP 1u
#define PROTOCOL_TCP 6u
#define PROTOCOL_UDP 17u
#define TCP_SYN 0x02u
#define TCP_ACK 0x10u
#define DATAGRAM_SHARE 4u /* this part of the bound, above it */

void net_user_bound_count(struct net_user_bound *bound, unsigned sockets) {
    bound->sockets = sockets;
    bound->begun = 0;
}

bool net_user_bound_reached(const struct net_user_bound *bound) {
    return bound->sockets + bound->begun >= bound->connections;
}

static bool admit(struct net_user_bound *bound, unsigned most) {
    if (bound->sockets + bound->begun >= most)
        return false;
    bound->begun++;
    return true;
}

bool net_user_bound_admits(struct net_user_bound *bound, const uint8_t *frame, size_t length) {
    const uint8_t *ip = frame + NET_ETHERNET_HEADER;
    if (length < NET_ETHERNET_HEADER + IPV4_HEADER_MIN || (frame[12] << 8 | frame[13]) != ETHERTYPE_IPV4)
        return true;
    size_t header = (ip[0] & 15u) * 4u;
    switch (ip[9]) {
    case PROTOCOL_TCP:
        if (length < NET_ETHERNET_HEADER + header + TCP_HEADER_MIN ||
            (ip[header + 13] & (TCP_SYN | TCP_ACK)) != TCP_SYN)
            return true;
        return admit(bound, bound->connections);
    case PROTOCOL_ICMP:
    case PROTOCOL_UDP:
        return admit(bound, bound->connections + bound->connections / DATAGRAM_SHARE);
    default:
        return true;
    }
}
