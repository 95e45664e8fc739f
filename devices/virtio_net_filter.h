/* Receive filter of a virtio network card and the control commands that set it (virtio 1.2, clause 5.1.6.5).
 */
#ifndef NESTOR_DEVICES_VIRTIO_NET_FILTER_H
#define NESTOR_DEVICES_VIRTIO_NET_FILTER_H

#include "base/types.h"

#define NET_FILTER_ADDRESSES 64

struct net_filter {
    uint8_t mac[6];
    bool promiscuous;
    bool all_multicast;
    bool all_unicast;
    bool no_multicast;
    bool no_unicast;
    bool no_broadcast;
    bool by_vlan; /* the driver took the VLAN feature on */
    uint8_t unicast_count, multicast_count;
    uint8_t unicast[NET_FILTER_ADDRESSES][6];
    uint8_t multicast[NET_FILTER_ADDRESSES][6];
    uint8_t vlans[4096 / 8];
};

void net_filter_init(struct net_filter *filter, const uint8_t *mac, bool by_vlan);
/* Whether a frame of at least 18 bytes, or of 14 without a VLAN tag, is for this card. */
bool net_filter_passes(const struct net_filter *filter, const uint8_t *frame, size_t length);

enum net_control_class {
    NET_CONTROL_RX = 0,
    NET_CONTROL_MAC = 1,
    NET_CONTROL_VLAN = 2,
    NET_CONTROL_OFFLOADS = 5,
};
/* Carry out a command of class RX, MAC or VLAN. False: it makes no sense. */
MUST_CHECK bool net_filter_command(struct net_filter *filter, uint8_t class, uint8_t command,
                                   const uint8_t *data, size_t length);

#endif
